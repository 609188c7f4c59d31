//! Planted bugs, each found by a test of the suite.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::super::bugs::{Bug, fails_with};
use super::super::format::{FrameContent, Salt};
use super::model::SimOpener;
use super::sim::{Fault, Unsynced, random};
use super::{crash, faults};
use crate::log::contract::{
    append, block, blocks, check, frame, open, open_with, part, read, records,
};
use crate::log::{Block, Durability, Frame, Log};

const SEGMENT_BYTES: u64 = 20 << 10;

/// Checks that a test passes, and that it fails with a planted bug.
#[track_caller]
fn check_finds(bug: Bug, test: impl Fn() + std::panic::RefUnwindSafe) {
    assert!(!fails_with(None, &test), "the test fails without {bug:?}");
    assert!(
        fails_with(Some(bug), &test),
        "the test does not find {bug:?}"
    );
}

/// A frame in the text of a message, as a user who knew the salt would forge it, with
/// a number above all others.
fn forged(salt: Salt) -> Bytes {
    let content = FrameContent {
        commit: 1 << 40,
        synced: 1 << 40,
        previous: 0,
        part: None,
        meta: &[],
        records: b"forged",
        blocks: &[],
    };
    let mut bytes = Vec::new();
    content.encode(salt, &mut bytes, &mut Vec::new());
    // One of these begins at a multiple of eight.
    let shifted = (0..8).flat_map(|_| bytes.iter().copied().chain([0]));
    shifted.collect::<Vec<_>>().into()
}

/// Checks that a torn frame with a forged one inside counts as a torn end and not as
/// damage.
fn torn_frame_with_forged_text() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    append(&mut *log, frame(1, 1));
    let before = opener.storage.operation_count();
    let text = Block {
        inbox: 1,
        first: 2,
        last: 2,
        payload: forged(Salt::random()),
    };
    append(&mut *log, blocks(vec![text]));
    let mut random = random(1);
    let name = opener.storage.written(before);
    let left = opener
        .storage
        .crash(before + 1, Unsynced::Kept, &mut random);
    // The head of the frame never reached the disk.
    left.damage(&name.0, |bytes| bytes[name.1..name.1 + 64].fill(0));
    let log = open(&opener.on(left));
    check(&*log, 1, 0, &[block(1, 1, 1)]);
}

/// Lets the log copy forward while blocks are released.
fn copies_beside_releases() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    let mut cursors = [0; 20];
    for number in 1..=600 {
        append(&mut *log, frame(number % 20, number));
        for (inbox, cursor) in cursors.iter().enumerate() {
            let blocks = read(&*log.reader(), inbox as u64, 0).unwrap();
            assert!(
                blocks.iter().all(|block| block.last > *cursor),
                "{cursor} {blocks:?}"
            );
        }
        if number % 100 == 0 {
            append(&mut *log, part("state", true, true));
        }
        let inbox = (number * 7) % 20;
        if number > 60 && inbox != 3 {
            cursors[inbox as usize] = number - 60;
            log.release(inbox, number - 60);
        }
    }
}

/// Opens a log with merged blocks, and their parts in the same segment.
fn merge_before_an_open() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    for number in 1..=10 {
        append(&mut *log, frame(1, number));
    }
    let merged = Frame {
        merged: vec![block(1, 1, 5)],
        ..Frame::default()
    };
    append(&mut *log, merged);
    drop(log);
    let rest = (6..=10).map(|number| block(1, number, number));
    let expected: Vec<_> = [block(1, 1, 5)].into_iter().chain(rest).collect();
    check(&*open(&opener), 1, 0, &expected);
}

/// Reads a segment that is freed and used again under the reader.
fn slow_reader() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    for number in 1..=20 {
        append(&mut *log, frame(number % 2, number));
    }
    let reader = log.reader();
    let mut numbers = Vec::new();
    reader
        .read(1, 0, &mut |block| {
            numbers.push(block.first);
            if numbers.len() == 1 {
                drive(&mut *log);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(
        numbers,
        (0..10).map(|half| 2 * half + 1).collect::<Vec<_>>()
    );
    // When the reader is gone, the segment is reused.
    drive(&mut *log);
    assert!(log.usage().file_bytes < 12 * SEGMENT_BYTES);
}

/// Releases everything and fills many segments.
fn drive(log: &mut dyn Log) {
    log.release(0, u64::MAX);
    log.release(1, u64::MAX);
    for number in 100..500 {
        log.append(records(&"x".repeat(200)), Durability::Machine)
            .unwrap();
        if number % 20 == 0 {
            append(log, part("state", true, true));
        }
    }
}

/// Checks that a frame that was served after a failed sync, and so existed only in the
/// page cache, survives a crash.
fn failed_sync() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    for _ in 0..20 {
        append(&mut *log, records(&"one".repeat(50)));
    }
    opener
        .storage
        .fail(opener.storage.attempt_count() + 1, Fault::Refuse);
    log.append(records("two"), Durability::Machine).unwrap_err();
    drop(log);
    let (_, served) = open_with(&opener, &mut |_| Some(0));
    let at = opener.storage.operation_count();
    let left = opener.on(opener.storage.crash(at, Unsynced::Lost, &mut random(1)));
    let (_, replayed) = open_with(&left, &mut |_| Some(0));
    assert_eq!(replayed, served);
}

#[test]
fn segment_without_salt_is_found() {
    check_finds(Bug::NoSalt, torn_frame_with_forged_text);
}

#[test]
fn copy_of_released_block_is_found() {
    check_finds(Bug::RevivedCopy, copies_beside_releases);
}

#[test]
fn parts_of_merged_block_are_found() {
    check_finds(Bug::RevivedParts, merge_before_an_open);
}

#[test]
fn segment_recycled_under_reader_is_found() {
    check_finds(Bug::RecycledUnderReader, slow_reader);
}

#[test]
fn trusted_cache_is_found() {
    check_finds(Bug::TrustedCache, failed_sync);
}

#[test]
fn segment_recycled_early_is_found_by_kills() {
    let kill = |seed| move || crash::kill_everywhere(seed, 250, 9);
    // The first seed finds it so far; a change of the log may need another.
    let finds = |seed: &u64| fails_with(Some(Bug::RecycledEarly), kill(*seed));
    let seed = [4, 1, 2, 3, 5]
        .into_iter()
        .find(finds)
        .expect("no run finds it");
    assert!(
        !fails_with(None, kill(seed)),
        "run {seed} fails without the planted bug"
    );
}

#[test]
fn trusted_cache_is_found_by_faults() {
    check_finds(Bug::TrustedCache, || {
        faults::fail_everywhere(Fault::Refuse, 7);
    });
}
