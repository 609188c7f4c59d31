//! The watchdog: a commit that takes too long is logged and makes the store
//! unhealthy; if it takes much too long, the commands in it and those that wait for it
//! are answered that their outcome is unknown, instead of waiting for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::in_flight::InFlight;
use super::queue::Queue;

/// How long a commit may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// From then on it is logged, and the store is unhealthy.
    pub(super) slow: Duration,
    /// From then on the commands in it and the waiting ones are answered.
    pub(super) stalled: Duration,
    /// How often the commit is looked at.
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
    /// When the commit in flight began, in ms since `base` and 1 more; 0 if there
    /// is none.
    since: AtomicU64,
    is_slow: AtomicBool,
}

impl Default for Progress {
    fn default() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0), is_slow: AtomicBool::new(false) }
    }
}

impl Progress {
    /// Notes that a commit begins.
    pub(super) fn begin(&self) {
        self.since.store(1 + self.now_ms(), Ordering::Release);
    }

    /// Notes that the commit has ended.
    pub(super) fn end(&self, queue: &Queue) {
        let since = self.since.swap(0, Ordering::AcqRel);
        if self.is_slow.load(Ordering::Acquire) {
            let took_ms = (1 + self.now_ms()).saturating_sub(since);
            tracing::info!(took_ms, "slow commit has ended");
            queue.resume();
            self.is_slow.store(false, Ordering::Release);
        }
    }

    /// Returns whether a commit takes too long.
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

/// What the watchdog looks at, and what it answers.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) progress: Arc<Progress>,
    pub(super) queue: Arc<Queue>,
    pub(super) in_flight: Arc<InFlight>,
}

/// The thread of the watchdog. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Watchdog {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches the commits.
    ///
    /// # Errors
    /// If there can be no thread.
    pub(super) fn start(watched: Watched, deadlines: Deadlines) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let watch = move || {
            while stopped.recv_timeout(deadlines.interval) == Err(RecvTimeoutError::Timeout) {
                look(&watched, deadlines);
            }
        };
        let thread = thread::Builder::new().name("store-watch".to_owned()).spawn(watch)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

fn look(Watched { progress, queue, in_flight }: &Watched, deadlines: Deadlines) {
    let age = progress.age();
    if age < deadlines.slow {
        return;
    }
    let age_ms = age.as_millis();
    if !progress.is_slow.swap(true, Ordering::AcqRel) {
        tracing::error!(age_ms, "slow commit: the disk does not answer");
    }
    if age >= deadlines.stalled && !queue.is_stalled() {
        tracing::error!(age_ms, "stalled commit: its commands and waiting ones are answered unavailable");
        queue.stall();
    }
    if age >= deadlines.stalled {
        in_flight.fail_if(|| progress.age() >= deadlines.stalled);
    }
    // It may have ended meanwhile, and not have seen this.
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
