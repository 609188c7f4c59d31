//! An engine for tests, around another: it holds commits back, or fails them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg_attr(not(test), expect(dead_code, reason = "the fuzz targets need a part of it"))]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use super::{Batch, Durability, Engine, EngineError, Opener, Reader};
use crate::store::local::OpenError;

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store::local) enum Failure {
    /// Nothing of it was written.
    Before,
    /// All of it was written, but its sync failed.
    After,
}

/// What goes wrong, and when. Shared by all engines of one opener.
#[derive(Debug, Default)]
pub(in crate::store::local) struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holding: bool,
    held: bool,
    /// How the next commit fails but for so many.
    failure: Option<(usize, Failure)>,
    opens_fail: bool,
    failed_opens: usize,
    commits: Vec<Durability>,
}

impl Faults {
    /// The next commit waits before its sync returns, until [`Self::release`].
    pub(in crate::store::local) fn hold(&self) {
        self.state.lock().unwrap().holding = true;
    }

    /// Waits until a commit waits.
    pub(in crate::store::local) fn wait_until_held(&self) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| !state.held).unwrap());
    }

    /// Lets commits through.
    pub(in crate::store::local) fn release(&self) {
        self.state.lock().unwrap().holding = false;
        self.changed.notify_all();
    }

    /// The next commit fails, and so does the engine from then on.
    pub(in crate::store::local) fn fail_next(&self, failure: Failure) {
        self.state.lock().unwrap().failure = Some((0, failure));
    }

    /// The commit after the one that waits fails, and so does the engine from
    /// then on.
    pub(in crate::store::local) fn fail_after_the_held(&self, failure: Failure) {
        self.state.lock().unwrap().failure = Some((1, failure));
    }

    /// Whether the engine can be opened again.
    pub(in crate::store::local) fn fail_opens(&self, fail: bool) {
        self.state.lock().unwrap().opens_fail = fail;
    }

    /// Waits until so many attempts to open it have failed.
    pub(in crate::store::local) fn wait_for_failed_opens(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.failed_opens < count).unwrap());
    }

    /// How durable the commits were asked to be, until now.
    pub(in crate::store::local) fn commits(&self) -> Vec<Durability> {
        self.state.lock().unwrap().commits.clone()
    }
}

/// Opens engines that are subject to faults.
#[derive(Debug)]
pub(in crate::store::local) struct FaultyOpener {
    inner: Arc<dyn Opener>,
    faults: Arc<Faults>,
}

impl FaultyOpener {
    /// Around an opener.
    pub(in crate::store::local) fn new(inner: Arc<dyn Opener>, faults: Arc<Faults>) -> Self {
        Self { inner, faults }
    }
}

impl Opener for FaultyOpener {
    fn open(&self) -> Result<Box<dyn Engine>, OpenError> {
        let mut state = self.faults.state.lock().unwrap();
        if state.opens_fail {
            state.failed_opens += 1;
            self.faults.changed.notify_all();
            let source = std::io::ErrorKind::StorageFull.into();
            return Err(OpenError::Io { path: self.path().to_owned(), source });
        }
        drop(state);
        let inner = self.inner.open()?;
        Ok(Box::new(FaultyEngine { inner, faults: Arc::clone(&self.faults), poisoned: false }))
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn accepts_data_loss(&self) -> bool {
        self.inner.accepts_data_loss()
    }
}

#[derive(Debug)]
struct FaultyEngine {
    inner: Box<dyn Engine>,
    faults: Arc<Faults>,
    poisoned: bool,
}

impl Engine for FaultyEngine {
    fn commit(&mut self, batch: &mut Batch, durability: Durability) -> Result<(), EngineError> {
        let mut state = self.faults.state.lock().unwrap();
        state.commits.push(durability);
        state.held = true;
        self.faults.changed.notify_all();
        state = self.faults.changed.wait_while(state, |state| state.holding).unwrap();
        state.held = false;
        let failure = match &mut state.failure {
            Some((0, failure)) => Some(*failure),
            Some((after, _)) => {
                *after -= 1;
                None
            }
            None => None,
        };
        if failure.is_some() {
            state.failure = None;
        }
        drop(state);
        assert!(!self.poisoned, "an engine that has failed is not used again");
        self.poisoned = failure.is_some();
        if failure != Some(Failure::Before) {
            self.inner.commit(batch, durability)?;
        }
        match failure {
            None => Ok(()),
            Some(_) => Err(EngineError::new(std::io::Error::from(std::io::ErrorKind::StorageFull))),
        }
    }

    fn reader(&self) -> Box<dyn Reader> {
        self.inner.reader()
    }

    fn message_bytes(&self) -> u64 {
        self.inner.message_bytes()
    }

    fn dead_bytes_min(&self) -> u64 {
        self.inner.dead_bytes_min()
    }

    fn compact(&mut self) {
        self.inner.compact();
    }

    fn close(self: Box<Self>) -> Result<(), EngineError> {
        self.inner.close()
    }
}
