//! What a folder may look like, and what comes of it: nothing that is missing
//! goes unnoticed, and nothing that is there is started over.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::super::engine::{Batch, Durability, EmbeddedOpener, Fate, Live, MemoryOpener, Opener, Table};
use super::super::{LocalConfig, LocalStore, OpenError, folder, record};
use super::{Memory, config};
use crate::store::contract::{ALL, Home, WIDE, create, name, number, queued, read, stored, text, texts};
use crate::store::{Account, Position, Store, Unavailable};

fn open(path: &Path) -> Result<LocalStore, OpenError> {
    LocalStore::open(path, config(WIDE))
}

fn open_with_loss(path: &Path) -> Result<LocalStore, OpenError> {
    LocalStore::open(path, LocalConfig { accept_data_loss: true, ..config(WIDE) })
}

#[tokio::test]
async fn a_link_in_the_place_of_a_file_that_is_to_be_written_is_not_followed() {
    let home = tempfile::tempdir().unwrap();
    let (store, precious) = (home.path().join("store"), home.path().join("precious"));
    fs::create_dir(&store).unwrap();
    fs::write(&precious, "precious").unwrap();
    std::os::unix::fs::symlink(&precious, store.join("FORMAT.new")).unwrap();
    drop(open(&store).unwrap());
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(fs::symlink_metadata(store.join("FORMAT")).unwrap().is_file());
    drop(open(&store).unwrap());
}

/// A folder as a killed process leaves it, with ten messages for bob.
async fn killed() -> TempDir {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).unwrap();
    create(&store, "bob").await;
    for n in 0..10 {
        stored(&store, text("bob", &n.to_string())).await;
    }
    // What the process would still do at its end must not count.
    let copy = tempfile::tempdir().unwrap();
    copy_folder(home.path(), copy.path());
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_folder(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn journal(home: &Path) -> PathBuf {
    home.join("engine").join("0.jnl")
}

/// The journal, and how long it is without the zeros at its end.
fn read_journal(home: &Path) -> (Vec<u8>, usize) {
    let bytes = fs::read(journal(home)).unwrap();
    let length = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    (bytes, length)
}

async fn bob(store: &LocalStore) -> Account {
    store.account(&name("bob")).await.unwrap().expect("bob is there").account
}

async fn has_all_ten(store: &LocalStore) -> bool {
    match store.account(&name("bob")).await.unwrap() {
        None => false,
        Some(entry) => {
            let expected: Vec<_> = (0..10).map(|n| n.to_string()).collect();
            texts(store, &entry.account).await == expected
        }
    }
}

#[track_caller]
fn check_one_line(error: &OpenError) {
    let line = error.to_string();
    assert!(!line.contains('\n') && line.contains(';'), "{line:?} says what to do in one line");
}

#[tokio::test]
async fn a_killed_process_leaves_everything_that_it_has_answered() {
    let home = killed().await;
    assert!(has_all_ten(&open(home.path()).unwrap()).await);
    // And once more, from the journals that were written anew.
    assert!(has_all_ten(&open(home.path()).unwrap()).await);
}

#[tokio::test]
async fn a_journal_that_is_cut_off_is_noticed() {
    let home = killed().await;
    let (_, length) = read_journal(home.path());
    let file = fs::OpenOptions::new().write(true).open(journal(home.path())).unwrap();
    file.set_len(length as u64 - 1).unwrap();
    let error = open(home.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { lost: Some(1), .. }), "{error:?}");
    check_one_line(&error);
    // It is not forgotten that something is missing.
    assert!(matches!(open(home.path()), Err(OpenError::Damaged { lost: Some(1), .. })));
    let store = open_with_loss(home.path()).unwrap();
    let account = bob(&store).await;
    assert_eq!(queued(&store, &account).await, 9);
    stored(&store, text("bob", "on")).await;
    store.close().await.unwrap();
    drop(store);
    assert_eq!(texts(&open(home.path()).unwrap(), &account).await.last().unwrap(), "on");
}

#[tokio::test]
async fn a_flipped_bit_in_the_journal_is_noticed_wherever_it_is() {
    let home = killed().await;
    let (bytes, length) = read_journal(home.path());
    let mut noticed = 0;
    for at in (0..length).step_by(29) {
        let copy = tempfile::tempdir().unwrap();
        copy_folder(home.path(), copy.path());
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x40;
        fs::write(journal(copy.path()), flipped).unwrap();
        match open(copy.path()) {
            Err(error) => {
                assert!(matches!(error, OpenError::Damaged { lost: Some(1..), .. }), "{error:?}");
                noticed += 1;
                open_with_loss(copy.path()).expect("what is left can be had");
            }
            Ok(store) => assert!(has_all_ten(&store).await, "byte {at} of {length} changed something"),
        }
    }
    assert!(noticed > 10, "only {noticed} were noticed");
}

