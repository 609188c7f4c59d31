//! What all rounds share: the servers to measure, a place for what they keep,
//! the report, and the bar that says how far it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::load::prepare;
use crate::peers::Peer;
use crate::report::Report;
use crate::report::record::Record;
use crate::server::{Server, free_port};

/// A run of the benchmark.
pub(crate) struct Bench {
    /// What is measured; those that were there.
    pub(crate) subjects: Vec<Arc<dyn Peer>>,
    /// The report.
    pub(crate) report: Report,
    folder: PathBuf,
    bar: ProgressBar,
    started: usize,
}

/// A server with what it keeps, which is removed after it.
pub(crate) struct Running {
    /// The process.
    pub(crate) server: Server,
    folder: PathBuf,
    peer: Arc<dyn Peer>,
    port: u16,
}

impl Bench {
    /// A run that keeps the data of servers in `folder`.
    pub(crate) fn new(subjects: Vec<Arc<dyn Peer>>, report: Report, folder: PathBuf) -> Self {
        let bar = ProgressBar::no_length();
        // The template is ours, and is one.
        if let Ok(style) =
            ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {prefix}: {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_secs(1));
        Self { subjects, report, folder, bar, started: 0 }
    }

    /// Where servers keep their data, each in a folder of its own.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins a round of so many steps.
    pub(crate) fn begin(&self, round: &'static str, steps: usize) {
        self.bar.reset();
        self.bar.set_length(steps as u64);
        self.bar.set_prefix(round);
    }

    /// Says what is measured now.
    pub(crate) fn step(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    /// Says something above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Ends the bar.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Takes a figure down; one that could not be taken is named, and the rest
    /// goes on.
    ///
    /// # Errors
    /// Where the report cannot be written.
    pub(crate) fn take(&mut self, subject: &str, taken: anyhow::Result<Record>) -> anyhow::Result<()> {
        match taken {
            Ok(record) => self.report.add(record),
            Err(error) => {
                self.say(&format!("{subject} was not measured: {error:#}"));
                Ok(())
            }
        }
    }

    /// Starts a server that has nothing yet, prepared for so many users.
    ///
    /// # Errors
    /// Where it does not start.
    pub(crate) fn start(&mut self, peer: &Arc<dyn Peer>, users: usize) -> anyhow::Result<Running> {
        self.started += 1;
        let folder = self.folder.join(self.started.to_string());
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        let port = free_port()?;
        let mut server = peer.start(port, &folder)?;
        server.wait_until_it_listens()?;
        let running = Running { server, folder, peer: Arc::clone(peer), port };
        prepare(&**peer, running.server.address(), users)
            .with_context(|| format!("{} says: {}", peer.name(), running.server.said()))?;
        Ok(running)
    }
}

impl Running {
    /// Where it keeps what it keeps.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends it by `end`, and starts it anew with what it has kept. Whether it
    /// listens again is not waited for.
    ///
    /// # Errors
    /// Where that fails.
    pub(crate) fn restart(&mut self, end: fn(&mut Server) -> anyhow::Result<()>) -> anyhow::Result<()> {
        end(&mut self.server)?;
        self.server = self.peer.start(self.port, &self.folder)?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A server that writes while its folder goes would make it anew; and
        // what is left behind is found under the folder of the run.
        drop(self.server.kill());
        drop(fs::remove_dir_all(&self.folder));
    }
}
