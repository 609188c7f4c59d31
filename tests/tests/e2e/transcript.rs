//! The acceptance transcript with the real `hark` and `harkd`: in terminals, in
//! a pipe and as commands; and a `hark listen` that is killed repeatedly. All
//! of it over the wire protocol and over gRPC.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use hark_tests::{Harkd, Terminal, Trial, Wire, hark};
use rand::RngExt as _;
use serde_json::Value;
use tempfile::TempDir;

const CTRL_D: &str = "\x04";

/// Transport of `hark`, as environment variables.
type Transport = &'static [(&'static str, &'static str)];

const NATIVE: Transport = &[];
const GRPC: Transport = &[("HARK_GRPC", "true")];

/// Runs the tests below over each transport.
macro_rules! over_both {
    ($($test:ident),+ $(,)?) => {
        mod over_native {
            $(#[test] fn $test() { super::$test(super::NATIVE); })+
        }
        mod over_grpc {
            $(#[test] fn $test() { super::$test(super::GRPC); })+
        }
    };
}

over_both!(
    transcript_in_terminals,
    terminal_keeps_receiving_across_server_kill,
    early_keystrokes_are_executed,
    transcript_in_a_pipe,
    transcript_as_commands,
    team_in_terminals,
    rooms_as_commands,
    killed_listeners_print_every_message_once,
);

fn open(transport: Transport, server: &Harkd, state: &TempDir) -> Terminal {
    let terminal = Terminal::open(server.address(), state.path(), transport);
    terminal.wait_for_prompt(&prompt(server, ""));
    terminal
}

/// Returns the prompt of a user (`user@`), or of an anonymous client, while the
/// link is up.
fn prompt(server: &Harkd, user: &str) -> String {
    format!("{user}{}> ", server.address())
}

/// Leaves the chat, and returns the content of the screen.
#[track_caller]
fn leave(mut terminal: Terminal, prompt: &str) -> String {
    terminal.wait_for_prompt(prompt);
    terminal.keys(CTRL_D);
    assert_eq!(terminal.end(), 0);
    terminal.contents()
}

#[track_caller]
fn check_shown_once(screen: &str, message: &str) {
    let times = screen
        .lines()
        .filter(|line| line.ends_with(message))
        .count();
    assert_eq!(times, 1, "{message:?} is not there once:\n{screen}");
}

/// The section "A team" of the README: three terminals on one machine, and a second
/// device.
fn team_in_terminals(transport: Transport) {
    let server = Harkd::start();
    let state = tempfile::tempdir().unwrap();
    let enter = |user: &str| {
        let mut terminal = open(transport, &server, &state);
        terminal.enter(&format!("create {user}"), &format!("{user} was created"));
        let connected = format!("you are connected as {user}; no messages are waiting");
        terminal.enter(&format!("connect {user}"), &connected);
        terminal
    };
    let (mut ann, mut bob, mut cleo) = (enter("ann"), enter("bob"), enter("cleo"));
    ann.enter("room #team", "#team is open");
    for joining in [&mut bob, &mut cleo] {
        joining.enter(
            "join #team",
            "you are in #team; 0 messages can be read back by history",
        );
    }
    bob.enter("send #team hello, team", "→ #team: hello, team … stored");
    for member in [&ann, &bob, &cleo] {
        member.wait_for("#team bob: hello, team");
    }
    let mut phone = hark(state.path())
        .args(["--server", &server.address().to_string()])
        .args(["--device", "phone", "listen", "--count", "1", "bob"])
        .envs(transport.iter().copied())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    bob.wait_for("you have a new device: phone");
    leave(cleo, &prompt(&server, "cleo@"));
    for text in ["first", "second"] {
        ann.enter(
            &format!("send #team {text}"),
            &format!("→ #team: {text} … stored"),
        );
        bob.wait_for(&format!("#team ann: {text}"));
    }
    let mut line = String::new();
    let mut output = BufReader::new(phone.stdout.take().unwrap());
    output.read_line(&mut line).unwrap();
    assert!(
        line.starts_with("said #team ") && line.ends_with(" first\n"),
        "{line}"
    );
    assert!(phone.wait().unwrap().success());
    let mut cleo = open(transport, &server, &state);
    cleo.enter("connect cleo", "you are connected as cleo;");
    cleo.wait_for("#team ann: second");
    cleo.enter("rooms", "#team: open, 3 members,");
    let screen = leave(cleo, &prompt(&server, "cleo@"));
    for text in ["#team ann: first", "#team ann: second"] {
        check_shown_once(&screen, text);
    }
    assert!(!screen.contains("hello, team"), "it was seen:\n{screen}");
}

/// The commands of rooms and devices without a terminal: their output and exit codes.
fn rooms_as_commands(transport: Transport) {
    let server = Harkd::start();
    let state = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = hark(state.path());
        command.args(["--server", &server.address().to_string()]);
        command.args(arguments).envs(transport.iter().copied());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let ok = |text: &str| (Some(0), text.to_owned());
    for user in ["ann", "bob"] {
        assert_eq!(run(&["create", user]), ok("ok\n"));
    }
    assert_eq!(run(&["room", "--as", "ann", "#team"]), ok("ok\n"));
    let (code, joined) = run(&["join", "--as", "bob", "#team"]);
    assert!(code == Some(0) && joined.starts_with("ok "), "{joined}");
    assert_eq!(run(&["send", "--as", "ann", "#team", "hello"]), ok("ok\n"));
    let (_, rooms) = run(&["rooms", "--as", "bob"]);
    assert!(rooms.starts_with("#team open 2 1 "), "{rooms}");
    assert_eq!(run(&["members", "--as", "bob", "#team"]), ok("ann\nbob\n"));
    let (_, history) = run(&["history", "--as", "bob", "#team", "5"]);
    let fields: Vec<_> = history.split_whitespace().collect();
    let [number, "ann", _, "hello"] = *fields else {
        panic!("{history}")
    };
    assert_eq!(run(&["seen", "--as", "bob", "#team", number]), ok("ok\n"));
    let (_, rooms) = run(&["rooms", "--as", "bob", "team$"]);
    assert!(rooms.starts_with("#team open 2 0 "), "{rooms}");
    for refused in [
        &["expel", "--as", "bob", "#team", "ann"][..],
        &["join", "#team"],
        &["talk", "--as", "ann", "bob"],
        &["room", "--as", "ann", "#secret", "invite"],
    ] {
        assert_eq!(run(refused), (Some(1), String::new()), "{refused:?}");
    }
    assert_eq!(run(&["join", "--as", "bob", "team"]).0, Some(2));
    assert_eq!(run(&["devices", "--as", "bob"]), ok(""));
    assert_eq!(run(&["leave", "--as", "bob", "#team"]), ok("ok\n"));
    assert_eq!(run(&["delete", "--as", "ann", "#team"]), ok("ok deleted\n"));
}

fn transcript_in_terminals(transport: Transport) {
    let mut server = Harkd::start();
    let states = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (nobody, user3) = (prompt(&server, ""), prompt(&server, "user3@"));
    // 1
    let mut second = open(transport, &server, &states[0]);
    let mut third = open(transport, &server, &states[1]);
    second.enter("create user2", "user2 was created");
    third.enter("create user3", "user3 was created");
    // 2
    second.enter("list", "2 users: user2 user3");
    second.enter("list r3$", "1 user: user3");
    second.enter("list (", "refused (bad-pattern): ");
    second.wait_for("unclosed group");
    // 3
    second.enter("send user3 hello", "→ user3: hello … stored");
    third.enter("ping", "the server responds");
    assert!(
        !third.contents().contains("hello"),
        "it is not connected yet:\n{}",
        third.contents()
    );
    // 4
    third.enter(
        "connect user3",
        "you are connected as user3; 1 message is waiting",
    );
    third.wait_for("(anonymous): hello");
    // 5
    second.enter("send user3 hello, again", "→ user3: hello, again … stored");
    third.wait_for("(anonymous): hello, again");
    // 6
    // An editor that ends while it takes a text may leave the text to be drawn again.
    third.enter("ping", "the server responds");
    let screen = leave(third, &user3);
    check_shown_once(&screen, "(anonymous): hello");
    check_shown_once(&screen, "(anonymous): hello, again");
    second.enter("send user3 later", "→ user3: later … stored");
    server.kill();
    second.wait_for("* no connection to ");
    second.wait_for("(offline)");
    second.enter(
        "send user3 meanwhile",
        "→ user3: meanwhile … pending (waiting for the server)",
    );
    server = server.restart();
    second.wait_for("→ user3: meanwhile … stored");
    let mut third = open(transport, &server, &states[1]);
    // An ack that was lost with the server increases the number, but no message
    // is shown twice.
    third.enter("connect user3", "messages are waiting");
    third.wait_for("(anonymous): meanwhile");
    third.enter("ping", "the server responds");
    let screen = leave(third, &user3);
    check_shown_once(&screen, "(anonymous): later");
    check_shown_once(&screen, "(anonymous): meanwhile");
    assert!(!screen.contains("hello"), "{screen}");
    let mut third = open(transport, &server, &states[1]);
    third.enter(
        "connect user3",
        "you are connected as user3; no messages are waiting",
    );
    assert!(!leave(third, &user3).contains("(anonymous)"));
    // 7
    second.enter("send user3 unread", "→ user3: unread … stored");
    second.enter("delete user3", "repeat the line to confirm");
    second.enter("delete user3", "user3 was deleted");
    second.enter(
        "send user3 x",
        "→ user3: x … refused (no-such-user): there is no user user3",
    );
    second.enter("create user3", "user3 was created");
    let mut third = open(transport, &server, &states[1]);
    third.enter(
        "connect user3",
        "you are connected as user3; no messages are waiting",
    );
    leave(third, &user3);
    leave(second, &nobody);
}

fn terminal_keeps_receiving_across_server_kill(transport: Transport) {
    let mut server = Harkd::start();
    let states = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut amy = open(transport, &server, &states[0]);
    let mut bob = open(transport, &server, &states[1]);
    amy.enter("create amy", "amy was created");
    amy.enter("create bob", "bob was created");
    amy.enter("connect amy", "you are connected as amy");
    bob.enter("connect bob", "you are connected as bob");
    for n in 0..3 {
        amy.enter(
            &format!("send bob before {n}"),
            &format!("→ bob: before {n} … stored"),
        );
        bob.wait_for(&format!("amy: before {n}"));
        server.kill();
        amy.wait_for("(offline)");
        bob.enter(
            &format!("send amy during {n}"),
            &format!("→ amy: during {n} … pending"),
        );
        server = server.restart();
        amy.wait_for(&format!("bob: during {n}"));
        bob.wait_for(&format!("→ amy: during {n} … stored"));
    }
    let (amy, bob) = (
        leave(amy, &prompt(&server, "amy@")),
        leave(bob, &prompt(&server, "bob@")),
    );
    for n in 0..3 {
        check_shown_once(&amy, &format!("bob: during {n}"));
        check_shown_once(&bob, &format!("amy: before {n}"));
    }
}

fn early_keystrokes_are_executed(transport: Transport) {
    let server = Harkd::start();
    let state = tempfile::tempdir().unwrap();
    let mut terminal = open(transport, &server, &state);
    terminal.keys("create amy\rcreate bob\rsend bob one\rsend bob two\rconnect bob\r");
    terminal.wait_for("you are connected as bob; 2 messages are waiting");
    terminal.wait_for("(anonymous): two");
    check_shown_once(
        &leave(terminal, &prompt(&server, "bob@")),
        "(anonymous): one",
    );
}

/// Returns a command for `hark` with its state in this folder.
fn command(transport: Transport, server: &Harkd, state: &Path) -> Command {
    let mut command = hark(state);
    command.envs(transport.iter().copied());
    command.env("HARK_SERVER", server.address().to_string());
    command
}

fn start(mut command: Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Returns the exit code and the lines of the output. Number and time of
/// messages are replaced by letters.
fn finish(child: Child) -> (i32, Vec<String>) {
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    let code = status
        .code()
        .unwrap_or_else(|| panic!("{status}: {}", String::from_utf8_lossy(&stderr)));
    (code, stdout.lines().map(without_numbers).collect())
}

fn without_numbers(line: &str) -> String {
    let words: Vec<&str> = line.splitn(5, ' ').collect();
    let ["message", number, sender, time, text] = words[..] else {
        return line.to_owned();
    };
    assert!(
        number.parse::<u64>().is_ok() && time.ends_with('Z'),
        "{line}"
    );
    format!("message N {sender} T {text}")
}

#[track_caller]
fn check_piped(
    transport: Transport,
    server: &Harkd,
    state: &TempDir,
    code: i32,
    dialogue: &[(&str, &[&str])],
) {
    let mut child = start(command(transport, server, state.path()));
    let lines: Vec<&str> = dialogue.iter().map(|(line, _)| *line).collect();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.join("\n").as_bytes())
        .unwrap();
    let answers: Vec<&str> = dialogue
        .iter()
        .flat_map(|(_, answers)| *answers)
        .copied()
        .collect();
    let (ended, said) = finish(child);
    assert_eq!(said, answers);
    assert_eq!(ended, code);
}

fn transcript_in_a_pipe(transport: Transport) {
    let mut server = Harkd::start();
    let states = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let dialogue: &[(&str, &[&str])] = &[
        ("create user2", &["ok"]),
        ("create user3", &["ok"]),
        ("list", &["ok 2 user2,user3"]),
        ("list r3$", &["ok 1 user3"]),
        (
            "list (",
            &["notok bad-pattern not a regular expression: unclosed group"],
        ),
        ("login user2", &["ok"]),
        ("send user3 hello", &["ok"]),
        ("send user3 hello, again", &["ok"]),
    ];
    check_piped(transport, &server, &states[0], 1, dialogue);
    let messages: &[&str] = &[
        "ok 2",
        "message N user2 T hello",
        "message N user2 T hello, again",
    ];
    check_piped(
        transport,
        &server,
        &states[1],
        0,
        &[("connect user3", messages)],
    );

    // The server is killed, and restarted after the next line was piped.
    let mut second = start(command(transport, &server, states[0].path()));
    let mut keys = second.stdin.take().unwrap();
    let mut lines = BufReader::new(second.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    writeln!(keys, "send user3 later").unwrap();
    assert_eq!(lines.next().as_deref(), Some("ok"));
    server.kill();
    writeln!(keys, "send user3 meanwhile").unwrap();
    let server = server.restart();
    assert_eq!(lines.next().as_deref(), Some("ok"));
    drop(keys);
    assert_eq!(
        (second.wait().unwrap().code(), lines.next()),
        (Some(0), None)
    );
    let mut third = start(command(transport, &server, states[1].path()));
    third
        .stdin
        .take()
        .unwrap()
        .write_all(b"connect user3")
        .unwrap();
    let (code, mut said) = finish(third);
    // An ack that was lost with the server increases the number, but repeats no
    // message.
    assert!(code == 0 && said.remove(0).starts_with("ok "));
    assert_eq!(said, ["message N , T later", "message N , T meanwhile"]);

    let dialogue: &[(&str, &[&str])] = &[
        ("send user3 unread", &["ok"]),
        ("delete user3", &["ok deleted"]),
        (
            "send user3 x",
            &["notok no-such-user there is no user user3"],
        ),
        ("delete user3", &["ok absent"]),
        ("create user3", &["ok"]),
        ("connect user3", &["ok 0"]),
    ];
    check_piped(transport, &server, &states[1], 1, dialogue);
}

fn transcript_as_commands(transport: Transport) {
    let mut server = Harkd::start();
    let states = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let check = |server: &Harkd, state: &TempDir, words: &[&str], code: i32, expected: &[&str]| {
        let mut command = command(transport, server, state.path());
        command.args(words);
        let (ended, said) = finish(start(command));
        assert_eq!(
            (ended, said),
            (
                code,
                expected.iter().map(|line| (*line).to_owned()).collect()
            ),
            "{words:?}"
        );
    };
    check(&server, &states[0], &["create", "user2"], 0, &["ok"]);
    check(&server, &states[1], &["create", "user3"], 0, &["ok"]);
    check(&server, &states[0], &["list"], 0, &["user2", "user3"]);
    check(&server, &states[0], &["list", "r3$"], 0, &["user3"]);
    check(&server, &states[0], &["list", "("], 1, &[]);
    check(&server, &states[0], &["send", "user3", "hello"], 0, &["ok"]);
    check(
        &server,
        &states[0],
        &["send", "--as", "user2", "user3", "hello,", "again"],
        0,
        &["ok"],
    );
    let heard = ["message N , T hello", "message N user2 T hello, again"];
    check(
        &server,
        &states[1],
        &["listen", "--count", "2", "user3"],
        0,
        &heard,
    );
    check(&server, &states[0], &["send", "user3", "later"], 0, &["ok"]);
    server.kill();
    let mut command = command(transport, &server, states[0].path());
    command.args(["send", "user3", "meanwhile"]);
    let mut meanwhile = start(command);
    // It reports the outage and retries.
    let mut notice = String::new();
    BufReader::new(meanwhile.stderr.take().unwrap())
        .read_line(&mut notice)
        .unwrap();
    assert!(notice.contains("no connection to"), "{notice}");
    let server = server.restart();
    assert_eq!(finish(meanwhile), (0, vec!["ok".to_owned()]));
    let heard = ["message N , T later", "message N , T meanwhile"];
    check(
        &server,
        &states[1],
        &["listen", "--count", "2", "user3"],
        0,
        &heard,
    );
    check(
        &server,
        &states[0],
        &["send", "user3", "unread"],
        0,
        &["ok"],
    );
    check(
        &server,
        &states[0],
        &["delete", "user3"],
        0,
        &["ok deleted"],
    );
    check(&server, &states[0], &["send", "user3", "x"], 1, &[]);
}

/// Number of messages that the killed listeners print in total.
const MESSAGES: u64 = 1000;

/// Number of lines read from a listener before it is killed. Each is so long
/// that the pipe holds few more and a kill can tear one.
const LINES_MAX: u64 = 60;
const LINE_BYTES: usize = 2000;
/// Smallest number of kills, given 64 KiB in the pipe and some in the reader.
const KILLS_MIN: u64 = 10;

/// Returns the output of one listener, by number.
fn listen(
    transport: Transport,
    server: &Harkd,
    state: &Path,
    left: u64,
    kill_after: u64,
) -> Vec<(u64, String)> {
    let mut command = command(transport, server, state);
    command.args(["listen", "--json", "--count", &left.to_string(), "bob"]);
    let mut child = start(command);
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut printed = Vec::new();
    while let Some(line) = whole_line(&mut output) {
        printed.push(line);
        if printed.len() as u64 == kill_after {
            // Fails if the process has ended already; its output is in the
            // pipe.
            drop(child.kill());
        }
    }
    child.wait().unwrap();
    printed
}

/// Reads a complete line; `None` if it is torn.
fn whole_line(output: &mut BufReader<ChildStdout>) -> Option<(u64, String)> {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    let object: Value = serde_json::from_str(line.strip_suffix('\n')?).unwrap();
    let sequence = object.get("sequence").and_then(Value::as_u64).unwrap();
    Some((
        sequence,
        object
            .get("text")
            .and_then(Value::as_str)
            .unwrap()
            .to_owned(),
    ))
}

fn text(n: u64) -> String {
    format!("{n} {}", "x".repeat(LINE_BYTES))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn killed_listeners_print_every_message_once(transport: Transport) {
    let mut random = Trial::from_env().random;
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let sending = tokio::spawn(async move {
        for n in 0..MESSAGES {
            wire.sent("bob", &text(n)).await;
        }
    });
    let state = tempfile::tempdir().unwrap();
    let mut printed: Vec<(u64, String)> = Vec::new();
    let mut kills = 0;
    while (printed.len() as u64) < MESSAGES {
        let left = MESSAGES - printed.len() as u64;
        let kill_after = random.random_range(1..=LINES_MAX);
        let lines = tokio::task::block_in_place(|| {
            listen(transport, &server, state.path(), left, kill_after)
        });
        // Only the line at the kill may be repeated.
        let is_again = lines
            .first()
            .is_some_and(|first| printed.last() == Some(first));
        printed.extend(lines.into_iter().skip(usize::from(is_again)));
        kills += 1;
    }
    sending.await.unwrap();
    assert!(kills >= KILLS_MIN, "{kills} kills");
    assert!(
        printed.is_sorted_by(|(one, _), (next, _)| one < next),
        "out of order, or twice"
    );
    let expected: Vec<String> = (0..MESSAGES).map(text).collect();
    assert!(
        printed.iter().map(|(_, text)| text).eq(&expected),
        "not everything was printed once"
    );
}
