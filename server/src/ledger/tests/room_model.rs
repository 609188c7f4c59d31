//! A model of rooms, and the property that the ledger agrees with it after any sequence of
//! commands, waits, checkpoints, crashes and stops.
//!
//! The model knows no positions, spans or records, and takes nothing from the ledger but
//! what users see. It keeps every message that was ever said, and counts messages. It
//! predicts whether a command succeeds, or else the reasons that may be given; the
//! messages that a device is owed; and the notifications. How many messages retention has
//! removed is not determined: the model knows bounds, and every view of a user must lie
//! within them and narrows them for the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_protocol::Code;
use hark_protocol::message::{LeftReason, RoomMode};
use proptest::prelude::*;

use super::super::Changes;

use super::super::rooms::RoomLimits;
use super::rooms::{World, device, room};
use super::{LIMITS, Limits};
use crate::store::{DeviceSubscription, Notice, Point};

const HOUR: Duration = Duration::from_secs(3600);
const KEEP: Duration = Duration::from_secs(10 * 24 * 3600);
/// The wall clock at the beginning.
const STARTED_MS: u64 = 1_800_000_000_000;

const USERS: usize = 5;

/// This user has no password.
const OPEN_USER: &str = "u3";

const TIGHT: Limits = Limits {
    accounts_max: 100,
    rooms: RoomLimits {
        members_max: 4,
        joined_max: 2,
        owned_max: 1,
        room_bytes_max: 16_000,
        all_bytes_max: 20_000,
        keep: KEEP,
        ..RoomLimits::DEFAULT
    },
    ..LIMITS
};

/// Bytes that retention may remove beyond a limit: a span and the longest message.
const SPAN_BYTES: u64 = 4096 + 2 * 3532;

#[derive(Debug, Default, Clone)]
struct ModelRoom {
    is_invite: bool,
    is_news: bool,
    /// The users of a conversation.
    parties: BTreeSet<String>,
    keep: Duration,
    members: BTreeMap<String, ModelMember>,
    invited: BTreeMap<String, Duration>,
    banned: BTreeSet<String>,
    said: Vec<Said>,
    /// At least and at most so many messages are removed.
    gone: (usize, usize),
}

#[derive(Debug, Clone, Copy)]
struct ModelMember {
    /// The answer to its `join`, if it gave that command.
    answered: Option<u64>,
    /// The messages before it joined.
    joined: usize,
    /// Its place in the order of all joins.
    order: usize,
    /// The messages that it has read.
    mark: usize,
    is_owner: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    number: u64,
    at: Duration,
    /// The sender, and which account of this name it was.
    by: (String, usize),
    bytes: u64,
}

/// The rooms as the commands define them.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Users, and which account of this name they are.
    users: BTreeMap<String, usize>,
    rooms: BTreeMap<String, ModelRoom>,
    blocked: BTreeSet<(String, String)>,
    /// The messages that each user, device and room is past.
    cursors: BTreeMap<(String, String, String), usize>,
    devices: BTreeSet<(String, String)>,
    /// Devices that are attached.
    attached: BTreeSet<(String, String)>,
    /// The age of the store without stops.
    running: Duration,
    stopped: Duration,
    /// The joins and accounts so far.
    count: usize,
    /// The notifications of the command: content, and a number that theirs must exceed.
    notices: Vec<(String, u64)>,
}

impl ModelRoom {
    fn is_visible_to(&self, user: &str, now: Duration) -> bool {
        !self.is_invite || self.members.contains_key(user) || self.is_invited(user, now)
    }

    fn is_invited(&self, user: &str, now: Duration) -> bool {
        let at = self.invited.get(user);
        at.is_some_and(|at| now - *at < 30 * 24 * HOUR)
    }

    fn is_owner(&self, user: &str) -> bool {
        self.members.get(user).is_some_and(|member| member.is_owner)
    }

    fn is_conversation(&self) -> bool {
        !self.parties.is_empty()
    }

    fn last(&self) -> u64 {
        self.said.last().map_or(0, |said| said.number)
    }

    /// Returns the bytes of the messages if so many are removed.
    fn bytes_without(&self, gone: usize) -> u64 {
        self.said[gone..].iter().map(|said| said.bytes).sum()
    }

    /// Returns the least and the most bytes of the messages.
    fn bytes(&self) -> (u64, u64) {
        let (least, most) = self.gone;
        (self.bytes_without(most), self.bytes_without(least))
    }

    /// Returns the least and the most bytes of a sender.
    fn bytes_of(&self, by: &(String, usize)) -> (u64, u64) {
        let of = |gone: usize| {
            let said = self.said[gone..].iter().filter(|said| said.by == *by);
            said.map(|said| said.bytes).sum()
        };
        (of(self.gone.1), of(self.gone.0))
    }

