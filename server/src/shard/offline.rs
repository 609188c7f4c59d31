//! A store that is open without being served: for `harkd check`, `export` and
//! `import`.

use std::ops::ControlFlow;
use std::path::Path;

use hark_protocol::{Sequence, UserName};

use super::open::{self, CounterFloor, Opened};
use super::readers::{PageError, read_page};
use super::{ShardConfig, StartError};
use crate::ledger::{self, Changes, Context, Gap, Imported, Malformed};
use crate::log::disk::DiskOpener;
use crate::log::{AppendError, Block, Durability, Frame, LogError, ReadError, Reader};
use crate::store::{Account, AccountEntry, Created, Message, Page, PasswordHash, Position, ReadLimit};

/// Bytes of text that are imported in one frame.
const TEXT_BYTES_MAX: usize = 1024 * 1024;

/// Damaged blocks of one inbox that are looked at.
const DAMAGED_BLOCKS_MAX: usize = 10_000;

/// A page of an export.
const PAGE: ReadLimit = ReadLimit { messages: 1024, bytes: 1024 * 1024 };

/// A store that is open on this thread.
#[derive(Debug)]
pub(crate) struct OfflineStore {
    opened: Opened,
    changes: Changes,
    text_bytes: usize,
}

/// An account, and what its inbox should hold.
#[derive(Debug, Clone)]
pub(crate) struct OfflineInbox {
    pub(crate) entry: AccountEntry,
    /// The last message that was acknowledged.
    pub(crate) cursor: Position,
    /// The last message.
    pub(crate) tail: Position,
}

impl OfflineStore {
    /// Opens the store in a folder. It is made if there is none.
    pub(crate) fn open(folder: &Path) -> Result<Self, StartError> {
        let bounds = ShardConfig { accounts_max: usize::MAX, ..ShardConfig::DEFAULT };
        let opener = DiskOpener::new(folder);
        let opened = open::open(&opener, bounds.limits(), CounterFloor::After(0))?;
        let mut store = Self { opened, changes: Changes::default(), text_bytes: 0 };
        store.begin();
        Ok(store)
    }

    /// The inboxes in the order of their names.
    pub(crate) fn inboxes(&self) -> Vec<OfflineInbox> {
        let inboxes = self.opened.ledger.inboxes();
        let mut inboxes: Vec<_> =
            inboxes.map(|(entry, cursor, tail)| OfflineInbox { entry, cursor, tail }).collect();
        inboxes.sort_by(|a, b| a.entry.account.name.cmp(&b.entry.account.name));
        inboxes
    }

    /// Reads a page of messages.
    pub(crate) fn read(&self, account: &Account, after: Sequence) -> Result<Page, PageError> {
        read_page(&*self.opened.log.reader(), account.incarnation, after, PAGE)
    }

    /// Creates an account whose messages up to `cursor` were acknowledged.
    pub(crate) fn import_account(
        &mut self,
        name: &UserName,
        password: Option<PasswordHash>,
        cursor: Sequence,
    ) -> Result<Created, AppendError> {
        let created = self.opened.ledger.import_account(name, password, cursor, &mut self.changes);
        self.commit_some(name.as_str().len())?;
        Ok(created)
    }

    /// Stores a message under its own number.
    pub(crate) fn import_message(
        &mut self,
        to: &UserName,
        message: Message,
    ) -> Result<Imported, AppendError> {
        let bytes = message.text.len();
        let imported = self.opened.ledger.import_message(to, message, &mut self.changes);
        self.commit_some(bytes)?;
        Ok(imported)
    }

    fn commit_some(&mut self, bytes: usize) -> Result<(), AppendError> {
        self.text_bytes += bytes;
        if self.text_bytes >= TEXT_BYTES_MAX || self.changes.is_full() { self.commit() } else { Ok(()) }
    }

