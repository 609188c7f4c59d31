//! Reading a room backwards. The log reads forwards only: a search finds the place at which
//! to begin. Each step of it reads one block; no step depends on the number of messages.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use hark_protocol::Sequence;

use super::readers::PageError;
use crate::ledger::{self, BlockContent, Gap, Malformed};
use crate::log::{Block, Reader};
use crate::store::{History, Message, PastPage, Position, ReadLimit};

/// The maximum number of steps of the search: two for each bit of a number. The result is
/// right after any number of steps; more steps save reads.
const STEPS_MAX: usize = 128;

/// Reads the last messages before a number; from the end if it is 0.
pub(super) fn read_back(
    reader: &dyn Reader,
    history: History,
    before: Sequence,
    limit: ReadLimit,
) -> Result<PastPage, PageError> {
    let log = RoomLog {
        reader,
        room: history.room,
    };
    let begin = log.position_at(history.after)?;
    let end = match before.0.checked_sub(1) {
        Some(last) if last < history.last.sequence.0 => log.position_at(last)?,
        _ => None,
    };
    let (begin, end) = (begin.unwrap_or(history.last), end.unwrap_or(history.last));
    if begin.messages >= end.messages {
        return Ok(PastPage::default());
    }
    let bounds = Bounds { begin, end, limit };
    let from = log.search(&bounds)?;
    let messages = log.last_messages(&bounds, from)?;
    let oldest = log.first_above(begin)?;
    Ok(PastPage { messages, oldest })
}

/// Returns the position of the last message of a log up to a number, or `None` if there is
/// none above.
pub(super) fn position_at(
    reader: &dyn Reader,
    room: u64,
    number: u64,
) -> Result<Option<Position>, PageError> {
    RoomLog { reader, room }.position_at(number)
}

/// The messages that may be in the page.
struct Bounds {
    /// The position before the first one.
    begin: Position,
    /// The position of the last one.
    end: Position,
    limit: ReadLimit,
}

impl Bounds {
    /// Returns whether a page that begins after a position is too long.
    fn is_far(&self, position: Position) -> bool {
        let messages = self.end.messages.saturating_sub(position.messages);
        let bytes = self.end.bytes.saturating_sub(position.bytes);
        messages > self.limit.messages as u64 || bytes > self.limit.bytes as u64
    }

    /// Estimates the number at which the page begins, between two positions, as if messages
    /// and bytes were spread evenly.
    fn estimate(&self, low: Position, high: Position) -> u64 {
        let part = |of: fn(Position) -> u64, limit: usize| {
            let target = of(self.end).saturating_sub(limit as u64);
            let (low, high) = (of(low), of(high));
            let distance = target.saturating_sub(low) as f64;
            distance / high.saturating_sub(low).max(1) as f64
        };
        let messages = part(|position| position.messages, self.limit.messages);
        let bytes = part(|position| position.bytes, self.limit.bytes);
        let numbers = high.sequence.0.saturating_sub(low.sequence.0);
        low.sequence.0 + (messages.max(bytes).clamp(0.0, 1.0) * numbers as f64) as u64
    }
}

/// The log of one room.
struct RoomLog<'r> {
    reader: &'r dyn Reader,
    room: u64,
}

