//! Operations of an administrator on the commit thread.

use super::{Committer, Completion};
use crate::store::{AdminOperation, StoreUsage};

impl Committer {
    /// Decides an operation of an administrator. A copy and figures of the log are those of
    /// the frame before.
    pub(super) fn administer(&mut self, operation: AdminOperation) -> Option<Completion> {
        let (ledger, changes) = (&mut self.ledger, &mut self.changes);
        Some(match operation {
            AdminOperation::SetSuspended {
                account,
                is_suspended,
                completer,
            } => {
                let exists = ledger.set_suspended(&account, is_suspended, changes);
                Completion::Flag(completer, exists)
            }
            AdminOperation::SetLimits {
                account,
                limits,
                is_reset,
                completer,
            } => {
                let limits = ledger.set_limits(&account, limits, is_reset, changes);
                Completion::Limited(completer, limits)
            }
            AdminOperation::Purge(log, through, completer) => {
                Completion::Purged(completer, ledger.purge(log, through, changes))
            }
            AdminOperation::Inspect(names, completer) => {
                Completion::Inspected(completer, ledger.inspect(&names))
            }
            AdminOperation::NoteUse(account) => {
                ledger.note_use(&account, changes);
                return None;
            }
            query => {
                self.look_up(query);
                return None;
            }
        })
    }

    /// Answers a question at once: there is no harm in an answer that a crash would undo.
    fn look_up(&mut self, query: AdminOperation) {
        match query {
            AdminOperation::Rooms(from, limit, completer) => {
                completer.complete(Ok(self.ledger.list_rooms(from, limit)));
            }
            AdminOperation::Room(name, completer) => {
                completer.complete(Ok(self.ledger.room_info(&name)));
            }
            AdminOperation::Messages(name, completer) => {
                completer.complete(Ok(self.ledger.messages(&name)));
            }
            AdminOperation::Usage(completer) => completer.complete(Ok(self.store_usage())),
            AdminOperation::Compact(completer) => {
                completer.complete(Ok(self.store_usage()));
                // It concerns what a new checkpoint does not need any more.
                self.is_compaction_due = true;
                self.checkpoint.get_or_insert_default();
            }
            AdminOperation::Copy(completer) => {
                completer.complete(Ok(self.log.as_ref().and_then(|log| log.copy())));
            }
            // They are changes.
            AdminOperation::SetSuspended { .. }
            | AdminOperation::SetLimits { .. }
            | AdminOperation::Purge(..)
            | AdminOperation::Inspect(..)
            | AdminOperation::NoteUse(_) => {}
        }
    }

    fn store_usage(&self) -> StoreUsage {
        let log = self.log.as_ref().map(|log| log.usage()).unwrap_or_default();
        StoreUsage {
            accounts: self.ledger.account_count() as u64,
            last_number: self.ledger.counter(),
            live_bytes: log.live_bytes,
            file_bytes: log.file_bytes,
            free_bytes: log.free_bytes,
            is_low_on_space: self.refuses_sends(),
        }
    }
}
