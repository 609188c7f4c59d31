//! The server's log: the filter and the rate limit of standard error, and the live
//! watchers with a bounded buffer each. The front checks the permission to watch.
//!
//! Watchers get only Hark's own events. A library event during the delivery to a watcher
//! would cause another one, and so on endlessly; and library events may contain texts.
//!
//! Each callsite's interest is cached and rebuilt when a watcher comes or goes, so that
//! without watchers an event costs the same as without this layer.

mod level;
mod line_limiter;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Debug, Write};
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{self, Filter};

use crate::chat::now_ms;
use crate::store::LIBRARY_LOGS;
use crate::sync::Mutex;

pub use level::LogLevel;
pub use line_limiter::LineLimiter;

/// The maximum number of watchers at the same time. The thread that logs an event puts it
/// into each watcher's buffer.
pub const WATCHERS_MAX: usize = 16;

/// The maximum number of events buffered for one watcher. Further events are counted, and
/// reported to the watcher as missed.
pub const BUFFERED_EVENTS_MAX: usize = 1024;

/// The maximum number of bytes of the message and the fields of an event, approximately.
const EVENT_BYTES_MAX: usize = 4096;

/// The prefixes of the targets of Hark's own events.
const OWN_TARGETS: [&str; 2] = ["hark_", "harkd"];

/// Parses the value of `--log`: a level, or a comma-separated filter of levels and
/// `TARGET=LEVEL`. It overrides the default levels of libraries.
///
/// # Errors
/// If a directive is malformed. A bare word must be a level: `Targets` would take a misspelt
/// level for a target, and log all its events.
pub fn filter(given: &str) -> anyhow::Result<Targets> {
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    let directives = given
        .split(',')
        .map(str::trim)
        .filter(|directive| !directive.is_empty());
    let has_unknown_word = directives
        .clone()
        .any(|directive| !directive.contains('=') && !is_level(directive));
    let all: Vec<&str> = ["error"]
        .into_iter()
        .chain(LIBRARY_LOGS.iter().copied())
        .chain(directives)
        .collect();
    match all.join(",").parse() {
        Ok(filter) if !has_unknown_word => Ok(filter),
        _ => anyhow::bail!(
            "invalid --log {given:?}: expected error, warn, info, debug, trace or off, or a filter such as info,hark_server::log=debug"
        ),
    }
}

/// An event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedEvent {
    /// The time, in milliseconds since 1970.
    pub time_ms: u64,
    /// The severity.
    pub level: Level,
    /// The module that logged it.
    pub target: &'static str,
    /// The message.
    pub message: String,
    /// The other fields, by name.
    pub fields: BTreeMap<&'static str, String>,
}

/// An item of a watcher's stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatcherItem {
    /// An event.
    Event(Arc<LoggedEvent>),
    /// The number of events lost at this point because the buffer was full.
    Missed(u64),
}

/// The watchers of the log. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Watchers {
    // Locked because any thread may log. Held to visit each watcher, never while an event is
    // logged or the interest cache is rebuilt.
    watchers: Arc<Mutex<Vec<Arc<WatcherBuffer>>>>,
}

/// A watcher of the log. Dropping it unregisters it.
#[derive(Debug)]
pub struct Watcher {
    watchers: Watchers,
    buffer: Arc<WatcherBuffer>,
}

/// The refusal of a watcher beyond the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the log already has {WATCHERS_MAX} watchers; try again later")]
pub struct TooManyWatchers;

#[derive(Debug)]
struct WatcherBuffer {
    level: LevelFilter,
    target_prefix: String,
    // Locked because any thread pushes and the watcher's task pops. Held for one operation on
    // the queue.
    entries: Mutex<VecDeque<WatcherItem>>,
    changed: AtomicWaker,
}

impl Watchers {
    /// Returns the layer of the subscriber that feeds the watchers.
    pub fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    {
        self.clone().with_filter(self.clone())
    }

    /// Registers a watcher for events of at least this level with a target that starts with
    /// `target_prefix`.
    ///
    /// # Errors
    /// [`TooManyWatchers`].
    pub fn watch(&self, level: Level, target_prefix: String) -> Result<Watcher, TooManyWatchers> {
        let level = LevelFilter::from_level(level);
        let (entries, changed) = Default::default();
        let buffer = Arc::new(WatcherBuffer {
            level,
            target_prefix,
            entries,
            changed,
        });
        {
            let mut watchers = self.watchers.lock();
            if watchers.len() >= WATCHERS_MAX {
                return Err(TooManyWatchers);
            }
            watchers.push(Arc::clone(&buffer));
        }
        tracing::callsite::rebuild_interest_cache();
        Ok(Watcher {
            watchers: self.clone(),
            buffer,
        })
    }

