//! The rules of rooms, one by one.

use std::time::Duration;

use hark_protocol::message::{LeftReason, RoomMode};
use hark_protocol::{Code, DeviceName, RoomName, Sequence};

use super::super::Imported;

use super::super::rooms::RoomLimits;
use super::{Driver, LIMITS, Limits, all_rooms, name, text};
use crate::store::{
    Account, Append, Created, DeviceSubscription, Notice, Outcome, PasswordHash, Point, Position,
    RoomEntry,
};

use RoomMode::{Invite, News, Open};

const DAY: Duration = Duration::from_secs(24 * 3600);

const SMALL: Limits = Limits {
    accounts_max: 1000,
    queued_messages_max: 1000,
    queued_bytes_max: 1 << 20,
    rooms: RoomLimits {
        members_max: 4,
        joined_max: 3,
        owned_max: 2,
        ..RoomLimits::DEFAULT
    },
    ..LIMITS
};

/// Users with passwords, and their rooms.
pub(super) struct World {
    pub(super) driver: Driver,
}

pub(super) fn room(text: &str) -> RoomName {
    text.parse().unwrap()
}

pub(super) fn device(text: &str) -> DeviceName {
    text.parse().unwrap()
}

impl World {
    pub(super) fn new(users: &[&str]) -> Self {
        Self::with(SMALL, users)
    }

    pub(super) fn with(limits: Limits, users: &[&str]) -> Self {
        let mut world = Self {
            driver: Driver::with(limits),
        };
        users.iter().for_each(|user| world.create(user));
        world
    }

    pub(super) fn create(&mut self, user: &str) {
        let hash = Some(PasswordHash::new("$x"));
        let driver = &mut self.driver;
        let created = driver.ledger.create(&name(user), hash, &mut driver.changes);
        assert_eq!(created, Created::Created);
    }

    pub(super) fn account(&self, user: &str) -> Account {
        self.driver.account(user).unwrap()
    }

    pub(super) fn set(
        &mut self,
        user: &str,
        of: &str,
        mode: RoomMode,
        keep: Option<Duration>,
    ) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .set_room(&caller, &room(of), (mode, keep), &mut driver.changes)
    }

    pub(super) fn join(&mut self, user: &str, of: &str) -> Result<u64, Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        let joined = driver.ledger.join(&caller, &room(of), &mut driver.changes);
        joined.map(|joined| joined.number)
    }

    pub(super) fn leave(&mut self, user: &str, of: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver.ledger.leave(&caller, &room(of), &mut driver.changes)
    }

    pub(super) fn invite(&mut self, user: &str, of: &str, guest: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .invite(&caller, &room(of), &name(guest), &mut driver.changes)
    }

    pub(super) fn expel(&mut self, user: &str, of: &str, member: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .expel(&caller, &room(of), &name(member), &mut driver.changes)
    }

    pub(super) fn own(&mut self, user: &str, of: &str, member: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .own(&caller, &room(of), &name(member), &mut driver.changes)
    }

    pub(super) fn talk(&mut self, user: &str, other: &str) -> Result<String, Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        let named = driver
            .ledger
            .talk(&caller, &name(other), &mut driver.changes);
        named.map(|name| name.to_string())
    }

    pub(super) fn block(&mut self, user: &str, other: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .block(&caller, &name(other), &mut driver.changes)
    }

    pub(super) fn unblock(&mut self, user: &str, other: &str) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .unblock(&caller, &name(other), &mut driver.changes)
    }

    pub(super) fn delete_room(
        &mut self,
        user: &str,
        of: &str,
        is_admin: bool,
    ) -> Result<bool, Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .delete_room(&caller, &room(of), is_admin, &mut driver.changes)
    }

    pub(super) fn delete_user(&mut self, user: &str) {
        let (account, driver) = (self.account(user), &mut self.driver);
        assert!(driver.ledger.delete(&account, &mut driver.changes));
    }

    pub(super) fn say(&mut self, user: &str, to: &str, content: &str) -> Result<u64, Code> {
        let append = Append {
            sender: Some(self.account(user)),
            ..text(to, content)
        };
        match self.driver.append(append) {
            Outcome::Stored(number) => Ok(number.0),
            Outcome::Refused(code) => Err(code),
        }
    }

    pub(super) fn attach(&mut self, user: &str, of: &str) -> Result<DeviceSubscription, Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .attach(&caller, &device(of), &mut driver.changes)
    }

    pub(super) fn see(&mut self, user: &str, of: &str, point: Point) -> Result<(), Code> {
        let (caller, driver) = (self.account(user), &mut self.driver);
        driver
            .ledger
            .see(&caller, &room(of), point, &mut driver.changes)
    }

    pub(super) fn members(&self, user: &str, of: &str) -> Result<Vec<String>, Code> {
        let (caller, of) = (self.account(user), room(of));
        let (mut names, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let page = self.driver.ledger.members(&caller, &of, from)?;
            names.extend(page.names.iter().map(ToString::to_string));
            next = page.next;
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn entry(&self, user: &str, of: &str) -> Option<RoomEntry> {
        let rooms = all_rooms(&self.driver.ledger, &self.account(user));
        rooms.into_iter().find(|entry| entry.name == room(of))
    }

    fn unread(&self, user: &str, of: &str) -> Option<u64> {
        self.entry(user, of).unwrap().unread
    }

    /// Returns the texts that a member may read back.
    pub(super) fn history(&mut self, user: &str, of: &str) -> Result<Vec<String>, Code> {
        self.driver.next_frame();
        let history = self.driver.ledger.history(&self.account(user), &room(of))?;
        let messages = self.driver.messages_of(history.room).into_iter();
        let held = messages.filter(|message| message.position.sequence.0 > history.after);
        Ok(held.map(|message| message.text.to_string()).collect())
    }

    pub(super) fn wait(&mut self, time: Duration) {
        self.driver.context.running += time;
        self.driver.next_frame();
        self.driver.next_frame();
    }

    /// Lets the clocks run without a record.
    pub(super) fn idle(&mut self, time: Duration) {
        self.driver.context.running += time;
        self.driver.context.wall_ms += time.as_millis() as u64;
        self.driver.next_frame();
    }

    /// Returns the notifications of the frame.
    fn notices(&self) -> Vec<&Notice> {
        let notices = self.driver.changes.effects.notices.iter();
        notices.map(|(_, notice)| notice).collect()
    }
}

#[test]
fn creator_owns_its_room_and_changes_it() {
    let mut world = World::new(&["amy", "bob"]);
    assert_eq!(world.set("amy", "#team", Open, None), Ok(()));
    assert_eq!(world.members("amy", "#team").unwrap(), ["amy"]);
    assert_eq!(world.set("bob", "#team", Open, None), Err(Code::Exists));
    world.join("bob", "#team").unwrap();
    assert_eq!(world.set("bob", "#team", News, None), Err(Code::Denied));
    assert_eq!(world.set("amy", "#team", News, Some(DAY)), Ok(()));
    assert_eq!(world.entry("bob", "#team").unwrap().mode, News);
    assert_eq!(world.set("amy", "#team", Open, None), Ok(()));
    assert_eq!(world.set("amy", "#team", Open, None), Ok(()), "again");
    assert_eq!(
        world.set("amy", "#team", Invite, None),
        Err(Code::BadRequest)
    );
    for keep in [Duration::ZERO, 400 * DAY] {
        let refused = world.set("amy", "#team", Open, Some(keep));
        assert_eq!(refused, Err(Code::BadRequest), "{keep:?}");
    }
    world.driver.check_replay();
}

#[test]
fn older_account_with_the_name_keeps_it() {
    let mut world = World::new(&["amy", "#team"]);
    assert_eq!(world.set("amy", "#team", Open, None), Err(Code::Exists));
    assert!(world.say("amy", "#team", "x").is_ok());
    world.delete_user("#team");
    assert_eq!(world.set("amy", "#team", Open, None), Ok(()));
}

#[test]
fn membership_takes_numbers_of_the_room() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    let before = world.say("amy", "#team", "before").unwrap();
    assert_eq!(world.say("bob", "#team", "x"), Err(Code::Denied));
    let joined = world.join("bob", "#team").unwrap();
    assert_eq!(world.join("bob", "#team"), Ok(joined), "again");
    let said = world.say("bob", "#team", "said").unwrap();
    assert_eq!(world.leave("bob", "#team"), Ok(()));
    assert_eq!(world.leave("bob", "#team"), Ok(()), "again");
    let left = world.entry("amy", "#team").unwrap().last;
    let after = world.say("amy", "#team", "after").unwrap();
    assert!(before < joined && joined < said && said < left && left < after);
    assert!(world.join("bob", "#team").unwrap() > after);
    assert_eq!(world.unread("bob", "#team"), Some(0));
    assert_eq!(world.history("bob", "#team").unwrap().len(), 3);
    world.driver.check_replay();
}

