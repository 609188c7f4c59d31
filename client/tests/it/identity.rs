//! The authenticated user, across links and changes.

use std::time::Duration;

use hark_client::{Event, Handle, RequestError};
use hark_protocol::{ByeReason, Code, OkFields, Reply, Request};

use super::up;
use crate::peer::{Peer, event, message, quiet, user};

/// Authenticates; the peer accepts.
async fn enter(handle: &Handle, peer: &mut Peer, name: &'static str, receives: bool) {
    let call = tokio::spawn({
        let handle = handle.clone();
        async move {
            match receives {
                true => handle.connect(user(name), None).await.map(drop),
                false => handle.login(user(name), None).await,
            }
        }
    });
    assert_eq!(peer.grant(0).await, (user(name), receives));
    call.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn new_link_authenticates_before_repeats() {
    for receives in [false, true] {
        let (handle, _events, mut peers, mut peer) = up().await;
        enter(&handle, &mut peer, "amy", receives).await;
        drop(handle.send(user("bob"), "x".into()).await.unwrap());
        assert_eq!(peer.sent().await.0, 1);
        drop(peer);
        let mut peer = peers.greeted().await;
        let (id, name, still_receives) = peer.entered().await;
        assert_eq!((name, still_receives), (user("amy"), receives));
        // Nothing is repeated before authentication is confirmed.
        peer.silence(Duration::from_secs(5)).await;
        peer.reply(id, Reply::Ok(OkFields::Queued(0))).await;
        assert_eq!(peer.sent().await.0, 1);
        peer.ok(1).await;
        quiet(&handle).await;
    }
}

#[tokio::test(start_paused = true)]
async fn client_does_not_reconnect_as_receiver_after_takeover() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", true).await;
    assert!(matches!(event(&mut events).await, Event::CaughtUp { .. }));
    peer.bye(ByeReason::TakenOver).await;
    assert!(matches!(event(&mut events).await, Event::TakenOver { user: who } if who == user("amy")));
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.grant(0).await, (user("amy"), false), "it logs in and does not connect");
}

#[tokio::test(start_paused = true)]
async fn disconnected_client_stays_anonymous() {
    let (handle, _events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", true).await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.disconnect().await }
    });
    let (_, request) = peer.next().await;
    assert_eq!(request, Request::Disconnect);
    // The link is lost before the answer: a new one starts anonymous.
    drop(peer);
    let mut peer = peers.greeted().await;
    call.await.unwrap().unwrap();
    peer.silence(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn sends_fail_after_account_was_deleted() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", true).await;
    let written = handle.send(user("bob"), "1".into()).await.unwrap();
    assert_eq!(peer.sent().await.0, 1);
    peer.bye(ByeReason::Deleted).await;
    loop {
        if let Event::IdentityLost { user: who, .. } = event(&mut events).await {
            assert_eq!(who, user("amy"));
            break;
        }
    }
    let late = handle.send(user("bob"), "2".into()).await.unwrap();
    let late = late.await.unwrap_err();
    assert_eq!(late.to_string(), "not sent: no longer logged in as amy: the account was deleted");
    drop(peer);
    let mut peer = peers.greeted().await;
    assert!(matches!(written.await, Err(RequestError::Unknown { .. })));
    peer.silence(Duration::from_secs(5)).await;
    // Sends work again after a login.
    enter(&handle, &mut peer, "ann", false).await;
    drop(handle.send(user("bob"), "3".into()).await.unwrap());
    assert_eq!(peer.sent().await.1, "3");
}

