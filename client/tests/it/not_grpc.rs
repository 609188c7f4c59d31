//! Errors for servers that do not support gRPC.

use hark_client::logs::{Logs, Query, WatchError};
use hark_client::{Client, Config, LinkState};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::peer::link;

/// Starts a server that reads a little, sends this answer and closes. Returns
/// its address.
async fn server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut some = [0; 16];
            stream.read_exact(&mut some).await.unwrap();
            stream.write_all(answer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn server_without_grpc_is_reported_and_retried() {
    for answer in [
        &b""[..],
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
    ] {
        let config = Config::grpc(server(answer).await);
        let watched = Logs::watch(&config, Query::default()).await.unwrap_err();
        let WatchError::Link(why) = watched else {
            panic!("{watched:?}")
        };
        assert!(why.contains("does not support this gRPC service"), "{why}");
        let (handle, _events) = Client::connect(config);
        let down = link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
        let LinkState::Down { reason, .. } = down else {
            panic!("{down:?}")
        };
        assert!(
            reason.contains("does not support this gRPC service"),
            "{reason}"
        );
    }
}

#[tokio::test]
async fn log_requires_grpc() {
    let watched = Logs::watch(&Config::tcp(server(b"").await), Query::default())
        .await
        .unwrap_err();
    assert!(
        matches!(&watched, WatchError::Link(why) if why.contains("requires gRPC")),
        "{watched}"
    );
}
