//! The check and the repair of a store.

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::super::repair::{DamagedBlock, Repair};
use super::super::snapshot::LogSnapshot;
use super::{Home, open};
use crate::log::contract::{append, block, blocks, read};
use crate::log::{Block, OpenError, Opener, ReadError};

/// Creates a store with several segments, and changes the bytes of some blocks.
fn damaged_store() -> (Home, Vec<u64>) {
    let mut home = Home::new();
    let mut log = open(&home);
    for number in 1..=2000 {
        append(&mut *log, blocks(vec![block(number % 5, number, number)]));
    }
    log.close().unwrap();
    let mut log = open(&home);
    append(&mut *log, blocks(vec![block(7, 3000, 3000)]));
    drop(log);
    home.unlock();
    let changed = vec![23, 501, 503, 1204];
    for number in &changed {
        change(
            &home.folder.path().join("store/log"),
            &block(number % 5, *number, *number).payload,
        );
    }
    (home, changed)
}

/// Changes a byte of a text wherever it occurs.
fn change(folder: &Path, text: &[u8]) {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        while let Some(at) = bytes.windows(text.len()).position(|window| window == text) {
            bytes[at + 1] ^= 1;
            count += 1;
            fs::write(&path, &bytes).unwrap();
        }
    }
    assert!(count > 0);
}

/// Returns the number of live blocks, and the damaged ones, by inbox and number.
fn check_store(home: &Home) -> (usize, Vec<DamagedBlock>) {
    let snapshot = LogSnapshot::open(&home.folder.path().join("store"), &mut |_| Ok(())).unwrap();
    let (mut count, mut damaged) = (0, Vec::new());
    for inbox in snapshot.inboxes() {
        let after = if inbox == 4 { 1000 } else { 0 };
        let visited = snapshot.visit(inbox, after, &mut |found| {
            count += 1;
            damaged.extend(found.err());
            ControlFlow::Continue(())
        });
        visited.unwrap();
    }
    (count, damaged)
}

/// Every file of a folder with its content.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn check_reports_damaged_blocks_and_changes_nothing() {
    let (home, changed) = damaged_store();
    let before = files(&home.folder.path().join("store/log"));
    let (count, damaged) = check_store(&home);
    assert_eq!(files(&home.folder.path().join("store/log")), before);
    let damaged: Vec<_> = damaged.iter().map(|damaged| damaged.first).collect();
    // The last of them is in inbox 4, the others in 3, 1, and 3.
    let mut expected = changed.clone();
    expected.sort_by_key(|number| (number % 5, *number));
    assert_eq!(damaged, expected);
    assert_eq!(count, 2001 - 200);
    assert!(matches!(
        read(&*open(&home).reader(), 1, 0),
        Err(ReadError::Damaged {
            inbox: 1,
            first: 501,
            ..
        })
    ));
}

#[test]
fn repair_replaces_damaged_blocks() {
    let (home, changed) = damaged_store();
    let mut repair = Repair::open(&home.folder.path().join("store"), &mut |_| Ok(())).unwrap();
    let gap = |number: u64| Block {
        payload: format!("gap {number}").into(),
        ..block(number % 5, number, number)
    };
    for inbox in 0..5 {
        let numbers = changed.iter().filter(|number| *number % 5 == inbox);
        let mut gaps: Vec<_> = numbers.map(|number| gap(*number)).collect();
        if inbox == 2 {
            // The gap replaces no block.
            gaps.push(Block { inbox, ..gap(2500) });
        }
        repair.replace(inbox, gaps).unwrap();
    }
    repair.close().unwrap();
    assert_eq!(check_store(&home).1, []);
    // Twice, so that rewritten blocks are sealed as well.
    for _ in 0..2 {
        let log = open(&home);
        for inbox in 0..5 {
            let blocks = read(&*log.reader(), inbox, 0).unwrap();
            let numbers = (1..=2000).filter(|number| number % 5 == inbox);
            let mut expected: Vec<_> = numbers
                .map(|number| {
                    if changed.contains(&number) {
                        gap(number)
                    } else {
                        block(inbox, number, number)
                    }
                })
                .collect();
            if inbox == 2 {
                expected.push(Block { inbox, ..gap(2500) });
            }
            assert_eq!(blocks, expected);
        }
        log.close().unwrap();
    }
}

#[test]
fn check_of_missing_store_makes_none() {
    let home = Home::new();
    let path = home.path().join("nothing");
    assert!(matches!(
        LogSnapshot::open(&path, &mut |_| Ok(())),
        Err(OpenError::NoStore(_))
    ));
    assert!(!path.exists());
}

#[test]
fn damaged_text_in_a_carried_frame_concerns_its_inbox_alone() {
    let home = Home::new();
    let mut log = open(&home);
    for number in 1..=20 {
        append(&mut *log, blocks(vec![block(number % 2, number, number)]));
    }
    log.close().unwrap();
    drop(open(&home));
    change(
        &home.folder.path().join("store/log"),
        &block(1, 5, 5).payload,
    );
    for _ in 0..2 {
        let log = open(&home);
        assert!(matches!(
            read(&*log.reader(), 1, 0),
            Err(ReadError::Damaged { first: 5, .. })
        ));
        assert_eq!(read(&*log.reader(), 0, 0).unwrap().len(), 10);
    }
}
