//! The real `hark` in a pseudo-terminal: what is typed, and what is on the
//! screen.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use crate::{PATIENCE, binary, wait_until};

/// So tall that nothing of a test leaves the screen.
const ROWS: u16 = 60;
const COLUMNS: u16 = 120;

/// One terminal with `hark` in it. Dropping it kills `hark`.
pub struct Terminal {
    screen: Arc<Screen>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    /// The terminal is there until this is dropped.
    _master: Box<dyn MasterPty + Send>,
}

struct Screen {
    // Fed by a thread that reads what hark writes.
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

impl Terminal {
    /// `hark` without arguments, with its state in a folder and these
    /// environment variables.
    ///
    /// # Panics
    /// Where there is no pseudo-terminal, or `hark` cannot be built.
    #[must_use]
    pub fn open(server: SocketAddr, state: &Path, variables: &[(&str, &str)]) -> Self {
        let size = PtySize { rows: ROWS, cols: COLUMNS, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(binary("hark"));
        command.env_clear();
        command.env("TERM", "xterm-256color");
        command.env("HARK_SERVER", server.to_string());
        command.env("XDG_STATE_HOME", state);
        command.env("HOME", state);
        for (variable, value) in variables {
            command.env(variable, value);
        }
        let child = pair.slave.spawn_command(command).expect("hark");
        drop(pair.slave);
        let parser = Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0));
        let screen = Arc::new(Screen { parser, changed: Condvar::new() });
        let reader = pair.master.try_clone_reader().unwrap();
        // It ends with the terminal.
        std::thread::spawn({
            let screen = Arc::clone(&screen);
            move || screen.feed(reader)
        });
        let keys = pair.master.take_writer().unwrap();
        Self { screen, keys, child, _master: pair.master }
    }

    /// Types something.
    ///
    /// # Panics
    /// Where the terminal has gone.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line, and waits until the screen shows what should come of it.
    ///
    /// # Panics
    /// Where that does not come in time.
    #[track_caller]
    pub fn enter(&mut self, line: &str, expected: &str) {
        self.keys(&format!("{line}\r"));
        self.wait_for(expected);
    }

    /// Waits until the screen shows a text.
    ///
    /// # Panics
    /// Where that does not come in time.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |contents| contents.contains(text));
    }

    /// Waits until nothing is on the last line but a prompt. Keys that mean
    /// something to the editor are lost before.
    ///
    /// # Panics
    /// Where that does not come in time.
    #[track_caller]
    pub fn wait_for_prompt(&self, prompt: &str) {
        self.wait_until(prompt, |contents| contents.lines().last() == Some(prompt.trim_end()));
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let parser = self.screen.parser.lock().unwrap();
        let is_not = |parser: &mut vt100::Parser| !is_so(parser.screen().contents().trim_end());
        let (parser, timeout) = self.screen.changed.wait_timeout_while(parser, PATIENCE, is_not).unwrap();
        let contents = parser.screen().contents();
        // Whoever looks at the screen next must not find it poisoned.
        drop(parser);
        assert!(!timeout.timed_out(), "{what:?} did not come on the screen:\n{contents}");
    }

    /// What is on the screen.
    ///
    /// # Panics
    /// Where the thread that reads it has panicked.
    #[must_use]
    pub fn contents(&self) -> String {
        self.screen.parser.lock().unwrap().screen().contents()
    }

    /// Waits for the end; the exit code.
    ///
    /// # Panics
    /// Where it does not end in time.
    #[track_caller]
    pub fn end(&mut self) -> u32 {
        let mut status = None;
        wait_until("the end of hark", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().exit_code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("on the screen:\n{}", self.contents());
        }
        // It may have ended by itself, which is as good.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Screen {
    fn feed(&self, mut reader: impl Read) {
        let mut bytes = [0; 4096];
        // A terminal that is closed reads as an error.
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            self.parser.lock().unwrap().process(bytes.get(..count).unwrap_or_default());
            self.changed.notify_all();
        }
    }
}
