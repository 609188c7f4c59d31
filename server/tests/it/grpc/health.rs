//! The standard health service.

use hark_server::chat::Rules;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus::{
    self, NotServing, ServiceUnknown, Serving,
};
use tonic_health::pb::health_client::HealthClient;

use super::server::{LIMITS, RULES, Server};

const SERVICES: [&str; 4] = ["", "hark.v1.Chat", "hark.v1.LogWatcher", "helloworld.Chat"];

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

async fn check(server: &Server, service: &str) -> Result<ServingStatus, Status> {
    let mut client = HealthClient::new(server.channel().await);
    Ok(client.check(about(service)).await?.get_ref().status())
}

#[tokio::test]
async fn enabled_services_are_serving() {
    let server = Server::start().await;
    for (service, expected) in SERVICES
        .into_iter()
        .zip([Serving, Serving, NotServing, Serving])
    {
        assert_eq!(
            check(&server, service).await.unwrap(),
            expected,
            "{service:?}"
        );
    }
    assert_eq!(
        check(&server, "hark.v1.Nothing").await.unwrap_err().code(),
        Code::NotFound
    );
    let server = Server::start_with(
        Rules {
            require_password: true,
            ..RULES
        },
        LIMITS,
    )
    .await;
    for (service, expected) in SERVICES
        .into_iter()
        .zip([Serving, Serving, NotServing, NotServing])
    {
        assert_eq!(
            check(&server, service).await.unwrap(),
            expected,
            "{service:?}"
        );
    }
}

#[tokio::test]
async fn watch_ends_with_the_server() {
    let server = Server::start().await;
    let mut client = HealthClient::new(server.channel().await);
    let mut all = client.watch(about("")).await.unwrap().into_inner();
    let mut unknown = client
        .watch(about("hark.v1.Nothing"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(all.message().await.unwrap().unwrap().status(), Serving);
    assert_eq!(
        unknown.message().await.unwrap().unwrap().status(),
        ServiceUnknown
    );
    let stopped = server.stop();
    assert_eq!(all.message().await.unwrap().unwrap().status(), NotServing);
    assert_eq!(all.message().await.unwrap(), None);
    assert_eq!(unknown.message().await.unwrap(), None);
    stopped.await.unwrap();
}