#[tokio::test]
async fn a_flipped_bit_is_noticed_after_a_close_in_order_too() {
    let home = killed().await;
    open(home.path()).unwrap().close().await.unwrap();
    let (mut bytes, length) = read_journal(home.path());
    bytes[length / 2] ^= 1;
    fs::write(journal(home.path()), bytes).unwrap();
    for _ in 0..2 {
        let error = open(home.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    }
    open_with_loss(home.path()).expect("what is left can be had");
}

#[tokio::test]
async fn an_engine_that_has_gone_is_not_started_over() {
    let home = killed().await;
    fs::remove_dir_all(home.path().join("engine")).unwrap();
    let error = open(home.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { lost: Some(11), .. }), "{error:?}");
    assert!(!home.path().join("engine").exists());
    assert_eq!(open_with_loss(home.path()).unwrap().names(None, 9).await.unwrap(), []);
}

#[tokio::test]
async fn a_count_that_has_gone_or_is_garbled_is_noticed() {
    for garbled in [false, true] {
        let home = killed().await;
        let count = home.path().join("COMMITS");
        if garbled {
            fs::write(&count, [7; 13]).unwrap()
        } else {
            fs::remove_file(&count).unwrap()
        }
        for _ in 0..2 {
            let error = open(home.path()).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
            check_one_line(&error);
        }
        assert!(has_all_ten(&open_with_loss(home.path()).unwrap()).await);
        assert!(has_all_ten(&open(home.path()).unwrap()).await);
    }
}

#[tokio::test]
async fn a_first_start_that_was_interrupted_is_made_up_for() {
    let home = tempfile::tempdir().unwrap();
    drop(folder::Folder::open(home.path()).unwrap());
    fs::write(home.path().join("FORMAT.new"), "ha").unwrap();
    create(&open(home.path()).unwrap(), "bob").await;

    let home = tempfile::tempdir().unwrap();
    drop(folder::Folder::open(home.path()).unwrap());
    fs::create_dir(home.path().join("engine.new")).unwrap();
    fs::write(home.path().join("engine.new").join("0.jnl"), "rest").unwrap();
    create(&open(home.path()).unwrap(), "bob").await;
}

#[tokio::test]
async fn a_store_that_is_open_cannot_be_opened_again() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).unwrap();
    let error = open(home.path()).unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error:?}");
    check_one_line(&error);
    store.close().await.unwrap();
    open(home.path()).expect("it is free when it says that it has closed");
}

