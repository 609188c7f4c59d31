//! A client that drives one connection, without a front.

use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use clap::Parser as _;
use hark_protocol::message::{LeftReason, RoomMode};
use hark_protocol::{
    Code, OkFields, Reply, Request, RequestId, RoomName, RoomReply, RoomRequest, Sequence, UserName,
};
use tokio::time::{Instant, sleep_until, timeout};

use crate::chat::{Chat, ClientConnection, Output, ShutdownSignal};
use crate::config::Cli;
use crate::store::Store;

/// The limit of every wait.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Returns a chat over a store.
pub(super) fn chat(store: Arc<dyn Store>) -> Arc<Chat> {
    chat_with(store, &[])
}

/// Returns a chat over a store, with flags.
pub(super) fn chat_with(store: Arc<dyn Store>, flags: &[&str]) -> Arc<Chat> {
    let flags = ["harkd"].iter().chain(flags);
    let rules = Cli::parse_from(flags).serve.rules();
    Arc::new(Chat::new(store, rules))
}

pub(super) fn room(name: &str) -> RoomName {
    name.parse().unwrap()
}

pub(super) fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// A push of a room, as its reader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pushed {
    /// A message of the inbox.
    Message(u64, String),
    /// A message of a room.
    Said(String, u64, String),
    /// Missing messages: from, to, count.
    Gap(String, u64, u64, u64),
    Joined(String),
    Left(String, LeftReason),
    Seen(String, u64),
    Device(String),
    Bye,
    Closed,
}

/// A connection, and what it got.
pub(super) struct Client {
    connection: ClientConnection,
    id: u32,
    /// Pushes that are not taken yet.
    pub(super) pushes: Vec<Pushed>,
}

impl Client {
    pub(super) fn new(chat: &Arc<Chat>) -> Self {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let connection =
            ClientConnection::new(Arc::clone(chat), address, Arc::<ShutdownSignal>::default());
        Self {
            connection,
            id: 0,
            pushes: Vec::new(),
        }
    }

    /// Returns a connection that has logged in.
    pub(super) async fn login(chat: &Arc<Chat>, name: &str) -> Self {
        let mut client = Self::new(chat);
        let login = Request::Login {
            user: user(name),
            password: None,
        };
        client.ok(login).await;
        client
    }

    /// Returns a connection with an attached device.
    pub(super) async fn attach(chat: &Arc<Chat>, name: &str, device: &str) -> Self {
        let mut client = Self::new(chat);
        let attach = RoomRequest::Attach {
            user: user(name),
            device: device.parse().unwrap(),
            password: None,
        };
        client.ok(Request::Room(attach)).await;
        client
    }

    /// Makes a request. Returns its last reply, before which pushes may come.
    pub(super) async fn request(&mut self, request: Request) -> Reply {
        self.begin(request).await;
        loop {
            if let Some(reply) = self.next().await {
                return reply;
            }
        }
    }

    /// Makes a request without waiting for its reply.
    pub(super) async fn begin(&mut self, request: Request) {
        while !self.connection.is_ready() {
            self.next().await;
        }
        self.id += 1;
        self.connection.handle(RequestId::new(self.id), Ok(request));
        self.connection.flush_sends();
    }

    #[track_caller]
    fn expect_ok(reply: Reply, request: &Request) -> OkFields {
        match reply {
            Reply::Ok(fields) => fields,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    pub(super) async fn ok(&mut self, request: Request) -> OkFields {
        let reply = self.request(request.clone()).await;
        Self::expect_ok(reply, &request)
    }

    /// Makes a request of a room, which succeeds.
    pub(super) async fn room(&mut self, request: RoomRequest) -> OkFields {
        self.ok(Request::Room(request)).await
    }

    /// Makes a request that is refused.
    pub(super) async fn refused(&mut self, request: Request) -> Code {
        match self.request(request).await {
            Reply::NotOk(refusal) => refusal.code,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn create_room(&mut self, name: &str) {
        let set = RoomRequest::Set {
            room: room(name),
            mode: RoomMode::Open,
            keep_s: None,
        };
        self.room(set).await;
    }

    pub(super) async fn say(&mut self, to: &str, text: &str) -> u64 {
        let send = Request::Send {
            user: user(to),
            text: text.into(),
        };
        match self.ok(send).await {
            OkFields::Stored(sequence) => sequence.0,
            other => panic!("{other:?}"),
        }
    }

    /// Acknowledges a log; the inbox without a name.
    pub(super) fn ack(&mut self, log: &str, sequence: u64) {
        let log = (!log.is_empty()).then(|| room(log));
        let sequence = Sequence(sequence);
        let ack = Request::Ack { log, sequence };
        self.connection.handle(None, Ok(ack));
    }

    /// Returns the time before a send to a recipient is handled.
    pub(super) fn wait_to_send(&self, to: &str) -> Duration {
        self.connection.wait_to_send(&user(to))
    }

    /// Waits for the next output. Returns it if it is a reply.
    pub(super) async fn next(&mut self) -> Option<Reply> {
        let connection = &mut self.connection;
        let mut sleep = Box::pin(sleep_until(Instant::now()));
        let output = poll_fn(|cx| {
            loop {
                if let Poll::Ready(output) = connection.poll(cx, Instant::now()) {
                    return Poll::Ready(output);
                }
                let Some(wake_at) = connection.wake_at() else {
                    return Poll::Pending;
                };
                sleep.as_mut().reset(wake_at);
                ready!(sleep.as_mut().poll(cx));
            }
        });
        let output = timeout(TIMEOUT, output).await.unwrap();
        self.note(output)
    }

    /// Takes all output that is there.
    pub(super) async fn take_ready(&mut self) {
        loop {
            let connection = &mut self.connection;
            let output = poll_fn(|cx| Poll::Ready(connection.poll(cx, Instant::now()))).await;
            let Poll::Ready(output) = output else { return };
            assert_eq!(self.note(output), None, "no request is in flight");
        }
    }

    /// Waits for so many pushes, and takes them.
    pub(super) async fn pushes(&mut self, count: usize) -> Vec<Pushed> {
        while self.pushes.len() < count {
            assert_eq!(self.next().await, None, "no request is in flight");
        }
        std::mem::take(&mut self.pushes)
    }

    fn note(&mut self, output: Output) -> Option<Reply> {
        let push = match output {
            Output::Reply(_, reply) => return Some(reply),
            Output::Push(message) => {
                Pushed::Message(message.position.sequence.0, message.text.to_string())
            }
            Output::Said(said) => {
                let (message, room) = (&said.message, said.room.to_string());
                Pushed::Said(room, message.position.sequence.0, message.text.to_string())
            }
            Output::Notice(RoomReply::Gap(gap)) => {
                let log = gap.log.map_or_else(String::new, |room| room.to_string());
                Pushed::Gap(log, gap.from.0, gap.to.0, gap.count)
            }
            Output::Notice(RoomReply::Joined { room, .. }) => Pushed::Joined(room.to_string()),
            Output::Notice(RoomReply::Left { room, reason }) => {
                Pushed::Left(room.to_string(), reason)
            }
            Output::Notice(RoomReply::Seen { room, sequence }) => {
                Pushed::Seen(room.to_string(), sequence.0)
            }
            Output::Notice(RoomReply::Device { name, .. }) => {
                Pushed::Device(name.unwrap().as_str().to_owned())
            }
            Output::Notice(other) => panic!("{other:?}"),
            Output::Bye(_) => Pushed::Bye,
            Output::Close => Pushed::Closed,
        };
        self.pushes.push(push);
        None
    }
}
