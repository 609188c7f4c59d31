//! Requests of clients: commands, which the leader appends, and reads, for
//! which it only confirms that it leads. A server that does not lead forwards
//! them.

use std::time::Duration;

use super::bugs::{Bug, is_planted};
use super::message::{PROPOSE, Propose, ProposeReply, READ_INDEX, ReadIndexReply};
use super::replicated::Request;
use super::server::{Role, Server};
use super::{Raft, StateMachine};
use crate::error::{Error, ErrorCode};

/// The pause before a request is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The time after which a forwarded request is retried, in election timeouts.
const ATTEMPT_ELECTIONS: u32 = 2;

impl<S: 'static, M: StateMachine> Raft<S, M> {
    /// Proposes a command, which is applied once, and returns its outcome.
    ///
    /// # Errors
    /// The error of [`StateMachine::apply`]; 11 if there was no leader before
    /// the timeout, and 0 if the command may yet be applied.
    pub async fn propose(&self, command: M::Command) -> Result<M::Reply, Error> {
        let waiting = Waiting::new(self);
        let mut failure = Error::new(ErrorCode::TemporarilyUnavailable, "no leader is known");
        let deadline = self.now() + self.shared.settings.request_timeout;
        while let Some(leader) = self.leader(deadline).await {
            let request = {
                let server = self.shared.server.borrow();
                server.request(self.shared.node.id(), waiting.number, command.clone())
            };
            match self.propose_to(&leader, request, deadline).await {
                Ok(outcome) => return outcome,
                // Once an outcome is unknown, it stays unknown.
                Err(error) if failure.code.is_definite() => failure = error,
                Err(_) => {}
            }
            self.pause(RETRY_PAUSE).await;
        }
        Err(failure)
    }

    /// Looks at the state after everything that was committed before the call.
    ///
    /// # Errors
    /// 11 if no leader has confirmed its leadership before the timeout.
    pub async fn read<T>(&self, look: impl Fn(&M) -> T) -> Result<T, Error> {
        let deadline = self.now() + self.shared.settings.request_timeout;
        while let Some(leader) = self.leader(deadline).await {
            match self.read_index_from(&leader, deadline).await {
                Ok(index) => {
                    let look = |server: &Server<M>| {
                        (server.applied() >= index).then(|| look(&server.replicated.machine))
                    };
                    if let Some(found) = self.until(deadline, look).await {
                        return Ok(found);
                    }
                }
                Err(error) => {
                    tracing::debug!(leader, %error, "reading again");
                    self.pause(RETRY_PAUSE).await;
                }
            }
        }
        Err(Error::new(
            ErrorCode::TemporarilyUnavailable,
            "no leader has confirmed the read",
        ))
    }

    /// Waits until a leader is known; `None` at the deadline.
    async fn leader(&self, deadline: Duration) -> Option<String> {
        let leader = self.until(deadline, |server| server.leader.clone()).await;
        leader.filter(|_| self.now() < deadline)
    }

    /// Returns the time limit of one attempt.
    fn attempt_timeout(&self, deadline: Duration) -> Duration {
        let timeout = self.shared.settings.election_timeout * ATTEMPT_ELECTIONS;
        timeout.min(deadline.saturating_sub(self.now()))
    }

    async fn propose_to(
        &self,
        leader: &str,
        request: Request<M::Command>,
        deadline: Duration,
    ) -> Result<Result<M::Reply, Error>, Error> {
        if leader == self.shared.node.id() {
            return self.commit(request, deadline).await;
        }
        let call = self
            .shared
            .node
            .call::<ProposeReply<_>>(leader, PROPOSE, &Propose { request });
        Ok(call.timeout(self.attempt_timeout(deadline)).await?.outcome)
    }

    pub(super) async fn handle_propose(
        &self,
        propose: Propose<M::Command>,
    ) -> Result<ProposeReply<M::Reply>, Error> {
        let deadline = self.now() + self.shared.settings.election_timeout * ATTEMPT_ELECTIONS;
        self.commit(propose.request, deadline)
            .await
            .map(|outcome| ProposeReply { outcome })
    }

    /// Appends a request as the leader, and waits until it is applied.
    ///
    /// # Errors
    /// 11 if nothing was appended; 0 if the request may yet be applied.
    async fn commit(
        &self,
        request: Request<M::Command>,
        deadline: Duration,
    ) -> Result<Result<M::Reply, Error>, Error> {
        let (origin, life, number) = (request.origin.clone(), request.life, request.number);
        let term = {
            let mut server = self.shared.server.borrow_mut();
            if let Some(outcome) = server.replicated.outcome(&origin, life, number)
                && !is_planted(Bug::AppliesTwice)
            {
                return Ok(outcome.clone());
            }
            server.append(request)?;
            server.term()
        };
        self.advance()?;
        let outcome = self.until(deadline, |server| {
            if let Some(outcome) = server.replicated.outcome(&origin, life, number) {
                return Some(Ok(outcome.clone()));
            }
            let is_leader = server.is_leader() && server.term() == term;
            (!is_leader).then(|| Err(Error::new(ErrorCode::Timeout, "the leader was deposed")))
        });
        let undecided = || {
            Err(Error::new(
                ErrorCode::Timeout,
                "no majority has the request yet",
            ))
        };
        outcome.await.unwrap_or_else(undecided)
    }

    async fn read_index_from(&self, leader: &str, deadline: Duration) -> Result<u64, Error> {
        if leader == self.shared.node.id() {
            return self.read_index().await;
        }
        let call = self
            .shared
            .node
            .call::<ReadIndexReply>(leader, READ_INDEX, &());
        Ok(call.timeout(self.attempt_timeout(deadline)).await?.index)
    }

    pub(super) async fn handle_read_index(&self) -> Result<ReadIndexReply, Error> {
        self.read_index()
            .await
            .map(|index| ReadIndexReply { index })
    }

    /// Returns an index that is not below anything that was committed before the
    /// call, as the leader.
    ///
    /// # Errors
    /// 11 if the server does not lead, or no majority confirms it in time.
    async fn read_index(&self) -> Result<u64, Error> {
        let unavailable = |text| Error::new(ErrorCode::TemporarilyUnavailable, text);
        let deadline = self.now() + self.shared.settings.election_timeout;
        let term = self.shared.server.borrow().term();
        // The commits of former leaders are known once an entry of this term
        // is committed.
        let is_settled = self.until(deadline, |server| match &server.role {
            Role::Leader(leadership) if server.term() == term => {
                (server.commit >= leadership.first_index).then_some(true)
            }
            _ => Some(false),
        });
        if is_settled.await != Some(true) {
            return Err(unavailable("not the leader"));
        }
        let (index, round) = {
            let mut server = self.shared.server.borrow_mut();
            let index = server.commit;
            let leadership = server
                .leadership(term)
                .ok_or_else(|| unavailable("not the leader"))?;
            leadership.round += 1;
            (index, leadership.round)
        };
        if is_planted(Bug::ReadsWithoutQuorum) {
            return Ok(index);
        }
        self.notify();
        let quorum = self.shared.node.majority();
        let is_confirmed = self.until(deadline, |server| match &server.role {
            Role::Leader(leadership) if server.term() == term => {
                let confirmed = leadership
                    .followers
                    .values()
                    .filter(|progress| progress.confirmed >= round);
                (confirmed.count() + 1 >= quorum).then_some(true)
            }
            _ => Some(false),
        });
        match is_confirmed.await {
            Some(true) => Ok(index),
            _ => Err(unavailable("no majority has confirmed the leader")),
        }
    }
}

/// A request that a client of this server waits for. Its outcome is remembered
/// until this is dropped.
struct Waiting<'a, S, M: StateMachine> {
    raft: &'a Raft<S, M>,
    number: u64,
}

impl<'a, S, M: StateMachine> Waiting<'a, S, M> {
    fn new(raft: &'a Raft<S, M>) -> Self {
        Self {
            raft,
            number: raft.shared.server.borrow_mut().begin_request(),
        }
    }
}

impl<S, M: StateMachine> Drop for Waiting<'_, S, M> {
    fn drop(&mut self) {
        self.raft
            .shared
            .server
            .borrow_mut()
            .end_request(self.number);
    }
}
