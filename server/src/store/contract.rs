//! The contract suite: the guarantees of [`Store`], checked on any store that can be closed
//! and reopened. [`contract_suite`] generates the tests.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::{Code, RequestId, Sequence, SessionToken, UserName};

use super::*;

/// The location of a store that can be reopened.
pub(crate) trait Home {
    /// Opens the store. The one opened before is closed or dropped.
    fn open(&self, limits: Limits) -> Arc<dyn Store>;
}

/// The limits of a store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) accounts: usize,
    pub(crate) sessions: usize,
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// The longest wait for an event, even in a cluster on a busy machine.
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Limits that no test reaches.
pub(crate) const WIDE: Limits = Limits {
    accounts: 1000,
    sessions: 1000,
    messages: 100_000,
    bytes: 1 << 30,
};

/// No limit on a page.
pub(crate) const ALL: ReadLimit = ReadLimit {
    messages: usize::MAX,
    bytes: usize::MAX,
};

pub(crate) fn name(text: &str) -> UserName {
    text.parse().unwrap()
}

pub(crate) fn token(text: &str) -> SessionToken {
    text.parse().unwrap()
}

/// Returns an anonymous message.
pub(crate) fn text(to: &str, text: &str) -> Append {
    Append {
        to: name(to),
        sender: None,
        allow_anonymous: true,
        time_ms: 1,
        text: ByteString::from(text),
        send_id: None,
        refusal: None,
    }
}

/// Returns a message of a session.
/// Sends a message of the connection with this fence.
pub(crate) fn append_fenced(store: &dyn Store, append: Append, fence: &Fence) -> Pending<Outcome> {
    let (send, outcome) = QueuedSend::new(append, None);
    store.append_all(Burst {
        fence: fence.clone(),
        sends: vec![send],
    });
    outcome
}

pub(crate) fn send(session: &str, id: u32, to: &str, content: &str) -> Append {
    let send_id = SendId {
        session: token(session),
        id: RequestId::new(id).unwrap(),
        in_order: true,
        from: None,
    };
    Append {
        send_id: Some(send_id),
        ..text(to, content)
    }
}

pub(crate) async fn create(store: &dyn Store, user: &str) -> Account {
    assert_eq!(store.create(&name(user), None).await, Ok(Created::Created));
    store
        .account(&name(user))
        .await
        .unwrap()
        .expect("it was just created")
        .account
}

/// Stores a message and returns its number.
pub(crate) async fn stored(store: &dyn Store, append: Append) -> Sequence {
    number(store.append(append).await)
}

/// Returns the number of a message that was stored.
#[track_caller]
pub(crate) fn number(outcome: Result<Outcome, Unavailable>) -> Sequence {
    match outcome {
        Ok(Outcome::Stored(sequence)) => sequence,
        other => panic!("not stored: {other:?}"),
    }
}

pub(crate) async fn read(store: &dyn Store, account: &Account) -> Vec<Arc<Message>> {
    let page = store.read(account, Position::default(), ALL).await.unwrap();
    assert!(page.complete);
    page.messages
}

pub(crate) async fn texts(store: &dyn Store, account: &Account) -> Vec<String> {
    read(store, account)
        .await
        .iter()
        .map(|message| message.text.to_string())
        .collect()
}

pub(crate) async fn queued(store: &dyn Store, account: &Account) -> u64 {
    store
        .receive(account)
        .await
        .unwrap()
        .expect("the account is there")
        .queued()
}

#[track_caller]
fn check<T: PartialEq + Debug>(outcome: Result<T, Unavailable>, expected: T) {
    assert_eq!(outcome, Ok(expected));
}

pub(crate) async fn account_is_created_once(home: &dyn Home) {
    let store = home.open(WIDE);
    assert!(store.account(&name("bob")).await.unwrap().is_none());
    let hash = PasswordHash::new("$hash");
    check(
        store.create(&name("bob"), Some(hash.clone())).await,
        Created::Created,
    );
    check(store.create(&name("bob"), None).await, Created::Exists);
    let entry = store.account(&name("bob")).await.unwrap().unwrap();
    assert_eq!(
        (entry.account.name, entry.password),
        (name("bob"), Some(hash))
    );
}

