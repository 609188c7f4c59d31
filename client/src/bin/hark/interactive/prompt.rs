//! The prompt: the current user, and the server or "(offline)". Both may change while
//! a line is being typed. The editor measures the prompt only once, so it keeps its
//! width, and drops the server if another user needs the room.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use hark_client::sync::lock;
use hark_protocol::UserName;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

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

/// The current user, shared by the chat and the prompt.
#[derive(Debug, Clone, Default)]
pub(crate) struct CurrentUser {
    // Held for one access.
    user: Arc<Mutex<Option<UserName>>>,
}

/// The prompt in front of the line being typed.
pub(crate) struct LinkPrompt {
    user: CurrentUser,
    current_server: CurrentServer,
    style: Style,
    /// Columns in front of the mark.
    width: usize,
    drawn: Drawn,
}

/// The texts that the editor may have drawn: a list that only grows, since the editor
/// borrows from it. Each text occurs once.
#[derive(Default)]
struct Drawn {
    next: OnceLock<Box<Text>>,
}

struct Text {
    is_up: bool,
    raw: String,
    styled: String,
    behind: Drawn,
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

    /// Returns the current server; `None` while the link is down.
    fn get(&self) -> Option<&str> {
        let at = self.at.load(Ordering::Relaxed).checked_sub(1)?;
        self.servers.get(at).map(String::as_str)
    }
}

impl CurrentUser {
    pub(crate) fn set(&self, user: Option<UserName>) {
        *lock(&self.user) = user;
    }

    pub(crate) fn get(&self) -> Option<UserName> {
        lock(&self.user).clone()
    }

    /// Clears the user if it is this one.
    pub(crate) fn clear_if(&self, user: &UserName) {
        lock(&self.user).take_if(|me| me == user);
    }

    fn shown(&self) -> Option<String> {
        let user = lock(&self.user);
        user.as_ref()
            .map(|user| escape_name(user.as_str()).into_owned())
    }
}

impl LinkPrompt {
    pub(crate) fn new(user: CurrentUser, style: Style, current_server: CurrentServer) -> Self {
        let shown = user.shown();
        let servers = current_server.servers.iter().map(String::as_str);
        let width = servers
            .chain([OFFLINE])
            .map(|server| full(shown.as_deref(), server).width())
            .max()
            .unwrap_or(0);
        Self {
            user,
            current_server,
            style,
            width,
            drawn: Drawn::default(),
        }
    }

    /// Returns the present text. The editor calls this whenever it draws the line.
    fn text(&self) -> &Text {
        let server = self.current_server.get();
        let label = fitted(
            self.user.shown().as_deref(),
            server.unwrap_or(OFFLINE),
            self.width,
        );
        let padding = self.width.saturating_sub(label.width());
        let raw = format!("{label}{:padding$}> ", "");
        self.drawn.find(raw, server.is_some(), self.style)
    }
}

impl Drawn {
    fn find(&self, raw: String, is_up: bool, style: Style) -> &Text {
        let mut end = &self.next;
        loop {
            let text = end.get_or_init(|| {
                Box::new(Text {
                    is_up,
                    styled: if is_up { raw.clone() } else { style.bad(&raw) },
                    raw: raw.clone(),
                    behind: Self::default(),
                })
            });
            if text.raw == raw && text.is_up == is_up {
                return text;
            }
            end = &text.behind.next;
        }
    }
}

fn full(user: Option<&str>, server: &str) -> String {
    user.map_or_else(|| server.to_owned(), |user| format!("{user}@{server}"))
}

/// Returns user and server, or the user alone, or as much of the user as there is room
/// for.
fn fitted(user: Option<&str>, server: &str, width: usize) -> String {
    let full = full(user, server);
    let user = match user {
        Some(user) if full.width() > width => user,
        _ => return full,
    };
    if user.width() <= width {
        return user.to_owned();
    }
    let mut room = width.saturating_sub(1);
    let mut part = String::new();
    for c in user.chars() {
        let columns = c.width().unwrap_or(0);
        if columns > room {
            break;
        }
        room -= columns;
        part.push(c);
    }
    format!("{part}…")
}

impl rustyline::Prompt for LinkPrompt {
    fn raw(&self) -> &str {
        &self.text().raw
    }

    fn styled(&self) -> &str {
        &self.text().styled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustyline::Prompt as _;

    fn prompt(user: Option<&str>) -> (LinkPrompt, CurrentUser, CurrentServer) {
        let (server, current) = (CurrentServer::new("here:3000"), CurrentUser::default());
        server.set(Some("here:3000"));
        current.set(user.map(|user| user.parse().unwrap()));
        let style = Style { is_colored: false };
        let prompt = LinkPrompt::new(current.clone(), style, server.clone());
        (prompt, current, server)
    }

    #[test]
    fn prompt_names_the_present_user() {
        let (prompt, user, server) = prompt(Some("amy"));
        let drawn = prompt.raw();
        assert_eq!(drawn, "amy@here:3000> ");
        for (name, expected) in [
            (Some("bob"), "bob@here:3000> "),
            (Some("barbara"), "barbara      > "),
            (Some("bartholomew-the-3rd"), "bartholomew-…> "),
            (Some("花子花子花子花子"), "花子花子花子…> "),
            (None, "here:3000    > "),
        ] {
            user.set(name.map(|name| name.parse().unwrap()));
            assert_eq!(prompt.raw(), expected);
            assert_eq!(prompt.raw().width(), drawn.width());
        }
        server.set(None);
        assert_eq!(prompt.raw(), "(offline)    > ");
        assert_eq!(drawn, "amy@here:3000> ");
    }
}
