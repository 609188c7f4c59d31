//! Replication: a leader sends its entries to each follower, or a snapshot of
//! compacted ones, and commits the entries that a majority has.

use std::time::Duration;

use serde::Serialize;

use super::log::Position;
use super::message::{APPEND, Append, AppendReply, INSTALL, Install};
use super::server::Server;
use super::{Raft, StateMachine};
use crate::call::Call;
use crate::error::{Error, ErrorCode};

/// The time that a call waits for its reply, in heartbeats.
const CALL_HEARTBEATS: u32 = 3;

/// A message to a follower.
struct Outgoing {
    call: Call<AppendReply>,
    /// The follower has everything up to here if it says that it matches.
    upto: u64,
    /// The reads that it confirms.
    round: u64,
}

impl<S: 'static, M: StateMachine> Raft<S, M> {
    /// Brings a follower up to date, for as long as this server leads the term.
    pub(super) async fn replicate(&self, follower: &str, term: u64) {
        loop {
            let next_at = self.now() + self.shared.settings.heartbeat;
            let outgoing = match self.outgoing(follower, term) {
                Ok(Some(outgoing)) => outgoing,
                Ok(None) => return,
                Err(error) => return tracing::error!(follower, %error, "cannot replicate"),
            };
            let Outgoing { call, upto, round } = outgoing;
            let taken = call
                .await
                .and_then(|reply| self.take_reply(follower, term, upto, round, reply));
            if let Err(error) = taken {
                tracing::debug!(follower, term, %error, "no reply");
                self.pause(next_at.saturating_sub(self.now())).await;
                continue;
            }
            self.until(next_at, |server| {
                server.has_work(follower, term).then_some(())
            })
            .await;
        }
    }

    /// Returns the next message; `None` if the server no longer leads.
    fn outgoing(&self, follower: &str, term: u64) -> Result<Option<Outgoing>, Error> {
        let mut server = self.shared.server.borrow_mut();
        let Some(leadership) = server.leadership(term) else {
            return Ok(None);
        };
        let round = leadership.round;
        let Some(progress) = leadership.followers.get(follower).copied() else {
            return Ok(None);
        };
        let prev_index = progress.next.saturating_sub(1);
        if let Some(prev_term) = server.log.term_at(prev_index) {
            let entries: Vec<_> = server
                .log
                .range(progress.next, self.shared.settings.batch_max)
                .cloned()
                .collect();
            let upto = prev_index + u64::try_from(entries.len()).unwrap_or_default();
            let append = Append {
                term,
                prev_index,
                prev_term,
                entries,
                commit: server.commit,
            };
            return Ok(Some(Outgoing {
                call: self.call(follower, APPEND, &append),
                upto,
                round,
            }));
        }
        let Some(snapshot) = server.log.snapshot().cloned() else {
            return Err(Error::new(
                ErrorCode::Crash,
                format!("entry {prev_index} is gone"),
            ));
        };
        let upto = snapshot.at.index;
        let call = self.call(follower, INSTALL, &Install { term, snapshot });
        Ok(Some(Outgoing { call, upto, round }))
    }

    fn call(&self, follower: &str, kind: &str, body: &impl Serialize) -> Call<AppendReply> {
        let timeout: Duration = self.shared.settings.heartbeat * CALL_HEARTBEATS;
        self.shared.node.call(follower, kind, body).timeout(timeout)
    }

    fn take_reply(
        &self,
        follower: &str,
        term: u64,
        upto: u64,
        round: u64,
        reply: AppendReply,
    ) -> Result<(), Error> {
        let now = self.now();
        let mut server = self.shared.server.borrow_mut();
        server.observe(reply.term)?;
        if let Some(leadership) = server.leadership(term)
            && let Some(progress) = leadership.followers.get_mut(follower)
        {
            progress.heard_at = now;
            progress.confirmed = progress.confirmed.max(round);
            if reply.is_matched {
                progress.matched = progress.matched.max(upto);
                progress.next = progress.matched + 1;
            } else {
                progress.next = reply.next.clamp(progress.matched + 1, progress.next.max(1));
            }
        }
        drop(server);
        self.advance()
    }

    /// Advances the commit index, and applies the entries up to it.
    pub(super) fn advance(&self) -> Result<(), Error> {
        let mut server = self.shared.server.borrow_mut();
        server.advance_commit(self.shared.node.majority());
        let applied = server.apply(self.shared.settings.snapshot_after);
        drop(server);
        self.notify();
        applied
    }

    /// Takes entries of a leader.
    pub(super) fn handle_append(
        &self,
        leader: &str,
        append: Append<M::Command>,
    ) -> Result<AppendReply, Error> {
        if let Some(refusal) = self.refuse_former(leader, append.term)? {
            return Ok(refusal);
        }
        let mut server = self.shared.server.borrow_mut();
        let term = server.term();
        if let Some(next) = server.mismatch(append.prev_index, append.prev_term) {
            return Ok(AppendReply {
                term,
                is_matched: false,
                next,
            });
        }
        let mut index = append.prev_index;
        for entry in append.entries {
            index += 1;
            if index > server.log.base().index && server.log.term_at(index) != Some(entry.term) {
                server.truncate(index)?;
                server.log.push(entry)?;
            }
        }
        server.commit = server.commit.max(append.commit.min(index));
        drop(server);
        self.advance()?;
        Ok(AppendReply {
            term,
            is_matched: true,
            next: index + 1,
        })
    }

    /// Takes the snapshot of a leader.
    pub(super) fn handle_install(
        &self,
        leader: &str,
        install: Install,
    ) -> Result<AppendReply, Error> {
        if let Some(refusal) = self.refuse_former(leader, install.term)? {
            return Ok(refusal);
        }
        let mut server = self.shared.server.borrow_mut();
        let Position { index, .. } = install.snapshot.at;
        if index > server.commit {
            server.restore(&install.snapshot)?;
            server.log.install(install.snapshot)?;
        }
        let term = server.term();
        drop(server);
        self.advance()?;
        Ok(AppendReply {
            term,
            is_matched: true,
            next: index + 1,
        })
    }

    /// Follows the sender, unless it leads a former term.
    fn refuse_former(&self, leader: &str, term: u64) -> Result<Option<AppendReply>, Error> {
        let mut server = self.shared.server.borrow_mut();
        server.observe(term)?;
        if term < server.term() {
            return Ok(Some(AppendReply {
                term: server.term(),
                is_matched: false,
                next: 1,
            }));
        }
        drop(server);
        self.follow(leader);
        Ok(None)
    }
}

