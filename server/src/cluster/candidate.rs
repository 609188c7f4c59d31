//! [`Candidate`]: a server that claims a shard. The last entries of the stream name the
//! newest snapshot, from which it replays the stream. It then appends a claim on the
//! condition that no message follows the last one that it read. After some refusals it
//! claims unconditionally, and then replays up to its claim.

use std::time::Duration;

use bytes::Bytes;

use super::append::{Appender, Resolution};
use super::entry::{Claim, ClaimId, Content, Entry};
use super::pages::Pages;
use super::replay::{ReplayError, Replayed, StreamReplay};
use super::{Config, LogReply, LogRequest, Now, timing};
use crate::ledger;

/// A candidate for one shard.
#[derive(Debug)]
pub(super) struct Candidate {
    id: ClaimId,
    config: Config,
    replay: StreamReplay,
    /// The claim in force when the candidate started.
    former: Option<Claim>,
    phase: Phase,
    refusals: u32,
    next_request: u64,
    begun: Duration,
}

#[derive(Debug)]
enum Phase {
    /// Asks for the end of the stream.
    Probing { request: u64, asked_at: Duration },
    /// Reads entries from this sequence on, to find the newest snapshot.
    Looking {
        request: u64,
        asked_at: Duration,
        from: u64,
    },
    /// Reads the stream.
    Reading(Pages),
    /// Appends its claim after the last message.
    Claiming(Appender),
    /// Appends its claim unconditionally.
    ClaimingAnywhere { request: u64, asked_at: Duration },
}

/// The outcome of a candidacy.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The candidate owns the shard, with this state.
    Won(Claim, Box<Replayed>),
    /// Another server has claimed the shard.
    Lost(Claim),
    /// The server cannot own the shard.
    Failed,
}

impl Candidate {
    /// Returns a candidate and its first request. `former` is the newest claim known to
    /// this server.
    pub(super) fn new(
        id: ClaimId,
        config: Config,
        former: Option<Claim>,
        now: Now,
    ) -> (Self, LogRequest) {
        // Request ids are unique within a process: they begin with the number of the
        // claim.
        let request = id.number << 32;
        let candidate = Self {
            id,
            config,
            replay: StreamReplay::new(&config, 1),
            former,
            phase: Phase::Probing {
                request,
                asked_at: now.running,
            },
            refusals: 0,
            next_request: request + 1,
            begun: now.running,
        };
        (candidate, probe(request))
    }

    /// Returns the time of its first request.
    pub(super) const fn begun(&self) -> Duration {
        self.begun
    }

    /// Handles an answer of the log. Adds the next requests.
    pub(super) fn handle(
        &mut self,
        reply: LogReply,
        now: Now,
        out: &mut Vec<LogRequest>,
    ) -> Option<Outcome> {
        match (&mut self.phase, reply) {
            (
                Phase::Probing { request, .. },
                LogReply::Page {
                    id, first, last, ..
                },
            ) if id == *request => {
                let from = last.saturating_sub(timing::LOOK_BACK - 1).max(first);
                out.push(self.look(from, now));
                None
            }
            (
                Phase::Looking { request, from, .. },
                LogReply::Page {
                    id,
                    first,
                    messages,
                    ..
                },
            ) if id == *request => {
                let from = *from;
                self.begin(from, first, &messages, now, out);
                None
            }
            (
                Phase::Reading(pages),
                LogReply::Page {
                    id,
                    first,
                    messages,
                    last,
                },
            ) if pages.expects(id) => {
                pages.handle(id, messages, last);
                if first > self.replay.next() {
                    // A newer snapshot has replaced the messages.
                    out.push(self.probe(now));
                    return None;
                }
                self.replay_pages(now, out)
            }
            (Phase::Claiming(appender), reply) => {
                let resolution = appender.handle(&reply, now.running);
                self.resolved(resolution, now, out)
            }
            (Phase::ClaimingAnywhere { request, .. }, LogReply::Stored { id, .. })
                if id == *request =>
            {
                self.read(now, out);
                None
            }
            _ => None,
        }
    }

    /// Handles the resolution of the append of a claim, or its next request.
    fn resolved(
        &mut self,
        resolution: Result<Resolution, Option<LogRequest>>,
        now: Now,
        out: &mut Vec<LogRequest>,
    ) -> Option<Outcome> {
        match (resolution, &self.phase) {
            (Ok(Resolution::Stored), Phase::Claiming(appender)) => {
                match self.replay.take(appender.bytes()) {
                    Ok(()) => self.conclude(now, out),
                    Err(error) => self.fail(error),
                }
            }
            (Ok(Resolution::DataLost), _) => Some(Outcome::Failed),
            (Ok(_), _) => {
                self.refusals += 1;
                self.read(now, out);
                None
            }
            (Err(next), _) => {
                out.extend(next);
                None
            }
        }
    }

    /// Repeats a request that has had no answer.
    pub(super) fn tick(&mut self, now: Now, out: &mut Vec<LogRequest>) {
        match &mut self.phase {
            Phase::Claiming(appender) => out.extend(appender.repeat(now.running)),
            Phase::Probing { asked_at, .. } | Phase::Looking { asked_at, .. } => {
                if now.running.saturating_sub(*asked_at) >= timing::LOG_RETRY {
                    out.push(self.probe(now));
                }
            }
            Phase::Reading(_) => self.request_pages(now, out),
            // The claim may be in the stream by now.
            Phase::ClaimingAnywhere { asked_at, .. } => {
                if now.running.saturating_sub(*asked_at) >= timing::LOG_RETRY {
                    self.read(now, out);
                }
            }
        }
    }

