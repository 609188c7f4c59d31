//! [`Network`]: messages between servers, as Maelstrom messages between their nodes. As on
//! core NATS, a message may be lost, and those of one server arrive in order and once: a
//! message that another one has overtaken counts as lost.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hark_node::Node;
use serde::{Deserialize, Serialize};

use super::server::Server;
use crate::cluster::message::Message;
use crate::cluster::{ServerId, codec};

/// The type of the Maelstrom messages.
pub(super) const KIND: &str = "cluster";

/// The lowest bits of a server's id are the place of its node among all nodes.
const PLACE_BITS: u32 = 10;

/// Random bits of a server's id. JSON carries numbers below 2⁵³.
const LIFE_BITS: u32 = 40;

/// A message between servers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Packet {
    from: u64,
    /// The server that it is for, if it is for one: another process may run at its node.
    to: Option<u64>,
    /// Its number among the messages from this server to this node.
    number: u64,
    message: String,
}

/// The messages of a server.
#[derive(Debug)]
pub(super) struct Network {
    server: ServerId,
    /// The number of the last message to each node.
    sent: BTreeMap<String, u64>,
    /// The server and the number of the last message from each node.
    received: BTreeMap<String, (u64, u64)>,
}

impl Network {
    /// Joins the network under a new id.
    pub(super) fn join(node: &Node<Server>) -> Self {
        let place = node.node_ids().iter().position(|id| id == node.id());
        let life = node.random() >> (u64::BITS - LIFE_BITS);
        Self {
            server: ServerId(life << PLACE_BITS | place.unwrap_or_default() as u64),
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// Returns the id of this server.
    pub(super) const fn server(&self) -> ServerId {
        self.server
    }

    /// Returns the next message to a node, for one server or for each one there.
    fn packet(&mut self, node: &str, to: Option<ServerId>, message: &Message) -> Packet {
        let number = self.sent.entry(node.to_owned()).or_default();
        *number += 1;
        Packet {
            from: self.server.0,
            to: to.map(|to| to.0),
            number: *number,
            message: BASE64_STANDARD.encode(codec::encode(message)),
        }
    }

    /// Takes a message of a node. Returns `None` if it is not for this server, comes late or
    /// a second time, or is malformed.
    pub(super) fn take(&mut self, node: String, packet: Packet) -> Option<Message> {
        let Packet {
            from,
            to,
            number,
            message,
        } = packet;
        let last = self.received.entry(node).or_default();
        if last.0 == from && number <= last.1 {
            return None;
        }
        *last = (from, number);
        if to.is_some_and(|to| to != self.server.0) {
            return None;
        }
        codec::decode(BASE64_STANDARD.decode(message).ok()?.into()).ok()
    }
}

/// Sends a message to another server, or drops it.
pub(super) fn send(node: &Node<Server>, to: ServerId, message: &Message) {
    let place = usize::try_from(to.0 & ((1 << PLACE_BITS) - 1)).ok();
    if let Some(dest) = place.and_then(|place| node.node_ids().get(place)) {
        post(node, dest, Some(to), message);
    }
}

/// Sends a message to all other servers, or drops it.
pub(super) fn broadcast(node: &Node<Server>, message: &Message) {
    node.peers()
        .for_each(|dest| post(node, dest, None, message));
}

fn post(node: &Node<Server>, dest: &str, to: Option<ServerId>, message: &Message) {
    let packet = node
        .state()
        .network()
        .map(|network| network.packet(dest, to, message));
    if let Some(packet) = packet
        && let Err(error) = node.send(dest, KIND, &packet)
    {
        // As if the network had lost it.
        tracing::debug!(dest, %error, "message to another server dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: u64 = 7 << PLACE_BITS;
    const OWN: ServerId = ServerId(9 << PLACE_BITS | 1);

    fn network(server: ServerId) -> Network {
        Network {
            server,
            sent: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// Returns messages of a server to the node n2.
    fn packets(to: Option<ServerId>) -> impl Iterator<Item = Packet> {
        let mut sender = network(ServerId(FROM));
        std::iter::repeat_with(move || sender.packet("n2", to, &Message::Present(OWN, 1)))
    }

    #[test]
    fn overtaken_and_doubled_messages_are_dropped() {
        let (mut receiver, packets) = (network(OWN), packets(None));
        let packets: Vec<_> = packets.take(4).collect();
        let taken = [0, 2, 1, 2, 3].map(|index| {
            receiver
                .take("n1".to_owned(), packets[index].clone())
                .is_some()
        });
        assert_eq!(taken, [true, true, false, false, true]);
    }

    #[test]
    fn numbers_of_another_process_begin_anew() {
        let mut receiver = network(OWN);
        let last = packets(None).nth(3).unwrap();
        assert!(receiver.take("n1".to_owned(), last).is_some());
        let first = packets(None).next().map(|packet| Packet {
            from: FROM + (1 << PLACE_BITS),
            ..packet
        });
        assert!(receiver.take("n1".to_owned(), first.unwrap()).is_some());
    }

    #[test]
    fn message_for_a_former_process_is_dropped() {
        let mut receiver = network(OWN);
        for (to, is_taken) in [(OWN, true), (ServerId(OWN.0 + (1 << PLACE_BITS)), false)] {
            let packet = packets(Some(to)).next().unwrap();
            assert_eq!(receiver.take(to.to_string(), packet).is_some(), is_taken);
        }
    }

    #[test]
    fn malformed_message_is_dropped() {
        let mut receiver = network(OWN);
        for message in ["", "?", "AQ=="] {
            let packet = Packet {
                message: message.to_owned(),
                ..packets(None).next().unwrap()
            };
            assert!(receiver.take(message.to_owned(), packet).is_none());
        }
    }
}
