//! What is measured: each server as a [`Peer`], which starts it and knows its
//! protocol as its good clients speak it. The bytes of all of them are moved by
//! the same [`crate::load`], so that none is measured with a better one.

mod classic;
mod hark;
mod irc;
mod mqtt;
mod nats;
mod relay;

use std::path::Path;

use crate::load::text::{Stamp, Text};
use crate::server::Server;

pub(crate) use classic::PythonServer;
pub(crate) use hark::Hark;
pub(crate) use irc::Ngircd;
pub(crate) use mqtt::Mosquitto;
pub(crate) use nats::Nats;
pub(crate) use relay::{Relay, RelayArgs, serve as serve_relay};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sends, as this sender.
    Sender(usize),
    /// Receives for this user.
    Receiver(usize),
}

/// How long a server keeps what comes for a user who is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// Not at all.
    Nothing,
    /// As long as it runs.
    WhileItRuns,
    /// Beyond a restart.
    OnDisk,
}

/// A server that can be measured.
pub(crate) trait Peer: Send + Sync {
    /// What it is called in the report, with what sets it apart.
    fn name(&self) -> &'static str;

    /// How long it keeps what comes for a user who is away.
    fn keeps(&self) -> Keeps {
        Keeps::OnDisk
    }

    /// The users that it is measured with at most. Where each needs a connection
    /// or a consumer of its own beforehand, more would take longer than all the
    /// rest.
    fn users_max(&self) -> usize {
        20_000
    }

    /// Its version, as it says.
    ///
    /// # Errors
    /// What is missing, and how to get it.
    fn version(&self) -> anyhow::Result<String>;

    /// Starts it on this address, with what it keeps in `folder`, where it may
    /// find what it kept before.
    ///
    /// # Errors
    /// Where it cannot be started.
    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server>;

    /// The connections that are opened and closed once, before there is a load
    /// for so many users: they make accounts, streams, sessions.
    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn Speaker>>>;

    /// A connection of a client.
    fn speaker(&self, role: Role) -> Box<dyn Speaker>;
}

/// One connection of a client, without I/O: bytes in, bytes out.
pub(crate) trait Speaker: Send {
    /// Says what comes first.
    fn open(&mut self, output: &mut Vec<u8>);

    /// Says one message to this user.
    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>);

    /// The sends up to here are written in one go.
    fn sent(&mut self, _output: &mut Vec<u8>) {}

    /// Takes what has come: returns how many bytes of the input are done with,
    /// adds what it meant to `taken`, and says what has to be said to it.
    ///
    /// # Errors
    /// Where the server refuses something, or does not speak the protocol.
    fn take(&mut self, input: &[u8], output: &mut Vec<u8>, taken: &mut Taken) -> anyhow::Result<usize>;
}

/// What a connection was told.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// The connection is open for what it is for.
    pub(crate) is_ready: bool,
    /// So many sends were accepted.
    pub(crate) accepted: usize,
    /// These messages were delivered.
    pub(crate) delivered: Vec<Stamp>,
}

/// The name of a user.
pub(crate) fn user_name(user: usize) -> String {
    format!("u{user}")
}

/// How to get a peer that Debian has.
fn missing_package(package: &str) -> String {
    format!("{package} is missing: on Debian, `apt-get install {package}`")
}
