//! The rules of devices and of the messages that they hold back.

use std::time::Duration;

use hark_protocol::{Code, DeviceName};

use super::{Driver, LIMITS, Limits, name, text};
use crate::store::{
    Account, DeviceEntry, DeviceId, End, Event, Message, NAMELESS, Position, Subscription,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

const ROOMY: Limits = Limits {
    queued_messages_max: 1000,
    queued_bytes_max: 1 << 20,
    ..LIMITS
};

/// Bob and his devices.
struct Bob {
    driver: Driver,
    account: Account,
}

fn device(text: &str) -> DeviceName {
    text.parse().unwrap()
}

impl Bob {
    fn new() -> Self {
        Self::with(ROOMY)
    }

    fn with(limits: Limits) -> Self {
        let mut driver = Driver::with(limits);
        driver.create("bob");
        let account = driver.account("bob").unwrap();
        Self { driver, account }
    }

    fn attach(&mut self, device: &str) -> Result<(DeviceId, Subscription), Code> {
        let (account, driver) = (&self.account, &mut self.driver);
        let name = device.parse().unwrap();
        let attached = driver.ledger.attach(account, &name, &mut driver.changes)?;
        Ok((attached.device, attached.inbox))
    }

    /// Attaches a device and ends its attachment at once. Returns its id.
    fn visit(&mut self, device: &str) -> DeviceId {
        let (id, subscription) = self.attach(device).unwrap();
        drop(subscription);
        self.detach(id);
        id
    }

    fn detach(&mut self, id: DeviceId) {
        let (account, driver) = (&self.account, &mut self.driver);
        driver.ledger.detach(account, id, &mut driver.changes);
    }

    fn connect(&mut self) -> Option<Subscription> {
        let (account, driver) = (&self.account, &mut self.driver);
        driver.ledger.subscribe(account, &mut driver.changes)
    }

    fn forget(&mut self, device: Option<&str>) -> bool {
        let (account, driver) = (&self.account, &mut self.driver);
        let name = device.map(|name| name.parse().unwrap());
        driver
            .ledger
            .forget_device(account, name.as_ref(), &mut driver.changes)
            .unwrap()
    }

    fn send(&mut self, count: usize) {
        for _ in 0..count {
            self.driver.check_send(text("bob", "x"), Ok(()));
        }
        self.driver.next_frame();
    }

    /// Returns the nth message, from 1.
    fn nth(&self, nth: usize) -> Message {
        self.driver.messages(&self.account)[nth - 1].clone()
    }

    /// Acknowledges everything up to the nth message, from 1.
    fn ack(&mut self, id: DeviceId, nth: usize) {
        let position = self.nth(nth).position;
        let (account, driver) = (&self.account, &mut self.driver);
        driver
            .ledger
            .acknowledge(account, id, position, &mut driver.changes);
    }

    /// Returns the number of messages that are forgotten.
    fn forgotten(&self) -> u64 {
        let (_, head, _) = self.driver.ledger.inboxes().next().unwrap();
        head.messages
    }

    fn entries(&mut self) -> Vec<DeviceEntry> {
        self.driver.ledger.devices(&self.account).unwrap()
    }

    fn waiting(&mut self) -> Vec<u64> {
        let entries = self.entries().into_iter();
        entries.map(|entry| entry.waiting).collect()
    }

    fn wait(&mut self, time: Duration) {
        self.driver.context.running += time;
        self.driver.context.wall_ms += time.as_millis() as u64;
        self.driver.next_frame();
    }
}

#[test]
fn messages_wait_for_the_first_device() {
    let mut bob = Bob::new();
    bob.send(3);
    let (phone, subscription) = bob.attach("phone").unwrap();
    assert_eq!(subscription.queued(), 3);
    assert_eq!(subscription.cursor(), Position::default());
    bob.ack(phone, 2);
    assert_eq!(bob.forgotten(), 2);
    bob.driver.check_replay();
}

#[test]
fn message_stays_until_every_device_has_it() {
    let mut bob = Bob::new();
    let _nameless = bob.connect().unwrap();
    let (phone, _on_phone) = bob.attach("phone").unwrap();
    let (laptop, _on_laptop) = bob.attach("laptop").unwrap();
    bob.send(4);
    bob.ack(phone, 3);
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 0, "the nameless device has none");
    bob.driver.check_replay();
    bob.ack(NAMELESS, 4);
    assert_eq!(bob.forgotten(), 2);
    assert_eq!(bob.waiting(), [0, 1, 2]);
    bob.driver.check_replay();
    bob.ack(laptop, 4);
    bob.ack(phone, 4);
    assert_eq!(bob.forgotten(), 4);
    bob.driver.check_replay();
    let (_, tablet) = bob.attach("tablet").unwrap();
    assert_eq!(tablet.queued(), 0, "it begins at the oldest message");
    bob.driver.check_replay();
}

