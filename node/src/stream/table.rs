//! The open streams by client, and their states. It knows no services and no
//! content.
//!
//! A bidirectional stream goes from open to half-closed (its client has closed
//! it, and the service still answers earlier messages) to closed. So does a
//! server stream, whose client half-closes it by a cancel. A task owns each
//! stream and holds its [`Entry`]: the stream is closed when the task ends for
//! any reason.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::MsgId;
use crate::request::Responder;

/// The maximum number of open streams of a client, of both kinds. Further
/// streams get error 11.
pub const STREAMS_PER_CLIENT_MAX: usize = 128;

/// The maximum number of clients with open streams. Further clients get error
/// 11.
pub const CLIENTS_MAX: usize = 1024;

/// The maximum number of messages of one stream that wait for its service.
/// Further messages get error 11.
pub const WAITING_MAX: usize = 64;

/// The number of closed streams that are remembered, over all clients; requests
/// for an older one get error 20 instead of 22.
pub const CLOSED_MAX: usize = 1024;

/// The name of a stream of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    /// A server stream, by the request for it.
    Request(MsgId),
    /// A bidirectional one, by its id.
    Id(String),
}

/// A message on its way to a service.
pub(super) struct Sent {
    pub(super) data: Json,
    pub(super) responder: Responder,
}

enum State {
    /// Dropping the sender ends the input of the stream's task.
    Open(Sender<Sent>),
    /// The request that is answered with the end.
    HalfClosed(Option<Responder>),
}

#[derive(Default)]
pub(super) struct Table {
    /// The open and half-closed streams. Every client here has one.
    clients: RefCell<HashMap<String, HashMap<Key, State>>>,
    /// Client and id of the last closed streams, the oldest first.
    closed: RefCell<VecDeque<(String, String)>>,
    ids: Cell<u64>,
}

impl Table {
    /// Returns the next id of a bidirectional stream.
    pub(super) fn next_id(&self) -> String {
        self.ids.set(self.ids.get() + 1);
        format!("s{}", self.ids.get())
    }

    /// Checks that a client may open one more stream.
    ///
    /// # Errors
    /// 11 if there are too many.
    pub(super) fn check_room(&self, client: &str) -> Result<(), Error> {
        let clients = self.clients.borrow();
        let text = match clients.get(client) {
            Some(streams) if streams.len() >= STREAMS_PER_CLIENT_MAX => {
                "too many of your streams are open"
            }
            None if clients.len() >= CLIENTS_MAX => "too many clients have streams open",
            _ => return Ok(()),
        };
        Err(Error::new(ErrorCode::TemporarilyUnavailable, text))
    }

    pub(super) fn contains(&self, client: &str, key: &Key) -> bool {
        self.clients
            .borrow()
            .get(client)
            .is_some_and(|streams| streams.contains_key(key))
    }

    /// Opens a stream for which there is room. The receiver yields the messages of
    /// its client, and ends when it is half-closed.
    pub(super) fn open(self: &Rc<Self>, client: &str, key: Key) -> (Entry, Receiver<Sent>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut clients = self.clients.borrow_mut();
        clients
            .entry(client.to_owned())
            .or_default()
            .insert(key.clone(), State::Open(sender));
        (
            Entry {
                table: Rc::clone(self),
                client: client.to_owned(),
                key,
            },
            receiver,
        )
    }

    /// Queues a message for a bidirectional stream.
    ///
    /// # Errors
    /// 11 if too many messages wait; 20 if the client has no such stream; 22 if
    /// it is closed.
    pub(super) fn send(&self, client: &str, id: String, sent: Sent) -> Result<(), Error> {
        let key = Key::Id(id);
        let clients = self.clients.borrow();
        let Some(State::Open(sender)) = clients.get(client).and_then(|streams| streams.get(&key))
        else {
            return Err(self.not_open(client, &key));
        };
        sender.try_send(sent).map_err(|error| match error {
            TrySendError::Full(_) => Error::new(
                ErrorCode::TemporarilyUnavailable,
                "too many messages wait on this stream",
            ),
            TrySendError::Closed(_) => closed(),
        })
    }

    /// Half-closes a stream; its task answers `closer` when it ends.
    ///
    /// # Errors
    /// 20 if the client has no such stream; 22 if it is closed.
    pub(super) fn half_close(
        &self,
        client: &str,
        key: &Key,
        closer: Option<Responder>,
    ) -> Result<(), Error> {
        let mut clients = self.clients.borrow_mut();
        match clients
            .get_mut(client)
            .and_then(|streams| streams.get_mut(key))
        {
            Some(state @ State::Open(_)) => {
                *state = State::HalfClosed(closer);
                Ok(())
            }
            Some(State::HalfClosed(_)) => Err(closed()),
            None => Err(self.not_found(client, key)),
        }
    }

    /// Returns the error for a stream that is half-closed, closed or unknown.
    fn not_open(&self, client: &str, key: &Key) -> Error {
        if self.contains(client, key) {
            closed()
        } else {
            self.not_found(client, key)
        }
    }

    fn not_found(&self, client: &str, key: &Key) -> Error {
        let is_it = |(owner, id): &(String, String)| {
            owner == client && matches!(key, Key::Id(key) if key == id)
        };
        if self.closed.borrow().iter().any(is_it) {
            return closed();
        }
        Error::new(ErrorCode::KeyDoesNotExist, "you have no such stream")
    }

    fn remember(&self, client: String, id: String) {
        let mut closed = self.closed.borrow_mut();
        if closed.len() >= CLOSED_MAX {
            closed.pop_front();
        }
        closed.push_back((client, id));
    }
}

fn closed() -> Error {
    Error::new(ErrorCode::PreconditionFailed, "the stream is closed")
}

/// A stream that is open or half-closed. Dropping it closes the stream.
pub(super) struct Entry {
    table: Rc<Table>,
    client: String,
    key: Key,
}

impl Entry {
    /// Takes the request that waits for the end; `None` if the client did not
    /// close the stream.
    pub(super) fn take_closer(&self) -> Option<Responder> {
        let mut clients = self.table.clients.borrow_mut();
        match clients.get_mut(&self.client)?.get_mut(&self.key)? {
            State::HalfClosed(closer) => closer.take(),
            State::Open(_) => None,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut clients = self.table.clients.borrow_mut();
        if let Some(streams) = clients.get_mut(&self.client) {
            streams.remove(&self.key);
            if streams.is_empty() {
                clients.remove(&self.client);
            }
        }
        if let Key::Id(id) = &self.key {
            self.table
                .remember(std::mem::take(&mut self.client), id.clone());
        }
    }
}
