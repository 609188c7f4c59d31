//! Maelstrom's `pn-counter`: a counter that goes up and down on all nodes at
//! once. Each life of a node has an account of its own increments and
//! decrements. Both sums only grow, so the greater of two versions of an account
//! is the later one, and the counter is the sum of all accounts. Every node sends
//! its copy of the accounts to a random other node five times a second.
//!
//! An `add` is answered when a second node has the account, so that one crash
//! at a time loses no operation. A node that was restarted begins a new account,
//! as it may not know the latest version of its old one.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use serde::{Deserialize, Serialize};

/// The time between two copies that a node sends.
const PAUSE: Duration = Duration::from_millis(200);

/// The time that another node has to store an account.
const TIMEOUT: Duration = Duration::from_millis(500);

/// The number of other nodes that are asked to store an account, one by one.
const ATTEMPTS: u32 = 5;

/// The sums of all increments and of all decrements.
#[derive(Debug, Default, Clone, Copy, Serialize, Deserialize)]
struct Account {
    plus: u64,
    minus: u64,
}

#[derive(Default)]
pub(crate) struct State {
    /// The name of the account of this life.
    own: String,
    accounts: Accounts,
}

type Accounts = BTreeMap<String, Account>;

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
    node.on_init(async |node: Node<State>| {
        let own = format!("{}-{:016x}", node.id(), node.random());
        node.state().own = own;
    });
    node.handle("add", add);
    node.handle("merge", merge);
    node.handle("read", async |node: Node<State>, _: Request<()>| Ok(ReadOk { value: sum(&node) }));
    node.every(PAUSE, async |node| gossip(&node));
}

async fn add(node: Node<State>, request: Request<Add>) -> Result<(), Error> {
    let accounts = Accounts::from([count(&node, request.body.delta)]);
    let copy = Merge { accounts };
    for _ in 0..ATTEMPTS {
        let Some(peer) = node.random_peer() else { return Ok(()) };
        match node.call(peer, "merge", &copy).timeout(TIMEOUT).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(peer, %error, "asking another node"),
        }
    }
    // The operation is counted here, and may still reach the others.
    Err(Error::new(ErrorCode::Timeout, "no second node has it yet"))
}

/// Counts an operation on this node's own account, and returns the account.
fn count(node: &Node<State>, delta: i64) -> (String, Account) {
    let state = &mut *node.state();
    let account = state.accounts.entry(state.own.clone()).or_default();
    let grown = if delta < 0 { &mut account.minus } else { &mut account.plus };
    *grown = grown.saturating_add(delta.unsigned_abs());
    (state.own.clone(), *account)
}

fn sum(node: &Node<State>) -> i128 {
    node.state().accounts.values().map(|account| i128::from(account.plus) - i128::from(account.minus)).sum()
}

fn gossip(node: &Node<State>) {
    let all = Merge { accounts: node.state().accounts.clone() };
    if let Some(peer) = node.random_peer()
        && let Err(error) = node.send(peer, "merge", &all)
    {
        tracing::warn!(peer, %error, "gossip failed");
    }
}

async fn merge(node: Node<State>, request: Request<Merge>) -> Result<(), Error> {
    let state = &mut *node.state();
    for (name, theirs) in request.body.accounts {
        let ours = state.accounts.entry(name).or_default();
        ours.plus = ours.plus.max(theirs.plus);
        ours.minus = ours.minus.max(theirs.minus);
    }
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
