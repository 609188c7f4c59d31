//! Maelstrom's `broadcast`: a message that one node receives reaches all.
//!
//! The nodes form a tree. Each keeps the messages that a neighbour has not
//! acknowledged, and sends them in one batch until they are acknowledged: few
//! messages are needed, and each of them may be lost. Once a second each node
//! also compares its messages with a random other node, which finds a way round
//! a link that is cut. A `broadcast` is answered when a second node has the
//! message, so that one crash at a time loses no message; a node that was
//! restarted pulls from its neighbours.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Node, Request, Responder};
use serde::{Deserialize, Serialize};

/// The time between two batches to a neighbour.
const PAUSE: Duration = Duration::from_millis(100);

/// The time between two comparisons with a random node.
const COMPARE_PAUSE: Duration = Duration::from_secs(1);

/// The maximum number of children of a node in the tree.
const CHILDREN_MAX: usize = 4;

type Message = i64;

#[derive(Default)]
pub(crate) struct State {
    seen: BTreeSet<Message>,
    /// The messages that each neighbour has not acknowledged.
    unacknowledged: BTreeMap<String, BTreeSet<Message>>,
    /// The requests that are answered when a second node has the message.
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

/// A set of messages in short: equal sets have equal digests.
#[derive(Serialize, Deserialize, PartialEq)]
struct Digest {
    count: usize,
    sum: i128,
}

pub(crate) fn program(node: &Node<State>) {
    node.on_init(async |node: Node<State>| begin(&node));
    node.handle("topology", async |_, _: Request<()>| Ok(()));
    node.receive("broadcast", broadcast);
    node.handle("read", async |node: Node<State>, _: Request<()>| Ok(all(&node)));
    node.handle("pull", async |node: Node<State>, _: Request<()>| Ok(all(&node)));
    node.handle("compare", compare);
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
        node.state().unacknowledged.insert(neighbour.clone(), BTreeSet::new());
        node.spawn(pull(node.clone(), neighbour.clone()));
        node.every(PAUSE, async move |node| tell(&node, &neighbour).await);
    }
    node.every(COMPARE_PAUSE, async |node| catch_up(&node).await);
}

fn digest(node: &Node<State>) -> Digest {
    let seen = &node.state().seen;
    Digest { count: seen.len(), sum: seen.iter().map(|message| i128::from(*message)).sum() }
}

/// Takes the messages of a random node, if it has others.
async fn catch_up(node: &Node<State>) {
    let Some(peer) = node.random_peer() else { return };
    match node.call::<Messages>(peer, "compare", &digest(node)).await {
        Ok(Messages { messages }) => learn(node, &messages, peer),
        Err(error) => tracing::debug!(peer, %error, "comparing later"),
    }
}

/// Answers with all messages, or with none if the other node has the same.
async fn compare(node: Node<State>, request: Request<Digest>) -> Result<Messages, Error> {
    let is_same = request.body == digest(&node);
    Ok(if is_same { Messages { messages: BTreeSet::new() } } else { all(&node) })
}

/// Takes the messages of a neighbour, and notes which of ours it needs.
async fn pull(node: Node<State>, neighbour: String) {
    let theirs = loop {
        match node.call::<Messages>(&neighbour, "pull", &()).await {
            Ok(Messages { messages }) => break messages,
            Err(error) => tracing::debug!(neighbour, %error, "retrying"),
        }
    };
    learn(&node, &theirs, &neighbour);
    let mut state = node.state();
    let unknown: Vec<_> = state.seen.difference(&theirs).copied().collect();
    state.unacknowledged.entry(neighbour).or_default().extend(unknown);
}

/// Adds new messages, and queues them for all other neighbours.
fn learn(node: &Node<State>, messages: &BTreeSet<Message>, from: &str) {
    let state = &mut *node.state();
    for message in messages.iter().filter(|message| state.seen.insert(**message)) {
        for (_, queue) in state.unacknowledged.iter_mut().filter(|(neighbour, _)| *neighbour != from) {
            queue.insert(*message);
        }
    }
}

async fn broadcast(node: Node<State>, request: Request<Broadcast>) {
    let message = request.body.message;
    let is_new = !node.state().seen.contains(&message);
    learn(&node, &BTreeSet::from([message]), &request.src);
    let mut state = node.state();
    if state.unacknowledged.is_empty() || !(is_new || state.waiting.contains_key(&message)) {
        request.responder.reply(&());
    } else {
        state.waiting.entry(message).or_default().push(request.responder);
    }
}

/// Sends a neighbour all messages that it has not acknowledged.
async fn tell(node: &Node<State>, neighbour: &str) {
    let messages = node.state().unacknowledged.get(neighbour).cloned().unwrap_or_default();
    if messages.is_empty() {
        return;
    }
    let told = Messages { messages };
    if let Err(error) = node.call::<()>(neighbour, "push", &told).await {
        return tracing::debug!(neighbour, %error, "retrying");
    }
    let mut state = node.state();
    for message in &told.messages {
        state.unacknowledged.entry(neighbour.to_owned()).or_default().remove(message);
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
