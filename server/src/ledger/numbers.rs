//! The counter of a store, for the numbers of messages and accounts, and its initial
//! value.
//!
//! At every open, the counter becomes the larger of the persisted counter and Unix
//! seconds × 2²¹. So neither a restored copy nor a new store at the same address repeats
//! a number, as long as the clock is right.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Numbers reserved at a time. Unused ones are lost when the store closes.
const RESERVED: u64 = 65_536;

/// Numbers for each second since 1970, as bits.
pub(crate) const NUMBERS_PER_SECOND_BITS: u32 = 21;

/// The largest initial counter of a store. Numbers stay below 2⁵³, so that JSON can carry
/// them; 2⁴⁰ of them are left above this.
pub const COUNTER_MAX: u64 = (1 << 53) - (1 << 40);

/// The release of this version, 2026-11-01, in Unix seconds: a clock before it is
/// wrong.
const RELEASED: u64 = 1_793_491_200;

/// The clock is wrong if it is later than the release by more than this: 20 years.
const CLOCK_AHEAD_MAX: u64 = 20 * 365 * 86_400 + 5 * 86_400;

/// The clock of the machine is wrong, so that numbers cannot depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot number messages: the clock of this machine says {unix_seconds} s since 1970, which cannot be right; set the clock, or use --numbers-after with a number above all that were ever used"
)]
pub struct WrongClock {
    /// The time of the clock, in Unix seconds; 0 if it is before 1970.
    pub unix_seconds: u64,
}

/// Returns the counter at `time`: Unix seconds × 2²¹ plus the fraction of the second, so
/// that a copy restored within a second repeats no number either.
///
/// # Errors
/// [`WrongClock`] if the time is before the release of this version or over 20 years
/// after it.
pub(crate) fn counter_at(time: SystemTime) -> Result<u64, WrongClock> {
    let unix_seconds = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    if !(RELEASED..=RELEASED + CLOCK_AHEAD_MAX).contains(&unix_seconds) {
        return Err(WrongClock { unix_seconds });
    }
    let nanos = time
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .subsec_nanos();
    let within_second = (u64::from(nanos) << NUMBERS_PER_SECOND_BITS) / 1_000_000_000;
    Ok((unix_seconds << NUMBERS_PER_SECOND_BITS) + within_second)
}

/// Returns the time until the next full second of the clock.
pub(crate) fn until_next_second(time: SystemTime) -> Duration {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(1) - Duration::from_nanos(u64::from(since.subsec_nanos()))
}

/// The counter.
#[derive(Debug, Clone, Copy)]
pub(super) struct Numbers {
    /// The last assigned number.
    last: u64,
    /// Numbers up to this one are reserved durably, or will be with this frame.
    reserved: u64,
}

impl Numbers {
    /// Returns a counter that begins after `last`, with nothing reserved.
    pub(super) const fn after(last: u64) -> Self {
        Self {
            last,
            reserved: last,
        }
    }

    /// Returns the last assigned number.
    pub(super) const fn last(self) -> u64 {
        self.last
    }

    /// Returns the bound of all numbers that may have been assigned.
    pub(super) const fn reserved(self) -> u64 {
        self.reserved
    }

    /// Assigns the next number. Also returns a new bound if numbers were reserved, which
    /// must be recorded in this frame.
    pub(super) const fn next(&mut self) -> (u64, Option<u64>) {
        let mut bound = None;
        if self.last >= self.reserved {
            self.reserved = self.last + RESERVED;
            bound = Some(self.reserved);
        }
        self.last += 1;
        (self.last, bound)
    }

    /// Skips the numbers up to `number`. Returns the new bound if it was raised.
    pub(super) const fn skip(&mut self, number: u64) -> Option<u64> {
        if number <= self.last {
            return None;
        }
        self.last = number;
        if number <= self.reserved {
            return None;
        }
        self.reserved = number;
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(unix_seconds: u64) -> Result<u64, WrongClock> {
        counter_at(UNIX_EPOCH + Duration::from_secs(unix_seconds))
    }

    #[test]
    fn counter_follows_the_clock_below_2_to_53() {
        assert_eq!(at(RELEASED), Ok(RELEASED << 21));
        let latest = at(RELEASED + CLOCK_AHEAD_MAX).unwrap();
        assert!(latest < COUNTER_MAX, "{latest}");
    }

    #[test]
    fn clock_outside_of_its_20_years_is_refused() {
        for unix_seconds in [0, RELEASED - 1, RELEASED + CLOCK_AHEAD_MAX + 1] {
            assert_eq!(at(unix_seconds), Err(WrongClock { unix_seconds }));
        }
        let before_1970 = UNIX_EPOCH - Duration::from_secs(9);
        assert_eq!(counter_at(before_1970), Err(WrongClock { unix_seconds: 0 }));
    }

    #[test]
    fn next_full_second_is_at_most_a_second_away() {
        for nanos in [0, 1, 999_999_999] {
            let time = UNIX_EPOCH + Duration::new(5, nanos);
            assert_eq!(
                time + until_next_second(time),
                UNIX_EPOCH + Duration::from_secs(6)
            );
        }
    }

    #[test]
    fn numbers_are_reserved_before_they_are_given_out() {
        let mut numbers = Numbers::after(10);
        assert_eq!(numbers.next(), (11, Some(10 + RESERVED)));
        for number in 12..=10 + RESERVED {
            assert_eq!(numbers.next(), (number, None));
        }
        assert_eq!(numbers.next(), (11 + RESERVED, Some(10 + 2 * RESERVED)));
    }

    #[test]
    fn skipped_numbers_are_not_given_out() {
        let mut numbers = Numbers::after(10);
        assert_eq!(numbers.skip(10), None);
        assert_eq!(numbers.skip(20), Some(20));
        assert_eq!(numbers.next(), (21, Some(20 + RESERVED)));
        assert_eq!(numbers.skip(30), None);
        assert_eq!(numbers.next(), (31, None));
    }
}
