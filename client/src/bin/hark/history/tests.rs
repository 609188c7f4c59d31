use std::time::{Duration, Instant};

use hark_client::journal::SendJournal as _;
use hark_protocol::message::Gap;
use hark_protocol::{Delivery, RoomName, Sequence, UserName};

use super::*;

fn user(name: &str) -> UserName {
    name.parse().unwrap()
}

fn room(name: &str) -> RoomName {
    name.parse().unwrap()
}

fn delivery(sender: &str, n: u64, text: &str) -> Delivery {
    Delivery {
        sequence: Sequence(n),
        sender: Some(user(sender)),
        time_ms: 1_800_000_000_000 + n,
        text: text.into(),
    }
}

fn ann() -> History {
    let file = HistoryFile::in_memory().unwrap();
    file.of("here:1", &user("ann")).unwrap()
}

impl History {
    fn receive(&self, log: Option<&RoomName>, delivery: &Delivery) -> Filed {
        let received = Received {
            room: log,
            delivery,
        };
        self.add_received(&[received]).unwrap().remove(0)
    }

    fn texts(&self, conversation: &Conversation) -> Vec<String> {
        let page = self.page(conversation, None, 100).unwrap();
        page.into_iter().map(|entry| entry.text).collect()
    }

    fn summary(&self, conversation: &Conversation) -> Summary {
        let all = self.conversations().unwrap();
        all.into_iter()
            .find(|summary| summary.conversation == *conversation)
            .unwrap()
    }
}

#[test]
fn pages_reach_back_to_the_first_entry() {
    let history = ann();
    for n in 1..=25 {
        history.receive(None, &delivery("bob", n, &format!("text {n}")));
    }
    let bob = Conversation::User(user("bob"));
    let (mut before, mut texts) = (None, Vec::new());
    loop {
        let page = history.page(&bob, before, 10).unwrap();
        let Some(oldest) = page.last() else { break };
        before = Some(oldest.id);
        texts.extend(page.into_iter().map(|entry| entry.text));
    }
    let expected: Vec<_> = (1..=25).rev().map(|n| format!("text {n}")).collect();
    assert_eq!(texts, expected);
    let first = history.page_after(&bob, EntryId::START, 2).unwrap();
    assert_eq!(first[1].text, "text 2");
    assert_eq!(first[1].sender, Some(user("bob")));
    assert_eq!(first[1].state, EntryState::Received);
}

#[test]
fn message_is_added_once() {
    let history = ann();
    let message = delivery("bob", 7, "hello");
    assert!(history.receive(None, &message).is_new);
    let again = history.receive(None, &message);
    assert!(!again.is_new);
    // A new store may use the number again, at another time.
    let other = Delivery {
        time_ms: 1,
        ..message.clone()
    };
    assert!(history.receive(None, &other).is_new);
    // Each log has its own numbers.
    assert!(history.receive(Some(&room("#team")), &message).is_new);
}

#[test]
fn unread_messages_and_mentions_are_counted() {
    let history = ann();
    let (team, conversation) = (room("#team"), Conversation::Room(room("#team")));
    let first = history.receive(Some(&team), &delivery("bob", 1, "hello"));
    history.receive(Some(&team), &delivery("bob", 2, "Ann: lunch?"));
    history.receive(Some(&team), &delivery("ann", 3, "yes"));
    history.receive(Some(&team), &delivery("bob", 4, "the annual report"));
    let summary = history.summary(&conversation);
    assert_eq!((summary.unread, summary.mentions), (3, 1));
    history.mark_read(&conversation, first.id).unwrap();
    assert_eq!(history.summary(&conversation).unread, 2);
    history.mark_seen(&team, Sequence(3)).unwrap();
    history.mark_read(&conversation, first.id).unwrap();
    let summary = history.summary(&conversation);
    assert_eq!((summary.unread, summary.mentions), (1, 0));
    assert_eq!(summary.last.text, "the annual report");
}

