//! The tests of the log on disk.

mod crash;
mod damage;
mod faults;
mod model;
mod planted;
mod sim;
mod space;

use std::path::Path;

use super::*;
use crate::log::contract::{contract, durable_contract};

/// A log in a folder of its own, with small segments.
#[derive(Debug)]
struct Home {
    folder: tempfile::TempDir,
    opener: DiskOpener,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let opener = Self::opener(&folder);
        Self { folder, opener }
    }

    fn opener(folder: &tempfile::TempDir) -> DiskOpener {
        let config = DiskConfig {
            segment_bytes: Some(64 << 10),
            ..DiskConfig::default()
        };
        DiskOpener::with_config(folder.path().join("store"), config)
    }

    /// Unlocks the folder, as the end of a process does.
    fn unlock(&mut self) {
        self.opener = Self::opener(&self.folder);
    }
}

impl Opener for Home {
    fn open(&self, replay: &mut Replay<'_>) -> Result<Box<dyn Log>, OpenError> {
        self.opener.open(replay)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

use crate::log::contract::open;

contract!(Home::new());
durable_contract!(Home::new());

/// The seed of a random test, printed by it: `HARK_SEED`, or a new one.
fn seed() -> u64 {
    let seed =
        std::env::var("HARK_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    seed
}

#[test]
fn opener_keeps_the_folder_locked_between_two_logs() {
    let home = Home::new();
    drop(open(&home));
    let other = DiskConfig {
        lock_timeout: Duration::ZERO,
        ..DiskConfig::default()
    };
    let other = DiskOpener::with_config(home.folder.path().join("store"), other);
    assert!(matches!(
        other.open(&mut |_| Ok(())),
        Err(OpenError::InUse { .. })
    ));
    let log = open(&home);
    assert!(
        matches!(home.open(&mut |_| Ok(())), Err(OpenError::InUse { .. })),
        "it is open"
    );
    drop((log, home.opener));
    drop(other.open(&mut |_| Ok(())).unwrap());
}

mod repair;
