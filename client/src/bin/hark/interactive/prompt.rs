//! The prompt: who one is, where, and whether the server is there. It changes
//! while a line is being typed, so both versions have the same width.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hark_protocol::UserName;

use super::style::Style;
use crate::text::escape;

/// Stands where the server does while there is no link.
const OFFLINE: &str = "(offline)";

/// What is in front of the line being typed.
pub(crate) struct LinkPrompt {
    up: Faces,
    down: Faces,
    is_up: Arc<AtomicBool>,
}

struct Faces {
    raw: String,
    styled: String,
}

impl LinkPrompt {
    pub(crate) fn new(user: Option<&UserName>, server: &str, style: Style, is_up: Arc<AtomicBool>) -> Self {
        let user = user.map(|user| format!("{}@", escape(user.as_str()))).unwrap_or_default();
        let width = server.chars().count().max(OFFLINE.len());
        let up = format!("{user}{server:width$}> ");
        let down = format!("{user}{OFFLINE:width$}> ");
        Self {
            up: Faces { styled: up.clone(), raw: up },
            down: Faces { styled: style.bad(&down), raw: down },
            is_up,
        }
    }

    fn face(&self) -> &Faces {
        // The editor looks at the prompt whenever it draws the line.
        if self.is_up.load(Ordering::Relaxed) { &self.up } else { &self.down }
    }
}

impl rustyline::Prompt for LinkPrompt {
    fn raw(&self) -> &str {
        &self.face().raw
    }

    fn styled(&self) -> &str {
        &self.face().styled
    }
}