#[test]
fn invite_room_is_absent_for_others() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    world.set("amy", "#plan", Invite, None).unwrap();
    let absent = Err(Code::NoSuchUser);
    for of in ["#plan", "#none"] {
        assert_eq!(world.join("eve", of).map(drop), absent);
        assert_eq!(world.leave("eve", of), absent);
        assert_eq!(world.invite("eve", of, "bob"), absent);
        assert_eq!(world.expel("eve", of, "amy"), absent);
        assert_eq!(world.own("eve", of, "eve"), absent);
        assert_eq!(world.say("eve", of, "x").map(drop), absent);
        assert_eq!(world.members("eve", of).map(drop), absent);
        assert_eq!(world.history("eve", of).map(drop), absent);
        assert_eq!(world.see("eve", of, Point::default()), absent);
        assert_eq!(world.delete_room("eve", of, false), Ok(false));
        let anonymous = text(of, "x");
        assert_eq!(
            world.driver.append(anonymous),
            Outcome::Refused(Code::NoSuchUser)
        );
    }
    assert_eq!(world.set("eve", "#plan", Open, None), Err(Code::Exists));
    assert_eq!(world.entry("eve", "#plan"), None);
    // An invited user sees it, but lacks the rights of a member.
    world.invite("amy", "#plan", "eve").unwrap();
    assert_eq!(world.members("eve", "#plan"), Err(Code::Denied));
    assert_eq!(world.say("eve", "#plan", "x"), Err(Code::Denied));
    assert_eq!(world.delete_room("eve", "#plan", false), Err(Code::Denied));
    world.driver.check_replay();
}

