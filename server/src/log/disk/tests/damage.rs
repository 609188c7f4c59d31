//! Changed bytes, and files that are missing.

use super::super::format::FRAMES_START;
use super::super::segment::Segment;
use super::model::{Ledger, Run, SimOpener};
use super::sim::{SimStorage, below, random};
use crate::log::contract::read;
use crate::log::{OpenError, Opener as _, ReadError};

const SEGMENT_BYTES: u64 = 20 << 10;

/// The result of opening a damaged log.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It holds everything.
    Whole,
    /// It holds everything but the last frame.
    Torn,
    /// It cannot be opened.
    Refused,
    /// A block cannot be read, but all others can.
    Unreadable,
}

/// Opens a log and compares it with the model.
fn outcome(run: &Run, opener: &SimOpener) -> Outcome {
    let mut ledger = Ledger::default();
    let result = opener.open(&mut |records| {
        ledger.apply(records);
        Ok(())
    });
    let mut log = match result {
        Ok(log) => log,
        Err(OpenError::Damaged { .. }) => return Outcome::Refused,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(ledger, run.states[ledger.frame as usize]);
    log.retain(&mut |inbox| ledger.cursors.get(&inbox).copied());
    let reader = log.reader();
    let mut is_unreadable = false;
    for &inbox in ledger.cursors.keys() {
        let expected = run.expected(ledger.frame, inbox);
        match read(&*reader, inbox, 0) {
            Ok(blocks) => assert_eq!(blocks, expected),
            Err(ReadError::Damaged {
                inbox: of, first, ..
            }) => {
                assert_eq!(of, inbox);
                assert!(
                    expected
                        .iter()
                        .any(|block| block.first <= first && first <= block.last + 1000)
                );
                is_unreadable = true;
            }
            Err(error) => panic!("{error}"),
        }
    }
    match (ledger.frame == run.returned, is_unreadable) {
        (true, false) => Outcome::Whole,
        (true, true) => Outcome::Unreadable,
        (false, _) => {
            assert!(
                ledger.frame + 1 == run.returned,
                "{} {}",
                ledger.frame,
                run.returned
            );
            Outcome::Torn
        }
    }
}

/// Creates a log with several segments. Returns the location of its last frame.
fn make(seed: u64) -> (Run, SimOpener, String, std::ops::Range<usize>) {
    let mut random = random(seed);
    let opener = SimOpener::new(SEGMENT_BYTES);
    // A frame without a sync of its own may be torn as well.
    let mut run = Run::new();
    run.is_mixed = false;
    let mut log = run.reopen(&opener, 0).unwrap().0;
    for step in 0.. {
        assert!(step < 3000, "there is never enough to damage");
        let before = log.shared.segments.select(|_| true).len();
        run.step(&mut *log, &mut random).unwrap();
        // A segment that the last frame freed is used again: its loss shows.
        let is_freeing = log.shared.segments.select(|_| true).len() < before;
        let live = |segment: &Segment| segment.table().is_some() && segment.live() > 10;
        let sealed = log.shared.segments.select(live).len();
        let start = log.writer.last_frame_start();
        if step > 150
            && !is_freeing
            && sealed >= 2
            && start > FRAMES_START + SEGMENT_BYTES / 8
            && run.durable == run.returned
        {
            break;
        }
    }
    let segment = log.shared.segments.get(log.writer.active()).unwrap();
    let last = log.writer.last_frame_start() as usize..log.writer.offset() as usize;
    (run, opener, segment.slot.name.clone(), last)
}

/// Opens a modified copy.
fn check_change(run: &Run, opener: &SimOpener, change: impl FnOnce(&SimStorage)) -> Outcome {
    let changed = opener.on(opener.storage.copy());
    change(&changed.storage);
    outcome(run, &changed)
}

#[test]
fn any_changed_byte_is_found_or_harmless() {
    change_bytes(super::seed(), 40);
}

/// Changes every byte of the last frame, and of each file one of `least` to twice as
/// many bytes.
fn change_bytes(seed: u64, least: u64) {
    let (run, opener, active, last) = make(seed);
    assert_eq!(
        outcome(&run, &opener.on(opener.storage.copy())),
        Outcome::Whole
    );
    let mut random = random(seed);
    let mut outcomes = Vec::new();
    for (name, length) in opener.storage.files() {
        let step = (least + below(&mut random, least)) as usize;
        let bytes =
            (0..length).filter(|byte| byte % step == 0 || name == active && last.contains(byte));
        for byte in bytes {
            let bit = 1 << below(&mut random, 8);
            let outcome = check_change(&run, &opener, |storage| {
                storage.damage(&name, |bytes| bytes[byte] ^= bit);
            });
            let is_last = name == active && last.contains(&byte);
            assert!(outcome != Outcome::Torn || is_last, "{name} at {byte}");
            outcomes.push(outcome);
        }
    }
    for expected in [
        Outcome::Whole,
        Outcome::Refused,
        Outcome::Unreadable,
        Outcome::Torn,
    ] {
        assert!(outcomes.contains(&expected), "{expected:?}");
    }
}

mod long {
    #[test]
    fn any_byte_of_many_is_found_or_harmless() {
        super::change_bytes(crate::log::disk::tests::seed(), 4);
    }
}

#[test]
fn missing_or_short_segment_is_found() {
    let (run, opener, active, _) = make(3);
    let mut refused = 0;
    for (name, length) in opener.storage.files() {
        for new_length in [None, Some(0), Some(length / 2), Some(9000)] {
            let outcome = check_change(&run, &opener, |storage| match new_length {
                None => crate::log::disk::file::Storage::remove(storage, &name).unwrap(),
                Some(length) => storage.damage(&name, |bytes| bytes.truncate(length)),
            });
            // A file that holds no segment of the log may be missing.
            assert!(
                matches!(outcome, Outcome::Refused | Outcome::Whole),
                "{name} {outcome:?}"
            );
            assert!(name != active || outcome == Outcome::Refused);
            refused += usize::from(outcome == Outcome::Refused);
        }
    }
    assert!(refused >= 12);
}

#[test]
fn lost_index_frames_are_made_again() {
    let (run, opener, ..) = make(4);
    let outcome = check_change(&run, &opener, |storage| {
        for (name, length) in storage.files() {
            if name != "HEAD" {
                storage.damage(&name, |bytes| bytes[length - 48..].fill(0));
            }
        }
    });
    assert_eq!(outcome, Outcome::Whole);
}
