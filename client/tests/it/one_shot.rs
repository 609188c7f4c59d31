//! hark with a command as arguments.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, ChildStdout, Command};
use std::time::Duration;

use crate::chat::{ChatServer, Faults};
use crate::hark::{Ran, Terminal, fine, pipe, ran};

#[test]
fn each_command_runs_once() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    for name in ["amy", "bob"] {
        assert_eq!(terminal.run(&["create", name]), fine("ok\n"));
    }
    assert_eq!(terminal.run(&["list"]), fine("amy\nbob\n"));
    assert_eq!(terminal.run(&["list", "b$|^b"]), fine(""));
    assert_eq!(
        terminal.run(&["send", "bob", "hello", "--there,", "you"]),
        fine("ok\n")
    );
    assert_eq!(terminal.run(&["ping"]), fine("ok\n"));
    assert_eq!(terminal.run(&["delete", "amy"]), fine("ok deleted\n"));
    assert_eq!(server.chat.stored("bob"), ["hello --there, you"]);
}

#[test]
fn refusal_is_one_line_and_exit_code_1() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    let refused = terminal.run(&["send", "bob", "x"]);
    let err = "hark: there is no user bob\n".to_owned();
    assert_eq!(
        refused,
        Ran {
            code: Some(1),
            out: String::new(),
            err
        }
    );
}

#[test]
fn unknown_refusal_code_is_a_refusal() {
    let server = ChatServer::start();
    server.chat.add("bob", None);
    server.chat.inject(Faults {
        has_unknown_code: true,
        ..Faults::default()
    });
    let err = "hark: come back at five (out-of-tea)\n".to_owned();
    let refused = Terminal::at(&server).run(&["send", "bob", "x"]);
    assert_eq!(
        refused,
        Ran {
            code: Some(1),
            out: String::new(),
            err
        }
    );
}

#[test]
fn denial_of_anonymous_user_suggests_as() {
    let server = ChatServer::start();
    server.chat.add("amy", Some("secret"));
    let terminal = Terminal::at(&server);
    let denied = terminal.run(&["delete", "amy"]);
    assert_eq!(denied.code, Some(1));
    assert!(
        denied.err.ends_with("; log in with --as USER\n"),
        "{denied:?}"
    );
    let denied = terminal.run(&["delete", "--as", "amy", "amy"]);
    assert!(
        denied.err.starts_with("hark: wrong or missing password") && !denied.err.contains("--as"),
        "{denied:?}"
    );
}

