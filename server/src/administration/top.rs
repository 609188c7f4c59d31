//! `top`: the users and addresses that use the server most, and the fullest inboxes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use hark_protocol::UserName;

use super::{Administration, PAGE_MAX};
use crate::chat::ConnectionUse;
use crate::server::ConnectionUsage;
use crate::store::Unavailable;

/// What counts for a place among the users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ranking {
    Requests,
    Bytes,
    Deliveries,
}

/// The use of the server by a user, or by an address without a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TopUser {
    pub(super) user: Option<UserName>,
    /// One of its addresses.
    pub(super) address: IpAddr,
    pub(super) connections: u64,
    pub(super) used: ConnectionUse,
}

/// An inbox with its unread messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FullInbox {
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) user: UserName,
}

impl Administration {
    /// Measures the use of the server for a time. Returns the users that use it most, and
    /// leaves out those that do not.
    ///
    /// # Errors
    /// If another measurement is under way.
    pub(super) async fn top(
        &self,
        by: Ranking,
        limit: usize,
        time: Duration,
    ) -> anyhow::Result<Vec<TopUser>> {
        let Some(measurement) = self.server.measure() else {
            anyhow::bail!("another top is measuring; try again");
        };
        tokio::time::sleep(time).await;
        let mut users = by_user(measurement.end());
        let rank = |user: &TopUser| match by {
            Ranking::Requests => user.used.requests,
            Ranking::Bytes => user.used.sent_bytes,
            Ranking::Deliveries => user.used.deliveries,
        };
        users.retain(|user| rank(user) > 0);
        users.sort_unstable_by_key(|user| Reverse(rank(user)));
        users.truncate(limit);
        Ok(users)
    }

    /// Returns the inboxes with the most unread messages. Looks at all accounts, a page at a
    /// time, so that others go on meanwhile.
    pub(super) async fn fullest(&self, limit: usize) -> Result<Vec<FullInbox>, Unavailable> {
        // The smallest one is the first to give way.
        let mut fullest = BinaryHeap::new();
        let mut after = None;
        loop {
            let names = self.store.names(after.as_ref(), PAGE_MAX).await?;
            let Some(last) = names.last().cloned() else {
                break;
            };
            for inbox in self.store.inspect(names).await? {
                if inbox.waiting_messages == 0 {
                    continue;
                }
                fullest.push(Reverse(FullInbox {
                    messages: inbox.waiting_messages,
                    bytes: inbox.waiting_bytes,
                    user: inbox.name,
                }));
                if fullest.len() > limit {
                    fullest.pop();
                }
            }
            after = Some(last);
        }
        let sorted = fullest.into_sorted_vec().into_iter();
        Ok(sorted.map(|Reverse(inbox)| inbox).collect())
    }
}

/// Adds up the use of connections by their users, and that of connections without a login
/// by their addresses.
fn by_user(usages: Vec<ConnectionUsage>) -> Vec<TopUser> {
    let mut users: HashMap<(Option<UserName>, Option<IpAddr>), TopUser> = HashMap::new();
    for ConnectionUsage {
        user,
        address,
        used,
    } in usages
    {
        let anonymous = user.is_none().then_some(address);
        let entry = users.entry((user.clone(), anonymous)).or_insert(TopUser {
            user,
            address,
            connections: 0,
            used: ConnectionUse::default(),
        });
        entry.connections += 1;
        entry.used = entry.used.plus(used);
    }
    users.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn use_is_added_up_by_user_and_address() {
        let usage = |user: Option<&str>, address: &str, requests| ConnectionUsage {
            user: user.map(|user| user.parse().unwrap()),
            address: address.parse().unwrap(),
            used: ConnectionUse {
                requests,
                ..ConnectionUse::default()
            },
        };
        let users = by_user(vec![
            usage(Some("amy"), "192.0.2.1", 3),
            usage(Some("amy"), "192.0.2.2", 4),
            usage(None, "192.0.2.1", 5),
            usage(None, "192.0.2.2", 6),
        ]);
        let mut requests: Vec<_> = users.iter().map(|user| user.used.requests).collect();
        requests.sort_unstable();
        assert_eq!(requests, [5, 6, 7]);
    }
}
