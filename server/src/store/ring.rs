//! [`Ring`]: the recent messages of a room, shared by its attached members.
//!
//! The commit thread publishes to the ring. A member has a position in the room's log: if
//! the ring holds the next message, it takes that one, otherwise it reads the store. So a
//! slow member costs others nothing, and a missed wake-up loses nothing.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock, Weak};
use std::thread;

use hark_protocol::RoomName;

use super::said::Said;
use super::subscription::Waker;
use super::{Message, Point, Position, ReadLimit};
use crate::sync::{Mutex, RwLock};

/// The maximum number of messages in a ring.
const MESSAGES_MAX: usize = 1024;

/// The maximum number of bytes of text in a ring, unless it has a single message.
const BYTES_MAX: usize = 1 << 20;

/// The maximum number of rings that keep a page.
const PAGES_MAX: usize = 64;

/// The rings that keep a page, in the order of their first one.
// A lock, because all connections add to it. It is held for one change.
static PAGES: Mutex<VecDeque<Weak<Ring>>> = Mutex::new(VecDeque::new());

/// The maximum number of shares of a ring.
const SHARES_MAX: usize = 8;

/// The bits of a [`Slot`] that number its share.
const SHARE_BITS: u32 = SHARES_MAX.trailing_zeros();

/// A full table of members grows by this fraction.
const GROWTH_DIVISOR: usize = 8;

/// The recent messages of a room, and the members to be woken for new ones. Members are
/// divided into [`shares`], so that one task for each share can wake them.
pub struct Ring {
    id: u64,
    name: RoomName,
    name_hash: u32,
    // A lock, because the commit thread publishes while connections take messages. It is held
    // for one message, or for the messages of one frame.
    recent: RwLock<Recent>,
    /// The last page that a member has read from the store, for other members that are behind
    /// the ring.
    // A lock, because all members use it. It is held for one page.
    page: Mutex<Vec<Arc<Said>>>,
    /// See [`Ring::end_log`].
    has_ended: AtomicBool,
    shares: Box<[Share]>,
}

/// The messages of a ring: all of the room behind `start`.
#[derive(Debug)]
struct Recent {
    start: Point,
    messages: VecDeque<Arc<Said>>,
    bytes: usize,
    /// The memory of the messages in all rings. `None` until the first message.
    total: Option<Arc<AtomicUsize>>,
}

/// A part of the members.
#[derive(Debug, Default)]
struct Share {
    /// A task will wake the members.
    is_queued: AtomicBool,
    len: AtomicUsize,
    /// The length of the table of members: the work of a look at all of them.
    slots: AtomicUsize,
    // A lock, because members come and go while others are woken. It is held for one change,
    // or for some hundred wake-ups.
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    /// The last slot is in use.
    slots: Vec<Option<Member>>,
    /// Slots that became free. Some may be in use again, or cut off.
    free: Vec<u32>,
}

/// An attached member: 16 bytes.
#[derive(Debug)]
struct Member {
    waker: Waker,
    place: u32,
}

/// The next message of a room for a member.
#[derive(Debug)]
pub enum Next {
    /// The next message.
    Message(Arc<Said>),
    /// There is none.
    End,
    /// The ring does not hold the next message any more: the member reads the store.
    Behind,
}

/// The place of a member in a ring: 16 bytes. Dropping it takes the member out.
#[derive(Debug)]
pub struct Registration {
    ring: Arc<Ring>,
    slot: Option<Slot>,
}

/// The number of a slot, and in its lowest bits that of the share; never 0.
type Slot = std::num::NonZeroU32;

/// Returns the number of shares: one for each core, up to a maximum.
pub(crate) fn shares() -> usize {
    static SHARES: OnceLock<usize> = OnceLock::new();
    *SHARES.get_or_init(|| {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        cores.min(SHARES_MAX)
    })
}

/// Returns a hash of a name, the same for all rings of a process.
#[must_use]
pub fn name_hash(name: &RoomName) -> u32 {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    hasher.hash_one(name) as u32
}

impl Ring {
    /// Returns the empty ring of a room whose last message is at `tail`.
    #[must_use]
    pub fn new(id: u64, name: RoomName, tail: Point) -> Self {
        Self {
            id,
            name_hash: name_hash(&name),
            name,
            recent: RwLock::new(Recent {
                start: tail,
                messages: VecDeque::new(),
                bytes: 0,
                total: None,
            }),
            page: Mutex::default(),
            has_ended: AtomicBool::new(false),
            shares: (0..shares()).map(|_| Share::default()).collect(),
        }
    }

