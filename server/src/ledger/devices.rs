//! [`Devices`]: the devices of a user, their cursors in its inbox, and the messages that
//! they hold back. It knows no room.
//!
//! A message is forgotten when every device that has not lapsed has acknowledged it. The
//! cursor of a device may lie before the head of the inbox: then the device is to learn
//! that messages are missing. Such a device holds back everything after the head.
//!
//! Most users have the nameless device alone, which reads at the head of its inbox: it
//! has no entry and no record of its own.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::{Code, DeviceName};

use super::Limits;
use super::changes::{Changes, Delivery};
use super::inboxes::Inbox;
use super::record::Record;
use crate::store::{DeviceEntry, DeviceId, End, Message, NAMELESS, Position, Publisher};

/// The most devices of a user.
const DEVICES_MAX: usize = 8;

/// The running time after which a device that is not attached can lapse.
const LAPSE_AFTER: Duration = Duration::from_secs(30 * 24 * 3600);

/// The time between two records of a device that acknowledges messages of rooms alone.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// The devices of a user.
#[derive(Debug, Default)]
pub(super) enum Devices {
    /// Messages wait for the first device.
    #[default]
    None,
    /// The nameless device alone.
    Nameless(NamelessDevice),
    /// At least one device, in the order of their creation.
    Named(Vec<Device>),
}

/// The nameless device of a user without other devices.
#[derive(Debug)]
pub(super) struct NamelessDevice {
    /// The recorded time of a `connect`, in Unix seconds.
    pub(super) seen_s: u32,
    pub(super) outlet: Outlet,
}

/// A device.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) state: DeviceState,
    pub(super) outlet: Outlet,
}

/// The recorded state of a device. Times are running times of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DeviceState {
    pub(super) id: DeviceId,
    /// `None` for the nameless device.
    pub(super) name: Option<DeviceName>,
    /// The last message that it acknowledged.
    pub(super) cursor: Position,
    /// The end of its last attachment; `None` while it is attached.
    pub(super) detached: Option<Duration>,
    /// The rank of its lapse among those of the other devices, if it has lapsed.
    pub(super) lapsed: Option<u32>,
    /// The time of its last acknowledgement beside other devices.
    pub(super) acknowledged: Duration,
    /// The end of its last attachment, or the last attachment, in Unix seconds.
    pub(super) seen_s: u32,
}

/// The clocks of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttachedAt {
    /// The running time of the store.
    pub(crate) running: Duration,
    /// The wall clock, in Unix seconds.
    pub(crate) unix_s: u32,
}

/// The subscription of a device to the inbox, and its place in a frame.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    publisher: Option<Publisher>,
    /// The index of its delivery in the frame under construction, valid only if that
    /// belongs to its subscription.
    delivery_at: u32,
}

impl Outlet {
    /// Returns whether there is a subscription that has not ended.
    pub(super) fn is_attached(&self) -> bool {
        self.publisher().is_some()
    }

    /// Returns the subscription, unless it has ended.
    pub(super) fn publisher(&self) -> Option<&Publisher> {
        self.publisher
            .as_ref()
            .filter(|publisher| !publisher.is_ended())
    }

    /// Sets the subscription, and returns the former one.
    pub(super) const fn replace(&mut self, publisher: Publisher) -> Option<Publisher> {
        self.publisher.replace(publisher)
    }

    /// See [`Publisher::supersede`].
    pub(super) fn supersede(&self) {
        self.publisher.iter().for_each(Publisher::supersede);
    }

    /// Takes the subscription.
    pub(super) const fn take(&mut self) -> Option<Publisher> {
        self.publisher.take()
    }

    /// Adds a message to the delivery of the frame.
    fn deliver(&mut self, inbox: u64, message: &Arc<Message>, changes: &mut Changes) {
        self.publisher.take_if(|publisher| publisher.is_ended());
        let Some(publisher) = &self.publisher else {
            return;
        };
        let deliveries = &mut changes.effects.deliveries;
        match deliveries.get_mut(self.delivery_at as usize) {
            Some(delivery) if delivery.publisher.is_same(publisher) => {
                delivery.messages.push(Arc::clone(message));
            }
            _ => {
                self.delivery_at = deliveries.len() as u32;
                deliveries.push(Delivery {
                    #[cfg(feature = "cluster")]
                    inbox,
                    publisher: publisher.clone(),
                    messages: vec![Arc::clone(message)],
                });
            }
        }
    }
}

