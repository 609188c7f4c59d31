//! Random commands of several users with several devices, with a model of the promise: a
//! device gets each message of a membership once and in order, except those that a gap
//! names, and a gap names exactly what the room does not have any more. Rooms, accounts and
//! devices end and begin again; the server is killed, and its appends fail. The model itself is
//! tested with planted bugs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::LeftReason;
use hark_protocol::{Code, OkFields, Reply, Request, RoomRequest};
use proptest::prelude::*;

use super::devices::{Client, Pushed, chat, room, user};
use crate::chat::Chat;
use crate::shard::kept::{Failure, KeptOpener};
use crate::shard::{RoomLimits, ShardConfig, ShardStore};

const USERS: [&str; 3] = ["amy", "bob", "cat"];
const DEVICES: [&str; 2] = ["phone", "laptop"];
const ROOMS: [&str; 2] = ["#one", "#two"];

/// A device of a user.
type Device = (usize, usize);

#[derive(Debug, Clone)]
enum Op {
    Create(usize, usize),
    Delete(usize, usize),
    Join(usize, usize),
    Leave(usize, usize),
    /// From a device, if it is attached.
    LeaveByDevice(Device, usize),
    /// Texts of a length.
    Say(usize, usize, usize),
    Attach(Device),
    Detach(Device),
    /// Reads what is there, and acknowledges it or not.
    Read(Device, bool),
    Kill,
    /// An append fails, before or after it was written.
    Fail(bool),
    /// The append of a `join` or a `leave` fails, which the client repeats.
    FailMembership(usize, usize, bool),
    /// The account ends, and begins again.
    Recreate(usize),
}

/// A bug of the server: a change of the pushes to one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plant {
    LosesMessage,
    RepeatsMessage,
    SwapsMessages,
    PushesBehindTheEnd,
    HidesRetention,
    InventsGap,
}

impl Plant {
    const ALL: [Self; 6] = [
        Self::LosesMessage,
        Self::RepeatsMessage,
        Self::SwapsMessages,
        Self::PushesBehindTheEnd,
        Self::HidesRetention,
        Self::InventsGap,
    ];

    fn tamper(self, pushes: &mut Vec<Pushed>) {
        let is_said = |push: &Pushed| matches!(push, Pushed::Said(..));
        let is_left = |push: &Pushed| matches!(push, Pushed::Left(..));
        let pair = pushes.windows(2).position(|two| two.iter().all(is_said));
        match (self, pair) {
            (Self::LosesMessage, Some(at)) => drop(pushes.remove(at)),
            (Self::RepeatsMessage, Some(at)) => pushes.insert(at, pushes[at].clone()),
            (Self::SwapsMessages, Some(at)) => pushes.swap(at, at + 1),
            (Self::InventsGap, Some(at)) => {
                let Pushed::Said(name, number, _) = pushes[at].clone() else {
                    return;
                };
                pushes[at] = Pushed::Gap(name, number, number, 1);
            }
            (Self::PushesBehindTheEnd, _) => {
                let end = pushes
                    .windows(2)
                    .position(|two| is_said(&two[0]) && is_left(&two[1]));
                if let Some(at) = end {
                    pushes.swap(at, at + 1);
                }
            }
            (Self::HidesRetention, _) => {
                pushes.retain(|push| !matches!(push, Pushed::Gap(..)));
            }
            (_, None) => {}
        }
    }
}

/// What a device is to get of a room.
#[derive(Debug, Default)]
struct Expected {
    pending: VecDeque<Item>,
    /// The highest number that the reader has processed.
    last: u64,
    /// The highest number that was pushed on the connection.
    pushed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// The message of this number.
    Message(u64),
    /// The end of a membership.
    Left(LeftReason),
    /// The end of a membership by a command of the device itself, which is not pushed.
    OwnLeave,
}

impl Expected {
    /// Takes the next item that is pushed.
    fn next(&mut self) -> Option<Item> {
        self.skip_own();
        self.pending.pop_front()
    }

