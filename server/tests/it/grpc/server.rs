//! A server in this process for each test, with its store in memory, and a client with a
//! connection of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{
    Bye, ChatReply, ChatRequest, ConnectReply, ConnectRequest, Connected, CreateRequest, Message,
    Ok, Send, SendRequest, chat_reply, connect_reply,
};
use hark_server::chat::{Chat, MayCreateRooms, MayList, Rates, Rules};
use hark_server::front::{HttpSettings, Settings};
use hark_server::server::{self, ConnectionLimits};
use hark_server::shard::{ShardConfig, ShardStore};
use hark_server::store::Store;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};

/// A server that runs until its shutdown.
pub(crate) struct Server {
    address: std::net::SocketAddr,
    store: Arc<dyn Store>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub(crate) const RULES: Rules = Rules {
    frame_bytes_max: 64 * 1024,
    list_names_max: 10_000,
    require_password: false,
    open_registration: true,
    admins: Vec::new(),
    log_watcher: None,
    may_list: MayList::All,
    rooms: MayCreateRooms::Users,
    rates: Rates::NONE,
};

pub(crate) const LIMITS: ConnectionLimits = ConnectionLimits {
    connections_max: 100,
    connections_per_address_max: 100,
    connects: None,
    on_loopback: false,
    drain_timeout: Duration::from_secs(10),
};

pub(crate) const SETTINGS: Settings = Settings {
    ack_timeout: Duration::from_secs(60),
    watch_logs: None,
    tls: None,
    tls_only: false,
    http: HttpSettings {
        hosts: Vec::new(),
        origins: Vec::new(),
        proxies: Vec::new(),
    },
};

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(RULES, LIMITS).await
    }

    pub(crate) async fn start_with(rules: Rules, limits: ConnectionLimits) -> Self {
        Self::start_on(
            Arc::new(
                ShardStore::memory(ShardConfig {
                    numbers_after: Some(0),
                    ..ShardConfig::DEFAULT
                })
                .unwrap(),
            ),
            rules,
            limits,
        )
        .await
    }

    /// Starts a server over an existing store.
    pub(crate) async fn start_on(
        store: Arc<dyn Store>,
        rules: Rules,
        limits: ConnectionLimits,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let chat = Arc::new(Chat::new(Arc::clone(&store), rules));
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server::run(listener, chat, SETTINGS, limits, async {
            stopped.await.unwrap();
        }));
        Self {
            address,
            store,
            stop,
            task,
        }
    }

    /// Returns a client with a connection of its own, and windows of 64 KiB.
    pub(crate) async fn client(&self) -> ChatClient<Channel> {
        ChatClient::new(self.channel().await)
    }

    /// Returns a connection for a client of any service.
    pub(crate) async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint
            .initial_stream_window_size(65_535)
            .connect()
            .await
            .unwrap()
    }

    /// Returns a client, after creating these accounts without passwords.
    pub(crate) async fn client_and(&self, users: &[&str]) -> ChatClient<Channel> {
        let mut client = self.client().await;
        for user in users {
            let user = (*user).to_owned();
            client
                .create(CreateRequest {
                    user,
                    password: String::new(),
                    login: None,
                })
                .await
                .unwrap();
        }
        client
    }

    /// Returns the address of the server.
    pub(crate) const fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    /// Returns the store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// Requests the shutdown, and returns a future of its end.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.task
    }
}

/// Returns the status code of a refusal and its code of the protocol.
pub(crate) fn code(status: &Status) -> (Code, &str) {
    let word = status
        .metadata()
        .get("hark-code")
        .expect("a refusal has a code");
    (status.code(), word.to_str().unwrap())
}

/// Returns an anonymous message.
pub(crate) fn to(user: &str, text: &str) -> SendRequest {
    SendRequest {
        to: user.to_owned(),
        text: text.to_owned(),
        ..SendRequest::default()
    }
}

/// The stream of a `Connect`.
pub(crate) struct Subscription(Streaming<ConnectReply>);

impl Subscription {
    /// Connects as an account without a password.
    pub(crate) async fn connect(client: &mut ChatClient<Channel>, user: &str) -> (Self, Connected) {
        let request = ConnectRequest {
            user: user.to_owned(),
            password: String::new(),
        };
        let mut receiver = Self(client.connect(request).await.unwrap().into_inner());
        let Some(connect_reply::Event::Connected(connected)) = receiver.next().await else {
            panic!("the first reply is `connected`")
        };
        (receiver, connected)
    }

