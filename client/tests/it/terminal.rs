//! The chat in a pseudo-terminal: the content of the screen.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use portable_pty::{Child, CommandBuilder, MasterPty, PtyPair, PtySize, native_pty_system};

use crate::chat::{ChatServer, Faults};
use crate::hark::{Terminal, ran};

const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// Time limit for an expected text.
const TIMEOUT: Duration = Duration::from_secs(20);

/// hark on a screen.
pub(crate) struct Screen {
    // Fed by a thread that reads the output.
    shared: Arc<Shared>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    master: Box<dyn MasterPty + Send>,
    server: String,
}

struct Shared {
    parser: Mutex<(vt100::Parser, Vec<u8>)>,
    changed: Condvar,
}

impl Screen {
    /// Starts hark line by line, without a server.
    fn first(terminal: &Terminal) -> Self {
        Self::start(terminal, &[("HARK_PLAIN", "true")], (COLUMNS, ROWS))
    }

    /// Opens the chat line by line.
    fn open(terminal: &Terminal, variables: &[(&str, &str)]) -> Self {
        let variables = [&[("HARK_PLAIN", "true")], variables].concat();
        Self::open_sized(terminal, &variables, (COLUMNS, ROWS))
    }

    /// Opens the chat with the server of the terminal, and with this number of columns
    /// and rows.
    pub(crate) fn open_sized(
        terminal: &Terminal,
        variables: &[(&str, &str)],
        size: (u16, u16),
    ) -> Self {
        let server = ("HARK_SERVER", terminal.server.as_str());
        Self::start(terminal, &[&[server], variables].concat(), size)
    }

