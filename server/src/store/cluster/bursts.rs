//! Publications to one stream that go together. The engine stores what comes at
//! the same time in one step, on all its nodes and synced; what comes one by one
//! costs it a step each. So while some are under way to a stream, those that
//! come meanwhile wait, and go as one burst when all of the former are answered,
//! and a moment after: whoever is answered has often more.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

/// How long one waits for those before it, at most: they may never be answered.
const WAIT_MAX: Duration = Duration::from_millis(250);

/// How long a burst waits for company, where the last one had some.
const GATHERING: Duration = Duration::from_millis(1);

/// What is under way to one stream, and what waits.
#[derive(Debug, Clone, Default)]
pub(super) struct Bursts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Of the burst that goes or gathers.
    under_way: usize,
    /// How many it had in all.
    size: usize,
    /// When it goes.
    goes_at: Option<Instant>,
    /// One for each task that publishes, so they are bounded as those are.
    waiting: Vec<oneshot::Sender<UnderWay>>,
}

/// One publication, until it is answered.
#[derive(Debug)]
pub(super) struct UnderWay {
    bursts: Bursts,
    goes_at: Option<Instant>,
}

impl Bursts {
    /// Waits until the next burst goes, or about [`WAIT_MAX`]. Cancel-safe.
    pub(super) async fn join(&self) -> UnderWay {
        let joined = {
            let mut state = self.lock();
            if state.under_way == 0 {
                let had_company = state.size > 1;
                state.begin(1, had_company);
                Ok(self.under_way(&state))
            } else if state.goes_at.is_some_and(|at| Instant::now() < at) {
                state.under_way += 1;
                state.size += 1;
                Ok(self.under_way(&state))
            } else {
                let (sender, next) = oneshot::channel();
                state.waiting.push(sender);
                Err(next)
            }
        };
        let under_way = match joined {
            Ok(under_way) => under_way,
            Err(next) => match timeout(WAIT_MAX, next).await {
                Ok(Ok(under_way)) => under_way,
                _ => {
                    self.lock().under_way += 1;
                    return UnderWay { bursts: self.clone(), goes_at: None };
                }
            },
        };
        if let Some(at) = under_way.goes_at {
            sleep_until(at).await;
        }
        under_way
    }

    fn under_way(&self, state: &State) -> UnderWay {
        UnderWay { bursts: self.clone(), goes_at: state.goes_at }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn begin(&mut self, count: usize, gathers: bool) {
        self.under_way = count;
        self.size = count;
        self.goes_at = gathers.then(|| Instant::now() + GATHERING);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let (next, goes_at) = {
            let mut state = self.bursts.lock();
            state.under_way -= 1;
            if state.under_way > 0 || state.waiting.is_empty() {
                return;
            }
            let next = std::mem::take(&mut state.waiting);
            state.begin(next.len(), true);
            (next, state.goes_at)
        };
        for waiting in next {
            // Whoever waits no longer drops it, which counts as answered.
            drop(waiting.send(Self { bursts: self.bursts.clone(), goes_at }));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_comes_while_some_are_under_way_goes_together_after_them() {
        let bursts = Bursts::default();
        let first = bursts.join().await;
        let mut waiting = [(); 3].map(|()| Box::pin(bursts.join()));
        for next in &mut waiting {
            assert!(poll!(next).is_pending());
        }
        drop(first);
        let [one, two, three] = waiting;
        // Who comes while it gathers goes with it.
        let (one, two, late) = tokio::join!(one, two, bursts.join());
        let mut later = Box::pin(bursts.join());
        assert!(poll!(&mut later).is_pending());
        drop((one, two, late));
        assert!(poll!(&mut later).is_pending(), "one is not answered");
        // It has been let go, and goes no more.
        drop(three);
        drop(later.await);
        assert_eq!(bursts.lock().under_way, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_does_not_wait() {
        let bursts = Bursts::default();
        let began = Instant::now();
        for _ in 0..10 {
            drop(bursts.join().await);
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_long_for_what_is_never_answered() {
        let bursts = Bursts::default();
        let lost = bursts.join().await;
        let mut given_up = Box::pin(bursts.join());
        assert!(poll!(&mut given_up).is_pending());
        drop(given_up);
        let second = bursts.join().await;
        assert_eq!(bursts.lock().under_way, 2);
        drop((lost, second));
        assert_eq!(bursts.lock().under_way, 0);
        drop(bursts.join().await);
        assert_eq!(bursts.lock().under_way, 0);
    }
}
