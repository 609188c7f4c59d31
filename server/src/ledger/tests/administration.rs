//! The rules of administrators, and of the limits on space and time.

use std::time::Duration;

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, DeviceName, RoomName};

use super::{Append, Driver, LIMITS, Limits, name, text};
use crate::ledger::{Expiry, PartlyExpired, SpaceLimits, SpaceUse};
use crate::store::{Account, NAMELESS, Position, Purged, RoomCommand, UserLimits};

const HOUR: Duration = Duration::from_secs(3600);

const ROOMY: Limits = Limits {
    queued_messages_max: 1000,
    queued_bytes_max: 1 << 20,
    ..LIMITS
};

fn with_account(limits: Limits, user: &str) -> (Driver, Account) {
    let mut driver = Driver::with(limits);
    driver.create(user);
    let account = driver.account(user).unwrap();
    (driver, account)
}

fn send(driver: &mut Driver, to: &str, count: usize) {
    for _ in 0..count {
        driver.check_send(text(to, "x"), Ok(()));
    }
    driver.next_frame();
}

fn head(driver: &Driver, of: &str) -> u64 {
    let mut inboxes = driver.ledger.inboxes();
    let found = inboxes.find(|(entry, ..)| entry.account.name == name(of));
    found.unwrap().1.messages
}

fn purge(driver: &mut Driver, log: u64, through: Position) -> Purged {
    driver.ledger.purge(log, through, &mut driver.changes)
}

#[test]
fn purge_leaves_a_gap_to_each_device() {
    let (mut driver, bob) = with_account(ROOMY, "bob");
    let phone: DeviceName = "phone".parse().unwrap();
    let changes = &mut driver.changes;
    let attached = driver.ledger.attach(&bob, &phone, changes).unwrap();
    drop(driver.ledger.subscribe(&bob, &mut driver.changes));
    send(&mut driver, "bob", 5);
    let third = driver.messages(&bob)[2].position;
    let purged = purge(&mut driver, bob.incarnation, third);
    let expected = Purged {
        messages: 3,
        bytes: 3,
        is_silent_for_connect: true,
    };
    assert_eq!(purged, expected);
    assert_eq!(driver.changes.effects.purged_inboxes.len(), 1);
    assert!(driver.changes.effects.is_awaited);
    assert_eq!(head(&driver, "bob"), 3);
    driver.next_frame();
    let again = purge(&mut driver, bob.incarnation, third);
    assert_eq!(again, Purged::default(), "there is nothing left");
    drop(attached);
    driver.check_replay();
    let mut replayed = driver.replayed(1);
    let changes = &mut driver.changes;
    let attached = replayed.attach(&bob, &phone, changes).unwrap();
    assert_eq!(attached.inbox.cursor(), Position::default());
    let connected = replayed.subscribe(&bob, changes).unwrap();
    assert_eq!(connected.cursor(), third);
}

#[test]
fn purged_messages_do_not_come_back() {
    let (mut driver, bob) = with_account(ROOMY, "bob");
    send(&mut driver, "bob", 3);
    let last = driver.messages(&bob)[2].position;
    // A position beyond the end is the end.
    let beyond = Position {
        sequence: hark_protocol::Sequence(u64::MAX),
        ..last
    };
    assert_eq!(purge(&mut driver, bob.incarnation, beyond).messages, 3);
    assert_eq!(purge(&mut driver, 7, last), Purged::default());
    send(&mut driver, "bob", 1);
    assert_eq!(head(&driver, "bob"), 3);
    driver.check_replay();
}

#[test]
fn limits_of_one_user_replace_those_of_all() {
    let (mut driver, bob) = with_account(LIMITS, "bob");
    let set = |driver: &mut Driver, limits, is_reset| {
        let (ledger, changes) = (&mut driver.ledger, &mut driver.changes);
        ledger.set_limits(&bob, limits, is_reset, changes)
    };
    let one = UserLimits {
        queued_messages: Some(1),
        ..UserLimits::default()
    };
    let slow = UserLimits {
        commands: Some(5),
        ..UserLimits::default()
    };
    assert_eq!(set(&mut driver, one, false), Some(one));
    let both = slow.or(one);
    assert_eq!(set(&mut driver, slow, false), Some(both));
    assert_eq!(driver.changes.effects.accounts.len(), 3);
    driver.check_send(text("bob", "x"), Ok(()));
    driver.check_send(text("bob", "x"), Err(Code::QueueFull));
    driver.check_replay();
    let entry = driver.ledger.account(&bob.name).unwrap();
    assert_eq!(entry.limits.as_deref(), Some(&both));
    assert_eq!(
        set(&mut driver, UserLimits::default(), true),
        Some(UserLimits::default())
    );
    driver.check_send(text("bob", "x"), Ok(()));
    driver.check_replay();
    assert!(driver.ledger.delete(&bob, &mut driver.changes));
    assert_eq!(set(&mut driver, one, false), None);
}

