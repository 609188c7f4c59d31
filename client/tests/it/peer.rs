//! One end of a connection in memory, played by the test frame by frame, with
//! the clock paused.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hark_client::dial::{Dial, Stream};
use hark_client::{Client, Config, Event, Events, Handle, LinkState, Message, Server, Transport};
use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, OkFields, Refusal, Reply, Request, RequestId, Sequence,
    SessionToken, UserName,
};
use tokio::io::{BufWriter, DuplexStream};
use tokio::sync::mpsc;

use crate::conversation::Conversation;

/// Bytes on their way in each direction of a connection.
const PIPE_BYTES: usize = 64 * 1024;

/// Longer than anything takes that is waited for, and not as long as the
/// limits whose passing is waited for.
const PATIENCE: Duration = Duration::from_secs(25);

#[derive(Clone)]
struct FakeDial {
    connections: mpsc::UnboundedSender<DuplexStream>,
}

impl fmt::Debug for FakeDial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeDial")
    }
}

impl Dial for FakeDial {
    fn dial(&self) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            self.connections.send(theirs).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            // What is written goes out when it is flushed, as it may over TLS.
            Ok(Box::new(BufWriter::new(ours)) as Box<dyn Stream>)
        })
    }
}

/// The connections that a client opens.
pub(crate) struct Peers {
    connections: mpsc::UnboundedReceiver<DuplexStream>,
    transport: Transport,
}

/// A config of this transport, and the connections that a client with it opens.
pub(crate) fn config(transport: Transport) -> (Config, Peers) {
    let (server, peers) = server("a:1", transport);
    (Config { servers: vec![server], ..Config::tcp("") }, peers)
}

/// A server of this address, and the connections that clients open to it.
pub(crate) fn server(address: &str, transport: Transport) -> (Server, Peers) {
    let (connections, incoming) = mpsc::unbounded_channel();
    let dial = Arc::new(FakeDial { connections });
    let server = Server { address: address.into(), dial, transport: transport.clone() };
    (server, Peers { connections: incoming, transport })
}

/// A client that is up, and the other end of its link.
pub(crate) async fn up(transport: Transport) -> (Handle, Events, Peers, Peer) {
    let (config, mut peers) = config(transport);
    let (handle, events) = Client::connect(config);
    let peer = peers.greeted().await;
    (handle, events, peers, peer)
}

impl Peers {
    /// The next connection, with nothing said.
    pub(crate) async fn accept(&mut self) -> Peer {
        let stream = tokio::time::timeout(PATIENCE, self.connections.recv()).await;
        let stream = stream.expect("the client connects").expect("the client is there");
        let conversation = match self.transport {
            Transport::Native => Conversation::native(stream),
            _ => Conversation::grpc(stream).await.expect("the client begins a chat"),
        };
        Peer { conversation }
    }

    /// The next connection, after `hello`.
    pub(crate) async fn greeted(&mut self) -> Peer {
        let mut peer = self.accept().await;
        peer.hello().await;
        peer
    }
}

/// The server's end of one connection. Dropping it ends the connection.
pub(crate) struct Peer {
    conversation: Conversation,
}

