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
use super::message::{Request, Send};
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
    pub(super) fn submit(&mut self, connection: ConnectionId, send: SendTo, now: Duration) -> Option<SendTo> {
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

    /// Handles the answer to a request. Returns the next send that may leave: the caller
    /// repeats the call of [`Self::next`] until there is none.
    pub(super) fn answered(&mut self, connection: ConnectionId, request: u64) {
        let Some(lane) = self.0.get_mut(&connection) else { return };
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
            (now.saturating_sub(*since) >= timing::COMMAND_DEADLINE).then_some((*connection, send.request))
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
    let Request::Send(send) = request else { return false };
    let Send { send_id, .. } = &**send;
    send_id.as_ref().is_some_and(|id| id.in_order)
}
