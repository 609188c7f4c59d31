//! Which connection has which send session open. A session is open on one
//! connection at a time: a later `hello` closes the earlier connection, and
//! waits until it is gone and what it had under way is decided.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hark_protocol::{Code, SessionToken};
use tokio::sync::watch;

use super::Fault;
use super::control::{Control, Wish};
use crate::store::Store;

/// The open send sessions of this server. No more than there are connections.
#[derive(Debug)]
pub struct SendSessions {
    store: Arc<dyn Store>,
    // A lock, since a session is given back where its connection is dropped.
    // It is held for one operation on the map.
    open: Mutex<HashMap<SessionToken, Holder>>,
}

#[derive(Debug)]
struct Holder {
    control: Arc<Control>,
    /// Closed when the session is given back.
    released: watch::Receiver<()>,
}

/// A send session that is open on a connection. Dropping it gives it back.
#[derive(Debug)]
pub struct OpenSession {
    token: SessionToken,
    sessions: Arc<SendSessions>,
    stored: bool,
    _release: watch::Sender<()>,
}

impl SendSessions {
    /// None are open.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, open: Mutex::default() }
    }

    /// Opens a session for the connection that listens to `control`, after the
    /// connection that has it open has ended.
    ///
    /// # Errors
    /// [`Code::TooMany`] where the store has no room for another session.
    pub async fn open(
        self: &Arc<Self>,
        token: SessionToken,
        control: Arc<Control>,
    ) -> Result<OpenSession, Fault> {
        let mut session = loop {
            match self.claim(&token, &control) {
                Ok(session) => break session,
                // An error means that the other side is gone: what is waited for.
                Err(mut released) => while released.changed().await.is_ok() {},
            }
        };
        if !self.store.open_session(&token).await? {
            return Fault::refused(
                Code::TooMany,
                "the server has no room for another session; try again later",
            );
        }
        session.stored = true;
        Ok(session)
    }

    /// Takes the session if it is free; otherwise ends who has it, and yields
    /// what to wait for.
    fn claim(
        self: &Arc<Self>,
        token: &SessionToken,
        control: &Arc<Control>,
    ) -> Result<OpenSession, watch::Receiver<()>> {
        let mut open = self.lock();
        if let Some(holder) = open.get(token) {
            holder.control.tell(Wish::Close);
            return Err(holder.released.clone());
        }
        let (release, released) = watch::channel(());
        open.insert(token.clone(), Holder { control: Arc::clone(control), released });
        Ok(OpenSession { token: token.clone(), sessions: Arc::clone(self), stored: false, _release: release })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionToken, Holder>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenSession {
    /// The session.
    #[must_use]
    pub const fn token(&self) -> &SessionToken {
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
