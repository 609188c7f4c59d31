//! The list of conversations, in the order in which they were opened.

use hark_protocol::{RoomName, UserName};

use super::super::conversation::{Conversation, Older, Place};

/// Largest number of conversations. Beyond it the one without unread messages that
/// was added first is dropped; it comes back with its next message.
const CONVERSATIONS_MAX: usize = 1_000;

/// All conversations. The first is always [`Place::Home`].
#[derive(Debug)]
pub(crate) struct Conversations {
    list: Vec<Conversation>,
    current: usize,
    /// The conversation before the current one.
    previous: Option<Place>,
}

impl Default for Conversations {
    fn default() -> Self {
        Self {
            list: vec![Conversation::new(Place::Home)],
            current: 0,
            previous: None,
        }
    }
}

impl Conversations {
    pub(crate) fn list(&self) -> &[Conversation] {
        &self.list
    }

    pub(crate) const fn index(&self) -> usize {
        self.current
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the list is never empty, and the index is within it"
    )]
    pub(crate) fn current(&self) -> &Conversation {
        &self.list[self.current]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the list is never empty, and the index is within it"
    )]
    pub(crate) fn current_mut(&mut self) -> &mut Conversation {
        &mut self.list[self.current]
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Conversation> {
        self.list.iter_mut()
    }

    pub(crate) fn position(&self, place: &Place) -> Option<usize> {
        self.list.iter().position(|one| one.place == *place)
    }

    pub(crate) fn get_mut(&mut self, place: &Place) -> Option<&mut Conversation> {
        self.list.iter_mut().find(|one| one.place == *place)
    }

    /// Returns the conversation at a place, and adds it if it is new.
    pub(crate) fn open(&mut self, place: &Place) -> usize {
        if let Some(index) = self.position(place) {
            return index;
        }
        if self.list.len() >= CONVERSATIONS_MAX {
            self.drop_one();
        }
        self.list.push(Conversation::new(place.clone()));
        self.list.len() - 1
    }

    fn drop_one(&mut self) {
        let is_idle = |conversation: &Conversation| {
            conversation.unread == 0 && conversation.entries.iter().all(|entry| entry.ack.is_none())
        };
        let mut candidates = self.list.iter().enumerate().skip(1);
        let idle = candidates.find(|(index, one)| *index != self.current && is_idle(one));
        if let Some((index, _)) = idle {
            self.remove(index);
        }
    }

    /// Removes a conversation other than the first.
    pub(crate) fn remove(&mut self, index: usize) {
        if index == 0 || index >= self.list.len() {
            return;
        }
        self.list.remove(index);
        if self.current >= index {
            self.current -= 1;
        }
    }

    /// Makes a conversation the current one.
    pub(crate) fn select(&mut self, index: usize) {
        if index < self.list.len() && index != self.current {
            self.previous = Some(self.current().place.clone());
            self.current = index;
        }
    }

    /// Returns the conversation before the current one.
    pub(crate) fn previous(&self) -> Option<usize> {
        self.position(self.previous.as_ref()?)
    }

    /// Returns the conversation that holds a room of the server.
    pub(crate) fn of_room(&self, room: &RoomName) -> Option<usize> {
        self.list.iter().position(|one| one.room() == Some(room))
    }

    /// Makes a room the conversation with a person: the entries of both are merged.
    /// Returns the place of the conversation.
    pub(crate) fn name_talk(&mut self, room: &RoomName, person: &UserName) -> Place {
        let place = Place::Person(person.clone());
        let unnamed = self.position(&Place::Room(room.clone()));
        match (unnamed, self.position(&place)) {
            (Some(unnamed), None) => {
                if let Some(conversation) = self.list.get_mut(unnamed) {
                    conversation.place = place.clone();
                    conversation.talk = Some(room.clone());
                    conversation.older = Older::Unknown;
                }
            }
            (unnamed, _) => {
                let target = self.open(&place);
                let moved = unnamed.and_then(|index| self.list.get(index)).cloned();
                if let Some(target) = self.list.get_mut(target) {
                    if target.talk.replace(room.clone()).is_none() {
                        target.older = Older::Unknown;
                    }
                    if let Some(moved) = moved {
                        target.unread += moved.unread;
                        target.mentions += moved.mentions;
                        target.read_up_to = moved.read_up_to;
                        target.counted_up_to = moved.counted_up_to;
                        target.add_older(moved.entries.into_iter().rev().collect());
                    }
                }
                if let Some(unnamed) = unnamed {
                    let was_current = self.current == unnamed;
                    self.remove(unnamed);
                    if let (true, Some(index)) = (was_current, self.position(&place)) {
                        self.current = index;
                    }
                }
            }
        }
        place
    }

    /// Returns the index of the next conversation with unread messages, mentions and
    /// persons first.
    pub(crate) fn next_unread(&self) -> Option<usize> {
        let count = self.list.len();
        let after = (1..count).map(|step| (self.current + step) % count);
        let rank = |index: usize| {
            let one = self.list.get(index)?;
            let is_person = matches!(one.place, Place::Person(_));
            match (one.unread, one.mentions, is_person) {
                (0, ..) => None,
                (_, 0, false) => Some(1),
                _ => Some(0),
            }
        };
        let ranked = after.filter_map(|index| Some((rank(index)?, index)));
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, index)| index)
    }

    /// Returns the unread messages and mentions outside of muted conversations.
    pub(crate) fn unread(&self) -> (u64, u64) {
        let heard = self.list.iter().filter(|one| !one.is_muted);
        heard.fold((0, 0), |(unread, mentions), one| {
            (unread + one.unread, mentions + one.mentions)
        })
    }

    /// Drops all conversations but the first.
    pub(crate) fn clear(&mut self) {
        self.list.truncate(1);
        self.current = 0;
        self.previous = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> Place {
        Place::Room(name.parse().unwrap())
    }

    #[test]
    fn next_unread_prefers_mentions_and_persons() {
        let mut all = Conversations::default();
        for place in [
            room("#a"),
            room("#b"),
            Place::Person("bob".parse().unwrap()),
            room("#c"),
        ] {
            all.open(&place);
        }
        assert_eq!(all.next_unread(), None);
        for (index, one) in all.iter_mut().enumerate() {
            one.unread = index as u64;
        }
        assert_eq!(all.next_unread(), Some(3));
        all.list[2].mentions = 1;
        assert_eq!(all.next_unread(), Some(2));
        all.select(2);
        assert_eq!(all.next_unread(), Some(3));
    }

    #[test]
    fn named_conversation_is_merged_with_the_person() {
        let mut all = Conversations::default();
        let talk: RoomName = "#=ABCDEFGHIJKLMNOPQRSTUVWXYZ".parse().unwrap();
        let bob: UserName = "bob".parse().unwrap();
        let unnamed = all.open(&Place::Room(talk.clone()));
        all.list[unnamed].unread = 2;
        all.select(unnamed);
        all.open(&Place::Person(bob.clone()));
        all.name_talk(&talk, &bob);
        assert_eq!(all.list.len(), 2);
        assert_eq!(all.current().place, Place::Person(bob));
        assert_eq!(
            (all.current().unread, all.current().room()),
            (2, Some(&talk))
        );
    }

    #[test]
    fn conversations_are_bounded() {
        let mut all = Conversations::default();
        for number in 0..CONVERSATIONS_MAX + 50 {
            let index = all.open(&Place::Person(format!("u{number}").parse().unwrap()));
            if number == 0 {
                all.list[index].unread = 1;
            }
        }
        assert_eq!(all.list.len(), CONVERSATIONS_MAX);
        assert!(
            all.position(&Place::Person("u0".parse().unwrap()))
                .is_some()
        );
    }
}
