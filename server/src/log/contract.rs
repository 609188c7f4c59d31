//! The contract of a log: one suite, run on every log.
//!
//! Every log instantiates [`contract!`]. Logs that outlive their process also instantiate
//! [`durable_contract!`].

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::{Block, CheckpointPart, Durability, Frame, InboxId, Log, Opener, ReadError, Reader};

/// Runs the suite of every log: `contract!(opener)`, with an expression that creates the
/// opener of an empty log.
macro_rules! contract {
    ($opener:expr) => {
        $crate::log::contract::cases!($opener =>
            blocks_are_read_in_order,
            read_begins_above_the_number,
            read_stops_when_the_visitor_breaks,
            unknown_inbox_reads_nothing,
            released_blocks_are_not_read,
            block_with_unreleased_numbers_stays,
            ended_inbox_loses_every_block,
            release_leaves_other_inboxes_alone,
            long_inbox_is_read_whole,
            usage_follows_live_blocks,
            merged_block_replaces_those_in_its_range,
            reader_of_dropped_log_is_closed,
            readers_beside_appends_miss_nothing,
        );
    };
}

/// Runs the suite of logs that can be reopened.
macro_rules! durable_contract {
    ($opener:expr) => {
        $crate::log::contract::cases!($opener =>
            records_are_replayed_in_order,
            blocks_outlive_a_reopen,
            merged_blocks_outlive_a_reopen,
            dropped_log_keeps_machine_durable_frames,
            retain_releases_by_cursor,
            replay_begins_at_the_newest_checkpoint,
            incomplete_checkpoint_is_not_used,
            checkpoint_lies_beside_other_frames,
            blocks_before_a_checkpoint_are_kept,
            error_of_the_replay_is_returned,
            space_of_released_blocks_is_used_again,
        );
    };
}

macro_rules! cases {
    ($opener:expr => $($name:ident),* $(,)?) => {
        $(#[test] fn $name() { $crate::log::contract::$name(&$opener); })*
    };
}

pub(crate) use {cases, contract, durable_contract};

/// Opens a log, ignores its replay, and retains every block.
pub(crate) fn open(opener: &dyn Opener) -> Box<dyn Log> {
    open_with(opener, &mut |_| Some(0)).0
}

/// Opens a log as a shard does, and returns the replayed records.
pub(crate) fn open_with(
    opener: &dyn Opener,
    cursor: &mut dyn FnMut(InboxId) -> Option<u64>,
) -> (Box<dyn Log>, Vec<Vec<u8>>) {
    let mut records = Vec::new();
    let mut log = opener
        .open(&mut |bytes| {
            records.push(bytes.to_vec());
            Ok(())
        })
        .unwrap();
    log.retain(cursor);
    (log, records)
}

/// Returns a block with a unique payload.
pub(crate) fn block(inbox: InboxId, first: u64, last: u64) -> Block {
    let payload = format!("{inbox}:{first}-{last};").repeat(3);
    Block {
        inbox,
        first,
        last,
        payload: Bytes::from(payload),
    }
}

/// Returns a frame with one block of one message.
pub(crate) fn frame(inbox: InboxId, number: u64) -> Frame {
    blocks(vec![block(inbox, number, number)])
}

pub(crate) fn blocks(blocks: Vec<Block>) -> Frame {
    Frame {
        blocks,
        ..Frame::default()
    }
}

pub(crate) fn records(text: &str) -> Frame {
    Frame {
        records: text.as_bytes().to_vec(),
        ..Frame::default()
    }
}

pub(crate) fn part(text: &str, is_first: bool, is_last: bool) -> Frame {
    Frame {
        checkpoint: Some(CheckpointPart { is_first, is_last }),
        ..records(text)
    }
}

/// Appends a frame that becomes durable.
pub(crate) fn append(log: &mut dyn Log, frame: Frame) {
    log.append(frame, Durability::Machine).unwrap();
}

/// Reads all live blocks above a number.
pub(crate) fn read(
    reader: &dyn Reader,
    inbox: InboxId,
    after: u64,
) -> Result<Vec<Block>, ReadError> {
    let mut blocks = Vec::new();
    reader.read(inbox, after, &mut |block| {
        blocks.push(block);
        ControlFlow::Continue(())
    })?;
    Ok(blocks)
}

#[track_caller]
pub(crate) fn check(log: &dyn Log, inbox: InboxId, after: u64, expected: &[Block]) {
    assert_eq!(read(&*log.reader(), inbox, after).unwrap(), expected);
}

pub(crate) fn blocks_are_read_in_order(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, blocks(vec![block(1, 10, 12), block(2, 13, 13)]));
    append(&mut *log, blocks(vec![block(2, 14, 20), block(1, 21, 21)]));
    check(&*log, 1, 0, &[block(1, 10, 12), block(1, 21, 21)]);
    check(&*log, 2, 0, &[block(2, 13, 13), block(2, 14, 20)]);
}

