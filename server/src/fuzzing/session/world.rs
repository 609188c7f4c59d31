//! The clients and the server: the requests of each operation, and their expected answers.

use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use hark_protocol::limits::{OUTCOMES_REMEMBERED, WINDOW_MESSAGES_MAX, text_bytes_max};
use hark_protocol::{ByeReason, Code, OkFields, Reply, Request, RequestId, Sequence, UserName};
use tokio::runtime::Runtime;
use tokio::time::Instant;

use super::connection::Connection;
use super::model::{
    ACCOUNTS_MAX, CONNECTIONS, Model, QUEUED_BYTES_MAX, QUEUED_MESSAGES_MAX, TEXT_BYTES_MAX, USERS,
};
use super::rights::{PASSWORDS, Rights, tried};
use super::{Kind, Op};
use crate::chat::{Chat, MayCreateRooms, Rates, Rules};
use crate::shard::fuzzing::{Home, weak_hash};
use crate::shard::{ShardConfig, ShardStore};
use crate::store::{Created, Store};

/// The clients that keep a session over their connections.
const SESSIONS: usize = 2;

/// The maximum number of passwords hashed by the server in one run; each takes many
/// milliseconds.
const HASHES_MAX: usize = 2;

/// The share of runs with hashed passwords, chosen by the number of operations.
const HASHES_EVERY: usize = 8;

/// The time without an event after which the connections' clock advances.
const TICK: Duration = Duration::from_millis(2);

/// The ticks after which a wait counts as stuck. Ticks rather than time, since a process may be
/// paused.
const TICKS_MAX: usize = 30_000;

/// The advance of the connections' clock, enough for a retry.
const TICK_AHEAD: Duration = Duration::from_secs(1);

/// The overhead of a frame over its text, in bytes.
const FRAME_BYTES_MORE: usize = 256;

/// Runs the future on a shared runtime.
pub(super) fn block_on(run: impl Future<Output = ()>) {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_time()
            .build()
            .unwrap()
    });
    runtime.block_on(run);
}

pub(super) struct World {
    home: Home,
    /// `None` during a restart.
    server: Option<Server>,
    pub(super) model: Model,
    pub(super) connections: [Connection; CONNECTIONS],
    clients: [Client; SESSIONS],
    /// The number of connections opened so far.
    opened: u32,
    pub(super) hashes_left: usize,
    /// The wrong passwords tried so far.
    pub(super) wrong: usize,
    /// The offset of the connections' clock.
    ahead: Duration,
}

struct Server {
    store: Arc<ShardStore>,
    chat: Arc<Chat>,
}

/// A client with a session.
#[derive(Default)]
struct Client {
    last_id: u32,
    /// All its sends by id, answered or not.
    sends: Vec<(RequestId, usize)>,
}

impl Server {
    fn start(home: &Home, rights: Rights) -> Self {
        let config = ShardConfig {
            accounts_max: ACCOUNTS_MAX,
            queued_messages_max: QUEUED_MESSAGES_MAX as u64,
            queued_bytes_max: QUEUED_BYTES_MAX as u64,
            ..ShardConfig::DEFAULT
        };
        let rules = Rules {
            frame_bytes_max: TEXT_BYTES_MAX + FRAME_BYTES_MORE,
            list_names_max: 100,
            require_password: rights.require_password,
            open_registration: true,
            admins: rights.admins(),
            log_watcher: None,
            may_list: rights.may_list,
            rooms: MayCreateRooms::Users,
            rates: Rates::NONE,
        };
        assert_eq!(text_bytes_max(rules.frame_bytes_max), TEXT_BYTES_MAX);
        let store = Arc::new(home.open(config));
        let chat = Arc::new(Chat::new(Arc::clone(&store) as Arc<dyn Store>, rules));
        Self { store, chat }
    }
}

fn name(user: usize) -> UserName {
    USERS[user].parse().unwrap()
}

