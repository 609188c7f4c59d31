//! The server's own log, for those who watch it live: which events they get,
//! and a bounded buffer for each of them. Who may watch is a matter of the
//! front, and the log on standard error one of `main`.
//!
//! Only the events of Hark itself are watched, never those of its libraries:
//! what they say while an event is on its way to a watcher would be events
//! again, without end, and nobody has checked that it has no texts in it.
//!
//! How much of it comes to standard error is bounded in `bound`.
//!
//! A callsite is asked once whether anybody wants its events, and again when a
//! watcher comes or goes. While nobody watches, an event costs what it costs
//! without this layer.

mod bound;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Debug, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{self, Filter};

use crate::chat::now_ms;

pub use bound::Bound;

/// Those who watch at the same time, at most. Each event is put into the buffer
/// of each of them by the thread that logs it.
pub const WATCHERS_MAX: usize = 16;

/// Events that are buffered for one watcher, at most. What comes then is
/// counted, and the watcher is told.
pub const BUFFERED_EVENTS_MAX: usize = 1024;

/// Bytes of the message and of the fields of an event that are kept, about.
const EVENT_BYTES_MAX: usize = 4096;

/// What the targets of the server's own events begin with.
const OWN_TARGETS: [&str; 2] = ["hark_", "harkd"];

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When it happened, in milliseconds since 1970.
    pub time_ms: u64,
    /// How bad it is.
    pub level: Level,
    /// Which part of the server says it.
    pub target: &'static str,
    /// For a person.
    pub message: String,
    /// What it says beside that, by name.
    pub fields: BTreeMap<&'static str, String>,
}

/// What a watcher is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An event.
    Event(Arc<Event>),
    /// Here so many events are missing, since the buffer was full.
    Missed(u64),
}

/// The watchers of the log. A clone has the same ones.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    // A lock, since any thread may log. It is held for a look at each watcher,
    // and never while something is logged or the callsites are asked.
    watchers: Arc<Mutex<Vec<Arc<Buffer>>>>,
}

/// One who watches. Dropping it ends that.
#[derive(Debug)]
pub struct Watcher {
    watchers: Watchers,
    buffer: Arc<Buffer>,
}

/// There are as many watchers as there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log has {WATCHERS_MAX} watchers already; try again later")]
pub struct TooManyWatchers;

#[derive(Debug)]
struct Buffer {
    level: LevelFilter,
    target_prefix: String,
    // A lock, since any thread may log what a watcher's task takes. It is held
    // for one operation on the queue.
    entries: Mutex<VecDeque<Entry>>,
    changed: AtomicWaker,
}