#[test]
fn invited_member_reads_what_follows_its_join() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#plan", Invite, None).unwrap();
    world.say("amy", "#plan", "before").unwrap();
    world.invite("amy", "#plan", "bob").unwrap();
    world.join("bob", "#plan").unwrap();
    world.say("amy", "#plan", "after").unwrap();
    assert_eq!(world.history("bob", "#plan").unwrap(), ["after"]);
    assert_eq!(world.history("amy", "#plan").unwrap(), ["before", "after"]);
    world.leave("bob", "#plan").unwrap();
    assert_eq!(
        world.join("bob", "#plan"),
        Err(Code::NoSuchUser),
        "the invitation is used up"
    );
    world.invite("amy", "#plan", "bob").unwrap();
    world.wait(30 * DAY);
    assert_eq!(world.join("bob", "#plan"), Err(Code::NoSuchUser));
    world.driver.check_replay();
}

#[test]
fn expelled_user_stays_out_until_invited() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    assert_eq!(world.expel("bob", "#team", "amy"), Err(Code::Denied));
    assert_eq!(world.expel("amy", "#team", "amy"), Err(Code::Denied));
    assert_eq!(world.expel("amy", "#team", "none"), Err(Code::NoSuchUser));
    for user in ["bob", "bob", "eve"] {
        assert_eq!(world.expel("amy", "#team", user), Ok(()), "{user}");
    }
    assert_eq!(world.join("bob", "#team"), Err(Code::Denied));
    assert_eq!(world.join("eve", "#team"), Err(Code::Denied));
    assert_eq!(world.say("bob", "#team", "x"), Err(Code::Denied));
    world.driver.check_replay();
    world.invite("amy", "#team", "bob").unwrap();
    assert!(world.join("bob", "#team").is_ok());
    // A ban belongs to the account, not to the name.
    world.delete_user("eve");
    world.create("eve");
    assert!(world.join("eve", "#team").is_ok());
    world.own("amy", "#team", "eve").unwrap();
    assert_eq!(world.expel("amy", "#team", "eve"), Err(Code::Denied));
    world.driver.check_replay();
}

#[test]
fn eldest_member_succeeds_the_last_owner() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("eve", "#team").unwrap();
    world.join("bob", "#team").unwrap();
    assert_eq!(world.own("bob", "#team", "bob"), Err(Code::Denied));
    assert_eq!(world.own("amy", "#team", "none"), Err(Code::NoSuchUser));
    world.delete_user("amy");
    world.driver.check_replay();
    assert_eq!(world.own("eve", "#team", "bob"), Ok(()));
    assert_eq!(world.own("eve", "#team", "bob"), Ok(()), "again");
    world.leave("eve", "#team").unwrap();
    world.leave("bob", "#team").unwrap();
    world.create("amy");
    assert_eq!(
        world.join("amy", "#team"),
        Err(Code::NoSuchUser),
        "it ended with its last member"
    );
    world.driver.check_replay();
}

#[test]
fn recreated_room_shows_nothing_old() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    world.say("amy", "#team", "old").unwrap();
    assert_eq!(world.delete_room("bob", "#team", false), Err(Code::Denied));
    assert_eq!(world.delete_room("amy", "#team", false), Ok(true));
    assert_eq!(world.delete_room("amy", "#team", false), Ok(false));
    assert_eq!(world.driver.changes.effects.ended.len(), 1);
    world.set("bob", "#team", Open, None).unwrap();
    world.join("amy", "#team").unwrap();
    assert_eq!(world.history("amy", "#team").unwrap(), [""; 0]);
    world.driver.check_replay();
}

#[test]
fn administrator_deletes_but_does_not_read() {
    let mut world = World::new(&["amy", "bob", "admin"]);
    world.set("amy", "#plan", Invite, None).unwrap();
    assert_eq!(world.history("admin", "#plan"), Err(Code::NoSuchUser));
    let conversation = world.talk("amy", "bob").unwrap();
    for (user, expected) in [("amy", Err(Code::Denied)), ("admin", Ok(false))] {
        let deleted = world.delete_room(user, &conversation, user == "admin");
        assert_eq!(deleted, expected, "{user}");
    }
    assert_eq!(world.delete_room("admin", "#plan", true), Ok(true));
}

#[test]
fn members_and_rooms_have_limits() {
    let users = ["a", "b", "c", "d", "e"];
    let mut world = World::new(&users);
    world.set("a", "#1", Open, None).unwrap();
    world.set("a", "#2", Open, None).unwrap();
    assert_eq!(world.set("a", "#3", Open, None), Err(Code::TooMany));
    for user in ["b", "c", "d"] {
        world.join(user, "#1").unwrap();
    }
    assert_eq!(world.join("e", "#1"), Err(Code::TooMany));
    world.set("b", "#3", Open, None).unwrap();
    world.set("b", "#4", Open, None).unwrap();
    assert_eq!(world.join("b", "#2"), Err(Code::TooMany), "its fourth room");
    assert_eq!(world.set("b", "#5", Open, None), Err(Code::TooMany));
    assert_eq!(
        world.own("a", "#1", "b"),
        Err(Code::TooMany),
        "it owns two rooms"
    );
    assert!(
        world.talk("b", "a").is_ok(),
        "a conversation is not counted"
    );
    world.leave("b", "#1").unwrap();
    assert!(world.join("b", "#2").is_ok());
    assert!(world.join("e", "#1").is_ok());
    world.driver.check_replay();
}

#[test]
fn account_without_password_enters_no_invite_room() {
    let mut world = World::new(&["amy"]);
    world.driver.create("open");
    assert_eq!(world.set("open", "#plan", Invite, None), Err(Code::Denied));
    assert_eq!(world.set("open", "#team", Open, None), Ok(()));
    world.set("amy", "#plan", Invite, None).unwrap();
    assert_eq!(world.invite("amy", "#plan", "open"), Err(Code::Denied));
    assert_eq!(world.talk("amy", "open"), Err(Code::Denied));
    assert_eq!(world.talk("open", "amy"), Err(Code::Denied));
}

