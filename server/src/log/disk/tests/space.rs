//! The space that a log takes: copies under load, and files that fail.

use super::model::SimOpener;
use crate::log::contract::{append, block, blocks, open, part};
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