impl Peer {
    /// The next frame, whatever it is; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u32, Request)> {
        let frame = tokio::time::timeout(PATIENCE, self.conversation.next()).await.expect("a frame comes")?;
        Some((frame.id.map_or(0, RequestId::value), frame.message.expect("a request")))
    }

    /// The next request.
    pub(crate) async fn next(&mut self) -> (u32, Request) {
        self.frame().await.expect("the connection is open")
    }

    /// Checks that nothing comes for `time`.
    pub(crate) async fn silence(&mut self, time: Duration) {
        let frame = tokio::time::timeout(time, self.conversation.next()).await;
        assert!(frame.is_err(), "nothing was to be sent, but {frame:?}");
    }

    pub(crate) async fn hello(&mut self) -> SessionToken {
        let (id, request) = self.next().await;
        let Request::Hello { version: 1, session } = request else {
            panic!("{request:?} is not hello");
        };
        self.reply(id, Reply::Ok(OkFields::hello(1, 65_536))).await;
        session
    }

    /// The next request is a send: its id and text.
    pub(crate) async fn sent(&mut self) -> (u32, String) {
        match self.next().await {
            (id, Request::Send { text, .. }) => (id, text.to_string()),
            other => panic!("{other:?} is no send"),
        }
    }

    /// The next frame that is no ping is an ack: its number.
    pub(crate) async fn acked(&mut self) -> u64 {
        loop {
            match self.next().await {
                (0, Request::Ack { sequence }) => return sequence.0,
                (id, Request::Ping) => self.ok(id).await,
                other => panic!("{other:?} is no ack"),
            }
        }
    }

    /// The next request is a login or connect; who as, and whether it is the
    /// latter. It is granted with `queued` messages.
    pub(crate) async fn grant(&mut self, queued: u64) -> (UserName, bool) {
        let (id, user, receives) = self.entered().await;
        let fields = if receives { OkFields::queued(queued) } else { OkFields::none() };
        self.reply(id, Reply::Ok(fields)).await;
        (user, receives)
    }

    /// The next request is a login or connect.
    pub(crate) async fn entered(&mut self) -> (u32, UserName, bool) {
        match self.next().await {
            (id, Request::Login { user, .. }) => (id, user, false),
            (id, Request::Connect { user, .. }) => (id, user, true),
            other => panic!("{other:?} makes nobody somebody"),
        }
    }

    /// Replies; that the client has gone is no fault.
    pub(crate) async fn reply(&mut self, id: u32, reply: Reply) {
        drop(self.conversation.send(Frame::new(RequestId::new(id), reply)).await);
    }

    pub(crate) async fn ok(&mut self, id: u32) {
        self.reply(id, Reply::Ok(OkFields::none())).await;
    }

    pub(crate) async fn refuse(&mut self, id: u32, code: Code) {
        self.reply(id, Reply::NotOk(Refusal::new(code, "as the test wants it"))).await;
    }

    pub(crate) async fn unavailable(&mut self, id: u32) {
        let explanation = "the disk is full".into();
        self.reply(id, Reply::Error { failure: Failure::Unavailable, explanation }).await;
    }

    pub(crate) async fn push(&mut self, sequence: u64) {
        self.push_at(sequence, 1_000_000 + sequence).await;
    }

    pub(crate) async fn push_at(&mut self, sequence: u64, time_ms: u64) {
        let text = format!("text {sequence} of {time_ms}").into();
        let delivery = Delivery { sequence: Sequence(sequence), sender: None, time_ms, text };
        self.reply(0, Reply::String(delivery)).await;
    }

    pub(crate) async fn bye(&mut self, reason: ByeReason) {
        self.reply(0, Reply::Bye(reason)).await;
    }

    /// Checks that the client closes the connection.
    pub(crate) async fn closed(mut self) {
        let frame = self.frame().await;
        assert!(frame.is_none(), "the connection was to be closed, but {frame:?}");
    }
}

pub(crate) fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// The next event that is not about the link.
pub(crate) async fn event(events: &mut Events) -> Event {
    loop {
        let event = tokio::time::timeout(PATIENCE, events.next()).await.expect("an event comes");
        match event.expect("the client is there") {
            Event::Link(_) => {}
            event => return event,
        }
    }
}

/// The next message, other events left aside.
pub(crate) async fn message(events: &mut Events) -> Message {
    loop {
        if let Event::Message(message) = event(events).await {
            return message;
        }
    }
}

/// Waits for a state of the link.
pub(crate) async fn link(handle: &Handle, is_wanted: impl Fn(&LinkState) -> bool) -> LinkState {
    let mut link = handle.link();
    let state = tokio::time::timeout(PATIENCE, link.wait_for(|state| is_wanted(state))).await;
    state.expect("the link gets there").expect("the client is there").clone()
}

/// Waits until nothing is under way any more.
pub(crate) async fn quiet(handle: &Handle) {
    let is_quiet = async {
        while handle.unanswered() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_quiet).await.expect("everything is answered");
}
