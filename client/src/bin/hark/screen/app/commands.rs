//! Lines that the user enters: a message, or a command behind `/`.

use hark_protocol::UserName;

use super::super::conversation::{Body, Entry, Place, Said, Status, Tone};
use super::overlays::{Overlay, SecretPrompt};
use super::{Action, App};
use crate::command::{self, Command, Completes};
use crate::text::escape_name;

/// A command of the screen alone.
pub(crate) struct LocalCommand {
    pub(crate) name: &'static str,
    pub(crate) usage: &'static str,
    pub(crate) help: &'static str,
    pub(crate) completes: Completes,
    run: fn(&mut App, &str),
}

/// Every command of the screen alone.
pub(crate) static LOCAL_COMMANDS: &[LocalCommand] = &[
    LocalCommand {
        name: "search",
        usage: "search TEXT",
        help: "find messages of this conversation (or Ctrl-R)",
        completes: Completes::Nothing,
        run: |app, text| app.open_search(text),
    },
    LocalCommand {
        name: "go",
        usage: "go NAME",
        help: "open the conversation whose name matches best (or Ctrl-K)",
        completes: Completes::Recipients,
        run: |app, name| app.jump_to(name),
    },
    LocalCommand {
        name: "reply",
        usage: "reply [TEXT]",
        help: "answer the last message to you (or Alt-R)",
        completes: Completes::Nothing,
        run: |app, text| app.reply(text),
    },
    LocalCommand {
        name: "close",
        usage: "close",
        help: "remove this conversation from the list until its next message",
        completes: Completes::Nothing,
        run: |app, _| app.close(app.conversations.index()),
    },
    LocalCommand {
        name: "mute",
        usage: "mute",
        help: "no bell and no count in the title for this conversation; again to undo",
        completes: Completes::Nothing,
        run: |app, _| app.toggle_mute(),
    },
];

impl App {
    /// Enters the input: sends a message or runs a command.
    pub(super) fn enter(&mut self) {
        let text = self.input.take();
        if text.trim().is_empty() {
            return;
        }
        self.scroll_to_bottom();
        match text.strip_prefix('/') {
            // Two slashes stand for a message that begins with one.
            Some(rest) if rest.starts_with('/') => {
                let message = rest.to_owned();
                self.input.remember(&text);
                self.say(message);
            }
            Some(line) => self.enter_command(line),
            None => {
                self.input.remember(&text);
                self.say(text);
            }
        }
    }

    /// Sends a message to the current conversation.
    fn say(&mut self, text: String) {
        let place = self.conversations.current().place.clone();
        if place == Place::Home {
            // The text is not lost.
            self.input.insert(&text);
            self.hint = Some(
                "nobody to send to: Ctrl-K jumps to a conversation, /talk NAME or /join #ROOM begins one"
                    .to_owned(),
            );
            return;
        }
        self.send_to(&place, text);
        let conversation = self.conversations.current_mut();
        conversation.new_since = None;
        conversation.unread_at_open = 0;
    }

    /// Adds an own message to a conversation, and sends it.
    fn send_to(&mut self, place: &Place, text: String) {
        let (id, time_ms, me) = (self.new_id(), self.now_ms, self.me.clone());
        let Some(conversation) = self.conversations.get_mut(place) else {
            return;
        };
        let Some(recipient) = conversation.recipient() else {
            return;
        };
        let is_room = conversation.room().is_some();
        conversation.add_own(Entry {
            id,
            time_ms,
            ack: None,
            filed: None,
            body: Body::Said(Said {
                sender: me,
                text: text.as_str().into(),
                position: None,
                status: Some(Status::Pending),
                awaits_echo: is_room,
                is_mention: false,
            }),
        });
        self.trim(place);
        self.actions.push(Action::Send {
            id,
            recipient,
            text: text.into(),
            filed: None,
        });
    }

    fn enter_command(&mut self, line: &str) {
        let line = self.expanded(line);
        let (name, arguments) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        if let Some(local) = LOCAL_COMMANDS.iter().find(|entry| entry.name == name) {
            self.input.remember(&format!("/{line}"));
            return (local.run)(self, arguments.trim());
        }
        let parsed =
            command::parse(&line).or_else(|bad| self.parse_here(name, arguments).ok_or(bad));
        match parsed {
            Ok(command) => {
                // An invalid line may be a misplaced password.
                self.input.remember(&format!("/{line}"));
                self.start(command);
            }
            Err(bad) => self.notice(bad.to_string(), Tone::Bad),
        }
    }

    /// Replaces an alias at the start of a line.
    fn expanded(&self, line: &str) -> String {
        let (word, rest) = line.split_at(line.find(' ').unwrap_or(line.len()));
        let beginning = self.setting.aliases.get(word).map_or(word, String::as_str);
        format!("{beginning}{rest}")
    }

