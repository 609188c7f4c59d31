//! The list of conversations: numbers, names and unread counts.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::super::app::App;
use super::super::conversation::{Conversation, Place};
use super::super::wrap::{cut, width};

/// Draws the list; the current conversation is always in it.
pub(super) fn draw(app: &App, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let theme = app.setting.theme;
    let current = app.conversations.index();
    let rows = usize::from(area.height);
    let first = current.saturating_sub(rows.saturating_sub(1).max(rows / 2));
    let shown = app.conversations.list().iter().enumerate().skip(first);
    for (row, (index, conversation)) in (0..area.height).zip(shown) {
        let columns = usize::from(area.width);
        let count = count(conversation);
        let number = if index <= 9 {
            format!("{index} ")
        } else {
            "  ".to_owned()
        };
        let mark = match &conversation.place {
            Place::Person(user) if app.names.is_lookalike(user) => "?",
            _ => "",
        };
        let room = columns.saturating_sub(width(&number) + width(&count) + 1);
        let name = format!("{mark}{}", conversation.name());
        let name = cut(&name, room);
        let style = match conversation {
            one if one.mentions > 0 => theme.mention(),
            one if one.unread > 0 && one.is_muted => theme.dim(),
            one if one.unread > 0 => theme.unread(),
            one if !one.is_member => theme.dim(),
            _ => theme.plain(),
        };
        let padding =
            " ".repeat(columns.saturating_sub(width(&number) + width(&name) + width(&count)));
        let line = format!("{number}{name}{padding}{count}");
        super::put(buffer, area, row, &line, style);
        if index == current {
            let row = Rect::new(area.x, area.y + row, area.width, 1);
            buffer.set_style(row, theme.bar());
        }
    }
    for row in 0..area.height {
        buffer.set_string(area.right(), area.y + row, "│", theme.dim());
    }
}

/// Returns the unread messages, with a mark if some of them mention the user.
fn count(conversation: &Conversation) -> String {
    match (conversation.unread, conversation.mentions) {
        (0, _) => String::new(),
        (unread, 0) => format!("{}", Short(unread)),
        (unread, _) => format!("@{}", Short(unread)),
    }
}

/// A count in at most four columns.
struct Short(u64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            count @ 0..10_000 => write!(f, "{count}"),
            count @ 10_000..1_000_000 => write!(f, "{}k", count / 1_000),
            _ => f.write_str("many"),
        }
    }
}
