//! The workload `kafka`: no answered message is lost, doubled or moved; a poll has all
//! messages that were answered before it, without gaps; and committed offsets do not go back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hark_node::sim::{Client, Cluster, Operation};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{END_AT, cluster, random_node};
use crate::cluster::maelstrom::kafka::program;

const KEYS: u64 = 4;

/// The pause between two requests.
const PAUSE: Duration = Duration::from_millis(100);

/// Maximum messages of one poll: a shorter one has all messages.
const POLLED_MAX: usize = 100;

#[derive(Deserialize)]
struct SendOk {
    offset: u64,
}

#[derive(Deserialize)]
struct PollOk {
    msgs: BTreeMap<String, Vec<(u64, usize)>>,
}

#[derive(Deserialize)]
struct ListOk {
    offsets: BTreeMap<String, u64>,
}

/// A request, with its number as the message of a send.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Send,
    Poll { from: u64 },
    Commit { offset: u64 },
    List,
}

/// An answered operation: its time, and the offset in its request or reply.
#[derive(Debug, Clone, Copy)]
struct Known {
    began: Duration,
    ended: Duration,
    offset: u64,
}

/// An answered poll.
#[derive(Debug)]
struct Polled {
    known: Known,
    messages: Vec<(u64, usize)>,
}

/// The evidence about one key.
#[derive(Debug, Default)]
struct Log {
    sent: Vec<(usize, Known)>,
    polled: Vec<Polled>,
    committed: Vec<Known>,
    listed: Vec<Known>,
    /// Offsets that may have been committed.
    attempted: BTreeSet<u64>,
    /// All messages, at the end.
    messages: BTreeMap<u64, usize>,
}

impl Log {
    fn check(&self) {
        let unique: BTreeSet<_> = self.messages.values().collect();
        assert_eq!(
            unique.len(),
            self.messages.len(),
            "a message has two offsets: {:?}",
            self.messages
        );
        for (message, sent) in &self.sent {
            assert_eq!(
                self.messages.get(&sent.offset),
                Some(message),
                "an answered message is lost: {sent:?}"
            );
            for (_, other) in &self.sent {
                assert!(
                    sent.ended >= other.began || sent.offset < other.offset,
                    "out of order: {sent:?} {other:?}"
                );
            }
        }
        self.polled
            .iter()
            .for_each(|polled| self.check_poll(polled));
        self.check_committed();
    }

    /// Checks that a poll shows the messages from its offset on, at least those that were
    /// answered before it.
    fn check_poll(&self, polled: &Polled) {
        let Polled { known, messages } = polled;
        let all = self.messages.range(known.offset..);
        let expected: Vec<_> = all
            .map(|(offset, message)| (*offset, *message))
            .take(messages.len())
            .collect();
        assert_eq!(*messages, expected, "a poll has a gap: {known:?}");
        let last = messages.last().map_or(0, |(offset, _)| *offset);
        let is_stale =
            |sent: &Known| sent.ended < known.began && sent.offset > last.max(known.offset);
        let stale = self.sent.iter().find(|(_, sent)| is_stale(sent));
        assert!(
            messages.len() >= POLLED_MAX || stale.is_none(),
            "a poll is stale: {known:?} lacks {stale:?}"
        );
    }

    fn check_committed(&self) {
        for list in &self.listed {
            let known = self.committed.iter().chain(&self.listed);
            for known in known.filter(|known| known.ended < list.began) {
                assert!(known.offset <= list.offset, "went back: {known:?} {list:?}");
            }
            assert!(
                self.attempted.contains(&list.offset),
                "no client has committed {list:?}"
            );
        }
    }
}

/// The requests of a run and their evidence.
struct Run {
    cluster: Cluster,
    client: Client,
    asked: Vec<(String, Asked, Operation)>,
    /// The last offset of each key that a client has seen.
    seen: BTreeMap<String, u64>,
}

impl Run {
    /// Sends a random request to a random node.
    fn ask(&mut self) {
        let number = self.asked.len();
        let key = format!("k{}", self.cluster.random_range(0..KEYS));
        let seen = self.seen.get(&key).copied().unwrap_or_default();
        let asked = match self.cluster.random_range(0..6) {
            0..3 => Asked::Send,
            3 => Asked::Poll {
                from: if self.cluster.random_range(0..3) == 0 {
                    0
                } else {
                    seen
                },
            },
            4 => Asked::Commit { offset: seen },
            _ => Asked::List,
        };
        let (kind, body) = match asked {
            Asked::Send => ("send", json!({"key": key, "msg": number})),
            Asked::Poll { from } => ("poll", json!({"offsets": {&key: from}})),
            Asked::Commit { offset } => ("commit_offsets", json!({"offsets": {&key: offset}})),
            Asked::List => ("list_committed_offsets", json!({"keys": [key]})),
        };
        let node = random_node(&mut self.cluster);
        let operation = self.cluster.send(self.client, &node, kind, &body);
        self.asked.push((key, asked, operation));
        self.cluster.run_for(PAUSE);
        for (key, asked, operation) in self.asked.iter().rev().take(20) {
            if let (Asked::Send, Some(SendOk { offset })) = (asked, self.end(*operation)) {
                let seen = self.seen.entry(key.clone()).or_default();
                *seen = offset.max(*seen);
            }
        }
    }

