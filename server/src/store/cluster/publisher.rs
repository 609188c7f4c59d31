//! Publications to one stream that go together. The engine stores what comes as
//! one atomic batch in one step, on all its nodes and synced; what comes one by
//! one costs it a step each. So while a batch is under way to a stream, what
//! comes meanwhile waits and is the next, whatever inboxes it is for.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::time::sleep;

use super::engine::{BATCH_MESSAGES_MAX, Engine, Group, NotStored, Stored};

/// Bytes in one batch, at most, but at least one group.
const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// How long a batch waits for company, where the last one had some: whoever is
/// answered has often more.
const GATHERING: Duration = Duration::from_millis(1);

/// The way to one stream.
#[derive(Debug)]
pub(super) struct Publisher {
    // Unbounded: each task that publishes has one group under way.
    groups: mpsc::UnboundedSender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    group: Group,
    completer: oneshot::Sender<Result<Stored, NotStored>>,
}

impl Publisher {
    /// The way to a stream, and the work to be done for it, which ends with the
    /// publisher.
    pub(super) fn new(engine: Arc<Engine>) -> (Self, impl Future<Output = ()>) {
        let (groups, waiting) = mpsc::unbounded_channel();
        (Self { groups }, work(engine, waiting))
    }

    /// Stores the messages of a group one after the other, or none. Yields the
    /// number of the last, and whether it was there before, which is only said
    /// of a message that is alone in its group.
    pub(super) async fn publish(&self, group: Group) -> Result<Stored, NotStored> {
        let (completer, decided) = oneshot::channel();
        // Where the work has ended the store has, too.
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

/// Groups that go together.
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
            // It is unknown of all of them.
            Err(NotStored::Lost) => vec![Err(NotStored::Lost); groups.len()],
            Err(error) if groups.len() == 1 => vec![Err(error)],
            // One of them has kept it from all: each alone tells which.
            Err(_) => join_all(groups.iter().map(|group| engine.publish_group(group))).await,
        };
        for (completer, stored) in decides.into_iter().zip(stored) {
            if completer.send(stored).is_err() {
                tracing::trace!("whoever has published this has ended");
            }
        }
    }
}
