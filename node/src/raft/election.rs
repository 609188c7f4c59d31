//! Elections. A candidate first asks for trial votes, and begins a term only if
//! a majority grants them.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::mpsc;

use super::bugs::{Bug, is_planted};
use super::log::{Ballot, Entry, Position};
use super::message::{VOTE, Vote, VoteReply};
use super::server::{Leadership, Progress, Role};
use super::{Raft, StateMachine};
use crate::error::Error;

impl<S: 'static, M: StateMachine> Raft<S, M> {
    /// Becomes a candidate whenever no leader is heard from.
    pub(super) async fn keep_electing(&self) {
        self.reset_election();
        loop {
            self.shared.election.fired().await;
            self.reset_election();
            if self.shared.server.borrow().is_leader() {
                self.check_quorum();
            } else if let Err(error) = self.campaign().await {
                tracing::error!(%error, "campaign failed");
            }
        }
    }

    /// Postpones the next election by one to two times the timeout.
    fn reset_election(&self) {
        let timeout = self.shared.settings.election_timeout;
        self.shared
            .election
            .reset(self.shared.node.random_range(timeout..=timeout * 2));
    }

    /// Steps down if no majority was heard from for a timeout: clients of the
    /// other servers have another leader by then.
    fn check_quorum(&self) {
        let (now, timeout) = (self.now(), self.shared.settings.election_timeout);
        let mut server = self.shared.server.borrow_mut();
        let Role::Leader(leadership) = &server.role else {
            return;
        };
        let is_recent = |progress: &&Progress| now.saturating_sub(progress.heard_at) <= timeout;
        let heard = leadership.followers.values().filter(is_recent).count();
        if heard + 1 < self.shared.node.majority() {
            tracing::info!(term = server.term(), "stepping down without a majority");
            server.step_down();
            drop(server);
            self.notify();
        }
    }

    async fn campaign(&self) -> Result<(), Error> {
        let before = self.shared.server.borrow().term();
        if !self.canvass(before + 1, true).await {
            return Ok(());
        }
        {
            let mut server = self.shared.server.borrow_mut();
            if server.term() != before || server.leader.is_some() && !self.is_leader_silent(&server)
            {
                return Ok(());
            }
            let vote = Some(self.shared.node.id().to_owned());
            server.log.set_ballot(Ballot {
                term: before + 1,
                vote,
            })?;
            server.step_down();
            server.role = Role::Candidate;
        }
        let has_won = self.canvass(before + 1, false).await;
        let server = self.shared.server.borrow();
        let is_candidate = server.term() == before + 1 && matches!(server.role, Role::Candidate);
        drop(server);
        if has_won && is_candidate {
            self.lead()
        } else {
            Ok(())
        }
    }

    /// Asks all servers for their votes, and returns whether a majority
    /// grants them.
    async fn canvass(&self, term: u64, is_trial: bool) -> bool {
        let last = self.shared.server.borrow().log.last();
        let vote = Vote {
            term,
            is_trial,
            last_index: last.index,
            last_term: last.term,
        };
        let mut missing = self.shared.node.majority() - 1;
        let (granted, mut votes) = mpsc::channel(self.shared.node.node_ids().len());
        for peer in self.shared.node.peers() {
            let call = self.shared.node.call::<VoteReply>(peer, VOTE, &vote);
            let call = call.timeout(self.shared.settings.election_timeout);
            let (raft, granted) = (self.clone(), granted.clone());
            self.shared.node.spawn(async move {
                match call
                    .await
                    .and_then(|reply| raft.observe(reply.term).map(|()| reply.is_granted))
                {
                    // The election may be over.
                    Ok(true) => drop(granted.try_send(())),
                    Ok(false) => {}
                    Err(error) => tracing::debug!(%error, "no vote"),
                }
            });
        }
        drop(granted);
        while missing > 0 && votes.recv().await.is_some() {
            missing -= 1;
        }
        missing == 0
    }

    fn observe(&self, term: u64) -> Result<(), Error> {
        let mut server = self.shared.server.borrow_mut();
        if term > server.term() {
            server.observe(term)?;
            drop(server);
            self.notify();
        }
        Ok(())
    }

    /// Begins to lead the term that was won.
    fn lead(&self) -> Result<(), Error> {
        let (now, peers) = (self.now(), self.shared.node.peers());
        let mut server = self.shared.server.borrow_mut();
        let (term, first_index) = (server.term(), server.log.last().index + 1);
        let progress = Progress {
            next: first_index,
            heard_at: now,
            ..Progress::default()
        };
        let followers: BTreeMap<_, _> = peers.map(|peer| (peer.to_owned(), progress)).collect();
        server.log.push(Entry {
            term,
            request: None,
        })?;
        server.leader = Some(self.shared.node.id().to_owned());
        server.role = Role::Leader(Leadership {
            first_index,
            round: 0,
            followers,
        });
        drop(server);
        tracing::info!(term, "leading");
        self.advance()?;
        for peer in self.shared.node.peers() {
            let (raft, peer) = (self.clone(), peer.to_owned());
            self.shared
                .node
                .spawn(async move { raft.replicate(&peer, term).await });
        }
        Ok(())
    }

    /// Answers a candidate.
    pub(super) fn handle_vote(&self, candidate: &str, vote: Vote) -> Result<VoteReply, Error> {
        let last = Position {
            index: vote.last_index,
            term: vote.last_term,
        };
        if vote.is_trial {
            let server = self.shared.server.borrow();
            let is_needed = !server.is_leader() && self.is_leader_silent(&server);
            let is_granted = is_needed && vote.term > server.term() && server.is_covered_by(last);
            return Ok(VoteReply {
                term: server.term(),
                is_granted,
            });
        }
        self.observe(vote.term)?;
        let mut server = self.shared.server.borrow_mut();
        let Ballot { term, vote: given } = server.log.ballot().clone();
        let is_free = given.is_none_or(|given| given == candidate) || is_planted(Bug::VotesTwice);
        let is_granted = vote.term == term && is_free && server.is_covered_by(last);
        if is_granted {
            server.log.set_ballot(Ballot {
                term,
                vote: Some(candidate.to_owned()),
            })?;
            drop(server);
            self.reset_election();
        }
        Ok(VoteReply { term, is_granted })
    }

    /// Returns whether an election may be due: no leader was heard from for
    /// long enough.
    fn is_leader_silent(&self, server: &super::Server<M>) -> bool {
        server.leader.is_none()
            || self.now().saturating_sub(server.heard_at) >= self.shared.settings.election_timeout
    }

    /// Follows a leader of the current term.
    pub(super) fn follow(&self, leader: &str) {
        let now: Duration = self.now();
        let mut server = self.shared.server.borrow_mut();
        let is_new = server.leader.as_deref() != Some(leader);
        server.role = Role::Follower;
        server.leader = Some(leader.to_owned());
        server.heard_at = now;
        drop(server);
        self.reset_election();
        if is_new {
            self.notify();
        }
    }
}
