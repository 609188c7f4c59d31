//! A server of its own for each test, in this process and with its store in
//! memory, and a client over a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use hark_grpc::v1::CreateRequest;
use hark_grpc::v1::chat_client::ChatClient;
use hark_server::chat::{Chat, Rules};
use hark_server::front::Settings;
use hark_server::server::{self, Limits};
use hark_server::store::local::{LocalConfig, LocalStore};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

/// A server that runs until it is told to stop.
pub(crate) struct Server {
    address: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

pub(crate) const RULES: Rules = Rules {
    frame_bytes_max: 64 * 1024,
    list_names_max: 10_000,
    require_password: false,
    open_registration: true,
};

pub(crate) const LIMITS: Limits =
    Limits { connections_max: 100, connections_per_address_max: 100, drain_timeout: Duration::from_secs(10) };

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(RULES, LIMITS).await
    }

    pub(crate) async fn start_with(rules: Rules, limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(LocalStore::memory(LocalConfig::DEFAULT).unwrap());
        let chat = Arc::new(Chat::new(store, rules));
        let settings = Settings { ack_timeout: Duration::from_secs(60) };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server::run(listener, chat, settings, limits, async {
            stopped.await.unwrap();
        }));
        Self { address, stop, task }
    }

    /// A client over a connection of its own.
    pub(crate) async fn client(&self) -> ChatClient<Channel> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        ChatClient::new(endpoint.connect().await.unwrap())
    }

    /// A client, after these accounts without passwords were made.
    pub(crate) async fn client_and(&self, users: &[&str]) -> ChatClient<Channel> {
        let mut client = self.client().await;
        for user in users {
            let user = (*user).to_owned();
            client.create(CreateRequest { user, password: String::new() }).await.unwrap();
        }
        client
    }

    /// Tells it to stop, and yields what resolves when it has.
    pub(crate) fn stop(self) -> JoinHandle<()> {
        self.stop.send(()).unwrap();
        self.task
    }
}
