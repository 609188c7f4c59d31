//! The workload `queue`: senders that repeat unanswered sends, and readers that change nodes.
//! Each answered message is read once, under its number, and those of a session in order.

use std::collections::BTreeMap;
use std::time::Duration;

use hark_node::Error;
use hark_node::sim::{Client, Cluster, Operation};
use serde::Deserialize;
use serde_json::json;

use super::{END_AT, cluster, random_node};
use crate::cluster::maelstrom::queue::program;

const USERS: [&str; 4] = ["ann", "bob", "cleo", "dora"];
const SESSIONS: usize = 3;

/// Maximum messages in one batch.
const BATCH_MAX: u32 = 4;

/// The time between two looks at the operations.
const STEP: Duration = Duration::from_millis(50);

/// The time after the end in which nothing may be read again under a new number.
const AFTER_END: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct SendOk {
    numbers: Vec<u64>,
}

#[derive(Deserialize)]
struct ReceiveOk {
    messages: Vec<(u64, String)>,
}

/// An id in a session, a recipient and a text.
type Sent = (u32, &'static str, String);

/// A session. After an error it sends the same batch again.
struct Sender {
    session: usize,
    last_id: u32,
    /// The unanswered messages.
    batch: Vec<Sent>,
    asked: Option<Operation>,
    next_at: Duration,
}

/// A reader that remembers the last number it has processed.
struct Reader {
    user: &'static str,
    node: String,
    processed: u64,
    asked: Option<Operation>,
    hop_at: Duration,
}

/// The promise: the answered numbers, and the messages that readers have processed.
#[derive(Default)]
struct Judge {
    stored: BTreeMap<String, (&'static str, u64)>,
    read: BTreeMap<String, (&'static str, u64)>,
    /// The last id of a session that a reader has processed.
    latest: BTreeMap<(&'static str, String), u32>,
}

impl Judge {
    fn stored(&mut self, to: &'static str, text: &str, number: u64) {
        let former = self.stored.insert(text.to_owned(), (to, number));
        assert!(former.is_none(), "{text} is answered twice");
    }

    fn read(&mut self, user: &'static str, number: u64, text: String) {
        let (session, id) = text.split_once(':').expect("a text that was sent");
        let id = id.parse().expect("a text that was sent");
        let former = self.latest.insert((user, session.to_owned()), id);
        assert!(
            former < Some(id),
            "{user} reads {session}:{id} after {former:?}"
        );
        let former = self.read.insert(text.clone(), (user, number));
        assert!(
            former.is_none(),
            "{text} is read twice: {former:?}, {number}"
        );
    }

    /// Returns the answered messages that were not read.
    fn missing(&self) -> impl Iterator<Item = &String> {
        self.stored
            .keys()
            .filter(|text| !self.read.contains_key(*text))
    }

    fn check(&self) {
        assert_eq!(self.stored, self.read);
        assert!(!self.stored.is_empty(), "a run that compares nothing");
    }
}

/// Runs all senders and readers under faults, until all messages are read.
pub(super) fn run(seed: u64) {
    let (mut cluster, calm_at) = cluster(program, seed);
    let client = cluster.client();
    create_users(&mut cluster, client);
    let mut senders: Vec<_> = (0..SESSIONS).map(Sender::new).collect();
    let mut readers = USERS.map(Reader::new);
    let mut judge = Judge::default();
    let mut end_at = END_AT;
    while cluster.now() < end_at {
        cluster.run_for(STEP);
        for sender in &mut senders {
            sender.take_answer(&mut cluster, &mut judge);
            sender.send(&mut cluster, client, calm_at);
        }
        for reader in &mut readers {
            reader.step(&mut cluster, client, &mut judge);
        }
        let is_over = senders.iter().all(|sender| sender.batch.is_empty());
        if end_at == END_AT
            && cluster.now() >= calm_at
            && is_over
            && judge.missing().next().is_none()
        {
            end_at = end_at.min(cluster.now() + AFTER_END);
        }
    }
    for Sender { session, batch, .. } in senders {
        assert!(batch.is_empty(), "s{session} gets no answer to {batch:?}");
    }
    judge.check();
}

fn create_users(cluster: &mut Cluster, client: Client) {
    for user in USERS {
        while cluster.now() < END_AT {
            let created: Result<(), Error> =
                cluster.call(client, "n1", "create", &json!({"user": user}));
            if created.is_ok() {
                break;
            }
            cluster.run_for(STEP);
        }
    }
}

impl Sender {
    fn new(session: usize) -> Self {
        Self {
            session,
            last_id: 0,
            batch: Vec::new(),
            asked: None,
            next_at: Duration::ZERO,
        }
    }

    fn take_answer(&mut self, cluster: &mut Cluster, judge: &mut Judge) {
        let Some(end) = self.asked.and_then(|asked| cluster.poll::<SendOk>(asked)) else {
            return;
        };
        self.asked = None;
        let mut pause = Duration::from_millis(cluster.random_range(0..300));
        if let Ok(SendOk { numbers }) = end {
            assert_eq!(self.batch.len(), numbers.len());
            for ((_, to, text), number) in self.batch.drain(..).zip(numbers) {
                judge.stored(to, &text, number);
            }
            pause *= 5;
        }
        self.next_at = cluster.now() + pause;
    }

    fn send(&mut self, cluster: &mut Cluster, client: Client, calm_at: Duration) {
        if self.asked.is_some() || cluster.now() < self.next_at {
            return;
        }
        if self.batch.is_empty() && cluster.now() < calm_at {
            for _ in 0..cluster.random_range(1..=BATCH_MAX) {
                self.last_id += cluster.random_range(1..3);
                let to = USERS[cluster.random_range(0..USERS.len())];
                let text = format!("s{}:{}", self.session, self.last_id);
                self.batch.push((self.last_id, to, text));
            }
        }
        if !self.batch.is_empty() {
            let body = json!({"session": format!("s{}", self.session), "messages": self.batch});
            let node = random_node(cluster);
            self.asked = Some(cluster.send(client, &node, "send", &body));
        }
    }
}

impl Reader {
    fn new(user: &'static str) -> Self {
        Self {
            user,
            node: "n1".to_owned(),
            processed: 0,
            asked: None,
            hop_at: Duration::ZERO,
        }
    }

    /// Takes messages, and asks for the next ones, sometimes at another node.
    fn step(&mut self, cluster: &mut Cluster, client: Client, judge: &mut Judge) {
        if let Some(asked) = self.asked {
            match cluster.poll::<ReceiveOk>(asked) {
                None => return,
                Some(Ok(ReceiveOk { messages })) => {
                    for (number, text) in messages {
                        if number > self.processed {
                            self.processed = number;
                            judge.read(self.user, number, text);
                        }
                    }
                }
                Some(Err(_)) => self.hop_at = cluster.now(),
            }
        }
        if cluster.now() >= self.hop_at {
            self.node = random_node(cluster);
            let stay = Duration::from_millis(cluster.random_range(1000..9000));
            self.hop_at = cluster.now() + stay;
        }
        let body = json!({"user": self.user, "acknowledged": self.processed});
        self.asked = Some(cluster.send(client, &self.node, "receive", &body));
    }
}

#[test]
#[should_panic(expected = "is read twice")]
fn doubled_messages_are_found() {
    let mut judge = Judge::default();
    judge.read("ann", 1, "s1:1".to_owned());
    judge.read("bob", 2, "s1:1".to_owned());
}

#[test]
#[should_panic(expected = "ann reads s1:1 after Some(2)")]
fn overtaken_messages_are_found() {
    let mut judge = Judge::default();
    judge.read("ann", 1, "s1:2".to_owned());
    judge.read("ann", 2, "s1:1".to_owned());
}

#[test]
#[should_panic(expected = "assertion")]
fn lost_messages_are_found() {
    let mut judge = Judge::default();
    judge.stored("ann", "s1:1", 1);
    judge.check();
}