    /// Makes durable what was imported.
    pub(crate) fn commit(&mut self) -> Result<(), AppendError> {
        if let Some(frame) = self.opened.ledger.finish(&mut self.changes) {
            self.opened.log.append(frame, Durability::Machine)?;
        }
        self.changes.effects.clear();
        self.begin();
        Ok(())
    }

    fn begin(&mut self) {
        self.text_bytes = 0;
        let running = self.opened.ledger.running();
        self.opened.ledger.begin(Context { running, is_low_on_space: false }, &mut self.changes);
    }

    /// Closes the store in order.
    pub(crate) fn close(self) -> Result<(), LogError> {
        self.opened.log.close()
    }

    /// Reads every message of an inbox. Returns the gaps in the place of messages that
    /// cannot be read.
    pub(crate) fn check(&self, inbox: &OfflineInbox) -> Result<Vec<Gap>, ReadError> {
        let items = self.scan(inbox)?;
        Ok(items.iter().filter_map(Item::gap).collect())
    }

    /// Puts gaps in the place of messages that cannot be read. The blocks before the
    /// last gap are appended again with them: the log takes copies that are a prefix
    /// of an inbox.
    pub(crate) fn drop_damaged(&mut self, inbox: &OfflineInbox) -> Result<(), RepairError> {
        let mut items = self.scan(inbox)?;
        let changed = items.iter().rposition(|item| item.gap().is_some()).map_or(0, |last| last + 1);
        items.truncate(changed);
        let incarnation = inbox.entry.account.incarnation;
        let reader = self.opened.log.reader();
        for (nth, item) in items.iter().enumerate() {
            let block = match item {
                Item::Gap(gap) => Some(gap.block(incarnation)),
                Item::Block(first) => block_at(&*reader, incarnation, *first)?,
            };
            let is_last = nth + 1 == changed;
            let durability = if is_last { Durability::Machine } else { Durability::Process };
            let frame = Frame { blocks: block.into_iter().collect(), ..Frame::default() };
            self.opened.log.append(frame, durability)?;
        }
        Ok(())
    }

    fn scan(&self, inbox: &OfflineInbox) -> Result<Vec<Item>, ReadError> {
        let pieces = pieces(&*self.opened.log.reader(), inbox)?;
        Ok(items(&pieces, inbox.cursor, inbox.tail))
    }
}

/// Why damage cannot be dropped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepairError {
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The log cannot be appended to.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// A block as it is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// It is whole: its first number, and the positions before and behind it.
    Whole { first: u64, before: Position, end: Position },
    /// It cannot be read.
    Damaged { first: u64, last: u64 },
}

/// What an inbox should consist of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// The block with this first number.
    Block(u64),
    /// A gap: a block cannot be read, or is missing.
    Gap(Gap),
}

impl Item {
    fn gap(&self) -> Option<Gap> {
        match self {
            Self::Block(_) => None,
            Self::Gap(gap) => Some(*gap),
        }
    }
}

/// Reads the blocks of an inbox, damaged ones included.
fn pieces(reader: &dyn Reader, inbox: &OfflineInbox) -> Result<Vec<Piece>, ReadError> {
    let incarnation = inbox.entry.account.incarnation;
    let mut after = inbox.cursor.sequence.0;
    let (mut pieces, mut damaged) = (Vec::new(), 0);
    loop {
        let read = reader.read(incarnation, after, &mut |block| {
            pieces.push(piece(&block));
            after = block.last;
            ControlFlow::Continue(())
        });
        match read {
            Ok(()) => return Ok(pieces),
            Err(ReadError::Damaged { first, .. }) if damaged < DAMAGED_BLOCKS_MAX => {
                damaged += 1;
                let last = damaged_end(reader, incarnation, first, inbox.tail.sequence.0);
                pieces.push(Piece::Damaged { first, last });
                after = last.max(after.saturating_add(1));
            }
            Err(error) => return Err(error),
        }
    }
}

