//! The open connections as an administrator sees them, and their end by a kick.

use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::UserName;

use super::{OpenConnection, Server};
use crate::bans::Network;
use crate::chat::Shutdown;

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionInfo {
    /// Its number.
    pub(crate) id: u64,
    /// The address of the peer.
    pub(crate) address: IpAddr,
    /// The users that logged in on it.
    pub(crate) users: Vec<UserName>,
    /// The time since it was accepted.
    pub(crate) age: Duration,
}

/// The connections to close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KickTarget {
    /// The connection with this number.
    Connection(u64),
    /// Those of a user.
    User(UserName),
    /// Those from a network.
    Network(Network),
}

impl Server {
    /// Returns at most `limit` connections with a number above `after`, in order, and
    /// whether there are more.
    pub(crate) fn list_connections(&self, after: u64, limit: usize) -> (Vec<ConnectionInfo>, bool) {
        let connections = self.connections.lock();
        let mut later = connections.open.range(after.saturating_add(1)..);
        let info = |(&id, open): (&u64, &OpenConnection)| ConnectionInfo {
            id,
            address: open.address,
            users: open.shutdown.users(),
            age: open.since.elapsed(),
        };
        let page: Vec<_> = later.by_ref().take(limit).map(info).collect();
        (page, later.next().is_some())
    }

    /// Closes connections at once, and returns their number. Operations that the store has
    /// accepted continue.
    pub(crate) fn kick(&self, target: &KickTarget) -> usize {
        let connections = self.connections.lock();
        let is_its = |(id, open): &(&u64, &OpenConnection)| match target {
            KickTarget::Connection(target) => *id == target,
            KickTarget::User(user) => open.shutdown.users().contains(user),
            KickTarget::Network(network) => network.contains(open.address),
        };
        let kicked: Vec<_> = connections
            .open
            .iter()
            .filter(is_its)
            .map(|(_, open)| std::sync::Arc::clone(&open.shutdown))
            .collect();
        drop(connections);
        kicked.iter().for_each(|open| open.request(Shutdown::Close));
        kicked.len()
    }
}
