//! What is asked of the store, in the order of the calls: the accounts are
//! brought up to date once for all that waits, then each goes its way.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::Subscriber;
use futures::{FutureExt, StreamExt};
use hark_protocol::{SessionToken, UserName};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::Shared;
use super::engine::{ATTEMPT, Lost};
use super::lane::{Command, Job, PATIENCE};
use crate::store::{AccountEntry, Append, Completer, Outcome, Unavailable};

/// How often the accounts are brought up to date while nothing waits for it.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Something asked of the store.
#[derive(Debug)]
pub(super) enum Asked {
    Account(UserName, Completer<Option<AccountEntry>>),
    Names(Option<UserName>, usize, Completer<Vec<UserName>>),
    Append(Append, Completer<Outcome>),
    OpenSession(SessionToken, Option<IpAddr>, Completer<bool>),
    /// What belongs to the lane of a name.
    Lane(UserName, Command),
    Close(Completer<()>),
}

impl Asked {
    /// Decides that it is unknown what becomes of it.
    pub(super) fn refuse(self) {
        match self {
            Self::Append(append, completer) => Command::Append(append, completer).refuse(),
            Self::Lane(_, command) => command.refuse(),
            // What is dropped is unavailable.
            Self::Account(..) | Self::Names(..) | Self::OpenSession(..) | Self::Close(_) => {}
        }
    }
}

/// How much is asked that has not gone its way.
#[derive(Debug, Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

/// One of them, as long as this is there.
#[derive(Debug)]
pub(super) struct Counted(Count);

impl Count {
    pub(super) fn is_zero(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }

    pub(super) fn one_more(&self) -> Counted {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Release);
    }
}

/// What waits until the accounts are up to date.
#[derive(Debug)]
struct Waiting {
    /// Until when it may be tried.
    until: Instant,
    asked: Asked,
    /// Last, so that it has gone its way when this is dropped.
    _counted: Counted,
}

/// The task that takes in what is asked. What waits is bounded by those who
/// ask: each send holds a permit, each connection has few other requests.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    asked: mpsc::UnboundedReceiver<(Asked, Counted)>,
    waiting: VecDeque<Waiting>,
    /// What servers tell when an account has ended.
    ends: Subscriber,
}

impl Intake {
    pub(super) fn new(
        shared: Arc<Shared>,
        ends: Subscriber,
    ) -> (mpsc::UnboundedSender<(Asked, Counted)>, Self) {
        let (sender, asked) = mpsc::unbounded_channel();
        (sender, Self { shared, asked, waiting: VecDeque::new(), ends })
    }

    /// Works until the store closes.
    pub(super) async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                tokio::select! {
                    asked = self.asked.recv() => match asked {
                        Some(asked) => self.wait(asked),
                        None => return,
                    },
                    // Nothing is lost to a server that is not told of it; but there
                    // may be a connection that was this account.
                    Some(_) = self.ends.next() => {}
                    () = sleep(REFRESH_INTERVAL) => {}
                }
            }
            while let Ok(asked) = self.asked.try_recv() {
                self.wait(asked);
            }
            while let Some(Some(_)) = self.ends.next().now_or_never() {}
            // What is asked from here on may know more than what is read now.
            match self.shared.refresh(Instant::now()).await {
                Ok(()) => {
                    while let Some(Waiting { until, asked, _counted }) = self.waiting.pop_front() {
                        if let Asked::Close(completer) = asked {
                            return self.close(completer).await;
                        }
                        self.route(asked, until);
                    }
                }
                Err(Lost) => {
                    if let Some(completer) = self.give_up() {
                        return self.close(completer).await;
                    }
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    fn wait(&mut self, (asked, counted): (Asked, Counted)) {
        self.waiting.push_back(Waiting { until: Instant::now() + PATIENCE, asked, _counted: counted });
    }

    fn route(&self, asked: Asked, until: Instant) {
        let shared = &self.shared;
        match asked {
            Asked::Account(name, completer) => completer.complete(Ok(shared.directory.account(&name))),
            Asked::Names(after, limit, completer) => {
                completer.complete(Ok(shared.directory.names(after.as_ref(), limit)));
            }
            Asked::OpenSession(token, from, completer) => shared.sends.open(&token, from, completer),
            Asked::Lane(name, command) => shared.push(&name, Job { command, deadline: until }),
            Asked::Append(append, completer) => shared.append(append, completer, until),
            Asked::Close(_) => {}
        }
    }

    /// Refuses what has waited for too long. Whoever wants to close waits no
    /// longer for a cluster that does not answer.
    fn give_up(&mut self) -> Option<Completer<()>> {
        let now = Instant::now();
        while self.waiting.front().is_some_and(|first| first.until <= now) {
            if let Some(first) = self.waiting.pop_front() {
                first.asked.refuse();
            }
        }
        let closing = self.waiting.iter().position(|some| matches!(some.asked, Asked::Close(_)))?;
        match self.waiting.remove(closing) {
            Some(Waiting { asked: Asked::Close(completer), .. }) => Some(completer),
            _ => None,
        }
    }

    /// Everything that was asked is decided, and nothing else.
    async fn close(mut self, completer: Completer<()>) {
        self.asked.close();
        self.waiting.drain(..).for_each(|late| late.asked.refuse());
        while let Ok((late, _counted)) = self.asked.try_recv() {
            late.refuse();
        }
        let shared = &self.shared;
        shared.close_lanes();
        shared.tasks.close();
        let all_done = timeout(PATIENCE, shared.tasks.wait()).await.is_ok();
        let flushed = timeout(ATTEMPT, shared.engine.client().flush()).await;
        shared.stop.cancel();
        completer.complete(if all_done && matches!(flushed, Ok(Ok(()))) { Ok(()) } else { Err(Unavailable) });
    }
}
