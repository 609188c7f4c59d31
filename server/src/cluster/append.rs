//! [`Appender`]: the one append in flight of a candidate or an owner, until its outcome
//! is known.
//!
//! An append without an answer is repeated with the same bytes and the same condition.
//! The message at the next sequence decides: either it is this one, or the append will
//! never count.

use std::time::Duration;

use bytes::Bytes;

use super::bugs::{Bug, is_planted};
use super::{LogReply, LogRequest, timing};

/// A pending append.
#[derive(Debug)]
pub(super) struct Appender {
    id: u64,
    bytes: Bytes,
    /// The sequence that the message must directly follow.
    after: u64,
    begun: Duration,
    asked_at: Duration,
    /// The planted bug: no condition, and any sequence counts.
    is_unfenced: bool,
}

/// The outcome of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolution {
    /// The message at the next sequence is this one.
    Stored,
    /// Another message has that sequence: this append will never count.
    NotStored,
    /// The stream has lost messages.
    DataLost,
}

impl Appender {
    /// Returns an append of a message after the one at `after`. The caller must send
    /// [`Self::request`]. `id` identifies the append and the reads that resolve it.
    pub(super) const fn new(id: u64, bytes: Bytes, after: u64, now: Duration) -> Self {
        Self {
            id,
            bytes,
            after,
            begun: now,
            asked_at: now,
            is_unfenced: false,
        }
    }

    /// Plants a bug.
    pub(super) fn unfenced(self, is_unfenced: bool) -> Self {
        Self {
            is_unfenced,
            ..self
        }
    }

    /// Returns the message.
    pub(super) const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Returns when it was first sent.
    pub(super) const fn begun(&self) -> Duration {
        self.begun
    }

    /// Returns the request to append.
    pub(super) fn request(&self) -> LogRequest {
        let after = (!is_planted(Bug::NoFence) && !self.is_unfenced).then_some(self.after);
        LogRequest::Append {
            id: self.id,
            bytes: self.bytes.clone(),
            after,
        }
    }

    /// Returns the request again if it was not answered for a while.
    pub(super) fn repeat(&mut self, now: Duration) -> Option<LogRequest> {
        let wait = self.asked_at.saturating_sub(self.begun);
        let wait = wait.clamp(timing::LOG_RETRY, timing::APPEND_RETRY_MAX);
        if now.saturating_sub(self.asked_at) < wait {
            return None;
        }
        self.asked_at = now;
        Some(self.request())
    }

    /// Takes an answer. Returns the resolution, or the next request.
    pub(super) fn handle(
        &mut self,
        reply: &LogReply,
        now: Duration,
    ) -> Result<Resolution, Option<LogRequest>> {
        match reply {
            LogReply::Stored { id, sequence } if *id == self.id => {
                if *sequence == self.after + 1
                    || is_planted(Bug::AnySequenceCounts)
                    || self.is_unfenced
                {
                    return Ok(Resolution::Stored);
                }
                Err(Some(self.read(now)))
            }
            LogReply::Refused { id, last } if *id == self.id => match last.cmp(&self.after) {
                std::cmp::Ordering::Greater => Err(Some(self.read(now))),
                std::cmp::Ordering::Less => Ok(Resolution::DataLost),
                // The message was proposed after another one that was then lost.
                std::cmp::Ordering::Equal => Err(None),
            },
            LogReply::Page {
                id,
                first,
                messages,
                ..
            } if *id == self.id => match messages.first() {
                _ if *first > self.after + 1 => Ok(Resolution::NotStored),
                Some(message) if *message == self.bytes => Ok(Resolution::Stored),
                Some(_) => Ok(Resolution::NotStored),
                // The node that answered is behind.
                None => Err(None),
            },
            _ => Err(None),
        }
    }

    const fn read(&mut self, now: Duration) -> LogRequest {
        self.asked_at = now;
        LogRequest::Read {
            id: self.id,
            from: self.after + 1,
            messages_max: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn appender() -> Appender {
        Appender::new(3, Bytes::from_static(b"mine"), 7, Duration::ZERO)
    }

    fn page(first: u64, messages: &[&'static [u8]]) -> LogReply {
        let messages: Vec<_> = messages
            .iter()
            .map(|message| Bytes::from_static(message))
            .collect();
        LogReply::Page {
            id: 3,
            first,
            messages,
            last: 9,
        }
    }

    #[track_caller]
    fn check(reply: &LogReply, expected: Result<Resolution, bool>) {
        let resolved = appender().handle(reply, Duration::ZERO);
        assert_eq!(
            resolved.map_err(|next| matches!(next, Some(LogRequest::Read { from: 8, .. }))),
            expected
        );
    }

    #[test]
    fn only_the_next_sequence_counts_as_stored() {
        check(
            &LogReply::Stored { id: 3, sequence: 8 },
            Ok(Resolution::Stored),
        );
        check(&LogReply::Stored { id: 3, sequence: 9 }, Err(true));
        check(&LogReply::Stored { id: 2, sequence: 8 }, Err(false));
    }

    #[test]
    fn message_at_the_next_sequence_decides() {
        check(&LogReply::Refused { id: 3, last: 8 }, Err(true));
        check(&page(1, &[b"mine", b"other"]), Ok(Resolution::Stored));
        check(&page(1, &[b"other", b"mine"]), Ok(Resolution::NotStored));
        check(&page(1, &[]), Err(false));
        check(&page(9, &[b"mine"]), Ok(Resolution::NotStored));
    }

    #[test]
    fn stream_that_ends_too_early_has_lost_data() {
        check(
            &LogReply::Refused { id: 3, last: 6 },
            Ok(Resolution::DataLost),
        );
        check(&LogReply::Refused { id: 3, last: 7 }, Err(false));
    }

    #[test]
    fn append_is_repeated_with_its_bytes_and_condition() {
        let mut appender = appender();
        assert!(appender.repeat(Duration::from_millis(999)).is_none());
        let again = appender.repeat(Duration::from_secs(1));
        assert!(
            matches!(again, Some(LogRequest::Append { id: 3, after: Some(7), bytes }) if bytes == "mine")
        );
        assert!(appender.repeat(Duration::from_millis(1500)).is_none());
        let repeats =
            (6..120).filter(|tick| appender.repeat(Duration::from_millis(250 * tick)).is_some());
        let repeats: Vec<_> = repeats.map(|tick| tick / 4).collect();
        assert_eq!(repeats[..4], [2, 4, 8, 12]);
    }
}
