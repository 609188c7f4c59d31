//! Peers that do not read what they have asked for: they cost nobody but
//! themselves.

use std::time::Duration;

use hark_protocol::Request;
use hark_tests::{Harkd, Wire, name, wait_until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Fills the room between a server and a client that does not read: asks for
/// more than the system has room for, and waits until the server cannot write.
pub(crate) async fn clog(server: &Harkd, wire: &mut Wire) {
    let users = (1..=1000).map(|n| (n, Request::Create { user: name(&format!("{n:060}")), password: None }));
    wire.write_all(users).await;
    wire.reply_to(1000).await;
    wire.write_all((1..=500).map(|id| (id, Request::List { pattern: None }))).await;
    let mut before = 0;
    wait_until("a full socket", || {
        std::thread::sleep(Duration::from_millis(20));
        let now = server.unsent_bytes(wire.address());
        now > 0 && std::mem::replace(&mut before, now) == now
    });
}

/// A connection of a session that has asked for far more than it reads.
async fn clogged(server: &Harkd) -> Wire {
    let mut wire = Wire::hello(server.address(), "session").await;
    clog(server, &mut wire).await;
    wire
}

#[tokio::test]
async fn a_hello_does_not_wait_for_a_connection_that_does_not_read() {
    let server = Harkd::builder().arg("--ack-timeout=3600").start();
    let _former = clogged(&server).await;
    Wire::hello(server.address(), "session").await.ping().await;
}

#[tokio::test]
async fn a_connection_that_does_not_read_holds_up_the_end_no_longer_than_it_may() {
    let mut server = Harkd::builder().arg("--drain-timeout=0").arg("--ack-timeout=3600").start();
    let _clogged = clogged(&server).await;
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!server.log().contains("connections still open"), "{}", server.log());
}

#[tokio::test]
async fn a_command_whose_fields_are_waited_for_takes_no_time_while_the_output_is_full() {
    let server = Harkd::builder().arg("--ack-timeout=3600").start();
    let mut wire = Wire::connect(server.address()).await;
    let users = (0..4000).map(|n| Request::Create { user: name(&format!("{n:064}")), password: None });
    wire.write_all((1..).zip(users)).await;
    wire.reply_to(4000).await;
    let mut classic = TcpStream::connect(server.address()).await.unwrap();
    let mut bytes = b"list".to_vec();
    bytes.resize(1024, 0);
    bytes.extend(*b"create\0\0\0\0\0\0\0\0\0");
    for _ in 0..60 {
        classic.write_all(&bytes).await.unwrap();
        // The bare command is given up on before the next list comes.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let before = server.processor_time();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let used = server.processor_time() - before;
    assert!(used < 10, "{used} hundredths of a second");
    drop(classic);
}
