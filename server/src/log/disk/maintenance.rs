//! Maintenance concurrent with appends: index frames, spare files, freed files, copies,
//! and the free space.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::SharedLog;
use super::copies::{CopyJob, is_mostly_dead, is_partly_dead};
use super::segment::{Segment, unit_bytes};
use super::slots::{Cleaned, Unfinished};
use super::table::{FOOTER_BYTES, PAGE_BYTES, Table};

/// Blank files created ahead of use.
const SPARES: usize = 2;
/// Zeros written and synced at a time; few in tests, whose segments are small.
const ZERO_PIECE: usize = if cfg!(test) { 16 << 10 } else { 1 << 20 };
/// The pause after each piece, unless there is no blank file.
const ZERO_PAUSE: Duration = Duration::from_millis(15);
/// The number of free segments below which blank files are created without delay.
const SCARCE_SEGMENTS: u64 = 4;
/// The interval of free-space checks.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The delay before blank files are created again after an error; it doubles with each
/// error.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Copies precede blank files if the mostly dead segments exceed both this number of
/// segments and the live bytes.
const DEBT_SEGMENTS: u64 = 4;

/// Runs the maintenance of a log.
#[derive(Debug)]
pub(super) enum Runner {
    /// On a separate thread.
    Thread(Option<JoinHandle<()>>),
    /// One step after each append, for a deterministic order in tests.
    #[cfg(test)]
    Inline(Box<Maintenance>),
}

impl Runner {
    /// Starts the thread.
    pub(super) fn start(shared: &Arc<SharedLog>) -> io::Result<Self> {
        let mut maintenance = Maintenance::new(Arc::clone(shared));
        Self::spawn(shared, move || maintenance.run())
    }

    /// Starts a thread that runs the maintenance. If it panics, the log has failed: the
    /// log is reopened, together with its maintenance.
    pub(super) fn spawn(
        shared: &Arc<SharedLog>,
        run: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::clone(shared);
        let run = move || {
            if panic::catch_unwind(AssertUnwindSafe(run)).is_err() {
                tracing::error!("log maintenance panicked: reopening the log");
                shared.has_panicked.store(true, Ordering::Release);
            }
        };
        let thread = std::thread::Builder::new().name("log-maintenance".into());
        Ok(Self::Thread(Some(thread.spawn(run)?)))
    }

    /// Runs a step after each append, if there is no thread.
    pub(super) fn step(&mut self) {
        #[cfg(test)]
        if let Self::Inline(maintenance) = self {
            maintenance.step();
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // The log has asked the thread to end.
        if let Self::Thread(thread) = self
            && let Some(thread) = thread.take()
        {
            let _ = thread.join();
        }
    }
}

/// The state of the maintenance.
#[derive(Debug)]
pub(super) struct Maintenance {
    shared: Arc<SharedLog>,
    unfinished: Option<Unfinished>,
    job: Option<CopyJob>,
    /// The last step copied, so a blank file is next.
    has_copied: bool,
    zeros: Vec<u8>,
    polled_at: Option<Instant>,
    /// The time to create blank files again after an error, and the delay until then.
    retry: Option<(Instant, Duration)>,
}

/// The result of a step.
enum StepOutcome {
    /// Work was done, and there may be more.
    Worked,
    /// A rate-limited piece of work was done.
    Pause(Duration),
    /// There was no work.
    Idle,
}

impl Maintenance {
    pub(super) fn new(shared: Arc<SharedLog>) -> Self {
        Self {
            shared,
            unfinished: None,
            job: None,
            has_copied: false,
            zeros: Vec::new(),
            polled_at: None,
            retry: None,
        }
    }

    fn run(&mut self) {
        while !self.shared.is_closed() {
            match self.step() {
                StepOutcome::Worked => {}
                StepOutcome::Pause(pause) => std::thread::sleep(pause),
                StepOutcome::Idle => self.shared.wait(POLL_INTERVAL),
            }
        }
    }

