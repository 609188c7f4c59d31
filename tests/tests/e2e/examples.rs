//! The examples of the libraries, against a real server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use hark_tests::{Harkd, Wire, example, name};

/// A running example, killed on drop.
struct Example {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Example {
    fn run(name: &str, server: &Harkd, arguments: &[&str]) -> Self {
        let mut command = Command::new(example(name));
        command.arg(server.address().to_string()).args(arguments);
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
