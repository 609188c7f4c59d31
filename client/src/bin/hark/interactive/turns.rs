//! Whose turn it is on the terminal: the editor's, somebody who asks for a
//! password, or whoever has something to print.

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
    /// The editor has ended.
    Ended,
}

#[derive(Debug, Default)]
struct State {
    turn: Turn,
    drawn: u64,
}

/// Shared by the thread that edits and the one that prints.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    // Held while a line is written directly, so that the editor does not
    // start in the middle of it.
    state: Mutex<State>,
    changed: Condvar,
}

impl Turns {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a turn, or gives it back.
    pub(crate) fn set(&self, turn: Turn) {
        self.state().turn = turn;
        self.changed.notify_all();
    }

    /// The editor draws its line.
    pub(crate) fn drawn(&self) {
        self.state().drawn += 1;
        self.changed.notify_all();
    }

    /// Prints by `write` where the terminal is free, and otherwise by `hand`,
    /// which gives it to the editor; returns when it is on the terminal. The
    /// editor draws its line again after it has printed something, which is
    /// the sign; if it ends before, what it did not print is written.
    pub(crate) fn print(&self, write: impl Fn(), hand: impl FnOnce() -> bool) {
        let state = self.state();
        let state = self.wait(state, |state| state.turn == Turn::Asking);
        if state.turn != Turn::Editing {
            return write();
        }
        let before = state.drawn;
        drop(state);
        let is_handed = hand();
        let state = self.state();
        let is_waiting = |state: &State| is_handed && state.drawn == before && state.turn != Turn::Ended;
        let state = self.wait(state, is_waiting);
        if state.drawn == before {
            write();
        }
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State>,
        is_waiting: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, |state| is_waiting(state)).unwrap_or_else(PoisonError::into_inner)
    }
}
