//! [`Flow`]: one end of a numbered flow between a server and a claim of a shard. It knows
//! neither commands nor deliveries.
//!
//! A flow carries packets over a lossy network. Each end accepts only the next number; a
//! missing packet ends the flow. Heartbeats carry the last number, so that the loss of
//! the last packet is detected as well. Packets are never retransmitted.
//!
//! Credit is the total number of bytes that may be sent since the flow began, so that
//! lost grants do no harm.

use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::entry::Claim;
use super::{ServerId, timing};

/// The id of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowId {
    /// The server at one end.
    pub(crate) server: ServerId,
    /// The claim at the other end.
    pub(crate) claim: Claim,
    /// The number of the flow within that server.
    pub(crate) number: u64,
}

/// One packet of a flow.
#[derive(Debug, Clone)]
pub(crate) struct Packet<T> {
    /// The number of this packet, or of the last packet with items if it has none.
    pub(crate) number: u64,
    /// The total bytes that the other end may send.
    pub(crate) credit: u64,
    /// The items; none in a heartbeat.
    pub(crate) items: Vec<T>,
    /// Bytes of the items.
    pub(crate) bytes: u64,
}

/// One end of a flow.
#[derive(Debug)]
pub(super) struct Flow {
    id: FlowId,
    /// The number of the last packet sent.
    sent: u64,
    sent_bytes: u64,
    /// The total bytes that may be sent.
    credit: u64,
    /// The number of the last packet received.
    taken: u64,
    /// The bytes of received packets that have been processed.
    processed_bytes: u64,
    heard_at: Duration,
    sent_at: Duration,
    window_bytes: u64,
    proof: Proof,
}

/// The time of a server, at an owner, at which that one was certainly the owner: an append
/// that was stored later on was built after a packet that the server sent at that time.
/// It depends on neither the owner's clock nor the duration of a delivery.
#[derive(Debug, Clone, Copy)]
struct Proof {
    /// The time of the server's last packet.
    heard: Duration,
    /// The same, when the append in flight was built.
    building: Duration,
    /// The same, of the last append that is stored.
    proven: Duration,
}

/// A packet of the flow is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

impl Flow {
    /// Returns an end of a flow, with at most `window_bytes` in flight in each direction.
    pub(super) const fn new(id: FlowId, window_bytes: u64, now: Duration) -> Self {
        Self {
            id,
            sent: 0,
            sent_bytes: 0,
            credit: window_bytes,
            taken: 0,
            processed_bytes: 0,
            heard_at: now,
            sent_at: now,
            window_bytes,
            proof: Proof {
                heard: Duration::ZERO,
                building: Duration::ZERO,
                proven: Duration::ZERO,
            },
        }
    }

    /// Returns the id of the flow.
    pub(super) const fn id(&self) -> FlowId {
        self.id
    }

    /// Returns whether any credit is left. The last packet may exceed it.
    pub(super) const fn has_credit(&self) -> bool {
        self.sent_bytes < self.credit
    }

    /// Returns the number of the last packet sent.
    pub(super) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Returns the number of the last packet received.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Returns a packet with these items.
    pub(super) fn send<T>(&mut self, items: Vec<T>, bytes: u64, now: Duration) -> Packet<T> {
        self.sent += 1;
        self.sent_bytes += bytes;
        self.sent_at = now;
        Packet {
            number: self.sent,
            credit: self.processed_bytes + self.window_bytes,
            items,
            bytes,
        }
    }

    /// Returns a heartbeat if one is due.
    pub(super) fn heartbeat<T>(&mut self, now: Duration) -> Option<Packet<T>> {
        if now.saturating_sub(self.sent_at) < timing::FLOW_HEARTBEAT {
            return None;
        }
        self.sent_at = now;
        let number = if is_planted(Bug::LostLastDelivery) {
            0
        } else {
            self.sent
        };
        let credit = self.processed_bytes + self.window_bytes;
        Some(Packet {
            number,
            credit,
            items: Vec::new(),
            bytes: 0,
        })
    }

