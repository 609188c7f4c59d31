//! [`SendOrder`]: the sends of each connection with a session, over all shards. It knows
//! neither flows nor owners.
//!
//! A flow keeps the order of sends to one shard; sends to several shards are in flight at
//! the same time. If the outcome of one is unknown, no later one leaves, and the client
//! learns of it only when all that have left are decided or known to be undecided. So
//! nothing is stored any more after a client has learned that an earlier send may be lost.
//! Sends outside of a session, and those with ids in any order, are exempt.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::message::Request;
use super::{ConnectionId, ShardId, timing};

/// The unanswered sends of the connections with a session.
#[derive(Debug, Default)]
pub(super) struct SendOrder(BTreeMap<ConnectionId, Lane>);

/// The unanswered sends of a connection.
#[derive(Debug, Default)]
struct Lane {
    /// The sends that have left, in order, and when they left.
    in_flight: BTreeMap<u64, Duration>,
    /// Later sends, bounded by the budget of the chat.
    waiting: VecDeque<(SendTo, Duration)>,
    /// The sends with an unknown outcome, which the client does not know yet.
    undecided: Vec<u64>,
    /// The connection closes when all sends in flight are decided.
    is_closing: bool,
}

/// A send of a connection to a shard.
#[derive(Debug)]
pub(super) struct SendTo {
    pub(super) shard: ShardId,
    pub(super) request: u64,
    pub(super) content: Request,
}

impl SendOrder {
    /// Returns the send if it may leave now; otherwise keeps it, or drops it if the
    /// connection is closing.
    pub(super) fn submit(
        &mut self,
        connection: ConnectionId,
        send: SendTo,
        now: Duration,
    ) -> Option<SendTo> {
        if !is_ordered(&send.content) {
            return Some(send);
        }
        let lane = self.0.entry(connection).or_default();
        if !lane.is_closing {
            lane.waiting.push_back((send, now));
        }
        lane.next(now)
    }

    /// Handles the answer to a request, or that it will never leave. The caller then repeats
    /// [`Self::next`] until it returns no send.
    pub(super) fn answered(&mut self, connection: ConnectionId, request: u64) {
        if let Some(lane) = self.0.get_mut(&connection) {
            lane.in_flight.remove(&request);
        }
    }

    /// Returns the next send of a connection that may leave.
    pub(super) fn next(&mut self, connection: ConnectionId, now: Duration) -> Option<SendTo> {
        let lane = self.0.get_mut(&connection)?;
        let next = lane.next(now);
        if lane.in_flight.is_empty() && !lane.is_closing {
            self.0.remove(&connection);
        }
        next
    }

    /// Records that the outcome of a request is unknown. Returns whether that must be held
    /// back until [`Self::take_closed`].
    pub(super) fn is_undecided(&mut self, connection: ConnectionId, request: u64) -> bool {
        let Some(lane) = self.0.get_mut(&connection) else {
            return false;
        };
        let waiting = lane.waiting.iter();
        let waits = waiting
            .map(|(send, _)| send.request)
            .any(|of| of == request);
        let is_known = lane.in_flight.remove(&request).is_some() || waits;
        if is_known {
            lane.undecided.push(request);
        }
        is_known
    }

    /// Begins to close a connection. Returns false if it can close at once.
    pub(super) fn begin_close(&mut self, connection: ConnectionId) -> bool {
        let Some(lane) = self.0.get_mut(&connection) else {
            return false;
        };
        lane.waiting.clear();
        lane.is_closing = true;
        true
    }

    /// Takes the connections that can close now, with their undecided sends.
    pub(super) fn take_closed(&mut self) -> Vec<(ConnectionId, Vec<u64>)> {
        let is_closed = |lane: &Lane| {
            lane.is_closing && (lane.in_flight.is_empty() || is_planted(Bug::UnavailableAtOnce))
        };
        let closed = self.0.extract_if(.., |_, lane| is_closed(lane));
        closed
            .map(|(connection, lane)| (connection, lane.undecided))
            .collect()
    }

    /// Drops the sends of a connection.
    #[cfg(any(test, feature = "maelstrom"))]
    pub(super) fn drop_sends(&mut self, connection: ConnectionId) {
        self.0.remove(&connection);
    }

    /// Drops the sends of all connections.
    pub(super) fn drop_all_sends(&mut self) {
        self.0.clear();
    }

    /// Returns the sends that have waited for too long: at most one of a connection.
    pub(super) fn late(&self, now: Duration) -> Vec<(ConnectionId, u64)> {
        let late = self.0.iter().filter_map(|(connection, lane)| {
            let (send, since) = lane.waiting.front()?;
            (now.saturating_sub(*since) >= timing::COMMAND_DEADLINE)
                .then_some((*connection, send.request))
        });
        late.collect()
    }
}

