//! The stable output format: one line for each command and each message.
//! Scripts depend on it; the help documents it.

use hark_client::{Message, RequestError};
use hark_protocol::{Delivery, UserName};
use jiff::Timestamp;

use crate::command::Done;
use crate::text::{escape_json, escape_line, escape_name};

/// Formats the outcome of a command.
pub(crate) fn outcome(outcome: &Result<Done, RequestError>) -> String {
    match outcome {
        Ok(done) => ok(done),
        Err(RequestError::Refused(refusal)) => not_ok(refusal.code.as_str(), &refusal.explanation),
        Err(error @ RequestError::Unknown { .. }) => {
            format!("unknown {}", escape_line(&error.to_string()))
        }
        Err(RequestError::NotSent(why)) => format!("notsent {}", escape_line(why)),
        Err(RequestError::SeenStore(why)) => format!("notsent {}", escape_line(why)),
    }
}

/// Formats a refusal.
pub(crate) fn not_ok(code: &str, explanation: &str) -> String {
    format!("notok {code} {}", escape_line(explanation))
}

fn ok(done: &Done) -> String {
    match done {
        Done::Plain => "ok".to_owned(),
        Done::Connected(queued) => format!("ok {queued}"),
        Done::Deleted(true) => "ok deleted".to_owned(),
        Done::Deleted(false) => "ok absent".to_owned(),
        Done::Listed(answer) => {
            let names: Vec<_> = answer
                .names
                .iter()
                .map(|name| escape_name(name.as_str()))
                .collect();
            let separator = if names.is_empty() { "" } else { " " };
            let truncated = if answer.is_truncated {
                " truncated"
            } else {
                ""
            };
            format!(
                "ok {}{separator}{}{truncated}",
                names.len(),
                names.join(",")
            )
        }
    }
}

/// Formats a message. A comma, which no name contains, stands for an anonymous
/// sender.
pub(crate) fn message(delivery: &Delivery) -> String {
    let sender = delivery.sender.as_ref().map_or(",", UserName::as_str);
    let (sender, text) = (escape_name(sender), escape_line(&delivery.text));
    format!(
        "message {} {sender} {} {text}",
        delivery.sequence,
        time(delivery.time_ms)
    )
}

/// Formats a message as a JSON object on one line.
pub(crate) fn json(message: &Message) -> String {
    let delivery = &message.delivery;
    let object = serde_json::json!({
        "sequence": delivery.sequence.0,
        "user": message.user.as_str(),
        "sender": delivery.sender.as_ref().map(UserName::as_str),
        "time_ms": delivery.time_ms,
        "text": &*delivery.text,
    });
    escape_json(&object.to_string())
}

/// Formats a time in UTC with milliseconds by RFC 3339, or as a bare number if
/// it is out of range.
pub(crate) fn time(time_ms: u64) -> String {
    let timestamp = i64::try_from(time_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    timestamp.map_or_else(|| time_ms.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hark_client::handle::Names;
    use hark_protocol::{Code, Refusal, Sequence};

    #[test]
    fn message_is_one_line() {
        let delivery = Delivery {
            sequence: Sequence(7),
            sender: Some("amy".parse().unwrap()),
            time_ms: 1_700_000_000_123,
            text: "one, two\n\x1b[31m".into(),
        };
        assert_eq!(
            message(&delivery),
            r"message 7 amy 2023-11-14T22:13:20.123Z one, two\n\u{1b}[31m"
        );
        let nobodys = Delivery {
            sender: None,
            time_ms: u64::MAX,
            text: "".into(),
            ..delivery
        };
        assert_eq!(message(&nobodys), "message 7 , 18446744073709551615 ");
    }

    #[test]
    fn each_outcome_has_its_line() {
        let listed = |names: &[&str], is_truncated| {
            let names = names.iter().map(|name| name.parse().unwrap()).collect();
            Ok(Done::Listed(Names {
                names,
                is_truncated,
            }))
        };
        assert_eq!(outcome(&Ok(Done::Plain)), "ok");
        assert_eq!(outcome(&Ok(Done::Connected(3))), "ok 3");
        assert_eq!(outcome(&Ok(Done::Deleted(false))), "ok absent");
        assert_eq!(
            outcome(&listed(&["amy", "bob"], true)),
            "ok 2 amy,bob truncated"
        );
        assert_eq!(outcome(&listed(&[], false)), "ok 0");
        let refusal = Refusal::new(Code::BadPattern, "regex:\n(");
        assert_eq!(
            outcome(&Err(refusal.into())),
            r"notok bad-pattern regex:\n("
        );
        assert_eq!(
            outcome(&Err(RequestError::NotSent("the client is closed".into()))),
            "notsent the client is closed"
        );
    }
}
