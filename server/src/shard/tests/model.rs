//! Compares a store with a simple model of it, over random operations and reopens.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hark_protocol::{Code, Sequence};
use proptest::prelude::*;

use super::{Folder, Memory};
use crate::store::contract::{Home, Limits, WIDE, create, name, queued, read, send, text};
use crate::store::{Account, Created, Outcome, Store};

const LIMITS: Limits = Limits {
    accounts: 3,
    messages: 9,
    bytes: 90,
    ..WIDE
};

#[derive(Debug, Clone)]
enum Op {
    Create(usize),
    Delete(usize),
    Append {
        to: usize,
        bytes: usize,
    },
    /// A send of a session, with an id relative to its highest.
    Send {
        session: usize,
        ahead: i32,
        to: usize,
        bytes: usize,
    },
    /// Concurrent sends.
    Burst {
        to: usize,
        count: usize,
    },
    Acknowledge {
        of: usize,
        nth: usize,
    },
    Reopen {
        closed: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let user = 0..4_usize;
    prop_oneof![
        2 => user.clone().prop_map(Op::Create),
        1 => user.clone().prop_map(Op::Delete),
        4 => (user.clone(), 0..20_usize).prop_map(|(to, bytes)| Op::Append { to, bytes }),
        6 => (0..2_usize, -3..3_i32, user.clone(), 0..20_usize)
            .prop_map(|(session, ahead, to, bytes)| Op::Send { session, ahead, to, bytes }),
        2 => (user.clone(), 1..5_usize).prop_map(|(to, count)| Op::Burst { to, count }),
        3 => (user, 0..6_usize).prop_map(|(of, nth)| Op::Acknowledge { of, nth }),
        1 => any::<bool>().prop_map(|closed| Op::Reopen { closed }),
    ]
}

#[derive(Default)]
struct Model {
    inboxes: BTreeMap<String, Inbox>,
    sessions: HashMap<(usize, u32), Outcome>,
    highest: HashMap<usize, u32>,
    /// The last number seen of each name, including ended accounts.
    numbers: HashMap<String, u64>,
    contents: usize,
}

struct Inbox {
    account: Account,
    unread: Vec<(Sequence, String)>,
}

fn user(n: usize) -> String {
    format!("user{n}")
}

impl Model {
    /// Returns a unique text of about `bytes` bytes.
    fn content(&mut self, bytes: usize) -> String {
        self.contents += 1;
        format!("{:0>bytes$}", self.contents)
    }

    /// Returns the expected answer. The number of a stored message comes from `answer`,
    /// because only the store assigns it.
    fn append(&mut self, to: usize, content: &str, answer: Outcome) -> Outcome {
        let Some(inbox) = self.inboxes.get_mut(&user(to)) else {
            return Outcome::Refused(Code::NoSuchUser);
        };
        let bytes: usize = inbox.unread.iter().map(|(_, text)| text.len()).sum();
        if inbox.unread.len() as u64 >= LIMITS.messages
            || (bytes + content.len()) as u64 > LIMITS.bytes
        {
            return Outcome::Refused(Code::QueueFull);
        }
        let Outcome::Stored(number) = answer else {
            return Outcome::Stored(Sequence(0));
        };
        inbox.unread.push((number, content.to_owned()));
        Outcome::Stored(number)
    }

