//! The areas of the screen, for each of its sizes. Pure.

use ratatui::layout::Rect;

use super::app::App;
use super::editor::InputRows;
use super::wrap::{cut, width};

/// Width from which the list of conversations is shown.
const LIST_COLUMNS_FROM: u16 = 60;

/// Largest number of rows of the input.
const INPUT_ROWS_MAX: u16 = 8;

/// The areas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Areas {
    /// The list of conversations; empty if there is no room for it.
    pub(crate) list: Rect,
    pub(crate) title: Rect,
    pub(crate) messages: Rect,
    pub(crate) status: Rect,
    pub(crate) input: Rect,
    /// The name of the recipient in front of the input.
    pub(crate) label: String,
    /// The input behind the label.
    pub(crate) input_rows: InputRows,
}

impl Areas {
    /// Returns the areas for the size of the terminal.
    pub(crate) fn of(app: &App) -> Self {
        let (columns, rows) = app.size;
        let list_columns = if columns >= LIST_COLUMNS_FROM {
            (columns / 5).clamp(16, 30)
        } else {
            0
        };
        let label = label(app, columns);
        let indent = u16::try_from(width(&label)).unwrap_or(0);
        let input_rows = app.input.rows(usize::from(columns.saturating_sub(indent)));
        let wanted = u16::try_from(input_rows.rows.len()).unwrap_or(u16::MAX);
        let input_height = wanted.min(INPUT_ROWS_MAX).min((rows / 3).max(1)).min(rows);
        let title_height = u16::from(rows >= 4);
        let status_height = u16::from(rows >= 3);
        let upper = rows.saturating_sub(input_height + status_height);
        let left = if list_columns == 0 {
            0
        } else {
            list_columns + 1
        };
        let width = columns.saturating_sub(left);
        Self {
            list: Rect::new(0, 0, list_columns, upper),
            title: Rect::new(left, 0, width, title_height),
            messages: Rect::new(
                left,
                title_height,
                width,
                upper.saturating_sub(title_height),
            ),
            status: Rect::new(0, upper, columns, status_height),
            input: Rect::new(0, upper + status_height, columns, input_height),
            label,
            input_rows,
        }
    }
}

fn label(app: &App, columns: u16) -> String {
    let name = app.conversations.current().name();
    let longest = usize::from(columns / 3).clamp(1, 24);
    format!("{}> ", cut(&name, longest))
}
