//! The decisions of an [`Owner`], and the events that a stored frame releases:
//! answers, pages, deliveries and ends of receptions.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_protocol::UserName;

use super::blocks::WithRead;
use super::flow::{Flow, FlowId};
use super::identity::Parked;
use super::message::{Answer, Command, Event, Generation, Import, Request, Subscribed};
use super::owner::Owner;
use super::{Action, Now, timing};
use crate::ledger::Context;
use crate::log::{Block, ReadError};
use crate::shard::readers::{PageError, read_page};
use crate::store::{Account, End, NAMELESS, Page, Position, ReadLimit};

/// The events that wait for a frame to be stored.
#[derive(Debug, Default)]
pub(super) struct Released {
    events: Vec<(FlowId, Event)>,
    reads: Vec<Read>,
    lists: Vec<List>,
}

/// A request for a page of messages.
#[derive(Debug)]
pub(super) struct Read {
    flow: FlowId,
    id: u64,
    pub(super) account: Account,
    after: Position,
    limit: ReadLimit,
    /// The time of its decision.
    pub(super) since: Duration,
}

#[derive(Debug)]
struct List {
    flow: FlowId,
    id: u64,
    after: Option<UserName>,
    limit: u32,
}

impl Released {
    /// Returns whether there are no results.
    pub(super) const fn is_empty(&self) -> bool {
        self.events.is_empty() && self.reads.is_empty() && self.lists.is_empty()
    }
}

impl Owner {
    /// Decides a command in the frame under construction.
    pub(super) fn decide(
        &mut self,
        flow: FlowId,
        command: Command,
        (context, now): (Context, Now),
        released: &mut Released,
    ) {
        let (ledger, changes, id) = (&mut self.ledger, &mut self.changes, command.id);
        let answer = match command.request {
            Request::Create(name, password) => {
                Answer::Created(ledger.create(&name, password, changes))
            }
            Request::SetPassword { account, old, new } => {
                Answer::Flag(ledger.set_password(&account, old.as_ref(), new, changes))
            }
            Request::Delete(account) => return self.delete(flow, id, account, released),
            Request::LookUp(name) => Answer::Account(ledger.account(&name)),
            Request::Names { after, limit } => {
                return released.lists.push(List {
                    flow,
                    id,
                    after,
                    limit,
                });
            }
            Request::Register(account) if ledger.is_suspended(&account) => Answer::Suspended,
            Request::Register(account) => {
                let is_alive = ledger.positions(&account).is_some();
                if !is_alive || self.identities.register(&account, flow.server) {
                    Answer::Flag(is_alive)
                } else {
                    Answer::Unavailable
                }
            }
            Request::Send(send) => Answer::Sent(ledger.append(*send, context, changes)),
            Request::Subscribe {
                account,
                takes_over,
            } => {
                let (answer, former) = self.subscribe(flow, &account, takes_over, released);
                released.events.push((flow, Event::Answer(id, answer)));
                return released.take_over(account.incarnation, former);
            }
            Request::Resubscribe {
                account,
                generation,
                delivered,
                acknowledged,
            } => {
                ledger.acknowledge(&account, NAMELESS, acknowledged, changes);
                self.resubscribe(flow, &account, generation, delivered, released)
            }
            Request::Read {
                account,
                after,
                limit,
            } => {
                let since = now.running;
                return released.reads.push(Read {
                    flow,
                    id,
                    account,
                    after,
                    limit,
                    since,
                });
            }
            Request::Unsubscribe(account, generation) => {
                return self.receptions.end(account.incarnation, generation);
            }
            Request::Unregister(account) => {
                return self.identities.unregister(&account, flow.server);
            }
            Request::Acknowledge(account, position) => {
                ledger.acknowledge(&account, NAMELESS, position, changes);
                Answer::Flag(true)
            }
            Request::Import(import) => self.import(import),
            Request::Administer(request) => self.administer(request, &mut released.events),
        };
        released.events.push((flow, Event::Answer(id, answer)));
    }

