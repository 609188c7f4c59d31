//! [`Network`]: messages between the servers of a chat, on core NATS. It may lose
//! messages; the flows detect that.
//!
//! | subject | content |
//! | --- | --- |
//! | `CHAT.server.ID` | messages to one server |
//! | `CHAT.servers` | messages to all servers |

use std::pin::Pin;

use async_nats::{Client, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{Select, select};
use tokio::sync::mpsc;

use super::setup::OpenError;
use crate::cluster::ServerId;
use crate::cluster::codec;
use crate::cluster::message::Message;
use crate::ledger::Malformed;

/// Maximum messages that wait for the connection. Further messages are dropped,
/// and their flows end.
const OUTBOX_MAX: usize = 16_384;

/// The network of a server.
#[derive(Debug)]
pub(super) struct Network {
    client: Client,
    chat: String,
    server: ServerId,
    outbox: mpsc::Sender<(String, Bytes)>,
    received: Pin<Box<Select<Subscriber, Subscriber>>>,
}

impl Network {
    /// Joins the network of a chat under a new id.
    ///
    /// # Errors
    /// [`OpenError::Network`]
    pub(super) async fn join(client: Client, chat: &str) -> Result<Self, OpenError> {
        let server = ServerId(rand::random());
        let failed = |error: String| OpenError::Network { error };
        let subscribe = async |subject| client.subscribe(subject).await;
        let own = subscribe(subject(chat, server))
            .await
            .map_err(|error| failed(error.to_string()))?;
        let all = subscribe(everyone(chat))
            .await
            .map_err(|error| failed(error.to_string()))?;
        // No message is sent before the nodes know the subscriptions.
        client
            .flush()
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
        // Ends with the network.
        tokio::spawn(post(client.clone(), posted));
        Ok(Self {
            client,
            chat: chat.to_owned(),
            server,
            outbox,
            received: Box::pin(select(own, all)),
        })
    }

    /// Returns the id of this server.
    pub(super) const fn server(&self) -> ServerId {
        self.server
    }

    /// Sends a message to another server, or drops it.
    pub(super) fn send(&self, to: ServerId, message: &Message) {
        self.post(subject(&self.chat, to), message);
    }

    /// Sends a message to all other servers, or drops it.
    pub(super) fn broadcast(&self, message: &Message) {
        self.post(everyone(&self.chat), message);
    }

    fn post(&self, subject: String, message: &Message) {
        if self
            .outbox
            .try_send((subject, codec::encode(message)))
            .is_err()
        {
            tracing::debug!("message to another server dropped: outbox full");
        }
    }

    /// Returns the next message of another server. Cancel-safe.
    pub(super) async fn next(&mut self) -> Message {
        while let Some(received) = self.received.next().await {
            match codec::decode(received.payload) {
                Ok(Message::Heartbeat(_, claim) | Message::Released(_, claim, _))
                    if claim.id.server == self.server => {}
                Ok(message) => return message,
                Err(Malformed) => {
                    tracing::warn!(subject = %received.subject, "malformed message of another server ignored");
                }
            }
        }
        // The connection has ended permanently; the store is closing.
        std::future::pending().await
    }

    /// Waits until the sent messages have left.
    pub(super) async fn drain(&self) {
        while self.outbox.capacity() < self.outbox.max_capacity() {
            tokio::task::yield_now().await;
        }
        if let Err(error) = self.client.flush().await {
            tracing::debug!(%error, "flush failed");
        }
    }
}

fn subject(chat: &str, server: ServerId) -> String {
    format!("{chat}.server.{server}")
}

fn everyone(chat: &str) -> String {
    format!("{chat}.servers")
}

async fn post(client: Client, mut posted: mpsc::Receiver<(String, Bytes)>) {
    while let Some((subject, payload)) = posted.recv().await {
        if let Err(error) = client.publish(subject, payload).await {
            // As if the network had lost it.
            tracing::debug!(%error, "publish failed");
        }
    }
}
