//! The gRPC front over a store that cannot be written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hark_grpc::v1::chat_reply::Reply;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{Error, Hello, Idempotency, SendRequest};
use hark_server::shard::{ShardConfig, ShardStore};
use hark_server::store::{Operation, Store};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::server::{LIMITS, RULES, Server, Session, code, to};

/// A store that refuses to store messages while it is set to fail.
#[derive(Debug)]
struct Failing {
    store: ShardStore,
    fails: AtomicBool,
}

impl Failing {
    fn new() -> Arc<Self> {
        let store = ShardStore::memory(ShardConfig {
            numbers_after: Some(0),
            ..ShardConfig::DEFAULT
        })
        .unwrap();
        Arc::new(Self {
            store,
            fails: AtomicBool::new(false),
        })
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }
}

impl Store for Failing {
    fn submit(&self, operation: Operation) {
        if self.fails.load(Ordering::SeqCst) && matches!(operation, Operation::Appends(_)) {
            return operation.refuse();
        }
        self.store.submit(operation);
    }

    fn is_available(&self) -> bool {
        !self.fails.load(Ordering::SeqCst) && self.store.is_available()
    }
}

#[tokio::test]
async fn health_follows_the_store() {
    let store = Failing::new();
    let server = Server::start_on(Arc::clone(&store) as Arc<dyn Store>, RULES, LIMITS).await;
    let mut client = HealthClient::new(server.channel().await);
    let about = HealthCheckRequest {
        service: "hark.v1.Chat".to_owned(),
    };
    let mut watch = client.watch(about.clone()).await.unwrap().into_inner();
    assert_eq!(
        watch.message().await.unwrap().unwrap().status(),
        ServingStatus::Serving
    );
    for (fails, status) in [
        (true, ServingStatus::NotServing),
        (false, ServingStatus::Serving),
    ] {
        store.fail(fails);
        assert_eq!(watch.message().await.unwrap().unwrap().status(), status);
        assert_eq!(
            client
                .check(about.clone())
                .await
                .unwrap()
                .get_ref()
                .status(),
            status
        );
    }
}

fn hello() -> Command {
    Command::Hello(Hello {
        version: 1,
        session: "session".to_owned(),
    })
}

#[tokio::test]
async fn undecided_send_is_unavailable_and_can_be_repeated() {
    let store = Failing::new();
    let server = Server::start_on(Arc::clone(&store) as Arc<dyn Store>, RULES, LIMITS).await;
    let mut client = server.client_and(&["bob"]).await;
    let idempotency = Some(Idempotency {
        session: "session".to_owned(),
        id: 1,
    });
    let send = SendRequest {
        idempotency,
        ..to("bob", "hello")
    };
    store.fail(true);
    let failed = client.send(send.clone()).await.unwrap_err();
    assert_eq!(code(&failed), (Code::Unavailable, "unavailable"));
    store.fail(false);
    client.send(send).await.unwrap();
}

#[tokio::test]
async fn stream_ends_after_an_undecided_send_of_its_session() {
    let store = Failing::new();
    let server = Server::start_on(Arc::clone(&store) as Arc<dyn Store>, RULES, LIMITS).await;
    let mut client = server.client_and(&["bob"]).await;
    let mut session = Session::open(&mut client).await;
    assert!(matches!(session.ask(101, hello()).await, Reply::Hello(_)));
    store.fail(true);
    for id in 1..=100 {
        session.send(id, "bob", "hello");
    }
    let mut answered = 0;
    let end = loop {
        match session.replies.message().await {
            Err(end) => break end,
            reply => {
                let Some(Reply::Error(Error { code, .. })) = reply.unwrap().unwrap().reply else {
                    panic!("it was not decided")
                };
                assert_eq!(code, "unavailable");
                answered += 1;
            }
        }
    };
    assert!(answered > 0);
    assert_eq!(code(&end), (Code::Unavailable, "unavailable"));
    store.fail(false);

    let mut again = Session::open(&mut client).await;
    assert!(matches!(again.ask(101, hello()).await, Reply::Hello(_)));
    for id in 1..=100 {
        again.send(id, "bob", "hello");
        again.stored(id).await;
    }
    assert_eq!(again.connect(101, "bob").await, 100);
}