    fn skip_own(&mut self) {
        while self
            .pending
            .pop_front_if(|item| *item == Item::OwnLeave)
            .is_some()
        {}
    }

    /// Removes everything up to the last end of a membership: a device that is not attached
    /// does not get it.
    fn forget_ended(&mut self) {
        let is_end = |item: &Item| !matches!(item, Item::Message(_));
        if let Some(at) = self.pending.iter().rposition(is_end) {
            self.pending.drain(..=at);
        }
    }
}

#[derive(Default)]
struct RoomModel {
    owner: usize,
    /// The member of longest standing comes first.
    members: Vec<usize>,
}

struct World {
    opener: Arc<KeptOpener>,
    chat: Arc<Chat>,
    /// A connection of each user without a device.
    controls: Vec<Client>,
    /// The connections of attached devices.
    clients: BTreeMap<Device, Client>,
    devices: BTreeSet<Device>,
    rooms: BTreeMap<usize, RoomModel>,
    texts: BTreeMap<u64, String>,
    expected: BTreeMap<(Device, usize), Expected>,
    /// The numbers of all messages to each room, of the present and former ones of the name.
    said: BTreeMap<usize, BTreeSet<u64>>,
    /// Gaps that are not compared with the room yet: the room, and the last missing number.
    gaps: Vec<(usize, u64)>,
    plant: Option<Plant>,
}

fn open(opener: &Arc<KeptOpener>) -> Arc<Chat> {
    let config = ShardConfig {
        numbers_after: Some(0),
        rooms: RoomLimits {
            room_bytes_max: 400_000,
            // So two senders make the largest room lose messages.
            all_bytes_max: 150_000,
            ..RoomLimits::DEFAULT
        },
        ..ShardConfig::DEFAULT
    };
    chat(Arc::new(
        ShardStore::open(Arc::clone(opener) as _, config).unwrap(),
    ))
}

impl World {
    async fn new() -> Self {
        let opener = Arc::<KeptOpener>::default();
        let chat = open(&opener);
        for name in USERS {
            let create = Request::Create {
                user: user(name),
                password: None,
            };
            Client::new(&chat).ok(create).await;
        }
        let mut world = Self {
            opener,
            chat,
            controls: Vec::new(),
            clients: BTreeMap::new(),
            devices: BTreeSet::new(),
            rooms: BTreeMap::new(),
            texts: BTreeMap::new(),
            expected: BTreeMap::new(),
            said: BTreeMap::new(),
            gaps: Vec::new(),
            plant: None,
        };
        world.log_in().await;
        world
    }

    async fn log_in(&mut self) {
        self.controls.clear();
        for name in USERS {
            let control = Client::login(&self.chat, name).await;
            self.controls.push(control);
        }
    }

    async fn apply(&mut self, op: Op) {
        match op {
            Op::Create(by, of) => {
                if !self.rooms.contains_key(&of) {
                    self.controls[by].create_room(ROOMS[of]).await;
                    let created = RoomModel {
                        owner: by,
                        ..RoomModel::default()
                    };
                    self.rooms.insert(of, created);
                    self.joined(by, of);
                }
            }
            Op::Delete(by, of) => self.delete(by, of).await,
            Op::Join(by, of) => {
                if self
                    .rooms
                    .get(&of)
                    .is_some_and(|room| !room.members.contains(&by))
                {
                    let join = RoomRequest::Join(room(ROOMS[of]));
                    self.controls[by].room(join).await;
                    self.joined(by, of);
                }
            }
            Op::Leave(by, of) => {
                if self.is_member(by, of) {
                    let leave = RoomRequest::Leave(room(ROOMS[of]));
                    self.controls[by].room(leave).await;
                    self.left(by, of, LeftReason::Left, None);
                    self.after_leave(of).await;
                }
            }
            Op::LeaveByDevice(device, of) => {
                if self.is_member(device.0, of)
                    && let Some(client) = self.clients.get_mut(&device)
                {
                    let leave = RoomRequest::Leave(room(ROOMS[of]));
                    client.room(leave).await;
                    self.left(device.0, of, LeftReason::Left, Some(device));
                    self.process(device);
                    self.after_leave(of).await;
                }
            }
            Op::Say(by, of, length) => self.say(by, of, length).await,
            Op::Attach(device) => self.attach(device).await,
            Op::Detach(device) => {
                if self.clients.remove(&device).is_some() {
                    self.forget_ended(device);
                }
            }
            Op::Read(device, acknowledges) => self.read(device, acknowledges).await,
            Op::Kill => self.kill().await,
            Op::Fail(is_written) => {
                let send = Request::Send {
                    user: user(USERS[0]),
                    text: "x".into(),
                };
                self.fail(0, send, is_written).await;
            }
            Op::FailMembership(by, of, is_written) => {
                self.fail_membership(by, of, is_written).await;
            }
            Op::Recreate(by) => self.recreate(by).await,
        }
    }

