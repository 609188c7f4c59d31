//! The sends of a connection: their session, their fence, and the burst that is passed
//! to the store in one call.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{RequestId, SessionToken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chat::send_sessions::OpenSession;
use crate::chat::{BUDGET_UNITS, UNIT_BYTES, now_ms};
use crate::store::{
    Append, Burst, Fence, Outcome, Pending, PendingBurst, QueuedSend, SendId, Store,
};

/// The initial capacity of a burst.
const BURST_SENDS: u32 = 8;

/// The maximum units of the budget that are taken ahead.
const STEP_UNITS_MAX: u32 = 16;

/// The sends of a connection.
#[derive(Default)]
pub(super) struct ConnectionSends {
    session: Option<Box<SendSession>>,
    /// The fence, from the first send on.
    fence: Option<Fence>,
    /// Whether a send of the session has an unknown outcome. The client repeats it and all
    /// later ones, whatever their outcome.
    has_unknown_outcome: bool,
    /// The size of the last burst.
    last_burst: u32,
    /// The current burst.
    burst: Option<Box<OpenBurst>>,
}

/// The sends that are passed to the store in one call.
#[derive(Default)]
struct OpenBurst {
    sends: Vec<QueuedSend>,
    outcomes: PendingBurst<Outcome>,
    /// Its share of the budget, without those of sends that have their own.
    permit: Option<OwnedSemaphorePermit>,
    /// Units of the share that no send has taken.
    unused_units: u32,
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
        let last = self.burst.as_ref().and_then(|burst| burst.sends.last());
        last.map_or_else(now_ms, |send| send.append.time_ms)
    }

    /// Takes a share of the budget for a text of the burst. Returns whether there was
    /// enough. All threads share the budget: a connection of large bursts takes units for
    /// several texts at once.
    pub(super) fn take_budget(&mut self, budget: &Arc<Semaphore>, text: &str) -> bool {
        let (units, step) = (units(text), self.last_burst.min(STEP_UNITS_MAX));
        let burst = self.burst.get_or_insert_default();
        let missing = units.saturating_sub(burst.unused_units);
        if missing > 0 {
            let take = |units| Arc::clone(budget).try_acquire_many_owned(units);
            let Ok(permit) = take(missing.max(step)).or_else(|_| take(missing)) else {
                return false;
            };
            burst.unused_units += permit.num_permits() as u32;
            match &mut burst.permit {
                Some(held) => held.merge(permit),
                None => burst.permit = Some(permit),
            }
        }
        burst.unused_units -= units;
        true
    }

    /// Adds a message to the burst. Its share of the budget is `permit`, or in that of the
    /// burst.
    pub(super) fn push(
        &mut self,
        append: Append,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Pending<Outcome> {
        let burst = self.burst.get_or_insert_default();
        let (completer, outcome) = burst.outcomes.next_outcome();
        if burst.sends.is_empty() {
            let size = self.last_burst.max(BURST_SENDS);
            burst.sends.reserve(size as usize);
        }
        burst.sends.push(QueuedSend {
            append,
            permit: permit.map(Arc::new),
            completer,
        });
        outcome
    }

    /// Passes the burst of a connection that was accepted in this epoch to the store. Its
    /// sends share a permit, which is released when all of them are answered.
    pub(super) fn flush(&mut self, store: &dyn Store, epoch: u64) {
        let Some(burst) = self.burst.take() else {
            return;
        };
        let OpenBurst {
            mut sends, permit, ..
        } = *burst;
        self.last_burst = sends.len() as u32;
        if let Some(permit) = permit.map(Arc::new) {
            for send in &mut sends {
                send.permit.get_or_insert_with(|| Arc::clone(&permit));
            }
        }
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

/// Returns the units of the budget that a text takes.
pub(super) fn units(text: &str) -> u32 {
    u32::try_from((1 + text.len() / UNIT_BYTES).min(BUDGET_UNITS)).unwrap_or(u32::MAX)
}
