//! A model of rooms, and the property that the ledger agrees with it after any sequence of
//! commands, waits, checkpoints and crashes.
//!
//! The model knows no positions, spans or records: it keeps every message that was ever
//! said. It predicts whether a command succeeds, or else the reasons that may be given;
//! which messages a device is owed; and which messages retention may have removed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_protocol::Code;
use hark_protocol::message::RoomMode;
use proptest::prelude::*;

use super::super::record::{Record, Records};
use super::super::rooms::{RoomLimits, RoomRecord};
use super::super::{Changes, Checkpoint};
use super::rooms::{World, device, room};
use super::{LIMITS, Limits};
use crate::store::{AttachedRoom, Point, Position};

const KEEP: Duration = Duration::from_secs(10 * 24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);
const USERS: usize = 4;

const TIGHT: Limits = Limits {
    accounts_max: 100,
    rooms: RoomLimits {
        members_max: 3,
        joined_max: 2,
        owned_max: 1,
        keep: KEEP,
        ..RoomLimits::DEFAULT
    },
    ..LIMITS
};

#[derive(Debug, Default)]
struct ModelRoom {
    is_invite: bool,
    is_news: bool,
    is_conversation: bool,
    members: BTreeMap<String, ModelMember>,
    invited: BTreeMap<String, Duration>,
    banned: BTreeSet<String>,
    said: Vec<Said>,
}

