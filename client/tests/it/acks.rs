//! Delivery, deduplication and acknowledgement of messages.

use std::sync::Arc;
use std::time::Duration;

use hark_client::seen::FileSeenStore;
use hark_client::{Client, Config, Event, Events, Handle, LinkState};
use hark_protocol::{OkFields, Reply};

use super::{config, up};
use crate::peer::{Peer, event, link, message, user};

/// Connects as amy; the peer accepts.
async fn connect(handle: &Handle, peer: &mut Peer, queued: u64) {
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect(user("amy"), None).await }
    });
    peer.grant(queued).await;
    assert_eq!(call.await.unwrap().unwrap(), queued);
}

async fn ack_next(events: &mut Events) -> u64 {
    let message = message(events).await;
    let sequence = message.delivery.sequence.0;
    message.ack().unwrap();
    sequence
}

#[tokio::test(start_paused = true)]
async fn message_is_acknowledged_after_it_was_processed() {
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 1).await;
    peer.push(7).await;
    let seen = message(&mut events).await;
    assert_eq!((&seen.user, &*seen.delivery.text), (&user("amy"), "text 7 of 1000007"));
    peer.silence(Duration::from_secs(10)).await;
    seen.ack().unwrap();
    assert_eq!(peer.acked().await, 7);
    assert!(matches!(event(&mut events).await, Event::CaughtUp { .. }));
}

#[tokio::test(start_paused = true)]
async fn acks_are_coalesced() {
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 256).await;
    for n in 1..=256 {
        peer.push(n).await;
    }
    // The application processes them after all have arrived.
    peer.silence(Duration::from_secs(1)).await;
    for n in 1..=256 {
        assert_eq!(ack_next(&mut events).await, n);
    }
    let mut acks = vec![peer.acked().await];
    while acks.last() != Some(&256) {
        acks.push(peer.acked().await);
    }
    assert!(acks.len() <= 5, "{acks:?}");
}

#[tokio::test(start_paused = true)]
async fn repeats_on_a_new_link_are_dropped() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    connect(&handle, &mut peer, 3).await;
    for n in 1..=3 {
        peer.push(n).await;
    }
    assert_eq!(ack_next(&mut events).await, 1);
    assert_eq!(ack_next(&mut events).await, 2);
    let third = message(&mut events).await;
    drop(peer);
    let mut peer = peers.greeted().await;
    peer.grant(4).await;
    for n in 1..=4 {
        peer.push(n).await;
    }
    let fourth = message(&mut events).await;
    assert_eq!(fourth.delivery.sequence.0, 4, "1 and 2 were taken, 3 is in the application's hands");
    fourth.ack().unwrap();
    third.ack().unwrap();
    let mut acked = 0;
    while acked < 4 {
        acked = peer.acked().await;
    }
}

#[tokio::test(start_paused = true)]
async fn message_dropped_without_ack_is_delivered_again() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    connect(&handle, &mut peer, 0).await;
    peer.push(1).await;
    drop(message(&mut events).await);
    peer.push(2).await;
    assert_eq!(ack_next(&mut events).await, 2);
    peer.silence(Duration::from_secs(5)).await;
    drop(peer);
    let mut peer = peers.greeted().await;
    peer.grant(2).await;
    peer.push(1).await;
    peer.push(2).await;
    assert_eq!(ack_next(&mut events).await, 1);
    let mut acked = 0;
    while acked < 2 {
        acked = peer.acked().await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_ack_is_sent_during_a_connect() {
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 0).await;
    peer.push(1).await;
    let message = message(&mut events).await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect(user("bob"), None).await }
    });
    let (id, ..) = peer.entered().await;
    message.ack().unwrap();
    peer.silence(Duration::from_secs(5)).await;
    peer.reply(id, Reply::Ok(OkFields::Queued(1))).await;
    call.await.unwrap().unwrap();
    peer.silence(Duration::from_secs(5)).await;
    peer.push(9).await;
    assert_eq!(ack_next(&mut events).await, 9);
    assert_eq!(peer.acked().await, 9);
}

#[tokio::test(start_paused = true)]
async fn refused_connect_does_not_affect_acks() {
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 0).await;
    peer.push(1).await;
    let message = message(&mut events).await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect(user("bob"), None).await }
    });
    let (id, ..) = peer.entered().await;
    message.ack().unwrap();
    peer.refuse(id, hark_protocol::Code::Denied).await;
    call.await.unwrap().unwrap_err();
    assert_eq!(peer.acked().await, 1);
}

