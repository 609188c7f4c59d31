//! How much is logged on standard error: each place in the code that logs has a
//! token bucket, so that nobody fills a disk by having the server say the same
//! again and again. What was left out is counted, and said from time to time.
//! What an operator asks for beyond the default level comes whole.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Stderr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

use crate::limit::{Bucket, Rate};

/// Lines of one place in the code: a hundred, then one a second.
const LINES: Rate = Rate::one_in(Duration::from_secs(1), 100);

/// How often it is said what was left out.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Standard error for as many lines as there may be. A clone has the same
/// counts.
#[derive(Debug, Clone, Default)]
pub struct Bound {
    // A lock, since any thread may log. It is held to count one line, and never
    // while one is written. No more entries than there are places in the code
    // that log.
    places: Arc<Mutex<HashMap<Identifier, Place>>>,
}

#[derive(Debug)]
struct Place {
    name: String,
    lines: Bucket,
    left_out: u64,
}

impl Bound {
    /// Says what was left out since the last time: a line for each place.
    pub fn report(&self) {
        let lacking: Vec<_> = {
            let mut places = self.lock();
            let lacking = places.values_mut().filter(|place| place.left_out > 0);
            lacking.map(|place| (place.name.clone(), std::mem::take(&mut place.left_out))).collect()
        };
        for (place, left_out) in lacking {
            tracing::warn!(place, left_out, "the log is kept short: there were more lines like those before");
        }
    }

    /// Says what was left out, for as long as this is polled.
    pub async fn keep_reporting(&self) -> Infallible {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.report();
        }
    }

    /// Whether there is room for another line of this place, which is taken.
    fn admits(&self, line: &Metadata<'_>, now: Instant) -> bool {
        if *line.level() > Level::INFO {
            return true;
        }
        let mut places = self.lock();
        let place = places.entry(line.callsite()).or_insert_with(|| Place::new(line));
        let has_room = place.lines.wait(LINES, now).is_zero();
        if has_room {
            place.lines.take(LINES, 1, now);
        } else {
            place.left_out += 1;
        }
        has_room
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Identifier, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new(line: &Metadata<'_>) -> Self {
        let name = format!("{}:{}", line.target(), line.line().unwrap_or_default());
        Self { name, lines: Bucket::default(), left_out: 0 }
    }
}

impl<'a> MakeWriter<'a> for Bound {
    type Writer = OptionalWriter<Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(std::io::stderr())
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        if self.admits(line, Instant::now()) { self.make_writer() } else { OptionalWriter::none() }
    }
}
