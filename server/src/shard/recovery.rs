//! Reopening a failed log, on a separate thread: the commit thread answers commands
//! meanwhile.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::open::{self, CounterFloor};
use super::queue::{Queue, ShardCommand};
use crate::ledger::Limits;
use crate::log::{Log, Opener};

/// The first pause after a failed attempt; it doubles with each attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(500);

/// The longest pause. It is long because an attempt may read much of the store.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The running attempts. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Dropped to wake the thread and end it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A log that has failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) log: Option<Box<dyn Log>>,
    /// The last number that was assigned.
    pub(super) counter: u64,
    /// It also failed shortly before.
    pub(super) is_repeated: bool,
}

impl Recovery {
    /// Drops the failed log, and tries to open it again until that succeeds. The
    /// queue then receives [`ShardCommand::Recovered`].
    pub(super) fn start(
        opener: Arc<dyn Opener>,
        failed: Failed,
        limits: Limits,
        queue: Arc<Queue>,
    ) -> Self {
        let Failed {
            log,
            counter,
            is_repeated,
        } = failed;
        let (stop, stopped) = mpsc::channel();
        let attempts = move || {
            drop(log);
            let mut backoff = BACKOFF_MIN;
            if is_repeated && stopped.recv_timeout(backoff) != Err(RecvTimeoutError::Timeout) {
                return;
            }
            let attempt = || open::open(&*opener, limits, CounterFloor::After(counter));
            loop {
                match panic::catch_unwind(AssertUnwindSafe(attempt)).unwrap_or_else(give_up) {
                    Ok(opened) => return queue.push(ShardCommand::Recovered(Box::new(opened))),
                    Err(error) => {
                        let retry_ms = backoff.as_millis();
                        tracing::error!(%error, retry_ms, "store still unavailable");
                    }
                }
                if stopped.recv_timeout(backoff) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                backoff = (2 * backoff).min(BACKOFF_MAX);
            }
        };
        let thread = thread::Builder::new()
            .name("store-recover".to_owned())
            .spawn(attempts);
        Self {
            stop: Some(stop),
            thread: Some(thread.unwrap_or_else(give_up)),
        }
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("recovery of the store panicked");
        }
    }
}

/// Aborts. Without a recovery, the store would stay unavailable. The next process
/// recovers it without loss of answered operations.
fn give_up<E: std::fmt::Debug, T>(error: E) -> T {
    tracing::error!(?error, "store cannot be recovered: aborting");
    std::process::abort();
}
