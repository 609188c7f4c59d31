//! Clients: the requests that a test sends, and their outcomes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::cluster::Cluster;
use super::party::Party;
use crate::core::Outcome;
use crate::error::{Error, ErrorCode};
use crate::machine;
use crate::message::{self, MsgId};

/// A client of the nodes. Printed, it is the name of its first connection, such
/// as `c1`.
///
/// As in the harness, a connection has one request open at a time, gives up
/// after 5 s, and is then closed and removed from the network: a node that
/// answers it later is mute (see [`Cluster`]). A client opens another
/// connection, under the next free name, if all that it has are busy or closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(usize);

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Party::Client(self.0).fmt(f)
    }
}

/// A request of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(usize);

impl Cluster {
    /// Returns a new client.
    pub fn client(&mut self) -> Client {
        self.operations.client()
    }

    /// Sends a request to a node or a service now, with a body of this type and
    /// these fields (`()` for none).
    ///
    /// # Panics
    /// If the fields have no form in JSON or are not an object.
    pub fn send(
        &mut self,
        client: Client,
        dest: &str,
        kind: &str,
        fields: &impl Serialize,
    ) -> Operation {
        let connection = self.operations.free_connection(client);
        let operation = self.operations.open(connection, self.now());
        let src = Party::Client(connection);
        let line = line(&src.to_string(), dest, kind, operation, fields);
        if let Some(connection) = self.operations.connections.get_mut(connection) {
            connection.is_busy = true;
        }
        self.request(operation, src, line.trim_ascii_end());
        operation
    }

    /// Returns the outcome of a request that has ended: the reply as a type for
    /// its fields (`()` for none, [`Json`](crate::Json) for the whole body), or
    /// an error as for [`Self::wait`].
    #[must_use]
    pub fn poll<R: DeserializeOwned>(&self, operation: Operation) -> Option<Result<R, Error>> {
        let (_, outcome) = self.operations.all.get(operation.0)?.end.as_ref()?;
        Some(outcome.clone().and_then(|body| {
            let unknown = |error| format!("unexpected reply: {error}: {}", body.text());
            body.parse_fields()
                .map_err(|error| Error::new(ErrorCode::Crash, unknown(error)))
        }))
    }

    /// Lets time pass until a request has ended.
    ///
    /// # Errors
    /// The error that was replied; 0 if no reply came within
    /// [`CLIENT_TIMEOUT`](super::CLIENT_TIMEOUT) or the time that the builder was
    /// given; 13 if the reply is not an `R`.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    pub fn wait<R: DeserializeOwned>(&mut self, operation: Operation) -> Result<R, Error> {
        loop {
            if let Some(end) = self.poll(operation) {
                return end;
            }
            // Its timeout is planned, so another event follows.
            assert!(
                self.step(Duration::MAX),
                "the operation belongs to another cluster"
            );
        }
    }

    /// Sends a request and waits for its end.
    ///
    /// # Errors
    /// As for [`Self::wait`].
    ///
    /// # Panics
    /// As for both.
    pub fn call<R: DeserializeOwned>(
        &mut self,
        client: Client,
        dest: &str,
        kind: &str,
        fields: &impl Serialize,
    ) -> Result<R, Error> {
        let operation = self.send(client, dest, kind, fields);
        self.wait(operation)
    }

    /// Returns the times at which a request was sent and at which it ended.
    #[must_use]
    pub fn span(&self, operation: Operation) -> Option<(Duration, Option<Duration>)> {
        let asked = self.operations.all.get(operation.0)?;
        Some((asked.sent_at, asked.end.as_ref().map(|(at, _)| *at)))
    }
}

/// All requests of clients, whose numbers are their `msg_id`s, and the
/// connections over which they were sent.
pub(super) struct Operations {
    all: Vec<Asked>,
    /// Number 0 is `c0`.
    connections: Vec<Connection>,
    /// The connections of each client.
    clients: BTreeMap<Client, Vec<usize>>,
    pub(super) timeout: Duration,
}

