//! [`Link`]: a server's end of its flows to one shard: the commands of its connections,
//! their answers, and its receptions and identities in that shard, each in a file.
//!
//! If a flow ends, changes that the owner may have taken become unavailable, and their
//! connections close, before anything else is sent to the shard. Other commands are sent
//! again, and all of them after an orderly release. If the shard has continued for long
//! without this server, every connection is closed before a new flow opens: it may hold
//! commands that were repeated elsewhere and whose outcomes are already forgotten.

mod commands;
mod identities;
mod receptions;

use std::collections::BTreeSet;
use std::time::Duration;

use self::commands::{Commands, Origin, Waiting};
use self::identities::LocalIdentities;
use self::receptions::LocalReceptions;
use super::bugs::{Bug, is_planted};
use super::entry::Claim;
use super::flow::{Flow, FlowId};
use super::message::{Answer, Down, Event, Message, Reply, Request, ShardClock, Up};
use super::{Action, Config, ConnectionId, Now, ServerId, ShardId, timing};
use crate::store::{Account, End, Event as Published};

/// A server's end of its flows to one shard.
#[derive(Debug)]
pub(super) struct Link {
    shard: ShardId,
    server: ServerId,
    config: Config,
    /// The newest claim known to this server.
    claim: Option<Claim>,
    /// The time at which this server heard of it.
    claim_heard_at: Duration,
    /// The last claim whose owner has announced that it has released the shard.
    released: Option<Claim>,
    flow: State,
    flows: u64,
    /// The claim and the clock of the shard at the last packet of a flow.
    heard: Option<(Claim, ShardClock)>,
    /// The time at which the owner of the flow was certainly the owner.
    proven: Duration,
    commands: Commands,
    receptions: LocalReceptions,
    identities: LocalIdentities,
}

#[derive(Debug)]
enum State {
    Closed,
    /// The owner has released the shard: the next flow leads to another claim.
    Released,
    /// The server stops.
    Left,
    Opening {
        id: FlowId,
        asked_at: Duration,
    },
    Open(Box<Flow>),
}

impl Link {
    /// Returns a link without a flow.
    pub(super) fn new(shard: ShardId, server: ServerId, config: Config) -> Self {
        Self {
            shard,
            server,
            config,
            claim: None,
            claim_heard_at: Duration::ZERO,
            released: None,
            flow: State::Closed,
            flows: 0,
            heard: None,
            proven: Duration::ZERO,
            commands: Commands::default(),
            receptions: LocalReceptions::default(),
            identities: LocalIdentities::default(),
        }
    }

    /// Queues a request of a connection, to be sent by [`Self::flush`] when there is a flow
    /// and credit.
    pub(super) fn submit(
        &mut self,
        connection: ConnectionId,
        request: u64,
        content: Request,
        now: Now,
    ) {
        if let Request::Acknowledge(account, position) = &content {
            self.receptions.acknowledge(account.incarnation, *position);
        }
        let origin = match content {
            Request::Acknowledge(..) => Origin::Nowhere,
            _ => Origin::Connection(connection, request),
        };
        self.commands.push(origin, content, now);
    }

    /// Returns the owner to which a flow is open.
    pub(super) fn owner(&self, now: Now) -> Option<ServerId> {
        match &self.flow {
            State::Open(flow) if !flow.is_silent(now.running) => Some(flow.id().claim.id.server),
            _ => None,
        }
    }

    /// Ends the reception of an inbox if it belongs to this connection.
    pub(super) fn unsubscribe(&mut self, inbox: u64, connection: ConnectionId, now: Now) {
        if let Some(request) = self.receptions.unsubscribe(inbox, connection) {
            self.commands.push(Origin::Nowhere, request, now);
        }
    }

    /// Ends the identity of an account.
    pub(super) fn unregister(&mut self, incarnation: u64, now: Now) {
        if let Some(account) = self.identities.remove(incarnation) {
            self.push_unregister(account, now);
        }
    }

