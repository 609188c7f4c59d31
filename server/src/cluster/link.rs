//! [`Link`]: a server's end of its flows to one shard: the commands of its connections,
//! their answers, and its receptions and identities in that shard.
//!
//! If a flow ends, changes that the owner may have taken become unavailable, and their
//! connections close, before anything else is sent to the shard. Other commands are sent
//! again, and all of them after an orderly release. If the shard has continued for long
//! without this server, every connection is closed before a new flow opens: it may hold
//! commands that were repeated elsewhere and whose outcomes are already forgotten.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::entry::Claim;
use super::flow::{Flow, FlowId};
use super::message::{
    Answer, Command, Down, Event, Generation, Item as _, Message, Reply, Request, ShardClock,
    Subscribed, Up,
};
use super::{Action, Config, ConnectionId, Now, ServerId, ShardId, timing};
use crate::store::{Account, End, Event as Published, Position, Publisher, Subscription};

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
    /// Commands that are not sent yet.
    queue: VecDeque<Waiting>,
    /// Unanswered commands, by id.
    sent: BTreeMap<u64, Waiting>,
    /// Receptions by inbox.
    receptions: BTreeMap<u64, Reception>,
    identities: BTreeMap<u64, Identity>,
    /// The ids of the last [`Request::Unregister`] in this flow, by incarnation.
    unregistered: BTreeMap<u64, u64>,
    next_id: u64,
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

/// An unanswered command.
#[derive(Debug)]
struct Waiting {
    origin: Origin,
    command: Command,
    since: Duration,
}

/// The destination of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A request of a connection.
    Connection(ConnectionId, u64),
    /// The reception of this inbox, to continue it.
    Reception(u64),
    /// The identity of this incarnation, to continue it.
    Identity(u64),
    /// None: the answer is dropped.
    Nowhere,
}

#[derive(Debug)]
struct Reception {
    account: Account,
    generation: Generation,
    connection: ConnectionId,
    publisher: Publisher,
    delivered: Position,
    acknowledged: Position,
}

/// The connections that act as an account.
#[derive(Debug)]
struct Identity {
    account: Account,
    connections: BTreeSet<ConnectionId>,
    /// The number of the flow in which the account is registered.
    flow: u64,
}

impl Link {
    /// Returns a link without a flow.
    pub(super) const fn new(shard: ShardId, server: ServerId, config: Config) -> Self {
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
            queue: VecDeque::new(),
            sent: BTreeMap::new(),
            receptions: BTreeMap::new(),
            identities: BTreeMap::new(),
            unregistered: BTreeMap::new(),
            next_id: 0,
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
        if let Request::Acknowledge(account, position) = &content
            && let Some(reception) = self.receptions.get_mut(&account.incarnation)
        {
            reception.acknowledged = reception.acknowledged.max_by_sequence(*position);
        }
        let origin = match content {
            Request::Acknowledge(..) => Origin::Nowhere,
            _ => Origin::Connection(connection, request),
        };
        self.push(origin, content, now);
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
        if self
            .receptions
            .get(&inbox)
            .is_none_or(|reception| reception.connection != connection)
        {
            return;
        }
        if let Some(Reception {
            account,
            generation,
            ..
        }) = self.receptions.remove(&inbox)
        {
            self.push(
                Origin::Nowhere,
                Request::Unsubscribe(account, generation),
                now,
            );
        }
    }

    /// Ends the identity of an account.
    pub(super) fn unregister(&mut self, incarnation: u64, now: Now) {
        if let Some(Identity { account, .. }) = self.identities.remove(&incarnation) {
            self.push_unregister(account, now);
        }
    }