impl Lane {
    /// Returns the next send, unless an earlier one is undecided, or has had no answer for
    /// so long that the wait for the later ones would be long, too.
    fn next(&mut self, now: Duration) -> Option<SendTo> {
        let oldest = self.in_flight.values().next();
        let is_slow = |since: &Duration| now.saturating_sub(*since) >= timing::SENDS_AHEAD_FOR;
        if self.is_closing || oldest.is_some_and(is_slow) {
            return None;
        }
        let (send, _) = self.waiting.pop_front()?;
        self.in_flight.insert(send.request, now);
        Some(send)
    }
}

fn is_ordered(request: &Request) -> bool {
    let Request::Send(send) = request else {
        return false;
    };
    send.send_id.as_ref().is_some_and(|id| id.in_order)
}

#[cfg(test)]
mod tests {
    use hark_protocol::RequestId;

    use super::*;
    use crate::store::{Append, SendId};

    const SECOND: Duration = Duration::from_secs(1);

    fn send(shard: ShardId, id: u32, in_order: bool) -> SendTo {
        let (session, request_id) = ("s".parse().unwrap(), RequestId::new(id).unwrap());
        let send = Append {
            to: "ann".parse().unwrap(),
            sender: None,
            allow_anonymous: true,
            time_ms: 1,
            text: "text".into(),
            send_id: Some(SendId {
                session,
                id: request_id,
                in_order,
                from: None,
            }),
            refusal: None,
        };
        SendTo {
            shard,
            request: id.into(),
            content: Request::Send(Box::new(send)),
        }
    }

    /// Submits sends with these ids. Returns the requests that leave at once.
    fn submit(order: &mut SendOrder, ids: &[u32], now: Duration) -> Vec<u64> {
        let left = ids
            .iter()
            .filter_map(|id| order.submit(7, send(*id, *id, true), now));
        left.map(|send| send.request).collect()
    }

    fn answered(order: &mut SendOrder, request: u64, now: Duration) -> Vec<u64> {
        order.answered(7, request);
        std::iter::from_fn(|| order.next(7, now))
            .map(|send| send.request)
            .collect()
    }

    #[test]
    fn sends_to_several_shards_leave_at_once() {
        let mut order = SendOrder::default();
        assert_eq!(submit(&mut order, &[1, 2, 3], SECOND), [1, 2, 3]);
        for request in [2, 1, 3] {
            assert!(answered(&mut order, request, SECOND).is_empty());
        }
        assert!(order.0.is_empty());
    }

    #[test]
    fn sends_wait_behind_a_slow_one() {
        let mut order = SendOrder::default();
        submit(&mut order, &[1, 2], SECOND);
        let later = SECOND + timing::SENDS_AHEAD_FOR;
        assert!(submit(&mut order, &[3, 4], later).is_empty());
        assert!(answered(&mut order, 2, later).is_empty());
        assert_eq!(answered(&mut order, 1, later), [3, 4]);
    }

    #[test]
    fn unknown_outcome_is_told_after_those_in_flight() {
        let mut order = SendOrder::default();
        submit(&mut order, &[1, 2, 3, 4], SECOND);
        assert!(order.is_undecided(7, 2));
        assert!(order.begin_close(7) && order.take_closed().is_empty());
        assert!(submit(&mut order, &[5], SECOND).is_empty(), "it is dropped");
        assert!(answered(&mut order, 3, SECOND).is_empty());
        assert!(order.is_undecided(7, 4) && order.take_closed().is_empty());
        order.answered(7, 1);
        assert_eq!(order.take_closed(), [(7, vec![2, 4])]);
        assert!(order.0.is_empty() && !order.begin_close(7));
    }

    #[test]
    fn send_with_ids_in_any_order_is_exempt() {
        let mut order = SendOrder::default();
        submit(&mut order, &[3], SECOND);
        order.begin_close(7);
        assert!(order.submit(7, send(4, 9, false), SECOND).is_some());
        assert!(!order.is_undecided(7, 9));
        assert!(
            order.submit(8, send(4, 9, true), SECOND).is_some(),
            "of another connection"
        );
    }

    #[test]
    fn waiting_send_has_a_deadline() {
        let mut order = SendOrder::default();
        submit(&mut order, &[1], Duration::ZERO);
        let waits_since = timing::SENDS_AHEAD_FOR;
        submit(&mut order, &[2, 3], waits_since);
        let deadline = waits_since + timing::COMMAND_DEADLINE;
        assert!(order.late(deadline - SECOND).is_empty());
        assert_eq!(order.late(deadline), [(7, 2)]);
        assert!(order.is_undecided(7, 2) && order.begin_close(7));
        assert!(order.late(deadline).is_empty());
    }
}
