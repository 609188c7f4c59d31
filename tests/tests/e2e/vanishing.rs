//! Connections that vanish: the network is cut, and neither side is notified.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use hark_tests::{FarMachine, Harkd, Wire, hark, wait_until};

const MIB: u64 = 1024 * 1024;

/// Starts a server with short timeouts that listens on all interfaces.
fn server() -> Harkd {
    let builder = Harkd::builder().listen("0.0.0.0:0").arg("--ack-timeout=2");
    builder
        .arg("--allow-plaintext")
        .arg("--allow-open-accounts")
        .start()
}

/// A `hark listen` on the far machine.
struct Listener {
    process: Child,
    lines: BufReader<ChildStdout>,
    _state: tempfile::TempDir,
}

impl Listener {
    fn start(far: &FarMachine, server: &Harkd, user: &str, flags: &[&str]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut command = hark(state.path());
        command.args(flags).arg("--server");
        command.arg(format!(
            "{}:{}",
            FarMachine::NEAR_ADDRESS,
            server.address().port()
        ));
        command.args(["listen", user]);
        let mut process = far.run(&command).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap());
        Self {
            process,
            lines,
            _state: state,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

async fn a_reader_behind_a_cut_link_is_let_go_and_reads_the_rest_once(test: &str, flags: &[&str]) {
    let Some(far) = FarMachine::of_test(module_path!(), test) else {
        return;
    };
    let server = server();
    let mut alice = Wire::connect(server.address()).await;
    for user in ["bob", "idle"] {
        alice.create(user).await;
    }
    let mut bob = Listener::start(&far, &server, "bob", flags);
    let _idle = Listener::start(&far, &server, "idle", flags);
    for n in 0..10 {
        alice.sent("bob", &n.to_string()).await;
        assert!(bob.line().trim_end().ends_with(&format!(" {n}")));
    }
    wait_until("both readers", || server.connections() == 3);

    far.cut();
    let before = server.resident_bytes();
    let large = "x".repeat(50_000);
    for n in 10..200 {
        alice.sent("bob", &format!("{large} {n}")).await;
    }
    let grown = server.resident_bytes().saturating_sub(before);
    println!("the server has grown by {} KiB", grown / 1024);
    assert!(
        grown < 60 * MIB,
        "the server has grown by {} KiB",
        grown / 1024
    );
    wait_until("the server to let go of both", || server.connections() == 1);

    far.mend();
    for n in 10..200 {
        let line = bob.line();
        assert!(
            line.trim_end().ends_with(&format!(" {n}")),
            "{n} is not at the end of {line}"
        );
    }
    alice.sent("bob", "the last").await;
    assert!(bob.line().trim_end().ends_with("the last"));
}

#[tokio::test]
async fn cut_off_wire_reader_reads_the_rest_once() {
    let test = "cut_off_wire_reader_reads_the_rest_once";
    a_reader_behind_a_cut_link_is_let_go_and_reads_the_rest_once(test, &[]).await;
}

#[tokio::test]
async fn cut_off_grpc_reader_reads_the_rest_once() {
    let test = "cut_off_grpc_reader_reads_the_rest_once";
    a_reader_behind_a_cut_link_is_let_go_and_reads_the_rest_once(test, &["--grpc"]).await;
}
