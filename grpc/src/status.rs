//! Translation of refusals and failures to the status of a call: a gRPC code,
//! the protocol's code as a word in the metadata, and both again in the status
//! details.

use std::time::Duration;

use hark_protocol::{Code, Failure, Refusal};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code as StatusCode, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// Metadata key of the protocol's code.
pub const CODE: &str = "hark-code";

/// Metadata key of the seconds to wait.
pub const RETRY_AFTER: &str = "hark-retry-after-s";

/// Domain of the protocol's codes in `ErrorInfo`.
const DOMAIN: &str = "hark";

/// Returns the status of a refused call.
#[must_use]
pub fn refused(refusal: &Refusal) -> Status {
    let code = match refusal.code {
        Code::UnknownCommand => StatusCode::Unimplemented,
        Code::BadRequest
        | Code::BadName
        | Code::BadPassword
        | Code::BadPattern
        | Code::TooLarge => StatusCode::InvalidArgument,
        Code::Exists => StatusCode::AlreadyExists,
        Code::NoSuchUser => StatusCode::NotFound,
        Code::Denied => StatusCode::PermissionDenied,
        Code::QueueFull | Code::RateLimited | Code::TooMany | Code::NoSpace => {
            StatusCode::ResourceExhausted
        }
        Code::Unknown => StatusCode::FailedPrecondition,
    };
    status(
        code,
        refusal.code.as_str(),
        refusal.explanation.as_ref(),
        refusal.retry_after(),
    )
}

/// Returns the status of a call whose outcome is unknown.
#[must_use]
pub fn unavailable(explanation: &str) -> Status {
    status(
        StatusCode::Unavailable,
        Failure::Unavailable.as_str(),
        explanation,
        None,
    )
}

/// Extracts the refusal from a status. Returns `None` if the status has no code
/// of the protocol, or the code of a failure.
#[must_use]
pub fn refusal(status: &Status) -> Option<Refusal> {
    let word = status.metadata().get(CODE)?.to_str().ok()?;
    Failure::parse(word)
        .is_none()
        .then(|| Refusal::parse(word, status.message()))
}

fn status(
    code: StatusCode,
    word: &'static str,
    explanation: &str,
    wait: Option<Duration>,
) -> Status {
    let mut details = ErrorDetails::with_error_info(word, DOMAIN, []);
    let mut metadata = MetadataMap::new();
    metadata.insert(CODE, MetadataValue::from_static(word));
    if let Some(wait) = wait {
        details.set_retry_info(Some(wait));
        metadata.insert(RETRY_AFTER, wait.as_secs().into());
    }
    Status::with_error_details_and_metadata(code, explanation, details, metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_code_in_a_status_is_a_refusal() {
        let known = refused(&Refusal::new(Code::TooMany, "later"));
        assert_eq!(refusal(&known), Some(Refusal::new(Code::TooMany, "later")));
        let mut unknown = Status::failed_precondition("come back at five");
        assert_eq!(refusal(&unknown), None);
        unknown
            .metadata_mut()
            .insert(CODE, MetadataValue::from_static("out-of-tea"));
        assert_eq!(
            refusal(&unknown),
            Some(Refusal::new(Code::Unknown, "out-of-tea,come back at five"))
        );
        assert_eq!(refusal(&unavailable("try again")), None);
    }

    #[test]
    fn status_has_protocol_code_and_wait() {
        for code in Code::ALL {
            let status = refused(&Refusal::new(code, "7 s to wait: why"));
            assert_ne!(status.code(), StatusCode::Unknown);
            assert_eq!(status.message(), "7 s to wait: why");
            assert_eq!(status.metadata().get(CODE).unwrap(), code.as_str());
            assert_eq!(
                status.get_details_error_info().unwrap().reason,
                code.as_str()
            );
            let waits = code == Code::RateLimited;
            assert_eq!(status.metadata().get(RETRY_AFTER).is_some(), waits);
            assert_eq!(status.get_details_retry_info().is_some(), waits);
        }
    }
}
