//! Mosquitto, in MQTT 3.1.1 without message loss: QoS 1 and persistent sessions on both sides.
//! A send is accepted with its PUBACK.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::{Peer, PeerCodec, Received, Role, missing_package, user_name};
use crate::load::text::{Stamp, TEXT_BYTES, Text};
use crate::server::{Server, is_root, version, write_settings};

/// Mosquitto.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mosquitto;

/// The path of Debian's package, which is not in every `PATH`.
const PROGRAM: &str = "/usr/sbin/mosquitto";

impl Peer for Mosquitto {
    fn name(&self) -> &'static str {
        "Mosquitto, QoS 1"
    }

    fn version(&self) -> anyhow::Result<String> {
        version(Command::new(PROGRAM).arg("-h")).with_context(|| missing_package("mosquitto"))
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        // As root it would switch to a user without write access here.
        let user = if is_root() { "user root\n" } else { "" };
        let settings = format!(
            "listener {port} 127.0.0.1\n\
             allow_anonymous true\n\
             {user}persistence true\n\
             persistence_location {}/\n\
             max_queued_messages 0\n\
             max_inflight_messages 1000\n\
             set_tcp_nodelay true\n\
             log_type error\n\
             log_type warning\n",
            folder.display()
        );
        let mut command = Command::new(PROGRAM);
        command
            .arg("-c")
            .arg(write_settings(folder, "mosquitto.conf", &settings)?);
        Server::start(self.name(), command, port, folder)
    }

    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        // A session queues messages from its subscription on.
        Box::new((0..users).map(|user| Mosquitto.codec(Role::Receiver(user))))
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        Box::new(Mqtt {
            role,
            last_packet: 0,
            last_user: usize::MAX,
            topic: Vec::new(),
        })
    }
}

/// The topic of the room.
const ROOM: &str = "room";

/// A connection.
struct Mqtt {
    role: Role,
    last_packet: u16,
    /// The user of the topic.
    last_user: usize,
    topic: Vec<u8>,
}

/// The first byte of each packet type in use, with its flags.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH_QOS1: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// The DUP flag of a PUBLISH.
const DUPLICATE: u8 = 0x08;

impl Mqtt {
    /// Subscribes to the topic of the room, or to that of the user.
    fn subscribe(&self, output: &mut Vec<u8>) {
        let mut body = vec![0, 1];
        let topic = match self.role.is_in_room() {
            true => ROOM.to_owned(),
            false => self.role.user_name(),
        };
        put_string(&mut body, topic.as_bytes());
        body.push(1);
        put_packet(output, SUBSCRIBE, &body);
    }

    fn take_packet(
        &self,
        kind: u8,
        body: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<()> {
        match (kind & !DUPLICATE, self.role.is_receiver()) {
            (PUBACK, false) => received.accepted += 1,
            (PUBLISH_QOS1, true) => {
                let (topic_bytes, rest) = body.split_first_chunk().context("no topic")?;
                let (_, rest) = rest
                    .split_at_checked(usize::from(u16::from_be_bytes(*topic_bytes)))
                    .context("no topic")?;
                let (packet, text) = rest
                    .split_first_chunk::<2>()
                    .context("no packet identifier")?;
                received.delivered.push(Stamp::read(text)?);
                output.extend_from_slice(&[PUBACK, 2]);
                output.extend_from_slice(packet);
            }
            (CONNACK, is_receiver) => {
                ensure!(
                    body.get(1) == Some(&0),
                    "the connection is refused: {body:?}"
                );
                if is_receiver {
                    self.subscribe(output);
                } else {
                    received.is_ready = true;
                }
            }
            (SUBACK, true) => {
                ensure!(
                    body.get(2) == Some(&1),
                    "the subscription is refused: {body:?}"
                );
                received.is_ready = true;
            }
            (other, _) => bail!("the server says {other:#04x} {body:?}"),
        }
        Ok(())
    }
}

impl PeerCodec for Mqtt {
    fn open(&mut self, output: &mut Vec<u8>) {
        let name = self.role.user_name();
        // MQTT 3.1.1, a persistent session, and no keepalive.
        let mut body = b"\x00\x04MQTT\x04\x00\x00\x00".to_vec();
        put_string(&mut body, name.as_bytes());
        put_packet(output, CONNECT, &body);
    }

    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>) {
        if self.last_user != to {
            self.last_user = to;
            self.topic = match self.role.is_in_room() {
                true => ROOM.as_bytes().to_vec(),
                false => user_name(to).into_bytes(),
            };
        }
        // Fewer are in flight than there are identifiers.
        self.last_packet = self.last_packet % u16::MAX + 1;
        output.push(PUBLISH_QOS1);
        put_length(output, 2 + self.topic.len() + 2 + TEXT_BYTES);
        put_string(output, &self.topic);
        output.extend_from_slice(&self.last_packet.to_be_bytes());
        output.extend_from_slice(text);
    }

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((kind, body, bytes)) = packet(input.get(done..).unwrap_or_default())? {
            self.take_packet(kind, body, output, received)?;
            done += bytes;
        }
        Ok(done)
    }
}

/// Returns the first complete packet of the input: its first byte, its body, and its length.
fn packet(input: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    /// The most bytes of the length field.
    const LENGTH_BYTES_MAX: usize = 4;
    let Some((&kind, rest)) = input.split_first() else {
        return Ok(None);
    };
    let mut length = 0;
    for (index, &byte) in rest.iter().take(LENGTH_BYTES_MAX).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let head = 2 + index;
            return Ok(input
                .get(head..head + length)
                .map(|body| (kind, body, head + length)));
        }
    }
    ensure!(rest.len() < LENGTH_BYTES_MAX, "a length without an end");
    Ok(None)
}

fn put_packet(output: &mut Vec<u8>, kind: u8, body: &[u8]) {
    output.push(kind);
    put_length(output, body.len());
    output.extend_from_slice(body);
}

fn put_length(output: &mut Vec<u8>, mut length: usize) {
    while length > 0x7f {
        output.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    output.push(length as u8);
}

fn put_string(output: &mut Vec<u8>, text: &[u8]) {
    output.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    output.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_read_once_it_is_whole() {
        for length in [0, 2, 127, 128, 300, 16_384] {
            let body = vec![7; length];
            let mut bytes = Vec::new();
            put_packet(&mut bytes, PUBACK, &body);
            assert_eq!(
                packet(&bytes).unwrap(),
                Some((PUBACK, &*body, bytes.len())),
                "{length}"
            );
            bytes.pop();
            assert_eq!(packet(&bytes).unwrap(), None, "{length}");
        }
        packet(&[PUBACK, 0xff, 0xff, 0xff, 0xff]).unwrap_err();
    }

    #[test]
    fn a_message_is_taken_and_acknowledged() {
        let stamp = Stamp {
            due_ns: 5,
            sender: 1,
            number: 2,
        };
        let (mut sent, mut answer, mut received) = (Vec::new(), Vec::new(), Received::default());
        Mosquitto
            .codec(Role::Sender(1))
            .send(3, &stamp.write(), &mut sent);
        let mut receiver = Mosquitto.codec(Role::Receiver(3));
        assert_eq!(
            receiver.take(&sent, &mut answer, &mut received).unwrap(),
            sent.len()
        );
        assert_eq!(
            (received.delivered, answer),
            (vec![stamp], vec![PUBACK, 2, 0, 1])
        );
    }
}