    fn want(&self, metadata: &Metadata<'_>) -> bool {
        let target = metadata.target();
        !metadata.is_span()
            && OWN_TARGETS.iter().any(|own| target.starts_with(own))
            && self
                .watchers
                .lock()
                .iter()
                .any(|buffer| buffer.wants(metadata))
    }
}

impl<S: Subscriber> Layer<S> for Watchers {
    fn on_event(&self, event: &tracing::Event<'_>, _: layer::Context<'_, S>) {
        let metadata = event.metadata();
        // Formatted before the lock is taken, since a field's formatting may log.
        let event = Arc::new(LoggedEvent::new(event));
        for buffer in self
            .watchers
            .lock()
            .iter()
            .filter(|buffer| buffer.wants(metadata))
        {
            buffer.push(&event);
        }
    }
}

impl<S> Filter<S> for Watchers {
    fn enabled(&self, metadata: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        self.want(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.want(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let levels = self.watchers.lock().iter().map(|buffer| buffer.level).max();
        Some(levels.unwrap_or(LevelFilter::OFF))
    }
}

impl Watcher {
    /// Polls for the next entry.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<WatcherItem> {
        self.buffer.changed.register(cx.waker());
        self.buffer
            .entries
            .lock()
            .pop_front()
            .map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watchers
            .watchers
            .lock()
            .retain(|buffer| !Arc::ptr_eq(buffer, &self.buffer));
        tracing::callsite::rebuild_interest_cache();
    }
}

impl WatcherBuffer {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && metadata.target().starts_with(&self.target_prefix)
    }

    fn push(&self, event: &Arc<LoggedEvent>) {
        let mut entries = self.entries.lock();
        if entries.len() < BUFFERED_EVENTS_MAX {
            entries.push_back(WatcherItem::Event(Arc::clone(event)));
        } else if let Some(WatcherItem::Missed(count)) = entries.back_mut() {
            *count += 1;
        } else {
            entries.push_back(WatcherItem::Missed(1));
        }
        drop(entries);
        self.changed.wake();
    }
}

impl LoggedEvent {
    fn new(event: &tracing::Event<'_>) -> Self {
        let metadata = event.metadata();
        let (message, fields) = Default::default();
        let mut collector = Collector {
            message,
            fields,
            room: EVENT_BYTES_MAX,
        };
        event.record(&mut collector);
        let Collector {
            message, fields, ..
        } = collector;
        Self {
            time_ms: now_ms(),
            level: *metadata.level(),
            target: metadata.target(),
            message,
            fields,
        }
    }
}

/// Collects the fields of an event, up to a bound.
struct Collector {
    message: String,
    fields: BTreeMap<&'static str, String>,
    room: usize,
}

