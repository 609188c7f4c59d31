//! Behavior during a commit, and after a failed one.

use std::sync::Arc;
use std::time::Duration;

use futures::poll;
use hark_protocol::Code;

use super::super::kept::Failure;
use super::super::watchdog::Deadlines;
use super::super::{ShardConfig, ShardStore, Sync};
use super::{KeptOpener, config, faulty};
use crate::log::Durability;
use crate::store::contract::{
    ALL, WIDE, append_fenced, create, name, next_event, number, queued, read, send, stored, text,
    texts, token,
};
use crate::store::{
    Created, End, Event, Fence, Outcome, Pending, Position, ReadLimit, Store, Unavailable,
};

/// Waits until the store has recovered.
async fn recovered(store: &ShardStore) {
    while store.open_session(&token("probe"), None).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store.close_session(&token("probe"));
}

#[tokio::test]
async fn nothing_is_answered_before_its_sync_has_returned() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    let mut receiver = store.receive(&bob).await.unwrap().unwrap();
    receiver.follow();
    faults.hold();
    let mut created = store.create(&name("amy"), None);
    faults.wait_until_held();
    let mut sent = store.append(send("s", 1, "bob", "x"));
    let mut repeat = store.append(send("s", 1, "bob", "x"));
    let mut received = store.receive(&bob);
    assert!(poll!(&mut created).is_pending());
    assert!(store.account(&name("amy")).await.unwrap().is_none());
    assert_eq!(store.names(None, 9).await.unwrap(), [name("bob")]);
    faults.release();
    assert_eq!(created.await, Ok(Created::Created));
    number((&mut sent).await);
    number((&mut repeat).await);
    assert!((&mut received).await.unwrap().is_some());

    faults.hold();
    let mut sent = store.append(text("bob", "y"));
    let mut deleted = store.delete(&bob);
    faults.wait_until_held();
    assert!(poll!(&mut sent).is_pending());
    assert!(poll!(&mut deleted).is_pending());
    assert!(store.account(&name("bob")).await.unwrap().is_some());
    faults.release();
    number(sent.await);
    assert_eq!(deleted.await, Ok(true));
    assert!(store.account(&name("bob")).await.unwrap().is_none());
}

#[tokio::test]
async fn messages_of_one_commit_are_read_from_any_place() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let expected: Vec<_> = (0..300)
        .map(|n| format!("{n}: {}", "x".repeat(n)))
        .collect();
    let sends: Vec<_> = expected
        .iter()
        .map(|content| store.append(text("bob", content)))
        .collect();
    faults.release();
    number(held.await);
    for sent in sends {
        number(sent.await);
    }
    assert_eq!(faults.appends().len(), 3, "they were written together");
    let all = read(&store, &bob).await;
    assert!(
        all[1..]
            .iter()
            .map(|message| message.text.to_string())
            .eq(expected)
    );
    for (place, message) in all.iter().enumerate() {
        assert_eq!(message.position.messages, place as u64 + 1);
        let limit = ReadLimit {
            messages: 7,
            bytes: usize::MAX,
        };
        let page = store.read(&bob, message.position, limit).await.unwrap();
        assert!(
            page.messages.iter().eq(all[place + 1..].iter().take(7)),
            "after {place}"
        );
        assert_eq!(page.complete, place + 1 + 7 >= all.len());
    }
    store.acknowledge(&bob, all[150].position);
    assert_eq!(queued(&store, &bob).await, 150);
    stored(&store, text("bob", "more")).await;
    let left = read(&store, &bob).await;
    assert!(
        left.len() == 151 && left[..150] == all[151..],
        "{} are left",
        left.len()
    );
}

#[tokio::test]
async fn answers_wait_for_a_sync_and_acks_do_not() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    stored(&store, text("bob", "x")).await;
    assert_eq!(faults.appends(), [Durability::Machine; 2]);
    assert_eq!(queued(&store, &bob).await, 1);
    let appends = faults.appends().len();
    store.acknowledge(&bob, read(&store, &bob).await[0].position);
    assert_eq!(queued(&store, &bob).await, 0);
    assert_eq!(faults.appends()[appends..], [Durability::Process]);
}

#[tokio::test]
async fn sync_os_syncs_reserved_numbers_alone() {
    let (store, faults) = faulty(ShardConfig {
        sync: Sync::Os,
        ..config(WIDE)
    });
    create(&store, "bob").await;
    stored(&store, text("bob", "x")).await;
    assert_eq!(faults.appends(), [Durability::Machine, Durability::Process]);
}

