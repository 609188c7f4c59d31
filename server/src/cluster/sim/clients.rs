//! Clients: senders that repeat unanswered sends, readers that drop known messages
//! and change servers, and clients that create, change and delete one account.
//! They follow the protocol page, and each changes servers whenever it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_protocol::{Code, RequestId, SessionToken, UserName};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::judge::Judge;
use super::lister::Lister;
use super::world::SHARDS;
use crate::cluster::host::{Answered, Call, Push};
use crate::cluster::message::Answer;
use crate::cluster::{ConnectionId, assignment};
use crate::store::{Account, Created, End, Outcome, PasswordHash, SendId};

/// How long a client waits for an answer before it reconnects.
pub(super) const PATIENCE: Duration = Duration::from_secs(6);

/// How long a client waits for a deletion that waits for the lapse of a server.
const DELETE_PATIENCE: Duration = Duration::from_secs(70);

/// Maximum unanswered sends of one sender.
const IN_FLIGHT: usize = 4;

/// The readers, and the account that is deleted and created again.
pub(super) const READERS: [&str; 3] = ["ann", "bob", "cleo"];
pub(super) const CHANGING: &str = "xena";

/// The world as a client sees it, and the calls that it makes.
pub(super) struct Context<'w> {
    pub(super) now: Duration,
    pub(super) random: &'w mut SmallRng,
    pub(super) judge: &'w mut Judge,
    pub(super) hosts: usize,
    /// The run is ending, and clients must finish.
    pub(super) is_calm: bool,
    pub(super) last_connection: &'w mut ConnectionId,
    pub(super) calls: Vec<(Link, ToHost)>,
}

/// A connection to a host.
pub(super) type Link = (ConnectionId, usize);

/// A request of a client to a host.
#[derive(Debug)]
pub(super) enum ToHost {
    Open,
    Call(u64, Call),
    Hangup,
}

impl Context<'_> {
    pub(super) fn open(&mut self) -> Link {
        let host = self.random.random_range(0..self.hosts);
        self.open_at(host)
    }

    fn open_at(&mut self, host: usize) -> Link {
        *self.last_connection += 1;
        let link = (*self.last_connection, host);
        self.calls.push((link, ToHost::Open));
        link
    }

    pub(super) fn call(&mut self, link: Link, request: u64, call: Call) {
        self.calls.push((link, ToHost::Call(request, call)));
    }

    pub(super) fn hang_up(&mut self, link: Link) {
        self.calls.push((link, ToHost::Hangup));
    }

    pub(super) fn within_ms(&mut self, range: std::ops::Range<u64>) -> Duration {
        self.now + Duration::from_millis(self.random.random_range(range))
    }
}

/// A client.
#[derive(Debug)]
pub(super) enum Client {
    Sender(Sender),
    Reader(Reader),
    Changer(Changer),
    Lister(Lister),
    Creator(Creator),
}

impl Client {
    /// Acts if something is due.
    pub(super) fn wake(&mut self, context: &mut Context<'_>) {
        match self {
            Self::Sender(sender) => sender.wake(context),
            Self::Reader(reader) => reader.wake(context),
            Self::Changer(changer) => changer.wake(context),
            Self::Lister(lister) => lister.wake(context),
            Self::Creator(creator) => creator.wake(context),
        }
    }

    /// Takes a push of a server.
    pub(super) fn handle(
        &mut self,
        connection: ConnectionId,
        push: Push,
        context: &mut Context<'_>,
    ) {
        if matches!(push, Push::Closed) {
            context.judge.counts.closed += 1;
        }
        if matches!(push, Push::Answer(_, Answered::Unavailable)) {
            context.judge.counts.unavailable += 1;
        }
        match self {
            Self::Sender(sender) => sender.handle(connection, push, context),
            Self::Reader(reader) => reader.handle(connection, push, context),
            Self::Changer(changer) => changer.handle(connection, push, context),
            Self::Lister(lister) => lister.handle(connection, push, context),
            Self::Creator(creator) => creator.handle(push),
        }
    }