#[test]
fn a_folder_of_somebody_else_is_left_alone() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("thesis.txt"), "").unwrap();
    let error = open(home.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore(_)), "{error:?}");
    check_one_line(&error);
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[test]
fn another_format_is_refused_and_so_is_one_that_is_none() {
    let home = tempfile::tempdir().unwrap();
    let format = home.path().join("FORMAT");
    // The first had a record for each message, and the second no numbers of sends.
    for version in [1, 2, 4] {
        fs::write(&format, format!("hark store {version}\n")).unwrap();
        let error = open(home.path()).unwrap_err();
        assert!(matches!(error, OpenError::OtherFormat { found, .. } if found == version), "{error:?}");
        check_one_line(&error);
    }
    for none in ["", "hark store 3", "hark store 0\n", "hork store 3\n", "hark store 99999999999\n"] {
        fs::write(&format, none).unwrap();
        let error = open_with_loss(home.path()).unwrap_err();
        assert!(matches!(error, OpenError::Ruined { .. }), "{none:?}: {error:?}");
        check_one_line(&error);
    }
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_store_without_its_format_is_not_taken_for_something_else() {
    let home = killed().await;
    fs::remove_file(home.path().join("FORMAT")).unwrap();
    let error = open_with_loss(home.path()).unwrap_err();
    assert!(matches!(&error, OpenError::Ruined { what, .. } if what == "FORMAT is gone"), "{error:?}");
    check_one_line(&error);
}

#[tokio::test]
async fn the_engine_is_not_given_a_folder_in_which_it_would_start_over() {
    let inside = |path: &str| {
        let path = Path::new("engine/keyspaces").join(path);
        move |home: &Path| home.join(&path)
    };
    for gone in ["0/current", "0", "1/current", "2/current", "3", "5/tables", "4/v0"].map(inside) {
        let home = killed().await;
        let gone = gone(home.path());
        if gone.is_dir() {
            fs::remove_dir_all(&gone).unwrap()
        } else {
            fs::remove_file(&gone).unwrap()
        }
        let before = fs::read_dir(home.path().join("engine/keyspaces/0")).map(Iterator::count).ok();
        for _ in 0..2 {
            let error = open_with_loss(home.path()).unwrap_err();
            assert!(
                matches!(&error, OpenError::Ruined { what, .. } if what.contains("is gone")),
                "{error:?}"
            );
            check_one_line(&error);
        }
        assert!(!gone.exists());
        let after = fs::read_dir(home.path().join("engine/keyspaces/0")).map(Iterator::count).ok();
        assert_eq!(before, after, "nothing was deleted");
    }
    for (extra, is_folder) in [("6", true), ("rest", true), ("1/tables/rest", false), ("1/tables/7", true)] {
        let home = killed().await;
        let extra = inside(extra)(home.path());
        if is_folder {
            fs::create_dir(&extra).unwrap()
        } else {
            fs::write(&extra, "").unwrap()
        }
        let error = open(home.path()).unwrap_err();
        assert!(matches!(&error, OpenError::Ruined { what, .. } if what.contains("not belong")), "{error:?}");
        assert!(extra.exists());
    }
}

#[tokio::test]
async fn a_sealed_journal_that_is_damaged_stays_so_until_the_loss_is_accepted() {
    let home = killed().await;
    let engine = home.path().join("engine");
    // As if the journal had been sealed, and the next were empty.
    let (bytes, length) = read_journal(home.path());
    fs::write(engine.join("0.jnl"), &bytes[..length - 1]).unwrap();
    fs::write(engine.join("1.jnl"), [0; 100]).unwrap();
    for _ in 0..2 {
        let error = open(home.path()).unwrap_err();
        assert!(matches!(&error, OpenError::Damaged { what, .. } if what.contains("journal 0")), "{error:?}");
        check_one_line(&error);
    }
    let store = open_with_loss(home.path()).unwrap();
    assert_eq!(queued(&store, &bob(&store).await).await, 9);
}

#[tokio::test]
async fn a_bound_of_the_numbers_that_has_gone_is_noticed_and_no_number_is_given_again() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).unwrap();
    let bob = create(&store, "bob").await;
    stored(&store, text("bob", "x")).await;
    let last = read(&store, &bob).await.last().unwrap().position.sequence;
    store.close().await.unwrap();
    drop(store);
    let folder = folder::Folder::open(home.path()).unwrap();
    let mut batch = Batch::default();
    batch.remove(Table::Meta, record::RESERVED_KEY);
    let opener = EmbeddedOpener::new(folder, Arc::<Live>::default(), false);
    opener.open().unwrap().commit(&mut batch, Durability::Machine).unwrap();
    drop(opener);
    let error = open(home.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    let store = open_with_loss(home.path()).unwrap();
    stored(&store, text("bob", "y")).await;
    assert!(read(&store, &bob).await[1].position.sequence > last);
}

#[test]
fn a_folder_that_cannot_be_made_is_said() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    let error = open(&file).unwrap_err();
    assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    check_one_line(&error);
}