/// The operations.
impl World {
    /// Returns a world for this many operations.
    pub(super) fn new(operations: usize, rights: Rights) -> Self {
        let home = Home::default();
        let mut world = Self {
            server: Some(Server::start(&home, rights)),
            home,
            model: Model::new(rights),
            connections: Default::default(),
            clients: Default::default(),
            opened: 0,
            hashes_left: if operations.is_multiple_of(HASHES_EVERY) {
                HASHES_MAX
            } else {
                0
            },
            wrong: 0,
            ahead: Duration::ZERO,
        };
        (0..CONNECTIONS).for_each(|c| world.open(c, None));
        world
    }

    pub(super) async fn step(
        &mut self,
        Op {
            kind,
            connection: c,
            user,
            amount,
        }: Op,
    ) {
        if kind != Kind::Recover {
            self.until_ready(c).await;
        }
        match kind {
            Kind::Create => self.create(c, user, amount).await,
            Kind::CreateByOperator => self.create_by_operator(user, amount).await,
            Kind::Login => self.enter(c, user, amount, false).await,
            Kind::Receive => self.enter(c, user, amount, true).await,
            Kind::Disconnect => self.disconnect(c).await,
            Kind::Delete => self.delete(c, user, amount).await,
            Kind::Password => self.set_password(c, user, amount).await,
            Kind::List => self.list(c, amount).await,
            Kind::Ping => self.ping(c).await,
            Kind::Send => self.send(c, user, amount * 7).await,
            Kind::Burst => self.burst(c, user, amount).await,
            Kind::Again => self.again(c, amount).await,
            Kind::Ack => self.acknowledge(c, amount).await,
            Kind::AckNothing => self.tell(
                c,
                Request::Ack {
                    log: None,
                    sequence: Sequence(u64::MAX),
                },
            ),
            Kind::Break => self.hello(c, self.connections[c].client).await,
            Kind::Hello => self.hello(c, Some(user % SESSIONS)).await,
            Kind::Fail => {
                self.model.become_uncertain();
                self.home.fail_next(amount % 2 == 0);
            }
            Kind::Restart => self.restart(amount % 2 == 0).await,
            Kind::Settle => self.settle().await,
            Kind::Recover => self.recover().await,
        }
    }

    /// Lets the clients repeat unanswered sends and every reader read to the end, and compares
    /// the result with the model.
    pub(super) async fn finish(mut self) {
        for client in 0..SESSIONS {
            self.hello(client, Some(client)).await;
        }
        self.settle().await;
        if self.model.rights.require_password {
            // An account without a password could not log in to read.
            self.model.rights = Rights::OPEN;
            self.restart(true).await;
        }
        (0..CONNECTIONS).for_each(|c| self.open(c, None));
        for user in 0..USERS.len() {
            if self.model.account(user).is_some() {
                self.read_to_the_end(user).await;
            }
        }
        self.model.check_promise();
    }

    async fn create(&mut self, c: usize, user: usize, amount: usize) {
        let password = tried(amount);
        let expected = self
            .model
            .may_create(&self.connections[c], user, password.is_some());
        let is_hashed = password.is_some() && matches!(expected, Ok(_) | Err(Code::TooMany));
        if is_hashed && !self.may_hash() {
            return;
        }
        let given = password.map(|password| password.parse().unwrap());
        if let Some(reply) = self
            .ask(
                c,
                Request::Create {
                    user: name(user),
                    password: given,
                },
            )
            .await
        {
            check(&reply, &expected);
        }
        self.look_up(user, &expected, password).await;
    }

    /// Creates an account in the store, with a hash that is cheap to verify.
    async fn create_by_operator(&mut self, user: usize, amount: usize) {
        self.settle().await;
        let expected = self.model.has_room_for(user);
        let password = (amount % 4 != 3).then_some(PASSWORDS[0]);
        match self
            .server()
            .store
            .create(&name(user), password.map(weak_hash))
            .await
        {
            Ok(Created::Created) => assert_eq!(expected, Ok(OkFields::None)),
            Ok(Created::Exists) => assert_eq!(expected, Err(Code::Exists)),
            Ok(Created::TooMany) => assert_eq!(expected, Err(Code::TooMany)),
            Err(unavailable) => assert!(self.model.is_uncertain, "{unavailable}"),
        }
        self.look_up(user, &expected, password).await;
    }

