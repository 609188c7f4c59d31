//! The delivery of one inbox to a connection, since its latest successful `connect`:
//! the [`DeliveryWindow`], the [`Subscription`] that feeds it, and the read in
//! progress. It moves messages between the three and the store; the window decides.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use hark_protocol::message::RoomReply;
use hark_protocol::{RoomName, Sequence};
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, NeverPushed, Step};
use crate::store::{
    Account, DeviceId, DeviceSubscription, End, Event, Events, Message, Page, Pending, Said, Store,
    Subscription,
};

/// The reader of one inbox.
#[derive(Debug)]
pub(super) struct InboxReader {
    window: DeliveryWindow,
    account: Account,
    /// The device that is attached; `None` for `connect`.
    device: Option<DeviceId>,
    /// `None` once the delivery has ended. Acknowledgements still count.
    events: Option<Events>,
    read: Option<Box<Pending<Page>>>,
}

/// The output of an [`InboxReader`].
pub(super) enum Received {
    /// A message to push.
    Message(Arc<Message>),
    /// A message of a room to push.
    #[expect(dead_code, reason = "rooms are not delivered yet")]
    Said(Arc<Said>),
    /// Another push.
    #[expect(dead_code, reason = "rooms are not delivered yet")]
    Notice(RoomReply),
    /// The end of the delivery.
    End(End),
}

impl InboxReader {
    /// Returns a reader of `subscription`, beginning at its cursor.
    pub(super) fn new(subscription: Subscription) -> Self {
        let window = DeliveryWindow::new(subscription.cursor());
        let (account, events) = subscription.into_events();
        Self {
            window,
            account,
            device: None,
            events: Some(events),
            read: None,
        }
    }

    /// Returns a reader for a device that is attached.
    pub(super) fn attached(attached: DeviceSubscription) -> Self {
        Self {
            device: Some(attached.device),
            ..Self::new(attached.inbox)
        }
    }

    /// Ends the delivery. Messages in flight can still be acknowledged.
    pub(super) fn end(&mut self) {
        self.window.end();
        self.events = None;
        self.read = None;
    }

    /// Polls for the next message, or the end.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        store: &dyn Store,
    ) -> Poll<Received> {
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
            // Registers the waker, for the end and for events.
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
                // The next iteration handles it.
                Some(Event::Ended(_)) => {}
                None => return Poll::Pending,
            }
        }
    }

    /// Acknowledges every message up to `sequence`.
    ///
    /// # Errors
    /// [`NeverPushed`] for a number above the last push.
    pub(super) fn acknowledge(
        &mut self,
        log: Option<&RoomName>,
        sequence: Sequence,
        store: &dyn Store,
    ) -> Result<(), NeverPushed> {
        if log.is_some() {
            return Ok(());
        }
        if let Some(position) = self.window.handle_ack(sequence)? {
            match self.device {
                None => store.acknowledge(&self.account, position),
                Some(device) => store.acknowledge_inbox(&self.account, device, position),
            }
        }
        Ok(())
    }

    /// Returns the device that is attached, unless this is a `connect`.
    pub(super) const fn device(&self) -> Option<DeviceId> {
        self.device
    }

    /// Returns the account of the inbox.
    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    /// Returns the window of messages in flight.
    pub(super) const fn window(&self) -> &DeliveryWindow {
        &self.window
    }
}