impl RoomLog<'_> {
    /// Returns a position from which a page of the limit can be read with few messages more.
    fn search(&self, bounds: &Bounds) -> Result<Position, PageError> {
        // The page begins behind `low`, and not behind `high`.
        let (mut low, mut high) = (bounds.begin, bounds.end);
        for step in 0..STEPS_MAX {
            if !bounds.is_far(low) || high.sequence.0 <= low.sequence.0 + 1 {
                break;
            }
            // An estimate may approach the place from one side only.
            let number = if step % 2 == 0 {
                bounds.estimate(low, high)
            } else {
                low.sequence.0 + (high.sequence.0 - low.sequence.0) / 2
            };
            let number = number.clamp(low.sequence.0, high.sequence.0 - 1);
            let Some((before, last)) = self.block_above(number)? else {
                high.sequence = Sequence(number);
                continue;
            };
            if bounds.is_far(last) {
                low = last;
            } else if before.messages <= low.messages {
                break;
            } else if bounds.is_far(before) {
                low = before;
                break;
            } else {
                high = Position {
                    sequence: before.sequence.min(Sequence(number)),
                    ..before
                };
            }
        }
        Ok(low)
    }

    /// Returns the last messages after a position within the bounds, the newest first.
    fn last_messages(
        &self,
        bounds: &Bounds,
        from: Position,
    ) -> Result<Vec<Arc<Message>>, PageError> {
        let mut found: VecDeque<Message> = VecDeque::new();
        let mut bytes = 0;
        self.visit(from.sequence.0, &mut |block| {
            let BlockContent::Messages(messages) = ledger::decode(block)? else {
                return Ok(ControlFlow::Continue(()));
            };
            for stored in messages {
                let stored = stored?;
                if stored.position.messages > bounds.end.messages {
                    return Ok(ControlFlow::Break(()));
                }
                let last = found.back().map_or(from, |message| message.position);
                if stored.position.sequence <= last.sequence {
                    continue;
                }
                let message = stored.message(None)?;
                bytes += message.text.len();
                found.push_back(message);
                while found.len() > bounds.limit.messages
                    || (bytes > bounds.limit.bytes && found.len() > 1)
                {
                    bytes -= found.pop_front().map_or(0, |message| message.text.len());
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found.into_iter().rev().map(Arc::new).collect())
    }

    /// Returns the position of the last message up to a number, or `None` if there is none
    /// above.
    fn position_at(&self, number: u64) -> Result<Option<Position>, PageError> {
        let mut position = None;
        self.visit(number, &mut |block| {
            position = Some(match ledger::decode(block)? {
                BlockContent::Gap(Gap { end, .. }) => end,
                BlockContent::Messages(_) => {
                    let (mut before, _) = ledger::measure(block)?;
                    if let BlockContent::Messages(messages) = ledger::decode(block)? {
                        for stored in messages {
                            let stored = stored?.position;
                            if stored.sequence.0 > number {
                                break;
                            }
                            before = stored;
                        }
                    }
                    before
                }
            });
            Ok(ControlFlow::Break(()))
        })?;
        Ok(position)
    }

    /// Returns the number of the first message after a position; 0 if there is none.
    fn first_above(&self, position: Position) -> Result<Sequence, PageError> {
        let mut first = Sequence(0);
        self.visit(position.sequence.0, &mut |block| {
            let BlockContent::Messages(messages) = ledger::decode(block)? else {
                return Ok(ControlFlow::Continue(()));
            };
            for stored in messages {
                let sequence = stored?.position.sequence;
                if sequence > position.sequence {
                    first = sequence;
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(first)
    }

    /// Returns the position before the first block with a number above, and its last one.
    fn block_above(&self, number: u64) -> Result<Option<(Position, Position)>, PageError> {
        let mut found = None;
        self.visit(number, &mut |block| {
            found = Some(ledger::measure(block)?);
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    fn visit(
        &self,
        after: u64,
        visit: &mut dyn FnMut(&Block) -> Result<ControlFlow<()>, Malformed>,
    ) -> Result<(), PageError> {
        let mut malformed = None;
        self.reader.read(self.room, after, &mut |block| {
            visit(&block).unwrap_or_else(|Malformed| {
                malformed = Some(PageError::Malformed { first: block.first });
                ControlFlow::Break(())
            })
        })?;
        malformed.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::*;
    use crate::log::memory::MemoryOpener;
    use crate::log::{Durability, Frame, InboxId, Log, Opener as _, ReadError};
    use crate::sync::Mutex;

    const ROOM: u64 = 7;

    /// A log that counts its reads.
    #[derive(Debug)]
    struct Counting {
        reader: Arc<dyn Reader>,
        reads: AtomicUsize,
        /// Blocks in memory end with their log.
        _log: Mutex<Box<dyn Log>>,
    }

    impl Reader for Counting {
        fn read(
            &self,
            inbox: InboxId,
            after: u64,
            visit: &mut dyn FnMut(Block) -> ControlFlow<()>,
        ) -> Result<(), ReadError> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.reader.read(inbox, after, visit)
        }
    }

    /// A room with messages of given lengths in blocks; each number is given.
    fn room(blocks: &[Vec<(u64, usize)>]) -> (Counting, Vec<Message>) {
        let mut log = MemoryOpener.open(&mut |_| Ok(())).unwrap();
        let (mut messages, mut bytes) = (Vec::new(), 0);
        for texts in blocks {
            let stored = texts.iter().map(|(number, length)| {
                bytes += *length as u64;
                messages.push(Message {
                    position: Position {
                        sequence: Sequence(*number),
                        messages: messages.len() as u64 + 1,
                        bytes,
                    },
                    sender: None,
                    time_ms: *number,
                    text: "x".repeat(*length).into(),
                });
                messages.last().cloned().unwrap()
            });
            let stored: Vec<_> = stored.collect();
            let Some(block) = ledger::block_of(ROOM, &stored) else {
                continue;
            };
            let blocks = vec![block];
            let frame = Frame {
                blocks,
                ..Frame::default()
            };
            log.append(frame, Durability::Machine).unwrap();
        }
        let counting = Counting {
            reader: log.reader(),
            reads: AtomicUsize::new(0),
            _log: Mutex::new(log),
        };
        (counting, messages)
    }

    fn expected(
        messages: &[Message],
        (after, before): (u64, u64),
        limit: ReadLimit,
    ) -> Vec<Message> {
        let mut bytes = 0;
        let readable = messages.iter().rev().filter(|message| {
            let number = message.position.sequence.0;
            number > after && (before == 0 || number < before)
        });
        let page = readable.take(limit.messages).enumerate();
        let page = page.take_while(|(count, message)| {
            bytes += message.text.len();
            *count == 0 || bytes <= limit.bytes
        });
        page.map(|(_, message)| message.clone()).collect()
    }

    #[track_caller]
    fn check(
        (reader, messages): &(Counting, Vec<Message>),
        (after, before): (u64, u64),
        limit: ReadLimit,
    ) {
        let last = messages.last().map(|m| m.position).unwrap_or_default();
        let history = History {
            room: ROOM,
            after,
            last,
        };
        let page = read_back(reader, history, Sequence(before), limit).unwrap();
        let expected = expected(messages, (after, before), limit);
        let found: Vec<_> = page.messages.iter().map(|m| Message::clone(m)).collect();
        assert_eq!(found, expected, "after {after}, before {before}");
        if !found.is_empty() {
            let mut numbers = messages.iter().map(|m| m.position.sequence);
            assert_eq!(Some(page.oldest), numbers.find(|n| n.0 > after));
        }
    }

    #[test]
    fn page_of_a_long_room_takes_few_reads() {
        // Bursts of messages, and long pauses.
        let mut number = 1 << 40;
        let blocks = (0..20_000_u64).map(|block| {
            number += if block % 1000 == 0 { 1 << 36 } else { 20 };
            let texts = (0..1 + block % 7).map(|n| (number + n, 10));
            texts.collect()
        });
        let room = room(&blocks.collect::<Vec<_>>());
        let limit = ReadLimit {
            messages: 100,
            bytes: 1 << 20,
        };
        let numbers: Vec<_> = room.1.iter().map(|m| m.position.sequence.0).collect();
        for nth in (1..numbers.len()).step_by(997) {
            room.0.reads.store(0, Ordering::Relaxed);
            check(&room, (0, numbers[nth]), limit);
            let reads = room.0.reads.load(Ordering::Relaxed);
            assert!(reads <= 80, "{reads} reads before message {nth}");
        }
    }

    proptest! {
        #[test]
        fn page_has_the_last_messages_before_a_number(
            blocks in prop::collection::vec(
                prop::collection::vec((1_u64..50, 0_usize..30), 1..6), 1..40),
            after in 0_u64..300,
            before in 0_u64..2000,
            messages in 1_usize..20,
            bytes in 1_usize..200,
        ) {
            let mut number = 0;
            let blocks: Vec<Vec<_>> = blocks.into_iter().map(|block| {
                block.into_iter().map(|(step, length)| {
                    number += step;
                    (number, length)
                }).collect()
            }).collect();
            check(&room(&blocks), (after, before), ReadLimit { messages, bytes });
        }
    }

    #[test]
    fn room_without_messages_has_an_empty_page() {
        let room = room(&[]);
        let limit = ReadLimit {
            messages: 1,
            bytes: 1,
        };
        check(&room, (0, 0), limit);
    }
}