    fn is_member(&self, by: usize, of: usize) -> bool {
        let room = self.rooms.get(&of);
        room.is_some_and(|room| room.members.contains(&by))
    }

    /// Removes a room without members. If the owner has left, the member of longest standing
    /// succeeds.
    async fn after_leave(&mut self, of: usize) {
        let Some(room) = self.rooms.get_mut(&of) else {
            return;
        };
        match room.members.first() {
            Some(eldest) if !room.members.contains(&room.owner) => room.owner = *eldest,
            Some(_) => {}
            None => {
                self.rooms.remove(&of);
                // A new room of the name comes to devices only after the end of the old one.
                self.settle().await;
            }
        }
    }

    /// Ends an account with its memberships and devices.
    async fn recreate(&mut self, by: usize) {
        // The devices of others may not have read the rooms that end.
        self.settle().await;
        self.clients.retain(|device, _| device.0 != by);
        self.devices.retain(|device| device.0 != by);
        self.expected.retain(|(device, _), _| device.0 != by);
        let delete = Request::Delete {
            user: user(USERS[by]),
            password: None,
        };
        self.controls[by].ok(delete).await;
        let create = Request::Create {
            user: user(USERS[by]),
            password: None,
        };
        Client::new(&self.chat).ok(create).await;
        self.controls[by] = Client::login(&self.chat, USERS[by]).await;
        for of in 0..ROOMS.len() {
            if self.is_member(by, of) {
                let members = &mut self.rooms.get_mut(&of).unwrap().members;
                members.retain(|member| *member != by);
                self.after_leave(of).await;
            }
        }
    }

    async fn fail_membership(&mut self, by: usize, of: usize, is_written: bool) {
        let Some(members) = self.rooms.get(&of).map(|room| &room.members) else {
            return;
        };
        if members.contains(&by) {
            let leave = Request::Room(RoomRequest::Leave(room(ROOMS[of])));
            self.left(by, of, LeftReason::Left, None);
            self.fail(by, leave, is_written).await;
            self.after_leave(of).await;
        } else {
            let join = Request::Room(RoomRequest::Join(room(ROOMS[of])));
            self.joined(by, of);
            self.fail(by, join, is_written).await;
        }
    }

    async fn delete(&mut self, by: usize, of: usize) {
        if self.rooms.get(&of).is_none_or(|room| room.owner != by) {
            return;
        }
        // The messages of those that have left end with the room, too.
        self.settle().await;
        let delete = Request::Delete {
            user: user(ROOMS[of]),
            password: None,
        };
        self.controls[by].ok(delete).await;
        let members = self.rooms[&of].members.clone();
        for member in members {
            self.left(member, of, LeftReason::Deleted, None);
        }
        self.rooms.remove(&of);
        // A new room of the name comes to devices only after the end of the old one.
        self.settle().await;
    }

    fn joined(&mut self, by: usize, of: usize) {
        self.rooms.get_mut(&of).unwrap().members.push(by);
    }