#[tokio::test]
async fn refusal_and_repeat_write_nothing() {
    let (store, faults) = faulty(config(WIDE));
    create(&store, "bob").await;
    stored(&store, send("s", 1, "bob", "x")).await;
    let written = faults.appends().len();
    stored(&store, send("s", 1, "bob", "x")).await;
    assert_eq!(
        store.append(text("amy", "x")).await,
        Ok(Outcome::Refused(Code::NoSuchUser))
    );
    assert_eq!(store.create(&name("bob"), None).await, Ok(Created::Exists));
    assert_eq!(faults.appends().len(), written);
}

async fn all_unavailable(sends: Vec<Pending<Outcome>>) {
    for pending in sends {
        assert_eq!(pending.await, Err(Unavailable));
    }
}

/// Fails a commit with everything in one batch: a send of a session, one without a
/// session, and a repeat of one in the batch.
async fn check_a_failing_commit(failure: Failure) {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    stored(&store, send("s", 1, "bob", "1")).await;
    faults.hold();
    let first = store.append(text("bob", "held"));
    faults.wait_until_held();
    let fence = Fence::default();
    let fenced = |id, text| append_fenced(&store, send("s", id, "bob", text), &fence);
    let lost = vec![
        fenced(2, "2"),
        fenced(2, "2"),
        store.append(text("bob", "from no session")),
    ];
    // A repeat with a known outcome is still answered before it.
    let repeat = store.append(send("s", 1, "bob", "1"));
    faults.fail_next(failure);
    faults.release();
    number(first.await);
    all_unavailable(lost).await;
    assert_eq!(repeat.await, Err(Unavailable));
    assert!(fence.is_closed());
    // A later send of that connection must not overtake the failed one.
    all_unavailable(vec![fenced(3, "3")]).await;
    recovered(&store).await;
    all_unavailable(vec![fenced(3, "3")]).await;
    for id in 1..=3 {
        stored(&store, send("s", id, "bob", &id.to_string())).await;
    }
    let expected: &[&str] = match failure {
        Failure::Before | Failure::NoSpace => &["1", "held", "2", "3"],
        Failure::After => &["1", "held", "2", "from no session", "3"],
    };
    assert_eq!(texts(&store, &bob).await, expected);
}

#[tokio::test]
async fn failed_commit_can_be_repeated_if_not_made() {
    check_a_failing_commit(Failure::Before).await;
}

#[tokio::test]
async fn failed_commit_can_be_repeated_if_made() {
    check_a_failing_commit(Failure::After).await;
}

#[tokio::test]
async fn failed_commit_can_be_repeated_if_it_had_no_space() {
    check_a_failing_commit(Failure::NoSpace).await;
}

#[tokio::test]
async fn frames_are_smaller_than_a_segment() {
    let (store, faults) = faulty(config(WIDE));
    faults.set_segment_bytes(1 << 20);
    let bob = create(&store, "bob").await;
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let content = "x".repeat(60_000);
    let names: Vec<_> = (0..40).map(|n| name(&format!("user{n}"))).collect();
    let created: Vec<_> = names.iter().map(|name| store.create(name, None)).collect();
    let sends: Vec<_> = names
        .iter()
        .map(|name| store.append(text(name.as_str(), &content)))
        .collect();
    faults.release();
    number(held.await);
    for created in created {
        assert_eq!(created.await, Ok(Created::Created));
    }
    for sent in sends {
        number(sent.await);
    }
    assert!(
        faults.longest_frame() < 1 << 19,
        "{}",
        faults.longest_frame()
    );
    assert_eq!(queued(&store, &bob).await, 1);
}

#[tokio::test]
async fn store_is_unavailable_until_it_has_recovered() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    stored(&store, text("bob", "1")).await;
    let message = Arc::clone(&read(&store, &bob).await[0]);
    faults.fail_opens(true);
    faults.fail_next(Failure::Before);
    assert_eq!(store.append(text("bob", "2")).await, Err(Unavailable));
    store.acknowledge(&bob, message.position);
    faults.wait_for_failed_opens(2);
    assert!(!store.is_available());
    let fence = Fence::default();
    let fenced = append_fenced(&store, send("s", 1, "bob", "x"), &fence);
    all_unavailable(vec![fenced, store.append(text("bob", "3"))]).await;
    assert!(fence.is_closed());
    assert!(store.receive(&bob).await.is_err());
    assert_eq!(store.delete(&bob).await, Err(Unavailable));
    assert_eq!(
        store.read(&bob, Position::default(), ALL).await,
        Err(Unavailable)
    );
    assert_eq!(store.names(None, 9).await.unwrap(), [name("bob")]);
    faults.fail_opens(false);
    recovered(&store).await;
    assert!(store.is_available());
    stored(&store, text("bob", "4")).await;
    let receiver = store.receive(&bob).await.unwrap().unwrap();
    assert_eq!(
        (receiver.queued(), receiver.cursor()),
        (1, message.position)
    );
}