    fn import(&mut self, import: Import) -> Answer {
        let (ledger, changes) = (&mut self.ledger, &mut self.changes);
        match import {
            Import::Account {
                name,
                password,
                cursor,
            } => Answer::Created(ledger.import_account(&name, password, cursor, changes)),
            Import::Message { to, message } => {
                Answer::Imported(ledger.import_message(&to, *message, changes))
            }
            Import::SkipNumbers(number) => {
                ledger.skip_number(number, changes);
                Answer::Flag(true)
            }
        }
    }

    /// Deletes an account, or parks the deletion until no connection acts as the account.
    fn delete(&mut self, flow: FlowId, id: u64, account: Account, released: &mut Released) {
        let is_alive = self.ledger.positions(&account).is_some();
        if is_alive && !self.identities.is_free(&account) {
            for server in self.identities.servers(&account) {
                if let Some(flow) = self.flows.get(&server) {
                    released
                        .events
                        .push((flow.id(), Event::AccountEnding(account.clone())));
                }
            }
            let command = Command {
                id,
                request: Request::Delete(account.clone()),
            };
            return self.identities.park(Parked {
                account,
                flow,
                command,
            });
        }
        let existed = self.ledger.delete(&account, &mut self.changes);
        // A server is answered before it is notified.
        released
            .events
            .push((flow, Event::Answer(id, Answer::Flag(existed))));
        if let Some((flow, generation)) = self.receptions.remove(account.incarnation) {
            released.events.push((
                flow,
                Event::Ended(account.incarnation, generation, End::Deleted),
            ));
        }
    }

    fn subscribe(
        &mut self,
        flow: FlowId,
        account: &Account,
        takes_over: bool,
        released: &Released,
    ) -> (Answer, Option<(FlowId, Generation)>) {
        let inbox = account.incarnation;
        if !takes_over && !self.receptions.is_free(inbox) {
            return (Answer::Subscribed(None), None);
        }
        let place = released.events.len() as u32;
        let generation = Generation {
            sequence: self.chain.last() + 1,
            place,
        };
        let Some(subscription) = self.ledger.subscribe(account, &mut self.changes) else {
            return (Answer::Subscribed(None), None);
        };
        let (queued, cursor) = (subscription.queued(), subscription.cursor());
        let former = self.receptions.admit(inbox, generation, flow, subscription);
        (
            Answer::Subscribed(Some(Subscribed {
                generation,
                queued,
                cursor,
            })),
            former,
        )
    }

    fn resubscribe(
        &mut self,
        flow: FlowId,
        account: &Account,
        generation: Generation,
        delivered: Position,
        released: &mut Released,
    ) -> Answer {
        let inbox = account.incarnation;
        let Some((_, tail)) = self.ledger.positions(account) else {
            return Answer::Resubscribed(Err(End::Deleted));
        };
        if !self.receptions.may_continue(inbox, generation) {
            return Answer::Resubscribed(Err(End::TakenOver));
        }
        let Some(subscription) = self.ledger.subscribe(account, &mut self.changes) else {
            return Answer::Resubscribed(Err(End::Deleted));
        };
        let former = self.receptions.admit(inbox, generation, flow, subscription);
        released.take_over(inbox, former);
        Answer::Resubscribed(Ok(tail.sequence > delivered.sequence))
    }