    /// Does one piece of work, the most urgent first.
    fn step(&mut self) -> StepOutcome {
        self.poll();
        if self.seal() {
            return StepOutcome::Worked;
        }
        // Without debt, copies and blank files alternate.
        let is_copy_first = self.note_debt() || !self.has_copied;
        self.has_copied = is_copy_first && self.copy();
        if self.has_copied {
            return StepOutcome::Worked;
        }
        match self.prepare_space() {
            StepOutcome::Idle if !is_copy_first && self.copy() => StepOutcome::Worked,
            step => step,
        }
    }

    /// Cleans freed files and creates blank ones, with a delay after an error.
    fn prepare_space(&mut self) -> StepOutcome {
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return StepOutcome::Idle;
        }
        let prepared = match self.clean() {
            Ok(StepOutcome::Idle) => self.make_spare(),
            cleaned => cleaned,
        };
        match prepared {
            Ok(step) => {
                self.retry = None;
                step
            }
            Err(error) => {
                let delay = self
                    .retry
                    .map_or(RETRY_MIN, |(_, delay)| (2 * delay).min(RETRY_MAX));
                self.retry = Some((Instant::now() + delay, delay));
                tracing::warn!(%error, retry_ms = delay.as_millis(), "cannot prepare space for the log");
                StepOutcome::Idle
            }
        }
    }

    /// Checks whether the space that copies would free exceeds its bound, and makes
    /// appends copy more if so.
    fn note_debt(&self) -> bool {
        let tail_start = self.shared.tail_start.load(Ordering::Relaxed);
        let is_debt = |segment: &Segment| segment.id < tail_start && is_mostly_dead(segment);
        let debt = self.shared.segments.sum(|segment| {
            if is_debt(segment) {
                segment.slot.size
            } else {
                0
            }
        });
        let live = unit_bytes(self.shared.segments.sum(Segment::live));
        let is_urgent = debt > live.max(DEBT_SEGMENTS * self.shared.files.segment_bytes);
        let is_urgent = is_urgent || self.shared.compact_before.load(Ordering::Relaxed) > 0;
        self.shared.copies.set_urgent(is_urgent);
        is_urgent
    }

    fn poll(&mut self) {
        if self
            .polled_at
            .is_some_and(|at| at.elapsed() < POLL_INTERVAL)
        {
            return;
        }
        self.polled_at = Some(Instant::now());
        self.shared.files.poll();
    }

    /// Writes the index frame of the oldest segment without one.
    fn seal(&self) -> bool {
        let unsealed = self.shared.segments.select(Segment::is_unsealed);
        let Some(segment) = unsealed.first() else {
            return false;
        };
        if segment.live() == 0 {
            segment.set_unindexed();
        } else if let Err(error) = self.write_table(segment) {
            // The blocks stay indexed one by one, and an open reads the frames.
            let path = segment.slot.path.display();
            tracing::warn!(%path, %error, "cannot write the index of a segment");
            segment.set_unindexed();
        }
        true
    }

    fn write_table(&self, segment: &Segment) -> io::Result<()> {
        let Some(end) = segment.end() else {
            return Ok(());
        };
        let entries = self.shared.index.recent_of(segment.id);
        let encoded = Table::encode(&entries, segment.salt, end);
        let footer = segment.slot.size.saturating_sub(FOOTER_BYTES as u64);
        let file = &*segment.slot.file;
        if encoded.table.offset() + encoded.pages.len() as u64 > footer {
            return Err(io::Error::other("no room after the frames"));
        }
        file.write_at(&encoded.pages, encoded.table.offset())?;
        file.write_at(&encoded.footer, footer)?;
        file.sync()?;
        segment.set_table(encoded.table);
        let mut emptied = Vec::new();
        self.shared.index.seal(segment.id, &mut emptied);
        self.shared.emptied.lock().extend(emptied);
        Ok(())
    }

    fn clean(&self) -> io::Result<StepOutcome> {
        let files = &self.shared.files;
        match files.spares.clean(&*files.storage)? {
            Cleaned::Nothing => return Ok(StepOutcome::Idle),
            Cleaned::Blanked => {}
            Cleaned::Removed => {
                files.note_room();
                files.poll();
            }
        }
        Ok(StepOutcome::Worked)
    }

