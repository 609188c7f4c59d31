//! A storage in memory that records every operation, fails chosen ones, and returns the
//! possible results of a crash at any of them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _};

use super::super::file::{Storage, StorageFile};

/// The unit of atomic disk writes.
const SECTOR: usize = 512;

type Inode = usize;

/// An operation that has changed something.
#[derive(Debug, Clone)]
pub(super) enum Operation {
    Create(String, Inode),
    Rename(String, String),
    Remove(String),
    SyncNames,
    Write(Inode, u64, Vec<u8>),
    Allocate(Inode, u64),
    Sync(Inode),
    /// The system has marked the pages clean without writing them.
    FailedSync(Inode),
}

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing happens, and an error is returned.
    Refuse,
    /// Half of a write happens, and an error is returned.
    Short,
    /// There is no space.
    Full,
}

/// The part of the unsynced operations that survives a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unsynced {
    /// All of them: only the process was killed.
    Kept,
    /// None.
    Lost,
    /// A random subset of the sectors.
    Torn,
}

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<String, Inode>,
    inodes: Vec<Vec<u8>>,
    operations: Vec<Operation>,
    /// The operation that fails, by its number, and how.
    fault: Option<(usize, Fault)>,
    attempts: usize,
    /// Bytes of all files, at most.
    capacity: Option<u64>,
    /// The files and names with which the recording begins.
    initial: (BTreeMap<String, Inode>, Vec<Vec<u8>>),
}

/// A storage in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct SimStorage {
    state: Arc<Mutex<State>>,
}

impl SimStorage {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The number of operations so far.
    pub(super) fn operation_count(&self) -> usize {
        self.state().operations.len()
    }

    /// The number of attempted operations so far.
    pub(super) fn attempt_count(&self) -> usize {
        self.state().attempts
    }

    /// Fails the operation with a number.
    pub(super) fn fail(&self, attempt: usize, fault: Fault) {
        self.state().fault = Some((attempt, fault));
    }

    /// Limits the bytes of all files.
    pub(super) fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity = bytes;
    }

    /// Returns the remains of a crash before the operation with a number.
    pub(super) fn crash(&self, at: usize, unsynced: Unsynced, random: &mut StdRng) -> Self {
        let state = self.state();
        let (mut names, mut inodes) = state.initial.clone();
        let mut pending_names: Vec<&Operation> = Vec::new();
        let mut pending: BTreeMap<Inode, Vec<&Operation>> = BTreeMap::new();
        for operation in state.operations.iter().take(at) {
            match operation {
                Operation::Create(_, inode) => {
                    inodes.resize(inodes.len().max(inode + 1), Vec::new());
                    pending_names.push(operation);
                }
                Operation::Rename(..) | Operation::Remove(_) => pending_names.push(operation),
                Operation::SyncNames => pending_names
                    .drain(..)
                    .for_each(|name| apply_name(&mut names, name)),
                Operation::Write(inode, ..) | Operation::Allocate(inode, _) => {
                    pending.entry(*inode).or_default().push(operation);
                }
                Operation::Sync(inode) => {
                    let pending = pending.remove(inode).unwrap_or_default();
                    pending
                        .into_iter()
                        .for_each(|write| apply_write(&mut inodes[*inode], write, &mut |_| true));
                }
                Operation::FailedSync(inode) => {
                    if unsynced == Unsynced::Kept {
                        let pending = pending.remove(inode).unwrap_or_default();
                        pending.into_iter().for_each(|write| {
                            apply_write(&mut inodes[*inode], write, &mut |_| true)
                        });
                    } else {
                        pending.remove(inode);
                    }
                }
            }
        }
        let keep = |random: &mut StdRng| match unsynced {
            Unsynced::Kept => true,
            Unsynced::Lost => false,
            Unsynced::Torn => random.random(),
        };
        for name in pending_names {
            // Names change in order.
            if !keep(random) {
                break;
            }
            apply_name(&mut names, name);
        }
        for (inode, writes) in pending {
            for write in writes {
                apply_write(&mut inodes[inode], write, &mut |_| keep(random));
            }
        }
        Self::with_files(names, inodes)
    }

    /// Returns a copy of the files as the process sees them.
    pub(super) fn copy(&self) -> Self {
        let state = self.state();
        Self::with_files(state.names.clone(), state.inodes.clone())
    }

    fn with_files(names: BTreeMap<String, Inode>, inodes: Vec<Vec<u8>>) -> Self {
        let initial = (names.clone(), inodes.clone());
        let state = State {
            names,
            inodes,
            initial,
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The file and the place of the write with a number.
    pub(super) fn written(&self, number: usize) -> (String, usize) {
        let state = self.state();
        let Operation::Write(inode, offset, _) = &state.operations[number] else {
            panic!("no write")
        };
        let name = state.names.iter().find(|(_, of)| *of == inode).unwrap().0;
        (name.clone(), *offset as usize)
    }

    /// Every file with its length.
    pub(super) fn files(&self) -> Vec<(String, usize)> {
        let state = self.state();
        state
            .names
            .iter()
            .map(|(name, &inode)| (name.clone(), state.inodes[inode].len()))
            .collect()
    }

    /// Changes a file behind the back of the log.
    pub(super) fn damage(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let inode = state.names[name];
        change(&mut state.inodes[inode]);
    }
}

fn apply_name(names: &mut BTreeMap<String, Inode>, operation: &Operation) {
    match operation {
        Operation::Create(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        Operation::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        Operation::Remove(name) => {
            names.remove(name);
        }
        _ => unreachable!("no name"),
    }
}

/// Applies the sectors of a write that are kept.
fn apply_write(file: &mut Vec<u8>, operation: &Operation, keep: &mut dyn FnMut(usize) -> bool) {
    match operation {
        Operation::Allocate(_, length) => {
            if keep(0) {
                file.resize(file.len().max(*length as usize), 0);
            }
        }
        Operation::Write(_, offset, bytes) => {
            let (mut offset, mut rest) = (*offset as usize, &bytes[..]);
            while !rest.is_empty() {
                let length = rest.len().min(SECTOR - offset % SECTOR);
                if keep(offset) {
                    file.resize(file.len().max(offset + length), 0);
                    file[offset..offset + length].copy_from_slice(&rest[..length]);
                }
                (offset, rest) = (offset + length, &rest[length..]);
            }
        }
        _ => unreachable!("no write"),
    }
}

impl State {
    /// Counts an attempt; returns how it fails.
    fn attempt(&mut self) -> Option<Fault> {
        self.attempts += 1;
        self.fault
            .take_if(|(number, _)| *number + 1 == self.attempts)
            .map(|(_, fault)| fault)
    }

    fn check(&mut self) -> io::Result<()> {
        match self.attempt() {
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::other("planned fault")),
        }
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|&inode| self.inodes[inode].len() as u64)
            .sum()
    }

    fn check_capacity(&self, inode: Inode, length: u64) -> io::Result<()> {
        let more = length.saturating_sub(self.inodes[inode].len() as u64);
        match self.capacity {
            Some(capacity) if more > 0 && self.used() + more > capacity => {
                Err(io::ErrorKind::StorageFull.into())
            }
            _ => Ok(()),
        }
    }
}

