//! The delivery to a connection, since its latest successful `connect` or `attach`: the
//! [`DeliveryWindow`], the [`Subscription`] and the [rings](Ring) that feed it, and the read
//! in progress. It moves messages between them and the store; the window decides.
//!
//! Notices come in order, and each before the messages behind it: they are applied between
//! the arrival of messages and their push. So nothing behind the end of a membership is
//! pushed. While a membership ends, only the notices of a room with the same name wait.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hark_protocol::message::{Gap, RoomReply};
use hark_protocol::{RoomName, Sequence};
use tokio::time::Instant;

use super::delivery_window::{DeliveryWindow, INBOX, LogId, NeverPushed, Push, ReadPage, Step};
use crate::store::{
    Account, AttachedRoom, Attachment, DeviceId, DeviceSubscription, End, Event, Events, Message,
    NOTICES_MAX, Next, Notice, Page, Pending, Point, Ready, Registration, Ring, Said, Store,
    Subscription, Unavailable, name_hash,
};

/// The maximum number of memberships that end and of notices that wait for that. Beyond it,
/// the delivery ends with [`End::Interrupted`].
const ENDING_MAX: usize = NOTICES_MAX;

/// The reader of the logs of one connection.
#[derive(Debug)]
pub(super) struct DeliveryReader {
    window: DeliveryWindow,
    account: Account,
    /// `None` once the delivery has ended. Acknowledgements still count.
    events: Option<Events>,
    read: Option<Box<Pending<Page>>>,
    /// `None` for `connect`.
    device: Option<Box<AttachedDevice>>,
}

/// A device that is attached, with its rooms.
#[derive(Debug)]
struct AttachedDevice {
    id: DeviceId,
    /// By their places in the window.
    rooms: Vec<Option<RoomSource>>,
    /// There may be notices.
    has_notices: bool,
    /// Notices of rooms with the name of one whose membership ends, in order. They are of a
    /// later membership.
    postponed: VecDeque<Notice>,
    /// A membership has ended since the postponed notices were looked at.
    has_ended: bool,
    attachment: Attachment,
}

/// The place of the device in the ring of a room: 16 bytes.
#[derive(Debug)]
struct RoomSource(Registration);

/// The output of a [`DeliveryReader`].
pub(super) enum Received {
    /// A message to push.
    Message(Arc<Message>),
    /// A message of a room to push.
    Said(Arc<Said>),
    /// Another push.
    Notice(RoomReply),
    /// The end of the delivery.
    End(End),
}

impl DeliveryReader {
    /// Returns a reader of an inbox, beginning at its cursor.
    pub(super) fn new(subscription: Subscription) -> Self {
        Self::of_inbox(subscription, false)
    }

    /// Returns a reader for a device: of the inbox, and of the rooms.
    pub(super) fn attached(attached: DeviceSubscription) -> Self {
        let mut device = AttachedDevice {
            id: attached.device,
            rooms: Vec::with_capacity(attached.rooms.len()),
            has_notices: true,
            postponed: VecDeque::new(),
            has_ended: false,
            attachment: attached.inbox.attachment(),
        };
        let mut reader = Self::of_inbox(attached.inbox, true);
        if let Some(events) = &reader.events {
            for room in attached.rooms {
                device.add(room, &mut reader.window, events);
            }
        }
        reader.device = Some(Box::new(device));
        reader
    }

    fn of_inbox(subscription: Subscription, has_gaps: bool) -> Self {
        let window = DeliveryWindow::new(subscription.cursor(), has_gaps);
        let (account, events) = subscription.into_events();
        Self {
            window,
            account,
            events: Some(events),
            read: None,
            device: None,
        }
    }

    /// Ends the delivery. Messages of the inbox that are in flight can still be acknowledged.
    /// The rings are released, so that none is filled for nobody.
    pub(super) fn end(&mut self) {
        self.window.end();
        self.events = None;
        self.read = None;
        if let Some(device) = &mut self.device {
            (device.rooms, device.postponed) = (Vec::new(), VecDeque::new());
        }
    }

