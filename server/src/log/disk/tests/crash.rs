//! A kill at every operation of a recorded run, and in the middle of the open that
//! follows it.

use rand::rngs::StdRng;

use super::model::{Run, SimOpener};
use super::sim::{Unsynced, below, random};
use crate::log::OpenError;

const SEGMENT_BYTES: u64 = 20 << 10;

/// The frames that had returned after a number of operations.
#[derive(Debug, Clone, Copy)]
struct Mark {
    operations: usize,
    durable: u64,
    returned: u64,
}

/// Records a run of some steps with some reopens.
fn record(seed: u64, steps: usize) -> (Run, SimOpener, Vec<Mark>) {
    let mut random = random(seed);
    let opener = SimOpener::new(SEGMENT_BYTES);
    let mut run = Run::new();
    let mut log = run.reopen(&opener, 0).unwrap().0;
    let mut marks = vec![Mark {
        operations: 0,
        durable: 0,
        returned: 0,
    }];
    for _ in 0..steps {
        run.step(&mut *log, &mut random).unwrap();
        run.compare(&*log, run.returned).unwrap();
        if below(&mut random, 30) == 0 {
            drop(log);
            log = run.reopen(&opener, run.returned).unwrap().0;
            run.durable = run.returned;
        }
        let operations = opener.storage.operation_count();
        marks.push(Mark {
            operations,
            durable: run.durable,
            returned: run.returned,
        });
    }
    run.compare(&*log, run.returned).unwrap();
    (run, opener, marks)
}

/// Opens the remains of a crash; then kills that open, too, and opens again.
fn check_crash(
    run: &Run,
    opener: &SimOpener,
    mark: Mark,
    at: usize,
    unsynced: Unsynced,
    random: &mut StdRng,
) {
    println!("operation {at}, {mark:?}, {unsynced:?}");
    let least = if unsynced == Unsynced::Kept {
        mark.returned
    } else {
        mark.durable
    };
    let left = opener.on(opener.storage.crash(at, unsynced, random));
    let (log, frame) = run.reopen(&left, least).unwrap();
    drop(log);
    let at = below(random, left.storage.operation_count() as u64 + 1) as usize;
    let again = left.on(left.storage.crash(at, unsynced, random));
    run.reopen(&again, least).unwrap();
    // All data that was served once is there again.
    let at = left.storage.operation_count();
    let again = left.on(left.storage.crash(at, Unsynced::Lost, random));
    run.reopen(&again, frame).unwrap();
}

/// Kills a run before each operation, or before one of `stride`.
pub(super) fn kill_everywhere(seed: u64, steps: usize, stride: usize) {
    println!("seed {seed}");
    let (run, opener, marks) = record(seed, steps);
    let mut random = random(seed);
    let mut mark = 0;
    for at in (0..=opener.storage.operation_count()).step_by(stride) {
        while marks
            .get(mark + 1)
            .is_some_and(|next| next.operations <= at)
        {
            mark += 1;
        }
        for unsynced in [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn] {
            check_crash(&run, &opener, marks[mark], at, unsynced, &mut random);
        }
    }
    assert!(run.returned as usize > steps / 2);
}

#[test]
fn kill_at_every_operation_loses_nothing_durable() {
    kill_everywhere(1, 120, 1);
}

#[test]
fn kill_at_random_operations_of_long_runs_loses_nothing() {
    kill_at_random(super::seed(), 50);
}

/// Kills a long run before random operations.
fn kill_at_random(seed: u64, kills: usize) {
    let mut random = random(seed);
    let (run, opener, marks) = record(seed, 1500);
    for _ in 0..kills {
        let at = below(&mut random, opener.storage.operation_count() as u64 + 1) as usize;
        let mark = marks
            .iter()
            .rev()
            .find(|mark| mark.operations <= at)
            .unwrap();
        let unsynced = [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn][at % 3];
        check_crash(&run, &opener, *mark, at, unsynced, &mut random);
    }
}

#[test]
fn kill_on_full_disk_loses_nothing() {
    kill_when_full(super::seed(), 50);
}

/// Kills a run before random operations, with no space left for the open that follows.
fn kill_when_full(seed: u64, kills: usize) {
    let mut random = random(seed);
    let (run, opener, marks) = record(seed, 600);
    let mut opened = 0;
    for _ in 0..kills {
        let at = below(&mut random, opener.storage.operation_count() as u64 + 1) as usize;
        let mark = marks
            .iter()
            .rev()
            .find(|mark| mark.operations <= at)
            .unwrap();
        let unsynced = [Unsynced::Kept, Unsynced::Lost, Unsynced::Torn][at % 3];
        println!("operation {at}, {mark:?}, {unsynced:?}");
        let least = if unsynced == Unsynced::Kept {
            mark.returned
        } else {
            mark.durable
        };
        let left = opener.on(opener.storage.crash(at, unsynced, &mut random));
        left.storage.set_capacity(Some(0));
        let frame = match run.reopen(&left, least) {
            Ok((_, frame)) => {
                opened += 1;
                frame
            }
            // There is no segment yet.
            Err(OpenError::Io { .. }) => {
                left.storage.set_capacity(None);
                run.reopen(&left, least).unwrap().1
            }
            Err(error) => panic!("{error}"),
        };
        let end = left.storage.operation_count();
        let at = below(&mut random, end as u64 + 1) as usize;
        run.reopen(
            &left.on(left.storage.crash(at, unsynced, &mut random)),
            least,
        )
        .unwrap();
        run.reopen(
            &left.on(left.storage.crash(end, Unsynced::Lost, &mut random)),
            frame,
        )
        .unwrap();
    }
    assert!(opened > kills * 9 / 10, "{opened}");
}

mod long {
    use super::*;

    #[test]
    fn kill_at_every_operation_of_more_runs_loses_nothing() {
        for seed in [2, 3, crate::log::disk::tests::seed()] {
            kill_everywhere(seed, 120, 1);
        }
    }

    #[test]
    fn more_kills_of_long_runs_lose_nothing() {
        kill_at_random(crate::log::disk::tests::seed(), 500);
    }

    #[test]
    fn more_kills_on_full_disk_lose_nothing() {
        kill_when_full(crate::log::disk::tests::seed(), 500);
    }
}