    /// Makes a `login` or a `connect`.
    async fn enter(&mut self, c: usize, user: usize, amount: usize, receives: bool) {
        let inbox = self.model.account(user);
        let Some((password, proven)) = self.prove(c, user, inbox, amount) else {
            return;
        };
        let expected = match (inbox, proven) {
            (_, Err(code)) => Err(code),
            (None, Ok(())) => Err(Code::NoSuchUser),
            (Some(inbox), Ok(())) if receives => {
                Ok(OkFields::Queued(self.model.unread(inbox).len() as u64))
            }
            (Some(_), Ok(())) => Ok(OkFields::None),
        };
        let request = if receives {
            Request::Connect {
                user: name(user),
                password,
            }
        } else {
            Request::Login {
                user: name(user),
                password,
            }
        };
        // It sees the effect of every earlier request.
        self.settle().await;
        let former = self.readers_of(inbox.filter(|_| receives && expected.is_ok()));
        self.connections[c].entering = inbox.map(|inbox| (inbox, receives));
        let reply = self.ask(c, request).await;
        self.connections[c].entering = None;
        match reply {
            Some(Reply::Ok(fields)) if self.model.is_uncertain && receives => {
                assert!(
                    expected.is_ok() && fields.as_queued().is_some(),
                    "{fields:?}"
                );
            }
            Some(reply) => check(&reply, &expected),
            None => return,
        }
        self.owe(
            former.into_iter().filter(|former| *former != c),
            ByeReason::TakenOver,
        )
        .await;
    }

    async fn disconnect(&mut self, c: usize) {
        if let Some(reply) = self.ask(c, Request::Disconnect).await {
            check(&reply, &Ok(OkFields::None));
            self.connections[c].user = None;
            self.connections[c].receiving = None;
        }
    }

    async fn delete(&mut self, c: usize, user: usize, amount: usize) {
        self.settle().await;
        let inbox = self.model.account(user);
        let is_me = inbox.is_some() && self.connections[c].user == inbox;
        let (password, proven) = if is_me || self.model.is_admin(&self.connections[c]) {
            (None, Ok(()))
        } else if self.model.rights.require_password {
            (None, Err(Code::Denied))
        } else {
            let Some(tried) = self.prove(c, user, inbox, amount) else {
                return;
            };
            tried
        };
        let expected = proven.map(|()| OkFields::Deleted(inbox.is_some()));
        let former = self.readers_of(inbox.filter(|_| expected.is_ok()));
        let reply = self
            .ask(
                c,
                Request::Delete {
                    user: name(user),
                    password,
                },
            )
            .await;
        self.look_up(user, &expected, None).await;
        if let Some(reply) = reply {
            check(&reply, &expected);
            self.owe(former, ByeReason::Deleted).await;
        }
    }

    async fn set_password(&mut self, c: usize, user: usize, amount: usize) {
        let inbox = self.model.account(user);
        let new = PASSWORDS[amount / 3 % PASSWORDS.len()];
        let me = self.connections[c]
            .user
            .map(|me| self.model.inboxes[me].user);
        let (old, expected) = if me != Some(user) && self.model.is_admin(&self.connections[c]) {
            (None, inbox.map(|_| OkFields::None).ok_or(Code::NoSuchUser))
        } else {
            let Some((old, proven)) = self.prove(c, user, inbox, amount) else {
                return;
            };
            let inbox = proven.and_then(|()| inbox.ok_or(Code::NoSuchUser));
            (old, inbox.and_then(|inbox| self.model.may_take(inbox)))
        };
        if expected.is_ok() && !self.may_hash() {
            return;
        }
        let request = Request::Password {
            user: name(user),
            old,
            new: new.parse().unwrap(),
        };
        if let Some(reply) = self.ask(c, request).await {
            check(&reply, &expected);
        }
        self.look_up(user, &expected, Some(new)).await;
    }

