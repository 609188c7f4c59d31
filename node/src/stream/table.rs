//! Which streams are open, whose they are, and what their clients may still do
//! with them. It knows neither services nor what is sent.
//!
//! A bidirectional stream goes from open over half-closed (its client has
//! closed it, and the service still answers what came before) to closed. So
//! does a server stream, whose client sends nothing and half-closes it by a
//! cancel. Each is owned by a task, which holds its [`Entry`]: however the task
//! ends, the stream is closed then.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::MsgId;
use crate::request::Responder;

/// Streams of both kinds that a client may have open at once. Beyond that it
/// gets error 11.
pub const STREAMS_PER_CLIENT_MAX: usize = 128;

/// Clients that may have streams open at once. Beyond that others get error 11.
pub const CLIENTS_MAX: usize = 1024;

/// Messages of one stream that wait for its service, at most. Beyond that they
/// get error 11.
pub const WAITING_MAX: usize = 64;

/// Streams that are remembered as closed, over all clients; what is done with
/// an older one gets error 20 in place of 22.
pub const CLOSED_MAX: usize = 1024;

/// What names a stream of a client.
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
    /// Dropping the sender tells the stream's task that its client is done.
    Open(Sender<Sent>),
    /// Who waits for the end.
    HalfClosed(Option<Responder>),
}

#[derive(Default)]
pub(super) struct Table {
    /// Those that are open or half-closed. No client is without one.
    clients: RefCell<HashMap<String, HashMap<Key, State>>>,
    /// Client and id of those that were closed last, the oldest first.
    closed: RefCell<VecDeque<(String, String)>>,
    ids: Cell<u64>,
}

impl Table {
    /// The next id of a bidirectional stream.
    pub(super) fn next_id(&self) -> String {
        self.ids.set(self.ids.get() + 1);
        format!("s{}", self.ids.get())
    }

    /// Whether a client may open one more.
    ///
    /// # Errors
    /// 11, where there are too many.
    pub(super) fn check_room(&self, client: &str) -> Result<(), Error> {
        let clients = self.clients.borrow();
        let text = match clients.get(client) {
            Some(streams) if streams.len() >= STREAMS_PER_CLIENT_MAX => "too many of your streams are open",
            None if clients.len() >= CLIENTS_MAX => "too many clients have streams open",
            _ => return Ok(()),
        };
        Err(Error::new(ErrorCode::TemporarilyUnavailable, text))
    }

    pub(super) fn contains(&self, client: &str, key: &Key) -> bool {
        self.clients.borrow().get(client).is_some_and(|streams| streams.contains_key(key))
    }

    /// Opens a stream for which there is room. The receiver yields what its
    /// client sends, and ends when it is half-closed.
    pub(super) fn open(self: &Rc<Self>, client: &str, key: Key) -> (Entry, Receiver<Sent>) {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let mut clients = self.clients.borrow_mut();
        clients.entry(client.to_owned()).or_default().insert(key.clone(), State::Open(sender));
        (Entry { table: Rc::clone(self), client: client.to_owned(), key }, receiver)
    }

    /// Passes a message on to a bidirectional stream.
    ///
    /// # Errors
    /// 11, where too many wait; 20, where the client has no such stream; 22,
    /// where it is not open any more.
    pub(super) fn send(&self, client: &str, id: String, sent: Sent) -> Result<(), Error> {
        let key = Key::Id(id);
        let clients = self.clients.borrow();
        let Some(State::Open(sender)) = clients.get(client).and_then(|streams| streams.get(&key)) else {
            return Err(self.not_open(client, &key));
        };
        sender.try_send(sent).map_err(|error| match error {
            TrySendError::Full(_) => {
                Error::new(ErrorCode::TemporarilyUnavailable, "too many messages wait on this stream")
            }
            TrySendError::Closed(_) => closed(),
        })
    }

    /// Half-closes a stream; its task answers `closer` when it ends.
    ///
    /// # Errors
    /// 20, where the client has no such stream; 22, where it is not open any
    /// more.
    pub(super) fn half_close(&self, client: &str, key: &Key, closer: Option<Responder>) -> Result<(), Error> {
        let mut clients = self.clients.borrow_mut();
        match clients.get_mut(client).and_then(|streams| streams.get_mut(key)) {
            Some(state @ State::Open(_)) => {
                *state = State::HalfClosed(closer);
                Ok(())
            }
            Some(State::HalfClosed(_)) => Err(closed()),
            None => Err(self.not_found(client, key)),
        }
    }

    /// Why nothing can be sent: half-closed, closed or never there.
    fn not_open(&self, client: &str, key: &Key) -> Error {
        if self.contains(client, key) { closed() } else { self.not_found(client, key) }
    }

    fn not_found(&self, client: &str, key: &Key) -> Error {
        let is_it =
            |(owner, id): &(String, String)| owner == client && matches!(key, Key::Id(key) if key == id);
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
    /// Takes who waits for the end; `None` where the client did not close it.
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
            self.table.remember(std::mem::take(&mut self.client), id.clone());
        }
    }
}