#[test]
fn own_message_keeps_its_outcome() {
    let history = ann();
    let bob = user("bob");
    let outcomes = [
        (Outcome::Stored(None), EntryState::Stored),
        (
            Outcome::Refused("no such user".to_owned()),
            EntryState::Refused("no such user".to_owned()),
        ),
        (
            Outcome::Unknown("no answer".to_owned()),
            EntryState::Unknown("no answer".to_owned()),
        ),
    ];
    for (outcome, state) in outcomes {
        let (conversation, id) = history.add_pending(&bob, "hello", 5).unwrap();
        let newest = |history: &History| history.page(&conversation, None, 1).unwrap().remove(0);
        assert_eq!(newest(&history).state, EntryState::Pending);
        assert_eq!(history.file.resolve(id, &outcome).unwrap(), None);
        assert_eq!(newest(&history).state, state);
        assert_eq!(newest(&history).sender, Some(user("ann")));
    }
}

#[test]
fn own_message_sent_back_by_a_room_is_one() {
    let history = ann();
    let team = room("#team");
    let said = |n| delivery("ann", n, "hello");
    // The outcome is known first.
    let (conversation, id) = history.add_pending(&user("#team"), "hello", 5).unwrap();
    history
        .file
        .resolve(id, &Outcome::Stored(Some(Sequence(1))))
        .unwrap();
    let filed = history.receive(Some(&team), &said(1));
    assert_eq!((filed.id, filed.is_new), (id, false));
    // The message is sent back first.
    let (_, id) = history.add_pending(&user("#team"), "hello", 5).unwrap();
    let filed = history.receive(Some(&team), &said(2));
    assert!(filed.is_new);
    let removed = history
        .file
        .resolve(id, &Outcome::Stored(Some(Sequence(2))))
        .unwrap();
    assert_eq!(removed, Some(filed.id));
    let page = history.page(&conversation, None, 10).unwrap();
    let times: Vec<_> = page.iter().map(|entry| entry.time_ms).collect();
    assert_eq!(times, [said(2).time_ms, said(1).time_ms]);
    // Both are repeated, because the acknowledgement was lost.
    assert!(!history.receive(Some(&team), &said(1)).is_new);
    assert!(!history.receive(Some(&team), &said(2)).is_new);
}

#[test]
fn room_of_two_belongs_to_the_other_user() {
    let history = ann();
    let talk = room("#=AAAAAAAAAAAAAAAAAAAAAAAAAA");
    let bob = Conversation::User(user("bob"));
    history.receive(None, &delivery("bob", 1, "one"));
    // Sent by another device of ann, so the other user is unknown.
    let filed = history.receive(Some(&talk), &delivery("ann", 2, "two"));
    assert_eq!(filed.conversation, Conversation::Room(talk.clone()));
    let filed = history.receive(Some(&talk), &delivery("bob", 3, "three"));
    assert_eq!(filed.conversation, bob);
    history.receive(Some(&talk), &delivery("ann", 4, "four"));
    assert_eq!(history.texts(&bob), ["four", "three", "two", "one"]);
    assert_eq!(history.conversations().unwrap().len(), 1);
    assert_eq!(history.other_user(&talk).unwrap(), Some(user("bob")));
    assert_eq!(history.room_with(&user("bob")).unwrap(), Some(talk));
}

#[test]
fn unsent_messages_are_adopted_after_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    let open = || HistoryFile::open(&path).unwrap().of("here:1", &user("ann"));
    let (first, second) = (open().unwrap(), open().unwrap());
    let (team, bob) = (user("#team"), user("bob"));
    let (_, written) = first.add_pending(&team, "written", 5).unwrap();
    first.add_pending(&bob, "unsent", 6).unwrap();
    let other = first.file.of("here:1", &user("cid")).unwrap();
    other.add_pending(&bob, "of another user", 7).unwrap();
    second.add_pending(&bob, "of the second", 8).unwrap();
    assert!(first.file.begin(written.tag()).unwrap());
    assert_eq!(second.adopt().unwrap(), Adopted::default());
    drop((first, other));
    let adopted = second.adopt().unwrap();
    let texts: Vec<_> = adopted.unsent.iter().map(|unsent| &*unsent.text).collect();
    assert_eq!((texts, adopted.unknown), (vec!["unsent"], 1));
    assert_eq!(adopted.unsent[0].recipient, bob);
    let page = second.page(&Conversation::Room(room("#team")), None, 1);
    assert!(matches!(page.unwrap()[0].state, EntryState::Unknown(_)));
    assert_eq!(second.adopt().unwrap(), Adopted::default());
    let other = second.file.of("here:1", &user("cid")).unwrap();
    assert_eq!(other.adopt().unwrap().unsent.len(), 1);
    // A run without messages leaves nothing behind either.
    let third = open().unwrap();
    let (_, id) = third.add_pending(&bob, "sent", 9).unwrap();
    third.file.resolve(id, &Outcome::Stored(None)).unwrap();
    drop(third);
    assert_eq!(second.adopt().unwrap(), Adopted::default());
    // Only the run of the second process is left.
    let runs = std::fs::read_dir(directory.path().join("history.runs")).unwrap();
    assert_eq!(runs.count(), 1);
}

