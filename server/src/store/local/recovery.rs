//! Opening the engine again after it has failed, on a thread of its own: the
//! commit thread goes on answering meanwhile.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::engine::{Engine, Opener};
use super::load::{self, Loaded};
use super::queue::{Command, Queue};

/// How long to wait after an attempt that has failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// An engine that is open again, and the state of the store.
#[derive(Debug)]
pub(super) struct Recovered {
    /// The engine.
    pub(super) engine: Box<dyn Engine>,
    /// What it knows.
    pub(super) loaded: Loaded,
}

/// The attempts, under way. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Recovery {
    /// Dropped in order to wake the thread and to end it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recovery {
    /// Drops the engine that has failed, and opens it until that succeeds: then
    /// the queue gets [`Command::Recovered`].
    pub(super) fn start(opener: Arc<dyn Opener>, failed: Option<Box<dyn Engine>>, queue: Arc<Queue>) -> Self {
        let (stop, stopped) = mpsc::channel();
        let attempts = move || {
            drop(failed);
            let mut last = String::new();
            loop {
                match panic::catch_unwind(AssertUnwindSafe(|| load::open(&*opener))).unwrap_or_else(give_up) {
                    Ok((engine, loaded)) => {
                        return queue.push(Command::Recovered(Box::new(Recovered { engine, loaded })));
                    }
                    Err(error) => log_once(&mut last, with_causes(&error)),
                }
                if stopped.recv_timeout(RETRY_INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("store-recover".to_owned()).spawn(attempts);
        Self { stop: Some(stop), thread: Some(thread.unwrap_or_else(give_up)) }
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the recovery of the store panicked");
        }
    }
}

/// Without a recovery the store would be unavailable for good. The next process
/// recovers it; nothing that was answered is lost.
fn give_up<E: std::fmt::Debug, T>(error: E) -> T {
    tracing::error!(?error, "the store cannot be recovered by this process, which ends");
    std::process::abort();
}

/// An error, and what it comes from.
fn with_causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_causes(cause)),
        None => error.to_string(),
    }
}

/// The same trouble, twice a second, is said once.
fn log_once(last: &mut String, error: String) {
    if *last != error {
        tracing::error!("the store is still unavailable: {error}");
        *last = error;
    }
}
