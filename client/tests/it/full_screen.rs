//! The chat on a full screen, in a pseudo-terminal: the content of the screen.
//!
//! The screens are compared with `snapshots/`; `INSTA_UPDATE=always` writes them.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::chat::{ChatServer, Faults};
use crate::hark::Terminal;
use crate::terminal::{Screen, chat};

/// The sizes of the screens.
const SIZES: [(u16, u16); 4] = [(20, 5), (40, 12), (80, 24), (300, 100)];

/// Opens the chat, and connects as amy.
#[track_caller]
fn amy(terminal: &Terminal, variables: &[(&str, &str)], size: (u16, u16)) -> Screen {
    let mut screen = Screen::open_sized(terminal, variables, size);
    screen.wait_for("hark> ");
    screen.keys("/connect amy\r");
    screen.wait_for("amy@");
    screen
}

fn with_amy() -> (ChatServer, Terminal) {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    server.chat.add("bob", None);
    (server, terminal)
}

/// Returns a screen without its variable parts: times, days and the port.
fn stable(screen: &str) -> String {
    let is_digit = |c: &char| c.is_ascii_digit();
    let row = |row: &str| {
        let mut row: Vec<char> = row.trim_end().chars().collect();
        for at in 0..row.len().saturating_sub(4) {
            let is_time = row[at + 2] == ':'
                && [at, at + 1, at + 3, at + 4]
                    .iter()
                    .all(|at| is_digit(&row[*at]))
                && row.get(at + 5).is_none_or(|c| !is_digit(c));
            if is_time {
                row[at..at + 5].copy_from_slice(&['h', 'h', ':', 'm', 'm']);
            }
        }
        let row: String = row.into_iter().collect();
        let row = match row.split_once("127.0.0.1:") {
            Some((before, after)) => {
                let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
                format!("{before}SERVER{after}")
            }
            None => row,
        };
        let years = ["day, ", " 20"];
        let is_day = row.contains("── ") && years.iter().all(|part| row.contains(part));
        match row.split_once("── ") {
            Some((before, _)) if is_day => format!("{before}── DAY"),
            _ => row,
        }
    };
    screen.lines().map(row).collect::<Vec<_>>().join("\n")
}

#[track_caller]
fn check_screen(name: &str, screen: &Screen) {
    insta::assert_snapshot!(name, stable(&screen.contents()));
}

#[test]
fn screens_of_all_sizes() {
    for size in SIZES {
        let (server, terminal) = with_amy();
        let mut screen = amy(&terminal, &[], size);
        server.chat.leave(Some("bob"), "amy", "hello, amy");
        server.chat.leave(
            Some("bob"),
            "amy",
            "日本語 e\u{301}te\u{301} שלום 👩‍👩‍👧\nand a second line",
        );
        server.chat.leave(Some("cleo"), "amy", "lunch?");
        screen.wait_for("3 unread");
        screen.keys("\x1b1");
        screen.wait_for("bob> ");
        screen.keys("hi bob\r");
        screen.wait_for("stored");
        screen.keys("half ty");
        screen.wait_for("half ty");
        check_screen(&format!("conversation_{}x{}", size.0, size.1), &screen);
        screen.keys("\x15\x1bOP");
        screen.wait_for("help");
        check_screen(&format!("help_{}x{}", size.0, size.1), &screen);
        screen.keys("\x1b");
        // Esc and a key that follows at once are one key with Alt.
        screen.wait_until("the end of the help", |screen| !screen.contains("help:"));
        screen.keys("\x04");
        assert_eq!(screen.end(), 0);
    }
}

