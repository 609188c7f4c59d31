//! The requests of the [`Driver`]: operations of the chat as requests to shards, and the
//! answers to them.

use std::collections::HashSet;

use hark_protocol::{Code, UserName};
use tokio::time::Instant;

use super::driver::{Closing, Driver};
use super::operation::{Completion, Input, Listing, Reading, Sent};
use super::senders::{self, Next, Registration};
use crate::cluster::administer::Administered;
use crate::cluster::message::{Answer, Reply, Request};
use crate::cluster::{ConnectionId, Now, ShardId};
use crate::store::{
    Account, Append, Burst, Fence, Operation, Outcome, Position, QueuedSend, Unavailable,
};

/// The pretended connection of an import: if one of its requests becomes unavailable, no
/// later one takes effect.
const IMPORT: ConnectionId = 3;

impl Driver {
    /// Passes an input to the state machine.
    pub(super) fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Operation(operation) => self.operate(operation, now),
            Input::Import(shard, import, completion) => {
                self.submit_as(IMPORT, shard, Request::Import(import), completion, now);
            }
            Input::Shards(completer) => self.describe_shards(completer, now),
            Input::Servers(completer) => self.describe_servers(completer, now),
            Input::KickElsewhere(kick, completer) => self.kick_elsewhere(kick, completer, now),
            Input::Unsubscribe(account, subscription) => {
                self.flush_acks_of(self.member.shard_of(&account.name), now);
                self.member
                    .unsubscribe(&account, of_request(subscription), now);
            }
        }
    }

    /// A closing store takes no operation that begins something.
    fn operate(&mut self, operation: Operation, now: Now) {
        match operation {
            Operation::CloseSession(token) => {
                self.sessions.close(&token, now.running);
                self.member.close_session(&token);
            }
            Operation::Close(completer) => self.closing = Some(Closing::new(completer)),
            late if self.closing.is_some() => late.refuse(),
            operation => self.begin(operation, now),
        }
    }

    fn begin(&mut self, operation: Operation, now: Now) {
        match operation {
            Operation::Create(name, password, completer) => {
                let request = Request::Create(name.clone(), password);
                self.submit(&name, request, Completion::Created(completer), now);
            }
            Operation::Account(name, completer) => {
                let request = Request::LookUp(name.clone());
                self.submit(&name, request, Completion::Account(completer), now);
            }
            Operation::SetPassword {
                account,
                old,
                new,
                completer,
            } => {
                let name = account.name.clone();
                let request = Request::SetPassword { account, old, new };
                self.submit(&name, request, Completion::Flag(completer), now);
            }
            Operation::Delete(account, completer) => {
                let name = account.name.clone();
                let completion = Completion::Flag(completer);
                self.submit(&name, Request::Delete(account), completion, now);
            }
            Operation::Names(after, limit, completer) => {
                self.list(Box::new(Listing::new(after, limit, completer)), now);
            }
            Operation::Appends(Burst { fence, sends }) => {
                sends
                    .into_iter()
                    .for_each(|send| self.append(send, &fence, now));
            }
            Operation::Subscribe {
                account,
                takes_over,
                completer,
            } => {
                let completion = Completion::Subscribed(account.clone(), completer);
                let name = account.name.clone();
                let request = Request::Subscribe {
                    account,
                    takes_over,
                };
                self.submit(&name, request, completion, now);
            }
            Operation::Read {
                account,
                after,
                limit,
                completer,
            } => {
                let reading = Reading::new(account, after, limit, completer);
                self.read(Box::new(reading), now);
            }
            Operation::Acknowledge(account, position) => self.acknowledge(account, position),
            Operation::OpenSession(token, from, completer) => {
                self.sessions.open(&token, from, completer, now.running);
            }
            Operation::OnTakeover(token, on_takeover) => {
                self.sessions.on_takeover(&token, on_takeover);
                self.member.open_session(token, now, &mut self.actions);
            }
            // Not served yet: see `Store::has_rooms`.
            room @ Operation::Room(_) => room.refuse(),
            Operation::Admin(operation) => self.administer(operation, now),
            Operation::CloseSession(_) | Operation::Close(_) => {}
        }
    }

    fn append(&mut self, send: QueuedSend, fence: &Fence, now: Now) {
        let (append, mut sent) = Sent::split(send, fence);
        let is_closed = append.send_id.is_some() && fence.is_closed();
        if is_closed || fence.epoch() < *self.channels.epochs.borrow() {
            return sent.fail();
        }
        if let Some(id) = &append.send_id {
            let Some(place) = self.sessions.begin(&id.session, id.from, now.running) else {
                return sent.complete(Outcome::Refused(Code::TooMany));
            };
            sent.place = place;
        }
        let Some(sender) = append.sender.clone() else {
            return self.send(append, sent, now);
        };
        let member = &self.member;
        if self.senders.may_send(&sender, now.running, |sender| {
            member.is_registered(sender, now)
        }) {
            return self.send(append, sent, now);
        }
        self.senders.hold(&sender, append, sent, now.running);
    }

    /// Submits a send, whose sender is registered.
    fn send(&mut self, append: Append, sent: Sent, now: Now) {
        if sent.session().is_some() && sent.fence.is_closed() {
            return self.fail(Completion::Sent(sent), now);
        }
        let connection = of_fence(&sent.fence);
        let shard = self.member.shard_of(&append.to);
        let request = Request::Send(Box::new(append));
        self.submit_as(connection, shard, request, Completion::Sent(sent), now);
    }

    /// Continues the sends that wait for the registration of their senders.
    pub(super) fn continue_senders(&mut self, now: Now) {
        loop {
            let member = &self.member;
            let next = self
                .senders
                .next(now.running, |sender| member.is_registered(sender, now));
            match next {
                None => return,
                Some(Next::Submit(held)) => self.send(held.append, held.sent, now),
                Some(Next::Fail(held)) => self.fail(Completion::Sent(held.sent), now),
                Some(Next::Register(account)) => {
                    let connection = senders::connection(&account);
                    let shard = self.member.shard_of(&account.name);
                    let completion = Completion::Registered(account.clone());
                    let request = Request::Register(account);
                    self.submit_as(connection, shard, request, completion, now);
                }
            }
        }
    }

    fn read(&mut self, reading: Box<Reading>, now: Now) {
        let (account, (after, limit)) = (reading.account.clone(), reading.next());
        let name = account.name.clone();
        let request = Request::Read {
            account,
            after,
            limit,
        };
        self.submit(&name, request, Completion::Page(reading), now);
    }

    fn list(&mut self, listing: Box<Listing>, now: Now) {
        let (after, limit) = listing.next();
        self.next_request += 1;
        let (connection, id) = (of_request(self.next_request), self.next_request);
        self.requests
            .insert(id, (connection, Completion::Names(listing)));
        self.member
            .list((connection, id), after.as_ref(), limit, now);
    }

    fn acknowledge(&mut self, account: Account, position: Position) {
        let shard = self.member.shard_of(&account.name) as usize;
        let Some(acks) = self.acks.get_mut(shard) else {
            return;
        };
        let latest = acks
            .entry(account.incarnation)
            .or_insert((account, position));
        if latest.1.sequence < position.sequence {
            latest.1 = position;
        }
        self.acks_since.get_or_insert_with(Instant::now);
    }

    /// Submits all acknowledgements.
    pub(super) fn flush_acks(&mut self, now: Now) {
        self.acks_since = None;
        (0..self.acks.len()).for_each(|shard| self.flush_acks_of(shard as ShardId, now));
    }

    fn flush_acks_of(&mut self, shard: ShardId, now: Now) {
        let acks = self
            .acks
            .get_mut(shard as usize)
            .map(std::mem::take)
            .unwrap_or_default();
        for (account, position) in acks.into_values() {
            self.submit_ack(shard, account, position, now);
        }
    }

    fn submit_ack(&mut self, shard: ShardId, account: Account, position: Position, now: Now) {
        if let Some(acked) = self.acked.get_mut(shard as usize) {
            *acked = Some(account.name.clone());
        }
        self.member
            .submit(shard, (0, 0), Request::Acknowledge(account, position), now);
    }

    /// Submits a request to the shard of a name.
    pub(super) fn submit(
        &mut self,
        name: &UserName,
        request: Request,
        completion: Completion,
        now: Now,
    ) {
        let connection = of_request(self.next_request + 1);
        let shard = self.member.shard_of(name);
        self.submit_as(connection, shard, request, completion, now);
    }

    pub(super) fn submit_as(
        &mut self,
        connection: ConnectionId,
        shard: ShardId,
        request: Request,
        completion: Completion,
        now: Now,
    ) {
        self.next_request += 1;
        // Acknowledgements take effect before later requests.
        if self
            .acks
            .get(shard as usize)
            .is_some_and(|acks| !acks.is_empty())
        {
            self.flush_acks_of(shard, now);
        }
        self.requests
            .insert(self.next_request, (connection, completion));
        self.member
            .submit(shard, (connection, self.next_request), request, now);
    }

    pub(super) fn answer(&mut self, id: u64, reply: Reply, now: Now) {
        let Some((_, completion)) = self.requests.remove(&id) else {
            if let Reply::Subscribed(Some(subscription)) = reply {
                self.member
                    .unsubscribe(subscription.account(), of_request(id), now);
            }
            return;
        };
        match (completion, reply) {
            (Completion::Created(completer), Reply::Answer(Answer::Created(created))) => {
                completer.complete(Ok(created));
            }
            (Completion::Flag(completer), Reply::Answer(Answer::Flag(flag))) => {
                completer.complete(Ok(flag))
            }
            (Completion::Imported(completer), Reply::Answer(Answer::Imported(imported))) => {
                completer.complete(Ok(imported));
            }
            (Completion::Account(completer), Reply::Answer(Answer::Account(entry))) => {
                completer.complete(Ok(entry));
            }
            (Completion::Sent(sent), Reply::Answer(Answer::Sent(outcome))) => {
                if let Some(token) = sent.session() {
                    self.opened.extend(self.sessions.end(token, sent.place));
                }
                self.decided.push((sent, outcome));
            }
            (Completion::Subscribed(account, completer), Reply::Subscribed(subscription)) => {
                let operations = self.channels.operations.clone();
                completer.complete(Ok(subscription.map(|subscription| {
                    subscription.on_drop(move || {
                        if let Some(operations) = operations.upgrade() {
                            // The driver may have ended.
                            drop(operations.send(Input::Unsubscribe(account.clone(), id)));
                        }
                    })
                })));
            }
            (Completion::Page(reading), Reply::Answer(Answer::Page(page))) => {
                if let Some(reading) = reading.add(page) {
                    self.read(reading, now);
                }
            }
            (Completion::Names(listing), Reply::Answer(Answer::Names { names, is_complete })) => {
                if let Some(listing) = listing.add(names, is_complete) {
                    self.list(listing, now);
                }
            }
            (Completion::Registered(account), Reply::Answer(Answer::Flag(is_alive))) => {
                let registration = match is_alive {
                    true => Registration::Alive,
                    false => Registration::Ended,
                };
                self.senders
                    .registered(&account, Some(registration), now.running);
            }
            (Completion::Registered(account), Reply::Answer(Answer::Suspended)) => {
                let suspended = Some(Registration::Suspended);
                self.senders.registered(&account, suspended, now.running);
            }
            (
                Completion::Inspected(completer),
                Reply::Answer(Answer::Administered(Administered::Inspected(inboxes))),
            ) => completer.complete(Ok(inboxes)),
            (
                Completion::Usage(completer),
                Reply::Answer(Answer::Administered(Administered::Usage(usage))),
            ) => completer.complete(Ok(usage)),
            (Completion::Barrier, Reply::Answer(_)) => {}
            (completion, _) => self.fail(completion, now),
        }
    }

    /// Completes the decided sends, the last one first: a connection waits for its first
    /// send, and so wakes when all of them are complete.
    pub(super) fn complete_decided(&mut self) {
        self.decided
            .drain(..)
            .rev()
            .for_each(|(sent, outcome)| sent.complete(outcome));
        self.opened
            .drain(..)
            .for_each(|completer| completer.complete(Ok(true)));
    }

    /// Completes a request as unavailable.
    fn fail(&mut self, completion: Completion, now: Now) {
        match completion {
            Completion::Sent(sent) => {
                self.end_send(&sent);
                sent.fail();
            }
            Completion::Registered(account) => self.senders.registered(&account, None, now.running),
            Completion::Barrier => {
                if let Some(closing) = &mut self.closing {
                    closing.outcome = Err(Unavailable);
                }
            }
            // Dropping a completer completes it.
            Completion::Created(_)
            | Completion::Flag(_)
            | Completion::Account(_)
            | Completion::Subscribed(..)
            | Completion::Page(_)
            | Completion::Names(_)
            | Completion::Imported(_)
            | Completion::Inspected(_)
            | Completion::Usage(_) => {}
        }
    }

    /// Fails the requests of these connections. The state machine has dropped them.
    pub(super) fn close_connections(&mut self, connections: &HashSet<ConnectionId>, now: Now) {
        let failed = self
            .requests
            .extract_if(|_, (connection, _)| connections.contains(connection));
        let failed: Vec<_> = failed.map(|(_, (_, completion))| completion).collect();
        failed
            .into_iter()
            .for_each(|completion| self.fail(completion, now));
    }

    /// Begins an epoch: the server closes all client connections. Their requests stay
    /// unanswered until then: after `unavailable`, no later send in flight may be stored.
    pub(super) fn close_all(&mut self, now: Now) {
        if *self.channels.is_ready.borrow() {
            self.channels.epochs.send_modify(|epoch| *epoch += 1);
        }
        let requests = std::mem::take(&mut self.requests);
        let held = self.senders.take_held().into_iter();
        let held = held.map(|held| Completion::Sent(held.sent));
        let requests = requests.into_values().map(|(_, completion)| completion);
        requests
            .chain(held)
            .for_each(|completion| self.abandon(completion, now));
    }

    fn abandon(&mut self, completion: Completion, now: Now) {
        match completion {
            Completion::Registered(_) | Completion::Barrier => {
                return self.fail(completion, now);
            }
            Completion::Sent(ref sent) => self.end_send(sent),
            _ => {}
        }
        self.abandoned.push((completion, now.running));
    }

    /// Ends an undecided send at its session, and closes its fence.
    fn end_send(&mut self, sent: &Sent) {
        if let Some(token) = sent.session() {
            sent.fence.close();
            self.opened.extend(self.sessions.end(token, sent.place));
        }
    }
}

/// Returns the id of the connection with this fence.
fn of_fence(fence: &Fence) -> ConnectionId {
    fence.id() << 2
}

/// Returns the id of the pretended connection of a request.
pub(super) const fn of_request(request: u64) -> ConnectionId {
    request << 2 | 1
}