    /// Handles a packet. Returns its items.
    ///
    /// # Errors
    /// [`Broken`] if this packet or an earlier one is missing.
    pub(super) fn take<T>(&mut self, packet: Packet<T>, now: Duration) -> Result<Vec<T>, Broken> {
        let Packet {
            number,
            credit,
            items,
            ..
        } = packet;
        let last = if items.is_empty() {
            number
        } else {
            number.checked_sub(1).ok_or(Broken)?
        };
        if last > self.taken {
            return Err(Broken);
        }
        self.heard_at = now;
        self.credit = self.credit.max(credit);
        if items.is_empty() || last < self.taken {
            return Ok(Vec::new());
        }
        self.taken = number;
        Ok(items)
    }

    /// Records a packet of the other end that is not taken.
    pub(super) const fn heard(&mut self, now: Duration) {
        self.heard_at = now;
    }

    /// Records the time of the other end at which it sent a packet that was taken.
    pub(super) fn sent_at(&mut self, time: Duration) {
        self.proof.heard = self.proof.heard.max(time);
    }

    /// Records that an append is built.
    pub(super) const fn append_built(&mut self) {
        self.proof.building = self.proof.heard;
    }

    /// Records that the append is stored.
    pub(super) const fn append_stored(&mut self) {
        self.proof.proven = self.proof.building;
    }

    /// Returns the time of the other end at which this end was certainly the owner.
    pub(super) const fn proven(&self) -> Duration {
        self.proof.proven
    }

    /// Grants credit for items that have been processed.
    pub(super) const fn processed(&mut self, bytes: u64) {
        self.processed_bytes += bytes;
    }

    /// Returns the time since the last packet of the other end.
    pub(super) fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard_at)
    }

    /// Returns whether the other end has exceeded the longest silence of a flow.
    pub(super) fn is_silent(&self, now: Duration) -> bool {
        self.silence(now) >= timing::FLOW_SILENCE
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::ClaimId;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ends() -> (Flow, Flow) {
        let claim = Claim {
            sequence: 1,
            id: ClaimId {
                server: ServerId(1),
                number: 1,
            },
        };
        let id = FlowId {
            server: ServerId(2),
            claim,
            number: 1,
        };
        (
            Flow::new(id, 100, Duration::ZERO),
            Flow::new(id, 100, Duration::ZERO),
        )
    }

    #[test]
    fn packet_behind_a_missing_one_ends_the_flow() {
        let (mut sender, mut receiver) = ends();
        let [first, second, third] = [1, 2, 3].map(|item| sender.send(vec![item], 1, SECOND));
        assert_eq!(receiver.take(first.clone(), SECOND), Ok(vec![1]));
        assert_eq!(receiver.take(first, SECOND), Ok(vec![]), "it is known");
        assert_eq!(receiver.take(third, SECOND), Err(Broken));
        assert_eq!(receiver.take(second, SECOND), Ok(vec![2]));
    }

    #[test]
    fn heartbeat_tells_of_a_lost_last_packet() {
        let (mut sender, mut receiver) = ends();
        let lost = sender.send(vec![1], 1, SECOND);
        assert!(
            sender.heartbeat::<u8>(2 * SECOND).is_none(),
            "it is not due"
        );
        let heartbeat = sender.heartbeat::<u8>(3 * SECOND).unwrap();
        assert_eq!(receiver.take(heartbeat.clone(), 3 * SECOND), Err(Broken));
        receiver
            .take(
                Packet {
                    items: vec![1],
                    ..lost
                },
                SECOND,
            )
            .unwrap();
        assert_eq!(receiver.take(heartbeat, 3 * SECOND), Ok(vec![]));
    }

    #[test]
    fn credit_comes_back_when_items_are_processed() {
        let (mut sender, mut receiver) = ends();
        let packet = sender.send(vec![1], 150, SECOND);
        assert!(!sender.has_credit());
        receiver.take(packet, SECOND).unwrap();
        let heartbeat = receiver.heartbeat::<u8>(5 * SECOND).unwrap();
        sender.take(heartbeat, SECOND).unwrap();
        assert!(!sender.has_credit(), "it is taken, and not processed");
        receiver.processed(150);
        sender
            .take(receiver.heartbeat::<u8>(9 * SECOND).unwrap(), 9 * SECOND)
            .unwrap();
        assert!(sender.has_credit());
        assert!(!sender.is_silent(16 * SECOND) && sender.is_silent(17 * SECOND));
    }
}