    async fn list(&mut self, c: usize, amount: usize) {
        let pattern = ["", "a|b", "^[^c]$", "["][amount % 4];
        let wanted: fn(&&str) -> bool = match pattern {
            "" => |_| true,
            "a|b" => |name| ["a", "b"].contains(name),
            _ => |name| *name != "c",
        };
        let names: Vec<_> = self.model.names().into_iter().filter(wanted).collect();
        let request = Request::List {
            pattern: (!pattern.is_empty()).then(|| pattern.into()),
        };
        let Some(reply) = self.ask(c, request).await else {
            return;
        };
        let listed: Vec<_> = std::mem::take(&mut self.connections[c].replies)
            .into_iter()
            .flat_map(|reply| {
                if let Reply::List(names) = reply {
                    names
                } else {
                    Vec::new()
                }
            })
            .collect();
        if let Err(code) = self.model.may_list(&self.connections[c]) {
            return check(&reply, &Err(code));
        }
        if pattern == "[" {
            return check(&reply, &Err(Code::BadPattern));
        }
        check(&reply, &Ok(OkFields::Listed(names.len(), false)));
        assert_eq!(
            listed.iter().map(UserName::as_str).collect::<Vec<_>>(),
            names
        );
    }

    async fn ping(&mut self, c: usize) {
        if let Some(reply) = self.ask(c, Request::Ping).await {
            check(&reply, &Ok(OkFields::None));
        }
    }

    async fn burst(&mut self, c: usize, user: usize, count: usize) {
        for _ in 0..4 * count.min(16) {
            self.send(c, user, 1).await;
        }
    }

    async fn send(&mut self, c: usize, user: usize, bytes: usize) {
        self.until_ready(c).await;
        let Connection {
            client,
            stream,
            user: sender,
            ..
        } = self.connections[c];
        let last_id = match client {
            Some(client) => &mut self.clients[client].last_id,
            None => &mut self.connections[c].last_id,
        };
        // Ids may have gaps.
        *last_id += 1 + (bytes % 2) as u32;
        let id = RequestId::new(*last_id).unwrap();
        let place = self.model.send(user, bytes, sender, stream);
        if let Some(client) = client {
            self.clients[client].sends.push((id, place));
        }
        self.say(c, id, place);
    }

    /// Repeats a send of a session, answered or not.
    async fn again(&mut self, c: usize, back: usize) {
        let Some(client) = self.connections[c].client else {
            return;
        };
        let sends = &self.clients[client].sends;
        // Older outcomes may be forgotten.
        let recent = sends.len().saturating_sub(OUTCOMES_REMEMBERED);
        let nth = sends.len().saturating_sub(1 + back).max(recent);
        let Some((id, place)) = sends.get(nth).copied() else {
            return;
        };
        self.until_ready(c).await;
        self.model.repeated(place);
        self.say(c, id, place);
    }

    async fn acknowledge(&mut self, c: usize, back: usize) {
        self.settle().await;
        let connection = &mut self.connections[c];
        let Some(nth) = connection.pushed.len().checked_sub(1 + back) else {
            return;
        };
        let (sequence, position) = connection.pushed[nth];
        connection.acked = connection.acked.max(nth + 1);
        if let Some(reader) = connection.reader {
            let acked = &mut self.model.inboxes[reader].acked;
            *acked = position.max(*acked);
        }
        self.tell(
            c,
            Request::Ack {
                log: None,
                sequence,
            },
        );
    }

    /// Breaks the link, if there is one, and reconnects the client: it resumes its session and
    /// repeats unanswered sends.
    async fn come_back(&mut self, c: usize, client: Option<usize>) {
        let Some(client) = client else {
            return self.open(c, None);
        };
        loop {
            self.open(c, Some(client));
            let session = format!("session-{client}").parse().unwrap();
            let Some(reply) = self
                .ask(
                    c,
                    Request::Hello {
                        version: 1,
                        session,
                    },
                )
                .await
            else {
                tokio::time::sleep(TICK).await;
                continue;
            };
            return check(
                &reply,
                &Ok(OkFields::Hello(1, TEXT_BYTES_MAX + FRAME_BYTES_MORE)),
            );
        }
    }