#[test]
fn conversation_belongs_to_both_alike() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    let of = world.talk("amy", "bob").unwrap();
    assert_eq!(world.talk("bob", "amy").as_ref(), Ok(&of));
    assert_eq!(world.members("bob", &of).unwrap(), ["amy", "bob"]);
    assert!(world.say("bob", &of, "x").is_ok());
    for user in ["amy", "bob"] {
        assert_eq!(world.set(user, &of, Invite, None), Err(Code::Denied));
        assert_eq!(world.invite(user, &of, "eve"), Err(Code::Denied));
        assert_eq!(world.expel(user, &of, "amy"), Err(Code::Denied));
        assert_eq!(world.own(user, &of, user), Err(Code::Denied));
        assert_eq!(world.delete_room(user, &of, false), Err(Code::Denied));
    }
    assert_eq!(world.set("eve", &of, Open, None), Err(Code::Denied));
    assert_eq!(world.join("eve", &of), Err(Code::NoSuchUser));
    assert_eq!(world.talk("amy", "amy"), Err(Code::BadRequest));
    assert_eq!(world.talk("amy", "none"), Err(Code::NoSuchUser));
    world.leave("bob", &of).unwrap();
    assert_eq!(world.join("bob", &of), Err(Code::NoSuchUser));
    assert_eq!(world.talk("bob", "amy").as_ref(), Ok(&of));
    world.driver.check_replay();
    world.delete_user("bob");
    assert_eq!(world.entry("amy", &of), None, "it ends with either");
    world.create("bob");
    assert_eq!(world.talk("bob", "amy").as_ref(), Ok(&of));
    assert_eq!(world.history("amy", &of).unwrap(), [""; 0]);
    world.driver.check_replay();
}

#[test]
fn hundred_conversations_begin_within_a_day() {
    let others: Vec<_> = (0..102).map(|n| format!("u{n}")).collect();
    let mut world = World::new(&["amy"]);
    others.iter().for_each(|user| world.create(user));
    for user in &others[..100] {
        world.talk("amy", user).unwrap();
    }
    assert_eq!(world.talk("amy", "u100"), Err(Code::TooMany));
    assert!(world.talk("amy", "u7").is_ok(), "this one exists");
    assert!(world.talk("u100", "amy").is_ok());
    world.driver.check_replay();
    world.wait(DAY);
    assert!(world.talk("amy", "u101").is_ok());
}

#[test]
fn blocked_user_reaches_nobody_directly() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    let of = world.talk("eve", "amy").unwrap();
    world.set("eve", "#team", Open, None).unwrap();
    world.join("amy", "#team").unwrap();
    assert_eq!(world.block("amy", "none"), Err(Code::NoSuchUser));
    assert_eq!(world.block("amy", "amy"), Err(Code::BadRequest));
    assert_eq!(world.block("amy", "eve"), Ok(()));
    assert_eq!(world.block("amy", "eve"), Ok(()), "again");
    assert_eq!(world.talk("eve", "amy"), Err(Code::Denied));
    assert_eq!(world.say("eve", &of, "x"), Err(Code::Denied));
    assert_eq!(world.say("eve", "amy", "x"), Err(Code::Denied));
    assert!(world.say("eve", "#team", "x").is_ok());
    assert!(world.say("amy", &of, "x").is_ok());
    assert!(world.say("bob", "amy", "x").is_ok());
    world.driver.check_replay();
    assert_eq!(world.unblock("amy", "eve"), Ok(()));
    assert_eq!(world.unblock("amy", "eve"), Ok(()), "again");
    assert!(world.say("eve", "amy", "x").is_ok());
    world.block("amy", "eve").unwrap();
    world.delete_user("eve");
    world.create("eve");
    assert!(
        world.say("eve", "amy", "x").is_ok(),
        "it is another account"
    );
    world.driver.check_replay();
}

#[test]
fn hundred_living_users_are_blocked() {
    let others: Vec<_> = (0..101).map(|n| format!("u{n}")).collect();
    let mut world = World::new(&["amy"]);
    others.iter().for_each(|user| world.create(user));
    for user in &others[..100] {
        world.block("amy", user).unwrap();
    }
    assert_eq!(world.block("amy", "u100"), Err(Code::TooMany));
    world.delete_user("u5");
    assert_eq!(world.block("amy", "u100"), Ok(()));
    world.driver.check_replay();
}

#[test]
fn only_owners_send_news() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#news", News, None).unwrap();
    world.join("bob", "#news").unwrap();
    assert_eq!(world.say("bob", "#news", "x"), Err(Code::Denied));
    assert!(world.say("amy", "#news", "x").is_ok());
    world.own("amy", "#news", "bob").unwrap();
    assert!(world.say("bob", "#news", "x").is_ok());
}

#[test]
fn anonymous_message_is_denied_in_rooms() {
    let mut world = World::new(&["amy"]);
    world.set("amy", "#team", Open, None).unwrap();
    world
        .driver
        .check_send(text("#team", "x"), Err(Code::Denied));
    world
        .driver
        .check_send(text("#none", "x"), Err(Code::NoSuchUser));
    world.driver.context.is_low_on_space = true;
    assert_eq!(world.say("amy", "#team", "x"), Err(Code::NoSpace));
}

