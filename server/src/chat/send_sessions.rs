//! Which connection has which send session open. A session is open on one
//! connection at a time: a later `hello` closes the earlier connection, and
//! waits until it is gone and what it had under way is decided.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hark_protocol::{Code, SessionToken};
use tokio::sync::watch;

use super::Fault;
use super::shutdown::{ShutdownSignal, Shutdown};
use crate::store::Store;

/// The open send sessions of this server. At most one for each connection.
#[derive(Debug)]
pub(super) struct SendSessions {
    store: Arc<dyn Store>,
    // A lock, since a session is given back where its connection is dropped.
    // It is held for one operation on the map.
    open: Mutex<HashMap<SessionToken, Holder>>,
}

#[derive(Debug)]
struct Holder {
    shutdown: Arc<ShutdownSignal>,
    /// Closed when the session is given back.
    released: watch::Receiver<()>,
}

/// A send session that is open on a connection. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct OpenSession {
    token: SessionToken,
    sessions: Arc<SendSessions>,
    stored: bool,
    _release: watch::Sender<()>,
}

impl SendSessions {
    /// None are open.
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store, open: Mutex::default() }
    }

    /// Opens a session for the connection that listens to `shutdown` and comes
    /// `from` this network, after the connection that has it open has ended.
    ///
    /// # Errors
    /// [`Code::TooMany`] where the store has no room for another session.
    pub(super) async fn open(
        self: &Arc<Self>,
        token: SessionToken,
        from: Option<IpAddr>,
        shutdown: Arc<ShutdownSignal>,
    ) -> Result<OpenSession, Fault> {
        let mut session = loop {
            match self.claim(&token, &shutdown) {
                Ok(session) => break session,
                // An error means that the other side is gone: what is waited for.
                Err(mut released) => while released.changed().await.is_ok() {},
            }
        };
        // Before the answer: whoever goes away while waiting has asked for it.
        session.stored = true;
        let opened = self.store.open_session(&token, from).await;
        session.stored = opened == Ok(true);
        if !opened? {
            return Fault::refused(
                Code::TooMany,
                "the server has no room for another session, or none from your address; try again later",
            );
        }
        Ok(session)
    }

    /// Takes the session if it is free; otherwise ends who has it, and yields
    /// what to wait for.
    fn claim(
        self: &Arc<Self>,
        token: &SessionToken,
        shutdown: &Arc<ShutdownSignal>,
    ) -> Result<OpenSession, watch::Receiver<()>> {
        let mut open = self.lock();
        if let Some(holder) = open.get(token) {
            holder.shutdown.request(Shutdown::Close);
            return Err(holder.released.clone());
        }
        let (release, released) = watch::channel(());
        open.insert(token.clone(), Holder { shutdown: Arc::clone(shutdown), released });
        Ok(OpenSession { token: token.clone(), sessions: Arc::clone(self), stored: false, _release: release })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionToken, Holder>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenSession {
    /// The session.
    #[must_use]
    pub(super) const fn token(&self) -> &SessionToken {
        &self.token
    }
}

impl Drop for OpenSession {
    fn drop(&mut self) {
        if self.stored {
            self.sessions.store.close_session(&self.token);
        }
        self.sessions.lock().remove(&self.token);
        // `_release` is dropped after this, and wakes whoever waits.
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::poll;
    use hark_protocol::UserName;

    use super::*;
    use crate::store::{
        Account, AccountEntry, Append, Completer, Created, Outcome, Page, PasswordHash, Pending, Position,
        ReadLimit, Subscription, Unavailable,
    };

    /// Counts sessions, and leaves each `open_session` to be decided.
    #[derive(Debug, Default)]
    struct Counting {
        asked: Mutex<Vec<Completer<bool>>>,
        closed: AtomicUsize,
    }

    impl Store for Counting {
        fn open_session(&self, _: &SessionToken, _: Option<IpAddr>) -> Pending<bool> {
            let (completer, pending) = Pending::new();
            self.asked.lock().unwrap().push(completer);
            pending
        }

        fn close_session(&self, _: &SessionToken) {
            self.closed.fetch_add(1, Ordering::Relaxed);
        }

        fn create(&self, _: &UserName, _: Option<PasswordHash>) -> Pending<Created> {
            Pending::ready(Err(Unavailable))
        }

        fn account(&self, _: &UserName) -> Pending<Option<AccountEntry>> {
            Pending::ready(Err(Unavailable))
        }

        fn set_password(&self, _: &Account, _: Option<PasswordHash>, _: PasswordHash) -> Pending<bool> {
            Pending::ready(Err(Unavailable))
        }

        fn delete(&self, _: &Account) -> Pending<bool> {
            Pending::ready(Err(Unavailable))
        }

        fn names(&self, _: Option<&UserName>, _: usize) -> Pending<Vec<UserName>> {
            Pending::ready(Err(Unavailable))
        }

        fn append_all(&self, appends: &mut Vec<(Append, Completer<Outcome>)>) {
            appends.clear();
        }

        fn receive(&self, _: &Account) -> Pending<Option<Subscription>> {
            Pending::ready(Err(Unavailable))
        }

        fn receive_if_free(&self, _: &Account) -> Pending<Option<Subscription>> {
            Pending::ready(Err(Unavailable))
        }

        fn read(&self, _: &Account, _: Position, _: ReadLimit) -> Pending<Page> {
            Pending::ready(Err(Unavailable))
        }

        fn acknowledge(&self, _: &Account, _: Position) {}

        fn is_available(&self) -> bool {
            false
        }

        fn close(&self) -> Pending<()> {
            Pending::ready(Err(Unavailable))
        }
    }

    #[tokio::test]
    async fn a_hello_that_is_cut_short_gives_the_session_back_to_the_store() {
        let store = Arc::<Counting>::default();
        let sessions = Arc::new(SendSessions::new(Arc::clone(&store) as Arc<dyn Store>));
        let open = || sessions.open("session".parse().unwrap(), None, Arc::default());
        let mut cut_short = Box::pin(open());
        assert!(poll!(&mut cut_short).is_pending());
        drop(cut_short);
        assert_eq!(store.closed.load(Ordering::Relaxed), 1, "the store counts what it was asked for");

        for (decided, closed) in [(Ok(true), 2), (Ok(false), 2), (Err(Unavailable), 2)] {
            let mut opening = Box::pin(open());
            assert!(poll!(&mut opening).is_pending());
            store.asked.lock().unwrap().pop().unwrap().complete(decided);
            drop(opening.await);
            assert_eq!(store.closed.load(Ordering::Relaxed), closed, "after {decided:?}");
        }
    }
}