pub(crate) async fn account_over_the_limit_is_refused(home: &dyn Home) {
    let store = home.open(Limits {
        accounts: 2,
        ..WIDE
    });
    let a = create(&*store, "a").await;
    create(&*store, "b").await;
    check(store.create(&name("c"), None).await, Created::TooMany);
    check(store.create(&name("a"), None).await, Created::Exists);
    check(store.delete(&a).await, true);
    check(store.create(&name("c"), None).await, Created::Created);
}

pub(crate) async fn password_changes_only_if_the_old_one_matches(home: &dyn Home) {
    let (one, two) = (PasswordHash::new("one"), PasswordHash::new("two"));
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    check(
        store
            .set_password(&bob, Some(two.clone()), one.clone())
            .await,
        false,
    );
    check(store.set_password(&bob, None, one.clone()).await, true);
    check(store.set_password(&bob, None, two.clone()).await, false);
    check(store.set_password(&bob, Some(one), two.clone()).await, true);
    store.close().await.unwrap();
    let store = home.open(WIDE);
    assert_eq!(
        store.account(&name("bob")).await.unwrap().unwrap().password,
        Some(two)
    );
    let other = Account {
        incarnation: bob.incarnation + 1,
        ..bob
    };
    check(
        store
            .set_password(&other, None, PasswordHash::new("x"))
            .await,
        false,
    );
}

pub(crate) async fn names_are_paged_in_byte_order(home: &dyn Home) {
    let store = home.open(WIDE);
    let all = ["Zoe", "a", "b", "ba", "ä"];
    for user in ["b", "ä", "Zoe", "ba", "a"] {
        create(&*store, user).await;
    }
    check(store.names(None, 99).await, all.map(name).to_vec());
    check(store.names(None, 2).await, vec![name("Zoe"), name("a")]);
    check(
        store.names(Some(&name("a")), 2).await,
        vec![name("b"), name("ba")],
    );
    check(store.names(Some(&name("aa")), 1).await, vec![name("b")]);
    check(store.names(Some(&name("ä")), 1).await, vec![]);
}

pub(crate) async fn messages_are_read_in_order_of_their_numbers(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let amy = create(&*store, "amy").await;
    stored(
        &*store,
        Append {
            sender: Some(amy.clone()),
            time_ms: 77,
            ..text("bob", "a,b\n")
        },
    )
    .await;
    stored(&*store, text("amy", "elsewhere")).await;
    stored(&*store, text("bob", "")).await;
    stored(&*store, text("bob", "xyz")).await;
    let messages = read(&*store, &bob).await;
    let first = &messages[0];
    assert_eq!(
        (first.sender.clone(), first.time_ms, &*first.text),
        (Some(name("amy")), 77, "a,b\n")
    );
    assert_eq!(messages[1].sender, None);
    assert!(messages.is_sorted_by_key(|m| m.position.sequence));
    let sums: Vec<_> = messages
        .iter()
        .map(|m| (m.position.messages, m.position.bytes))
        .collect();
    assert_eq!(sums, [(1, 4), (2, 4), (3, 7)]);
}

pub(crate) async fn page_is_bounded_and_has_at_least_one_message(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    for content in ["12345", "1", "2", "3"] {
        stored(&*store, text("bob", content)).await;
    }
    let page = async |after, messages, bytes| {
        let page = store
            .read(&bob, after, ReadLimit { messages, bytes })
            .await
            .unwrap();
        let last = page.messages.last().map(|m| m.position);
        (page.messages.len(), page.complete, last.unwrap_or(after))
    };
    let (count, complete, after) = page(Position::default(), 10, 2).await;
    assert_eq!((count, complete), (1, false));
    let (count, complete, after) = page(after, 10, 2).await;
    assert_eq!((count, complete), (2, false));
    let (count, complete, after) = page(after, 1, 10).await;
    assert_eq!((count, complete), (1, true));
    assert_eq!(page(after, 10, 10).await, (0, true, after));
    let (count, complete, _) = page(Position::default(), 2, 100).await;
    assert_eq!((count, complete), (2, false));
}

