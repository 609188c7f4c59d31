//! [`Owner`]: a server that owns a shard. It takes waiting commands, decides each in
//! order of arrival, appends one frame, and releases the answers once the frame is
//! stored: so every answer proves that the shard was owned after its command arrived.
//!
//! There is no undo: if its frame is not the next entry, the owner is deposed and drops
//! all its decisions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::append::{Appender, Resolution};
use super::blocks::Blocks;
use super::bugs::{Bug, is_planted};
use super::chain::Chain;
use super::cold::{ColdReads, Copies};
use super::decide::Released;
use super::entry::{Claim, Content, Entry, OLDEST_FORMAT};
use super::flow::{Flow, FlowId};
use super::identity::{Identities, Parked};
use super::listing::Names;
use super::message::{Command, Down, Event, Item, Message, Request, ShardClock, Up};
use super::reception::Receptions;
use super::replay::Replayed;
use super::snapshot::{Part, Snapshots};
use super::{Action, Config, LogReply, LogRequest, Now, ServerId, ShardId, timing};
use crate::ledger::{Changes, Context, Ledger, SpaceUse};
use crate::log::Frame;
use crate::store::unix_ms;

/// The owner of a shard.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) shard: ShardId,
    pub(super) claim: Claim,
    config: Config,
    pub(super) chain: Chain,
    pub(super) ledger: Ledger,
    pub(super) changes: Changes,
    pub(super) blocks: Blocks,
    pub(super) cold: ColdReads,
    in_flight: Option<InFlight>,
    /// Undecided commands in order of arrival, bounded by the credit of the flows.
    pending: VecDeque<Pending>,
    pub(super) flows: BTreeMap<ServerId, Flow>,
    pub(super) receptions: Receptions,
    pub(super) identities: Identities,
    pub(super) names: Names,
    snapshots: Snapshots,
    clock: Clock,
    heartbeat_at: Duration,
    next_request: u64,
    is_releasing: bool,
    /// No message is stored.
    pub(super) is_low_on_space: bool,
    /// The newest format that all live servers read.
    pub(super) format: u8,
}

/// The running time of the shard.
#[derive(Debug)]
struct Clock {
    claimed_at: Duration,
    before: Duration,
    durable: Duration,
}

#[derive(Debug)]
struct Pending {
    flow: FlowId,
    command: Command,
    taken_at: Duration,
}

/// A frame that is appended, and the events that it releases once stored.
#[derive(Debug)]
struct InFlight {
    appender: Appender,
    content: Appended,
    running: Duration,
    released: Released,
    /// The servers that it names.
    servers: Vec<ServerId>,
    /// The arrival of its oldest command.
    taken_at: Option<Duration>,
}

/// The content of an entry in flight.
#[derive(Debug)]
enum Appended {
    Frame(Frame),
    /// A part of a snapshot without blocks.
    Index,
    Release,
}

/// Whether a server still owns the shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tenure {
    /// The server still owns the shard.
    Continues,
    /// Another server owns the shard, or may own it.
    Deposed,
    /// The server has released the shard.
    Released,
}

impl Owner {
    /// Returns the owner by this claim, with the replayed state up to it.
    pub(super) fn new(
        shard: ShardId,
        claim: Claim,
        config: Config,
        replayed: Replayed,
        now: Now,
    ) -> Self {
        let Replayed {
            chain,
            ledger,
            blocks,
            history,
            ..
        } = replayed;
        let before = ledger.running();
        // Request ids are unique within a process: see `Candidate`.
        let next_request = (claim.id.number << 32) + (1 << 31);
        let identities = Identities::new(chain.servers(), now.running);
        let names = Names::new(ledger.accounts().map(|entry| entry.account.name));
        Self {
            shard,
            claim,
            config,
            chain,
            ledger,
            changes: Changes::default(),
            blocks,
            cold: ColdReads::new(next_request + (1 << 30)),
            in_flight: None,
            pending: VecDeque::new(),
            flows: BTreeMap::new(),
            receptions: Receptions::default(),
            identities,
            names,
            snapshots: Snapshots::new(config, history),
            clock: Clock {
                claimed_at: now.running,
                before,
                durable: before,
            },
            heartbeat_at: Duration::ZERO,
            next_request,
            is_releasing: false,
            is_low_on_space: false,
            format: OLDEST_FORMAT,
        }
    }

