//! Opening a log and replaying its ledger, at the start and after a failure.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ledger::{self, Ledger, Limits, Replay, WrongClock};
use crate::log::{Log, OpenError, Opener};

/// A log that is open, and its ledger.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The log.
    pub(crate) log: Box<dyn Log>,
    /// The ledger.
    pub(crate) ledger: Ledger,
}

/// The number that a store's numbers come after, besides the persisted counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CounterFloor {
    /// The clock of the machine decides.
    Clock,
    /// This number.
    After(u64),
}

/// Why a store cannot be opened. Each is one line that says what is wrong and how
/// to remedy it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The clock is wrong.
    #[error(transparent)]
    Clock(#[from] WrongClock),
    /// There can be no thread for the store.
    #[error("cannot start a thread for the store: {0}; raise the limit of threads (ulimit -u)")]
    Thread(io::Error),
}

/// Opens a log and replays it. A store that has no persisted counter waits for
/// the next full second of the clock.
pub(crate) fn open(opener: &dyn Opener, limits: Limits, floor: CounterFloor) -> Result<Opened, StartError> {
    let mut replay = Replay::new(limits);
    let mut log = opener.open(&mut |records| replay_frame(&mut replay, opener.path(), records))?;
    log.retain(&mut |inbox| replay.cursor(inbox));
    let counter = match floor {
        CounterFloor::After(number) => number,
        CounterFloor::Clock => counter(replay.counter().is_none())?,
    };
    Ok(Opened { log, ledger: replay.finish(counter) })
}

/// Replays a frame of the log at `path`.
pub(super) fn replay_frame(replay: &mut Replay, path: &Path, records: &[u8]) -> Result<(), OpenError> {
    replay.frame(records).map_err(|_| OpenError::Damaged {
        path: path.to_owned(),
        what: "a record is malformed or of a later version".to_owned(),
    })
}

fn counter(is_new: bool) -> Result<u64, WrongClock> {
    let begun = SystemTime::now();
    let counter = ledger::counter_at(begun)?;
    if !is_new {
        return Ok(counter);
    }
    // A store that was here before may have numbered messages in this second.
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    while seconds(SystemTime::now()) == seconds(begun) {
        thread::sleep(ledger::until_next_second(SystemTime::now()));
    }
    ledger::counter_at(SystemTime::now())
}
