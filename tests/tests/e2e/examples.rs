//! The examples of the libraries and of `docs/PROTOCOL.md`, against a real server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use hark_protocol::{Request, RoomRequest};
use hark_tests::{Harkd, Wire, example, name};

use crate::grpc_client::blocks;

/// A running example, killed on drop.
struct Example {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn run(name: &str, server: &Harkd, arguments: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        command.arg(server.address().to_string()).args(arguments);
        Self::start(command)
    }

    /// Runs a program in Python.
    fn python(program: &str) -> Self {
        let mut command = Command::new("python3");
        command.args(["-u", "-c", program]);
        Self::start(command)
    }

    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// Writes the lines to standard input, and closes it.
    fn feed(&mut self, lines: impl Iterator<Item = String>) {
        let mut input = self.child.stdin.take().unwrap();
        for line in lines {
            writeln!(input, "{line}").unwrap();
        }
    }

    fn line(&mut self) -> String {
        self.lines.next().expect("a line").unwrap()
    }

    #[track_caller]
    fn succeed(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn bot_answers_each_message() {
    let server = Harkd::start();
    let mut bot = Example::run("bot", &server, &["shouter"]);
    assert_eq!(bot.line(), "shouter answers");
    let mut ann = Wire::connect(server.address()).await;
    ann.create("ann").await;
    ann.receive("ann").await;
    for (text, answer) in [("hello", "HELLO"), ("größe", "GRÖSSE")] {
        ann.sent("shouter", text).await;
        let message = ann.message().await;
        assert_eq!(
            (message.sender, &*message.text),
            (Some(name("shouter")), answer)
        );
    }
    ann.receive("shouter").await;
    bot.succeed();
}

#[tokio::test]
async fn bridge_stores_every_line_in_order() {
    const LINES: usize = 1000;
    let server = Harkd::start();
    let mut bob = Wire::connect(server.address()).await;
    bob.create("bob").await;
    let mut bridge = Example::run("bridge", &server, &["bob"]);
    bridge.feed((0..LINES).map(|line| line.to_string()));
    assert_eq!(bridge.line(), format!("{LINES} lines are stored"));
    bridge.succeed();
    assert_eq!(bob.receive("bob").await, LINES as u64);
    for line in 0..LINES {
        let message = bob.message().await;
        assert_eq!(*message.text, line.to_string());
        bob.ack(message.sequence).await;
    }
}

#[tokio::test]
async fn own_client_keeps_the_promise_across_a_kill() {
    const LINES: usize = 20_000;
    let server = Harkd::start();
    Wire::connect(server.address()).await.create("amy").await;
    let mut receiver = Example::run("client", &server, &["receive", "amy"]);
    let mut sender = Example::run("client", &server, &["send", "amy"]);
    sender.feed((0..LINES).map(|line| line.to_string()));
    for line in 0..LINES / 100 {
        assert_eq!(receiver.line(), line.to_string());
    }
    let server = server.kill_and_restart();
    for line in LINES / 100..LINES {
        assert_eq!(receiver.line(), line.to_string());
    }
    sender.succeed();
    Wire::connect(server.address()).await.receive("amy").await;
    assert!(receiver.lines.next().is_none(), "a line was printed twice");
    receiver.succeed();
}

/// Returns the programs of `docs/PROTOCOL.md`, for this server.
fn protocol_programs(server: &Harkd) -> [String; 2] {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/PROTOCOL.md");
    let document = std::fs::read_to_string(document).unwrap();
    let programs: [String; 2] = blocks(&document, "python").try_into().unwrap();
    let address = server.address();
    let here = format!("(\"{}\", {})", address.ip(), address.port());
    programs.map(|program| program.replace("(\"127.0.0.1\", 3000)", &here))
}

#[tokio::test]
async fn protocol_client_sends_and_receives_once() {
    let server = Harkd::start();
    let [client, _] = protocol_programs(&server);
    let mut client = Example::python(&client);
    assert!(client.line().starts_with("ok "));
    assert_eq!(client.line(), "hello, world");
    let server = server.kill_and_restart();
    assert!(client.line().starts_with("reconnecting: "));
    let mut wire = Wire::connect(server.address()).await;
    wire.sent("robot", "after a kill").await;
    while client.line() != "after a kill" {}
    wire.receive("robot").await;
    client.succeed();
}

#[tokio::test]
async fn protocol_client_for_rooms_sends_and_receives_once() {
    let server = Harkd::start();
    let [client, rooms] = protocol_programs(&server);
    let (common, _) = client.split_once("\ndef run():").unwrap();
    let mut client = Example::python(&format!("{common}\n{rooms}"));
    assert!(client.line().starts_with("ok "));
    assert_eq!(client.line(), "#team ann hello, room");
    let server = server.kill_and_restart();
    assert!(client.line().starts_with("reconnecting: "));
    let mut bob = Wire::connect(server.address()).await;
    bob.create("bob").await;
    let login = Request::Login {
        user: name("bob"),
        password: None,
    };
    bob.ok(login).await;
    let join = RoomRequest::Join("#team".parse().unwrap());
    bob.ok(Request::Room(join)).await;
    for (to, line) in [
        ("#team", "#team bob to the room"),
        ("ann", "inbox bob to ann"),
    ] {
        let (_, text) = line.split_once(" bob ").unwrap();
        bob.sent(to, text).await;
        let mut next = client.line();
        while next != line {
            let is_known = next.starts_with("reconnecting: ") || next.starts_with("earlier: ");
            assert!(is_known, "{next}");
            next = client.line();
        }
    }
}
