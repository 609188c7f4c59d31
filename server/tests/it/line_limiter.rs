//! The rate limit of the log on standard error. No other test of this program may install
//! a subscriber, since the subscribers of a process share the interest cache.

use std::io;
use std::sync::{Arc, Mutex};

use hark_server::logging::LineLimiter;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::with_default;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{EitherWriter, OptionalWriter};
use tracing_subscriber::prelude::*;

/// A writer that keeps the lines that the limiter admits.
#[derive(Debug, Clone, Default)]
struct Kept {
    limiter: LineLimiter,
    lines: Arc<Mutex<Vec<u8>>>,
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = OptionalWriter<Self>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(self.clone())
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        match self.limiter.make_writer_for(line) {
            EitherWriter::A(_) => self.make_writer(),
            EitherWriter::B(_) => OptionalWriter::none(),
        }
    }
}

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lines.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the admitted lines of `test`.
fn logged(test: impl FnOnce(&LineLimiter)) -> Vec<String> {
    let kept = Kept::default();
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(kept.clone())
        .with_ansi(false);
    let layer = layer.with_filter(LevelFilter::DEBUG);
    with_default(tracing_subscriber::registry().with(layer), || {
        test(&kept.limiter)
    });
    let bytes = std::mem::take(&mut *kept.lines.lock().unwrap());
    String::from_utf8(bytes)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn repeated_lines_are_suppressed_and_counted() {
    let lines = logged(|limiter| {
        for nth in 0..20_000 {
            tracing::warn!("again {nth}");
        }
        tracing::warn!("something else");
        limiter.report();
        limiter.report();
    });
    assert_eq!(count(&lines, "something else"), 1);
    let admitted = count(&lines, "again ");
    // More than the burst only on a machine that stalls for seconds.
    assert!((100..200).contains(&admitted), "{admitted} lines");
    let reports: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("suppressed similar lines"))
        .collect();
    let [report] = reports[..] else {
        panic!("{reports:?}")
    };
    assert!(report.contains("callsite=\"it::line_limiter:"), "{report}");
    let suppressed: usize = report
        .split("count=")
        .nth(1)
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert_eq!(admitted + suppressed, 20_000);
}

#[test]
fn lines_below_the_default_level_are_exempt() {
    let lines = logged(|_| {
        for _ in 0..1000 {
            tracing::debug!("a detail");
        }
    });
    assert_eq!(count(&lines, "a detail"), 1000);
}
