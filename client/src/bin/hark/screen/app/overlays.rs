//! What covers the messages for a while: help, jump, search, a question, a password.

use hark_protocol::{Password, UserName};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use zeroize::Zeroizing;

use super::super::conversation::Tone;
use super::super::{fuzzy, rows, wrap};
use super::commands::LOCAL_COMMANDS;
use super::keys::BINDINGS;
use super::{Action, App, Past};
use crate::command::{COMMANDS, Command, Secrets};
use crate::history::EntryId;
use crate::text::escape_name;

/// Largest number of results that are shown.
const RESULTS_MAX: usize = 200;

/// Length of the excerpt of a result, in columns.
const HIT_COLUMNS: usize = 400;

/// Longest query or password, in bytes.
const QUERY_BYTES_MAX: usize = 512;

/// An overlay. It gets all keys until it is closed.
#[derive(Debug)]
pub(crate) enum Overlay {
    Help {
        scroll: usize,
    },
    Jump {
        query: String,
        selected: usize,
    },
    Search {
        query: String,
        selected: usize,
        /// Results of the local history.
        older: Vec<Past>,
    },
    Confirm {
        question: String,
        command: Command,
    },
    Secret(SecretPrompt),
}

/// The password that is being asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Password,
    New,
    Repeat,
}

/// A prompt for a password.
#[derive(Debug)]
pub(crate) struct SecretPrompt {
    command: Command,
    user: UserName,
    asked: Asked,
    /// Whether the command sets a new password, rather than creating an account.
    is_change: bool,
    typed: Zeroizing<String>,
    secrets: Secrets,
}

impl SecretPrompt {
    /// Prompts for the password that a denied command needs.
    pub(super) fn for_denied(command: Command, secrets: Secrets) -> Option<Self> {
        let (user, asked) = match &command {
            Command::Create(user) => (user.clone(), Asked::New),
            Command::Login(user)
            | Command::Connect(user)
            | Command::Delete(user)
            | Command::Password(Some(user)) => (user.clone(), Asked::Password),
            _ => return None,
        };
        Some(Self {
            command,
            user,
            asked,
            is_change: false,
            typed: Zeroizing::default(),
            secrets,
        })
    }

    pub(super) fn for_new_password(user: UserName) -> Self {
        Self {
            command: Command::Password(Some(user.clone())),
            user,
            asked: Asked::New,
            is_change: true,
            typed: Zeroizing::default(),
            secrets: Secrets::default(),
        }
    }

    /// Returns the question.
    pub(crate) fn question(&self) -> String {
        let name = escape_name(self.user.as_str());
        match self.asked {
            Asked::Password => format!("Password for {name}: "),
            Asked::New => format!("New password for {name}: "),
            Asked::Repeat => "Repeat the password: ".to_owned(),
        }
    }
}

/// A result of a search, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hit {
    target: Target,
    pub(crate) text: String,
}

/// The entry of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// One that is loaded, by its number.
    Loaded(u64),
    /// One of the local history.
    Filed(EntryId),
}

/// Opening and contents.
impl App {
    pub(super) fn open_help(&mut self) {
        self.overlay = Some(Overlay::Help { scroll: 0 });
    }

    pub(super) fn open_jump(&mut self) {
        self.overlay = Some(Overlay::Jump {
            query: String::new(),
            selected: 0,
        });
    }

    pub(super) fn open_search(&mut self, query: &str) {
        self.overlay = Some(Overlay::Search {
            query: query.to_owned(),
            selected: 0,
            older: Vec::new(),
        });
        self.search_older(query);
    }

    pub(super) fn ask_secret(&mut self, prompt: SecretPrompt) {
        self.overlay = Some(Overlay::Secret(prompt));
    }

    /// Returns the lines of the help.
    pub(crate) fn help_lines() -> Vec<String> {
        let mut lines = vec!["Keys".to_owned()];
        let named = BINDINGS.iter().filter(|binding| !binding.name.is_empty());
        lines.extend(named.map(|binding| format!("  {:<12} {}", binding.name, binding.help)));
        lines.push(format!(
            "  {:<12} {}",
            "Tab", "complete a command or a name"
        ));
        lines.push(format!(
            "  {:<12} {}",
            "Alt-1 … 9", "conversation of that number; Alt-0: this program"
        ));
        lines.push(String::new());
        lines.push("Commands".to_owned());
        let usages = COMMANDS.iter().map(|entry| (entry.usage, entry.help));
        let local = LOCAL_COMMANDS.iter().map(|entry| (entry.usage, entry.help));
        lines.extend(
            usages
                .chain(local)
                .map(|(usage, help)| format!("  /{usage:<31} {help}")),
        );
        lines.push(String::new());
        lines.push("Without a room, a command for a room means the current one.".to_owned());
        lines.push("A message that begins with / is typed with two of them.".to_owned());
        lines
    }

