//! [`Host`]: one machine with its clocks, a server of the cluster, and client
//! connections, each with the delivery window of the real chat. It has no I/O: the
//! simulation and the Maelstrom node (`maelstrom`) drive it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytestring::ByteString;
use hark_protocol::{Sequence, SessionToken, UserName};
use tokio::time::Instant;

#[cfg(test)]
use super::Storage;
use super::member::Member;
use super::message::{Answer, Message, Reply, Request};
use super::{Action, ConnectionId, LogReply, LogRequest, Now, ServerId, ShardId};
use crate::chat::delivery_window::{self as window, DeliveryWindow, INBOX, ReadPage, Step};
use crate::store::{
    Account, Append, End, Event, Message as Text, PasswordHash, Position, ReadLimit, SendId,
    Subscription, Unavailable,
};

/// The wall clock at the start of a run, in seconds.
const WALL_SECONDS: u64 = 1_800_000_000;

/// Request ids of delivery windows start here; those of clients are below.
const READ: u64 = 1 << 32;

/// An input of a host.
#[derive(Debug)]
pub(super) enum Input {
    Message(Message),
    Log(ShardId, LogReply),
    Open(ConnectionId, usize),
    Call(ConnectionId, u64, Call),
    Hangup(ConnectionId),
    Tick,
}

/// An output of a host.
#[derive(Debug)]
pub(super) enum Output {
    Log(ShardId, LogRequest),
    Send(ServerId, Message),
    Broadcast(Message),
    /// To a client, over this connection.
    Push(
        #[cfg_attr(not(test), expect(dead_code, reason = "a node has no list of clients"))] usize,
        ConnectionId,
        Push,
    ),
}

/// A request of a client.
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "only clients of the simulation make some of them")
)]
#[derive(Debug, Clone)]
pub(super) enum Call {
    Hello(SessionToken),
    List {
        after: Option<UserName>,
        limit: u32,
    },
    LookUp(UserName),
    Create(UserName),
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
    },
    Delete(Account),
    Login(Account),
    Receive(Account),
    /// Without an id, the sender is the account of the connection.
    Send {
        to: UserName,
        text: ByteString,
        send_id: Option<SendId>,
    },
    Ack(u64),
    /// Read without a reception.
    Read {
        account: Account,
        after: Position,
        limit: ReadLimit,
    },
}

/// A push of a server to a client.
#[derive(Debug)]
pub(super) enum Push {
    Answer(u64, Answered),
    Message(Arc<Text>),
    Ended(End),
    Closed,
}

/// The answer to a request.
#[derive(Debug)]
pub(super) enum Answered {
    Unavailable,
    Subscribed(bool),
    Answer(Answer),
}

/// A machine with a server.
#[derive(Debug)]
pub(super) struct Host {
    /// The id of the process.
    pub(super) life: ServerId,
    member: Option<Member>,
    /// The clock of the process.
    running: Duration,
    /// The true time when `running` was updated.
    clock_at: Duration,
    skew: Duration,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Connections up to this id are refused.
    refused_up_to: ConnectionId,
    base: Instant,
}

#[derive(Debug)]
struct Connection {
    client: usize,
    session: Option<SessionToken>,
    identity: Option<Account>,
    /// A registration in flight: its request, and the account.
    registering: Option<(u64, Account)>,
    reception: Option<(Subscription, DeliveryWindow)>,
    reads: u64,
}

impl Host {
    /// Returns a machine without a server. Its wall clock is ahead by `skew`.
    pub(super) fn new(skew: Duration) -> Self {
        Self {
            life: ServerId(0),
            member: None,
            running: Duration::ZERO,
            clock_at: Duration::ZERO,
            skew,
            connections: BTreeMap::new(),
            refused_up_to: 0,
            base: Instant::now(),
        }
    }

    /// Starts a process.
    pub(super) fn start(&mut self, life: ServerId, member: Member, time: Duration) {
        (self.life, self.member) = (life, Some(member));
        (self.running, self.clock_at) = (Duration::ZERO, time);
    }

