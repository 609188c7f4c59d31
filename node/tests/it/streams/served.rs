//! What a node does with requests for its streams: their states, bounds,
//! errors and times. The test plays the clients.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use hark_node::stream::{
    Bidi, CLIENTS_MAX, CLOSED_MAX, IDLE_MAX, STREAMS_PER_CLIENT_MAX, Services, Sink, WAITING_MAX,
};
use hark_node::{Error, ErrorCode, Json, Node};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Value, json};

use super::net::Net;

const SECOND: Duration = Duration::from_secs(1);

/// Handles to this are held by all that serves a stream.
type Held = Rc<Cell<u64>>;

#[derive(Deserialize)]
struct Numbers {
    n: u64,
    #[serde(default)]
    wait_ms: u64,
}

#[derive(Serialize, Deserialize)]
struct Number {
    n: u64,
}

/// A number that panics when it is written, if it is 13.
struct Touchy(u64);

impl Serialize for Touchy {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        assert_ne!(self.0, 13, "planted, in writing");
        serializer.serialize_u64(self.0)
    }
}

/// Adds up its numbers. Some numbers have another effect.
struct Sum {
    sum: u64,
    closes: Held,
}

impl Bidi<()> for Sum {
    type In = Number;
    type Out = Touchy;

    async fn receive(&mut self, node: &Node<()>, Number { n }: Number) -> Result<Touchy, Error> {
        match n {
            1000.. => node.sleep(Duration::from_millis(n)).await,
            404 => return Err(Error::new(ErrorCode::Other(1404), "planted")),
            500 => panic!("planted"),
            _ => {}
        }
        self.sum += n;
        Ok(Touchy(self.sum))
    }

    async fn close(&mut self, _: &Node<()>) -> Result<(), Error> {
        self.closes.set(self.closes.get() + 1);
        match self.sum {
            98 => panic!("planted, in the close"),
            99 => Err(Error::new(ErrorCode::Abort, "planted")),
            _ => Ok(()),
        }
    }
}

/// A node `n1` with the services of these tests.
fn net() -> (Net, Held) {
    let held = Held::default();
    let mut net = Net::new();
    net.add("n1", |node| serve(node, &held));
    (net, held)
}

fn serve(node: &Node<()>, held: &Held) {
    let services = Services::new(node);
    let count = Rc::clone(held);
    services.server_stream("Math", "Count", move |node: Node<()>, to: Numbers, sink| {
        let held = Rc::clone(&count);
        async move { count_to(&node, &to, &sink, held).await }
    });
    services.server_stream(
        "Json",
        "Echo",
        async |_, request: Json, sink: Sink<Json>| sink.send(&request),
    );
    services.server_stream("Math", "Panic", async |_, _: Json, sink: Sink<u64>| {
        sink.send(&1)?;
        panic!("planted")
    });
    let closes = Rc::clone(held);
    services.bidi("Math", "Sum", move |_, client| {
        if client == "banned" {
            return Err(Error::new(ErrorCode::Abort, "planted"));
        }
        Ok(Sum {
            sum: 0,
            closes: Rc::clone(&closes),
        })
    });
}

async fn count_to(
    node: &Node<()>,
    to: &Numbers,
    sink: &Sink<Number>,
    held: Held,
) -> Result<(), Error> {
    for n in 1..=to.n {
        if to.wait_ms > 0 {
            node.sleep(Duration::from_millis(to.wait_ms)).await;
        }
        sink.send(&Number { n })?;
    }
    drop(held);
    if to.n == 404 {
        Err(Error::new(ErrorCode::Other(1404), "planted"))
    } else {
        Ok(())
    }
}

/// Those that serve a stream now: all but the test and the two services.
fn serving(held: &Held) -> usize {
    Rc::strong_count(held) - 3
}

fn count(id: u64, n: u64, wait_ms: u64) -> Value {
    let request = json!({"n": n, "wait_ms": wait_ms});
    json!({"type": "grpc_server_stream", "msg_id": id, "service": "Math", "method": "Count", "request": request})
}

fn item(id: u64, seq: u64) -> Value {
    json!({"type": "grpc_stream_msg", "seq": seq, "data": {"n": seq}, "in_reply_to": id})
}

fn end(id: u64, status: &str, count: u64) -> Value {
    json!({"type": "grpc_stream_end", "status": status, "count": count, "in_reply_to": id})
}

fn cancel(id: u64, request_id: u64) -> Value {
    json!({"type": "grpc_stream_cancel", "msg_id": id, "request_id": request_id})
}