impl Device {
    fn new(id: DeviceId, name: Option<DeviceName>, cursor: Position, at: AttachedAt) -> Self {
        Self::restore(DeviceState {
            id,
            name,
            cursor,
            detached: Some(at.running),
            lapsed: None,
            acknowledged: Duration::ZERO,
            seen_s: at.unix_s,
        })
    }

    /// Returns a device from its record.
    pub(super) fn restore(state: DeviceState) -> Self {
        Self {
            state,
            outlet: Outlet::default(),
        }
    }

    /// Returns whether it holds messages back.
    const fn is_holding(&self) -> bool {
        self.state.lapsed.is_none()
    }

    fn write(&self, account: u64, changes: &mut Changes) {
        changes.record(&Record::Device(account, self.state.clone()));
    }
}

impl Devices {
    /// Returns the devices that have an entry of their own.
    pub(super) fn entries(&self) -> &[Device] {
        match self {
            Self::Named(devices) => devices,
            Self::None | Self::Nameless(_) => &[],
        }
    }

    /// Returns the devices that have an entry of their own.
    pub(super) fn entries_mut(&mut self) -> &mut [Device] {
        match self {
            Self::Named(devices) => devices,
            Self::None | Self::Nameless(_) => &mut [],
        }
    }

    /// Returns the entry of a device.
    pub(super) fn get_mut(&mut self, id: DeviceId) -> Option<&mut Device> {
        self.entries_mut()
            .iter_mut()
            .find(|device| device.state.id == id)
    }

