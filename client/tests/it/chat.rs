//! A small server in memory, with fault injection.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, OkFields, Password, Refusal, Reply, Request,
    RequestId, Sequence, SessionToken, UserName,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::conversation::Conversation;

/// Largest number of unacknowledged messages.
const WINDOW: usize = 256;

/// Largest number of pushes between two reads.
const PUSHES_AT_ONCE: usize = 8;

/// Faults, injected at random.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Drops the connection at a frame, with a probability of one in this
    /// number.
    pub(crate) drop_one_in: Option<u32>,
    /// Answers a send with `unavailable`, with a probability of one in this
    /// number; the message may be stored or not.
    pub(crate) unavailable_one_in: Option<u32>,
    /// Whether every new send is refused with an unknown code.
    pub(crate) has_unknown_code: bool,
    /// Whether nothing is answered.
    pub(crate) is_silent: bool,
    /// How long a deletion takes.
    pub(crate) deletion_takes: Duration,
}

/// The server. Clones are handles to the same server.
#[derive(Clone)]
pub(crate) struct Chat {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<()>,
}

struct State {
    faults: Faults,
    chance: StdRng,
    accounts: BTreeMap<UserName, Account>,
    sessions: HashMap<SessionToken, Session>,
    next_sequence: u64,
    next_connection: u64,
    /// Recipient and text of every stored send, in order.
    stored: Vec<(UserName, String)>,
}

#[derive(Default)]
struct Account {
    password: Option<Password>,
    queue: VecDeque<Delivery>,
    /// Number of the receiving connection.
    receiver: Option<u64>,
}

#[derive(Default)]
struct Session {
    connection: u64,
    outcomes: BTreeMap<u32, Reply>,
}

/// One connection.
struct Connection {
    chat: Chat,
    number: u64,
    session: Option<SessionToken>,
    user: Option<UserName>,
    /// The user that it receives for, and the last number pushed.
    receives: Option<(UserName, u64)>,
    unacknowledged: HashSet<u64>,
    is_fenced: bool,
}

impl Chat {
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            faults: Faults::default(),
            chance: StdRng::seed_from_u64(seed),
            accounts: BTreeMap::new(),
            sessions: HashMap::new(),
            next_sequence: 1,
            next_connection: 1,
            stored: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(()),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn inject(&self, faults: Faults) {
        self.state().faults = faults;
    }

    pub(crate) fn add(&self, name: &str, password: Option<&str>) {
        let password = password.map(|text| text.parse().unwrap());
        self.state().accounts.insert(
            name.parse().unwrap(),
            Account {
                password,
                ..Account::default()
            },
        );
    }

    /// Stores a message as if sent by `sender`.
    pub(crate) fn leave(&self, sender: Option<&str>, user: &str, text: &str) {
        let sender = sender.map(|name| name.parse().unwrap());
        let _ = self
            .state()
            .store(sender, &user.parse().unwrap(), text.into());
        self.changed.send_replace(());
    }

    /// Returns the texts stored for `user`, in order.
    pub(crate) fn stored(&self, user: &str) -> Vec<String> {
        let state = self.state();
        state
            .stored
            .iter()
            .filter(|(to, _)| to.as_str() == user)
            .map(|(_, text)| text.clone())
            .collect()
    }

    /// Returns the number of messages queued for `user`.
    pub(crate) fn queued(&self, user: &str) -> usize {
        self.state().accounts[user].queue.len()
    }

