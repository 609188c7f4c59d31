//! Formatting for the terminal: pure functions from outcomes and events to
//! lines.

use hark_client::handle::Names;
use hark_client::rooms::Device;
use hark_client::{LinkState, RequestError};
use hark_protocol::message::{Gap, RoomEntry, TokenEntry};
use hark_protocol::{Delivery, DeviceName, RoomName, UserName};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::command::{Command, Done};
use crate::history::{self, EntryState};
use crate::settings::Colors;
use crate::text::{block, escape, escape_name};

/// Length of the excerpt of a sent text, in characters.
const EXCERPT_CHARS: usize = 60;

/// Whether colors are used.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) is_colored: bool,
}

impl Style {
    /// Uses colors as configured, by default unless `NO_COLOR` is set. For terminals only.
    pub(crate) fn of_terminal(colors: Colors) -> Self {
        Self {
            is_colored: match colors {
                Colors::Always => true,
                Colors::Never => false,
                Colors::Auto => std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            },
        }
    }

    /// Colors a text with an SGR code.
    pub(crate) fn paint(self, code: &str, text: &str) -> String {
        if self.is_colored {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn name(self, text: &str) -> String {
        self.paint("1;36", text)
    }

    fn room(self, text: &str) -> String {
        if text.is_empty() {
            String::new()
        } else {
            self.paint("35", text)
        }
    }

    pub(crate) fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    pub(crate) fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// Formats a message with the local time; the date is shown unless it is
    /// that of `now`.
    pub(crate) fn message(
        self,
        room: Option<&RoomName>,
        delivery: &Delivery,
        now: &Zoned,
    ) -> String {
        let time = local_time(delivery.time_ms, now);
        let sender = escape_name(
            delivery
                .sender
                .as_ref()
                .map_or("(anonymous)", UserName::as_str),
        );
        let room = room.map_or_else(String::new, |room| format!("{room} "));
        let indent = [&*time, &room, &sender].map(|part| part.chars().count());
        let text = block(&delivery.text, indent.iter().sum::<usize>() + 3);
        let (time, room, sender) = (self.dim(&time), self.room(&room), self.name(&sender));
        format!("{time} {room}{sender}: {text}")
    }

    /// Formats a sent message with its status.
    pub(crate) fn sent(self, user: &UserName, text: &str, status: &str) -> String {
        let line: String = text.chars().take(EXCERPT_CHARS).collect();
        let cut = if line.len() < text.len() { "…" } else { "" };
        let user = self.name(&escape_name(user.as_str()));
        format!(
            "{} {user}: {}{cut} {} {status}",
            self.dim("→"),
            escape(&line),
            self.dim("…")
        )
    }

    /// Formats the status of an answered send.
    pub(crate) fn send_status<T>(self, outcome: &Result<T, RequestError>) -> String {
        match outcome {
            Ok(_) => self.good("stored"),
            Err(error) => self.error(error),
        }
    }

    /// Formats the status of an unanswered send.
    pub(crate) fn pending(self, is_up: bool) -> String {
        self.dim(if is_up {
            "pending"
        } else {
            "pending (waiting for the server)"
        })
    }

    /// Formats the status of a line that the next start of hark sends.
    pub(crate) fn kept(self) -> String {
        self.dim("not sent; kept for the next start")
    }

    /// Formats an entry of the local history.
    pub(crate) fn entry(self, entry: &history::Entry, now: &Zoned) -> String {
        let delivery = Delivery {
            sequence: entry.number.unwrap_or_default(),
            sender: entry.sender.clone(),
            time_ms: entry.time_ms,
            text: entry.text.as_str().into(),
        };
        let status = match &entry.state {
            EntryState::Received | EntryState::Stored | EntryState::Ignored => None,
            EntryState::Pending => Some(self.pending(true)),
            EntryState::Refused(why) => Some(format!("{} {}", self.bad("refused:"), block(why, 2))),
            EntryState::Unknown(why) => Some(format!("{} {}", self.bad("unknown:"), block(why, 2))),
            EntryState::Missing(count) => {
                let notice = format!("{count} messages are missing: the server has removed them");
                return self.notice(&notice);
            }
        };
        let message = self.message(entry.room.as_ref(), &delivery, now);
        status.map_or(message.clone(), |status| {
            format!("{message} {} {status}", self.dim("…"))
        })
    }

    /// Formats a failed command.
    pub(crate) fn error(self, error: &RequestError) -> String {
        match error {
            RequestError::Refused(refusal) => {
                let refused = format!("refused ({}):", refusal.code);
                format!("{} {}", self.bad(&refused), block(&refusal.message(), 2))
            }
            RequestError::Unknown { .. } => {
                format!("{} {}", self.bad("unknown:"), block(&error.to_string(), 2))
            }
            RequestError::NotSent(why) => format!("{} {}", self.bad("not sent:"), block(why, 2)),
            RequestError::SeenStore(why) => format!("{} {}", self.bad("failed:"), block(why, 2)),
        }
    }

    /// Formats the outcome of a command.
    pub(crate) fn outcome(self, command: &Command, outcome: &Result<Done, RequestError>) -> String {
        match outcome {
            Ok(done) => self.done(command, done),
            Err(error) => self.error(error),
        }
    }

    fn done(self, command: &Command, done: &Done) -> String {
        let name = |user: &UserName| self.name(&escape_name(user.as_str()));
        match (command, done) {
            (Command::Create(user), _) => format!("{} was created", name(user)),
            (Command::Login(user), _) => format!("you are logged in as {}", name(user)),
            (Command::Connect(user), Done::Connected(0)) => {
                format!(
                    "you are connected as {}; no messages are waiting",
                    name(user)
                )
            }
            (Command::Connect(user), Done::Connected(1)) => {
                format!("you are connected as {}; 1 message is waiting", name(user))
            }
            (Command::Connect(user), Done::Connected(queued)) => {
                format!(
                    "you are connected as {}; {queued} messages are waiting",
                    name(user)
                )
            }
            (Command::Delete(user), Done::Deleted(false)) => {
                format!("there was no user {}", name(user))
            }
            (Command::Delete(user), _) => format!("{} was deleted", name(user)),
            (Command::Password(Some(user)), _) => {
                format!("the password of {} was changed", name(user))
            }
            (Command::Members(room), Done::Listed(answer)) => {
                format!("{room}: {}", self.names(answer))
            }
            (_, Done::Listed(answer)) => self.names(answer),
            (Command::History(room, ..), Done::Past(messages)) => self.past(room, messages),
            (_, Done::Rooms(rooms)) => self.rooms(rooms),
            (_, Done::Devices(devices)) => self.devices(devices),
            (_, Done::Token(secret)) => {
                format!("keep this secret, it is shown once: {}", secret.expose())
            }
            (_, Done::Tokens(tokens)) => self.tokens(tokens),
            (Command::Room(room, mode, _), _) => {
                format!("{} is {}", self.room(room.as_str()), mode.as_str())
            }
            (Command::Join(room), Done::Joined(joined)) => format!(
                "you are in {}; {} messages can be read back by history",
                self.room(room.as_str()),
                joined.held
            ),
            (Command::Leave(room), _) => format!("you have left {}", self.room(room.as_str())),
            (Command::Talk(user), Done::Talking(room)) => format!(
                "you talk with {}: send {} TEXT",
                name(user),
                self.room(room.as_str())
            ),
            (Command::Disconnect, _) => "you are logged out".to_owned(),
            (Command::Ping, _) => "the server responds".to_owned(),
            _ => self.good("done"),
        }
    }

    fn rooms(self, rooms: &[RoomEntry]) -> String {
        if rooms.is_empty() {
            return "no rooms".to_owned();
        }
        let lines: Vec<_> = rooms.iter().map(|room| self.room_line(room)).collect();
        lines.join("\n")
    }

    fn room_line(self, room: &RoomEntry) -> String {
        let unread = match room.unread {
            None => self.dim("not a member"),
            Some(0) => "no unread messages".to_owned(),
            Some(1) => self.good("1 unread message"),
            Some(unread) => self.good(&format!("{unread} unread messages")),
        };
        let members = match room.members {
            1 => "1 member".to_owned(),
            members => format!("{members} members"),
        };
        let (name, mode) = (self.room(room.name.as_str()), room.mode.as_str());
        format!("{name}: {mode}, {members}, {unread}")
    }

    fn devices(self, devices: &[Device]) -> String {
        let now = now();
        let line = |device: &Device| {
            let name = device.name.as_ref().map_or("(no name)", DeviceName::as_str);
            let (seen, waiting) = (local_time(device.seen_ms, &now), device.waiting);
            format!(
                "{}: last seen {seen}, {waiting} messages waiting",
                self.name(name)
            )
        };
        let lines: Vec<_> = devices.iter().map(line).collect();
        lines.join("\n")
    }

    fn tokens(self, tokens: &[TokenEntry]) -> String {
        if tokens.is_empty() {
            return "no tokens".to_owned();
        }
        let now = now();
        let line = |token: &TokenEntry| {
            let used = match token.used_ms {
                0 => "never used".to_owned(),
                used_ms => format!("last used {}", local_time(used_ms, &now)),
            };
            format!(
                "{}: {}, {used}",
                self.name(token.name.as_str()),
                token.scope
            )
        };
        let lines: Vec<_> = tokens.iter().map(line).collect();
        lines.join("\n")
    }

    fn past(self, room: &RoomName, messages: &[Delivery]) -> String {
        if messages.is_empty() {
            return format!("no messages in {}", self.room(room.as_str()));
        }
        let now = now();
        let lines = messages
            .iter()
            .map(|message| self.message(Some(room), message, &now));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn names(self, answer: &Names) -> String {
        let names: Vec<_> = answer
            .names
            .iter()
            .map(|name| self.name(&escape_name(name.as_str())))
            .collect();
        match (names.len(), answer.is_truncated) {
            (0, _) => "no users".to_owned(),
            (1, _) => format!("1 user: {}", names.concat()),
            (count, false) => format!("{count} users: {}", names.join(" ")),
            (count, true) => format!("the first {count} users: {}", names.join(" ")),
        }
    }

    /// Formats an unsolicited notice.
    pub(crate) fn notice(self, text: &str) -> String {
        self.dim(&format!("* {}", block(text, 2)))
    }

    /// Formats a state of the link; `None` if it is not worth a notice.
    pub(crate) fn link(self, state: &LinkState) -> Option<String> {
        match state {
            LinkState::Up { server } => Some(self.notice(&format!("connected to {server}"))),
            LinkState::Down {
                server,
                reason,
                retry_in,
                ..
            } => {
                let next = if retry_in.is_zero() {
                    "trying the next server"
                } else {
                    "reconnecting"
                };
                Some(self.notice(&format!("no connection to {server}: {reason}; {next}")))
            }
            LinkState::Connecting | LinkState::Closed => None,
        }
    }
}

/// Returns the notice of missing messages.
pub(crate) fn missing(gap: &Gap) -> String {
    let place = gap.log.as_ref().map_or("your inbox", RoomName::as_str);
    match gap.count {
        1 => format!("1 message of {place} is missing: the server has removed it"),
        count => format!("{count} messages of {place} are missing: the server has removed them"),
    }
}

/// Formats the time of day, with the date unless it is today.
pub(crate) fn local_time(time_ms: u64, now: &Zoned) -> String {
    let timestamp = i64::try_from(time_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok());
    let Some(timestamp) = timestamp else {
        return "(no time)".to_owned();
    };
    let time = timestamp.to_zoned(now.time_zone().clone());
    let format = if time.date() == now.date() {
        "%H:%M"
    } else {
        "%Y-%m-%d %H:%M"
    };
    time.strftime(format).to_string()
}

/// Returns the current time in the local time zone.
pub(crate) fn now() -> Zoned {
    Timestamp::now().to_zoned(TimeZone::system())
}

#[cfg(test)]
mod tests {
    use super::*;
    use hark_protocol::Sequence;

    const PLAIN: Style = Style { is_colored: false };

    fn noon() -> Zoned {
        "2026-11-21T12:00:00+01:00[+01:00]".parse().unwrap()
    }

    fn delivery(text: &str, hours_ago: u64) -> Delivery {
        let now_ms = u64::try_from(noon().timestamp().as_millisecond()).unwrap();
        Delivery {
            sequence: Sequence(1),
            sender: Some("user2".parse().unwrap()),
            time_ms: now_ms - hours_ago * 3_600_000,
            text: text.into(),
        }
    }

    #[test]
    fn message_shows_local_time_and_older_date() {
        assert_eq!(
            PLAIN.message(None, &delivery("hello, again", 2), &noon()),
            "10:00 user2: hello, again"
        );
        let team = "#team".parse().unwrap();
        assert_eq!(
            PLAIN.message(Some(&team), &delivery("one\ntwo", 2), &noon()),
            "10:00 #team user2: one\n                   two"
        );
        assert_eq!(
            PLAIN.message(None, &delivery("old", 13), &noon()),
            "2026-11-20 23:00 user2: old"
        );
    }

    #[test]
    fn message_is_escaped_and_indented() {
        let shown = PLAIN.message(
            None,
            &delivery("one\n10:01 bob: \x1b[2J\u{202e}", 2),
            &noon(),
        );
        assert_eq!(
            shown,
            "10:00 user2: one\n             10:01 bob: \\u{1b}[2J\\u{202e}"
        );
    }

    #[test]
    fn colors_are_optional() {
        let colored = Style { is_colored: true };
        assert!(
            colored
                .message(None, &delivery("x", 1), &noon())
                .contains("\x1b[")
        );
        assert!(
            !PLAIN
                .message(None, &delivery("x", 1), &noon())
                .contains('\x1b')
        );
    }

    #[test]
    fn sent_line_shows_its_status() {
        let bob = "bob".parse().unwrap();
        let stored = PLAIN.send_status(&Ok(()));
        assert_eq!(
            PLAIN.sent(&bob, "hello, again", &stored),
            "→ bob: hello, again … stored"
        );
        let long = PLAIN.sent(&bob, &"x".repeat(100), &PLAIN.pending(false));
        assert_eq!(
            long,
            format!(
                "→ bob: {}… … pending (waiting for the server)",
                "x".repeat(60)
            )
        );
    }
}