    /// Returns the number of devices.
    pub(super) const fn count(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Nameless(_) => 1,
            Self::Named(devices) => devices.len() as u64,
        }
    }

    /// Returns the ids of the devices that read rooms.
    pub(super) fn ids(&self) -> impl Iterator<Item = DeviceId> {
        let entries = self.entries().iter().map(|device| device.state.id);
        entries.filter(|id| *id != NAMELESS)
    }

    /// Returns whether any device is attached.
    pub(super) fn is_attached(&self) -> bool {
        match self {
            Self::None => false,
            Self::Nameless(device) => device.outlet.is_attached(),
            Self::Named(devices) => devices.iter().any(|device| device.outlet.is_attached()),
        }
    }

    /// Returns the outlet of a device.
    pub(super) fn outlet(&mut self, id: DeviceId) -> Option<&mut Outlet> {
        match self {
            Self::None => None,
            Self::Nameless(device) => (id == NAMELESS).then_some(&mut device.outlet),
            Self::Named(devices) => {
                let device = devices.iter_mut().find(|device| device.state.id == id);
                device.map(|device| &mut device.outlet)
            }
        }
    }

    /// Returns all outlets, with their devices.
    pub(super) fn outlets(&mut self) -> impl Iterator<Item = (DeviceId, &mut Outlet)> {
        let (nameless, named) = match self {
            Self::None => (None, &mut [][..]),
            Self::Nameless(device) => (Some((NAMELESS, &mut device.outlet)), &mut [][..]),
            Self::Named(devices) => (None, &mut devices[..]),
        };
        let named = named
            .iter_mut()
            .map(|device| (device.state.id, &mut device.outlet));
        nameless.into_iter().chain(named)
    }

    /// Sets a device from its record.
    pub(super) fn restore(&mut self, state: DeviceState) {
        let device = Device::restore(state);
        match self {
            Self::Named(devices) => {
                let id = device.state.id;
                match devices.iter_mut().find(|other| other.state.id == id) {
                    Some(other) => *other = device,
                    None => devices.push(device),
                }
            }
            // The record of the nameless device is the first.
            Self::None | Self::Nameless(_) => *self = Self::Named(vec![device]),
        }
    }

    /// Removes a device.
    pub(super) fn remove(&mut self, id: DeviceId) -> Option<Device> {
        let Self::Named(devices) = self else {
            return None;
        };
        let at = devices.iter().position(|device| device.state.id == id)?;
        let device = devices.remove(at);
        if devices.is_empty() {
            *self = Self::None;
        }
        Some(device)
    }

    /// Moves the cursors of a replayed inbox whose head moved: only devices that hold
    /// nothing back stay behind.
    pub(super) fn replay_head(&mut self, head: Position) {
        let holding = self.entries_mut().iter_mut().filter(|d| d.is_holding());
        for device in holding {
            if device.state.cursor.sequence < head.sequence {
                device.state.cursor = head;
            }
        }
    }

    /// Replays whether the nameless device exists as the only one.
    pub(super) fn replay_connected(&mut self, seen_s: u32) {
        match self {
            // The nameless device has an entry, if it exists.
            Self::Named(_) => {}
            Self::None | Self::Nameless(_) if seen_s == 0 => *self = Self::None,
            Self::None | Self::Nameless(_) => {
                *self = Self::Nameless(NamelessDevice {
                    seen_s,
                    outlet: Outlet::default(),
                });
            }
        }
    }

    /// Ends the attachments of a former process, and returns their devices.
    pub(super) fn end_attachments(&mut self, running: Duration) -> Vec<DeviceId> {
        let entries = self.entries_mut().iter_mut();
        let attached = entries.filter(|device| device.state.detached.is_none());
        attached
            .map(|device| {
                device.state.detached = Some(running);
                device.state.id
            })
            .collect()
    }

    /// Writes the devices whose cursor is before the head that a purge moved. The record of
    /// the head alone would move the cursors of a replay.
    pub(super) fn write_behind(&self, head: Position, account: u64, changes: &mut Changes) {
        let behind = self
            .entries()
            .iter()
            .filter(|device| device.is_holding() && device.state.cursor.sequence < head.sequence);
        behind.for_each(|device| device.write(account, changes));
    }

    /// Returns the place of the device that was attached last.
    fn last_attached(&self) -> Option<usize> {
        let devices = self.entries().iter().zip(0..);
        let until = |device: &Device| device.state.detached.unwrap_or(Duration::MAX);
        let last = devices.max_by_key(|(device, _)| until(device));
        last.map(|(_, place)| place)
    }

    /// Lapses a device, and writes it.
    fn lapse(&mut self, place: usize, account: u64, changes: &mut Changes) {
        let ranks = self.entries().iter();
        let highest = ranks.filter_map(|device| device.state.lapsed).max();
        if let Some(device) = self.entries_mut().get_mut(place) {
            device.state.lapsed = Some(highest.map_or(0, |rank| rank.saturating_add(1)));
            device.write(account, changes);
        }
    }

    /// Lapses the devices that are due, and writes them.
    fn lapse_due(&mut self, account: u64, now: Duration, changes: &mut Changes) {
        let last = self.last_attached();
        for place in 0..self.entries().len() {
            let entries = self.entries();
            let Some(DeviceState {
                detached: Some(detached),
                lapsed: None,
                ..
            }) = entries.get(place).map(|device| &device.state)
            else {
                continue;
            };
            let is_absent = now.saturating_sub(*detached) >= LAPSE_AFTER;
            let others = entries.iter().zip(0..).filter(|(_, other)| *other != place);
            let is_overtaken = others
                .map(|(other, _)| other.state.acknowledged)
                .any(|acknowledged| acknowledged > *detached);
            if Some(place) != last && is_absent && is_overtaken {
                self.lapse(place, account, changes);
            }
        }
    }

    /// Lets the device that was attached last hold messages back, if no device does.
    fn keep_one_holding(&mut self, account: u64, changes: &mut Changes) {
        if self.entries().iter().any(Device::is_holding) {
            return;
        }
        if let Some(place) = self.last_attached()
            && let Some(last) = self.entries_mut().get_mut(place)
        {
            last.state.lapsed = None;
            last.write(account, changes);
        }
    }

    /// Makes room for a new device. Returns the device that it replaces, if there must be
    /// one, or refuses.
    fn make_room(
        &mut self,
        account: u64,
        now: Duration,
        changes: &mut Changes,
    ) -> Result<Option<DeviceId>, Code> {
        if self.entries().len() < DEVICES_MAX {
            return Ok(None);
        }
        self.lapse_due(account, now, changes);
        let lapsed = self.entries().iter().filter_map(|device| {
            let lapsed = device.state.lapsed?;
            (!device.outlet.is_attached()).then_some((lapsed, device.state.id))
        });
        let (_, first) = lapsed.min().ok_or(Code::TooMany)?;
        self.remove(first);
        changes.record(&Record::DeviceEnd(account, first));
        Ok(Some(first))
    }
}

