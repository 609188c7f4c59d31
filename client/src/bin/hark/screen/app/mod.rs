//! The model of the full-screen mode. [`App::update`] takes an event, changes the
//! state and returns the actions to perform. No I/O, no clock, no terminal.
//!
//! | module | contents |
//! | --- | --- |
//! | `arrivals` | messages and notices of the server |
//! | `answers` | outcomes of sends and commands |
//! | `past` | the local history, and older messages of the server |
//! | `commands` | lines that the user enters |
//! | `keys` | keys, and the input line |
//! | `overlays` | help, jump, search, questions and passwords |
//! | `scroll` | the part of a conversation that is on the screen |
//! | `conversations` | the list of conversations |
//! | `completion` | names and commands completed by Tab |

mod answers;
mod arrivals;
mod commands;
mod completion;
pub(crate) mod conversations;
mod keys;
pub(crate) mod overlays;
mod past;
mod scroll;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytestring::ByteString;
use hark_client::{LinkState, RequestError};
use hark_protocol::message::{Gap, LeftReason};
use hark_protocol::{Delivery, DeviceName, RoomName, Sequence, UserName};
use jiff::tz::TimeZone;
use ratatui::crossterm::event::KeyEvent;

use self::completion::Completing;
use self::conversations::Conversations;
use self::overlays::Overlay;
use super::alerts::Alerts;
use super::conversation::{Body, Entry, Place, Position, Status, Tone};
use super::editor::Editor;
use super::names::Names;
use super::theme::Theme;
use crate::command::{Command, Done, Secrets};
use crate::history::{EntryId, Summary, Unsent};

/// An event for the model.
#[derive(Debug)]
pub(crate) enum Event {
    Key {
        key: KeyEvent,
        /// Whether the key is part of a paste that the terminal did not mark.
        is_pasted: bool,
    },
    Pasted(String),
    Resized(u16, u16),
    Focused(bool),
    /// The state was drawn.
    Drawn,
    Link(LinkState),
    Received(Received),
    Missing {
        /// As in [`Received::ack`].
        ack: Option<u64>,
        gap: Gap,
    },
    CaughtUp,
    Joined(RoomName),
    Left(RoomName, LeftReason),
    Seen(RoomName, Sequence),
    NewDevice(Option<DeviceName>),
    TakenOver(UserName),
    /// A failure on this machine.
    Failure(String),
    /// The conversations of the local history, after [`Action::Use`].
    Opened(Vec<Summary>),
    /// A line of a former run, which was not sent.
    Kept(Unsent),
    /// The place of an own message in the local history.
    Filed {
        id: u64,
        filed: EntryId,
    },
    /// The outcome of [`Action::Search`].
    Found {
        query: String,
        hits: Vec<Past>,
    },
    /// The outcome of [`Action::Undo`]; the text if the message was taken back.
    Undone {
        filed: EntryId,
        text: Option<String>,
    },
    IdentityLost {
        user: UserName,
        why: String,
    },
    /// The outcome of [`Action::Send`].
    Answered {
        id: u64,
        is_room: bool,
        outcome: Result<Option<Sequence>, RequestError>,
    },
    /// The outcome of [`Action::Run`].
    Done {
        command: Command,
        typed: TypedSecrets,
        is_quiet: bool,
        outcome: Result<Done, RequestError>,
    },
    /// The outcome of [`Action::LoadOlder`].
    Older {
        place: Place,
        /// Whether the server was asked.
        is_of_room: bool,
        outcome: Result<Page, RequestError>,
    },
}

/// A received message.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Number of the acknowledgement that waits until the message was on the screen;
    /// `None` if it is in the local history.
    pub(crate) ack: Option<u64>,
    /// The place in the local history.
    pub(crate) filed: Option<EntryId>,
    /// Whether the sender is ignored.
    pub(crate) is_ignored: bool,
    /// The receiving user.
    pub(crate) user: UserName,
    pub(crate) room: Option<RoomName>,
    pub(crate) delivery: Delivery,
}

/// A page of older messages, the newest first.
#[derive(Debug, Clone, Default)]
pub(crate) struct Page {
    pub(crate) messages: Vec<Past>,
    /// Whether nothing is older.
    pub(crate) is_end: bool,
}

