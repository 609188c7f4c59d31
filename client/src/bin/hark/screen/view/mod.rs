//! The screen: a function of the model. It changes nothing.
//!
//! | module | contents |
//! | --- | --- |
//! | `list` | the list of conversations |
//! | `messages` | the conversation |
//! | `bars` | the title, the status and the input |
//! | `overlays` | help, jump, search, questions and passwords |

mod bars;
mod list;
mod messages;
mod overlays;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::app::App;
use super::layout::Areas;
use super::wrap::cut;

/// Draws the state.
pub(crate) fn view(app: &App, frame: &mut Frame<'_>) {
    // The terminal may have been resized since the event of it.
    let is_stale = (frame.area().width, frame.area().height) != app.size;
    let areas = Areas::of(app);
    if is_stale || areas.input.is_empty() {
        return;
    }
    let buffer = frame.buffer_mut();
    list::draw(app, areas.list, buffer);
    bars::title(app, areas.title, buffer);
    messages::draw(app, areas.messages, buffer);
    bars::status(app, areas.status, buffer);
    let cursor = bars::input(&areas, app, buffer);
    let cursor = match &app.overlay {
        Some(overlay) => overlays::draw(app, overlay, &areas, buffer),
        None => cursor,
    };
    if let Some(cursor) = cursor {
        frame.set_cursor_position(cursor);
    }
}

/// Writes a text into one row of an area, cut to its width.
fn put(buffer: &mut Buffer, area: Rect, row: u16, text: &str, style: Style) {
    if row < area.height {
        let columns = usize::from(area.width);
        buffer.set_stringn(area.x, area.y + row, cut(text, columns), columns, style);
    }
}
