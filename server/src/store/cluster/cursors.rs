//! Acknowledgements that this server has received, before and after they are persisted.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hark_protocol::UserName;

use crate::store::{Account, Position};

/// The last acknowledgement of each inbox that has a lane.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    // A lock, because sessions write and lanes read. It is held for one operation,
    // including the notification or the end of a lane, so that the two cannot interleave.
    known: Mutex<HashMap<UserName, Cursor>>,
}

#[derive(Debug)]
struct Cursor {
    incarnation: u64,
    position: Position,
    /// The lane is notified and has not begun to persist the position.
    told: bool,
}

impl Cursors {
    /// Acknowledges all messages up to `position`. Calls `tell` to notify the lane, once
    /// until the lane begins to persist.
    pub(super) fn advance(&self, account: &Account, position: Position, tell: impl FnOnce()) {
        let mut known = self.lock();
        let incarnation = account.incarnation;
        let cursor =
            known.entry(account.name.clone()).or_insert(Cursor { incarnation, position, told: false });
        if cursor.incarnation > incarnation {
            return;
        }
        if cursor.incarnation < incarnation {
            *cursor = Cursor { incarnation, position, told: false };
        }
        if position.sequence > cursor.position.sequence {
            cursor.position = position;
        }
        if !std::mem::replace(&mut cursor.told, true) {
            tell();
        }
    }

    /// Returns the highest acknowledged position known to this server.
    pub(super) fn of(&self, account: &Account) -> Position {
        let known = self.lock();
        let cursor = known.get(&account.name).filter(|cursor| cursor.incarnation == account.incarnation);
        cursor.map_or_else(Position::default, |cursor| cursor.position)
    }

    /// Returns the position as [`Self::of`] does. Later acknowledgements notify the lane
    /// again.
    pub(super) fn begin_to_write(&self, account: &Account) -> Position {
        let mut known = self.lock();
        match known.get_mut(&account.name) {
            Some(cursor) if cursor.incarnation == account.incarnation => {
                cursor.told = false;
                cursor.position
            }
            _ => Position::default(),
        }
    }

    /// Removes the cursor of a deleted account.
    pub(super) fn forget(&self, account: &Account) {
        let mut known = self.lock();
        if known.get(&account.name).is_some_and(|cursor| cursor.incarnation == account.incarnation) {
            known.remove(&account.name);
        }
    }

    /// Removes the cursor of a name if `end` reports that its lane has ended.
    pub(super) fn end_with(&self, name: &UserName, end: impl FnOnce() -> bool) -> bool {
        let mut known = self.lock();
        let has_ended = end();
        if has_ended {
            known.remove(name);
        }
        has_ended
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserName, Cursor>> {
        // No code panics while it holds the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::*;

    fn at(sequence: u64) -> Position {
        Position { sequence: Sequence(sequence), messages: sequence, bytes: 0 }
    }

    #[test]
    fn the_lane_is_told_once_until_it_writes() {
        let (cursors, mut told) = (Cursors::default(), 0);
        let bob = Account { name: "bob".parse().unwrap(), incarnation: 3 };
        for sequence in [4, 6, 5] {
            cursors.advance(&bob, at(sequence), || told += 1);
        }
        assert_eq!((told, cursors.of(&bob)), (1, at(6)));
        assert_eq!(cursors.begin_to_write(&bob), at(6));
        cursors.advance(&bob, at(7), || told += 1);
        assert_eq!(told, 2);
    }

    #[test]
    fn a_cursor_belongs_to_one_account() {
        let cursors = Cursors::default();
        let [former, bob] = [3, 9].map(|incarnation| Account { name: "bob".parse().unwrap(), incarnation });
        cursors.advance(&former, at(8), || {});
        cursors.advance(&bob, at(10), || {});
        cursors.advance(&former, at(12), || panic!("it has ended"));
        assert_eq!((cursors.of(&former), cursors.of(&bob)), (Position::default(), at(10)));
        cursors.forget(&former);
        assert_eq!(cursors.of(&bob), at(10));
    }

    #[test]
    fn what_is_known_goes_with_the_lane() {
        let cursors = Cursors::default();
        let bob = Account { name: "bob".parse().unwrap(), incarnation: 3 };
        cursors.advance(&bob, at(4), || {});
        assert!(!cursors.end_with(&bob.name, || false));
        assert_eq!(cursors.of(&bob), at(4));
        assert!(cursors.end_with(&bob.name, || true));
        assert_eq!(cursors.of(&bob), Position::default());
    }
}
