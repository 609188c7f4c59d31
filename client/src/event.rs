//! Events: messages, and the state of the link.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::{Gap, LeftReason};
use hark_protocol::{Delivery, DeviceName, Refusal, RoomName, Sequence, UserName};
use tokio::sync::{mpsc, watch};

use crate::inbox::Held;

/// An event for the application.
#[derive(Debug)]
pub enum Event {
    /// The state of the link has changed. Superseded states may be skipped; the
    /// last one never is.
    Link(LinkState),
    /// A message, exactly once and in the server's order of its log.
    Message(Message),
    /// All messages that were queued in the inbox at the last `connect` or
    /// `attach` of `user` have been delivered before this event.
    CaughtUp {
        /// The receiving user.
        user: UserName,
    },
    /// Messages of a log are missing: the server has removed them.
    Gap(MissingMessages),
    /// The user has become a member of a room, by another device or an
    /// administrator.
    Joined {
        /// The room.
        room: RoomName,
        /// Its last number.
        last: Sequence,
    },
    /// The user is no member of a room any more. No message of the room follows.
    Left {
        /// The room.
        room: RoomName,
        /// The reason.
        reason: LeftReason,
    },
    /// The read mark of the user moved, by another device.
    Seen {
        /// The room.
        room: RoomName,
        /// Number of the last read message.
        sequence: Sequence,
    },
    /// The user has a new device.
    NewDevice {
        /// Its name.
        name: Option<DeviceName>,
    },
    /// Another connection now receives for `user`, or the device was forgotten. This client stays
    /// authenticated as `user`, and does not reconnect as its receiver.
    TakenOver {
        /// The user that was received for.
        user: UserName,
    },
    /// This client is no longer authenticated as `user`: the account was
    /// deleted, or the server refused it on a new link. Sends fail until the
    /// application logs in, connects or disconnects.
    IdentityLost {
        /// The former user.
        user: UserName,
        /// The reason.
        refusal: Refusal,
    },
}

/// State of the link to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// A connection is being opened.
    Connecting,
    /// The link is up, and the client is authenticated as before.
    Up {
        /// Address of the server.
        server: Arc<str>,
    },
    /// There is no connection.
    Down {
        /// Address of the server that was lost or could not be reached.
        server: Arc<str>,
        /// Why the connection, or the attempt, failed.
        reason: String,
        /// Delay before the next attempt: zero if other servers have not failed
        /// yet.
        retry_in: Duration,
        /// Whether attempts fail with every server until a configuration
        /// changes, for example because a certificate is not trusted or TLS is
        /// required.
        is_permanent: bool,
    },
    /// The client is closed.
    Closed,
}

/// The receiver of events. Dropping it stops receiving but not the client:
/// messages stay on the server.
#[derive(Debug)]
pub struct Events {
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) link: watch::Receiver<LinkState>,
}

impl LinkState {
    /// Returns whether the link is up.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl Events {
    /// Waits for the next event; `None` once the client is closed and the queue
    /// is empty. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            Ok(()) = self.link.changed() => Some(Event::Link(self.link.borrow_and_update().clone())),
            event = self.queue.recv() => event,
        }
    }
}

/// A received message.
///
/// [`Self::ack`] acknowledges it. A message that is dropped instead stays on
/// the server, which delivers it again at the next connect; until then no later
/// message is acknowledged.
#[derive(Debug)]
pub struct Message {
    /// The recipient.
    pub user: UserName,
    /// The room; `None` for a message of the inbox.
    pub room: Option<RoomName>,
    /// Sender, time and text.
    pub delivery: Delivery,
    pub(crate) held: Held,
}

impl Message {
    /// Marks the message as seen; the server receives the acknowledgement once
    /// all earlier messages of the log are acknowledged, too. Writes to the
    /// [`crate::seen::SeenStore`], which may block for a small write to a file.
    ///
    /// # Errors
    /// Any error of the store. The message is not acknowledged in that case.
    pub fn ack(self) -> io::Result<()> {
        self.held.mark_seen()
    }
}

/// Messages of a log that the server has removed. Acknowledged by [`Self::ack`];
/// otherwise it is delivered again at the next connect.
#[derive(Debug)]
pub struct MissingMessages {
    /// The recipient.
    pub user: UserName,
    /// The log, the numbers and the count.
    pub gap: Gap,
    pub(crate) held: Held,
}

impl MissingMessages {
    /// Acknowledges the gap, once the user was told about it.
    pub fn ack(self) {
        self.held.settle();
    }
}
