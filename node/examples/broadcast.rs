//! Maelstrom's `broadcast`: every message reaches all nodes.
//!
//! A node stores a message before it answers. It hands its messages to a hub,
//! which sends them to all nodes: two hops, and one copy to each node for all
//! messages of the linger time. The hub is the first node; a node that gets
//! no acknowledgement from it takes the next one, so that a partition is
//! bypassed. Copies that the hub sends are not acknowledged: from time to
//! time each node compares its messages with those of another, which repairs
//! every loss.
//!
//! The linger time is the configuration. With 25 nodes and 100 ms of latency,
//! [`program`] takes under 20 messages per operation with a maximum below
//! 600 ms, and [`thrifty`] under 5.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::process::ExitCode;
use std::time::Duration;

use hark_node::{Error, Node, Request};
use serde::{Deserialize, Serialize};

/// The linger times of the two configurations.
const FAST: Duration = Duration::from_millis(50);
const THRIFTY: Duration = Duration::from_millis(250);

/// The time that the hub has to acknowledge messages.
const HUB_TIMEOUT: Duration = Duration::from_millis(600);

/// The pause between two comparisons with another node.
const COMPARE: Duration = Duration::from_secs(2);

type Message = i64;

#[derive(Default)]
pub(crate) struct State {
    pub(crate) seen: BTreeSet<Message>,
    /// Messages that the hub has not acknowledged yet, or that this node has
    /// not sent to all yet as the hub.
    fresh: BTreeSet<Message>,
    /// The place of the hub among the nodes.
    hub: usize,
    /// A task passes messages on.
    is_busy: bool,
}

#[derive(Deserialize)]
struct Broadcast {
    message: Message,
}

#[derive(Serialize, Deserialize)]
struct Messages {
    messages: BTreeSet<Message>,
}

#[derive(Serialize, Deserialize)]
struct Digest {
    digest: u64,
}

/// All messages of a node, if its digest differs from that of the request.
#[derive(Serialize, Deserialize)]
struct CompareOk {
    messages: Option<BTreeSet<Message>>,
}

pub(crate) fn program(node: &Node<State>) {
    serve(node, FAST);
}

pub(crate) fn thrifty(node: &Node<State>) {
    serve(node, THRIFTY);
}

fn serve(node: &Node<State>, linger: Duration) {
    match node.storage().scan::<Message>("message/") {
        Ok(stored) => node
            .state()
            .seen
            .extend(stored.into_iter().map(|(_, message)| message)),
        Err(error) => tracing::error!(%error, "stored messages are lost"),
    }
    node.handle("topology", async |_, _: Request<()>| Ok(()));
    node.handle(
        "broadcast",
        async move |node: Node<State>, request: Request<Broadcast>| {
            let message = request.body.message;
            node.storage()
                .put(&format!("message/{message}"), &message)?;
            learn(&node, BTreeSet::from([message]), linger);
            Ok(())
        },
    );
    node.handle("read", async |node: Node<State>, _: Request<()>| {
        Ok(Messages {
            messages: node.state().seen.clone(),
        })
    });
    // From a node that takes this one for the hub.
    node.handle(
        "collect",
        async move |node: Node<State>, request: Request<Messages>| {
            let place = node.node_ids().iter().position(|id| id == node.id());
            node.state().hub = place.unwrap_or_default();
            learn(&node, request.body.messages, linger);
            Ok(())
        },
    );
    // From a hub, which sends it to all.
    node.receive(
        "copy",
        async |node: Node<State>, request: Request<Messages>| {
            node.state().seen.extend(request.body.messages);
        },
    );
    // From a node that has compared its messages with those of this node.
    node.receive(
        "missing",
        async move |node: Node<State>, request: Request<Messages>| {
            learn(&node, request.body.messages, linger);
        },
    );
    node.handle(
        "compare",
        async |node: Node<State>, request: Request<Digest>| {
            let is_same = request.body.digest == digest(&node);
            Ok(CompareOk {
                messages: (!is_same).then(|| node.state().seen.clone()),
            })
        },
    );
    node.every(COMPARE, async move |node: Node<State>| {
        if let Err(error) = compare(&node, linger).await {
            tracing::debug!(%error, "comparing with another node later");
        }
    });
}

/// Takes messages, and has the new ones passed on.
fn learn(node: &Node<State>, messages: BTreeSet<Message>, linger: Duration) {
    let state = &mut *node.state();
    state.fresh.extend(
        messages
            .into_iter()
            .filter(|message| state.seen.insert(*message)),
    );
    if !state.fresh.is_empty() && !state.is_busy {
        state.is_busy = true;
        let node = node.clone();
        node.clone().spawn(async move {
            pass_on(&node, linger).await;
            node.state().is_busy = false;
        });
    }
}

/// Passes new messages on, until none has come in the linger time.
async fn pass_on(node: &Node<State>, linger: Duration) {
    loop {
        let (messages, hub) = {
            let state = node.state();
            (
                state.fresh.clone(),
                node.node_ids().get(state.hub).cloned().unwrap_or_default(),
            )
        };
        if messages.is_empty() {
            return;
        }
        let messages = Messages { messages };
        let taken = if hub == node.id() {
            node.peers()
                .try_for_each(|peer| node.send(peer, "copy", &messages))
        } else {
            node.call(&hub, "collect", &messages)
                .timeout(HUB_TIMEOUT)
                .await
        };
        match taken {
            Ok(()) => node
                .state()
                .fresh
                .retain(|message| !messages.messages.contains(message)),
            Err(error) => {
                tracing::debug!(hub, %error, "taking another hub");
                let state = &mut *node.state();
                state.hub = (state.hub + 1) % node.node_ids().len().max(1);
            }
        }
        node.sleep(linger).await;
    }
}

/// Exchanges the messages that either of two nodes lacks.
async fn compare(node: &Node<State>, linger: Duration) -> Result<(), Error> {
    let Some(peer) = node.random_peer() else {
        return Ok(());
    };
    let compared: CompareOk = node
        .call(
            peer,
            "compare",
            &Digest {
                digest: digest(node),
            },
        )
        .await?;
    let Some(theirs) = compared.messages else {
        return Ok(());
    };
    let missing: BTreeSet<_> = node.state().seen.difference(&theirs).copied().collect();
    learn(node, theirs, linger);
    if missing.is_empty() {
        Ok(())
    } else {
        node.send(peer, "missing", &Messages { messages: missing })
    }
}

/// A number that differs, in all likelihood, if the messages differ.
fn digest(node: &Node<State>) -> u64 {
    let mut hasher = DefaultHasher::new();
    node.state().seen.hash(&mut hasher);
    hasher.finish()
}

fn main() -> ExitCode {
    let is_thrifty = std::env::args().any(|argument| argument == "--thrifty");
    hark_node::main(if is_thrifty { thrifty } else { program })
}