    /// Polls for the next output.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        store: &dyn Store,
    ) -> Poll<Received> {
        let Some(events) = &mut self.events else {
            return Poll::Pending;
        };
        // Registers the waker, for the end and for everything that becomes ready later.
        if let Poll::Ready(end) = events.poll_end(cx) {
            self.end();
            return Poll::Ready(Received::End(end));
        }
        // A full window leaves what is ready: the next message does not wake the task again.
        let ready = match self.window.is_full() {
            true => None,
            false => Some(events.take_ready()),
        };
        self.note_ready(ready);
        loop {
            self.poll_read(cx, now);
            if let Some(received) = self.next_notice() {
                return Poll::Ready(received);
            }
            match self.window.step(now) {
                Step::Push(log, push) => {
                    return Poll::Ready(match push {
                        Push::Message(message) => Received::Message(message),
                        Push::Said(said) => Received::Said(said),
                        Push::Gap(gap) => Received::Notice(RoomReply::Gap(Gap {
                            log: self.ring(log).map(|ring| ring.name().clone()),
                            from: gap.from,
                            to: gap.to.sequence,
                            count: gap.count,
                        })),
                    });
                }
                Step::Take(INBOX, _) => self.take_from_inbox(),
                Step::Take(log, after) => self.take_from_ring(log, after),
                Step::Read { log, after, limit } => {
                    let shared = self.ring(log).map(|ring| ring.page_after(after, limit));
                    if let Some(shared) = shared.filter(|page| !page.is_empty()) {
                        self.take_shared_page(shared, now);
                        continue;
                    }
                    let read = match self.ring(log) {
                        Some(ring) => store.read_room(ring.id(), after, limit),
                        None => {
                            if let Some(events) = &mut self.events {
                                events.follow();
                            }
                            store.read(&self.account, after.into(), limit)
                        }
                    };
                    self.read = Some(Box::new(read));
                }
                Step::Left(log, reason) => {
                    if let (Some(room), Some(reason)) = (self.remove(log), reason) {
                        let left = RoomReply::Left { room, reason };
                        return Poll::Ready(Received::Notice(left));
                    }
                }
                Step::Wait => return Poll::Pending,
            }
        }
    }

    /// Acknowledges every message of a log up to `sequence`. That of a room which the device
    /// does not read any more is ignored, as is that of a superseded attachment, whose
    /// messages come again on the other.
    ///
    /// # Errors
    /// [`NeverPushed`] for a number above the last push.
    pub(super) fn acknowledge(
        &mut self,
        log: Option<&RoomName>,
        sequence: Sequence,
        store: &dyn Store,
    ) -> Result<(), NeverPushed> {
        let device = self.device.as_deref();
        let log = match log {
            None => INBOX,
            Some(name) => match device.and_then(|device| device.find(name)) {
                Some(log) => log,
                None => return Ok(()),
            },
        };
        let Some(position) = self.window.handle_ack(log, sequence)? else {
            return Ok(());
        };
        let Some(device) = device else {
            store.acknowledge(&self.account, position);
            return Ok(());
        };
        let (account, ring) = (&self.account, self.ring(log));
        device.attachment.if_current(|| match ring {
            Some(ring) => store.acknowledge_room(account, device.id, ring.id(), position.into()),
            None => store.acknowledge_inbox(account, device.id, position),
        });
        Ok(())
    }

    /// Returns the device that is attached, unless this is a `connect` or has ended.
    pub(super) fn device(&self) -> Option<DeviceId> {
        let device = self.device.as_ref().filter(|_| self.events.is_some());
        device.map(|device| device.id)
    }

    /// Returns the account of the inbox.
    pub(super) const fn account(&self) -> &Account {
        &self.account
    }

    /// Returns whether it reads the log, because it is behind.
    pub(super) const fn is_behind(&self) -> bool {
        self.read.is_some()
    }

    /// Returns the window of messages in flight.
    pub(super) const fn window(&self) -> &DeliveryWindow {
        &self.window
    }

    /// Returns the ring of a room.
    fn ring(&self, log: LogId) -> Option<&Arc<Ring>> {
        let device = self.device.as_ref()?;
        let source = device.rooms.get(log.checked_sub(1)? as usize)?;
        source.as_ref().map(|source| source.0.ring())
    }

    fn note_ready(&mut self, ready: Option<Ready>) {
        if ready.is_some_and(Ready::has_messages) {
            self.window.note_ready(INBOX);
        }
        let Some(device) = &mut self.device else {
            return;
        };
        let Some(ready) = ready else {
            device.has_notices |= self.events.as_ref().is_some_and(Events::has_new_notices);
            return;
        };
        device.has_notices |= ready.has_notices();
        if ready.has_places() {
            let places = (1..).take(device.rooms.len());
            for log in places.filter(|log| ready.has_place(*log)) {
                self.window.note_ready(log);
            }
        }
    }

    /// Applies notices, until one is to be pushed.
    fn next_notice(&mut self) -> Option<Received> {
        let (Some(device), Some(events)) = (&mut self.device, &mut self.events) else {
            return None;
        };
        let window = &mut self.window;
        device.has_notices |= events.has_new_notices();
        loop {
            let notice = match device.take_postponed(window) {
                Some(notice) => notice,
                None if !device.has_notices => return None,
                None => match events.next_notice() {
                    None => {
                        device.has_notices = false;
                        return None;
                    }
                    Some(notice) if device.is_early(&notice, window) => {
                        device.postponed.push_back(notice);
                        continue;
                    }
                    Some(notice) => notice,
                },
            };
            if let Some(notice) = device.apply(notice, window, events) {
                return Some(Received::Notice(notice));
            }
            if window.leaving_count() + device.postponed.len() > ENDING_MAX {
                self.end();
                return Some(Received::End(End::Interrupted));
            }
        }
    }

    /// Passes the page of a finished read to the window.
    fn poll_read(&mut self, cx: &mut Context<'_>, now: Instant) {
        let Some(read) = &mut self.read else { return };
        let Poll::Ready(page) = Pin::new(&mut **read).poll(cx) else {
            return;
        };
        self.read = None;
        let ring = self.window.reading().and_then(|log| self.ring(log));
        let ring = ring.cloned();
        let page = match &ring {
            None => page.map(ReadPage::of_inbox),
            Some(ring) => page_of_room(ring, page),
        };
        if let Err(missing) = self.window.handle_page(page, now) {
            missing.report(&self.account, ring.as_ref().map(|ring| ring.name()));
        }
    }

    /// Passes a page that another member has read to the window.
    fn take_shared_page(&mut self, page: Vec<Arc<Said>>, now: Instant) {
        let page = ReadPage {
            messages: page.into_iter().map(Push::Said).collect(),
            ..ReadPage::default()
        };
        if let Err(missing) = self.window.handle_page(Ok(page), now) {
            missing.report(&self.account, None);
        }
    }

    fn take_from_inbox(&mut self) {
        let event = self.events.as_mut().and_then(Events::next_event);
        match event {
            Some(Event::Appended(messages)) => self.window.handle_appended(messages),
            Some(Event::Lagged) => self.window.handle_lagged(INBOX),
            // The end wakes the task again.
            Some(Event::Ended(_)) | None => self.window.handle_caught_up(INBOX),
        }
    }

    fn take_from_ring(&mut self, log: LogId, after: Point) {
        let Some(ring) = self.ring(log) else {
            return self.window.handle_caught_up(log);
        };
        match ring.next(after) {
            Next::Message(said) => self.window.handle_next(log, said),
            Next::End => self.window.handle_caught_up(log),
            Next::Behind if ring.has_ended() => self.window.handle_log_ended(log),
            Next::Behind => self.window.handle_lagged(log),
        }
    }

    /// Removes a room whose last message is pushed. Returns its name.
    fn remove(&mut self, log: LogId) -> Option<RoomName> {
        if self.window.reading().is_none() {
            self.read = None;
        }
        let device = self.device.as_mut()?;
        device.has_ended = true;
        let place = device.rooms.get_mut(log.checked_sub(1)? as usize)?;
        let source = place.take()?;
        Some(source.0.ring().name().clone())
    }
}

