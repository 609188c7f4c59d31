//! The bytes of rooms and devices on disk.

use hark_protocol::message::RoomMode::Open;

use super::rooms::World;
use super::{Changes, Checkpoint, LIMITS, Limits};
use crate::ledger::RoomLimits;

const USERS: usize = 200;

fn user(n: usize) -> String {
    format!("u{n:03}")
}

/// Returns a world with a room of one member.
fn world() -> World {
    let limits = Limits {
        accounts_max: 2 * USERS,
        rooms: RoomLimits::DEFAULT,
        ..LIMITS
    };
    let mut world = World::with(limits, &["amy"]);
    (0..USERS).for_each(|n| world.create(&user(n)));
    world.set("amy", "#team", Open, None).unwrap();
    world.driver.next_frame();
    world
}

/// Returns the bytes of the records of a checkpoint.
fn state_bytes(world: &World) -> usize {
    let mut changes = Changes::default();
    let frame = Checkpoint::default().next_piece_of(usize::MAX, &world.driver.ledger, &mut changes);
    frame.records.len()
}

/// Returns the bytes that a change adds to the state for each user.
fn growth(world: &mut World, change: impl Fn(&mut World, &str)) -> usize {
    let before = state_bytes(world);
    (0..USERS).for_each(|n| change(world, &user(n)));
    world.driver.next_frame();
    (state_bytes(world) - before) / USERS
}

/// Returns the bytes of the frame of one message, with its block.
fn message_bytes(world: &mut World) -> usize {
    world.driver.next_frame();
    world.say("amy", "#team", "hello").unwrap();
    world.driver.next_frame();
    let frame = world.driver.frames.last().unwrap();
    let blocks = frame.blocks.iter().map(|block| block.payload.len());
    frame.records.len() + blocks.sum::<usize>()
}

#[test]
fn memberships_and_devices_take_few_bytes() {
    let mut world = world();
    let alone = message_bytes(&mut world);
    let membership = growth(&mut world, |world, user| {
        world.join(user, "#team").unwrap();
    });
    assert!(membership <= 48, "{membership} bytes of a membership");
    let device = growth(&mut world, |world, user| {
        world.attach(user, "phone").unwrap();
    });
    assert!(
        device <= 80 + 16,
        "{device} bytes of a device with a cursor"
    );
    let together = message_bytes(&mut world);
    // Larger numbers take some more bytes.
    assert!(
        together <= alone + 8,
        "nothing is stored for each member: {together} bytes instead of {alone}"
    );
    let before = state_bytes(&world);
    world.say("amy", "#team", "again").unwrap();
    world.driver.next_frame();
    let lagging = state_bytes(&world) - before;
    assert!(lagging <= 16 * USERS, "{lagging} bytes of lagging devices");
}
