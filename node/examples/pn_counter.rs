//! Maelstrom's `pn-counter`: a counter that goes up and down, on all nodes at
//! once. Every node is available during a partition; the counters converge
//! after it, through [`hark_node::gossip`].
//!
//! Each node has an account of its increments and decrements. Both sums
//! only grow, so that of two versions of an account the greater is the later,
//! and the counter is the sum of all accounts. A node stores its own account
//! before it answers.

use std::collections::BTreeMap;
use std::process::ExitCode;

use hark_node::gossip::{Gossip, Merge, Settings};
use hark_node::{Error, Node, Request};
use serde::{Deserialize, Serialize};

/// The sums of all increments and of all decrements.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Account {
    plus: u64,
    minus: u64,
}

impl Merge for Account {
    fn merge_with(&mut self, other: Self) -> Option<Self> {
        let merged = Self {
            plus: self.plus.max(other.plus),
            minus: self.minus.max(other.minus),
        };
        let is_new = merged != *self;
        *self = merged;
        is_new.then_some(merged)
    }
}

/// The account of each node.
type Accounts = BTreeMap<String, Account>;

#[derive(Deserialize)]
struct Add {
    delta: i64,
}

#[derive(Serialize)]
struct ReadOk {
    value: i128,
}

pub(crate) fn program(node: &Node<()>) {
    let accounts = Gossip::<_, Accounts>::new(node, Settings::default());
    let stored = accounts.clone();
    node.on_init(
        async move |node: Node<()>| match node.storage().get("account") {
            Ok(account) => stored.merge(
                account
                    .map(|account| (node.id().to_owned(), account))
                    .into_iter()
                    .collect(),
            ),
            Err(error) => tracing::error!(%error, "the stored account is lost"),
        },
    );
    let adds = accounts.clone();
    node.handle("add", async move |node: Node<()>, request: Request<Add>| {
        add(&node, &adds, request.body.delta)
    });
    node.handle("read", async move |_, _: Request<()>| {
        Ok(ReadOk {
            value: sum(&accounts.state()),
        })
    });
}

fn add(node: &Node<()>, accounts: &Gossip<(), Accounts>, delta: i64) -> Result<(), Error> {
    let mut account = accounts.state().get(node.id()).copied().unwrap_or_default();
    let grown = if delta < 0 {
        &mut account.minus
    } else {
        &mut account.plus
    };
    *grown = grown.saturating_add(delta.unsigned_abs());
    node.storage().put("account", &account)?;
    accounts.merge(Accounts::from([(node.id().to_owned(), account)]));
    Ok(())
}

fn sum(accounts: &Accounts) -> i128 {
    accounts
        .values()
        .map(|account| i128::from(account.plus) - i128::from(account.minus))
        .sum()
}

fn main() -> ExitCode {
    hark_node::main(program)
}