#[test]
fn what_is_stored_is_for_its_owner_alone() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("deep").join("store");
    drop(open(&path).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Puts a value into the engine, behind the store's back.
fn put(opener: &dyn Opener, table: Table, key: &[u8], value: Vec<u8>) {
    let mut batch = Batch::default();
    batch.put(table, key, value);
    opener.open().unwrap().commit(&mut batch, Durability::Machine).unwrap();
}

#[tokio::test]
async fn a_damaged_message_is_not_passed_over_unless_the_loss_is_accepted() {
    let home = Memory::new();
    let store = home.open(WIDE);
    let bob = create(&*store, "bob").await;
    for content in ["1", "2", "3"] {
        stored(&*store, text("bob", content)).await;
    }
    let messages = read(&*store, &bob).await;
    store.close().await.unwrap();
    for message in &messages[1..] {
        let key = record::message_key(bob.incarnation, message.position.sequence.0);
        put(&*home.opener, Table::Messages, &key, vec![1; 30]);
    }
    let store = home.open(WIDE);
    let page = store.read(&bob, Position::default(), ALL).await.unwrap();
    assert!(page.messages == messages[..1] && !page.complete, "what comes before can be had");
    assert_eq!(store.read(&bob, messages[0].position, ALL).await, Err(Unavailable));
    assert_eq!(queued(&*store, &bob).await, 3);
    store.close().await.unwrap();
    let with_loss = LocalConfig { accept_data_loss: true, ..config(WIDE) };
    let store = LocalStore::start(Arc::clone(&home.opener), Arc::clone(&home.live), with_loss).unwrap();
    assert_eq!(texts(&store, &bob).await, ["1"]);
    stored(&store, text("bob", "4")).await;
    let page = store.read(&bob, Position::default(), ALL).await.unwrap();
    assert!(page.messages == messages[..1] && !page.complete, "a page ends before a gap");
    let page = store.read(&bob, messages[0].position, ALL).await.unwrap();
    let fourth = page.messages[0].position;
    assert!(fourth.sequence > messages[2].position.sequence);
    assert!(fourth.follows(page.starts_after.expect("the page says that it starts later")));
    store.acknowledge(&bob, fourth);
    assert_eq!(queued(&store, &bob).await, 0);
}

#[tokio::test]
async fn a_damaged_account_or_session_is_not_passed_over() {
    for table in [Table::Accounts, Table::Cursors, Table::Sessions, Table::Meta] {
        let home = tempfile::tempdir().unwrap();
        let store = open(home.path()).unwrap();
        let bob = create(&store, "bob").await;
        stored(&store, text("bob", "x")).await;
        store.close().await.unwrap();
        let opener = |loss| {
            EmbeddedOpener::new(folder::Folder::open(home.path()).unwrap(), Arc::<Live>::default(), loss)
        };
        let key = if table == Table::Meta { record::RESERVED_KEY } else { b"12345678" };
        put(&opener(false), table, key, vec![1; 30]);
        let error = open(home.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
        check_one_line(&error);
        if table != Table::Meta {
            assert_eq!(texts(&open_with_loss(home.path()).unwrap(), &bob).await, ["x"]);
        }
    }
}

/// Waits for a merge, and counts the messages that it has left.
fn merged(opener: &dyn Opener) -> u64 {
    // A close ends a merge early, but one that has nothing to do takes no time.
    let mut engine = opener.open().unwrap();
    engine.compact();
    let mut count = 0;
    engine
        .reader()
        .ascend(Table::Messages, &[], &mut |_, _| {
            count += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    count
}

#[test]
fn a_merge_keeps_everything_until_it_is_known_who_lives_and_then_only_that() {
    let live = Arc::<Live>::default();
    let opener = MemoryOpener::new(Arc::clone(&live));
    for account in 1..=3 {
        for sequence in 1..=10 {
            put(&opener, Table::Messages, &record::message_key(account, sequence), vec![]);
        }
    }
    assert_eq!(live.fate(1), Fate::Unknown);
    assert_eq!(merged(&opener), 30);
    live.load([(1, 4), (2, 0)].into());
    assert_eq!(merged(&opener), 16);
    live.begin(&[4]);
    live.advance([(1, 10), (2, 3), (2, 1), (9, 9)].into_iter(), &[1]);
    assert_eq!([1, 2, 4, 9].map(|a| live.fate(a)), [Fate::Dead, Fate::After(3), Fate::After(0), Fate::Dead]);
    assert_eq!(merged(&opener), 7);
    live.forget();
    assert_eq!(merged(&opener), 7);
}

#[tokio::test]
async fn the_space_of_acknowledged_messages_is_given_back() {
    let home = tempfile::tempdir().unwrap();
    let store = open(home.path()).unwrap();
    let bob = create(&store, "bob").await;
    let amy = create(&store, "amy").await;
    stored(&store, text("amy", "kept")).await;
    let large = "x".repeat(1024 * 1024);
    for n in 0..5 {
        let sends: Vec<_> = (0..20).map(|_| store.append(text("bob", &large))).collect();
        for pending in sends {
            number(pending.await);
        }
        let last = read(&store, &bob).await.last().unwrap().position;
        assert_eq!(last.messages, 20 * (n + 1));
        store.acknowledge(&bob, last);
        stored(&store, text("amy", "kept, too")).await;
    }
    assert_eq!(texts(&store, &amy).await.len(), 6);
    // The merge runs on a thread of its own.
    let tables = home.path().join("engine").join("keyspaces");
    let begun = Instant::now();
    while folder_bytes(&tables) > 64 * 1024 * 1024 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} bytes are left", folder_bytes(&tables));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(texts(&store, &bob).await.len(), 0);
}

#[tokio::test]
async fn the_space_of_messages_that_were_dead_before_a_start_is_given_back_after_it() {
    let home = tempfile::tempdir().unwrap();
    let large = "x".repeat(1024 * 1024);
    let store = open(home.path()).unwrap();
    let bob = create(&store, "bob").await;
    store.close().await.unwrap();
    drop(store);
    // Each time fewer than are worth a merge.
    for _ in 0..5 {
        let store = open(home.path()).unwrap();
        for _ in 0..20 {
            stored(&store, text("bob", &large)).await;
        }
        let last = read(&store, &bob).await.last().unwrap().position;
        store.acknowledge(&bob, last);
        store.close().await.unwrap();
    }
    let store = open(home.path()).unwrap();
    stored(&store, text("bob", "kept")).await;
    let tables = home.path().join("engine").join("keyspaces");
    let begun = Instant::now();
    while folder_bytes(&tables) > 64 * 1024 * 1024 {
        assert!(begun.elapsed() < Duration::from_secs(60), "{} bytes are left", folder_bytes(&tables));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(texts(&store, &bob).await, ["kept"]);
}

fn folder_bytes(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            // It was removed meanwhile.
            Err(_) => 0,
        })
        .sum()
}
