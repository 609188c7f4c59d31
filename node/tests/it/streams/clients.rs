//! Streams between two nodes, as their client sees them, over a network that
//! is not always kind.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use hark_node::stream::{Bidi, BidiStream, End, IDLE_MAX, ITEMS_MAX, ServerStream, Services, Sink};
use hark_node::{Error, Node};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::net::Net;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Numbers {
    n: u64,
    wait_ms: u64,
}

const FIVE: Numbers = Numbers { n: 5, wait_ms: 0 };

struct Sum {
    sum: u64,
    _held: Rc<()>,
}

impl Bidi<()> for Sum {
    type In = u64;
    type Out = u64;

    async fn receive(&mut self, _: &Node<()>, n: u64) -> Result<u64, Error> {
        self.sum += n;
        Ok(self.sum)
    }
}

/// Two nodes, what the client has noted, and what the server's streams hold.
struct Pair {
    net: Net,
    notes: Notes,
    held: Rc<()>,
}

/// The events of a client, and the streams that it holds.
#[derive(Clone, Default)]
struct Notes {
    lines: Rc<RefCell<Vec<String>>>,
    kept: Rc<RefCell<Vec<ServerStream<u64>>>>,
}

impl Notes {
    fn note(&self, line: impl std::fmt::Debug) {
        self.lines.borrow_mut().push(format!("{line:?}"));
    }

    /// An item, the end or the code of an error; whether more may come.
    fn note_next(&self, next: Result<Option<u64>, Error>) -> bool {
        match next {
            Ok(Some(n)) => self.note(n),
            Ok(None) => {
                self.note("end");
                return false;
            }
            Err(error) => {
                self.note(format!("error {}", i64::from(error.code)));
                return false;
            }
        }
        true
    }
}

impl Pair {
    /// A server, and a client that runs this once it has its name.
    fn new(client: impl AsyncFnOnce(Node<()>, Notes) + 'static) -> Self {
        Self::with_weather(std::convert::identity, client)
    }

    fn with_weather(
        weather: impl FnMut(Vec<Value>) -> Vec<Value> + 'static,
        client: impl AsyncFnOnce(Node<()>, Notes) + 'static,
    ) -> Self {
        let (mut net, notes, held) = (Net::new(), Notes::default(), Rc::new(()));
        net.add("server", |node| serve(node, &held));
        net.set_weather(weather);
        let notes_of_client = notes.clone();
        net.add("client", |node: &Node<()>| {
            node.on_init(async move |node| client(node, notes_of_client).await);
        });
        Self { net, notes, held }
    }

    /// Lets time pass, and compares the events of the client since.
    #[track_caller]
    fn expect(&mut self, time: Duration, expected: &str) {
        assert!(self.net.pass(time).is_empty());
        let lines: Vec<_> = self.notes.lines.borrow_mut().drain(..).collect();
        assert_eq!(lines.join(" ").replace('"', ""), expected);
    }

    /// Checks that both sides hold no stream.
    #[track_caller]
    fn expect_nothing_left(&mut self) {
        assert_eq!(self.net.machine("client").pending(), 0);
        assert_eq!(self.serving(), 0);
    }

    /// Returns the number of open streams of the server: all holders but the test
    /// and the services.
    fn serving(&self) -> usize {
        Rc::strong_count(&self.held) - 3
    }
}

fn serve(node: &Node<()>, held: &Rc<()>) {
    let services = Services::new(node);
    let count = Rc::clone(held);
    services.server_stream(
        "Math",
        "Count",
        move |node: Node<()>, to: Numbers, sink: Sink<u64>| {
            let held = Rc::clone(&count);
            async move {
                for n in 1..=to.n {
                    if to.wait_ms > 0 {
                        node.sleep(Duration::from_millis(to.wait_ms)).await;
                    }
                    sink.send(&n)?;
                }
                drop(held);
                Ok(())
            }
        },
    );
    services.server_stream("Math", "Mixed", async |_, (): (), sink: Sink<Value>| {
        sink.send(&1.into())?;
        sink.send(&"two".into())?;
        sink.send(&3.into())
    });
    let sums = Rc::clone(held);
    services.bidi("Math", "Sum", move |_, _| {
        Ok(Sum {
            sum: 0,
            _held: Rc::clone(&sums),
        })
    });
}

