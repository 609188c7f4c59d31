//! [`Handovers`]: the shards that a server hands over to servers that are preferred by
//! their hashes, one at a time. It is a matter of load alone: any owner is correct.

use std::time::Duration;

use super::entry::Claim;
use super::{ShardId, timing};

/// The hand-overs of a server.
#[derive(Debug, Default)]
pub(super) struct Handovers {
    under_way: Option<Handover>,
    not_before: Duration,
    /// The pause after a hand-over that failed.
    pause: Duration,
}

/// A hand-over under way.
#[derive(Debug, Clone, Copy)]
struct Handover {
    shard: ShardId,
    claim: Claim,
    since: Duration,
}

/// The state of a shard after its release, as far as this server knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Successor {
    /// There is none yet.
    Unknown,
    /// Another server, to which there is a flow.
    Other,
    /// This server again.
    Same,
}

impl Handovers {
    /// Returns the shard that is handed over, with the claim that is given up.
    pub(super) fn under_way(&self) -> Option<(ShardId, Claim)> {
        self.under_way
            .map(|handover| (handover.shard, handover.claim))
    }

    /// Records the successor of the shard that is handed over.
    pub(super) fn handle(&mut self, successor: Successor, now: Duration) {
        let Some(Handover { since, .. }) = self.under_way else {
            return;
        };
        let is_late = now.saturating_sub(since) >= timing::HANDOVER_TIMEOUT;
        self.pause = match successor {
            Successor::Other => timing::HANDOVER_PAUSE,
            // The preferred server did not take it.
            Successor::Same => {
                (2 * self.pause).clamp(2 * timing::HANDOVER_PAUSE, timing::HANDOVER_PAUSE_MAX)
            }
            Successor::Unknown if is_late => timing::HANDOVER_PAUSE_MAX,
            Successor::Unknown => return,
        };
        (self.under_way, self.not_before) = (None, now + self.pause);
    }

    /// Returns whether the next hand-over may begin.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.under_way.is_none() && now >= self.not_before
    }

    /// Records the beginning of a hand-over.
    pub(super) const fn begin(&mut self, shard: ShardId, claim: Claim, now: Duration) {
        self.under_way = Some(Handover {
            shard,
            claim,
            since: now,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::ServerId;
    use super::super::entry::ClaimId;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn shard_that_comes_back_doubles_the_pause() {
        let claim = Claim {
            sequence: 1,
            id: ClaimId {
                server: ServerId(1),
                number: 1,
            },
        };
        let (mut handovers, mut now, mut pauses) = (Handovers::default(), SECOND, Vec::new());
        for successor in [
            Successor::Same,
            Successor::Same,
            Successor::Same,
            Successor::Other,
            Successor::Same,
        ] {
            assert!(handovers.is_due(now));
            handovers.begin(3, claim, now);
            assert!(!handovers.is_due(now + 100 * SECOND));
            handovers.handle(Successor::Unknown, now + SECOND);
            assert_eq!(handovers.under_way(), Some((3, claim)));
            handovers.handle(successor, now + SECOND);
            now += SECOND;
            let begun = now;
            while !handovers.is_due(now) {
                now += SECOND;
            }
            pauses.push((now - begun).as_secs());
        }
        assert_eq!(pauses, [2, 4, 8, 1, 2]);
    }
}