    /// Returns whether the client has finished.
    pub(super) fn is_done(&self) -> bool {
        match self {
            Self::Sender(sender) => sender.left == 0 && sender.unanswered.is_empty(),
            Self::Reader(reader) => reader.is_receiving,
            Self::Changer(_) | Self::Lister(_) => true,
            Self::Creator(creator) => creator.created.len() == READERS.len() + 1,
        }
    }
}

/// A sender with a session.
#[derive(Debug)]
pub(super) struct Sender {
    session: usize,
    link: Option<Link>,
    reconnect_at: Duration,
    /// Recipient and time of sending on this connection, by id.
    unanswered: BTreeMap<u32, (&'static str, Duration)>,
    last_id: u32,
    left: u32,
    next_at: Duration,
    hop_at: Duration,
}

impl Sender {
    pub(super) const fn new(session: usize, count: u32) -> Self {
        Self {
            session,
            link: None,
            reconnect_at: Duration::ZERO,
            unanswered: BTreeMap::new(),
            last_id: 0,
            left: count,
            next_at: Duration::ZERO,
            hop_at: Duration::from_secs(2),
        }
    }

    fn wake(&mut self, context: &mut Context<'_>) {
        let oldest = self.unanswered.values().map(|(_, since)| *since).min();
        match self.link {
            Some(link) if oldest.is_some_and(|since| context.now >= since + PATIENCE) => {
                context.hang_up(link);
                self.disconnected(context);
            }
            // The former connection stays open, until its server closes it.
            Some(_) if context.now >= self.hop_at && !context.is_calm => self.connect(context),
            Some(link) => self.send_new(link, context),
            None if context.now >= self.reconnect_at => self.connect(context),
            None => {}
        }
    }

    fn connect(&mut self, context: &mut Context<'_>) {
        let link = context.open();
        self.link = Some(link);
        self.hop_at = context.within_ms(1000..12_000);
        context.call(link, 0, Call::Hello(self.token()));
        let ids: Vec<_> = self.unanswered.keys().copied().collect();
        ids.into_iter().for_each(|id| self.send(link, id, context));
    }

    pub(super) const fn session(&self) -> usize {
        self.session
    }

    fn token(&self) -> SessionToken {
        format!("s{}", self.session).parse().unwrap()
    }

    fn send_new(&mut self, link: Link, context: &mut Context<'_>) {
        if context.now < self.next_at && !context.is_calm {
            return;
        }
        self.next_at = context.within_ms(50..2500);
        for _ in 0..context.random.random_range(1..4) {
            if self.left == 0 || self.unanswered.len() >= IN_FLIGHT {
                return;
            }
            self.left -= 1;
            self.last_id += context.random.random_range(1..3);
            let to = READERS[context.random.random_range(0..READERS.len())];
            self.unanswered.insert(self.last_id, (to, context.now));
            self.send(link, self.last_id, context);
        }
    }

    fn send(&mut self, link: Link, id: u32, context: &mut Context<'_>) {
        let session = self.token();
        let Some((to, since)) = self.unanswered.get_mut(&id) else {
            return;
        };
        *since = context.now;
        let (connection, _) = link;
        let text = format!("{}:{id}:{to}:{connection}", self.session).into();
        let send_id = Some(SendId {
            session,
            id: RequestId::new(id).unwrap(),
            in_order: true,
            from: None,
        });
        context.call(
            link,
            id.into(),
            Call::Send {
                to: to.parse().unwrap(),
                text,
                send_id,
            },
        );
    }

    fn handle(&mut self, connection: ConnectionId, push: Push, context: &mut Context<'_>) {
        match push {
            Push::Answer(request, Answered::Answer(Answer::Sent(outcome))) => {
                let id = request as u32;
                // An answer over a former connection counts as well.
                if let Some((to, _)) = self.unanswered.remove(&id)
                    && outcome != Outcome::Refused(Code::NoSpace)
                {
                    context.judge.answered((self.session, id), to, outcome);
                }
            }
            Push::Closed if self.link.is_some_and(|(id, _)| id == connection) => {
                self.disconnected(context)
            }
            _ => {}
        }
    }