/// The rules of the devices of an inbox.
impl Inbox {
    /// Returns the id of a device that exists.
    pub(super) fn device(&self, name: Option<&DeviceName>) -> Option<DeviceId> {
        match &self.devices {
            Devices::Nameless(_) if name.is_none() => Some(NAMELESS),
            devices => {
                let mut states = devices.entries().iter().map(|device| &device.state);
                states
                    .find(|state| state.name.as_ref() == name)
                    .map(|state| state.id)
            }
        }
    }

    /// Returns the id of a device that may acknowledge: the nameless one also if there is no
    /// device at all.
    pub(super) fn reader(&self, name: Option<&DeviceName>) -> Option<DeviceId> {
        let is_first = name.is_none() && matches!(self.devices, Devices::None);
        self.device(name).or(is_first.then_some(NAMELESS))
    }

    /// Returns the last message that a device has acknowledged; for one that does not exist,
    /// the one before its first message.
    pub(super) fn cursor(&self, device: Option<DeviceId>) -> Position {
        let mut entries = self.devices.entries().iter();
        let entry = entries.find(|entry| Some(entry.state.id) == device);
        entry.map_or(self.log.head, |entry| entry.state.cursor)
    }

    /// Adds a device, which begins at the head of the inbox. Returns the device that it
    /// replaces.
    ///
    /// # Errors
    /// [`Code::TooMany`] if no device can be replaced.
    pub(super) fn add_device(
        &mut self,
        id: DeviceId,
        name: Option<&DeviceName>,
        at: AttachedAt,
        changes: &mut Changes,
    ) -> Result<Option<DeviceId>, Code> {
        let (account, head) = (self.log.id, self.log.head);
        if let (Devices::None, None) = (&self.devices, name) {
            let device = NamelessDevice {
                seen_s: at.unix_s.max(1),
                outlet: Outlet::default(),
            };
            self.devices = Devices::Nameless(device);
            changes.totals.devices += 1;
            self.write_connected(changes);
            changes.effects.is_awaited = true;
            return Ok(None);
        }
        self.give_entry_to_nameless(at, changes);
        let replaced = self.devices.make_room(account, at.running, changes)?;
        let device = Device::new(id, name.cloned(), head, at);
        changes.totals.devices += u64::from(replaced.is_none());
        device.write(account, changes);
        match &mut self.devices {
            Devices::Named(devices) => devices.push(device),
            Devices::None | Devices::Nameless(_) => {
                self.devices = Devices::Named(vec![device]);
            }
        }
        changes.effects.is_awaited = true;
        Ok(replaced)
    }

    /// Gives the nameless device an entry, if it has none: it will not be the only one.
    fn give_entry_to_nameless(&mut self, at: AttachedAt, changes: &mut Changes) {
        let Devices::Nameless(nameless) = &mut self.devices else {
            return;
        };
        let seen = AttachedAt {
            unix_s: nameless.seen_s,
            ..at
        };
        let mut device = Device::new(NAMELESS, None, self.log.head, seen);
        device.outlet = std::mem::take(&mut nameless.outlet);
        if device.outlet.is_attached() {
            device.state.detached = None;
        }
        device.write(self.log.id, changes);
        self.devices = Devices::Named(vec![device]);
    }

    /// Attaches a device that exists: it holds messages back again. Returns its cursor.
    pub(super) fn attach(
        &mut self,
        id: DeviceId,
        at: AttachedAt,
        changes: &mut Changes,
    ) -> Option<Position> {
        const DAY_S: u32 = 24 * 3600;
        let (account, head) = (self.log.id, self.log.head);
        if let Devices::Nameless(device) = &mut self.devices {
            if at.unix_s >= device.seen_s.saturating_add(DAY_S) {
                device.seen_s = at.unix_s;
                self.write_connected(changes);
            }
            return (id == NAMELESS).then_some(head);
        }
        let device = self.devices.get_mut(id)?;
        let state = &mut device.state;
        (state.detached, state.lapsed) = (None, None);
        state.seen_s = at.unix_s;
        if id == NAMELESS && state.cursor.sequence < head.sequence {
            // `connect` announces no gap.
            state.cursor = head;
        }
        device.write(account, changes);
        Some(device.state.cursor)
    }

    /// Notes the end of the attachment of a device, unless it was attached again.
    pub(super) fn detach(&mut self, id: DeviceId, at: AttachedAt, changes: &mut Changes) {
        let account = self.log.id;
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        if device.outlet.is_attached() || device.state.detached.is_some() {
            return;
        }
        device.state.detached = Some(at.running);
        device.state.seen_s = at.unix_s;
        device.write(account, changes);
    }

