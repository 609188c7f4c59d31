//! Completion with the Tab key: commands, and names of known users and rooms.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hark_client::sync::lock;

use hark_protocol::{RoomName, UserName};
use rustyline::completion::Completer;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::validate::Validator;
use rustyline::{Context, Helper};

use crate::command::{COMMANDS, Completes};
use crate::text::is_unsafe;

/// Largest number of names kept for completion.
const NAMES_MAX: usize = 10_000;

/// Time after another key within which a Tab is part of a paste. Nobody types that fast,
/// and a terminal without bracketed paste sends the text at once.
const PASTE_WITHIN: Duration = Duration::from_millis(20);

/// Known names of users and rooms, shared between the chat and the completion.
#[derive(Debug, Clone, Default)]
pub(crate) struct SeenNames {
    // Held for one lookup or insertion.
    names: Arc<Mutex<BTreeSet<UserName>>>,
}

impl SeenNames {
    /// Adds names while there is room, except those that contain unsafe
    /// characters.
    pub(crate) fn learn<'a>(&self, seen: impl IntoIterator<Item = &'a UserName>) {
        let mut names = lock(&self.names);
        for name in seen {
            if names.len() < NAMES_MAX && !name.as_str().contains(is_unsafe) {
                names.insert(name.clone());
            }
        }
    }

    /// Adds rooms, as [`Self::learn`] does. Every room name is a user name.
    pub(crate) fn learn_rooms<'a>(&self, seen: impl IntoIterator<Item = &'a RoomName>) {
        let names = seen
            .into_iter()
            .filter_map(|room| room.as_str().parse().ok());
        self.learn(&names.collect::<Vec<UserName>>());
    }

    fn starting_with(&self, prefix: &str, kind: Completes) -> Vec<String> {
        let is_wanted = |name: &&UserName| {
            let is_room = name.as_str().starts_with(RoomName::MARK);
            match kind {
                Completes::Nothing => false,
                Completes::Users => !is_room,
                Completes::Rooms => is_room,
                Completes::Recipients => true,
            }
        };
        let names = lock(&self.names);
        let matching = names
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|name| name.as_str().starts_with(prefix))
            .filter(is_wanted);
        matching.map(|name| format!("{name} ")).collect()
    }
}

/// Completes the line being typed.
#[derive(Debug)]
pub(crate) struct Completion {
    names: SeenNames,
    // The time of the last change of the line; held for one access.
    changed_at: Mutex<Option<Instant>>,
}

impl Completion {
    pub(crate) fn new(names: SeenNames) -> Self {
        Self {
            names,
            changed_at: Mutex::default(),
        }
    }

    /// Returns whether a Tab at this time is a part of pasted text.
    fn is_pasting(&self, now: Instant) -> bool {
        lock(&self.changed_at).is_some_and(|changed| now.duration_since(changed) < PASTE_WITHIN)
    }

    /// Returns the start of the word before the cursor, and its completions.
    fn candidates(&self, before: &str) -> (usize, Vec<String>) {
        let start = before.rfind(' ').map_or(0, |space| space + 1);
        let (earlier, word) = before.split_at(start);
        let mut words = earlier.split_whitespace();
        let candidates = match (words.next(), words.next()) {
            (None, _) => commands_starting_with(word),
            (Some(command), None) => self.names.starting_with(word, completes(command)),
            _ => Vec::new(),
        };
        (start, candidates)
    }
}

fn commands_starting_with(prefix: &str) -> Vec<String> {
    let matching = COMMANDS
        .iter()
        .filter(|entry| entry.name.starts_with(prefix));
    matching
        .map(|entry| {
            if entry.usage == entry.name {
                entry.name.into()
            } else {
                format!("{} ", entry.name)
            }
        })
        .collect()
}

fn completes(command: &str) -> Completes {
    let entry = COMMANDS.iter().find(|entry| entry.name == command);
    entry.map_or(Completes::Nothing, |entry| entry.completes)
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        pos: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let now = Instant::now();
        if line.is_empty() || self.is_pasting(now) {
            *lock(&self.changed_at) = Some(now);
            return Ok((pos, vec!["\t".to_owned()]));
        }
        Ok(self.candidates(line.get(..pos).unwrap_or(line)))
    }
}

impl Hinter for Completion {
    type Hint = String;

    /// Returns no hint: the editor calls this after each key that changes the line.
    fn hint(&self, _: &str, _: usize, _: &Context<'_>) -> Option<String> {
        *lock(&self.changed_at) = Some(Instant::now());
        None
    }
}

impl Highlighter for Completion {}

impl Validator for Completion {}

impl Helper for Completion {}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(before: &str, start: usize, expected: &[&str]) {
        let names = SeenNames::default();
        names.learn(&[
            "user2".parse().unwrap(),
            "user3".parse().unwrap(),
            "amy\u{202e}".parse().unwrap(),
        ]);
        names.learn_rooms(&["#team".parse().unwrap()]);
        let (found, candidates) = Completion::new(names).candidates(before);
        assert_eq!(
            (found, candidates),
            (
                start,
                expected.iter().map(|&text| text.to_owned()).collect()
            )
        );
    }

    #[test]
    fn commands_come_first_and_then_names() {
        check("se", 0, &["send ", "seen "]);
        check("d", 0, &["disconnect", "delete ", "devices"]);
        check("send us", 5, &["user2 ", "user3 "]);
        check("send ", 5, &["#team ", "user2 ", "user3 "]);
        check("send #", 5, &["#team "]);
        check("join ", 5, &["#team "]);
        check("talk ", 5, &["user2 ", "user3 "]);
        check("send user2 us", 11, &[]);
        check("list us", 5, &[]);
    }

    #[test]
    fn tab_right_after_another_key_is_pasted() {
        let completion = Completion::new(SeenNames::default());
        let history = rustyline::history::DefaultHistory::new();
        let context = Context::new(&history);
        let complete = |line: &str| completion.complete(line, line.len(), &context).unwrap().1;
        assert_eq!(complete("se"), ["send ", "seen "]);
        completion.hint("se", 2, &context);
        assert_eq!(complete("se"), ["\t"]);
        let later = Instant::now() + PASTE_WITHIN;
        assert!(!completion.is_pasting(later));
        assert_eq!(complete(""), ["\t"], "it may begin a paste");
    }
}
