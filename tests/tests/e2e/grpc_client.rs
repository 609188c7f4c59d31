//! Independent gRPC clients: Python's `grpcio`, by reflection and without
//! generated code, and the programs of `docs/GRPC.md` as printed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use hark_protocol::Request;
use hark_tests::{Certificate, Harkd, Wire, name};
use tempfile::TempDir;

/// Returns the folder of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Returns the folder of the Python interpreter that has the libraries.
fn python_folder() -> PathBuf {
    let folder = root().join(".venv/bin");
    assert!(
        folder.join("python").exists(),
        "the Python libraries that this test needs are not installed in .venv: run ./test, which does it"
    );
    folder
}

/// Returns a command for the Python interpreter that has the libraries.
fn python() -> Command {
    let mut command = Command::new(python_folder().join("python"));
    // No proxy for the loopback.
    command
        .env("no_grpc_proxy", "127.0.0.1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn client(server: &Harkd, scenario: &str) -> Child {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/grpc_client.py");
    python()
        .arg(script)
        .arg(server.address().to_string())
        .arg(scenario)
        .spawn()
        .unwrap()
}

/// Waits for the exit of a program, which has to succeed.
#[track_caller]
fn check(mut program: Child) {
    let mut said = String::new();
    program
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    let status = program.wait().unwrap();
    assert!(status.success(), "{status}:\n{said}");
}

/// Runs a scenario of the script on this server.
#[track_caller]
fn run(server: &Harkd, scenario: &str) {
    check(client(server, scenario));
}

#[test]
fn reflection_describes_the_services() {
    run(&Harkd::start(), "reflection");
}

#[test]
fn calls_are_answered_and_refused() {
    run(&Harkd::start(), "calls");
}

#[test]
fn calls_and_session_work_over_tls() {
    for scenario in ["calls", "session"] {
        let certificate = Arc::new(Certificate::trusted());
        let server = Harkd::builder()
            .certificate(Some(&certificate))
            .arg("--tls-only")
            .start();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/grpc_client.py");
        let mut command = python();
        command
            .arg(script)
            .arg(server.address().to_string())
            .arg(scenario)
            .arg(certificate.authority());
        check(command.spawn().unwrap());
    }
}

#[test]
fn connect_delivers_and_ack_deletes() {
    run(&Harkd::start(), "receive");
}

#[test]
fn whole_session_runs_over_one_stream() {
    run(&Harkd::start(), "session");
}

#[tokio::test]
async fn long_list_is_paged() {
    let server = Harkd::builder().arg("--max-list=2500").start();
    let mut wire = Wire::connect(server.address()).await;
    let users = (0..3000).map(|n| Request::Create {
        user: name(&format!("{n:04}-{:040}", 0)),
        password: None,
    });
    wire.write_all((1..).zip(users)).await;
    wire.reply_to(3000).await;
    run(&server, "pages");
}

#[test]
fn deadlines_and_cancelling_end_calls() {
    run(&Harkd::start(), "deadlines");
}

#[test]
fn log_is_watched() {
    run(
        &Harkd::builder().arg("--watch-logs=loopback").start(),
        "logs",
    );
}

#[test]
fn health_is_checked_and_watched() {
    let mut server = Harkd::start();
    let mut client = client(&server, "health");
    assert_eq!(Output::of(&mut client).next(), "watching");
    server.signal("TERM");
    check(client);
    assert!(server.wait().success());
}

#[test]
fn old_service_works_unchanged() {
    run(&Harkd::start(), "old");
}

#[tokio::test]
async fn document_client_reconnects_and_sees_each_message_once() {
    let document = Document::read();
    let server = Harkd::start();
    let mut client = document.start(&server, document.programs.first().unwrap());
    let mut output = Output::of(&mut client);
    assert_eq!(output.next(), "['bob']");
    assert_eq!(output.next(), "(anonymous) says hello, bob");
    let server = server.stop_and_restart();
    Wire::connect(server.address())
        .await
        .sent("bob", "after a stop")
        .await;
    assert_eq!(output.next(), "(anonymous) says after a stop");
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.sent("bob", "after a kill").await;
    assert_eq!(output.next(), "(anonymous) says after a kill");
    wire.ok(Request::Delete {
        user: name("bob"),
        password: None,
    })
    .await;
    assert_eq!(output.next(), "bye: deleted");
    check(client);
}

