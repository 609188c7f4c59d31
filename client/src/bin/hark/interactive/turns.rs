//! Whose turn it is on the terminal: the editor's, somebody's who asks for a
//! password, or that of whoever has something to print.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who writes to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Turn {
    /// Nobody: what is to be printed is written.
    #[default]
    Free,
    /// The editor: what is to be printed is given to it.
    Editing,
    /// A password is being typed: what is to be printed waits.
    Asking,
}

/// Shared by the thread that edits and the one that prints.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    // Held while a line is written directly, so that the editor does not
    // start in the middle of it.
    turn: Mutex<Turn>,
    changed: Condvar,
}

impl Turns {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn, or gives it back.
    pub(crate) fn set(&self, turn: Turn) {
        *self.turn() = turn;
        self.changed.notify_all();
    }

    /// Ends whoever's turn it is, without their doing; whose it was.
    pub(crate) fn end(&self) -> Turn {
        let turn = std::mem::take(&mut *self.turn());
        self.changed.notify_all();
        turn
    }

    /// Prints by `write` where the terminal is free, and by `hand`, which
    /// gives it to the editor, while that has it; again by `write` if the
    /// editor does not take it.
    pub(crate) fn print(&self, write: impl Fn(), hand: impl FnOnce() -> bool) {
        let is_asking = |turn: &mut Turn| *turn == Turn::Asking;
        let turn = self.changed.wait_while(self.turn(), is_asking).unwrap_or_else(PoisonError::into_inner);
        if *turn == Turn::Free {
            return write();
        }
        // The editor may wait for this lock to end its turn.
        drop(turn);
        if !hand() {
            write();
        }
    }
}