#[test]
fn nameless_device_exists_from_its_first_connect() {
    let mut bob = Bob::new();
    drop(bob.connect());
    bob.send(2);
    bob.driver.check_replay();
    bob.driver.ledger = bob.driver.replayed(1);
    bob.driver.next_frame();
    let phone = bob.visit("phone");
    bob.ack(phone, 2);
    assert_eq!(bob.forgotten(), 0);
    assert_eq!(bob.connect().unwrap().queued(), 2);
    assert!(bob.forget(None));
    assert!(!bob.forget(None));
    assert_eq!(bob.forgotten(), 2);
    bob.driver.check_replay();
}

#[test]
fn takeover_concerns_one_device() {
    let mut bob = Bob::new();
    let nameless = bob.connect().unwrap();
    let (_, former) = bob.attach("phone").unwrap();
    let (_, mut laptop) = bob.attach("laptop").unwrap();
    let (_, mut latter) = bob.attach("phone").unwrap();
    laptop.follow();
    latter.follow();
    bob.driver.check_send(text("bob", "x"), Ok(()));
    bob.driver.changes.effects.publish();
    assert_eq!(former.end(), Some(End::TakenOver));
    for mut device in [laptop, latter] {
        let event = device.next_event();
        assert!(matches!(event, Some(Event::Appended(m)) if m.len() == 1));
        assert_eq!(device.end(), None);
    }
    assert_eq!(nameless.end(), None);
    assert!(bob.forget(Some("laptop")));
    bob.driver.changes.effects.publish();
    let account = bob.account.clone();
    let driver = &mut bob.driver;
    assert!(driver.ledger.delete(&account, &mut driver.changes));
    driver.changes.effects.publish();
    assert_eq!(nameless.end(), Some(End::Deleted));
}

#[test]
fn device_lapses_only_behind_an_active_one() {
    let mut bob = Bob::new();
    let phone = bob.visit("phone");
    let (laptop, _subscription) = bob.attach("laptop").unwrap();
    bob.send(3);
    bob.wait(29 * DAY);
    bob.ack(laptop, 1);
    assert_eq!(bob.forgotten(), 0);
    bob.wait(DAY);
    bob.driver.check_replay();
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 2, "the phone has lapsed");
    bob.driver.check_replay();
    // The phone returns, and learns that messages are missing.
    let (_, subscription) = bob.attach("phone").unwrap();
    assert_eq!(subscription.cursor(), Position::default());
    assert_eq!(subscription.queued(), 1);
    bob.driver.check_replay();
    bob.ack(laptop, 3);
    assert_eq!(bob.forgotten(), 2, "it holds messages back again");
    bob.ack(phone, 2);
    bob.driver.check_replay();
    bob.ack(phone, 3);
    assert_eq!(bob.forgotten(), 3);
    bob.driver.check_replay();
}

#[test]
fn single_device_keeps_every_message() {
    let mut bob = Bob::new();
    let phone = bob.visit("phone");
    bob.send(2);
    bob.wait(400 * DAY);
    assert_eq!(bob.waiting(), [2]);
    // A second device that never acknowledges changes nothing.
    bob.visit("laptop");
    bob.wait(400 * DAY);
    assert_eq!(bob.waiting(), [2, 2]);
    bob.ack(phone, 1);
    assert_eq!(bob.forgotten(), 0, "the laptop was attached last");
    bob.driver.check_replay();
}

#[test]
fn attached_device_does_not_lapse() {
    let mut bob = Bob::new();
    let (phone, _on_phone) = bob.attach("phone").unwrap();
    let (laptop, _on_laptop) = bob.attach("laptop").unwrap();
    bob.send(2);
    bob.wait(100 * DAY);
    bob.ack(laptop, 1);
    assert_eq!(bob.forgotten(), 0);
    // A restart ends all attachments, which counts from then on.
    bob.driver.check_replay();
    bob.driver.ledger = bob.driver.replayed(1);
    bob.wait(29 * DAY);
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 0);
    bob.ack(phone, 2);
    assert_eq!(bob.forgotten(), 2);
    bob.driver.check_replay();
}

