//! Outcomes of sends, commands and loads.

use hark_client::RequestError;
use hark_client::handle::Names as ListedNames;
use hark_protocol::message::RoomEntry;
use hark_protocol::{Code, Refusal, RoomName, Sequence, UserName};

use super::super::conversation::{Entry, Older, Place, Status, Tone};
use super::overlays::SecretPrompt;
use super::{Action, App};
use crate::command::{Command, Done, Secrets};
use crate::interactive::style::Style as PlainStyle;
use crate::text::escape_name;

/// Formats outcomes as the line mode does.
const PLAIN: PlainStyle = PlainStyle { is_colored: false };

fn is_denied(outcome: &Result<Done, RequestError>) -> bool {
    matches!(
        outcome,
        Err(RequestError::Refused(Refusal {
            code: Code::Denied,
            ..
        }))
    )
}

impl App {
    /// Shows the outcome of an own message.
    pub(super) fn answered(
        &mut self,
        id: u64,
        is_room: bool,
        outcome: Result<Option<Sequence>, RequestError>,
    ) {
        let failed = outcome.is_err();
        let current = self.conversations.index();
        let mut all = self.conversations.iter_mut().enumerate();
        let found = all.find(|(_, one)| one.index_of(id).is_some());
        let Some((index, conversation)) = found else {
            return;
        };
        conversation.answer(id, outcome, is_room);
        if failed && index != current {
            self.hint = Some(format!(
                "a message to {} was not stored",
                conversation.name()
            ));
        }
    }

    /// Returns the own messages whose outcome was not shown as stored or refused, as
    /// lines.
    pub(crate) fn unstored(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for conversation in self.conversations.list() {
            for said in conversation.entries.iter().filter_map(Entry::said) {
                let status = match &said.status {
                    Some(Status::Pending) => PLAIN.pending(false),
                    Some(Status::Failed(error)) if !matches!(error, RequestError::Refused(_)) => {
                        PLAIN.error(error)
                    }
                    _ => continue,
                };
                if let Ok(name) = conversation.name().parse() {
                    lines.push(PLAIN.sent(&name, &said.text, &status));
                }
            }
        }
        lines
    }

    /// Shows the outcome of a command, and applies it.
    pub(super) fn done(
        &mut self,
        command: Command,
        typed: Secrets,
        outcome: Result<Done, RequestError>,
    ) {
        let had_password = typed.password.is_some() || self.has_password(&command);
        if is_denied(&outcome)
            && !had_password
            && let Some(prompt) = SecretPrompt::for_denied(command.clone(), typed)
        {
            self.ask_secret(prompt);
            return;
        }
        match (&command, &outcome) {
            (Command::Talk(user), outcome) => self.talk_answered(user, outcome),
            (command, Ok(done)) => {
                self.apply(command, done);
                let text = PLAIN.outcome(command, &outcome);
                self.notice(text, Tone::Plain);
            }
            (command, Err(_)) => {
                let text = PLAIN.outcome(command, &outcome);
                self.opening = None;
                if matches!(command, Command::Connect(user) if self.me.as_ref() == Some(user)) {
                    self.me = None;
                }
                self.notice(text, Tone::Bad);
            }
        }
    }

    /// Returns whether the settings have a password for a command.
    fn has_password(&self, command: &Command) -> bool {
        let user = match command {
            Command::Login(user) | Command::Connect(user) | Command::Delete(user) => Some(user),
            _ => None,
        };
        let owner = self.setting.password_owner.as_ref();
        self.setting.has_password && (owner.is_none() || owner == user)
    }

    /// Applies the outcome of a command that the user has not entered. Its failure is
    /// not reported: the command is repeated when it is needed again.
    pub(super) fn done_quietly(&mut self, command: &Command, outcome: &Result<Done, RequestError>) {
        match (command, outcome) {
            (_, Ok(Done::Rooms(rooms))) => self.know_rooms(rooms, false),
            (Command::Members(room), Ok(Done::Listed(members))) => self.know_talk(room, members),
            _ => {}
        }
    }

    /// Applies a successful command to the conversations.
    fn apply(&mut self, command: &Command, done: &Done) {
        match (command, done) {
            (Command::Connect(user), _) => {
                self.is_catching_up = !matches!(done, Done::Connected(0));
                self.become_user(Some(user.clone()));
                self.run_quietly(Command::Rooms(None));
            }
            (Command::Login(user), _) => self.become_user(Some(user.clone())),
            (Command::Disconnect, _) => self.become_user(None),
            (Command::Delete(user), _) if self.me.as_ref() == Some(user) => self.me = None,
            (Command::Create(user), _) => self.names.learn(user),
            (Command::Join(room) | Command::Room(room, ..), _) => {
                self.names.learn_room(room);
                let place = Place::Room(room.clone());
                let index = self.conversations.open(&place);
                if let Some(conversation) = self.conversations.get_mut(&place) {
                    conversation.is_member = true;
                    conversation.older = Older::Unknown;
                }
                if self.opening.take_if(|opening| *opening == place).is_some() {
                    self.select(index);
                }
                self.run_quietly(Command::Rooms(None));
            }
            (Command::Leave(room), _) => {
                let index = self.conversations.of_room(room);
                if let Some(index) = index {
                    self.close(index);
                }
            }
            (_, Done::Listed(listed)) => {
                listed.names.iter().for_each(|name| self.names.learn(name));
            }
            (_, Done::Rooms(rooms)) => self.know_rooms(rooms, true),
            _ => {}
        }
    }

    /// Adds the user's rooms to the list, with their unread messages.
    fn know_rooms(&mut self, rooms: &[RoomEntry], is_typed: bool) {
        for room in rooms {
            self.names.learn_room(&room.name);
            let Some(unread) = room.unread else {
                continue;
            };
            let index = match self.conversations.of_room(&room.name) {
                Some(index) => index,
                None if room.name.is_conversation() => self.open_unnamed(&room.name),
                None => self.conversations.open(&Place::Room(room.name.clone())),
            };
            let is_current = index == self.conversations.index();
            let Some(conversation) = self.conversations.iter_mut().nth(index) else {
                continue;
            };
            conversation.members = Some(room.members);
            conversation.is_member = true;
            if !is_typed && room.last >= conversation.counted_up_to && !is_current {
                conversation.unread = unread;
                conversation.counted_up_to = room.last;
            }
        }
    }

    /// Names the other user of a conversation.
    fn know_talk(&mut self, room: &RoomName, members: &ListedNames) {
        let other = members
            .names
            .iter()
            .find(|name| Some(*name) != self.me.as_ref());
        if let Some(other) = other {
            self.names.learn(other);
            self.conversations.name_talk(room, other);
            self.actions.push(Action::Talk(other.clone(), room.clone()));
        }
    }

    fn talk_answered(&mut self, user: &UserName, outcome: &Result<Done, RequestError>) {
        match outcome {
            Ok(Done::Talking(room)) => {
                let place = self.conversations.name_talk(room, user);
                self.actions.push(Action::Talk(user.clone(), room.clone()));
                if self.conversations.current().place == place {
                    self.load_older_if_needed();
                }
            }
            Ok(_) => {}
            Err(error) => {
                let place = Place::Person(user.clone());
                let why = PLAIN.error(error);
                let name = escape_name(user.as_str());
                self.notice_in(
                    &place,
                    format!("the server keeps no conversation with {name}: {why}\nmessages go to the inbox of {name}"),
                    Tone::Plain,
                );
            }
        }
    }
}
