//! hark with stdin and stdout in a pipe.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use crate::chat::{ChatServer, Faults};
use crate::hark::{Terminal, fine, pipe, ran};

#[test]
fn every_command_prints_one_line_in_order() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    let ran = terminal.pipe(
        "create amy\n\n# a comment\ncreate bob\nlogin amy\nsend bob hello, bob\nlist\nlist bo\nping\n\
         disconnect\ndelete nobody\ndelete bob\nhelp\n",
    );
    assert_eq!(
        ran,
        fine("ok\nok\nok\nok\nok 2 amy,bob\nok 1 bob\nok\nok\nok absent\nok deleted\nok\n")
    );
    assert_eq!(server.chat.stored("bob"), ["hello, bob"]);
}

#[test]
fn refusals_are_in_order_and_set_exit_code() {
    let server = ChatServer::start();
    server.chat.add("amy", Some("secret"));
    let terminal = Terminal::at(&server);
    let ran = terminal.pipe("send bob x\nlist (\nfrobnicate\ncreate a,b\nlogin amy\nping\n");
    let expected = [
        "notok no-such-user there is no user bob",
        r"notok bad-pattern regex parse error:\n    (\n    ^\nerror: unclosed group",
        "notok bad-request unknown command \"frobnicate\"; try help",
        "notok bad-request a user name cannot contain ','",
        "notok denied wrong or missing password",
        "ok",
        "",
    ];
    assert_eq!((ran.out, ran.code), (expected.join("\n"), Some(1)));
}

#[test]
fn messages_are_acknowledged_once_printed() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    server.chat.add("bob", None);
    for n in 0..600 {
        server.chat.leave(
            (n % 2 == 0).then_some("bob"),
            "amy",
            &format!("text {n}\n\x1b[31m\\"),
        );
    }
    let terminal = Terminal::at(&server);
    let ran = terminal.pipe("connect amy\n");
    let lines: Vec<&str> = ran.out.lines().collect();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(lines[0], "ok 600");
    assert_eq!(lines.len(), 601);
    for (n, line) in lines[1..].iter().enumerate() {
        let fields: Vec<&str> = line.splitn(5, ' ').collect();
        let sequence = (1 + 3 * n).to_string();
        let sender = if n % 2 == 0 { "bob" } else { "," };
        assert_eq!(fields[..3], ["message", &sequence, sender]);
        assert!(
            fields[3].ends_with('Z') && fields[3].contains('T'),
            "{line}"
        );
        assert_eq!(fields[4], format!(r"text {n}\n\u{{1b}}[31m\\"));
    }
    assert_eq!(server.chat.queued("amy"), 0);
}

#[test]
fn pipelined_sends_survive_server_faults() {
    let server = ChatServer::start();
    server.chat.add("bob", None);
    server.chat.inject(Faults {
        drop_one_in: Some(400),
        unavailable_one_in: Some(400),
        ..Faults::default()
    });
    let terminal = Terminal::at(&server);
    let lines: String = (0..3000).map(|n| format!("send bob {n}\n")).collect();
    let ran = terminal.pipe(&lines);
    assert_eq!(ran, fine(&"ok\n".repeat(3000)));
    let expected: Vec<String> = (0..3000).map(|n| n.to_string()).collect();
    assert_eq!(server.chat.stored("bob"), expected);
}

#[test]
fn long_outage_ends_the_run() {
    let server = ChatServer::start();
    server.stop();
    let terminal = Terminal::at(&server);
    let mut command = terminal.hark(["--timeout", "1"]);
    command.stdin(Stdio::piped());
    let ran = pipe(command, "send bob x\nping\n");
    assert_eq!(
        ran.out,
        "notsent the client is closed\nnotsent the client is closed\n"
    );
    assert_eq!(ran.code, Some(3));
    assert!(
        ran.err
            .starts_with(&format!("hark: cannot reach {}: ", terminal.server)),
        "{}",
        ran.err
    );
}

#[test]
fn short_outage_is_bridged() {
    let server = ChatServer::start();
    server.chat.add("bob", None);
    let terminal = Terminal::at(&server);
    let mut child = terminal
        .hark([""; 0])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    writeln!(stdin, "send bob 1").unwrap();
    stdout.read_line(&mut line).unwrap();
    server.stop();
    writeln!(stdin, "send bob 2\nsend bob 3").unwrap();
    server.restart();
    for _ in 2..=3 {
        stdout.read_line(&mut line).unwrap();
    }
    drop(stdin);
    assert_eq!(
        (line.as_str(), child.wait().unwrap().code()),
        ("ok\nok\nok\n", Some(0))
    );
    assert_eq!(server.chat.stored("bob"), ["1", "2", "3"]);
}

#[test]
fn quit_ends_reading() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    assert_eq!(terminal.pipe("ping\nquit\nfrobnicate\n"), fine("ok\nok\n"));
}

#[test]
fn password_comes_from_environment_or_file() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    let file = terminal.state.path().join("password");
    std::fs::write(&file, "new secret\n").unwrap();
    let mut command = terminal.hark(["--new-password-file", file.to_str().unwrap()]);
    command.env("HARK_PASSWORD", "old secret");
    assert_eq!(
        pipe(command, "create amy\nlogin amy\npassword amy\n"),
        fine("ok\nok\nok\n")
    );
    let command = terminal.hark(["--password-file", file.to_str().unwrap()]);
    assert_eq!(pipe(command, "login amy\n"), fine("ok\n"));
}

#[test]
fn closed_output_ends_the_run_quietly() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    let mut child = terminal
        .hark([""; 0])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    // hark may have ended before both are read.
    drop(stdin.write_all(b"ping\nping\n"));
    drop(stdin);
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (Some(4), ""));
}
