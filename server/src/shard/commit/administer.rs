//! Operations of an administrator on the commit thread.

use super::{Committer, Completion, Space};
use crate::store::{AdminOperation, StoreUsage};

impl Committer {
    /// Decides an operation of an administrator. A copy and figures of the log are those of
    /// the frame before.
    pub(super) fn administer(&mut self, operation: AdminOperation) -> Option<Completion> {
        match operation {
            AdminOperation::SetSuspended {
                account,
                is_suspended,
                completer,
            } => {
                let exists = self
                    .ledger
                    .set_suspended(&account, is_suspended, &mut self.changes);
                Some(Completion::Flag(completer, exists))
            }
            AdminOperation::Inspect(names, completer) => Some(Completion::Inspected(
                completer,
                self.ledger.inspect(&names),
            )),
            AdminOperation::Usage(completer) => {
                let log = self.log.as_ref().map(|log| log.usage()).unwrap_or_default();
                completer.complete(Ok(StoreUsage {
                    accounts: self.ledger.account_count() as u64,
                    last_number: self.ledger.counter(),
                    live_bytes: log.live_bytes,
                    file_bytes: log.file_bytes,
                    is_low_on_space: self.space != Space::Ample,
                }));
                None
            }
            AdminOperation::Copy(completer) => {
                completer.complete(Ok(self.log.as_ref().and_then(|log| log.copy())));
                None
            }
        }
    }
}