impl Watchers {
    /// What gives them the events, as a layer of the subscriber.
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        self.clone().with_filter(self.clone())
    }

    /// Watches from now on: events of this level and worse, whose target begins
    /// with `target_prefix`.
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn watch(&self, level: Level, target_prefix: String) -> Result<Watcher, TooManyWatchers> {
        let level = LevelFilter::from_level(level);
        let (entries, changed) = Default::default();
        let buffer = Arc::new(Buffer { level, target_prefix, entries, changed });
        {
            let mut watchers = self.lock();
            if watchers.len() >= WATCHERS_MAX {
                return Err(TooManyWatchers);
            }
            watchers.push(Arc::clone(&buffer));
        }
        tracing::callsite::rebuild_interest_cache();
        Ok(Watcher { watchers: self.clone(), buffer })
    }

    fn want(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        !metadata.is_span()
            && OWN_TARGETS.iter().any(|own| target.starts_with(own))
            && self.lock().iter().any(|buffer| buffer.wants(metadata))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Buffer>>> {
        // Nothing panics while the lock is held.
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Subscriber> Layer<S> for Watchers {
    fn on_event(&self, event: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        let metadata = event.metadata();
        // Before the lock is taken, since a field may say anything.
        let event = Arc::new(Event::new(event));
        for buffer in self.lock().iter().filter(|buffer| buffer.wants(metadata)) {
            buffer.push(&event);
        }
    }
}

impl<S> Filter<S> for Watchers {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        self.want(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.want(metadata) { Interest::always() } else { Interest::never() }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let levels = self.lock().iter().map(|buffer| buffer.level).max();
        Some(levels.unwrap_or(LevelFilter::OFF))
    }
}

impl Watcher {
    /// Waits for the next entry; the task is woken when there is one.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Entry> {
        self.buffer.changed.register(cx.waker());
        self.buffer.lock().pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers.lock().retain(|buffer| !Arc::ptr_eq(buffer, &self.buffer));
        tracing::callsite::rebuild_interest_cache();
    }
}

impl Buffer {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with(&self.target_prefix)
    }

    fn push(&self, event: &Arc<Event>) {
        let mut entries = self.lock();
        if entries.len() < BUFFERED_EVENTS_MAX {
            entries.push_back(Entry::Event(Arc::clone(event)));
        } else if let Some(Entry::Missed(count)) = entries.back_mut() {
            *count += 1;
        } else {
            entries.push_back(Entry::Missed(1));
        }
        drop(entries);
        self.changed.wake();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Entry>> {
        // Nothing panics while the lock is held.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    fn new(event: &tracing::Event<'_>) -> Self {
        let metadata = event.metadata();
        let (message, fields) = Default::default();
        let mut collector = Collector { message, fields, room: EVENT_BYTES_MAX };
        event.record(&mut collector);
        let Collector { message, fields, .. } = collector;
        Self { time_ms: now_ms(), level: *metadata.level(), target: metadata.target(), message, fields }
    }
}

/// Takes what an event says, as long as there is room for it.
struct Collector {
    message: String,
    fields: BTreeMap<&'static str, String>,
    room: usize,
}

impl Collector {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut text = Bounded { text: String::new(), room: self.room };
        if text.write_fmt(value).is_err() {
            // There was no room for the rest.
            text.text.push('…');
        }
        self.room = text.room;
        match field.name() {
            "message" => self.message = text.text,
            name => drop(self.fields.insert(name, text.text)),
        }
    }
}

impl Visit for Collector {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record(field, format_args!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record(field, format_args!("{value}"));
    }
}

/// A text that takes no more than there is room for.
struct Bounded {
    text: String,
    room: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let taken = text.floor_char_boundary(self.room);
        self.text.push_str(text.get(..taken).unwrap_or_default());
        self.room -= taken;
        if taken == text.len() {
            return Ok(());
        }
        self.room = 0;
        Err(fmt::Error)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tracing::subscriber::with_default;
    use tracing_subscriber::prelude::*;

    use super::*;