    fn left(&mut self, by: usize, of: usize, reason: LeftReason, own: Option<Device>) {
        let members = &mut self.rooms.get_mut(&of).unwrap().members;
        members.retain(|member| *member != by);
        for device in self.devices.iter().filter(|device| device.0 == by) {
            let expected = self.expected.entry((*device, of)).or_default();
            expected.pending.push_back(match own {
                Some(own) if own == *device => Item::OwnLeave,
                _ => Item::Left(reason),
            });
            if !self.clients.contains_key(device) {
                expected.forget_ended();
            }
        }
    }

    async fn say(&mut self, by: usize, of: usize, length: usize) {
        if self
            .rooms
            .get(&of)
            .is_none_or(|room| !room.members.contains(&by))
        {
            return;
        }
        let text = "x".repeat(length);
        let send = Request::Send {
            user: user(ROOMS[of]),
            text: text.clone().into(),
        };
        // Refused if the sender has a quarter of the room.
        let Reply::Ok(OkFields::Stored(number)) = self.controls[by].request(send).await else {
            return;
        };
        self.texts.insert(number.0, text);
        self.said.entry(of).or_default().insert(number.0);
        let members = &self.rooms[&of].members;
        for device in self.devices.iter().filter(|d| members.contains(&d.0)) {
            let expected = self.expected.entry((*device, of)).or_default();
            expected.pending.push_back(Item::Message(number.0));
        }
    }

    async fn attach(&mut self, device: Device) {
        if let Some(mut former) = self.clients.remove(&device) {
            former.take_ready().await;
            self.note(device, std::mem::take(&mut former.pushes));
            self.forget_ended(device);
        }
        let client = Client::attach(&self.chat, USERS[device.0], DEVICES[device.1]).await;
        self.clients.insert(device, client);
        self.devices.insert(device);
        for of in 0..ROOMS.len() {
            self.expected.entry((device, of)).or_default().pushed = 0;
        }
        self.process(device);
    }

    fn forget_ended(&mut self, device: Device) {
        for ((of, _), expected) in &mut self.expected {
            if *of == device {
                expected.forget_ended();
            }
        }
    }

    async fn read(&mut self, device: Device, acknowledges: bool) {
        let Some(client) = self.clients.get_mut(&device) else {
            return;
        };
        client.take_ready().await;
        self.process(device);
        if acknowledges {
            self.acknowledge(device);
        }
        self.check_gaps().await;
    }

    /// Checks that no room has a message that a gap has named as missing.
    async fn check_gaps(&mut self) {
        for (of, to) in std::mem::take(&mut self.gaps) {
            let Some(owner) = self.rooms.get(&of).map(|room| room.owner) else {
                continue;
            };
            // A member that joins again learns what the room has.
            let join = RoomRequest::Join(room(ROOMS[of]));
            let OkFields::Joined(_, held) = self.controls[owner].room(join).await else {
                panic!("no answer to a join");
            };
            let at = (held as usize).checked_sub(1);
            let oldest = at.and_then(|at| self.said[&of].iter().nth_back(at));
            assert!(oldest.is_none_or(|oldest| to < *oldest), "a false gap");
        }
    }

    fn acknowledge(&mut self, device: Device) {
        for (of, name) in ROOMS.iter().enumerate() {
            let last = self.expected.get(&(device, of)).map_or(0, |e| e.last);
            if last > 0
                && let Some(client) = self.clients.get_mut(&device)
            {
                client.ack(name, last);
            }
        }
    }

    fn process(&mut self, device: Device) {
        if let Some(client) = self.clients.get_mut(&device) {
            let pushes = std::mem::take(&mut client.pushes);
            self.note(device, pushes);
        }
    }