fn open(id: u64) -> Value {
    json!({"type": "grpc_bidi_stream_open", "msg_id": id, "service": "Math", "method": "Sum"})
}

fn opened(id: u64, stream: &str) -> Value {
    json!({"type": "grpc_bidi_stream_open_ok", "stream_id": stream, "in_reply_to": id})
}

fn send(id: u64, stream: &str, n: u64) -> Value {
    json!({"type": "grpc_bidi_stream_send", "msg_id": id, "stream_id": stream, "data": {"n": n}})
}

fn received(id: u64, sum: u64) -> Value {
    json!({"type": "grpc_bidi_stream_recv", "data": sum, "in_reply_to": id})
}

fn close(id: u64, stream: &str) -> Value {
    json!({"type": "grpc_bidi_stream_close", "msg_id": id, "stream_id": stream})
}

/// The one answer is this error.
#[track_caller]
fn check_error(answers: &[Value], id: u64, code: i64) {
    let [answer] = answers else {
        panic!("there is one answer: {answers:?}")
    };
    assert_eq!(
        (&answer["type"], &answer["code"]),
        (&json!("error"), &json!(code)),
        "{answer}"
    );
    assert_eq!(answer["in_reply_to"], json!(id), "{answer}");
}

#[test]
fn items_come_when_they_are_there_and_then_the_end() {
    let (mut net, held) = net();
    assert!(net.send("c", "n1", count(7, 2, 100)).is_empty());
    assert_eq!(serving(&held), 1);
    assert_eq!(net.pass(Duration::from_millis(150)), [item(7, 1)]);
    assert_eq!(
        net.pass(Duration::from_millis(100)),
        [item(7, 2), end(7, "OK", 2)]
    );
    assert_eq!(serving(&held), 0);
}

#[test]
fn streams_of_one_client_run_side_by_side() {
    let (mut net, _) = net();
    net.send("c", "n1", count(1, 1, 200));
    net.send("c", "n1", count(2, 1, 100));
    assert_eq!(
        net.pass(SECOND),
        [item(2, 1), end(2, "OK", 1), item(1, 1), end(1, "OK", 1)]
    );
}

#[test]
fn a_cancelled_stream_ends_at_once_and_its_handler_is_dropped() {
    let (mut net, held) = net();
    net.send("c", "n1", count(7, 9, 100));
    assert_eq!(
        net.pass(Duration::from_millis(250)),
        [item(7, 1), item(7, 2)]
    );
    assert_eq!(net.send("c", "n1", cancel(8, 7)), [end(7, "CANCELLED", 2)]);
    assert_eq!(serving(&held), 0);
    assert!(net.pass(SECOND).is_empty());
    assert!(
        net.send("c", "n1", cancel(9, 7)).is_empty(),
        "it may have crossed the end"
    );
}

#[test]
fn nobody_cancels_the_streams_of_another() {
    let (mut net, _) = net();
    net.send("c", "n1", count(7, 1, 100));
    assert!(net.send("d", "n1", cancel(8, 7)).is_empty());
    assert_eq!(net.pass(SECOND), [item(7, 1), end(7, "OK", 1)]);
}

#[test]
fn a_handler_that_fails_ends_its_stream_with_its_error() {
    let (mut net, _) = net();
    let answers = net.send("c", "n1", count(7, 404, 0));
    assert_eq!(answers.len(), 405);
    check_error(&answers[404..], 7, 1404);
}

#[test]
fn a_panic_ends_one_server_stream_alone() {
    let (mut net, _) = net();
    net.send("c", "n1", count(1, 1, 100));
    let panics =
        json!({"type": "grpc_server_stream", "msg_id": 2, "service": "Math", "method": "Panic"});
    let answers = net.send("c", "n1", panics);
    assert_eq!(answers[0]["seq"], 1);
    check_error(&answers[1..], 2, 13);
    assert_eq!(net.pass(SECOND), [item(1, 1), end(1, "OK", 1)]);
}