    fn send(
        &mut self,
        session: usize,
        id: u32,
        to: usize,
        content: &str,
        answer: Outcome,
    ) -> Outcome {
        if let Some(outcome) = self.sessions.get(&(session, id)) {
            return *outcome;
        }
        let highest = self.highest.entry(session).or_default();
        if id <= *highest {
            return Outcome::Refused(Code::BadRequest);
        }
        *highest = id;
        let outcome = self.append(to, content, answer);
        self.sessions.insert((session, id), outcome);
        outcome
    }
}

async fn step(home: &dyn Home, store: Arc<dyn Store>, model: &mut Model, op: Op) -> Arc<dyn Store> {
    match op {
        Op::Create(n) => {
            let expected = match (model.inboxes.contains_key(&user(n)), model.inboxes.len()) {
                (true, _) => Created::Exists,
                (_, 3) => Created::TooMany,
                _ => Created::Created,
            };
            if expected == Created::Created {
                let account = create(&*store, &user(n)).await;
                model.inboxes.insert(
                    user(n),
                    Inbox {
                        account,
                        unread: Vec::new(),
                    },
                );
            } else {
                assert_eq!(store.create(&name(&user(n)), None).await, Ok(expected));
            }
        }
        Op::Delete(n) => {
            if let Some(inbox) = model.inboxes.remove(&user(n)) {
                assert_eq!(store.delete(&inbox.account).await, Ok(true));
                assert_eq!(store.delete(&inbox.account).await, Ok(false));
            }
        }
        Op::Append { to, bytes } => {
            let content = model.content(bytes);
            let answer = store.append(text(&user(to), &content)).await.unwrap();
            assert_eq!(answer, model.append(to, &content, answer));
        }
        Op::Send {
            session,
            ahead,
            to,
            bytes,
        } => {
            let highest = model.highest.get(&session).copied().unwrap_or(0);
            let id = highest.saturating_add_signed(ahead).max(1);
            let content = model.content(bytes);
            let send = send(&format!("session{session}"), id, &user(to), &content);
            let answer = store.append(send).await.unwrap();
            assert_eq!(answer, model.send(session, id, to, &content, answer));
        }
        Op::Burst { to, count } => {
            let contents: Vec<_> = (0..count).map(|_| model.content(3)).collect();
            let sends: Vec<_> = contents
                .iter()
                .map(|c| store.append(text(&user(to), c)))
                .collect();
            for (pending, content) in sends.into_iter().zip(contents) {
                let answer = pending.await.unwrap();
                assert_eq!(answer, model.append(to, &content, answer));
            }
        }
        Op::Acknowledge { of, nth } => {
            if let Some(inbox) = model.inboxes.get_mut(&user(of)) {
                let messages = read(&*store, &inbox.account).await;
                if let Some((number, _)) = inbox.unread.get(nth) {
                    let message = messages
                        .iter()
                        .find(|message| message.position.sequence == *number);
                    store.acknowledge(&inbox.account, message.expect("it is there").position);
                    inbox.unread.drain(..=nth);
                }
            }
        }
        Op::Reopen { closed } => {
            if closed {
                store.close().await.unwrap();
            } else {
                // The last acknowledgement may be lost if no record followed it.
                for inbox in model.inboxes.values() {
                    queued(&*store, &inbox.account).await;
                }
            }
            drop(store);
            return home.open(LIMITS);
        }
    }
    store
}

/// Compares all visible state with the model.
async fn compare(store: &dyn Store, model: &mut Model) {
    let names: Vec<_> = model.inboxes.keys().map(|n| name(n)).collect();
    assert_eq!(store.names(None, 99).await.unwrap(), names);
    for (user, inbox) in &model.inboxes {
        assert_eq!(
            queued(store, &inbox.account).await,
            inbox.unread.len() as u64,
            "{user}"
        );
        let messages = read(store, &inbox.account).await;
        // Acknowledged messages may remain until the next sync.
        let unread = &messages[messages.len() - inbox.unread.len()..];
        let found: Vec<_> = unread
            .iter()
            .map(|m| (m.position.sequence, m.text.to_string()))
            .collect();
        assert_eq!(found, inbox.unread, "{user}");
        assert!(messages.is_sorted_by(|a, b| a.position.sequence < b.position.sequence));
        if let (Some(first), Some(last)) = (unread.first(), unread.last()) {
            let seen = model.numbers.entry(user.clone()).or_default();
            assert!(
                last.position.sequence.0 >= *seen,
                "{user}: a number was used twice"
            );
            assert_eq!(
                last.position.messages - first.position.messages + 1,
                unread.len() as u64
            );
            *seen = last.position.sequence.0;
        }
    }
}

fn check(home: &dyn Home, ops: Vec<Op>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut store = home.open(LIMITS);
        let mut model = Model::default();
        for op in ops {
            store = step(home, store, &mut model, op).await;
            compare(&*store, &mut model).await;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn store_does_what_the_model_does(ops in proptest::collection::vec(op(), 1..60)) {
        check(&Memory::default(), ops);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn store_on_disk_does_what_the_model_does(ops in proptest::collection::vec(op(), 1..60)) {
        check(&Folder::new(), ops);
    }
}
