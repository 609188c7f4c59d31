//! Random commands of several users with several devices, with a model of the promise: a
//! device gets each message of a membership once and in order, except those that a gap
//! names. The server is killed in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::LeftReason;
use hark_protocol::{OkFields, Reply, Request, RoomRequest};
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
}

/// What a device is to get of a room.
#[derive(Debug, Default)]
struct Expected {
    pending: VecDeque<Item>,
    /// The highest number that the reader has processed.
    last: u64,
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
    members: BTreeSet<usize>,
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
}

fn open(opener: &Arc<KeptOpener>) -> Arc<Chat> {
    let config = ShardConfig {
        numbers_after: Some(0),
        rooms: RoomLimits {
            room_bytes_max: 400_000,
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
                if self.may_leave(by, of) {
                    let leave = RoomRequest::Leave(room(ROOMS[of]));
                    self.controls[by].room(leave).await;
                    self.left(by, of, LeftReason::Left, None);
                }
            }
            Op::LeaveByDevice(device, of) => {
                if self.may_leave(device.0, of)
                    && let Some(client) = self.clients.get_mut(&device)
                {
                    let leave = RoomRequest::Leave(room(ROOMS[of]));
                    client.room(leave).await;
                    self.left(device.0, of, LeftReason::Left, Some(device));
                    self.process(device);
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
            Op::Fail(is_written) => self.fail(is_written).await,
        }
    }

    /// The owner stays, so that the model need not follow successions.
    fn may_leave(&self, by: usize, of: usize) -> bool {
        let room = self.rooms.get(&of);
        room.is_some_and(|room| room.owner != by && room.members.contains(&by))
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
        self.rooms.get_mut(&of).unwrap().members.insert(by);
    }

    fn left(&mut self, by: usize, of: usize, reason: LeftReason, own: Option<Device>) {
        self.rooms.get_mut(&of).unwrap().members.remove(&by);
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

    fn note(&mut self, device: Device, pushes: Vec<Pushed>) {
        for push in pushes {
            match push {
                Pushed::Said(name, number, text) => {
                    let expected = self.of(device, &name);
                    // A repeat after the connection was lost.
                    if number > expected.last {
                        assert_eq!(expected.next(), Some(Item::Message(number)), "{name}");
                        expected.last = number;
                        assert_eq!(self.texts.get(&number), Some(&text));
                    }
                }
                Pushed::Gap(name, from, to, count) => {
                    let expected = self.of(device, &name);
                    let is_missing = |item: &Item| match item {
                        Item::Message(number) => (from..=to).contains(number),
                        _ => false,
                    };
                    let missing = expected.pending.iter().filter(|item| is_missing(item));
                    // The reader has processed others without acknowledging them.
                    assert!(missing.count() as u64 <= count, "{name}");
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

    /// Lets the append of a message to an inbox fail. Devices with rooms are disconnected,
    /// because notices may be lost with it.
    async fn fail(&mut self, is_written: bool) {
        let failure = if is_written {
            Failure::After
        } else {
            Failure::Before
        };
        self.opener.kept.fail_next(failure);
        let mut sender = Client::new(&self.chat);
        let send = || Request::Send {
            user: user(USERS[0]),
            text: "x".into(),
        };
        while !matches!(sender.request(send()).await, Reply::Ok(_)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
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
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn devices_get_each_message_of_a_membership_once(
        ops in prop::collection::vec(op(), 10..120),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for op in ops {
                world.apply(op).await;
            }
            world.settle().await;
        });
    }
}
