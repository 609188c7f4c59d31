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
        let config = DiskConfig { segment_bytes: 64 << 10, ..DiskConfig::default() };
        let opener = DiskOpener::with_config(folder.path().join("store"), config);
        Self { folder, opener }
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
    let seed = std::env::var("HARK_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("seed {seed}");
    seed
}

mod check;