    /// Writes the next piece of a spare file.
    fn make_spare(&mut self) -> io::Result<StepOutcome> {
        let files = &self.shared.files;
        let (storage, spares) = (&*files.storage, &files.spares);
        let is_enough = spares.blank_count() >= SPARES;
        // An idle log has its reserve; spare files are for a log that fills up.
        let is_due = self.shared.is_filling.load(Ordering::Relaxed)
            || files.free_bytes() < SCARCE_SEGMENTS * files.segment_bytes;
        if is_enough {
            files.note_room();
        }
        let Some(unfinished) = &mut self.unfinished else {
            // The first spare file is created earlier: it holds records if other programs
            // fill the disk.
            let least = if spares.blank_count() == 0 { 1 } else { 2 };
            let has_space = files.free_bytes() > least * files.segment_bytes;
            let is_wanted = is_due || spares.blank_count() == 0;
            if is_enough || !has_space || !is_wanted {
                return Ok(StepOutcome::Idle);
            }
            let begun = spares.begin(storage);
            files.note_made(&begun);
            files.poll();
            self.unfinished = Some(begun?);
            return Ok(StepOutcome::Worked);
        };
        if is_enough || unfinished.has_failed {
            // Segments were freed meanwhile, or the file could not be removed before.
            spares.abandon(storage, unfinished)?;
            self.unfinished = None;
            return Ok(StepOutcome::Worked);
        }
        if !is_due && !unfinished.is_begun() {
            return Ok(StepOutcome::Idle);
        }
        self.zeros.resize(ZERO_PIECE + PAGE_BYTES, 0);
        let aligned = self.zeros.as_ptr().align_offset(PAGE_BYTES);
        let zeros = self
            .zeros
            .get(aligned..)
            .and_then(|zeros| zeros.get(..ZERO_PIECE))
            .unwrap_or_default();
        let written = unfinished.write(zeros).and_then(|is_complete| {
            if is_complete {
                spares.finish(storage, unfinished)?;
            }
            Ok(is_complete)
        });
        match written {
            Ok(false) => {}
            Ok(true) => {
                files.note_room();
                self.unfinished = None;
                self.zeros = Vec::new();
            }
            Err(error) => {
                let failed = Err::<(), _>(error);
                files.note_made(&failed);
                unfinished.has_failed = true;
                spares.abandon(storage, unfinished)?;
                self.unfinished = None;
                return failed.map(|()| StepOutcome::Idle);
            }
        }
        Ok(if spares.blank_count() > 0 {
            StepOutcome::Pause(ZERO_PAUSE)
        } else {
            StepOutcome::Worked
        })
    }

    /// Reads ahead blocks to copy.
    fn copy(&mut self) -> bool {
        let queue = &self.shared.copies;
        if !queue.has_room() {
            return false;
        }
        let Some(job) = &mut self.job else {
            let tail_start = self.shared.tail_start.load(Ordering::Relaxed);
            let compact_before = self.shared.compact_before.load(Ordering::Relaxed);
            let is_due = |segment: &Segment| {
                is_mostly_dead(segment) || (segment.id < compact_before && is_partly_dead(segment))
            };
            let sources = self
                .shared
                .segments
                .select(|segment| segment.id < tail_start && is_due(segment));
            let source = sources.into_iter().min_by_key(|segment| segment.live());
            if source.is_none() && queue.is_empty() {
                self.shared.compact_before.store(0, Ordering::Relaxed);
            }
            // The blocks of the previous job are copied first.
            self.job = source.filter(|_| queue.is_empty()).map(CopyJob::new);
            return self.job.is_some();
        };
        match job.step(&self.shared.index, queue) {
            Ok(false) => {}
            Ok(true) => self.job = None,
            Err(error) => {
                if let Some(job) = self.job.take() {
                    job.abandon(&error);
                }
            }
        }
        true
    }
}