#[tokio::test]
async fn subscription_lags_or_ends_after_a_failure() {
    for failure in [Failure::Before, Failure::After] {
        let (store, faults) = faulty(config(WIDE));
        let (amy, bob) = (create(&store, "amy").await, create(&store, "bob").await);
        let mut of_amy = store.receive(&amy).await.unwrap().unwrap();
        let mut of_bob = store.receive(&bob).await.unwrap().unwrap();
        of_amy.follow();
        of_bob.follow();
        faults.fail_next(failure);
        assert_eq!(store.delete(&amy).await, Err(Unavailable));
        recovered(&store).await;
        assert_eq!(next_event(&mut of_bob).await, Event::Lagged);
        let expected = match failure {
            Failure::Before | Failure::NoSpace => Event::Lagged,
            Failure::After => Event::Ended(End::Deleted),
        };
        assert_eq!(next_event(&mut of_amy).await, expected);
        of_bob.follow();
        stored(&store, text("bob", "x")).await;
        assert!(matches!(next_event(&mut of_bob).await, Event::Appended(_)));
    }
}

#[tokio::test]
async fn failed_takeover_leaves_the_subscription() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    let mut former = store.receive(&bob).await.unwrap().unwrap();
    former.follow();
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let (one, two) = (store.receive(&bob), store.receive(&bob));
    let sent = store.append(text("bob", "x"));
    faults.fail_next(Failure::Before);
    faults.release();
    number(held.await);
    assert!(one.await.is_err() && two.await.is_err() && sent.await.is_err());
    recovered(&store).await;
    assert_eq!(next_event(&mut former).await, Event::Lagged);
    former.follow();
    stored(&store, text("bob", "y")).await;
    assert!(matches!(next_event(&mut former).await, Event::Appended(_)));
}

#[tokio::test]
async fn sessions_stay_open_over_a_failure() {
    let (store, faults) = faulty(ShardConfig {
        sessions_max: 2,
        ..config(WIDE)
    });
    let bob = create(&store, "bob").await;
    assert_eq!(store.open_session(&token("a"), None).await, Ok(true));
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let (opened, sent) = (
        store.open_session(&token("b"), None),
        store.append(text("bob", "x")),
    );
    faults.fail_next(Failure::Before);
    faults.release();
    number(held.await);
    assert_eq!(opened.await, Err(Unavailable));
    assert_eq!(sent.await, Err(Unavailable));
    recovered(&store).await;
    stored(&store, send("a", 1, "bob", "x")).await;
    assert_eq!(queued(&store, &bob).await, 2);
}

#[tokio::test]
async fn store_closes_and_drops_while_it_cannot_recover() {
    let (store, faults) = faulty(config(WIDE));
    create(&store, "bob").await;
    faults.fail_opens(true);
    faults.fail_next(Failure::Before);
    assert_eq!(store.append(text("bob", "x")).await, Err(Unavailable));
    faults.wait_for_failed_opens(1);
    assert_eq!(store.close().await, Err(Unavailable));
    drop(store);

    let (store, faults) = faulty(config(WIDE));
    faults.fail_opens(true);
    faults.fail_next(Failure::After);
    assert_eq!(store.create(&name("bob"), None).await, Err(Unavailable));
    drop(store);
}

#[tokio::test]
async fn store_recovers_from_each_failure_in_turn() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    for round in 1..=6 {
        let failure = if round % 2 == 0 {
            Failure::After
        } else {
            Failure::Before
        };
        stored(&store, send("s", 2 * round, "bob", "first")).await;
        faults.fail_next(failure);
        assert_eq!(
            store
                .append(send("s", 2 * round + 1, "bob", "second"))
                .await,
            Err(Unavailable)
        );
        recovered(&store).await;
        stored(&store, send("s", 2 * round + 1, "bob", "second")).await;
    }
    assert_eq!(texts(&store, &bob).await, ["first", "second"].repeat(6));
    assert!(faults.checkpoints() > 0);
}

#[tokio::test]
async fn low_space_refuses_sends_alone() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    let first = number(store.append(send("s", 1, "bob", "1")).await);
    let message = Arc::clone(&read(&store, &bob).await[0]);
    faults.set_low_on_space(true);
    let full = Ok(Outcome::Refused(Code::NoSpace));
    assert_eq!(store.append(send("s", 2, "bob", "2")).await, full);
    assert_eq!(store.append(text("bob", "2")).await, full);
    assert_eq!(number(store.append(send("s", 1, "bob", "1")).await), first);
    assert!(store.is_available());
    store.acknowledge(&bob, message.position);
    assert_eq!(queued(&store, &bob).await, 0);
    assert_eq!(store.delete(&bob).await, Ok(true));
    create(&store, "bob").await;
    faults.set_low_on_space(false);
    stored(&store, send("s", 2, "bob", "2")).await;
}