    /// Reconnects as [`Self::come_back`] does, when another connection may hold the session.
    async fn hello(&mut self, c: usize, client: Option<usize>) {
        self.come_back(c, client).await;
        for other in (0..CONNECTIONS).filter(|other| *other != c) {
            if client.is_some() && self.connections[other].client == client {
                assert!(
                    self.connections[other].is_lost(),
                    "two connections have one session"
                );
                self.open(other, None);
            }
        }
        let Some(client) = client else { return };
        for (id, place) in self.clients[client].sends.clone() {
            if self.model.sends[place].answered.is_none() {
                self.until(|world| {
                    world.connections[c].is_ready() || world.connections[c].is_lost()
                })
                .await;
                if self.connections[c].is_lost() {
                    return;
                }
                self.model.repeated(place);
                self.say(c, id, place);
            }
        }
    }

    async fn restart(&mut self, is_closed: bool) {
        if !is_closed {
            self.settle().await;
            // An acknowledgement without a later commit may be lost.
            self.model.become_uncertain();
        }
        let clients: Vec<_> = self
            .connections
            .iter()
            .map(|connection| connection.client)
            .collect();
        self.connections = Default::default();
        let Server { store, chat } = self.server.take().expect("a running server");
        if is_closed && store.close().await.is_err() {
            assert!(self.model.is_uncertain, "a healthy store failed to close");
        }
        drop(chat);
        drop(Arc::into_inner(store).expect("the last reference"));
        self.server = Some(Server::start(&self.home, self.model.rights));
        for (c, client) in clients.into_iter().enumerate() {
            self.hello(c, client).await;
        }
    }

    async fn read_to_the_end(&mut self, user: usize) {
        let inbox = self.model.account(user).expect("an existing account");
        loop {
            self.open(0, None);
            let password = self.model.inboxes[inbox]
                .password
                .map(|password| password.parse().unwrap());
            self.connections[0].entering = Some((inbox, true));
            let Some(reply) = self
                .ask(
                    0,
                    Request::Connect {
                        user: name(user),
                        password,
                    },
                )
                .await
            else {
                tokio::time::sleep(TICK).await;
                continue;
            };
            let Reply::Ok(fields) = &reply else {
                panic!("{reply:?}")
            };
            let queued = usize::try_from(fields.as_queued().unwrap()).unwrap();
            if queued == 0 {
                return;
            }
            self.until(|world| {
                world.connections[0].pushed.len() >= queued.min(WINDOW_MESSAGES_MAX)
            })
            .await;
            self.acknowledge(0, 0).await;
        }
    }
}

/// Requests and waits.
impl World {
    fn server(&self) -> &Server {
        self.server.as_ref().expect("a running server")
    }

    /// Opens a connection from an address of its own.
    fn open(&mut self, c: usize, client: Option<usize>) {
        self.opened += 1;
        let stream = client.unwrap_or(SESSIONS + self.opened as usize);
        let chat = Arc::clone(&self.server().chat);
        self.connections[c] = Connection::open(chat, self.opened, client, stream);
    }

    /// Makes a request and waits for the reply; `None` if the outcome is unknown.
    async fn ask(&mut self, c: usize, request: Request) -> Option<Reply> {
        self.until(|world| world.connections[c].is_ready() || world.connections[c].is_lost())
            .await;
        self.connections[c].ask(request);
        self.until(|world| world.connections[c].is_answered() || world.connections[c].is_lost())
            .await;
        let reply = self.connections[c].take_reply();
        assert!(reply.is_some() || self.model.is_uncertain, "no reply");
        reply
    }

    fn tell(&mut self, c: usize, request: Request) {
        if let Some(connection) = &mut self.connections[c].client_connection {
            connection.handle(None, Ok(request));
        }
    }

    /// Sends or repeats a message, without waiting.
    fn say(&mut self, c: usize, id: RequestId, place: usize) {
        let sent = &self.model.sends[place];
        self.connections[c].send(id, place, name(sent.user), sent.text.clone());
    }

