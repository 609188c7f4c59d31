//! What is asked of the store, in the order of the calls: the accounts are
//! brought up to date once for all that waits, then each goes its way.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{SessionToken, UserName};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::engine::{ATTEMPT, Lost};
use super::lane::{Command, PATIENCE};
use crate::store::{AccountEntry, Append, Decide, Outcome, Unavailable};

/// How often the accounts are brought up to date while nothing is asked.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Something asked of the store.
#[derive(Debug)]
pub(super) enum Asked {
    Account(UserName, Decide<Option<AccountEntry>>),
    Names(Option<UserName>, usize, Decide<Vec<UserName>>),
    Append(Append, Decide<Outcome>),
    OpenSession(SessionToken, Option<IpAddr>, Decide<bool>),
    /// What belongs to the lane of a name.
    Lane(UserName, Command),
    Close(Decide<()>),
}

impl Asked {
    /// Decides that it is unknown what becomes of it.
    pub(super) fn refuse(self) {
        match self {
            Self::Append(append, decide) => Command::Append(append, decide).refuse(),
            Self::Lane(_, command) => command.refuse(),
            // What is dropped is unavailable.
            Self::Account(..) | Self::Names(..) | Self::OpenSession(..) | Self::Close(_) => {}
        }
    }
}

/// The task that takes in what is asked. What waits is bounded by those who
/// ask: each send holds a permit, each connection has few other requests.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    asked: mpsc::UnboundedReceiver<Asked>,
    waiting: VecDeque<(Instant, Asked)>,
}

impl Intake {
    pub(super) fn new(shared: Arc<Shared>) -> (mpsc::UnboundedSender<Asked>, Self) {
        let (sender, asked) = mpsc::unbounded_channel();
        (sender, Self { shared, asked, waiting: VecDeque::new() })
    }

    /// Works until the store closes.
    pub(super) async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                match timeout(REFRESH_INTERVAL, self.asked.recv()).await {
                    Ok(Some(asked)) => self.wait(asked),
                    Ok(None) => return,
                    Err(_) => {}
                }
            }
            while let Ok(asked) = self.asked.try_recv() {
                self.wait(asked);
            }
            // What is asked from here on may know more than what is read now.
            let count = self.waiting.len();
            match self.shared.directory.refresh(&self.shared.engine, &self.shared.names).await {
                Ok(ended) => {
                    for account in ended {
                        self.shared.push_if_there(&account.name, Command::Ended(account.clone()));
                    }
                    let ready: Vec<_> = self.waiting.drain(..count).collect();
                    for (_, asked) in ready {
                        if let Asked::Close(decide) = asked {
                            return self.close(decide).await;
                        }
                        self.route(asked);
                    }
                }
                Err(Lost) => {
                    if let Some(decide) = self.give_up() {
                        return self.close(decide).await;
                    }
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    fn wait(&mut self, asked: Asked) {
        self.waiting.push_back((Instant::now() + PATIENCE, asked));
    }

    fn route(&self, asked: Asked) {
        let shared = &self.shared;
        match asked {
            Asked::Account(name, decide) => decide.decide(Ok(shared.directory.account(&name))),
            Asked::Names(after, limit, decide) => {
                decide.decide(Ok(shared.directory.names(after.as_ref(), limit)));
            }
            Asked::OpenSession(token, from, decide) => shared.sends.open(&token, from, decide),
            Asked::Lane(name, command) => shared.push(&name, command),
            Asked::Append(append, decide) => self.append(append, decide),
            Asked::Close(_) => {}
        }
    }

    fn append(&self, append: Append, decide: Decide<Outcome>) {
        let name = append.to.clone();
        let decide = match &append.send_id {
            Some(_) if append.fence.is_closed() => return decide.decide(Err(Unavailable)),
            Some(id) => self.shared.sends.take(id, decide),
            None => Some(decide),
        };
        if let Some(decide) = decide {
            self.shared.push(&name, Command::Append(append, decide));
        }
    }

    /// Refuses what has waited for too long. Whoever wants to close waits no
    /// longer for a cluster that does not answer.
    fn give_up(&mut self) -> Option<Decide<()>> {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((_, asked)) = self.waiting.pop_front() {
                asked.refuse();
            }
        }
        let closing = self.waiting.iter().position(|(_, asked)| matches!(asked, Asked::Close(_)))?;
        match self.waiting.remove(closing) {
            Some((_, Asked::Close(decide))) => Some(decide),
            _ => None,
        }
    }

    /// Everything that was asked is decided, and nothing else.
    async fn close(mut self, decide: Decide<()>) {
        self.asked.close();
        let late = self.waiting.drain(..).map(|(_, asked)| asked);
        late.for_each(Asked::refuse);
        while let Ok(asked) = self.asked.try_recv() {
            asked.refuse();
        }
        let shared = &self.shared;
        shared.close_lanes();
        shared.tasks.close();
        let all_done = timeout(PATIENCE, shared.tasks.wait()).await.is_ok();
        let flushed = timeout(ATTEMPT, shared.engine.client().flush()).await;
        shared.stop.cancel();
        decide.decide(if all_done && matches!(flushed, Ok(Ok(()))) { Ok(()) } else { Err(Unavailable) });
    }
}
