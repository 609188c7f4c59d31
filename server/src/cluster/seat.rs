//! [`Seat`]: one server's role in one shard: standby, candidate or owner. The choice
//! affects only liveness.

use std::time::Duration;

use super::candidate::{Candidate, Outcome};
use super::entry::{Claim, ClaimId, Content, Entry, OLDEST_FORMAT};
use super::flow::FlowId;
use super::message::{Down, Message, Up};
use super::owner::{Owner, Tenure};
use super::{Action, Config, LogReply, LogRequest, Now, ServerId, ShardId, timing};

/// One server's role in one shard.
#[derive(Debug)]
pub(super) struct Seat {
    shard: ShardId,
    server: ServerId,
    config: Config,
    /// The number of servers preferred over this one.
    rank: u32,
    /// The server makes claims at the moment.
    may_claim: bool,
    state: State,
    /// The newest known claim.
    known: Option<Claim>,
    heard_at: Duration,
    /// The last sequence of the stream seen since the last heartbeat, and when it last
    /// increased.
    seen: Option<u64>,
    seen_at: Duration,
    /// The stream was found without an owner: it is empty, or the shard is released.
    is_vacant: bool,
    claims: u64,
    claim_not_before: Duration,
    backoff: Duration,
    owned_since: Duration,
    is_low_on_space: bool,
    /// The server for which the shard is released, if it is one in particular.
    successor: Option<ServerId>,
    /// The server makes no more claims.
    is_leaving: bool,
    /// The newest format that all live servers read.
    format: u8,
}

#[derive(Debug)]
enum State {
    Standby { probe_at: Duration },
    Candidate(Box<Candidate>),
    Owner(Box<Owner>),
}

impl Seat {
    /// Returns a standby seat. `rank` servers are preferred over this one.
    pub(super) const fn new(shard: ShardId, server: ServerId, config: Config, rank: u32) -> Self {
        Self {
            shard,
            server,
            config,
            rank,
            may_claim: true,
            state: State::Standby {
                probe_at: Duration::ZERO,
            },
            known: None,
            heard_at: Duration::ZERO,
            seen: None,
            seen_at: Duration::ZERO,
            is_vacant: false,
            claims: 0,
            claim_not_before: Duration::ZERO,
            backoff: timing::BACKOFF_MIN,
            owned_since: Duration::ZERO,
            is_low_on_space: false,
            successor: None,
            is_leaving: false,
            format: OLDEST_FORMAT,
        }
    }

    /// Handles a heartbeat of an owner.
    pub(super) fn handle_heartbeat(&mut self, claim: Claim, now: Now) {
        if self
            .known
            .is_some_and(|known| claim.sequence < known.sequence)
        {
            return;
        }
        (self.known, self.heard_at, self.seen, self.is_vacant) =
            (Some(claim), now.running, None, false);
        if matches!(self.state, State::Candidate(_)) && claim.id.server != self.server {
            self.stand_by(now);
        }
    }

    /// Handles the release of the shard by its owner: the server for which it is released
    /// claims it at once, and the others leave it time to do so. Otherwise, the preferred
    /// server claims it at once.
    pub(super) fn handle_released(&mut self, claim: Claim, to: Option<ServerId>, now: Now) {
        if self.known != Some(claim) {
            return;
        }
        let due = now.running.saturating_sub(timing::CLAIM_AFTER);
        (self.heard_at, self.seen_at) = (due, due);
        if to.is_some_and(|to| to != self.server) {
            let wait = timing::HANDED_OVER_FOR + timing::CLAIM_STAGGER * self.rank;
            let not_before = now.running + wait;
            self.claim_not_before = self.claim_not_before.max(not_before);
        }
    }