#[test]
fn sender_has_a_quarter_of_a_room() {
    let limits = Limits {
        rooms: RoomLimits {
            room_bytes_max: 40_000,
            ..SMALL.rooms
        },
        ..SMALL
    };
    let mut world = World::with(limits, &["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    let kilobyte = "x".repeat(1000 - 32);
    for _ in 0..10 {
        world.say("amy", "#team", &kilobyte).unwrap();
    }
    assert_eq!(world.say("amy", "#team", ""), Err(Code::QueueFull));
    assert!(world.say("bob", "#team", &kilobyte).is_ok());
    world.driver.check_replay();
    world.driver.ledger = world.driver.replayed(1);
    world.driver.next_frame();
    assert_eq!(world.say("amy", "#team", ""), Err(Code::QueueFull));
    world.wait(31 * DAY + 2 * DAY);
    assert!(world.say("amy", "#team", &kilobyte).is_ok());
}

#[test]
fn full_room_loses_its_oldest_messages() {
    let limits = Limits {
        rooms: RoomLimits {
            room_bytes_max: 1 << 20,
            members_max: 100,
            ..SMALL.rooms
        },
        ..SMALL
    };
    let users: Vec<_> = (0..20).map(|n| format!("u{n}")).collect();
    let mut world = World::with(limits, &[]);
    users.iter().for_each(|user| world.create(user));
    world.set("u0", "#team", Open, None).unwrap();
    for user in &users[1..] {
        world.join(user, "#team").unwrap();
    }
    let text = "x".repeat(10_000);
    let mut last = 0;
    for n in 0..300 {
        last = world.say(&users[n % 20], "#team", &text).unwrap();
        if n % 50 == 0 {
            world.driver.next_frame();
        }
    }
    let held = world.history("u0", "#team").unwrap().len();
    assert!((90..=104).contains(&held), "{held} messages");
    assert_eq!(world.entry("u0", "#team").unwrap().last, last);
    world.driver.check_replay();
}

#[test]
fn largest_room_gives_way_to_others() {
    let limits = Limits {
        rooms: RoomLimits {
            all_bytes_max: 400_000,
            ..SMALL.rooms
        },
        ..SMALL
    };
    let mut world = World::with(limits, &["amy", "bob"]);
    world.set("amy", "#large", Open, None).unwrap();
    world.set("bob", "#small", Open, None).unwrap();
    let text = "x".repeat(10_000);
    for _ in 0..5 {
        world.say("bob", "#small", &text).unwrap();
    }
    for _ in 0..60 {
        world.say("amy", "#large", &text).unwrap();
    }
    assert_eq!(world.history("bob", "#small").unwrap().len(), 5);
    let held = world.history("amy", "#large").unwrap().len();
    assert!((25..=34).contains(&held), "{held} messages");
    world.driver.check_replay();
}

#[test]
fn messages_expire_by_age_and_not_before() {
    let mut world = World::new(&["amy"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.set("amy", "#brief", Open, Some(16 * DAY)).unwrap();
    for day in 0..40 {
        world.say("amy", "#team", &format!("{day}")).unwrap();
        world.say("amy", "#brief", &format!("{day}")).unwrap();
        world.wait(DAY);
    }
    let first = |world: &mut World, of: &str| -> u32 {
        let history = world.history("amy", of).unwrap();
        history.first().unwrap().parse().unwrap()
    };
    assert!((8..=10).contains(&first(&mut world, "#team")), "30 days");
    assert!((24..=25).contains(&first(&mut world, "#brief")), "16 days");
    world.driver.check_replay();
    world.say("amy", "#team", "40").unwrap();
    world.set("amy", "#team", Open, Some(DAY)).unwrap();
    world.wait(Duration::from_secs(1));
    assert_eq!(
        first(&mut world, "#team"),
        40,
        "a shorter time counts at once"
    );
    world.wait(40 * DAY);
    assert_eq!(world.history("amy", "#team").unwrap(), [""; 0]);
    assert_eq!(world.unread("amy", "#team"), Some(0));
    world.driver.check_replay();
}

#[test]
fn stop_ages_messages_by_a_day_at_most() {
    let mut world = World::new(&["amy"]);
    world.set("amy", "#team", Open, Some(2 * DAY)).unwrap();
    world.say("amy", "#team", "x").unwrap();
    world.driver.context.wall_ms = 1_800_000_000_000;
    world.driver.next_frame();
    for stops in 1..=3 {
        // A record of the wall clock comes with others.
        world.set("amy", "#team", News, None).unwrap();
        world.set("amy", "#team", Open, None).unwrap();
        world.driver.next_frame();
        world.driver.ledger = world.driver.replayed(1);
        world.driver.context.wall_ms += 100 * DAY.as_millis() as u64;
        world.driver.next_frame();
        let driver = &mut world.driver;
        driver.ledger.count_stop(&mut driver.changes);
        driver.next_frame();
        driver.next_frame();
        let held = world.history("amy", "#team").unwrap().len();
        assert_eq!(held == 0, stops >= 2, "after {stops} stops");
    }
    world.driver.check_replay();
}

#[test]
fn unread_messages_are_counted_by_subtraction() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, Some(16 * DAY)).unwrap();
    world.join("bob", "#team").unwrap();
    let mut numbers = Vec::new();
    for n in 0..5 {
        numbers.push(world.say("amy", "#team", &format!("{n}")).unwrap());
        world.wait(DAY);
    }
    assert_eq!(world.unread("amy", "#team"), Some(0), "its own are read");
    assert_eq!(world.unread("bob", "#team"), Some(5));
    let point = |nth: u64| Point {
        number: numbers[nth as usize - 1],
        messages: nth,
    };
    world.see("bob", "#team", point(2)).unwrap();
    world.see("bob", "#team", point(1)).unwrap();
    assert_eq!(world.unread("bob", "#team"), Some(3));
    world.say("bob", "#team", "own").unwrap();
    assert_eq!(
        world.unread("bob", "#team"),
        Some(4),
        "its mark stood before"
    );
    let beyond = Point {
        number: u64::MAX,
        messages: u64::MAX,
    };
    world.see("bob", "#team", beyond).unwrap();
    assert_eq!(world.unread("bob", "#team"), Some(0));
    world.say("bob", "#team", "own").unwrap();
    assert_eq!(world.unread("bob", "#team"), Some(0));
    assert_eq!(world.unread("amy", "#team"), Some(2));
    world.driver.check_replay();
    world.wait(30 * DAY);
    assert_eq!(world.unread("amy", "#team"), Some(0));
    world.driver.check_replay();
}

#[test]
fn new_device_begins_at_the_last_number() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    world.say("amy", "#team", "1").unwrap();
    let laptop = world.attach("bob", "laptop").unwrap();
    let first = world.say("amy", "#team", "2").unwrap();
    let phone = world.attach("bob", "phone").unwrap();
    assert!(laptop.rooms[0].cursor.number < first);
    assert_eq!(phone.rooms[0].cursor.number, first);
    let (bob, id) = (world.account("bob"), laptop.rooms[0].ring.id());
    let acknowledged = Point {
        number: first,
        messages: 2,
    };
    let driver = &mut world.driver;
    driver
        .ledger
        .acknowledge_room(&bob, laptop.device, (id, acknowledged), &mut driver.changes);
    driver.ledger.acknowledge_room(
        &bob,
        laptop.device,
        (id, Point::default()),
        &mut driver.changes,
    );
    world.driver.check_replay();
    let again = world.attach("bob", "laptop").unwrap();
    assert_eq!(again.device, laptop.device);
    assert_eq!(again.rooms[0].cursor, acknowledged);
    // A rejoin begins at the new last number.
    world.leave("bob", "#team").unwrap();
    world.say("amy", "#team", "3").unwrap();
    let joined = world.join("bob", "#team").unwrap();
    for device in ["laptop", "phone"] {
        let attached = world.attach("bob", device).unwrap();
        assert_eq!(attached.rooms[0].cursor.number, joined);
    }
    world.driver.check_replay();
}

#[test]
fn attached_devices_learn_of_rooms_and_marks() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    let _laptop = world.attach("bob", "laptop").unwrap();
    world.join("bob", "#team").unwrap();
    assert!(matches!(world.notices()[..], [Notice::Joined { .. }]));
    let _phone = world.attach("bob", "phone").unwrap();
    let [_, Notice::Device(entry)] = world.notices()[..] else {
        panic!("{:?}", world.notices())
    };
    assert_eq!(entry.name, Some(device("phone")));
    world.driver.next_frame();
    let number = world.say("amy", "#team", "x").unwrap();
    let last = Point {
        number,
        messages: 1,
    };
    world.see("bob", "#team", last).unwrap();
    world.see("bob", "#team", last).unwrap();
    let seen = Notice::Seen {
        room: room("#team"),
        number,
    };
    assert_eq!(world.notices(), [&seen, &seen], "one for each device");
    world.driver.next_frame();
    world.expel("amy", "#team", "bob").unwrap();
    for notice in world.notices() {
        assert!(matches!(
            notice,
            Notice::Left {
                reason: LeftReason::Expelled,
                ..
            }
        ));
    }
    assert_eq!(world.notices().len(), 2);
}

