//! Devices and rooms over HTTP: `device=` of `receive`, `device=` and `log=` of `ack`.

use hark_protocol::message::RoomMode;
use hark_protocol::{OkFields, Request, RoomRequest, Sequence};
use hark_tests::{Client, Front, Harkd, name, send, wait_until};
use serde_json::{Value, json};

use super::http::{Response, Stream, curl};

const PASSWORD: &str = "secret";
const BOB: [&str; 2] = ["-u", "bob:secret"];

fn ask(request: RoomRequest) -> Request {
    Request::Room(request)
}

/// Creates a user with a password, and logs in.
async fn user(server: &Harkd, user: &str) -> Client {
    let mut client = Front::Native.connect(server.address()).await;
    let password = Some(PASSWORD.parse().unwrap());
    let create = Request::Create {
        user: name(user),
        password: password.clone(),
    };
    client.ok(create).await;
    let user = name(user);
    client.ok(Request::Login { user, password }).await;
    client
}

async fn attach(server: &Harkd, user: &str, device: &str) -> (Client, OkFields) {
    let mut client = Front::WebSocket.connect(server.address()).await;
    let attach = RoomRequest::Attach {
        user: name(user),
        device: device.parse().unwrap(),
        password: Some(PASSWORD.parse().unwrap()),
    };
    let fields = client.ok(ask(attach)).await;
    (client, fields)
}

/// Starts a server with ann, who owns `#team`, and bob, a member with the device `phone`.
async fn team(arguments: &[&str]) -> (Harkd, Client, Client) {
    let server = Harkd::builder().args(arguments.iter().copied()).start();
    let mut ann = user(&server, "ann").await;
    let set = RoomRequest::Set {
        room: "#team".parse().unwrap(),
        mode: RoomMode::Open,
        keep_s: None,
    };
    ann.ok(ask(set)).await;
    let mut bob = user(&server, "bob").await;
    bob.ok(ask(RoomRequest::Join("#team".parse().unwrap())))
        .await;
    drop(attach(&server, "bob", "phone").await);
    (server, ann, bob)
}

async fn stored(client: &mut Client, to: &str, text: &str) -> Sequence {
    let fields = client.ok(send(to, text)).await;
    fields.as_stored().unwrap()
}

fn get(server: &Harkd, query: &str) -> Response {
    curl(server, &format!("/v1/receive/bob{query}"), &BOB)
}

fn post(server: &Harkd, target: &str) -> Response {
    curl(server, target, &["-u", "bob:secret", "-X", "POST"])
}

/// Returns logs and texts of lines.
fn messages(lines: Vec<Value>) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = lines.iter();
    messages
        .map(|line| (text(&line["log"]), text(&line["text"])))
        .collect()
}

fn said(log: &str, text: &str) -> (String, String) {
    (log.to_owned(), text.to_owned())
}

#[tokio::test]
async fn unread_messages_of_a_device_include_rooms() {
    let (server, mut ann, mut bob) = team(&[]).await;
    stored(&mut ann, "bob", "one").await;
    let number = stored(&mut ann, "#team", "two, and more").await;
    for _ in 0..2 {
        let unread = get(&server, "?device=phone");
        assert_eq!(unread.status, 200, "{unread:?}");
        let lines = unread.lines();
        assert_eq!(lines[1]["number"], number.0);
        assert_eq!(lines[1]["sender"], "ann");
        let expected = [said("", "one"), said("#team", "two, and more")];
        assert_eq!(messages(lines), expected);
    }
    // Other devices, which do not exist, would begin with the inbox.
    for query in ["", "?device=", "?device=tablet"] {
        let lines = get(&server, query).lines();
        assert_eq!(messages(lines), [said("", "one")], "{query}");
    }
    // Reading has created none.
    bob.write(7, ask(RoomRequest::Devices)).await;
    let mut devices = 0;
    let end = loop {
        match bob.reply_to(7).await {
            hark_protocol::Reply::Ok(fields) => break fields,
            _ => devices += 1,
        }
    };
    assert_eq!((devices, end.as_listed()), (1, Some((1, false))));
    get(&server, "?device=my%20phone").check(400, "bad-name");
}

