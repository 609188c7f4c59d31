//! Completion by Tab: commands, and names of users and rooms. A completed recipient is
//! shown before anything is sent.

use super::super::conversation::Place;
use super::App;
use super::commands::LOCAL_COMMANDS;
use crate::command::{COMMANDS, Completes};

/// Largest number of candidates in the hint.
const SHOWN_MAX: usize = 12;

/// A completion that continues with the next Tab.
#[derive(Debug)]
pub(super) struct Completing {
    start: usize,
    candidates: Vec<String>,
    next: usize,
}

impl App {
    /// Completes the word before the cursor, or shows its next completion.
    pub(super) fn complete(&mut self) {
        if let Some(completing) = &mut self.completing {
            let count = completing.candidates.len();
            let (start, index) = (completing.start, completing.next % count.max(1));
            completing.next = index + 1;
            if let Some(candidate) = completing.candidates.get(index).cloned() {
                self.input.replace_before(start, &candidate);
            }
            return self.hint_recipient();
        }
        let (start, candidates) = self.candidates();
        match candidates.as_slice() {
            [] => self.hint = Some("no completion".to_owned()),
            [only] => {
                self.input.replace_before(start, only);
                self.input.insert(" ");
                self.hint_recipient();
            }
            [first, others @ ..] => {
                let common = others
                    .iter()
                    .fold(first.as_str(), |prefix, other| shared(prefix, other));
                self.input.replace_before(start, common);
                let shown = candidates
                    .iter()
                    .take(SHOWN_MAX)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join(" ");
                let more = candidates.len().saturating_sub(SHOWN_MAX);
                self.hint = Some(if more == 0 {
                    shown
                } else {
                    format!("{shown} and {more} more")
                });
                self.completing = Some(Completing {
                    start,
                    candidates,
                    next: 0,
                });
            }
        }
    }

    /// Returns the start of the word before the cursor, and its completions.
    fn candidates(&self) -> (usize, Vec<String>) {
        let before = self.input.before_cursor();
        let start = before
            .rfind(char::is_whitespace)
            .map_or(0, |space| space + 1);
        let (earlier, word) = before.split_at_checked(start).unwrap_or((before, ""));
        let mut earlier_words = earlier.split_whitespace();
        match (
            earlier_words.next(),
            earlier_words.next(),
            word.strip_prefix('/'),
        ) {
            (None, _, Some(prefix)) => (start, commands_starting_with(prefix)),
            (Some(command), None, _) if command.starts_with('/') => {
                (start, self.names.starting_with(word, completes(command)))
            }
            (_, _, None) if !word.is_empty() => {
                let is_mark = word.starts_with('@');
                let prefix = word.strip_prefix('@').unwrap_or(word);
                let names = self.names.starting_with(prefix, Completes::Recipients);
                (start + usize::from(is_mark), names)
            }
            _ => (start, Vec::new()),
        }
    }

    /// Shows the recipient of a `/send` line, with the number of its messages here.
    fn hint_recipient(&mut self) {
        let mut words = self.input.text().split_whitespace();
        if !matches!(words.next(), Some("/send" | "/talk" | "/invite")) {
            return;
        }
        let Some(name) = words.next() else {
            return;
        };
        let Ok(user) = name.parse() else {
            return;
        };
        let mark = if self.names.is_lookalike(&user) {
            "; another name looks like it"
        } else {
            ""
        };
        let known = self.conversations.position(&Place::Person(user)).is_some();
        let known = if known || name.starts_with('#') {
            ""
        } else {
            " (no messages yet)"
        };
        self.hint = Some(format!("to {name}{known}{mark}"));
    }
}

/// Returns the common start of two texts.
fn shared<'a>(one: &'a str, other: &str) -> &'a str {
    let same = one
        .char_indices()
        .zip(other.chars())
        .find(|((_, a), b)| a != b);
    let end = same.map_or(one.len().min(other.len()), |((at, _), _)| at);
    one.get(..end).unwrap_or("")
}

fn commands_starting_with(prefix: &str) -> Vec<String> {
    let names = COMMANDS.iter().map(|entry| entry.name);
    let all = names.chain(LOCAL_COMMANDS.iter().map(|entry| entry.name));
    let mut matching: Vec<String> = all
        .filter(|name| name.starts_with(prefix))
        .map(|name| format!("/{name}"))
        .collect();
    matching.sort();
    matching.dedup();
    matching
}

fn completes(command: &str) -> Completes {
    let name = command.strip_prefix('/').unwrap_or(command);
    let entry = COMMANDS.iter().find(|entry| entry.name == name);
    let local = LOCAL_COMMANDS.iter().find(|entry| entry.name == name);
    match (entry, local) {
        (Some(entry), _) => entry.completes,
        (None, Some(local)) => local.completes,
        (None, None) => Completes::Nothing,
    }
}