async fn open(node: &Node<()>, method: &str, request: impl Serialize) -> ServerStream<u64> {
    node.open_stream("server", "Math", method, &request)
        .await
        .unwrap()
}

async fn note_all(notes: &Notes, stream: &mut ServerStream<u64>) {
    while notes.note_next(stream.next().await) {}
}

#[test]
fn items_are_read_up_to_the_end_and_the_end_again() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(&node, "Count", FIVE).await;
        note_all(&notes, &mut stream).await;
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::ZERO, "1 2 3 4 5 end end");
    pair.expect_nothing_left();
}

#[test]
fn items_that_come_twice_or_out_of_order_are_read_once_and_in_order() {
    let doubled_and_turned = |messages: Vec<Value>| {
        let are_replies = messages.iter().all(|message| message["dest"] == "client");
        let twice = messages.iter().chain(&messages).rev().cloned().collect();
        if are_replies { twice } else { messages }
    };
    let mut pair = Pair::with_weather(doubled_and_turned, async |node, notes| {
        let mut stream = open(&node, "Count", FIVE).await;
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::ZERO, "1 2 3 4 5 end");
    pair.expect_nothing_left();
}

#[test]
fn an_item_that_is_lost_is_a_timeout() {
    let mut pair = Pair::with_weather(
        |mut messages| {
            messages.retain(|message| message["body"]["seq"] != 3);
            messages
        },
        async |node, notes| {
            let mut stream = open(&node, "Count", FIVE).await;
            note_all(&notes, &mut stream).await;
            note_all(&notes, &mut stream).await;
        },
    );
    pair.expect(SECOND, "1 2 error 0");
    pair.expect(SECOND, "error 0");
    pair.expect_nothing_left();
}

#[test]
fn each_item_has_its_own_time_and_one_that_is_late_is_not_lost() {
    let mut pair = Pair::new(async |node, notes| {
        let slow = Numbers { n: 2, wait_ms: 700 };
        let mut stream = open(&node, "Count", slow).await;
        note_all(&notes, &mut stream).await;
        let mut stream = open(&node, "Count", slow)
            .await
            .timeout(Duration::from_millis(500));
        note_all(&notes, &mut stream).await;
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::from_millis(1400), "1 2 end");
    pair.expect(Duration::from_millis(500), "error 0");
    pair.expect(Duration::from_millis(700), "1 error 0");
    pair.expect_nothing_left();
}

#[test]
fn a_cancel_ends_the_stream_on_both_sides() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(&node, "Count", Numbers { n: 9, wait_ms: 100 }).await;
        notes.note_next(stream.next().await);
        let End { status, count } = stream.cancel().await.unwrap();
        notes.note((status, count));
        notes.note(node.late_replies());
    });
    pair.expect(Duration::from_millis(100), "1 (CANCELLED, 1) 0");
    pair.expect_nothing_left();
}

#[test]
fn a_cancel_that_crosses_the_end_is_told_the_end() {
    let mut pair = Pair::new(async |node, notes| {
        let stream = open(&node, "Count", FIVE).await;
        let End { status, count } = stream.cancel().await.unwrap();
        notes.note((status, count));
    });
    pair.expect(Duration::ZERO, "(OK, 5)");
    pair.expect_nothing_left();
}

#[test]
fn a_stream_that_is_dropped_is_cancelled_and_leaves_nothing_behind() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(&node, "Count", Numbers { n: 9, wait_ms: 100 }).await;
        notes.note_next(stream.next().await);
        notes.note(node.pending());
        drop(stream);
        notes.note(node.pending());
        node.sleep(SECOND).await;
        // The end of the cancelled stream, and nothing else.
        notes.note(node.late_replies());
    });
    pair.expect(Duration::from_millis(100), "1 1 0");
    pair.expect_nothing_left();
    pair.expect(SECOND, "1");
}