    /// Handles a message of a flow.
    pub(super) fn handle_up(&mut self, id: FlowId, up: Up, now: Now, out: &mut Vec<Action>) {
        match up {
            Up::Open if self.may_open(id) => {
                self.end_flow(id.server, now);
                self.identities.opened(id.server);
                self.flows.insert(
                    id.server,
                    Flow::new(id, self.config.window_bytes, now.running),
                );
                out.push(self.down(id, Down::Opened(self.clock(now))));
            }
            Up::Open => {}
            // The server sends it again to the next owner.
            Up::Packet(..) if self.is_releasing => {
                if let Some(flow) = self.flow(id) {
                    flow.heard(now.running);
                }
            }
            Up::Packet(packet, sent_at) => {
                let Some(flow) = self.flow(id) else {
                    return out.push(self.down(id, Down::End));
                };
                match flow.take(packet, now.running) {
                    Ok(commands) => {
                        flow.sent_at(sent_at);
                        let taken = commands.into_iter().map(|command| Pending {
                            flow: id,
                            command,
                            taken_at: now.running,
                        });
                        self.pending.extend(taken);
                        self.answer_early(now, out);
                    }
                    Err(_) => {
                        self.end_flow(id.server, now);
                        out.push(self.down(id, Down::End));
                    }
                }
            }
            Up::End => {
                if self.flow(id).is_some() {
                    self.end_flow(id.server, now);
                }
                self.identities.ended(id);
            }
        }
        self.pump(now, out);
    }

    /// Handles an answer of the log.
    pub(super) fn handle_log(
        &mut self,
        reply: &LogReply,
        now: Now,
        out: &mut Vec<Action>,
    ) -> Tenure {
        if let LogReply::Message { id, bytes } = reply {
            let copies = self.cold.handle(*id, bytes.as_ref(), &mut self.blocks);
            if let Some(Copies { sequence, blocks }) = copies {
                self.snapshots.handle_read(sequence, blocks);
            }
            self.answer_cold(now, out);
            self.pump(now, out);
            return Tenure::Continues;
        }
        let Some(in_flight) = &mut self.in_flight else {
            return Tenure::Continues;
        };
        match in_flight.appender.handle(reply, now.running) {
            Ok(Resolution::Stored) => self.commit(now, out),
            Ok(Resolution::NotStored) => Tenure::Deposed,
            Ok(Resolution::DataLost) => {
                tracing::error!(
                    shard = self.shard,
                    "the stream of the shard has lost messages"
                );
                Tenure::Deposed
            }
            Err(next) => {
                out.extend(next.map(|request| Action::Log(self.shard, request)));
                Tenure::Continues
            }
        }
    }

