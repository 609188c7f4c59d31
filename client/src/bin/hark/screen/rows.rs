//! The rows of an entry of a conversation: separators, time, name, text and state.
//! Pure; the scroll position is computed from the same rows as the screen.

use hark_protocol::UserName;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use ratatui::text::{Line, Span};

use super::conversation::{Body, Conversation, Entry, Said, Status, Tone};
use super::theme::Theme;
use super::wrap::{cut, width, wrap};
use crate::interactive::style::Style as PlainStyle;
use crate::text::escape_name;

/// Width from which the time is shown.
const TIME_COLUMNS_MIN: usize = 30;

/// Width from which names have a column of their own.
const NAME_COLUMN_MIN: usize = 60;

/// Width of the column of names.
const NAME_COLUMNS: usize = 12;

/// Longest name, in columns.
const NAME_COLUMNS_MAX: usize = 24;

/// Formats outcomes as the line mode does.
const PLAIN: PlainStyle = PlainStyle { is_colored: false };

/// The circumstances of the layout.
pub(crate) struct RowContext<'a> {
    pub(crate) columns: usize,
    pub(crate) zone: &'a TimeZone,
    pub(crate) theme: Theme,
    pub(crate) is_up: bool,
    /// Returns whether a name looks like another known one.
    pub(crate) is_lookalike: &'a dyn Fn(&UserName) -> bool,
}

/// Returns a time in the zone of the reader.
pub(crate) fn local(time_ms: u64, zone: &TimeZone) -> Option<Zoned> {
    let time_ms = i64::try_from(time_ms).ok()?;
    let timestamp = Timestamp::from_millisecond(time_ms).ok()?;
    Some(timestamp.to_zoned(zone.clone()))
}

