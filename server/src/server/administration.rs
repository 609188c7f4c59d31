//! The open connections as an administrator sees them, and their end by a kick.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::UserName;

use super::{OpenConnection, Server};
use crate::chat::ShutdownSignal;
use crate::network::Network;

/// An open connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionInfo {
    /// Its number.
    pub(crate) id: u64,
    /// The address of the peer.
    pub(crate) address: IpAddr,
    /// The users of the connection and its open calls.
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
            users: users(&open.shutdown),
            age: open.since.elapsed(),
        };
        let page: Vec<_> = later.by_ref().take(limit).map(info).collect();
        (page, later.next().is_some())
    }

    /// Closes connections or single calls at once, and returns their number. Operations that
    /// the store has accepted continue.
    pub(crate) fn kick(&self, target: &KickTarget) -> usize {
        let connections = self.connections.lock();
        let open = connections.open.iter();
        let open: Vec<_> = open
            .map(|(id, open)| (*id, Arc::clone(&open.shutdown)))
            .collect();
        drop(connections);
        let close = |(id, shutdown): &(u64, Arc<ShutdownSignal>)| match target {
            KickTarget::Connection(target) => shutdown.close_if(|_| id == target),
            KickTarget::User(user) => {
                shutdown.close_if(|client| client.user.as_ref() == Some(user))
            }
            KickTarget::Network(network) => shutdown.close_if(|client| {
                let address = client.address;
                address.is_some_and(|address| network.contains(address))
            }),
        };
        open.iter().map(close).sum()
    }
}

/// Returns the users of a connection, each once.
fn users(connection: &ShutdownSignal) -> Vec<UserName> {
    let clients = connection.clients().into_iter();
    let users: BTreeSet<_> = clients.filter_map(|client| client.user).collect();
    users.into_iter().collect()
}
