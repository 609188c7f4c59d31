//! How much of the log comes to standard error. No other test of this program
//! may install a subscriber: those of one process are not independent.

use std::io;
use std::sync::{Arc, Mutex};

use hark_server::logging::Bound;
use tracing::Metadata;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::with_default;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::writer::{EitherWriter, OptionalWriter};
use tracing_subscriber::prelude::*;

/// As the bound, but what is not left out is kept.
#[derive(Debug, Clone, Default)]
struct Kept {
    bound: Bound,
    lines: Arc<Mutex<Vec<u8>>>,
}

impl<'a> MakeWriter<'a> for Kept {
    type Writer = OptionalWriter<Self>;

    fn make_writer(&'a self) -> Self::Writer {
        OptionalWriter::some(self.clone())
    }

    fn make_writer_for(&'a self, line: &Metadata<'_>) -> Self::Writer {
        match self.bound.make_writer_for(line) {
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

/// What is kept of what `test` logs.
fn logged(test: impl FnOnce(&Bound)) -> Vec<String> {
    let kept = Kept::default();
    let layer = tracing_subscriber::fmt::layer().with_writer(kept.clone()).with_ansi(false);
    let layer = layer.with_filter(LevelFilter::DEBUG);
    with_default(tracing_subscriber::registry().with(layer), || test(&kept.bound));
    let bytes = std::mem::take(&mut *kept.lines.lock().unwrap());
    String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
}

fn count(lines: &[String], text: &str) -> usize {
    lines.iter().filter(|line| line.contains(text)).count()
}

#[test]
fn what_is_said_again_and_again_is_left_out_and_counted() {
    let lines = logged(|bound| {
        for nth in 0..20_000 {
            tracing::warn!("again {nth}");
        }
        tracing::warn!("something else");
        bound.report();
        bound.report();
    });
    assert_eq!(count(&lines, "something else"), 1);
    let said = count(&lines, "again ");
    // One a second on a machine that has stalled.
    assert!((100..200).contains(&said), "{said} lines");
    let reports: Vec<_> = lines.iter().filter(|line| line.contains("kept short")).collect();
    let [report] = reports[..] else { panic!("{reports:?}") };
    assert!(report.contains("place=\"it::log_bound:"), "{report}");
    let left_out: usize = report.split("left_out=").nth(1).unwrap().trim().parse().unwrap();
    assert_eq!(said + left_out, 20_000);
}

#[test]
fn who_asks_for_more_than_the_default_gets_all_of_it() {
    let lines = logged(|_| {
        for _ in 0..1000 {
            tracing::debug!("a detail");
        }
    });
    assert_eq!(count(&lines, "a detail"), 1000);
}
