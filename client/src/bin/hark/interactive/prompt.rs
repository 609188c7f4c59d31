//! The prompt: the current user, and the server or "(offline)". It may change
//! while a line is being typed, so all variants have the same width.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hark_protocol::UserName;

use super::style::Style;
use crate::text::escape_name;

/// Shown in place of the server while the link is down.
const OFFLINE: &str = "(offline)";

/// The server that the link is connected to.
#[derive(Debug, Clone)]
pub(crate) struct CurrentServer {
    servers: Arc<[String]>,
    /// Index in the list, counted from 1; 0 while the link is down.
    at: Arc<AtomicUsize>,
}

/// The prompt in front of the line being typed.
pub(crate) struct LinkPrompt {
    /// One variant for each index of [`CurrentServer`].
    variants: Vec<Variant>,
    current_server: CurrentServer,
}

struct Variant {
    raw: String,
    styled: String,
}

impl CurrentServer {
    /// Starts disconnected. `servers` are joined by commas.
    pub(crate) fn new(servers: &str) -> Self {
        Self {
            servers: servers.split(',').map(str::to_owned).collect(),
            at: Arc::default(),
        }
    }

    /// Sets the current server; `None` while the link is down.
    pub(crate) fn set(&self, server: Option<&str>) {
        let at = server.and_then(|server| self.servers.iter().position(|one| one == server));
        self.at.store(at.map_or(0, |at| at + 1), Ordering::Relaxed);
    }

    /// Returns whether the link is up.
    pub(crate) fn is_up(&self) -> bool {
        self.at.load(Ordering::Relaxed) > 0
    }
}

impl LinkPrompt {
    pub(crate) fn new(
        user: Option<&UserName>,
        style: Style,
        current_server: CurrentServer,
    ) -> Self {
        let user = user
            .map(|user| format!("{}@", escape_name(user.as_str())))
            .unwrap_or_default();
        let labels =
            || std::iter::once(OFFLINE).chain(current_server.servers.iter().map(String::as_str));
        let width = labels()
            .map(|label| label.chars().count())
            .max()
            .unwrap_or(0);
        let variant = |text: &str| {
            let raw = format!("{user}{text:width$}> ");
            let styled = if text == OFFLINE {
                style.bad(&raw)
            } else {
                raw.clone()
            };
            Variant { raw, styled }
        };
        Self {
            variants: labels().map(variant).collect(),
            current_server,
        }
    }

    fn variant(&self) -> Option<&Variant> {
        // The editor reads the prompt whenever it draws the line.
        self.variants
            .get(self.current_server.at.load(Ordering::Relaxed))
    }
}

impl rustyline::Prompt for LinkPrompt {
    fn raw(&self) -> &str {
        self.variant().map_or("", |variant| &variant.raw)
    }

    fn styled(&self) -> &str {
        self.variant().map_or("", |variant| &variant.styled)
    }
}