/// Returns the page of a room after a read.
fn page_of_room(
    ring: &Arc<Ring>,
    page: Result<Page, Unavailable>,
) -> Result<ReadPage, Unavailable> {
    // After the read: see [`Ring::end_log`].
    let has_ended = ring.has_ended();
    let page = match page {
        Err(Unavailable) if has_ended => Page::default(),
        page => page?,
    };
    // Notices come before the ring gets the messages behind them.
    let page = page.up_to(ring.end());
    Ok(ReadPage {
        starts_after: page.starts_after,
        messages: ring
            .keep_page(page.messages)
            .into_iter()
            .map(Push::Said)
            .collect(),
        is_complete: page.complete,
        has_ended,
    })
}

impl AttachedDevice {
    /// Adds a room.
    fn add(&mut self, room: AttachedRoom, window: &mut DeliveryWindow, events: &Events) {
        let log = window.add_room(room.cursor);
        let source = RoomSource(Registration::new(room.ring, events.waker(), log));
        let at = (log - 1) as usize;
        match self.rooms.get_mut(at) {
            Some(place) => *place = Some(source),
            None => {
                self.rooms.reserve_exact(1);
                self.rooms.push(Some(source));
            }
        }
    }

    /// Applies a notice. Returns its push.
    fn apply(
        &mut self,
        notice: Notice,
        window: &mut DeliveryWindow,
        events: &Events,
    ) -> Option<RoomReply> {
        match notice {
            Notice::Device(entry) => Some(RoomReply::Device {
                name: entry.name,
                seen_ms: u64::from(entry.seen_s) * 1000,
                waiting: entry.waiting,
            }),
            Notice::Seen { room, number } => {
                let sequence = Sequence(number);
                Some(RoomReply::Seen { room, sequence })
            }
            Notice::Joined { room, is_own } => {
                let (name, last) = (room.ring.name().clone(), Sequence(room.cursor.number));
                self.add(room, window, events);
                (!is_own).then_some(RoomReply::Joined { room: name, last })
            }
            Notice::Left {
                room,
                reason,
                at,
                is_own,
                ..
            } => {
                let log = self.place_of(room)?;
                let last = Point {
                    number: at.number.saturating_sub(1),
                    ..at
                };
                window.leave(log, last, (!is_own).then_some(reason));
                None
            }
        }
    }