    /// Passes a message of a flow to the owner.
    pub(super) fn handle_up(&mut self, id: FlowId, up: Up, now: Now, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Owner(owner) if owner.claim == id.claim => owner.handle_up(id, up, now, out),
            _ if matches!(up, Up::End) => {}
            _ => out.push(Action::Send(
                id.server,
                Message::Down(self.shard, id, Down::End),
            )),
        }
    }

    /// Records whether the storage of the stream has too little free space.
    pub(super) fn handle_storage(&mut self, is_low: bool) {
        if is_low != self.is_low_on_space {
            tracing::warn!(shard = self.shard, is_low, "free storage of the stream");
        }
        self.is_low_on_space = is_low;
        if let State::Owner(owner) = &mut self.state {
            owner.is_low_on_space = is_low;
        }
    }

    /// Handles an answer of the log.
    pub(super) fn handle_log(&mut self, reply: LogReply, now: Now, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Standby { .. } => self.look(&reply, now, out),
            State::Candidate(candidate) => {
                let mut requests = Vec::new();
                let outcome = candidate.handle(reply, now, &mut requests);
                out.extend(
                    requests
                        .into_iter()
                        .map(|request| Action::Log(self.shard, request)),
                );
                if let Some(outcome) = outcome {
                    self.conclude(outcome, now, out);
                }
            }
            State::Owner(owner) => {
                let tenure = owner.handle_log(&reply, now, out);
                self.check(tenure, now, out);
            }
        }
    }

    /// Sets the number of live servers preferred over this one, and whether this one makes
    /// claims.
    pub(super) const fn set_rank(&mut self, rank: u32, may_claim: bool) {
        (self.rank, self.may_claim) = (rank, may_claim);
    }

    /// Sets the newest format that all live servers read.
    pub(super) fn set_format(&mut self, format: u8) {
        self.format = format;
        if let State::Owner(owner) = &mut self.state {
            owner.format = format;
        }
    }

    /// Performs the actions that are due at this time.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<Action>) {
        match &mut self.state {
            State::Standby { probe_at } => {
                let silence = now.running.saturating_sub(self.heard_at);
                let stillness = silence.min(now.running.saturating_sub(self.seen_at));
                let stagger = timing::CLAIM_STAGGER * self.rank;
                let is_due = stillness >= timing::CLAIM_AFTER + stagger
                    || silence >= timing::CLAIM_UNHEARD_AFTER + stagger
                    || (self.is_vacant && now.running >= timing::CLAIM_VACANT_AFTER + stagger);
                if self.is_leaving {
                    return;
                }
                if is_due && self.may_claim && now.running >= self.claim_not_before {
                    self.claim(now, out);
                } else if (silence >= timing::PROBE_INTERVAL * 2 || self.known.is_none())
                    && now.running >= *probe_at
                {
                    *probe_at = now.running + timing::PROBE_INTERVAL;
                    // No message has this sequence; the answer contains the last one.
                    out.push(Action::Log(
                        self.shard,
                        LogRequest::Read {
                            id: 0,
                            from: u64::MAX,
                            messages_max: 0,
                        },
                    ));
                }
            }
            State::Candidate(candidate) => {
                let mut requests = Vec::new();
                candidate.tick(now, &mut requests);
                out.extend(
                    requests
                        .into_iter()
                        .map(|request| Action::Log(self.shard, request)),
                );
            }
            State::Owner(owner) => owner.tick(now, out),
        }
    }

    /// Releases the shard if this server owns it, and makes no more claims.
    pub(super) fn leave(&mut self, now: Now, out: &mut Vec<Action>) {
        (self.is_leaving, self.successor) = (true, None);
        match &mut self.state {
            State::Owner(owner) => owner.leave(now, out),
            _ => self.stand_by(now),
        }
    }

    /// Returns the claim of this server if it may hand the shard over, and the newest format
    /// of its entries.
    pub(super) fn may_hand_over(&self, now: Now) -> Option<(Claim, u8)> {
        let owner = self.owner().filter(|owner| owner.may_hand_over(now))?;
        let tenure = now.running.saturating_sub(self.owned_since);
        let claim = (owner.claim, owner.chain.format());
        (tenure >= timing::TENURE_MIN).then_some(claim)
    }

    /// Releases the shard for a preferred server.
    pub(super) fn hand_over(&mut self, to: ServerId, now: Now, out: &mut Vec<Action>) {
        if let State::Owner(owner) = &mut self.state {
            tracing::info!(shard = self.shard, %to, "handing the shard over");
            self.successor = Some(to);
            owner.release(now, out);
        }
    }

    /// Returns the owner if this server believes that it owns the shard.
    pub(super) const fn owner(&self) -> Option<&Owner> {
        match &self.state {
            State::Owner(owner) => Some(owner),
            _ => None,
        }
    }

    /// Handles the answer to a probe. A server that knows of no claim reads the last message
    /// as well: a vacant shard need not stay silent before it is claimed.
    fn look(&mut self, reply: &LogReply, now: Now, out: &mut Vec<Action>) {
        let LogReply::Page { messages, last, .. } = reply else {
            return;
        };
        if self.known.is_none() {
            match messages
                .last()
                .map(|message| Entry::decode(message, self.config.newest_format))
            {
                None if *last == 0 => self.is_vacant = true,
                None => out.push(Action::Log(
                    self.shard,
                    LogRequest::Read {
                        id: 0,
                        from: *last,
                        messages_max: 1,
                    },
                )),
                Some(Ok((entry, _))) => self.is_vacant = matches!(entry.content, Content::Release),
                Some(Err(_)) => {}
            }
        }
        if self.seen.is_some_and(|seen| *last > seen) {
            self.seen_at = now.running;
        }
        self.seen = self.seen.max(Some(*last));
    }

    fn claim(&mut self, now: Now, out: &mut Vec<Action>) {
        self.claims += 1;
        self.is_vacant = false;
        let id = ClaimId {
            server: self.server,
            number: self.claims,
        };
        let (candidate, request) = Candidate::new(id, self.config, self.known, now);
        self.state = State::Candidate(Box::new(candidate));
        out.push(Action::Log(self.shard, request));
    }

    fn conclude(&mut self, outcome: Outcome, now: Now, out: &mut Vec<Action>) {
        match outcome {
            Outcome::Won(claim, replayed) => {
                let begun = match &self.state {
                    State::Candidate(candidate) => candidate.begun(),
                    _ => now.running,
                };
                let (entries, bytes) = replayed.replayed;
                tracing::info!(
                    shard = self.shard,
                    sequence = claim.sequence,
                    entries,
                    bytes,
                    elapsed = ?now.running.saturating_sub(begun),
                    "shard claimed"
                );
                self.known = Some(claim);
                self.owned_since = now.running;
                let mut owner = Owner::new(self.shard, claim, self.config, *replayed, now);
                (owner.is_low_on_space, owner.format) = (self.is_low_on_space, self.format);
                owner.tick(now, out);
                self.state = State::Owner(Box::new(owner));
            }
            Outcome::Lost(claim) => {
                self.known = Some(claim);
                self.heard_at = now.running;
                self.stand_by(now);
            }
            Outcome::Failed => {
                self.back_off(now);
                self.stand_by(now);
            }
        }
    }

    fn check(&mut self, tenure: Tenure, now: Now, out: &mut Vec<Action>) {
        let State::Owner(owner) = &mut self.state else {
            return;
        };
        match tenure {
            Tenure::Continues => {}
            Tenure::Deposed => {
                tracing::warn!(
                    shard = self.shard,
                    "deposed: another server has claimed the shard"
                );
                owner.end_all_flows(now, out);
                if now.running.saturating_sub(self.owned_since) >= timing::BACKOFF_RESET_AFTER {
                    self.backoff = timing::BACKOFF_MIN;
                }
                self.back_off(now);
                // The new owner's heartbeat may not have arrived yet.
                self.heard_at = now.running;
                self.stand_by(now);
            }
            Tenure::Released => {
                let (claim, to) = (owner.claim, self.successor.take());
                out.push(Action::Broadcast(Message::Released(self.shard, claim, to)));
                self.handle_released(claim, to, now);
                self.stand_by(now);
            }
        }
    }

    fn back_off(&mut self, now: Now) {
        self.claim_not_before = now.running + self.backoff;
        self.backoff = (2 * self.backoff).min(timing::BACKOFF_MAX);
    }

    fn stand_by(&mut self, now: Now) {
        self.state = State::Standby {
            probe_at: now.running,
        };
    }
}
