//! The sends of a connection: their session, their fence, and the burst that is passed
//! to the store in one call.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{RequestId, SessionToken};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::chat::send_sessions::OpenSession;
use crate::chat::{ROOM_UNITS, UNIT_BYTES, now_ms};
use crate::store::{Append, Completer, Fence, Outcome, Pending, PendingBurst, SendId, Store};

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
    /// Whether a send of the session is undecided. The client repeats it and all later
    /// ones, whatever their outcome.
    is_undecided: bool,
    /// The size of the last burst.
    last_burst: u32,
    /// The current burst.
    burst: Option<Box<Burst>>,
}

/// The sends that are passed to the store in one call.
#[derive(Default)]
struct Burst {
    sends: Vec<(Append, Completer<Outcome>)>,
    outcomes: PendingBurst<Outcome>,
    /// Its share of the budget, without those of messages that have their own.
    room: Option<OwnedSemaphorePermit>,
    /// Units of the share that no message has taken.
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

    /// Returns whether a send of the session is undecided.
    pub(super) const fn is_undecided(&self) -> bool {
        self.is_undecided
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
        last.map_or_else(now_ms, |(send, _)| send.time_ms)
    }

    /// Returns the fence of a connection that was accepted in this epoch.
    pub(super) fn fence(&mut self, epoch: u64) -> Fence {
        self.fence.get_or_insert_with(|| Fence::new(epoch)).clone()
    }

    /// Takes a share of the budget for a text of the burst. Returns whether there was
    /// enough. All threads share the budget: a connection of large bursts takes units for
    /// several texts at once.
    pub(super) fn take_room(&mut self, budget: &Arc<Semaphore>, text: &str) -> bool {
        let (units, step) = (units(text), self.last_burst.min(STEP_UNITS_MAX));
        let burst = self.burst.get_or_insert_default();
        let missing = units.saturating_sub(burst.unused_units);
        if missing > 0 {
            let take = |units| Arc::clone(budget).try_acquire_many_owned(units);
            let Ok(room) = take(missing.max(step)).or_else(|_| take(missing)) else {
                return false;
            };
            burst.unused_units += room.num_permits() as u32;
            match &mut burst.room {
                Some(held) => held.merge(room),
                None => burst.room = Some(room),
            }
        }
        burst.unused_units -= units;
        true
    }

    /// Adds a message that has its share of the budget to the burst.
    pub(super) fn push(&mut self, append: Append) -> Pending<Outcome> {
        let burst = self.burst.get_or_insert_default();
        let (completer, outcome) = burst.outcomes.next_outcome();
        if burst.sends.is_empty() {
            burst
                .sends
                .reserve(self.last_burst.max(BURST_SENDS) as usize);
        }
        burst.sends.push((append, completer));
        outcome
    }

    /// Passes the burst to the store. Its messages share a permit, which is released when
    /// all of them are decided.
    pub(super) fn flush(&mut self, store: &dyn Store) {
        let Some(burst) = self.burst.take() else {
            return;
        };
        let Burst {
            mut sends, room, ..
        } = *burst;
        if let Some(room) = room.map(Arc::new) {
            for (append, _) in &mut sends {
                append.permit.get_or_insert_with(|| Arc::clone(&room));
            }
        }
        self.last_burst = sends.len() as u32;
        if !sends.is_empty() {
            store.append_all(&mut sends);
        }
    }

    /// Closes the fence after an undecided send of a session, so that no later send
    /// overtakes its repeat. Returns whether there is a session.
    pub(super) fn fence_off(&mut self) -> bool {
        if self.session.is_some() {
            self.is_undecided = true;
            self.fence.get_or_insert_default().close();
        }
        self.is_undecided
    }
}

/// Returns the units of the budget that a text takes.
pub(super) fn units(text: &str) -> u32 {
    u32::try_from((1 + text.len() / UNIT_BYTES).min(ROOM_UNITS)).unwrap_or(u32::MAX)
}
