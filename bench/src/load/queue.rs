//! Messages for offline users, and the users' return.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use tokio::task::JoinSet;

use super::text::{Arrivals, Faults};
use super::{Connection, DRAINING, Progress, STALLED_AFTER, Sender, keep_in_flight, on_a_runtime};
use crate::peers::{Peer, Role};

/// Messages for offline users.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    pub(crate) users: usize,
    pub(crate) senders: usize,
    /// The messages of all senders together.
    pub(crate) messages: usize,
    /// The sends in flight of one sender.
    pub(crate) in_flight: usize,
}

/// The accepted messages.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    /// The accepted messages of each sender.
    accepted: Arc<Vec<u32>>,
    pub(crate) seconds: f64,
}

impl Filled {
    /// The accepted messages of all senders.
    pub(crate) fn messages(&self) -> u64 {
        self.accepted.iter().copied().map(u64::from).sum()
    }
}

/// The result of receiving the messages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Drained {
    pub(crate) seconds: f64,
    pub(crate) users: u64,
    pub(crate) messages: u64,
    pub(crate) faults: Faults,
}

/// The result of a simultaneous return of all users.
#[derive(Debug, Default)]
pub(crate) struct Storm {
    /// The times at which the users were back, in seconds from the start, sorted.
    pub(crate) seconds: Vec<f64>,
    /// The number of users that were not back in time.
    pub(crate) left_behind: usize,
    pub(crate) faults: Faults,
}

impl Backlog {
    /// Returns the number of messages of each sender.
    fn parts(self) -> anyhow::Result<Vec<u32>> {
        let (each, rest) = (self.messages / self.senders, self.messages % self.senders);
        (0..self.senders)
            .map(|sender| Ok(u32::try_from(each + usize::from(sender < rest))?))
            .collect()
    }

    /// Sends the messages, or as many as there is time for, and waits until they are accepted.
    ///
    /// # Errors
    /// If the server refuses a request.
    pub(crate) fn send(
        self,
        peer: &dyn Peer,
        address: SocketAddr,
        within: Duration,
    ) -> anyhow::Result<Filled> {
        on_a_runtime(async {
            let mut senders = Vec::new();
            for (index, part) in self.parts()?.into_iter().enumerate() {
                let connection = Connection::open(address, peer.codec(Role::Sender(index))).await?;
                senders.push(Sender::new(connection, index, self.users, part));
            }
            let start = Instant::now();
            let progress = Arc::new(Progress::start());
            let mut sent = std::pin::pin!(keep_in_flight(senders, self.in_flight, &progress));
            let accepted = match tokio::time::timeout(within, &mut sent).await {
                Ok(accepted) => accepted?,
                Err(_) => {
                    progress.enter(DRAINING);
                    sent.await?
                }
            };
            Ok(Filled {
                accepted: Arc::new(accepted),
                seconds: start.elapsed().as_secs_f64(),
            })
        })
    }

    /// Lets users connect, this many at a time, receive their messages, and leave, for as many
    /// users as there is time for.
    ///
    /// # Errors
    /// If the server refuses a request.
    pub(crate) fn drain(
        self,
        filled: &Filled,
        peer: &Arc<dyn Peer>,
        address: SocketAddr,
        at_a_time: usize,
        within: Duration,
    ) -> anyhow::Result<Drained> {
        let parts = Arc::clone(&filled.accepted);
        on_a_runtime(async {
            let start = Instant::now();
            let mut readers = JoinSet::new();
            let users = Rc::new(RefCell::new(0..self.users));
            for _ in 0..at_a_time.min(self.users) {
                let (peer, parts, users) =
                    (Arc::clone(peer), Arc::clone(&parts), Rc::clone(&users));
                readers.spawn_local(async move {
                    let mut drained = Drained::default();
                    while start.elapsed() < within {
                        let next = users.borrow_mut().next();
                        let Some(user) = next else { break };
                        let mut reader = self.reader(user);
                        reader.receive(&*peer, address, &parts).await?;
                        drained.users += 1;
                        drained.messages += reader.messages;
                        drained.faults += reader.arrivals.faults(&parts);
                    }
                    anyhow::Ok(drained)
                });
            }
            let mut drained = Drained::default();
            while let Some(ended) = readers.join_next().await {
                let part = ended??;
                drained.users += part.users;
                drained.messages += part.messages;
                drained.faults += part.faults;
            }
            drained.seconds = start.elapsed().as_secs_f64();
            Ok(drained)
        })
    }

