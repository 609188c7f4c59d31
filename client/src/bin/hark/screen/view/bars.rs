//! The title above the messages, the status below them, and the input.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::super::app::{App, Link};
use super::super::conversation::{Conversation, Place, Scroll};
use super::super::layout::Areas;
use super::super::wrap::{cut, width};
use crate::text::{escape, escape_name};

/// Draws the name and the kind of the conversation.
pub(super) fn title(app: &App, area: Rect, buffer: &mut Buffer) {
    let conversation = app.conversations.current();
    let mark = match &conversation.place {
        Place::Person(user) if app.names.is_lookalike(user) => {
            " (? another name looks like this one)"
        }
        _ => "",
    };
    let text = format!(" {}{mark}{}", conversation.name(), about(conversation));
    buffer.set_style(area, app.setting.theme.bar());
    super::put(buffer, area, 0, &text, app.setting.theme.bar());
}

fn about(conversation: &Conversation) -> String {
    let muted = if conversation.is_muted { ", muted" } else { "" };
    let about = match (&conversation.place, conversation.members) {
        (Place::Home, _) => ": notices of the program".to_owned(),
        (Place::Person(_), _) if conversation.talk.is_some() => {
            ": on all devices of both".to_owned()
        }
        (Place::Person(_), _) => ": inbox".to_owned(),
        (Place::Room(_), _) if !conversation.is_member => ": you are not a member".to_owned(),
        (Place::Room(_), Some(1)) => ": 1 member".to_owned(),
        (Place::Room(_), Some(members)) => format!(": {members} members"),
        (Place::Room(_), None) => String::new(),
    };
    about + muted
}

/// Draws the user, the link and the unread messages, or a hint.
pub(super) fn status(app: &App, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let theme = app.setting.theme;
    buffer.set_style(area, theme.bar());
    if let Some(hint) = &app.hint {
        return super::put(buffer, area, 0, &format!(" {}", escape(hint)), theme.bar());
    }
    let columns = usize::from(area.width);
    let (unread, mentions) = app.conversations.unread();
    let is_scrolled = app.conversations.current().scroll != Scroll::Bottom;
    let full = match (unread, mentions) {
        (0, _) => String::new(),
        (unread, 0) => format!("{unread} unread "),
        (unread, mentions) => format!("{unread} unread, {mentions} to you "),
    };
    let short = if unread == 0 {
        String::new()
    } else {
        format!("{unread} unread ")
    };
    let place = if is_scrolled {
        "older messages: Esc returns "
    } else {
        ""
    };
    // The first that leaves half of the row to the link.
    let candidates = [format!("{place}{full}"), full, short];
    let fitting = candidates
        .into_iter()
        .find(|text| 2 * width(text) <= columns);
    let right = fitting.unwrap_or_default();
    let user = app
        .me
        .as_ref()
        .map(|me| format!("{}@", escape_name(me.as_str())));
    let user = user.unwrap_or_default();
    let (link, style) = match &app.link {
        Link::Connecting => (
            format!("{user}{} (connecting)", app.setting.server),
            theme.bar(),
        ),
        Link::Up(server) => (format!("{user}{server}"), theme.bar()),
        Link::Down(why) => (
            format!("{user}(offline) {}; reconnecting", escape(why)),
            theme.bad().patch(theme.bar()),
        ),
    };
    let room = columns.saturating_sub(width(&right) + 2);
    let left = format!(" {}", cut(&link, room));
    super::put(buffer, area, 0, &left, style);
    if width(&right) + 2 < columns {
        let indent = u16::try_from(columns - width(&right)).unwrap_or(0);
        let area = Rect::new(area.x + indent, area.y, area.width - indent, 1);
        super::put(buffer, area, 0, &right, theme.bar());
    }
}

/// Draws the input, and returns the place of the cursor.
pub(super) fn input(areas: &Areas, app: &App, buffer: &mut Buffer) -> Option<Position> {
    let area = areas.input;
    let label_columns = u16::try_from(width(&areas.label)).ok()?;
    super::put(buffer, area, 0, &areas.label, app.setting.theme.strong());
    let (row, column) = areas.input_rows.cursor;
    // The row of the cursor is always visible.
    let first = (row + 1).saturating_sub(usize::from(area.height));
    let text = Rect {
        x: area.x + label_columns,
        width: area.width.saturating_sub(label_columns),
        ..area
    };
    let shown = areas.input_rows.rows.iter().skip(first);
    for (line, input) in (0..area.height).zip(shown) {
        let columns = usize::from(text.width);
        buffer.set_stringn(
            text.x,
            text.y + line,
            input,
            columns,
            app.setting.theme.plain(),
        );
    }
    let column = u16::try_from(column)
        .ok()?
        .min(text.width.saturating_sub(1));
    let row = u16::try_from(row - first).ok()?;
    Some(Position::new(text.x + column, text.y + row))
}