#[test]
fn invalid_command_line_is_exit_code_2() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    for wrong in [
        &["frobnicate"][..],
        &["send", "bob"],
        &["create", "a,b"],
        &["--server", "nowhere", "ping"],
    ] {
        assert_eq!(terminal.run(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn send_as_user_does_not_take_over() {
    let server = ChatServer::start();
    for name in ["amy", "bob"] {
        server.chat.add(name, None);
    }
    let terminal = Terminal::at(&server);
    let (mut listening, mut lines) = listen(terminal.hark(["listen", "amy", "--count", "2"]));
    assert_eq!(
        terminal.run(&["send", "--as", "amy", "bob", "from amy"]),
        fine("ok\n")
    );
    for text in ["1", "2"] {
        assert_eq!(terminal.run(&["send", "amy", text]), fine("ok\n"));
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.ends_with(&format!(" {text}\n")), "{line}");
    }
    assert_eq!(listening.wait().unwrap().code(), Some(0));
    let bobs = terminal.run(&["listen", "bob", "--count", "1", "--json"]);
    let message: serde_json::Value = serde_json::from_str(&bobs.out).unwrap();
    assert_eq!(
        (&message["sender"], &message["user"]),
        (&"amy".into(), &"bob".into())
    );
    assert_eq!((&message["text"], bobs.code), (&"from amy".into(), Some(0)));
    assert!(message["sequence"].is_u64() && message["time_ms"].is_u64());
}

/// Starts a listener, and returns its output.
fn listen(mut command: Command) -> (Child, BufReader<ChildStdout>) {
    let mut child = command.spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

#[test]
fn signaled_listener_acknowledges_printed_messages() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    let terminal = Terminal::at(&server);
    for signal in ["TERM", "INT"] {
        let (mut child, mut lines) = listen(terminal.hark(["listen", "amy"]));
        let mut line = String::new();
        for n in 0..10 {
            server.chat.leave(None, "amy", &n.to_string());
            lines.read_line(&mut line).unwrap();
        }
        let killed = Command::new("kill")
            .args(["-s", signal, &child.id().to_string()])
            .status()
            .unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        assert_eq!((rest.as_str(), server.chat.queued("amy")), ("", 0));
    }
}

#[test]
fn killed_listener_repeats_at_most_one_message() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    for n in 0..500 {
        server.chat.leave(None, "amy", &format!("text {n}"));
    }
    let terminal = Terminal::at(&server);
    // A line that is printed twice counts as two, so only the last line ends
    // the loop.
    let is_over = |read: &[String]| {
        read.last()
            .is_some_and(|line| line.ends_with(" text 499\n"))
    };
    let (mut read, mut kills) = (Vec::new(), 0);
    while !is_over(&read) {
        let (mut child, mut lines) = listen(terminal.hark(["listen", "amy"]));
        for _ in 0..40 {
            if is_over(&read) {
                break;
            }
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            read.push(line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // Output that was printed after the last line read above.
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        read.extend(rest.split_inclusive('\n').map(str::to_owned));
    }
    assert!(kills > 1, "it was killed at least once in the middle");
    let texts: Vec<&str> = read
        .iter()
        .map(|line| line.trim_end().splitn(5, ' ').nth(4).unwrap())
        .collect();
    let twice = texts.windows(2).filter(|pair| pair[0] == pair[1]).count();
    let mut once = texts.clone();
    once.dedup();
    let expected: Vec<String> = (0..500).map(|n| format!("text {n}")).collect();
    assert_eq!(once, expected);
    // A kill between printing and recording repeats at most one message.
    assert!(
        twice <= kills,
        "{twice} lines were printed twice by {kills} kills"
    );
}

#[test]
fn listener_reports_takeover_and_ends() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    let terminal = Terminal::at(&server);
    let (first, mut lines) = listen(terminal.hark(["listen", "amy"]));
    let mut line = String::new();
    server.chat.leave(None, "amy", "1");
    lines.read_line(&mut line).unwrap();
    let (mut second, mut others) = listen(terminal.hark(["listen", "amy"]));
    let first = ran(first.wait_with_output().unwrap());
    assert_eq!(
        (first.err.as_str(), first.code),
        (
            "hark: another connection now receives the messages of amy\n",
            Some(1)
        )
    );
    server.chat.leave(None, "amy", "2");
    line.clear();
    others.read_line(&mut line).unwrap();
    assert!(line.ends_with(" 2\n"), "{line}");
    second.kill().unwrap();
    second.wait().unwrap();
}

#[test]
fn unreachable_server_is_reported_in_time() {
    let server = ChatServer::start();
    server.stop();
    let terminal = Terminal::at(&server);
    let start = std::time::Instant::now();
    let ran = terminal.run(&["send", "bob", "x", "--timeout", "1"]);
    assert!(start.elapsed().as_secs() < 5);
    assert_eq!((ran.code, ran.out.as_str()), (Some(3), ""));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert!(
        lines[0].starts_with(&format!("hark: no connection to {}: ", terminal.server)),
        "{ran:?}"
    );
    assert_eq!(
        lines[1],
        format!(
            "hark: not sent: cannot reach {} within 1 s",
            terminal.server
        )
    );
}

#[test]
fn deletion_waits_for_a_slow_cluster() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    server.chat.inject(Faults {
        deletion_takes: Duration::from_secs(3),
        ..Faults::default()
    });
    let terminal = Terminal::at(&server);
    let ran = terminal.run(&["--timeout", "1", "delete", "amy"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(
        ran.err.starts_with("hark: no answer within 1 s; "),
        "{ran:?}"
    );
}

#[test]
fn user_command_runs_harkd() {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    let directory = tempfile::tempdir().unwrap();
    let mut without = terminal.hark(["user", "list"]);
    let without = ran(without.env("PATH", directory.path()).output().unwrap());
    if !harkd_is_beside_hark() {
        assert_eq!(without.code, Some(4));
        assert!(without.err.contains("cannot find harkd"), "{without:?}");
        let harkd = directory.path().join("harkd");
        std::fs::write(
            &harkd,
            "#!/bin/sh\necho \"harkd $* $HARKD_PASSWORD\"\nexit 7\n",
        )
        .unwrap();
        make_executable(&harkd);
        let mut with = terminal.hark(["user", "add", "--store", "x", "amy", "--help"]);
        let with = ran(with
            .env("PATH", directory.path())
            .env("HARK_PASSWORD", "secret")
            .output()
            .unwrap());
        assert_eq!(
            (with.out.as_str(), with.code),
            ("harkd user add --store x amy --help secret\n", Some(7))
        );
    }
}

/// Cargo puts the binaries of the workspace into one directory.
fn harkd_is_beside_hark() -> bool {
    std::path::Path::new(env!("CARGO_BIN_EXE_hark"))
        .with_file_name("harkd")
        .exists()
}

fn make_executable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn flags_may_follow_the_text() {
    let server = ChatServer::start();
    server.chat.add("ann", None);
    server.chat.add("bob", None);
    let terminal = Terminal::at(&server);
    let sent = terminal.run(&["send", "bob", "hello", "--as", "ann"]);
    assert_eq!(sent, fine("ok\n"));
    let sent = terminal.run(&["send", "bob", "--", "hello", "--as", "ann"]);
    assert_eq!(sent, fine("ok\n"));
    assert_eq!(server.chat.stored("bob"), ["hello", "hello --as ann"]);
    let received = terminal.run(&["listen", "bob", "--count", "1"]);
    assert!(received.out.contains(" ann "), "{received:?}");
}

#[test]
fn text_comes_from_stdin() {
    let server = ChatServer::start();
    server.chat.add("bob", None);
    let terminal = Terminal::at(&server);
    let sent = pipe(terminal.hark(["send", "bob", "-"]), "one\ntwo\n");
    assert_eq!(sent, fine("ok\n"));
    assert_eq!(server.chat.stored("bob"), ["one\ntwo"]);
}

#[test]
fn new_account_has_a_password_of_its_own() {
    let server = ChatServer::start();
    server.chat.add("root", Some("adm"));
    let terminal = Terminal::at(&server);
    let with = |arguments: &[&str], lines: &str| {
        let mut command = terminal.hark(arguments);
        command.env("HARK_PASSWORD", "adm");
        pipe(command, lines)
    };
    let refused = with(&[], "login root\ncreate mia\n");
    assert!(refused.out.starts_with("ok\nnotsent "), "{refused:?}");
    assert_eq!(with(&["create", "--as", "root", "mia"], "").code, Some(3));
    assert_eq!(terminal.run(&["list", "mia"]), fine(""));
    let new = terminal.state.path().join("mia.pw");
    std::fs::write(&new, "hers\n").unwrap();
    let new = ["--new-password-file", new.to_str().unwrap()];
    let created = with(&[&new[..], &["create", "--as", "root", "mia"]].concat(), "");
    assert_eq!(created, fine("ok\n"));
    let created = with(&new, "login root\ncreate ida\n");
    assert_eq!(created, fine("ok\nok\n"));
    for name in ["mia", "ida"] {
        let login = |password: &str| {
            let mut command = terminal.hark([""; 0]);
            command.env("HARK_PASSWORD", password);
            pipe(command, &format!("login {name}\n"))
        };
        assert_eq!(login("hers"), fine("ok\n"));
        assert_eq!(login("adm").code, Some(1));
    }
}

#[test]
fn listener_runs_a_command_for_each_message() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    for text in ["one", "two", "fail", "four"] {
        server.chat.leave(Some("bob"), "amy", text);
    }
    let terminal = Terminal::at(&server);
    let script = "read text; echo \"$HARK_SENDER $text\"; test \"$text\" != fail";
    let ended = terminal.run(&["listen", "amy", "--exec", script]);
    assert_eq!(
        (ended.code, &*ended.out),
        (Some(4), "bob one\nbob two\nbob fail\n")
    );
    assert_eq!(server.chat.queued("amy"), 2, "the failed message is kept");
}

#[test]
fn watched_messages_are_in_the_history() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    for text in ["one", "two\nlines", "three"] {
        server.chat.leave(Some("bob"), "amy", text);
    }
    server.chat.leave(None, "amy", "who?");
    let terminal = Terminal::at(&server);
    let script = "echo \"$HARK_NUMBER\"";
    let (mut child, mut lines) = listen(terminal.hark(["watch", "amy", "--exec", script]));
    let mut line = String::new();
    for _ in 0..4 {
        lines.read_line(&mut line).unwrap();
    }
    let killed = Command::new("kill").arg(child.id().to_string()).status();
    assert!(killed.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(server.chat.queued("amy"), 0);
    let past = terminal.run(&["history", "bob", "--as", "amy", "--since", "1h"]);
    let texts: Vec<_> = past
        .out
        .lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap())
        .collect();
    assert_eq!(texts, ["one", "two\\nlines", "three"]);
    let past = terminal.run(&["history", "bob", "2", "--as", "amy"]);
    assert_eq!(past.out.lines().count(), 2);
    assert_eq!(
        terminal.run(&["status", "--as", "amy"]),
        fine("(anonymous) 1 0\nbob 3 0\n")
    );
    assert_eq!(
        terminal.run(&["status", "--short", "--as", "amy"]),
        fine("4 ((anonymous) 1, bob 3)\n")
    );
    let exported = terminal.run(&["export", "bob", "--as", "amy"]);
    let first: serde_json::Value =
        serde_json::from_str(exported.out.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["text"], &first["state"]),
        (&"one".into(), &"received".into())
    );
    let none = terminal.run(&["export"]);
    assert_eq!(none.code, Some(4));
    assert!(none.err.starts_with("hark: no user given"), "{none:?}");
}

#[test]
fn killed_watcher_files_each_message_once() {
    let server = ChatServer::start();
    server.chat.add("amy", None);
    let count = 300;
    for n in 0..count {
        server.chat.leave(Some("bob"), "amy", &format!("text {n}"));
    }
    let terminal = Terminal::at(&server);
    let mut kills = 0;
    while server.chat.queued("amy") > 0 {
        let before = server.chat.queued("amy");
        let mut child = terminal.hark(["watch", "amy"]).spawn().unwrap();
        while server.chat.queued("amy") > before.saturating_sub(70) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 1, "it was killed at least once in the middle");
    let past = terminal.run(&["history", "bob", "1000", "--as", "amy"]);
    let texts: Vec<_> = past
        .out
        .lines()
        .map(|line| line.splitn(4, ' ').nth(3).unwrap())
        .collect();
    let expected: Vec<_> = (0..count).map(|n| format!("text {n}")).collect();
    assert_eq!(texts, expected);
}