    fn disconnected(&mut self, context: &mut Context<'_>) {
        self.link = None;
        self.reconnect_at = context.within_ms(20..500);
    }
}

/// A reader that remembers the last number it has processed.
#[derive(Debug)]
pub(super) struct Reader {
    user: &'static str,
    link: Option<Link>,
    since: Duration,
    reconnect_at: Duration,
    is_receiving: bool,
    hop_at: Duration,
    /// The connection that it takes over from and closes later.
    former: Option<Link>,
    processed: u64,
    /// The last unacknowledged number on this connection.
    received: Option<u64>,
    /// Requests to receive that may take effect later.
    in_doubt: u32,
}

impl Reader {
    pub(super) const fn new(user: &'static str) -> Self {
        Self {
            user,
            link: None,
            since: Duration::ZERO,
            reconnect_at: Duration::ZERO,
            is_receiving: false,
            hop_at: Duration::from_secs(3),
            former: None,
            processed: 0,
            received: None,
            in_doubt: 0,
        }
    }

    fn wake(&mut self, context: &mut Context<'_>) {
        match self.link {
            None if context.now >= self.reconnect_at => self.connect(context),
            Some(link) if !self.is_receiving && context.now >= self.since + PATIENCE => {
                context.hang_up(link);
                self.in_doubt += 1;
                self.disconnected(context);
            }
            Some(link) if self.is_receiving && context.now >= self.hop_at && !context.is_calm => {
                if let Some(former) = self.former.replace(link) {
                    context.hang_up(former);
                }
                self.connect(context);
            }
            Some(link) if self.received.is_some() && context.random.random_bool(0.5) => {
                let received = self.received.take();
                context
                    .calls
                    .extend(received.map(|number| (link, ToHost::Call(0, Call::Ack(number)))));
            }
            _ => {}
        }
        if context.random.random_bool(0.1)
            && let Some(former) = self.former.take()
        {
            context.hang_up(former);
        }
    }

    fn connect(&mut self, context: &mut Context<'_>) {
        let link = context.open();
        (self.link, self.since, self.is_receiving) = (Some(link), context.now, false);
        self.hop_at = context.within_ms(1000..12_000);
        self.received = None;
        context.call(link, 1, Call::LookUp(self.user.parse().unwrap()));
    }

    fn handle(&mut self, connection: ConnectionId, push: Push, context: &mut Context<'_>) {
        let Some(link) = self.link.filter(|(id, _)| *id == connection) else {
            context.judge.counts.takeovers +=
                u64::from(matches!(push, Push::Ended(End::TakenOver)));
            return;
        };
        match push {
            Push::Answer(1, Answered::Answer(Answer::Account(entry))) => {
                let entry = entry.expect("accounts of readers are not deleted");
                context.call(link, 2, Call::Receive(entry.account));
            }
            Push::Answer(2, Answered::Subscribed(true)) => self.is_receiving = true,
            Push::Answer(2, answered) => {
                self.in_doubt += u32::from(matches!(answered, Answered::Unavailable));
                context.hang_up(link);
                self.disconnected(context);
            }
            Push::Answer(_, Answered::Unavailable) | Push::Closed => {
                self.in_doubt += u32::from(!self.is_receiving);
                context.hang_up(link);
                self.disconnected(context);
            }
            Push::Message(message) => {
                if message.position.sequence.0 > self.processed {
                    self.processed = message.position.sequence.0;
                    context.judge.read(self.user, &message);
                } else {
                    context.judge.repeated(self.user, &message);
                }
                self.received = Some(message.position.sequence.0);
            }
            Push::Ended(end) => {
                assert_eq!(end, End::TakenOver);
                assert!(
                    self.in_doubt > 0,
                    "the newest reception of {} was taken over by nobody",
                    self.user
                );
                context.judge.counts.takeovers += 1;
                context.hang_up(link);
                self.disconnected(context);
            }
            Push::Answer(..) => {}
        }
    }

