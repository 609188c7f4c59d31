//! A model of the devices of a user, and the property that the ledger agrees with it after
//! any sequence of attachments, acknowledgements, waits, checkpoints and crashes.
//!
//! The model counts messages: a device has acknowledged so many of all that were sent.

use std::time::Duration;

use hark_protocol::{Code, DeviceName};
use proptest::prelude::*;

use super::super::Changes;
use super::{Driver, LIMITS, name, text};
use crate::store::{Account, DeviceId, NAMELESS, Outcome, Position, Subscription};

const DAY: Duration = Duration::from_secs(24 * 3600);
const NAMES: [Option<&str>; 4] = [None, Some("phone"), Some("laptop"), Some("tablet")];

#[derive(Debug, Clone)]
struct ModelDevice {
    of: usize,
    id: DeviceId,
    acknowledged: usize,
    /// The time of its last acknowledgement.
    active: Duration,
    /// The end of its attachment, unless it is attached.
    detached: Option<Duration>,
    has_lapsed: bool,
}

#[derive(Debug, Clone, Default)]
struct Model {
    /// In the order of their creation.
    devices: Vec<ModelDevice>,
    sent: usize,
    /// Messages that are deleted.
    deleted: usize,
    /// The nameless device was never beside another one: it does not know when it was
    /// detached.
    is_plain: bool,
}

impl Model {
    fn find(&mut self, of: usize) -> Option<&mut ModelDevice> {
        self.devices.iter_mut().find(|device| device.of == of)
    }

    /// Deletes what every device that has not lapsed has acknowledged.
    fn delete(&mut self) {
        let holding = self.devices.iter().filter(|device| !device.has_lapsed);
        let least = holding.map(|device| device.acknowledged).min();
        self.deleted = self.deleted.max(least.unwrap_or(0));
    }

    /// Returns the index of the device that was attached last.
    fn last(&self) -> Option<usize> {
        let until = |n: &usize| self.devices[*n].detached.unwrap_or(Duration::MAX);
        (0..self.devices.len()).max_by_key(until)
    }

    fn lapse_absent(&mut self, now: Duration) {
        let last = self.last();
        for n in 0..self.devices.len() {
            let Some(detached) = self.devices[n].detached else {
                continue;
            };
            let others = self
                .devices
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != n);
            let is_overtaken = others.into_iter().any(|(_, other)| other.active > detached);
            if Some(n) != last && is_overtaken && now - detached >= 30 * DAY {
                self.devices[n].has_lapsed = true;
            }
        }
    }

    /// Returns whether there is room for a message, for which devices may lapse.
    fn has_room(&mut self) -> bool {
        let max = LIMITS.queued_messages_max as usize;
        while self.sent - self.deleted >= max {
            let deleted = self.deleted;
            let holding = self.devices.iter_mut().filter(|device| !device.has_lapsed);
            let mut holding: Vec<_> = holding.collect();
            holding.sort_by_key(|device| device.acknowledged.max(deleted));
            let most = holding.last().map_or(deleted, |device| device.acknowledged);
            if self.sent - most.max(deleted) >= max {
                return false;
            }
            holding[0].has_lapsed = true;
            self.delete();
        }
        true
    }
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Attach(usize),
    Detach(usize),
    Forget(usize),
    Send,
    Acknowledge(usize, usize),
    Wait(u32),
    Frame,
    Checkpoint,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let of = 0..NAMES.len();
    prop_oneof![
        5 => of.clone().prop_map(Op::Attach),
        4 => of.clone().prop_map(Op::Detach),
        1 => of.clone().prop_map(Op::Forget),
        8 => Just(Op::Send),
        10 => (of, 1..4_usize).prop_map(|(of, count)| Op::Acknowledge(of, count)),
        4 => (0..40_u32).prop_map(Op::Wait),
        4 => Just(Op::Frame),
        4 => Just(Op::Checkpoint),
        2 => Just(Op::Crash),
    ]
}

/// The ledger and the model side by side.
struct Pair {
    driver: Driver,
    account: Account,
    model: Model,
    /// The model at the last frame that was written, and the running time in it.
    written: (Model, Duration),
    /// The running time of the frame under construction.
    now: Duration,
    attached: [Option<Subscription>; NAMES.len()],
}

impl Pair {
    fn new() -> Self {
        let mut driver = Driver::with(LIMITS);
        driver.create("bob");
        driver.next_frame();
        Self {
            account: driver.account("bob").unwrap(),
            driver,
            model: Model::default(),
            written: (Model::default(), Duration::ZERO),
            now: Duration::ZERO,
            attached: Default::default(),
        }
    }

