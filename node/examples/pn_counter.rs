//! Maelstrom's `pn-counter`: a counter that goes up and down, on all nodes at
//! once. Each life of a node has an account of its own of what was added and
//! what was taken away there; both only grow, so that of two versions of an
//! account the greater is the later, and the counter is the sum of all.
//!
//! An `add` is answered when a second node has the account, so that one crash
//! at a time loses nothing. A node that was restarted begins a new account: of
//! its old one it might not know the latest version.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use serde::{Deserialize, Serialize};

/// Between two times that a node tells another all it has.
const PAUSE: Duration = Duration::from_secs(1);

/// How long another node has to say that it has something too.
const TIMEOUT: Duration = Duration::from_millis(500);

/// So many other nodes are asked to have it too.
const ATTEMPTS: u32 = 5;

/// What was added and taken away.
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

#[derive(Deserialize)]
struct Nothing {}

pub(crate) fn program(node: &Node<State>) {
    node.on_init(async |node: Node<State>| {
        let own = format!("{}-{:016x}", node.id(), node.random());
        node.state().own = own;
    });
    node.handle("add", add);
    node.handle("merge", merge);
    node.handle("read", async |node: Node<State>, _: Request<Nothing>| Ok(ReadOk { value: sum(&node) }));
    node.every(PAUSE, async |node| tell_somebody(&node));
}

async fn add(node: Node<State>, request: Request<Add>) -> Result<(), Error> {
    let accounts = Accounts::from([count(&node, request.body.delta)]);
    let copy = Merge { accounts };
    for _ in 0..ATTEMPTS {
        let Some(peer) = node.random_peer() else { return Ok(()) };
        match node.call(peer, "merge", &copy).timeout(TIMEOUT).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::debug!(peer, %error, "asking another"),
        }
    }
    // It is counted here and may yet come to all.
    Err(Error::new(ErrorCode::Timeout, "no second node has it yet"))
}

/// Counts on this node's own account, and returns that.
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

fn tell_somebody(node: &Node<State>) {
    let all = Merge { accounts: node.state().accounts.clone() };
    if let Some(peer) = node.random_peer()
        && let Err(error) = node.send(peer, "merge", &all)
    {
        tracing::warn!(peer, %error, "nothing was told");
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
