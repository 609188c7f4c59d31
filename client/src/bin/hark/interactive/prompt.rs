//! The prompt: who one is, and at which server, if it is there. It changes
//! while a line is being typed, so all its versions have the same width.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hark_protocol::UserName;

use super::style::Style;
use crate::text::escape_name;

/// Stands where the server does while there is no link.
const OFFLINE: &str = "(offline)";

/// At which of its servers a chat is.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    servers: Arc<[String]>,
    /// Its place in the list, counted from 1; 0 for none.
    at: Arc<AtomicUsize>,
}

/// What is in front of the line being typed.
pub(crate) struct LinkPrompt {
    /// For each place, as [`Place`] counts them.
    faces: Vec<Face>,
    place: Place,
}

struct Face {
    raw: String,
    styled: String,
}

impl Place {
    /// Not yet at any of these servers, which are joined by commas.
    pub(crate) fn new(servers: &str) -> Self {
        Self { servers: servers.split(',').map(str::to_owned).collect(), at: Arc::default() }
    }

    /// The link goes to this server now, or to none.
    pub(crate) fn set(&self, server: Option<&str>) {
        let at = server.and_then(|server| self.servers.iter().position(|one| one == server));
        self.at.store(at.map_or(0, |at| at + 1), Ordering::Relaxed);
    }

    /// Whether it goes to one.
    pub(crate) fn is_up(&self) -> bool {
        self.at.load(Ordering::Relaxed) > 0
    }
}

impl LinkPrompt {
    pub(crate) fn new(user: Option<&UserName>, style: Style, place: Place) -> Self {
        let user = user.map(|user| format!("{}@", escape_name(user.as_str()))).unwrap_or_default();
        let places = || std::iter::once(OFFLINE).chain(place.servers.iter().map(String::as_str));
        let width = places().map(|place| place.chars().count()).max().unwrap_or(0);
        let face = |text: &str| {
            let raw = format!("{user}{text:width$}> ");
            let styled = if text == OFFLINE { style.bad(&raw) } else { raw.clone() };
            Face { raw, styled }
        };
        Self { faces: places().map(face).collect(), place }
    }

    fn face(&self) -> Option<&Face> {
        // The editor looks at the prompt whenever it draws the line.
        self.faces.get(self.place.at.load(Ordering::Relaxed))
    }
}

impl rustyline::Prompt for LinkPrompt {
    fn raw(&self) -> &str {
        self.face().map_or("", |face| &face.raw)
    }

    fn styled(&self) -> &str {
        self.face().map_or("", |face| &face.styled)
    }
}