    fn note(&mut self, device: Device, mut pushes: Vec<Pushed>) {
        if let Some(plant) = self.plant {
            plant.tamper(&mut pushes);
        }
        for push in pushes {
            match push {
                Pushed::Said(name, number, text) => {
                    let expected = self.of(device, &name);
                    assert!(number > expected.pushed, "{name}: repeated");
                    expected.pushed = number;
                    // A repeat after the connection was lost.
                    if number > expected.last {
                        assert_eq!(expected.next(), Some(Item::Message(number)), "{name}");
                        expected.last = number;
                        assert_eq!(self.texts.get(&number), Some(&text));
                    }
                }
                Pushed::Gap(name, from, to, count) => {
                    let of = ROOMS.iter().position(|room| *room == name).unwrap();
                    let said = self.said.get(&of).into_iter().flatten();
                    let missing = said.filter(|number| (from..=to).contains(number));
                    assert_eq!(missing.count() as u64, count, "{name}");
                    self.gaps.push((of, to));
                    let expected = self.of(device, &name);
                    assert!(to > expected.pushed, "{name}: repeated");
                    expected.pushed = to;
                    let is_missing = |item: &Item| match item {
                        Item::Message(number) => (from..=to).contains(number),
                        _ => false,
                    };
                    expected.pending.retain(|item| !is_missing(item));
                    expected.last = expected.last.max(to);
                }
                Pushed::Left(name, reason) => {
                    let expected = self.of(device, &name);
                    if reason == LeftReason::Deleted {
                        // Its messages have ended with the room.
                        expected
                            .pending
                            .retain(|item| !matches!(item, Item::Message(_)));
                    }
                    assert_eq!(expected.next(), Some(Item::Left(reason)), "{name}");
                }
                Pushed::Joined(_)
                | Pushed::Device(_)
                | Pushed::Message(..)
                | Pushed::Bye
                | Pushed::Closed => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn of(&mut self, device: Device, name: &str) -> &mut Expected {
        let of = ROOMS.iter().position(|room| *room == name).unwrap();
        self.expected.entry((device, of)).or_default()
    }

    async fn kill(&mut self) {
        let devices: Vec<_> = self.clients.keys().copied().collect();
        self.clients.clear();
        self.controls.clear();
        devices.iter().for_each(|device| self.forget_ended(*device));
        // The store ends with its last handle, and waits for its commit.
        self.chat = open(&Arc::default());
        self.chat = open(&self.opener);
        self.log_in().await;
        for device in devices {
            self.attach(device).await;
        }
    }

    /// Lets the append of a request fail, and repeats it. Devices with rooms are disconnected,
    /// because notices may be lost with it.
    async fn fail(&mut self, by: usize, request: Request, is_written: bool) {
        let failure = if is_written {
            Failure::After
        } else {
            Failure::Before
        };
        let mut client = Client::login(&self.chat, USERS[by]).await;
        self.opener.kept.fail_next(failure);
        loop {
            match client.request(request.clone()).await {
                Reply::Ok(_) => break,
                // The room ended with its last member.
                Reply::NotOk(refusal) => break assert_eq!(refusal.code, Code::NoSuchUser),
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        }
        let devices: Vec<_> = self.clients.keys().copied().collect();
        for device in devices {
            self.clients.remove(&device);
            self.forget_ended(device);
            self.attach(device).await;
        }
    }

    /// Reads until each attached device has everything.
    async fn settle(&mut self) {
        let devices: Vec<_> = self.clients.keys().copied().collect();
        for device in devices {
            loop {
                self.process(device);
                self.acknowledge(device);
                self.clients.get_mut(&device).unwrap().take_ready().await;
                self.process(device);
                let mut is_waiting = false;
                for ((of, _), expected) in &mut self.expected {
                    if *of == device {
                        expected.skip_own();
                        is_waiting |= !expected.pending.is_empty();
                    }
                }
                if !is_waiting {
                    break;
                }
                let client = self.clients.get_mut(&device).unwrap();
                assert_eq!(client.next().await, None);
            }
        }
        self.check_gaps().await;
    }
}

fn op() -> impl Strategy<Value = Op> {
    let (by, of) = (0..USERS.len(), 0..ROOMS.len());
    let device = (0..USERS.len(), 0..DEVICES.len());
    let length = prop_oneof![4 => 0_usize..100, 1 => 5_000_usize..30_000];
    prop_oneof![
        2 => (by.clone(), of.clone()).prop_map(|(by, of)| Op::Create(by, of)),
        1 => (by.clone(), of.clone()).prop_map(|(by, of)| Op::Delete(by, of)),
        4 => (by.clone(), of.clone()).prop_map(|(by, of)| Op::Join(by, of)),
        2 => (by.clone(), of.clone()).prop_map(|(by, of)| Op::Leave(by, of)),
        1 => (device.clone(), of.clone()).prop_map(|(device, of)| Op::LeaveByDevice(device, of)),
        12 => (by, of, length).prop_map(|(by, of, length)| Op::Say(by, of, length)),
        4 => device.clone().prop_map(Op::Attach),
        2 => device.clone().prop_map(Op::Detach),
        6 => (device, any::<bool>()).prop_map(|(device, acks)| Op::Read(device, acks)),
        1 => Just(Op::Kill),
        1 => any::<bool>().prop_map(Op::Fail),
        1 => (0..USERS.len(), 0..ROOMS.len(), any::<bool>())
            .prop_map(|(by, of, is_written)| Op::FailMembership(by, of, is_written)),
        1 => (0..USERS.len()).prop_map(Op::Recreate),
    ]
}

/// Runs operations in a world.
fn run(plant: Option<Plant>, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new().await;
        world.plant = plant;
        for op in ops {
            world.apply(op).await;
        }
        world.settle().await;
    });
}

/// Returns operations in which each planted bug shows.
fn scenario() -> Vec<Op> {
    let (one, other) = ((1, 0), (2, 0));
    let mut ops = vec![Op::Create(0, 0), Op::Attach(one), Op::Attach(other)];
    ops.extend([Op::Join(1, 0), Op::Join(2, 0)]);
    ops.extend((0..5).map(|_| Op::Say(0, 0, 3)));
    ops.extend([Op::Read(one, true), Op::Leave(2, 0), Op::Read(other, true)]);
    ops.push(Op::Detach(one));
    ops.extend((0..9).flat_map(|_| [Op::Say(0, 0, 10_000), Op::Say(1, 0, 10_000)]));
    ops.extend([Op::Attach(one), Op::Read(one, true)]);
    ops
}

#[test]
fn planted_bugs_are_found() {
    run(None, scenario());
    for plant in Plant::ALL {
        // A bug shows if the pushes that it needs come at once.
        let is_found = || std::panic::catch_unwind(|| run(Some(plant), scenario())).is_err();
        assert!((0..20).any(|_| is_found()), "{plant:?}");
    }
}

/// The server is killed, and its appends fail, between all commands of a scenario.
#[test]
fn faults_between_all_commands_lose_nothing() {
    let base = [
        Op::Create(0, 0),
        Op::Join(1, 0),
        Op::Attach((1, 0)),
        Op::Say(0, 0, 10),
        Op::Leave(0, 0),
        Op::Say(1, 0, 10),
        Op::Delete(1, 0),
        Op::Create(1, 0),
        Op::Attach((0, 1)),
        Op::Join(0, 0),
        Op::Say(1, 0, 10),
        Op::Recreate(1),
        Op::Say(0, 0, 10),
        Op::Leave(0, 0),
    ];
    for at in 0..base.len() {
        let is_written = at % 2 == 0;
        for fault in [
            Op::Fail(is_written),
            Op::FailMembership(1, 0, !is_written),
            Op::Kill,
        ] {
            let mut ops = base.to_vec();
            ops.insert(at, fault);
            run(None, ops);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn devices_get_each_message_of_a_membership_once(
        ops in prop::collection::vec(op(), 10..120),
    ) {
        run(None, ops);
    }
}
