//! The local history of the screen: a thread that files messages before they are
//! acknowledged, and own lines before they are sent. Everything that goes to the
//! server or comes from it passes through here, so that its order is kept.

use std::collections::HashMap;

use hark_client::{Event as ClientEvent, Message, MissingMessages, RequestError};
use hark_protocol::{RoomName, Sequence, UserName};
use tokio::sync::mpsc;

use super::app::{Event, Page, Past, Received};
use super::conversation::{Place, Position, Status};
use super::jobs::Job;
use crate::history::{
    self, Conversation, Entry, EntryId, EntryState, Filed, History, HistoryError, HistoryFile,
    Outcome, now_ms,
};

/// Largest number of works that wait.
pub(crate) const WORK_MAX: usize = 4_096;

/// Largest number of messages that are filed at once.
const BATCH_MAX: usize = 256;

/// Number of entries of a page.
const PAGE_ENTRIES: usize = 200;

/// Largest number of results of a search.
const HITS_MAX: usize = 200;

/// Work for the thread.
#[derive(Debug)]
pub(crate) enum Work {
    /// An event of the client.
    Client(ClientEvent),
    /// A request to the server.
    Job(Job),
    /// The outcome of an own message.
    Outcome {
        filed: EntryId,
        outcome: Result<Option<Sequence>, RequestError>,
    },
    /// A message was on the screen that could not be filed.
    Ack(u64),
    /// The user has changed.
    Use(UserName),
    ReadUpTo(Place, EntryId),
    Talk(UserName, RoomName),
    Search {
        place: Place,
        query: String,
    },
    Undo(EntryId),
    Ignore(UserName, bool),
    /// The program ends: lines that are not sent are kept for its next start.
    Leave,
}

/// What is acknowledged once it was on the screen, since it could not be filed.
enum Held {
    Message(Message),
    Gap(MissingMessages),
}

/// The thread's state.
pub(crate) struct Archive {
    file: HistoryFile,
    servers: String,
    history: Option<History>,
    /// `None` once the program ends.
    jobs: Option<mpsc::Sender<Job>>,
    events: mpsc::Sender<Event>,
    held: HashMap<u64, Held>,
    next_ack: u64,
    /// The last failure that was shown.
    failure: Option<String>,
}

/// Returns the conversation of the history at a place.
fn conversation(place: &Place) -> Conversation {
    match place {
        Place::Home => Conversation::Anonymous,
        Place::Person(user) => Conversation::User(user.clone()),
        Place::Room(room) => Conversation::Room(room.clone()),
    }
}

/// Returns the place of a conversation of the history.
pub(crate) fn place_of(conversation: &Conversation) -> Place {
    match conversation {
        Conversation::Anonymous => Place::Home,
        Conversation::User(user) => Place::Person(user.clone()),
        Conversation::Room(room) => Place::Room(room.clone()),
    }
}

impl Archive {
    pub(crate) fn new(
        file: HistoryFile,
        servers: String,
        jobs: mpsc::Sender<Job>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self {
            file,
            servers,
            history: None,
            jobs: Some(jobs),
            events,
            held: HashMap::new(),
            next_ack: 0,
            failure: None,
        }
    }

    /// Works until all senders of `work` are dropped.
    pub(crate) fn run(mut self, mut work: mpsc::Receiver<Work>) {
        let mut following = None;
        while let Some(next) = following.take().or_else(|| work.blocking_recv()) {
            let Work::Client(ClientEvent::Message(message)) = next else {
                self.work(next);
                continue;
            };
            let mut messages = vec![message];
            while messages.len() < BATCH_MAX
                && following.is_none()
                && let Ok(next) = work.try_recv()
            {
                match next {
                    Work::Client(ClientEvent::Message(message)) => messages.push(message),
                    other => following = Some(other),
                }
            }
            self.receive(messages);
        }
    }

    fn work(&mut self, work: Work) {
        match work {
            Work::Client(event) => self.client_event(event),
            Work::Job(job) => self.job(job),
            Work::Outcome { filed, outcome } => self.outcome(filed, &outcome),
            Work::Ack(ack) => self.acknowledge(ack),
            Work::Use(user) => self.use_history_of(&user),
            Work::ReadUpTo(place, id) => {
                let mark = |history: &History| history.mark_read(&conversation(&place), id);
                self.recorded(mark);
            }
            Work::Talk(user, room) => {
                self.recorded(|history| history.learn_talk(&user, &room));
            }
            Work::Search { place, query } => self.search(&place, query),
            Work::Undo(id) => self.undo(id),
            Work::Ignore(user, is_ignored) => {
                self.recorded(|history| history.ignore(&user, is_ignored));
            }
            Work::Leave => self.jobs = None,
        }
    }