#[test]
fn a_stream_that_has_ended_is_not_cancelled_when_it_is_dropped() {
    let cancels = Rc::new(RefCell::new(0));
    let seen = Rc::clone(&cancels);
    let count_cancels = move |messages: Vec<Value>| {
        *seen.borrow_mut() += messages
            .iter()
            .filter(|message| message["body"]["type"] == "grpc_stream_cancel")
            .count();
        messages
    };
    let mut pair = Pair::with_weather(count_cancels, async |node, notes| {
        note_all(&notes, &mut open(&node, "Count", FIVE).await).await;
        drop(open(&node, "Count", Numbers { n: 9, wait_ms: 100 }).await);
    });
    pair.expect(SECOND, "1 2 3 4 5 end");
    assert_eq!(*cancels.borrow(), 1, "the second alone");
}

#[test]
fn a_reader_that_falls_too_far_behind_is_told_and_the_stream_cancelled() {
    let items = ITEMS_MAX as u64;
    let mut pair = Pair::new(async move |node, notes| {
        let mut stream = open(
            &node,
            "Count",
            Numbers {
                n: items + 50,
                wait_ms: 1,
            },
        )
        .await;
        node.sleep(Duration::from_millis(items + 10)).await;
        for n in 1..=items {
            assert_eq!(stream.next().await, Ok(Some(n)));
        }
        note_all(&notes, &mut stream).await;
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::from_millis(items + 20), "error 11 error 11");
    pair.expect_nothing_left();
}

#[test]
fn the_client_reads_the_errors_of_the_server() {
    let mut pair = Pair::new(async |node, notes| {
        note_all(&notes, &mut open(&node, "None", FIVE).await).await;
        note_all(&notes, &mut open(&node, "Count", "five").await).await;
        let mut idle = open(
            &node,
            "Count",
            Numbers {
                n: 1,
                wait_ms: 1_000_000,
            },
        )
        .await
        .timeout(2 * IDLE_MAX);
        note_all(&notes, &mut idle).await;
    });
    pair.expect(IDLE_MAX, "error 10 error 12 error 14");
    pair.expect_nothing_left();
}

#[test]
fn an_item_of_another_type_is_left_out() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(&node, "Mixed", ()).await;
        note_all(&notes, &mut stream).await;
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::ZERO, "1 error 13 3 end");
}

#[test]
fn a_reply_that_is_no_part_of_a_stream_ends_it() {
    let mut pair = Pair::with_weather(
        |mut messages| {
            for message in &mut messages {
                if message["body"]["seq"] == 2 {
                    message["body"]["type"] = "echo_ok".into();
                }
            }
            messages
        },
        async |node, notes| {
            let mut stream = open(&node, "Count", FIVE).await;
            note_all(&notes, &mut stream).await;
        },
    );
    pair.expect(Duration::ZERO, "1 error 13");
    pair.expect_nothing_left();
}

#[test]
fn streams_are_told_apart_by_their_requests() {
    let mut pair = Pair::new(async |node, notes| {
        let mut streams: BTreeMap<u64, _> = BTreeMap::new();
        for n in 1..=3 {
            streams.insert(n, open(&node, "Count", Numbers { n, wait_ms: 1 }).await);
        }
        for (_, mut stream) in streams {
            note_all(&notes, &mut stream).await;
        }
    });
    pair.expect(SECOND, "1 end 1 2 end 1 2 3 end");
    pair.expect_nothing_left();
}

#[test]
fn a_wait_for_an_item_can_be_given_up_and_taken_up_again() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(&node, "Count", Numbers { n: 2, wait_ms: 100 }).await;
        for _ in 0..3 {
            let once = std::pin::pin!(stream.next());
            notes.note(is_ready(once).await);
            node.sleep(Duration::from_millis(60)).await;
        }
        note_all(&notes, &mut stream).await;
    });
    pair.expect(SECOND, "false false true 2 end");
    pair.expect_nothing_left();
}