    /// Makes sure that the connection is ready; a client whose link broke reconnects.
    async fn until_ready(&mut self, c: usize) {
        loop {
            self.until(|world| world.connections[c].is_ready() || world.connections[c].is_lost())
                .await;
            if self.connections[c].is_ready() {
                return;
            }
            assert!(
                self.model.is_uncertain,
                "a connection was closed without a failure"
            );
            self.hello(c, self.connections[c].client).await;
        }
    }

    /// Waits until every request is answered and every due message is pushed.
    async fn settle(&mut self) {
        loop {
            self.until(|world| {
                world
                    .connections
                    .iter()
                    .all(|connection| connection.is_settled(&world.model))
            })
            .await;
            if let Some(lost) = self.connections.iter().position(Connection::is_lost) {
                self.until_ready(lost).await;
                continue;
            }
            let may_get_more = self
                .connections
                .iter()
                .any(|connection| connection.may_get_more(&self.model));
            if !may_get_more || !self.something_happens().await {
                return;
            }
        }
    }

    /// Runs until the condition holds.
    async fn until(&mut self, is_so: impl Fn(&Self) -> bool) {
        let mut ticks = 0;
        while !is_so(self) {
            if !self.something_happens().await {
                ticks += 1;
                assert!(ticks < TICKS_MAX, "stuck: {:?}", self.connections);
                self.ahead += TICK_AHEAD;
            }
        }
    }

    /// Waits for one event. Returns whether one came within a tick.
    async fn something_happens(&mut self) -> bool {
        let now = Instant::now() + self.ahead;
        let (connections, model) = (&mut self.connections, &mut self.model);
        let happened = std::future::poll_fn(|cx| {
            let mut polls = connections
                .iter_mut()
                .map(|connection| connection.poll(cx, now, model));
            if polls.any(|poll| poll.is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        });
        tokio::time::timeout(TICK, happened).await.is_ok()
    }

    /// Waits until the store is healthy.
    async fn recover(&mut self) {
        let probe = "probe".parse().unwrap();
        while self.server().store.open_session(&probe, None).await != Ok(true) {
            assert!(self.model.is_uncertain, "the store is unavailable");
            tokio::time::sleep(TICK).await;
        }
        self.server().store.close_session(&probe);
    }

    /// Compares the store's account of a name with the expected one; after a failure it may also
    /// be the former. `new` is the password from then on, if it was changed.
    async fn look_up(
        &mut self,
        user: usize,
        expected: &Result<OkFields, Code>,
        new: Option<&'static str>,
    ) {
        self.recover().await;
        let entry = self
            .server()
            .store
            .account(&name(user))
            .await
            .expect("an available store");
        let has_changed = self.model.found(user, entry, new);
        let must_change = expected.is_ok() && *expected != Ok(OkFields::Deleted(false));
        assert!(
            has_changed == must_change || (self.model.is_uncertain && !has_changed),
            "{expected:?}"
        );
    }

    /// Returns the connections that receive for an account.
    fn readers_of(&self, inbox: Option<usize>) -> Vec<usize> {
        let receives = |c: &usize| inbox.is_some() && self.connections[*c].reads() == inbox;
        (0..CONNECTIONS).filter(receives).collect()
    }

    /// Expects a `bye` on these connections.
    async fn owe(&mut self, readers: impl IntoIterator<Item = usize>, reason: ByeReason) {
        for c in readers {
            self.connections[c].byes_expected.push(reason);
        }
        if self.model.is_certain() {
            self.until(|world| world.connections.iter().all(Connection::has_its_byes))
                .await;
        }
    }
}

#[track_caller]
fn check(reply: &Reply, expected: &Result<OkFields, Code>) {
    let outcome = match reply {
        Reply::Ok(fields) => Ok(fields),
        Reply::NotOk(refusal) => Err(refusal.code),
        other => panic!("{other:?} answers a request"),
    };
    assert_eq!(outcome, expected.as_ref().map_err(|code| *code));
}