#[tokio::test(start_paused = true)]
async fn refused_login_on_new_link_ends_its_sends() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", false).await;
    let written = handle.send(user("bob"), "1".into()).await.unwrap();
    assert_eq!(peer.sent().await.0, 1);
    drop(peer);
    let mut peer = peers.greeted().await;
    let unwritten = handle.send(user("bob"), "2".into()).await.unwrap();
    let (id, ..) = peer.entered().await;
    peer.refuse(id, Code::Denied).await;
    assert!(
        matches!(event(&mut events).await, Event::IdentityLost { refusal, .. } if refusal.code == Code::Denied)
    );
    assert!(matches!(written.await, Err(RequestError::Unknown { .. })));
    assert!(matches!(unwritten.await, Err(RequestError::NotSent(_))));
    peer.silence(Duration::from_secs(5)).await;
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn transient_refusal_of_login_is_retried() {
    for code in [Code::RateLimited, Code::TooMany] {
        let (handle, _events, mut peers, mut peer) = up().await;
        enter(&handle, &mut peer, "amy", false).await;
        drop(handle.send(user("bob"), "1".into()).await.unwrap());
        peer.sent().await;
        drop(peer);
        let mut peer = peers.greeted().await;
        let (id, ..) = peer.entered().await;
        peer.refuse(id, code).await;
        let mut peer = peers.greeted().await;
        peer.grant(0).await;
        assert_eq!(peer.sent().await.0, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn change_of_user_is_a_barrier_for_sends() {
    let (handle, _events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", false).await;
    drop(handle.send(user("bob"), "as amy".into()).await.unwrap());
    let login = tokio::spawn({
        let handle = handle.clone();
        async move { handle.login(user("ann"), None).await }
    });
    tokio::task::yield_now().await;
    let after = tokio::spawn({
        let handle = handle.clone();
        async move { handle.send(user("bob"), "as ann".into()).await?.await }
    });
    assert_eq!(peer.sent().await.1, "as amy");
    peer.silence(Duration::from_secs(5)).await;
    // The link is lost: sends of amy are repeated as amy.
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.grant(0).await, (user("amy"), false));
    assert_eq!(peer.sent().await.1, "as amy");
    peer.silence(Duration::from_secs(5)).await;
    peer.ok(1).await;
    let (id, name, _) = peer.entered().await;
    assert_eq!(name, user("ann"));
    peer.silence(Duration::from_secs(5)).await;
    peer.ok(id).await;
    login.await.unwrap().unwrap();
    assert_eq!(peer.sent().await, (2, "as ann".to_owned()));
    peer.ok(2).await;
    after.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn new_password_is_used_on_next_link() {
    let (handle, _events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", false).await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.password(user("amy"), None, "new".parse().unwrap()).await }
    });
    let (id, _) = peer.next().await;
    peer.ok(id).await;
    call.await.unwrap().unwrap();
    drop(peer);
    let mut peer = peers.greeted().await;
    let (_, request) = peer.next().await;
    assert!(matches!(request, Request::Login { password: Some(password), .. } if password.expose() == "new"));
}

#[tokio::test(start_paused = true)]
async fn deleting_oneself_is_no_identity_loss() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", true).await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.delete(user("amy"), None).await }
    });
    let (id, _) = peer.next().await;
    peer.reply(id, Reply::Ok(OkFields::Deleted(true))).await;
    peer.bye(ByeReason::Deleted).await;
    assert!(call.await.unwrap().unwrap());
    drop(handle.send(user("bob"), "as nobody".into()).await.unwrap());
    assert_eq!(peer.sent().await.1, "as nobody");
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.sent().await.1, "as nobody");
    peer.ok(1).await;
    quiet(&handle).await;
    drop(handle);
    while let Some(event) = events.next().await {
        assert!(!matches!(event, Event::IdentityLost { .. }), "{event:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn login_as_another_user_ends_receiving() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    enter(&handle, &mut peer, "amy", true).await;
    enter(&handle, &mut peer, "amy", false).await;
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.grant(1).await, (user("amy"), true));
    peer.push(4).await;
    message(&mut events).await.ack().unwrap();
    assert_eq!(peer.acked().await, 4);
    enter(&handle, &mut peer, "ann", false).await;
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.grant(0).await, (user("ann"), false));
}