    /// Removes what may be removed by its age.
    fn may_expire(&mut self, now: Duration) {
        let expired = |said: &&Said| now - said.at >= self.keep;
        let count = self.said.iter().take_while(expired).count();
        self.gone.1 = self.gone.1.max(count);
    }

    /// Removes what must be removed by its age.
    fn must_expire(&mut self, now: Duration) {
        let expired = |said: &&Said| now - said.at > self.keep + self.keep / 16 + HOUR;
        let count = self.said.iter().take_while(expired).count();
        self.gone.0 = self.gone.0.max(count);
    }

    /// Notes that a view shows the messages behind the first `hidden` ones, which are
    /// removed, or `above`, which it may not see.
    #[track_caller]
    fn observe(&mut self, hidden: usize, above: usize) {
        let (least, most) = self.gone;
        let range = least.max(above)..=most.max(above);
        assert!(range.contains(&hidden), "{hidden} are not in {range:?}");
        self.gone = if hidden > above {
            (hidden, hidden)
        } else {
            (least, most.min(hidden))
        };
    }
}

/// The reasons for which a command may be refused; none if it must succeed.
type Reasons = Vec<Code>;

impl Model {
    /// Returns the age of the store.
    fn now(&self) -> Duration {
        self.running + self.stopped
    }

    /// Expects a notification of each attached device of a user.
    fn notify(&mut self, user: &str, content: &str, above: u64) {
        let attached = self.attached.iter().filter(|(owner, _)| owner == user);
        let notices = attached.map(|_| (content.to_owned(), above));
        self.notices.extend(notices);
    }

    fn has_password(&self, user: &str) -> bool {
        user != OPEN_USER
    }

    /// Returns the room if the user may see it.
    fn visible(&self, user: &str, of: &str) -> Result<&ModelRoom, Reasons> {
        let found = self.rooms.get(of);
        let found = found.filter(|room| room.is_visible_to(user, self.now()));
        found.ok_or_else(|| vec![Code::NoSuchUser])
    }

    fn owned(&self, user: &str, of: &str) -> Result<&ModelRoom, Reasons> {
        let room = self.visible(user, of)?;
        if room.is_owner(user) {
            Ok(room)
        } else {
            Err(vec![Code::Denied])
        }
    }

    fn has_too_many(&self, user: &str, limit: usize, counts: fn(&ModelRoom, &str) -> bool) -> bool {
        let rooms = self.rooms.values();
        let counted = rooms.filter(|room| !room.is_conversation() && counts(room, user));
        counted.count() >= limit
    }

    fn joins_too_many(&self, user: &str) -> bool {
        self.has_too_many(user, TIGHT.rooms.joined_max, |room, user| {
            room.members.contains_key(user)
        })
    }

    fn owns_too_many(&self, user: &str) -> bool {
        self.has_too_many(user, TIGHT.rooms.owned_max, ModelRoom::is_owner)
    }

    /// Adds a member. `answered` is the answer to `join`.
    fn add(&mut self, user: &str, of: &str, answered: Option<u64>, is_owner: bool) {
        self.count += 1;
        let room = self.rooms.get_mut(of).unwrap();
        let count = room.said.len();
        let member = ModelMember {
            answered,
            joined: count,
            order: self.count,
            mark: count,
            is_owner,
        };
        room.members.insert(user.to_owned(), member);
        room.invited.remove(user);
        let last = room.last();
        for (_, device) in self.devices.iter().filter(|(owner, _)| owner == user) {
            let key = (user.to_owned(), device.clone(), of.to_owned());
            self.cursors.insert(key, count);
        }
        self.notify(user, &format!("joined {of} {count}"), last);
    }

    fn remove(&mut self, user: &str, of: &str, reason: LeftReason) {
        let room = self.rooms.get_mut(of).unwrap();
        if room.members.remove(user).is_none() {
            return;
        }
        let left = format!("left {of} {reason:?} {}", room.said.len());
        let last = room.last();
        let is_owned = room.members.values().any(|member| member.is_owner);
        let needs_owner = !is_owned && !room.is_conversation();
        let eldest = room.members.values_mut().min_by_key(|member| member.order);
        let is_empty = eldest.is_none();
        if let Some(eldest) = eldest {
            eldest.is_owner |= needs_owner;
        }
        self.cursors
            .retain(|(owner, _, at), _| owner != user || at != of);
        self.notify(user, &left, last);
        if is_empty {
            self.end(of);
        }
    }

    fn end(&mut self, of: &str) {
        let room = self.rooms.remove(of).unwrap();
        let left = format!("left {of} {:?} {}", LeftReason::Deleted, room.said.len());
        for user in room.members.keys() {
            self.notify(user, &left, room.last());
        }
        self.cursors.retain(|(_, _, at), _| at != of);
    }