    /// Performs the actions that are due at this time.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        let silent: Vec<_> = self
            .flows
            .values()
            .filter(|flow| flow.is_silent(now.running))
            .map(Flow::id)
            .collect();
        for id in silent {
            self.end_flow(id.server, now);
            out.push(self.down(id, Down::End));
        }
        self.identities.sweep(now.running);
        let is_overdue = self.is_overdue(now);
        if is_overdue {
            self.end_all_flows(now, out);
        }
        if let Some(in_flight) = &mut self.in_flight {
            if is_overdue {
                in_flight.released = Released::default();
            }
            out.extend(
                in_flight
                    .appender
                    .repeat(now.running)
                    .map(|request| Action::Log(self.shard, request)),
            );
        }
        self.heartbeat(now, out);
        self.notify_lagging(now, out);
        self.answer_cold(now, out);
        self.pump(now, out);
    }

    /// Releases the shard when all commands that it has taken are decided and stored. Its
    /// servers send what it has not taken, or not answered, to the next owner.
    pub(super) fn release(&mut self, now: Now, out: &mut Vec<Action>) {
        self.is_releasing = true;
        self.pump(now, out);
    }

    /// Releases the shard, because its own server stops: that one acts as no account any
    /// more.
    pub(super) fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        let server = self.claim.id.server;
        self.end_flow(server, now);
        self.identities.left(server);
        self.release(now, out);
    }

    /// Returns whether a release at this time is probably fast, would delay no deletion, and
    /// is not under way.
    pub(super) fn may_hand_over(&self, now: Now) -> bool {
        let is_fast = |in_flight: &InFlight| {
            now.running.saturating_sub(in_flight.appender.begun()) < timing::LOG_RETRY
        };
        !self.is_releasing
            && !self.identities.has_parked()
            && self.in_flight.as_ref().is_none_or(is_fast)
    }

    /// Ends every flow, after the shard was lost.
    pub(super) fn end_all_flows(&mut self, now: Now, out: &mut Vec<Action>) {
        let ids: Vec<_> = self.flows.values().map(Flow::id).collect();
        for id in ids {
            self.end_flow(id.server, now);
            out.push(self.down(id, Down::End));
        }
    }

    /// Returns the bytes of the stream.
    pub(super) fn stream_bytes(&self) -> u64 {
        self.snapshots.stream_bytes()
    }

    /// Returns the number of receptions.
    #[cfg(test)]
    pub(super) fn reception_count(&self) -> usize {
        self.receptions.count()
    }

    /// Returns whether an entry is in flight.
    pub(super) const fn is_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Appends the next frame, if none is in flight and there is work.
    fn pump(&mut self, now: Now, out: &mut Vec<Action>) {
        if self.in_flight.is_some() {
            return;
        }
        for Parked { flow, command, .. } in self.identities.take_ready() {
            self.pending.push_back(Pending {
                flow,
                command,
                taken_at: now.running,
            });
        }
        let (next, do_commands_wait) = (self.chain.last() + 1, !self.pending.is_empty());
        if self.is_releasing {
            return match do_commands_wait {
                true => self.append_commands(now, out),
                false => self.append(Content::Release, Released::default(), None, now, out),
            };
        }
        if self
            .snapshots
            .is_part_due(next, &self.blocks, do_commands_wait)
        {
            match self
                .snapshots
                .next_part(next, &self.ledger, &mut self.blocks, &mut self.changes)
            {
                Part::Content(part) => {
                    return self.append(part, Released::default(), None, now, out);
                }
                Part::Read(sequence) => {
                    self.cold.read_copies(sequence);
                    self.answer_cold(now, out);
                }
            }
        }
        let since = self.running(now).saturating_sub(self.clock.durable);
        if do_commands_wait || since >= timing::IDLE_FRAME_AFTER {
            self.append_commands(now, out);
        }
    }

    fn append_commands(&mut self, now: Now, out: &mut Vec<Action>) {
        let context = self.context(now);
        self.ledger.begin(context, &mut self.changes);
        let taken_at = self.pending.front().map(|pending| pending.taken_at);
        let (mut released, mut bytes) = (Released::default(), 0);
        let bytes_max = self.config.frame_bytes_max as u64;
        while !self.changes.is_full() {
            // Only one long text alone may exceed the size of a frame.
            let fits =
                |pending: &mut Pending| bytes == 0 || bytes + pending.command.bytes() <= bytes_max;
            let Some(Pending { flow, command, .. }) = self.pending.pop_front_if(fits) else {
                break;
            };
            let size = command.bytes();
            bytes += size;
            if let Some(flow) = self.flow(flow) {
                flow.processed(size);
            }
            self.decide(flow, command, (context, now), &mut released);
        }
        let frame = self.ledger.finish(&mut self.changes);
        let frame = frame.unwrap_or_else(|| self.ledger.finish_empty(&mut self.changes));
        self.append(Content::Frame(frame), released, taken_at, now, out);
    }

    fn append(
        &mut self,
        content: Content,
        released: Released,
        taken_at: Option<Duration>,
        now: Now,
        out: &mut Vec<Action>,
    ) {
        let (snapshot, servers) = (self.snapshots.snapshot(), self.identities.names());
        let Some(entry) = self.chain.next(content, snapshot, servers) else {
            return;
        };
        let entry = Entry {
            format: entry.format.max(self.format),
            ..entry
        };
        self.next_request += 1;
        let appender = Appender::new(
            self.next_request,
            entry.encode(),
            self.chain.last(),
            now.running,
        );
        let content = match entry.content {
            Content::Frame(frame) => Appended::Frame(frame),
            Content::Index(_) => Appended::Index,
            Content::Claim { .. } | Content::Release => Appended::Release,
        };
        let is_unfenced = is_planted(Bug::SnapshotOutsideFence) && content.is_part();
        let appender = appender.unfenced(is_unfenced);
        out.push(Action::Log(self.shard, appender.request()));
        self.flows.values_mut().for_each(Flow::append_built);
        let running = self.ledger.running();
        self.in_flight = Some(InFlight {
            appender,
            content,
            running,
            released,
            servers: entry.servers,
            taken_at,
        });
    }

    /// Applies the stored entry.
    fn commit(&mut self, now: Now, out: &mut Vec<Action>) -> Tenure {
        let Some(InFlight {
            appender,
            content,
            running,
            released,
            servers,
            ..
        }) = self.in_flight.take()
        else {
            return Tenure::Continues;
        };
        self.chain.advance(appender.bytes(), servers);
        if let Appended::Release = content {
            self.end_released_flows(out);
            return Tenure::Released;
        }
        self.clock.durable = running;
        self.flows.values_mut().for_each(Flow::append_stored);
        let (sequence, is_part) = (self.chain.last(), content.is_part());
        if let Appended::Frame(frame) = content {
            frame
                .blocks
                .into_iter()
                .for_each(|block| self.blocks.insert(sequence, block, is_part));
        }
        let effects = &mut self.changes.effects;
        for (inbox, cursor) in effects.heads.drain(..) {
            self.blocks.release(inbox, cursor.sequence.0);
        }
        for inbox in effects.ended.drain(..) {
            self.blocks.release(inbox, u64::MAX);
        }
        self.snapshots
            .stored(sequence, appender.bytes().len() as u64, is_part);
        let purge = self.snapshots.purge(&self.blocks);
        out.extend(purge.map(|before| Action::Log(self.shard, LogRequest::Purge { before })));
        self.publish(released, now, out);
        self.answer_cold(now, out);
        self.pump(now, out);
        Tenure::Continues
    }

    /// Ends a flow at this end. Its pending commands are unavailable at the other end.
    fn end_flow(&mut self, server: ServerId, now: Now) {
        let Some(flow) = self.flows.remove(&server) else {
            return;
        };
        let flow = flow.id();
        self.pending.retain(|pending| pending.flow != flow);
        self.receptions.end_flow(flow);
        self.identities.drop_parked(flow);
        self.identities.lost(flow, now.running);
    }

    /// Ends every flow after the release: all answers have been sent, and what was not
    /// answered was not decided.
    fn end_released_flows(&mut self, out: &mut Vec<Action>) {
        for flow in std::mem::take(&mut self.flows).into_values() {
            let released = Down::Released(flow.sent());
            out.push(self.down(flow.id(), released));
        }
    }

    /// Returns whether a command has exceeded its deadline.
    fn is_overdue(&self, now: Now) -> bool {
        let in_flight = self
            .in_flight
            .as_ref()
            .filter(|in_flight| !in_flight.released.is_empty());
        let oldest = in_flight.and_then(|in_flight| in_flight.taken_at);
        let oldest = oldest.or_else(|| self.pending.front().map(|pending| pending.taken_at));
        oldest.is_some_and(|taken_at| {
            now.running.saturating_sub(taken_at) >= timing::COMMAND_DEADLINE
        })
    }

    fn heartbeat(&mut self, now: Now, out: &mut Vec<Action>) {
        let since = self
            .in_flight
            .as_ref()
            .map(|in_flight| in_flight.appender.begun());
        let is_healthy =
            since.is_none_or(|since| now.running.saturating_sub(since) < timing::APPEND_HEALTHY);
        if is_healthy && now.running >= self.heartbeat_at {
            self.heartbeat_at = now.running + timing::CLAIM_HEARTBEAT;
            out.push(Action::Broadcast(Message::Heartbeat(
                self.shard, self.claim,
            )));
        }
        let clock = self.clock(now);
        for flow in self.flows.values_mut() {
            if let Some(packet) = flow.heartbeat(now.running) {
                let down = Down::Packet(packet, clock, flow.proven());
                out.push(Action::Send(
                    flow.id().server,
                    Message::Down(self.shard, flow.id(), down),
                ));
            }
        }
    }

    fn notify_lagging(&mut self, now: Now, out: &mut Vec<Action>) {
        let ids: Vec<_> = self
            .flows
            .values()
            .filter(|flow| flow.has_credit())
            .map(Flow::id)
            .collect();
        for id in ids {
            let lagging = self.receptions.take_lagging(id);
            let events = lagging.into_iter().map(Event::Lagged).collect();
            self.send(id, events, now, out);
        }
    }

    /// Sends events to the server of a flow, if the flow is open.
    pub(super) fn send(&mut self, id: FlowId, events: Vec<Event>, now: Now, out: &mut Vec<Action>) {
        let (clock, shard) = (self.clock(now), self.shard);
        let Some(flow) = self.flow(id) else {
            return;
        };
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let (mut items, mut bytes) = (Vec::new(), 0);
            let fits = |bytes: u64, event: &Event| {
                bytes == 0 || bytes + event.bytes() <= timing::PACKET_BYTES_MAX
            };
            while let Some(event) = events.next_if(|event| fits(bytes, event)) {
                bytes += event.bytes();
                items.push(event);
            }
            let packet = flow.send(items, bytes, now.running);
            let down = Down::Packet(packet, clock, flow.proven());
            out.push(Action::Send(id.server, Message::Down(shard, id, down)));
        }
    }

    fn down(&self, id: FlowId, down: Down) -> Action {
        Action::Send(id.server, Message::Down(self.shard, id, down))
    }

    /// Returns a flow if it is open.
    fn flow(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.flows
            .get_mut(&id.server)
            .filter(|flow| flow.id() == id)
    }

    /// Returns whether a server may open this flow now.
    fn may_open(&self, id: FlowId) -> bool {
        let open = self.flows.get(&id.server);
        let is_newest = open.is_none_or(|flow| flow.id().number < id.number);
        let is_welcome = !self.is_releasing && self.identities.has_room_for(id.server);
        id.claim == self.claim && is_newest && is_welcome
    }

    /// Returns the running time of the shard.
    fn running(&self, now: Now) -> Duration {
        self.clock.before + now.running.saturating_sub(self.clock.claimed_at)
    }

    fn context(&self, now: Now) -> Context {
        Context {
            running: self.running(now),
            wall_ms: unix_ms(now.wall),
            is_low_on_space: self.is_low_on_space,
            space: SpaceUse::default(),
        }
    }

    fn clock(&self, now: Now) -> ShardClock {
        ShardClock {
            running: self.running(now),
            durable: self.clock.durable,
        }
    }

    /// The planted bug: decides commands on arrival, and releases the results with the
    /// append in flight.
    fn answer_early(&mut self, now: Now, _: &mut Vec<Action>) {
        if !is_planted(Bug::AnswerByEarlierAppend) {
            return;
        }
        let Some(mut in_flight) = self.in_flight.take() else {
            return;
        };
        let is_read = |pending: &Pending| {
            matches!(
                pending.command.request,
                Request::LookUp(_) | Request::Names { .. }
            )
        };
        let (early, rest): (Vec<_>, Vec<_>) = self.pending.drain(..).partition(is_read);
        self.pending = rest.into();
        let context = self.context(now);
        for Pending { flow, command, .. } in early {
            self.decide(flow, command, (context, now), &mut in_flight.released);
        }
        self.in_flight = Some(in_flight);
    }
}

impl Appended {
    /// Returns whether it is a part of a snapshot.
    const fn is_part(&self) -> bool {
        matches!(
            self,
            Self::Index
                | Self::Frame(Frame {
                    checkpoint: Some(_),
                    ..
                })
        )
    }
}