    fn disconnected(&mut self, context: &mut Context<'_>) {
        (self.link, self.is_receiving) = (None, false);
        self.reconnect_at = context.within_ms(20..800);
    }
}

/// How a changer uses the account.
#[derive(Debug, Clone, Copy)]
pub(super) enum Habit {
    /// In any way, at any host.
    Any,
    /// It only sends as the account, at this host or at any one, until this time.
    Act(Option<usize>, Duration),
    /// It deletes the account once, at this host from this time on.
    Delete(usize, Duration),
}

impl Habit {
    /// Returns the habit in a run that begins at this time.
    pub(super) fn from(self, begun: Duration) -> Self {
        match self {
            Self::Any => self,
            Self::Act(host, until) => Self::Act(host, begun + until),
            Self::Delete(host, at) => Self::Delete(host, begun + at),
        }
    }
}

/// A client that creates, looks up, changes and deletes one account, and acts as it.
#[derive(Debug)]
pub(super) struct Changer {
    number: usize,
    habit: Habit,
    has_deleted: bool,
    link: Option<Link>,
    asked: Option<(Duration, Asked)>,
    found: Option<(Account, Option<PasswordHash>)>,
    logged_in: Option<Account>,
    requests: u64,
    next_at: Duration,
}

#[derive(Debug, Clone)]
enum Asked {
    LookUp,
    Create,
    SetPassword(u64, u64),
    Delete(u64),
    Login(Account),
    Send(u64),
}

impl Changer {
    pub(super) const fn new(number: usize, habit: Habit) -> Self {
        let (asked, found, logged_in) = (None, None, None);
        Self {
            number,
            habit,
            has_deleted: false,
            link: None,
            asked,
            found,
            logged_in,
            requests: 0,
            next_at: Duration::ZERO,
        }
    }

    fn wake(&mut self, context: &mut Context<'_>) {
        let Some(link) = self.link else {
            self.link = Some(match self.habit {
                Habit::Act(Some(host), _) | Habit::Delete(host, _) => context.open_at(host),
                Habit::Any | Habit::Act(None, _) => context.open(),
            });
            return;
        };
        let patience = match self.habit {
            Habit::Delete(..) => DELETE_PATIENCE,
            _ => PATIENCE,
        };
        match &self.asked {
            Some((since, _)) if context.now >= *since + patience => {
                context.hang_up(link);
                self.disconnected();
            }
            None if context.now >= self.next_at => self.ask(link, context),
            _ => {}
        }
    }

    /// Returns a number below ten, which selects the next request, if there is to be one.
    fn choice(&self, context: &mut Context<'_>) -> Option<u32> {
        match self.habit {
            Habit::Any if context.is_calm => None,
            Habit::Any => Some(context.random.random_range(0..10)),
            Habit::Act(_, until) => (context.now < until).then_some(4),
            Habit::Delete(_, at) => (context.now >= at && !self.has_deleted).then_some(3),
        }
    }

    fn ask(&mut self, link: Link, context: &mut Context<'_>) {
        let Some(choice) = self.choice(context) else {
            return;
        };
        let is_any = matches!(self.habit, Habit::Any);
        self.next_at = context.within_ms(20..if is_any { 700 } else { 200 });
        self.requests += 1;
        let name = || CHANGING.parse().unwrap();
        let (asked, call) = match (choice, self.found.clone(), self.logged_in.clone()) {
            (0..3, Some((account, old)), _) => {
                let version = old.as_ref().map_or(0, version) + 1;
                let new = PasswordHash::new(&version.to_string());
                (
                    Asked::SetPassword(account.incarnation, version),
                    Call::SetPassword { account, old, new },
                )
            }
            (3, Some((account, _)), _) => {
                (Asked::Delete(account.incarnation), Call::Delete(account))
            }
            (4, Some((account, _)), None) => (Asked::Login(account.clone()), Call::Login(account)),
            (4..7, _, Some(account)) => {
                let (to, text) = (
                    recipient(self.habit),
                    format!("as {} {}", self.number, self.requests),
                );
                (
                    Asked::Send(account.incarnation),
                    Call::Send {
                        to,
                        text: text.into(),
                        send_id: None,
                    },
                )
            }
            (_, None, _) if is_any && context.random.random_bool(0.5) => {
                (Asked::Create, Call::Create(name()))
            }
            _ => (Asked::LookUp, Call::LookUp(name())),
        };
        self.asked = Some((context.now, asked));
        context.call(link, self.requests, call);
    }

