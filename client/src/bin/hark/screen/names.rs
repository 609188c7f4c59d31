//! Known names of users and rooms: for completion, and to mark those that look
//! alike.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;

use hark_protocol::{RoomName, UserName};
use unicode_security::skeleton;

use crate::command::Completes;
use crate::text::is_unsafe;

/// Largest number of known names.
const NAMES_MAX: usize = 10_000;

/// The known names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    names: BTreeSet<UserName>,
    /// Number of names with the same appearance.
    appearances: HashMap<String, usize>,
}

impl Names {
    /// Adds a name while there is room.
    pub(crate) fn learn(&mut self, name: &UserName) {
        if self.names.len() < NAMES_MAX && self.names.insert(name.clone()) {
            *self.appearances.entry(appearance(name)).or_default() += 1;
        }
    }

    /// Adds a room. Every room name is a user name.
    pub(crate) fn learn_room(&mut self, room: &RoomName) {
        if !room.is_conversation()
            && let Ok(name) = room.as_str().parse()
        {
            self.learn(&name);
        }
    }

    /// Returns whether another known name looks like this one.
    pub(crate) fn is_lookalike(&self, name: &UserName) -> bool {
        let alike = self
            .appearances
            .get(&appearance(name))
            .copied()
            .unwrap_or(0);
        alike > usize::from(self.names.contains(name))
    }

    /// Returns the names with a prefix, in order. Names with unsafe characters are not
    /// completed.
    pub(crate) fn starting_with(&self, prefix: &str, kind: Completes) -> Vec<String> {
        let is_wanted = |name: &&UserName| {
            let is_room = name.as_str().starts_with(RoomName::MARK);
            match kind {
                Completes::Nothing => false,
                Completes::Users => !is_room,
                Completes::Rooms => is_room,
                Completes::Recipients => true,
            }
        };
        let matching = self
            .names
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|name| name.as_str().starts_with(prefix))
            .filter(is_wanted)
            .filter(|name| !name.as_str().contains(is_unsafe));
        matching.map(ToString::to_string).collect()
    }
}

/// Returns the appearance of a name, by the confusables of Unicode, without case.
fn appearance(name: &UserName) -> String {
    skeleton(name.as_str()).collect::<String>().to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_alike_are_recognized() {
        let mut names = Names::default();
        for name in ["bob", "b0b", "аmy", "amy", "Iily", "lily", "cleo"] {
            names.learn(&name.parse().unwrap());
        }
        let is_lookalike = |name: &str| names.is_lookalike(&name.parse().unwrap());
        for name in ["bob", "b0b", "аmy", "amy", "Iily", "lily", "cIeo", "CLEO"] {
            assert!(is_lookalike(name), "{name}");
        }
        assert!(!is_lookalike("cleo") && !is_lookalike("dora"));
    }

    #[test]
    fn names_are_completed_by_kind() {
        let mut names = Names::default();
        names.learn(&"team".parse().unwrap());
        names.learn(&"te\u{202e}".parse().unwrap());
        names.learn_room(&"#team".parse().unwrap());
        assert_eq!(names.starting_with("te", Completes::Recipients), ["team"]);
        assert_eq!(names.starting_with("", Completes::Rooms), ["#team"]);
        assert_eq!(names.starting_with("", Completes::Users), ["team"]);
    }
}