    fn frame(&mut self) {
        if self.driver.next_frame() {
            self.written.1 = self.now;
        }
        self.written.0 = self.model.clone();
        self.now = self.driver.context.running;
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Attach(of) => self.attach(of),
            Op::Detach(of) => self.detach(of),
            Op::Forget(of) => self.forget(of),
            Op::Send => self.send(),
            Op::Acknowledge(of, count) => self.acknowledge(of, count),
            Op::Wait(days) => {
                self.driver.context.running += DAY * days;
                self.frame();
            }
            Op::Frame => self.frame(),
            Op::Checkpoint => {
                self.driver.checkpoint();
                self.written = (self.model.clone(), self.now);
                self.now = self.driver.context.running;
            }
            Op::Crash => self.crash(),
        }
    }

    fn attach(&mut self, of: usize) {
        let (ledger, changes) = (&mut self.driver.ledger, &mut self.driver.changes);
        let (id, subscription) = match NAMES[of] {
            None => {
                let subscription = ledger.subscribe(&self.account, changes).unwrap();
                (NAMELESS, subscription)
            }
            Some(device) => {
                let device = device.parse().unwrap();
                let attached = ledger.attach(&self.account, &device, changes).unwrap();
                assert!(attached.rooms.is_empty());
                (attached.device, attached.inbox)
            }
        };
        let (model, now) = (&mut self.model, self.now);
        let deleted = model.deleted;
        if model.find(of).is_none() {
            if model.devices.is_empty() {
                model.is_plain = NAMES[of].is_none();
            } else if std::mem::take(&mut model.is_plain) {
                let nameless = &mut model.devices[0];
                nameless.detached = nameless.detached.map(|_| now);
            }
            model.devices.push(ModelDevice {
                of,
                id,
                acknowledged: deleted,
                active: Duration::ZERO,
                detached: None,
                has_lapsed: false,
            });
        }
        let device = model.find(of).unwrap();
        assert_eq!(device.id, id);
        (device.detached, device.has_lapsed) = (None, false);
        if NAMES[of].is_none() {
            // `connect` announces no gap.
            device.acknowledged = device.acknowledged.max(deleted);
        }
        let acknowledged = device.acknowledged;
        assert_eq!(subscription.cursor().messages, acknowledged as u64);
        let waiting = model.sent - acknowledged.max(deleted);
        assert_eq!(subscription.queued(), waiting as u64);
        self.attached[of] = Some(subscription);
    }

    fn detach(&mut self, of: usize) {
        if self.attached[of].take().is_none() {
            return;
        }
        let now = self.now;
        let device = self.model.find(of).unwrap();
        device.detached = Some(now);
        let driver = &mut self.driver;
        driver
            .ledger
            .detach(&self.account, device.id, &mut driver.changes);
    }

    fn forget(&mut self, of: usize) {
        let device: Option<DeviceName> = NAMES[of].map(|name| name.parse().unwrap());
        let driver = &mut self.driver;
        let changes = &mut driver.changes;
        let existed = driver
            .ledger
            .forget_device(&self.account, device.as_ref(), changes);
        assert_eq!(existed, Ok(self.model.find(of).is_some()));
        self.attached[of] = None;
        let model = &mut self.model;
        model.devices.retain(|device| device.of != of);
        if let Some(last) = model.last()
            && model.devices.iter().all(|device| device.has_lapsed)
        {
            model.devices[last].has_lapsed = false;
        }
        model.delete();
    }

    fn send(&mut self) {
        let outcome = self.driver.append(text("bob", "x"));
        if self.model.has_room() {
            assert!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
            self.model.sent += 1;
        } else {
            assert_eq!(outcome, Outcome::Refused(Code::QueueFull));
        }
    }

    /// Acknowledges so many messages beyond the last acknowledgement, if they are written.
    fn acknowledge(&mut self, of: usize, count: usize) {
        let id = self
            .model
            .find(of)
            .map(|device| (device.id, device.acknowledged));
        let (id, before) = id.unwrap_or((of as DeviceId, 0));
        let nth = before + count;
        let messages = self.driver.messages(&self.account);
        let Some(message) = messages.get(nth - 1) else {
            return;
        };
        let position: Position = message.position;
        let (driver, now) = (&mut self.driver, self.now);
        driver
            .ledger
            .acknowledge(&self.account, id, position, &mut driver.changes);
        let model = &mut self.model;
        let deleted = model.deleted;
        let is_without_devices = model.devices.is_empty();
        let Some(device) = model.find(of) else {
            if is_without_devices && id == NAMELESS {
                model.deleted = deleted.max(nth);
            }
            return;
        };
        (device.acknowledged, device.active) = (nth, now);
        device.has_lapsed &= nth < deleted;
        model.lapse_absent(now);
        model.delete();
    }

    fn crash(&mut self) {
        self.attached = Default::default();
        let driver = &mut self.driver;
        driver.changes = Changes::default();
        driver.ledger = driver.replayed(1);
        driver.checkpoint = None;
        driver.ledger.begin(driver.context, &mut driver.changes);
        let (model, recorded) = self.written.clone();
        self.model = model;
        self.now = self.driver.context.running;
        for device in &mut self.model.devices {
            device.detached.get_or_insert(recorded);
        }
    }

    fn judge(&mut self) {
        let (_, head, _) = self.driver.ledger.inboxes().next().unwrap();
        assert_eq!(head.messages, self.model.deleted as u64);
        let entries = self
            .driver
            .ledger
            .devices(&self.account)
            .unwrap()
            .into_iter();
        let entries: Vec<_> = entries
            .map(|entry| (entry.name.map(|name| name.to_string()), entry.waiting))
            .collect();
        let Model { sent, deleted, .. } = self.model;
        let expected = self.model.devices.iter().map(|device| {
            let waiting = sent - device.acknowledged.max(deleted);
            (NAMES[device.of].map(str::to_owned), waiting as u64)
        });
        assert_eq!(entries, expected.collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn devices_agree_with_the_model(ops in proptest::collection::vec(op(), 1..150)) {
        let mut pair = Pair::new();
        assert_eq!(pair.account.name, name("bob"));
        for (place, op) in ops.into_iter().enumerate() {
            pair.step(op);
            pair.judge();
            if place % 32 == 31 {
                pair.frame();
                pair.driver.check_replay();
                pair.written = (pair.model.clone(), pair.now);
            }
        }
        pair.frame();
        pair.driver.check_replay();
    }
}