pub(crate) async fn send_is_refused_for_its_sender_or_recipient(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let refused = |code| Outcome::Refused(code);
    check(
        store.append(text("amy", "x")).await,
        refused(Code::NoSuchUser),
    );
    let append = Append {
        refusal: Some(Code::RateLimited),
        ..text("amy", "x")
    };
    check(store.append(append).await, refused(Code::RateLimited));
    let append = Append {
        allow_anonymous: false,
        ..text("bob", "x")
    };
    check(store.append(append).await, refused(Code::Denied));
    assert_eq!(texts(&*store, &bob).await, [""; 0]);
}

pub(crate) async fn deleted_sender_is_anonymous_or_denied(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let amy = create(&*store, "amy").await;
    check(store.delete(&amy).await, true);
    create(&*store, "amy").await;
    let from_amy = |allow_anonymous| Append {
        sender: Some(amy.clone()),
        allow_anonymous,
        ..text("bob", "x")
    };
    check(
        store.append(from_amy(false)).await,
        Outcome::Refused(Code::Denied),
    );
    stored(&*store, from_amy(true)).await;
    assert_eq!(read(&*store, &bob).await[0].sender, None);
}

pub(crate) async fn full_queue_refuses_until_an_acknowledgement(home: &dyn Home) {
    let store = home.open(Limits {
        messages: 3,
        bytes: 10,
        ..WIDE
    });
    let full = Outcome::Refused(Code::QueueFull);
    let bob = create(&*store, "bob").await;
    for content in ["1", "2", "3"] {
        stored(&*store, text("bob", content)).await;
    }
    check(store.append(text("bob", "4")).await, full);
    let messages = read(&*store, &bob).await;
    store.acknowledge(&bob, messages[1].position);
    assert_eq!(queued(&*store, &bob).await, 1);
    check(store.append(text("bob", "1234567890")).await, full);
    stored(&*store, text("bob", "123456789")).await;
    check(store.append(text("bob", "1")).await, full);
    assert_eq!(queued(&*store, &bob).await, 2);
}

pub(crate) async fn acknowledgement_releases_up_to_its_position(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    for content in ["1", "2", "3"] {
        stored(&*store, text("bob", content)).await;
    }
    let messages = read(&*store, &bob).await;
    store.acknowledge(&bob, messages[1].position);
    store.acknowledge(&bob, messages[0].position);
    let receiver = store.receive(&bob).await.unwrap().unwrap();
    assert_eq!(
        (receiver.queued(), receiver.cursor()),
        (1, messages[1].position)
    );
    store.acknowledge(&bob, messages[0].position);
    // A crash may undo an acknowledgement; a close does not.
    store.close().await.unwrap();
    let store = home.open(WIDE);
    let receiver = store.receive(&bob).await.unwrap().unwrap();
    assert_eq!(
        (receiver.queued(), receiver.cursor()),
        (1, messages[1].position)
    );
    assert_eq!(texts(&*store, &bob).await, ["3"]);
}

pub(crate) async fn recreated_account_inherits_nothing(home: &dyn Home) {
    let store = home.open(WIDE);
    let former = create(&*store, "bob").await;
    stored(&*store, text("bob", "old")).await;
    stored(&*store, text("bob", "old")).await;
    let old = read(&*store, &former).await;
    check(store.delete(&former).await, true);
    check(store.delete(&former).await, false);
    assert!(store.receive(&former).await.unwrap().is_none());
    check(
        store.append(text("bob", "x")).await,
        Outcome::Refused(Code::NoSuchUser),
    );
    let bob = create(&*store, "bob").await;
    assert_ne!(bob, former);
    store.acknowledge(&former, old[1].position);
    stored(&*store, text("bob", "new")).await;
    assert!(store.receive(&former).await.unwrap().is_none());
    assert!(read(&*store, &former).await.is_empty());
    check(store.delete(&former).await, false);
    let messages = read(&*store, &bob).await;
    assert_eq!(
        messages.iter().map(|m| &*m.text).collect::<Vec<_>>(),
        ["new"]
    );
    assert!(messages[0].position.sequence > old[1].position.sequence);
    assert_eq!(
        (messages[0].position.messages, messages[0].position.bytes),
        (1, 3)
    );
}