    /// Sends the events that a stored frame releases: to each server its answers first, then its
    /// messages.
    pub(super) fn publish(&mut self, released: Released, now: Now, out: &mut Vec<Action>) {
        let mut to: BTreeMap<FlowKey, (FlowId, Vec<Event>)> = BTreeMap::new();
        let mut push = |flow: FlowId, event| {
            to.entry((flow.server.0, flow.number))
                .or_insert_with(|| (flow, Vec::new()))
                .1
                .push(event);
        };
        let Released {
            events,
            reads,
            lists,
        } = released;
        events
            .into_iter()
            .for_each(|(flow, event)| push(flow, event));
        let reads = reads.into_iter().map(|read| (read, Vec::new()));
        for (read, blocks) in self.cold.take_ready().into_iter().chain(reads) {
            if let Some((flow, answer)) = self.page(read, &blocks) {
                push(flow, answer);
            }
        }
        self.names.change(self.changes.effects.accounts.drain(..));
        for List {
            flow,
            id,
            after,
            limit,
        } in lists
        {
            push(
                flow,
                Event::Answer(id, self.names.page(after.as_ref(), limit)),
            );
        }
        for delivery in self.changes.effects.deliveries.drain(..) {
            let Some(flow) = self.receptions.flow(delivery.inbox) else {
                continue;
            };
            if self.flows.get(&flow.server).is_some_and(Flow::has_credit) {
                push(flow, Event::Delivery(delivery.inbox, delivery.messages));
            } else {
                self.receptions.note_lagging(delivery.inbox);
            }
        }
        self.changes.effects.clear();
        for (flow, events) in to.into_values() {
            self.send(flow, events, now, out);
        }
    }

    /// Reads a page of messages, with these blocks that were read from the stream. All
    /// decisions of the ledger are stored at this point. Returns `None` if the page must
    /// wait for an entry of the stream.
    fn page(&mut self, read: Read, blocks: &[Block]) -> Option<(FlowId, Event)> {
        let Read {
            flow,
            id,
            ref account,
            after,
            limit,
            ..
        } = read;
        let answer = |answer| Some((flow, Event::Answer(id, answer)));
        let Some((cursor, _)) = self.ledger.positions(account) else {
            return answer(Answer::Page(Page {
                complete: true,
                ..Page::default()
            }));
        };
        let from = after.sequence.max(cursor.sequence);
        let limit = ReadLimit {
            messages: limit.messages.min(timing::PAGE_MESSAGES_MAX),
            bytes: limit.bytes.min(timing::PAGE_BYTES_MAX),
        };
        let reader = WithRead {
            blocks: &self.blocks,
            read: blocks,
        };
        match read_page(&reader, account.incarnation, from, limit) {
            Ok(mut page) => {
                if cursor.sequence > after.sequence {
                    let start = page
                        .starts_after
                        .filter(|start| start.sequence > cursor.sequence);
                    page.starts_after = start.or(Some(cursor));
                }
                answer(Answer::Page(page))
            }
            Err(PageError::Log(ReadError::NotCached { .. })) => {
                let sequence = self.blocks.uncached_after(account.incarnation, from.0)?;
                let refused = self.cold.read(sequence, read);
                refused.and_then(|_| answer(Answer::Unavailable))
            }
            Err(error) => {
                tracing::error!(%error, account = %account.name, "messages cannot be read");
                answer(Answer::Unavailable)
            }
        }
    }

    /// Answers pages whose entry has arrived or could not be read in time. A frame in flight
    /// holds decisions that are not stored; the pages then wait for it.
    pub(super) fn answer_cold(&mut self, now: Now, out: &mut Vec<Action>) {
        for Read {
            flow, id, account, ..
        } in self.cold.take_late(now.running)
        {
            tracing::error!(account = %account.name, "messages cannot be read: no answer of the stream");
            self.send(flow, vec![Event::Answer(id, Answer::Unavailable)], now, out);
        }
        if !self.is_in_flight() {
            for (read, blocks) in self.cold.take_ready() {
                if let Some((flow, event)) = self.page(read, &blocks) {
                    self.send(flow, vec![event], now, out);
                }
            }
        }
        let requests = self.cold.requests(now.running);
        out.extend(
            requests
                .into_iter()
                .map(|request| Action::Log(self.shard, request)),
        );
    }
}

/// The sort key of servers within a commit.
type FlowKey = (u64, u64);

impl Released {
    fn take_over(&mut self, inbox: u64, former: Option<(FlowId, Generation)>) {
        if let Some((flow, generation)) = former {
            self.events
                .push((flow, Event::Ended(inbox, generation, End::TakenOver)));
        }
    }
}
