//! Taking what is queued at once and for good, for readers that stay for one
//! answer and cannot acknowledge: the old gRPC service.

use std::net::IpAddr;
use std::sync::Arc;

use hark_protocol::limits::{WINDOW_BYTES_MAX, WINDOW_MESSAGES_MAX};
use hark_protocol::{Code, UserName};

use super::{Chat, Fault};
use crate::store::{Event, Message, ReadLimit};

/// How much is taken at a time: what a reader that acknowledges has on its way
/// at most. The rest is there the next time.
const TAKEN_MAX: ReadLimit = ReadLimit { messages: WINDOW_MESSAGES_MAX, bytes: WINDOW_BYTES_MAX };

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
        let after = receiver.cursor().sequence;
        let page = self.store.read(&account, after, TAKEN_MAX).await?;
        if let Some(long) =
            page.messages.first().map(|first| first.text.len()).filter(|n| *n > text_bytes_max)
        {
            return Fault::refused(
                Code::TooLarge,
                format!(
                    "the next message has {long} bytes, which is too long to be taken here; connect in another way"
                ),
            );
        }
        let ended = matches!(receiver.next_event(), Some(Event::Ended(_)));
        match page.messages.last() {
            Some(last) if !ended => self.store.acknowledge(&account, last.position),
            _ => return Ok(Vec::new()),
        }
        Ok(page.messages)
    }
}