#[derive(Debug, Clone, Copy)]
struct ModelMember {
    joined: u64,
    mark: u64,
    is_owner: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Said {
    number: u64,
    at: Duration,
}

/// The rooms as the commands define them.
#[derive(Debug, Default)]
struct Model {
    users: BTreeSet<String>,
    rooms: BTreeMap<String, ModelRoom>,
    blocked: BTreeSet<(String, String)>,
    /// The last acknowledgement of each user, device and room.
    cursors: BTreeMap<(String, String, String), u64>,
    devices: BTreeSet<(String, String)>,
    /// The age of the store.
    now: Duration,
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
}

/// The reasons for which a command may be refused; none if it must succeed.
type Reasons = Vec<Code>;

impl Model {
    /// Returns the room if the user may see it.
    fn visible(&self, user: &str, of: &str) -> Result<&ModelRoom, Reasons> {
        let found = self.rooms.get(of);
        let found = found.filter(|room| room.is_visible_to(user, self.now));
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
        let counted = rooms.filter(|room| !room.is_conversation && counts(room, user));
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

    fn add(&mut self, user: &str, of: &str, number: u64, is_owner: bool) {
        let member = ModelMember {
            joined: number,
            mark: number,
            is_owner,
        };
        let room = self.rooms.get_mut(of).unwrap();
        room.members.insert(user.to_owned(), member);
        room.invited.remove(user);
        for (_, device) in self.devices.iter().filter(|(owner, _)| owner == user) {
            let key = (user.to_owned(), device.clone(), of.to_owned());
            self.cursors.insert(key, number);
        }
    }

    fn remove(&mut self, user: &str, of: &str) {
        let room = self.rooms.get_mut(of).unwrap();
        if room.members.remove(user).is_none() {
            return;
        }
        self.cursors
            .retain(|(owner, _, at), _| owner != user || at != of);
        let is_owned = room.members.values().any(|member| member.is_owner);
        let needs_owner = !is_owned && !room.is_conversation;
        let eldest = room.members.values_mut().min_by_key(|member| member.joined);
        match eldest {
            None => self.end(of),
            Some(eldest) => eldest.is_owner |= needs_owner,
        }
    }

    fn end(&mut self, of: &str) {
        self.rooms.remove(of);
        self.cursors.retain(|(_, _, at), _| at != of);
    }

    fn end_user(&mut self, user: &str) {
        let rooms: Vec<_> = self.rooms.keys().cloned().collect();
        for of in rooms {
            let room = self.rooms.get_mut(&of).unwrap();
            room.invited.remove(user);
            room.banned.remove(user);
            if room.is_conversation && room.members.contains_key(user) {
                self.end(&of);
            } else {
                self.remove(user, &of);
            }
        }
        self.users.remove(user);
        self.blocked.retain(|(by, of)| by != user && of != user);
        self.devices.retain(|(owner, _)| owner != user);
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
    Set(usize, usize, u8),
    Join(usize, usize),
    Leave(usize, usize),
    Invite(usize, usize, usize),
    Expel(usize, usize, usize),
    Own(usize, usize, usize),
    DeleteRoom(usize, usize),
    Talk(usize, usize),
    Block(usize, usize, bool),
    Say(usize, usize),
    See(usize, usize, usize),
    Read(usize, usize, usize),
    Forget(usize, usize),
    Wait(u32),
    Frame,
    Checkpoint,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let (user, of) = (0..USERS, 0..4_usize);
    let pair = (user.clone(), of.clone());
    let triple = (user.clone(), of.clone(), user.clone());
    prop_oneof![
        2 => user.clone().prop_map(Op::Create),
        1 => user.clone().prop_map(Op::Delete),
        5 => (user.clone(), of.clone(), 0..3_u8).prop_map(|(u, r, m)| Op::Set(u, r, m)),
        8 => pair.clone().prop_map(|(u, r)| Op::Join(u, r)),
        3 => pair.clone().prop_map(|(u, r)| Op::Leave(u, r)),
        6 => triple.clone().prop_map(|(u, r, v)| Op::Invite(u, r, v)),
        3 => triple.clone().prop_map(|(u, r, v)| Op::Expel(u, r, v)),
        3 => triple.prop_map(|(u, r, v)| Op::Own(u, r, v)),
        1 => pair.clone().prop_map(|(u, r)| Op::DeleteRoom(u, r)),
        3 => (user.clone(), user.clone()).prop_map(|(u, v)| Op::Talk(u, v)),
        2 => (user.clone(), user.clone(), any::<bool>()).prop_map(|(u, v, b)| Op::Block(u, v, b)),
        16 => pair.prop_map(|(u, r)| Op::Say(u, r)),
        4 => (user.clone(), of, 0..9_usize).prop_map(|(u, r, n)| Op::See(u, r, n)),
        8 => (user.clone(), 0..2_usize, 0..9_usize).prop_map(|(u, d, n)| Op::Read(u, d, n)),
        1 => (user, 0..2_usize).prop_map(|(u, d)| Op::Forget(u, d)),
        5 => (0..96_u32).prop_map(Op::Wait),
        4 => Just(Op::Frame),
        6 => Just(Op::Checkpoint),
        2 => Just(Op::Crash),
    ]
}

/// The ledger and the model side by side.
struct Pair {
    world: World,
    model: Model,
    conversations: BTreeSet<String>,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            world: World::with(TIGHT, &[]),
            model: Model::default(),
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

    /// Returns the recorded state of the rooms: head and tail by name.
    fn bounds(&self) -> BTreeMap<String, (u64, Position, Position)> {
        let (ledger, mut changes) = (&self.world.driver.ledger, Changes::default());
        let frame = Checkpoint::default().next_piece_of(usize::MAX, ledger, &mut changes);
        let records = Records::new(&frame.records).map(Result::unwrap);
        let rooms = records.filter_map(|record| match record {
            Record::Room(RoomRecord::Room(state)) => {
                Some((state.name.to_string(), (state.id, state.head, state.tail)))
            }
            _ => None,
        });
        rooms.collect()
    }

    fn last(&self, of: &str) -> u64 {
        self.bounds()[of].2.sequence.0
    }

    fn step(&mut self, op: Op) {
        let user = |n: usize| format!("u{n}");
        match op {
            Op::Create(n) => {
                if self.model.users.insert(user(n)) {
                    self.world.create(&user(n));
                }
            }
            Op::Wait(hours) => {
                self.world.wait(HOUR * hours);
                self.model.now = self.world.driver.context.running;
            }
            Op::Frame => drop(self.world.driver.next_frame()),
            Op::Checkpoint => self.world.driver.checkpoint(),
            Op::Crash => {
                self.world.driver.next_frame();
                self.world.driver.ledger = self.world.driver.replayed(1);
                self.world.driver.checkpoint = None;
                self.world.driver.next_frame();
            }
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
            | Op::Say(n, _)
            | Op::See(n, ..)
            | Op::Read(n, ..)
            | Op::Forget(n, _) => {
                if self.model.users.contains(&user(n)) {
                    self.command(op, &user(n), user);
                }
            }
        }
    }

    fn command(&mut self, op: Op, by: &str, user: impl Fn(usize) -> String) {
        match op {
            Op::Delete(_) => {
                self.world.delete_user(by);
                self.model.end_user(by);
            }
            Op::Set(_, of, mode) => self.set(by, &self.name_of(of), mode),
            Op::Join(_, of) => self.join(by, &self.name_of(of)),
            Op::Leave(_, of) => {
                let of = self.name_of(of);
                let reasons = self.model.visible(by, &of).err().unwrap_or_default();
                check(&self.world.leave(by, &of), &reasons);
                if reasons.is_empty() {
                    self.model.remove(by, &of);
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
            Op::Say(_, of) => self.say(by, &self.name_of(of)),
            Op::See(_, of, nth) => self.see(by, &self.name_of(of), nth),
            Op::Read(_, nth, count) => self.read(by, &format!("d{nth}"), count),
            Op::Forget(_, nth) => self.forget(by, &format!("d{nth}")),
            Op::Create(_) | Op::Wait(_) | Op::Frame | Op::Checkpoint | Op::Crash => {}
        }
    }

    fn set(&mut self, by: &str, of: &str, mode: u8) {
        let is_conversation = of.starts_with("#=");
        let found = self.model.rooms.get(of);
        let mut reasons = Vec::new();
        if is_conversation {
            reasons.push(Code::Denied);
        } else if let Some(room) = found {
            if !room.members.contains_key(by) {
                reasons.push(Code::Exists);
            } else if !room.is_owner(by) {
                reasons.push(Code::Denied);
            } else if room.is_invite != (mode == 2) {
                reasons.push(Code::BadRequest);
            }
        } else if self.model.joins_too_many(by) || self.model.owns_too_many(by) {
            reasons.push(Code::TooMany);
        }
        let modes = [RoomMode::Open, RoomMode::News, RoomMode::Invite];
        let outcome = self.world.set(by, of, modes[usize::from(mode)], None);
        check(&outcome, &reasons);
        if !reasons.is_empty() {
            return;
        }
        let is_new = !self.model.rooms.contains_key(of);
        let room = self.model.rooms.entry(of.to_owned()).or_default();
        (room.is_invite, room.is_news) = (mode == 2, mode == 1);
        if is_new {
            let number = self.last(of);
            self.model.add(by, of, number, true);
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
        if let Ok(number) = outcome {
            if is_member {
                assert_eq!(number, self.model.rooms[of].members[by].joined);
            } else {
                let highest = self.model.rooms[of].said.last();
                assert!(highest.is_none_or(|said| said.number < number));
                self.model.add(by, of, number, false);
            }
        }
    }

    fn invite(&mut self, by: &str, of: &str, guest: &str) {
        let reasons = match self.model.owned(by, of) {
            Err(reasons) => reasons,
            Ok(_) if !self.model.users.contains(guest) => vec![Code::NoSuchUser],
            Ok(_) => Vec::new(),
        };
        check(&self.world.invite(by, of, guest), &reasons);
        let now = self.model.now;
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
            Ok(_) if !self.model.users.contains(member) => vec![Code::NoSuchUser],
            Ok(room) if room.is_owner(member) => vec![Code::Denied],
            Ok(_) => Vec::new(),
        };
        check(&self.world.expel(by, of, member), &reasons);
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty()) {
            room.banned.insert(member.to_owned());
            room.invited.remove(member);
            self.model.remove(member, of);
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
        let reasons = if !self.model.users.contains(other) {
            vec![Code::NoSuchUser]
        } else if by == other {
            vec![Code::BadRequest]
        } else if is_blocked {
            vec![Code::Denied]
        } else {
            Vec::new()
        };
        let outcome = self.world.talk(by, other);
        check(&outcome, &reasons);
        let Ok(of) = outcome else { return };
        self.conversations.insert(of.clone());
        let room = self.model.rooms.entry(of.clone()).or_default();
        (room.is_invite, room.is_conversation) = (true, true);
        let bounds = self.records_of_members(&of);
        for user in [by, other] {
            if !self.model.rooms[&of].members.contains_key(user) {
                let account = self.world.account(user).incarnation;
                self.model.add(user, &of, bounds[&account], false);
            }
        }
    }

    /// Returns the recorded numbers of the joins to a room, by account.
    fn records_of_members(&self, of: &str) -> BTreeMap<u64, u64> {
        let (id, ..) = self.bounds()[of];
        let (ledger, mut changes) = (&self.world.driver.ledger, Changes::default());
        let frame = Checkpoint::default().next_piece_of(usize::MAX, ledger, &mut changes);
        let records = Records::new(&frame.records).map(Result::unwrap);
        let members = records.filter_map(|record| match record {
            Record::Room(RoomRecord::Member(room, member)) if room == id => {
                Some((member.account, member.joined))
            }
            _ => None,
        });
        members.collect()
    }

    fn block(&mut self, by: &str, other: &str, is_on: bool) {
        let mut reasons = Vec::new();
        if !self.model.users.contains(other) {
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

    fn say(&mut self, by: &str, of: &str) {
        let reasons = match self.model.visible(by, of) {
            Err(reasons) => reasons,
            Ok(room) => {
                let is_member = room.members.contains_key(by);
                let is_blocked = |other: &String| {
                    let key = (other.clone(), by.to_owned());
                    self.model.blocked.contains(&key)
                };
                let is_blocked = room.is_conversation && room.members.keys().any(is_blocked);
                let is_silent = room.is_news && !room.is_owner(by);
                if !is_member || is_silent || is_blocked {
                    vec![Code::Denied]
                } else {
                    Vec::new()
                }
            }
        };
        let outcome = self.world.say(by, of, "x");
        check(&outcome, &reasons);
        let Ok(number) = outcome else { return };
        let at = self.model.now;
        let room = self.model.rooms.get_mut(of).unwrap();
        let before = room.said.last().map_or(0, |said| said.number);
        let member = room.members.get_mut(by).unwrap();
        assert!(number > before && number > member.joined);
        if member.mark >= before {
            member.mark = number;
        }
        room.said.push(Said { number, at });
    }

    fn see(&mut self, by: &str, of: &str, nth: usize) {
        let reasons = match self.model.visible(by, of) {
            Err(reasons) => reasons,
            Ok(room) if !room.members.contains_key(by) => vec![Code::Denied],
            Ok(_) => Vec::new(),
        };
        let said = self.model.rooms.get(of).and_then(|room| {
            let said = room.said.get(nth)?;
            Some((said.number, nth as u64 + 1))
        });
        let (number, messages) = said.unwrap_or((0, 0));
        check(
            &self.world.see(by, of, Point { number, messages }),
            &reasons,
        );
        if let Some(room) = self.model.rooms.get_mut(of).filter(|_| reasons.is_empty()) {
            let member = room.members.get_mut(by).unwrap();
            member.mark = member.mark.max(number);
        }
    }

    /// Attaches a device, which gets all messages that it is owed, and acknowledges some of
    /// each room.
    fn read(&mut self, by: &str, of: &str, count: usize) {
        let key = (by.to_owned(), of.to_owned());
        let is_new = self.model.devices.insert(key);
        let attached = self.world.attach(by, of).unwrap();
        self.world.driver.next_frame();
        let joined = self
            .model
            .rooms
            .iter()
            .filter(|(_, r)| r.members.contains_key(by));
        assert_eq!(attached.rooms.len(), joined.count());
        let (bounds, account) = (self.bounds(), self.world.account(by));
        for AttachedRoomOf { name, id, cursor } in attached.rooms.iter().map(AttachedRoomOf::from) {
            let (_, head, tail) = bounds[&name];
            let key = (by.to_owned(), of.to_owned(), name.clone());
            if is_new {
                self.model.cursors.insert(key.clone(), tail.sequence.0);
            }
            assert_eq!(cursor.number, self.model.cursors[&key], "{key:?}");
            let said = self.model.rooms[&name].said.iter();
            let owed: Vec<_> = said
                .map(|s| s.number)
                .filter(|n| *n > cursor.number)
                .collect();
            let stored = self.world.driver.messages_of(id).into_iter();
            let stored: Vec<_> = stored
                .map(|message| message.position)
                .filter(|position| position.sequence.0 > cursor.number)
                .collect();
            assert!(
                stored
                    .iter()
                    .map(|position| position.sequence.0)
                    .eq(owed.iter().copied())
            );
            let missing = owed
                .iter()
                .filter(|number| **number <= head.sequence.0)
                .count();
            let gap = head.messages.saturating_sub(cursor.messages);
            assert_eq!(gap, missing as u64, "the count of a gap");
            assert_eq!(tail.messages - cursor.messages, owed.len() as u64);
            if let Some(last) = stored.get(..count).and_then(<[_]>::last) {
                let driver = &mut self.world.driver;
                let place = (id, Point::from(*last));
                driver.ledger.acknowledge_room(
                    &account,
                    attached.device,
                    place,
                    &mut driver.changes,
                );
                self.model.cursors.insert(key, last.sequence.0);
            }
        }
    }

    fn forget(&mut self, by: &str, of: &str) {
        let existed = self.model.devices.remove(&(by.to_owned(), of.to_owned()));
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

    /// Compares everything that users can see.
    fn judge(&mut self) {
        self.world.driver.next_frame();
        let bounds = self.bounds();
        assert!(bounds.keys().eq(self.model.rooms.keys()));
        for (of, model) in &self.model.rooms {
            let (_, head, _) = bounds[of];
            for said in &model.said {
                let age = self.model.now - said.at;
                let is_held = said.number > head.sequence.0;
                assert!(is_held || age >= KEEP, "{said:?} is gone after {age:?}");
                let kept_max = KEEP + KEEP / 16 + HOUR;
                assert!(
                    !is_held || age <= kept_max,
                    "{said:?} is held after {age:?}"
                );
            }
            for user in &self.model.users {
                self.judge_view(user, of, model, head.sequence.0);
            }
        }
    }

    fn judge_view(&self, user: &str, of: &str, model: &ModelRoom, head: u64) {
        let entry = self.world.entry(user, of);
        let Some(member) = model.members.get(user) else {
            assert_eq!(entry.is_some(), !model.is_invite, "{user} in {of}");
            let code = if model.is_visible_to(user, self.model.now) {
                Code::Denied
            } else {
                Code::NoSuchUser
            };
            assert_eq!(self.world.members(user, of), Err(code));
            return;
        };
        let entry = entry.unwrap();
        let unread = model
            .said
            .iter()
            .filter(|said| said.number > member.mark.max(head));
        assert_eq!(entry.unread, Some(unread.count() as u64), "{user} in {of}");
        assert_eq!(entry.members, model.members.len());
        let names: Vec<_> = model.members.keys().cloned().collect();
        assert_eq!(self.world.members(user, of), Ok(names));
        let ledger = &self.world.driver.ledger;
        let history = ledger
            .history(&self.world.account(user), &room(of))
            .unwrap();
        let after = if model.is_invite {
            head.max(member.joined)
        } else {
            head
        };
        assert_eq!(history.after, after);
    }
}

/// The parts of an attached room, with its name as text.
struct AttachedRoomOf {
    name: String,
    id: u64,
    cursor: Point,
}

impl From<&AttachedRoom> for AttachedRoomOf {
    fn from(room: &AttachedRoom) -> Self {
        Self {
            name: room.name.to_string(),
            id: room.id,
            cursor: room.cursor,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn ledger_agrees_with_the_model(ops in proptest::collection::vec(op(), 1..150)) {
        let mut pair = Pair::new();
        for (place, op) in ops.into_iter().enumerate() {
            pair.step(op);
            if place % 8 == 0 {
                pair.judge();
            }
        }
        pair.judge();
        pair.world.driver.check_replay();
    }
}
