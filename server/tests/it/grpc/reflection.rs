//! Server reflection.

use futures::{StreamExt, stream};
use tokio::time::Instant;
use tonic_reflection::pb;

use super::server::{LIMITS, Server};

const SERVICES: [&str; 4] = [
    "grpc.health.v1.Health",
    "hark.v1.Chat",
    "hark.v1.LogWatcher",
    "helloworld.Chat",
];

/// Requests the services, and then the file of each.
macro_rules! check_reflection {
    ($version:ident) => {{
        use pb::$version::server_reflection_client::ServerReflectionClient;
        use pb::$version::server_reflection_request::MessageRequest;
        use pb::$version::server_reflection_response::MessageResponse;
        let server = Server::start().await;
        let mut client = ServerReflectionClient::new(server.channel().await);
        let questions = SERVICES.map(|name| MessageRequest::FileContainingSymbol(name.to_owned()));
        let all = [MessageRequest::ListServices(String::new())]
            .into_iter()
            .chain(questions);
        let requests: Vec<_> = all
            .map(|request| pb::$version::ServerReflectionRequest {
                host: String::new(),
                message_request: Some(request),
            })
            .collect();
        let mut answers = client
            .server_reflection_info(stream::iter(requests))
            .await
            .unwrap()
            .into_inner();
        let mut next = async || {
            answers
                .message()
                .await
                .unwrap()
                .unwrap()
                .message_response
                .unwrap()
        };
        let MessageResponse::ListServicesResponse(list) = next().await else {
            panic!("no list")
        };
        let names: Vec<_> = list
            .service
            .into_iter()
            .map(|service| service.name)
            .collect();
        assert!(
            SERVICES
                .iter()
                .all(|service| names.contains(&(*service).to_owned())),
            "{names:?}"
        );
        for service in SERVICES {
            let MessageResponse::FileDescriptorResponse(file) = next().await else {
                panic!("no file")
            };
            assert!(!file.file_descriptor_proto.is_empty(), "{service}");
        }
    }};
}

#[tokio::test]
async fn services_are_described() {
    check_reflection!(v1);
}

#[tokio::test]
async fn services_are_described_by_v1alpha() {
    check_reflection!(v1alpha);
}

#[tokio::test]
async fn open_reflection_stream_does_not_delay_the_drain() {
    use pb::v1::ServerReflectionRequest;
    use pb::v1::server_reflection_client::ServerReflectionClient;
    use pb::v1::server_reflection_request::MessageRequest;
    let server = Server::start().await;
    let mut client = ServerReflectionClient::new(server.channel().await);
    let message_request = Some(MessageRequest::ListServices(String::new()));
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request,
    };
    let questions = stream::iter([question]).chain(stream::pending());
    let mut answers = client
        .server_reflection_info(questions)
        .await
        .unwrap()
        .into_inner();
    assert!(answers.message().await.unwrap().is_some());
    let begun = Instant::now();
    server.stop().await.unwrap();
    assert!(
        begun.elapsed() < LIMITS.drain_timeout,
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(answers.message().await.unwrap(), None);
}
