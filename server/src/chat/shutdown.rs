//! How a connection is told to end by somebody else: by the server that stops,
//! or by the connection that has taken its send session.

use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

/// A connection's ear. Shared by its tasks and by whoever may end it.
#[derive(Debug, Default)]
pub struct ShutdownSignal {
    wish: AtomicU8,
    waker: AtomicWaker,
    close_waker: AtomicWaker,
}

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Shutdown {
    /// Answer what is under way, say `bye shutdown`, and end.
    Drain = 1,
    /// End now; what the store has taken on goes on.
    Close = 2,
}

impl ShutdownSignal {
    /// Tells the connection. What ends it sooner wins.
    pub fn tell(&self, wish: Shutdown) {
        self.wish.fetch_max(wish as u8, Ordering::AcqRel);
        self.waker.wake();
        self.close_waker.wake();
    }

    /// What the connection has been told, if anything; its task is woken when
    /// it is.
    pub fn poll(&self, cx: &mut Context<'_>) -> Poll<Shutdown> {
        self.waker.register(cx.waker());
        match self.wish.load(Ordering::Acquire) {
            0 => Poll::Pending,
            1 => Poll::Ready(Shutdown::Drain),
            _ => Poll::Ready(Shutdown::Close),
        }
    }

    /// Whether the connection has been told anything.
    pub(super) fn is_requested(&self) -> bool {
        self.wish.load(Ordering::Acquire) != 0
    }

    /// Ready once the connection has been told [`Shutdown::Close`]: for a second
    /// task, beside the one that calls [`Self::poll`].
    pub fn poll_close(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.close_waker.register(cx.waker());
        let told = self.wish.load(Ordering::Acquire) == Shutdown::Close as u8;
        if told { Poll::Ready(()) } else { Poll::Pending }
    }
}
