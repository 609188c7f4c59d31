//! Batching of publications to one stream. The engine stores an atomic batch in one
//! synced step on all its nodes, and single messages in a step each. While a batch is in
//! flight, publications to all inboxes of the stream collect in the next one.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::engine::{BATCH_MESSAGES_MAX, Engine, Group, NotStored, Stored};

/// Maximum bytes in one batch, which has at least one group.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The linger of a batch, applied only if the one before had several groups: a sender
/// that was just answered often sends again.
const GATHERING: Duration = Duration::from_millis(1);

/// A handle to publish to one stream.
#[derive(Debug)]
pub(super) struct Publisher {
    // Unbounded, but each publishing task has at most one group in flight.
    groups: mpsc::UnboundedSender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    group: Group,
    completer: oneshot::Sender<Result<Stored, NotStored>>,
}

impl Publisher {
    /// Returns a publisher and the future that does its work. The future ends when the
    /// publisher is dropped.
    pub(super) fn new(engine: Arc<Engine>) -> (Self, impl Future<Output = ()>) {
        let (groups, waiting) = mpsc::unbounded_channel();
        (Self { groups }, work(engine, waiting))
    }

    /// Stores the messages of a group in order, or none of them. Returns the sequence of
    /// the last one. `duplicate` is set only for a group of one message.
    pub(super) async fn publish(&self, group: Group) -> Result<Stored, NotStored> {
        let (completer, decided) = oneshot::channel();
        // If the worker has ended, so has the store, and `decided` fails.
        drop(self.groups.send(Waiting { group, completer }));
        decided.await.unwrap_or(Err(NotStored::Lost))
    }
}

async fn work(engine: Arc<Engine>, mut waiting: mpsc::UnboundedReceiver<Waiting>) {
    let mut next = None;
    let mut had_company = false;
    loop {
        let Some(first) = (match next.take() {
            Some(first) => Some(first),
            None => waiting.recv().await,
        }) else {
            return;
        };
        if had_company {
            sleep(GATHERING).await;
        }
        let mut batch = Batch::of(first);
        while let Ok(more) = waiting.try_recv() {
            if !batch.has_room_for(&more.group) {
                next = Some(more);
                break;
            }
            batch.push(more);
        }
        had_company = batch.groups.len() > 1;
        batch.publish(&engine).await;
    }
}

/// Groups published as one atomic batch.
#[derive(Debug)]
struct Batch {
    groups: Vec<Group>,
    decides: Vec<oneshot::Sender<Result<Stored, NotStored>>>,
    messages: usize,
    bytes: usize,
}

impl Batch {
    fn of(first: Waiting) -> Self {
        let mut batch = Self { groups: Vec::new(), decides: Vec::new(), messages: 0, bytes: 0 };
        batch.push(first);
        batch
    }

    fn has_room_for(&self, group: &Group) -> bool {
        self.messages + group.messages.len() <= BATCH_MESSAGES_MAX
            && self.bytes + group.bytes() <= BATCH_BYTES_MAX
    }

    fn push(&mut self, Waiting { group, completer }: Waiting) {
        self.messages += group.messages.len();
        self.bytes += group.bytes();
        self.groups.push(group);
        self.decides.push(completer);
    }

    async fn publish(self, engine: &Engine) {
        let Self { groups, decides, .. } = self;
        let stored = match engine.publish_groups(&groups).await {
            Ok(stored) => stored.into_iter().map(Ok).collect(),
            // The outcome of all groups is unknown.
            Err(NotStored::Lost) => vec![Err(NotStored::Lost); groups.len()],
            Err(error) if groups.len() == 1 => vec![Err(error)],
            // One group made the batch fail; publishing each alone finds it.
            Err(_) => join_all(groups.iter().map(|group| engine.publish_group(group))).await,
        };
        for (completer, stored) in decides.into_iter().zip(stored) {
            if completer.send(stored).is_err() {
                tracing::trace!("publisher cancelled");
            }
        }
    }
}