pub(crate) async fn numbers_continue_after_a_reopen(home: &dyn Home) {
    let mut highest = Sequence(0);
    for round in 0..4 {
        let store = home.open(WIDE);
        let bob = match store.account(&name("bob")).await.unwrap() {
            Some(entry) => entry.account,
            None => create(&*store, "bob").await,
        };
        stored(&*store, text("bob", "x")).await;
        let messages = read(&*store, &bob).await;
        assert_eq!(messages.len(), 1);
        assert!(messages[0].position.sequence > highest, "round {round}");
        highest = messages[0].position.sequence;
        store.acknowledge(&bob, messages[0].position);
        if round % 2 == 0 {
            check(store.delete(&bob).await, true);
        }
        store.close().await.unwrap();
    }
}

pub(crate) async fn repeat_gets_the_same_outcome(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    check(store.open_session(&token("s"), None).await, true);
    let unknown = Outcome::Refused(Code::NoSuchUser);
    // The second arrives while the first is in flight.
    let (first, second) = (
        store.append(send("s", 5, "bob", "x")),
        store.append(send("s", 5, "bob", "x")),
    );
    let five = Outcome::Stored(number(first.await));
    check(second.await, five);
    check(store.append(send("s", 6, "amy", "y")).await, unknown);
    store.close_session(&token("s"));
    let amy = create(&*store, "amy").await;
    for reopened in [false, true] {
        // A repeat is recognized before any check.
        let append = Append {
            refusal: Some(Code::TooLarge),
            ..send("s", 5, "bob", "x")
        };
        check(store.append(append).await, five);
        check(store.append(send("s", 6, "amy", "y")).await, unknown);
        assert_eq!(texts(&*store, &bob).await, ["x"], "reopened: {reopened}");
    }
    store.close().await.unwrap();
    let store = home.open(WIDE);
    check(store.append(send("s", 5, "bob", "x")).await, five);
    check(store.append(send("s", 6, "amy", "y")).await, unknown);
    number(store.append(send("s", 7, "amy", "z")).await);
    assert_eq!(texts(&*store, &bob).await, ["x"]);
    assert_eq!(
        Outcome::Stored(read(&*store, &bob).await[0].position.sequence),
        five
    );
    assert_eq!(texts(&*store, &amy).await, ["z"]);
}

pub(crate) async fn skipped_or_expired_id_is_refused(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    check(store.open_session(&token("s"), None).await, true);
    stored(&*store, send("s", 10, "bob", "ten")).await;
    stored(&*store, send("s", 12, "bob", "twelve")).await;
    for id in [1, 9, 11] {
        let outcome = store.append(send("s", id, "bob", "no")).await;
        check(outcome, Outcome::Refused(Code::BadRequest));
    }
    assert_eq!(texts(&*store, &bob).await, ["ten", "twelve"]);
}

pub(crate) async fn last_1024_outcomes_of_a_session_are_remembered(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let sends: Vec<_> = (1..=1100)
        .map(|id| store.append(send("s", id, "bob", "x")))
        .collect();
    for pending in sends {
        number(pending.await);
    }
    store.close().await.unwrap();
    let store = home.open(WIDE);
    number(store.append(send("s", 77, "bob", "x")).await);
    number(store.append(send("s", 1100, "bob", "x")).await);
    check(
        store.append(send("s", 76, "bob", "x")).await,
        Outcome::Refused(Code::BadRequest),
    );
    assert_eq!(texts(&*store, &bob).await.len(), 1100);
}

