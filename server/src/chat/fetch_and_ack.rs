//! Taking what is queued at once and for good, for readers that stay for one
//! answer and cannot acknowledge: the old gRPC service.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::{Code, UserName};
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, Step};
use super::{Chat, Fault};
use crate::store::{Account, Event, Message, Position, Unavailable};

impl Chat {
    /// Takes messages out of the inbox of an account that needs no password:
    /// they are acknowledged before they are yielded, so they come at most
    /// once. None while somebody receives for the account, who can acknowledge
    /// and therefore goes before. Cancel-safe: where it is dropped before it
    /// has resolved, nothing was taken.
    ///
    /// # Errors
    /// [`Code::NoSuchUser`], [`Code::Denied`]; [`Code::TooLarge`] where the next
    /// text is longer than `text_bytes_max`: nothing is taken then.
    pub async fn take(
        &self,
        address: IpAddr,
        user: UserName,
        text_bytes_max: usize,
    ) -> Result<Vec<Arc<Message>>, Fault> {
        let account = self.enter(address, user, None).await?.account;
        // As long as this is held, nobody else takes or receives unnoticed.
        let Some(mut receiver) = self.store.receive_if_free(&account).await? else {
            return Ok(Vec::new());
        };
        if receiver.queued() == 0 {
            return Ok(Vec::new());
        }
        let messages = self.read_window(&account, receiver.cursor()).await?;
        if let Some(long) = messages.first().map(|first| first.text.len()).filter(|n| *n > text_bytes_max) {
            return Fault::refused(
                Code::TooLarge,
                format!(
                    "the next message has {long} bytes, which is too long to be taken here; connect in another way"
                ),
            );
        }
        let ended = matches!(receiver.next_event(), Some(Event::Ended(_)));
        match messages.last() {
            Some(last) if !ended => self.store.acknowledge(&account, last.position),
            _ => return Ok(Vec::new()),
        }
        Ok(messages)
    }

    /// Reads as many messages after `cursor` as a reader that acknowledges has in
    /// flight at most. The rest is there the next time.
    async fn read_window(&self, account: &Account, cursor: Position) -> Result<Vec<Arc<Message>>, Fault> {
        let (mut window, now) = (DeliveryWindow::new(cursor), Instant::now());
        let mut messages = Vec::new();
        loop {
            match window.step(now) {
                Step::Push(message) => messages.push(message),
                Step::Read { after, limit } => {
                    let page = self.store.read(account, after, limit).await?;
                    window.handle_page(Ok(page), now).map_err(|missing| {
                        missing.report(account);
                        Unavailable
                    })?;
                }
                Step::Wait => return Ok(messages),
            }
        }
    }
}
