//! One request to several nodes at once.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver};

use crate::call::{Call, FromReply, ONCE, Retry};
use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::message::Body;

/// The same call to several nodes at once, which is sent when it is awaited.
///
/// Awaited, it yields the outcome for each node in the order of the nodes, as
/// soon as all are known; [`Self::at_least`] ends with the first replies.
/// Calls that are still open when the future is dropped continue to their own
/// end.
#[must_use = "calls are sent when they are awaited"]
pub struct CallAll<R> {
    core: Rc<Core>,
    dests: Vec<String>,
    body: Result<Body, Error>,
    retry: Retry,
    reply: PhantomData<fn() -> R>,
}

/// The place of a node, and the outcome of its call.
type Outcomes<R> = Receiver<(usize, Result<R, Error>)>;

impl<R: FromReply + 'static> CallAll<R> {
    pub(crate) fn new(core: Rc<Core>, dests: Vec<String>, body: Result<Body, Error>) -> Self {
        Self {
            core,
            dests,
            body,
            retry: ONCE,
            reply: PhantomData,
        }
    }

    /// Sets the time that each attempt waits for its reply, 1 s by default.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.retry.timeout = timeout;
        self
    }

    /// Retries each call separately, as [`Call::retry`] does.
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Waits for this number of replies, and returns them with the names of
    /// their nodes, the earliest first. `node.majority() - 1` replies of peers
    /// make a majority together with the caller.
    ///
    /// # Errors
    /// 0 as soon as too many calls have failed; the others may have taken
    /// effect.
    pub async fn at_least(self, count: usize) -> Result<Vec<(String, R)>, Error> {
        let (dests, mut outcomes) = self.send();
        let mut replies = Vec::new();
        let (mut open, mut failure) = (dests.len(), None);
        while replies.len() < count {
            if replies.len() + open < count {
                return Err(too_few(replies.len(), count, failure));
            }
            let Some((place, outcome)) = outcomes.recv().await else {
                return Err(too_few(replies.len(), count, failure));
            };
            open -= 1;
            match (outcome, dests.get(place)) {
                (Ok(reply), Some(dest)) => replies.push((dest.clone(), reply)),
                (Err(error), _) => failure = Some(error),
                (Ok(_), None) => {}
            }
        }
        Ok(replies)
    }

    async fn all(self) -> Vec<(String, Result<R, Error>)> {
        let (dests, mut received) = self.send();
        let mut outcomes: Vec<Option<Result<R, Error>>> = dests.iter().map(|_| None).collect();
        while let Some((place, outcome)) = received.recv().await {
            if let Some(slot) = outcomes.get_mut(place) {
                *slot = Some(outcome);
            }
        }
        let panicked = || Err(Error::new(ErrorCode::Crash, "the reply could not be read"));
        dests
            .into_iter()
            .zip(outcomes)
            .map(|(dest, outcome)| (dest, outcome.unwrap_or_else(panicked)))
            .collect()
    }

    /// Begins a task for each call.
    fn send(self) -> (Vec<String>, Outcomes<R>) {
        let Self {
            core,
            dests,
            body,
            retry,
            ..
        } = self;
        let (sender, outcomes) = mpsc::channel(dests.len().max(1));
        for (place, dest) in dests.iter().enumerate() {
            let call = Call::<R>::new(Rc::clone(&core), dest, body.clone()).retry(retry);
            let sender = sender.clone();
            let task = async move {
                if sender.send((place, call.await)).await.is_err() {
                    tracing::trace!("a reply came after enough others");
                }
            };
            core.tasks.spawn(Box::pin(task), core.tasks.current());
        }
        (dests, outcomes)
    }
}

impl<R: FromReply + 'static> IntoFuture for CallAll<R> {
    type Output = Vec<(String, Result<R, Error>)>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.all())
    }
}

fn too_few(replies: usize, count: usize, failure: Option<Error>) -> Error {
    let why = failure.map_or_else(|| "no more nodes".to_owned(), |error| error.to_string());
    Error::new(
        ErrorCode::Timeout,
        format!("{replies} of {count} replies came: {why}"),
    )
}
