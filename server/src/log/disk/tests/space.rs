//! The space of a log: copies under load, and files that fail.

use super::super::file::Storage as _;
use super::super::segment::Slot;
use super::super::slots::{Cleaned, Spares};
use super::model::SimOpener;
use super::sim::{Fault, SimStorage, Unsynced, random};
use crate::log::contract::{append, block, blocks, frame, open, part, read, records};
use crate::log::{AppendError, Block, Durability, Log, ReadError};

const SEGMENT_BYTES: u64 = 128 << 10;

/// Appends a large block that is released at once and a small one that stays, and a
/// checkpoint when one is due.
fn load(log: &mut dyn Log, number: u64) {
    let mut large = block(1, number, number);
    large.payload = vec![7; 16 << 10].into();
    log.append(
        blocks(vec![large, block(2, number, number)]),
        Durability::Machine,
    )
    .unwrap();
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
        assert!(
            usage.file_bytes < 20 * SEGMENT_BYTES,
            "block {number}: {usage:?}"
        );
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
            let bytes: usize = files
                .iter()
                .filter(|(name, _)| name != "HEAD")
                .map(|(_, bytes)| bytes)
                .sum();
            assert!(
                !is_appended || bytes as u64 == log.usage().file_bytes,
                "{attempt}: {files:?}"
            );
            return true;
        }
    }
    false
}

#[test]
fn failed_blank_file_is_removed() {
    let reached = (0..1000)
        .take_while(|&attempt| fail_spare_at(attempt))
        .count();
    assert!(reached > 30, "{reached}");
}

#[test]
fn failed_cleaning_keeps_the_file() {
    let storage = SimStorage::default();
    let name = String::from("00000000.segment");
    let file = storage.create(&name).unwrap();
    file.allocate(SEGMENT_BYTES).unwrap();
    let spares = Spares::new(Vec::new(), Vec::new(), 1, SEGMENT_BYTES);
    spares.give(Slot {
        path: storage.path(&name),
        name,
        file,
        size: SEGMENT_BYTES,
    });
    storage.fail(storage.attempt_count(), Fault::Full);
    spares.clean(&storage).unwrap_err();
    assert_eq!(spares.clean(&storage).unwrap(), Cleaned::Blanked);
    assert_eq!((spares.blank_count(), spares.bytes()), (1, SEGMENT_BYTES));
}

const CAPACITY: u64 = 12 * SEGMENT_BYTES;

/// Appends frames of every kind on a full disk. Returns how many were refused.
fn append_until_refused(log: &mut dyn Log, first: u64, kept: &mut Vec<u64>) -> u64 {
    let mut refused = 0;
    for number in first..first + 200 {
        let inbox = number % 2;
        let mut one = block(inbox, number, number);
        one.payload = vec![7; 2000].into();
        let content = match number % 4 {
            0 if log.is_checkpoint_due() => part("state", true, true),
            0 => frame(2, number),
            _ => blocks(vec![one]),
        };
        let has_block = content.blocks.iter().any(|block| block.inbox == 0);
        match log.append(content, Durability::Machine) {
            Ok(()) if has_block => kept.push(number),
            Ok(()) => {}
            Err(AppendError::NoSpace) => refused += 1,
            Err(error) => panic!("frame {number}: {error}"),
        }
        log.release(1, number.saturating_sub(100));
    }
    refused
}

