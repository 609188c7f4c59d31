//! The state shared by all rounds: the servers to measure, their data folders, the report, and
//! the progress bar.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};

use crate::load::{prepare, prepare_room};
use crate::peers::Peer;
use crate::report::Report;
use crate::report::record::Record;
use crate::server::{Server, free_port};

/// A run of the benchmark.
pub(crate) struct Bench {
    /// The installed peers that are measured with messages to single users.
    pub(crate) subjects: Vec<Arc<dyn Peer>>,
    /// The installed peers that are measured with messages to a room.
    pub(crate) room_subjects: Vec<Arc<dyn Peer>>,
    /// The report.
    pub(crate) report: Report,
    folder: PathBuf,
    bar: ProgressBar,
    started: usize,
}

/// A running server and its data folder, which is removed at the end.
pub(crate) struct Running {
    /// The process.
    pub(crate) server: Server,
    folder: PathBuf,
    peer: Arc<dyn Peer>,
    port: u16,
}

impl Bench {
    /// Returns a run over the installed peers, with their data in `folder`.
    pub(crate) fn new(installed: Vec<Arc<dyn Peer>>, report: Report, folder: PathBuf) -> Self {
        let bar = ProgressBar::no_length();
        // The template is a valid constant.
        if let Ok(style) =
            ProgressStyle::with_template("{elapsed_precise} {bar:30} {pos}/{len} {prefix}: {msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_secs(1));
        let (mut subjects, mut room_subjects) = (installed.clone(), installed);
        subjects.retain(|peer| peer.has_users());
        room_subjects.retain(|peer| peer.has_rooms());
        Self {
            subjects,
            room_subjects,
            report,
            folder,
            bar,
            started: 0,
        }
    }

    /// Returns the folder of the servers' data folders.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a round of this many steps.
    pub(crate) fn begin(&self, round: &'static str, steps: usize) {
        self.bar.reset();
        self.bar.set_length(steps as u64);
        self.bar.set_prefix(round);
    }

    /// Names the current step.
    pub(crate) fn step(&self, what: String) {
        self.bar.set_message(what);
        self.bar.inc(1);
    }

    /// Prints a line above the bar.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| println!("{line}"));
    }

    /// Removes the bar.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }

    /// Records a measurement. A failed one is named, and the run continues.
    ///
    /// # Errors
    /// If the report cannot be written.
    pub(crate) fn take(
        &mut self,
        subject: &str,
        taken: anyhow::Result<Record>,
    ) -> anyhow::Result<()> {
        match taken {
            Ok(record) => self.report.add(record),
            Err(error) => {
                self.say(&format!("{subject} was not measured: {error:#}"));
                Ok(())
            }
        }
    }

    /// Starts a server with an empty store, prepared for this many users.
    ///
    /// # Errors
    /// If the server does not start.
    pub(crate) fn start(&mut self, peer: &Arc<dyn Peer>, users: usize) -> anyhow::Result<Running> {
        self.start_with(peer, |address| prepare(&**peer, address, users))
    }

    /// Starts a server with an empty store, prepared for a room of this many members.
    ///
    /// # Errors
    /// If the server does not start.
    pub(crate) fn start_room(
        &mut self,
        peer: &Arc<dyn Peer>,
        members: usize,
    ) -> anyhow::Result<Running> {
        self.start_with(peer, |address| prepare_room(&**peer, address, members))
    }

    fn start_with(
        &mut self,
        peer: &Arc<dyn Peer>,
        prepare: impl FnOnce(SocketAddr) -> anyhow::Result<()>,
    ) -> anyhow::Result<Running> {
        self.started += 1;
        let folder = self.folder.join(self.started.to_string());
        if folder.exists() {
            fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot empty {}", folder.display()))?;
        }
        let port = free_port()?;
        let mut server = peer.start(port, &folder)?;
        server.wait_until_it_listens()?;
        let running = Running {
            server,
            folder,
            peer: Arc::clone(peer),
            port,
        };
        prepare(running.server.address())
            .with_context(|| format!("{} says: {}", peer.name(), running.server.said()))?;
        Ok(running)
    }
}

impl Running {
    /// Returns its data folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends the server by `end`, and restarts it on its data, without waiting until it listens.
    ///
    /// # Errors
    /// If a step fails.
    pub(crate) fn restart(
        &mut self,
        end: fn(&mut Server) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        end(&mut self.server)?;
        self.server = self.peer.start(self.port, &self.folder)?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A server that still writes may recreate its folder. The folder of the run contains any
        // remnant.
        drop(self.server.kill());
        drop(fs::remove_dir_all(&self.folder));
    }
}
