//! A small chat server in Python's asyncio, like Hark's predecessor, in the classic framing:
//! padded blocks, with as many in flight as the other peers have. Its queues are in memory. It
//! is `bench/peers/classic_server.py`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};

use super::{Durability, Peer, PeerCodec, Received, Role, user_name};
use crate::load::text::{Stamp, TEXT_BYTES, Text};
use crate::server::{Server, version, write_settings};

/// The server in Python.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PythonServer;

/// The source of the server, embedded and written to its folder.
const SERVER: &str = include_str!("../../peers/classic_server.py");

impl Peer for PythonServer {
    fn name(&self) -> &'static str {
        "Python asyncio"
    }

    fn durability(&self) -> Durability {
        Durability::UntilRestart
    }

    fn has_rooms(&self) -> bool {
        false
    }

    fn version(&self) -> anyhow::Result<String> {
        version(Command::new("python3").arg("--version")).context("python3 is missing: install it")
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new("python3");
        command
            .arg(write_settings(folder, "classic_server.py", SERVER)?)
            .arg(port.to_string());
        Server::start(self.name(), command, port, folder)
    }

    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::once(Box::new(Maker {
            users,
            asked: 0,
            made: 0,
        }) as Box<dyn PeerCodec>))
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        Box::new(Classic {
            role,
            is_ready: false,
        })
    }
}

/// A connection.
struct Classic {
    role: Role,
    is_ready: bool,
}

impl PeerCodec for Classic {
    fn open(&mut self, output: &mut Vec<u8>) {
        let (command, user) = match self.role {
            // A sender needs no login; the request checks that the server answers.
            Role::Sender(_) | Role::Speaker(_) => ("list", user_name(0)),
            Role::Receiver(user) | Role::Joining(user) | Role::Member(user) => {
                ("connect", user_name(user))
            }
        };
        put_block(output, command, &[user.as_bytes()]);
    }

    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>) {
        put_block(output, "send", &[user_name(to).as_bytes(), b",", text]);
    }

    fn take(
        &mut self,
        input: &[u8],
        _output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let blocks = input.chunks_exact(CLASSIC_BLOCK_BYTES);
        let done = blocks.len() * CLASSIC_BLOCK_BYTES;
        for block in blocks {
            let (command, payload) = block.split_at(COMMAND_BYTES);
            let end = command
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(COMMAND_BYTES);
            match command.get(..end).unwrap_or_default() {
                b"string" => received
                    .delivered
                    .push(Stamp::read(payload.get(..TEXT_BYTES).unwrap_or_default())?),
                b"ok" | b"list" if !self.is_ready => {
                    self.is_ready = true;
                    received.is_ready = true;
                }
                b"ok" => received.accepted += 1,
                other => bail!("the server says {}", String::from_utf8_lossy(other)),
            }
        }
        Ok(done)
    }
}

/// Creates the accounts.
struct Maker {
    users: usize,
    asked: usize,
    made: usize,
}

impl Maker {
    /// The most `create` requests in flight.
    const AT_A_TIME: usize = 64;

    fn ask(&mut self, output: &mut Vec<u8>) {
        while self.asked < self.users && self.asked - self.made < Self::AT_A_TIME {
            put_block(output, "create", &[user_name(self.asked).as_bytes()]);
            self.asked += 1;
        }
    }
}

impl PeerCodec for Maker {
    fn open(&mut self, output: &mut Vec<u8>) {
        self.ask(output);
    }

    fn send(&mut self, _to: usize, _text: &Text, _output: &mut Vec<u8>) {}

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let blocks = input.chunks_exact(CLASSIC_BLOCK_BYTES);
        let done = blocks.len() * CLASSIC_BLOCK_BYTES;
        for block in blocks {
            anyhow::ensure!(block.starts_with(b"ok\0"), "an account was not made");
            self.made += 1;
        }
        self.ask(output);
        received.is_ready = self.made == self.users;
        Ok(done)
    }
}

/// Appends a message, padded to a block.
fn put_block(output: &mut Vec<u8>, command: &str, payload: &[&[u8]]) {
    let start = output.len();
    output.extend_from_slice(command.as_bytes());
    output.resize(start + COMMAND_BYTES, 0);
    payload
        .iter()
        .for_each(|part| output.extend_from_slice(part));
    output.resize(start + CLASSIC_BLOCK_BYTES, 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_once_they_are_whole() {
        let stamp = Stamp {
            due_ns: 5,
            sender: 1,
            number: 2,
        };
        let mut input = Vec::new();
        put_block(&mut input, "ok", &[]);
        put_block(&mut input, "string", &[&stamp.write()]);
        put_block(&mut input, "ok", &[]);
        input.extend_from_slice(b"ok");
        let mut received = Received::default();
        let mut client = PythonServer.codec(Role::Receiver(1));
        assert_eq!(
            client.take(&input, &mut Vec::new(), &mut received).unwrap(),
            3 * CLASSIC_BLOCK_BYTES
        );
        assert_eq!(
            (received.is_ready, received.accepted, received.delivered),
            (true, 1, vec![stamp])
        );
        let mut refusal = Vec::new();
        put_block(&mut refusal, "notok", &[]);
        client
            .take(&refusal, &mut Vec::new(), &mut Received::default())
            .unwrap_err();
    }
}
