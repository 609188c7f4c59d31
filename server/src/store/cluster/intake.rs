//! Requests to the store, in order of arrival. The accounts are updated once for all
//! waiting requests, which are then routed.

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

/// The interval of account updates while no request is waiting.
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);

/// The pause after a failed update.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// A request to the store.
#[derive(Debug)]
pub(super) enum Asked {
    Account(UserName, Completer<Option<AccountEntry>>),
    Names(Option<UserName>, usize, Completer<Vec<UserName>>),
    Append(Append, Completer<Outcome>),
    OpenSession(SessionToken, Option<IpAddr>, Completer<bool>),
    /// A command for the lane of a name.
    Lane(UserName, Command),
    Close(Completer<()>),
}

impl Asked {
    /// Answers that the outcome is unknown.
    pub(super) fn refuse(self) {
        match self {
            Self::Append(append, completer) => Command::Append(append, completer).refuse(),
            Self::Lane(_, command) => command.refuse(),
            // Dropping a completer answers with `Unavailable`.
            Self::Account(..) | Self::Names(..) | Self::OpenSession(..) | Self::Close(_) => {}
        }
    }
}

/// The number of requests that are not routed yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Count(Arc<AtomicUsize>);

/// A guard that counts one request until it is dropped.
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

/// A request that waits for current accounts.
#[derive(Debug)]
struct Waiting {
    /// The deadline of the request.
    until: Instant,
    asked: Asked,
    /// Declared last, so that the request is routed before the guard is dropped.
    _counted: Counted,
}

/// The task that routes requests. Its queue is bounded by the callers: each send holds a
/// permit, and each connection has few other requests.
#[derive(Debug)]
pub(super) struct Intake {
    shared: Arc<Shared>,
    asked: mpsc::UnboundedReceiver<(Asked, Counted)>,
    waiting: VecDeque<Waiting>,
    /// Notifications from other servers that an account has ended.
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

    /// Runs until the store closes.
    pub(super) async fn run(mut self) {
        loop {
            if self.waiting.is_empty() {
                tokio::select! {
                    asked = self.asked.recv() => match asked {
                        Some(asked) => self.wait(asked),
                        None => return,
                    },
                    // A missed notification costs no message, but a connection of the
                    // deleted account would stay open until the next update.
                    Some(_) = self.ends.next() => {}
                    () = sleep(REFRESH_INTERVAL) => {}
                }
            }
            while let Ok(asked) = self.asked.try_recv() {
                self.wait(asked);
            }
            while let Some(Some(_)) = self.ends.next().now_or_never() {}
            // Requests that arrive from here on may need later accounts than this update
            // reads.
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

    /// Refuses requests past their deadline. Returns a request to close, which does not
    /// wait for an unresponsive cluster.
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

    /// Finishes all routed requests and refuses the others.
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
