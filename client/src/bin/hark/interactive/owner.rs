//! Ownership of the terminal: by the editor, by a password prompt, or by none
//! of them.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use hark_client::sync::{lock, wait_timeout_while, wait_while};

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
    state: Mutex<OwnerState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OwnerState {
    owner: Owner,
    /// A text is being passed to the editor.
    is_handing_over: bool,
}

impl TerminalOwner {
    fn state(&self) -> MutexGuard<'_, OwnerState> {
        lock(&self.state)
    }

    /// Sets or clears the owner.
    pub(crate) fn set(&self, owner: Owner) {
        self.state().owner = owner;
        self.changed.notify_all();
    }

    /// Clears the owner on its behalf, and returns it.
    pub(crate) fn release(&self) -> Owner {
        let owner = std::mem::take(&mut self.state().owner);
        self.changed.notify_all();
        owner
    }

    /// Prints by `write` if the terminal is free, and by `hand_to_editor` while
    /// the editor owns it, or again by `write` if the editor does not take the
    /// text.
    pub(crate) fn print(&self, write: impl Fn(), hand_to_editor: impl FnOnce() -> bool) {
        let is_prompting = |state: &mut OwnerState| state.owner == Owner::PasswordPrompt;
        let mut state = wait_while(&self.changed, self.state(), is_prompting);
        if state.owner == Owner::Free {
            return write();
        }
        state.is_handing_over = true;
        // The editor may need this lock to release the terminal.
        drop(state);
        let is_taken = hand_to_editor();
        self.state().is_handing_over = false;
        self.changed.notify_all();
        if !is_taken {
            write();
        }
    }

    /// Waits until no text is being passed to the editor, at most this long. An
    /// editor that is dropped earlier may have drawn a text and not confirmed it,
    /// and the text would be written again.
    pub(crate) fn wait_for_handover(&self, timeout: Duration) {
        drop(wait_timeout_while(
            &self.changed,
            self.state(),
            timeout,
            |state| state.is_handing_over,
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn editor_is_kept_while_it_takes_a_text() {
        let terminal = TerminalOwner::default();
        terminal.set(Owner::Editor);
        let (handing, is_handing) = mpsc::channel();
        let (confirm, confirmed) = mpsc::channel::<()>();
        thread::scope(|scope| {
            scope.spawn(|| {
                let hand_to_editor = move || {
                    handing.send(()).unwrap();
                    confirmed.recv().is_ok()
                };
                terminal.print(|| panic!("written again"), hand_to_editor);
            });
            is_handing.recv().unwrap();
            terminal.set(Owner::Free);
            let begun = Instant::now();
            terminal.wait_for_handover(Duration::from_millis(20));
            assert!(
                begun.elapsed() >= Duration::from_millis(20),
                "it is not confirmed yet"
            );
            confirm.send(()).unwrap();
            terminal.wait_for_handover(LONG);
            assert!(begun.elapsed() < LONG);
        });
    }
}