#[test]
fn limit_on_space_refuses_sends_alone() {
    let limits = Limits {
        space: SpaceLimits {
            store_bytes_max: Some(1600),
            free_bytes_min: None,
        },
        ..ROOMY
    };
    let (mut driver, bob) = with_account(limits, "bob");
    send(&mut driver, "bob", 1);
    let set_used = |driver: &mut Driver, used_bytes| {
        driver.context.space = SpaceUse {
            used_bytes,
            free_bytes: None,
        };
        driver.next_frame();
    };
    set_used(&mut driver, 1601);
    driver.check_send(text("bob", "x"), Err(Code::NoSpace));
    let first = driver.messages(&bob)[0].position;
    let (ledger, changes) = (&mut driver.ledger, &mut driver.changes);
    ledger.acknowledge(&bob, NAMELESS, first, changes);
    assert_eq!(head(&driver, "bob"), 1);
    set_used(&mut driver, 1550);
    driver.check_send(text("bob", "x"), Err(Code::NoSpace));
    set_used(&mut driver, 1500);
    driver.check_send(text("bob", "x"), Ok(()));
}

/// Lets time pass, in steps of an hour.
fn wait(driver: &mut Driver, hours: u32) {
    for _ in 0..hours {
        driver.context.running += HOUR;
        driver.next_frame();
    }
}

#[test]
fn old_messages_expire() {
    let limits = Limits {
        expiry: Expiry {
            messages_after: Some(16 * HOUR),
            accounts_after: None,
        },
        ..ROOMY
    };
    let (mut driver, bob) = with_account(limits, "bob");
    driver.create("amy");
    send(&mut driver, "bob", 2);
    send(&mut driver, "amy", 2);
    wait(&mut driver, 10);
    send(&mut driver, "bob", 1);
    wait(&mut driver, 6);
    assert_eq!(head(&driver, "amy"), 0, "not yet");
    driver.context.running += HOUR;
    driver.end_frame();
    driver.ledger.begin(driver.context, &mut driver.changes);
    assert_eq!(head(&driver, "amy"), 2);
    assert_eq!(head(&driver, "bob"), 0, "a part of it");
    let partly = driver.changes.effects.partly_expired.clone();
    let [PartlyExpired { log, through }] = partly[..] else {
        panic!("{partly:?}");
    };
    let second = driver.messages(&bob)[1].position;
    assert_eq!(log.room, bob.incarnation);
    assert!(through >= second.sequence.0);
    assert_eq!(purge(&mut driver, log.room, second).messages, 2);
    driver.check_replay();
    wait(&mut driver, 10);
    assert_eq!(head(&driver, "bob"), 3);
    driver.check_replay();
}

#[test]
fn idle_accounts_end() {
    let limits = Limits {
        accounts_max: 10,
        expiry: Expiry {
            messages_after: None,
            accounts_after: Some(32 * HOUR),
        },
        ..ROOMY
    };
    let (mut driver, bob) = with_account(limits, "bob");
    for user in ["idle", "sender", "receiver", "suspended"] {
        driver.create(user);
    }
    let [sender, receiver, suspended] =
        ["sender", "receiver", "suspended"].map(|user| driver.account(user).unwrap());
    let attached = driver.ledger.subscribe(&receiver, &mut driver.changes);
    let changes = &mut driver.changes;
    assert!(driver.ledger.set_suspended(&suspended, true, changes));
    driver.next_frame();
    for _ in 0..8 {
        wait(&mut driver, 4);
        let append = Append {
            sender: Some(sender.clone()),
            ..text("bob", "x")
        };
        driver.check_send(append, Ok(()));
        driver.check_replay();
    }
    let noted = driver.account("bob").inspect(|bob| {
        driver.ledger.note_use(bob, &mut driver.changes);
    });
    assert_eq!(noted, Some(bob));
    wait(&mut driver, 4);
    assert_eq!(driver.account("idle"), None);
    for user in ["bob", "sender", "receiver", "suspended"] {
        assert!(driver.account(user).is_some(), "{user}");
    }
    drop(attached);
    wait(&mut driver, 40);
    for (user, is_there) in [("bob", false), ("receiver", false), ("suspended", true)] {
        assert_eq!(driver.account(user).is_some(), is_there, "{user}");
    }
    driver.check_replay();
}

#[test]
fn purge_of_a_room_moves_its_head() {
    let (mut driver, amy) = with_account(ROOMY, "amy");
    let team: RoomName = "#team".parse().unwrap();
    let set = RoomCommand::Set {
        room: team.clone(),
        mode: RoomMode::Open,
        keep: None,
    };
    let changes = &mut driver.changes;
    driver.ledger.command(&amy, None, set, changes).unwrap();
    for _ in 0..3 {
        let append = Append {
            sender: Some(amy.clone()),
            ..text("#team", "x")
        };
        driver.check_send(append, Ok(()));
    }
    driver.next_frame();
    let history = driver.ledger.messages(&name("#team")).unwrap();
    let second = driver.messages_of(history.room)[1].position;
    assert_eq!(purge(&mut driver, history.room, second).messages, 2);
    let info = driver.ledger.room_info(&team).unwrap();
    assert_eq!((info.messages, info.removed), (1, second.sequence));
    assert_eq!(info.owners, std::slice::from_ref(&amy.name));
    driver.check_replay();
    assert_eq!(purge(&mut driver, history.room, history.last).messages, 1);
    let list = driver.ledger.list_rooms(0, 1);
    assert_eq!((list.rooms.len(), list.next), (1, None));
    assert_eq!(list.rooms[0].bytes, 0);
    driver.check_replay();
}
