//! Maelstrom's `broadcast`: what one node was told, all come to know.
//!
//! The nodes form a tree. Each keeps what a neighbour has not acknowledged, and
//! sends that, all in one message, until it is acknowledged: so few messages
//! are needed, and none of them may not be lost. A `broadcast` is answered when
//! a second node has it, so that one crash at a time loses nothing; a node that
//! was restarted asks its neighbours for what they have.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Node, Request, Responder};
use serde::{Deserialize, Serialize};

/// What is to be told waits so long for more.
const PAUSE: Duration = Duration::from_millis(100);

/// Children of a node in the tree, at most.
const CHILDREN_MAX: usize = 4;

type Message = i64;

#[derive(Default)]
pub(crate) struct State {
    seen: BTreeSet<Message>,
    /// What each neighbour has not acknowledged.
    untold: BTreeMap<String, BTreeSet<Message>>,
    /// Who is answered when a second node has it.
    waiting: BTreeMap<Message, Vec<Responder>>,
}

#[derive(Deserialize)]
struct Broadcast {
    message: Message,
}

#[derive(Serialize, Deserialize)]
struct Messages {
    messages: BTreeSet<Message>,
}

#[derive(Deserialize)]
struct Nothing {}

pub(crate) fn program(node: &Node<State>) {
    node.on_init(async |node: Node<State>| begin(&node));
    node.handle("topology", async |_, _: Request<Nothing>| Ok(()));
    node.receive("broadcast", broadcast);
    node.handle("read", async |node: Node<State>, _: Request<Nothing>| Ok(all(&node)));
    node.handle("pull", async |node: Node<State>, _: Request<Nothing>| Ok(all(&node)));
    node.handle("push", push);
}

fn all(node: &Node<State>) -> Messages {
    Messages { messages: node.state().seen.clone() }
}

/// The parent and the children in the tree, in which the n-th node has those
/// from n · 4 + 1 to n · 4 + 4 for children.
fn neighbours(node: &Node<State>) -> Vec<String> {
    let ids = node.node_ids();
    let place = ids.iter().position(|id| id == node.id()).unwrap_or_default();
    let parent = place.checked_sub(1).map(|before| before / CHILDREN_MAX);
    let first = place * CHILDREN_MAX + 1;
    parent
        .into_iter()
        .chain(first..first + CHILDREN_MAX)
        .filter_map(|place| ids.get(place).cloned())
        .collect()
}

fn begin(node: &Node<State>) {
    for neighbour in neighbours(node) {
        node.state().untold.insert(neighbour.clone(), BTreeSet::new());
        node.spawn(pull(node.clone(), neighbour.clone()));
        node.every(PAUSE, async move |node| tell(&node, &neighbour).await);
    }
}

/// Learns what a neighbour has, and so what it has not.
async fn pull(node: Node<State>, neighbour: String) {
    let theirs = loop {
        match node.call::<Messages>(&neighbour, "pull", &()).await {
            Ok(Messages { messages }) => break messages,
            Err(error) => tracing::debug!(neighbour, %error, "asking again"),
        }
    };
    learn(&node, &theirs, &neighbour);
    let mut state = node.state();
    let unknown: Vec<_> = state.seen.difference(&theirs).copied().collect();
    state.untold.entry(neighbour).or_default().extend(unknown);
}

/// Takes what is new, and remembers to tell it to the others.
fn learn(node: &Node<State>, messages: &BTreeSet<Message>, from: &str) {
    let state = &mut *node.state();
    for message in messages.iter().filter(|message| state.seen.insert(**message)) {
        for (_, untold) in state.untold.iter_mut().filter(|(neighbour, _)| *neighbour != from) {
            untold.insert(*message);
        }
    }
}

async fn broadcast(node: Node<State>, request: Request<Broadcast>) {
    let message = request.body.message;
    let is_new = !node.state().seen.contains(&message);
    learn(&node, &BTreeSet::from([message]), &request.src);
    let mut state = node.state();
    if state.untold.is_empty() || !(is_new || state.waiting.contains_key(&message)) {
        request.responder.reply(&());
    } else {
        state.waiting.entry(message).or_default().push(request.responder);
    }
}

/// Tells a neighbour all that it does not know. What is not acknowledged is
/// told again the next time.
async fn tell(node: &Node<State>, neighbour: &str) {
    let messages = node.state().untold.get(neighbour).cloned().unwrap_or_default();
    if messages.is_empty() {
        return;
    }
    let told = Messages { messages };
    if let Err(error) = node.call::<()>(neighbour, "push", &told).await {
        return tracing::debug!(neighbour, %error, "telling again");
    }
    let mut state = node.state();
    for message in &told.messages {
        state.untold.entry(neighbour.to_owned()).or_default().remove(message);
        let asked = state.waiting.remove(message).unwrap_or_default();
        asked.iter().for_each(|responder| responder.reply(&()));
    }
}

async fn push(node: Node<State>, request: Request<Messages>) -> Result<(), Error> {
    learn(&node, &request.body.messages, &request.src);
    Ok(())
}

fn main() -> ExitCode {
    hark_node::main(program)
}