/// An older message.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) sender: Option<UserName>,
    pub(crate) text: ByteString,
    pub(crate) time_ms: u64,
    pub(crate) position: Option<Position>,
    /// State of an own message.
    pub(crate) status: Option<Status>,
    /// Number of missing messages, if the entry stands for them.
    pub(crate) missing: Option<u64>,
    pub(crate) filed: Option<EntryId>,
}

/// An effect outside of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send the own message of this number.
    Send {
        id: u64,
        recipient: UserName,
        text: ByteString,
        /// The place in the local history, if it has one.
        filed: Option<EntryId>,
    },
    Run {
        command: Command,
        /// Passwords that were typed.
        typed: TypedSecrets,
        /// Whether the outcome is not shown.
        is_quiet: bool,
    },
    /// Acknowledge the message of this number.
    Ack(u64),
    /// Move the read mark of a room.
    Mark(RoomName, Sequence),
    /// Load messages of a conversation: those of the local history before an entry, or
    /// those of the room below the number `before`; 0 means from the end.
    LoadOlder {
        place: Place,
        room: Option<RoomName>,
        before: Sequence,
        before_filed: Option<EntryId>,
    },
    /// Open the local history of the user.
    Use(UserName),
    /// Record in the local history that a conversation is read up to an entry.
    ReadUpTo(Place, EntryId),
    /// Record the room of a conversation of two.
    Talk(UserName, RoomName),
    /// Search the local history of a conversation.
    Search(Place, String),
    /// Take an own message back, unless it may have been sent.
    Undo(EntryId),
    /// Ignore a user from now on, or no longer.
    Ignore(UserName, bool),
    Bell,
    /// Show a notification on the desktop.
    Notify(String),
    /// Draw everything again.
    Clear,
    Suspend,
    Quit,
}

/// Passwords that were typed for a command; they precede those of the settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct TypedSecrets(pub(crate) Secrets);

impl PartialEq for TypedSecrets {
    fn eq(&self, other: &Self) -> bool {
        let exposed = |secrets: &Secrets| {
            let old = secrets.password.as_ref().map(|one| one.expose().to_owned());
            let new = secrets
                .new_password
                .as_ref()
                .map(|one| one.expose().to_owned());
            (old, new)
        };
        exposed(&self.0) == exposed(&other.0)
    }
}

impl Eq for TypedSecrets {}

/// The circumstances that do not change while the program runs.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) zone: TimeZone,
    pub(crate) theme: Theme,
    /// The servers, as configured.
    pub(crate) server: String,
    /// Whether the settings have a password.
    pub(crate) has_password: bool,
    /// The user that it belongs to; `None` if it is for any user.
    pub(crate) password_owner: Option<UserName>,
    /// Names that stand for the start of a line.
    pub(crate) aliases: BTreeMap<String, String>,
}

/// State of the link, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Link {
    Connecting,
    Up(String),
    Down(String),
}

/// The state of the program.
pub(crate) struct App {
    pub(crate) setting: Setting,
    /// Columns and rows of the terminal.
    pub(crate) size: (u16, u16),
    /// Milliseconds since the Unix epoch, set before each event.
    pub(crate) now_ms: u64,
    pub(crate) me: Option<UserName>,
    pub(crate) link: Link,
    pub(crate) conversations: Conversations,
    pub(crate) input: Editor,
    pub(crate) overlay: Option<Overlay>,
    /// A short notice in place of the status, until the next key.
    pub(crate) hint: Option<String>,
    pub(crate) names: Names,
    is_focused: bool,
    /// Whether messages that were queued while away are still arriving.
    is_catching_up: bool,
    completing: Option<Completing>,
    alerts: Alerts,
    /// The conversation of the last message to the user.
    last_sender: Option<Place>,
    /// The conversation that opens once its command has succeeded.
    opening: Option<Place>,
    next_id: u64,
    /// The entry of the local history up to which older messages are loaded.
    loading_until: Option<EntryId>,
    /// Own messages that may be taken back, the newest last.
    typed: Vec<EntryId>,
    actions: Vec<Action>,
}