    /// Returns the id of the room.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// Returns the name of the room.
    #[must_use]
    pub const fn name(&self) -> &RoomName {
        &self.name
    }

    /// Returns [`name_hash`] of the name of the room.
    #[must_use]
    pub const fn name_hash(&self) -> u32 {
        self.name_hash
    }

    /// Returns the number of attached devices of members.
    #[must_use]
    pub fn devices(&self) -> usize {
        self.shares.iter().map(Share::len).sum()
    }

    /// Returns the slots of all members, some of which may be free.
    pub(crate) fn slots(&self) -> usize {
        let shares = self.shares.iter();
        shares
            .map(|share| share.slots.load(Ordering::Relaxed))
            .sum()
    }

    /// Adds the next messages of the room, without waking anybody. The oldest ones give way.
    /// `total` is the memory of the messages in all rings.
    pub(crate) fn publish(&self, messages: Vec<Arc<Message>>, total: &Arc<AtomicUsize>) {
        let mut recent = self.recent.write();
        recent.total.get_or_insert_with(|| Arc::clone(total));
        for message in messages {
            recent.push(Arc::new(Said::new(self.name.clone(), message)));
        }
    }

    /// Removes the messages up to a point.
    pub(crate) fn forget(&self, through: Point) {
        self.recent.write().forget(through);
    }

    /// Returns whether the ring holds the message at a point, and those before it.
    pub(crate) fn holds(&self, message: Point) -> bool {
        self.recent.read().start.messages < message.messages
    }

    /// Returns messages behind a point from the last page that a member has read, up to a
    /// limit, which one long message may exceed.
    #[must_use]
    pub fn page_after(&self, after: Point, limit: ReadLimit) -> Vec<Arc<Said>> {
        let page = self.page.lock();
        let first = page.first().map(|said| said.message.position.messages);
        let at = first.and_then(|first| (after.messages + 1).checked_sub(first));
        let rest = at.and_then(|at| page.get(usize::try_from(at).ok()?..));
        let (rest, mut bytes) = (rest.unwrap_or_default(), 0);
        let fits = |said: &&Arc<Said>| {
            let is_first = bytes == 0;
            bytes += said.message.text.len().max(1);
            is_first || bytes <= limit.bytes
        };
        let fitting = rest.iter().take(limit.messages).take_while(fits);
        fitting.cloned().collect()
    }

