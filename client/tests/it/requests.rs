//! Numbering, repetition and completion of requests.

use std::time::Duration;

use hark_client::{Client, RequestError};
use hark_protocol::{ByeReason, Code, OkFields, Refusal, Reply, Request, Sequence};

use super::{config, up};
use crate::peer::{quiet, user};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn sends_are_numbered_from_1_in_call_order() {
    let (handle, _events, _peers, mut peer) = up().await;
    let other = handle.clone();
    let asking = tokio::spawn({
        let handle = handle.clone();
        async move { handle.ping().await }
    });
    let (id, request) = peer.next().await;
    assert_eq!(request, Request::Ping);
    assert!(id >= 1 << 31, "{id}");
    peer.ok(id).await;
    asking.await.unwrap().unwrap();
    for n in 1..=50_u32 {
        let handle = if n % 2 == 0 { &handle } else { &other };
        drop(handle.send(user("bob"), n.to_string().into()).await.unwrap());
    }
    for n in 1..=50 {
        assert_eq!(peer.sent().await, (n, n.to_string()));
        peer.ok(n).await;
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn waiting_callers_are_served_in_order() {
    let (handle, _events, _peers, mut peer) = up().await;
    let mut calls = Vec::new();
    for n in 1..=1500_u32 {
        let handle = handle.clone();
        let mut call = Box::pin(async move { handle.send(user("bob"), n.to_string().into()).await?.await });
        // The first poll queues the request.
        assert!(futures::poll!(&mut call).is_pending());
        calls.push(tokio::spawn(call));
    }
    for n in 1..=1024 {
        assert_eq!(peer.sent().await, (n, n.to_string()));
    }
    peer.silence(Duration::from_secs(1)).await;
    for n in 1..=1500 {
        peer.ok(n).await;
        if n + 1024 <= 1500 {
            assert_eq!(peer.sent().await, (n + 1024, (n + 1024).to_string()));
        }
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn pending_ids_stay_within_server_memory() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let first = handle.send(user("bob"), "1".into()).await.unwrap();
    assert_eq!(peer.sent().await.0, 1);
    for n in 2..=1024 {
        drop(handle.send(user("bob"), n.to_string().into()).await.unwrap());
        assert_eq!(peer.sent().await.0, n);
        peer.ok(n).await;
    }
    // Only one is unanswered, but the next would evict it from the server's
    // record.
    drop(handle.send(user("bob"), "1025".into()).await.unwrap());
    peer.silence(Duration::from_secs(1)).await;
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.sent().await, (1, "1".to_owned()));
    peer.ok(1).await;
    first.await.unwrap();
    assert_eq!(peer.sent().await, (1025, "1025".to_owned()));
    peer.ok(1025).await;
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn unanswered_sends_are_repeated_first_in_order() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let mut receipts = Vec::new();
    for n in 1..=5_u32 {
        receipts.push(handle.send(user("bob"), n.to_string().into()).await.unwrap());
        assert_eq!(peer.sent().await.0, n);
    }
    peer.ok(2).await;
    receipts.remove(1).await.unwrap();
    drop(peer);
    for n in 6..=7_u32 {
        receipts.push(handle.send(user("bob"), n.to_string().into()).await.unwrap());
    }
    // The second link reads two of them and answers none.
    let mut peer = peers.greeted().await;
    assert_eq!(peer.sent().await.0, 1);
    assert_eq!(peer.sent().await.0, 3);
    drop(peer);
    let mut peer = peers.greeted().await;
    for n in [1, 3, 4, 5, 6, 7] {
        assert_eq!(peer.sent().await, (n, n.to_string()));
        peer.ok(n).await;
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn send_returns_its_sequence_number() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let first = handle.send(user("bob"), "first".into()).await.unwrap();
    let second = handle.send(user("bob"), "second".into()).await.unwrap();
    assert_eq!((peer.sent().await.0, peer.sent().await.0), (1, 2));
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!((peer.sent().await.0, peer.sent().await.0), (1, 2));
    peer.reply(1, Reply::Ok(OkFields::Stored(Sequence(812)))).await;
    // An earlier server answers without a number.
    peer.ok(2).await;
    assert_eq!(first.await, Ok(Some(Sequence(812))));
    assert_eq!(second.await, Ok(None));
}

#[tokio::test(start_paused = true)]
async fn unknown_refusal_code_is_passed_on() {
    let (handle, _events, _peers, mut peer) = up().await;
    let receipt = handle.send(user("bob"), "x".into()).await.unwrap();
    let (id, _) = peer.sent().await;
    let unknown = Refusal::parse("out-of-tea", "come back at five");
    peer.reply(id, Reply::NotOk(unknown.clone())).await;
    assert_eq!(receipt.await, Err(RequestError::Refused(unknown)));
    // The link and the next request are unaffected.
    let next = handle.send(user("bob"), "y".into()).await.unwrap();
    let (id, _) = peer.sent().await;
    peer.ok(id).await;
    next.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn session_is_kept_across_links() {
    let (first_config, mut peers) = config();
    let (_first, _events) = Client::connect(first_config);
    let mut tokens = Vec::new();
    for _ in 0..3 {
        tokens.push(peers.accept().await.hello().await);
    }
    assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
    let (other_config, mut peers) = config();
    let (_other, _events) = Client::connect(other_config);
    assert_ne!(peers.accept().await.hello().await, tokens[0]);
}

#[tokio::test(start_paused = true)]
async fn unanswered_send_is_unknown_after_nine_minutes() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let receipt = handle.send(user("bob"), "x".into()).await.unwrap();
    peer.sent().await;
    drop(peer);
    let sent = tokio::time::Instant::now();
    let mut receipt = Box::pin(receipt);
    let mut repeats = 0;
    let outcome = loop {
        tokio::select! {
            outcome = &mut receipt => break outcome,
            mut peer = peers.accept() => {
                // Each link reads the send, and ends after 20 s.
                peer.hello().await;
                assert_eq!(peer.sent().await.0, 1);
                repeats += 1;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        }
    };
    let Err(RequestError::Unknown { what, .. }) = &outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(*what, "the message was stored");
    assert!(repeats > 5);
    assert!(
        (9 * MINUTE..9 * MINUTE + Duration::from_secs(30)).contains(&sent.elapsed()),
        "{:?}",
        sent.elapsed()
    );
    let mut peer = peers.greeted().await;
    peer.silence(Duration::from_secs(15)).await;
    // A late answer is ignored, and the next send has the next id.
    peer.ok(1).await;
    drop(handle.send(user("bob"), "y".into()).await.unwrap());
    assert_eq!(peer.sent().await, (2, "y".to_owned()));
    peer.ok(2).await;
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn unwritten_send_waits_indefinitely() {
    let (config, mut peers) = config();
    let (handle, _events) = Client::connect(config);
    let receipt = handle.send(user("bob"), "patient".into()).await.unwrap();
    let mut receipt = Box::pin(receipt);
    let start = tokio::time::Instant::now();
    while start.elapsed() < 30 * MINUTE {
        drop(peers.accept().await);
        assert!(futures::poll!(&mut receipt).is_pending());
    }
    let mut peer = peers.greeted().await;
    assert_eq!(peer.sent().await, (1, "patient".to_owned()));
    peer.ok(1).await;
    receipt.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lost_link_repeats_reads_but_not_changes() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let ask = |name: &'static str| {
        let handle = handle.clone();
        tokio::spawn(async move {
            match name {
                "create" => handle.create(user("a"), None).await,
                "delete" => handle.delete(user("a"), None).await.map(drop),
                "password" => handle.password(user("a"), None, "new".parse().unwrap()).await,
                "list" => handle.list(None).await.map(|answer| assert_eq!(answer.names, [user("x")])),
                _ => handle.ping().await,
            }
        })
    };
    let calls = ["create", "delete", "password", "list", "ping"].map(|name| (name, ask(name)));
    for _ in 0..5 {
        let (id, request) = peer.next().await;
        if matches!(request, Request::List { .. }) {
            // A partial answer, which must not be returned twice.
            peer.reply(id, Reply::List(vec![user("x")])).await;
        }
    }
    drop(peer);
    let mut peer = peers.greeted().await;
    for _ in 0..2 {
        match peer.next().await {
            (id, Request::List { .. }) => {
                peer.reply(id, Reply::List(vec![user("x")])).await;
                peer.reply(id, Reply::Ok(OkFields::Listed(1, false))).await;
            }
            (id, Request::Ping) => peer.ok(id).await,
            other => panic!("{other:?} must not be repeated"),
        }
    }
    for (name, call) in calls {
        let outcome = call.await.unwrap();
        match name {
            "list" | "ping" => assert_eq!(outcome, Ok(())),
            _ => assert!(matches!(outcome, Err(RequestError::Unknown { .. })), "{name}: {outcome:?}"),
        }
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn unavailable_send_is_repeated_on_another_link() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let first = handle.send(user("bob"), "1".into()).await.unwrap();
    let second = handle.send(user("bob"), "2".into()).await.unwrap();
    assert_eq!(peer.sent().await.0, 1);
    peer.unavailable(1).await;
    // Later sends on this link have no effect.
    while peer.frame().await.is_some() {}
    let mut peer = peers.greeted().await;
    for n in [1, 2] {
        assert_eq!(peer.sent().await.0, n);
        peer.ok(n).await;
    }
    first.await.unwrap();
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn unavailable_server_is_retried_with_backoff() {
    let (handle, _events, mut peers, mut peer) = up().await;
    drop(handle.send(user("bob"), "x".into()).await.unwrap());
    let start = tokio::time::Instant::now();
    for _ in 0..10 {
        assert_eq!(peer.sent().await.0, 1);
        peer.unavailable(1).await;
        peer.closed().await;
        peer = peers.greeted().await;
    }
    assert!(start.elapsed() > Duration::from_secs(15), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn unavailable_change_is_unknown_and_keeps_link() {
    let (handle, _events, _peers, mut peer) = up().await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.create(user("a"), None).await }
    });
    let (id, _) = peer.next().await;
    peer.unavailable(id).await;
    let outcome = call.await.unwrap().unwrap_err();
    assert_eq!(outcome.to_string(), "it is unknown whether the account was created: the disk is full");
    drop(handle.send(user("bob"), "x".into()).await.unwrap());
    assert_eq!(peer.sent().await.0, 1);
}

#[tokio::test(start_paused = true)]
async fn refusal_is_passed_on() {
    let (handle, _events, _peers, mut peer) = up().await;
    let receipt = handle.send(user("bob"), "x".into()).await.unwrap();
    peer.sent().await;
    peer.refuse(1, Code::QueueFull).await;
    assert!(matches!(receipt.await, Err(RequestError::Refused(refusal)) if refusal.code == Code::QueueFull));
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn overlong_text_is_refused_locally() {
    let (handle, _events, _peers, mut peer) = up().await;
    let large = handle.send(user("bob"), "x".repeat(70_000).into()).await.unwrap();
    let small = handle.send(user("bob"), "y".into()).await.unwrap();
    let Err(RequestError::Refused(refusal)) = large.await else { panic!("it is too large") };
    assert_eq!(refusal.code, Code::TooLarge);
    assert!(refusal.explanation.contains("this server accepts at most 65280"), "{refusal}");
    assert_eq!(peer.sent().await, (2, "y".to_owned()));
    peer.ok(2).await;
    small.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn answer_to_list_is_bounded() {
    let (config, mut peers) = config();
    let (handle, _events) = Client::connect(hark_client::Config { names_max: 3, ..config });
    let mut peer = peers.greeted().await;
    let call = tokio::spawn({
        let handle = handle.clone();
        async move { handle.list(Some("^".into())).await }
    });
    let (id, _) = peer.next().await;
    peer.reply(id, Reply::List(vec![user("a"), user("b")])).await;
    peer.reply(id, Reply::List(vec![user("c"), user("d")])).await;
    peer.reply(id, Reply::Ok(OkFields::Listed(4, false))).await;
    let answer = call.await.unwrap().unwrap();
    assert_eq!(answer.names, [user("a"), user("b"), user("c")]);
    assert!(answer.is_truncated);
}

#[tokio::test(start_paused = true)]
async fn at_most_256_other_requests_are_pending() {
    let (handle, _events, _peers, mut peer) = up().await;
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let handle = handle.clone();
            tokio::spawn(async move { handle.ping().await })
        })
        .collect();
    let mut ids = Vec::new();
    for _ in 0..256 {
        ids.push(peer.next().await.0);
    }
    peer.silence(Duration::from_secs(1)).await;
    for _ in 256..300 {
        peer.ok(ids.remove(0)).await;
        ids.push(peer.next().await.0);
    }
    for id in ids {
        peer.ok(id).await;
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn abandoned_call_leaves_nothing_behind() {
    let (handle, _events, _peers, mut peer) = up().await;
    for _ in 0..1000 {
        let gone = tokio::time::timeout(Duration::from_millis(1), handle.ping()).await;
        assert!(gone.is_err());
        let (id, _) = peer.next().await;
        peer.ok(id).await;
    }
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_pending_requests() {
    let (handle, _events, _peers, mut peer) = up().await;
    let receipts = [
        handle.send(user("bob"), "1".into()).await.unwrap(),
        handle.send(user("bob"), "2".into()).await.unwrap(),
    ];
    let closing = tokio::spawn({
        let handle = handle.clone();
        async move { handle.close(Duration::from_secs(5)).await }
    });
    for n in [1, 2] {
        assert_eq!(peer.sent().await.0, n);
        tokio::time::sleep(Duration::from_secs(1)).await;
        peer.ok(n).await;
    }
    for receipt in receipts {
        receipt.await.unwrap();
    }
    peer.closed().await;
    assert_eq!(closing.await.unwrap(), 0);
    let late = handle.send(user("bob"), "3".into()).await;
    assert!(matches!(late, Err(RequestError::NotSent(_))), "{late:?}");
}

#[tokio::test(start_paused = true)]
async fn close_times_out_with_exact_outcomes() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let written = handle.send(user("bob"), "1".into()).await.unwrap();
    peer.sent().await;
    peer.bye(ByeReason::Shutdown).await;
    drop(peer);
    let silent = peers.accept().await;
    let unwritten = handle.send(user("bob"), "2".into()).await.unwrap();
    let start = tokio::time::Instant::now();
    assert_eq!(handle.close(Duration::from_secs(5)).await, 2);
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(matches!(written.await, Err(RequestError::Unknown { .. })));
    assert!(matches!(unwritten.await, Err(RequestError::NotSent(_))));
    drop(silent);
}

#[tokio::test(start_paused = true)]
async fn task_ends_with_the_last_handle() {
    let (handle, mut events, _peers, mut peer) = up().await;
    let receipt = handle.send(user("bob"), "1".into()).await.unwrap();
    peer.sent().await;
    drop(handle);
    peer.closed().await;
    assert!(matches!(receipt.await, Err(RequestError::Unknown { .. })));
    while events.next().await.is_some() {}
}