impl<M: StateMachine> Server<M> {
    /// Returns whether a follower lacks an entry, or a read waits for its confirmation.
    fn has_work(&self, follower: &str, term: u64) -> bool {
        let super::server::Role::Leader(leadership) = &self.role else {
            return true;
        };
        let progress = leadership
            .followers
            .get(follower)
            .copied()
            .unwrap_or_default();
        self.term() != term
            || progress.next <= self.log.last().index
            || progress.confirmed < leadership.round
    }

    /// Returns the next entry that the leader must send if this log has no
    /// such entry.
    fn mismatch(&self, index: u64, term: u64) -> Option<u64> {
        // Committed entries match.
        if index <= self.commit {
            return None;
        }
        let last = self.log.last().index;
        match self.log.term_at(index) {
            Some(own) if own == term => None,
            None => Some(last + 1),
            // All entries of the conflicting term are skipped at once.
            Some(own) => {
                let mut first = index;
                while first > self.commit + 1 && self.log.term_at(first - 1) == Some(own) {
                    first -= 1;
                }
                Some(first)
            }
        }
    }

    /// Removes entries that a leader replaces.
    ///
    /// # Errors
    /// 13 if they are committed: the sender is not a leader.
    fn truncate(&mut self, from: u64) -> Result<(), Error> {
        if from <= self.commit {
            return Err(Error::new(
                ErrorCode::Crash,
                format!("entry {from} is committed"),
            ));
        }
        self.log.truncate(from);
        Ok(())
    }
}
