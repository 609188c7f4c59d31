//! The answers that wait for the append in flight. The watchdog can take and fail them if
//! the append takes too long.

use hark_protocol::SessionToken;

use super::completion::{Completion, Sent};
use crate::sync::Mutex;

/// The answers, moved here by the commit thread for the duration of an append.
#[derive(Debug, Default)]
pub(super) struct AnswersInFlight {
    // A lock, because the watchdog shares the answers with the commit thread. It is held
    // for a swap, and while overdue answers are completed.
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    sent: Vec<Sent>,
    completions: Vec<Completion>,
    /// Sessions opened by the append whose openers were answered `unavailable`.
    abandoned: Vec<SessionToken>,
}

impl AnswersInFlight {
    /// Takes over the answers before an append.
    pub(super) fn put(&self, sent: &mut Vec<Sent>, completions: &mut Vec<Completion>) {
        let mut answers = self.answers.lock();
        std::mem::swap(&mut answers.sent, sent);
        std::mem::swap(&mut answers.completions, completions);
    }

    /// Returns the remaining answers after an append, and the sessions opened by it whose
    /// openers were answered `unavailable`.
    pub(super) fn take(
        &self,
        sent: &mut Vec<Sent>,
        completions: &mut Vec<Completion>,
    ) -> Vec<SessionToken> {
        let mut answers = self.answers.lock();
        std::mem::swap(&mut answers.sent, sent);
        std::mem::swap(&mut answers.completions, completions);
        std::mem::take(&mut answers.abandoned)
    }

    /// Completes the answers as unavailable, if the append is still stalled.
    pub(super) fn fail_if(&self, is_stalled: impl FnOnce() -> bool) {
        let mut answers = self.answers.lock();
        if is_stalled() {
            let Answers {
                sent,
                completions,
                abandoned,
            } = &mut *answers;
            sent.drain(..).for_each(Sent::fail);
            abandoned.extend(completions.drain(..).filter_map(Completion::fail));
        }
    }
}