    fn start(terminal: &Terminal, variables: &[(&str, &str)], size: (u16, u16)) -> Self {
        let pair = native_pty_system().openpty(pty_size(size)).unwrap();
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_hark"));
        command.env_clear();
        command.env("TERM", "xterm-256color");
        command.env("TZ", "UTC");
        command.env("HARK_TIMEOUT", "2");
        command.env("XDG_STATE_HOME", terminal.state.path());
        command.env("XDG_CONFIG_HOME", terminal.state.path().join("config"));
        command.env("HOME", terminal.state.path());
        for (variable, value) in variables {
            command.env(variable, value);
        }
        let child = pair.slave.spawn_command(command).unwrap();
        drop(pair.slave);
        let parser = Mutex::new((vt100::Parser::new(size.1, size.0, 1000), Vec::new()));
        let shared = Arc::new(Shared {
            parser,
            changed: Condvar::new(),
        });
        let reader = pair.master.try_clone_reader().unwrap();
        std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.feed(reader)
        });
        let keys = pair.master.take_writer().unwrap();
        Self {
            shared,
            keys,
            child,
            master: pair.master,
            server: terminal.server.clone(),
        }
    }

    /// Changes the number of columns and rows.
    pub(crate) fn resize(&self, size: (u16, u16)) {
        let mut parser = self.shared.parser.lock().unwrap();
        parser.0.screen_mut().set_size(size.1, size.0);
        drop(parser);
        self.master.resize(pty_size(size)).unwrap();
    }

    /// Returns the process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.process_id().unwrap()
    }

    pub(crate) fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Presses keys at the next prompt. Before it, the terminal would handle
    /// them.
    #[track_caller]
    fn at_prompt(&mut self, keys: &str) {
        self.wait_until("a prompt", |screen| screen.trim_end().ends_with('>'));
        self.keys(keys);
    }

    /// Enters a line at the next prompt, and waits for the expected text.
    #[track_caller]
    fn enter(&mut self, line: &str, expected: &str) {
        self.at_prompt(&format!("{line}\r"));
        self.wait_for(expected);
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub(crate) fn wait_for(&self, text: &str) {
        self.wait_until(text, |screen| screen.contains(text));
    }

    #[track_caller]
    pub(crate) fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let parser = self.shared.parser.lock().unwrap();
        let waiting = |parser: &mut (vt100::Parser, Vec<u8>)| !is_so(&parser.0.screen().contents());
        let (parser, timeout) = self
            .shared
            .changed
            .wait_timeout_while(parser, TIMEOUT, waiting)
            .unwrap();
        let contents = parser.0.screen().contents();
        assert!(
            !timeout.timed_out(),
            "{what:?} did not come on the screen:\n{contents}"
        );
    }

    /// Waits until the whole output is as expected.
    #[track_caller]
    pub(crate) fn wait_for_output(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let begun = std::time::Instant::now();
        while !is_so(&self.raw()) {
            assert!(
                begun.elapsed() < TIMEOUT,
                "{what:?} did not come:\n{:?}",
                self.raw()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn contents(&self) -> String {
        self.shared.parser.lock().unwrap().0.screen().contents()
    }

    /// Returns the whole output.
    pub(crate) fn raw(&self) -> String {
        String::from_utf8_lossy(&self.shared.parser.lock().unwrap().1).into_owned()
    }

    /// Returns the prompt of `user` while the link is up.
    fn prompt(&self, user: &str) -> String {
        format!(
            "{user}{}{}> ",
            if user.is_empty() { "" } else { "@" },
            self.server
        )
    }

    /// Leaves with Ctrl-D at the next prompt, since the editor handles that key
    /// only there. Returns the exit code.
    fn leave(mut self) -> u32 {
        self.at_prompt("\x04");
        self.end()
    }

    /// Waits for the end, and returns the exit code.
    pub(crate) fn end(mut self) -> u32 {
        self.child.wait().unwrap().exit_code()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Fails if the process has ended already.
        drop(self.child.kill());
    }
}

impl Shared {
    fn feed(&self, mut reader: Box<dyn Read + Send>) {
        let mut bytes = [0; 4096];
        // A closed terminal reads as an error.
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            let mut parser = self.parser.lock().unwrap();
            parser.0.process(&bytes[..count]);
            parser.1.extend_from_slice(&bytes[..count]);
            self.changed.notify_all();
        }
    }
}

fn pty_size((cols, rows): (u16, u16)) -> PtySize {
    PtySize {
        rows,
        cols,
        pixel_width: 0,
        pixel_height: 0,
    }
}

pub(crate) fn chat() -> (ChatServer, Terminal) {
    let server = ChatServer::start();
    let terminal = Terminal::at(&server);
    (server, terminal)
}

#[test]
fn prompt_and_outcomes_are_shown() {
    let (_server, terminal) = chat();
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter("create user2", "user2 was created");
    screen.enter(
        "create user2",
        "refused (exists): there is a user user2 already",
    );
    screen.enter("login user2", "you are logged in as user2");
    screen.wait_for(&screen.prompt("user2"));
    screen.enter("list", "1 user: user2");
    screen.enter("list (", "error: unclosed group");
    screen.enter("send user2 hello, again", "→ user2: hello, again … stored");
    screen.enter(
        "send user9 x",
        "→ user9: x … refused (no-such-user): there is no user user9",
    );
    screen.enter("ping", "the server responds");
    screen.enter("sned", "unknown command \"sned\"; try help");
    screen.enter("disconnect", "you are logged out");
    screen.enter("delete user2", "repeat the line to confirm");
    screen.enter("ping", "the server responds");
    screen.enter("delete user2", "repeat the line to confirm");
    screen.enter("delete user2", "user2 was deleted");
    screen.enter("help", "talk with a user in a room of two");
    screen.at_prompt("quit\r");
    assert_eq!(screen.end(), 0);
}

#[test]
fn message_appears_above_the_typed_line() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter(
        "connect amy",
        "you are connected as amy; no messages are waiting",
    );
    screen.wait_for(&screen.prompt("amy"));
    screen.at_prompt("send bob half ty");
    screen.wait_for("half ty");
    server.chat.leave(Some("bob"), "amy", "hello, amy");
    let line = format!("{}send bob half ty", screen.prompt("amy"));
    screen.wait_until("the message above the line", |screen| {
        let rows: Vec<&str> = screen.trim_end().lines().collect();
        let above = rows.len().checked_sub(2).map(|row| rows[row]);
        above.is_some_and(|row| row.ends_with(" bob: hello, amy"))
            && rows.last() == Some(&line.as_str())
    });
    // Editing continues in the same line.
    screen.keys("ped\r");
    screen.wait_for("→ bob: half typed … refused");
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.queued("amy"), 0, "it was acknowledged");
}