pub(crate) fn read_begins_above_the_number(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in [10, 20, 30] {
        append(&mut *log, blocks(vec![block(1, number, number + 5)]));
    }
    check(
        &*log,
        1,
        14,
        &[block(1, 10, 15), block(1, 20, 25), block(1, 30, 35)],
    );
    check(&*log, 1, 15, &[block(1, 20, 25), block(1, 30, 35)]);
    check(&*log, 1, 27, &[block(1, 30, 35)]);
    check(&*log, 1, 35, &[]);
    check(&*log, 1, u64::MAX, &[]);
}

pub(crate) fn read_stops_when_the_visitor_breaks(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=10 {
        append(&mut *log, frame(1, number));
    }
    let mut visited = 0;
    log.reader()
        .read(1, 0, &mut |block| {
            visited = block.first;
            if visited == 4 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .unwrap();
    assert_eq!(visited, 4);
}

pub(crate) fn unknown_inbox_reads_nothing(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, frame(1, 1));
    check(&*log, 2, 0, &[]);
    check(&*log, 0, 0, &[]);
    check(&*log, u64::MAX, 0, &[]);
    log.release(2, 10);
    check(&*log, 1, 0, &[block(1, 1, 1)]);
}

pub(crate) fn released_blocks_are_not_read(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=10 {
        append(&mut *log, frame(1, number));
    }
    log.release(1, 7);
    check(
        &*log,
        1,
        0,
        &[block(1, 8, 8), block(1, 9, 9), block(1, 10, 10)],
    );
    log.release(1, 3);
    check(&*log, 1, 8, &[block(1, 9, 9), block(1, 10, 10)]);
    log.release(1, 10);
    check(&*log, 1, 0, &[]);
    append(&mut *log, frame(1, 11));
    check(&*log, 1, 0, &[block(1, 11, 11)]);
}

pub(crate) fn block_with_unreleased_numbers_stays(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, blocks(vec![block(1, 10, 20)]));
    append(&mut *log, blocks(vec![block(1, 30, 40)]));
    log.release(1, 19);
    check(&*log, 1, 19, &[block(1, 10, 20), block(1, 30, 40)]);
    log.release(1, 39);
    check(&*log, 1, 0, &[block(1, 30, 40)]);
}

pub(crate) fn ended_inbox_loses_every_block(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, blocks(vec![block(1, 1, 1), block(2, 2, 2)]));
    append(&mut *log, frame(1, 3));
    log.release(1, u64::MAX);
    check(&*log, 1, 0, &[]);
    check(&*log, 2, 0, &[block(2, 2, 2)]);
}

pub(crate) fn release_leaves_other_inboxes_alone(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=100 {
        append(&mut *log, frame(number % 10, number));
    }
    log.release(3, u64::MAX);
    log.release(4, 50);
    for inbox in 0..10 {
        let kept = (1..=100).filter(|number| number % 10 == inbox);
        let kept = kept.filter(|&number| inbox != 3 && (inbox != 4 || number > 50));
        let kept: Vec<_> = kept.map(|number| block(inbox, number, number)).collect();
        check(&*log, inbox, 0, &kept);
    }
}