    /// Serves one connection until it ends.
    pub(crate) async fn serve(self, mut conversation: Conversation) {
        let number = {
            let mut state = self.state();
            state.next_connection += 1;
            state.next_connection
        };
        let mut changed = self.changed.subscribe();
        let mut connection = Connection {
            chat: self,
            number,
            session: None,
            user: None,
            receives: None,
            unacknowledged: HashSet::new(),
            is_fenced: false,
        };
        let mut has_more = false;
        loop {
            let replies = tokio::select! {
                frame = conversation.next() => {
                    let Some(frame) = frame else { return };
                    let request = frame.message.expect("the client speaks the protocol");
                    if matches!(request, Request::Delete { .. }) {
                        let delay = connection.chat.state().faults.deletion_takes;
                        tokio::time::sleep(delay).await;
                    }
                    connection.handle(frame.id, request)
                }
                Ok(()) = changed.changed() => Vec::new(),
                // Acks are read between the pushes.
                () = tokio::task::yield_now(), if has_more => Vec::new(),
            };
            if connection.chat.state().faults.is_silent {
                continue;
            }
            let pushes = connection.pushes();
            has_more = pushes.len() == PUSHES_AT_ONCE;
            for frame in replies.into_iter().chain(pushes) {
                if connection.chat.state().is_dropping() || conversation.send(frame).await.is_err()
                {
                    return;
                }
            }
            if connection.is_over() || connection.chat.state().is_dropping() {
                return;
            }
        }
    }
}

impl State {
    fn one_in(&mut self, chance: Option<u32>) -> bool {
        chance.is_some_and(|n| self.chance.random_range(0..n) == 0)
    }

    fn is_dropping(&mut self) -> bool {
        self.one_in(self.faults.drop_one_in)
    }

    fn store(
        &mut self,
        sender: Option<UserName>,
        user: &UserName,
        text: bytestring::ByteString,
    ) -> Sequence {
        let sequence = Sequence(self.next_sequence);
        self.next_sequence += 3;
        let since_1970 = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let time_ms = u64::try_from(since_1970.as_millis()).unwrap();
        self.stored.push((user.clone(), text.to_string()));
        let delivery = Delivery {
            sequence,
            sender,
            time_ms,
            text,
        };
        self.accounts
            .get_mut(user)
            .expect("looked up before")
            .queue
            .push_back(delivery);
        sequence
    }

    fn check(&self, user: &UserName, password: Option<&Password>) -> Result<(), Reply> {
        match self.accounts.get(user) {
            None => Err(refusal(
                Code::NoSuchUser,
                format!("there is no user {user}"),
            )),
            Some(account)
                if account.password.is_some() && account.password.as_ref() != password =>
            {
                Err(refusal(
                    Code::Denied,
                    "wrong or missing password".to_owned(),
                ))
            }
            Some(_) => Ok(()),
        }
    }
}

fn refusal(code: Code, explanation: String) -> Reply {
    Reply::NotOk(Refusal::new(code, explanation))
}

fn unavailable() -> Reply {
    Reply::Error {
        failure: Failure::Unavailable,
        explanation: "a fault was injected".into(),
    }
}

impl Connection {
    fn handle(&mut self, id: Option<RequestId>, request: Request) -> Vec<Frame<Reply>> {
        let chat = self.chat.clone();
        let mut state = chat.state();
        let state = &mut *state;
        if let Request::Ack { sequence, .. } = request {
            self.acknowledge(state, sequence.0);
            return Vec::new();
        }
        let mut replies = Vec::new();
        let reply = match request {
            Request::List { pattern } => self.list(state, pattern.as_deref(), &mut replies),
            Request::Send { user, text } => {
                self.send(state, id.map_or(0, RequestId::value), &user, text)
            }
            other => self.change(state, other),
        };
        replies.push(reply);
        chat.changed.send_replace(());
        replies
            .into_iter()
            .map(|reply| Frame::new(id, reply))
            .collect()
    }