#[test]
fn import_to_a_room_is_refused() {
    let mut world = World::new(&["amy"]);
    world.set("amy", "#team", Open, None).unwrap();
    let message = crate::store::Message {
        position: Position::default(),
        sender: None,
        time_ms: 0,
        text: "x".into(),
    };
    let driver = &mut world.driver;
    let imported = driver
        .ledger
        .import_message(&name("#team"), message, &mut driver.changes);
    assert_eq!(imported, Imported::NoSuchUser);
}

#[test]
fn left_names_the_number_of_the_end() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    let _phone = world.attach("bob", "phone").unwrap();
    world.driver.next_frame();
    let first = world.say("amy", "#team", "1").unwrap();
    world.expel("amy", "#team", "bob").unwrap();
    let second = world.say("amy", "#team", "2").unwrap();
    let [Notice::Left { at, .. }] = world.notices()[..] else {
        panic!("{:?}", world.notices())
    };
    assert!(first < at.number && at.number < second);
    assert_eq!(at.messages, 1);
    world.invite("amy", "#team", "bob").unwrap();
    world.join("bob", "#team").unwrap();
    world.driver.next_frame();
    world.delete_room("amy", "#team", false).unwrap();
    let [Notice::Left { at, reason, .. }] = world.notices()[..] else {
        panic!("{:?}", world.notices())
    };
    assert!(at.number > second);
    assert_eq!((at.messages, *reason), (2, LeftReason::Deleted));
}