    fn handle(&mut self, connection: ConnectionId, push: Push, context: &mut Context<'_>) {
        if self.link.is_none_or(|(id, _)| id != connection) {
            return;
        }
        match push {
            Push::Answer(request, answered) if request == self.requests => {
                let Some((asked_at, asked)) = self.asked.take() else {
                    return;
                };
                if let Answered::Answer(answer) = answered {
                    self.answered(asked_at, asked, answer, context);
                }
            }
            Push::Closed => self.disconnected(),
            _ => {}
        }
    }

    fn answered(
        &mut self,
        asked_at: Duration,
        asked: Asked,
        answer: Answer,
        context: &mut Context<'_>,
    ) {
        let (now, judge) = (context.now, &mut *context.judge);
        match (asked, answer) {
            (Asked::LookUp, Answer::Account(entry)) => {
                if let Some(entry) = &entry {
                    let incarnation = entry.account.incarnation;
                    judge.found(
                        asked_at,
                        now,
                        incarnation,
                        entry.password.as_ref().map_or(0, version),
                    );
                }
                self.found = entry.map(|entry| (entry.account, entry.password));
            }
            (Asked::SetPassword(incarnation, version), Answer::Flag(is_set)) => {
                if is_set {
                    judge.password_set(now, incarnation, version);
                }
                self.found = None;
            }
            (Asked::Delete(incarnation), Answer::Flag(_)) => {
                judge.deleted(asked_at, now, incarnation);
                (self.found, self.has_deleted) = (None, true);
            }
            (Asked::Login(account), Answer::Flag(true)) => self.logged_in = Some(account),
            (Asked::Send(incarnation), Answer::Sent(Outcome::Stored(_))) => {
                judge.sent_as(asked_at, incarnation)
            }
            (Asked::Send(_), Answer::Sent(Outcome::Refused(Code::QueueFull))) => {}
            (Asked::Send(_), _) => self.logged_in = None,
            _ => self.found = None,
        }
    }

    fn disconnected(&mut self) {
        let (requests, next_at, has_deleted) = (self.requests, self.next_at, self.has_deleted);
        *self = Self {
            requests,
            next_at,
            has_deleted,
            ..Self::new(self.number, self.habit)
        };
    }
}

/// A client that creates all accounts.
#[derive(Debug, Default)]
pub(super) struct Creator {
    link: Option<Link>,
    created: BTreeSet<u64>,
}

impl Creator {
    fn wake(&mut self, context: &mut Context<'_>) {
        let link = *self.link.get_or_insert_with(|| context.open());
        for (request, name) in (0..).zip(READERS.iter().chain([&CHANGING])) {
            if !self.created.contains(&request) {
                context.call(link, request, Call::Create(name.parse().unwrap()));
            }
        }
    }

    fn handle(&mut self, push: Push) {
        match push {
            Push::Answer(
                request,
                Answered::Answer(Answer::Created(Created::Created | Created::Exists)),
            ) => {
                self.created.insert(request);
            }
            Push::Closed => self.link = None,
            _ => {}
        }
    }
}

/// Returns the reader to which a changer sends: preferably one in another shard than that of
/// the account.
fn recipient(habit: Habit) -> UserName {
    let shard = |name: &str| assignment::shard_of(&name.parse().unwrap(), SHARDS as u32);
    let is_other = |reader: &&str| shard(reader) != shard(CHANGING);
    let other = READERS.into_iter().find(is_other);
    let reader = match habit {
        Habit::Any => READERS[0],
        _ => other.unwrap_or(READERS[0]),
    };
    reader.parse().unwrap()
}

/// The passwords of an account are increasing versions.
fn version(password: &PasswordHash) -> u64 {
    password.as_str().parse().unwrap()
}
