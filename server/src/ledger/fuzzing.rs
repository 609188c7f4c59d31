//! The fuzz target `records`: arbitrary bytes as records and as messages.

#![expect(clippy::panic, reason = "a target fails by panicking")]

use super::{Limits, Replay, RoomLimits, block, record};

const LIMITS: Limits = Limits {
    accounts_max: 100,
    sessions_max: 100,
    queued_messages_max: 100,
    queued_bytes_max: 100,
    rooms: RoomLimits::DEFAULT,
    space: super::SpaceLimits::NONE,
    expiry: super::Expiry::NONE,
};

/// Decodes the bytes as the records of a frame, or as the messages of a block.
///
/// # Panics
/// If encoding does not reproduce the decoded bytes, or two replays differ.
pub fn records(data: &[u8]) {
    let [what, first, last, bytes @ ..] = data else {
        return;
    };
    if what % 2 == 0 {
        block::check_any(u64::from(*first), u64::from(*last), bytes);
        return;
    }
    record::check_any(bytes);
    let mut replay = Replay::new(LIMITS);
    // A second replay must agree on the validity of the bytes.
    if replay.frame(bytes).is_err() && replay.frame(bytes).is_ok() {
        panic!("bytes are malformed once");
    }
    drop(replay.finish(0));
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_bytes_are_refused_or_written_as_they_are_read() {
        hark_seeds::check("records", super::records);
    }
}