    fn tell(&self, event: Event) {
        // The receiver is gone if the program is ending.
        drop(self.events.blocking_send(event));
    }

    /// Runs an operation on the history of the user. A failure is shown once.
    fn recorded<T>(
        &mut self,
        operation: impl FnOnce(&History) -> Result<T, HistoryError>,
    ) -> Option<T> {
        let outcome = operation(self.history.as_ref()?);
        self.succeeded(outcome)
    }

    fn succeeded<T>(&mut self, outcome: Result<T, HistoryError>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                let failure = error.to_string();
                if self.failure.as_ref() != Some(&failure) {
                    self.tell(Event::Failure(failure.clone()));
                    self.failure = Some(failure);
                }
                None
            }
        }
    }

    /// Opens the history of a user, unless it is open.
    fn open(&mut self, user: &UserName) {
        if self
            .history
            .as_ref()
            .is_some_and(|history| history.user() == user)
        {
            return;
        }
        let opened = self.file.of(&self.servers, user);
        self.history = self.succeeded(opened);
    }

    /// Opens the history of a user, and tells its conversations and kept lines.
    fn use_history_of(&mut self, user: &UserName) {
        self.open(user);
        let summaries = self.recorded(History::conversations).unwrap_or_default();
        self.tell(Event::Opened(summaries));
        let adopted = self.recorded(History::adopt).unwrap_or_default();
        if adopted.unknown > 0 {
            self.tell(Event::Failure(format!(
                "hark ended before the server had answered {} of your messages: they are shown as unknown",
                adopted.unknown
            )));
        }
        for unsent in adopted.unsent {
            self.tell(Event::Kept(unsent));
        }
    }
}

/// Arrivals.
impl Archive {
    /// Files messages, acknowledges them, and tells them. Without a durable history they
    /// are acknowledged once they were on the screen.
    fn receive(&mut self, messages: Vec<Message>) {
        let Some(user) = messages.first().map(|message| message.user.clone()) else {
            return;
        };
        self.open(&user);
        let received: Vec<_> = messages
            .iter()
            .map(|message| history::Received {
                room: message.room.as_ref(),
                delivery: &message.delivery,
            })
            .collect();
        let filed = self
            .recorded(|history| history.add_received(&received))
            .unwrap_or_default();
        let is_durable = !filed.is_empty() && !self.file.is_in_memory();
        let mut filed = filed.into_iter().map(Some).collect::<Vec<Option<Filed>>>();
        filed.resize(messages.len(), None);
        for (message, filed) in messages.into_iter().zip(filed) {
            let event = Received {
                ack: None,
                filed: filed.as_ref().map(|filed| filed.id),
                is_ignored: filed.as_ref().is_some_and(|filed| filed.is_ignored),
                user: message.user.clone(),
                room: message.room.clone(),
                delivery: message.delivery.clone(),
            };
            let ack = if is_durable {
                if let Err(error) = message.ack() {
                    self.tell(Event::Failure(format!(
                        "a message will be delivered again: {error}"
                    )));
                }
                None
            } else {
                Some(self.hold(Held::Message(message)))
            };
            self.tell(Event::Received(Received { ack, ..event }));
        }
    }

    fn hold(&mut self, held: Held) -> u64 {
        self.next_ack += 1;
        self.held.insert(self.next_ack, held);
        self.next_ack
    }

    fn acknowledge(&mut self, ack: u64) {
        match self.held.remove(&ack) {
            Some(Held::Message(message)) => {
                if let Err(error) = message.ack() {
                    self.tell(Event::Failure(format!(
                        "a message will be delivered again: {error}"
                    )));
                }
            }
            Some(Held::Gap(missing)) => missing.ack(),
            None => {}
        }
    }

