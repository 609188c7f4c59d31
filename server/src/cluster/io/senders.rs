//! [`Senders`]: the accounts that send at this server. The recipient's shard trusts a
//! server that vouches for a sender, so each is registered at the owner of its account:
//! the owner deletes the account only after this server has stopped vouching for it.
//!
//! A sender is registered at its first send; sends wait for that, in order. A sender that
//! has been quiet for a while is unregistered.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use hark_protocol::Code;

use super::operation::Sent;
use crate::cluster::{ConnectionId, timing};
use crate::store::{Account, Append};

/// How long a quiet sender stays registered.
const KEPT_FOR: Duration = Duration::from_secs(60);

/// The interval at which quiet senders are unregistered.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The pause before a registration that the owner could not decide is repeated.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The senders of this server.
#[derive(Debug, Default)]
pub(super) struct Senders {
    by_incarnation: HashMap<u64, Sender>,
    /// Senders with held sends.
    holding: BTreeSet<u64>,
    swept_at: Duration,
}

#[derive(Debug)]
struct Sender {
    account: Account,
    state: State,
    held: VecDeque<Held>,
    used_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A registration is due.
    Due { at: Duration },
    /// The request is in flight.
    Registering,
    /// The account is registered, and is registered again with each new flow.
    Registered,
    /// The account has ended.
    Ended,
    /// The account is suspended.
    Suspended,
}

/// The answer of an owner to a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Registration {
    /// The account is registered.
    Alive,
    /// The account has ended.
    Ended,
    /// The account is suspended: its sends are refused.
    Suspended,
}

/// A send that waits for the registration of its sender.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) append: Append,
    pub(super) sent: Sent,
    since: Duration,
}

/// The next step for the senders.
#[derive(Debug)]
pub(super) enum Next {
    /// Register an account.
    Register(Account),
    /// Submit a send, whose sender is registered or has been cleared.
    Submit(Held),
    /// The outcome of a send is unknown.
    Fail(Held),
}

impl Senders {
    /// Adds a send of its sender, which must be due by [`Self::next`].
    pub(super) fn hold(&mut self, sender: &Account, append: Append, sent: Sent, now: Duration) {
        let incarnation = sender.incarnation;
        let entry = self
            .by_incarnation
            .entry(incarnation)
            .or_insert_with(|| Sender {
                account: sender.clone(),
                state: State::Due { at: now },
                held: VecDeque::new(),
                used_at: now,
            });
        entry.held.push_back(Held {
            append,
            sent,
            since: now,
        });
        self.holding.insert(incarnation);
    }

    /// Returns whether a send may be submitted at once. `is_registered` returns whether an
    /// account is registered at the moment.
    pub(super) fn may_send(
        &mut self,
        sender: &Account,
        now: Duration,
        is_registered: impl Fn(&Account) -> bool,
    ) -> bool {
        let Some(entry) = self.by_incarnation.get_mut(&sender.incarnation) else {
            return false;
        };
        entry.used_at = now;
        entry.held.is_empty() && entry.state == State::Registered && is_registered(sender)
    }

    /// Handles the answer to a registration; `None` if there is none.
    pub(super) fn registered(
        &mut self,
        account: &Account,
        registration: Option<Registration>,
        now: Duration,
    ) {
        if let Some(sender) = self.by_incarnation.get_mut(&account.incarnation) {
            sender.state = match registration {
                Some(Registration::Alive) => State::Registered,
                Some(Registration::Ended) => State::Ended,
                Some(Registration::Suspended) => State::Suspended,
                None => State::Due {
                    at: now + RETRY_AFTER,
                },
            };
        }
    }

    /// Ends the registration of an incarnation: the account is about to end, or has ended.
    pub(super) fn end(&mut self, incarnation: u64, now: Duration) {
        if let Some(sender) = self.by_incarnation.get_mut(&incarnation) {
            sender.state = State::Due { at: now };
            if sender.held.is_empty() {
                self.by_incarnation.remove(&incarnation);
            }
        }
    }

    /// Returns the next step, if there is one.
    pub(super) fn next(
        &mut self,
        now: Duration,
        is_registered: impl Fn(&Account) -> bool,
    ) -> Option<Next> {
        let holding: Vec<_> = self.holding.iter().copied().collect();
        for incarnation in holding {
            let Some(sender) = self.by_incarnation.get_mut(&incarnation) else {
                self.holding.remove(&incarnation);
                continue;
            };
            let is_late =
                |held: &mut Held| now.saturating_sub(held.since) >= timing::COMMAND_DEADLINE;
            if let Some(late) = sender.held.pop_front_if(is_late) {
                return Some(Next::Fail(late));
            }
            let is_decided = match sender.state {
                State::Due { at } if at <= now => {
                    sender.state = State::Registering;
                    return Some(Next::Register(sender.account.clone()));
                }
                State::Due { .. } | State::Registering => false,
                State::Registered => is_registered(&sender.account),
                State::Ended | State::Suspended => true,
            };
            if !is_decided {
                continue;
            }
            if let Some(mut held) = sender.held.pop_front() {
                match sender.state {
                    State::Ended => held.append.sender = None,
                    State::Suspended => held.append.refusal = Some(Code::Denied),
                    _ => {}
                }
                return Some(Next::Submit(held));
            }
            self.holding.remove(&incarnation);
            if matches!(sender.state, State::Ended | State::Suspended) {
                self.by_incarnation.remove(&incarnation);
            }
        }
        None
    }

    /// Returns whether no send is held.
    pub(super) fn is_idle(&self) -> bool {
        self.by_incarnation
            .values()
            .all(|sender| sender.held.is_empty())
    }

    /// Removes and returns the senders to unregister, from time to time.
    pub(super) fn sweep(&mut self, now: Duration) -> Vec<Account> {
        if now.saturating_sub(self.swept_at) < SWEEP_INTERVAL {
            return Vec::new();
        }
        self.swept_at = now;
        let is_quiet = |sender: &Sender| {
            sender.held.is_empty()
                && sender.state == State::Registered
                && now.saturating_sub(sender.used_at) >= KEPT_FOR
        };
        let quiet = self.by_incarnation.extract_if(|_, sender| is_quiet(sender));
        quiet.map(|(_, sender)| sender.account).collect()
    }

    /// Removes all held sends.
    pub(super) fn take_held(&mut self) -> Vec<Held> {
        self.holding.clear();
        self.by_incarnation
            .values_mut()
            .flat_map(|sender| sender.held.drain(..))
            .collect()
    }
}

/// Returns the id of the pretended connection of a sender.
pub(super) const fn connection(account: &Account) -> ConnectionId {
    account.incarnation << 2 | 2
}

/// Returns the incarnation of the sender with this id, if it is one.
pub(super) const fn incarnation(connection: ConnectionId) -> Option<u64> {
    if connection & 3 == 2 {
        Some(connection >> 2)
    } else {
        None
    }
}
