//! Failing operations, and a full disk.

use super::super::maintenance::Runner;
use super::model::{Run, SimOpener};
use super::sim::{Fault, Unsynced, random};
use crate::log::contract::{append, block, blocks, check, frame, open, part, read};
use crate::log::{AppendError, Durability, Log};

const SEGMENT_BYTES: u64 = 20 << 10;
const LARGER_BYTES: u64 = 64 << 10;
const STEPS: usize = 60;

/// Runs with a fault at one operation. Durable data must survive it, and a crash that
/// loses all unsynced data.
///
/// Returns whether the fault was reached.
fn fail_at(attempt: usize, fault: Fault, seed: u64) -> bool {
    let mut random = random(seed);
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut run = Run::new();
    let mut log = Some(run.reopen(&opener, 0).unwrap().0);
    opener.storage.fail(attempt, fault);
    for _ in 0..STEPS {
        let Some(open) = &mut log else {
            // The open fails if the fault was in it; then the next one succeeds.
            if let Ok((again, frame)) = run.reopen(&opener, run.durable) {
                run.truncate(frame);
                log = Some(again);
            }
            continue;
        };
        match run.step(&mut **open, &mut random) {
            Ok(()) | Err(AppendError::NoSpace) => {}
            Err(AppendError::Failed(_)) => log = None,
        }
    }
    drop(log);
    let at = opener.storage.operation_count();
    let left = opener.on(opener.storage.crash(at, Unsynced::Lost, &mut random));
    run.reopen(&left, run.durable).unwrap();
    opener.storage.attempt_count() > attempt
}

/// Fails each operation of a run in turn.
pub(super) fn fail_everywhere(fault: Fault, seed: u64) {
    fail_each(0, 1, fault, seed);
}

/// Fails one operation of `stride` in turn, from the first one named on.
fn fail_each(first: usize, stride: usize, fault: Fault, seed: u64) {
    let attempts = (first..10_000).step_by(stride);
    let reached = attempts
        .take_while(|&attempt| fail_at(attempt, fault, seed))
        .count();
    assert!(reached > STEPS / stride);
}

const FAULTS: [Fault; 3] = [Fault::Refuse, Fault::Short, Fault::Full];

#[test]
fn any_failing_operation_loses_nothing_durable() {
    let seed = super::seed();
    for (first, fault) in FAULTS.into_iter().enumerate() {
        fail_each(first, FAULTS.len(), fault, seed);
    }
}

/// The run merges blocks in a frame that is not to be synced, writes the index frame of
/// the segment of the blocks, and loses what is not synced.
#[test]
fn merged_block_survives_a_power_loss() {
    assert!(fail_at(60, Fault::Refuse, 2_120_363_064_165_537_204));
}

mod long {
    use super::*;

    #[test]
    fn any_failure_of_any_operation_loses_nothing_durable() {
        let seed = crate::log::disk::tests::seed();
        for fault in FAULTS {
            fail_everywhere(fault, seed);
        }
    }
}

#[test]
fn failed_log_refuses_appends() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = open(&opener);
    append(&mut *log, frame(1, 1));
    opener
        .storage
        .fail(opener.storage.attempt_count() + 1, Fault::Refuse);
    assert!(matches!(
        log.append(frame(1, 2), Durability::Machine),
        Err(AppendError::Failed(_))
    ));
    assert!(matches!(
        log.append(frame(1, 3), Durability::Machine),
        Err(AppendError::Failed(_))
    ));
    drop(log);
    check(&*open(&opener), 1, 0, &[block(1, 1, 1), block(1, 2, 2)]);
}

#[test]
fn panic_of_the_maintenance_fails_the_log() {
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut log = opener.open_disk(&mut |_| Ok(())).unwrap();
    append(&mut *log, frame(1, 1));
    assert!(!log.has_pending_work());
    log.runner = Some(Runner::spawn(&log.shared, || panic!("planned")).unwrap());
    while !log.has_pending_work() {
        std::thread::yield_now();
    }
    assert!(matches!(
        log.append(frame(1, 2), Durability::Machine),
        Err(AppendError::Failed(_))
    ));
    drop(log);
    append(&mut *open(&opener), frame(1, 3));
}

/// Fills a small disk with blocks of seven inboxes, until `is_full`.
fn fill(log: &mut dyn Log, is_full: fn(&dyn Log, &Result<(), AppendError>) -> bool) {
    for number in 1..10_000 {
        let mut one = block(number % 7, number, number);
        one.payload = vec![7; 500].into();
        let result = log.append(blocks(vec![one]), Durability::Machine);
        if is_full(log, &result) {
            assert!(number > 500, "{number}");
            return;
        }
        result.unwrap();
    }
    panic!("the disk is never full");
}

/// Releases most blocks, and appends checkpoints until their space is free again.
fn empty(log: &mut dyn Log) {
    for inbox in 0..7 {
        assert!(read(&*log.reader(), inbox, 0).unwrap().len() > 50);
    }
    for inbox in 0..6 {
        log.release(inbox, u64::MAX);
    }
    for round in 0..100 {
        append(log, part("state", round % 2 == 0, round % 2 == 1));
    }
    append(log, frame(9, 10_000));
    assert!(!log.is_low_on_space());
    assert!(
        log.usage().file_bytes < 8 * LARGER_BYTES,
        "{:?}",
        log.usage()
    );
    check(log, 9, 0, &[block(9, 10_000, 10_000)]);
    assert!(read(&*log.reader(), 6, 0).unwrap().len() > 50);
}

fn small_disk() -> SimOpener {
    let opener = SimOpener::new(LARGER_BYTES);
    opener.storage.set_capacity(Some(12 * LARGER_BYTES));
    opener
}

#[test]
fn reserve_is_enough_for_a_restart_and_checkpoints() {
    let opener = small_disk();
    let mut log = open(&opener);
    fill(&mut *log, |log, _| log.is_low_on_space());
    for _ in 0..5 {
        drop(log);
        log = open(&opener);
        assert!(log.is_low_on_space());
    }
    empty(&mut *log);
}

#[test]
fn refused_frame_leaves_the_log_usable() {
    let opener = small_disk();
    let mut log = open(&opener);
    fill(&mut *log, |_, result| {
        matches!(result, Err(AppendError::NoSpace))
    });
    opener.storage.set_capacity(Some(14 * LARGER_BYTES));
    empty(&mut *log);
    drop(log);
    check(&*open(&opener), 9, 0, &[block(9, 10_000, 10_000)]);
}