    fn probe(&mut self, now: Now) -> LogRequest {
        let request = self.request();
        self.phase = Phase::Probing {
            request,
            asked_at: now.running,
        };
        probe(request)
    }

    fn look(&mut self, from: u64, now: Now) -> LogRequest {
        let request = self.request();
        self.phase = Phase::Looking {
            request,
            asked_at: now.running,
            from,
        };
        LogRequest::Read {
            id: request,
            from,
            messages_max: timing::LOOK_BACK as u32,
        }
    }

    /// Begins the replay at the newest snapshot that these messages, from `from` on, name.
    /// Even a message that does not count names a snapshot that was complete; but the
    /// snapshot may be purged, and then earlier messages name a later one.
    fn begin(
        &mut self,
        from: u64,
        first: u64,
        messages: &[Bytes],
        now: Now,
        out: &mut Vec<LogRequest>,
    ) {
        let entries = messages.iter().filter_map(|message| {
            let (entry, _) = Entry::decode(message, self.config.newest_format).ok()?;
            Some(entry)
        });
        let snapshots = entries.map(|entry| entry.snapshot);
        let newest = snapshots
            .max()
            .filter(|snapshot| *snapshot >= first && *snapshot > 0);
        if newest.is_none() && from > first {
            let from = from.saturating_sub(timing::LOOK_BACK).max(first);
            return out.push(self.look(from, now));
        }
        self.replay = StreamReplay::new(&self.config, newest.unwrap_or(first.max(1)));
        self.read(now, out);
    }

    /// Replays the pages that have arrived, up to the end of the stream known to the node that
    /// answered last.
    fn replay_pages(&mut self, now: Now, out: &mut Vec<LogRequest>) -> Option<Outcome> {
        let Phase::Reading(pages) = &mut self.phase else {
            return None;
        };
        while let Some(messages) = pages.take(|| next_id(&mut self.next_request)) {
            let replayed = messages
                .iter()
                .try_for_each(|message| self.replay.take(message));
            if let Err(error) = replayed {
                return self.fail(error);
            }
        }
        if pages.is_complete() {
            return self.conclude(now, out);
        }
        self.request_pages(now, out);
        None
    }

    /// Decides at the end of the stream whether to claim the shard, or who owns it.
    fn conclude(&mut self, now: Now, out: &mut Vec<LogRequest>) -> Option<Outcome> {
        match self.replay.claim() {
            Some(claim) if claim.id == self.id => self.win(claim, now),
            Some(claim)
                if self
                    .former
                    .is_none_or(|former| claim.sequence > former.sequence) =>
            {
                Some(Outcome::Lost(claim))
            }
            _ => {
                out.push(self.claim(now));
                None
            }
        }
    }

    fn read(&mut self, now: Now, out: &mut Vec<LogRequest>) {
        self.phase = Phase::Reading(Pages::new(self.replay.next()));
        self.request_pages(now, out);
    }

    fn request_pages(&mut self, now: Now, out: &mut Vec<LogRequest>) {
        if let Phase::Reading(pages) = &mut self.phase {
            out.extend(pages.requests(now.running, || next_id(&mut self.next_request)));
        }
    }

    fn claim(&mut self, now: Now) -> LogRequest {
        let (id, next) = (self.request(), self.replay.next());
        let is_conditional = self.refusals < timing::CLAIM_REFUSALS_MAX;
        let entry = Entry {
            format: self.replay.format(),
            claim: Claim {
                sequence: 0,
                id: self.id,
            },
            commit: 0,
            sequence: if is_conditional { next } else { 0 },
            previous: 0,
            snapshot: self.replay.snapshot(),
            servers: Vec::new(),
            content: Content::Claim {
                format: self.config.newest_format,
            },
        };
        if is_conditional {
            let appender = Appender::new(id, entry.encode(), next - 1, now.running);
            let request = appender.request();
            self.phase = Phase::Claiming(appender);
            return request;
        }
        self.phase = Phase::ClaimingAnywhere {
            request: id,
            asked_at: now.running,
        };
        LogRequest::Append {
            id,
            bytes: entry.encode(),
            after: None,
        }
    }

    fn win(&mut self, claim: Claim, now: Now) -> Option<Outcome> {
        let counter = match ledger::counter_at(now.wall) {
            Ok(counter) if self.replay.has_counter() => counter,
            // A former stream of this name may have used numbers of this second.
            Ok(counter) => counter + (1 << ledger::NUMBERS_PER_SECOND_BITS),
            Err(error) => {
                tracing::error!(%error, "cannot own a shard");
                return Some(Outcome::Failed);
            }
        };
        let replay = std::mem::replace(&mut self.replay, StreamReplay::new(&self.config, 1));
        match replay.finish(counter) {
            Ok(replayed) => Some(Outcome::Won(claim, Box::new(replayed))),
            Err(error) => self.fail(error),
        }
    }

    fn fail(&self, error: ReplayError) -> Option<Outcome> {
        tracing::error!(%error, claim = %self.id.server, "cannot replay the stream of a shard");
        Some(Outcome::Failed)
    }

    const fn request(&mut self) -> u64 {
        next_id(&mut self.next_request)
    }
}

const fn next_id(last: &mut u64) -> u64 {
    *last += 1;
    *last
}

/// Returns a request for the last sequence: no message has the one that it asks for.
const fn probe(id: u64) -> LogRequest {
    LogRequest::Read {
        id,
        from: u64::MAX,
        messages_max: 0,
    }
}