#[test]
fn mark_of_a_forgotten_message_is_recorded() {
    let limits = Limits {
        rooms: RoomLimits {
            all_bytes_max: 15_000,
            ..SMALL.rooms
        },
        ..SMALL
    };
    let mut world = World::with(limits, &["amy", "bob"]);
    world.set("amy", "#a", Open, None).unwrap();
    world.set("bob", "#b", Open, None).unwrap();
    world.driver.next_frame();
    let text = "x".repeat(10_000);
    world.say("amy", "#a", &text).unwrap();
    world.say("bob", "#b", &text).unwrap();
    world.driver.check_replay();
    assert_eq!(world.history("amy", "#a").unwrap(), [""; 0]);
    world.driver.ledger = world.driver.replayed(1);
    world.driver.next_frame();
    world.say("amy", "#a", "x").unwrap();
    assert_eq!(world.unread("amy", "#a"), Some(0));
}

#[test]
fn conversation_never_goes_to_an_account() {
    let mut world = World::new(&["amy", "bob", "#=CVTZLVZJEQHWEW4X55T4YWXG26"]);
    assert_eq!(world.talk("amy", "bob"), Err(Code::Exists));
    world.delete_user("#=CVTZLVZJEQHWEW4X55T4YWXG26");
    let of = world.talk("amy", "bob").unwrap();
    world.set("amy", "#team", Open, None).unwrap();
    let driver = &mut world.driver;
    for taken in [of.as_str(), "#team"] {
        assert_eq!(driver.create(taken), Created::Exists);
        let changes = &mut driver.changes;
        let imported = driver
            .ledger
            .import_account(&name(taken), None, Sequence(0), changes);
        assert_eq!(imported, Created::Exists);
    }
}

#[test]
fn conversation_ends_with_a_user_that_left_it() {
    let mut world = World::new(&["amy", "bob"]);
    let of = world.talk("amy", "bob").unwrap();
    world.say("amy", &of, "secret").unwrap();
    world.leave("bob", &of).unwrap();
    world.driver.check_replay();
    world.driver.ledger = world.driver.replayed(1);
    world.driver.next_frame();
    world.delete_user("bob");
    assert_eq!(world.entry("amy", &of), None);
    world.create("bob");
    assert_eq!(world.talk("bob", "amy").as_ref(), Ok(&of));
    assert_eq!(world.history("amy", &of).unwrap(), [""; 0]);
    world.driver.check_replay();
}

#[test]
fn refused_device_is_not_announced() {
    let mut world = World::new(&["amy"]);
    let _attached: Vec<_> = (0..8)
        .map(|n| world.attach("amy", &format!("d{n}")).unwrap())
        .collect();
    world.driver.next_frame();
    assert!(matches!(world.attach("amy", "ninth"), Err(Code::TooMany)));
    assert!(world.notices().is_empty(), "{:?}", world.notices());
}

#[test]
fn acknowledgement_in_a_room_lapses_another_device() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#team", Open, None).unwrap();
    world.join("bob", "#team").unwrap();
    let bob = world.account("bob");
    for n in 0..7 {
        let phone = world.attach("bob", &format!("d{n}")).unwrap().device;
        let driver = &mut world.driver;
        driver.ledger.detach(&bob, phone, &mut driver.changes);
    }
    let laptop = world.attach("bob", "laptop").unwrap();
    world.idle(29 * DAY);
    let number = world.say("amy", "#team", "x").unwrap();
    let place = (
        laptop.rooms[0].ring.id(),
        Point {
            number,
            messages: 1,
        },
    );
    let driver = &mut world.driver;
    let changes = &mut driver.changes;
    driver
        .ledger
        .acknowledge_room(&bob, laptop.device, place, changes);
    world.driver.check_replay();
    world.idle(2 * DAY);
    assert!(world.attach("bob", "ninth").is_ok());
    world.driver.check_replay();
}

#[test]
fn guests_that_ended_give_way() {
    let mut world = World::new(&["amy", "bob", "eve"]);
    world.set("amy", "#plan", Invite, None).unwrap();
    for n in 0..100 {
        world.create("guest");
        assert_eq!(world.invite("amy", "#plan", "guest"), Ok(()), "{n}");
        world.delete_user("guest");
    }
    world.driver.check_replay();
    assert_eq!(world.invite("amy", "#plan", "bob"), Ok(()));
    world.driver.check_replay();
    assert!(world.join("bob", "#plan").is_ok());
    assert_eq!(world.expel("amy", "#plan", "eve"), Ok(()));
    for _ in 0..1000 {
        world.create("guest");
        world.expel("amy", "#plan", "guest").unwrap();
        world.delete_user("guest");
    }
    world.invite("amy", "#plan", "eve").unwrap();
    world.expel("amy", "#plan", "eve").unwrap();
    world.driver.check_replay();
    assert_eq!(world.join("eve", "#plan"), Err(Code::NoSuchUser));
}

#[test]
fn hundred_living_users_are_invited() {
    let guests: Vec<_> = (0..102).map(|n| format!("u{n}")).collect();
    let mut world = World::new(&["amy"]);
    guests.iter().for_each(|user| world.create(user));
    world.set("amy", "#plan", Invite, None).unwrap();
    for user in &guests[..100] {
        world.invite("amy", "#plan", user).unwrap();
    }
    assert_eq!(world.invite("amy", "#plan", "u100"), Err(Code::TooMany));
    assert_eq!(world.invite("amy", "#plan", "u5"), Ok(()), "again");
    world.join("u7", "#plan").unwrap();
    assert_eq!(world.invite("amy", "#plan", "u100"), Ok(()));
    world.driver.check_replay();
    world.wait(30 * DAY);
    assert_eq!(world.invite("amy", "#plan", "u101"), Ok(()));
    world.driver.check_replay();
}