#[test]
fn a_message_of_another_type_is_malformed() {
    let (mut net, held) = net();
    let request =
        json!({"type": "grpc_server_stream", "msg_id": 1, "service": "Math", "method": "Count"});
    check_error(&net.send("c", "n1", request), 1, 12);
    net.send("c", "n1", open(2));
    let message = json!({"type": "grpc_bidi_stream_send", "msg_id": 3, "stream_id": "s1", "data": {"n": "x"}});
    check_error(&net.send("c", "n1", message), 3, 12);
    let nothing = json!({"type": "grpc_bidi_stream_send", "msg_id": 4, "stream_id": "s1"});
    check_error(&net.send("c", "n1", nothing), 4, 12);
    // The stream goes on, and does not count them.
    assert_eq!(net.send("c", "n1", send(5, "s1", 5)), [received(5, 5)]);
    assert_eq!(net.send("c", "n1", close(6, "s1")), [end(6, "OK", 1)]);
    assert_eq!(serving(&held), 0);
}

#[test]
fn an_untyped_service_gets_what_was_sent() {
    let (mut net, _) = net();
    let mut machine = hark_node::Machine::new(|node| serve(node, &Held::default()), 0);
    let init =
        r#"{"src": "c", "body": {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": []}}"#;
    machine.handle_line(Duration::ZERO, init.as_bytes());
    let request = r#"{"src": "c", "body": {"type": "grpc_server_stream", "msg_id": 2, "service": "Json", "method": "Echo", "request": {"b": 1.00, "a": [null]}}}"#;
    machine.handle_line(Duration::ZERO, request.as_bytes());
    let mut output = Vec::new();
    machine.take_output(&mut output);
    let output = String::from_utf8(output).unwrap();
    assert!(
        output.contains(r#""data": {"b": 1.00, "a": [null]}, "in_reply_to""#),
        "{output}"
    );
    let request =
        json!({"type": "grpc_server_stream", "msg_id": 1, "service": "Json", "method": "Echo"});
    assert_eq!(
        net.send("c", "n1", request)[0]["data"],
        json!({}),
        "an empty request may be left out"
    );
}

#[test]
fn a_request_that_the_network_doubles_is_served_once() {
    let (mut net, _) = net();
    net.send("c", "n1", count(7, 1, 100));
    net.send("c", "n1", count(7, 1, 100));
    net.send("d", "n1", count(7, 1, 100));
    let answers = net.pass(SECOND);
    assert_eq!(
        answers,
        [item(7, 1), end(7, "OK", 1), item(7, 1), end(7, "OK", 1)],
        "one for c, one for d"
    );
}

#[test]
fn a_stream_without_a_reader_is_not_served() {
    let (mut net, held) = net();
    for mut body in [count(1, 9, 100), open(1)] {
        body.as_object_mut().unwrap().remove("msg_id");
        assert!(net.send("c", "n1", body).is_empty());
    }
    assert_eq!(serving(&held), 0);
    assert_eq!(
        net.send("c", "n1", open(1)),
        [opened(1, "s1")],
        "no id was used up"
    );
}

#[test]
fn ids_count_up_over_all_clients_and_each_stream_has_its_own_state() {
    let (mut net, _) = net();
    assert_eq!(net.send("c", "n1", open(1)), [opened(1, "s1")]);
    assert_eq!(net.send("d", "n1", open(1)), [opened(1, "s2")]);
    assert_eq!(net.send("c", "n1", open(2)), [opened(2, "s3")]);
    assert_eq!(net.send("c", "n1", send(3, "s1", 1)), [received(3, 1)]);
    assert_eq!(net.send("d", "n1", send(4, "s2", 10)), [received(4, 10)]);
    assert_eq!(net.send("c", "n1", send(5, "s1", 2)), [received(5, 3)]);
    assert_eq!(net.send("c", "n1", close(6, "s1")), [end(6, "OK", 2)]);
    assert_eq!(net.send("c", "n1", close(7, "s3")), [end(7, "OK", 0)]);
}

#[test]
fn a_stream_belongs_to_who_has_opened_it() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    check_error(&net.send("d", "n1", send(2, "s1", 1)), 2, 20);
    check_error(&net.send("d", "n1", close(3, "s1")), 3, 20);
    check_error(&net.send("c", "n1", send(4, "s01", 1)), 4, 20);
    net.send("c", "n1", close(5, "s1"));
    check_error(&net.send("d", "n1", send(6, "s1", 1)), 6, 20);
}

#[test]
fn after_the_close_nothing_can_be_done_with_a_stream() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    assert_eq!(net.send("c", "n1", close(2, "s1")), [end(2, "OK", 0)]);
    check_error(&net.send("c", "n1", send(3, "s1", 1)), 3, 22);
    check_error(&net.send("c", "n1", close(4, "s1")), 4, 22);
}

