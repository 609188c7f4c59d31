//! How the space of dead messages is given back: the engine merges its files
//! from time to time, and asks here which messages it may leave out.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use fjall::Keyspace;
use fjall::compaction::filter::{
    CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict,
};

use super::super::Live;
use super::super::live::Fate;
use crate::store::local::record::parse_message_key;

const THREAD: &str = "store-compact";

/// A merge of all messages, on a thread of its own, since the engine merges
/// nothing while it is idle. Under load it does, and this one gives way.
#[derive(Debug, Default)]
pub(super) struct Compaction {
    thread: Option<JoinHandle<()>>,
    stopping: Arc<AtomicBool>,
}

impl Compaction {
    /// Set when the merge has to end early.
    pub(super) fn stopping(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.stopping)
    }

    /// Starts a merge, unless one is still running. `small` is a keyspace that
    /// costs little to be written out.
    pub(super) fn start(&mut self, messages: &Keyspace, small: &Keyspace) {
        if self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return;
        }
        self.stop();
        self.stopping.store(false, Ordering::Relaxed);
        let (messages, small) = (messages.clone(), small.clone());
        let stopping = self.stopping();
        // The files that were merged are kept for readers who may have begun
        // before. They are looked through when any table is written out.
        let merge = move || match messages.major_compact().and_then(|()| small.rotate_memtable()) {
            Err(error) if !stopping.load(Ordering::Relaxed) => {
                tracing::warn!(%error, "the space of forgotten messages could not be given back");
            }
            _ => {}
        };
        match thread::Builder::new().name(THREAD.to_owned()).spawn(merge) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "no thread to give back the space of forgotten messages"),
        }
    }

    /// Ends a merge that is running, and waits for its end. Whether there was
    /// one.
    pub(super) fn stop(&mut self) -> bool {
        let Some(thread) = self.thread.take() else { return false };
        let was_running = !thread.is_finished();
        self.stopping.store(true, Ordering::Relaxed);
        if thread.join().is_err() {
            tracing::error!("the merge of the messages panicked");
        }
        was_running
    }
}

impl Drop for Compaction {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes a filter for each merge of the messages.
#[derive(Debug)]
pub(super) struct DeadMessages {
    live: Arc<Live>,
    stopping: Arc<AtomicBool>,
}

impl DeadMessages {
    /// Everything that is not live is left out.
    pub(super) const fn new(live: Arc<Live>, stopping: Arc<AtomicBool>) -> Self {
        Self { live, stopping }
    }
}

impl Factory for DeadMessages {
    fn name(&self) -> &str {
        "dead messages"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        // A merge of the engine's own runs to its end: an error would poison it.
        let own = thread::current().name() == Some(THREAD);
        Box::new(Filter {
            live: Arc::clone(&self.live),
            stopping: own.then(|| Arc::clone(&self.stopping)),
            account: None,
        })
    }
}

struct Filter {
    live: Arc<Live>,
    stopping: Option<Arc<AtomicBool>>,
    /// The account of the last message. What was known of it then still holds:
    /// more may have died since, but nothing has come back to life.
    account: Option<(u64, Fate)>,
}

impl Filter {
    fn fate(&mut self, incarnation: u64) -> Fate {
        match self.account {
            Some((account, fate)) if account == incarnation => fate,
            _ => {
                let fate = self.live.fate(incarnation);
                self.account = Some((incarnation, fate));
                fate
            }
        }
    }
}

impl CompactionFilter for Filter {
    fn filter_item(&mut self, item: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        if self.stopping.as_ref().is_some_and(|stopping| stopping.load(Ordering::Relaxed)) {
            return Err(io::Error::other("the merge gives way").into());
        }
        let Ok((incarnation, sequence)) = parse_message_key(item.key()) else { return Ok(Verdict::Keep) };
        let dead = self.fate(incarnation).is_dead(sequence);
        // A key is written once and never again, so nothing can come back from
        // under a message that is destroyed without a trace.
        Ok(if dead { Verdict::Destroy } else { Verdict::Keep })
    }
}