    /// Lets all users connect at the same time and receive their messages. A user whose
    /// connection fails retries, until the time is over.
    ///
    /// # Errors
    /// If no user is back in time.
    pub(crate) async fn storm(
        self,
        filled: &Filled,
        peer: &Arc<dyn Peer>,
        address: SocketAddr,
    ) -> anyhow::Result<Storm> {
        let start = Instant::now();
        let mut readers = JoinSet::new();
        for user in 0..self.users {
            let (peer, parts) = (Arc::clone(peer), Arc::clone(&filled.accepted));
            readers.spawn_local(async move {
                loop {
                    let mut reader = self.reader(user);
                    match reader.receive(&*peer, address, &parts).await {
                        Ok(connection) => {
                            let faults = reader.arrivals.faults(&parts);
                            return (start.elapsed().as_secs_f64(), faults, connection);
                        }
                        Err(_) => tokio::time::sleep(TRY_AGAIN_AFTER).await,
                    }
                }
            });
        }
        let (mut storm, mut connections) = (Storm::default(), Vec::new());
        let until = tokio::time::Instant::now() + BACK_WITHIN;
        while let Ok(Some(ended)) = tokio::time::timeout_at(until, readers.join_next()).await {
            let (seconds, faults, connection) = ended?;
            storm.seconds.push(seconds);
            storm.faults += faults;
            // The connections stay open, as those of real users do.
            connections.push(connection);
        }
        ensure!(
            !storm.seconds.is_empty(),
            "no user was back within {} s",
            BACK_WITHIN.as_secs()
        );
        storm.left_behind = self.users - storm.seconds.len();
        storm.seconds.sort_unstable_by(f64::total_cmp);
        Ok(storm)
    }

    fn reader(self, user: usize) -> Reader {
        Reader {
            user,
            arrivals: Arrivals::expect(user, self.users, self.senders),
            messages: 0,
        }
    }
}

/// A user that returns.
struct Reader {
    user: usize,
    arrivals: Arrivals,
    messages: u64,
}

impl Reader {
    /// Receives all its messages.
    async fn receive(
        &mut self,
        peer: &dyn Peer,
        address: SocketAddr,
        parts: &[u32],
    ) -> anyhow::Result<Connection> {
        let mut missing = self.arrivals.faults(parts).lost;
        let codec = peer.codec(Role::Receiver(self.user));
        let mut connection = Connection::open(address, codec).await?;
        loop {
            for stamp in connection.received.delivered.drain(..) {
                missing -= u64::from(self.arrivals.take(stamp)?);
                self.messages += 1;
            }
            if missing == 0 {
                // Sends the acknowledgement of the last messages.
                connection.flush().await?;
                return Ok(connection);
            }
            let turned =
                tokio::time::timeout(STALLED_AFTER + OPERATION_TIMEOUT, connection.turn()).await;
            turned
                .map_err(|_| anyhow!("{missing} messages of user {} did not arrive", self.user))?
                .with_context(|| format!("{missing} messages of user {} are missing", self.user))?;
        }
    }
}

/// The time in which users must be back.
const BACK_WITHIN: Duration = Duration::from_secs(30);

/// The delay of a user's retry.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The additional delay for each of many users.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(110);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_between_senders() {
        let backlog = Backlog {
            users: 5,
            senders: 3,
            messages: 11,
            in_flight: 1,
        };
        assert_eq!(backlog.parts().unwrap(), [4, 4, 3]);
        let expected: u64 = (0..5)
            .map(|user| {
                backlog
                    .reader(user)
                    .arrivals
                    .faults(&backlog.parts().unwrap())
                    .lost
            })
            .sum();
        assert_eq!(expected, 11);
    }
}
