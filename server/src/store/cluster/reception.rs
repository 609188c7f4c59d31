//! Notifications for a receiver that is connected to this server: stored messages, and a
//! takeover by another connection.
//!
//! A notification may be lost. Each message names its predecessor in the inbox, so that
//! the next message reveals a loss. After a reconnection or a long silence, the session
//! reads the stream. So no message waits forever.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::engine::{Lost, number};
use super::lane::Command;
use super::record::{END, State, Told, decode_message};
use super::setup::Link;
use crate::store::{Account, End, Publisher};

/// The silence after which the stream is checked for missed messages.
const SILENCE: Duration = Duration::from_secs(30);

/// Delays of the first checks after a subscription. Subscriptions and requests to a
/// leader spread over the nodes independently, so a message may be stored before the
/// subscription is active.
const FIRST_LOOKS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(2)];

/// The pause after a failed check.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The receiver of an account at this server.
#[derive(Debug)]
pub(super) struct Reception {
    account: Account,
    feed: Publisher,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

/// The right to receive, valid until a later claim is written.
#[derive(Debug, Clone)]
pub(super) struct Claim {
    pub(super) account: Account,
    /// The id of this claim in the state record.
    pub(super) reception: u64,
    /// The sequence of that record.
    pub(super) revision: u64,
}

struct Task {
    shared: Arc<Shared>,
    claim: Claim,
    feed: Publisher,
    subscription: Subscriber,
    link: watch::Receiver<Link>,
    /// The sequence of the last known message of the inbox.
    last: u64,
}

impl Reception {
    /// Starts to notify `feed` of the messages after `last`, until it is stopped or
    /// `released` is cancelled.
    pub(super) fn begin(
        shared: &Arc<Shared>,
        claim: Claim,
        subscription: Subscriber,
        feed: Publisher,
        released: CancellationToken,
        last: u64,
    ) -> Self {
        let stop = shared.stop.child_token();
        let account = claim.account.clone();
        let mut link = shared.link.clone();
        link.mark_unchanged();
        let task = Task { shared: Arc::clone(shared), claim, feed: feed.clone(), subscription, link, last };
        let task = shared.tasks.spawn(task.run(stop.clone(), released));
        Self { account, feed, stop, task }
    }

    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    /// Returns whether the receiver has ended.
    pub(super) fn is_ended(&self) -> bool {
        self.feed.is_ended()
    }

    /// Ends the receiver's subscription.
    pub(super) fn end(&self, end: End) {
        self.feed.end(end);
    }

    /// Stops the task, and returns the publisher when no later notification can reach it.
    /// The caller still has to end it.
    pub(super) async fn stop(self) -> Publisher {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(%error, "receiver task failed");
        }
        self.feed
    }
}

impl Task {
    async fn run(mut self, stop: CancellationToken, released: CancellationToken) {
        let looks_from_now = || FIRST_LOOKS.map(|after| Instant::now() + after).into_iter().peekable();
        let mut first_looks = looks_from_now();
        let mut silent_until = Instant::now() + SILENCE;
        loop {
            let look_at = first_looks.peek().copied().unwrap_or(silent_until);
            tokio::select! {
                () = stop.cancelled() => break,
                () = released.cancelled() => {
                    let account = self.claim.account.clone();
                    self.shared.push_if_there(&account.name, Command::Released(account.clone()));
                    break;
                }
                told = self.subscription.next() => match told {
                    Some(told) => {
                        silent_until = Instant::now() + SILENCE;
                        self.handle(told).await;
                    }
                    None => break,
                },
                changed = self.link.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    // The connection was interrupted, so messages may have been missed.
                    self.feed.lagged();
                    first_looks = looks_from_now();
                }
                () = sleep_until(look_at) => {
                    first_looks.next();
                    let pause = if self.look().await { SILENCE } else { LOOK_AGAIN };
                    // Jitter spreads the checks of many receivers.
                    silent_until = Instant::now() + pause.mul_f64(rand::random_range(0.8..1.2));
                }
            }
        }
        if let Err(error) = self.subscription.unsubscribe().await {
            tracing::debug!(%error, "unsubscribe failed");
        }
    }

    async fn handle(&mut self, told: async_nats::Message) {
        match Told::of_subject(&told.subject) {
            Some(Told::Message) if told.payload != END => self.message(&told),
            Some(Told::State) => self.state(&told),
            Some(Told::Stored) => self.feed.lagged(),
            Some(Told::Ended | Told::Message) => {
                let account = self.claim.account.clone();
                self.shared.push_if_there(&account.name, Command::Ended(account.clone()));
            }
            Some(Told::Yield) => {
                if let Some(reply) = told.reply {
                    let account = self.claim.account.clone();
                    let command = Command::Yield(account.clone(), reply.into_string());
                    self.shared.push_if_there(&account.name, command);
                }
            }
            Some(Told::Probe) if !self.feed.is_ended() => {
                if let Some(reply) = told.reply {
                    self.shared.publish(reply.into_string()).await;
                }
            }
            Some(Told::Probe) | None => {}
        }
    }

    fn message(&mut self, told: &async_nats::Message) {
        let Some(sequence) = number(told, "Nats-Sequence") else { return };
        if sequence <= self.last {
            return;
        }
        let follows = number(told, "Nats-Last-Sequence") == Some(self.last);
        self.last = sequence;
        match decode_message(sequence, told.payload.clone()) {
            Ok(message) if follows => self.feed.appended([Arc::new(message)]),
            // A message before it is missing, or it is damaged. A read reports which.
            _ => self.feed.lagged(),
        }
    }

    fn state(&self, told: &async_nats::Message) {
        let revision = number(told, "Nats-Sequence").unwrap_or(0);
        if revision > self.claim.revision
            && State::decode(&told.payload).is_ok_and(|state| state.reception != self.claim.reception)
        {
            self.feed.end(End::TakenOver);
        }
    }

    /// Checks for missed messages. Returns whether the check succeeded.
    async fn look(&mut self) -> bool {
        let looked = self.try_to_look().await;
        if let Err(Lost) = looked {
            tracing::debug!(name = %self.claim.account.name, "check for missed messages failed");
        }
        looked.is_ok()
    }

    async fn try_to_look(&mut self) -> Result<(), Lost> {
        let account = &self.claim.account;
        let (revision, state) = self.shared.state(account).await?;
        if revision > self.claim.revision && state.reception != self.claim.reception {
            self.feed.end(End::TakenOver);
            return Ok(());
        }
        let stream = self.shared.names.inbox_stream_of(&account.name);
        let last = self.shared.engine.last(&stream, &self.shared.names.inbox(account)).await?;
        if let Some(last) = last.filter(|last| last.sequence > self.last) {
            self.last = last.sequence;
            self.feed.lagged();
        }
        Ok(())
    }
}
