//! [`Connection`]: a connection of a client to the server of its node, without a network
//! between them; and [`Inbox`], the messages that were delivered over it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node};
use tokio::sync::{Notify, oneshot};

use super::server::{Connected, Server, step};
use crate::cluster::host::{Answered, Call, Input};
use crate::cluster::message::Answer;
use crate::store::Message;

/// Attempts of a call that may be repeated, and the pause before the next one.
const ATTEMPTS_MAX: u32 = 20;
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(200);

/// A connection to the server of the node. Dropping it hangs up.
#[derive(Debug)]
pub(super) struct Connection(Connected);

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    /// 11 if the server takes none.
    pub(super) fn open(node: &Node<Server>) -> Result<Self, Error> {
        let connected = node.state().connect()?;
        step(node, Input::Open(connected.id, 0));
        Ok(Self(connected))
    }

    /// Makes a call that has no answer.
    pub(super) fn tell(&self, node: &Node<Server>, call: Call) {
        step(node, Input::Call(self.0.id, 0, call));
    }

    /// Makes a call now. Resolves to its answer, or to `None` if the outcome is unknown; a
    /// connection with a change among such calls is closed.
    pub(super) fn call(
        &self,
        node: &Node<Server>,
        call: Call,
    ) -> impl Future<Output = Option<Answered>> + use<> {
        let (answer, answered) = oneshot::channel();
        let request = node.state().request(self.0.id, answer);
        if let Some(request) = request {
            step(node, Input::Call(self.0.id, request, call));
        }
        async {
            match answered.await {
                Ok(Answered::Unavailable) | Err(_) => None,
                Ok(answered) => Some(answered),
            }
        }
    }

    /// Returns the messages that were delivered.
    pub(super) fn inbox(&self) -> &Inbox {
        &self.0.inbox
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // Without a step: the node may have ended.
        self.0.dropped.borrow_mut().push(self.0.id);
    }
}

/// Makes a call that may be repeated, on connections of its own, until it is answered.
///
/// # Errors
/// 11 if there was no answer.
pub(super) async fn ask(node: &Node<Server>, call: &Call) -> Result<Answer, Error> {
    for _ in 0..ATTEMPTS_MAX {
        let connection = Connection::open(node)?;
        if let Some(Answered::Answer(answer)) = connection.call(node, call.clone()).await {
            return Ok(answer);
        }
        node.sleep(RETRY_AFTER).await;
    }
    Err(unavailable())
}

/// Returns the error of a request that has had no effect.
pub(super) fn unavailable() -> Error {
    Error::new(
        ErrorCode::TemporarilyUnavailable,
        "the servers are not available; try again",
    )
}

/// The messages of a reception that were delivered and not acknowledged. The delivery window
/// bounds their number and bytes.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    messages: RefCell<VecDeque<Arc<Message>>>,
    has_ended: Cell<bool>,
    changed: Notify,
}

impl Inbox {
    pub(super) fn push(&self, message: Arc<Message>) {
        self.messages.borrow_mut().push_back(message);
        self.changed.notify_waiters();
    }

    pub(super) fn end(&self) {
        self.has_ended.set(true);
        self.changed.notify_waiters();
    }

    /// Returns whether the reception has ended, or its connection is closed.
    pub(super) const fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Removes the messages up to a number.
    pub(super) fn acknowledge(&self, number: u64) {
        self.messages
            .borrow_mut()
            .retain(|message| message.position.sequence.0 > number);
    }

    /// Waits for a message above a number, or for the end. Returns the messages.
    pub(super) async fn after(&self, number: u64) -> Vec<Arc<Message>> {
        loop {
            let changed = self.changed.notified();
            let found = self.messages_after(number);
            if !found.is_empty() || self.has_ended() {
                return found;
            }
            changed.await;
        }
    }

    /// Returns the messages above a number.
    fn messages_after(&self, number: u64) -> Vec<Arc<Message>> {
        let messages = self.messages.borrow();
        messages
            .iter()
            .filter(|message| message.position.sequence.0 > number)
            .cloned()
            .collect()
    }
}