#[test]
fn message_is_withdrawn_before_it_is_written() {
    let history = ann();
    let (conversation, first) = history.add_pending(&user("bob"), "one", 5).unwrap();
    let (_, second) = history.add_pending(&user("bob"), "two", 6).unwrap();
    let file = &history.file;
    assert!(file.begin(first.tag()).unwrap());
    assert_eq!(file.withdraw(first).unwrap(), None);
    assert_eq!(file.withdraw(second).unwrap().as_deref(), Some("two"));
    assert!(!file.begin(second.tag()).unwrap());
    assert_eq!(history.texts(&conversation), ["one"]);
}

#[test]
fn missing_messages_are_an_entry() {
    let history = ann();
    let gap = Gap {
        log: Some(room("#team")),
        from: Sequence(3),
        to: Sequence(9),
        count: 4,
    };
    assert!(history.add_missing(&gap, 5).unwrap().is_new);
    assert!(!history.add_missing(&gap, 6).unwrap().is_new);
    let page = history.page(&Conversation::Room(room("#team")), None, 9);
    assert_eq!(page.unwrap()[0].state, EntryState::Missing(4));
}

#[test]
fn ignored_user_is_filed_as_read() {
    let history = ann();
    history.ignore(&user("bob"), true).unwrap();
    history.ignore(&user("bob"), true).unwrap();
    assert_eq!(history.ignored().unwrap(), [user("bob")]);
    let team = room("#team");
    let filed = history.receive(Some(&team), &delivery("bob", 1, "ann?"));
    assert!(filed.is_ignored && !filed.is_mention);
    assert!(
        !history
            .receive(Some(&team), &delivery("cid", 2, "hello"))
            .is_ignored
    );
    let summary = history.summary(&Conversation::Room(team));
    assert_eq!((summary.unread, summary.mentions), (1, 0));
    history.ignore(&user("bob"), false).unwrap();
    assert!(
        !history
            .receive(None, &delivery("bob", 3, "back"))
            .is_ignored
    );
}

#[test]
fn search_ignores_case() {
    let history = ann();
    history.receive(None, &delivery("bob", 1, "Grüße aus KÖLN"));
    history.receive(Some(&room("#team")), &delivery("bob", 2, "köln is far"));
    history.receive(None, &delivery("bob", 3, "elsewhere"));
    let found = history.search("Köln", None, None, 10).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(found[0].0, Conversation::Room(room("#team")));
    let bob = Conversation::User(user("bob"));
    let found = history.search("KÖLN", Some(&bob), None, 10).unwrap();
    assert_eq!(found[0].1.text, "Grüße aus KÖLN");
    let none = history.search("köln", None, Some(found[0].1.id), 10);
    assert_eq!(none.unwrap(), []);
}

#[test]
fn users_and_servers_are_separate() {
    let file = HistoryFile::in_memory().unwrap();
    let of = |servers, name| file.of(servers, &user(name)).unwrap();
    of("a:1,b:1", "ann").receive(None, &delivery("bob", 1, "hello"));
    assert_eq!(of("b:1,a:1", "ann").conversations().unwrap().len(), 1);
    assert_eq!(of("a:1", "ann").conversations().unwrap(), []);
    assert_eq!(of("a:1,b:1", "bob").conversations().unwrap(), []);
}

