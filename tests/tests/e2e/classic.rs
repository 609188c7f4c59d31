//! The classic framing with the real server: a stand-in for the old client, and
//! the byte sequences of `docs/PROTOCOL.md`.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hark_protocol::Request;
use hark_tests::{Classic, Harkd, Wire, name};

/// Size of the text in a block, in bytes.
const PAYLOAD_BYTES: usize = 1024 - 15;

/// Starts the stand-in for the old client with these lines as input.
fn old_client(server: &Harkd, lines: &[&str]) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/classic_client.py");
    let mut command = Command::new("python3");
    command.arg(script).arg(server.address().to_string());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3: install the package python3");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.join("\n").as_bytes())
        .unwrap();
    child
}

/// Returns its output after all lines were answered.
fn output(child: Child) -> Vec<String> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn old_client_works_unchanged() {
    let server = Harkd::start();
    let script = [
        ("create user2", "ok"),
        ("create user3", "ok"),
        ("create user3", "notok exists,user3 already exists"),
        ("list", "list user2,user3"),
        ("list r3$", "list user3"),
        ("list nobody", "list"),
        ("send user3 hello", "ok"),
        ("send user3 hello, again, and again,", "ok"),
        ("send user4 x", "notok no-such-user,there is no user user4"),
        ("delete user2", "ok deleted"),
        ("delete user2", "ok absent"),
        ("list", "list user3"),
    ];
    let (lines, expected): (Vec<&str>, Vec<&str>) = script.into_iter().unzip();
    assert_eq!(output(old_client(&server, &lines)), expected);
    let wrong = output(old_client(&server, &["list ("]));
    assert!(
        wrong[0].starts_with("notok bad-pattern,") && wrong[0].contains("unclosed group"),
        "{wrong:?}"
    );
    let mut received = output(old_client(&server, &["connect user3", "wait 2"]));
    // The answer and the texts arrive in either order.
    let at = received
        .iter()
        .position(|line| line == "ok 2")
        .expect("the answer to connect");
    received.remove(at);
    assert_eq!(
        received,
        ["string hello", "string hello, again, and again,"]
    );
    let ended = output(old_client(
        &server,
        &[
            "send user3 unread",
            "delete user3",
            "create user3",
            "connect user3",
        ],
    ));
    assert_eq!(ended, ["ok", "ok deleted", "ok", "ok 0"]);
}