    /// Ends the receptions and identities of a connection that has gone. Its changes
    /// continue.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId, now: Now, out: &mut Vec<Action>) {
        self.commands.disconnect(connection);
        for request in self.receptions.disconnect(connection) {
            self.commands.push(Origin::Nowhere, request, now);
        }
        for account in self.identities.disconnect(connection) {
            self.push_unregister(account, now);
        }
        self.flush(now, out);
    }

    /// Returns whether connections may currently act as an account.
    pub(super) fn is_registered(&self, account: &Account, now: Now) -> bool {
        let is_proven = now.running.saturating_sub(self.proven) < timing::IDENTITY_PROOF
            || is_planted(Bug::NoProof);
        matches!(self.flow, State::Open(_))
            && self.identities.is_registered(account, self.flows)
            && is_proven
    }

    /// Drops the unsent commands of a connection, because an earlier one is unavailable.
    /// Returns their requests.
    pub(super) fn drop_commands(&mut self, connection: ConnectionId) -> Vec<u64> {
        self.commands.drop_of(connection)
    }

    /// Drops the unsent commands of all connections.
    pub(super) fn drop_all_commands(&mut self) {
        self.commands.drop_all();
    }

    /// Handles a heartbeat of an owner.
    pub(super) fn handle_heartbeat(&mut self, claim: Claim, now: Now, out: &mut Vec<Action>) {
        let is_newer = |known: Claim| claim.sequence > known.sequence;
        if matches!(self.flow, State::Left) || !self.claim.is_none_or(is_newer) {
            return;
        }
        let was_superseded = self.is_superseded();
        (self.claim, self.claim_heard_at) = (Some(claim), now.running);
        // The last packets of an owner that has released the shard may be on their way.
        let is_released =
            matches!(&self.flow, State::Open(flow) if self.released == Some(flow.id().claim));
        if was_superseded || !is_released {
            self.reopen(now, out);
        }
    }

    /// Handles the announcement of an owner that it has released the shard.
    pub(super) const fn handle_released(&mut self, claim: Claim) {
        self.released = Some(claim);
    }

    /// Returns whether the open flow leads to a former owner.
    fn is_superseded(&self) -> bool {
        matches!(&self.flow, State::Open(flow) if Some(flow.id().claim) != self.claim)
    }

    /// Handles a message of a flow.
    pub(super) fn handle_down(&mut self, id: FlowId, down: Down, now: Now, out: &mut Vec<Action>) {
        match (&mut self.flow, down) {
            (State::Opening { id: opening, .. }, Down::Opened(clock)) if *opening == id => {
                self.opened(id, clock, now, out);
            }
            (State::Open(flow), Down::Packet(packet, clock, proven)) if flow.id() == id => {
                let bytes = packet.bytes;
                match flow.take(packet, now.running) {
                    Ok(events) => {
                        flow.processed(bytes);
                        self.heard = Some((id.claim, clock));
                        self.proven = proven;
                        events
                            .into_iter()
                            .for_each(|event| self.handle_event(event, now, out));
                        self.flush(now, out);
                    }
                    Err(_) => self.reopen(now, out),
                }
            }
            (State::Opening { id: current, .. }, Down::End) if *current == id => {
                self.flow = State::Closed
            }
            (State::Open(flow), Down::End) if flow.id() == id => self.reopen(now, out),
            (State::Open(flow), Down::Released(sent)) if flow.id() == id => {
                match flow.taken() == sent || is_planted(Bug::MissingAnswersIgnored) {
                    true => self.release(now, out),
                    false => self.reopen(now, out),
                }
            }
            _ => {}
        }
    }

    /// Performs the actions that are due at this time.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let is_superseded = self.is_superseded()
            && now.running.saturating_sub(self.claim_heard_at) >= timing::OPEN_RETRY;
        let is_ended = match &mut self.flow {
            State::Open(_) if is_superseded => true,
            State::Open(flow) => {
                if let Some(packet) = flow.heartbeat(now.running) {
                    let up = Up::Packet(packet, now.running);
                    let message = Message::Up(self.shard, flow.id(), up);
                    out.push(Action::Send(flow.id().claim.id.server, message));
                }
                flow.is_silent(now.running) || self.commands.has_late(now)
            }
            State::Opening { asked_at, .. } => {
                now.running.saturating_sub(*asked_at) >= timing::OPEN_RETRY
            }
            State::Closed => self.claim.is_some(),
            State::Released | State::Left => false,
        };
        if is_ended {
            self.reopen(now, out);
        }
        let late = self.commands.take_late(now);
        self.fail(late, out);
        self.flush(now, out);
    }

    fn opened(&mut self, id: FlowId, clock: ShardClock, now: Now, out: &mut Vec<Action>) {
        let is_fresh = self.is_fresh(id.claim, clock) || is_planted(Bug::FlowBeforeClose);
        let has_been_open = self.heard.replace((id.claim, clock)).is_some();
        if !is_fresh {
            if has_been_open {
                tracing::warn!(
                    shard = self.shard,
                    "out of touch with a shard: closing all connections"
                );
            }
            out.push(Action::CloseAll);
            return self.reopen(now, out);
        }
        self.flow = State::Open(Box::new(Flow::new(
            id,
            self.config.window_bytes,
            now.running,
        )));
        self.resume(now);
        self.flush(now, out);
    }

    /// Returns whether little running time of the shard has passed since the last packet.
    /// Clocks of one owner are comparable only with each other; the durable clock
    /// continues across claims.
    fn is_fresh(&self, claim: Claim, clock: ShardClock) -> bool {
        self.heard.is_some_and(|(of, heard)| {
            let since = if of == claim {
                heard.running
            } else {
                heard.durable
            };
            clock.running.saturating_sub(since) <= timing::FRESH_MAX
        })
    }

    /// Continues receptions and identities in the newly opened flow, before any other
    /// command.
    fn resume(&mut self, now: Now) {
        let resumed = self.identities.resume().chain(self.receptions.resume());
        self.commands.push_first(resumed.collect(), now);
    }

    fn handle_event(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        match event {
            Event::Answer(id, answer) => {
                if let Some(waiting) = self.commands.answered(id) {
                    self.handle_answer(waiting, answer, now, out);
                }
            }
            Event::Delivery(inbox, messages) => self.receptions.deliver(inbox, messages, out),
            Event::Lagged(inbox) => self.receptions.lag(inbox, out),
            Event::Ended(inbox, generation, end) => {
                self.receptions.end_of(inbox, generation, end, out);
            }
            Event::AccountEnding(account) => self.end_identity(account, now, out),
        }
    }

    fn handle_answer(&mut self, waiting: Waiting, answer: Answer, now: Now, out: &mut Vec<Action>) {
        let id = waiting.command.id;
        match (waiting.origin, waiting.command.request, answer) {
            // A later command has ended the registration.
            (Origin::Connection(..), Request::Register(account), Answer::Flag(true))
                if self.identities.is_ended_after(&account, id) =>
            {
                self.commands
                    .push(waiting.origin, Request::Register(account), now);
            }
            (Origin::Reception(inbox), _, Answer::Resubscribed(outcome)) => match outcome {
                Ok(false) => {}
                Ok(true) => self.receptions.lag(inbox, out),
                Err(end) => self.receptions.end(inbox, end, out),
            },
            (Origin::Identity(incarnation), _, Answer::Flag(true)) => {
                self.identities.registered_again(incarnation, self.flows);
            }
            (Origin::Identity(incarnation), ..) => self.identities.end(incarnation, out),
            (
                Origin::Connection(connection, request),
                Request::Subscribe { account, .. },
                answer,
            ) => {
                self.subscribed((connection, request), account, answer, out);
            }
            (Origin::Connection(connection, request), content, answer) => {
                if let (Request::Register(account), Answer::Flag(true)) = (content, &answer) {
                    self.identities.register(account, connection, self.flows);
                }
                let reply = match answer {
                    Answer::Unavailable => Reply::Unavailable,
                    answer => Reply::Answer(answer),
                };
                out.push(Action::Answer {
                    connection,
                    request,
                    reply,
                });
            }
            // The connection has closed meanwhile.
            (
                Origin::Nowhere,
                Request::Subscribe { account, .. },
                Answer::Subscribed(Some(subscribed)),
            ) => {
                let request = Request::Unsubscribe(account, subscribed.generation);
                self.commands.push(Origin::Nowhere, request, now);
            }
            (Origin::Nowhere, Request::Register(account), Answer::Flag(true))
                if !self.identities.contains(&account) =>
            {
                self.push_unregister(account, now);
            }
            (Origin::Reception(_) | Origin::Nowhere, ..) => {}
        }
        self.flush(now, out);
    }

    fn subscribed(
        &mut self,
        (connection, request): (ConnectionId, u64),
        account: Account,
        answer: Answer,
        out: &mut Vec<Action>,
    ) {
        let (subscription, former) = match answer {
            Answer::Subscribed(Some(subscribed)) => {
                let (subscription, former) = self.receptions.begin(connection, account, subscribed);
                (Some(subscription), former)
            }
            _ => (None, None),
        };
        out.push(Action::Answer {
            connection,
            request,
            reply: Reply::Subscribed(subscription),
        });
        // The subscriber learns of its own takeover first.
        out.extend(former.map(|former| Action::Publish(former, Published::Ended(End::TakenOver))));
    }

    /// Ends the identity of an account that is about to end, and confirms that.
    fn end_identity(&mut self, account: Account, now: Now, out: &mut Vec<Action>) {
        self.identities.end(account.incarnation, out);
        self.push_unregister(account, now);
    }

    /// Ends the flow and opens a new one.
    fn reopen(&mut self, now: Now, out: &mut Vec<Action>) {
        self.end_flow(out);
        self.open(now, out);
    }

    fn open(&mut self, now: Now, out: &mut Vec<Action>) {
        let Some(claim) = self.claim else { return };
        self.flows += 1;
        let id = FlowId {
            server: self.server,
            claim,
            number: self.flows,
        };
        self.flow = State::Opening {
            id,
            asked_at: now.running,
        };
        out.push(Action::Send(
            claim.id.server,
            Message::Up(self.shard, id, Up::Open),
        ));
    }

    fn end_flow(&mut self, out: &mut Vec<Action>) {
        if let State::Open(flow) = std::mem::replace(&mut self.flow, State::Closed) {
            out.push(Action::Send(
                flow.id().claim.id.server,
                Message::Up(self.shard, flow.id(), Up::End),
            ));
        }
        let changes = self.commands.take_changes();
        self.fail(changes, out);
        self.prepare_next_flow();
    }

    /// Handles the release of the shard by its owner: it has decided none of the unanswered
    /// commands.
    fn release(&mut self, now: Now, out: &mut Vec<Action>) {
        let is_superseded = self.is_superseded();
        self.flow = State::Released;
        self.prepare_next_flow();
        if is_superseded {
            self.open(now, out);
        }
    }

    /// Ends the flow for good, because the server stops.
    pub(super) fn leave(&mut self, out: &mut Vec<Action>) {
        self.end_flow(out);
        self.flow = State::Left;
    }

    /// Queues the sent commands again, for the next flow.
    fn prepare_next_flow(&mut self) {
        self.identities.end_flow();
        self.commands.requeue();
    }

    /// Answers these commands with `unavailable`. Connections with changes among them
    /// close, and their unsent commands are unavailable as well.
    fn fail(&mut self, commands: impl IntoIterator<Item = Waiting>, out: &mut Vec<Action>) {
        let mut closing = BTreeSet::new();
        for waiting in commands {
            let Origin::Connection(connection, request) = waiting.origin else {
                continue;
            };
            out.push(Action::Answer {
                connection,
                request,
                reply: Reply::Unavailable,
            });
            if waiting.command.request.is_change() && closing.insert(connection) {
                out.push(Action::Close(connection));
            }
        }
        for connection in closing {
            let unsent = self.drop_commands(connection).into_iter();
            out.extend(unsent.map(|request| Action::Answer {
                connection,
                request,
                reply: Reply::Unavailable,
            }));
        }
    }

    fn push_unregister(&mut self, account: Account, now: Now) {
        let incarnation = account.incarnation;
        let request = Request::Unregister(account);
        let id = self.commands.push(Origin::Nowhere, request, now);
        self.identities
            .unregister(incarnation, id, self.commands.oldest());
    }

    /// Sends waiting commands, as far as there is credit.
    pub(super) fn flush(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.is_superseded() {
            return;
        }
        let State::Open(flow) = &mut self.flow else {
            return;
        };
        while flow.has_credit() && self.commands.has_unsent() {
            let (items, bytes) = self.commands.send();
            let packet = flow.send(items, bytes, now.running);
            let up = Up::Packet(packet, now.running);
            let message = Message::Up(self.shard, flow.id(), up);
            out.push(Action::Send(flow.id().claim.id.server, message));
        }
    }
}
