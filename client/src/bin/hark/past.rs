//! `hark history`: the messages with a user or of a room, the oldest first.

use std::io::Write as _;

use hark_client::Handle;
use hark_protocol::{Delivery, RoomName, Sequence, UserName};
use jiff::civil::{Date, DateTime, Time};
use jiff::{ToSpan as _, Zoned};

use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::history::{Conversation, Entry, EntryId, EntryState, History, PAGE_MAX};
use crate::interactive::style;
use crate::settings::Settings;
use crate::{lines, once, setup};

/// Number of messages without a count and a time.
const COUNT: usize = 20;

/// Number of messages of a page of the server.
const PAGE: u32 = 256;

/// The messages to print.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    /// Number of messages.
    pub(crate) count: Option<u32>,
    /// Only messages of a room with lower numbers.
    pub(crate) before: Option<Sequence>,
    /// Only messages since a time.
    pub(crate) since: Option<String>,
    /// Whether the server is not asked.
    pub(crate) is_local: bool,
}

/// The limits of the messages to print.
#[derive(Debug, Clone, Copy)]
struct Limits {
    count: usize,
    since_ms: u64,
}

/// Prints the wanted messages with `name`.
pub(crate) async fn run(
    settings: &Settings,
    name: UserName,
    wanted: Wanted,
) -> Result<Exit, Failure> {
    let since_ms = match &wanted.since {
        Some(since) => parse_since(since, &style::now())
            .ok_or_else(|| Failure::Usage(format!("--since {since}: {SINCE}")))?,
        None => 0,
    };
    let default = if since_ms == 0 { COUNT } else { usize::MAX };
    let count = wanted.count.map_or(default, |count| {
        usize::try_from(count).unwrap_or(usize::MAX)
    });
    let limits = Limits { count, since_ms };
    let mut newest_first = match Conversation::with(&name) {
        Conversation::Room(room) if !wanted.is_local => {
            of_room(settings, &room, wanted.before, limits).await?
        }
        conversation => {
            let history = local(settings)?;
            of_history(&history, &conversation, wanted.before, limits)?
        }
    };
    newest_first.reverse();
    let mut out = std::io::stdout().lock();
    for line in newest_first {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Explanation of `--since`.
const SINCE: &str = "expected yesterday, today, a date such as 2026-11-30, a date and a time, a \
                     time of today, or a duration such as 2h or 7d";

/// Opens the local history of the user.
fn local(settings: &Settings) -> Result<History, Failure> {
    let file = setup::history(settings)?;
    let user = settings.require_user()?;
    file.of(&settings.server, user).map_err(Failure::local)
}

/// Returns the lines of a room, the newest first: from the server, then from the local
/// history.
async fn of_room(
    settings: &Settings,
    room: &RoomName,
    before: Option<Sequence>,
    limits: Limits,
) -> Result<Vec<String>, Failure> {
    let secrets = setup::secrets_of(settings, settings.user())?;
    let (handle, events) = setup::client(settings)?;
    drop(events);
    if let Some(user) = settings.user() {
        once::attempt(settings, &handle, Command::Login(user.clone()), &secrets).await?;
    }
    let (mut found, is_over) = of_server(settings, &handle, room, before, limits).await?;
    handle.close(settings.timeout).await;
    let mut all: Vec<String> = found.iter().map(lines::delivery).collect();
    if !is_over && settings.user().is_some() && !settings.no_history {
        let before = found.pop().map(|oldest| oldest.sequence).or(before);
        let limits = Limits {
            count: limits.count - all.len(),
            ..limits
        };
        let conversation = Conversation::Room(room.clone());
        all.extend(of_history(
            &local(settings)?,
            &conversation,
            before,
            limits,
        )?);
    }
    Ok(all)
}

/// Returns the messages that the server has, the newest first, and whether no older ones
/// are wanted.
async fn of_server(
    settings: &Settings,
    handle: &Handle,
    room: &RoomName,
    mut before: Option<Sequence>,
    limits: Limits,
) -> Result<(Vec<Delivery>, bool), Failure> {
    let mut found = Vec::new();
    loop {
        let remaining = limits.count.saturating_sub(found.len());
        if remaining == 0 {
            return Ok((found, true));
        }
        let count = u32::try_from(remaining).unwrap_or(PAGE).min(PAGE);
        let first = before.unwrap_or_default();
        let page = once::within(settings, handle, handle.history(room.clone(), first, count));
        let page = page.await?;
        let Some(oldest) = page.messages.last() else {
            return Ok((found, false));
        };
        before = Some(oldest.sequence);
        let is_last = oldest.sequence <= page.oldest;
        for message in page.messages {
            if message.time_ms < limits.since_ms {
                return Ok((found, true));
            }
            found.push(message);
        }
        if is_last {
            return Ok((found, false));
        }
    }
}

/// Returns the lines of a conversation in the local history, the newest first.
fn of_history(
    history: &History,
    conversation: &Conversation,
    before: Option<Sequence>,
    limits: Limits,
) -> Result<Vec<String>, Failure> {
    let (mut found, mut edge): (Vec<String>, Option<EntryId>) = (Vec::new(), None);
    while found.len() < limits.count {
        let page = history.page(conversation, edge, PAGE_MAX);
        let page = page.map_err(Failure::local)?;
        let Some(oldest) = page.last() else { break };
        edge = Some(oldest.id);
        let is_over = oldest.time_ms < limits.since_ms;
        let is_wanted = |entry: &&Entry| {
            entry.time_ms >= limits.since_ms
                && !matches!(entry.state, EntryState::Missing(_) | EntryState::Ignored)
                && before.is_none_or(|before| entry.number.is_some_and(|number| number < before))
        };
        let room = limits.count - found.len();
        found.extend(page.iter().filter(is_wanted).take(room).map(lines::entry));
        if is_over {
            break;
        }
    }
    Ok(found)
}

/// Parses a time before `now`, in milliseconds since the Unix epoch.
fn parse_since(text: &str, now: &Zoned) -> Option<u64> {
    let zone = now.time_zone().clone();
    let start = |date: Date| date.to_zoned(zone.clone()).ok();
    let time = match text {
        "today" => start(now.date())?,
        "yesterday" => start(now.date().yesterday().ok()?)?,
        _ => {
            if let Some(seconds) = duration(text) {
                now.checked_sub(seconds.seconds()).ok()?
            } else if let Ok(time) = text.parse::<DateTime>() {
                time.to_zoned(zone).ok()?
            } else {
                let time = text.parse::<Time>().ok()?;
                now.date().to_datetime(time).to_zoned(zone).ok()?
            }
        }
    };
    u64::try_from(time.timestamp().as_millisecond()).ok()
}

/// Parses a duration with a unit.
fn duration(text: &str) -> Option<i64> {
    let has_unit = text.ends_with(['m', 'h', 'd']);
    let seconds = hark_client::command::seconds(text).filter(|_| has_unit)?;
    i64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let now: Zoned = "2026-11-30T12:00:00+01:00[Europe/Berlin]".parse().unwrap();
        let expected: Zoned = expected.parse().unwrap();
        let expected = expected.timestamp().as_millisecond().cast_unsigned();
        assert_eq!(parse_since(text, &now), Some(expected), "{text}");
    }

    #[test]
    fn times_are_local() {
        check("today", "2026-11-30T00:00:00+01:00[Europe/Berlin]");
        check("yesterday", "2026-11-29T00:00:00+01:00[Europe/Berlin]");
        check("2026-10-24", "2026-10-24T00:00:00+02:00[Europe/Berlin]");
        check(
            "2026-11-01 13:30",
            "2026-11-01T13:30:00+01:00[Europe/Berlin]",
        );
        check("08:15", "2026-11-30T08:15:00+01:00[Europe/Berlin]");
        check("90m", "2026-11-30T10:30:00+01:00[Europe/Berlin]");
        check("7d", "2026-11-23T12:00:00+01:00[Europe/Berlin]");
        let now = style::now();
        for bad in ["", "soon", "7", "2026-13-01", "5y"] {
            assert_eq!(parse_since(bad, &now), None, "{bad}");
        }
    }
}
