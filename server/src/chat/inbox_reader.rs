//! The reception of a connection since the latest `connect` that succeeded: its
//! [`DeliveryWindow`], the [`Subscription`] that feeds it, and the read in progress.
//! It moves messages between the three and the store, and decides nothing.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hark_protocol::Sequence;
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, NeverPushed, Step};
use crate::store::{Account, End, Event, Message, Page, Pending, Store, Subscription};

/// What is received since the latest `connect` that succeeded.
#[derive(Debug)]
pub(super) struct InboxReader {
    window: DeliveryWindow,
    account: Account,
    /// `None` once it has ended; acknowledgements still count.
    receiver: Option<Subscription>,
    read: Option<Pending<Page>>,
}

/// What comes of a [`InboxReader`].
pub(super) enum Received {
    /// A message for the reader.
    Message(Arc<Message>),
    /// It receives no more.
    End(End),
}

impl InboxReader {
    /// Receives by `receiver`, from its cursor on.
    pub(super) fn new(receiver: Subscription) -> Self {
        Self {
            window: DeliveryWindow::new(receiver.cursor()),
            account: receiver.account().clone(),
            receiver: Some(receiver),
            read: None,
        }
    }

    /// It receives no more; what was pushed can still be acknowledged.
    pub(super) fn end(&mut self) {
        self.window.end();
        self.receiver = None;
        self.read = None;
    }

    /// What comes next for the reader.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, now: Instant, store: &dyn Store) -> Poll<Received> {
        loop {
            let Some(receiver) = &mut self.receiver else {
                return Poll::Pending;
            };
            if let Some(end) = receiver.end() {
                self.end();
                return Poll::Ready(Received::End(end));
            }
            match self.window.step(now) {
                Step::Push(message) => return Poll::Ready(Received::Message(message)),
                Step::Read { after, limit } => {
                    receiver.follow();
                    self.read = Some(store.read(&self.account, after, limit));
                }
                Step::Wait => {}
            }
            // From here on it is woken, whatever it waits for.
            if receiver.poll_end(cx).is_ready() {
                continue;
            }
            if let Some(read) = &mut self.read {
                let page = ready!(Pin::new(read).poll(cx));
                self.read = None;
                if let Err(missing) = self.window.handle_page(page, now) {
                    missing.report(&self.account);
                }
                continue;
            }
            if !self.window.wants_messages() {
                return Poll::Pending;
            }
            match receiver.next_event() {
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