    /// Takes an input. `last_connection` is the last one that any client has opened.
    pub(super) fn handle(
        &mut self,
        input: Input,
        time: Duration,
        last_connection: ConnectionId,
    ) -> Vec<Output> {
        match input {
            Input::Message(message) => {
                self.act_closing(time, last_connection, |member, now, actions| {
                    member.handle_message(message, now, actions);
                })
            }
            Input::Log(shard, reply) => self.act(time, |member, now, actions| {
                member.handle_log(shard, reply, now, actions);
            }),
            Input::Tick => self.act_closing(time, last_connection, |member, now, actions| {
                member.tick(now, actions)
            }),
            Input::Open(id, client) if id <= self.refused_up_to || self.member.is_none() => {
                vec![Output::Push(client, id, Push::Closed)]
            }
            Input::Open(id, client) => {
                let (session, identity, registering, reception) = (None, None, None, None);
                let connection = Connection {
                    client,
                    session,
                    identity,
                    registering,
                    reception,
                    reads: READ,
                };
                self.connections.insert(id, connection);
                Vec::new()
            }
            Input::Call(id, _, Call::Hello(session)) => self.hello(id, session, time),
            Input::Call(id, request, call) => self.call(id, request, call, time),
            Input::Hangup(id) => match self.connections.remove(&id) {
                Some(connection) => self.act(time, |member, now, actions| {
                    member.disconnect(id, now, actions);
                    connection
                        .session
                        .iter()
                        .for_each(|session| member.close_session(session));
                }),
                None => Vec::new(),
            },
        }
    }

    /// Opens a session, and closes the connection that held it at this server.
    fn hello(&mut self, id: ConnectionId, session: SessionToken, time: Duration) -> Vec<Output> {
        let (now, mut out) = (self.now(time), Vec::new());
        self.perform(
            vec![Action::CloseSession(session.clone())],
            now,
            0,
            &mut out,
        );
        let (Some(connection), Some(member)) = (self.connections.get_mut(&id), &mut self.member)
        else {
            return out;
        };
        connection.session = Some(session.clone());
        let mut actions = Vec::new();
        member.open_session(session, now, &mut actions);
        self.perform(actions, now, 0, &mut out);
        out
    }

    fn now(&mut self, time: Duration) -> Now {
        self.running += time.saturating_sub(self.clock_at);
        self.clock_at = self.clock_at.max(time);
        let wall = UNIX_EPOCH + Duration::from_secs(WALL_SECONDS) + time + self.skew;
        Now {
            running: self.running,
            wall,
        }
    }

    fn act(
        &mut self,
        time: Duration,
        act: impl FnOnce(&mut Member, Now, &mut Vec<Action>),
    ) -> Vec<Output> {
        self.act_closing(time, 0, act)
    }

    fn act_closing(
        &mut self,
        time: Duration,
        last_connection: ConnectionId,
        act: impl FnOnce(&mut Member, Now, &mut Vec<Action>),
    ) -> Vec<Output> {
        let (now, mut actions, mut out) = (self.now(time), Vec::new(), Vec::new());
        let Some(member) = &mut self.member else {
            return out;
        };
        act(member, now, &mut actions);
        member.flush(now, &mut actions);
        self.perform(actions, now, last_connection, &mut out);
        self.drive(now, &mut out);
        out
    }

    /// Performs the actions of the server, in order.
    fn perform(
        &mut self,
        actions: Vec<Action>,
        now: Now,
        last_connection: ConnectionId,
        out: &mut Vec<Output>,
    ) {
        let mut actions = VecDeque::from(actions);
        while let Some(action) = actions.pop_front() {
            let mut closing = Vec::new();
            match action {
                Action::Log(shard, request) => out.push(Output::Log(shard, request)),
                Action::Send(server, message) => out.push(Output::Send(server, message)),
                Action::Broadcast(message) => out.push(Output::Broadcast(message)),
                Action::Answer {
                    connection,
                    request,
                    reply,
                } => self.answer(connection, request, reply, out),
                Action::Publish(publisher, event) => publisher.publish(event),
                Action::EndIdentity(connection) => {
                    if let Some(connection) = self.connections.get_mut(&connection) {
                        connection.identity = None;
                    }
                }
                Action::Close(connection) => closing.push(connection),
                Action::CloseSession(session) => {
                    let holders = self.connections.iter();
                    let holders =
                        holders.filter(|(_, holder)| holder.session.as_ref() == Some(&session));
                    closing.extend(holders.map(|(id, _)| *id));
                }
                Action::CloseAll => {
                    self.refused_up_to = self.refused_up_to.max(last_connection);
                    closing.extend(self.connections.keys());
                }
            }
            let mut more = Vec::new();
            for id in closing {
                let Some(connection) = self.connections.remove(&id) else {
                    continue;
                };
                out.push(Output::Push(connection.client, id, Push::Closed));
                if let Some(member) = &mut self.member {
                    member.disconnect(id, now, &mut more);
                    connection
                        .session
                        .iter()
                        .for_each(|session| member.close_session(session));
                }
            }
            // The consequences of a closing come before the next action.
            more.into_iter()
                .rev()
                .for_each(|action| actions.push_front(action));
        }
    }