#[test]
fn the_last_closed_streams_are_remembered() {
    let (mut net, _) = net();
    for stream in 1..=CLOSED_MAX as u64 + 1 {
        net.send("c", "n1", open(2 * stream));
        net.send("c", "n1", close(2 * stream + 1, &format!("s{stream}")));
    }
    check_error(&net.send("c", "n1", send(1, "s1", 1)), 1, 20);
    check_error(&net.send("c", "n1", send(1, "s2", 1)), 1, 22);
}

#[test]
fn a_half_closed_stream_still_answers_what_came_before() {
    let (mut net, held) = net();
    net.send("c", "n1", open(1));
    assert!(net.send("c", "n1", send(2, "s1", 1000)).is_empty());
    assert!(net.send("c", "n1", send(3, "s1", 1)).is_empty());
    assert!(net.send("c", "n1", close(4, "s1")).is_empty());
    check_error(&net.send("c", "n1", send(5, "s1", 1)), 5, 22);
    check_error(&net.send("c", "n1", close(6, "s1")), 6, 22);
    assert_eq!(
        net.pass(SECOND),
        [received(2, 1000), received(3, 1001), end(4, "OK", 2)]
    );
    assert_eq!(serving(&held), 0);
}

#[test]
fn a_stream_that_is_busy_holds_up_no_other() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    net.send("c", "n1", open(2));
    assert!(net.send("c", "n1", send(3, "s1", 1000)).is_empty());
    assert_eq!(net.send("c", "n1", send(4, "s2", 1)), [received(4, 1)]);
}

#[test]
fn messages_that_wait_for_a_service_are_bounded() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    let waiting = WAITING_MAX as u64;
    for id in 2..=waiting + 2 {
        assert!(net.send("c", "n1", send(id, "s1", 1000)).is_empty(), "{id}");
    }
    check_error(&net.send("c", "n1", send(999, "s1", 1)), 999, 11);
    assert_eq!(net.pass(SECOND), [received(2, 1000)]);
    assert!(
        net.send("c", "n1", send(999, "s1", 1)).is_empty(),
        "there is room for one again"
    );
    assert!(
        net.send("c", "n1", close(1000, "s1")).is_empty(),
        "a close needs no room"
    );
}

#[test]
fn streams_are_bounded_in_number_for_each_client() {
    let (mut net, _) = net();
    let half = STREAMS_PER_CLIENT_MAX as u64 / 2;
    for id in 1..=half {
        assert_eq!(net.send("c", "n1", open(id)).len(), 1);
    }
    for id in half + 1..=2 * half {
        assert!(net.send("c", "n1", count(id, 1, 100)).is_empty());
    }
    check_error(&net.send("c", "n1", open(997)), 997, 11);
    check_error(&net.send("c", "n1", count(998, 1, 0)), 998, 11);
    assert_eq!(
        net.send("d", "n1", count(1, 1, 0)).len(),
        2,
        "others have their own"
    );
    assert_eq!(net.send("c", "n1", close(999, "s1")), [end(999, "OK", 0)]);
    assert_eq!(net.send("c", "n1", open(1000)).len(), 1);
    check_error(&net.send("c", "n1", open(1001)), 1001, 11);
    net.pass(SECOND);
    assert_eq!(
        net.send("c", "n1", open(1002)).len(),
        1,
        "what came to its end gives room"
    );
}

#[test]
fn clients_are_bounded_in_number() {
    let (mut net, _) = net();
    for client in 0..CLIENTS_MAX {
        assert_eq!(net.send(&format!("c{client}"), "n1", open(1)).len(), 1);
    }
    check_error(&net.send("d", "n1", open(1)), 1, 11);
    check_error(&net.send("d", "n1", count(2, 1, 0)), 2, 11);
    assert_eq!(net.send("c0", "n1", open(2)).len(), 1);
    // A client is one only as long as it has a stream.
    net.send("c1", "n1", close(3, "s2"));
    assert_eq!(net.send("d", "n1", count(4, 1, 0)).len(), 2);
    assert_eq!(net.send("d", "n1", open(5)).len(), 1);
}

#[test]
fn a_client_that_is_silent_for_too_long_loses_its_stream() {
    let (mut net, held) = net();
    net.send("c", "n1", open(1));
    assert!(net.pass(IDLE_MAX - SECOND).is_empty());
    assert_eq!(net.send("c", "n1", send(2, "s1", 1)), [received(2, 1)]);
    assert!(net.pass(IDLE_MAX - SECOND).is_empty());
    assert_eq!(serving(&held), 1);
    assert!(net.pass(2 * SECOND).is_empty());
    assert_eq!(serving(&held), 0);
    assert_eq!(held.get(), 0, "nobody has closed it");
    check_error(&net.send("c", "n1", send(3, "s1", 1)), 3, 22);
}