    /// Writes the end of an attachment that the end of a former process implied.
    pub(super) fn write_detached(&self, id: DeviceId, changes: &mut Changes) {
        let mut entries = self.devices.entries().iter();
        let device = entries.find(|device| device.state.id == id);
        if let Some(device) = device.filter(|device| device.state.detached.is_some()) {
            device.write(self.log.id, changes);
        }
    }

    /// Ends a device. Returns whether it existed.
    pub(super) fn forget_device(&mut self, id: DeviceId, changes: &mut Changes) -> bool {
        let publisher = if let Devices::Nameless(device) = &mut self.devices {
            if id != NAMELESS {
                return false;
            }
            let publisher = device.outlet.take();
            self.devices = Devices::None;
            self.write_connected(changes);
            publisher
        } else {
            let Some(mut device) = self.devices.remove(id) else {
                return false;
            };
            changes.record(&Record::DeviceEnd(self.log.id, id));
            self.devices.keep_one_holding(self.log.id, changes);
            self.advance_head(changes);
            device.outlet.take()
        };
        if let Some(publisher) = publisher {
            changes
                .effects
                .end(&self.account, id, publisher, End::TakenOver);
        }
        changes.totals.devices = changes.totals.devices.saturating_sub(1);
        changes.effects.is_awaited = true;
        true
    }

    /// Takes the acknowledgement of a device, and forgets the messages that no device holds
    /// back any more. One of a device that does not exist is ignored, unless there is no
    /// device at all: a request without a connection acknowledges so.
    pub(super) fn acknowledge(
        &mut self,
        id: DeviceId,
        position: Position,
        now: Duration,
        changes: &mut Changes,
    ) {
        let (account, head, tail) = (self.log.id, self.log.head, self.log.tail);
        let is_sole_reader = matches!(self.devices, Devices::None | Devices::Nameless(_));
        if is_sole_reader && id == NAMELESS {
            // It reads at the head.
            self.forget(position, changes);
            return;
        }
        let is_only = self.devices.entries().len() == 1;
        let Some(device) = self.devices.get_mut(id) else {
            return;
        };
        // A position from outside must not exceed the end of the log.
        let position = if position.sequence < tail.sequence {
            position
        } else {
            tail
        };
        if position.sequence <= device.state.cursor.sequence {
            return;
        }
        let is_ahead = position.sequence > head.sequence;
        // The head tells the cursor of a single device.
        let is_implied = is_only && device.is_holding() && is_ahead;
        let returns = device.state.lapsed.is_some() && position.sequence >= head.sequence;
        device.state.cursor = position;
        if !is_implied {
            device.state.acknowledged = now;
        }
        if returns {
            device.state.lapsed = None;
            device.write(account, changes);
        } else if !is_implied {
            changes.record(&Record::DeviceCursor(account, id, position));
        }
        self.devices.lapse_due(account, now, changes);
        self.advance_head(changes);
    }

    /// Notes that a device acknowledged a message of a room, so that others may lapse.
    pub(super) fn note_activity(&mut self, id: DeviceId, now: Duration, changes: &mut Changes) {
        let account = self.log.id;
        let is_only = self.devices.entries().len() == 1;
        if let Some(device) = self.devices.get_mut(id).filter(|_| !is_only)
            && now.saturating_sub(device.state.acknowledged) >= ACTIVITY_INTERVAL
        {
            device.state.acknowledged = now;
            device.write(account, changes);
        }
    }

    /// Writes whether the nameless device exists, if it has no entry.
    fn write_connected(&self, changes: &mut Changes) {
        let seen_s = match &self.devices {
            Devices::Nameless(device) => device.seen_s,
            Devices::None | Devices::Named(_) => 0,
        };
        changes.record(&Record::Connected(self.log.id, seen_s));
    }

    /// Moves the head to the first message that a device holds back.
    fn advance_head(&mut self, changes: &mut Changes) {
        let holding = self.devices.entries().iter().filter(|d| d.is_holding());
        let cursors = holding.map(|device| device.state.cursor);
        if let Some(cursor) = cursors.min_by_key(|cursor| cursor.sequence) {
            self.forget(cursor, changes);
        }
    }

    fn forget(&mut self, through: Position, changes: &mut Changes) {
        let former = self.log.head;
        self.log.forget(through, changes);
        self.count_forgotten(former, &mut changes.totals);
    }