#[test]
fn ninth_device_replaces_the_first_lapsed() {
    let mut bob = Bob::new();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let ids: Vec<_> = names.iter().map(|name| bob.visit(name)).collect();
    assert!(matches!(bob.attach("ninth"), Err(Code::TooMany)));
    assert!(bob.connect().is_none(), "the nameless device counts");
    bob.send(1);
    bob.wait(DAY);
    let (_, _on_h) = bob.attach("h").unwrap();
    bob.ack(ids[7], 1);
    bob.wait(30 * DAY);
    let (ninth, _subscription) = bob.attach("ninth").unwrap();
    let entries = bob.entries();
    let names: Vec<_> = entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names.len(), 8);
    assert!(!names.contains(&Some(device("a"))));
    assert!(names.contains(&Some(device("ninth"))));
    assert!(ninth > ids[7]);
    bob.driver.check_replay();
}

#[test]
fn full_inbox_lapses_the_device_furthest_behind() {
    let mut bob = Bob::with(LIMITS);
    let (slow, _on_slow) = bob.attach("slow").unwrap();
    let (middle, _on_middle) = bob.attach("middle").unwrap();
    let (fast, _on_fast) = bob.attach("fast").unwrap();
    bob.send(6);
    bob.driver
        .check_send(text("bob", "x"), Err(Code::QueueFull));
    bob.ack(middle, 1);
    bob.ack(fast, 2);
    bob.driver.check_send(text("bob", "x"), Ok(()));
    assert_eq!(bob.forgotten(), 1, "slow has lapsed");
    bob.driver.check_send(text("bob", "x"), Ok(()));
    assert_eq!(bob.forgotten(), 2, "middle has lapsed");
    bob.driver
        .check_send(text("bob", "x"), Err(Code::QueueFull));
    bob.driver.check_replay();
    bob.ack(slow, 1);
    assert_eq!(bob.waiting(), [6, 6, 6], "it holds nothing back");
    bob.ack(slow, 3);
    bob.ack(fast, 4);
    assert_eq!(bob.forgotten(), 3, "slow has caught up, and holds again");
    bob.driver.check_replay();
}

#[test]
fn forgotten_device_leaves_another_to_hold_back() {
    let mut bob = Bob::with(LIMITS);
    bob.visit("slow");
    let (fast, subscription) = bob.attach("fast").unwrap();
    bob.send(6);
    bob.ack(fast, 1);
    bob.driver.check_send(text("bob", "x"), Ok(()));
    drop(subscription);
    assert!(bob.forget(Some("fast")));
    assert!(!bob.forget(Some("fast")));
    bob.driver
        .check_send(text("bob", "x"), Err(Code::QueueFull));
    assert_eq!(bob.waiting(), [6], "slow, which had lapsed");
    bob.driver.check_replay();
    assert!(bob.forget(Some("slow")));
    assert_eq!(bob.waiting(), [0; 0]);
    let (phone, subscription) = bob.attach("phone").unwrap();
    assert_eq!(subscription.queued(), 6);
    bob.ack(phone, 7);
    assert_eq!(bob.forgotten(), 7);
    bob.driver.check_replay();
}

#[test]
fn connect_announces_no_gap() {
    let mut bob = Bob::new();
    drop(bob.connect());
    let (laptop, _subscription) = bob.attach("laptop").unwrap();
    bob.send(3);
    bob.wait(30 * DAY);
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 2, "the nameless device has lapsed");
    let nameless = bob.connect().unwrap();
    assert_eq!(nameless.cursor(), bob.nth(2).position);
    assert_eq!(nameless.queued(), 1);
    bob.driver.check_replay();
}

#[test]
fn devices_show_when_they_were_seen() {
    let mut bob = Bob::new();
    bob.wait(DAY);
    let (_, _on_phone) = bob.attach("phone").unwrap();
    bob.visit("laptop");
    bob.wait(DAY);
    let entries = bob.entries();
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry.name.clone(), entry.seen_s))
        .collect();
    let (phone, laptop) = (Some(device("phone")), Some(device("laptop")));
    assert_eq!(seen, [(phone, 2 * 24 * 3600), (laptop, 24 * 3600)]);
    assert_eq!(name("bob"), bob.account.name);
}

