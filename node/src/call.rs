//! A call: a request, and the wait for its reply.

use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::Body;
use crate::timers::Sleep;

/// The time that a call waits for its reply by default.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// The time that a callback waits for its reply by default.
pub const RPC_TIMEOUT: Duration = Duration::from_secs(2);

/// The number of attempts of a call, and the timeout of each.
#[derive(Debug, Clone, Copy)]
pub struct Retry {
    /// Attempts in all, 3 by default; at least one is made.
    pub attempts: u32,
    /// The time that each attempt waits for its reply, 500 ms by default.
    pub timeout: Duration,
    /// The pause between attempts, none by default.
    pub backoff: Option<Backoff>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 3,
            timeout: Duration::from_millis(500),
            backoff: None,
        }
    }
}

/// The default of a call: one attempt.
pub(crate) const ONCE: Retry = Retry {
    attempts: 1,
    timeout: CALL_TIMEOUT,
    backoff: None,
};

/// A pause that doubles with each attempt, and is shortened to a random part of
/// it ("full jitter":
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The maximum of the first pause.
    pub first: Duration,
    /// The maximum of all pauses.
    pub max: Duration,
}

impl Backoff {
    /// Returns the maximum of the pause after this number of attempts.
    pub(crate) fn pause_max(self, attempts: u32) -> Duration {
        let doubled = self
            .first
            .saturating_mul(2_u32.saturating_pow(attempts.saturating_sub(1)));
        doubled.min(self.max)
    }
}

/// The whole reply to a call, for a caller that wants more than its fields. A
/// handler that returns it passes it on as its own answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The whole body.
    pub body: Json,
    /// The attempt that was answered, 1 for the first.
    pub attempts: u32,
}

impl Reply {
    /// Parses the fields of the body; `()` takes none.
    ///
    /// # Errors
    /// 13 if the body has another form, because the effect is then unknown.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let unknown = |error| Error::new(ErrorCode::Crash, format!("unexpected reply: {error}"));
        self.body.parse_fields().map_err(unknown)
    }
}

/// A type that a call can yield: any that serde can deserialize from the fields
/// of the reply (`()` for none), [`Json`] for the whole body, and [`Reply`].
pub trait FromReply: Sized {
    /// Converts the reply.
    ///
    /// # Errors
    /// 13 if the body has another form.
    fn from_reply(reply: Reply) -> Result<Self, Error>;
}

impl<T: DeserializeOwned> FromReply for T {
    fn from_reply(reply: Reply) -> Result<Self, Error> {
        reply.parse()
    }
}

impl FromReply for Reply {
    fn from_reply(reply: Reply) -> Result<Self, Error> {
        Ok(reply)
    }
}

/// A call, which is sent when it is awaited. An attempt that is answered, times
/// out or is dropped leaves nothing behind.
///
/// Yields the reply as an `R`, or an error: the error in the reply; 0 if no
/// reply came in time, or if all of several attempts failed; 11 if too many
/// calls are open; 12 if a forwarded body is not valid; 13 if the reply is not
/// an `R`. After the end of the input it stays pending.
#[must_use = "a call is sent when it is awaited"]
pub struct Call<R> {
    core: Rc<Core>,
    dest: String,
    body: Result<Body, Error>,
    retry: Retry,
    reply: PhantomData<fn() -> R>,
}

impl<R: FromReply> Call<R> {
    pub(crate) fn new(core: Rc<Core>, dest: &str, body: Result<Body, Error>) -> Self {
        Self {
            core,
            dest: dest.to_owned(),
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

    /// Retries with a new `msg_id` after a timeout or an indefinite error.
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    async fn send(self) -> Result<R, Error> {
        let body = self.body?;
        let mut attempts = 0;
        loop {
            attempts += 1;
            match attempt(&self.core, &self.dest, &body, self.retry.timeout).await {
                Ok(body) => return R::from_reply(Reply { body, attempts }),
                Err(error) if error.code.is_definite() || self.retry.attempts <= 1 => {
                    return Err(error);
                }
                Err(error) if attempts >= self.retry.attempts => {
                    tracing::debug!(dest = self.dest, %error, "last attempt failed");
                    let text = format!("RPC failed after {attempts} attempts");
                    return Err(Error::new(ErrorCode::Timeout, text));
                }
                Err(error) => tracing::debug!(dest = self.dest, attempts, %error, "retrying"),
            }
            if let Some(backoff) = self.retry.backoff {
                let pause = self.core.random_part(backoff.pause_max(attempts));
                Sleep::new(Rc::clone(&self.core), pause, false).await;
            }
        }
    }
}

/// Sends one attempt and waits for the reply.
async fn attempt(core: &Core, dest: &str, body: &Body, timeout: Duration) -> Result<Json, Error> {
    if core.has_ended() {
        // No reply can arrive any more.
        return std::future::pending().await;
    }
    let id = core.send_call(dest, body)?;
    match core.calls.call(id, Some(core.call_deadline(timeout))) {
        Ok(call) => call.await?,
        Err(error) => Err(Error::new(ErrorCode::Crash, error.to_string())),
    }
}

impl<R: FromReply + 'static> IntoFuture for Call<R> {
    type Output = Result<R, Error>;
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
        let backoff = Backoff {
            first: Duration::from_millis(100),
            max: Duration::from_millis(350),
        };
        let pauses: Vec<_> = (1..5)
            .map(|attempts| backoff.pause_max(attempts).as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 350, 350]);
        assert_eq!(backoff.pause_max(u32::MAX), backoff.max);
    }
}