    /// Ends the receptions and identities of a connection that has gone. Its changes
    /// continue.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId, now: Now, out: &mut Vec<Action>) {
        self.queue
            .retain(|waiting| !waiting.is_of(connection) || waiting.command.request.is_change());
        for waiting in self
            .sent
            .values_mut()
            .filter(|waiting| waiting.is_of(connection))
        {
            // If a change becomes unavailable, later ones must not continue.
            if !waiting.command.request.is_change() {
                waiting.origin = Origin::Nowhere;
            }
        }
        let gone = self
            .receptions
            .extract_if(.., |_, reception| reception.connection == connection);
        let gone: Vec<_> = gone.map(|(_, reception)| reception).collect();
        for Reception {
            account,
            generation,
            ..
        } in gone
        {
            self.push(
                Origin::Nowhere,
                Request::Unsubscribe(account, generation),
                now,
            );
        }
        let gone = self.identities.extract_if(.., |_, identity| {
            identity.connections.remove(&connection) && identity.connections.is_empty()
        });
        let gone: Vec<_> = gone.map(|(_, identity)| identity.account).collect();
        for account in gone {
            self.push_unregister(account, now);
        }
        self.flush(now, out);
    }

    /// Returns whether connections may currently act as an account.
    pub(super) fn is_registered(&self, account: &Account, now: Now) -> bool {
        let identity = self.identities.get(&account.incarnation);
        let is_proven = now.running.saturating_sub(self.proven) < timing::IDENTITY_PROOF
            || is_planted(Bug::NoProof);
        matches!(self.flow, State::Open(_))
            && identity.is_some_and(|identity| identity.flow == self.flows)
            && is_proven
    }

    /// Drops the unsent commands of a connection, because an earlier one is unavailable.
    /// Returns their requests.
    pub(super) fn drop_commands(&mut self, connection: ConnectionId) -> Vec<u64> {
        let mut dropped = Vec::new();
        self.queue.retain(|waiting| match waiting.origin {
            Origin::Connection(of, request) if of == connection => {
                dropped.push(request);
                false
            }
            _ => true,
        });
        dropped
    }

    /// Drops the unsent commands of all connections.
    pub(super) fn drop_all_commands(&mut self) {
        self.queue
            .retain(|waiting| !matches!(waiting.origin, Origin::Connection(..)));
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
        let is_late =
            |waiting: &Waiting| now.running.saturating_sub(waiting.since) >= waiting.deadline();
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
                flow.is_silent(now.running) || self.sent.values().any(is_late)
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
        if self.queue.iter().any(is_late) {
            let is_late = |waiting: &Waiting| {
                is_late(waiting) && matches!(waiting.origin, Origin::Connection(..))
            };
            let (late, rest): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(is_late);
            self.queue = rest.into();
            self.fail(late, out);
        }
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
        let mut resumed = Vec::new();
        for (incarnation, identity) in &self.identities {
            resumed.push((
                Origin::Identity(*incarnation),
                Request::Register(identity.account.clone()),
            ));
        }
        for (inbox, reception) in &self.receptions {
            let Reception {
                account,
                generation,
                delivered,
                acknowledged,
                ..
            } = reception;
            let (account, generation) = (account.clone(), *generation);
            let (delivered, acknowledged) = (*delivered, *acknowledged);
            let request = Request::Resubscribe {
                account,
                generation,
                delivered,
                acknowledged,
            };
            resumed.push((Origin::Reception(*inbox), request));
        }
        for (origin, request) in resumed.into_iter().rev() {
            let waiting = self.waiting(origin, request, now);
            self.queue.push_front(waiting);
        }
    }

    fn handle_event(&mut self, event: Event, now: Now, out: &mut Vec<Action>) {
        match event {
            Event::Answer(id, answer) => {
                if let Some(waiting) = self.sent.remove(&id) {
                    self.handle_answer(waiting, answer, now, out);
                }
            }
            Event::Delivery(inbox, messages) => {
                if let Some(reception) = self.receptions.get_mut(&inbox) {
                    if let Some(last) = messages.last() {
                        reception.delivered = last.position;
                    }
                    out.push(Action::Publish(
                        reception.publisher.clone(),
                        Published::Appended(messages),
                    ));
                }
            }
            Event::Lagged(inbox) => self.lag(inbox, out),
            Event::Ended(inbox, generation, end) => {
                if self
                    .receptions
                    .get(&inbox)
                    .is_some_and(|reception| reception.generation == generation)
                {
                    self.end_reception(inbox, end, out);
                }
            }
            Event::AccountEnding(account) => self.end_identity(account, now, out),
        }
    }

    fn handle_answer(&mut self, waiting: Waiting, answer: Answer, now: Now, out: &mut Vec<Action>) {
        let id = waiting.command.id;
        match (waiting.origin, waiting.command.request, answer) {
            // A later command has ended the registration.
            (Origin::Connection(..), Request::Register(account), Answer::Flag(true))
                if self
                    .unregistered
                    .get(&account.incarnation)
                    .is_some_and(|later| *later > id) =>
            {
                self.push(waiting.origin, Request::Register(account), now);
            }
            (Origin::Reception(inbox), _, Answer::Resubscribed(outcome)) => match outcome {
                Ok(false) => {}
                Ok(true) => self.lag(inbox, out),
                Err(end) => self.end_reception(inbox, end, out),
            },
            (Origin::Identity(incarnation), _, Answer::Flag(true)) => {
                if let Some(identity) = self.identities.get_mut(&incarnation) {
                    identity.flow = self.flows;
                }
            }
            (Origin::Identity(incarnation), ..) => self.drop_identity(incarnation, out),
            (
                Origin::Connection(connection, request),
                Request::Subscribe { account, .. },
                answer,
            ) => {
                let (subscription, former) = match answer {
                    Answer::Subscribed(Some(subscribed)) => {
                        let (subscription, former) =
                            self.subscribed(connection, account, subscribed);
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
                out.extend(
                    former.map(|former| Action::Publish(former, Published::Ended(End::TakenOver))),
                );
            }
            (Origin::Connection(connection, request), content, answer) => {
                if let (Request::Register(account), Answer::Flag(true)) = (content, &answer) {
                    let incarnation = account.incarnation;
                    let identity = self.identities.entry(incarnation);
                    let connections = BTreeSet::new();
                    let identity = identity.or_insert_with(|| Identity {
                        account,
                        connections,
                        flow: 0,
                    });
                    identity.connections.insert(connection);
                    identity.flow = self.flows;
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
                self.push(
                    Origin::Nowhere,
                    Request::Unsubscribe(account, subscribed.generation),
                    now,
                );
            }
            (Origin::Nowhere, Request::Register(account), Answer::Flag(true))
                if !self.identities.contains_key(&account.incarnation) =>
            {
                self.push_unregister(account, now);
            }
            (Origin::Reception(_) | Origin::Nowhere, ..) => {}
        }
        self.flush(now, out);
    }

    fn subscribed(
        &mut self,
        connection: ConnectionId,
        account: Account,
        subscribed: Subscribed,
    ) -> (Subscription, Option<Publisher>) {
        let Subscribed {
            generation,
            queued,
            cursor,
        } = subscribed;
        let (publisher, subscription) = Subscription::new(account.clone(), queued, cursor);
        let inbox = account.incarnation;
        let (delivered, acknowledged) = (cursor, cursor);
        let reception = Reception {
            account,
            generation,
            connection,
            publisher,
            delivered,
            acknowledged,
        };
        let former = self.receptions.insert(inbox, reception);
        (subscription, former.map(|former| former.publisher))
    }

    fn lag(&self, inbox: u64, out: &mut Vec<Action>) {
        if let Some(reception) = self.receptions.get(&inbox) {
            out.push(Action::Publish(
                reception.publisher.clone(),
                Published::Lagged,
            ));
        }
    }

    fn end_reception(&mut self, inbox: u64, end: End, out: &mut Vec<Action>) {
        if let Some(reception) = self.receptions.remove(&inbox) {
            out.push(Action::Publish(reception.publisher, Published::Ended(end)));
        }
    }

    /// Ends the identity of an account that is about to end, and confirms that.
    fn end_identity(&mut self, account: Account, now: Now, out: &mut Vec<Action>) {
        self.drop_identity(account.incarnation, out);
        self.push_unregister(account, now);
    }

    fn drop_identity(&mut self, incarnation: u64, out: &mut Vec<Action>) {
        if let Some(identity) = self.identities.remove(&incarnation) {
            out.extend(identity.connections.into_iter().map(Action::EndIdentity));
        }
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
        let changes = self
            .sent
            .extract_if(.., |_, waiting| waiting.command.request.is_change());
        let changes: Vec<_> = changes.map(|(_, waiting)| waiting).collect();
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
        // Receptions and identities continue in the next flow.
        self.queue.retain(|waiting| {
            !matches!(waiting.origin, Origin::Reception(_) | Origin::Identity(_))
        });
        // All registrations of this flow have ended with it.
        self.queue
            .retain(|waiting| !matches!(waiting.command.request, Request::Unregister(_)));
        self.unregistered.clear();
        let again = std::mem::take(&mut self.sent).into_values();
        let again = again.filter(
            |Waiting {
                 origin, command, ..
             }| {
                matches!(origin, Origin::Connection(..))
                    || matches!(command.request, Request::Acknowledge(..))
            },
        );
        again
            .rev()
            .for_each(|waiting| self.queue.push_front(waiting));
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
        self.push(Origin::Nowhere, Request::Unregister(account), now);
        let unanswered = self
            .sent
            .keys()
            .chain(self.queue.iter().map(|waiting| &waiting.command.id));
        let oldest = unanswered.copied().min().unwrap_or(self.next_id);
        self.unregistered.retain(|_, id| *id > oldest);
        self.unregistered.insert(incarnation, self.next_id);
    }

    fn push(&mut self, origin: Origin, request: Request, now: Now) {
        let waiting = self.waiting(origin, request, now);
        self.queue.push_back(waiting);
    }

    fn waiting(&mut self, origin: Origin, request: Request, now: Now) -> Waiting {
        self.next_id += 1;
        Waiting {
            origin,
            command: Command {
                id: self.next_id,
                request,
            },
            since: now.running,
        }
    }

    /// Sends waiting commands, as far as there is credit.
    pub(super) fn flush(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.is_superseded() {
            return;
        }
        let State::Open(flow) = &mut self.flow else {
            return;
        };
        while flow.has_credit() && !self.queue.is_empty() {
            let (mut items, mut bytes) = (Vec::new(), 0);
            let fits =
                |bytes: u64, size: u64| bytes == 0 || bytes + size <= timing::PACKET_BYTES_MAX;
            while let Some(waiting) = self
                .queue
                .pop_front_if(|next| fits(bytes, next.command.bytes()))
            {
                bytes += waiting.command.bytes();
                items.push(waiting.command.clone());
                if waiting.command.request.has_answer() {
                    self.sent.insert(waiting.command.id, waiting);
                }
            }
            let packet = flow.send(items, bytes, now.running);
            let up = Up::Packet(packet, now.running);
            let message = Message::Up(self.shard, flow.id(), up);
            out.push(Action::Send(flow.id().claim.id.server, message));
        }
    }
}

impl Waiting {
    const fn deadline(&self) -> Duration {
        match self.command.request {
            Request::Delete(_) => timing::DELETE_DEADLINE,
            _ => timing::COMMAND_DEADLINE,
        }
    }

    #[cfg(any(test, feature = "maelstrom"))]
    fn is_of(&self, connection: ConnectionId) -> bool {
        matches!(self.origin, Origin::Connection(of, _) if of == connection)
    }
}

trait MaxBySequence {
    fn max_by_sequence(self, other: Self) -> Self;
}

impl MaxBySequence for Position {
    fn max_by_sequence(self, other: Self) -> Self {
        if other.sequence > self.sequence {
            other
        } else {
            self
        }
    }
}
