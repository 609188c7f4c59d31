//! The measured servers: each is a [`Peer`], which starts it and speaks its protocol as a good
//! client does. The same [`crate::load`] moves the bytes of all of them, so that the comparison
//! is fair.

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
pub(crate) use hark::{Console, Hark, ROOM};
pub(crate) use irc::Ngircd;
pub(crate) use mqtt::Mosquitto;
pub(crate) use nats::Nats;
pub(crate) use relay::{Relay, RelayArgs, serve as serve_relay};

/// The role of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// This sender.
    Sender(usize),
    /// The receiver of this user.
    Receiver(usize),
    /// This sender to the room.
    Speaker(usize),
    /// The receiver of this user, which becomes a member of the room.
    Joining(usize),
    /// The receiver of this user, which is a member of the room.
    Member(usize),
}

impl Role {
    /// Returns whether it receives.
    pub(crate) const fn is_receiver(self) -> bool {
        matches!(self, Self::Receiver(_) | Self::Joining(_) | Self::Member(_))
    }

    /// Returns the name of its user.
    pub(crate) fn user_name(self) -> String {
        match self {
            Self::Sender(sender) | Self::Speaker(sender) => format!("s{sender}"),
            Self::Receiver(user) | Self::Joining(user) | Self::Member(user) => user_name(user),
        }
    }

    /// Returns whether its messages are those of the room.
    pub(crate) const fn is_in_room(self) -> bool {
        matches!(self, Self::Speaker(_) | Self::Joining(_) | Self::Member(_))
    }
}

/// The most senders to a room.
pub(crate) const SPEAKERS_MAX: usize = 64;

/// The durability of messages for an offline user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// Messages for offline users are dropped.
    Nothing,
    /// Messages are kept in memory.
    UntilRestart,
    /// Messages survive a restart.
    OnDisk,
}

/// A server that can be measured.
pub(crate) trait Peer: Send + Sync {
    /// Returns its name in the report, with its configuration.
    fn name(&self) -> &'static str;

    /// Returns the durability of its messages.
    fn durability(&self) -> Durability {
        Durability::OnDisk
    }

    /// Returns the most users that it is measured with. A peer that needs a connection or a
    /// consumer for each user beforehand would take too long with more.
    fn users_max(&self) -> usize {
        20_000
    }

    /// Returns its version.
    ///
    /// # Errors
    /// If it is missing, with the way to install it.
    fn version(&self) -> anyhow::Result<String>;

    /// Starts it on this port with its data in `folder`, which may hold data of an earlier start.
    ///
    /// # Errors
    /// If it cannot be started.
    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server>;

    /// Returns the connections that create accounts, streams or sessions for this many users, to
    /// be opened and closed before the load.
    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>>;

    /// Returns whether it is measured with messages to single users.
    fn has_users(&self) -> bool {
        true
    }

    /// Returns whether it is measured with messages to a room.
    fn has_rooms(&self) -> bool {
        true
    }

    /// Returns the most members of a room that it is measured with.
    fn members_max(&self) -> usize {
        self.users_max()
    }

    /// Returns the connections that create the room and the accounts of so many members, to be
    /// opened and closed before the load. The members join by [`Role::Joining`].
    fn room_preparations(&self, _members: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::empty())
    }

    /// Returns the codec of a client connection.
    fn codec(&self, role: Role) -> Box<dyn PeerCodec>;
}

/// The codec of a client connection, without I/O: bytes in, bytes out.
pub(crate) trait PeerCodec: Send {
    /// Encodes the first bytes of the connection.
    fn open(&mut self, output: &mut Vec<u8>);

    /// Encodes a message to this user.
    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>);

    /// Ends a batch of sends, which is written at once.
    fn sent(&mut self, _output: &mut Vec<u8>) {}

    /// Decodes input into `received`, and encodes acknowledgements. Returns the number of bytes
    /// consumed.
    ///
    /// # Errors
    /// If the server refuses a request or breaks the protocol.
    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize>;
}

/// The events of a connection.
#[derive(Debug, Default)]
pub(crate) struct Received {
    /// Whether the connection is ready for its role.
    pub(crate) is_ready: bool,
    /// The number of accepted sends.
    pub(crate) accepted: usize,
    /// The delivered messages.
    pub(crate) delivered: Vec<Stamp>,
}

/// Returns the name of a user.
pub(crate) fn user_name(user: usize) -> String {
    format!("u{user}")
}

/// Returns the error for a missing Debian package.
fn missing_package(package: &str) -> String {
    format!("{package} is missing: on Debian, `apt-get install {package}`")
}
