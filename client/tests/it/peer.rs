//! One side of a connection in memory, scripted by the test frame by frame,
//! with the clock paused.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use hark_client::dial::{Dial, Stream};
use hark_client::{Client, Config, Event, Events, Handle, LinkState, Message, Server, Transport};
use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, OkFields, Refusal, Reply, Request, RequestId,
    Sequence, SessionToken, UserName,
};
use tokio::io::{BufWriter, DuplexStream};
use tokio::sync::mpsc;

use crate::conversation::Conversation;

/// Capacity of a connection in each direction, in bytes.
const PIPE_BYTES: usize = 64 * 1024;

/// Time limit for an expected event: longer than any of them takes, and shorter
/// than the timeouts under test.
const TIMEOUT: Duration = Duration::from_secs(25);

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
            self.connections
                .send(theirs)
                .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
            // Buffered until a flush, as a TLS stream may be.
            Ok(Box::new(BufWriter::new(ours)) as Box<dyn Stream>)
        })
    }
}

/// The connections that a client opens.
pub(crate) struct Peers {
    connections: mpsc::UnboundedReceiver<DuplexStream>,
    transport: Transport,
}

/// Returns a configuration for this transport, and the connections that a
/// client with it opens.
pub(crate) fn config(transport: Transport) -> (Config, Peers) {
    let (server, peers) = server("a:1", transport);
    (
        Config {
            servers: vec![server],
            ..Config::tcp("")
        },
        peers,
    )
}

/// Returns a server with this address, and the connections that clients open to
/// it.
pub(crate) fn server(address: &str, transport: Transport) -> (Server, Peers) {
    let (connections, incoming) = mpsc::unbounded_channel();
    let dial = Arc::new(FakeDial { connections });
    let server = Server {
        address: address.into(),
        dial,
        transport: transport.clone(),
    };
    (
        server,
        Peers {
            connections: incoming,
            transport,
        },
    )
}

/// Returns a connected client, and the peer of its link.
pub(crate) async fn up(transport: Transport) -> (Handle, Events, Peers, Peer) {
    let (config, mut peers) = config(transport);
    let (handle, events) = Client::connect(config);
    let peer = peers.greeted().await;
    (handle, events, peers, peer)
}

impl Peers {
    /// Accepts the next connection.
    pub(crate) async fn accept(&mut self) -> Peer {
        let stream = tokio::time::timeout(TIMEOUT, self.connections.recv()).await;
        let stream = stream
            .expect("the client connects")
            .expect("the client is there");
        let conversation = match self.transport {
            Transport::Native => Conversation::native(stream),
            _ => Conversation::grpc(stream)
                .await
                .expect("the client begins a chat"),
        };
        Peer { conversation }
    }

    /// Accepts the next connection and answers its `hello`.
    pub(crate) async fn greeted(&mut self) -> Peer {
        let mut peer = self.accept().await;
        peer.hello().await;
        peer
    }
}

/// The server's side of one connection. Dropping it ends the connection.
pub(crate) struct Peer {
    conversation: Conversation,
}

