//! The open connections as an administrator sees them, and their end by a kick.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::UserName;

use super::{Connections, OpenConnection, Server};
use crate::chat::{ConnectionUse, ShutdownSignal};
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

/// The use of the server by a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConnectionUsage {
    /// The user that logged in on it last.
    pub(crate) user: Option<UserName>,
    /// The address of that client, or of the peer.
    pub(crate) address: IpAddr,
    /// The use during the measurement.
    pub(crate) used: ConnectionUse,
}

/// A measurement of the use of all connections.
#[derive(Debug)]
pub(crate) struct Measurement {
    server: Arc<Server>,
    /// The use before, by connection.
    before: HashMap<u64, ConnectionUse>,
}

/// The connections that end during a measurement, beyond which they do not count.
const ENDED_MAX: usize = 100_000;

impl Measurement {
    /// Ends the measurement, and returns the use of each connection since its beginning.
    pub(crate) fn end(self) -> Vec<ConnectionUsage> {
        let mut connections = self.server.connections.lock();
        let ended = connections.ended.take().unwrap_or_default();
        let open = connections.open.iter();
        let open = open.map(|(id, open)| (*id, open.usage()));
        let all = ended.into_iter().chain(open);
        let since = |(id, usage): (u64, ConnectionUsage)| {
            let before = self.before.get(&id).copied().unwrap_or_default();
            let used = usage.used.since(before);
            ConnectionUsage { used, ..usage }
        };
        all.map(since).collect()
    }
}

impl Drop for Measurement {
    fn drop(&mut self) {
        self.server.connections.lock().ended = None;
    }
}

impl OpenConnection {
    fn usage(&self) -> ConnectionUsage {
        let client = self.shutdown.latest_client();
        ConnectionUsage {
            user: client.user,
            address: client.address.unwrap_or(self.address),
            used: self.shutdown.usage(),
        }
    }
}

impl Connections {
    /// Keeps the use of a connection that ends during a measurement.
    pub(super) fn note_end(&mut self, id: u64, connection: &OpenConnection) {
        if let Some(ended) = self.ended.as_mut().filter(|ended| ended.len() < ENDED_MAX) {
            ended.push((id, connection.usage()));
        }
    }
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

    /// Begins to measure the use of connections; `None` while another measurement is under
    /// way.
    pub(crate) fn measure(self: &Arc<Self>) -> Option<Measurement> {
        let mut connections = self.connections.lock();
        if connections.ended.is_some() {
            return None;
        }
        connections.ended = Some(Vec::new());
        let open = connections.open.iter();
        Some(Measurement {
            server: Arc::clone(self),
            before: open
                .map(|(id, open)| (*id, open.shutdown.usage()))
                .collect(),
        })
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