#[test]
fn lowered_bound_of_the_time_counts_for_old_rooms() {
    let mut world = World::new(&["amy"]);
    world.set("amy", "#team", Open, Some(300 * DAY)).unwrap();
    world.set("amy", "#other", Open, None).unwrap();
    for of in ["#team", "#other"] {
        world.say("amy", of, "x").unwrap();
    }
    world.driver.next_frame();
    world.driver.ledger = world.driver.replayed_with(Limits {
        rooms: RoomLimits {
            keep_max: 16 * DAY,
            ..SMALL.rooms
        },
        ..SMALL
    });
    world.wait(17 * DAY);
    for of in ["#team", "#other"] {
        assert_eq!(world.history("amy", of).unwrap(), [""; 0], "{of}");
    }
}

#[test]
fn conversations_of_a_user_have_a_limit() {
    let others: Vec<_> = (0..1001).map(|n| format!("u{n}")).collect();
    let limits = Limits {
        accounts_max: 2000,
        ..SMALL
    };
    let mut world = World::with(limits, &["amy"]);
    others.iter().for_each(|user| world.create(user));
    let first = world.talk("u0", "amy").unwrap();
    for user in &others[1..1000] {
        world.talk(user, "amy").unwrap();
    }
    assert_eq!(world.talk("u1000", "amy"), Err(Code::TooMany));
    assert_eq!(world.talk("amy", "u1000"), Err(Code::TooMany));
    assert_eq!(world.talk("u0", "amy").as_ref(), Ok(&first), "it exists");
    world.leave("amy", &first).unwrap();
    assert!(world.talk("u1000", "amy").is_ok());
    assert_eq!(world.talk("u0", "amy"), Err(Code::TooMany));
    world.driver.next_frame();
    world.driver.ledger = world.driver.replayed(1);
    world.driver.next_frame();
    assert_eq!(world.talk("u0", "amy"), Err(Code::TooMany));
    world.delete_user("amy");
    assert_eq!(world.entry("u0", &first), None);
}

#[test]
fn user_is_pulled_in_again_a_hundred_times_a_day() {
    let mut world = World::new(&["amy", "bob"]);
    for _ in 0..100 {
        let of = world.talk("amy", "bob").unwrap();
        world.leave("bob", &of).unwrap();
    }
    assert_eq!(world.talk("amy", "bob"), Err(Code::TooMany));
    assert!(world.talk("bob", "amy").is_ok());
    world.driver.check_replay();
}

#[test]
fn rooms_and_members_are_listed_in_pages() {
    let limits = Limits {
        accounts_max: 3000,
        rooms: RoomLimits {
            members_max: 3000,
            joined_max: 1000,
            owned_max: 1000,
            ..SMALL.rooms
        },
        ..SMALL
    };
    let mut world = World::with(limits, &["amy", "bob"]);
    for n in 0..600 {
        let mode = if n % 10 == 0 { Invite } else { Open };
        world.set("amy", &format!("#{n}"), mode, None).unwrap();
    }
    world.join("bob", "#501").unwrap();
    world.talk("amy", "bob").unwrap();
    let listed = |world: &World, user: &str| {
        let rooms = all_rooms(&world.driver.ledger, &world.account(user)).into_iter();
        rooms
            .map(|entry| entry.name.to_string())
            .collect::<Vec<_>>()
    };
    let (mut own, of_bob) = (listed(&world, "amy"), listed(&world, "bob"));
    own.sort_unstable();
    own.dedup();
    assert_eq!(own.len(), 601);
    assert_eq!(of_bob[0], "#501");
    assert!(of_bob[1].starts_with("#="));
    assert_eq!(of_bob.len(), 541);
    let page = world.driver.ledger.rooms(&world.account("bob"), 0).unwrap();
    assert_eq!(page.rooms.len(), 256);
    for n in 0..1500 {
        world.create(&format!("u{n:04}"));
        world.join(&format!("u{n:04}"), "#501").unwrap();
    }
    let (amy, of) = (world.account("amy"), room("#501"));
    let page = world.driver.ledger.members(&amy, &of, 0).unwrap();
    assert_eq!(page.names.len(), 512);
    let mut members = world.members("amy", "#501").unwrap();
    members.dedup();
    assert_eq!(members.len(), 1502);
}

#[test]
fn lowered_bound_of_all_rooms_is_reached() {
    let mut world = World::new(&["amy", "bob"]);
    world.set("amy", "#large", Open, None).unwrap();
    world.set("bob", "#small", Open, None).unwrap();
    let text = "x".repeat(5_000);
    for n in 0..200 {
        world.say("amy", "#large", &text).unwrap();
        if n < 10 {
            world.say("bob", "#small", &text).unwrap();
        }
    }
    world.driver.next_frame();
    world.driver.ledger = world.driver.replayed_with(Limits {
        rooms: RoomLimits {
            all_bytes_max: 120_000,
            ..SMALL.rooms
        },
        ..SMALL
    });
    let mut held = world.history("amy", "#large").unwrap().len();
    while held > 15 {
        let before = held;
        held = world.history("amy", "#large").unwrap().len();
        assert!(held < before, "{held} messages");
    }
    assert!((10..=15).contains(&held), "{held} messages");
    assert_eq!(world.history("bob", "#small").unwrap().len(), 10);
}
