//! The real `hark` in a pseudo-terminal: typed keys, and the content of the
//! screen.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use crate::{TIMEOUT, binary, wait_until};

/// Tall enough that no output scrolls off.
const ROWS: u16 = 60;
const COLUMNS: u16 = 120;

/// A terminal with `hark` in it, which is killed on drop.
pub struct Terminal {
    screen: Arc<Screen>,
    keys: Box<dyn Write + Send>,
    child: Box<dyn Child + Send + Sync>,
    /// Keeps the terminal open until dropped.
    _master: Box<dyn MasterPty + Send>,
}

struct Screen {
    // Fed by a thread that reads the output.
    parser: Mutex<vt100::Parser>,
    changed: Condvar,
}

impl Terminal {
    /// Starts `hark --plain`, with its state in a folder and these
    /// environment variables.
    ///
    /// # Panics
    /// If no pseudo-terminal is available, or `hark` cannot be built.
    #[must_use]
    pub fn open(server: SocketAddr, state: &Path, variables: &[(&str, &str)]) -> Self {
        let size = PtySize {
            rows: ROWS,
            cols: COLUMNS,
            pixel_width: 0,
            pixel_height: 0,
        };
        let pair = native_pty_system()
            .openpty(size)
            .expect("a pseudo-terminal");
        let mut command = CommandBuilder::new(binary("hark"));
        command.env_clear();
        command.env("TERM", "xterm-256color");
        command.env("HARK_PLAIN", "true");
        command.env("HARK_SERVER", server.to_string());
        command.env("XDG_STATE_HOME", state);
        command.env("HOME", state);
        for (variable, value) in variables {
            command.env(variable, value);
        }
        let child = pair.slave.spawn_command(command).expect("hark");
        drop(pair.slave);
        let parser = Mutex::new(vt100::Parser::new(ROWS, COLUMNS, 0));
        let screen = Arc::new(Screen {
            parser,
            changed: Condvar::new(),
        });
        let reader = pair.master.try_clone_reader().unwrap();
        // The thread ends with the terminal.
        std::thread::spawn({
            let screen = Arc::clone(&screen);
            move || screen.feed(reader)
        });
        let keys = pair.master.take_writer().unwrap();
        Self {
            screen,
            keys,
            child,
            _master: pair.master,
        }
    }

    /// Types keys.
    ///
    /// # Panics
    /// If the terminal is closed.
    pub fn keys(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Types a line, and waits for the expected text.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn enter(&mut self, line: &str, expected: &str) {
        self.keys(&format!("{line}\r"));
        self.wait_for(expected);
    }

    /// Waits until the screen shows a text.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        self.wait_until(text, |contents| contents.contains(text));
    }

    /// Waits until the last line is only a prompt. Before that, control keys
    /// would be lost.
    ///
    /// # Panics
    /// On a timeout.
    #[track_caller]
    pub fn wait_for_prompt(&self, prompt: &str) {
        self.wait_until(prompt, |contents| {
            contents.lines().last() == Some(prompt.trim_end())
        });
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) {
        let parser = self.screen.parser.lock().unwrap();
        let is_not = |parser: &mut vt100::Parser| !is_so(parser.screen().contents().trim_end());
        let (parser, timeout) = self
            .screen
            .changed
            .wait_timeout_while(parser, TIMEOUT, is_not)
            .unwrap();
        let contents = parser.screen().contents();
        // Released before the assertion, which would poison it.
        drop(parser);
        assert!(
            !timeout.timed_out(),
            "{what:?} did not come on the screen:\n{contents}"
        );
    }

    /// Returns the content of the screen.
    ///
    /// # Panics
    /// If the thread that reads the output has panicked.
    #[must_use]
    pub fn contents(&self) -> String {
        self.screen.parser.lock().unwrap().screen().contents()
    }

    /// Waits for the exit of `hark`, and returns its exit code.
    ///
    /// # Panics
    /// On a timeout.
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
        // Fails if the process has ended already.
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
        // A closed terminal reads as an error.
        while let Ok(count @ 1..) = reader.read(&mut bytes) {
            self.parser
                .lock()
                .unwrap()
                .process(bytes.get(..count).unwrap_or_default());
            self.changed.notify_all();
        }
    }
}
