//! Verification of the promise of rooms under faults: writers that repeat unanswered sends,
//! devices that drop their connections in the middle of the window, and a member that joins and
//! leaves. Meanwhile the test injects faults. In the end, each device has every message of its
//! membership once and in the one order of the room, and each send is stored once.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hark_protocol::limits::VERSION;
use hark_protocol::message::RoomMode;
use hark_protocol::{
    Failure, Frame, OkFields, Reply, Request, RequestId, RoomName, RoomReply, RoomRequest, Sequence,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::{Front, Link, TIMEOUT, name, send};

const ROOM: &str = "#crash";
const WRITERS: usize = 3;

/// Users and devices that are members all the time.
const DEVICES: [(&str, &str); 3] = [("ann", "phone"), ("ann", "laptop"), ("ben", "phone")];

/// The member that comes and goes.
const GUEST: &str = "guest";

/// Largest number of unanswered sends of a writer.
const IN_FLIGHT: usize = 16;

/// Delay before a reconnect.
const AGAIN: Duration = Duration::from_millis(20);

/// Ids of requests that are not sends.
const HELLO: u32 = u32::MAX;
const LOGIN: u32 = u32::MAX - 1;
const COMMAND: u32 = u32::MAX - 2;

const FRONTS: [Front; 3] = [Front::Native, Front::WebSocket, Front::Bidi];

/// Running writers and readers.
#[derive(Debug)]
pub struct RoomPromise {
    state: Arc<State>,
    writers: Vec<JoinHandle<()>>,
    readers: Vec<JoinHandle<Vec<Stay>>>,
}

/// What was checked.
#[derive(Debug, Clone, Copy)]
pub struct RoomReport {
    /// Messages that were stored.
    pub stored: usize,
    /// Messages that were compared with them, over all devices.
    pub compared: usize,
    /// Memberships of the member that comes and goes.
    pub stays: usize,
}

#[derive(Debug)]
struct State {
    address: SocketAddr,
    is_over: AtomicBool,
    /// The number of all messages, once the writers have ended.
    total: AtomicUsize,
    /// The texts by number, as the answers to the sends said.
    stored: Mutex<Stored>,
}

type Stored = BTreeMap<u64, String>;

/// A membership, as a device sees it.
#[derive(Debug, Default)]
struct Stay {
    /// The number that `join` answered, if the answer arrived.
    after: Option<u64>,
    /// The messages, in order of their first arrival.
    received: Vec<(u64, String)>,
    /// The membership has not ended.
    is_whole: bool,
}

impl RoomPromise {
    /// Creates the accounts and the room, and starts all tasks.
    ///
    /// # Panics
    /// If the server refuses something.
    pub async fn begin(address: SocketAddr, mut random: StdRng) -> Self {
        let state = Arc::new(State {
            address,
            is_over: AtomicBool::new(false),
            total: AtomicUsize::new(usize::MAX),
            stored: Mutex::default(),
        });
        let users = (0..WRITERS)
            .map(writer)
            .chain(["ann", "ben", GUEST].map(str::to_owned));
        for user in users {
            let create = Request::Create {
                user: name(&user),
                password: None,
            };
            state.demand(&user, vec![create], &mut random).await;
        }
        let set = Request::Room(RoomRequest::Set {
            room: room(),
            mode: RoomMode::Open,
            keep_s: None,
        });
        let join = || Request::Room(RoomRequest::Join(room()));
        for at in 0..WRITERS {
            let requests = if at == 0 {
                vec![set.clone()]
            } else {
                vec![join()]
            };
            state.demand(&writer(at), requests, &mut random).await;
        }
        for user in ["ann", "ben"] {
            state.demand(user, vec![join()], &mut random).await;
        }
        let mut seed = || StdRng::seed_from_u64(random.random());
        // Devices begin at the last number of the room, so they come before the messages.
        let mut readers = Vec::new();
        for (user, device) in DEVICES {
            let mut link = state.attached(user, device, &mut seed()).await;
            while link.is_none() {
                link = state.attached(user, device, &mut seed()).await;
            }
            let reader = read(Arc::clone(&state), user, device, seed());
            readers.push(tokio::spawn(reader));
        }
        readers.push(tokio::spawn(visit(Arc::clone(&state), seed())));
        let writers = (0..WRITERS).map(|at| tokio::spawn(write(Arc::clone(&state), at, seed())));
        Self {
            writers: writers.collect(),
            state,
            readers,
        }
    }

    /// Ends the faults: waits for all tasks, and checks the promise.
    ///
    /// # Panics
    /// If it was broken.
    pub async fn end(self) -> RoomReport {
        self.state.is_over.store(true, Ordering::Release);
        for writer in self.writers {
            let ended = timeout(TIMEOUT, writer).await.expect("a writer ends");
            ended.expect("no panic");
        }
        let stored = self.state.lock().clone();
        self.state.total.store(stored.len(), Ordering::Release);
        let mut report = RoomReport {
            stored: stored.len(),
            compared: 0,
            stays: 0,
        };
        check_writers(&stored).unwrap_or_else(|error| panic!("{error}"));
        for reader in self.readers {
            let ended = timeout(TIMEOUT, reader).await.expect("a reader ends");
            let stays = ended.expect("no panic");
            for stay in stays {
                stay.check(&stored)
                    .unwrap_or_else(|error| panic!("{error}"));
                report.compared += stay.received.len();
                report.stays += usize::from(!stay.is_whole);
            }
        }
        report
    }
}

/// Checks that each writer's texts are stored once, and in their order.
fn check_writers(stored: &Stored) -> Result<(), String> {
    let mut last: BTreeMap<&str, u32> = BTreeMap::new();
    for (number, text) in stored {
        let (writer, nth) = text.split_once(' ').ok_or("a foreign text")?;
        let nth: u32 = nth.parse().map_err(|_| "a foreign text")?;
        let last = last.entry(writer).or_default();
        if nth != *last + 1 {
            return Err(format!("{writer}: message {number} is {nth} after {last}"));
        }
        *last = nth;
    }
    Ok(())
}

impl Stay {
    /// Checks that the device has each message of the membership once and in order.
    fn check(&self, stored: &Stored) -> Result<(), String> {
        let first = self.received.first().map(|(number, _)| *number);
        let after = match (self.after, first) {
            (Some(after), _) => after,
            (None, Some(first)) => first - 1,
            (None, None) if self.is_whole => 0,
            (None, None) => return Ok(()),
        };
        let last = self.received.last().map_or(after, |(number, _)| *number);
        let last = if self.is_whole {
            u64::MAX
        } else {
            last.max(after)
        };
        let mut due = stored
            .range(after + 1..)
            .take_while(|(number, _)| **number <= last);
        for (number, text) in &self.received {
            match due.next() {
                Some((expected, said)) if (expected, said) == (number, text) => {}
                expected => return Err(format!("{number} {text:?} instead of {expected:?}")),
            }
        }
        match due.next() {
            None => Ok(()),
            Some(missing) => Err(format!("{missing:?} is missing")),
        }
    }

    fn take(&mut self, number: u64, text: String) {
        // A repeat after the connection was lost.
        if self.received.last().is_none_or(|(last, _)| *last < number) {
            self.received.push((number, text));
        }
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Stored> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Opens a connection over any front.
    async fn open(&self, random: &mut StdRng) -> Option<Box<dyn Link>> {
        let front = FRONTS[random.random_range(0..FRONTS.len())];
        let link = timeout(TIMEOUT, front.link(self.address)).await.ok()?;
        if link.is_none() {
            sleep(AGAIN).await;
        }
        link
    }

    /// Makes requests of a user until each is answered `ok`.
    async fn demand(&self, user: &str, requests: Vec<Request>, random: &mut StdRng) {
        for request in requests {
            let is_create = matches!(request, Request::Create { .. });
            loop {
                let Some(mut link) = self.open(random).await else {
                    continue;
                };
                if !is_create && !is_ok(&mut *link, LOGIN, login(user)).await {
                    sleep(AGAIN).await;
                    continue;
                }
                match ask(&mut *link, COMMAND, request.clone()).await {
                    Some(Reply::Ok(_)) => break,
                    Some(Reply::Error {
                        failure: Failure::Unavailable,
                        ..
                    }) => {
                        sleep(AGAIN).await;
                    }
                    None => sleep(AGAIN).await,
                    Some(other) => panic!("{user}: {other:?}"),
                }
            }
        }
    }

    async fn attached(
        &self,
        user: &str,
        device: &str,
        random: &mut StdRng,
    ) -> Option<Box<dyn Link>> {
        let mut link = self.open(random).await?;
        let attach = Request::Room(RoomRequest::Attach {
            user: name(user),
            device: device.parse().expect("a device"),
            password: None,
        });
        match ask(&mut *link, COMMAND, attach).await? {
            Reply::Ok(_) => Some(link),
            Reply::Error {
                failure: Failure::Unavailable,
                ..
            } => None,
            other => panic!("{user}: {other:?}"),
        }
    }
}

/// Makes a request before anything is pushed, and returns its reply.
async fn ask(link: &mut dyn Link, id: u32, request: Request) -> Option<Reply> {
    ask_as(link, id, request, &mut Stay::default()).await
}

/// Makes a request, and returns whether it is answered `ok`.
async fn is_ok(link: &mut dyn Link, id: u32, request: Request) -> bool {
    matches!(ask(link, id, request).await, Some(Reply::Ok(_)))
}

/// Makes a request, and returns its reply. Messages before it are taken.
async fn ask_as(link: &mut dyn Link, id: u32, request: Request, stay: &mut Stay) -> Option<Reply> {
    link.write_all(vec![(id, request)]).await?;
    loop {
        let frame = timeout(TIMEOUT, link.next()).await.expect("an answer")?;
        if frame.id == RequestId::new(id) {
            return Some(frame.message);
        }
        if let Reply::Room(RoomReply::Said { delivery, .. }) = frame.message {
            stay.take(delivery.sequence.0, delivery.text.to_string());
        }
    }
}

fn login(user: &str) -> Request {
    Request::Login {
        user: name(user),
        password: None,
    }
}

fn room() -> RoomName {
    ROOM.parse().expect("a room")
}

fn writer(at: usize) -> String {
    format!("w{at}")
}

/// Sends until the faults end, and then until everything is answered.
async fn write(state: Arc<State>, at: usize, mut random: StdRng) {
    let (mut next, mut unanswered) = (1, VecDeque::new());
    let session: hark_protocol::SessionToken = format!("room-{at}").parse().expect("a token");
    while !state.is_over() || !unanswered.is_empty() {
        let Some(mut link) = state.open(&mut random).await else {
            continue;
        };
        let hello = Request::Hello {
            version: VERSION,
            session: session.clone(),
        };
        if !is_ok(&mut *link, HELLO, hello).await
            || !is_ok(&mut *link, LOGIN, login(&writer(at))).await
        {
            sleep(AGAIN).await;
            continue;
        }
        let text = |id: &u32| (*id, send(ROOM, &format!("{} {id}", writer(at))));
        let repeated: Vec<_> = unanswered.iter().map(text).collect();
        if link.write_all(repeated).await.is_none() {
            continue;
        }
        loop {
            let from = next;
            while !state.is_over() && unanswered.len() < IN_FLIGHT {
                unanswered.push_back(next);
                next += 1;
            }
            let new: Vec<_> = (from..next).map(|id| text(&id)).collect();
            if unanswered.is_empty() || link.write_all(new).await.is_none() {
                break;
            }
            let answer = timeout(TIMEOUT, link.next()).await.expect("an answer");
            let Some(Frame {
                id: Some(id),
                message: Reply::Ok(OkFields::Stored(number)),
            }) = answer
            else {
                // The connection ends, or is to end.
                break;
            };
            let said = format!("{} {}", writer(at), id.value());
            let former = state.lock().insert(number.0, said.clone());
            assert!(
                former.is_none_or(|former| former == said),
                "one number for two"
            );
            unanswered.retain(|unanswered| *unanswered != id.value());
        }
    }
}

/// Reads the room for one device until it has everything.
async fn read(
    state: Arc<State>,
    user: &'static str,
    device: &'static str,
    mut random: StdRng,
) -> Vec<Stay> {
    let mut stay = Stay {
        after: Some(0),
        is_whole: true,
        ..Stay::default()
    };
    let is_complete = |stay: &Stay| stay.received.len() >= state.total.load(Ordering::Acquire);
    while !is_complete(&stay) {
        let Some(mut link) = state.attached(user, device, &mut random).await else {
            continue;
        };
        let mut pushed = None;
        // Drops the connection in the middle of the window.
        for _ in 0..random.random_range(1..400) {
            if is_complete(&stay) || !receive(&mut *link, &mut stay, &mut pushed, &mut random).await
            {
                break;
            }
        }
    }
    vec![stay]
}

/// Takes the next push, if one comes soon. `pushed` is the last number on this connection, and
/// the only one that it may acknowledge. Returns whether the connection is open.
async fn receive(
    link: &mut dyn Link,
    stay: &mut Stay,
    pushed: &mut Option<Sequence>,
    random: &mut StdRng,
) -> bool {
    match timeout(AGAIN, link.next()).await {
        Ok(None) => return false,
        Ok(Some(Frame { message, .. })) => match message {
            Reply::Room(RoomReply::Said { delivery, .. }) => {
                *pushed = Some(delivery.sequence);
                stay.take(delivery.sequence.0, delivery.text.to_string());
            }
            Reply::Room(RoomReply::Device { .. } | RoomReply::Joined { .. }) => {}
            Reply::Bye(_) => return false,
            other => panic!("{other:?}"),
        },
        // Quiet.
        Err(_) => {}
    }
    let Some(sequence) = pushed.filter(|_| random.random_ratio(1, 8)) else {
        return true;
    };
    let log = Some(room());
    link.write_all(vec![(0, Request::Ack { log, sequence })])
        .await
        .is_some()
}

/// Joins and leaves until the faults end.
async fn visit(state: Arc<State>, mut random: StdRng) -> Vec<Stay> {
    let mut stays = Vec::new();
    while !state.is_over() {
        let mut stay = Stay::default();
        let Some(mut link) = state.attached(GUEST, "phone", &mut random).await else {
            continue;
        };
        // If the answer is lost, the member may have joined before.
        let join = Request::Room(RoomRequest::Join(room()));
        match ask_as(&mut *link, COMMAND, join.clone(), &mut stay).await {
            Some(Reply::Ok(OkFields::Joined(last, _))) => stay.after = Some(last.0),
            _ => state.demand(GUEST, vec![join], &mut random).await,
        }
        let mut pushed = None;
        for _ in 0..random.random_range(1..200) {
            if !receive(&mut *link, &mut stay, &mut pushed, &mut random).await {
                break;
            }
        }
        drop(link);
        let leave = Request::Room(RoomRequest::Leave(room()));
        state.demand(GUEST, vec![leave], &mut random).await;
        stays.push(stay);
    }
    stays
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        let texts = ["w0 1", "w1 1", "w0 2", "w1 2", "w0 3"];
        (3..).step_by(2).zip(texts.map(str::to_owned)).collect()
    }

    fn stay(after: Option<u64>, numbers: &[u64], is_whole: bool) -> Stay {
        let stored = stored();
        let received = numbers
            .iter()
            .map(|number| (*number, stored[number].clone()));
        Stay {
            after,
            received: received.collect(),
            is_whole,
        }
    }

    #[test]
    fn kept_promise_passes() {
        check_writers(&stored()).unwrap();
        for stay in [
            stay(Some(0), &[3, 5, 7, 9, 11], true),
            stay(Some(4), &[5, 7], false),
            stay(None, &[7, 9], false),
            stay(Some(5), &[], false),
        ] {
            stay.check(&stored()).unwrap();
        }
    }

    #[test]
    fn planted_bugs_are_found() {
        for (bug, stay) in [
            ("lost at the end", stay(Some(0), &[3, 5, 7, 9], true)),
            ("lost in the middle", stay(Some(0), &[3, 7, 9, 11], true)),
            ("lost at the beginning", stay(Some(0), &[5, 7], false)),
            ("nothing", stay(Some(0), &[], true)),
            ("repeated", stay(Some(0), &[3, 3, 5, 7, 9, 11], true)),
            ("swapped", stay(Some(0), &[5, 3, 7, 9, 11], true)),
            ("from before the join", stay(Some(5), &[5, 7], false)),
        ] {
            stay.check(&stored()).expect_err(bug);
        }
        let mut other = stay(Some(0), &[3, 5], false);
        other.received[1].1 = "w1 2".to_owned();
        other.check(&stored()).expect_err("another text");
        let mut twice = stored();
        twice.insert(13, "w0 3".to_owned());
        check_writers(&twice).expect_err("a send that is stored twice");
        let mut lost = stored();
        lost.remove(&7);
        check_writers(&lost).expect_err("a send that is not stored");
    }
}
