//! Opening a log and replaying its ledger, at the start and after a failure.

use std::io;
use std::path::Path;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::ledger::{self, Ledger, Limits, Replay, WrongClock};
use crate::log::{Log, OpenError, Opener};

/// An open log and its ledger.
#[derive(Debug)]
pub(crate) struct OpenShard {
    /// The log.
    pub(crate) log: Box<dyn Log>,
    /// The ledger.
    pub(crate) ledger: Ledger,
}

/// A lower bound for new message numbers, in addition to the persisted counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CounterFloor {
    /// The clock of the machine.
    Clock,
    /// This number.
    After(u64),
}

/// The reason why a store cannot be opened. Each is one line with the cause and the
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// The clock is wrong.
    #[error(transparent)]
    Clock(#[from] WrongClock),
    /// A thread cannot be started.
    #[error("cannot start a thread for the store: {0}; raise the limit of threads (ulimit -u)")]
    Thread(io::Error),
}

/// Opens a log and replays it. A store without a persisted counter waits for the next
/// full second of the clock.
pub(crate) fn open(
    opener: &dyn Opener,
    limits: Limits,
    floor: CounterFloor,
) -> Result<OpenShard, StartError> {
    let mut replay = Replay::new(limits);
    let mut log = opener.open(&mut |records| replay_frame(&mut replay, opener.path(), records))?;
    log.retain(&mut |inbox| replay.head(inbox));
    let counter = match floor {
        CounterFloor::After(number) => number,
        CounterFloor::Clock => counter(replay.counter().is_none())?,
    };
    Ok(OpenShard {
        log,
        ledger: replay.finish(counter),
    })
}

/// Replays a frame of the log at `path`.
pub(super) fn replay_frame(
    replay: &mut Replay,
    path: &Path,
    records: &[u8],
) -> Result<(), OpenError> {
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
    // A former store at this address may have used numbers of this second.
    let seconds = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs()
    };
    while seconds(SystemTime::now()) == seconds(begun) {
        thread::sleep(ledger::until_next_second(SystemTime::now()));
    }
    ledger::counter_at(SystemTime::now())
}
