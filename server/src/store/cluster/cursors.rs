//! What was acknowledged at this server, before and after it is written.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hark_protocol::UserName;

use crate::store::{Account, Position};

/// The last acknowledgement of each inbox that has a lane.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    // A lock, since sessions write what lanes read. It is held for one operation,
    // and while a lane is told or ends, so that neither falls into the other.
    known: Mutex<HashMap<UserName, Cursor>>,
}

#[derive(Debug)]
struct Cursor {
    incarnation: u64,
    position: Position,
    /// The lane has been told of it and has not begun to write it.
    told: bool,
}

impl Cursors {
    /// Everything up to `position` is acknowledged; `tell` tells the lane, which
    /// is done once for all that comes before it begins to write.
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

    /// What is acknowledged, as far as it is known here.
    pub(super) fn of(&self, account: &Account) -> Position {
        let known = self.lock();
        let cursor = known.get(&account.name).filter(|cursor| cursor.incarnation == account.incarnation);
        cursor.map_or_else(Position::default, |cursor| cursor.position)
    }

    /// As [`Self::of`]; the lane is told again of what comes from now on.
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

    /// The account has ended.
    pub(super) fn forget(&self, account: &Account) {
        let mut known = self.lock();
        if known.get(&account.name).is_some_and(|cursor| cursor.incarnation == account.incarnation) {
            known.remove(&account.name);
        }
    }

    /// Forgets what belongs to a name if `end` ends its lane.
    pub(super) fn end_with(&self, name: &UserName, end: impl FnOnce() -> bool) -> bool {
        let mut known = self.lock();
        let has_ended = end();
        if has_ended {
            known.remove(name);
        }
        has_ended
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<UserName, Cursor>> {
        // Nothing panics while the lock is held.
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