#[test]
fn full_disk_never_prevents_a_restart() {
    let mut random = random(1);
    let mut opener = SimOpener::new(SEGMENT_BYTES);
    opener.storage.set_capacity(Some(CAPACITY));
    let mut log = open(&opener);
    let mut kept = Vec::new();
    let mut refused = 0;
    for round in 0..60 {
        refused += append_until_refused(&mut *log, 1000 * (round + 1), &mut kept);
        drop(log);
        if round % 2 == 1 {
            opener.storage.set_capacity(Some(0));
        }
        if round % 3 == 2 {
            let at = opener.storage.operation_count();
            opener = opener.on(opener.storage.crash(at, Unsynced::Lost, &mut random));
            opener
                .storage
                .set_capacity(Some(if round % 2 == 1 { 0 } else { CAPACITY }));
        }
        log = open(&opener);
        opener.storage.set_capacity(Some(CAPACITY));
        let found: Vec<_> = read(&*log.reader(), 0, 0)
            .unwrap()
            .iter()
            .map(|block| block.first)
            .collect();
        assert_eq!(found, kept, "round {round}");
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn small_frame_is_not_refused_for_copies() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    opener.storage.set_capacity(Some(CAPACITY));
    let mut log = opener.open_disk(&mut |_| Ok(())).unwrap();
    for number in 1.. {
        let mut one = block(1 + u64::from(number % 8 == 0), number, number);
        one.payload = vec![7; 10_000].into();
        match log.append(blocks(vec![one]), Durability::Machine) {
            Err(AppendError::NoSpace) => break,
            result => result.unwrap(),
        }
        if log.is_checkpoint_due() {
            append(&mut *log, part("state", true, true));
        }
    }
    log.release(1, u64::MAX);
    let active = log.writer.active();
    let number = (1..)
        .find(|&number| log.append(frame(3, number), Durability::Machine).is_err())
        .unwrap();
    assert_eq!(log.writer.active(), active);
    assert!(!log.shared.copies.is_empty());
    let left = SEGMENT_BYTES - log.writer.offset();
    // The index frame takes up to two pages of them.
    assert!(left < 9000, "{left} bytes are left after frame {number}");
}

#[test]
fn damaged_block_keeps_its_segment_for_its_inbox_alone() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = opener.open_disk(&mut |_| Ok(())).unwrap();
    let of = |inbox, number| Block {
        payload: format!("{inbox}:{number} ").repeat(30).into(),
        ..block(inbox, number, number)
    };
    let mut first = Vec::new();
    for number in 1..200 {
        let inbox = number % 4;
        append(&mut *log, blocks(vec![of(inbox, number)]));
        first.push((inbox, number));
    }
    let source = log.writer.active();
    while log.writer.active() == source {
        append(&mut *log, records(&"x".repeat(2000)));
    }
    append(&mut *log, part("state", true, true));
    let text = of(1, 101).payload;
    for (name, _) in opener.storage.files() {
        opener.storage.damage(&name, |bytes| {
            if let Some(at) = bytes.windows(text.len()).position(|part| part == text) {
                bytes[at] ^= 1;
            }
        });
    }
    for number in 1000..1400 {
        append(&mut *log, frame(9, number));
        log.release(9, number);
    }
    let segment = log.shared.segments.get(source).unwrap();
    assert!(segment.live() > 0 && !segment.is_movable());
    for inbox in [0, 2, 3] {
        let moved = log.shared.index.plan(inbox, 0);
        assert!(
            moved.runs.iter().all(|(segment, ..)| segment.id != source),
            "inbox {inbox}"
        );
        let expected: Vec<_> = first
            .iter()
            .filter(|(of, _)| *of == inbox)
            .map(|(_, number)| *number)
            .collect();
        let found: Vec<_> = read(&*log.reader(), inbox, 0)
            .unwrap()
            .iter()
            .map(|block| block.first)
            .collect();
        assert_eq!(found, expected);
    }
    assert!(matches!(
        read(&*log.reader(), 1, 0),
        Err(ReadError::Damaged { first: 101, .. })
    ));
    assert_eq!(read(&*log.reader(), 1, 101).unwrap().len(), 24);
    log.release(1, u64::MAX);
    append(&mut *log, records(""));
    append(&mut *log, records(""));
    assert!(log.shared.segments.get(source).is_none());
}

#[test]
fn records_take_the_last_blank_files() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    (1..60).for_each(|number| append(&mut *log, frame(1, number)));
    // Other programs fill the disk.
    opener.storage.set_capacity(Some(0));
    let mut bytes = 0;
    while !log.is_full() {
        append(&mut *log, records(&"x".repeat(5000)));
        bytes += 5000;
    }
    // One file, since the log was not filling before.
    assert!(bytes > SEGMENT_BYTES, "{bytes}");
    log.release(1, u64::MAX);
    // An append that reclaims space still fits.
    append(&mut *log, part("state", true, true));
    append(&mut *log, records(""));
    assert!(!log.is_full());
}

#[test]
fn open_on_full_disk_goes_on_in_the_newest_segment() {
    let mut random = random(2);
    let mut opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    opener.storage.set_capacity(Some(0));
    let mut numbers = 1..;
    while !log.is_full() {
        let mut one = block(1, numbers.next().unwrap(), 0);
        (one.last, one.payload) = (one.first, vec![7; 5000].into());
        append(&mut *log, blocks(vec![one]));
    }
    let active = log.usage();
    for unsynced in [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn] {
        for _ in 0..3 {
            append(&mut *log, frame(1, numbers.next().unwrap()));
            drop(log);
            let at = opener.storage.operation_count();
            opener = opener.on(opener.storage.crash(at, unsynced, &mut random));
            opener.storage.set_capacity(Some(0));
            log = open(&opener);
            let found: Vec<_> = read(&*log.reader(), 1, 0)
                .unwrap()
                .iter()
                .map(|block| block.first)
                .collect();
            assert_eq!(found, (1..numbers.start).collect::<Vec<_>>());
            assert_eq!(log.usage().file_bytes, active.file_bytes);
        }
    }
    opener.storage.set_capacity(None);
    drop(log);
    assert_eq!(
        read(&*open(&opener).reader(), 1, 0).unwrap().len() as u64,
        numbers.start - 1
    );
}

#[test]
fn writer_leaves_space_for_the_next_open() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    opener.storage.set_capacity(Some(5 * SEGMENT_BYTES));
    for round in 1..6 {
        let mut log = open(&opener);
        for number in 100 * round.. {
            let mut one = block(1, number, number);
            one.payload = vec![7; 90_000].into();
            match log.append(blocks(vec![one]), Durability::Machine) {
                Err(AppendError::NoSpace) => break,
                result => result.unwrap(),
            }
        }
    }
    assert!(read(&*open(&opener).reader(), 1, 0).unwrap().len() > 1);
}