    /// Returns the next event, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<connect_reply::Event> {
        self.try_next().await.unwrap()
    }

    /// Returns the next event, or the status of the end.
    pub(crate) async fn try_next(&mut self) -> Result<Option<connect_reply::Event>, Status> {
        Ok(self.0.message().await?.map(|reply| reply.event.unwrap()))
    }

    /// Returns the next event, a message.
    pub(crate) async fn message(&mut self) -> Message {
        match self.next().await {
            Some(connect_reply::Event::Message(message)) => message,
            other => panic!("{other:?} is no message"),
        }
    }

    /// Checks that the next event is a `bye` for this reason.
    pub(crate) async fn bye(&mut self, reason: &str) {
        match self.next().await {
            Some(connect_reply::Event::Bye(bye)) => assert_eq!(bye.reason, reason),
            other => panic!("{other:?} is no bye"),
        }
    }
}

/// The capacity of the channel of requests.
const REQUESTS_MAX: usize = 16_384;

/// A `BiDiChat`.
pub(crate) struct Session {
    requests: Option<mpsc::Sender<ChatRequest>>,
    pub(crate) replies: Streaming<ChatReply>,
}

impl Session {
    pub(crate) async fn open(client: &mut ChatClient<Channel>) -> Self {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let replies = client
            .bi_di_chat(ReceiverStream(asked))
            .await
            .unwrap()
            .into_inner();
        Self {
            requests: Some(requests),
            replies,
        }
    }

    pub(crate) fn say(&self, id: u32, command: Command) {
        let request = ChatRequest {
            id,
            command: Some(command),
        };
        self.requests.as_ref().unwrap().try_send(request).unwrap();
    }

    /// Sends a request without a command.
    pub(crate) fn say_nothing(&self, id: u32) {
        self.requests
            .as_ref()
            .unwrap()
            .try_send(ChatRequest { id, command: None })
            .unwrap();
    }

    pub(crate) fn send(&self, id: u32, user: &str, text: &str) {
        self.say(
            id,
            Command::Send(Send {
                to: user.to_owned(),
                text: text.to_owned(),
            }),
        );
    }

    /// Ends the requests.
    pub(crate) fn end(&mut self) {
        self.requests = None;
    }

    /// Returns the next reply and its id, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Option<(u32, chat_reply::Reply)> {
        let reply = self.replies.message().await.unwrap()?;
        Some((reply.id, reply.reply.unwrap()))
    }

    /// Makes a request, and returns its reply, which must be the next one.
    pub(crate) async fn ask(&mut self, id: u32, command: Command) -> chat_reply::Reply {
        self.say(id, command);
        let (replied, reply) = self.next().await.unwrap();
        assert_eq!(replied, id, "{reply:?}");
        reply
    }

    /// Makes a request that is answered by `ok`.
    pub(crate) async fn ok(&mut self, id: u32, command: Command) {
        assert_eq!(
            self.ask(id, command).await,
            chat_reply::Reply::Ok(Ok::default())
        );
    }

    /// Returns the number in the next reply, which is to a `send`.
    pub(crate) async fn stored(&mut self, id: u32) -> u64 {
        match self.next().await {
            Some((
                replied,
                chat_reply::Reply::Ok(Ok {
                    sequence: Some(sequence),
                    ..
                }),
            )) if replied == id => sequence,
            other => panic!("{other:?} does not answer the send {id}"),
        }
    }

    /// Connects as a user without a password. Returns the number of queued messages.
    pub(crate) async fn connect(&mut self, id: u32, user: &str) -> u64 {
        let request = ConnectRequest {
            user: user.to_owned(),
            password: String::new(),
        };
        match self.ask(id, Command::Connect(request)).await {
            chat_reply::Reply::Connected(connected) => connected.queued,
            other => panic!("{other:?} is no `connected`"),
        }
    }

    /// Returns the next reply, a message.
    pub(crate) async fn message(&mut self) -> Message {
        match self.next().await {
            Some((0, chat_reply::Reply::Message(message))) => message,
            other => panic!("{other:?} is no message"),
        }
    }

    /// Checks that the next reply is a `bye` for this reason.
    pub(crate) async fn bye(&mut self, reason: &str) {
        let bye = chat_reply::Reply::Bye(Bye {
            reason: reason.to_owned(),
        });
        assert_eq!(self.next().await, Some((0, bye)));
    }
}

/// The request stream.
struct ReceiverStream(mpsc::Receiver<ChatRequest>);

impl Stream for ReceiverStream {
    type Item = ChatRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<ChatRequest>> {
        self.0.poll_recv(cx)
    }
}
