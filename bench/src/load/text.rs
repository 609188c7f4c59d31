//! The text of a measured message, which says when it was due, who sent it and
//! which one of that sender it is; and the account of what arrived, by which
//! nothing lost, doubled or out of order goes unnoticed.

use std::time::Instant;

use anyhow::ensure;

/// Bytes of every measured text.
pub(crate) const TEXT_BYTES: usize = 100;

/// Hexadecimal digits of the three numbers in a text.
const DUE_DIGITS: usize = 16;
const SENDER_DIGITS: usize = 4;
const NUMBER_DIGITS: usize = 8;

/// A text, as it is sent.
pub(crate) type Text = [u8; TEXT_BYTES];

/// What a text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// When it was due to be sent, in nanoseconds of the [`Clock`]. In a closed
    /// loop that is when it was sent; in an open one it is when the schedule
    /// said, so that whoever makes the sender wait pays for what waits too.
    pub(crate) due_ns: u64,
    /// Who sent it.
    pub(crate) sender: u16,
    /// Which message of that sender it is, from 0.
    pub(crate) number: u32,
}

impl Stamp {
    /// The text that says so.
    pub(crate) fn write(&self) -> Text {
        let mut text = [b'x'; TEXT_BYTES];
        let (due, rest) = text.split_at_mut(DUE_DIGITS);
        let (sender, rest) = rest.split_at_mut(SENDER_DIGITS);
        let (number, _) = rest.split_at_mut(NUMBER_DIGITS);
        put_hex(due, self.due_ns);
        put_hex(sender, u64::from(self.sender));
        put_hex(number, u64::from(self.number));
        text
    }

    /// What a text says.
    ///
    /// # Errors
    /// Where it is none of ours.
    pub(crate) fn read(text: &[u8]) -> anyhow::Result<Self> {
        ensure!(text.len() == TEXT_BYTES, "a text of {} bytes arrived, not of {TEXT_BYTES}", text.len());
        let (due, rest) = text.split_at(DUE_DIGITS);
        let (sender, rest) = rest.split_at(SENDER_DIGITS);
        let (number, filling) = rest.split_at(NUMBER_DIGITS);
        ensure!(filling.first() == Some(&b'x'), "a text arrived that nobody sent");
        Ok(Self {
            due_ns: hex(due)?,
            sender: u16::try_from(hex(sender)?)?,
            number: u32::try_from(hex(number)?)?,
        })
    }
}

fn put_hex(to: &mut [u8], mut value: u64) {
    const DIGITS: [u8; 16] = *b"0123456789abcdef";
    for digit in to.iter_mut().rev() {
        *digit = DIGITS.get((value & 15) as usize).copied().unwrap_or(b'?');
        value >>= 4;
    }
}

fn hex(digits: &[u8]) -> anyhow::Result<u64> {
    digits.iter().try_fold(0u64, |value, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => anyhow::bail!("a text arrived that nobody sent"),
        };
        Ok(value << 4 | u64::from(digit))
    })
}

/// The time of one run, the same for all of its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Nanoseconds since it was started.
    pub(crate) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the clock says so.
    pub(crate) fn at(self, ns: u64) -> Instant {
        self.0 + std::time::Duration::from_nanos(ns)
    }
}

/// The receiver of the `number`-th message of a sender: each sender goes round
/// all receivers, and each begins with another.
pub(crate) const fn receiver_of(sender: usize, number: u32, receivers: usize) -> usize {
    (sender + number as usize) % receivers
}

/// What one receiver has got, by sender.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    /// The next number from each sender.
    expected: Vec<u32>,
    receivers: u32,
    faults: Faults,
}

/// What was not as it should be, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Faults {
    /// Accepted and never delivered.
    pub(crate) lost: u64,
    /// Delivered before, or after a later one of the same sender.
    pub(crate) repeated: u64,
}

impl std::ops::AddAssign for Faults {
    fn add_assign(&mut self, other: Self) {
        self.lost += other.lost;
        self.repeated += other.repeated;
    }
}

impl Arrivals {
    /// What `receiver` of `receivers` expects from so many senders.
    pub(crate) fn expect(receiver: usize, receivers: usize, senders: usize) -> Self {
        let first = |sender: usize| (receiver + receivers - sender % receivers) % receivers;
        Self {
            expected: (0..senders).map(|sender| u32::try_from(first(sender)).unwrap_or(u32::MAX)).collect(),
            receivers: u32::try_from(receivers).unwrap_or(u32::MAX),
            faults: Faults::default(),
        }
    }

    /// Takes down one message; whether it is a new one.
    ///
    /// # Errors
    /// Where there is no such sender.
    pub(crate) fn take(&mut self, stamp: Stamp) -> anyhow::Result<bool> {
        let Some(expected) = self.expected.get_mut(usize::from(stamp.sender)) else {
            anyhow::bail!("a text of sender {} arrived, which there is not", stamp.sender);
        };
        let is_new = stamp.number >= *expected;
        if is_new {
            self.faults.lost += u64::from((stamp.number - *expected) / self.receivers);
            *expected = stamp.number + self.receivers;
        } else {
            self.faults.repeated += 1;
        }
        Ok(is_new)
    }

    /// What went wrong, once each sender has had so many accepted.
    pub(crate) fn faults(&self, accepted: &[u32]) -> Faults {
        let missing = |(expected, accepted): (&u32, &u32)| {
            u64::from(accepted.saturating_sub(*expected).div_ceil(self.receivers))
        };
        let mut faults = self.faults;
        faults.lost += self.expected.iter().zip(accepted).map(missing).sum::<u64>();
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_says_what_was_written_into_it() {
        for stamp in [
            Stamp { due_ns: 0, sender: 0, number: 0 },
            Stamp { due_ns: u64::MAX, sender: u16::MAX, number: u32::MAX },
            Stamp { due_ns: 1_234_567_890, sender: 63, number: 77 },
        ] {
            assert_eq!(Stamp::read(&stamp.write()).unwrap(), stamp);
        }
        Stamp::read(b"short").unwrap_err();
        Stamp::read(&[b'z'; TEXT_BYTES]).unwrap_err();
    }

    #[test]
    fn every_receiver_gets_its_part_of_what_goes_round() {
        let (senders, receivers) = (3, 4);
        let mut arrivals: Vec<_> =
            (0..receivers).map(|receiver| Arrivals::expect(receiver, receivers, senders)).collect();
        for number in 0..10 {
            for sender in 0..senders {
                let stamp = Stamp { due_ns: 0, sender: sender as u16, number };
                assert!(arrivals[receiver_of(sender, number, receivers)].take(stamp).unwrap());
            }
        }
        for arrivals in &arrivals {
            assert_eq!(arrivals.faults(&[10; 3]), Faults::default());
        }
        let missing: u64 = arrivals.iter().map(|arrivals| arrivals.faults(&[14; 3]).lost).sum();
        assert_eq!(missing, 12, "four more of each of three");
    }

    #[test]
    fn what_is_lost_or_repeated_is_counted() {
        let mut arrivals = Arrivals::expect(1, 2, 1);
        let mut take = |number| arrivals.take(Stamp { due_ns: 0, sender: 0, number }).unwrap();
        assert_eq!([1, 3, 3, 9].map(&mut take), [true, true, false, true]);
        assert_eq!(arrivals.faults(&[10]), Faults { lost: 2, repeated: 1 });
        arrivals.take(Stamp { due_ns: 0, sender: 1, number: 0 }).unwrap_err();
    }
}