pub(crate) async fn messages_of_one_caller_keep_their_order(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let sends: Vec<_> = (0..5000)
        .map(|n| store.append(text("bob", &n.to_string())))
        .collect();
    let mut numbers = Vec::new();
    for pending in sends {
        numbers.push(number(pending.await));
    }
    let expected: Vec<_> = (0..5000).map(|n| n.to_string()).collect();
    assert_eq!(texts(&*store, &bob).await, expected);
    let read = read(&*store, &bob).await;
    assert!(
        read.iter()
            .map(|message| message.position.sequence)
            .eq(numbers),
        "each answer has its number"
    );
}

pub(crate) async fn closed_fence_stores_nothing(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let fence = Fence::default();
    fence.close();
    let late = append_fenced(&*store, send("s", 1, "bob", "x"), &fence);
    assert_eq!(late.await, Err(Unavailable));
    assert_eq!(texts(&*store, &bob).await, [""; 0]);
    number(store.append(send("s", 1, "bob", "x")).await);
}

pub(crate) async fn session_over_the_limit_evicts_none(home: &dyn Home) {
    let store = home.open(Limits {
        sessions: 2,
        ..WIDE
    });
    let bob = create(&*store, "bob").await;
    check(store.open_session(&token("a"), None).await, true);
    check(store.open_session(&token("b"), None).await, true);
    stored(&*store, send("a", 1, "bob", "x")).await;
    store.close_session(&token("a"));
    check(store.open_session(&token("c"), None).await, false);
    check(
        store.append(send("c", 1, "bob", "y")).await,
        Outcome::Refused(Code::TooMany),
    );
    check(store.open_session(&token("a"), None).await, true);
    number(store.append(send("a", 1, "bob", "x")).await);
    assert_eq!(texts(&*store, &bob).await, ["x"]);
}

pub(crate) async fn session_opens_after_earlier_appends(home: &dyn Home) {
    let store = home.open(WIDE);
    create(&*store, "bob").await;
    let sends: Vec<_> = (1..=100)
        .map(|id| store.append(send("s", id, "bob", "x")))
        .collect();
    check(store.open_session(&token("s"), None).await, true);
    for mut pending in sends {
        assert!(futures::poll!(&mut pending).is_ready());
    }
}

pub(crate) async fn following_subscription_gets_new_messages(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    stored(&*store, text("bob", "before")).await;
    let mut receiver = store.receive(&bob).await.unwrap().unwrap();
    assert_eq!((receiver.queued(), receiver.account()), (1, &bob));
    assert_eq!(receiver.next_event(), Some(Event::Lagged));
    receiver.follow();
    stored(&*store, text("bob", "after")).await;
    stored(&*store, text("bob", "last")).await;
    let mut got = Vec::new();
    while got.len() < 2 {
        let Event::Appended(messages) = next_event(&mut receiver).await else {
            panic!("messages")
        };
        got.extend(messages);
    }
    assert_eq!(
        got.iter().map(|message| &*message.text).collect::<Vec<_>>(),
        ["after", "last"]
    );
    assert_eq!(got, read(&*store, &bob).await[1..]);
    assert_eq!(receiver.next_event(), None);
}

pub(crate) async fn slow_subscription_lags_and_misses_nothing(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let mut receiver = store.receive(&bob).await.unwrap().unwrap();
    receiver.follow();
    for n in 0..=BUFFERED_MESSAGES_MAX {
        stored(&*store, text("bob", &n.to_string())).await;
    }
    while receiver.is_following() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(next_event(&mut receiver).await, Event::Lagged);
    assert_eq!(texts(&*store, &bob).await.len(), BUFFERED_MESSAGES_MAX + 1);
}