impl Peer {
    /// Returns the next frame; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u32, Request)> {
        let frame = tokio::time::timeout(TIMEOUT, self.conversation.next())
            .await
            .expect("a frame comes")?;
        Some((
            frame.id.map_or(0, RequestId::value),
            frame.message.expect("a request"),
        ))
    }

    /// Returns the next request.
    pub(crate) async fn next(&mut self) -> (u32, Request) {
        self.frame().await.expect("the connection is open")
    }

    /// Checks that nothing arrives for `time`.
    pub(crate) async fn silence(&mut self, time: Duration) {
        let frame = tokio::time::timeout(time, self.conversation.next()).await;
        assert!(frame.is_err(), "nothing was to be sent, but {frame:?}");
    }

    pub(crate) async fn hello(&mut self) -> SessionToken {
        let (id, request) = self.next().await;
        let Request::Hello {
            version: 1,
            session,
        } = request
        else {
            panic!("{request:?} is not hello");
        };
        self.reply(id, Reply::Ok(OkFields::Hello(1, 65_536))).await;
        session
    }

    /// Returns id and text of the next request, which has to be a send.
    pub(crate) async fn sent(&mut self) -> (u32, String) {
        match self.next().await {
            (id, Request::Send { text, .. }) => (id, text.to_string()),
            other => panic!("{other:?} is not a send"),
        }
    }

    /// Returns the number of the next ack, and answers pings before it.
    pub(crate) async fn acked(&mut self) -> u64 {
        loop {
            match self.next().await {
                (0, Request::Ack { sequence, .. }) => return sequence.0,
                (id, Request::Ping) => self.ok(id).await,
                other => panic!("{other:?} is not an ack"),
            }
        }
    }

    /// Accepts the next request, which has to be a login or connect, with
    /// `queued` messages. Returns the user, and whether it is a connect.
    pub(crate) async fn grant(&mut self, queued: u64) -> (UserName, bool) {
        let (id, user, receives) = self.entered().await;
        let fields = if receives {
            OkFields::Queued(queued)
        } else {
            OkFields::None
        };
        self.reply(id, Reply::Ok(fields)).await;
        (user, receives)
    }

    /// Returns the next request, which has to be a login or connect.
    pub(crate) async fn entered(&mut self) -> (u32, UserName, bool) {
        match self.next().await {
            (id, Request::Login { user, .. }) => (id, user, false),
            (id, Request::Connect { user, .. }) => (id, user, true),
            other => panic!("{other:?} is not a login or connect"),
        }
    }

    /// Sends a reply. The client may have disconnected.
    pub(crate) async fn reply(&mut self, id: u32, reply: Reply) {
        drop(
            self.conversation
                .send(Frame::new(RequestId::new(id), reply))
                .await,
        );
    }

    /// Pushes a message of a later protocol version. The client may have disconnected.
    pub(crate) async fn push_later(&mut self) {
        drop(self.conversation.push_later().await);
    }

    pub(crate) async fn ok(&mut self, id: u32) {
        self.reply(id, Reply::Ok(OkFields::None)).await;
    }

    pub(crate) async fn refuse(&mut self, id: u32, code: Code) {
        self.reply(id, Reply::NotOk(Refusal::new(code, "as the test wants it")))
            .await;
    }

    pub(crate) async fn unavailable(&mut self, id: u32) {
        let explanation = "the disk is full".into();
        self.reply(
            id,
            Reply::Error {
                failure: Failure::Unavailable,
                explanation,
            },
        )
        .await;
    }

    pub(crate) async fn push(&mut self, sequence: u64) {
        self.push_at(sequence, 1_000_000 + sequence).await;
    }

    pub(crate) async fn push_at(&mut self, sequence: u64, time_ms: u64) {
        let text = format!("text {sequence} of {time_ms}").into();
        let delivery = Delivery {
            sequence: Sequence(sequence),
            sender: None,
            time_ms,
            text,
        };
        self.reply(0, Reply::String(delivery)).await;
    }

    pub(crate) async fn bye(&mut self, reason: ByeReason) {
        self.reply(0, Reply::Bye(reason)).await;
    }

    /// Checks that the client closes the connection.
    pub(crate) async fn closed(mut self) {
        let frame = self.frame().await;
        assert!(
            frame.is_none(),
            "the connection was to be closed, but {frame:?}"
        );
    }
}

pub(crate) fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

/// Returns the next event, except link states.
pub(crate) async fn event(events: &mut Events) -> Event {
    loop {
        let event = tokio::time::timeout(TIMEOUT, events.next())
            .await
            .expect("an event comes");
        match event.expect("the client is there") {
            Event::Link(_) => {}
            event => return event,
        }
    }
}

/// Returns the next message, and skips other events.
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
    let state = tokio::time::timeout(TIMEOUT, link.wait_for(|state| is_wanted(state))).await;
    state
        .expect("the link gets there")
        .expect("the client is there")
        .clone()
}

/// Waits until every request is answered.
pub(crate) async fn quiet(handle: &Handle) {
    let is_quiet = async {
        while handle.unanswered() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, is_quiet)
        .await
        .expect("everything is answered");
}
