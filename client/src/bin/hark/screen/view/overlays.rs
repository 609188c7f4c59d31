//! What covers the messages for a while.

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::super::app::App;
use super::super::app::overlays::Overlay;
use super::super::layout::Areas;
use super::super::wrap::width;
use crate::text::escape;

/// Draws an overlay, and returns the place of the cursor.
pub(super) fn draw(
    app: &App,
    overlay: &Overlay,
    areas: &Areas,
    buffer: &mut Buffer,
) -> Option<Position> {
    match overlay {
        Overlay::Help { scroll } => {
            help(app, *scroll, areas, buffer);
            None
        }
        Overlay::Jump { query, selected } => {
            let hits = app.jump_hits(query);
            let lines = hits.iter().map(|index| {
                let conversation = app.conversations.list().get(*index)?;
                let unread = match conversation.unread {
                    0 => String::new(),
                    unread => format!(" ({unread} unread)"),
                };
                Some(format!("{}{unread}", conversation.name()))
            });
            let lines: Vec<String> = lines.flatten().collect();
            choose(app, "jump to: ", query, (&lines, *selected), areas, buffer)
        }
        Overlay::Search {
            query,
            selected,
            older,
        } => {
            let lines: Vec<String> = app
                .search_hits(query, older)
                .into_iter()
                .map(|hit| hit.text)
                .collect();
            choose(app, "search: ", query, (&lines, *selected), areas, buffer)
        }
        Overlay::Confirm { question, .. } => ask(app, &format!("{question} y/n "), areas, buffer),
        Overlay::Secret(prompt) => ask(app, &prompt.question(), areas, buffer),
    }
}

fn clear(area: Rect, buffer: &mut Buffer) {
    let (left, top) = (area.left(), area.top());
    for (column, row) in
        (left..area.right()).flat_map(|x| (top..area.bottom()).map(move |y| (x, y)))
    {
        if let Some(cell) = buffer.cell_mut((column, row)) {
            cell.reset();
        }
    }
}

fn help(app: &App, scroll: usize, areas: &Areas, buffer: &mut Buffer) {
    let (columns, rows) = app.size;
    let area = Rect::new(0, 0, columns, rows);
    clear(area, buffer);
    buffer.set_style(Rect::new(0, 0, columns, 1), app.setting.theme.bar());
    super::put(
        buffer,
        area,
        0,
        " help: Up, Down, PgUp and PgDn scroll; another key closes",
        app.setting.theme.bar(),
    );
    let lines = App::help_lines();
    for (row, line) in (2..areas.input.bottom()).zip(lines.iter().skip(scroll)) {
        let style = if line.starts_with(' ') {
            app.setting.theme.plain()
        } else {
            app.setting.theme.strong()
        };
        super::put(buffer, area, row, line, style);
    }
}

/// Draws a query in place of the input, and its results above it, the best at the
/// bottom.
fn choose(
    app: &App,
    label: &str,
    query: &str,
    (lines, selected): (&[String], usize),
    areas: &Areas,
    buffer: &mut Buffer,
) -> Option<Position> {
    let theme = app.setting.theme;
    let above = areas.status.y;
    let height = usize::from(above / 2).max(1).min(lines.len().max(1));
    let height = u16::try_from(height).unwrap_or(1).min(above);
    let area = Rect::new(0, above - height, app.size.0, height);
    clear(area, buffer);
    if lines.is_empty() && !query.is_empty() {
        super::put(
            buffer,
            area,
            height.saturating_sub(1),
            "  nothing found",
            theme.dim(),
        );
    }
    let first = (selected + 1).saturating_sub(usize::from(height));
    for (step, (index, line)) in (0..height).zip(lines.iter().enumerate().skip(first)) {
        let row = height - 1 - step;
        super::put(buffer, area, row, &format!("  {line}"), theme.plain());
        if index == selected {
            buffer.set_style(Rect::new(area.x, area.y + row, area.width, 1), theme.bar());
        }
    }
    ask(app, &format!("{label}{}", escape(query)), areas, buffer)
}

/// Draws a question in place of the input, and returns the place behind it.
fn ask(app: &App, question: &str, areas: &Areas, buffer: &mut Buffer) -> Option<Position> {
    clear(areas.input, buffer);
    super::put(buffer, areas.input, 0, question, app.setting.theme.strong());
    let column = u16::try_from(width(question)).ok()?;
    let last = areas.input.width.saturating_sub(1);
    Some(Position::new(
        areas.input.x + column.min(last),
        areas.input.y,
    ))
}
