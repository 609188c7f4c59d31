//! The text of a measured message, with its due time, sender and number; and the check of
//! arrivals, which detects every lost, repeated and reordered message.

use std::time::Instant;

use anyhow::ensure;

/// The length of every text, in bytes.
pub(crate) const TEXT_BYTES: usize = 100;

/// The hexadecimal digits of the three numbers of a text.
const DUE_DIGITS: usize = 16;
const SENDER_DIGITS: usize = 4;
const NUMBER_DIGITS: usize = 8;

/// An encoded text.
pub(crate) type Text = [u8; TEXT_BYTES];

/// The content of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// The due time, in nanoseconds of the [`Clock`]: in a closed loop the time of the send, in
    /// an open loop the scheduled time, so that delays of the sender count.
    pub(crate) due_ns: u64,
    /// The sender.
    pub(crate) sender: u16,
    /// The number within its sender's messages, from 0.
    pub(crate) number: u32,
}

impl Stamp {
    /// Encodes a text.
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

    /// Decodes a text.
    ///
    /// # Errors
    /// If it is malformed.
    pub(crate) fn read(text: &[u8]) -> anyhow::Result<Self> {
        ensure!(
            text.len() == TEXT_BYTES,
            "malformed text of {} bytes, expected {TEXT_BYTES}",
            text.len()
        );
        let (due, rest) = text.split_at(DUE_DIGITS);
        let (sender, rest) = rest.split_at(SENDER_DIGITS);
        let (number, filling) = rest.split_at(NUMBER_DIGITS);
        ensure!(filling.first() == Some(&b'x'), "malformed text");
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
            _ => anyhow::bail!("malformed text"),
        };
        Ok(value << 4 | u64::from(digit))
    })
}

/// The clock of one run, shared by its connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Returns a clock that starts now.
    pub(crate) fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the nanoseconds since its start.
    pub(crate) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Returns the instant of a time of this clock.
    pub(crate) fn at(self, ns: u64) -> Instant {
        self.0 + std::time::Duration::from_nanos(ns)
    }
}

/// Returns the receiver of the `number`-th message of a sender: round robin, from a different
/// start for each sender.
pub(crate) const fn receiver_of(sender: usize, number: u32, receivers: usize) -> usize {
    (sender + number as usize) % receivers
}

/// The arrivals at one receiver, by sender.
#[derive(Debug, Clone)]
pub(crate) struct Arrivals {
    /// The next expected number of each sender.
    expected: Vec<u32>,
    receivers: u32,
    faults: Faults,
}

/// The numbers of faulty messages.
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
    /// Returns the expectations of one receiver.
    pub(crate) fn expect(receiver: usize, receivers: usize, senders: usize) -> Self {
        let first = |sender: usize| (receiver + receivers - sender % receivers) % receivers;
        Self {
            expected: (0..senders)
                .map(|sender| u32::try_from(first(sender)).unwrap_or(u32::MAX))
                .collect(),
            receivers: u32::try_from(receivers).unwrap_or(u32::MAX),
            faults: Faults::default(),
        }
    }

    /// Records a message. Returns whether it is new.
    ///
    /// # Errors
    /// If its sender is unknown.
    pub(crate) fn take(&mut self, stamp: Stamp) -> anyhow::Result<bool> {
        let Some(expected) = self.expected.get_mut(usize::from(stamp.sender)) else {
            anyhow::bail!("text of unknown sender {}", stamp.sender);
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

    /// Returns the faults, given the accepted messages of each sender.
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
    fn text_round_trips() {
        for stamp in [
            Stamp {
                due_ns: 0,
                sender: 0,
                number: 0,
            },
            Stamp {
                due_ns: u64::MAX,
                sender: u16::MAX,
                number: u32::MAX,
            },
            Stamp {
                due_ns: 1_234_567_890,
                sender: 63,
                number: 77,
            },
        ] {
            assert_eq!(Stamp::read(&stamp.write()).unwrap(), stamp);
        }
        Stamp::read(b"short").unwrap_err();
        Stamp::read(&[b'z'; TEXT_BYTES]).unwrap_err();
    }

    #[test]
    fn messages_are_spread_over_all_receivers() {
        let (senders, receivers) = (3, 4);
        let mut arrivals: Vec<_> = (0..receivers)
            .map(|receiver| Arrivals::expect(receiver, receivers, senders))
            .collect();
        for number in 0..10 {
            for sender in 0..senders {
                let stamp = Stamp {
                    due_ns: 0,
                    sender: sender as u16,
                    number,
                };
                assert!(
                    arrivals[receiver_of(sender, number, receivers)]
                        .take(stamp)
                        .unwrap()
                );
            }
        }
        for arrivals in &arrivals {
            assert_eq!(arrivals.faults(&[10; 3]), Faults::default());
        }
        let missing: u64 = arrivals
            .iter()
            .map(|arrivals| arrivals.faults(&[14; 3]).lost)
            .sum();
        assert_eq!(missing, 12, "four more of each of three");
    }

    #[test]
    fn lost_and_repeated_messages_are_counted() {
        let mut arrivals = Arrivals::expect(1, 2, 1);
        let mut take = |number| {
            arrivals
                .take(Stamp {
                    due_ns: 0,
                    sender: 0,
                    number,
                })
                .unwrap()
        };
        assert_eq!([1, 3, 3, 9].map(&mut take), [true, true, false, true]);
        assert_eq!(
            arrivals.faults(&[10]),
            Faults {
                lost: 2,
                repeated: 1
            }
        );
        arrivals
            .take(Stamp {
                due_ns: 0,
                sender: 1,
                number: 0,
            })
            .unwrap_err();
    }
}
