//! Deadlines of calls (`grpc-timeout`). A client enforces its own deadline; the
//! server enforces it, too, so that the call's resources are released even if the
//! client has vanished.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;

/// The longest timeout that is enforced; a longer one is ignored.
const TIMEOUT_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Returns the timeout of a call, if the client set one.
pub(super) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit())
    {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    let timeout = match unit {
        "H" => Duration::from_secs(count * 60 * 60),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    };
    (timeout <= TIMEOUT_MAX).then_some(timeout)
}

/// Limits a call and its response body to `timeout`.
///
/// # Errors
/// Those of the call.
pub(super) async fn limit<E>(
    timeout: Option<Duration>,
    call: impl Future<Output = Result<Response<Body>, E>>,
) -> Result<Response<Body>, E> {
    let Some(timeout) = timeout else {
        return call.await;
    };
    let deadline = Instant::now() + timeout;
    match tokio::time::timeout_at(deadline, call).await {
        Ok(response) => Ok(response?.map(|body| Body::new(Limited::new(body, deadline)))),
        Err(_) => Ok(exceeded().into_http()),
    }
}

/// A body that ends at its deadline.
struct Limited {
    /// `None` once it has ended.
    body: Option<Body>,
    deadline: Pin<Box<Sleep>>,
}

impl Limited {
    fn new(body: Body, deadline: Instant) -> Self {
        Self {
            body: Some(body),
            deadline: Box::pin(tokio::time::sleep_until(deadline)),
        }
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.deadline.as_mut().poll(cx));
        self.body = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(
            exceeded()
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        ))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }
}

fn exceeded() -> Status {
    Status::deadline_exceeded("the client's deadline has passed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<Duration>) {
        let headers =
            HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]);
        assert_eq!(timeout(&headers), expected, "{text:?}");
    }

    #[test]
    fn a_timeout_is_up_to_eight_digits_and_a_unit() {
        check("2H", Some(Duration::from_secs(7200)));
        check("3M", Some(Duration::from_secs(180)));
        check("42S", Some(Duration::from_secs(42)));
        check("99999999m", Some(Duration::from_millis(99_999_999)));
        check("7u", Some(Duration::from_micros(7)));
        check("0n", Some(Duration::ZERO));
        for none in [
            "",
            "S",
            "1",
            "1s",
            "123456789S",
            "-1S",
            "+1S",
            "1.5S",
            "99999999H",
        ] {
            check(none, None);
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }
}