pub(crate) fn long_inbox_is_read_whole(opener: &dyn Opener) {
    let mut log = open(opener);
    let all: Vec<_> = (1..=1500).map(|number| block(7, number, number)).collect();
    for block in &all {
        log.append(blocks(vec![block.clone()]), Durability::Process)
            .unwrap();
    }
    check(&*log, 7, 0, &all);
    check(&*log, 7, 1000, &all[1000..]);
}

fn merged(blocks: Vec<Block>) -> Frame {
    Frame {
        merged: blocks,
        ..Frame::default()
    }
}

/// Blocks of inbox 7 with every third number, from one to another.
fn thirds(first: u64, last: u64) -> Vec<Block> {
    let numbers = (first..=last).step_by(3);
    numbers.map(|number| block(7, number, number)).collect()
}

pub(crate) fn merged_block_replaces_those_in_its_range(opener: &dyn Opener) {
    let mut log = open(opener);
    for block in thirds(1, 2998) {
        append(&mut *log, blocks(vec![block]));
    }
    append(
        &mut *log,
        merged(vec![block(7, 1, 301), block(7, 304, 1201)]),
    );
    let expected = |from: usize, rest: u64| {
        let merged = [block(7, 1, 301), block(7, 304, 1201)];
        [&merged[from..], &thirds(rest, 2998)[..]].concat()
    };
    check(&*log, 7, 0, &expected(0, 1204));
    check(&*log, 7, 150, &expected(0, 1204));
    check(&*log, 7, 301, &expected(1, 1204));
    check(&*log, 7, 1201, &thirds(1204, 2998));
    log.release(7, 310);
    check(&*log, 7, 0, &expected(1, 1204));
    // In the middle, over the end of a merged one, and alone.
    append(
        &mut *log,
        merged(vec![block(7, 2404, 2500), block(7, 2998, 2998)]),
    );
    append(&mut *log, merged(vec![block(7, 304, 1501)]));
    let middle = [
        vec![block(7, 304, 1501)],
        thirds(1504, 2401),
        vec![block(7, 2404, 2500)],
        thirds(2503, 2998),
    ];
    check(&*log, 7, 0, &middle.concat());
    log.release(7, 2500);
    check(&*log, 7, 0, &thirds(2503, 2998));
    log.release(7, 2998);
    check(&*log, 7, 0, &[]);
    assert_eq!(log.usage().live_bytes, 0);
}

pub(crate) fn usage_follows_live_blocks(opener: &dyn Opener) {
    let mut log = open(opener);
    assert_eq!(log.usage().live_bytes, 0);
    append(&mut *log, blocks(vec![block(1, 1, 1), block(2, 2, 2)]));
    let both = log.usage().live_bytes;
    assert!(both >= (block(1, 1, 1).payload.len() + block(2, 2, 2).payload.len()) as u64);
    log.release(1, 1);
    let one = log.usage().live_bytes;
    assert!(one > 0 && one < both);
    log.release(2, 2);
    assert_eq!(log.usage().live_bytes, 0);
}

pub(crate) fn reader_of_dropped_log_is_closed(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, frame(1, 1));
    let reader = log.reader();
    drop(log);
    assert!(matches!(read(&*reader, 1, 0), Err(ReadError::Closed)));
}

/// Reads until every block is released. Asserts that a read misses only released blocks,
/// and includes the last block of the previous read.
fn watch(reader: &dyn Reader, inbox: InboxId, released: &AtomicU64) {
    let mut seen = 0;
    loop {
        let done = released.load(Ordering::SeqCst) == u64::MAX;
        let numbers: Vec<_> = read(reader, inbox, 0)
            .unwrap()
            .iter()
            .map(|block| block.first)
            .collect();
        let released = released.load(Ordering::SeqCst);
        for pair in numbers.windows(2) {
            assert!(
                pair[1] == pair[0] + 10 || pair[1] - 10 <= released,
                "{released} {numbers:?}"
            );
        }
        let last = numbers.last().copied().unwrap_or(released);
        assert!(last >= seen, "{last} {seen}");
        seen = last;
        if done {
            return;
        }
    }
}