/// Returns a client with a store in `directory`, connected as amy.
async fn with_seen_store(directory: &std::path::Path, queued: u64) -> (Handle, Events, Peer) {
    let (config, mut peers) = config();
    let seen = Arc::new(FileSeenStore::new(directory, "server:1"));
    let (handle, events) = Client::connect(Config { seen, ..config });
    let mut peer = peers.greeted().await;
    connect(&handle, &mut peer, queued).await;
    (handle, events, peer)
}

#[tokio::test(start_paused = true)]
async fn messages_seen_before_restart_are_dropped() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, mut events, mut peer) = with_seen_store(directory.path(), 0).await;
    for n in 1..=10 {
        peer.push(n).await;
        assert_eq!(ack_next(&mut events).await, n);
    }
    // The client ends before its acks are processed.
    drop((handle, events, peer));
    let (_handle, mut events, mut peer) = with_seen_store(directory.path(), 11).await;
    for n in 1..=11 {
        peer.push(n).await;
    }
    assert_eq!(ack_next(&mut events).await, 11);
    let mut acked = 0;
    while acked < 11 {
        acked = peer.acked().await;
    }
}

#[tokio::test(start_paused = true)]
async fn new_store_on_the_server_loses_no_message() {
    let directory = tempfile::tempdir().unwrap();
    let (handle, mut events, mut peer) = with_seen_store(directory.path(), 0).await;
    for n in 1..=2000 {
        peer.push_at(n, 1_000_000 + n).await;
        ack_next(&mut events).await;
    }
    drop((handle, events, peer));
    // The same numbers at later times are different messages.
    let (_handle, mut events, mut peer) = with_seen_store(directory.path(), 0).await;
    for n in 1..=2000 {
        peer.push_at(n, 5_000_000 + n).await;
        assert_eq!(ack_next(&mut events).await, n);
    }
}

#[tokio::test(start_paused = true)]
async fn unreadable_record_refuses_the_connect() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("server%3a1").join("amy")).unwrap();
    let (config, mut peers) = config();
    let seen = Arc::new(FileSeenStore::new(directory.path(), "server:1"));
    let (handle, _events) = Client::connect(Config { seen, ..config });
    let mut peer = peers.greeted().await;
    let refused = handle.connect(user("amy"), None).await.unwrap_err();
    assert!(refused.to_string().contains("cannot read the record of seen messages"), "{refused}");
    peer.silence(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn full_event_queue_pauses_reading() {
    // More than a window, which a conforming server never sends, and more than fits into
    // the buffers on the way.
    const MESSAGES: u64 = 8_000;
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 0).await;
    let pushing = tokio::spawn(async move {
        for n in 1..=MESSAGES {
            peer.push(n).await;
        }
        peer
    });
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(!pushing.is_finished(), "what is not taken is not read");
    assert!(handle.link().borrow().is_up());
    for n in 1..=MESSAGES {
        assert_eq!(ack_next(&mut events).await, n);
    }
    let mut peer = pushing.await.unwrap();
    let mut acked = 0;
    while acked < MESSAGES {
        acked = peer.acked().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_events_receiver_messages_stay_on_server() {
    let (handle, events, _peers, mut peer) = up().await;
    drop(events);
    connect(&handle, &mut peer, 1).await;
    peer.push(1).await;
    peer.silence(Duration::from_secs(10)).await;
    assert!(handle.link().borrow().is_up());
}

#[tokio::test(start_paused = true)]
async fn close_acknowledges_processed_messages() {
    let (handle, mut events, _peers, mut peer) = up().await;
    connect(&handle, &mut peer, 3).await;
    for n in 1..=3 {
        peer.push(n).await;
    }
    let (first, _held) = (message(&mut events).await, message(&mut events).await);
    first.ack().unwrap();
    let closing = tokio::spawn({
        let handle = handle.clone();
        async move { handle.close(Duration::from_secs(5)).await }
    });
    assert_eq!(peer.acked().await, 1);
    peer.closed().await;
    assert_eq!(closing.await.unwrap(), 0);
    link(&handle, |state| *state == LinkState::Closed).await;
}
