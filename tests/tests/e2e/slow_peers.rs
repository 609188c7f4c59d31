//! Peers that do not read their answers, and must not affect others.

use std::time::Duration;

use hark_protocol::Request;
use hark_tests::{Harkd, Wire, name, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Fills all the buffers between a server and a client that does not read, and
/// waits until the server's writes block.
pub(crate) async fn fill_buffers(server: &Harkd, wire: &mut Wire) {
    let users = (1..=1000).map(|n| {
        (
            n,
            Request::Create {
                user: name(&format!("{n:060}")),
                password: None,
            },
        )
    });
    wire.write_all(users).await;
    wire.reply_to(1000).await;
    wire.write_all((1..=500).map(|id| (id, Request::List { pattern: None })))
        .await;
    let mut before = 0;
    wait_until("a full socket", || {
        std::thread::sleep(Duration::from_millis(20));
        let now = server.unsent_bytes(wire.address());
        now > 0 && std::mem::replace(&mut before, now) == now
    });
}

/// Returns a connection of a session that has requested far more than it reads.
async fn blocked_session(server: &Harkd) -> Wire {
    let mut wire = Wire::hello(server.address(), "session").await;
    fill_buffers(server, &mut wire).await;
    wire
}

#[tokio::test]
async fn hello_does_not_wait_for_blocked_connection() {
    let server = Harkd::builder().arg("--ack-timeout=3600").start();
    let _former = blocked_session(&server).await;
    Wire::hello(server.address(), "session").await.ping().await;
}

#[tokio::test]
async fn blocked_connection_delays_shutdown_within_limit() {
    let mut server = Harkd::builder()
        .arg("--drain-timeout=0")
        .arg("--ack-timeout=3600")
        .start();
    let _blocked = blocked_session(&server).await;
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(
        !server.log().contains("connections still open"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn waiting_for_fields_takes_no_cpu() {
    let server = Harkd::builder().arg("--ack-timeout=3600").start();
    let mut wire = Wire::connect(server.address()).await;
    let users = (0..4000).map(|n| Request::Create {
        user: name(&format!("{n:064}")),
        password: None,
    });
    wire.write_all((1..).zip(users)).await;
    wire.reply_to(4000).await;
    let mut classic = TcpStream::connect(server.address()).await.unwrap();
    let mut bytes = b"list".to_vec();
    bytes.resize(1024, 0);
    bytes.extend(*b"create\0\0\0\0\0\0\0\0\0");
    for _ in 0..60 {
        classic.write_all(&bytes).await.unwrap();
        // The wait for the command's fields ends before the next list.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = server.processor_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = server.processor_time() - before;
    assert!(used < 10, "{used} hundredths of a second");
    drop(classic);
}