#[test]
fn received_text_is_escaped() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    server.chat.leave(
        Some("bob"),
        "amy",
        "\x1b[2J\x07\u{202e}evil\u{9b}31m\n10:00 ann: not ann",
    );
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter("connect amy", "not ann");
    let contents = screen.contents();
    assert!(
        contents.contains(r"bob: \u{1b}[2J\u{7}\u{202e}evil\u{9b}31m"),
        "{contents}"
    );
    assert!(
        contents.contains("           10:00 ann: not ann"),
        "the second line is indented:\n{contents}"
    );
    assert_eq!(screen.leave(), 0);
}

#[test]
fn no_color_turns_colors_off() {
    for (variables, is_colored) in [(&[][..], true), (&[("NO_COLOR", "1")][..], false)] {
        let (server, terminal) = chat();
        server.chat.add("amy", None);
        server.chat.leave(Some("bob"), "amy", "hi");
        let mut screen = Screen::open(&terminal, variables);
        screen.wait_for(&screen.prompt(""));
        screen.enter("connect amy", "bob: hi");
        screen.enter("send amy x", "stored");
        let raw = screen.raw();
        assert_eq!(screen.leave(), 0);
        // A color is an escape sequence that ends in m.
        let has_color = raw.split("\x1b[").skip(1).any(|rest| {
            let end = rest.find(|c: char| c.is_ascii_alphabetic());
            end.is_some_and(|end| rest[end..].starts_with('m'))
        });
        assert_eq!(has_color, is_colored, "{raw:?}");
    }
}

#[test]
fn commands_wait_while_server_is_down() {
    let (server, terminal) = chat();
    server.chat.add("bob", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    server.stop();
    screen.wait_for("* no connection to ");
    screen.wait_for("(offline)");
    screen.enter(
        "send bob later",
        "→ bob: later … pending (waiting for the server)",
    );
    screen.enter("list", "* waiting for the server");
    server.restart();
    screen.wait_for("→ bob: later … stored");
    screen.wait_for("1 user: bob");
    screen.wait_for(&screen.prompt(""));
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.stored("bob"), ["later"]);
}

#[test]
fn leaving_reports_unstored_sends() {
    let (server, terminal) = chat();
    server.chat.add("bob", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    server.chat.inject(Faults {
        is_silent: true,
        ..Faults::default()
    });
    screen.enter("send bob written", "→ bob: written … pending");
    server.stop();
    screen.wait_for("(offline)");
    screen.enter(
        "send bob unwritten",
        "→ bob: unwritten … pending (waiting for the server)",
    );
    screen.at_prompt("quit\r");
    screen.wait_for("* waiting up to 2 s for 2 answers; press Ctrl-C to leave now");
    screen.wait_for("→ bob: written … unknown: it is unknown whether the message was stored");
    screen.wait_for("→ bob: unwritten … not sent: the client is closed");
    assert_eq!(screen.end(), 3);
}

#[test]
fn password_is_neither_echoed_nor_saved() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter("password amy", "New password for amy: ");
    screen.keys("hunter2\r");
    screen.wait_for("Repeat the password: ");
    screen.keys("hunter2\r");
    screen.wait_for("the password of amy was changed");
    screen.enter("connect amy", "Password for amy: ");
    screen.keys("hunter2\r");
    screen.wait_for("you are connected as amy; no messages are waiting");
    screen.enter("disconnect", "you are logged out");
    screen.at_prompt("login amy\r");
    screen.wait_until("it asks again", |screen| {
        screen.matches("Password for amy:").count() == 2
    });
    screen.keys("wrong\r");
    screen.wait_for("refused (denied)");
    assert!(!screen.raw().contains("hunter2"));
    // Even in the wrong place.
    screen.enter("login amy hunter2", "usage: login USER");
    assert_eq!(screen.leave(), 0);
    let history = std::fs::read_to_string(terminal.state.path().join("hark/history")).unwrap();
    assert!(
        history.contains("connect amy") && !history.contains("hunter2"),
        "{history}"
    );
}

