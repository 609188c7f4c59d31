//! Clients: the requests that a test sends, and what became of them.

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

/// Somebody outside who asks the nodes. Printed, it is its name, such as `c1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Client(usize);

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Party::Client(self.0).fmt(f)
    }
}

/// A request that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Operation(usize);

impl Cluster {
    /// Another client: `c1`, `c2` and so on.
    pub const fn client(&mut self) -> Client {
        self.operations.clients += 1;
        Client(self.operations.clients)
    }

    /// Sends a request now, to a node or a service, with a body of this type
    /// and these fields (`()` for none).
    ///
    /// # Panics
    /// Where the fields have no form in JSON or are no object.
    pub fn send(&mut self, client: Client, dest: &str, kind: &str, fields: &impl Serialize) -> Operation {
        let operation = self.operations.open(client, self.now());
        let line = line(&client.to_string(), dest, kind, operation, fields);
        self.request(operation, Party::Client(client.0), line.trim_ascii_end());
        operation
    }

    /// How a request has ended, if it has: with the reply's body as a type
    /// ([`Json`](crate::Json) takes any), or with an error as for [`Self::wait`].
    #[must_use]
    pub fn poll<R: DeserializeOwned>(&self, operation: Operation) -> Option<Result<R, Error>> {
        let (_, outcome) = self.operations.all.get(operation.0)?.end.as_ref()?;
        Some(outcome.clone().and_then(|body| {
            let unknown = |error| format!("the reply is not as expected: {error}: {}", body.text());
            body.parse().map_err(|error| Error::new(ErrorCode::Crash, unknown(error)))
        }))
    }

    /// Lets time pass until a request has ended.
    ///
    /// # Errors
    /// What the node replied; 0, where no reply came within
    /// [`CLIENT_TIMEOUT`](super::CLIENT_TIMEOUT) or what the builder was told;
    /// 13, where the reply is no `R`.
    ///
    /// # Panics
    /// At the bounds of events, time and journal.
    pub fn wait<R: DeserializeOwned>(&mut self, operation: Operation) -> Result<R, Error> {
        loop {
            if let Some(end) = self.poll(operation) {
                return end;
            }
            // Its timeout is planned, so that something happens.
            assert!(self.step(Duration::MAX), "an operation of another cluster is waited for");
        }
    }

    /// [`Self::send`], and [`Self::wait`].
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

    /// When a request was sent, and when it ended.
    #[must_use]
    pub fn span(&self, operation: Operation) -> Option<(Duration, Option<Duration>)> {
        let asked = self.operations.all.get(operation.0)?;
        Some((asked.sent_at, asked.end.as_ref().map(|(at, _)| *at)))
    }
}

/// All requests of clients. The number of one is its `msg_id`.
pub(super) struct Operations {
    /// Besides `c0`.
    pub(super) clients: usize,
    all: Vec<Asked>,
    pub(super) timeout: Duration,
}

struct Asked {
    client: Client,
    sent_at: Duration,
    end: Option<(Duration, Outcome)>,
}

impl Operations {
    pub(super) const fn new(timeout: Duration) -> Self {
        Self { clients: 0, all: Vec::new(), timeout }
    }

    fn open(&mut self, client: Client, now: Duration) -> Operation {
        self.all.push(Asked { client, sent_at: now, end: None });
        Operation(self.all.len() - 1)
    }

    /// The line that gives a node its name.
    pub(super) fn init_line(&mut self, now: Duration, node: &str, init: &impl Serialize) -> Vec<u8> {
        let client = Client(0);
        let operation = self.open(client, now);
        line(&client.to_string(), node, "init", operation, init)
    }

    /// A client gets a message. Only the first reply to a request counts, and
    /// only while it is waited for.
    pub(super) fn take(&mut self, client: Party, now: Duration, line: &[u8]) {
        let Ok(message) = message::parse(line) else { return };
        let number = message.in_reply_to.and_then(|id| usize::try_from(id.0).ok());
        let asked = number.and_then(|number| self.all.get_mut(number));
        if let Some(asked) = asked.filter(|asked| Party::Client(asked.client.0) == client) {
            asked.end.get_or_insert_with(|| (now, machine::outcome(&message)));
        }
    }

    pub(super) fn expire(&mut self, operation: Operation, now: Duration) {
        if let Some(asked) = self.all.get_mut(operation.0) {
            let error = || Error::new(ErrorCode::Timeout, "no reply came in time");
            asked.end.get_or_insert_with(|| (now, Err(error())));
        }
    }
}

#[expect(clippy::panic, reason = "a test that asks what cannot be written is wrong")]
fn line(src: &str, dest: &str, kind: &str, operation: Operation, fields: &impl Serialize) -> Vec<u8> {
    let mut line = Vec::new();
    message::open_message(src, dest, &mut line);
    if let Err(error) = message::open_body(kind, fields, &mut line) {
        panic!("{error}");
    }
    message::close_message(None, MsgId(i64::try_from(operation.0).unwrap_or(i64::MAX)), &mut line);
    line
}
