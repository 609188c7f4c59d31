//! Fetching an inbox destructively, for readers that wait for a single answer and
//! cannot acknowledge: the legacy gRPC service.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{Code, UserName};
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, Push, ReadPage, Step};
use super::{Chat, Fault};
use crate::store::{Account, Event, Message, Position, Unavailable};

impl Chat {
    /// Fetches messages from the inbox of an account without a password and
    /// acknowledges them before it returns them, so that each is delivered at most
    /// once. Returns none while a connection receives for the account, since that
    /// connection can acknowledge. Cancel-safe: a call that is dropped before it
    /// resolves takes nothing.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`]; [`Code::TooLarge`] if the next text is
    /// longer than `text_bytes_max`, in which case nothing is taken.
    pub async fn fetch_and_ack(
        &self,
        address: IpAddr,
        user: UserName,
        text_bytes_max: usize,
    ) -> Result<Vec<Arc<Message>>, Fault> {
        let account = self.login_by_password(address, user, None).await?.account;
        // While the subscription lives, a takeover by another reader shows as its end.
        let Some(mut subscription) = self.store.receive_if_free(&account).await? else {
            return Ok(Vec::new());
        };
        if subscription.queued() == 0 {
            return Ok(Vec::new());
        }
        let messages = self.read_window(&account, subscription.cursor()).await?;
        if let Some(long) = messages
            .first()
            .map(|first| first.text.len())
            .filter(|n| *n > text_bytes_max)
        {
            return Fault::refused(
                Code::TooLarge,
                format!(
                    "the next message has {long} bytes, too many for this service; use hark.v1.Chat"
                ),
            );
        }
        let ended = matches!(subscription.next_event(), Some(Event::Ended(_)));
        match messages.last() {
            Some(last) if !ended => self.store.acknowledge(&account, last.position),
            _ => return Ok(Vec::new()),
        }
        Ok(messages)
    }

    /// Reads at most one window of messages after `cursor`.
    async fn read_window(
        &self,
        account: &Account,
        cursor: Position,
    ) -> Result<Vec<Arc<Message>>, Fault> {
        let (mut window, now) = (DeliveryWindow::new(cursor, false), Instant::now());
        let mut messages = Vec::new();
        loop {
            match window.step(now) {
                Step::Push(_, Push::Message(message)) => messages.push(message),
                Step::Read { after, limit, .. } => {
                    let page = self.store.read(account, after.into(), limit).await?;
                    let page = ReadPage::of_inbox(page);
                    window.handle_page(Ok(page), now).map_err(|missing| {
                        missing.report(account, None);
                        Unavailable
                    })?;
                }
                Step::Push(..) | Step::Take(..) | Step::Left(..) | Step::Wait => {
                    return Ok(messages);
                }
            }
        }
    }
}