/// Output of a program in a terminal.
struct Output {
    bytes: Box<dyn Read + Send>,
    output: String,
}

impl Output {
    /// Reads until this text appears.
    #[track_caller]
    fn until(&mut self, text: &str) {
        let mut bytes = [0; 256];
        while !self.output.contains(text) {
            let count = self.bytes.read(&mut bytes).unwrap_or_default();
            assert!(count > 0, "{text:?} is not in {:?}", self.output);
            self.output
                .push_str(&String::from_utf8_lossy(&bytes[..count]));
        }
    }
}

/// Starts hark with these arguments in a terminal, and returns its output.
fn in_terminal(terminal: &Terminal, arguments: &[&str]) -> (PtyPair, Box<dyn Child>, Output) {
    let pair = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_hark"));
    command.args(arguments);
    command.env("HARK_PLAIN", "true");
    command.env("HARK_SERVER", &terminal.server);
    command.env("HARK_TIMEOUT", "2");
    command.env("XDG_STATE_HOME", terminal.state.path());
    let child = pair.slave.spawn_command(command).unwrap();
    let bytes = pair.master.try_clone_reader().unwrap();
    (
        pair,
        child,
        Output {
            bytes,
            output: String::new(),
        },
    )
}

#[test]
fn early_keystrokes_of_password_are_not_echoed() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    // Repeated because the echo is turned off in a race with the prompt.
    for _ in 0..50 {
        let (pair, mut hark, mut written) = in_terminal(&terminal, &["password", "amy"]);
        let mut keys = pair.master.take_writer().unwrap();
        written.until("New password: ");
        keys.write_all(b"hunter2\rhunter3\r").unwrap();
        written.until("do not match");
        assert!(!written.output.contains("hunter"), "{:?}", written.output);
        assert_eq!(hark.wait().unwrap().exit_code(), 4);
    }
}

/// Returns the modes of the terminal, such as line editing and echo.
fn modes(pair: &PtyPair) -> Vec<String> {
    let output = std::process::Command::new("stty")
        .args(["-a", "-F"])
        .arg(pair.master.tty_name().unwrap())
        .output()
        .unwrap();
    let modes = String::from_utf8(output.stdout).unwrap();
    assert!(modes.contains("icanon"), "{modes}");
    modes.split_whitespace().map(str::to_owned).collect()
}