/// A former subscriber may acknowledge messages that its successor reads.
pub(crate) async fn page_behind_the_cursor_names_its_start(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let mut last = Position::default();
    for n in 0..4 {
        stored(&*store, text("bob", &n.to_string())).await;
    }
    let messages = read(&*store, &bob).await;
    for message in &messages {
        assert!(message.position.follows(last), "{message:?} after {last:?}");
        last = message.position;
    }
    let receiver = store.receive(&bob).await.unwrap().unwrap();
    store.acknowledge(&bob, messages[1].position);
    let latter = store.receive(&bob).await.unwrap().unwrap();
    assert_eq!(latter.cursor(), messages[1].position);
    // The acknowledgement is durable once a later append is.
    create(&*store, "amy").await;
    stored(&*store, text("amy", "x")).await;
    let page = store.read(&bob, receiver.cursor(), ALL).await.unwrap();
    assert_eq!(page.messages, messages[2..]);
    let start = page
        .starts_after
        .expect("a page that starts after the requested position");
    assert!(start.sequence >= messages[1].position.sequence);
    assert!(messages[2].position.follows(start));
    let page = store.read(&bob, messages[2].position, ALL).await.unwrap();
    assert_eq!((page.starts_after, &*page.messages), (None, &messages[3..]));
}

pub(crate) async fn later_receiver_takes_over(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let mut former = store.receive(&bob).await.unwrap().unwrap();
    former.follow();
    let mut latter = store.receive(&bob).await.unwrap().unwrap();
    latter.follow();
    assert_eq!(next_event(&mut former).await, Event::Ended(End::TakenOver));
    drop(former);
    stored(&*store, text("bob", "x")).await;
    assert!(matches!(next_event(&mut latter).await, Event::Appended(_)));
}

pub(crate) async fn receive_if_free_does_not_take_over(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    stored(&*store, text("bob", "x")).await;
    let mut former = store.receive(&bob).await.unwrap().unwrap();
    assert!(store.receive_if_free(&bob).await.unwrap().is_none());
    former.follow();
    stored(&*store, text("bob", "y")).await;
    assert!(matches!(next_event(&mut former).await, Event::Appended(_)));
    drop(former);
    let latter = store
        .receive_if_free(&bob)
        .await
        .unwrap()
        .expect("no other subscription");
    assert_eq!(latter.queued(), 2);
    check(store.delete(&bob).await, true);
    assert!(store.receive_if_free(&bob).await.unwrap().is_none());
}

pub(crate) async fn acknowledged_messages_are_not_received_again(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    create(&*store, "eve").await;
    for round in 0..100 {
        stored(&*store, text("bob", "x")).await;
        let former = store
            .receive_if_free(&bob)
            .await
            .unwrap()
            .expect("no other subscription");
        let page = store.read(&bob, former.cursor(), ALL).await.unwrap();
        let others: Vec<_> = (0..500).map(|_| store.append(text("eve", "y"))).collect();
        let latter = store.receive_if_free(&bob);
        // At a varying moment of its decision, which the other appends delay.
        std::thread::sleep(std::time::Duration::from_micros(10 * round));
        store.acknowledge(&bob, page.messages.last().unwrap().position);
        drop(former);
        // It was decided before or after the end of the former subscription.
        let latter = match latter.await.unwrap() {
            Some(latter) => latter,
            None => store
                .receive_if_free(&bob)
                .await
                .unwrap()
                .expect("no other subscription"),
        };
        assert_eq!(latter.queued(), 0);
        for other in others {
            number(other.await);
        }
    }
}

pub(crate) async fn deletion_ends_the_subscription(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let mut receiver = store.receive(&bob).await.unwrap().unwrap();
    receiver.follow();
    check(store.delete(&bob).await, true);
    assert_eq!(next_event(&mut receiver).await, Event::Ended(End::Deleted));
    create(&*store, "bob").await;
    assert_eq!(receiver.next_event(), Some(Event::Ended(End::Deleted)));
}

pub(crate) async fn permit_is_released_with_its_outcome(home: &dyn Home) {
    let store = home.open(WIDE);
    create(&*store, "bob").await;
    let room = Arc::new(tokio::sync::Semaphore::new(1));
    for _ in 0..10 {
        let permit = Arc::clone(&room).acquire_owned().await.unwrap();
        let (send, _) = QueuedSend::new(text("bob", "x"), Some(permit));
        store.append_all(Burst {
            fence: Fence::default(),
            sends: vec![send],
        });
    }
}