#[test]
fn a_stream_whose_service_works_is_not_idle() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    let long = u64::try_from((2 * IDLE_MAX).as_millis()).unwrap();
    net.send("c", "n1", send(2, "s1", long));
    assert_eq!(net.pass(2 * IDLE_MAX), [received(2, long)]);
    assert_eq!(
        net.send("c", "n1", send(3, "s1", 1)),
        [received(3, long + 1)]
    );
}

#[test]
fn a_server_stream_that_sends_nothing_for_too_long_ends() {
    let (mut net, held) = net();
    let nearly = u64::try_from((IDLE_MAX - SECOND).as_millis()).unwrap();
    net.send("c", "n1", count(1, 2, nearly));
    assert_eq!(
        net.pass(2 * IDLE_MAX),
        [item(1, 1), item(1, 2), end(1, "OK", 2)]
    );
    net.send("c", "n1", count(2, 2, nearly + 2000));
    check_error(&net.pass(IDLE_MAX), 2, 14);
    assert_eq!(serving(&held), 0);
}

#[test]
fn a_service_answers_with_an_error_and_the_stream_goes_on() {
    let (mut net, _) = net();
    net.send("c", "n1", open(1));
    check_error(&net.send("c", "n1", send(2, "s1", 404)), 2, 1404);
    assert_eq!(net.send("c", "n1", send(3, "s1", 1)), [received(3, 1)]);
    assert_eq!(net.send("c", "n1", close(4, "s1")), [end(4, "OK", 2)]);
}

#[test]
fn a_service_may_refuse_a_client_and_fail_to_close() {
    let (mut net, held) = net();
    check_error(&net.send("banned", "n1", open(1)), 1, 14);
    assert_eq!(net.send("c", "n1", open(2)), [opened(2, "s1")]);
    net.send("c", "n1", send(3, "s1", 99));
    check_error(&net.send("c", "n1", close(4, "s1")), 4, 14);
    assert_eq!(held.get(), 1, "it was closed once");
    check_error(&net.send("c", "n1", close(5, "s1")), 5, 22);
}

#[test]
fn a_panic_ends_its_stream_and_no_other() {
    let (mut net, held) = net();
    net.send("c", "n1", open(1));
    net.send("c", "n1", open(2));
    net.send("c", "n1", send(3, "s1", 1000));
    net.send("c", "n1", send(4, "s1", 500));
    net.send("c", "n1", send(5, "s1", 1));
    net.send("c", "n1", close(6, "s1"));
    let answers = net.pass(SECOND);
    assert_eq!(answers[0], received(3, 1000));
    check_error(&answers[1..2], 4, 13);
    check_error(&answers[2..3], 5, 14);
    check_error(&answers[3..], 6, 14);
    check_error(&net.send("c", "n1", send(7, "s1", 1)), 7, 22);
    assert_eq!(net.send("c", "n1", send(8, "s2", 1)), [received(8, 1)]);
    assert_eq!(serving(&held), 1);
}

#[test]
fn a_panic_in_an_answer_or_a_close_is_answered_too() {
    let (mut net, held) = net();
    net.send("c", "n1", open(1));
    check_error(&net.send("c", "n1", send(2, "s1", 13)), 2, 13);
    check_error(&net.send("c", "n1", send(3, "s1", 1)), 3, 22);
    net.send("c", "n1", open(4));
    net.send("c", "n1", send(5, "s2", 98));
    check_error(&net.send("c", "n1", close(6, "s2")), 6, 13);
    assert_eq!(serving(&held), 0);
}

#[test]
fn open_streams_do_not_keep_a_node_alive_and_end_with_it() {
    let (mut net, held) = net();
    net.send("c", "n1", open(1));
    net.send("c", "n1", count(2, 2, 100));
    let now = net.now();
    net.machine("n1").handle_end(now);
    assert_eq!(
        net.pass(SECOND),
        [item(2, 1), item(2, 2), end(2, "OK", 2)],
        "what sleeps goes on"
    );
    assert_eq!(net.machine("n1").next_timeout(), None);
    net.remove("n1");
    assert_eq!(Rc::strong_count(&held), 1);
}
