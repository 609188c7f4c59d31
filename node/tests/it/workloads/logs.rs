//! `kafka`: no message is lost, doubled or moved, polls have no gaps, and
//! committed offsets do not go back.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use hark_node::sim;
use serde::Deserialize;
use serde_json::json;

use super::graph::below;
use super::kafka;
use super::storm::Storm;

const KEYS: u64 = 3;

#[derive(Deserialize)]
struct SendOk {
    offset: u64,
}

#[derive(Deserialize)]
struct PollOk {
    msgs: BTreeMap<String, Vec<(u64, i64)>>,
}

#[derive(Deserialize)]
struct ListOk {
    offsets: BTreeMap<String, u64>,
}

/// The content of a request, by its number.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Send,
    Poll { from: u64 },
    Commit { offset: u64 },
    List,
}

fn asked(number: i64) -> (String, Asked) {
    let from = u64::try_from(below(30, number, 2)).unwrap();
    let asked = match below(6, number, 1) {
        0..3 => Asked::Send,
        3 => Asked::Poll { from },
        4 => Asked::Commit { offset: from },
        _ => Asked::List,
    };
    (below(KEYS, number, 3).to_string(), asked)
}

/// The span of an operation, and the offset in its reply.
#[derive(Debug, Clone, Copy)]
struct Known {
    began: Duration,
    ended: Duration,
    offset: u64,
}

/// The evidence of a history about one key.
#[derive(Debug, Default)]
struct Log {
    /// The message at each offset, from any reply.
    messages: BTreeMap<u64, i64>,
    sent: Vec<Known>,
    committed: Vec<Known>,
    listed: Vec<Known>,
    /// Offsets that may have been committed.
    attempted: BTreeSet<u64>,
}

impl Log {
    /// Takes a message that a reply shows.
    #[track_caller]
    fn take(&mut self, offset: u64, message: i64) {
        let before = *self.messages.entry(offset).or_insert(message);
        assert_eq!(before, message, "two messages at offset {offset}");
    }

    /// Takes the reply to a poll.
    #[track_caller]
    fn take_poll(&mut self, from: u64, messages: &[(u64, i64)]) {
        for (expected, (offset, message)) in (from..).zip(messages) {
            assert_eq!(*offset, expected, "a poll has a gap: {messages:?}");
            self.take(*offset, *message);
        }
    }

    #[track_caller]
    fn check(&self) {
        let unique: BTreeSet<_> = self.messages.values().collect();
        assert_eq!(
            unique.len(),
            self.messages.len(),
            "a message has two offsets: {:?}",
            self.messages
        );
        for one in &self.sent {
            let later = self.sent.iter().filter(|other| one.ended < other.began);
            later.for_each(|other| {
                assert!(one.offset < other.offset, "out of order: {one:?} {other:?}")
            });
        }
        for list in &self.listed {
            let before = self
                .committed
                .iter()
                .chain(&self.listed)
                .filter(|known| known.ended < list.began);
            before.for_each(|known| {
                assert!(known.offset <= list.offset, "went back: {known:?} {list:?}")
            });
            assert!(
                self.attempted.contains(&list.offset),
                "no client has committed {list:?}"
            );
        }
    }
}

pub(super) fn logs_keep_their_messages(seeds: Range<u64>) {
    sim::check(seeds, |seed| {
        let mut storm = Storm::new(kafka::program, seed);
        let operations = storm.ask(|number| match asked(number) {
            (key, Asked::Send) => ("send", json!({"key": key, "msg": number})),
            (key, Asked::Poll { from }) => ("poll", json!({"offsets": {key: from}})),
            (key, Asked::Commit { offset }) => {
                ("commit_offsets", json!({"offsets": {key: offset}}))
            }
            (key, Asked::List) => ("list_committed_offsets", json!({"keys": [key]})),
        });
        storm.answered(&operations);
        let mut logs = BTreeMap::<String, Log>::new();
        for (number, operation) in (0..).zip(operations) {
            let (key, asked) = asked(number);
            let log = logs.entry(key.clone()).or_default();
            let (began, ended) = storm.cluster.span(operation).unwrap();
            let known = |offset| Known {
                began,
                ended: ended.unwrap(),
                offset,
            };
            match asked {
                Asked::Send => {
                    if let Some(SendOk { offset }) = storm.end(operation) {
                        log.take(offset, number);
                        log.sent.push(known(offset));
                    }
                }
                Asked::Poll { from } => {
                    let polled: Option<PollOk> = storm.end(operation);
                    let messages = polled.and_then(|mut polled| polled.msgs.remove(&key));
                    log.take_poll(from, &messages.unwrap_or_default());
                }
                Asked::Commit { offset } => {
                    log.attempted.insert(offset);
                    log.committed
                        .extend(storm.end::<()>(operation).map(|()| known(offset)));
                }
                Asked::List => {
                    let listed = storm.end::<ListOk>(operation);
                    log.listed.extend(
                        listed
                            .and_then(|listed| listed.offsets.get(&key).copied())
                            .map(known),
                    );
                }
            }
        }
        for node in storm.cluster.node_ids() {
            for (key, log) in &mut logs {
                let client = storm.cluster.client();
                let body = json!({"offsets": {key: 0}});
                let polled: PollOk = storm.cluster.call(client, &node, "poll", &body).unwrap();
                let messages = &polled.msgs[key];
                log.take_poll(0, messages);
                let sent = log
                    .sent
                    .iter()
                    .map(|sent| sent.offset)
                    .max()
                    .unwrap_or_default();
                let last = messages.last().map_or(0, |(offset, _)| *offset);
                assert!(
                    sent <= last,
                    "{node} has lost the messages of {key} from {last} on"
                );
            }
        }
        logs.values().for_each(Log::check);
    });
}

fn known(began: u64, ended: u64, offset: u64) -> Known {
    Known {
        began: Duration::from_secs(began),
        ended: Duration::from_secs(ended),
        offset,
    }
}

#[test]
#[should_panic(expected = "two messages at offset 3")]
fn replaced_messages_are_found() {
    let mut log = Log::default();
    log.take_poll(2, &[(2, 20), (3, 30)]);
    log.take(3, 31);
}

#[test]
#[should_panic(expected = "a poll has a gap")]
fn gaps_in_polls_are_found() {
    Log::default().take_poll(2, &[(2, 20), (4, 40)]);
}

#[test]
#[should_panic(expected = "a message has two offsets")]
fn doubled_messages_are_found() {
    Log {
        messages: BTreeMap::from([(0, 7), (1, 7)]),
        ..Log::default()
    }
    .check();
}

#[test]
#[should_panic(expected = "out of order")]
fn offsets_against_time_are_found() {
    Log {
        sent: vec![known(0, 1, 5), known(2, 3, 4)],
        ..Log::default()
    }
    .check();
}

#[test]
#[should_panic(expected = "went back")]
fn offsets_that_go_back_are_found() {
    let attempted = BTreeSet::from([3, 5]);
    Log {
        committed: vec![known(0, 1, 5)],
        listed: vec![known(2, 3, 3)],
        attempted,
        ..Log::default()
    }
    .check();
}