#[tokio::test]
async fn waiting_old_client_gets_new_messages() {
    let server = Harkd::start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    let mut bob = old_client(&server, &["connect bob", "wait 3"]);
    let mut lines = BufReader::new(bob.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert_eq!(lines.next().as_deref(), Some("ok 0"));
    alice.sent("bob", "one, two").await;
    Classic::connect(server.address())
        .await
        .ok("send", "bob,three")
        .await;
    alice.sent("bob", "").await;
    assert!(lines.eq(["string one, two", "string three", "string"]));
    assert!(bob.wait().unwrap().success());
}

#[tokio::test]
async fn command_waits_briefly_for_its_fields() {
    let server = Harkd::start();
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("ping", "").await;
    // On a busy machine 20 ms may exceed the limit of 50 ms, but not in every
    // attempt.
    let mut answers = Vec::new();
    for n in 0..10 {
        classic.write(&Classic::bare("create", "")).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        classic.write(format!("user{n}").as_bytes()).await;
        answers.push(classic.next().await.unwrap());
        if answers.last().unwrap().0 == "ok" {
            return;
        }
        // The late bytes are the beginning of an incomplete message.
        classic = Classic::connect(server.address()).await;
    }
    panic!("{answers:?}");
}

#[tokio::test]
async fn command_without_fields_is_refused_after_timeout() {
    let server = Harkd::start();
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("ping", "").await;
    let start = Instant::now();
    let (answer, why) = classic.ask("create", "").await;
    let took = start.elapsed();
    assert!(
        answer == "notok" && why.starts_with("bad-request,"),
        "{answer} {why}"
    );
    assert!(
        (Duration::from_millis(50)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
    classic.ok("create", "bob").await;
}

#[tokio::test]
async fn overlong_bare_message_is_refused_as_a_whole() {
    let server = Harkd::start();
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("create", "bob").await;
    let (answer, why) = classic
        .ask("send", &format!("bob,{}", "x".repeat(3000 - 19)))
        .await;
    assert!(
        answer == "notok" && why.starts_with("too-large,"),
        "{answer} {why}"
    );
    classic.ok("ping", "").await;
    classic.ok("send", "bob,short").await;
    // The longest text.
    let longest = "y".repeat(PAYLOAD_BYTES - 4);
    classic.ok("send", &format!("bob,{longest}")).await;
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 2);
    assert_eq!(&*bob.message().await.text, "short");
    assert_eq!(&*bob.message().await.text, longest);
}

#[tokio::test]
async fn long_list_takes_several_messages() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    let users: Vec<String> = (0..100)
        .map(|n| format!("{n:03}-{}", "u".repeat(50)))
        .collect();
    for user in &users {
        wire.create(user).await;
    }
    let mut classic = Classic::connect(server.address()).await;
    for (pattern, expected) in [("", &users[..]), ("^0[12]", &users[10..30])] {
        classic.write(&Classic::bare("list", pattern)).await;
        let (mut names, mut messages) = (Vec::new(), 0);
        while names.len() < expected.len() {
            let (command, payload) = classic.next().await.unwrap();
            assert_eq!(command, "list");
            names.extend(payload.split(',').map(str::to_owned));
            messages += 1;
        }
        assert_eq!(names, expected);
        assert!(messages > 1, "one would have been enough");
        assert_eq!(classic.ok("ping", "").await, "");
    }
    assert_eq!(
        classic.ask("list", "nobody").await,
        ("list".to_owned(), String::new())
    );
    classic.ok("ping", "").await;
}

#[tokio::test]
async fn requests_are_answered_in_order() {
    let server = Harkd::start();
    let mut classic = Classic::connect(server.address()).await;
    // The password takes longer than all other requests.
    let requests = [
        ("create", "bob,secret", "ok"),
        ("ping", "", "ok"),
        ("list", "", "list"),
        ("send", "eve,x", "notok"),
        ("send", "bob,x", "ok"),
        ("connect", "bob", "notok"),
        ("list", "nobody", "list"),
        ("delete", "bob,secret", "ok"),
        ("sned", "bob,x", "notok"),
    ];
    classic
        .write(
            &requests
                .map(|(command, payload, _)| Classic::padded(command, payload))
                .concat(),
        )
        .await;
    for (command, payload, expected) in requests {
        let (answer, why) = classic.next().await.unwrap();
        assert_eq!(answer, expected, "{command} {payload}: {why}");
    }
}

#[tokio::test]
async fn messages_written_to_classic_reader_are_acknowledged() {
    let mut server = Harkd::start();
    let mut alice = Wire::connect(server.address()).await;
    alice.create("bob").await;
    for text in ["one", "two"] {
        alice.sent("bob", text).await;
    }
    let mut bob = Classic::connect(server.address()).await;
    bob.write(&Classic::bare("connect", "bob")).await;
    let mut came = Vec::new();
    for _ in 0..3 {
        came.push(bob.next().await.unwrap());
    }
    came.retain(|(command, _)| command == "string");
    assert_eq!(
        came.iter().map(|(_, text)| &**text).collect::<Vec<_>>(),
        ["one", "two"]
    );
    alice.sent("bob", "three").await;
    assert_eq!(bob.text().await, "three");
    bob.ok("ping", "").await;
    assert_eq!(bob.ok("connect", "bob").await, "0");
    drop(bob);
    // Messages that arrive without a reader are queued.
    alice.sent("bob", "four").await;
    server.signal("TERM");
    drop(alice);
    assert!(server.wait().success());
    let server = server.restart();
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, 1);
    assert_eq!(&*bob.message().await.text, "four");
}

#[tokio::test]
async fn classic_and_native_users_talk_to_each_other() {
    let server = Harkd::start();
    let mut amy = Classic::connect(server.address()).await;
    amy.ok("create", "amy").await;
    amy.ok("create", "bob").await;
    amy.ok("connect", "amy").await;
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    amy.ok("send", "bob,hi, bob").await;
    let message = bob.message().await;
    assert_eq!(
        (&*message.text, message.sender),
        ("hi, bob", Some(name("amy")))
    );
    bob.sent("amy", "hi,\namy").await;
    assert_eq!(amy.text().await, "hi,\namy");
    amy.ok("disconnect", "").await;
    bob.sent("amy", "later").await;
    amy.ok("ping", "").await;
}

#[tokio::test]
async fn bye_sessions_and_acks_are_unsupported() {
    let server = Harkd::start();
    let mut bob = Classic::connect(server.address()).await;
    bob.ok("create", "bob").await;
    bob.ok("connect", "bob").await;
    let mut thief = Wire::connect(server.address()).await;
    thief.receive("bob").await;
    bob.ok("ping", "").await;
    bob.ok("connect", "bob").await;
    thief
        .ok(Request::Delete {
            user: name("bob"),
            password: None,
        })
        .await;
    bob.ok("ping", "").await;
    // A refused `hello` closes the connection, so it comes last.
    for (command, payload) in [("ack", "1"), ("hello", "1,session")] {
        let (answer, why) = bob.ask(command, payload).await;
        assert!(
            answer == "notok" && why.starts_with("bad-request,"),
            "{command}: {answer} {why}"
        );
    }
}