fn piece(block: &Block) -> Piece {
    let (first, last) = (block.first, block.last);
    match ledger::measure(block) {
        Ok((before, end)) => Piece::Whole { first, before, end },
        Err(Malformed) => Piece::Damaged { first, last },
    }
}

/// Finds the last number of a damaged block, of which the log says the first alone:
/// a read behind it does not meet it.
fn damaged_end(reader: &dyn Reader, inbox: u64, first: u64, tail: u64) -> u64 {
    let meets = |after| {
        let read = reader.read(inbox, after, &mut |_| ControlFlow::Break(()));
        matches!(read, Err(ReadError::Damaged { first: met, .. }) if met == first)
    };
    let (mut low, mut step) = (first, 1);
    // Reads behind `low` may meet it, and those behind `high` do not.
    let mut high = first;
    while high < tail && meets(high) {
        low = high.saturating_add(1);
        high = high.saturating_add(step).min(tail);
        step = step.saturating_mul(2);
    }
    while low < high {
        let middle = low + (high - low) / 2;
        if meets(middle) { low = middle + 1 } else { high = middle }
    }
    high
}

/// Decides what an inbox should consist of, between its cursor and its last position.
fn items(pieces: &[Piece], cursor: Position, tail: Position) -> Vec<Item> {
    let mut items = Vec::new();
    let mut damaged = Vec::new();
    let mut known = cursor;
    for piece in pieces {
        match *piece {
            Piece::Damaged { first, last } => damaged.push((first, last)),
            Piece::Whole { first, before, end } => {
                let before = Position { sequence: Sequence(first.saturating_sub(1)), ..before };
                fill(&mut items, &mut damaged, known, before);
                items.push(Item::Block(first));
                known = end;
            }
        }
    }
    fill(&mut items, &mut damaged, known, tail);
    items
}

/// Fills the place between two known positions with gaps: one for each damaged block,
/// of which the first counts all that is missing.
fn fill(items: &mut Vec<Item>, damaged: &mut Vec<(u64, u64)>, from: Position, to: Position) {
    let mut messages = to.messages.saturating_sub(from.messages);
    let mut bytes = to.bytes.saturating_sub(from.bytes);
    if damaged.is_empty() && messages > 0 {
        damaged.push((from.sequence.0.saturating_add(1), to.sequence.0));
    }
    for (first, last) in damaged.drain(..) {
        let end = Position { sequence: Sequence(last), ..to };
        items.push(Item::Gap(Gap { first, end, messages, bytes }));
        (messages, bytes) = (0, 0);
    }
}

