//! The signal that ends a connection from outside: set by a server that is stopping, by
//! an administrator, or by the connection that takes over its send session. It also has what
//! an administrator sees of the connection: its users and its use.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use hark_protocol::UserName;

use crate::metrics::Counts;
use crate::sync::Mutex;

/// The maximum number of users that are known of a connection with many calls.
const USERS_MAX: usize = 16;

/// The shutdown signal of a connection, shared by its tasks and by those that may end
/// it.
#[derive(Debug, Default)]
pub struct ShutdownSignal {
    /// A [`Shutdown`], or 0.
    requested: AtomicU8,
    waker: AtomicWaker,
    close_waker: AtomicWaker,
    epoch: u64,
    /// The current user, or the latest users of a connection with many calls.
    // Locked because an administrator may list it. Held to copy the names.
    users: Mutex<Vec<UserName>>,
    /// The connection that carries this one, a call.
    carrier: Option<Arc<Self>>,
    requests: AtomicU64,
    sent_bytes: AtomicU64,
    deliveries: AtomicU64,
}

/// The use that a connection has made of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConnectionUse {
    /// Requests.
    pub requests: u64,
    /// Bytes of texts in requests to send.
    pub sent_bytes: u64,
    /// Messages that were pushed.
    pub deliveries: u64,
}

impl ConnectionUse {
    /// Returns the use since an earlier one.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(earlier.requests),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
            deliveries: self.deliveries.saturating_sub(earlier.deliveries),
        }
    }

    /// Returns the sum of two.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            sent_bytes: self.sent_bytes.saturating_add(other.sent_bytes),
            deliveries: self.deliveries.saturating_add(other.deliveries),
        }
    }
}

/// The way in which a connection is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Shutdown {
    /// Answer the requests in flight, send `bye shutdown`, and close.
    Drain = 1,
    /// Close now. Operations that the store has accepted continue.
    Close = 2,
}

impl ShutdownSignal {
    /// Returns the signal of a connection that was accepted in this epoch: see
    /// [`Store::epoch`](crate::store::Store::epoch).
    #[must_use]
    pub fn of_epoch(epoch: u64) -> Self {
        Self {
            epoch,
            ..Self::default()
        }
    }

    /// Returns the signal of a call on a connection.
    #[must_use]
    pub fn of_call(connection: &Arc<Self>) -> Self {
        Self {
            epoch: connection.epoch,
            carrier: Some(Arc::clone(connection)),
            ..Self::default()
        }
    }

    /// Returns the current user, or the latest users of a connection with many calls.
    #[must_use]
    pub fn users(&self) -> Vec<UserName> {
        self.users.lock().clone()
    }

    /// Sets the current user.
    pub(super) fn set_user(&self, user: Option<&UserName>) {
        match (&self.carrier, user) {
            (None, user) => *self.users.lock() = user.cloned().into_iter().collect(),
            (Some(connection), Some(user)) => connection.add_user(user),
            (Some(_), None) => {}
        }
    }

    fn add_user(&self, user: &UserName) {
        let mut users = self.users.lock();
        users.retain(|other| other != user);
        if users.len() >= USERS_MAX {
            users.remove(0);
        }
        users.push(user.clone());
    }

    /// Adds to the use of the connection.
    pub(super) fn count(&self, counts: &Counts) {
        let connection = self.carrier.as_deref().unwrap_or(self);
        for (counter, count) in [
            (&connection.requests, u64::from(counts.requests)),
            (&connection.sent_bytes, counts.sent_bytes),
            (&connection.deliveries, u64::from(counts.deliveries)),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Returns the use that the connection has made of the server.
    #[must_use]
    pub fn usage(&self) -> ConnectionUse {
        ConnectionUse {
            requests: self.requests.load(Ordering::Relaxed),
            sent_bytes: self.sent_bytes.load(Ordering::Relaxed),
            deliveries: self.deliveries.load(Ordering::Relaxed),
        }
    }

    /// Returns the epoch of the connection.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Requests a shutdown. [`Shutdown::Close`] overrides [`Shutdown::Drain`].
    pub fn request(&self, shutdown: Shutdown) {
        self.requested.fetch_max(shutdown as u8, Ordering::AcqRel);
        self.waker.wake();
        self.close_waker.wake();
    }

    /// Ready once a shutdown is requested. Wakes the latest task that polled it.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Shutdown> {
        self.waker.register(cx.waker());
        match self.requested.load(Ordering::Acquire) {
            0 => Poll::Pending,
            1 => Poll::Ready(Shutdown::Drain),
            _ => Poll::Ready(Shutdown::Close),
        }
    }

    /// Returns whether a shutdown is requested.
    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire) != 0
    }

    /// Ready once [`Shutdown::Close`] is requested. For a second task, besides the one
    /// that calls [`Self::poll`].
    pub fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.close_waker.register(cx.waker());
        let is_closing = self.requested.load(Ordering::Acquire) == Shutdown::Close as u8;
        if is_closing {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
