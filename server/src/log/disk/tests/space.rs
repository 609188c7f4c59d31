//! The space that a log takes: copies under load, and files that fail.

use super::super::file::Storage as _;
use super::super::segment::Slot;
use super::super::slots::Spares;
use super::model::SimOpener;
use super::sim::{Fault, SimStorage};
use crate::log::contract::{append, block, blocks, frame, open, part};
use crate::log::{Durability, Log};

const SEGMENT_BYTES: u64 = 128 << 10;

/// Appends a large block that is read at once and a small one that stays, and a
/// checkpoint when one is due.
fn load(log: &mut dyn Log, number: u64) {
    let mut large = block(1, number, number);
    large.payload = vec![7; 16 << 10].into();
    log.append(blocks(vec![large, block(2, number, number)]), Durability::Machine).unwrap();
    log.release(1, number);
    if log.is_checkpoint_due() {
        append(log, part("state", true, true));
    }
}

#[test]
fn copies_keep_up_with_a_fast_writer() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    for number in 1..1000 {
        load(&mut *log, number);
        let usage = log.usage();
        assert!(usage.file_bytes < 20 * SEGMENT_BYTES, "block {number}: {usage:?}");
    }
}

/// Appends small frames until the operation with a number has failed in the
/// maintenance. Returns whether it was reached.
fn fail_spare_at(attempt: usize) -> bool {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    let attempt = opener.storage.attempt_count() + attempt;
    opener.storage.fail(attempt, Fault::Full);
    for number in 1..40 {
        let is_appended = log.append(frame(1, number), Durability::Process).is_ok();
        if opener.storage.attempt_count() > attempt {
            let files = opener.storage.files();
            let bytes: usize = files.iter().filter(|(name, _)| name != "HEAD").map(|(_, bytes)| bytes).sum();
            assert!(!is_appended || bytes as u64 == log.usage().file_bytes, "{attempt}: {files:?}");
            return true;
        }
    }
    false
}

#[test]
fn failed_blank_file_is_removed() {
    let reached = (0..1000).take_while(|&attempt| fail_spare_at(attempt)).count();
    assert!(reached > 30, "{reached}");
}

#[test]
fn failed_cleaning_keeps_the_file() {
    let storage = SimStorage::default();
    let name = String::from("00000000.segment");
    let file = storage.create(&name).unwrap();
    file.allocate(SEGMENT_BYTES).unwrap();
    let spares = Spares::new(Vec::new(), Vec::new(), 1, SEGMENT_BYTES);
    spares.give(Slot { path: storage.path(&name), name, file, size: SEGMENT_BYTES });
    storage.fail(storage.attempt_count(), Fault::Full);
    spares.clean(&storage).unwrap_err();
    assert!(spares.clean(&storage).unwrap());
    assert_eq!((spares.blank_count(), spares.bytes()), (1, SEGMENT_BYTES));
}
