//! The calls with one answer.

use hark_grpc::v1::CreateRequest;
use tonic::{Code, Status};

use crate::server::Server;

fn code(status: &Status) -> (Code, &str) {
    (status.code(), status.metadata().get("hark-code").unwrap().to_str().unwrap())
}

#[tokio::test]
async fn an_account_is_made_once() {
    let server = Server::start().await;
    let mut client = server.client_and(&["bob"]).await;
    let again = CreateRequest { user: "bob".to_owned(), password: String::new() };
    let refused = client.create(again).await.unwrap_err();
    assert_eq!(code(&refused), (Code::AlreadyExists, "exists"));
    drop(client);
    server.stop().await.unwrap();
}
