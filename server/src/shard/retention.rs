//! [`Retention`]: finds the places up to which inboxes have expired. It reads the log on a
//! thread of its own, and passes the places to the commit thread.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::SharedShard;
use super::queue::ShardCommand;
use crate::ledger::PartlyExpired;

/// The thread of the retention, while it reads.
#[derive(Debug, Default)]
pub(super) struct Retention {
    thread: Option<JoinHandle<()>>,
}

impl Retention {
    /// Looks up the places, and queues a command for each. Does nothing while an earlier
    /// batch is read: a later sweep finds the same inboxes.
    pub(super) fn look_up(&mut self, expired: Vec<PartlyExpired>, shared: &Arc<SharedShard>) {
        self.thread.take_if(|thread| thread.is_finished());
        if expired.is_empty() || self.thread.is_some() {
            return;
        }
        let shared = Arc::clone(shared);
        let read = move || {
            for PartlyExpired { log, through } in expired {
                if let Some(position) = shared.readers.position_at(log.room, through) {
                    let forget = ShardCommand::Forget(log.room, position);
                    shared.queue.push(forget);
                }
            }
        };
        let thread = thread::Builder::new().name("store-retention".to_owned());
        match thread.spawn(read) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot start the thread of the retention"),
        }
    }
}

impl Drop for Retention {
    /// Waits for the thread. The log is closed by now, so its reads end.
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("retention thread panicked");
        }
    }
}