    /// Returns whether the inbox has room for another text. If not, the device that is
    /// furthest behind lapses, then the next, as long as the most advanced one has room.
    pub(super) fn has_room_for(
        &mut self,
        text_bytes: u64,
        limits: &Limits,
        changes: &mut Changes,
    ) -> bool {
        let (account, tail) = (self.log.id, self.log.tail);
        let (messages_max, bytes_max) = self.queue_limits(limits);
        let fits = |head: Position| {
            let bytes = tail.bytes.saturating_sub(head.bytes);
            tail.messages.saturating_sub(head.messages) < messages_max
                && bytes.saturating_add(text_bytes) <= bytes_max
        };
        while !fits(self.log.head) {
            let head = self.log.head;
            let devices = self.devices.entries().iter().zip(0..);
            let holding = devices.filter(|(device, _)| device.is_holding());
            let mut holding: Vec<(Position, usize)> = holding
                .map(|(Device { state, .. }, place)| {
                    let is_behind = state.cursor.sequence < head.sequence;
                    (if is_behind { head } else { state.cursor }, place)
                })
                .collect();
            holding.sort_by_key(|(from, _)| from.sequence);
            let has_room = holding.last().is_some_and(|(from, _)| fits(*from));
            let Some((_, furthest)) = holding.first().filter(|_| has_room) else {
                return false;
            };
            self.devices.lapse(*furthest, account, changes);
            self.advance_head(changes);
        }
        true
    }

    /// Returns the devices for their user. An attached one is seen at `now_s`.
    pub(super) fn device_entries(&mut self, now_s: u32) -> Vec<DeviceEntry> {
        let (head, tail) = (self.log.head.messages, self.log.tail.messages);
        let waiting = |cursor: Position| tail.saturating_sub(cursor.messages.max(head));
        let seen_s = |outlet: &Outlet, seen_s| if outlet.is_attached() { now_s } else { seen_s };
        match &self.devices {
            Devices::None => Vec::new(),
            Devices::Nameless(device) => vec![DeviceEntry {
                name: None,
                seen_s: seen_s(&device.outlet, device.seen_s),
                waiting: waiting(self.log.head),
            }],
            Devices::Named(devices) => devices
                .iter()
                .map(|Device { state, outlet, .. }| DeviceEntry {
                    name: state.name.clone(),
                    seen_s: seen_s(outlet, state.seen_s),
                    waiting: waiting(state.cursor),
                })
                .collect(),
        }
    }

    /// Returns the acknowledgements that `former` has and this state of the same inbox has
    /// not.
    pub(super) fn acks_since(&self, former: &Self) -> Vec<(DeviceId, Position)> {
        let cursor_of = |inbox: &Self, id: DeviceId| match &inbox.devices {
            Devices::Named(devices) => {
                let device = devices.iter().find(|device| device.state.id == id);
                device.map(|device| device.state.cursor)
            }
            Devices::None | Devices::Nameless(_) => (id == NAMELESS).then_some(inbox.log.head),
        };
        let entries = former.devices.entries().iter().map(|d| d.state.id);
        let ids = entries.filter(|id| *id != NAMELESS).chain([NAMELESS]);
        ids.filter_map(|id| {
            let (before, after) = (cursor_of(former, id)?, cursor_of(self, id)?);
            (before.sequence > after.sequence).then_some((id, before))
        })
        .collect()
    }

    /// Returns the outlet of a device whose attachment survived a failure of the log.
    pub(super) fn inherit_attachment(&mut self, id: DeviceId) -> Option<&mut Outlet> {
        if let (Devices::None, NAMELESS) = (&self.devices, id) {
            self.devices.replay_connected(1);
        }
        if let Some(device) = self.devices.get_mut(id) {
            device.state.detached = None;
        }
        self.devices.outlet(id)
    }

    /// Adds the next message to the frame, and to the deliveries to attached devices.
    pub(super) fn push(&mut self, message: Message, changes: &mut Changes) {
        let former = self.log.tail;
        self.log.push(&message, changes);
        self.count_stored(former, &mut changes.totals);
        let inbox = self.log.id;
        let mut shared = None;
        let mut message = Some(message);
        for (_, outlet) in self.devices.outlets() {
            if outlet.is_attached() {
                let message = shared.get_or_insert_with(|| message.take().map(Arc::new));
                if let Some(message) = message {
                    outlet.deliver(inbox, message, changes);
                }
            }
        }
    }
}