    /// Parses a command without its room, which is then the current one.
    fn parse_here(&self, name: &str, arguments: &str) -> Option<Command> {
        let room = self.conversations.current().room()?;
        if arguments.trim_start().starts_with('#') {
            return None;
        }
        let parsed = command::parse(&format!("{name} {room} {arguments}")).ok()?;
        let takes_room = matches!(
            parsed,
            Command::Leave(_)
                | Command::Members(_)
                | Command::Invite(..)
                | Command::Expel(..)
                | Command::Own(..)
                | Command::History(..)
                | Command::Seen(..)
        );
        takes_room.then_some(parsed)
    }

    /// Starts a command.
    fn start(&mut self, command: Command) {
        match command {
            Command::Quit => self.actions.push(Action::Quit),
            Command::Help => self.overlay = Some(Overlay::Help { scroll: 0 }),
            Command::Send(user, text) => self.send_elsewhere(user, text.to_string()),
            Command::Talk(user) => {
                self.names.learn(&user);
                self.show(&Place::Person(user.clone()));
                self.run(Command::Talk(user));
            }
            Command::Join(room) => {
                self.opening = Some(Place::Room(room.clone()));
                self.run(Command::Join(room));
            }
            Command::Room(room, mode, keep_s) => {
                self.opening = Some(Place::Room(room.clone()));
                self.run(Command::Room(room, mode, keep_s));
            }
            Command::Delete(user) => {
                let name = escape_name(user.as_str());
                let what = if name.starts_with('#') {
                    format!("delete the room {name} with all its messages?")
                } else {
                    format!("delete the account {name} and its messages?")
                };
                self.overlay = Some(Overlay::Confirm {
                    question: what,
                    command: Command::Delete(user),
                });
            }
            Command::Password(None) => match self.me.clone() {
                Some(me) => self.start(Command::Password(Some(me))),
                None => self.notice(
                    "you are not logged in: /connect first, or use /password USER",
                    Tone::Bad,
                ),
            },
            Command::Password(Some(user)) => {
                let prompt = SecretPrompt::for_new_password(user);
                self.ask_secret(prompt);
            }
            Command::Undo => self.undo(),
            Command::Ignore(user) => self.ignore(user, true),
            Command::Unignore(user) => self.ignore(user, false),
            Command::Recall(user, _) => {
                self.show(&Place::Person(user));
                self.page_up();
            }
            Command::History(room, ..) if self.conversations.of_room(&room).is_some() => {
                if let Some(index) = self.conversations.of_room(&room) {
                    self.select(index);
                }
                self.page_up();
            }
            command => self.run(command),
        }
    }

    fn ignore(&mut self, user: UserName, is_ignored: bool) {
        let name = escape_name(user.as_str());
        self.hint = Some(if is_ignored {
            format!("messages of {name} are not shown any more; /unignore {name} ends this")
        } else {
            format!("messages of {name} are shown again")
        });
        self.actions.push(Action::Ignore(user, is_ignored));
    }

    /// Sends a message to a conversation other than the current one.
    fn send_elsewhere(&mut self, user: UserName, text: String) {
        let place = self.place_of_recipient(&user);
        self.names.learn(&user);
        self.conversations.open(&place);
        self.send_to(&place, text);
        if self.conversations.current().place != place {
            self.hint = Some(format!("sent to {}", escape_name(user.as_str())));
        }
    }

    /// Returns the place of the conversation with a recipient.
    pub(super) fn place_of_recipient(&self, recipient: &UserName) -> Place {
        let Ok(room) = recipient.as_str().parse::<hark_protocol::RoomName>() else {
            return Place::Person(recipient.clone());
        };
        let index = self.conversations.of_room(&room);
        let known = index.and_then(|index| self.conversations.list().get(index));
        known.map_or(Place::Room(room), |known| known.place.clone())
    }

    /// Opens the conversation of the last message to the user, and sends a text there.
    pub(super) fn reply(&mut self, text: &str) {
        let Some(place) = self.last_sender.clone() else {
            self.hint = Some("no message to answer".to_owned());
            return;
        };
        self.show(&place);
        if !text.is_empty() {
            self.say(text.to_owned());
        }
    }

    fn toggle_mute(&mut self) {
        let conversation = self.conversations.current_mut();
        conversation.is_muted = !conversation.is_muted;
        let state = if conversation.is_muted {
            "muted"
        } else {
            "no longer muted"
        };
        self.hint = Some(format!(
            "{} is {state}",
            self.conversations.current().name()
        ));
    }
}