    fn client_event(&mut self, event: ClientEvent) {
        let event = match event {
            ClientEvent::Link(state) => Event::Link(state),
            ClientEvent::Gap(missing) => {
                self.open(&missing.user);
                let gap = missing.gap.clone();
                let filed = self.recorded(|history| history.add_missing(&gap, now_ms()));
                let ack = if filed.is_some() && !self.file.is_in_memory() {
                    missing.ack();
                    None
                } else {
                    Some(self.hold(Held::Gap(missing)))
                };
                Event::Missing { ack, gap }
            }
            ClientEvent::Seen { room, sequence } => {
                self.recorded(|history| history.mark_seen(&room, sequence));
                Event::Seen(room, sequence)
            }
            ClientEvent::CaughtUp { .. } => Event::CaughtUp,
            ClientEvent::Joined { room, .. } => Event::Joined(room),
            ClientEvent::Left { room, reason } => Event::Left(room, reason),
            ClientEvent::NewDevice { name } => Event::NewDevice(name),
            ClientEvent::TakenOver { user } => Event::TakenOver(user),
            ClientEvent::IdentityLost { user, refusal } => Event::IdentityLost {
                user,
                why: refusal.explanation.into_owned(),
            },
            ClientEvent::Message(message) => return self.receive(vec![message]),
        };
        self.tell(event);
    }
}

/// Own lines, pages and searches.
impl Archive {
    /// Files an own line before it is sent; loads a page of the history, and of the
    /// server behind its end; passes other requests on.
    fn job(&mut self, job: Job) {
        let job = match job {
            Job::Send {
                id,
                recipient,
                text,
                filed: None,
            } => {
                let add = |history: &History| history.add_pending(&recipient, &text, now_ms());
                let filed = self.recorded(add).map(|(_, filed)| filed);
                if let Some(filed) = filed {
                    self.tell(Event::Filed { id, filed });
                }
                Job::Send {
                    id,
                    recipient,
                    text,
                    filed,
                }
            }
            Job::LoadOlder {
                place,
                room,
                before,
                before_filed,
            } => {
                if let Some(page) = self.page(&place, before_filed) {
                    return self.tell(Event::Older {
                        place,
                        is_of_room: room.is_some(),
                        outcome: Ok(page),
                    });
                }
                Job::LoadOlder {
                    place,
                    room,
                    before,
                    before_filed,
                }
            }
            other => other,
        };
        if let Some(jobs) = &self.jobs {
            // The runner is gone if the program is ending.
            drop(jobs.blocking_send(job));
        }
    }

    /// Returns a page of the history; `None` if there is none before an entry.
    fn page(&mut self, place: &Place, before: Option<EntryId>) -> Option<Page> {
        let with = conversation(place);
        let entries = self.recorded(|history| history.page(&with, before, PAGE_ENTRIES))?;
        (!entries.is_empty()).then(|| Page {
            messages: entries.into_iter().filter_map(past).collect(),
            is_end: false,
        })
    }

    fn outcome(&mut self, filed: EntryId, outcome: &Result<Option<Sequence>, RequestError>) {
        let outcome = match outcome {
            Ok(number) => Outcome::Stored(*number),
            // It is sent by the next start.
            Err(RequestError::NotSent(_)) if self.jobs.is_none() && !self.file.is_in_memory() => {
                return;
            }
            Err(error @ RequestError::Unknown { .. }) => Outcome::Unknown(error.to_string()),
            Err(error) => Outcome::Refused(error.to_string()),
        };
        let resolved = self.file.resolve(filed, &outcome);
        self.succeeded(resolved);
    }

    fn search(&mut self, place: &Place, query: String) {
        let with = conversation(place);
        let hits = self.recorded(|history| history.search(&query, Some(&with), None, HITS_MAX));
        let hits = hits.unwrap_or_default().into_iter();
        let hits = hits.filter_map(|(_, entry)| past(entry)).collect();
        self.tell(Event::Found { query, hits });
    }

    fn undo(&mut self, filed: EntryId) {
        let withdrawn = self.file.withdraw(filed);
        let text = self.succeeded(withdrawn).flatten();
        self.tell(Event::Undone { filed, text });
    }
}

/// Converts an entry of the history; `None` if its sender is ignored.
fn past(entry: Entry) -> Option<Past> {
    let position = entry.number.map(|number| Position {
        is_room: entry.room.is_some(),
        number,
    });
    let (status, missing) = match entry.state {
        EntryState::Ignored => return None,
        EntryState::Received => (None, None),
        EntryState::Missing(count) => (None, Some(count)),
        EntryState::Pending => (Some(Status::Pending), None),
        EntryState::Stored => (Some(Status::Stored), None),
        EntryState::Refused(why) => (Some(Status::Former(format!("refused: {why}"))), None),
        EntryState::Unknown(why) => (Some(Status::Former(format!("unknown: {why}"))), None),
    };
    Some(Past {
        filed: Some(entry.id),
        missing,
        sender: entry.sender,
        text: entry.text.into(),
        time_ms: entry.time_ms,
        position,
        status,
    })
}
