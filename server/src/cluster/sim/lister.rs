//! [`Lister`]: a client that creates and deletes accounts of its own, and checks that
//! lists contain exactly those that exist.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_protocol::UserName;
use rand::RngExt as _;

use super::clients::{Context, Link, PATIENCE, READERS};
use crate::cluster::ConnectionId;
use crate::cluster::host::{Answered, Call, Push};
use crate::cluster::message::Answer;
use crate::store::{Account, Created};

/// Maximum accounts that it creates; each has a new name.
const ACCOUNTS_MAX: usize = 20;

/// The client. No other client changes its accounts.
#[derive(Debug, Default)]
pub(super) struct Lister {
    link: Option<Link>,
    asked: Option<(Duration, Asked)>,
    requests: u64,
    next_at: Duration,
    /// Whether an account exists; `None` if an answer is missing.
    accounts: BTreeMap<UserName, Option<bool>>,
    /// The last name of the page before.
    after: Option<UserName>,
}

#[derive(Debug, Clone)]
enum Asked {
    Create(UserName),
    LookUp(UserName),
    Delete(Account),
    List,
}

impl Lister {
    pub(super) fn wake(&mut self, context: &mut Context<'_>) {
        let Some(link) = self.link else {
            self.link = Some(context.open());
            return;
        };
        match &self.asked {
            Some((since, _)) if context.now >= *since + PATIENCE => {
                context.hang_up(link);
                self.disconnected();
            }
            None if context.now >= self.next_at && !context.is_calm => {
                self.next_at = context.within_ms(20..400);
                let (asked, call) = self.next(context);
                self.ask(link, asked, call, context);
            }
            _ => {}
        }
    }

    fn next(&mut self, context: &mut Context<'_>) -> (Asked, Call) {
        let existing = self
            .accounts
            .iter()
            .find(|(_, exists)| **exists == Some(true));
        match (context.random.random_range(0..6), existing) {
            (0, _) if self.accounts.len() < ACCOUNTS_MAX => {
                // The first letter places it among the names of readers.
                let letter = context.random.random_range('a'..='e');
                let name: UserName = format!("{letter}{}", self.accounts.len()).parse().unwrap();
                self.accounts.insert(name.clone(), None);
                (Asked::Create(name.clone()), Call::Create(name))
            }
            (1, Some((name, _))) => (Asked::LookUp(name.clone()), Call::LookUp(name.clone())),
            _ => (
                Asked::List,
                Call::List {
                    after: self.after.clone(),
                    limit: 4,
                },
            ),
        }
    }

    fn ask(&mut self, link: Link, asked: Asked, call: Call, context: &mut Context<'_>) {
        self.requests += 1;
        self.asked = Some((context.now, asked));
        context.call(link, self.requests, call);
    }

    pub(super) fn handle(
        &mut self,
        connection: ConnectionId,
        push: Push,
        context: &mut Context<'_>,
    ) {
        let Some(link) = self.link.filter(|(id, _)| *id == connection) else {
            return;
        };
        match push {
            Push::Answer(request, answered) if request == self.requests => {
                let Some((_, asked)) = self.asked.take() else {
                    return;
                };
                if let Answered::Answer(answer) = answered {
                    self.answered(link, asked, answer, context);
                }
            }
            Push::Closed => self.disconnected(),
            _ => {}
        }
    }

    fn answered(&mut self, link: Link, asked: Asked, answer: Answer, context: &mut Context<'_>) {
        match (asked, answer) {
            (Asked::Create(name), Answer::Created(created)) => {
                assert_ne!(created, Created::Exists, "{name}");
                self.accounts
                    .insert(name, Some(created == Created::Created));
            }
            (Asked::LookUp(name), Answer::Account(entry)) => {
                let account = entry.unwrap_or_else(|| panic!("{name} exists")).account;
                self.accounts.insert(name, None);
                self.ask(
                    link,
                    Asked::Delete(account.clone()),
                    Call::Delete(account),
                    context,
                );
            }
            (Asked::Delete(account), Answer::Flag(_)) => {
                self.accounts.insert(account.name, Some(false));
            }
            (Asked::List, Answer::Names { names, is_complete }) => {
                context.judge.counts.lists += 1;
                self.check(&names, is_complete);
                self.after = names.last().filter(|_| !is_complete).cloned();
            }
            (asked, answer) => panic!("{answer:?} to {asked:?}"),
        }
    }

    /// Checks the names after the page before.
    fn check(&self, names: &[UserName], is_complete: bool) {
        assert!(
            names.is_sorted() && (is_complete || !names.is_empty()),
            "{names:?}"
        );
        let is_in_page = |name: &UserName| {
            Some(name) > self.after.as_ref() && (is_complete || Some(name) <= names.last())
        };
        let readers = READERS.map(|name| (name.parse().unwrap(), Some(true)));
        let own = self
            .accounts
            .iter()
            .map(|(name, exists)| (name.clone(), *exists));
        for (name, exists) in own.chain(readers).filter(|(name, _)| is_in_page(name)) {
            let is_listed = names.contains(&name);
            assert!(
                exists.is_none_or(|exists| exists == is_listed),
                "{name} in {names:?}: {is_listed}"
            );
        }
    }

    fn disconnected(&mut self) {
        (self.link, self.asked) = (None, None);
    }
}
