//! A scripted client over any front.

use std::net::SocketAddr;

use hark_protocol::{
    Code, Delivery, Frame, OkFields, Reply, Request, RequestId, Sequence, UserName,
};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{Front, Link, Native, TIMEOUT};

/// First id of [`Client::ask`], far from the ids that tests choose.
const FIRST_ID: u32 = 2_000_000_000;

/// A connection.
#[derive(Debug)]
pub struct Client<L: Link = Box<dyn Link>> {
    link: L,
    last_id: u32,
    /// Frames received before a reply that was awaited.
    pushed: std::collections::VecDeque<Frame<Reply>>,
}

/// A connection in the native framing.
pub type Wire = Client<Native>;

impl Front {
    /// Connects.
    ///
    /// # Panics
    /// If that fails.
    pub async fn connect(self, address: SocketAddr) -> Client {
        Client::over(self.link(address).await.expect("a connection"))
    }

    /// Connects and sends `hello` with this session.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn hello(self, address: SocketAddr, session: &str) -> Client {
        self.connect(address).await.with_hello(session).await
    }
}

impl Wire {
    /// Connects.
    ///
    /// # Panics
    /// If that fails.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(Native::connect(address).await.expect("a connection"))
    }

    /// Connects and sends `hello` with this session.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn hello(address: SocketAddr, session: &str) -> Self {
        Self::connect(address).await.with_hello(session).await
    }

    /// Returns the client's address of the connection.
    ///
    /// # Panics
    /// If the connection is closed.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.link.stream().local_addr().unwrap()
    }

    /// Writes raw bytes.
    ///
    /// # Panics
    /// If that fails.
    pub async fn write_bytes(&mut self, bytes: &[u8]) {
        let written = timeout(TIMEOUT, self.link.write_bytes(bytes)).await;
        written
            .expect("the server does not read")
            .expect("the connection has ended");
    }

    /// Stops reading and writing without closing the connection.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.link.into_stream()
    }
}

impl<L: Link> Client<L> {
    /// Returns a client over this link.
    #[must_use]
    pub const fn over(link: L) -> Self {
        Self {
            link,
            last_id: FIRST_ID,
            pushed: std::collections::VecDeque::new(),
        }
    }

    /// Returns the link.
    #[must_use]
    pub fn into_link(self) -> L {
        self.link
    }

    async fn with_hello(mut self, session: &str) -> Self {
        let hello = Request::Hello {
            version: 1,
            session: session.parse().unwrap(),
        };
        // Far from the ids of sends, which count up.
        self.write(u32::MAX, hello).await;
        let reply = self.reply_to(u32::MAX).await;
        assert!(
            matches!(&reply, Reply::Ok(fields) if fields.as_hello().is_some()),
            "{reply:?}"
        );
        self
    }

    /// Writes one request.
    ///
    /// # Panics
    /// If that fails.
    pub async fn write(&mut self, id: u32, request: Request) {
        self.write_all([(id, request)]).await;
    }

    /// Writes requests at once.
    ///
    /// # Panics
    /// If that fails.
    pub async fn write_all(&mut self, requests: impl IntoIterator<Item = (u32, Request)>) {
        let written = timeout(TIMEOUT, self.link.write_all(requests.into_iter().collect())).await;
        written
            .expect("the server does not read")
            .expect("the connection has ended");
    }

    /// Returns the next frame, or `None` at the end of the connection.
    ///
    /// # Panics
    /// On a timeout or a protocol error.
    pub async fn next(&mut self) -> Option<Frame<Reply>> {
        if let Some(frame) = self.pushed.pop_front() {
            return Some(frame);
        }
        timeout(TIMEOUT, self.link.next())
            .await
            .expect("nothing came in time")
    }

    /// Returns the next message.
    ///
    /// # Panics
    /// If another frame arrives first.
    pub async fn message(&mut self) -> Delivery {
        match self.next().await {
            Some(Frame {
                id: None,
                message: Reply::String(delivery),
            }) => delivery,
            other => panic!("no message but {other:?}"),
        }
    }

    /// Returns the next reply to the request `id`; earlier messages are kept.
    ///
    /// # Panics
    /// If the connection ends before.
    pub async fn reply_to(&mut self, id: u32) -> Reply {
        if let Some(at) = self
            .pushed
            .iter()
            .position(|frame| frame.id == RequestId::new(id))
        {
            return self.pushed.remove(at).unwrap().message;
        }
        loop {
            let frame = timeout(TIMEOUT, self.link.next())
                .await
                .expect("no reply in time");
            let frame = frame.expect("the connection ended before the reply");
            if frame.id == RequestId::new(id) {
                return frame.message;
            }
            self.pushed.push_back(frame);
        }
    }

    /// Sends a request and returns its first reply.
    ///
    /// # Panics
    /// If none arrives.
    pub async fn ask(&mut self, request: Request) -> Reply {
        self.last_id += 1;
        let id = self.last_id;
        self.write(id, request).await;
        self.reply_to(id).await
    }

    /// Sends a request, and requires `ok`.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn ok(&mut self, request: Request) -> impl Future<Output = OkFields> {
        let caller = std::panic::Location::caller();
        async move {
            let asked = format!("{request:?}");
            match self.ask(request).await {
                Reply::Ok(fields) => fields,
                other => panic!("{caller}: {asked} got {other:?}"),
            }
        }
    }

    /// Sends a request, and requires a refusal with this code.
    ///
    /// # Panics
    /// On any other reply.
    #[track_caller]
    pub fn refused(&mut self, request: Request, code: Code) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let asked = format!("{request:?}");
            match self.ask(request).await {
                Reply::NotOk(refusal) if refusal.code == code => refusal.explanation.into_owned(),
                other => panic!("{caller}: {asked} got {other:?}, not {code}"),
            }
        }
    }

    /// Creates an account without a password.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn create(&mut self, user: &str) {
        self.ok(Request::Create {
            user: name(user),
            password: None,
        })
        .await;
    }

    /// Connects as a user, and returns the number of queued messages.
    ///
    /// # Panics
    /// If that is refused.
    pub async fn receive(&mut self, user: &str) -> u64 {
        let fields = self
            .ok(Request::Connect {
                user: name(user),
                password: None,
            })
            .await;
        fields.as_queued().expect("a number of messages")
    }

    /// Sends a text and requires `ok`.
    ///
    /// # Panics
    /// If it is refused.
    pub async fn sent(&mut self, user: &str, text: &str) {
        self.ok(send(user, text)).await;
    }

    /// Acknowledges, and waits until the server has processed it.
    ///
    /// # Panics
    /// If the connection has ended.
    pub async fn ack(&mut self, sequence: Sequence) {
        self.write(
            0,
            Request::Ack {
                log: None,
                sequence,
            },
        )
        .await;
        self.ping().await;
    }

    /// Makes a round trip: everything before it has been processed.
    ///
    /// # Panics
    /// If the connection has ended.
    pub async fn ping(&mut self) {
        self.ok(Request::Ping).await;
    }

    /// Returns whether nothing was pushed before a round trip.
    pub async fn is_quiet(&mut self) -> bool {
        self.ping().await;
        self.pushed.is_empty()
    }
}

/// Parses a user name.
///
/// # Panics
/// If it is invalid.
#[must_use]
pub fn name(user: &str) -> UserName {
    user.parse().expect("a user name")
}

/// Returns a `send`.
#[must_use]
pub fn send(user: &str, text: &str) -> Request {
    Request::Send {
        user: name(user),
        text: text.to_owned().into(),
    }
}
