//! A call: a request that is sent, and its reply awaited.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::Body;
use crate::timers::Sleep;

/// How long a call waits unless it is told otherwise.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a callback waits unless it is told otherwise.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(2);

/// How often a call is tried, and how long each try waits.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Tries in all, 3 unless told otherwise; at least one is made.
    pub attempts: u32,
    /// How long each waits for its reply, 500 ms unless told otherwise.
    pub timeout: Duration,
    /// The pause before the next one; none unless told otherwise.
    pub backoff: Option<Backoff>,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 3, timeout: Duration::from_millis(500), backoff: None }
    }
}

/// What a call does unless it is told otherwise.
pub(crate) const ONCE: Retry = Retry { attempts: 1, timeout: CALL_TIMEOUT, backoff: None };

/// A pause that doubles each time, of which a random part is taken ("full
/// jitter": <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The longest first pause.
    pub first: Duration,
    /// The longest pause of all.
    pub max: Duration,
}

impl Backoff {
    /// The longest pause after so many attempts.
    fn pause_max(self, attempts: u32) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
        doubled.min(self.max)
    }
}

/// The reply to a call.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its whole body.
    pub body: Json,
    /// The attempt that was answered, 1 for the first.
    pub attempts: u32,
}

impl Reply {
    /// The body as a type.
    ///
    /// # Errors
    /// 13: it is not what the caller understands, so what happened is unknown.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let unknown = |error| Error::new(ErrorCode::Crash, format!("the reply is not as expected: {error}"));
        self.body.parse().map_err(unknown)
    }
}

/// A call that is sent when it is awaited. An attempt that is answered, times
/// out or is dropped leaves nothing behind.
///
/// Yields the reply, or the error that was replied; error 0 where none came in
/// time, and where all attempts of several failed; 11 where too many calls are
/// open, and 12 where what should be forwarded is no body. After the end of the
/// input it yields nothing any more.
#[must_use = "a call is sent when it is awaited"]
pub struct Call {
    core: Rc<Core>,
    dest: String,
    body: Result<Body, Error>,
    retry: Retry,
}

impl Call {
    pub(crate) fn new(core: Rc<Core>, dest: &str, body: Result<Body, Error>) -> Self {
        Self { core, dest: dest.to_owned(), body, retry: ONCE }
    }

    /// Waits so long, and not 1 s.
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.retry.timeout = timeout;
        self
    }

    /// Tries again, with a new `msg_id`, after an error that is indefinite or
    /// no answer.
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    async fn send(self) -> Result<Reply, Error> {
        let body = self.body?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match attempt(&self.core, &self.dest, &body, self.retry.timeout).await {
                Ok(body) => return Ok(Reply { body, attempts }),
                Err(error) if error.code.is_definite() || self.retry.attempts <= 1 => return Err(error),
                Err(error) if attempts >= self.retry.attempts => {
                    tracing::debug!(dest = self.dest, %error, "the last attempt failed");
                    let text = format!("RPC failed after {attempts} attempts");
                    return Err(Error::new(ErrorCode::Timeout, text));
                }
                Err(error) => tracing::debug!(dest = self.dest, attempts, %error, "trying again"),
            }
            if let Some(backoff) = self.retry.backoff {
                let pause = self.core.random_part(backoff.pause_max(attempts));
                Sleep::new(Rc::clone(&self.core), pause, false).await;
            }
        }
    }
}

/// Sends once, and waits for the reply.
async fn attempt(core: &Core, dest: &str, body: &Body, timeout: Duration) -> Result<Json, Error> {
    if core.has_ended() {
        // Nobody could answer.
        return std::future::pending().await;
    }
    let id = core.send_call(dest, body)?;
    let deadline = core.now().saturating_add(timeout);
    match core.calls.call(id, Some(deadline)) {
        Ok(call) => call.await?,
        Err(error) => Err(Error::new(ErrorCode::Crash, error.to_string())),
    }
}

impl IntoFuture for Call {
    type Output = Result<Reply, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output>>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_its_bound() {
        let backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_millis(350) };
        let pauses: Vec<_> = (1..5).map(|attempts| backoff.pause_max(attempts).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 350, 350]);
        assert_eq!(backoff.pause_max(u32::MAX), backoff.max);
    }
}
