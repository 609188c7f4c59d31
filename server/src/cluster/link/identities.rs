//! [`LocalIdentities`]: the accounts that a server's connections act as, in one shard.

use std::collections::{BTreeMap, BTreeSet};

use super::super::message::Request;
use super::super::{Action, ConnectionId};
use super::commands::Origin;
use crate::store::Account;

/// The accounts that a server's connections act as, by incarnation.
#[derive(Debug, Default)]
pub(super) struct LocalIdentities {
    by_incarnation: BTreeMap<u64, Identity>,
    /// The ids of the last [`Request::Unregister`] in this flow, by incarnation.
    unregistered: BTreeMap<u64, u64>,
}

/// The connections that act as an account.
#[derive(Debug)]
struct Identity {
    account: Account,
    connections: BTreeSet<ConnectionId>,
    /// The number of the flow in which the account is registered.
    flow: u64,
}

impl LocalIdentities {
    /// Records that an account is registered in a flow, for a connection.
    pub(super) fn register(&mut self, account: Account, connection: ConnectionId, flow: u64) {
        let identity = self.by_incarnation.entry(account.incarnation);
        let connections = BTreeSet::new();
        let identity = identity.or_insert_with(|| Identity {
            account,
            connections,
            flow,
        });
        identity.connections.insert(connection);
        identity.flow = flow;
    }

    /// Records that an account is registered in a later flow.
    pub(super) fn registered_again(&mut self, incarnation: u64, flow: u64) {
        if let Some(identity) = self.by_incarnation.get_mut(&incarnation) {
            identity.flow = flow;
        }
    }

    /// Returns whether a connection acts as an account.
    pub(super) fn contains(&self, account: &Account) -> bool {
        self.by_incarnation.contains_key(&account.incarnation)
    }

    /// Returns whether an account is registered in this flow.
    pub(super) fn is_registered(&self, account: &Account, flow: u64) -> bool {
        let identity = self.by_incarnation.get(&account.incarnation);
        identity.is_some_and(|identity| identity.flow == flow)
    }

    /// Returns whether the registration of an account by the command of this id was ended by
    /// a later command.
    pub(super) fn is_ended_after(&self, account: &Account, id: u64) -> bool {
        let later = self.unregistered.get(&account.incarnation);
        later.is_some_and(|later| *later > id)
    }

    /// Removes an identity. Returns its account.
    pub(super) fn remove(&mut self, incarnation: u64) -> Option<Account> {
        let identity = self.by_incarnation.remove(&incarnation)?;
        Some(identity.account)
    }

    /// Removes a connection that has gone. Returns the accounts that no connection acts as any
    /// more.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId) -> Vec<Account> {
        let gone = self.by_incarnation.extract_if(.., |_, identity| {
            identity.connections.remove(&connection) && identity.connections.is_empty()
        });
        gone.map(|(_, identity)| identity.account).collect()
    }

    /// Ends an identity at the connections that act as it.
    pub(super) fn end(&mut self, incarnation: u64, out: &mut Vec<Action>) {
        if let Some(identity) = self.by_incarnation.remove(&incarnation) {
            out.extend(identity.connections.into_iter().map(Action::EndIdentity));
        }
    }

    /// Records that the command of this id ends the registration of an account. All commands
    /// before `oldest` are answered.
    pub(super) fn unregister(&mut self, incarnation: u64, id: u64, oldest: u64) {
        self.unregistered.retain(|_, id| *id > oldest);
        self.unregistered.insert(incarnation, id);
    }

    /// Handles the end of the flow, which ends all registrations in it.
    pub(super) fn end_flow(&mut self) {
        self.unregistered.clear();
    }

    /// Returns the requests that continue all identities in a new flow.
    pub(super) fn resume(&self) -> impl Iterator<Item = (Origin, Request)> {
        self.by_incarnation.iter().map(|(incarnation, identity)| {
            let request = Request::Register(identity.account.clone());
            (Origin::Identity(*incarnation), request)
        })
    }
}
