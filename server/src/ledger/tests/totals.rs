//! The running totals agree with a count of everything after any sequence of operations.

use std::time::Duration;

use hark_protocol::message::RoomMode;
use proptest::prelude::*;

use super::super::totals::Totals;
use super::rooms::World;
use super::{LIMITS, Limits, name};
use crate::store::{NAMELESS, Position};

const USERS: [&str; 3] = ["amy", "bob", "cid"];
const ROOMS: [&str; 2] = ["#one", "#two"];
const DEVICES: [&str; 2] = ["phone", "tablet"];

const ROOMY: Limits = Limits {
    accounts_max: 3,
    queued_messages_max: 1000,
    queued_bytes_max: 1 << 20,
    ..LIMITS
};

/// Returns queued messages and bytes, members, devices, and the inboxes with messages.
fn counted(world: &World) -> [u64; 5] {
    let ledger = &world.driver.ledger;
    let mut counted = [0, 0, ledger.rooms.member_count(), 0, 0];
    for (_, inbox) in ledger.inboxes.iter_from(0) {
        let (head, tail) = (inbox.log.head, inbox.log.tail);
        counted[0] += inbox.log.messages();
        counted[1] += tail.bytes - head.bytes;
        counted[3] += inbox.devices.count();
        counted[4] += u64::from(inbox.log.messages() > 0);
    }
    counted
}

fn totals(totals: &Totals) -> [u64; 5] {
    [
        totals.queued_messages,
        totals.queued_bytes,
        totals.members,
        totals.devices,
        totals.unread_inboxes(),
    ]
}

/// Applies an operation, whose refusal is of no interest.
fn apply(world: &mut World, (operation, user, other): (u8, usize, usize)) {
    let (user, of) = (USERS[user], ROOMS[other % 2]);
    let exists = world.driver.account(user).is_some();
    match operation {
        0 if exists => world.delete_user(user),
        0 => world.create(user),
        _ if !exists => {}
        1 => drop(world.set(user, of, RoomMode::Open, None)),
        2 => drop(world.join(user, of)),
        3 => drop(world.leave(user, of)),
        4 => drop(world.delete_room(user, of, false)),
        5 => drop(world.attach(user, DEVICES[other % 2])),
        6 => {
            let account = world.account(user);
            let driver = &mut world.driver;
            drop(driver.ledger.subscribe(&account, &mut driver.changes));
        }
        7 => {
            let (account, driver) = (world.account(user), &mut world.driver);
            let device = (other < 2).then(|| DEVICES[other % 2].parse().unwrap());
            let changes = &mut driver.changes;
            let forgotten = driver
                .ledger
                .forget_device(&account, device.as_ref(), changes);
            forgotten.unwrap();
        }
        8 => {
            let driver = &mut world.driver;
            driver.context.running += Duration::from_secs(10);
            driver.next_frame();
        }
        9 => {
            let (account, driver) = (world.account(user), &mut world.driver);
            let ids: Vec<_> = driver.ledger.inboxes.get(&name(user)).into_iter().collect();
            let mut ids: Vec<_> = ids.iter().flat_map(|inbox| inbox.devices.ids()).collect();
            ids.push(NAMELESS);
            let messages = driver.messages(&account);
            let at = messages.get(messages.len() / (other + 1));
            let position = at.map_or(Position::default(), |message| message.position);
            let changes = &mut driver.changes;
            let id = ids[other % ids.len()];
            driver.ledger.acknowledge(&account, id, position, changes);
        }
        _ => drop(world.say(user, USERS[other], &"x".repeat(other + 1))),
    }
}

proptest! {
    #[test]
    fn totals_follow_every_operation(
        operations in prop::collection::vec((0..16_u8, 0..3_usize, 0..3_usize), 1..120)
    ) {
        let mut world = World::with(ROOMY, &USERS);
        for operation in operations {
            apply(&mut world, operation);
            prop_assert_eq!(totals(&world.driver.changes.totals), counted(&world));
        }
        let driver = &mut world.driver;
        driver.next_frame();
        let recounted = driver.ledger.count(driver.context.running);
        prop_assert_eq!(totals(&recounted), totals(&driver.changes.totals));
    }
}

#[test]
fn oldest_unread_message_ages_until_it_is_acknowledged() {
    let mut world = World::with(ROOMY, &USERS);
    let age = |world: &World| {
        let driver = &world.driver;
        driver
            .changes
            .totals
            .oldest_unread(driver.context.running)
            .as_secs()
    };
    let wait = |world: &mut World| {
        world.driver.context.running += Duration::from_secs(60);
        world.driver.next_frame();
    };
    assert_eq!(age(&world), 0);
    world.say("amy", "bob", "x").unwrap();
    wait(&mut world);
    world.say("amy", "bob", "y").unwrap();
    world.say("amy", "cid", "z").unwrap();
    wait(&mut world);
    assert_eq!(age(&world), 120);
    let bob = world.account("bob");
    let first = world.driver.messages(&bob)[0].position;
    let driver = &mut world.driver;
    driver
        .ledger
        .acknowledge(&bob, NAMELESS, first, &mut driver.changes);
    assert_eq!(age(&world), 60);
    world.delete_user("bob");
    assert_eq!(age(&world), 60, "of cid");
    world.delete_user("cid");
    assert_eq!(age(&world), 0);
}
