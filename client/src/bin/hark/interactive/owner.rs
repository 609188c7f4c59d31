//! Ownership of the terminal: by the editor, by a password prompt, or by none
//! of them.

use std::sync::{Condvar, Mutex, MutexGuard};

use hark_client::sync::{lock, wait_while};

/// The owner of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Owner {
    /// Texts are written directly.
    #[default]
    Free,
    /// Texts are passed to the editor.
    Editor,
    /// A password is being typed; texts wait.
    PasswordPrompt,
}

/// The owner, shared by the input thread and the printing thread.
#[derive(Debug, Default)]
pub(crate) struct TerminalOwner {
    // Held while a text is written directly, so that the editor does not start
    // in the middle of it.
    owner: Mutex<Owner>,
    changed: Condvar,
}

impl TerminalOwner {
    fn owner(&self) -> MutexGuard<'_, Owner> {
        lock(&self.owner)
    }

    /// Sets or clears the owner.
    pub(crate) fn set(&self, owner: Owner) {
        *self.owner() = owner;
        self.changed.notify_all();
    }

    /// Clears the owner on its behalf, and returns it.
    pub(crate) fn release(&self) -> Owner {
        let owner = std::mem::take(&mut *self.owner());
        self.changed.notify_all();
        owner
    }

    /// Prints by `write` if the terminal is free, and by `hand` while the
    /// editor owns it, or again by `write` if the editor does not take the
    /// text.
    pub(crate) fn print(&self, write: impl Fn(), hand_to_editor: impl FnOnce() -> bool) {
        let is_prompting = |owner: &mut Owner| *owner == Owner::PasswordPrompt;
        let owner = wait_while(&self.changed, self.owner(), is_prompting);
        if *owner == Owner::Free {
            return write();
        }
        // The editor may need this lock to release the terminal.
        drop(owner);
        if !hand_to_editor() {
            write();
        }
    }
}
