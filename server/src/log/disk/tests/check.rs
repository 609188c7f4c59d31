//! The check and the repair of a store.

use std::fs;
use std::path::Path;

use bytes::Bytes;

use super::super::check::{Check, DamagedBlock, Repair, Report};
use super::{Home, open};
use crate::log::contract::{append, block, blocks, read};
use crate::log::{OpenError, Opener, ReadError};

/// A store with several segments, in which the bytes of some blocks are changed.
fn damaged_store() -> (Home, Vec<u64>) {
    let home = Home::new();
    let mut log = open(&home);
    for number in 1..=2000 {
        append(&mut *log, blocks(vec![block(number % 5, number, number)]));
    }
    log.close().unwrap();
    // It needs no lock, since nothing is open.
    let mut log = open(&home);
    append(&mut *log, blocks(vec![block(7, 3000, 3000)]));
    drop(log);
    let changed = vec![23, 501, 503, 1204];
    for number in &changed {
        change(&home.folder.path().join("store/log"), &block(number % 5, *number, *number).payload);
    }
    (home, changed)
}

/// Changes a byte of a text wherever it lies.
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

fn check_store(home: &Home) -> Report {
    let check = Check::open(&home.folder.path().join("store"), &mut |_| Ok(())).unwrap();
    check.run(&mut |inbox| Some(if inbox == 4 { 1000 } else { 0 })).unwrap()
}

#[test]
fn check_reports_damaged_blocks_and_changes_nothing() {
    let (home, changed) = damaged_store();
    let report = check_store(&home);
    assert_eq!(report, check_store(&home));
    let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.first).collect();
    // The last of them lies in inbox 4, the others are in 3, 1, and 3.
    let mut expected = changed.clone();
    expected.sort_by_key(|number| (number % 5, *number));
    assert_eq!(damaged, expected);
    assert_eq!(report.blocks, 2001 - 200);
    assert!(report.segments > 2);
    assert!(matches!(
        read(&*open(&home).reader(), 1, 0),
        Err(ReadError::Damaged { inbox: 1, first: 501, .. })
    ));
}

#[test]
fn repair_replaces_damaged_blocks() {
    let (home, changed) = damaged_store();
    let repair = Repair::open(&home.folder.path().join("store"), &mut |_| Ok(())).unwrap();
    let mut payload = |damaged: &DamagedBlock| Bytes::from(format!("gap {}", damaged.first));
    let replaced = repair.run(&mut |_| Some(0), &mut payload).unwrap();
    assert_eq!(replaced.len(), changed.len());
    assert_eq!(check_store(&home).damaged, []);
    // Twice, so that what was written anew is sealed, too.
    for _ in 0..2 {
        let log = open(&home);
        for inbox in 0..5 {
            let blocks = read(&*log.reader(), inbox, 0).unwrap();
            let numbers = (1..=2000).filter(|number| number % 5 == inbox);
            let expected: Vec<_> = numbers
                .map(|number| {
                    let mut block = block(inbox, number, number);
                    if changed.contains(&number) {
                        block.payload = format!("gap {number}").into();
                    }
                    block
                })
                .collect();
            assert_eq!(blocks, expected);
        }
        log.close().unwrap();
    }
}

#[test]
fn check_of_missing_store_makes_none() {
    let home = Home::new();
    let path = home.path().join("nothing");
    assert!(matches!(Check::open(&path, &mut |_| Ok(())), Err(OpenError::NotAStore(_))));
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
    change(&home.folder.path().join("store/log"), &block(1, 5, 5).payload);
    for _ in 0..2 {
        let log = open(&home);
        assert!(matches!(read(&*log.reader(), 1, 0), Err(ReadError::Damaged { first: 5, .. })));
        assert_eq!(read(&*log.reader(), 0, 0).unwrap().len(), 10);
    }
}
