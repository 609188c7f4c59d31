//! The messages of the current conversation, from the last one on the screen upwards.

use hark_protocol::UserName;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;

use super::super::app::App;
use super::super::conversation::{Older, Place};

/// Draws the messages, the newest at the bottom.
pub(super) fn draw(app: &App, area: Rect, buffer: &mut Buffer) {
    if area.is_empty() {
        return;
    }
    let rows = rows(app, usize::from(area.height));
    let first = area.height
        - u16::try_from(rows.len())
            .unwrap_or(area.height)
            .min(area.height);
    for (row, line) in (first..area.height).zip(&rows) {
        buffer.set_line(area.x, area.y + row, line, area.width);
    }
    let conversation = app.conversations.current();
    let above = match conversation.older {
        Older::Loading => "loading older messages …",
        Older::None if conversation.place != Place::Home => "this is the beginning",
        Older::None | Older::Unknown => "",
    };
    if first > 0 {
        super::put(buffer, area, first - 1, above, app.setting.theme.dim());
    }
}

/// Returns the last rows that fit, from the top.
fn rows(app: &App, height: usize) -> Vec<Line<'static>> {
    let Some((last, hidden_rows)) = app.anchor() else {
        return welcome(app);
    };
    let is_lookalike = |name: &UserName| app.names.is_lookalike(name);
    let context = app.row_context(&is_lookalike);
    let conversation = app.conversations.current();
    let mut rows: Vec<Line<'static>> = Vec::new();
    for index in (0..=last).rev() {
        let mut entry = context.rows(conversation, index);
        if index == last {
            entry.truncate(entry.len().saturating_sub(hidden_rows));
        }
        rows.extend(entry.into_iter().rev());
        if rows.len() >= height {
            break;
        }
    }
    rows.truncate(height);
    rows.reverse();
    rows
}

/// Returns the first steps, for a screen without messages.
fn welcome(app: &App) -> Vec<Line<'static>> {
    if app.conversations.current().place != Place::Home {
        return Vec::new();
    }
    let lines: &[&str] = if app.me.is_none() {
        &[
            "Welcome to Hark.",
            "",
            "/connect NAME   log in",
            "/create NAME    new account",
            "F1              help",
        ]
    } else {
        &[
            "/talk NAME    write to a person",
            "/join #ROOM   enter a room",
            "/rooms        list rooms",
            "Ctrl-K        jump",
            "F1            help",
        ]
    };
    lines.iter().map(|line| Line::raw(*line)).collect()
}