struct Asked {
    connection: usize,
    sent_at: Duration,
    end: Option<(Duration, Outcome)>,
}

/// One client of the harness, which has one request open at a time.
#[derive(Default)]
struct Connection {
    is_busy: bool,
    /// It has given up a request, and was removed from the network.
    is_closed: bool,
}

impl Operations {
    pub(super) fn new(timeout: Duration) -> Self {
        let connections = vec![Connection::default()];
        Self {
            all: Vec::new(),
            connections,
            clients: BTreeMap::new(),
            timeout,
        }
    }

    /// Returns the number of connections besides `c0`.
    pub(super) fn connections(&self) -> usize {
        self.connections.len() - 1
    }

    pub(super) fn is_closed(&self, connection: usize) -> bool {
        self.connections
            .get(connection)
            .is_some_and(|connection| connection.is_closed)
    }

    fn connect(&mut self) -> usize {
        self.connections.push(Connection::default());
        self.connections()
    }

    fn client(&mut self) -> Client {
        let client = Client(self.connect());
        self.clients.insert(client, vec![client.0]);
        client
    }

    /// Returns a connection of a client that is free, or a new one.
    fn free_connection(&mut self, client: Client) -> usize {
        let own = self
            .clients
            .get(&client)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let is_free = |connection: &Connection| !connection.is_busy && !connection.is_closed;
        let free = own
            .iter()
            .find(|number| self.connections.get(**number).is_some_and(is_free));
        free.copied().unwrap_or_else(|| {
            let connection = self.connect();
            self.clients.entry(client).or_default().push(connection);
            connection
        })
    }

    fn open(&mut self, connection: usize, now: Duration) -> Operation {
        self.all.push(Asked {
            connection,
            sent_at: now,
            end: None,
        });
        Operation(self.all.len() - 1)
    }

    /// Returns the line that gives a node its name.
    pub(super) fn init_line(
        &mut self,
        now: Duration,
        node: &str,
        init: &impl Serialize,
    ) -> Vec<u8> {
        let operation = self.open(0, now);
        line(&Party::Client(0).to_string(), node, "init", operation, init)
    }

    /// Hands a message to a connection. Only the first reply to a request
    /// counts, and only before the connection gives up.
    pub(super) fn take(&mut self, connection: Party, now: Duration, line: &[u8]) {
        let Ok(message) = message::parse(line) else {
            return;
        };
        let number = message
            .in_reply_to
            .and_then(|id| usize::try_from(id.0).ok());
        let asked = number.and_then(|number| self.all.get_mut(number));
        let Some(asked) = asked.filter(|asked| Party::Client(asked.connection) == connection)
        else {
            return;
        };
        if asked.end.is_none() {
            asked.end = Some((now, machine::outcome(&message)));
            if let Some(connection) = self.connections.get_mut(asked.connection) {
                connection.is_busy = false;
            }
        }
    }

    /// Gives up a request that is still open, and closes its connection.
    pub(super) fn expire(&mut self, operation: Operation, now: Duration) {
        let Some(asked) = self
            .all
            .get_mut(operation.0)
            .filter(|asked| asked.end.is_none())
        else {
            return;
        };
        asked.end = Some((
            now,
            Err(Error::new(ErrorCode::Timeout, "no reply came in time")),
        ));
        if let Some(connection) = self.connections.get_mut(asked.connection) {
            connection.is_closed = true;
        }
    }
}

#[expect(
    clippy::panic,
    reason = "fields that cannot be written are a fault of the test"
)]
fn line(
    src: &str,
    dest: &str,
    kind: &str,
    operation: Operation,
    fields: &impl Serialize,
) -> Vec<u8> {
    let mut line = Vec::new();
    message::open_message(src, dest, &mut line);
    if let Err(error) = message::open_body(kind, fields, &mut line) {
        panic!("{error}");
    }
    let id = MsgId(i64::try_from(operation.0).unwrap_or(i64::MAX));
    message::close_message(None, Some(id), &mut line);
    line
}