pub(crate) fn readers_beside_appends_miss_nothing(opener: &dyn Opener) {
    let mut log = open(opener);
    let (reader, released) = (log.reader(), Arc::new(AtomicU64::new(0)));
    let watchers: Vec<_> = (0..2)
        .map(|inbox| {
            let (reader, released) = (Arc::clone(&reader), Arc::clone(&released));
            std::thread::spawn(move || watch(&*reader, inbox, &released))
        })
        .collect();
    for number in 1..=3000 {
        log.append(frame(number % 10, number), Durability::Process)
            .unwrap();
        if number > 100 {
            released.store(number - 100, Ordering::SeqCst);
            log.release(number % 10, number - 100);
        }
    }
    released.store(u64::MAX, Ordering::SeqCst);
    for watcher in watchers {
        watcher.join().unwrap();
    }
}

pub(crate) fn records_are_replayed_in_order(opener: &dyn Opener) {
    let mut log = open(opener);
    for text in ["one", "two", "three"] {
        append(&mut *log, records(text));
    }
    log.close().unwrap();
    let (mut log, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(
        replayed,
        [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()]
    );
    append(&mut *log, records("four"));
    log.close().unwrap();
    for _ in 0..3 {
        let (log, replayed) = open_with(opener, &mut |_| Some(0));
        assert_eq!(replayed.len(), 4);
        assert_eq!(replayed[3], b"four");
        log.close().unwrap();
    }
}

pub(crate) fn blocks_outlive_a_reopen(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=50 {
        append(
            &mut *log,
            blocks(vec![
                block(1, 2 * number, 2 * number),
                block(2, 2 * number + 1, 2 * number + 1),
            ]),
        );
    }
    log.close().unwrap();
    for _ in 0..3 {
        let log = open(opener);
        let expected: Vec<_> = (1..=50)
            .map(|number| block(1, 2 * number, 2 * number))
            .collect();
        check(&*log, 1, 0, &expected);
        check(&*log, 2, 99, &[block(2, 101, 101)]);
        log.close().unwrap();
    }
}

pub(crate) fn merged_blocks_outlive_a_reopen(opener: &dyn Opener) {
    let mut log = open(opener);
    for block in thirds(1, 2998) {
        append(&mut *log, blocks(vec![block]));
    }
    let mut cursor = 0;
    for (first, last) in [(1, 301), (304, 601), (1000, 1201), (604, 1501)] {
        append(&mut *log, merged(vec![block(7, first, last)]));
        drop(log);
        log = open_with(opener, &mut |_| Some(cursor)).0;
        cursor = first.min(304);
    }
    let expected = [
        vec![block(7, 304, 601), block(7, 604, 1501)],
        thirds(1504, 2998),
    ];
    log.release(7, 303);
    check(&*log, 7, 0, &expected.concat());
    drop(log);
    let mut log = open_with(opener, &mut |_| Some(2500)).0;
    check(&*log, 7, 0, &thirds(2503, 2998));
    log.release(7, 2998);
    assert_eq!(log.usage().live_bytes, 0);
}

pub(crate) fn dropped_log_keeps_machine_durable_frames(opener: &dyn Opener) {
    let mut log = open(opener);
    append(
        &mut *log,
        Frame {
            records: b"one".to_vec(),
            blocks: vec![block(1, 1, 1)],
            ..Frame::default()
        },
    );
    drop(log);
    let (log, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(replayed, [b"one"]);
    check(&*log, 1, 0, &[block(1, 1, 1)]);
}

pub(crate) fn retain_releases_by_cursor(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=30 {
        append(&mut *log, frame(number % 3, number));
    }
    drop(log);
    let (log, _) = open_with(opener, &mut |inbox| match inbox {
        0 => Some(0),
        1 => Some(25),
        _ => None,
    });
    check(&*log, 0, 24, &[block(0, 27, 27), block(0, 30, 30)]);
    check(&*log, 1, 0, &[block(1, 28, 28)]);
    check(&*log, 2, 0, &[]);
}

pub(crate) fn replay_begins_at_the_newest_checkpoint(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, records("old"));
    append(&mut *log, part("first", true, true));
    append(&mut *log, records("between"));
    append(&mut *log, part("second", true, true));
    append(&mut *log, records("after"));
    drop(log);
    let (_, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(replayed, [b"second".to_vec(), b"after".to_vec()]);
}

pub(crate) fn incomplete_checkpoint_is_not_used(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, part("whole", true, true));
    append(&mut *log, part("begun", true, false));
    append(&mut *log, part("more", false, false));
    drop(log);
    let (mut log, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(
        replayed,
        [b"whole".to_vec(), b"begun".to_vec(), b"more".to_vec()]
    );
    append(&mut *log, part("again", true, false));
    append(&mut *log, part("end", false, true));
    drop(log);
    let (_, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(replayed, [b"again".to_vec(), b"end".to_vec()]);
}

pub(crate) fn checkpoint_lies_beside_other_frames(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, records("old"));
    append(&mut *log, part("a", true, false));
    append(&mut *log, records("b"));
    append(&mut *log, part("c", false, true));
    append(&mut *log, records("d"));
    drop(log);
    let (_, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(replayed, [b"a", b"b", b"c", b"d"]);
}

pub(crate) fn blocks_before_a_checkpoint_are_kept(opener: &dyn Opener) {
    let mut log = open(opener);
    for number in 1..=200 {
        append(&mut *log, frame(number % 2, number));
        if number % 50 == 0 {
            append(&mut *log, part("begin", true, false));
            append(&mut *log, part("end", false, true));
        }
    }
    log.release(1, 99);
    drop(log);
    let (log, _) = open_with(opener, &mut |inbox| Some(if inbox == 1 { 99 } else { 0 }));
    let expected: Vec<_> = (1..=100)
        .map(|number| block(0, 2 * number, 2 * number))
        .collect();
    check(&*log, 0, 0, &expected);
    let expected: Vec<_> = (50..100)
        .map(|number| block(1, 2 * number + 1, 2 * number + 1))
        .collect();
    check(&*log, 1, 0, &expected);
}

pub(crate) fn error_of_the_replay_is_returned(opener: &dyn Opener) {
    let mut log = open(opener);
    append(&mut *log, records("unknown"));
    drop(log);
    let refused = super::OpenError::NotAStore("here".into());
    let mut refused = Some(refused);
    let result = opener.open(&mut |_| Err(refused.take().unwrap()));
    assert!(matches!(result, Err(super::OpenError::NotAStore(path)) if path.as_os_str() == "here"));
    let (_, replayed) = open_with(opener, &mut |_| Some(0));
    assert_eq!(replayed, [b"unknown"]);
}

/// Appends many times the capacity of the log, and releases blocks along the way.
pub(crate) fn space_of_released_blocks_is_used_again(opener: &dyn Opener) {
    let mut log = open(opener);
    let mut largest = 0;
    append(&mut *log, frame(1, 1));
    for number in 2..=6000 {
        log.append(frame(2, number), Durability::Process).unwrap();
        log.release(2, number);
        if log.is_checkpoint_due() {
            append(&mut *log, part("all of it", true, true));
        }
        if number == 1000 {
            largest = log.usage().file_bytes;
        }
    }
    assert!(
        log.usage().file_bytes <= 3 * largest,
        "{} {largest}",
        log.usage().file_bytes
    );
    check(&*log, 1, 0, &[block(1, 1, 1)]);
    check(&*log, 2, 0, &[]);
}
