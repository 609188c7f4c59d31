//! Colors and attributes. Without colors, attributes alone tell things apart.

use ratatui::style::{Color, Modifier, Style};

/// The colors of names: readable on dark and light backgrounds, and none of them that
/// of errors.
const NAME_COLORS: [Color; 10] = [
    Color::Green,
    Color::Yellow,
    Color::Blue,
    Color::Magenta,
    Color::Cyan,
    Color::LightGreen,
    Color::LightBlue,
    Color::LightMagenta,
    Color::LightCyan,
    Color::LightYellow,
];

/// The styles of the screen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    pub(crate) is_colored: bool,
}

impl Theme {
    fn color(self, color: Color) -> Style {
        if self.is_colored {
            Style::new().fg(color)
        } else {
            Style::new()
        }
    }

    /// Returns the style of a name: always the same for the same name.
    pub(crate) fn name(self, name: &str) -> Style {
        // FNV-1a: a stable hash, so that a name has its color on every device.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let index = hash as usize % NAME_COLORS.len();
        let color = NAME_COLORS.get(index).copied().unwrap_or(Color::Reset);
        self.color(color).add_modifier(Modifier::BOLD)
    }

    pub(crate) const fn plain(self) -> Style {
        Style::new()
    }

    pub(crate) fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    pub(crate) fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(crate) fn bad(self) -> Style {
        self.color(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(crate) fn mention(self) -> Style {
        self.color(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(crate) fn unread(self) -> Style {
        self.color(Color::Yellow).add_modifier(Modifier::BOLD)
    }

    /// Returns the style of bars and of the selected line.
    pub(crate) fn bar(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}