#[tokio::test]
async fn stream_of_a_device_is_acknowledged_log_by_log() {
    let (server, mut ann, _bob) = team(&[]).await;
    let mut stream = Stream::open(&server, "/v1/receive/bob?device=phone", &BOB);
    let inbox = stored(&mut ann, "bob", "one").await;
    let line = stream.next();
    assert_eq!((&line["log"], &line["text"]), (&json!(""), &json!("one")));
    let first = stored(&mut ann, "#team", "two").await;
    let line = stream.next();
    assert_eq!(line["log"], "#team");
    assert_eq!(line["number"], first.0);
    let second = stored(&mut ann, "#team", "three").await;
    assert_eq!(stream.next()["text"], "three");

    let ack = |number: Sequence, log: &str| {
        let target = format!("/v1/ack/bob?number={number}&device=phone&log={log}");
        post(&server, &target)
    };
    assert_eq!(ack(first, "%23team").json(), json!({}));
    let unread = || messages(get(&server, "?device=phone").lines());
    assert_eq!(unread(), [said("", "one"), said("#team", "three")]);
    assert_eq!(ack(inbox, "").json(), json!({}));
    assert_eq!(unread(), [said("#team", "three")]);
    // Without an open response as well.
    drop(stream);
    assert_eq!(ack(second, "%23team").json(), json!({}));
    assert_eq!(unread(), []);
    let server = server.kill_and_restart();
    wait_until("the acknowledgements", || {
        get(&server, "?device=phone").lines().is_empty()
    });
}

#[tokio::test]
async fn acknowledgement_of_a_device_has_its_bounds() {
    let (server, mut ann, _bob) = team(&[]).await;
    let inbox = stored(&mut ann, "bob", "one").await;
    let first = stored(&mut ann, "#team", "two").await;
    let last = stored(&mut ann, "#team", "three").await;
    let ack =
        |number: u64, rest: &str| post(&server, &format!("/v1/ack/bob?number={number}&{rest}"));
    ack(last.0 + 1, "device=phone&log=%23team").check(400, "bad-request");
    ack(inbox.0 + 1, "device=phone").check(400, "bad-request");
    ack(inbox.0, "device=tablet").check(400, "bad-request");
    ack(inbox.0, "").check(400, "bad-request");
    ack(first.0, "device=phone&log=%23other").check(404, "no-such-user");
    ack(first.0, "device=phone&log=team").check(400, "bad-name");
    ack(first.0, "device=phone&log=%23team&log=").check(400, "bad-request");
    // Between two messages, and again.
    for _ in 0..2 {
        let between = ack(last.0 - 1, "device=phone&log=%23team");
        assert_eq!(between.json(), json!({}));
        let unread = get(&server, "?device=phone").lines();
        assert_eq!(messages(unread), [said("", "one"), said("#team", "three")]);
    }
    assert_eq!(ack(last.0, "device=phone&log=%23team").status, 200);
    let unread = get(&server, "?device=phone").lines();
    assert_eq!(messages(unread), [said("", "one")]);
}

#[tokio::test]
async fn devices_receive_beside_each_other() {
    let (server, mut ann, _bob) = team(&[]).await;
    let mut phone = Stream::open(&server, "/v1/receive/bob?device=phone", &BOB);
    let mut tablet = Stream::open(&server, "/v1/receive/bob?device=tablet", &BOB);
    // The stream of the new device begins at the end of the room.
    wait_until("the devices", || server.connections() >= 4);
    stored(&mut ann, "bob", "one").await;
    assert_eq!(phone.next()["text"], "one");
    assert_eq!(tablet.next()["text"], "one");
    stored(&mut ann, "#team", "two").await;
    assert_eq!(phone.next()["log"], "#team");
    assert_eq!(tablet.next()["log"], "#team");
    let (_socket, _) = attach(&server, "bob", "phone").await;
    assert_eq!(phone.rest(), "{\"bye\":\"taken-over\"}\n");
    stored(&mut ann, "bob", "three").await;
    assert_eq!(tablet.next()["text"], "three");
}