impl Storage for SimStorage {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.state().names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let state = self.state();
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile {
            storage: self.clone(),
            inode,
        }))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut state = self.state();
        state.check()?;
        let inode = state.inodes.len();
        state.inodes.push(Vec::new());
        state.names.insert(name.into(), inode);
        state.operations.push(Operation::Create(name.into(), inode));
        Ok(Arc::new(SimFile {
            storage: self.clone(),
            inode,
        }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check()?;
        let operation = Operation::Rename(from.into(), to.into());
        apply_name(&mut state.names, &operation);
        state.operations.push(operation);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.check()?;
        state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.operations.push(Operation::Remove(name.into()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.state();
        state.check()?;
        state.operations.push(Operation::SyncNames);
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state();
        Ok(state
            .capacity
            .map_or(1 << 40, |capacity| capacity.saturating_sub(state.used())))
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }
}

#[derive(Debug)]
struct SimFile {
    storage: SimStorage,
    inode: Inode,
}

impl StorageFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.storage.state().inodes[self.inode].len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let state = self.storage.state();
        let file = state.inodes[self.inode]
            .get(offset as usize..)
            .unwrap_or_default();
        let length = buffer.len().min(file.len());
        buffer[..length].copy_from_slice(&file[..length]);
        Ok(length)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.storage.state();
        state.check_capacity(self.inode, offset + bytes.len() as u64)?;
        let fault = state.attempt();
        let written = match fault {
            None => bytes,
            Some(Fault::Short | Fault::Full) => &bytes[..bytes.len() / 2],
            Some(Fault::Refuse) => &[],
        };
        let operation = Operation::Write(self.inode, offset, written.to_vec());
        apply_write(&mut state.inodes[self.inode], &operation, &mut |_| true);
        state.operations.push(operation);
        match fault {
            None => Ok(()),
            Some(Fault::Full) => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::other("planned fault")),
        }
    }

    fn allocate(&self, length: u64) -> io::Result<()> {
        let mut state = self.storage.state();
        state.check_capacity(self.inode, length)?;
        state.check()?;
        let operation = Operation::Allocate(self.inode, length);
        apply_write(&mut state.inodes[self.inode], &operation, &mut |_| true);
        state.operations.push(operation);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.storage.state();
        let result = state.check();
        let operation = if result.is_ok() {
            Operation::Sync(self.inode)
        } else {
            Operation::FailedSync(self.inode)
        };
        state.operations.push(operation);
        result
    }
}

/// A generator whose seed the test prints.
pub(super) fn random(seed: u64) -> StdRng {
    rand::SeedableRng::seed_from_u64(seed)
}

/// Returns a number below a bound.
pub(super) fn below(random: &mut StdRng, bound: u64) -> u64 {
    random.next_u64() % bound
}