pub(crate) async fn dropped_append_is_stored(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    drop(store.append(text("bob", "x")));
    assert_eq!(queued(&*store, &bob).await, 1);
}

pub(crate) async fn close_decides_pending_operations_and_refuses_later_ones(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let sends: Vec<_> = (0..100).map(|_| store.append(text("bob", "x"))).collect();
    let closed = store.close();
    let late = store.append(send("s", 1, "bob", "late"));
    closed.await.unwrap();
    for pending in sends {
        number(pending.await);
    }
    assert_eq!(late.await, Err(Unavailable));
    assert_eq!(store.append(text("bob", "late")).await, Err(Unavailable));
    assert_eq!(store.create(&name("amy"), None).await, Err(Unavailable));
    assert_eq!(store.delete(&bob).await, Err(Unavailable));
    assert_eq!(
        store.open_session(&token("s"), None).await,
        Err(Unavailable)
    );
    assert_eq!(
        store.read(&bob, Position::default(), ALL).await,
        Err(Unavailable)
    );
    assert!(store.receive(&bob).await.is_err());
    assert!(store.account(&name("bob")).await.is_err());
    assert!(store.names(None, 1).await.is_err());
    assert_eq!(store.close().await, Err(Unavailable));
    store.acknowledge(&bob, Position::default());
    store.close_session(&token("s"));
    let store = home.open(WIDE);
    assert_eq!(texts(&*store, &bob).await.len(), 100);
}

pub(crate) async fn answered_sends_survive_a_drop_without_close(home: &dyn Home) {
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    let first = stored(&*store, send("s", 1, "bob", "x")).await;
    drop(store);
    let store = home.open(WIDE);
    check(
        store.append(send("s", 1, "bob", "x")).await,
        Outcome::Stored(first),
    );
    assert_eq!(texts(&*store, &bob).await, ["x"]);
}

/// Returns the next event. Panics if none comes in time.
pub(crate) async fn next_event(receiver: &mut Subscription) -> Event {
    let event = std::future::poll_fn(|cx| receiver.poll_event(cx));
    tokio::time::timeout(EVENT_TIMEOUT, event)
        .await
        .expect("an event in time")
}

/// Generates a test for each function of the suite; `$home` makes its empty [`Home`].
macro_rules! contract_suite {
    ($home:expr) => {
        crate::store::contract::contract_suite! { $home;
            account_is_created_once
            account_over_the_limit_is_refused
            password_changes_only_if_the_old_one_matches
            names_are_paged_in_byte_order
            messages_are_read_in_order_of_their_numbers
            page_is_bounded_and_has_at_least_one_message
            send_is_refused_for_its_sender_or_recipient
            deleted_sender_is_anonymous_or_denied
            full_queue_refuses_until_an_acknowledgement
            acknowledgement_releases_up_to_its_position
            recreated_account_inherits_nothing
            numbers_continue_after_a_reopen
            repeat_gets_the_same_outcome
            skipped_or_expired_id_is_refused
            last_1024_outcomes_of_a_session_are_remembered
            messages_of_one_caller_keep_their_order
            closed_fence_stores_nothing
            session_over_the_limit_evicts_none
            session_opens_after_earlier_appends
            following_subscription_gets_new_messages
            slow_subscription_lags_and_misses_nothing
            page_behind_the_cursor_names_its_start
            later_receiver_takes_over
            receive_if_free_does_not_take_over
            acknowledged_messages_are_not_received_again
            deletion_ends_the_subscription
            permit_is_released_with_its_outcome
            dropped_append_is_stored
            close_decides_pending_operations_and_refuses_later_ones
            answered_sends_survive_a_drop_without_close
        }
    };
    ($home:expr; $($test:ident)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                crate::store::contract::$test(&$home).await;
            }
        )*
    };
}
pub(crate) use contract_suite;
