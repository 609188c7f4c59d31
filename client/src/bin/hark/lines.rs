//! The stable output format: one line for each command and each message.
//! Scripts depend on it; the help documents it.

use hark_client::rooms::Device;
use hark_client::{Message, RequestError};
use hark_protocol::message::{Gap, RoomEntry, TokenEntry};
use hark_protocol::{Delivery, DeviceName, RoomName, UserName};
use jiff::Timestamp;

use crate::command::Done;
use crate::history::{Conversation, Entry, EntryState};
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
        Done::Joined(joined) => format!("ok {} {}", joined.last, joined.held),
        Done::Talking(room) => format!("ok {room}"),
        Done::Rooms(rooms) => counted("room", rooms.iter().map(room)),
        Done::Devices(devices) => counted("device", devices.iter().map(device)),
        Done::Token(secret) => format!("ok {}", secret.expose()),
        Done::Tokens(tokens) => counted("token", tokens.iter().map(token)),
        Done::Past(messages) => counted("past", messages.iter().map(delivery)),
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

/// Formats lines that begin with a word, and their count.
fn counted(word: &str, lines: impl ExactSizeIterator<Item = String>) -> String {
    let count = lines.len();
    let lines: String = lines.map(|line| format!("{word} {line}\n")).collect();
    format!("{lines}ok {count}")
}

/// Formats a room.
pub(crate) fn room(room: &RoomEntry) -> String {
    let unread = room
        .unread
        .map_or_else(|| "-".to_owned(), |unread| unread.to_string());
    let (name, mode) = (&room.name, room.mode.as_str());
    format!("{name} {mode} {} {unread} {}", room.members, room.last)
}

/// Formats a device.
pub(crate) fn device(device: &Device) -> String {
    let name = device.name.as_ref().map_or("-", DeviceName::as_str);
    format!("{name} {} {}", time(device.seen_ms), device.waiting)
}

/// Formats a token. A dash stands for no use.
pub(crate) fn token(token: &TokenEntry) -> String {
    let used = match token.used_ms {
        0 => "-".to_owned(),
        used_ms => time(used_ms),
    };
    format!("{} {} {used}", token.name, token.scope)
}

/// Formats a message of the inbox or of a room.
pub(crate) fn message(room: Option<&RoomName>, message: &Delivery) -> String {
    match room {
        None => format!("message {}", delivery(message)),
        Some(room) => format!("said {room} {}", delivery(message)),
    }
}

/// Formats missing messages. A comma stands for the inbox.
pub(crate) fn gap(gap: &Gap) -> String {
    let log = gap.log.as_ref().map_or(",", RoomName::as_str);
    format!("gap {log} {} {} {}", gap.from, gap.to, gap.count)
}

/// Formats missing messages as a JSON object on one line.
pub(crate) fn json_gap(gap: &Gap) -> String {
    let object = serde_json::json!({"gap": {
        "room": gap.log.as_ref().map(RoomName::as_str),
        "from": gap.from.0,
        "to": gap.to.0,
        "count": gap.count,
    }});
    escape_json(&object.to_string())
}

/// Formats a message without its log. A comma, which no name contains, stands for
/// an anonymous sender.
pub(crate) fn delivery(delivery: &Delivery) -> String {
    let sender = delivery.sender.as_ref().map_or(",", UserName::as_str);
    let (sender, text) = (escape_name(sender), escape_line(&delivery.text));
    format!(
        "{} {sender} {} {text}",
        delivery.sequence,
        time(delivery.time_ms)
    )
}

/// Formats an entry of the local history as [`delivery`] does. `-` stands for the number of
/// an own message that has none.
pub(crate) fn entry(entry: &Entry) -> String {
    let number = entry
        .number
        .map_or_else(|| "-".to_owned(), |number| number.to_string());
    let sender = entry.sender.as_ref().map_or(",", UserName::as_str);
    let (sender, text) = (escape_name(sender), escape_line(&entry.text));
    format!("{number} {sender} {} {text}", time(entry.time_ms))
}

/// Formats an entry of the local history as a JSON object on one line.
pub(crate) fn json_entry(conversation: &Conversation, entry: &Entry) -> String {
    let (state, detail) = match &entry.state {
        EntryState::Received => ("received", None),
        EntryState::Ignored => ("ignored", None),
        EntryState::Pending => ("pending", None),
        EntryState::Stored => ("stored", None),
        EntryState::Refused(why) => ("refused", Some(why.clone())),
        EntryState::Unknown(why) => ("unknown", Some(why.clone())),
        EntryState::Missing(count) => ("missing", Some(count.to_string())),
    };
    let object = serde_json::json!({
        "conversation": conversation.to_string(),
        "room": entry.room.as_ref().map(RoomName::as_str),
        "sequence": entry.number.map(|number| number.0),
        "sender": entry.sender.as_ref().map(UserName::as_str),
        "time_ms": entry.time_ms,
        "state": state,
        "detail": detail,
        "text": entry.text,
    });
    escape_json(&object.to_string())
}

/// Formats a message as a JSON object on one line.
pub(crate) fn json(message: &Message) -> String {
    let delivery = &message.delivery;
    let object = serde_json::json!({
        "sequence": delivery.sequence.0,
        "user": message.user.as_str(),
        "room": message.room.as_ref().map(RoomName::as_str),
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
    use hark_protocol::message::RoomMode;
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
            message(None, &delivery),
            r"message 7 amy 2023-11-14T22:13:20.123Z one, two\n\u{1b}[31m"
        );
        let nobodys = Delivery {
            sender: None,
            time_ms: u64::MAX,
            text: "".into(),
            ..delivery
        };
        assert_eq!(message(None, &nobodys), "message 7 , 18446744073709551615 ");
        let team = "#team".parse().unwrap();
        assert_eq!(
            message(Some(&team), &nobodys),
            "said #team 7 , 18446744073709551615 "
        );
    }

    #[test]
    fn room_and_device_lines_have_a_count() {
        let entry = |name: &str, unread| RoomEntry {
            name: name.parse().unwrap(),
            mode: RoomMode::Open,
            members: 3,
            unread,
            last: Sequence(7),
        };
        let rooms = vec![entry("#team", Some(2)), entry("#all", None)];
        assert_eq!(
            outcome(&Ok(Done::Rooms(rooms))),
            "room #team open 3 2 7\nroom #all open 3 - 7\nok 2"
        );
        let device = Device {
            name: None,
            seen_ms: 1_700_000_000_123,
            waiting: 1,
        };
        assert_eq!(
            outcome(&Ok(Done::Devices(vec![device]))),
            "device - 2023-11-14T22:13:20.123Z 1\nok 1"
        );
        let token = |used_ms| TokenEntry {
            name: "backup".parse().unwrap(),
            scope: "send:#team".parse().unwrap(),
            used_ms,
        };
        assert_eq!(
            outcome(&Ok(Done::Tokens(vec![token(0), token(1_700_000_000_000)]))),
            "token backup send:#team -\ntoken backup send:#team 2023-11-14T22:13:20.000Z\nok 2"
        );
        let missing = Gap {
            log: None,
            from: Sequence(1),
            to: Sequence(7),
            count: 3,
        };
        assert_eq!(gap(&missing), "gap , 1 7 3");
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
