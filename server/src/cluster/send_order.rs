//! [`SendOrder`]: the order of a connection's sends over all shards. It knows neither
//! flows nor owners.
//!
//! A flow keeps the order of sends to one shard. So the sends of a session are in flight
//! to one shard at a time: a send to another shard leaves when all earlier ones are
//! answered. If one becomes unavailable, the later ones have not left, or follow it in
//! the same flow. Sends outside of a session, and those with ids in any order, are
//! exempt.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::message::Request;
use super::{ConnectionId, ShardId, timing};

/// The unanswered sends of the connections with a session.
#[derive(Debug, Default)]
pub(super) struct SendOrder(BTreeMap<ConnectionId, Lane>);

/// The unanswered sends of a connection, in order.
#[derive(Debug)]
struct Lane {
    /// The shard of the sends in flight.
    shard: ShardId,
    in_flight: VecDeque<u64>,
    /// Later sends, bounded by the budget of the chat.
    waiting: VecDeque<(SendTo, Duration)>,
}

/// A send of a connection to a shard.
#[derive(Debug)]
pub(super) struct SendTo {
    pub(super) shard: ShardId,
    pub(super) request: u64,
    pub(super) content: Request,
}

impl SendOrder {
    /// Returns the send if it may leave now; otherwise keeps it.
    pub(super) fn submit(
        &mut self,
        connection: ConnectionId,
        send: SendTo,
        now: Duration,
    ) -> Option<SendTo> {
        if !is_ordered(&send.content) || is_planted(Bug::SendsOvertake) {
            return Some(send);
        }
        let shard = send.shard;
        let lane = self.0.entry(connection).or_insert_with(|| Lane {
            shard,
            in_flight: VecDeque::new(),
            waiting: VecDeque::new(),
        });
        lane.waiting.push_back((send, now));
        lane.next()
    }

    /// Handles the answer to a request. The caller then repeats [`Self::next`] until it
    /// returns no send.
    pub(super) fn answered(&mut self, connection: ConnectionId, request: u64) {
        let Some(lane) = self.0.get_mut(&connection) else {
            return;
        };
        if let Some(at) = lane.in_flight.iter().position(|of| *of == request) {
            lane.in_flight.remove(at);
        }
    }

    /// Returns the next send of a connection that may leave.
    pub(super) fn next(&mut self, connection: ConnectionId) -> Option<SendTo> {
        let lane = self.0.get_mut(&connection)?;
        let next = lane.next();
        if lane.in_flight.is_empty() {
            self.0.remove(&connection);
        }
        next
    }

    /// Drops the sends of a connection.
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
    fn next(&mut self) -> Option<SendTo> {
        let may_leave =
            |next: &mut (SendTo, Duration)| next.0.shard == self.shard || self.in_flight.is_empty();
        let (send, _) = self.waiting.pop_front_if(may_leave)?;
        self.shard = send.shard;
        self.in_flight.push_back(send.request);
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

    /// Submits sends to these shards. Returns the requests that leave at once.
    fn submit(order: &mut SendOrder, shards: &[ShardId]) -> Vec<u64> {
        let sends = (1..).zip(shards);
        let left =
            sends.filter_map(|(id, shard)| order.submit(7, send(*shard, id, true), Duration::ZERO));
        left.map(|send| send.request).collect()
    }

    fn answered(order: &mut SendOrder, request: u64) -> Vec<u64> {
        order.answered(7, request);
        std::iter::from_fn(|| order.next(7))
            .map(|send| send.request)
            .collect()
    }

    #[test]
    fn send_to_another_shard_waits_for_earlier_ones() {
        let mut order = SendOrder::default();
        assert_eq!(submit(&mut order, &[3, 3, 4, 4, 3]), [1, 2]);
        assert!(answered(&mut order, 2).is_empty());
        assert_eq!(answered(&mut order, 1), [3, 4]);
        assert!(answered(&mut order, 3).is_empty());
        assert_eq!(answered(&mut order, 4), [5]);
        assert!(answered(&mut order, 5).is_empty() && order.0.is_empty());
    }

    #[test]
    fn send_with_ids_in_any_order_is_exempt() {
        let mut order = SendOrder::default();
        submit(&mut order, &[3]);
        assert!(order.submit(7, send(4, 9, false), Duration::ZERO).is_some());
        assert!(
            order.submit(8, send(4, 9, true), Duration::ZERO).is_some(),
            "of another connection"
        );
    }

    #[test]
    fn waiting_send_has_a_deadline() {
        let mut order = SendOrder::default();
        submit(&mut order, &[3, 4, 4]);
        assert!(
            order
                .late(timing::COMMAND_DEADLINE - Duration::from_secs(1))
                .is_empty()
        );
        assert_eq!(order.late(timing::COMMAND_DEADLINE), [(7, 2)]);
        order.drop_sends(7);
        assert!(order.late(timing::COMMAND_DEADLINE).is_empty());
    }
}