#[test]
fn history_in_memory_keeps_the_newest() {
    let history = ann();
    let all: Vec<_> = (1..=MEMORY_ENTRIES_MAX + 500)
        .map(|n| delivery("bob", n, "text"))
        .collect();
    for batch in all.chunks(256) {
        let batch: Vec<_> = batch
            .iter()
            .map(|delivery| Received {
                room: None,
                delivery,
            })
            .collect();
        history.add_received(&batch).unwrap();
    }
    let bob = Conversation::User(user("bob"));
    let first = history.page_after(&bob, EntryId::START, 1).unwrap();
    assert_eq!(first[0].number, Some(Sequence(501)));
    assert_eq!(history.summary(&bob).unread, MEMORY_ENTRIES_MAX);
}

#[test]
fn file_is_private_and_survives() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").join("history.db");
    let open = || HistoryFile::open(&path).unwrap().of("here:1", &user("ann"));
    let history = open().unwrap();
    history.receive(None, &delivery("bob", 1, "hello"));
    #[cfg(unix)]
    for file in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // A second process reads while the first one has the file open.
    assert_eq!(open().unwrap().conversations().unwrap().len(), 1);
    drop(history);
    assert!(
        !open()
            .unwrap()
            .receive(None, &delivery("bob", 1, "hello"))
            .is_new
    );
}

#[test]
fn torn_end_of_the_file_is_undone() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("a.db"), directory.path().join("b.db"));
    let of = |path| HistoryFile::open(path).unwrap().of("here:1", &user("ann"));
    let history = of(&path).unwrap();
    history.receive(None, &delivery("bob", 1, "one"));
    history.receive(None, &delivery("bob", 2, "two"));
    // The files as a crash leaves them, with the last change torn.
    std::fs::copy(&path, &copy).unwrap();
    let log = std::fs::read(directory.path().join("a.db-wal")).unwrap();
    let torn = &log[..log.len() - 1000];
    std::fs::write(directory.path().join("b.db-wal"), torn).unwrap();
    let after = of(&copy).unwrap();
    let bob = Conversation::User(user("bob"));
    assert_eq!(after.texts(&bob), ["one"]);
    assert!(after.receive(None, &delivery("bob", 2, "two")).is_new);
}

#[test]
fn processes_change_one_file_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    let add = |sender: &str, from: u64| {
        let file = HistoryFile::open(&path).unwrap();
        let history = file.of("here:1", &user("ann")).unwrap();
        for n in from..from + 100 {
            history.receive(None, &delivery(sender, n, "text"));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| add("bob", 1));
        scope.spawn(|| add("bob", 51));
    });
    let file = HistoryFile::open(&path).unwrap();
    let history = file.of("here:1", &user("ann")).unwrap();
    assert_eq!(
        history.summary(&Conversation::User(user("bob"))).unread,
        150
    );
}

#[test]
fn large_history_opens_fast() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    let history = HistoryFile::open(&path).unwrap().of("here:1", &user("ann"));
    let history = history.unwrap();
    for n in 0..100 {
        history.receive(
            Some(&room(&format!("#room{n}"))),
            &delivery("bob", 1, "first"),
        );
    }
    let fill = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 99900) \
         INSERT INTO entry (account, conversation, kind, log, number, time_ms, sender, \
         is_mention, text) SELECT account, conversation, kind, log, i + 1, time_ms + i, sender, \
         i % 1000 = 0, 'a text of usual length, as in a chat ' || i FROM n JOIN entry \
         ON id = i % 100 + 1";
    let filled = history.file.change(|change| change.execute(fill, ()));
    assert_eq!(filled.unwrap(), 99_900);
    drop(history);
    let start = Instant::now();
    let file = HistoryFile::open(&path).unwrap();
    let history = file.of("here:1", &user("ann")).unwrap();
    let all = history.conversations().unwrap();
    assert_eq!(all.len(), 100);
    assert_eq!(all.iter().map(|room| room.unread).sum::<u64>(), 100_000);
    history.page(&all[0].conversation, None, 100).unwrap();
    let elapsed = start.elapsed();
    println!("opened 100,000 messages in {elapsed:?}");
    // 50 ms on an idle machine.
    assert!(elapsed < Duration::from_millis(500), "{elapsed:?}");
}