fn block_at(reader: &dyn Reader, inbox: u64, first: u64) -> Result<Option<Block>, ReadError> {
    let mut found = None;
    reader.read(inbox, first.saturating_sub(1), &mut |block| {
        found = Some(block).filter(|block| block.first == first);
        ControlFlow::Break(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const fn at(sequence: u64, messages: u64) -> Position {
        Position { sequence: Sequence(sequence), messages, bytes: 10 * messages }
    }

    fn whole(first: u64, before: u64, last: u64, end: u64) -> Piece {
        Piece::Whole { first, before: at(0, before), end: at(last, end) }
    }

    const fn gap(first: u64, last: u64, messages: u64, end: u64) -> Item {
        let end = at(last, end);
        Item::Gap(Gap { first, end, messages, bytes: 10 * messages })
    }

    #[test]
    fn whole_inbox_has_no_gap() {
        let pieces = [whole(5, 0, 7, 3), whole(9, 3, 9, 4)];
        assert_eq!(items(&pieces, at(0, 0), at(9, 4)), [Item::Block(5), Item::Block(9)]);
        assert_eq!(items(&pieces, at(6, 2), at(9, 4)), [Item::Block(5), Item::Block(9)], "partly read");
        assert_eq!(items(&[], at(9, 4), at(9, 4)), []);
    }

    #[test]
    fn damaged_blocks_become_gaps_that_count_all() {
        let damaged = |first, last| Piece::Damaged { first, last };
        let pieces = [whole(5, 0, 7, 3), damaged(8, 9), damaged(12, 12), whole(20, 8, 20, 9)];
        let expected = [Item::Block(5), gap(8, 9, 5, 8), gap(12, 12, 0, 8), Item::Block(20)];
        assert_eq!(items(&pieces, at(0, 0), at(20, 9)), expected);
        let expected = [Item::Block(5), gap(8, 9, 4, 7), gap(12, 12, 0, 7)];
        assert_eq!(items(&pieces[..3], at(0, 0), at(12, 7)), expected, "at the end");
        assert_eq!(items(&pieces[1..2], at(8, 4), at(9, 5)), [gap(8, 9, 1, 5)], "partly read");
    }

    #[test]
    fn missing_blocks_become_gaps() {
        let pieces = [whole(5, 2, 7, 5), whole(20, 8, 20, 9)];
        let expected =
            [gap(3, 4, 1, 2), Item::Block(5), gap(8, 19, 3, 8), Item::Block(20), gap(21, 30, 1, 10)];
        assert_eq!(items(&pieces, at(2, 1), at(30, 10)), expected);
    }

    /// Flips a bit in every place of the log that holds this text.
    fn damage(folder: &Path, text: &str) {
        let mut damaged = 0;
        for entry in fs::read_dir(folder.join("log")).unwrap() {
            let path = entry.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let places = bytes.windows(text.len()).enumerate();
            let places: Vec<_> =
                places.filter(|(_, part)| *part == text.as_bytes()).map(|(at, _)| at).collect();
            for at in &places {
                bytes[*at] ^= 1;
            }
            damaged += places.len();
            if !places.is_empty() {
                fs::write(&path, bytes).unwrap();
            }
        }
        assert!(damaged > 0, "{text:?} is in no file");
    }

    fn texts(store: &OfflineStore, inbox: &OfflineInbox) -> (Vec<String>, Vec<Position>) {
        let (mut texts, mut skipped, mut after) = (Vec::new(), Vec::new(), Sequence(0));
        loop {
            let page = store.read(&inbox.entry.account, after).unwrap();
            if let Some(start) = page.starts_after {
                skipped.push(start);
                after = start.sequence;
            }
            for message in &page.messages {
                texts.push(message.text.to_string());
                after = message.position.sequence;
            }
            if page.complete {
                return (texts, skipped);
            }
        }
    }

    #[test]
    fn dropped_damage_leaves_the_other_messages() {
        let folder = tempfile::tempdir().unwrap();
        let amy = "amy".parse().unwrap();
        let mut store = OfflineStore::open(folder.path()).unwrap();
        store.import_account(&amy, None, Sequence(0)).unwrap();
        for number in 1..=9 {
            let position = Position { sequence: Sequence(number), ..Position::default() };
            let text = format!("{number}: marked").into();
            store.import_message(&amy, Message { position, sender: None, time_ms: 1, text }).unwrap();
            store.commit().unwrap();
        }
        store.close().unwrap();
        damage(folder.path(), "5: marked");
        let mut store = OfflineStore::open(folder.path()).unwrap();
        let inbox = store.inboxes().pop().unwrap();
        let gaps = store.check(&inbox).unwrap();
        assert_eq!(gaps.iter().map(|gap| (gap.first, gap.messages)).collect::<Vec<_>>(), [(5, 1)]);
        store.drop_damaged(&inbox).unwrap();
        for _ in 0..2 {
            assert_eq!(store.check(&inbox).unwrap(), []);
            let (texts, skipped) = texts(&store, &inbox);
            let left = [1, 2, 3, 4, 6, 7, 8, 9].map(|number| format!("{number}: marked"));
            assert_eq!(texts, left);
            assert_eq!(skipped.iter().map(|place| place.messages).collect::<Vec<_>>(), [5]);
            store.close().unwrap();
            store = OfflineStore::open(folder.path()).unwrap();
        }
    }
}
