//! The watchdog. A slow commit is logged and makes the store unhealthy. If it stalls, its
//! commands and waiting ones are answered `unavailable`, so that no wait is endless.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::in_flight::AnswersInFlight;
use super::queue::Queue;

/// Deadlines of a commit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// After this time, the commit is logged and the store is unhealthy.
    pub(super) slow: Duration,
    /// After this time, the commands in the commit and waiting ones are answered.
    pub(super) stalled: Duration,
    /// The interval between checks.
    pub(super) interval: Duration,
}

impl Deadlines {
    pub(super) const DEFAULT: Self = Self {
        slow: Duration::from_secs(5),
        stalled: Duration::from_secs(20),
        interval: Duration::from_secs(1),
    };
}

/// The progress of the commit thread.
#[derive(Debug)]
pub(super) struct Progress {
    base: Instant,
    /// Start of the commit in flight, in ms since `base` plus 1; 0 if there is none.
    since: AtomicU64,
    is_slow: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            base: Instant::now(),
            since: AtomicU64::new(0),
            is_slow: AtomicBool::new(false),
        }
    }
}

impl Progress {
    /// Records the start of a commit.
    pub(super) fn begin(&self) {
        self.since.store(1 + self.now_ms(), Ordering::Release);
    }

    /// Records the end of the commit.
    pub(super) fn end(&self, queue: &Queue) {
        let since = self.since.swap(0, Ordering::AcqRel);
        if self.is_slow.load(Ordering::Acquire) {
            let took_ms = (1 + self.now_ms()).saturating_sub(since);
            tracing::info!(took_ms, "slow commit has ended");
            queue.resume();
            self.is_slow.store(false, Ordering::Release);
        }
    }

    /// Returns whether a commit is slow.
    pub(super) fn is_slow(&self) -> bool {
        self.is_slow.load(Ordering::Acquire)
    }

    fn age(&self) -> Duration {
        match self.since.load(Ordering::Acquire) {
            0 => Duration::ZERO,
            since => Duration::from_millis((1 + self.now_ms()).saturating_sub(since)),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.base.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

/// The state that the watchdog checks, and the answers that it may fail.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) progress: Arc<Progress>,
    pub(super) queue: Arc<Queue>,
    pub(super) in_flight: Arc<AnswersInFlight>,
}

/// The thread of the watchdog. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to watch the commits.
    ///
    /// # Errors
    /// Fails if the thread cannot be started.
    pub(super) fn start(watched: Watched, deadlines: Deadlines) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let watch = move || {
            while stopped.recv_timeout(deadlines.interval) == Err(RecvTimeoutError::Timeout) {
                look(&watched, deadlines);
            }
        };
        let thread = thread::Builder::new()
            .name("store-watch".to_owned())
            .spawn(watch)?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

fn look(
    Watched {
        progress,
        queue,
        in_flight,
    }: &Watched,
    deadlines: Deadlines,
) {
    let age = progress.age();
    if age < deadlines.slow {
        return;
    }
    let age_ms = age.as_millis();
    if !progress.is_slow.swap(true, Ordering::AcqRel) {
        tracing::error!(age_ms, "slow commit: the disk does not answer");
    }
    if age >= deadlines.stalled && !queue.is_stalled() {
        tracing::error!(
            age_ms,
            "stalled commit: its commands and waiting ones are answered unavailable"
        );
        queue.stall();
    }
    if age >= deadlines.stalled {
        in_flight.fail_if(|| progress.age() >= deadlines.stalled);
    }
    // The commit may have ended concurrently and missed the flag.
    if progress.age() < deadlines.slow {
        progress.is_slow.store(false, Ordering::Release);
        queue.resume();
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("watchdog panicked");
        }
    }
}
