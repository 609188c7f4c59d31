//! Ownership of the terminal: by the editor, by a password prompt, or by none
//! of them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The owner of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Turn {
    /// Texts are written directly.
    #[default]
    Free,
    /// Texts are passed to the editor.
    Editing,
    /// A password is being typed; texts wait.
    Asking,
}

/// The owner, shared by the input thread and the printing thread.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    // Held while a text is written directly, so that the editor does not start
    // in the middle of it.
    turn: Mutex<Turn>,
    changed: Condvar,
}

impl Turns {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets or clears the owner.
    pub(crate) fn set(&self, turn: Turn) {
        *self.turn() = turn;
        self.changed.notify_all();
    }

    /// Clears the owner on its behalf, and returns it.
    pub(crate) fn end(&self) -> Turn {
        let turn = std::mem::take(&mut *self.turn());
        self.changed.notify_all();
        turn
    }

    /// Prints by `write` if the terminal is free, and by `hand` while the
    /// editor owns it, or again by `write` if the editor does not take the
    /// text.
    pub(crate) fn print(&self, write: impl Fn(), hand: impl FnOnce() -> bool) {
        let is_asking = |turn: &mut Turn| *turn == Turn::Asking;
        let turn = self.changed.wait_while(self.turn(), is_asking).unwrap_or_else(PoisonError::into_inner);
        if *turn == Turn::Free {
            return write();
        }
        // The editor may need this lock to release the terminal.
        drop(turn);
        if !hand() {
            write();
        }
    }
}
