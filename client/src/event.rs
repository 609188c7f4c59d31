//! What happens without being asked: messages, and the state of the link.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Delivery, Refusal, UserName};
use tokio::sync::{mpsc, watch};

use crate::inbox::Inbox;

/// Something that an application may want to know.
#[derive(Debug)]
pub enum Event {
    /// The state of the link has changed. States that pass faster than they
    /// are taken are left out; the last one never is.
    Link(LinkState),
    /// A message, each exactly once and in the server's order.
    Message(Message),
    /// Everything that was queued when `user` last connected has been taken
    /// over from the server, and is in front of this event.
    CaughtUp {
        /// Who receives.
        user: UserName,
    },
    /// Another connection receives for `user` now. This client is still
    /// `user`, and does not take back what was taken from it.
    TakenOver {
        /// Who received here.
        user: UserName,
    },
    /// This client is nobody, though it was `user`: the account was deleted,
    /// or the server refused it after a lost link. Sends are not carried out
    /// until it logs in, connects or disconnects.
    IdentityLost {
        /// Who this client was.
        user: UserName,
        /// Why it is no more.
        refusal: Refusal,
    },
}

/// The state of the link to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// A connection is being opened.
    Connecting,
    /// The server answers, and this client is who it was.
    Up {
        /// Which server.
        server: Arc<str>,
    },
    /// There is no connection.
    Down {
        /// The server that was lost, or could not be reached.
        server: Arc<str>,
        /// What ended the connection to it, or the attempt at one.
        reason: String,
        /// When the next attempt is made: at once, where not all servers have
        /// failed yet.
        retry_in: Duration,
        /// Whether the attempts will go on failing with all servers until
        /// somebody changes something: a certificate is not trusted, or the
        /// server takes only TLS.
        is_lasting: bool,
    },
    /// The client has ended.
    Closed,
}

/// The receiver of events. Dropping it ends the reception, not the client:
/// messages then stay with the server.
#[derive(Debug)]
pub struct Events {
    pub(crate) queue: mpsc::Receiver<Event>,
    pub(crate) link: watch::Receiver<LinkState>,
}

impl LinkState {
    /// Whether the server answers.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Up { .. })
    }
}

impl Events {
    /// Waits for the next event; `None` once the client has ended and all was
    /// taken. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        tokio::select! {
            biased;
            Ok(()) = self.link.changed() => Some(Event::Link(self.link.borrow_and_update().clone())),
            event = self.queue.recv() => event,
        }
    }
}

/// A message that has been received, and is not taken yet.
///
/// [`Self::ack`] takes it. Dropped without, it stays with the server, which
/// delivers it again when the user next connects, and nothing after it is
/// acknowledged until then.
pub struct Message {
    /// Whose message it is.
    pub user: UserName,
    /// What was said by whom, when.
    pub delivery: Delivery,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) is_settled: bool,
}

impl Message {
    /// Takes the message: from now on it is remembered as taken, and it is
    /// acknowledged as soon as everything before it has been. Writes to the
    /// [`crate::taken::TakenStore`], which may block for as long as a small
    /// write to a file does.
    ///
    /// # Errors
    /// What the store says. The message then counts as not taken.
    pub fn ack(mut self) -> io::Result<()> {
        self.inbox.take(&self.user, &self.delivery)?;
        self.is_settled = true;
        Ok(())
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.is_settled {
            self.inbox.give_back(&self.user, &self.delivery);
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message").field("user", &self.user).field("delivery", &self.delivery).finish()
    }
}