    fn call(&mut self, id: ConnectionId, request: u64, call: Call, time: Duration) -> Vec<Output> {
        let (now, mut out) = (self.now(time), Vec::new());
        let (Some(connection), Some(member)) = (self.connections.get_mut(&id), &mut self.member)
        else {
            return out;
        };
        let client = connection.client;
        let (mut submitted, mut list) = (None, None);
        match call {
            Call::LookUp(name) => submitted = Some((member.shard_of(&name), Request::LookUp(name))),
            Call::List { after, limit } => list = Some((after, limit)),
            Call::Hello(_) => {}
            Call::Create(name) => {
                submitted = Some((member.shard_of(&name), Request::Create(name, None)))
            }
            Call::SetPassword { account, old, new } => {
                submitted = Some((
                    member.shard_of(&account.name),
                    Request::SetPassword { account, old, new },
                ));
            }
            Call::Delete(account) => {
                submitted = Some((member.shard_of(&account.name), Request::Delete(account)))
            }
            Call::Login(account) => {
                connection.registering = Some((request, account.clone()));
                submitted = Some((member.shard_of(&account.name), Request::Register(account)));
            }
            Call::Receive(account) => {
                let shard = member.shard_of(&account.name);
                submitted = Some((
                    shard,
                    Request::Subscribe {
                        account,
                        takes_over: true,
                    },
                ));
            }
            Call::Send { to, text, send_id } => {
                let sender = connection.identity.clone();
                if sender
                    .as_ref()
                    .is_some_and(|sender| !member.is_registered(sender, now))
                {
                    out.push(Output::Push(
                        client,
                        id,
                        Push::Answer(request, Answered::Unavailable),
                    ));
                } else {
                    let allow_anonymous = send_id.is_some();
                    let shard = member.shard_of(&to);
                    let send = Append {
                        to,
                        sender,
                        allow_anonymous,
                        time_ms: 1,
                        text,
                        send_id,
                        refusal: None,
                    };
                    submitted = Some((shard, Request::Send(Box::new(send))));
                }
            }
            Call::Read {
                account,
                after,
                limit,
            } => {
                submitted = Some((
                    member.shard_of(&account.name),
                    Request::Read {
                        account,
                        after,
                        limit,
                    },
                ));
            }
            Call::Ack(number) => {
                let reception = connection.reception.as_mut();
                // A reader that has processed a later message at another server may
                // acknowledge it before it is pushed here; that is ignored.
                if let Some((subscription, window)) = reception
                    && let Ok(Some(position)) = window.handle_ack(INBOX, Sequence(number))
                {
                    let account = subscription.account().clone();
                    submitted = Some((
                        member.shard_of(&account.name),
                        Request::Acknowledge(account, position),
                    ));
                }
            }
        }
        let mut actions = Vec::new();
        if let Some((shard, content)) = submitted {
            member.submit(shard, (id, request), content, now);
        }
        if let Some((after, limit)) = list {
            member.list((id, request), after.as_ref(), limit, now);
        }
        member.flush(now, &mut actions);
        self.perform(actions, now, 0, &mut out);
        self.drive(now, &mut out);
        out
    }

