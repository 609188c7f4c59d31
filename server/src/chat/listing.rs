//! `list`: the names that match a pattern, read page by page, so that a long list
//! blocks neither a lock nor an async thread for long.

use std::net::IpAddr;

use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MIN;
use hark_protocol::message::list_parts;
use hark_protocol::{Code, OkFields, Reply, UserName};
use regex::{Regex, RegexBuilder};

use super::fair_semaphore::FairSemaphore;
use super::{Chat, Fault};

/// The most pages of lists that are made at the same time. They are CPU-bound, and the rest
/// of the chat has priority.
const CONCURRENT_MAX: usize = 1;

/// The maximum number of names that are matched before other tasks run.
const PAGE_NAMES: usize = 1024;

/// The maximum number of bytes of names in one reply, so that other replies can
/// interleave.
pub(super) const REPLY_BYTES_MAX: usize = 16 * 1024;

/// The maximum memory of a compiled pattern, in bytes.
const COMPILED_BYTES_MAX: usize = 1024 * 1024;

/// The longest pattern, in bytes. The size of its compiled form does not bound the time
/// to compile it: a character class of a few bytes takes milliseconds.
const PATTERN_BYTES_MAX: usize = 1024;

/// Returns the semaphore of all lists.
pub(super) fn permits() -> FairSemaphore {
    FairSemaphore::new(CONCURRENT_MAX, "too many list commands are running")
}

impl Chat {
    /// Returns the replies to a `list` from `address`: names in order, then their count.
    ///
    /// # Errors
    /// [`Code::BadPattern`] with the defect of the pattern; [`Code::RateLimited`].
    pub(super) async fn list(
        &self,
        address: IpAddr,
        pattern: Option<ByteString>,
    ) -> Result<Vec<Reply>, Fault> {
        let mut permit = self.lists.acquire(address).await?;
        let pattern = match pattern {
            Some(pattern) => Some(permit.run_blocking(move || compile(&pattern)).await??),
            None => None,
        };
        let names_max = self.rules().list_names_max;
        let mut names: Vec<UserName> = Vec::new();
        let mut after: Option<UserName> = None;
        // One name beyond the limit shows that the answer is truncated.
        while names.len() <= names_max {
            let page = self.store.names(after.as_ref(), PAGE_NAMES).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.clone());
            names.extend(match &pattern {
                None => page,
                Some(pattern) => {
                    let pattern = pattern.clone();
                    let matching = move || -> Vec<UserName> {
                        page.into_iter()
                            .filter(|name| pattern.is_match(name.as_str()))
                            .collect()
                    };
                    permit.run_blocking(matching).await?
                }
            });
        }
        let truncated = names.len() > names_max;
        names.truncate(names_max);
        Ok(self.replies(&names, truncated))
    }

    fn replies(&self, names: &[UserName], truncated: bool) -> Vec<Reply> {
        let bytes_max = REPLY_BYTES_MAX.min(self.rules().frame_bytes_max - FRAME_BYTES_MIN);
        let parts = list_parts(names, bytes_max).into_iter();
        let mut replies: Vec<Reply> = parts.map(|names| Reply::List(names.to_vec())).collect();
        replies.push(Reply::Ok(OkFields::Listed(names.len(), truncated)));
        replies
    }
}

/// Compiles a pattern of `list` or `rooms`.
///
/// # Errors
/// [`Code::BadPattern`] with the defect of the pattern.
pub(super) fn compile(pattern: &str) -> Result<Regex, Fault> {
    if pattern.len() > PATTERN_BYTES_MAX {
        return Fault::refused(
            Code::BadPattern,
            format!(
                "a pattern has at most {PATTERN_BYTES_MAX} bytes; this one has {}",
                pattern.len()
            ),
        );
    }
    RegexBuilder::new(pattern)
        .size_limit(COMPILED_BYTES_MAX)
        .dfa_size_limit(COMPILED_BYTES_MAX)
        .build()
        .or_else(|error| {
            // The library's message marks the position over several lines; the last one
            // names the defect.
            let text = error.to_string();
            let defect = text
                .lines()
                .last()
                .unwrap_or_default()
                .trim()
                .trim_start_matches("error: ");
            Fault::refused(
                Code::BadPattern,
                format!("not a regular expression: {defect}"),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_bad(pattern: &str, explanation: &str) {
        let Err(Fault::Refused(refusal)) = compile(pattern) else {
            panic!("{pattern:?} was accepted")
        };
        assert_eq!(
            (refusal.code, &*refusal.explanation),
            (Code::BadPattern, explanation)
        );
    }

    #[test]
    fn bad_pattern_is_refused_with_its_defect() {
        check_bad("(", "not a regular expression: unclosed group");
        check_bad(
            "a{99999}{99999}",
            "not a regular expression: Compiled regex exceeds size limit of 1048576 bytes.",
        );
    }

    #[test]
    fn too_long_pattern_is_refused() {
        // Case folding visits each of the 1.1 million characters of each class.
        let classes = "[\u{1}-\u{10fffd}]".repeat(1000);
        check_bad(
            &format!("(?i){classes}"),
            "a pattern has at most 1024 bytes; this one has 8004",
        );
        assert!(compile(&"a".repeat(1024)).is_ok());
        check_bad(
            &"a".repeat(1025),
            "a pattern has at most 1024 bytes; this one has 1025",
        );
    }
}