#[tokio::test]
async fn document_session_reconnects_and_sends_once() {
    let document = Document::read();
    let server = Harkd::start();
    Wire::connect(server.address()).await.create("bob").await;
    let mut session = document.start_after_imports(&server, document.programs.get(2).unwrap());
    let mut output = Output::of(&mut session);
    assert_eq!(output.next(), "bob says hello, me");
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.sent("bob", "after a kill").await;
    assert_eq!(output.next(), "(anonymous) says after a kill");
    wire.ok(Request::Delete {
        user: name("bob"),
        password: None,
    })
    .await;
    check(session);
}

#[test]
fn other_document_programs_work_as_printed() {
    let document = Document::read();
    let mut server = Harkd::builder().arg("--watch-logs=loopback").start();
    let [_, rooms, _, refusal, logs] = document.programs.as_slice() else {
        panic!("this test knows other programs: {:#?}", document.programs)
    };
    let mut rooms = document.start_after_imports(&server, rooms);
    assert_eq!(Output::of(&mut rooms).next(), "#team ann says hello, room");
    rooms.kill().unwrap();
    rooms.wait().unwrap();
    let mut refusal = document.start_after_imports(&server, refusal);
    assert_eq!(Output::of(&mut refusal).next(), "no-such-user");
    check(refusal);
    let logs = document.start_after_imports(&server, logs);
    server.wait_for_log("log watcher connected");
    server.signal("TERM");
    // It ends successfully, together with the server.
    check(logs);
    assert!(server.wait().success());
}

/// Output of a program, line by line.
struct Output(BufReader<ChildStdout>);

impl Output {
    fn of(program: &mut Child) -> Self {
        Self(BufReader::new(program.stdout.take().unwrap()))
    }

    /// Returns the next line; empty at the end.
    fn next(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

/// `docs/GRPC.md`, and a folder in which its commands were run.
struct Document {
    programs: Vec<String>,
    folder: TempDir,
}

impl Document {
    fn read() -> Self {
        let text = fs::read_to_string(root().join("docs/GRPC.md")).unwrap();
        let document = Self {
            programs: blocks(&text, "python"),
            folder: tempfile::tempdir().unwrap(),
        };
        let [commands, ..] = &*blocks(&text, "sh") else {
            panic!("no commands in the document")
        };
        // ./test has installed these packages.
        let generate: Vec<&str> = commands
            .lines()
            .filter(|line| !line.starts_with("pip install "))
            .collect();
        assert_eq!(generate.len(), 1, "{commands}");
        std::os::unix::fs::symlink(root().join("grpc"), document.folder.path().join("grpc"))
            .unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-ec", &generate.concat()])
            .current_dir(&document.folder);
        let path = std::env::var("PATH").unwrap();
        shell.env("PATH", format!("{}:{path}", python_folder().display()));
        assert!(shell.status().unwrap().success(), "{generate:?}");
        document
    }

    /// Starts a program as printed in the document, except for the address.
    fn start(&self, server: &Harkd, program: &str) -> Child {
        assert!(program.contains("localhost:3000"), "{program}");
        let program = program.replace("localhost:3000", &server.address().to_string());
        let file = tempfile::Builder::new()
            .suffix(".py")
            .tempfile_in(&self.folder)
            .unwrap();
        fs::write(&file, program).unwrap();
        let path = file.into_temp_path().keep().unwrap();
        python()
            .arg("-u")
            .arg(path)
            .current_dir(&self.folder)
            .spawn()
            .unwrap()
    }

    /// Starts a program that continues where the first one has created its
    /// `chat`.
    fn start_after_imports(&self, server: &Harkd, program: &str) -> Child {
        let (imports, _) = self.programs.first().unwrap().split_once("try:").unwrap();
        self.start(server, &format!("{imports}{program}"))
    }
}

/// Returns the blocks of the document in this language.
pub(crate) fn blocks(document: &str, language: &str) -> Vec<String> {
    let opening = format!("\n```{language}\n");
    let blocks = document
        .split(&opening)
        .skip(1)
        .map(|rest| rest.split("\n```").next().unwrap());
    blocks.map(str::to_owned).collect()
}
