//! The open send sessions and their connections. A session is open on one connection
//! at a time: a later `hello` closes the earlier connection, and waits until that is
//! gone and its requests in flight are decided.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{Code, SessionToken};
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use super::Fault;
use super::shutdown::{Shutdown, ShutdownSignal};
use crate::store::Store;
use crate::sync::Mutex;

/// The open send sessions of this server. At most one for each connection.
#[derive(Debug)]
pub(super) struct SendSessions {
    store: Arc<dyn Store>,
    // Locked because a session is released where its connection is dropped. Held for one
    // operation on the map.
    open: Mutex<HashMap<SessionToken, SessionHolder>>,
}

/// The connection that has a session open.
#[derive(Debug)]
struct SessionHolder {
    shutdown: Arc<ShutdownSignal>,
    /// Notified when the session is released.
    released: Arc<Notify>,
}

/// A send session that is open on a connection, released when it is dropped.
#[derive(Debug)]
pub(super) struct OpenSession {
    token: SessionToken,
    sessions: Arc<SendSessions>,
    /// Whether the store counts the session as open.
    is_stored: bool,
    released: Arc<Notify>,
}

impl SendSessions {
    /// Returns an empty table.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            open: Mutex::default(),
        }
    }

    /// Opens a session for the connection that has the signal `shutdown` and belongs to
    /// the network `from`. Closes the connection that holds the session and waits for
    /// its end.
    ///
    /// # Errors
    /// [`Code::TooMany`] if the store has no room for another session.
    pub(super) async fn open(
        self: &Arc<Self>,
        token: SessionToken,
        from: Option<IpAddr>,
        shutdown: Arc<ShutdownSignal>,
    ) -> Result<OpenSession, Fault> {
        let mut session = loop {
            match self.claim(&token, &shutdown) {
                Ok(session) => break session,
                Err(released) => released.await,
            }
        };
        // Set before the answer, so that a caller that is dropped meanwhile closes it.
        session.is_stored = true;
        let opened = self.store.open_session(&token, from).await;
        session.is_stored = opened == Ok(true);
        if !opened? {
            return Fault::refused(
                Code::TooMany,
                "too many sessions on this server, or from your address; try again later",
            );
        }
        self.store
            .on_takeover(&token, Box::new(move || shutdown.request(Shutdown::Close)));
        Ok(session)
    }

    /// Claims the session if it is free. Otherwise closes the connection that holds it,
    /// and returns the notification to wait for.
    fn claim(
        self: &Arc<Self>,
        token: &SessionToken,
        shutdown: &Arc<ShutdownSignal>,
    ) -> Result<OpenSession, OwnedNotified> {
        let mut open = self.open.lock();
        if let Some(holder) = open.get(token) {
            holder.shutdown.request(Shutdown::Close);
            // It is notified of every release from here on.
            return Err(Arc::clone(&holder.released).notified_owned());
        }
        let released = Arc::<Notify>::default();
        open.insert(
            token.clone(),
            SessionHolder {
                shutdown: Arc::clone(shutdown),
                released: Arc::clone(&released),
            },
        );
        Ok(OpenSession {
            token: token.clone(),
            sessions: Arc::clone(self),
            is_stored: false,
            released,
        })
    }
}

impl OpenSession {
    /// Returns the session's token.
    #[must_use]
    pub(super) const fn token(&self) -> &SessionToken {
        &self.token
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if self.is_stored {
            self.sessions.store.close_session(&self.token);
        }
        self.sessions.open.lock().remove(&self.token);
        self.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::poll;

    use super::*;
    use crate::store::{Completer, Operation, Unavailable};

    /// A store that counts sessions, and leaves the outcome of each `open_session` to
    /// the test.
    #[derive(Debug, Default)]
    struct Counting {
        asked: Mutex<Vec<Completer<bool>>>,
        closed: AtomicUsize,
    }

    impl Store for Counting {
        fn submit(&self, operation: Operation) {
            match operation {
                Operation::OpenSession(_, _, completer) => self.asked.lock().push(completer),
                Operation::CloseSession(_) => {
                    self.closed.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
        }

        fn is_available(&self) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn dropped_hello_closes_its_session_in_the_store() {
        let store = Arc::<Counting>::default();
        let sessions = Arc::new(SendSessions::new(Arc::clone(&store) as Arc<dyn Store>));
        let open = || sessions.open("session".parse().unwrap(), None, Arc::default());
        let mut dropped = Box::pin(open());
        assert!(poll!(&mut dropped).is_pending());
        drop(dropped);
        assert_eq!(
            store.closed.load(Ordering::Relaxed),
            1,
            "the store counts the session as open"
        );

        for (decided, closed) in [(Ok(true), 2), (Ok(false), 2), (Err(Unavailable), 2)] {
            let mut opening = Box::pin(open());
            assert!(poll!(&mut opening).is_pending());
            store.asked.lock().pop().unwrap().complete(decided);
            drop(opening.await);
            assert_eq!(
                store.closed.load(Ordering::Relaxed),
                closed,
                "after {decided:?}"
            );
        }
    }
}