#[tokio::test]
async fn automatic_acknowledgement_of_a_device_survives_a_kill() {
    let (server, mut ann, _bob) = team(&[]).await;
    stored(&mut ann, "bob", "one").await;
    stored(&mut ann, "#team", "two").await;
    stored(&mut ann, "#team", "three").await;
    let target = "/v1/receive/bob?device=phone&ack=auto&count=2";
    let received = messages(post(&server, target).lines());
    assert_eq!(received.len(), 2);
    let server = server.kill_and_restart();
    let left = messages(get(&server, "?device=phone").lines());
    let mut all = [received, left].concat();
    all.sort();
    let expected = [
        said("", "one"),
        said("#team", "three"),
        said("#team", "two"),
    ];
    assert_eq!(all, expected);
}

#[tokio::test]
async fn after_acknowledges_for_its_device() {
    let (server, mut ann, _bob) = team(&[]).await;
    let first = stored(&mut ann, "bob", "one").await;
    let last = stored(&mut ann, "bob", "two").await;
    for device in ["phone", "tablet"] {
        let target = format!("/v1/receive/bob?device={device}&after={first}&count=1");
        let received = messages(post(&server, &target).lines());
        assert_eq!(received, [said("", "two")], "{device}");
    }
    let beyond = format!("/v1/receive/bob?device=phone&after={}", last.0 + 1);
    post(&server, &beyond).check(400, "bad-request");
}

#[tokio::test]
async fn removed_messages_are_a_gap_line() {
    let (server, mut ann, _bob) = team(&["--max-room-bytes=1048576"]).await;
    let text = "x".repeat(60_000);
    let mut sent = 0;
    for n in 0..8 {
        let mut sender = user(&server, &format!("user{n}")).await;
        let join = RoomRequest::Join("#team".parse().unwrap());
        sender.ok(ask(join)).await;
        for _ in 0..4 {
            stored(&mut sender, "#team", &text).await;
            sent += 1;
        }
    }
    let last = stored(&mut ann, "#team", "last").await;
    let lines = get(&server, "?device=phone").lines();
    let gap = &lines[0]["gap"];
    assert_eq!(gap["log"], "#team", "{gap}");
    let count = gap["count"].as_u64().unwrap();
    assert!(
        count > 0 && gap["from"].as_u64() <= gap["to"].as_u64(),
        "{gap}"
    );
    assert_eq!(lines.len() as u64 - 1 + count, sent + 1);
    let mut stream = Stream::open(&server, "/v1/receive/bob?device=phone", &BOB);
    assert_eq!(stream.next()["gap"], *gap);
    drop(stream);
    // It is acknowledged by its last number.
    let target = format!("/v1/ack/bob?number={}&device=phone&log=%23team", gap["to"]);
    assert_eq!(post(&server, &target).status, 200);
    let lines = get(&server, "?device=phone").lines();
    assert_eq!(lines[0]["gap"], Value::Null, "{}", lines[0]["gap"]);
    assert_eq!(lines.last().unwrap()["number"], last.0);
}

#[tokio::test]
async fn rooms_are_sent_to_and_deleted_over_http() {
    let (server, _ann, mut bob) = team(&[]).await;
    let team = "/v1/send/%23team";
    let sent = curl(&server, team, &["-u", "bob:secret", "-d", "hello"]);
    assert_eq!(sent.status, 201, "{sent:?}");
    // Only a member sends, and only an owner deletes.
    bob.ok(ask(RoomRequest::Leave("#team".parse().unwrap())))
        .await;
    curl(&server, team, &["-u", "bob:secret", "-d", "hello"]).check(403, "denied");
    curl(&server, "/v1/send/%23nowhere", &["-d", "hello"]).check(404, "no-such-user");
    let delete = |login: &str| curl(&server, "/v1/users/%23team", &["-u", login, "-X", "DELETE"]);
    delete("bob:secret").check(403, "denied");
    assert_eq!(delete("ann:secret").json(), json!({"deleted": true}));
    let login = ["-u", "ann:secret", "-X", "PUT"];
    curl(&server, "/v1/users/%23team", &login).check(400, "bad-name");
}
