//! Failover between servers that share one store: the order of attempts, and
//! the state that the client keeps.

use std::time::Duration;

use hark_client::{Client, Config, LinkState};
use hark_protocol::{Code, Refusal, Reply};
use tokio::time::Instant;

use super::transport;
use crate::peer::{Peers, link, message, quiet, server, user};

/// Returns the configuration for `servers` servers named by letters, and the
/// connections that a client opens to each.
fn config(servers: usize) -> (Config, Vec<Peers>) {
    let names = ["a:1", "b:1", "c:1"];
    let (servers, peers) = names[..servers].iter().map(|name| server(name, transport())).unzip();
    (Config { servers, ..Config::tcp("") }, peers)
}

fn is_up_at(state: &LinkState, name: &str) -> bool {
    matches!(state, LinkState::Up { server } if **server == *name)
}

#[tokio::test(start_paused = true)]
async fn next_server_is_tried_at_once() {
    let (config, mut peers) = config(3);
    let (_handle, _events) = Client::connect(config);
    let mut last = Instant::now();
    let mut waits = Vec::new();
    for n in 0..12 {
        drop(peers[n % 3].accept().await);
        waits.push(last.elapsed().as_millis());
        last = Instant::now();
    }
    let is_rest = |(n, _): &(usize, &u128)| *n > 0 && n % 3 == 0;
    let (rests, others): (Vec<_>, Vec<_>) = waits.iter().enumerate().partition(is_rest);
    assert!(others.iter().all(|(_, wait)| **wait < 10), "{waits:?}");
    assert!(rests.iter().all(|(_, wait)| **wait >= 50), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn failover_continues_from_the_current_server() {
    let (config, mut peers) = config(3);
    let (handle, _events) = Client::connect(config);
    // The first server is down.
    peers.remove(0);
    let second = peers[0].greeted().await;
    link(&handle, |state| is_up_at(state, "b:1")).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let start = Instant::now();
    drop(second);
    let third = peers[1].greeted().await;
    link(&handle, |state| is_up_at(state, "c:1")).await;
    assert!(start.elapsed() < Duration::from_millis(10));
    drop(third);
    // The first server is still down.
    let _again = peers[0].greeted().await;
    link(&handle, |state| is_up_at(state, "b:1")).await;
}

#[tokio::test(start_paused = true)]
async fn unanswered_sends_are_repeated_at_next_server() {
    let (config, mut peers) = config(2);
    let (handle, _events) = Client::connect(config);
    let mut first = peers[0].accept().await;
    let session = first.hello().await;
    let login = tokio::spawn({
        let handle = handle.clone();
        async move { handle.login(user("amy"), None).await }
    });
    first.grant(0).await;
    login.await.unwrap().unwrap();
    let mut receipts = Vec::new();
    for text in ["one", "two", "three", "four"] {
        receipts.push(handle.send(user("bob"), text.into()).await.unwrap());
    }
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(first.sent().await.0);
    }
    first.ok(ids[1]).await;
    // The peer reads the next send, too.
    first.sent().await;
    receipts.remove(1).await.unwrap();
    drop(first);
    let mut second = peers[1].accept().await;
    assert_eq!(second.hello().await, session);
    assert_eq!(second.grant(0).await, (user("amy"), false));
    receipts.push(handle.send(user("bob"), "five".into()).await.unwrap());
    let mut again = Vec::new();
    for _ in 0..4 {
        let (id, text) = second.sent().await;
        second.ok(id).await;
        again.push(text);
    }
    assert_eq!(again, ["one", "three", "four", "five"]);
    for receipt in receipts {
        receipt.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn repeats_from_another_server_are_dropped() {
    let (config, mut peers) = config(2);
    let (handle, mut events) = Client::connect(config);
    let mut first = peers[0].greeted().await;
    let connect = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect(user("bob"), None).await }
    });
    first.grant(2).await;
    first.push(1).await;
    first.push(2).await;
    assert_eq!(connect.await.unwrap(), Ok(2));
    message(&mut events).await.ack().unwrap();
    // The ack is lost with the server.
    drop(first);
    let mut second = peers[1].greeted().await;
    assert_eq!(second.grant(2).await, (user("bob"), true));
    second.push(1).await;
    second.push(2).await;
    second.push(3).await;
    for sequence in [2, 3] {
        let next = message(&mut events).await;
        assert_eq!(next.delivery.sequence.0, sequence);
        next.ack().unwrap();
    }
    while second.acked().await < 3 {}
}

#[tokio::test(start_paused = true)]
async fn unresponsive_server_gets_its_share_of_time() {
    let (config, mut peers) = config(2);
    let connect = config.timing.connect;
    let (handle, _events) = Client::connect(config);
    let start = Instant::now();
    let silent = peers[0].accept().await;
    peers[1].greeted().await;
    assert_eq!(start.elapsed().as_secs(), connect.as_secs() / 2);
    drop(silent);
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn second_round_gives_each_server_full_time() {
    let (config, mut peers) = config(2);
    let connect = config.timing.connect;
    let (_handle, _events) = Client::connect(config);
    let slow = [peers[0].accept().await, peers[1].accept().await];
    let third = peers[0].accept().await;
    let start = Instant::now();
    let fourth = peers[1].accept().await;
    assert_eq!(start.elapsed().as_secs(), connect.as_secs());
    drop((slow, third, fourth));
}

#[tokio::test(start_paused = true)]
async fn unavailable_server_is_left_for_another() {
    let (config, mut peers) = config(2);
    let (handle, _events) = Client::connect(config);
    let mut first = peers[0].greeted().await;
    let receipt = handle.send(user("bob"), "kept".into()).await.unwrap();
    let (id, _) = first.sent().await;
    let start = Instant::now();
    first.unavailable(id).await;
    let mut second = peers[1].greeted().await;
    assert_eq!(second.sent().await, (id, "kept".to_owned()));
    second.ok(id).await;
    receipt.await.unwrap();
    assert!(start.elapsed() < Duration::from_millis(10));
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn link_failure_is_permanent_if_all_servers_are() {
    let (config, mut peers) = config(2);
    let (handle, _events) = Client::connect(config);
    for (code, expected) in [(Code::TooMany, false), (Code::Denied, true)] {
        for (peers, code) in peers.iter_mut().zip([Code::Denied, code]) {
            let mut peer = peers.accept().await;
            peer.next().await;
            peer.reply(0, Reply::NotOk(Refusal::new(code, "not here"))).await;
            peer.closed().await;
        }
        let is_over = |state: &LinkState| matches!(state, LinkState::Down { server, .. } if **server == *"b:1");
        let LinkState::Down { is_permanent, retry_in, .. } = link(&handle, is_over).await else {
            unreachable!("it is down");
        };
        assert_eq!(is_permanent, expected);
        assert!(!retry_in.is_zero());
    }
}

#[tokio::test(start_paused = true)]
async fn empty_server_list_is_a_permanent_failure() {
    let (handle, _events) = Client::connect(Config { servers: Vec::new(), ..Config::tcp("") });
    let down = link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
    assert!(matches!(down, LinkState::Down { is_permanent: true, reason, .. } if reason == "no server is configured"));
}