    #[expect(
        clippy::expect_used,
        reason = "a page with a hole is a bug of the owner, which must fail a test"
    )]
    fn answer(&mut self, id: ConnectionId, request: u64, reply: Reply, out: &mut Vec<Output>) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let client = connection.client;
        let instant = self.base + self.running;
        if request >= READ {
            if let Some((_, window)) = &mut connection.reception {
                let page = match reply {
                    Reply::Answer(Answer::Page(page)) => Ok(ReadPage::of_inbox(page)),
                    _ => Err(Unavailable),
                };
                window
                    .handle_page(page, instant)
                    .expect("a page without a hole");
            }
            return;
        }
        let answered = match reply {
            Reply::Unavailable => Answered::Unavailable,
            Reply::Subscribed(None) => Answered::Subscribed(false),
            Reply::Subscribed(Some(subscription)) => {
                let window = DeliveryWindow::new(subscription.cursor(), false);
                connection.reception = Some((subscription, window));
                Answered::Subscribed(true)
            }
            Reply::Answer(answer) => {
                if let Some((_, account)) = connection.registering.take_if(|(of, _)| *of == request)
                    && matches!(answer, Answer::Flag(true))
                {
                    connection.identity = Some(account);
                }
                Answered::Answer(answer)
            }
        };
        out.push(Output::Push(client, id, Push::Answer(request, answered)));
    }

    /// Drives the windows of the connections.
    fn drive(&mut self, now: Now, out: &mut Vec<Output>) {
        let instant = self.base + now.running;
        let mut reads = Vec::new();
        for (id, connection) in &mut self.connections {
            let Some((subscription, window)) = &mut connection.reception else {
                continue;
            };
            window.note_ready(INBOX);
            loop {
                if let Some(end) = subscription.end() {
                    out.push(Output::Push(connection.client, *id, Push::Ended(end)));
                    connection.reception = None;
                    break;
                }
                match window.step(instant) {
                    Step::Push(_, window::Push::Message(message)) => {
                        out.push(Output::Push(connection.client, *id, Push::Message(message)))
                    }
                    Step::Read { after, limit, .. } => {
                        subscription.follow();
                        connection.reads += 1;
                        let account = subscription.account().clone();
                        reads.push((
                            *id,
                            connection.reads,
                            Request::Read {
                                account,
                                after: after.into(),
                                limit,
                            },
                        ));
                    }
                    Step::Take(..) => match subscription.next_event() {
                        Some(Event::Appended(messages)) => window.handle_appended(messages),
                        Some(Event::Lagged) => window.handle_lagged(INBOX),
                        Some(Event::Ended(_)) => {}
                        None => window.handle_caught_up(INBOX),
                    },
                    Step::Push(..) | Step::Left(..) | Step::Wait => break,
                }
            }
        }
        let mut actions = Vec::new();
        let Some(member) = &mut self.member else {
            return;
        };
        for (id, request, content) in reads {
            let Request::Read { account, .. } = &content else {
                continue;
            };
            let shard = member.shard_of(&account.name);
            member.submit(shard, (id, request), content, now);
        }
        member.flush(now, &mut actions);
        self.perform(actions, now, 0, out);
    }
}

/// Faults and observations of the simulation.
#[cfg(test)]
impl Host {
    /// Ends the process. Returns its connections.
    pub(super) fn crash(&mut self) -> Vec<(usize, ConnectionId)> {
        self.member = None;
        std::mem::take(&mut self.connections)
            .into_iter()
            .map(|(id, connection)| (connection.client, id))
            .collect()
    }

    /// Returns the server, if it is running.
    pub(super) const fn member(&self) -> Option<&Member> {
        self.member.as_ref()
    }

    /// Releases its shards.
    pub(super) fn leave(&mut self, time: Duration) -> Vec<Output> {
        self.act(time, |member, now, actions| member.leave(now, actions))
    }

    /// Takes the storage of each stream, as polled.
    pub(super) fn poll_storage(&mut self, low: &[bool]) {
        let Some(member) = &mut self.member else {
            return;
        };
        for (shard, is_low) in (0..).zip(low.iter().copied()) {
            let free = if is_low { 5 << 30 } else { 50 << 30 };
            let replica = |free| Storage {
                free,
                total: 100 << 30,
            };
            member.handle_storage(shard, &[50 << 30, free].map(replica));
        }
    }

    /// Stops the clocks until this time.
    pub(super) const fn skip_clock(&mut self, time: Duration) {
        self.clock_at = time;
    }

    /// Returns the connections that hold a session.
    pub(super) fn holders(&self) -> impl Iterator<Item = &SessionToken> {
        self.connections
            .values()
            .filter_map(|connection| connection.session.as_ref())
    }
}
