//! [`Handovers`]: the shards that a server hands over to servers that are preferred by
//! their hashes, one at a time. It is a matter of load alone: any owner is correct.

use std::time::Duration;

use super::entry::Claim;
use super::{ServerId, ShardId, timing};

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
    /// The preferred server.
    to: ServerId,
    since: Duration,
}

impl Handovers {
    /// Returns the shard that is handed over, with the claim that is given up.
    pub(super) fn under_way(&self) -> Option<(ShardId, Claim)> {
        self.under_way
            .map(|handover| (handover.shard, handover.claim))
    }

    /// Records the next owner of the shard that is handed over, if it is known.
    pub(super) fn handle(&mut self, owner: Option<ServerId>, now: Duration) {
        let Some(Handover { to, since, .. }) = self.under_way else {
            return;
        };
        let is_late = now.saturating_sub(since) >= timing::HANDOVER_TIMEOUT;
        self.pause = match owner {
            Some(owner) if owner == to => timing::HANDOVER_PAUSE,
            // The preferred server did not take it.
            Some(_) => {
                (2 * self.pause).clamp(2 * timing::HANDOVER_PAUSE, timing::HANDOVER_PAUSE_MAX)
            }
            None if is_late => timing::HANDOVER_PAUSE_MAX,
            None => return,
        };
        (self.under_way, self.not_before) = (None, now + self.pause);
    }

    /// Returns whether the next hand-over may begin.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.under_way.is_none() && now >= self.not_before
    }

    /// Records the beginning of a hand-over to a preferred server.
    pub(super) const fn begin(
        &mut self,
        (shard, claim): (ShardId, Claim),
        to: ServerId,
        now: Duration,
    ) {
        self.under_way = Some(Handover {
            shard,
            claim,
            to,
            since: now,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::ClaimId;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn shard_that_is_not_taken_doubles_the_pause() {
        let [own, preferred, other] = [1, 2, 3].map(ServerId);
        let claim = Claim {
            sequence: 1,
            id: ClaimId {
                server: own,
                number: 1,
            },
        };
        let (mut handovers, mut now, mut pauses) = (Handovers::default(), SECOND, Vec::new());
        for owner in [own, other, own, preferred, other] {
            assert!(handovers.is_due(now));
            handovers.begin((3, claim), preferred, now);
            assert!(!handovers.is_due(now + 100 * SECOND));
            handovers.handle(None, now + SECOND);
            assert_eq!(handovers.under_way(), Some((3, claim)));
            handovers.handle(Some(owner), now + SECOND);
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