    /// Keeps a page that a member has read, for others. Returns it with the encodings that the
    /// former page shares. If too many rings keep one, the oldest is dropped.
    #[must_use]
    pub fn keep_page(self: &Arc<Self>, messages: Vec<Arc<Message>>) -> Vec<Arc<Said>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let mut page = self.page.lock();
        let first = messages.first().map(|message| message.position);
        let is_known = |said: &Arc<Said>| Some(said.message.position) == first;
        let from = page.iter().position(is_known).unwrap_or(page.len());
        let mut known = page.iter().skip(from);
        let said = messages.into_iter().map(|message| match known.next() {
            Some(said) if said.message.position == message.position => Arc::clone(said),
            _ => Arc::new(Said::new(self.name.clone(), message)),
        });
        let said: Vec<_> = said.collect();
        let is_new = page.is_empty();
        page.clone_from(&said);
        drop(page);
        if is_new {
            let mut keeping = PAGES.lock();
            keeping.push_back(Arc::downgrade(self));
            let dropped = (keeping.len() > PAGES_MAX).then(|| keeping.pop_front());
            drop(keeping);
            if let Some(ring) = dropped.flatten().and_then(|ring| ring.upgrade()) {
                *ring.page.lock() = Vec::new();
            }
        }
        said
    }

    /// Notes that the log of the room has ended. Called before the store releases its
    /// messages: so if a read misses some, [`Self::has_ended`] is true after it.
    pub(crate) fn end_log(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// Returns whether the log of the room has ended: the store does not have its messages
    /// any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    /// Returns the last message that was published, or the tail of the log at the beginning.
    #[must_use]
    pub fn end(&self) -> Point {
        self.recent.read().end()
    }

    /// Returns the message behind `after`.
    #[must_use]
    pub fn next(&self, after: Point) -> Next {
        let recent = self.recent.read();
        let Some(at) = after.messages.checked_sub(recent.start.messages) else {
            return Next::Behind;
        };
        let message = usize::try_from(at)
            .ok()
            .and_then(|at| recent.messages.get(at));
        message.map_or(Next::End, |said| Next::Message(Arc::clone(said)))
    }

    /// Marks the place of each member of a share from a slot on as ready, and wakes it. Looks
    /// at `count` slots; returns the next slot, or `None` at the end.
    pub(crate) fn wake_share(&self, share: usize, from: usize, count: usize) -> Option<usize> {
        let members = self.shares.get(share)?.members.lock();
        let slots = members.slots.get(from..).unwrap_or_default();
        for member in slots.iter().take(count).flatten() {
            member.waker.wake_place(member.place);
        }
        (slots.len() > count).then_some(from + count)
    }

    /// Returns the shares that have members and wait for no task, and marks them as waiting
    /// for one.
    pub(crate) fn queue_shares(&self) -> impl Iterator<Item = usize> {
        // Either this sees a new member, or the member sees the message: see
        // [`Registration::new`].
        fence(Ordering::SeqCst);
        let shares = self.shares.iter().enumerate();
        let due = shares
            .filter(|(_, share)| share.len() > 0 && !share.is_queued.swap(true, Ordering::AcqRel));
        due.map(|(number, _)| number)
    }

    /// Notes that a task begins to wake the members of a share.
    pub(crate) fn begin_share(&self, share: usize) {
        if let Some(share) = self.shares.get(share) {
            // Synchronizes with each message that found the share queued.
            share.is_queued.swap(false, Ordering::AcqRel);
        }
    }

    fn remove(&self, slot: Slot) {
        let (share, at) = (
            slot.get() & (SHARES_MAX as u32 - 1),
            slot.get() >> SHARE_BITS,
        );
        let Some(share) = self.shares.get(share as usize) else {
            return;
        };
        let mut members = share.members.lock();
        // Slots are numbered from 1.
        if let Some(at) = at.checked_sub(1)
            && let Some(member) = members.slots.get_mut(at as usize)
            && member.take().is_some()
        {
            members.free.push(at);
            members.cut();
            if share.len.fetch_sub(1, Ordering::AcqRel) == 1 {
                *members = Members::default();
            }
            share.slots.store(members.slots.len(), Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("id", &self.id)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Rings of one room are equal.
impl PartialEq for Ring {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Ring {}

impl Recent {
    fn end(&self) -> Point {
        let last = self.messages.back();
        last.map_or(self.start, |last| last.message.position.into())
    }

    fn push(&mut self, said: Arc<Said>) {
        let position = said.message.position;
        if !position.follows(self.end().into()) {
            // Members behind the missing message read the store.
            while !self.messages.is_empty() {
                self.pop();
            }
            self.start = before(position);
        }
        self.bytes += said.message.text.len();
        if let Some(total) = &self.total {
            total.fetch_add(memory(&said), Ordering::Relaxed);
        }
        self.messages.push_back(said);
        while self.messages.len() > MESSAGES_MAX
            || (self.bytes > BYTES_MAX && self.messages.len() > 1)
        {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(said) = self.messages.pop_front() {
            self.bytes -= said.message.text.len();
            if let Some(total) = &self.total {
                total.fetch_sub(memory(&said), Ordering::Relaxed);
            }
            self.start = said.message.position.into();
        }
    }

    fn forget(&mut self, through: Point) {
        while self.start.messages < through.messages && !self.messages.is_empty() {
            self.pop();
        }
        if self.messages.is_empty() {
            self.messages = VecDeque::new();
        }
    }
}

impl Drop for Recent {
    fn drop(&mut self) {
        while !self.messages.is_empty() {
            self.pop();
        }
    }
}

/// Returns the memory of a message in a ring: its text is there once more in its encoding.
fn memory(said: &Said) -> usize {
    const OTHER_BYTES: usize = 400;
    OTHER_BYTES + 2 * said.message.text.len()
}

/// Returns the point just before a message.
const fn before(message: Position) -> Point {
    Point {
        number: message.sequence.0 - 1,
        messages: message.messages - 1,
    }
}

impl Share {
    fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }
}

impl Registration {
    /// Adds a member to a ring: new messages mark this place of its connection as ready.
    #[must_use]
    pub fn new(ring: Arc<Ring>, waker: Waker, place: u32) -> Self {
        let number = waker.share() % ring.shares.len();
        let slot = ring.shares.get(number).and_then(|share| {
            let mut members = share.members.lock();
            share.len.fetch_add(1, Ordering::AcqRel);
            // The member takes what is published before this, and the publisher sees the
            // member after it.
            fence(Ordering::SeqCst);
            let at = members.insert(Member { waker, place });
            share.slots.store(members.slots.len(), Ordering::Relaxed);
            Slot::new((at + 1) << SHARE_BITS | number as u32)
        });
        Self { ring, slot }
    }

    /// Returns the ring.
    #[must_use]
    pub const fn ring(&self) -> &Arc<Ring> {
        &self.ring
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.ring.remove(slot);
        }
    }
}

impl Members {
    fn insert(&mut self, member: Member) -> u32 {
        while let Some(at) = self.free.pop() {
            if let Some(slot @ None) = self.slots.get_mut(at as usize) {
                *slot = Some(member);
                return at;
            }
        }
        if self.slots.len() == self.slots.capacity() {
            self.slots
                .reserve_exact(1 + self.slots.len() / GROWTH_DIVISOR);
        }
        self.slots.push(Some(member));
        (self.slots.len() - 1) as u32
    }

    /// Cuts off free slots at the end.
    fn cut(&mut self) {
        let used = self.slots.iter().rposition(Option::is_some);
        self.slots.truncate(used.map_or(0, |last| last + 1));
    }
}

#[cfg(test)]
mod tests {
    use hark_protocol::Sequence;

    use super::super::{Account, Subscription};
    use super::*;

    fn ring(messages: u64) -> Ring {
        let tail = Point {
            number: 10 * messages,
            messages,
        };
        Ring::new(7, "#team".parse().unwrap(), tail)
    }

    fn message(messages: u64, bytes: usize) -> Arc<Message> {
        Arc::new(Message {
            position: Position {
                sequence: Sequence(10 * messages),
                messages,
                bytes: 0,
            },
            sender: None,
            time_ms: 0,
            text: "x".repeat(bytes).into(),
        })
    }

    fn at(messages: u64) -> Point {
        Point {
            number: 10 * messages,
            messages,
        }
    }

    fn publish(ring: &Ring, messages: Vec<Arc<Message>>) {
        ring.publish(messages, &Arc::default());
    }

    #[track_caller]
    fn check_next(ring: &Ring, after: u64, expected: Result<u64, &str>) {
        let found = match ring.next(at(after)) {
            Next::Message(said) => Ok(said.message.position.messages),
            Next::End => Err("end"),
            Next::Behind => Err("behind"),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn members_take_the_messages_behind_their_position() {
        let ring = ring(4);
        check_next(&ring, 4, Err("end"));
        check_next(&ring, 3, Err("behind"));
        publish(&ring, vec![message(5, 1), message(6, 1)]);
        check_next(&ring, 3, Err("behind"));
        check_next(&ring, 4, Ok(5));
        check_next(&ring, 5, Ok(6));
        check_next(&ring, 6, Err("end"));
        ring.forget(at(5));
        check_next(&ring, 4, Err("behind"));
        check_next(&ring, 5, Ok(6));
    }

    #[test]
    fn ring_is_bounded_in_messages_and_bytes() {
        let ring = ring(0);
        publish(&ring, (1..=2000).map(|n| message(n, 1)).collect());
        check_next(&ring, 2000 - MESSAGES_MAX as u64 - 1, Err("behind"));
        check_next(&ring, 2000 - MESSAGES_MAX as u64, Ok(977));
        publish(&ring, vec![message(2001, BYTES_MAX + 1)]);
        check_next(&ring, 1999, Err("behind"));
        check_next(&ring, 2000, Ok(2001));
    }

    #[test]
    fn missing_message_is_left_to_the_store() {
        let ring = ring(0);
        publish(&ring, vec![message(1, 1)]);
        publish(&ring, vec![message(3, 1)]);
        check_next(&ring, 1, Err("behind"));
        check_next(&ring, 2, Ok(3));
    }

    #[test]
    fn new_message_marks_the_places_of_members() {
        let ring = Arc::new(ring(0));
        let account = Account {
            name: "amy".parse().unwrap(),
            incarnation: 1,
        };
        let subscribe = || Subscription::new(account.clone(), 0, Position::default());
        let (_keep, one) = subscribe();
        let (_keep, other) = subscribe();
        let ready = |subscription: &Subscription| subscription.waker().take_ready();
        let first = Registration::new(Arc::clone(&ring), one.waker(), 3);
        let second = Registration::new(Arc::clone(&ring), other.waker(), 5);
        assert_eq!(ring.devices(), 2);
        let wake = || {
            for share in 0..shares() {
                ring.begin_share(share);
                let mut from = Some(0);
                while let Some(at) = from {
                    from = ring.wake_share(share, at, 1);
                }
            }
        };
        assert!(ring.queue_shares().count() >= 1);
        assert_eq!(ring.queue_shares().count(), 0, "they are queued");
        wake();
        assert!(ready(&one).has_place(3) && !ready(&one).has_place(3));
        assert!(ready(&other).has_place(5));
        drop(first);
        assert!(ring.queue_shares().count() == 1);
        wake();
        assert!(!ready(&one).has_place(3));
        assert!(ready(&other).has_place(5));
        drop(second);
        assert_eq!((ring.devices(), ring.queue_shares().count()), (0, 0));
    }

    #[test]
    fn memory_of_all_rings_is_counted_exactly() {
        let total = Arc::<AtomicUsize>::default();
        let count = || total.load(Ordering::Relaxed);
        let (one, other) = (ring(0), ring(0));
        one.publish((1..=2000).map(|n| message(n, 1)).collect(), &total);
        assert_eq!(
            count(),
            MESSAGES_MAX * 402,
            "those that gave way do not count"
        );
        other.publish(vec![message(1, 100)], &total);
        assert_eq!(count(), MESSAGES_MAX * 402 + 600);
        drop(one);
        assert_eq!(count(), 600);
        assert!(other.holds(at(1)));
        other.forget(at(1));
        assert_eq!(count(), 0);
        assert!(!other.holds(at(1)));
    }

    #[test]
    fn page_is_shared_by_members_behind_the_ring() {
        let ring = Arc::new(ring(0));
        let limit = ReadLimit {
            messages: 3,
            bytes: 100,
        };
        let page = |after: u64| -> Vec<u64> {
            let page = ring.page_after(at(after), limit);
            page.iter()
                .map(|said| said.message.position.messages)
                .collect()
        };
        assert!(page(0).is_empty());
        let first = ring.keep_page((5..=9).map(|n| message(n, 40)).collect());
        assert_eq!(
            (page(3), page(4), page(5)),
            (vec![], vec![5, 6], vec![6, 7])
        );
        assert_eq!((page(8), page(9), page(10)), (vec![9], vec![], vec![]));
        let again = ring.keep_page((6..=10).map(|n| message(n, 40)).collect());
        assert!(
            Arc::ptr_eq(&first[1], &again[0]),
            "their encoding is shared"
        );
        assert_eq!((page(4), page(9)), (vec![], vec![10]));
        let _long = ring.keep_page(vec![message(11, 200), message(12, 1)]);
        assert_eq!((page(10), page(11)), (vec![11], vec![12]));
    }

    #[test]
    fn slots_of_members_that_left_are_cut_off() {
        let ring = Arc::new(ring(0));
        let account = Account {
            name: "amy".parse().unwrap(),
            incarnation: 1,
        };
        let (_keep, subscription) = Subscription::new(account, 0, Position::default());
        let register = |place| Registration::new(Arc::clone(&ring), subscription.waker(), place);
        let mut members: Vec<_> = (0..100).map(register).collect();
        assert_eq!((ring.devices(), ring.slots()), (100, 100));
        members.drain(10..);
        assert_eq!((ring.devices(), ring.slots()), (10, 10));
        members.remove(3);
        members.push(register(100));
        assert_eq!(
            (ring.devices(), ring.slots()),
            (10, 10),
            "a free slot is used"
        );
        members.extend((0..5).map(register));
        assert_eq!((ring.devices(), ring.slots()), (15, 15));
        members.clear();
        assert_eq!((ring.devices(), ring.slots()), (0, 0));
    }

    #[test]
    fn attached_member_takes_32_bytes_in_its_ring() {
        assert!(size_of::<Option<Member>>() + size_of::<Registration>() <= 32);
    }
}