#[test]
fn failed_log_leaves_devices_attached() {
    let mut bob = Bob::new();
    let (phone, on_phone) = bob.attach("phone").unwrap();
    let (laptop, on_laptop) = bob.attach("laptop").unwrap();
    bob.send(3);
    bob.ack(phone, 1);
    bob.driver.next_frame();
    let replayed = bob.driver.replayed(1);
    bob.ack(phone, 3);
    bob.ack(laptop, 2);
    let former = std::mem::replace(&mut bob.driver.ledger, replayed);
    let mut acks = bob
        .driver
        .ledger
        .inherit_from(former, Vec::new(), Duration::ZERO);
    acks.sort_unstable_by_key(|(_, device, _)| *device);
    let acks: Vec<_> = acks
        .into_iter()
        .map(|(_, device, position)| (device, position.messages))
        .collect();
    assert_eq!(acks, [(phone, 3), (laptop, 2)]);
    assert_eq!((on_phone.end(), on_laptop.end()), (None, None));
    bob.wait(100 * DAY);
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 1, "the phone is attached still");
}

#[test]
fn acknowledgement_beside_a_lapse_is_recorded() {
    let mut bob = Bob::with(LIMITS);
    let (first, _on_first) = bob.attach("first").unwrap();
    let second = bob.visit("second");
    let (third, _on_third) = bob.attach("third").unwrap();
    bob.send(6);
    bob.ack(second, 3);
    bob.ack(third, 4);
    bob.wait(30 * DAY);
    bob.driver.check_send(text("bob", "x"), Ok(()));
    assert_eq!(bob.forgotten(), 3, "the first one has lapsed");
    // The second one lapses with this, and the head moves.
    bob.ack(first, 2);
    assert_eq!(bob.forgotten(), 4);
    assert_eq!(bob.waiting(), [3, 3, 3]);
    bob.driver.check_replay();
    bob.driver.ledger = bob.driver.replayed(1);
    bob.driver.next_frame();
    let (_, subscription) = bob.attach("first").unwrap();
    assert_eq!(subscription.cursor(), bob.nth(2).position);
}

#[test]
fn acknowledgement_counts_after_a_restart() {
    let mut bob = Bob::new();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let ids: Vec<_> = names.iter().map(|name| bob.visit(name)).collect();
    bob.send(1);
    bob.wait(29 * DAY);
    let _on_h = bob.attach("h").unwrap();
    bob.ack(ids[7], 1);
    bob.driver.check_replay();
    bob.driver.ledger = bob.driver.replayed(1);
    bob.wait(2 * DAY);
    assert!(bob.attach("ninth").is_ok(), "the first one has lapsed");
    bob.driver.check_replay();
}

#[test]
fn device_attached_until_now_does_not_lapse() {
    let mut bob = Bob::new();
    let (laptop, on_laptop) = bob.attach("laptop").unwrap();
    bob.wait(DAY);
    let phone = bob.visit("phone");
    bob.send(2);
    bob.wait(40 * DAY);
    // The phone was attached after the laptop, but not until now.
    bob.ack(laptop, 1);
    assert_eq!(bob.forgotten(), 1, "the phone has lapsed");
    drop(on_laptop);
    bob.detach(laptop);
    bob.wait(40 * DAY);
    bob.ack(phone, 1);
    bob.ack(laptop, 2);
    assert_eq!(bob.forgotten(), 2);
    bob.driver.check_replay();
}

#[test]
fn acknowledgement_counts_while_there_is_no_device() {
    let mut bob = Bob::new();
    bob.send(2);
    bob.ack(NAMELESS, 1);
    assert_eq!(bob.forgotten(), 1);
    let (_, subscription) = bob.attach("phone").unwrap();
    assert_eq!(subscription.queued(), 1);
    bob.ack(NAMELESS, 2);
    assert_eq!(bob.forgotten(), 1, "the phone holds the message");
    bob.driver.check_replay();
}

#[test]
fn idle_time_is_recorded_every_hour() {
    let mut bob = Bob::new();
    let phone = bob.visit("phone");
    let (laptop, _on_laptop) = bob.attach("laptop").unwrap();
    bob.send(1);
    let frames = bob.driver.frames.len();
    for _ in 0..30 * 24 * 4 {
        bob.wait(DAY / 24 / 4);
    }
    let written = bob.driver.frames.len() - frames;
    assert!((700..=720).contains(&written), "{written} frames");
    let lost = bob.driver.ledger.running() - bob.driver.replayed(1).running();
    assert!(lost <= DAY / 24, "{lost:?}");
    bob.ack(laptop, 1);
    assert_eq!(bob.forgotten(), 1, "the phone has lapsed");
    bob.ack(phone, 1);
    bob.driver.check_replay();
}