impl Collector {
    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let mut text = Bounded {
            text: String::new(),
            room: self.room,
        };
        if text.write_fmt(value).is_err() {
            // The rest exceeds the bound.
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

/// A text with a bound on its length.
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

    /// Returns a watcher's entries so far, as `message field=value`.
    fn received(watcher: &mut Watcher) -> Vec<String> {
        let mut cx = Context::from_waker(Waker::noop());
        let mut entries = Vec::new();
        while let Poll::Ready(entry) = watcher.poll_next(&mut cx) {
            entries.push(match entry {
                WatcherItem::Missed(count) => format!("missed {count}"),
                WatcherItem::Event(event) => {
                    let fields = event
                        .fields
                        .iter()
                        .map(|(name, value)| format!(" {name}={value}"));
                    format!("{}{}", event.message, fields.collect::<String>())
                }
            });
        }
        entries
    }

    /// The interest cache is global to the process, so tests with a log of their own must not
    /// overlap.
    static ONE_LOG_AT_A_TIME: Mutex<()> = Mutex::new(());

    fn watched(test: impl FnOnce(&Watchers)) {
        let _alone = ONE_LOG_AT_A_TIME.lock();
        let watchers = Watchers::default();
        with_default(
            tracing_subscriber::registry().with(watchers.layer()),
            || test(&watchers),
        );
    }

    #[test]
    fn unknown_log_level_is_refused() {
        for directives in [
            "info",
            "off",
            "debug,hark_server::store=trace",
            "hark_server=warn",
            "",
            "info,",
        ] {
            assert!(filter(directives).is_ok(), "{directives}");
        }
        for directives in ["loud", "hark=loud", "info,verbose", "hark_server", "inf"] {
            let error = filter(directives).unwrap_err().to_string();
            assert!(
                error.contains("--log") && error.contains(directives),
                "{error}"
            );
        }
    }

    #[test]
    fn watcher_gets_its_level_and_above() {
        watched(|watchers| {
            tracing::error!("before");
            let mut watcher = watchers.watch(Level::WARN, String::new()).unwrap();
            tracing::info!("not so bad");
            tracing::warn!(user = "bob", count = 3, error = %"dis,played", what = ?"debugged", "bad");
            tracing::error!("worse");
            assert_eq!(
                received(&mut watcher),
                [
                    "bad count=3 error=dis,played user=bob what=\"debugged\"",
                    "worse"
                ]
            );
        });
    }

    #[test]
    fn each_watcher_has_its_own_level() {
        watched(|watchers| {
            let mut one = watchers.watch(Level::ERROR, String::new()).unwrap();
            let mut other = watchers.watch(Level::TRACE, String::new()).unwrap();
            tracing::trace!("x");
            assert_eq!(
                (received(&mut one), received(&mut other)),
                (vec![], vec!["x".to_owned()])
            );
            drop(other);
            tracing::trace!("y");
            assert_eq!(received(&mut one), Vec::<String>::new());
        });
    }

    #[test]
    fn targets_match_by_prefix_and_exclude_libraries() {
        watched(|watchers| {
            let mut store = watchers
                .watch(Level::INFO, "hark_server::store".to_owned())
                .unwrap();
            let mut all = watchers.watch(Level::INFO, String::new()).unwrap();
            tracing::info!(target: "hark_server::store::pending", "1");
            tracing::info!(target: "hark_server::front", "2");
            tracing::info!(target: "harkd", "3");
            tracing::error!(target: "h2::proto", "4");
            assert_eq!(
                (received(&mut store), received(&mut all)),
                (strings(&["1"]), strings(&["1", "2", "3"]))
            );
        });
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn slow_watcher_gets_the_count_of_missed_events() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            let log = |range: std::ops::Range<usize>| range.for_each(|n| tracing::info!("{n}"));
            log(0..BUFFERED_EVENTS_MAX + 7);
            let first = received(&mut watcher);
            assert_eq!(first.len(), BUFFERED_EVENTS_MAX + 1);
            assert_eq!(first.last().unwrap(), "missed 7");
            log(5000..5001);
            assert_eq!(received(&mut watcher), ["5000"]);
        });
    }

    #[test]
    fn missed_events_are_counted_at_their_place() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            (0..=BUFFERED_EVENTS_MAX).for_each(|n| tracing::info!("{n}"));
            let mut cx = Context::from_waker(Waker::noop());
            for _ in 0..2 {
                assert!(watcher.poll_next(&mut cx).is_ready());
            }
            tracing::info!("after");
            let entries = received(&mut watcher);
            assert_eq!(
                entries.iter().rev().take(3).collect::<Vec<_>>(),
                ["after", "missed 1", "1023"]
            );
        });
    }

    #[test]
    fn long_event_is_truncated() {
        watched(|watchers| {
            let mut watcher = watchers.watch(Level::INFO, String::new()).unwrap();
            let long = "é".repeat(EVENT_BYTES_MAX);
            tracing::info!(long, after = 1, "short");
            let entries = received(&mut watcher).concat();
            assert!(
                entries.starts_with("short") && entries.contains("é…"),
                "{entries}"
            );
            assert!(entries.len() < EVENT_BYTES_MAX + 64, "{}", entries.len());
        });
    }

    #[test]
    fn watchers_are_bounded() {
        watched(|watchers| {
            let watch = || watchers.watch(Level::INFO, String::new());
            let mut all: Vec<_> = (0..WATCHERS_MAX).map(|_| watch().unwrap()).collect();
            assert_eq!(watch().unwrap_err(), TooManyWatchers);
            all.pop();
            watch().unwrap();
        });
    }

    #[test]
    fn events_are_disabled_without_watchers() {
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
