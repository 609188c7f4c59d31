//! The answers that wait for the append in flight, so that another thread can give them
//! if it takes too long.

use std::sync::{Mutex, MutexGuard, PoisonError};

use hark_protocol::SessionToken;

use super::commit::{Completion, Sent};

/// The answers. They are the commit thread's, but for the time of an append.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    // A lock, since the watchdog takes what the commit thread waits with. It is held
    // for a swap, and while answers are given that come too late.
    answers: Mutex<Answers>,
}

#[derive(Debug, Default)]
struct Answers {
    sent: Vec<Sent>,
    completions: Vec<Completion>,
    /// Sessions that were opened and not answered.
    abandoned: Vec<SessionToken>,
}

impl InFlight {
    /// Takes over the answers before an append.
    pub(super) fn put(&self, sent: &mut Vec<Sent>, completions: &mut Vec<Completion>) {
        let mut answers = self.lock();
        std::mem::swap(&mut answers.sent, sent);
        std::mem::swap(&mut answers.completions, completions);
    }

    /// Gives back those that were not given after an append. Returns the sessions that
    /// were opened and whose openers have been told nothing.
    pub(super) fn take(&self, sent: &mut Vec<Sent>, completions: &mut Vec<Completion>) -> Vec<SessionToken> {
        let mut answers = self.lock();
        std::mem::swap(&mut answers.sent, sent);
        std::mem::swap(&mut answers.completions, completions);
        std::mem::take(&mut answers.abandoned)
    }

    /// Answers that the outcome is unknown, if the append still takes too long.
    pub(super) fn fail_if(&self, is_stalled: impl FnOnce() -> bool) {
        let mut answers = self.lock();
        if is_stalled() {
            let Answers { sent, completions, abandoned } = &mut *answers;
            sent.drain(..).for_each(Sent::fail);
            abandoned.extend(completions.drain(..).filter_map(Completion::fail));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Answers> {
        // Nothing panics while the lock is held.
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