    /// Returns the indexes of the conversations that match a query, the best first.
    pub(crate) fn jump_hits(&self, query: &str) -> Vec<usize> {
        let mut hits: Vec<(i64, usize)> = self
            .conversations
            .list()
            .iter()
            .enumerate()
            .filter_map(|(index, one)| Some((fuzzy::score(query, &one.name())?, index)))
            .collect();
        if query.is_empty() {
            // Unread ones come first.
            let unread = |index: usize| {
                self.conversations
                    .list()
                    .get(index)
                    .map_or(0, |one| one.unread)
            };
            hits.sort_by_key(|(_, index)| (unread(*index) == 0, *index));
        } else {
            hits.sort_by_key(|(score, index)| (std::cmp::Reverse(*score), *index));
        }
        hits.into_iter()
            .map(|(_, index)| index)
            .take(RESULTS_MAX)
            .collect()
    }

    /// Returns the messages of the current conversation that contain a text, the
    /// newest first: those that are loaded, then those of the local history.
    pub(crate) fn search_hits(&self, query: &str, older: &[Past]) -> Vec<Hit> {
        let query = query.to_lowercase();
        if query.is_empty() {
            return Vec::new();
        }
        let entries = &self.conversations.current().entries;
        let loaded = entries.iter().rev().filter_map(|entry| {
            let said = entry.said()?;
            let is_hit = said.text.to_lowercase().contains(&query)
                || name_of(said.sender.as_ref())
                    .to_lowercase()
                    .contains(&query);
            is_hit.then(|| Hit {
                target: Target::Loaded(entry.id),
                text: self.hit_text(entry.time_ms, said.sender.as_ref(), &said.text),
            })
        });
        let is_loaded = |filed| entries.iter().any(|entry| entry.filed == Some(filed));
        let older = older.iter().filter_map(|past| {
            let filed = past.filed.filter(|filed| !is_loaded(*filed))?;
            Some(Hit {
                target: Target::Filed(filed),
                text: self.hit_text(past.time_ms, past.sender.as_ref(), &past.text),
            })
        });
        loaded.chain(older).take(RESULTS_MAX).collect()
    }

    fn hit_text(&self, time_ms: u64, sender: Option<&UserName>, text: &str) -> String {
        let time = rows::local(time_ms, &self.setting.zone);
        let time = time.map_or_else(String::new, |time| {
            time.strftime("%d %b %H:%M ").to_string()
        });
        let text = wrap::wrap(text, HIT_COLUMNS).join(" ");
        format!("{time}{}: {text}", escape_name(name_of(sender)))
    }

    fn search_older(&mut self, query: &str) {
        if !query.is_empty() {
            let place = self.conversations.current().place.clone();
            self.actions.push(Action::Search(place, query.to_owned()));
        }
    }

    /// Opens the conversation that matches a query best, or one with a new person.
    pub(super) fn jump_to(&mut self, query: &str) {
        match self.jump_hits(query).first() {
            Some(index) if !query.is_empty() => self.select(*index),
            _ => self.hint = Some("no such conversation; /talk NAME begins one".to_owned()),
        }
    }
}

/// Keys of overlays.
impl App {
    pub(super) fn overlay_key(&mut self, key: KeyEvent) {
        let is_ctrl = key.modifiers == KeyModifiers::CONTROL;
        let is_cancel =
            key.code == KeyCode::Esc || (is_ctrl && matches!(key.code, KeyCode::Char('c' | 'g')));
        let Some(overlay) = self.overlay.take() else {
            return;
        };
        if is_cancel {
            if let Overlay::Secret(prompt) = overlay {
                let what = if prompt.is_change {
                    "the password was not changed"
                } else {
                    "no password was given"
                };
                self.notice(what, Tone::Plain);
            }
            return;
        }
        match overlay {
            Overlay::Help { scroll } => self.help_key(key, scroll),
            Overlay::Jump { query, selected } => self.jump_key(key, query, selected),
            Overlay::Search {
                query,
                selected,
                older,
            } => self.search_key(key, query, selected, older),
            Overlay::Confirm { question, command } => match key.code {
                KeyCode::Char('y' | 'Y') => self.run(command),
                KeyCode::Char('n' | 'N') | KeyCode::Enter => {
                    self.hint = Some("nothing was deleted".to_owned());
                }
                _ => self.overlay = Some(Overlay::Confirm { question, command }),
            },
            Overlay::Secret(prompt) => self.secret_key(key, prompt),
        }
    }

    pub(super) fn overlay_paste(&mut self, text: &str) {
        let line = text.lines().next().unwrap_or_default();
        match &mut self.overlay {
            Some(
                Overlay::Jump { query, selected }
                | Overlay::Search {
                    query, selected, ..
                },
            ) if query.len() + line.len() <= QUERY_BYTES_MAX => {
                query.push_str(line);
                *selected = 0;
            }
            Some(Overlay::Secret(prompt)) if prompt.typed.len() + line.len() <= QUERY_BYTES_MAX => {
                prompt.typed.push_str(line);
            }
            _ => {}
        }
    }