    /// Returns whether a notice has to wait for the end of an earlier membership.
    fn is_early(&self, notice: &Notice, window: &DeliveryWindow) -> bool {
        let Some(room) = notice.membership() else {
            return false;
        };
        let mut postponed = self.postponed.iter();
        self.is_leaving(room, window) || postponed.any(|other| other.membership() == Some(room))
    }

    /// Returns the next postponed notice that does not have to wait any more.
    fn take_postponed(&mut self, window: &DeliveryWindow) -> Option<Notice> {
        if !self.has_ended {
            return None;
        }
        let mut postponed = self.postponed.iter().map(Notice::membership);
        let at = postponed.position(|room| room.is_some_and(|room| !self.is_leaving(room, window)));
        let notice = at.and_then(|at| self.postponed.remove(at));
        if notice.is_none() {
            self.has_ended = false;
        }
        if self.postponed.is_empty() {
            self.postponed = VecDeque::new();
        }
        notice
    }

    fn is_leaving(&self, room: &RoomName, window: &DeliveryWindow) -> bool {
        self.find(room).is_some_and(|log| window.is_leaving(log))
    }

    /// Returns the log of the room with this name.
    fn find(&self, name: &RoomName) -> Option<LogId> {
        let hash = name_hash(name);
        self.find_by(|ring| ring.name_hash() == hash && ring.name() == name)
    }

    /// Returns the log of the room with this id.
    fn place_of(&self, id: u64) -> Option<LogId> {
        self.find_by(|ring| ring.id() == id)
    }

    fn find_by(&self, is_it: impl Fn(&Ring) -> bool) -> Option<LogId> {
        let mut rooms = self.rooms.iter();
        let at = rooms.position(|source| source.as_ref().is_some_and(|s| is_it(s.0.ring())));
        at.map(|at| at as LogId + 1)
    }
}