    /// What a watcher has been told so far, as `message field=value`.
    fn told(watcher: &mut Watcher) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut told = Vec::new();
        while let Poll::Ready(entry) = watcher.poll_next(&mut cx) {
            told.push(match entry {
                Entry::Missed(count) => format!("missed {count}"),
                Entry::Event(event) => {
                    let fields = event.fields.iter().map(|(name, value)| format!(" {name}={value}"));
                    format!("{}{}", event.message, fields.collect::<String>())
                }
            });
        }
        told
    }

    /// Which events are wanted is remembered for the whole process: of several
    /// logs, one may see what another has asked for.
    static ONE_LOG_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn watched(test: impl FnOnce(&Watchers)) {
        let _alone = ONE_LOG_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let watchers = Watchers::default();
        with_default(tracing_subscriber::registry().with(watchers.layer()), || test(&watchers));
    }

    #[test]
    fn a_watcher_gets_its_level_and_worse_from_when_it_came() {
        watched(|watchers| {
            tracing::error!("before");
            let mut watcher = watchers.watch(Level::WARN, String::new()).unwrap();
            tracing::info!("not so bad");
            tracing::warn!(user = "bob", count = 3, error = %"dis,played", what = ?"debugged", "bad");
            tracing::error!("worse");
            assert_eq!(
                told(&mut watcher),
                ["bad count=3 error=dis,played user=bob what=\"debugged\"", "worse"]
            );
        });
    }

    #[test]
    fn the_level_of_each_watcher_is_its_own() {
        watched(|watchers| {
            let mut one = watchers.watch(Level::ERROR, String::new()).unwrap();
            let mut other = watchers.watch(Level::TRACE, String::new()).unwrap();
            tracing::trace!("x");
            assert_eq!((told(&mut one), told(&mut other)), (vec![], vec!["x".to_owned()]));
            drop(other);
            tracing::trace!("y");
            assert_eq!(told(&mut one), Vec::<String>::new());
        });
    }

    #[test]
    fn targets_are_chosen_by_how_they_begin_and_those_of_libraries_are_none() {
        watched(|watchers| {
            let mut store = watchers.watch(Level::INFO, "hark_server::store".to_owned()).unwrap();
            let mut all = watchers.watch(Level::INFO, String::new()).unwrap();
            tracing::info!(target: "hark_server::store::cluster", "1");
            tracing::info!(target: "hark_server::front", "2");
            tracing::info!(target: "harkd", "3");
            tracing::error!(target: "h2::proto", "4");
            assert_eq!((told(&mut store), told(&mut all)), (strings(&["1"]), strings(&["1", "2", "3"])));
        });
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_slow_watcher_is_told_how_many_it_missed_and_where() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            let log = |range: std::ops::Range<usize>| range.for_each(|n| tracing::info!("{n}"));
            log(0..BUFFERED_EVENTS_MAX + 7);
            let told_first = told(&mut watcher);
            assert_eq!(told_first.len(), BUFFERED_EVENTS_MAX + 1);
            assert_eq!(told_first.last().unwrap(), "missed 7");
            log(5000..5001);
            assert_eq!(told(&mut watcher), ["5000"]);
        });
    }

    #[test]
    fn what_is_missed_is_told_between_what_came_before_and_after() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            (0..=BUFFERED_EVENTS_MAX).for_each(|n| tracing::info!("{n}"));
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..2 {
                assert!(watcher.poll_next(&mut cx).is_ready());
            }
            tracing::info!("after");
            let told = told(&mut watcher);
            assert_eq!(told.iter().rev().take(3).collect::<Vec<_>>(), ["after", "missed 1", "1023"]);
        });
    }

    #[test]
    fn an_event_is_cut_where_it_gets_too_long() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            let long = "é".repeat(EVENT_BYTES_MAX);
            tracing::info!(long, after = 1, "short");
            let told = told(&mut watcher).concat();
            assert!(told.starts_with("short") && told.contains("é…"), "{told}");
            assert!(told.len() < EVENT_BYTES_MAX + 64, "{}", told.len());
        });
    }

    #[test]
    fn watchers_are_bounded_and_make_room_when_they_go() {
        watched(|watchers| {
            let watch = || watchers.watch(Level::INFO, String::new());
            let mut all: Vec<_> = (0..WATCHERS_MAX).map(|_| watch().unwrap()).collect();
            assert_eq!(watch().unwrap_err(), TooManyWatchers);
            all.pop();
            watch().unwrap();
        });
    }

    #[test]
    fn while_nobody_watches_no_event_is_wanted() {
        watched(|watchers| {
            assert!(!tracing::enabled!(Level::ERROR));
            let watcher = watchers.watch(Level::DEBUG, String::new()).unwrap();
            assert!(tracing::enabled!(Level::DEBUG) && !tracing::enabled!(Level::TRACE));
            assert!(!tracing::enabled!(target: "hyper", Level::ERROR));
            drop(watcher);
            assert!(!tracing::enabled!(Level::ERROR));
        });
    }
}