impl App {
    pub(crate) fn new(setting: Setting, size: (u16, u16), now_ms: u64) -> Self {
        Self {
            setting,
            size,
            now_ms,
            me: None,
            link: Link::Connecting,
            conversations: Conversations::default(),
            input: Editor::default(),
            overlay: None,
            hint: None,
            names: Names::default(),
            is_focused: true,
            is_catching_up: false,
            completing: None,
            alerts: Alerts::default(),
            last_sender: None,
            opening: None,
            next_id: 1,
            loading_until: None,
            typed: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// Connects as a user from the start.
    pub(crate) fn start_as(&mut self, user: UserName) -> Vec<Action> {
        self.become_user(Some(user.clone()));
        self.run(Command::Connect(user));
        std::mem::take(&mut self.actions)
    }

    /// Processes an event, and returns the actions to perform, in order.
    pub(crate) fn update(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Key { key, is_pasted } => self.key(key, is_pasted),
            Event::Pasted(text) => self.paste(&text),
            Event::Resized(columns, rows) => self.size = (columns, rows),
            Event::Focused(is_focused) => self.is_focused = is_focused,
            Event::Drawn => self.drawn(),
            Event::Link(state) => self.link_changed(&state),
            Event::Received(received) => self.received(received),
            Event::Missing { ack, gap } => self.missing(ack, &gap),
            Event::CaughtUp => self.is_catching_up = false,
            Event::Joined(room) => self.joined(room),
            Event::Left(room, reason) => self.left(&room, reason),
            Event::Seen(room, number) => self.seen(&room, number),
            Event::NewDevice(name) => self.new_device(name),
            Event::TakenOver(user) => self.taken_over(&user),
            Event::Failure(text) => self.notice_in(&Place::Home, &text, Tone::Bad),
            Event::Opened(summaries) => self.opened(summaries),
            Event::Kept(unsent) => self.kept(unsent),
            Event::Filed { id, filed } => self.filed(id, filed),
            Event::Found { query, hits } => self.found(&query, hits),
            Event::Undone { filed, text } => self.undone(filed, text),
            Event::IdentityLost { user, why } => self.identity_lost(&user, &why),
            Event::Answered {
                id,
                is_room,
                outcome,
            } => self.answered(id, is_room, outcome),
            Event::Done {
                command,
                is_quiet: true,
                outcome,
                ..
            } => self.done_quietly(&command, &outcome),
            Event::Done {
                command,
                typed,
                outcome,
                ..
            } => self.done(command, typed.0, outcome),
            Event::Older {
                place,
                is_of_room,
                outcome,
            } => self.older(&place, is_of_room, outcome),
        }
        std::mem::take(&mut self.actions)
    }

    /// Returns the title of the terminal: the unread messages, and the conversation.
    pub(crate) fn title(&self) -> String {
        let (unread, mentions) = self.conversations.unread();
        let name = self.conversations.current().name();
        match (unread, mentions) {
            (0, _) => format!("hark: {name}"),
            (unread, 0) => format!("({unread}) hark: {name}"),
            (unread, _) => format!("({unread}!) hark: {name}"),
        }
    }

    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Adds a notice to the current conversation.
    fn notice(&mut self, text: impl Into<String>, tone: Tone) {
        let place = self.conversations.current().place.clone();
        self.notice_in(&place, text, tone);
    }

    fn notice_in(&mut self, place: &Place, text: impl Into<String>, tone: Tone) {
        let entry = Entry {
            id: self.new_id(),
            time_ms: self.now_ms,
            body: Body::Notice(text.into(), tone),
            ack: None,
            filed: None,
        };
        if let Some(conversation) = self.conversations.get_mut(place) {
            conversation.add(entry);
            self.trim(place);
        }
    }

    fn run(&mut self, command: Command) {
        self.run_with(command, Secrets::default());
    }

    fn run_with(&mut self, command: Command, typed: Secrets) {
        self.actions.push(Action::Run {
            command,
            typed: TypedSecrets(typed),
            is_quiet: false,
        });
    }

    /// Runs a command of the program itself, whose outcome is not shown.
    fn run_quietly(&mut self, command: Command) {
        self.actions.push(Action::Run {
            command,
            typed: TypedSecrets::default(),
            is_quiet: true,
        });
    }
}