    fn change(&mut self, state: &mut State, request: Request) -> Reply {
        match request {
            Request::Hello { session, .. } => {
                state
                    .sessions
                    .entry(session.clone())
                    .or_default()
                    .connection = self.number;
                self.session = Some(session);
                Reply::Ok(OkFields::Hello(1, 65_536))
            }
            Request::Create { user, .. } if state.accounts.contains_key(&user) => {
                refusal(Code::Exists, format!("there is a user {user} already"))
            }
            Request::Create { user, password } => {
                state.accounts.insert(
                    user,
                    Account {
                        password,
                        ..Account::default()
                    },
                );
                Reply::Ok(OkFields::None)
            }
            Request::Login { user, password } => self.enter(state, user, password.as_ref(), false),
            Request::Connect { user, password } => self.enter(state, user, password.as_ref(), true),
            Request::Disconnect => {
                (self.user, self.receives) = (None, None);
                Reply::Ok(OkFields::None)
            }
            Request::Password { user, old, new } => match state.check(&user, old.as_ref()) {
                Ok(()) => {
                    state.accounts.get_mut(&user).expect("checked").password = Some(new);
                    Reply::Ok(OkFields::None)
                }
                Err(refused) => refused,
            },
            Request::Delete { user, password } => match state.check(&user, password.as_ref()) {
                Ok(()) => {
                    state.accounts.remove(&user);
                    Reply::Ok(OkFields::Deleted(true))
                }
                Err(Reply::NotOk(refusal)) if refusal.code == Code::NoSuchUser => {
                    Reply::Ok(OkFields::Deleted(false))
                }
                Err(refused) => refused,
            },
            // A server of before rooms and devices.
            Request::Room(_) => refusal(Code::UnknownCommand, "unknown command".to_owned()),
            _ => Reply::Ok(OkFields::None),
        }
    }

    fn enter(
        &mut self,
        state: &mut State,
        user: UserName,
        password: Option<&Password>,
        receives: bool,
    ) -> Reply {
        if let Err(refused) = state.check(&user, password) {
            return refused;
        }
        let fields = if receives {
            let account = state.accounts.get_mut(&user).expect("checked");
            account.receiver = Some(self.number);
            self.receives = Some((user.clone(), 0));
            self.unacknowledged.clear();
            OkFields::Queued(account.queue.len() as u64)
        } else {
            OkFields::None
        };
        self.user = Some(user);
        Reply::Ok(fields)
    }

    fn list(&self, state: &State, pattern: Option<&str>, replies: &mut Vec<Reply>) -> Reply {
        if pattern == Some("(") {
            let explanation = "regex parse error:\n    (\n    ^\nerror: unclosed group";
            return refusal(Code::BadPattern, explanation.to_owned());
        }
        let is_listed = |name: &&UserName| name.as_str().contains(pattern.unwrap_or_default());
        let names: Vec<UserName> = state.accounts.keys().filter(is_listed).cloned().collect();
        let count = names.len();
        replies.extend(names.chunks(2).map(|some| Reply::List(some.to_vec())));
        Reply::Ok(OkFields::Listed(count, false))
    }

    fn send(
        &mut self,
        state: &mut State,
        id: u32,
        user: &UserName,
        text: bytestring::ByteString,
    ) -> Reply {
        let token = self.session.clone().expect("hello comes first");
        let is_latest = state.sessions[&token].connection == self.number;
        if self.is_fenced || !is_latest {
            self.is_fenced = true;
            return unavailable();
        }
        if let Some(outcome) = state.sessions[&token].outcomes.get(&id) {
            return outcome.clone();
        }
        let (fails, is_stored) = (
            state.one_in(state.faults.unavailable_one_in),
            state.one_in(Some(2)),
        );
        if fails && !is_stored {
            self.is_fenced = true;
            return unavailable();
        }
        let outcome = if state.faults.has_unknown_code {
            Reply::NotOk(Refusal::parse("out-of-tea", "come back at five"))
        } else if state.accounts.contains_key(user) {
            Reply::Ok(OkFields::Stored(state.store(self.user.clone(), user, text)))
        } else {
            refusal(Code::NoSuchUser, format!("there is no user {user}"))
        };
        let outcomes = &mut state
            .sessions
            .get_mut(&token)
            .expect("looked up before")
            .outcomes;
        outcomes.insert(id, outcome.clone());
        // The server remembers exactly as many outcomes as the protocol
        // requires.
        if outcomes.len() > 1024 {
            outcomes.pop_first();
        }
        self.is_fenced = fails;
        if fails { unavailable() } else { outcome }
    }