/// Waits until the terminal has this mode.
#[track_caller]
fn until_mode(pair: &PtyPair, mode: &str) {
    let started = std::time::Instant::now();
    while !modes(pair).iter().any(|has| has == mode) {
        assert!(started.elapsed() < TIMEOUT, "{mode}: {:?}", modes(pair));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs hark in the terminal of a shell that outlives it, since the modes of a
/// terminal are reset at the end of a session.
const IN_A_SHELL: &str = r#"sh -c 'echo "pid $$ "; exec "$HARK"'; echo "ended $? "; stty -a"#;

#[track_caller]
fn check_end_by(signal: &str, typed: &str, asked: &str) {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let pair = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new("sh");
    command.args(["-c", IN_A_SHELL]);
    command.env("HARK", env!("CARGO_BIN_EXE_hark"));
    command.env("HARK_PLAIN", "true");
    command.env("HARK_SERVER", &terminal.server);
    command.env("XDG_STATE_HOME", terminal.state.path());
    let mut shell = pair.slave.spawn_command(command).unwrap();
    let mut written = Output {
        bytes: pair.master.try_clone_reader().unwrap(),
        output: String::new(),
    };
    written.until(&format!("{}> ", terminal.server));
    // The editor ends the line when it is dropped.
    let mut keys = pair.master.take_writer().unwrap();
    keys.write_all(typed.as_bytes()).unwrap();
    written.until(asked);
    let pid = written.output.split_whitespace().nth(1).unwrap();
    assert!(
        std::process::Command::new("kill")
            .args([signal, pid])
            .status()
            .unwrap()
            .success()
    );
    written.until("iexten");
    shell.wait().unwrap();
    let (chat, after) = written.output.split_once("ended 0 ").unwrap();
    assert!(
        chat.contains("\x1b[?2004l"),
        "{signal} after {typed:?}: {chat:?}"
    );
    for mode in ["echo", "icanon", "isig", "icrnl"] {
        let is_so = after.split_whitespace().any(|after| after == mode);
        assert!(is_so, "{mode}, {signal} after {typed:?}: {after}");
    }
}

#[test]
fn signal_restores_the_terminal() {
    for signal in ["-TERM", "-HUP"] {
        check_end_by(signal, "send amy hal", "hal");
        check_end_by(signal, "password amy\r", "New password for amy: ");
    }
}

#[test]
fn ctrl_d_between_prompts_leaves() {
    let (server, terminal) = chat();
    let (pair, mut hark, mut written) = in_terminal(&terminal, &[]);
    written.until("> ");
    until_mode(&pair, "-icanon");
    server.chat.inject(Faults {
        is_silent: true,
        ..Faults::default()
    });
    let mut keys = pair.master.take_writer().unwrap();
    keys.write_all(b"list\r").unwrap();
    until_mode(&pair, "icanon");
    keys.write_all(b"\x04").unwrap();
    // The outcome of the list is unknown.
    assert_eq!(hark.wait().unwrap().exit_code(), 3);
}

#[test]
fn ctrl_c_at_password_prompt_restores_the_terminal() {
    let (_server, terminal) = chat();
    let (pair, mut hark, mut written) = in_terminal(&terminal, &["password", "amy"]);
    written.until("New password: ");
    let modes = |written: &mut Output| {
        written.output.clear();
        let mut command = CommandBuilder::new("stty");
        command.arg("-a");
        command.set_controlling_tty(false);
        pair.slave.spawn_command(command).unwrap().wait().unwrap();
        written.until("iexten");
        written
            .output
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let asking = modes(&mut written);
    assert!(asking.iter().any(|mode| mode == "-echo"), "{asking:?}");
    pair.master
        .take_writer()
        .unwrap()
        .write_all(b"hunt\x03")
        .unwrap();
    hark.wait().unwrap();
    let after = modes(&mut written);
    for mode in ["echo", "icanon", "isig"] {
        assert!(after.iter().any(|after| after == mode), "{mode}: {after:?}");
    }
}

#[test]
fn tab_completes_commands_and_known_names() {
    let (server, terminal) = chat();
    server.chat.add("somebody", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter("list", "1 user: somebody");
    for keys in ["se", "send so"] {
        screen.wait_until("the keys", |screen| {
            screen.trim_end().ends_with('>') || screen.trim_end().ends_with("send")
        });
        screen.keys(keys.rsplit(' ').next().unwrap());
        screen.wait_until(keys, |screen| screen.trim_end().ends_with(keys));
        // A Tab that follows at once is a part of a paste.
        std::thread::sleep(Duration::from_millis(50));
        screen.keys("\t");
    }
    screen.wait_for("send somebody");
    screen.keys("hello\r");
    screen.wait_for("→ somebody: hello … stored");
    // The history contains the line.
    screen.at_prompt("\x1b[A\r");
    screen.wait_until("it twice", |screen| {
        screen.matches("→ somebody: hello … stored").count() == 2
    });
    screen.at_prompt("\x03");
    screen.wait_for("* press Ctrl-C again");
    screen.at_prompt("\x03");
    assert_eq!(screen.end(), 0);
}

#[test]
fn chat_does_not_reconnect_after_takeover() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let other = Terminal::at(&server);
    let mut screen = Screen::open(&terminal, &[]);
    screen.wait_for(&screen.prompt(""));
    screen.enter("connect amy", "you are connected as amy");
    server.chat.leave(None, "amy", "1");
    screen.wait_for("(anonymous): 1");
    // The message comes again at the takeover unless it is acknowledged.
    screen.wait_until("the acknowledgement", |_| server.chat.queued("amy") == 0);
    let listening = other
        .hark(["listen", "amy", "--count", "1"])
        .spawn()
        .unwrap();
    screen.wait_for("* another connection now receives the messages of amy");
    server.chat.leave(None, "amy", "2");
    let listened = ran(listening.wait_with_output().unwrap());
    assert!(listened.out.ends_with(" 2\n"), "{listened:?}");
    screen.at_prompt("connect amy\r");
    screen.wait_until("it is amy again", |screen| {
        screen.matches("you are connected as amy").count() == 2
    });
    assert_eq!(screen.leave(), 0);
}

/// Returns the row of the cursor, which shows prompt and line.
fn last_row(screen: &str) -> &str {
    screen.trim_end().lines().last().unwrap_or_default()
}

#[test]
fn prompt_follows_the_user_while_typing() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    server.stop();
    let mut screen = Screen::open(&terminal, &[]);
    screen.enter("connect amy", "waiting for the server");
    screen.at_prompt("send bo");
    server.restart();
    screen.wait_for("you are connected as amy");
    screen.wait_until("the prompt of amy", |screen| {
        let row = last_row(screen);
        row.starts_with("amy") && row.ends_with("> send bo")
    });
    assert_eq!(terminal.run(&["delete", "amy"]).code, Some(0));
    screen.wait_for("no longer logged in as amy");
    screen.wait_until("a prompt without a user", |screen| {
        let row = last_row(screen);
        !row.starts_with("amy") && row.ends_with("> send bo")
    });
}

#[test]
fn message_that_left_the_screen_can_be_read_again() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.enter("connect amy", "you are connected as amy");
    server.chat.leave(Some("bob"), "amy", "important");
    screen.wait_for("bob: important");
    screen.at_prompt(&format!("send bob {}", "x".repeat(200)));
    screen.wait_for("xxx");
    screen.resize((300, 24));
    screen.resize((80, 24));
    // The editor may have erased rows above the line.
    screen.keys("\x15\x0b");
    screen.keys("history bob\r");
    screen.wait_until("the message again", |screen| {
        let rest = screen.rsplit("history bob").next().unwrap();
        rest.contains("bob: important")
    });
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.queued("amy"), 0);
}

