//! The sends of a connection: their session, their fence, and the burst that is passed
//! to the store in one call.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hark_protocol::{RequestId, SessionToken, UserName};
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::chat::rate_limiter::Charged;
use crate::chat::send_sessions::OpenSession;
use crate::chat::{BUDGET_UNITS, Chat, UNIT_BYTES, now_ms};
use crate::store::{
    Append, Burst, Fence, Outcome, Pending, QueuedSend, SendId, Store, Unavailable,
};

/// The initial capacity of a burst.
const BURST_SENDS: usize = 8;

/// The sends of a connection.
#[derive(Default)]
pub(super) struct ConnectionSends {
    session: Option<Box<SendSession>>,
    /// The fence, from the first send on.
    fence: Option<Fence>,
    /// Whether a send of the session has an unknown outcome. The client repeats it and all
    /// later ones, whatever their outcome.
    has_unknown_outcome: bool,
    /// The current burst.
    burst: Vec<QueuedSend>,
}

/// The session of a connection's sends.
pub(super) enum SendSession {
    /// A session opened by `hello`: ids increase.
    Open(OpenSession),
    /// A session shared with other connections: ids come in any order.
    Shared(SessionToken),
}

impl ConnectionSends {
    /// Sends in this session from now on.
    pub(super) fn set_session(&mut self, session: SendSession) {
        self.session = Some(session.into());
    }

    /// Returns whether a send of the session has an unknown outcome.
    pub(super) const fn has_unknown_outcome(&self) -> bool {
        self.has_unknown_outcome
    }

    /// Returns the deduplication id of a request from `network`, if there is a session.
    pub(super) fn send_id(&self, id: Option<RequestId>, network: Option<IpAddr>) -> Option<SendId> {
        let (session, in_order) = match self.session.as_deref()? {
            SendSession::Open(session) => (session.token(), true),
            SendSession::Shared(session) => (session, false),
        };
        Some(SendId {
            session: session.clone(),
            id: id?,
            in_order,
            from: network,
        })
    }

    /// Returns the time of the next message, in milliseconds since 1970. A burst has one
    /// time.
    pub(super) fn time_ms(&self) -> u64 {
        self.burst
            .last()
            .map_or_else(now_ms, |send| send.append.time_ms)
    }

    /// Adds a message that has its permit to the burst.
    pub(super) fn push(
        &mut self,
        append: Append,
        permit: OwnedSemaphorePermit,
    ) -> Pending<Outcome> {
        let (send, outcome) = QueuedSend::new(append, Some(permit));
        if self.burst.is_empty() {
            self.burst.reserve(BURST_SENDS);
        }
        self.burst.push(send);
        outcome
    }

    /// Passes the burst of a connection that was accepted in this epoch to the store.
    pub(super) fn flush(&mut self, store: &dyn Store, epoch: u64) {
        let sends = std::mem::take(&mut self.burst);
        if !sends.is_empty() {
            let fence = self.fence.get_or_insert_with(|| Fence::new(epoch)).clone();
            store.append_all(Burst { fence, sends });
        }
    }

    /// Closes the fence after a send of a session whose outcome is unknown, so that no later send
    /// overtakes its repeat. Returns whether there is a session.
    pub(super) fn fence_off(&mut self) -> bool {
        if self.session.is_some() {
            self.has_unknown_outcome = true;
            self.fence.get_or_insert_default().close();
        }
        self.has_unknown_outcome
    }
}

/// The outcome of a send. When the message is stored, its deliveries are charged to its
/// sender, even if the connection has ended before.
pub(super) struct SentOutcome {
    outcome: Pending<Outcome>,
    /// The charge, until the outcome is known. Boxed, because few sends have one.
    charge: Option<Box<DeliveryCharge>>,
}

/// The charge of a message to a room.
pub(super) struct DeliveryCharge {
    pub(super) chat: Arc<Chat>,
    pub(super) sender: UserName,
    pub(super) is_exempt: bool,
    pub(super) room: UserName,
}

impl DeliveryCharge {
    fn settle(&self, outcome: &Result<Outcome, Unavailable>) {
        if let Ok(Outcome::Stored(_)) = outcome {
            let devices = self.chat.store.attached_devices(&self.room);
            let users = &self.chat.users;
            let charged = Charged {
                user: &self.sender,
                is_exempt: self.is_exempt,
            };
            users.charge_deliveries(charged, devices, Instant::now());
        }
    }
}

impl SentOutcome {
    pub(super) const fn new(
        outcome: Pending<Outcome>,
        charge: Option<Box<DeliveryCharge>>,
    ) -> Self {
        Self { outcome, charge }
    }
}

impl Future for SentOutcome {
    type Output = Result<Outcome, Unavailable>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(cx));
        if let Some(charge) = self.charge.take() {
            charge.settle(&outcome);
        }
        Poll::Ready(outcome)
    }
}

impl Drop for SentOutcome {
    fn drop(&mut self) {
        let Some(charge) = self.charge.take() else {
            return;
        };
        let outcome = std::mem::replace(&mut self.outcome, Pending::ready(Err(Unavailable)));
        // The task ends when the store has decided. Without a runtime, the server has ended.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { charge.settle(&outcome.await) });
        }
    }
}

/// Returns the units of the budget that a text takes.
pub(super) fn units(text: &str) -> u32 {
    u32::try_from((1 + text.len() / UNIT_BYTES).min(BUDGET_UNITS)).unwrap_or(u32::MAX)
}
