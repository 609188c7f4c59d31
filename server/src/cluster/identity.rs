//! [`Identities`]: which servers have connections that act as an account, at the
//! account's owner. An account is deleted once no server has any, so that no
//! connection acts as an account whose end another client knows.
//!
//! A server may act as an account while it receives the flow in which it registered. If
//! the owner ends that flow, the server may learn of it late, or never if its clocks
//! stand still. So it counts as registered until its flows to all other shards have ended
//! as well. For the same reason, a new owner waits this long after a takeover.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::flow::FlowId;
use super::message::Command;
use super::{ServerId, timing};
use crate::store::Account;

/// The registered servers of each account, and the deletions that wait for them.
#[derive(Debug)]
pub(super) struct Identities {
    /// Registered servers by incarnation, with the time when the server's flow was lost,
    /// if it was.
    servers: HashMap<u64, BTreeMap<ServerId, Option<Duration>>>,
    /// Until this time, servers may be registered with a former owner.
    former_until: Duration,
    parked: Vec<Parked>,
}

/// A parked deletion.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) account: Account,
    pub(super) flow: FlowId,
    pub(super) command: Command,
}

impl Identities {
    /// Returns identities without registrations. `took_over_at` is the time of the
    /// takeover, if there was another owner before.
    pub(super) fn new(took_over_at: Option<Duration>) -> Self {
        let former_until = took_over_at.map_or(Duration::ZERO, |at| at + timing::IDENTITY_LINGER);
        Self {
            servers: HashMap::new(),
            former_until,
            parked: Vec::new(),
        }
    }

    /// Registers a server. Returns false if a deletion of the account is pending.
    pub(super) fn register(&mut self, account: &Account, server: ServerId) -> bool {
        if self.parked.iter().any(|parked| parked.account == *account) {
            return false;
        }
        self.servers
            .entry(account.incarnation)
            .or_default()
            .insert(server, None);
        true
    }

    /// Removes a server from an account.
    pub(super) fn unregister(&mut self, account: &Account, server: ServerId) {
        if let Some(servers) = self.servers.get_mut(&account.incarnation) {
            servers.remove(&server);
            if servers.is_empty() {
                self.servers.remove(&account.incarnation);
            }
        }
    }

    /// Removes a server that knows that its flow has ended.
    pub(super) fn server_left(&mut self, server: ServerId) {
        self.servers.retain(|_, servers| {
            servers.remove(&server);
            !servers.is_empty()
        });
    }

    /// Records the end of a server's flow of which the server may not know.
    pub(super) fn server_lost(&mut self, server: ServerId, now: Duration) {
        for lost_at in self
            .servers
            .values_mut()
            .filter_map(|servers| servers.get_mut(&server))
        {
            lost_at.get_or_insert(now);
        }
    }

    /// Returns whether no connection acts as an account.
    pub(super) fn is_free(&self, account: &Account, now: Duration) -> bool {
        let has_lapsed = |lost_at: &Option<Duration>| {
            lost_at.is_some_and(|at| now >= at + timing::IDENTITY_LINGER)
        };
        let servers = self.servers.get(&account.incarnation);
        let is_free = now >= self.former_until
            && servers.is_none_or(|servers| servers.values().all(has_lapsed));
        is_free || is_planted(Bug::DeleteBeforeConfirmed)
    }

    /// Returns the reachable servers with connections that act as an account.
    pub(super) fn servers(&self, account: &Account) -> impl Iterator<Item = ServerId> {
        let servers = self.servers.get(&account.incarnation).into_iter().flatten();
        servers
            .filter(|(_, lost_at)| lost_at.is_none())
            .map(|(server, _)| *server)
    }

    /// Parks a deletion.
    pub(super) fn park(&mut self, parked: Parked) {
        self.parked.push(parked);
    }

    /// Takes the parked deletions that can proceed.
    pub(super) fn take_ready(&mut self, now: Duration) -> Vec<Parked> {
        let parked = std::mem::take(&mut self.parked);
        let (ready, parked) = parked
            .into_iter()
            .partition(|parked| self.is_free(&parked.account, now));
        self.parked = parked;
        ready
    }

    /// Drops the parked deletions of an ended flow.
    pub(super) fn drop_parked(&mut self, flow: FlowId) {
        self.parked.retain(|parked| parked.flow != flow);
    }
}
