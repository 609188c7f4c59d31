//! [`Identities`]: which servers have connections that act as an account, at the
//! account's owner. An account is deleted once no server has any, so that no
//! connection acts as an account whose end another client knows.
//!
//! A server acts as an account only by a registration in a flow to the owner. Every entry
//! of the stream names the servers that have a flow, so the next owner knows them as well;
//! an answer to a registration is released by an entry that names its server. A server
//! whose flow has ended without its knowledge may act for a while longer: see
//! [`timing::IDENTITY_LINGER`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::entry::SERVERS_MAX;
use super::flow::FlowId;
use super::message::Command;
use super::{ServerId, timing};
use crate::store::Account;

/// The registered servers of each account, and the deletions that wait for them.
#[derive(Debug)]
pub(super) struct Identities {
    /// Registered servers, by incarnation.
    registered: HashMap<u64, BTreeSet<ServerId>>,
    /// The servers that may act as accounts.
    servers: BTreeMap<ServerId, Standing>,
    parked: Vec<Parked>,
}

/// The flow of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is open.
    Open,
    /// It has ended, and the server may not know.
    Lost { flow: FlowId, at: Duration },
    /// It led to a former owner, which knew the registrations.
    Former { since: Duration },
}

/// A parked deletion.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) account: Account,
    pub(super) flow: FlowId,
    pub(super) command: Command,
}

impl Identities {
    /// Returns identities without registrations, for an owner that claimed the shard at
    /// `now`. `former` are the servers that may have registrations with the former owner.
    pub(super) fn new(former: &[ServerId], now: Duration) -> Self {
        let former = former
            .iter()
            .filter(|_| !is_planted(Bug::FormerServersForgotten));
        let servers = former.map(|server| (*server, Standing::Former { since: now }));
        Self {
            registered: HashMap::new(),
            servers: servers.collect(),
            parked: Vec::new(),
        }
    }

    /// Returns whether there is room for a server.
    pub(super) fn has_room_for(&self, server: ServerId) -> bool {
        self.servers.len() < SERVERS_MAX || self.servers.contains_key(&server)
    }

    /// Returns the servers that may act as accounts.
    pub(super) fn names(&self) -> Vec<ServerId> {
        self.servers.keys().copied().collect()
    }

    /// Records a newly opened flow of a server: earlier registrations of the server have
    /// ended.
    pub(super) fn opened(&mut self, server: ServerId) {
        self.left(server);
        self.servers.insert(server, Standing::Open);
    }

    /// Records that a server has ended a flow, if it was the latest one.
    pub(super) fn ended(&mut self, flow: FlowId) {
        if matches!(self.servers.get(&flow.server), Some(Standing::Lost { flow: lost, .. }) if *lost == flow)
        {
            self.left(flow.server);
        }
    }

    /// Removes a server that knows that its flow has ended.
    pub(super) fn left(&mut self, server: ServerId) {
        self.servers.remove(&server);
        self.registered.retain(|_, servers| {
            servers.remove(&server);
            !servers.is_empty()
        });
    }

    /// Records the end of a flow of which its server may not know.
    pub(super) fn lost(&mut self, flow: FlowId, now: Duration) {
        let lost = Standing::Lost { flow, at: now };
        self.servers.insert(flow.server, lost);
    }

    /// Removes the servers that cannot act as an account any more.
    pub(super) fn sweep(&mut self, now: Duration) {
        let linger = match is_planted(Bug::ShortLinger) {
            true => timing::IDENTITY_PROOF.saturating_sub(timing::FLOW_SILENCE),
            false => timing::IDENTITY_LINGER,
        };
        let has_lapsed = |standing: &Standing| match standing {
            Standing::Open => false,
            Standing::Lost { at, .. } | Standing::Former { since: at } => now >= *at + linger,
        };
        let lapsed = self.servers.iter().filter(|(_, of)| has_lapsed(of));
        let lapsed: Vec<_> = lapsed.map(|(server, _)| *server).collect();
        lapsed.into_iter().for_each(|server| self.left(server));
    }

    /// Registers a server. Returns false if a deletion of the account is pending.
    pub(super) fn register(&mut self, account: &Account, server: ServerId) -> bool {
        if self.parked.iter().any(|parked| parked.account == *account) {
            return false;
        }
        self.registered
            .entry(account.incarnation)
            .or_default()
            .insert(server);
        true
    }

    /// Removes a server from an account.
    pub(super) fn unregister(&mut self, account: &Account, server: ServerId) {
        if let Some(servers) = self.registered.get_mut(&account.incarnation) {
            servers.remove(&server);
            if servers.is_empty() {
                self.registered.remove(&account.incarnation);
            }
        }
    }

    /// Returns whether no connection acts as an account.
    pub(super) fn is_free(&self, account: &Account) -> bool {
        let is_former = |standing: &Standing| matches!(standing, Standing::Former { .. });
        let is_free = !self.registered.contains_key(&account.incarnation)
            && !self.servers.values().any(is_former);
        is_free || is_planted(Bug::DeleteBeforeConfirmed)
    }

    /// Returns the reachable servers with connections that act as an account.
    pub(super) fn servers(&self, account: &Account) -> impl Iterator<Item = ServerId> {
        let registered = self.registered.get(&account.incarnation);
        let is_open = |server: &ServerId| matches!(self.servers.get(server), Some(Standing::Open));
        registered.into_iter().flatten().copied().filter(is_open)
    }

    /// Parks a deletion.
    pub(super) fn park(&mut self, parked: Parked) {
        self.parked.push(parked);
    }

    /// Returns whether a deletion is parked.
    pub(super) const fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Takes the parked deletions that can proceed.
    pub(super) fn take_ready(&mut self) -> Vec<Parked> {
        let parked = std::mem::take(&mut self.parked);
        let (ready, parked) = parked
            .into_iter()
            .partition(|parked| self.is_free(&parked.account));
        self.parked = parked;
        ready
    }

    /// Drops the parked deletions of an ended flow.
    pub(super) fn drop_parked(&mut self, flow: FlowId) {
        self.parked.retain(|parked| parked.flow != flow);
    }
}
