//! `hark logs`: shows the log of the server live, line by line.

use std::io::IsTerminal as _;

use hark_client::logs::{LogEvent, LogItem, LogLevel, Logs, Query, WatchError};
use hark_client::{Config, RequestError, Timing};
use hark_protocol::Code;
use serde_json::json;

use crate::args::{Level, LogsArguments};
use crate::exit::{Exit, Failure};
use crate::interactive::style::Style;
use crate::lines;
use crate::settings::{Colors, Settings};
use crate::text::{escape, escape_json, escape_line};
use crate::{output, setup, signals};

/// Shows the log until it ends, a signal arrives, or the connection fails.
pub(crate) async fn run(settings: &Settings, arguments: LogsArguments) -> Result<Exit, Failure> {
    let (shown, limit) = (Shown::new(arguments.json, settings.colors), arguments.limit);
    let mut logs = match watch(settings, arguments).await? {
        Ok(logs) => logs,
        Err(error) => return say(settings, error),
    };
    // The address is worth reporting only if there are several.
    if logs.server() != settings.server {
        eprintln!("hark: the log of {}", logs.server());
    }
    let mut stop = signals::stop()?;
    let mut count = 0;
    loop {
        let item = tokio::select! {
            item = logs.next() => item,
            () = stop.received() => return Ok(Exit::Done),
        };
        match item {
            Ok(Some(item)) => {
                count += u64::from(matches!(item, LogItem::Event(_)));
                output::line(&shown.line(&item))?;
            }
            Ok(None) if limit.is_some_and(|limit| count >= limit) => return Ok(Exit::Done),
            Ok(None) => {
                return say(
                    settings,
                    WatchError::Link("the server ended the stream".to_owned()),
                );
            }
            Err(error) => return say(settings, error),
        }
    }
}

/// Opens the log. Retries with a password from a prompt if the server requires
/// one and none was given.
async fn watch(
    settings: &Settings,
    arguments: LogsArguments,
) -> Result<Result<Logs, WatchError>, Failure> {
    let LogsArguments {
        level,
        target,
        limit,
        ..
    } = arguments;
    let as_user = settings.user().cloned();
    let password = setup::secrets_of(settings, as_user.as_ref())?.password;
    let login = as_user.clone().map(|user| (user, password.clone()));
    let query = Query {
        login,
        level: level.into(),
        target_prefix: target.unwrap_or_default(),
        limit: limit.unwrap_or(0),
    };
    let timing = Timing {
        connect: settings.timeout,
        ..Timing::default()
    };
    let config = Config {
        timing,
        ..setup::grpc(settings)?
    };
    let first = Logs::watch(&config, query.clone()).await;
    match (&first, as_user) {
        (Err(WatchError::Refused(refusal)), Some(user))
            if refusal.code == Code::Denied && password.is_none() && setup::can_prompt() =>
        {
            let login = Some((user, setup::ask("Password: ")?));
            Ok(Logs::watch(&config, Query { login, ..query }).await)
        }
        _ => Ok(first),
    }
}

/// Reports why the log has ended.
fn say(settings: &Settings, error: WatchError) -> Result<Exit, Failure> {
    match error {
        WatchError::Refused(refusal) => Err(RequestError::from(refusal).into()),
        WatchError::Link(why) => {
            eprintln!(
                "hark: cannot watch the log of {}: {}",
                settings.server,
                escape(&why)
            );
            Ok(Exit::Unknown)
        }
    }
}

/// Output format.
#[derive(Debug, Clone, Copy)]
enum Shown {
    Text(Style),
    Json,
}

impl Shown {
    fn new(is_json: bool, colors: Colors) -> Self {
        match (is_json, std::io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, true) => Self::Text(Style::of_terminal(colors)),
            (false, false) => Self::Text(Style { is_colored: false }),
        }
    }

    fn line(self, item: &LogItem) -> String {
        match (self, item) {
            (Self::Text(style), LogItem::Event(event)) => text(style, event),
            (Self::Text(style), LogItem::Missed(count)) => {
                style.bad(&format!("({count} events were dropped here)"))
            }
            (Self::Json, LogItem::Event(event)) => object(event),
            (Self::Json, LogItem::Missed(count)) => json!({ "missed": count }).to_string(),
        }
    }
}

/// Formats an event like the server's own log: time, level, target, message,
/// fields.
fn text(style: Style, event: &LogEvent) -> String {
    let level = event.level();
    let word = format!("{:>5}", word(level).to_uppercase());
    let level = match level {
        LogLevel::Error => style.bad(&word),
        LogLevel::Warn => style.paint("33", &word),
        LogLevel::Info | LogLevel::Unspecified => style.good(&word),
        LogLevel::Debug | LogLevel::Trace => style.dim(&word),
    };
    let (time, target) = (
        lines::time(event.time_ms),
        format!("{}:", escape_line(&event.target)),
    );
    let mut line = format!(
        "{} {level} {} {}",
        style.dim(&time),
        style.dim(&target),
        escape_line(&event.message)
    );
    for (name, value) in sorted(event) {
        line.push_str(&format!(
            " {}{}",
            style.dim(&format!("{}=", escape_line(name))),
            escape_line(value)
        ));
    }
    line
}

/// Formats an event as a JSON object on one line.
fn object(event: &LogEvent) -> String {
    let fields: serde_json::Map<_, _> = sorted(event)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let object = json!({
        "time_ms": event.time_ms,
        "level": word(event.level()),
        "target": event.target,
        "message": event.message,
        "fields": fields,
    });
    escape_json(&object.to_string())
}

fn sorted(event: &LogEvent) -> Vec<(&str, &str)> {
    let mut fields: Vec<_> = event
        .fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    fields.sort_unstable();
    fields
}

const fn word(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info | LogLevel::Unspecified => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { is_colored: false };

    fn event() -> LogEvent {
        LogEvent {
            time_ms: 1_700_000_000_123,
            level: LogLevel::Warn.into(),
            target: "hark_server::server".to_owned(),
            message: "too many\nconnections".to_owned(),
            fields: [("most", "3"), ("address", "\x1b[31m")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
        }
    }

    #[test]
    fn event_is_one_escaped_line() {
        assert_eq!(
            text(PLAIN, &event()),
            r"2023-11-14T22:13:20.123Z  WARN hark_server::server: too many\nconnections address=\u{1b}[31m most=3"
        );
        let colored = text(Style { is_colored: true }, &event());
        assert!(
            colored.contains("\x1b[33m WARN\x1b[0m") && !colored.contains("\x1b[31m"),
            "{colored:?}"
        );
    }

    #[test]
    fn json_event_is_one_line_of_the_same_value() {
        let line = Shown::Json.line(&LogItem::Event(event()));
        assert!(!line.contains(['\n', '\x1b']), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(
            (&value["level"], &value["fields"]["address"]),
            (&"warn".into(), &"\x1b[31m".into())
        );
        assert_eq!(value["message"], "too many\nconnections");
    }

    #[test]
    fn missed_events_are_reported() {
        assert_eq!(
            Shown::Text(PLAIN).line(&LogItem::Missed(7)),
            "(7 events were dropped here)"
        );
        assert_eq!(Shown::Json.line(&LogItem::Missed(7)), r#"{"missed":7}"#);
    }
}
