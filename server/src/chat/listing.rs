//! `list`: the names that match a pattern, page by page, so that a big list
//! holds up nobody: neither a lock nor an async thread is kept for long.

use std::net::IpAddr;

use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MIN;
use hark_protocol::message::list_parts;
use hark_protocol::{Code, OkFields, Reply, UserName};
use regex::{Regex, RegexBuilder};

use super::fair_semaphore::FairSemaphore;
use super::{Chat, Fault};

/// `list`s that run at the same time: they are work for a processor, and the chat
/// goes before.
const AT_ONCE: usize = 1;

/// Names that are looked at before others get a turn.
const PAGE_NAMES: usize = 1024;

/// Bytes of names in one reply, at most, so that other replies come between.
const REPLY_BYTES_MAX: usize = 16 * 1024;

/// Memory that a compiled pattern may take, in bytes.
const COMPILED_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of a pattern, at most. Not what it is compiled to, but each class of
/// characters in it takes time, up to milliseconds for a few bytes.
const PATTERN_BYTES_MAX: usize = 1024;

/// The turns of all `list`s.
pub(super) fn turns() -> FairSemaphore {
    FairSemaphore::new(AT_ONCE, "too many lists are being made")
}

impl Chat {
    /// The replies to a `list` from `address`: names in order, then how many.
    ///
    /// # Errors
    /// [`Code::BadPattern`] with what is wrong with it; [`Code::RateLimited`].
    pub(super) async fn list(
        &self,
        address: IpAddr,
        pattern: Option<ByteString>,
    ) -> Result<Vec<Reply>, Fault> {
        let mut turn = self.lists.next(address).await?;
        let pattern = match pattern {
            Some(pattern) => Some(turn.run_blocking(move || compile(&pattern)).await??),
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
                    let matching = move || -> Vec<UserName> {
                        page.into_iter().filter(|name| pattern.is_match(name.as_str())).collect()
                    };
                    turn.run_blocking(matching).await?
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
    if pattern.len() > PATTERN_BYTES_MAX {
        return Fault::refused(
            Code::BadPattern,
            format!("a pattern has at most {PATTERN_BYTES_MAX} bytes, this has {}", pattern.len()),
        );
    }
    RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .build()
        .or_else(|error| {
            // The library draws a picture of the place over several lines; what
            // is wrong with it is the last.
            let text = error.to_string();
            let what = text.lines().last().unwrap_or_default().trim().trim_start_matches("error: ");
            Fault::refused(Code::BadPattern, format!("not a regular expression: {what}"))
        })
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

    #[test]
    fn a_pattern_is_short_enough_to_be_compiled_soon() {
        // Each of these classes is looked at letter by letter, all 1.1 million.
        let classes = "[\u{1}-\u{10fffd}]".repeat(1000);
        check_bad(&format!("(?i){classes}"), "a pattern has at most 1024 bytes, this has 8004");
        assert!(compile(&"a".repeat(1024)).is_ok());
        check_bad(&"a".repeat(1025), "a pattern has at most 1024 bytes, this has 1025");
    }
}
