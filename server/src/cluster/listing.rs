//! The names of accounts: [`Names`] has those of a shard in order, at its owner, and
//! [`Listings`] merges the pages of all shards at the server that was asked.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use hark_protocol::UserName;

use super::bugs::{Bug, is_planted};
use super::message::{Answer, Reply};
use super::{Action, ConnectionId, timing};
use crate::ledger::AccountChange;

/// The names of a shard by stored frames, in byte order.
#[derive(Debug)]
pub(super) struct Names(BTreeSet<UserName>);

impl Names {
    /// Returns the set of these names.
    pub(super) fn new(names: impl Iterator<Item = UserName>) -> Self {
        Self(names.collect())
    }

    /// Applies the changes of a stored frame, in order.
    pub(super) fn change(&mut self, changes: impl Iterator<Item = AccountChange>) {
        for change in changes {
            match change {
                AccountChange::Present(entry) => self.0.insert(entry.account.name),
                AccountChange::Ended(name) => self.0.remove(&name),
                AccountChange::Token(_) | AccountChange::TokenEnded(_) => false,
            };
        }
    }

    /// Returns the names after `after`: at most `limit` and [`timing::NAMES_MAX`], and at
    /// least one if there is any.
    pub(super) fn page(&self, after: Option<&UserName>, limit: u32) -> Answer {
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut names = self
            .0
            .range::<UserName, _>((after, Bound::Unbounded))
            .cloned();
        let page = names
            .by_ref()
            .take(limit.clamp(1, timing::NAMES_MAX) as usize)
            .collect();
        Answer::Names {
            names: page,
            is_complete: names.next().is_none(),
        }
    }
}

/// The unanswered requests for names.
#[derive(Debug, Default)]
pub(super) struct Listings(BTreeMap<(ConnectionId, u64), Listing>);

#[derive(Debug)]
struct Listing {
    limit: usize,
    /// The number of shards that have not answered.
    pending: u32,
    names: Vec<UserName>,
    /// The first of the last names of incomplete pages: beyond it, names are missing.
    end: Option<UserName>,
    is_unavailable: bool,
}

impl Listings {
    /// Begins a listing of at most `limit` names. Returns the limit for each shard.
    pub(super) fn begin(&mut self, of: (ConnectionId, u64), limit: u32, shards: u32) -> u32 {
        let listing = Listing {
            limit: limit.max(1) as usize,
            pending: shards,
            names: Vec::new(),
            end: None,
            is_unavailable: false,
        };
        self.0.insert(of, listing);
        // Names are spread evenly, so this is enough for most of the page.
        limit.div_ceil(shards.max(1))
    }

    /// Forgets the listings of a connection.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId) {
        self.0.retain(|(of, _), _| *of != connection);
    }

    /// Replaces the answers of single shards in `out`, from `before` on, by those that they
    /// complete.
    pub(super) fn merge(&mut self, before: usize, out: &mut Vec<Action>) {
        if self.0.is_empty() {
            return;
        }
        let added = out.split_off(before);
        out.extend(added.into_iter().filter_map(|action| self.take(action)));
    }

    fn take(&mut self, action: Action) -> Option<Action> {
        let Action::Answer {
            connection,
            request,
            reply,
        } = action
        else {
            return Some(action);
        };
        let Some(listing) = self.0.get_mut(&(connection, request)) else {
            return Some(Action::Answer {
                connection,
                request,
                reply,
            });
        };
        listing.take(reply);
        if listing.pending > 0 {
            return None;
        }
        let listing = self.0.remove(&(connection, request))?;
        Some(Action::Answer {
            connection,
            request,
            reply: listing.finish(),
        })
    }
}

impl Listing {
    fn take(&mut self, reply: Reply) {
        self.pending = self.pending.saturating_sub(1);
        let Reply::Answer(Answer::Names { names, is_complete }) = reply else {
            self.is_unavailable = true;
            return;
        };
        if !is_complete && let Some(last) = names.last() {
            let end = self.end.take().filter(|end| end < last);
            self.end = end.or_else(|| Some(last.clone()));
        }
        self.names.extend(names);
    }

    fn finish(mut self) -> Reply {
        if self.is_unavailable {
            return Reply::Unavailable;
        }
        if let Some(end) = self
            .end
            .as_ref()
            .filter(|_| !is_planted(Bug::ListPastIncomplete))
        {
            self.names.retain(|name| name <= end);
        }
        self.names.sort_unstable();
        let is_complete = self.end.is_none() && self.names.len() <= self.limit;
        self.names.truncate(self.limit);
        Reply::Answer(Answer::Names {
            names: self.names,
            is_complete,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<UserName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn shard(all: &[&str]) -> Names {
        Names::new(names(all).into_iter())
    }

    /// Returns the merged page of these shards; `None` if it is unavailable.
    fn merged(shards: &[Names], after: Option<&str>, limit: u32) -> Option<(Vec<UserName>, bool)> {
        let mut listings = Listings::default();
        let each = listings.begin((1, 2), limit, shards.len() as u32);
        let after = after.map(|name| name.parse().unwrap());
        let mut out = Vec::new();
        for shard in shards {
            assert!(out.is_empty());
            let reply = Reply::Answer(shard.page(after.as_ref(), each));
            out.push(Action::Answer {
                connection: 1,
                request: 2,
                reply,
            });
            listings.merge(0, &mut out);
        }
        match out.pop()? {
            Action::Answer {
                reply: Reply::Answer(Answer::Names { names, is_complete }),
                ..
            } => Some((names, is_complete)),
            _ => None,
        }
    }

    #[test]
    fn pages_of_all_shards_are_merged_in_order() {
        let shards = [shard(&["b", "d", "e", "g"]), shard(&["a", "z"]), shard(&[])];
        let mut after: Option<UserName> = None;
        let mut all = Vec::new();
        loop {
            let page = merged(&shards, after.as_ref().map(UserName::as_str), 3).unwrap();
            assert!(page.0.len() <= 3 && !page.0.is_empty());
            all.extend(page.0);
            after = all.last().cloned();
            if page.1 {
                break;
            }
        }
        assert_eq!(all, names(&["a", "b", "d", "e", "g", "z"]));
        assert_eq!(merged(&shards, Some("z"), 3), Some((vec![], true)));
    }

    #[test]
    fn page_of_a_shard_is_bounded() {
        let many = (0..2000).map(|n| format!("user{n:04}").parse().unwrap());
        let Answer::Names {
            names,
            is_complete: false,
        } = Names::new(many).page(None, u32::MAX)
        else {
            panic!("not a page")
        };
        assert_eq!(names.len(), timing::NAMES_MAX as usize);
    }

    #[test]
    fn unavailable_shard_makes_the_list_unavailable() {
        let mut listings = Listings::default();
        listings.begin((1, 2), 10, 2);
        let answer = |reply| Action::Answer {
            connection: 1,
            request: 2,
            reply,
        };
        let mut out = vec![answer(Reply::Unavailable)];
        listings.merge(0, &mut out);
        assert!(out.is_empty());
        out.push(answer(Reply::Answer(shard(&["a"]).page(None, 5))));
        listings.merge(0, &mut out);
        assert!(matches!(
            out[..],
            [Action::Answer {
                reply: Reply::Unavailable,
                ..
            }]
        ));
    }
}