    fn end_user(&mut self, user: &str) {
        let rooms: Vec<_> = self.rooms.keys().cloned().collect();
        for of in rooms {
            let room = self.rooms.get_mut(&of).unwrap();
            room.invited.remove(user);
            room.banned.remove(user);
            if room.parties.contains(user) {
                self.end(&of);
            } else {
                self.remove(user, &of, LeftReason::Left);
            }
        }
        self.users.remove(user);
        self.blocked.retain(|(by, of)| by != user && of != user);
        self.devices.retain(|(owner, _)| owner != user);
        self.attached.retain(|(owner, _)| owner != user);
    }
}

#[track_caller]
fn check<T: std::fmt::Debug>(outcome: &Result<T, Code>, reasons: &Reasons) {
    let fits = match outcome {
        Ok(_) => reasons.is_empty(),
        Err(code) => reasons.contains(code),
    };
    assert!(fits, "{outcome:?} instead of {reasons:?}");
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Create(usize),
    Delete(usize),
    Set(usize, usize, u8, Option<u32>),
    Join(usize, usize),
    Leave(usize, usize),
    Invite(usize, usize, usize),
    Expel(usize, usize, usize),
    Own(usize, usize, usize),
    DeleteRoom(usize, usize),
    Talk(usize, usize),
    Block(usize, usize, bool),
    Say(usize, usize, usize),
    See(usize, usize, usize),
    Read(usize, usize, usize),
    Detach(usize, usize),
    Forget(usize, usize),
    Wait(u32),
    Frame,
    Checkpoint,
    Crash,
    Stop(u32),
}

fn op() -> impl Strategy<Value = Op> {
    let (user, of) = (0..USERS, 0..4_usize);
    let pair = (user.clone(), of.clone());
    let keep = proptest::option::of(1..20_u32);
    let bytes = prop_oneof![Just(0), Just(1000), Just(2500), Just(3500)];
    let triple = (user.clone(), of.clone(), user.clone());
    prop_oneof![
        2 => user.clone().prop_map(Op::Create),
        1 => user.clone().prop_map(Op::Delete),
        6 => (user.clone(), of.clone(), 0..3_u8, keep).prop_map(|(u, r, m, k)| Op::Set(u, r, m, k)),
        8 => pair.clone().prop_map(|(u, r)| Op::Join(u, r)),
        3 => pair.clone().prop_map(|(u, r)| Op::Leave(u, r)),
        6 => triple.clone().prop_map(|(u, r, v)| Op::Invite(u, r, v)),
        3 => triple.clone().prop_map(|(u, r, v)| Op::Expel(u, r, v)),
        3 => triple.prop_map(|(u, r, v)| Op::Own(u, r, v)),
        1 => pair.clone().prop_map(|(u, r)| Op::DeleteRoom(u, r)),
        3 => (user.clone(), user.clone()).prop_map(|(u, v)| Op::Talk(u, v)),
        2 => (user.clone(), user.clone(), any::<bool>()).prop_map(|(u, v, b)| Op::Block(u, v, b)),
        24 => (user.clone(), of.clone(), bytes).prop_map(|(u, r, n)| Op::Say(u, r, n)),
        4 => (user.clone(), of, 0..12_usize).prop_map(|(u, r, n)| Op::See(u, r, n)),
        8 => (user.clone(), 0..2_usize, 0..9_usize).prop_map(|(u, d, n)| Op::Read(u, d, n)),
        2 => (user.clone(), 0..2_usize).prop_map(|(u, d)| Op::Detach(u, d)),
        1 => (user, 0..2_usize).prop_map(|(u, d)| Op::Forget(u, d)),
        5 => (0..96_u32).prop_map(Op::Wait),
        4 => Just(Op::Frame),
        6 => Just(Op::Checkpoint),
        3 => Just(Op::Crash),
        1 => (0..60_u32).prop_map(Op::Stop),
    ]
}