    fn end<R: DeserializeOwned>(&self, operation: Operation) -> Option<R> {
        self.cluster.poll(operation).and_then(Result::ok)
    }

    /// Collects the answers.
    fn logs(&self) -> BTreeMap<String, Log> {
        let mut logs = BTreeMap::<String, Log>::new();
        for (number, (key, asked, operation)) in self.asked.iter().enumerate() {
            let log = logs.entry(key.clone()).or_default();
            let (began, ended) = self.cluster.span(*operation).unwrap();
            let ended = ended.unwrap();
            let known = |offset| Known {
                began,
                ended,
                offset,
            };
            match *asked {
                Asked::Send => log.sent.extend(
                    self.end(*operation)
                        .map(|SendOk { offset }| (number, known(offset))),
                ),
                Asked::Poll { from } => {
                    log.polled
                        .extend(self.end(*operation).map(|mut polled: PollOk| Polled {
                            known: known(from),
                            messages: polled.msgs.remove(key).unwrap_or_default(),
                        }));
                }
                Asked::Commit { offset } => {
                    log.attempted.insert(offset);
                    log.committed
                        .extend(self.end(*operation).map(|()| known(offset)));
                }
                Asked::List => {
                    let listed: Option<ListOk> = self.end(*operation);
                    let offset = listed.and_then(|listed| listed.offsets.get(key).copied());
                    log.listed.extend(offset.map(known));
                }
            }
        }
        logs
    }

    /// Reads a whole log at a node.
    fn messages(&mut self, node: &str, key: &str) -> BTreeMap<u64, usize> {
        let mut messages = BTreeMap::new();
        while self.cluster.now() < END_AT {
            let from = messages.last_key_value().map_or(0, |(last, _)| last + 1);
            let body = json!({"offsets": {key: from}});
            let polled = self.cluster.call(self.client, node, "poll", &body);
            let Ok(PollOk { mut msgs }) = polled else {
                self.cluster.run_for(PAUSE);
                continue;
            };
            let page = msgs.remove(key).unwrap_or_default();
            if page.is_empty() {
                return messages;
            }
            messages.extend(page);
        }
        panic!("{node} does not answer after the end of all faults")
    }
}

/// Runs the requests under faults, and then compares the logs with all answers.
pub(super) fn run(seed: u64) {
    let (mut cluster, calm_at) = cluster(program, seed);
    let client = cluster.client();
    let mut run = Run {
        cluster,
        client,
        asked: Vec::new(),
        seen: BTreeMap::new(),
    };
    while run.cluster.now() < calm_at {
        run.ask();
    }
    // The last clients give up.
    run.cluster.run_for(Duration::from_secs(6));
    let mut logs = run.logs();
    let sent: usize = logs.values().map(|log| log.sent.len()).sum();
    let asked = run.asked.len();
    assert!(sent > asked / 8, "only {sent} sends of {asked} requests");
    for (key, log) in &mut logs {
        log.messages = run.messages("n1", key);
        for node in ["n2", "n3"] {
            assert_eq!(
                run.messages(node, key),
                log.messages,
                "{node} and n1 differ"
            );
        }
        log.check();
    }
}

fn known(began: u64, ended: u64, offset: u64) -> Known {
    Known {
        began: Duration::from_secs(began),
        ended: Duration::from_secs(ended),
        offset,
    }
}

/// A log of two answered messages.
fn log() -> Log {
    Log {
        sent: vec![(10, known(0, 1, 5)), (20, known(2, 3, 7))],
        messages: BTreeMap::from([(5, 10), (7, 20)]),
        ..Log::default()
    }
}

fn poll(log: Log, messages: Vec<(u64, usize)>) -> Log {
    let known = known(4, 5, 0);
    Log {
        polled: vec![Polled { known, messages }],
        ..log
    }
}

#[test]
fn polls_of_whole_logs_pass() {
    poll(log(), vec![(5, 10), (7, 20)]).check();
}

#[test]
#[should_panic(expected = "a poll is stale")]
fn stale_polls_are_found() {
    poll(log(), vec![(5, 10)]).check();
}

#[test]
#[should_panic(expected = "a poll has a gap")]
fn gaps_in_polls_are_found() {
    poll(log(), vec![(7, 20)]).check();
}

#[test]
#[should_panic(expected = "an answered message is lost")]
fn lost_messages_are_found() {
    let messages = BTreeMap::from([(5, 10)]);
    Log { messages, ..log() }.check();
}

#[test]
#[should_panic(expected = "a message has two offsets")]
fn doubled_messages_are_found() {
    let messages = BTreeMap::from([(5, 10), (6, 10), (7, 20)]);
    Log { messages, ..log() }.check();
}

#[test]
#[should_panic(expected = "out of order")]
fn offsets_against_time_are_found() {
    Log {
        sent: vec![(10, known(2, 3, 5)), (20, known(0, 1, 7))],
        ..log()
    }
    .check();
}

#[test]
#[should_panic(expected = "went back")]
fn offsets_that_go_back_are_found() {
    Log {
        committed: vec![known(0, 1, 5)],
        listed: vec![known(2, 3, 3)],
        attempted: BTreeSet::from([3, 5]),
        ..Log::default()
    }
    .check();
}
