//! The signal that ends a connection from outside: set by a server that is stopping, by
//! an administrator, or by the connection that takes over its send session. It also names
//! the client of the connection, by which an administrator finds it, and its use of the
//! server.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;
use hark_protocol::UserName;

use crate::metrics::Counts;
use crate::sync::Mutex;

/// The number of ended calls that a connection may keep in its list.
const ENDED_CALLS_MAX: usize = 16;

/// The shutdown signal of a connection, shared by its tasks and by those that may end
/// it.
#[derive(Debug, Default)]
pub struct ShutdownSignal {
    /// A [`Shutdown`], or 0.
    requested: AtomicU8,
    waker: AtomicWaker,
    close_waker: AtomicWaker,
    epoch: u64,
    // Locked because an administrator may look it up. Held for one assignment or comparison.
    client: Mutex<Client>,
    // Locked because calls begin in tasks of their own. Held to look through them; the front
    // bounds the open calls.
    calls: Mutex<Vec<Weak<Self>>>,
    /// The use of a connection with its calls, which share it.
    used: Arc<Use>,
}

/// The client of a connection.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address; that behind a proxy, if one has named it.
    pub address: Option<IpAddr>,
    /// The user that it has logged in as.
    pub user: Option<UserName>,
}

#[derive(Debug, Default)]
struct Use {
    requests: AtomicU64,
    sent_bytes: AtomicU64,
    deliveries: AtomicU64,
    /// The client that logged in last.
    // Locked because calls are tasks of their own. Held for one assignment or copy.
    latest: Mutex<Client>,
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
    pub fn of_call(connection: &Self) -> Arc<Self> {
        let call = Arc::new(Self {
            used: Arc::clone(&connection.used),
            ..Self::of_epoch(connection.epoch)
        });
        let mut calls = connection.calls.lock();
        let open = calls.iter().filter(|call| call.strong_count() > 0).count();
        if calls.len() >= open + ENDED_CALLS_MAX {
            calls.retain(|call| call.strong_count() > 0);
        }
        calls.push(Arc::downgrade(&call));
        call
    }

    /// Returns the clients of the connection: its own, and those of its open calls.
    #[must_use]
    pub fn clients(&self) -> Vec<Client> {
        let own = self.client.lock().clone();
        let calls = self.open_calls();
        let of_calls = calls.iter().map(|call| call.client.lock().clone());
        std::iter::once(own).chain(of_calls).collect()
    }

    /// Closes the connection if its client is one of these, and otherwise its open calls with
    /// such a client. Returns the number of those that are closed.
    pub(crate) fn close_if(&self, is_meant: impl Fn(&Client) -> bool) -> usize {
        if is_meant(&self.client.lock()) {
            self.request(Shutdown::Close);
            return 1;
        }
        let mut calls = self.open_calls();
        calls.retain(|call| is_meant(&call.client.lock()));
        calls.iter().for_each(|call| call.request(Shutdown::Close));
        calls.len()
    }

    fn open_calls(&self) -> Vec<Arc<Self>> {
        self.calls.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Sets the address of the client.
    pub(crate) fn set_address(&self, address: IpAddr) {
        self.client.lock().address = Some(address);
    }

    /// Sets the current user.
    pub(super) fn set_user(&self, user: Option<&UserName>) {
        let mut client = self.client.lock();
        client.user = user.cloned();
        if user.is_some() {
            *self.used.latest.lock() = client.clone();
        }
    }

    /// Returns the client that logged in last on the connection or one of its calls.
    pub(crate) fn latest_client(&self) -> Client {
        self.used.latest.lock().clone()
    }

    /// Adds to the use of the connection.
    pub(super) fn count(&self, counts: &Counts) {
        for (counter, count) in [
            (&self.used.requests, u64::from(counts.requests)),
            (&self.used.sent_bytes, counts.sent_bytes),
            (&self.used.deliveries, u64::from(counts.deliveries)),
        ] {
            if count > 0 {
                counter.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Returns the use that the connection has made of the server.
    #[must_use]
    pub fn usage(&self) -> ConnectionUse {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ConnectionUse {
            requests: count(&self.used.requests),
            sent_bytes: count(&self.used.sent_bytes),
            deliveries: count(&self.used.deliveries),
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

    /// Returns whether [`Shutdown::Close`] is requested.
    pub(super) fn is_closing(&self) -> bool {
        self.requested.load(Ordering::Acquire) == Shutdown::Close as u8
    }

    /// Ready once [`Shutdown::Close`] is requested. For a second task, besides the one
    /// that calls [`Self::poll`].
    pub fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.close_waker.register(cx.waker());
        if self.is_closing() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_of_one_client_are_closed() {
        let connection = ShutdownSignal::default();
        connection.set_address([127, 0, 0, 1].into());
        let call = |user: &str| {
            let call = ShutdownSignal::of_call(&connection);
            call.set_user(Some(&user.parse().unwrap()));
            call
        };
        let bob = call("bob");
        let others: Vec<_> = (0..100).map(|n| call(&format!("user{n}"))).collect();
        (0..1000).for_each(|_| drop(call("bob")));
        assert_eq!(
            connection.latest_client().user,
            Some("bob".parse().unwrap())
        );
        let is_listed = connection.calls.lock().len() <= 101 + ENDED_CALLS_MAX;
        assert!(is_listed, "ended calls are forgotten");
        let is_bob = |client: &Client| client.user == Some("bob".parse().unwrap());
        assert_eq!(connection.close_if(is_bob), 1);
        assert!(bob.is_requested() && !connection.is_requested());
        assert!(!others.iter().any(|other| other.is_requested()));
        let is_local = |client: &Client| client.address.is_some();
        assert_eq!(connection.close_if(is_local), 1);
        assert!(connection.is_requested());
    }
}
