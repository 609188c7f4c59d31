//! The reception of a connection since the latest `connect` that succeeded: its
//! [`DeliveryWindow`], the [`Subscription`] that feeds it, and the read in progress.
//! It moves messages between the three and the store, and decides nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hark_protocol::Sequence;
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, NeverPushed, Step};
use crate::store::{Account, End, Event, Events, Message, Page, Pending, Store, Subscription};

/// What is received since the latest `connect` that succeeded.
#[derive(Debug)]
pub(super) struct Reception {
    window: DeliveryWindow,
    account: Account,
    /// `None` once it has ended; acknowledgements still count.
    events: Option<Events>,
    read: Option<Box<Pending<Page>>>,
}

/// What comes of a [`Reception`].
pub(super) enum Received {
    /// A message for the reader.
    Message(Arc<Message>),
    /// It receives no more.
    End(End),
}

impl Reception {
    /// Receives by a subscription, from its cursor on.
    pub(super) fn new(subscription: Subscription) -> Self {
        let window = DeliveryWindow::new(subscription.cursor());
        let (account, events) = subscription.into_events();
        Self { window, account, events: Some(events), read: None }
    }

    /// It receives no more; what was pushed can still be acknowledged.
    pub(super) fn end(&mut self) {
        self.window.end();
        self.events = None;
        self.read = None;
    }

    /// What comes next for the reader.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, store: &dyn Store) -> Poll<Received> {
        loop {
            let Some(events) = &mut self.events else {
                return Poll::Pending;
            };
            if let Some(end) = events.end() {
                self.end();
                return Poll::Ready(Received::End(end));
            }
            match self.window.step(now) {
                Step::Push(message) => return Poll::Ready(Received::Message(message)),
                Step::Read { after, limit } => {
                    events.follow();
                    self.read = Some(store.read(&self.account, after, limit).into());
                }
                Step::Wait => {}
            }
            // From here on it is woken, whatever it waits for.
            if events.poll_end(cx).is_ready() {
                continue;
            }
            if let Some(read) = &mut self.read {
                let page = ready!(Pin::new(&mut **read).poll(cx));
                self.read = None;
                if let Err(missing) = self.window.handle_page(page, now) {
                    missing.report(&self.account);
                }
                continue;
            }
            if !self.window.wants_messages() {
                return Poll::Pending;
            }
            match events.next_event() {
                Some(Event::Appended(messages)) => self.window.handle_appended(messages),
                Some(Event::Lagged) => self.window.handle_lagged(),
                // The next turn takes it.
                Some(Event::Ended(_)) => {}
                None => return Poll::Pending,
            }
        }
    }

    /// The reader has everything up to `sequence`.
    ///
    /// # Errors
    /// [`NeverPushed`] for a number above all that were pushed.
    pub(super) fn acknowledge(&mut self, sequence: Sequence, store: &dyn Store) -> Result<(), NeverPushed> {
        if let Some(position) = self.window.handle_ack(sequence)? {
            store.acknowledge(&self.account, position);
        }
        Ok(())
    }

    /// Whose messages it receives.
    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the state of the delivery.
    pub(super) const fn window(&self) -> &DeliveryWindow {
        &self.window
    }
}
