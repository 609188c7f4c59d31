//! Opening, keepalive and failure of a link.

use std::time::Duration;

use hark_client::{Client, Event, LinkState};
use hark_protocol::{ByeReason, Code, OkFields, Reply, Request, Sequence};

use super::{config, up};
use crate::peer::{link, message, user};

#[tokio::test(start_paused = true)]
async fn silent_link_is_pinged_then_closed() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let start = tokio::time::Instant::now();
    let (id, request) = peer.next().await;
    assert_eq!((request, start.elapsed().as_secs()), (Request::Ping, 20));
    peer.ok(id).await;
    let (_, request) = peer.next().await;
    assert_eq!((request, start.elapsed().as_secs()), (Request::Ping, 40));
    // This ping is not answered.
    let down = link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
    assert_eq!(start.elapsed().as_secs(), 50);
    assert!(matches!(down, LinkState::Down { reason, .. } if reason == "the server does not respond"));
    let _peer = peers.greeted().await;
    link(&handle, |state| state.is_up()).await;
}

#[tokio::test(start_paused = true)]
async fn any_reply_keeps_a_link_alive() {
    let (handle, _events, _peers, mut peer) = up().await;
    drop(handle.send(user("bob"), "x".into()).await.unwrap());
    peer.sent().await;
    for n in 0..20 {
        tokio::time::sleep(Duration::from_secs(19)).await;
        // An unsolicited reply counts as well.
        peer.ok(77 + n).await;
    }
    assert!(handle.link().borrow().is_up());
}

#[tokio::test(start_paused = true)]
async fn unresponsive_server_times_out_after_10_s() {
    let (config, mut peers) = config();
    let (handle, _events) = Client::connect(config);
    let start = tokio::time::Instant::now();
    let silent = peers.accept().await;
    link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
    assert_eq!(start.elapsed().as_secs(), 10);
    drop(silent);
    peers.greeted().await;
}

#[tokio::test(start_paused = true)]
async fn backoff_grows_to_10_s() {
    let (config, mut peers) = config();
    let (_handle, _events) = Client::connect(config);
    let mut last = tokio::time::Instant::now();
    let mut waits = Vec::new();
    for _ in 0..20 {
        drop(peers.accept().await);
        waits.push(last.elapsed());
        last = tokio::time::Instant::now();
    }
    assert!(waits[1] <= Duration::from_millis(100), "{waits:?}");
    assert!(waits[12..].iter().all(|wait| (5..=10).contains(&wait.as_secs())), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn retry_after_of_the_server_is_obeyed() {
    let (config, mut peers) = config();
    let (handle, _events) = Client::connect(config);
    let mut peer = peers.accept().await;
    let (id, _) = peer.next().await;
    let refusal = hark_protocol::Refusal::new(Code::RateLimited, "7 seconds");
    peer.reply(id, hark_protocol::Reply::NotOk(refusal)).await;
    let down = link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
    assert!(matches!(down, LinkState::Down { retry_in, .. } if retry_in.as_secs() == 7), "{down:?}");
}

#[tokio::test(start_paused = true)]
async fn link_states_are_events() {
    let (config, mut peers) = config();
    let (_handle, mut events) = Client::connect(config);
    let peer = peers.greeted().await;
    let mut seen = Vec::new();
    let mut peer = Some(peer);
    while seen.len() < 4 {
        let Some(Event::Link(state)) = events.next().await else {
            panic!("a state of the link was to come");
        };
        if state.is_up()
            && let Some(mut peer) = peer.take()
        {
            peer.bye(ByeReason::Shutdown).await;
        }
        seen.push(state);
    }
    assert!(matches!(&seen[..2], [LinkState::Connecting, LinkState::Up { .. }]), "{seen:?}");
    assert!(
        matches!(&seen[2], LinkState::Down { reason, .. } if reason == "the server is shutting down"),
        "{seen:?}"
    );
    assert_eq!(seen[3], LinkState::Connecting);
}

#[tokio::test(start_paused = true)]
async fn protocol_error_ends_the_link() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let explanation = "a frame is too short".into();
    let error = hark_protocol::Reply::Error { failure: hark_protocol::Failure::Protocol, explanation };
    peer.reply(0, error).await;
    let down = link(&handle, |state| matches!(state, LinkState::Down { .. })).await;
    assert!(matches!(down, LinkState::Down { reason, .. } if reason.contains("a frame is too short")));
    peers.greeted().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_push_is_ignored_in_each_state() {
    let (config, mut peers) = config();
    let (handle, mut events) = Client::connect(config);
    let mut peer = peers.accept().await;
    peer.push_later().await;
    peer.hello().await;
    let connecting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.connect(user("amy"), None).await }
    });
    let (id, ..) = peer.entered().await;
    peer.push_later().await;
    peer.reply(id, Reply::Ok(OkFields::Queued(1))).await;
    connecting.await.unwrap().unwrap();
    peer.push_later().await;
    peer.push(5).await;
    assert_eq!(message(&mut events).await.delivery.sequence, Sequence(5));
    drop(peer);
    // The handshake of the next link authenticates, too.
    let mut peer = peers.accept().await;
    peer.push_later().await;
    peer.hello().await;
    let (id, ..) = peer.entered().await;
    peer.push_later().await;
    peer.reply(id, Reply::Ok(OkFields::Queued(1))).await;
    link(&handle, |state| state.is_up()).await;
    peer.silence(Duration::from_secs(15)).await;
}

#[tokio::test(start_paused = true)]
async fn refused_connection_reports_reason_and_permanence() {
    let (config, mut peers) = config();
    let (handle, _events) = Client::connect(config);
    for (code, expected) in [(Code::TooMany, false), (Code::Denied, true)] {
        let mut peer = peers.accept().await;
        peer.next().await;
        peer.reply(0, hark_protocol::Reply::NotOk(hark_protocol::Refusal::new(code, "not here"))).await;
        let is_down = |state: &LinkState| matches!(state, LinkState::Down { is_permanent, .. } if *is_permanent == expected);
        let down = link(&handle, is_down).await;
        assert!(matches!(&down, LinkState::Down { reason, .. } if reason.contains("not here")), "{down:?}");
    }
    // The configuration may change meanwhile.
    let _peer = peers.greeted().await;
    link(&handle, |state| state.is_up()).await;
}