#[tokio::test]
async fn remembered_refusal_stays_on_low_space() {
    let (store, faults) = faulty(config(WIDE));
    create(&store, "bob").await;
    let refused = Ok(Outcome::Refused(Code::NoSuchUser));
    assert_eq!(store.append(send("s", 1, "eve", "x")).await, refused);
    faults.set_low_on_space(true);
    assert_eq!(store.append(send("s", 1, "eve", "x")).await, refused);
}

#[tokio::test]
async fn full_log_is_unavailable_and_stays_open() {
    let (store, faults) = faulty(config(WIDE));
    let bob = create(&store, "bob").await;
    stored(&store, send("s", 1, "bob", "1")).await;
    let mut receiver = store.receive(&bob).await.unwrap().unwrap();
    receiver.follow();
    let first = Arc::clone(&read(&store, &bob).await[0]);
    faults.set_full(true);
    let written = faults.appends().len();
    assert_eq!(
        store.append(send("s", 2, "bob", "2")).await,
        Err(Unavailable)
    );
    assert_eq!(store.delete(&bob).await, Err(Unavailable));
    assert!(!store.is_available());
    store.acknowledge(&bob, first.position);
    assert_eq!(texts(&store, &bob).await, ["1"], "it is read");
    assert_eq!(faults.appends().len(), written);
    faults.set_full(false);
    recovered(&store).await;
    assert!(store.is_available());
    stored(&store, send("s", 2, "bob", "2")).await;
    assert!(
        matches!(next_event(&mut receiver).await, Event::Appended(_)),
        "it has not lagged"
    );
    assert_eq!(queued(&store, &bob).await, 1);
}

/// Returns a store whose watchdog has short deadlines.
fn watched() -> (ShardStore, Arc<super::Kept>) {
    let opener = KeptOpener::default();
    let kept = Arc::clone(&opener.kept);
    let ms = Duration::from_millis;
    let deadlines = Deadlines {
        slow: ms(20),
        stalled: ms(60),
        interval: ms(5),
    };
    (
        ShardStore::start(Arc::new(opener), config(WIDE), deadlines).unwrap(),
        kept,
    )
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn slow_commit_makes_the_store_unhealthy_until_it_ends() {
    let (store, faults) = watched();
    create(&store, "bob").await;
    assert!(store.is_available());
    faults.hold();
    let sent = store.append(text("bob", "x"));
    until(|| !store.is_available()).await;
    faults.release();
    number(sent.await);
    until(|| store.is_available()).await;
    stored(&store, text("bob", "y")).await;
}

#[tokio::test]
async fn stalled_commit_is_answered_as_unknown() {
    let (store, faults) = watched();
    create(&store, "bob").await;
    stored(&store, text("bob", "0")).await;
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let fence = Fence::default();
    let (sent, opened) = (
        append_fenced(&store, send("s", 1, "bob", "1"), &fence),
        store.open_session(&token("t"), None),
    );
    // These are in the next commit.
    faults.release();
    number(held.await);
    number(sent.await);
    assert_eq!(opened.await, Ok(true));
    assert!(!fence.is_closed());

    faults.hold();
    let fence = Fence::default();
    let sent = append_fenced(&store, send("s", 2, "bob", "2"), &fence);
    faults.wait_until_held();
    assert_eq!(sent.await, Err(Unavailable));
    assert!(fence.is_closed());
    faults.release();
    recovered(&store).await;
    // The send was stored, and its repeat finds it.
    stored(&store, send("s", 2, "bob", "2")).await;
    let bob = store.account(&name("bob")).await.unwrap().unwrap().account;
    assert_eq!(texts(&store, &bob).await, ["0", "held", "1", "2"]);
}

#[tokio::test]
async fn stalled_commit_refuses_waiting_commands() {
    let (store, faults) = watched();
    let bob = create(&store, "bob").await;
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    let fence = Fence::default();
    let waiting = append_fenced(&store, send("s", 1, "bob", "x"), &fence);
    store.close_session(&token("s"));
    assert_eq!(waiting.await, Err(Unavailable));
    assert!(fence.is_closed());
    assert_eq!(
        store.create(&name("amy"), None).await,
        Err(Unavailable),
        "at once"
    );
    assert_eq!(held.await, Err(Unavailable));
    faults.release();
    recovered(&store).await;
    stored(&store, send("s", 1, "bob", "y")).await;
    assert_eq!(texts(&store, &bob).await, ["held", "y"]);
}

#[tokio::test]
async fn store_drops_while_a_commit_is_stalled() {
    let (store, faults) = watched();
    create(&store, "bob").await;
    faults.hold();
    let held = store.append(text("bob", "held"));
    faults.wait_until_held();
    assert_eq!(store.append(text("bob", "x")).await, Err(Unavailable));
    assert_eq!(held.await, Err(Unavailable));
    drop(store);
    faults.release();
}