impl RowContext<'_> {
    /// Returns the rows of an entry, with the separators above it.
    pub(crate) fn rows(&self, conversation: &Conversation, index: usize) -> Vec<Line<'static>> {
        let Some(entry) = conversation.entries.get(index) else {
            return Vec::new();
        };
        let before = index
            .checked_sub(1)
            .and_then(|before| conversation.entries.get(before));
        let mut rows = Vec::new();
        let time = local(entry.time_ms, self.zone);
        let day = |time: &Option<Zoned>| time.as_ref().map(Zoned::date);
        let is_new_day =
            before.is_none_or(|before| day(&local(before.time_ms, self.zone)) != day(&time));
        if let (true, Some(time)) = (is_new_day, &time) {
            let day = time.strftime("%A, %-d %B %Y").to_string();
            rows.push(self.separator(&day, self.theme.dim()));
        }
        if conversation.new_since == Some(entry.id) {
            let since = time.as_ref().map_or_else(
                || "new".to_owned(),
                |time| time.strftime("new since %H:%M").to_string(),
            );
            rows.push(self.separator(&since, self.theme.unread()));
        }
        self.body(entry, time.as_ref(), &mut rows);
        rows
    }

    /// Returns the number of rows of an entry.
    pub(crate) fn height(&self, conversation: &Conversation, index: usize) -> usize {
        self.rows(conversation, index).len()
    }

    fn separator(&self, text: &str, style: ratatui::style::Style) -> Line<'static> {
        let text = cut(text, self.columns.saturating_sub(6));
        let left = "── ";
        let used = width(left) + width(&text) + 1;
        let right = "─".repeat(self.columns.saturating_sub(used));
        Line::styled(format!("{left}{text} {right}"), style)
    }

    fn body(&self, entry: &Entry, time: Option<&Zoned>, rows: &mut Vec<Line<'static>>) {
        let mut lead = Vec::new();
        if self.columns >= TIME_COLUMNS_MIN {
            let time = time.map_or_else(
                || "     ".to_owned(),
                |time| time.strftime("%H:%M").to_string(),
            );
            lead.push(Span::styled(format!("{time} "), self.theme.dim()));
        }
        match &entry.body {
            Body::Said(said) => self.said(said, lead, rows),
            Body::Notice(text, tone) => {
                let style = match tone {
                    Tone::Plain => self.theme.dim(),
                    Tone::Bad => self.theme.bad(),
                };
                lead.push(Span::styled("* ", style));
                self.block(lead, text, style, None, rows);
            }
        }
    }

    fn said(&self, said: &Said, mut lead: Vec<Span<'static>>, rows: &mut Vec<Line<'static>>) {
        let name = said.sender.as_ref().map_or("(anonymous)", UserName::as_str);
        let style = self.theme.name(name);
        let is_lookalike = said.sender.as_ref().is_some_and(self.is_lookalike);
        let mark = if is_lookalike { "?" } else { "" };
        let longest = NAME_COLUMNS_MAX.min(self.columns / 3).max(3);
        let shown = format!("{mark}{}", cut(&escape_name(name), longest));
        let padding = if self.columns >= NAME_COLUMN_MIN {
            NAME_COLUMNS.saturating_sub(width(&shown))
        } else {
            0
        };
        let separator = if self.columns >= NAME_COLUMN_MIN {
            " "
        } else {
            ": "
        };
        lead.push(Span::raw(" ".repeat(padding)));
        lead.push(Span::styled(shown, style));
        lead.push(Span::raw(separator));
        let style = if said.is_mention {
            self.theme.mention()
        } else {
            self.theme.plain()
        };
        let status = said.status.as_ref().map(|status| self.status(status));
        self.block(lead, &said.text, style, status, rows);
    }

    /// Returns the state of an own message, and its style.
    fn status(&self, status: &Status) -> (String, ratatui::style::Style) {
        match status {
            Status::Pending => (PLAIN.pending(self.is_up), self.theme.unread()),
            Status::Stored => ("stored".to_owned(), self.theme.dim()),
            Status::Failed(error) => (PLAIN.error(error), self.theme.bad()),
            Status::Former(why) => (why.clone(), self.theme.bad()),
        }
    }

    /// Lays out a text behind its lead. Further rows are indented, so that none looks
    /// like another message.
    fn block(
        &self,
        lead: Vec<Span<'static>>,
        text: &str,
        style: ratatui::style::Style,
        status: Option<(String, ratatui::style::Style)>,
        rows: &mut Vec<Line<'static>>,
    ) {
        let used: usize = lead.iter().map(|span| width(&span.content)).sum();
        // A narrow screen keeps half of its columns for the text.
        let indent = used.min(self.columns / 2);
        let columns = self.columns.saturating_sub(indent).max(1);
        let mut texts = Vec::new();
        if used > indent {
            rows.push(Line::from(lead));
            texts.extend(wrap(text, columns).into_iter().map(|row| (None, row)));
        } else {
            let mut lead = Some(lead);
            texts.extend(
                wrap(text, columns)
                    .into_iter()
                    .map(|row| (lead.take(), row)),
            );
        }
        let mut last = 0;
        for (lead, row) in texts {
            let mut spans = lead.unwrap_or_else(|| vec![Span::raw(" ".repeat(indent))]);
            last = width(&row);
            spans.push(Span::styled(row, style));
            rows.push(Line::from(spans));
        }
        let Some((status, style)) = status else {
            return;
        };
        let status = format!("· {status}");
        if last + 1 + width(&status) <= columns
            && let Some(row) = rows.last_mut()
        {
            row.push_span(Span::styled(format!(" {status}"), style));
            return;
        }
        for row in wrap(&status, columns) {
            let indent = Span::raw(" ".repeat(indent));
            rows.push(Line::from(vec![indent, Span::styled(row, style)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use hark_client::RequestError;

    use super::super::conversation::Place;
    use super::*;

    fn entry(id: u64, sender: &str, text: &str, status: Option<Status>) -> Entry {
        Entry {
            id,
            time_ms: id * 3_600_000,
            ack: None,
            filed: None,
            body: Body::Said(Said {
                sender: Some(sender.parse().unwrap()),
                text: text.into(),
                position: None,
                status,
                awaits_echo: false,
                is_mention: false,
            }),
        }
    }

    #[track_caller]
    fn check(columns: usize, entries: Vec<Entry>, expected: &[&str]) {
        let mut conversation = Conversation::new(Place::Room("#team".parse().unwrap()));
        conversation.entries.extend(entries);
        conversation.new_since = Some(23);
        let context = RowContext {
            columns,
            zone: &TimeZone::UTC,
            theme: Theme { is_colored: false },
            is_up: true,
            is_lookalike: &|name| name.as_str() == "b0b",
        };
        let rows: Vec<String> = (0..conversation.entries.len())
            .flat_map(|index| context.rows(&conversation, index))
            .map(|line| line.to_string())
            .collect();
        assert_eq!(rows, expected);
        assert!(rows.iter().all(|row| width(row) <= columns), "{rows:?}");
    }

    #[test]
    fn messages_have_time_name_and_status() {
        check(
            64,
            vec![
                entry(22, "bob", "hello\nthere", None),
                entry(23, "b0b", "hi", None),
                entry(25, "amy", "mine", Some(Status::Stored)),
            ],
            &[
                "── Thursday, 1 January 1970 ────────────────────────────────────",
                "22:00          bob hello",
                "                   there",
                "── new since 23:00 ─────────────────────────────────────────────",
                "23:00         ?b0b hi",
                "── Friday, 2 January 1970 ──────────────────────────────────────",
                "01:00          amy mine · stored",
            ],
        );
    }

    #[test]
    fn narrow_screen_keeps_room_for_texts() {
        check(
            20,
            vec![entry(22, "bob", "hello there", None)],
            &["── Thursday, 1 J… ──", "bob: hello there"],
        );
        check(
            10,
            vec![entry(22, "christopher", "hello", None)],
            &["── Thu… ──", "ch…: hello"],
        );
    }

    #[test]
    fn refused_message_says_why() {
        let refused = Status::Failed(RequestError::NotSent("the client is closed".into()));
        check(
            40,
            vec![entry(22, "amy", "lost", Some(refused))],
            &[
                "── Thursday, 1 January 1970 ────────────",
                "22:00 amy: lost",
                "           · not sent: the client is",
                "           closed",
            ],
        );
    }
}
