//! Maelstrom's `pn-counter`: a counter that goes up and down, on all nodes at
//! once. Every node is available during a partition; the counters converge after
//! it.
//!
//! Each node has an account of its increments and decrements. Both sums
//! only grow, so that of two versions of an account the greater is the later,
//! and the counter is the sum of all accounts. A node stores its own account
//! before it answers. Changed accounts go to a few other nodes at once, and now
//! and then each node compares its accounts with those of another.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Node, Request};
use serde::{Deserialize, Serialize};

/// The time that a change waits for more before they are passed on.
const LINGER: Duration = Duration::from_millis(50);

/// The number of nodes to which a node passes changes on.
const FANOUT: usize = 3;

/// The pause between two comparisons with another node.
const COMPARE: Duration = Duration::from_millis(500);

/// The sums of all increments and of all decrements.
#[derive(Debug, Default, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Account {
    plus: u64,
    minus: u64,
}

type Accounts = BTreeMap<String, Account>;

#[derive(Default)]
pub(crate) struct State {
    all: Accounts,
    /// Accounts that have changed and were not passed on yet.
    fresh: Accounts,
}

#[derive(Deserialize)]
struct Add {
    delta: i64,
}

#[derive(Serialize, Deserialize)]
struct Merge {
    accounts: Accounts,
}

#[derive(Serialize)]
struct ReadOk {
    value: i128,
}

pub(crate) fn program(node: &Node<State>) {
    node.on_init(async |node: Node<State>| match node.storage().get("account") {
        Ok(stored) => merge(&node, stored.map(|account| (node.id().to_owned(), account))),
        Err(error) => tracing::error!(%error, "the stored account is lost"),
    });
    node.handle("add", async |node: Node<State>, request: Request<Add>| add(&node, request.body.delta));
    node.handle("read", async |node: Node<State>, _: Request<()>| Ok(ReadOk { value: sum(&node) }));
    node.receive("rumor", async |node: Node<State>, request: Request<Merge>| {
        merge(&node, request.body.accounts);
    });
    node.handle("compare", async |node: Node<State>, request: Request<Merge>| {
        merge(&node, request.body.accounts);
        Ok(Merge { accounts: node.state().all.clone() })
    });
    node.every(COMPARE, async |node: Node<State>| {
        if let Err(error) = compare(&node).await {
            tracing::debug!(%error, "comparing with another node later");
        }
    });
}

fn add(node: &Node<State>, delta: i64) -> Result<(), Error> {
    let mut account = node.state().all.get(node.id()).copied().unwrap_or_default();
    let grown = if delta < 0 { &mut account.minus } else { &mut account.plus };
    *grown = grown.saturating_add(delta.unsigned_abs());
    node.storage().put("account", &account)?;
    merge(node, [(node.id().to_owned(), account)]);
    Ok(())
}

fn sum(node: &Node<State>) -> i128 {
    node.state().all.values().map(|account| i128::from(account.plus) - i128::from(account.minus)).sum()
}

/// Takes accounts, and passes those that have changed on after the linger time.
fn merge(node: &Node<State>, accounts: impl IntoIterator<Item = (String, Account)>) {
    let state = &mut *node.state();
    let is_idle = state.fresh.is_empty();
    for (name, theirs) in accounts {
        let ours = state.all.entry(name.clone()).or_default();
        let merged = Account { plus: ours.plus.max(theirs.plus), minus: ours.minus.max(theirs.minus) };
        if *ours != merged {
            *ours = merged;
            state.fresh.insert(name, merged);
        }
    }
    if is_idle && !state.fresh.is_empty() {
        let node = node.clone();
        node.clone().spawn(async move {
            node.sleep(LINGER).await;
            pass_on(&node);
        });
    }
}

fn pass_on(node: &Node<State>) {
    let rumor = Merge { accounts: std::mem::take(&mut node.state().fresh) };
    for peer in (0..FANOUT).filter_map(|_| node.random_peer()) {
        if let Err(error) = node.send(peer, "rumor", &rumor) {
            tracing::error!(peer, %error, "cannot write a rumor");
        }
    }
}

/// Exchanges all accounts with another node.
async fn compare(node: &Node<State>) -> Result<(), Error> {
    let Some(peer) = node.random_peer() else { return Ok(()) };
    let ours = Merge { accounts: node.state().all.clone() };
    let theirs: Merge = node.call(peer, "compare", &ours).await?;
    merge(node, theirs.accounts);
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
