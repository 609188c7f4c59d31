//! `list`: the names that match a pattern, page by page, so that a big list
//! holds up nobody: neither a lock nor an async thread is kept for long.

use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MIN;
use hark_protocol::message::list_parts;
use hark_protocol::{Code, OkFields, Reply, UserName};
use regex::{Regex, RegexBuilder};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Chat, Fault};
use crate::store::Unavailable;

/// `list`s that run at the same time.
const AT_ONCE: usize = 1;

/// `list`s that run or wait for their turn, at most.
const IN_LINE_MAX: usize = 256;

/// Names that are looked at before others get a turn.
const PAGE_NAMES: usize = 1024;

/// Bytes of names in one reply, at most, so that other replies come between.
const REPLY_BYTES_MAX: usize = 16 * 1024;

/// Memory that a compiled pattern may take, in bytes.
const PATTERN_BYTES_MAX: usize = 1024 * 1024;

/// The `list`s of all connections: few at a time, since they are work for a
/// processor and the chat goes before, and not too many in line.
#[derive(Debug)]
pub(super) struct Lists {
    at_once: Semaphore,
    in_line: Semaphore,
}

impl Default for Lists {
    fn default() -> Self {
        Self { at_once: Semaphore::new(AT_ONCE), in_line: Semaphore::new(IN_LINE_MAX) }
    }
}

impl Lists {
    /// Waits for a turn; it ends when what is yielded is dropped.
    async fn turn(&self) -> Result<(SemaphorePermit<'_>, SemaphorePermit<'_>), Fault> {
        let Ok(place) = self.in_line.try_acquire() else {
            return Fault::rate_limited(Duration::from_secs(1), "too many lists are being made");
        };
        let turn = self.at_once.acquire().await.map_err(|_| Unavailable)?;
        Ok((place, turn))
    }
}

impl Chat {
    /// The replies to a `list`: names in order, then how many.
    ///
    /// # Errors
    /// [`Code::BadPattern`] with what is wrong with it; [`Code::RateLimited`].
    pub(super) async fn list(&self, pattern: Option<ByteString>) -> Result<Vec<Reply>, Fault> {
        let _turn = self.lists.turn().await?;
        let pattern = match pattern {
            Some(pattern) => Some(off_thread(move || compile(&pattern)).await??),
            None => None,
        };
        let wanted = self.rules.list_names_max;
        let mut names: Vec<UserName> = Vec::new();
        let mut after: Option<UserName> = None;
        // One more than is wanted shows that there are more.
        while names.len() <= wanted {
            let page = self.store.names(after.as_ref(), PAGE_NAMES).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            names.extend(match &pattern {
                None => page,
                Some(pattern) => {
                    let pattern = pattern.clone();
                    off_thread(move || {
                        page.into_iter().filter(|name| pattern.is_match(name.as_str())).collect()
                    })
                    .await?
                }
            });
        }
        let truncated = names.len() > wanted;
        names.truncate(wanted);
        Ok(self.replies(&names, truncated))
    }

    fn replies(&self, names: &[UserName], truncated: bool) -> Vec<Reply> {
        let bytes_max = REPLY_BYTES_MAX.min(self.rules.frame_bytes_max - FRAME_BYTES_MIN);
        let parts = list_parts(names, bytes_max).into_iter();
        let mut replies: Vec<Reply> = parts.map(|names| Reply::List(names.to_vec())).collect();
        replies.push(Reply::Ok(OkFields::listed(names.len(), truncated)));
        replies
    }
}

fn compile(pattern: &str) -> Result<Regex, Fault> {
    RegexBuilder::new(pattern)
        .size_limit(PATTERN_BYTES_MAX)
        .dfa_size_limit(PATTERN_BYTES_MAX)
        .build()
        .or_else(|error| {
            // The library draws a picture of the place over several lines; what
            // is wrong with it is the last.
            let text = error.to_string();
            let what = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            Fault::refused(Code::BadPattern, format!("not a regular expression: {what}"))
        })
}

async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unavailable> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Unavailable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_bad(pattern: &str, explanation: &str) {
        let Err(Fault::Refused(refusal)) = compile(pattern) else { panic!("{pattern:?} was taken") };
        assert_eq!((refusal.code, &*refusal.explanation), (Code::BadPattern, explanation));
    }

    #[test]
    fn a_bad_pattern_is_refused_with_what_is_wrong() {
        check_bad("(", "not a regular expression: unclosed group");
        check_bad(
            "a{99999}{99999}",
            "not a regular expression: Compiled regex exceeds size limit of 1048576 bytes.",
        );
    }
}