#[test]
fn resizing_keeps_messages_and_input() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    server
        .chat
        .leave(Some("bob"), "amy", &"one two three ".repeat(30));
    screen.wait_for("bob");
    screen.keys("\x1b1");
    screen.wait_for("one two three");
    screen.keys("half typed");
    for size in [(20, 5), (300, 100), (33, 7), (11, 3), (120, 40), (80, 24)] {
        screen.resize(size);
        screen.keys("x");
        // The cursor is behind the input at every size.
        std::thread::sleep(Duration::from_millis(50));
    }
    screen.wait_for("half typedxxxxxx");
    screen.wait_for("one two three");
    screen.keys("\r");
    screen.wait_for("stored");
    assert_eq!(server.chat.stored("bob"), ["half typedxxxxxx"]);
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn messages_are_acknowledged_once_shown() {
    let (server, terminal) = with_amy();
    server
        .chat
        .leave(Some("bob"), "amy", "\x1b[2J\x07\u{202e}evil\u{9b}31m");
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.wait_for("bob");
    screen.keys("\x1b1");
    screen.wait_for(r"\u{1b}[2J\u{7}\u{202e}evil\u{9b}31m");
    screen.wait_until("the acknowledgement", |_| server.chat.queued("amy") == 0);
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn lines_wait_while_server_is_down() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("/talk bob\r");
    screen.wait_for("messages go to the inbox of bob");
    server.stop();
    screen.wait_for("(offline)");
    screen.keys("typed while down\r");
    screen.wait_for("· pending (waiting for the server)");
    // At first, the connection was lost.
    screen.wait_for("Connection refused");
    check_screen("offline", &screen);
    server.restart();
    screen.wait_for("typed while down · stored");
    assert_eq!(server.chat.stored("bob"), ["typed while down"]);
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn leaving_reports_unstored_lines() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("/talk bob\r");
    screen.wait_for("bob> ");
    server.chat.inject(Faults {
        is_silent: true,
        ..Faults::default()
    });
    screen.keys("lost?\r");
    screen.wait_for("lost? · pending");
    screen.keys("\x04");
    screen.wait_for("waiting up to 2 s for");
    screen.wait_for("→ bob: lost? … unknown");
    assert_eq!(screen.end(), 3);
}

#[test]
fn key_is_shown_during_a_flood() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    server.chat.leave(Some("bob"), "amy", "first");
    screen.wait_for("bob");
    screen.keys("\x1b1");
    screen.wait_for("first");
    let chat = server.chat.clone();
    let flood = std::thread::spawn(move || {
        let begun = Instant::now();
        for number in 0..3_000_u32 {
            chat.leave(Some("bob"), "amy", &format!("message {number}"));
            // 3,000 a second.
            let due = Duration::from_micros(u64::from(number) * 333);
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    });
    let mut typed = String::new();
    for key in "the quick brown fox".chars() {
        screen.keys(&key.to_string());
        typed.push(key);
        screen.wait_for(&format!("bob> {}", typed.trim_end()));
    }
    flood.join().unwrap();
    screen.wait_for("message 2999");
    screen.wait_until("all acknowledgements", |_| server.chat.queued("amy") == 0);
    screen.keys("\x15\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn bell_title_and_notification_are_for_messages_elsewhere() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    for number in 0..5 {
        server
            .chat
            .leave(Some("bob"), "amy", &format!("psst \x07 {number}"));
    }
    screen.wait_for("5 unread");
    screen.wait_for_output("the title", |raw| raw.contains("\x1b]0;(5) hark: hark\x07"));
    let raw = screen.raw();
    assert!(raw.contains("\x1b]9;bob: psst  0\x07"), "{raw:?}");
    assert_eq!(raw.matches("\x1b]9;").count(), 1, "at most one a second");
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn no_color_leaves_attributes_alone() {
    for (variables, is_colored) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let (server, terminal) = with_amy();
        let mut screen = amy(&terminal, variables, (80, 24));
        server.chat.leave(Some("bob"), "amy", "hi");
        screen.wait_for("bob");
        screen.keys("\x1b1");
        screen.wait_for("bob hi");
        let raw = screen.raw();
        screen.keys("\x04");
        assert_eq!(screen.end(), 0);
        let parameters = raw.split("\x1b[").skip(1).filter_map(|rest| {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == ';'))?;
            rest[end..].starts_with('m').then_some(&rest[..end])
        });
        let is_color = |code: &str| matches!(code.parse(), Ok(30..=38 | 40..=48 | 90..=107));
        let has_color = parameters.flat_map(|all| all.split(';')).any(is_color);
        assert_eq!(has_color, is_colored, "{raw:?}");
    }
}

#[test]
fn incapable_terminal_has_the_chat_line_by_line() {
    for (variables, expected) in [
        (&[("TERM", "dumb")][..], "ok"),
        (&[("HARK_PLAIN", "true")][..], "the server responds"),
    ] {
        let (_server, terminal) = chat();
        let mut screen = Screen::open_sized(&terminal, variables, (80, 24));
        screen.keys("ping\r");
        screen.wait_for(expected);
        assert!(!screen.raw().contains("\x1b[?1049h"));
    }
}

