//! [`FanOut`]: the tasks that wake the members of rooms with new messages, so that the
//! commit thread does no work for each member.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::ring::{Ring, shares};
use crate::sync::Mutex;

/// The maximum number of slots of members that the caller itself looks at.
const DIRECT_MAX: usize = 16;

/// The number of slots that a task looks at before it lets other tasks run.
const CHUNK: usize = 256;

/// Tasks that wake members: one for each share of the rings.
#[derive(Debug)]
pub(crate) struct FanOut {
    queues: Box<[Arc<ShareQueue>]>,
    /// `None` until there is a runtime.
    // A lock, because any thread may start them. It is held for the start.
    tasks: Mutex<Option<JoinSet<()>>>,
}

/// The rings whose members are to be woken. Each ring is in it at most once.
#[derive(Debug, Default)]
struct ShareQueue {
    // A lock, because the commit thread adds rings. It is held for one change.
    rings: Mutex<Vec<Arc<Ring>>>,
    arrived: Notify,
}

impl FanOut {
    /// Starts the tasks on the current runtime, if there is one and they are not started.
    /// They end when this is dropped.
    pub(crate) fn start(&self) {
        let Ok(runtime) = Handle::try_current() else {
            return;
        };
        self.tasks.lock().get_or_insert_with(|| {
            let mut tasks = JoinSet::new();
            for (share, queue) in self.queues.iter().enumerate() {
                tasks.spawn_on(Arc::clone(queue).run(share), &runtime);
            }
            tasks
        });
    }

    /// Wakes the members of a ring, or lets the tasks do it if there are many.
    pub(crate) fn wake(&self, ring: &Arc<Ring>) {
        let is_small = ring.slots() <= DIRECT_MAX;
        if is_small || self.tasks.lock().is_none() {
            for share in 0..shares() {
                ring.wake_share(share, 0, usize::MAX);
            }
            return;
        }
        for share in ring.queue_shares() {
            if let Some(queue) = self.queues.get(share) {
                queue.rings.lock().push(Arc::clone(ring));
                queue.arrived.notify_one();
            }
        }
    }
}

impl Default for FanOut {
    fn default() -> Self {
        Self {
            queues: (0..shares()).map(|_| Arc::default()).collect(),
            tasks: Mutex::new(None),
        }
    }
}

impl ShareQueue {
    async fn run(self: Arc<Self>, share: usize) {
        loop {
            self.arrived.notified().await;
            let rings = std::mem::take(&mut *self.rings.lock());
            for ring in rings {
                // Messages from here on queue the ring again.
                ring.begin_share(share);
                let mut from = Some(0);
                while let Some(at) = from {
                    from = ring.wake_share(share, at, CHUNK);
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