#[test]
fn typed_lines_survive_quitting() {
    for is_killed in [false, true] {
        let (server, terminal) = chat();
        server.chat.add("amy", None);
        server.chat.add("bob", None);
        let mut screen = Screen::open(&terminal, &[]);
        screen.enter("connect amy", "you are connected as amy");
        server.stop();
        screen.wait_for("(offline)");
        for text in ["one", "two"] {
            screen.enter(
                &format!("send bob {text}"),
                &format!("→ bob: {text} … pending (waiting for the server)"),
            );
        }
        if is_killed {
            screen.child.kill().unwrap();
            drop(screen);
        } else {
            screen.at_prompt("quit\r");
            screen.wait_for("→ bob: two … not sent; kept for the next start");
            assert_eq!(screen.end(), 3);
        }
        server.restart();
        let mut screen = Screen::open(&terminal, &[]);
        screen.enter("connect amy", "* sending what you typed to bob at ");
        screen.wait_for("→ bob: two … stored");
        assert_eq!(screen.leave(), 0);
        assert_eq!(server.chat.stored("bob"), ["one", "two"], "{is_killed}");
        // Nothing is left for the next start.
        let mut screen = Screen::open(&terminal, &[]);
        screen.enter("connect amy", "you are connected as amy");
        screen.enter("ping", "the server responds");
        assert_eq!(screen.leave(), 0);
        assert_eq!(server.chat.stored("bob"), ["one", "two"], "{is_killed}");
    }
}

