//! [`Commands`]: the commands of a link, unsent and unanswered. They know neither flows nor
//! the meaning of answers.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::super::message::{Command, Item as _, Request};
use super::super::{ConnectionId, Now, timing};

/// The commands of a link.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// Commands that are not sent yet.
    queue: VecDeque<Waiting>,
    /// Unanswered commands, by id.
    sent: BTreeMap<u64, Waiting>,
    last_id: u64,
}

/// An unanswered command.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) origin: Origin,
    pub(super) command: Command,
    since: Duration,
}

/// The destination of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A request of a connection.
    Connection(ConnectionId, u64),
    /// The reception of this inbox, to continue it.
    Reception(u64),
    /// The identity of this incarnation, to continue it.
    Identity(u64),
    /// None: the answer is dropped.
    Nowhere,
}

impl Commands {
    /// Queues a command. Returns its id.
    pub(super) fn push(&mut self, origin: Origin, request: Request, now: Now) -> u64 {
        let waiting = self.waiting(origin, request, now);
        self.queue.push_back(waiting);
        self.last_id
    }

    /// Queues commands in this order, before all others.
    pub(super) fn push_first(&mut self, requests: Vec<(Origin, Request)>, now: Now) {
        for (origin, request) in requests.into_iter().rev() {
            let waiting = self.waiting(origin, request, now);
            self.queue.push_front(waiting);
        }
    }

    fn waiting(&mut self, origin: Origin, request: Request, now: Now) -> Waiting {
        self.last_id += 1;
        let id = self.last_id;
        Waiting {
            origin,
            command: Command { id, request },
            since: now.running,
        }
    }

    /// Returns whether a command waits to be sent.
    pub(super) fn has_unsent(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Takes the commands of the next packet, and returns their bytes.
    pub(super) fn send(&mut self) -> (Vec<Command>, u64) {
        let (mut items, mut bytes) = (Vec::new(), 0);
        let fits = |bytes: u64, size: u64| bytes == 0 || bytes + size <= timing::PACKET_BYTES_MAX;
        while let Some(waiting) = self
            .queue
            .pop_front_if(|next| fits(bytes, next.command.bytes()))
        {
            bytes += waiting.command.bytes();
            items.push(waiting.command.clone());
            if waiting.command.request.has_answer() {
                self.sent.insert(waiting.command.id, waiting);
            }
        }
        (items, bytes)
    }

    /// Takes the command that this answer belongs to.
    pub(super) fn answered(&mut self, id: u64) -> Option<Waiting> {
        self.sent.remove(&id)
    }

    /// Returns the id of the oldest unanswered command, or the last id if there is none.
    pub(super) fn oldest(&self) -> u64 {
        let unsent = self.queue.iter().map(|waiting| &waiting.command.id);
        let unanswered = self.sent.keys().chain(unsent);
        unanswered.copied().min().unwrap_or(self.last_id)
    }

    /// Drops the unsent commands of a connection. Returns their requests.
    pub(super) fn drop_of(&mut self, connection: ConnectionId) -> Vec<u64> {
        let mut dropped = Vec::new();
        self.queue.retain(|waiting| match waiting.origin {
            Origin::Connection(of, request) if of == connection => {
                dropped.push(request);
                false
            }
            _ => true,
        });
        dropped
    }

    /// Drops the unsent commands of all connections.
    pub(super) fn drop_all(&mut self) {
        self.queue
            .retain(|waiting| !matches!(waiting.origin, Origin::Connection(..)));
    }

    /// Drops what a connection that has gone waits for. Its changes continue: if one becomes
    /// unavailable, later ones must not continue.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn disconnect(&mut self, connection: ConnectionId) {
        let is_dropped =
            |waiting: &Waiting| waiting.is_of(connection) && !waiting.command.request.is_change();
        self.queue.retain(|waiting| !is_dropped(waiting));
        for waiting in self.sent.values_mut().filter(|waiting| is_dropped(waiting)) {
            waiting.origin = Origin::Nowhere;
        }
    }

    /// Returns whether a sent command has had no answer for too long.
    pub(super) fn has_late(&self, now: Now) -> bool {
        self.sent.values().any(|waiting| waiting.is_late(now))
    }

    /// Takes the commands of connections that could not be sent for too long.
    pub(super) fn take_late(&mut self, now: Now) -> Vec<Waiting> {
        if !self.queue.iter().any(|waiting| waiting.is_late(now)) {
            return Vec::new();
        }
        let is_late = |waiting: &Waiting| {
            waiting.is_late(now) && matches!(waiting.origin, Origin::Connection(..))
        };
        let (late, rest): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(is_late);
        self.queue = rest.into();
        late
    }

    /// Takes the sent changes, when the flow ends: the owner may have taken them.
    pub(super) fn take_changes(&mut self) -> Vec<Waiting> {
        let changes = self
            .sent
            .extract_if(.., |_, waiting| waiting.command.request.is_change());
        changes.map(|(_, waiting)| waiting).collect()
    }

    /// Queues the sent commands again, for the next flow. Receptions and identities continue
    /// there by new commands, and all registrations have ended with the flow.
    pub(super) fn requeue(&mut self) {
        self.queue.retain(
            |Waiting {
                 origin, command, ..
             }| {
                !matches!(origin, Origin::Reception(_) | Origin::Identity(_))
                    && !matches!(command.request, Request::Unregister(_))
            },
        );
        let again = std::mem::take(&mut self.sent).into_values();
        let again = again.filter(
            |Waiting {
                 origin, command, ..
             }| {
                matches!(origin, Origin::Connection(..))
                    || matches!(command.request, Request::Acknowledge(..))
            },
        );
        again
            .rev()
            .for_each(|waiting| self.queue.push_front(waiting));
    }
}

impl Waiting {
    fn is_late(&self, now: Now) -> bool {
        now.running.saturating_sub(self.since) >= self.deadline()
    }

    const fn deadline(&self) -> Duration {
        match self.command.request {
            Request::Delete(_) => timing::DELETE_DEADLINE,
            _ => timing::COMMAND_DEADLINE,
        }
    }

    #[cfg(any(test, feature = "maelstrom"))]
    fn is_of(&self, connection: ConnectionId) -> bool {
        matches!(self.origin, Origin::Connection(of, _) if of == connection)
    }
}
