//! What waits for the commit thread: commands in the order of their arrival,
//! and acknowledgements, of which only the last of each inbox counts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hark_protocol::{SessionToken, UserName};

use super::recovery::Recovered;
use crate::store::{
    Account, Append, Created, Decide, Outcome, PasswordHash, Position, Receiver, Unavailable,
};

/// How long acknowledgements wait for company before they are written.
const ACKS_INTERVAL: Duration = Duration::from_millis(20);

/// What one caller appends at a time, and is not decided yet.
pub(super) type Appends = std::vec::IntoIter<(Append, Decide<Outcome>)>;

/// Something for the commit thread to decide.
#[derive(Debug)]
pub(super) enum Command {
    /// In this order, with nothing between them.
    Appends(Appends),
    Create(UserName, Option<PasswordHash>, Decide<Created>),
    SetPassword {
        account: Account,
        old: Option<PasswordHash>,
        new: PasswordHash,
        decide: Decide<bool>,
    },
    Delete(Account, Decide<bool>),
    Receive {
        account: Account,
        takes_over: bool,
        decide: Decide<Option<Receiver>>,
    },
    OpenSession(SessionToken, Option<IpAddr>, Decide<bool>),
    CloseSession(SessionToken),
    /// The engine is open again after a failure.
    Recovered(Box<Recovered>),
    Close(Decide<()>),
}

impl Command {
    /// Decides that it is unknown what becomes of it. Where it is a send of a
    /// session, no later one gets through.
    pub(super) fn refuse(self) {
        match self {
            Self::Appends(appends) => appends.for_each(|(append, decide)| {
                if append.send_id.is_some() {
                    append.fence.close();
                }
                decide.decide(Err(Unavailable));
            }),
            Self::Create(_, _, decide) => decide.decide(Err(Unavailable)),
            Self::SetPassword { decide, .. } | Self::Delete(_, decide) | Self::OpenSession(_, _, decide) => {
                decide.decide(Err(Unavailable));
            }
            Self::Receive { decide, .. } => decide.decide(Err(Unavailable)),
            Self::Close(decide) => decide.decide(Err(Unavailable)),
            Self::CloseSession(_) | Self::Recovered(_) => {}
        }
    }
}

/// The acknowledgements that wait: for each inbox the last one.
pub(super) type Acks = HashMap<Account, Position>;

/// The queue. It is bounded by those who fill it: each append holds a permit,
/// each connection has few other commands under way, and each inbox has one
/// acknowledgement.
#[derive(Debug, Default)]
pub(super) struct Queue {
    // A lock, since any thread may add and the commit thread takes. It is held
    // for one push, or for taking all there is.
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    commands: Vec<Command>,
    acks: Acks,
    /// Somebody waits to be woken.
    waiting: bool,
    /// The thread is to end without a close.
    stopped: bool,
    /// The thread has ended.
    closed: bool,
}

/// How the commit thread wants to wait.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wait {
    /// Not at all: it has something left to do.
    Not,
    /// For a command, or for acknowledgements that have waited since then.
    ForAcksSince(Instant),
    /// For a command; acknowledgements stay where they are.
    ForCommands,
}

impl Queue {
    /// Adds a command; after the end it is refused at once.
    pub(super) fn push(&self, command: Command) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            return command.refuse();
        }
        state.commands.push(command);
        self.wake(state);
    }

    /// Adds an acknowledgement.
    pub(super) fn acknowledge(&self, account: &Account, position: Position) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let first = state.acks.is_empty();
        match state.acks.entry(account.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(position);
            }
            Entry::Occupied(mut occupied) if occupied.get().sequence < position.sequence => {
                occupied.insert(position);
            }
            Entry::Occupied(_) => {}
        }
        if first {
            self.wake(state);
        }
    }

    /// Takes the acknowledgement of this inbox that waits, if one does.
    pub(super) fn take_ack(&self, account: &Account) -> Option<Position> {
        self.lock().acks.remove(account)
    }

    /// Asks the thread to end without a close.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        self.wake(state);
    }

    /// Ends the queue: what is in it is refused, and so is what comes.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let commands = std::mem::take(&mut state.commands);
        state.acks.clear();
        drop(state);
        commands.into_iter().for_each(Command::refuse);
    }

    /// Takes everything that is there, once something is. `commands` is empty,
    /// and lends its memory. `None` where the thread is to end.
    pub(super) fn take(&self, wait: Wait, commands: &mut Vec<Command>) -> Option<Acks> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            let limit = match wait {
                _ if !state.commands.is_empty() => break,
                Wait::Not => break,
                Wait::ForAcksSince(since) if !state.acks.is_empty() => {
                    Some(ACKS_INTERVAL.saturating_sub(since.elapsed()))
                }
                Wait::ForAcksSince(_) | Wait::ForCommands => None,
            };
            if limit.is_some_and(|limit| limit.is_zero()) {
                break;
            }
            state = self.wait(state, limit);
        }
        std::mem::swap(&mut state.commands, commands);
        match wait {
            Wait::ForCommands => Some(Acks::new()),
            Wait::Not | Wait::ForAcksSince(_) => Some(std::mem::take(&mut state.acks)),
        }
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State>, limit: Option<Duration>) -> MutexGuard<'s, State> {
        state.waiting = true;
        let mut state = match limit {
            None => self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(limit) => self.arrived.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner).0,
        };
        state.waiting = false;
        state
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        if waiting {
            self.arrived.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