/// Polls a future once, and drops it; whether it was ready.
async fn is_ready(mut future: std::pin::Pin<&mut impl Future>) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_ready())).await
}

#[test]
fn after_the_end_of_the_input_a_stream_is_waited_for_in_vain() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open(
            &node,
            "Count",
            Numbers {
                n: 1,
                wait_ms: 5000,
            },
        )
        .await;
        let kept = open(
            &node,
            "Count",
            Numbers {
                n: 1,
                wait_ms: 5000,
            },
        )
        .await;
        notes.kept.borrow_mut().push(kept);
        note_all(&notes, &mut stream).await;
    });
    pair.expect(Duration::from_millis(500), "");
    let now = pair.net.now();
    let client = pair.net.machine("client");
    client.handle_end(now);
    assert_eq!(client.next_timeout(), None);
    pair.notes.kept.borrow_mut().clear();
    let client = pair.net.machine("client");
    assert_eq!(
        (client.pending(), client.output_bytes()),
        (1, 0),
        "nobody is told"
    );
    pair.net.remove("client");
}

async fn open_sum(node: &Node<()>) -> BidiStream<u64, u64> {
    node.open_bidi("server", "Math", "Sum").await.unwrap()
}

#[test]
fn a_conversation_is_opened_held_and_closed() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open_sum(&node).await;
        notes.note(stream.id());
        for n in 1..=3 {
            notes.note(stream.send(&n).await.unwrap());
        }
        let End { status, count } = stream.close().await.unwrap();
        notes.note((status, count));
    });
    pair.expect(Duration::ZERO, "s1 1 3 6 (OK, 3)");
    pair.expect_nothing_left();
}

#[test]
fn a_conversation_that_is_dropped_is_closed() {
    let mut pair = Pair::new(async |node, notes| {
        let mut stream = open_sum(&node).await;
        notes.note(stream.send(&1).await.unwrap());
        drop(stream);
        node.sleep(SECOND).await;
        notes.note(node.late_replies());
    });
    pair.expect(Duration::ZERO, "1");
    pair.expect_nothing_left();
    pair.expect(SECOND, "0");
}

#[test]
fn the_errors_of_a_conversation_are_those_of_its_calls() {
    let mut pair = Pair::new(async |node, notes| {
        let none = node.open_bidi::<u64, u64>("server", "Math", "None").await;
        notes.note(none.err().map(|error| i64::from(error.code)));
        let mut stream: BidiStream<i64, u64> =
            node.open_bidi("server", "Math", "Sum").await.unwrap();
        notes.note(
            stream
                .send(&-1)
                .await
                .map_err(|error| i64::from(error.code)),
        );
        notes.note(stream.send(&1).await.unwrap());
        let expired = async {
            node.sleep(2 * IDLE_MAX).await;
            stream.send(&1).await
        };
        notes.note(expired.await.map_err(|error| i64::from(error.code)));
    });
    pair.expect(2 * IDLE_MAX, "Some(10) Err(12) 1 Err(22)");
    pair.expect_nothing_left();
}

#[test]
fn a_message_that_is_lost_is_a_timeout_and_the_conversation_goes_on() {
    let mut lost = 0;
    let mut pair = Pair::with_weather(
        move |mut messages| {
            messages.retain(|message| {
                let is_lost = message["body"]["type"] == "grpc_bidi_stream_send" && lost == 0;
                lost += u64::from(is_lost);
                !is_lost
            });
            messages
        },
        async |node, notes| {
            let mut stream = open_sum(&node).await.timeout(Duration::from_millis(300));
            notes.note(stream.send(&1).await.map_err(|error| i64::from(error.code)));
            notes.note(stream.send(&1).await.unwrap());
        },
    );
    pair.expect(Duration::from_millis(300), "Err(0) 1");
    pair.expect_nothing_left();
}