#[test]
fn unsent_line_is_taken_back() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    server.chat.add("bob", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.enter("connect amy", "you are connected as amy");
    screen.enter("send bob early", "→ bob: early … stored");
    screen.enter("undo", "there is no line to take back");
    server.stop();
    screen.wait_for("(offline)");
    screen.enter("send bob first", "→ bob: first … pending");
    screen.enter("send bob oops", "→ bob: oops … pending");
    screen.enter("undo", "* taken back: oops");
    server.restart();
    screen.wait_for("→ bob: first … stored");
    screen.wait_for("→ bob: oops … not sent: withdrawn");
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.stored("bob"), ["early", "first"]);
}

#[test]
fn ignored_user_is_not_shown() {
    let (server, terminal) = chat();
    server.chat.add("amy", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.enter("connect amy", "you are connected as amy");
    screen.enter("ignore bob", "messages of bob are not shown any more");
    server.chat.leave(Some("bob"), "amy", "spam");
    server.chat.leave(Some("cid"), "amy", "hello");
    screen.wait_for("cid: hello");
    assert!(!screen.contents().contains("spam"));
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.queued("amy"), 0);
}

#[test]
fn pasted_tab_completes_nothing() {
    let (server, terminal) = chat();
    server.chat.add("bob", None);
    let mut screen = Screen::open(&terminal, &[]);
    screen.at_prompt("send bob a\tb\tse\tc\r");
    screen.wait_for("→ bob: ");
    screen.wait_for("stored");
    assert_eq!(screen.leave(), 0);
    assert_eq!(server.chat.stored("bob"), ["a\tb\tse\tc"]);
}

#[test]
fn chat_connects_as_the_configured_user() {
    let (server, terminal) = chat();
    server.chat.add("amy", Some("secret"));
    server.chat.leave(Some("bob"), "amy", "hello");
    terminal.configure(&format!(
        "server = \"{}\"\nuser = \"amy\"\npassword_command = \"echo secret\"\n\
         colors = \"never\"\n[aliases]\nhi = \"send bob\"\n",
        terminal.server
    ));
    let mut screen = Screen::first(&terminal);
    screen.wait_for("you are connected as amy");
    screen.wait_for("bob: hello");
    screen.enter("hi there", "→ bob: there … refused (no-such-user)");
    assert_eq!(screen.leave(), 0);
}

#[test]
fn first_start_asks_three_questions() {
    let (server, terminal) = chat();
    let mut screen = Screen::first(&terminal);
    screen.wait_for("Server [127.0.0.1:3000]: ");
    screen.keys(&format!("{}\r", terminal.server));
    screen.wait_for("Your name ");
    screen.keys("amy\r");
    screen.wait_for("Password ");
    screen.keys("\r");
    screen.wait_for("New password for amy ");
    screen.keys("secret\r");
    screen.wait_for("Repeat the password: ");
    screen.keys("secret\r");
    screen.wait_for("amy was created");
    screen.wait_for("you are connected as amy");
    assert_eq!(screen.leave(), 0);
    let mut screen = Screen::first(&terminal);
    screen.wait_for("Password for amy: ");
    screen.keys("secret\r");
    screen.wait_for("you are connected as amy");
    assert_eq!(screen.leave(), 0);
    drop(server);
}
