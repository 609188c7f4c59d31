//! The rate limit of the log on standard error: a token bucket for each callsite, so that
//! no client can fill a disk by making the server repeat an event. Suppressed lines are
//! counted and reported. Lines below the default level are exempt, since an operator has
//! asked for them.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Stderr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::OptionalWriter;

use crate::limit::{Bucket, Rate};
use crate::sync::Mutex;

/// The lines of one callsite: a burst of 100, then one per second.
const LINES: Rate = Rate::one_in(Duration::from_secs(1), 100);

/// The interval of the reports of suppressed lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// A rate-limited writer to standard error. Clones share the counts.
#[derive(Debug, Clone, Default)]
pub struct LineLimiter {
    // Locked because any thread may log. Held to count one line, never while it is written.
    // One entry for each callsite, so bounded by the code.
    callsites: Arc<Mutex<HashMap<Identifier, Callsite>>>,
}

#[derive(Debug)]
struct Callsite {
    name: String,
    lines: Bucket,
    suppressed: u64,
}

impl LineLimiter {
    /// Logs the number of suppressed lines of each callsite since the last report.
    pub fn report(&self) {
        let suppressed: Vec<_> = {
            let mut callsites = self.callsites.lock();
            let limited = callsites
                .values_mut()
                .filter(|callsite| callsite.suppressed > 0);
            limited
                .map(|callsite| {
                    (
                        callsite.name.clone(),
                        std::mem::take(&mut callsite.suppressed),
                    )
                })
                .collect()
        };
        for (callsite, count) in suppressed {
            tracing::warn!(callsite, count, "suppressed similar lines");
        }
    }

    /// Reports suppressed lines at intervals for as long as it is polled.
    pub async fn keep_reporting(&self) -> Infallible {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.report();
        }
    }

    /// Returns whether another line of this callsite may be written, and counts it.
    fn admits(&self, line: &Metadata<'_>, now: Instant) -> bool {
        if *line.level() > Level::INFO {
            return true;
        }
        let mut callsites = self.callsites.lock();
        let callsite = callsites
            .entry(line.callsite())
            .or_insert_with(|| Callsite::new(line));
        let is_admitted = callsite.lines.wait(LINES, now).is_zero();
        if is_admitted {
            callsite.lines.take(LINES, 1, now);
        } else {
            callsite.suppressed += 1;
        }
        is_admitted
    }
}

impl Callsite {
    fn new(line: &Metadata<'_>) -> Self {
        let name = format!("{}:{}", line.target(), line.line().unwrap_or_default());
        Self {
            name,
            lines: Bucket::default(),
            suppressed: 0,
        }
    }
}

impl<'a> MakeWriter<'a> for LineLimiter {
    type Writer = OptionalWriter<Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(std::io::stderr())
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        if self.admits(line, Instant::now()) {
            self.make_writer()
        } else {
            OptionalWriter::none()
        }
    }
}