/// The ledger and the model side by side.
struct Pair {
    world: World,
    model: Model,
    /// The model at the last frame that was written.
    written: Model,
    attached: BTreeMap<(String, String), DeviceSubscription>,
    conversations: BTreeSet<String>,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            world: {
                let mut world = World::with(TIGHT, &[]);
                world.driver.context.wall_ms = STARTED_MS;
                world.driver.next_frame();
                world
            },
            model: Model::default(),
            written: Model::default(),
            attached: BTreeMap::new(),
            conversations: BTreeSet::new(),
        };
        (0..3).for_each(|n| pair.step(Op::Create(n)));
        pair
    }

    /// Returns the name of a room: of one of two, or else of a conversation.
    fn name_of(&self, of: usize) -> String {
        match of {
            0 => "#a".to_owned(),
            1 => "#b".to_owned(),
            nth => {
                let mut names = self.conversations.iter();
                names
                    .nth(nth - 2)
                    .map_or_else(|| "#c".to_owned(), Clone::clone)
            }
        }
    }

    /// Writes the frame.
    fn frame(&mut self) {
        self.world.driver.next_frame();
        self.written = self.model.clone();
    }

    /// Loses the frame under construction, and all connections.
    fn crash(&mut self) {
        self.attached.clear();
        let driver = &mut self.world.driver;
        driver.changes = Changes::default();
        driver.ledger = driver.replayed(1);
        driver.checkpoint = None;
        driver.ledger.begin(driver.context, &mut driver.changes);
        self.model = Model {
            running: self.model.running,
            attached: BTreeSet::new(),
            ..self.written.clone()
        };
    }

    fn stop(&mut self, time: Duration) {
        self.frame();
        let driver = &mut self.world.driver;
        let frame = driver.ledger.finish_empty(&mut driver.changes);
        driver.frames.push(frame);
        driver.context.wall_ms += time.as_millis() as u64;
        self.crash();
        let driver = &mut self.world.driver;
        driver.ledger.count_stop(&mut driver.changes);
        if !self.model.rooms.is_empty() {
            self.model.stopped += time.min(24 * HOUR);
        }
    }

    fn step(&mut self, op: Op) {
        let user = |n: usize| format!("u{n}");
        match op {
            Op::Create(n) => self.create(&user(n)),
            Op::Wait(hours) => {
                let context = &mut self.world.driver.context;
                context.running += HOUR * hours;
                context.wall_ms += u64::from(hours) * 3_600_000;
                self.model.running = context.running;
                self.frame();
            }
            Op::Frame => self.frame(),
            Op::Checkpoint => {
                self.world.driver.checkpoint();
                self.written = self.model.clone();
            }
            Op::Crash => self.crash(),
            Op::Stop(hours) => self.stop(HOUR * hours),
            Op::Delete(n)
            | Op::Set(n, ..)
            | Op::Join(n, _)
            | Op::Leave(n, _)
            | Op::Invite(n, ..)
            | Op::Expel(n, ..)
            | Op::Own(n, ..)
            | Op::DeleteRoom(n, _)
            | Op::Talk(n, _)
            | Op::Block(n, ..)
            | Op::Say(n, ..)
            | Op::See(n, ..)
            | Op::Read(n, ..)
            | Op::Detach(n, _)
            | Op::Forget(n, _) => {
                if self.model.users.contains_key(&user(n)) {
                    self.command(op, &user(n), user);
                    self.check_notices();
                }
            }
        }
        let now = self.model.now();
        for room in self.model.rooms.values_mut() {
            room.may_expire(now);
        }
    }

    fn create(&mut self, user: &str) {
        if self.model.users.contains_key(user) {
            return;
        }
        self.model.count += 1;
        self.model.users.insert(user.to_owned(), self.model.count);
        if self.model.has_password(user) {
            self.world.create(user);
        } else {
            self.world.driver.create(user);
        }
    }

    /// Compares the notifications of a command.
    fn check_notices(&mut self) {
        let notices = std::mem::take(&mut self.world.driver.changes.effects.notices);
        let notices = notices.into_iter().map(|(_, notice)| match notice {
            Notice::Device(entry) => {
                let name = entry.name.unwrap();
                (format!("device {}", name.as_str()), u64::MAX)
            }
            Notice::Joined { room, .. } => {
                let (name, last) = (room.ring.name(), room.cursor);
                (format!("joined {name} {}", last.messages), last.number)
            }
            Notice::Left {
                name, reason, at, ..
            } => {
                let left = format!("left {name} {reason:?} {}", at.messages);
                (left, at.number)
            }
            Notice::Seen { room, number } => (format!("seen {room}"), number),
        });
        let mut notices: Vec<_> = notices.collect();
        let mut expected = std::mem::take(&mut self.model.notices);
        notices.sort_unstable();
        expected.sort_unstable();
        assert_eq!(notices.len(), expected.len(), "{notices:?}, {expected:?}");
        for (notice, expected) in notices.iter().zip(&expected) {
            assert_eq!(notice.0, expected.0);
            assert!(notice.1 > expected.1, "{notice:?} instead of {expected:?}");
        }
    }

    fn command(&mut self, op: Op, by: &str, user: impl Fn(usize) -> String) {
        match op {
            Op::Delete(_) => {
                self.world.delete_user(by);
                self.model.end_user(by);
            }
            Op::Set(_, of, mode, days) => {
                let keep = days.map(|days| 24 * HOUR * days);
                self.set(by, &self.name_of(of), mode, keep);
            }
            Op::Join(_, of) => self.join(by, &self.name_of(of)),
            Op::Leave(_, of) => {
                let of = self.name_of(of);
                let reasons = self.model.visible(by, &of).err().unwrap_or_default();
                check(&self.world.leave(by, &of), &reasons);
                if reasons.is_empty() {
                    self.model.remove(by, &of, LeftReason::Left);
                }
            }
            Op::Invite(_, of, guest) => self.invite(by, &self.name_of(of), &user(guest)),
            Op::Expel(_, of, member) => self.expel(by, &self.name_of(of), &user(member)),
            Op::Own(_, of, member) => self.own(by, &self.name_of(of), &user(member)),
            Op::DeleteRoom(_, of) => {
                let of = self.name_of(of);
                let expected = match self.model.visible(by, &of) {
                    Err(_) => Ok(false),
                    Ok(room) if room.is_owner(by) => Ok(true),
                    Ok(_) => Err(Code::Denied),
                };
                assert_eq!(self.world.delete_room(by, &of, false), expected);
                if expected == Ok(true) {
                    self.model.end(&of);
                }
            }
            Op::Talk(_, other) => self.talk(by, &user(other)),
            Op::Block(_, other, is_on) => self.block(by, &user(other), is_on),
            Op::Say(_, of, bytes) => self.say(by, &self.name_of(of), bytes),
            Op::See(_, of, nth) => self.see(by, &self.name_of(of), nth),
            Op::Read(_, nth, count) => self.read(by, &format!("d{nth}"), count),
            Op::Detach(_, nth) => self.detach(by, &format!("d{nth}")),
            Op::Forget(_, nth) => self.forget(by, &format!("d{nth}")),
            Op::Create(_) | Op::Wait(_) | Op::Frame | Op::Checkpoint | Op::Crash | Op::Stop(_) => {}
        }
    }

    fn set(&mut self, by: &str, of: &str, mode: u8, keep: Option<Duration>) {
        let found = self.model.rooms.get(of);
        let mut reasons = Vec::new();
        if of.starts_with("#=") {
            reasons.push(Code::Denied);
        } else if let Some(room) = found {
            if !room.members.contains_key(by) {
                reasons.push(Code::Exists);
            } else if !room.is_owner(by) {
                reasons.push(Code::Denied);
            } else if room.is_invite != (mode == 2) {
                reasons.push(Code::BadRequest);
            }
        } else {
            if self.model.joins_too_many(by) || self.model.owns_too_many(by) {
                reasons.push(Code::TooMany);
            }
            if mode == 2 && !self.model.has_password(by) {
                reasons.push(Code::Denied);
            }
        }
        let modes = [RoomMode::Open, RoomMode::News, RoomMode::Invite];
        let outcome = self.world.set(by, of, modes[usize::from(mode)], keep);
        check(&outcome, &reasons);
        if !reasons.is_empty() {
            return;
        }
        let is_new = !self.model.rooms.contains_key(of);
        let room = self.model.rooms.entry(of.to_owned()).or_default();
        (room.is_invite, room.is_news) = (mode == 2, mode == 1);
        if let Some(keep) = keep.or(is_new.then_some(KEEP)) {
            room.keep = keep;
        }
        if is_new {
            self.model.add(by, of, None, true);
        }
    }

    fn join(&mut self, by: &str, of: &str) {
        let room = self.model.visible(by, of);
        let is_member = room
            .as_ref()
            .is_ok_and(|room| room.members.contains_key(by));
        let reasons = match room {
            Err(reasons) => reasons,
            Ok(_) if is_member => Vec::new(),
            Ok(room) => {
                let mut reasons = Vec::new();
                if room.banned.contains(by) {
                    reasons.push(Code::Denied);
                }
                let is_full = room.members.len() >= TIGHT.rooms.members_max;
                if is_full || self.model.joins_too_many(by) {
                    reasons.push(Code::TooMany);
                }
                reasons
            }
        };
        let outcome = self.world.join(by, of);
        check(&outcome, &reasons);
        let Ok(number) = outcome else { return };
        if is_member {
            let room = self.model.rooms.get_mut(of).unwrap();
            let answered = &mut room.members.get_mut(by).unwrap().answered;
            assert_eq!(*answered.get_or_insert(number), number);
        } else {
            assert!(self.model.rooms[of].last() < number);
            self.model.add(by, of, Some(number), false);
        }
    }

    fn invite(&mut self, by: &str, of: &str, guest: &str) {
        let reasons = match self.model.owned(by, of) {
            Err(reasons) => reasons,
            Ok(_) if !self.model.users.contains_key(guest) => vec![Code::NoSuchUser],
            Ok(room) if room.members.contains_key(guest) => Vec::new(),
            Ok(room) if room.is_invite && !self.model.has_password(guest) => vec![Code::Denied],
            Ok(_) => Vec::new(),
        };
        check(&self.world.invite(by, of, guest), &reasons);
        let now = self.model.now();
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty())
            && !room.members.contains_key(guest)
        {
            room.banned.remove(guest);
            if room.is_invite {
                room.invited.insert(guest.to_owned(), now);
            }
        }
    }

    fn expel(&mut self, by: &str, of: &str, member: &str) {
        let reasons = match self.model.owned(by, of) {
            Err(reasons) => reasons,
            Ok(_) if !self.model.users.contains_key(member) => vec![Code::NoSuchUser],
            Ok(room) if room.is_owner(member) => vec![Code::Denied],
            Ok(_) => Vec::new(),
        };
        check(&self.world.expel(by, of, member), &reasons);
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty()) {
            room.banned.insert(member.to_owned());
            room.invited.remove(member);
            self.model.remove(member, of, LeftReason::Expelled);
        }
    }

    fn own(&mut self, by: &str, of: &str, member: &str) {
        let reasons = match self.model.owned(by, of) {
            Err(reasons) => reasons,
            Ok(room) => match room.members.get(member) {
                None => vec![Code::NoSuchUser],
                Some(member) if member.is_owner => Vec::new(),
                Some(_) if self.model.owns_too_many(member) => vec![Code::TooMany],
                Some(_) => Vec::new(),
            },
        };
        check(&self.world.own(by, of, member), &reasons);
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty()) {
            room.members.get_mut(member).unwrap().is_owner = true;
        }
    }

    fn talk(&mut self, by: &str, other: &str) {
        let is_blocked = self
            .model
            .blocked
            .contains(&(other.to_owned(), by.to_owned()));
        let have_passwords = self.model.has_password(by) && self.model.has_password(other);
        let reasons = if !self.model.users.contains_key(other) {
            vec![Code::NoSuchUser]
        } else if by == other {
            vec![Code::BadRequest]
        } else if is_blocked || !have_passwords {
            vec![Code::Denied]
        } else {
            Vec::new()
        };
        let outcome = self.world.talk(by, other);
        check(&outcome, &reasons);
        let Ok(of) = outcome else { return };
        self.conversations.insert(of.clone());
        let room = self.model.rooms.entry(of.clone()).or_default();
        (room.is_invite, room.keep) = (true, KEEP);
        room.parties = [by, other].map(str::to_owned).into();
        for user in [by, other] {
            if !self.model.rooms[&of].members.contains_key(user) {
                self.model.add(user, &of, None, false);
            }
        }
    }

    fn block(&mut self, by: &str, other: &str, is_on: bool) {
        let mut reasons = Vec::new();
        if !self.model.users.contains_key(other) {
            reasons.push(Code::NoSuchUser);
        } else if is_on && by == other {
            reasons.push(Code::BadRequest);
        }
        let key = (by.to_owned(), other.to_owned());
        if is_on {
            check(&self.world.block(by, other), &reasons);
            self.model
                .blocked
                .extend(Some(key).filter(|_| reasons.is_empty()));
        } else {
            check(&self.world.unblock(by, other), &reasons);
            self.model.blocked.remove(&key);
        }
    }

    /// Returns the reasons to refuse a message but for its size.
    fn silence(&self, by: &str, of: &str) -> Reasons {
        let room = match self.model.visible(by, of) {
            Ok(room) => room,
            Err(reasons) => return reasons,
        };
        let is_blocked = |other: &String| {
            let key = (other.clone(), by.to_owned());
            self.model.blocked.contains(&key)
        };
        let is_blocked = room.is_conversation() && room.members.keys().any(is_blocked);
        let is_silent = room.is_news && !room.is_owner(by);
        if !room.members.contains_key(by) || is_silent || is_blocked {
            vec![Code::Denied]
        } else {
            Vec::new()
        }
    }

    fn say(&mut self, by: &str, of: &str, text_bytes: usize) {
        let reasons = self.silence(by, of);
        let outcome = self.world.say(by, of, &"x".repeat(text_bytes));
        if !reasons.is_empty() {
            return check(&outcome, &reasons);
        }
        let sender = (by.to_owned(), self.model.users[by]);
        let bytes = text_bytes as u64 + 32;
        let (least, most) = self.model.rooms[of].bytes_of(&sender);
        let sender_max = TIGHT.rooms.room_bytes_max / 4;
        let Ok(number) = outcome else {
            assert_eq!(outcome, Err(Code::QueueFull));
            assert!(most + bytes > sender_max, "{most} bytes of its own");
            return;
        };
        assert!(least + bytes <= sender_max, "{least} bytes of its own");
        let sizes = self.let_give_way(of, bytes);
        let at = self.model.now();
        let room = self.model.rooms.get_mut(of).unwrap();
        assert!(number > room.last());
        let before = room.said.len();
        let member = room.members.get_mut(by).unwrap();
        assert!(member.answered.is_none_or(|answered| answered < number));
        if member.mark == before {
            member.mark += 1;
        }
        room.said.push(Said {
            number,
            at,
            by: sender,
            bytes,
        });
        self.judge_removal(of, bytes, &sizes);
    }

    /// Lets messages give way to one of this room. Returns the sizes of the rooms before.
    fn let_give_way(&mut self, of: &str, bytes: u64) -> BTreeMap<String, (u64, u64)> {
        let limits = TIGHT.rooms;
        let before = self.sizes();
        let is_room_full = before[of].1 + bytes > limits.room_bytes_max;
        let all: u64 = before.values().map(|(_, most)| most).sum();
        let are_all_full = all + bytes > limits.all_bytes_max;
        for (name, room) in &mut self.model.rooms {
            if are_all_full || (is_room_full && name == of) {
                room.gone.1 = room.said.len();
            }
        }
        before
    }

    /// Finds out which messages gave way to the last one of this room, and judges that.
    fn judge_removal(&mut self, of: &str, bytes: u64, before: &BTreeMap<String, (u64, u64)>) {
        let limits = TIGHT.rooms;
        self.observe();
        let mut after = self.sizes();
        if let Some((least, most)) = after.get_mut(of) {
            (*least, *most) = (*least - bytes, *most - bytes);
        }
        let sum = |of: fn(&(u64, u64)) -> u64| after.values().map(of).sum::<u64>();
        assert!(after[of].0 + bytes <= limits.room_bytes_max);
        assert!(sum(|(least, _)| *least) + bytes <= limits.all_bytes_max);
        let needs_space = |held: u64, max: u64| held + bytes + SPAN_BYTES > max;
        let is_full = needs_space(sum(|(_, most)| *most), limits.all_bytes_max);
        for (name, (_, most)) in &after {
            if before[name].0 <= *most {
                continue;
            }
            let is_room_full = name == of && needs_space(*most, limits.room_bytes_max);
            assert!(is_full || is_room_full, "{name} lost too much");
            let is_largest = after.values().all(|(least, _)| *least <= before[name].1);
            assert!(is_largest || is_room_full, "{name} was not the largest");
        }
    }

    /// Returns the least and the most bytes of each room.
    fn sizes(&self) -> BTreeMap<String, (u64, u64)> {
        let rooms = self.model.rooms.iter();
        rooms.map(|(of, room)| (of.clone(), room.bytes())).collect()
    }

    fn see(&mut self, by: &str, of: &str, nth: usize) {
        let reasons = match self.model.visible(by, of) {
            Err(reasons) => reasons,
            Ok(room) if !room.members.contains_key(by) => vec![Code::Denied],
            Ok(_) => Vec::new(),
        };
        let said = self.model.rooms.get(of).map_or(&[][..], |room| &room.said);
        // The last one is beyond the end.
        let (number, messages) = match said.get(nth) {
            Some(said) => (said.number, nth + 1),
            None if nth == 11 => (u64::MAX, said.len()),
            None => (0, 0),
        };
        let point = Point {
            number,
            messages: messages as u64,
        };
        check(&self.world.see(by, of, point), &reasons);
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty()) {
            let member = room.members.get_mut(by).unwrap();
            if member.mark < messages {
                member.mark = messages;
                let before = messages
                    .checked_sub(2)
                    .map_or(0, |nth| room.said[nth].number);
                self.model.notify(by, &format!("seen {of}"), before);
            }
        }
    }

    /// Attaches a device, which gets all messages that it is owed, and acknowledges some of
    /// each room.
    fn read(&mut self, by: &str, of: &str, count: usize) {
        let key = (by.to_owned(), of.to_owned());
        let is_new = self.model.devices.insert(key.clone());
        if is_new {
            self.model.notify(by, &format!("device {of}"), 0);
        }
        let attached = self.world.attach(by, of).unwrap();
        self.check_notices();
        self.model.attached.insert(key.clone());
        let rooms = self.model.rooms.iter();
        let joined = rooms.filter(|(_, room)| room.members.contains_key(by));
        let ends = joined.map(|(name, room)| (name.clone(), room.said.len()));
        let ends: Vec<_> = ends.collect();
        assert_eq!(attached.rooms.len(), ends.len());
        for (name, end) in ends.into_iter().filter(|_| is_new) {
            let key = (by.to_owned(), of.to_owned(), name);
            self.model.cursors.insert(key, end);
        }
        self.frame();
        let account = self.world.account(by);
        for joined in &attached.rooms {
            let name = joined.ring.name().to_string();
            let room = &self.model.rooms[&name];
            let key = (by.to_owned(), of.to_owned(), name.clone());
            let past = self.model.cursors.get_mut(&key).unwrap();
            assert_eq!(joined.cursor.messages, *past as u64);
            let next = room.said.get(*past).map_or(u64::MAX, |said| said.number);
            let before = past.checked_sub(1).map_or(0, |nth| room.said[nth].number);
            assert!((before..next).contains(&joined.cursor.number));
            let stored = self.world.driver.messages_of(joined.ring.id());
            let owed = &stored[*past..];
            let numbers = owed.iter().map(|message| message.position.sequence.0);
            assert!(numbers.eq(room.said[*past..].iter().map(|said| said.number)));
            if let Some(last) = owed.get(..count).and_then(<[_]>::last) {
                *past = last.position.messages as usize;
                let driver = &mut self.world.driver;
                driver.ledger.acknowledge_room(
                    &account,
                    attached.device,
                    (joined.ring.id(), Point::from(last.position)),
                    &mut driver.changes,
                );
            }
        }
        self.attached.insert(key, attached);
    }

    fn detach(&mut self, by: &str, of: &str) {
        let key = (by.to_owned(), of.to_owned());
        self.model.attached.remove(&key);
        if let Some(attached) = self.attached.remove(&key) {
            let id = attached.device;
            drop(attached);
            let (account, driver) = (self.world.account(by), &mut self.world.driver);
            driver.ledger.detach(&account, id, &mut driver.changes);
        }
    }

    fn forget(&mut self, by: &str, of: &str) {
        let key = (by.to_owned(), of.to_owned());
        let existed = self.model.devices.remove(&key);
        self.model.attached.remove(&key);
        self.attached.remove(&key);
        let (account, driver) = (self.world.account(by), &mut self.world.driver);
        let forgotten =
            driver
                .ledger
                .forget_device(&account, Some(&device(of)), &mut driver.changes);
        assert_eq!(forgotten, Ok(existed));
        self.model
            .cursors
            .retain(|(owner, device, _), _| owner != by || device != of);
    }

    /// Compares what users see of the messages that are held.
    fn observe(&mut self) {
        let ledger = &self.world.driver.ledger;
        for (of, model) in &mut self.model.rooms {
            // Those who see most come first.
            let mut members: Vec<_> = model.members.clone().into_iter().collect();
            members.sort_by_key(|(_, member)| member.joined);
            for (user, member) in members {
                let history = ledger.history(&self.world.account(&user), &room(of));
                let after = history.unwrap().after;
                let said = model.said.iter();
                let hidden = said.filter(|said| said.number <= after).count();
                model.observe(hidden, if model.is_invite { member.joined } else { 0 });
                let unread = self.world.entry(&user, of).unwrap().unread.unwrap() as usize;
                model.observe(model.said.len() - unread, member.mark);
            }
        }
    }

    /// Compares everything that users can see.
    fn judge(&mut self) {
        self.frame();
        self.frame();
        let now = self.model.now();
        for room in self.model.rooms.values_mut() {
            room.must_expire(now);
        }
        self.observe();
        for user in self.model.users.keys() {
            for of in ["#a", "#b"]
                .into_iter()
                .chain(self.conversations.iter().map(String::as_str))
            {
                self.judge_view(user, of);
            }
        }
    }

    fn judge_view(&self, user: &str, of: &str) {
        let entry = self.world.entry(user, of);
        let names = self.world.members(user, of);
        let room = match self.model.visible(user, of) {
            Ok(room) => room,
            Err(reasons) => {
                assert_eq!((names, entry), (Err(reasons[0]), None));
                return;
            }
        };
        assert_eq!(
            entry.is_some(),
            room.members.contains_key(user) || !room.is_invite
        );
        if !room.members.contains_key(user) {
            assert_eq!(names, Err(Code::Denied));
            return;
        }
        let entry = entry.unwrap();
        assert_eq!(entry.members, room.members.len());
        assert!(entry.last >= room.last());
        assert_eq!(names, Ok(room.members.keys().cloned().collect()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn ledger_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..200)) {
        let mut pair = Pair::new();
        for (place, op) in ops.into_iter().enumerate() {
            pair.step(op);
            if place % 8 == 0 {
                pair.judge();
            }
            if place % 32 == 0 {
                pair.world.driver.check_replay();
                pair.written = pair.model.clone();
            }
        }
        pair.judge();
        pair.world.driver.check_replay();
    }
}