    fn acknowledge(&mut self, state: &mut State, sequence: u64) {
        let Some((user, pushed)) = &self.receives else {
            return;
        };
        assert!(
            sequence <= *pushed,
            "{sequence} was acknowledged and only {pushed} pushed"
        );
        self.unacknowledged.retain(|&number| number > sequence);
        if let Some(account) = state.accounts.get_mut(user) {
            account
                .queue
                .retain(|delivery| delivery.sequence.0 > sequence);
        }
    }

    /// Returns the pushes that are due.
    fn pushes(&mut self) -> Vec<Frame<Reply>> {
        let chat = self.chat.clone();
        let state = chat.state();
        let Some((user, pushed)) = &mut self.receives else {
            return Vec::new();
        };
        let reason = match state.accounts.get(user) {
            None => Some(ByeReason::Deleted),
            Some(account) if account.receiver != Some(self.number) => Some(ByeReason::TakenOver),
            Some(_) => None,
        };
        if let Some(reason) = reason {
            self.receives = None;
            return vec![Frame::new(None, Reply::Bye(reason))];
        }
        let new = state.accounts[user]
            .queue
            .iter()
            .filter(|delivery| delivery.sequence.0 > *pushed);
        let room = PUSHES_AT_ONCE.min(WINDOW - self.unacknowledged.len());
        let pushes: Vec<_> = new
            .take(room)
            .map(|delivery| Frame::new(None, Reply::String(delivery.clone())))
            .collect();
        for push in &pushes {
            if let Reply::String(delivery) = &push.message {
                *pushed = delivery.sequence.0;
                self.unacknowledged.insert(*pushed);
            }
        }
        pushes
    }

    /// Returns whether another connection has the session, or a send has
    /// failed.
    fn is_over(&self) -> bool {
        let state = self.chat.state();
        let is_latest = |token| state.sessions[token].connection == self.number;
        self.is_fenced || !self.session.as_ref().is_none_or(is_latest)
    }
}

/// The server on its own port and thread. It can be stopped and restarted on
/// the same port without losing its state.
pub(crate) struct ChatServer {
    pub(crate) chat: Chat,
    pub(crate) address: SocketAddr,
    is_running: watch::Sender<bool>,
    is_stopped: watch::Receiver<bool>,
}

impl ChatServer {
    pub(crate) fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let chat = Chat::new(1);
        let (is_running, running) = watch::channel(true);
        let (stopped, is_stopped) = watch::channel(true);
        let serving = serve_while(running, stopped, address, chat.clone());
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(serving);
        });
        let server = Self {
            chat,
            address,
            is_running,
            is_stopped,
        };
        server.wait_until_stopped(false);
        server
    }

    pub(crate) fn stop(&self) {
        self.is_running.send_replace(false);
        self.wait_until_stopped(true);
    }

    pub(crate) fn restart(&self) {
        self.is_running.send_replace(true);
        self.wait_until_stopped(false);
    }

    fn wait_until_stopped(&self, wanted: bool) {
        while *self.is_stopped.borrow() != wanted {
            std::thread::yield_now();
        }
    }
}

async fn serve_while(
    mut running: watch::Receiver<bool>,
    stopped: watch::Sender<bool>,
    address: SocketAddr,
    chat: Chat,
) {
    while running.wait_for(|&is_running| is_running).await.is_ok() {
        let listener = TcpListener::bind(address)
            .await
            .expect("the port is still free");
        let mut connections = tokio::task::JoinSet::new();
        stopped.send_replace(false);
        loop {
            tokio::select! {
                Ok((stream, _)) = listener.accept() => {
                    connections.spawn(chat.clone().serve(Conversation::native(stream)));
                }
                stop = running.wait_for(|&is_running| !is_running) => match stop {
                    Ok(_) => break,
                    Err(_) => return,
                },
            }
        }
        drop(listener);
        connections.shutdown().await;
        stopped.send_replace(true);
    }
}