/// Checks that the terminal is as before.
#[track_caller]
fn check_restored(screen: &Screen) {
    screen.wait_for_output("the former screen", |raw| {
        let last = |sequence: &str| raw.rfind(sequence);
        last("\x1b[?1049l") > last("\x1b[?1049h")
            && last("\x1b[?2004l") > last("\x1b[?2004h")
            && last("\x1b[?25h") > last("\x1b[?25l")
    });
}

#[test]
fn signal_restores_the_screen() {
    for signal in ["-TERM", "-HUP", "-INT"] {
        let (_server, terminal) = with_amy();
        let screen = amy(&terminal, &[], (80, 24));
        let pid = screen.pid().to_string();
        assert!(
            Command::new("kill")
                .args([signal, &pid])
                .status()
                .unwrap()
                .success()
        );
        check_restored(&screen);
        assert_eq!(screen.end(), 0, "{signal}");
    }
}

#[test]
fn suspended_chat_continues() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("before \x1a");
    check_restored(&screen);
    // No shell controls the process, so that it continues by itself.
    server.chat.leave(Some("bob"), "amy", "while away");
    screen.wait_for("1 unread");
    screen.keys("after");
    screen.wait_for("before after");
    screen.keys("\x15\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn password_is_not_shown() {
    let (server, terminal) = chat();
    server.chat.add("amy", Some("hunter2"));
    let mut screen = Screen::open_sized(&terminal, &[], (80, 24));
    screen.wait_for("hark> ");
    screen.keys("/connect amy\r");
    screen.wait_for("Password for amy:");
    screen.keys("hunter2\r");
    screen.wait_for("amy@");
    assert!(!screen.raw().contains("hunter2"));
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn killed_chat_shows_everything_again() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("/talk bob\r");
    screen.wait_for("messages go to the inbox of bob");
    screen.keys("hi bob\r");
    screen.wait_for("hi bob · stored");
    server.chat.leave(Some("bob"), "amy", "shown");
    screen.wait_for("bob shown");
    server.chat.leave(Some("cleo"), "amy", "not shown");
    screen.wait_for("1 unread");
    screen.wait_until("the acknowledgements", |_| server.chat.queued("amy") == 0);
    server.stop();
    screen.wait_for("(offline)");
    screen.keys("later\r");
    screen.wait_for("amy later");
    // The line is filed by then.
    std::thread::sleep(Duration::from_millis(300));
    let pid = screen.pid().to_string();
    assert!(
        Command::new("kill")
            .args(["-KILL", &pid])
            .status()
            .unwrap()
            .success()
    );
    assert_ne!(screen.end(), 0);
    server.restart();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.wait_for("cleo         1");
    screen.keys("\x0bbob\r");
    screen.wait_for("bob shown");
    screen.wait_for("amy hi bob · stored");
    screen.wait_for("amy later · stored");
    screen.keys("\x0bcleo\r");
    screen.wait_for("cleo not shown");
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
    assert_eq!(server.chat.stored("bob"), ["hi bob", "later"]);
}

#[test]
fn line_is_taken_back_before_it_is_sent() {
    let (server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("/talk bob\r");
    screen.wait_for("messages go to the inbox of bob");
    server.stop();
    screen.wait_for("(offline)");
    screen.keys("rash words\r");
    screen.wait_for("amy rash words");
    std::thread::sleep(Duration::from_millis(300));
    screen.keys("/undo\r");
    screen.wait_for("bob> rash words");
    screen.keys("\x15");
    server.restart();
    screen.wait_for("amy@127");
    screen.keys("calm words\r");
    screen.wait_for("calm words · stored");
    assert_eq!(server.chat.stored("bob"), ["calm words"]);
    screen.keys("\x04");
    assert_eq!(screen.end(), 0);
}

#[test]
fn unmarked_paste_with_tabs_completes_nothing() {
    let (_server, terminal) = with_amy();
    let mut screen = amy(&terminal, &[], (80, 24));
    screen.keys("/se\tbo\tx");
    screen.wait_for("/se␉bo␉x");
    screen.keys("\x15\x1b[200~/se\tone\rtwo\x1b[201~");
    screen.wait_for("/se␉one");
    screen.wait_for("two");
    screen.keys("\x03\x04");
    assert_eq!(screen.end(), 0);
}