    fn help_key(&mut self, key: KeyEvent, scroll: usize) {
        let page = usize::from(self.size.1).saturating_sub(3).max(1);
        let last = Self::help_lines().len().saturating_sub(page);
        let scroll = match key.code {
            KeyCode::Up => scroll.saturating_sub(1),
            KeyCode::Down => scroll + 1,
            KeyCode::PageUp => scroll.saturating_sub(page),
            KeyCode::PageDown | KeyCode::Char(' ') => scroll + page,
            KeyCode::Home => 0,
            KeyCode::End => last,
            // Any other key closes the help.
            _ => return,
        };
        self.overlay = Some(Overlay::Help {
            scroll: scroll.min(last),
        });
    }

    fn jump_key(&mut self, key: KeyEvent, mut query: String, mut selected: usize) {
        if key.code == KeyCode::Enter {
            match self.jump_hits(&query).get(selected) {
                Some(index) => self.select(*index),
                None => self.hint = Some("no such conversation; /talk NAME begins one".to_owned()),
            }
            return;
        }
        edit_query(key, &mut query, &mut selected);
        selected = selected.min(self.jump_hits(&query).len().saturating_sub(1));
        self.overlay = Some(Overlay::Jump { query, selected });
    }

    fn search_key(
        &mut self,
        key: KeyEvent,
        mut query: String,
        mut selected: usize,
        mut older: Vec<Past>,
    ) {
        if key.code == KeyCode::Enter {
            let hits = self.search_hits(&query, &older);
            match hits.get(selected).map(|hit| hit.target) {
                Some(Target::Loaded(id)) => self.scroll_to(id),
                Some(Target::Filed(filed)) => self.load_until(filed),
                None => {}
            }
            return;
        }
        let before = query.clone();
        edit_query(key, &mut query, &mut selected);
        if query != before {
            older.clear();
            self.search_older(&query);
        }
        let last = self.search_hits(&query, &older).len().saturating_sub(1);
        selected = selected.min(last);
        self.overlay = Some(Overlay::Search {
            query,
            selected,
            older,
        });
    }

    fn secret_key(&mut self, key: KeyEvent, mut prompt: SecretPrompt) {
        match (key.code, key.modifiers) {
            (KeyCode::Enter, _) => return self.enter_secret(prompt),
            (KeyCode::Backspace, _) => drop(prompt.typed.pop()),
            (KeyCode::Char('u'), KeyModifiers::CONTROL) => prompt.typed.clear(),
            (KeyCode::Char(c), KeyModifiers::NONE | KeyModifiers::SHIFT)
                if prompt.typed.len() < QUERY_BYTES_MAX =>
            {
                prompt.typed.push(c);
            }
            _ => {}
        }
        self.overlay = Some(Overlay::Secret(prompt));
    }

    /// Takes a typed password, and asks for the next one or runs the command.
    fn enter_secret(&mut self, mut prompt: SecretPrompt) {
        let password: Password = match prompt.typed.parse() {
            Ok(password) => password,
            Err(bad) => {
                self.hint = Some(bad.to_string());
                prompt.typed.clear();
                self.overlay = Some(Overlay::Secret(prompt));
                return;
            }
        };
        prompt.typed.clear();
        match prompt.asked {
            Asked::Password => prompt.secrets.password = Some(password),
            Asked::New => {
                prompt.secrets.new_password = Some(password);
                prompt.asked = Asked::Repeat;
                self.overlay = Some(Overlay::Secret(prompt));
                return;
            }
            Asked::Repeat if prompt.secrets.new_password.as_ref() != Some(&password) => {
                return self.notice("the passwords do not match", Tone::Bad);
            }
            Asked::Repeat if !prompt.is_change => {
                prompt.secrets.password = prompt.secrets.new_password.take();
            }
            Asked::Repeat => {}
        }
        let SecretPrompt {
            command, secrets, ..
        } = prompt;
        self.run_with(command, secrets);
    }
}

fn name_of(sender: Option<&UserName>) -> &str {
    sender.map_or("(anonymous)", UserName::as_str)
}

/// Changes a query and the selected result.
fn edit_query(key: KeyEvent, query: &mut String, selected: &mut usize) {
    let is_ctrl = key.modifiers == KeyModifiers::CONTROL;
    match key.code {
        KeyCode::Up => *selected = selected.saturating_sub(1),
        KeyCode::Down | KeyCode::Tab => *selected += 1,
        KeyCode::Char('p') if is_ctrl => *selected = selected.saturating_sub(1),
        KeyCode::Char('n' | 'k' | 'r') if is_ctrl => *selected += 1,
        KeyCode::Char('u') if is_ctrl => {
            query.clear();
            *selected = 0;
        }
        KeyCode::Backspace => {
            query.pop();
            *selected = 0;
        }
        KeyCode::Char(c) if !is_ctrl && query.len() < QUERY_BYTES_MAX => {
            query.push(c);
            *selected = 0;
        }
        _ => {}
    }
}
