//! The terminal in full-screen mode: its modes, which are restored in every case, the
//! title, the bell and notifications.

use std::io::{self, BufWriter, Stdout, Write as _};
use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{
    self, DisableBracketedPaste, DisableFocusChange, EnableBracketedPaste, EnableFocusChange,
    Event as TerminalEvent,
};
use ratatui::crossterm::terminal::{
    BeginSynchronizedUpdate, Clear, ClearType, EndSynchronizedUpdate, EnterAlternateScreen,
    LeaveAlternateScreen, SetTitle, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{cursor, execute, queue, terminal};
use tokio::sync::mpsc;

use super::app::App;
use super::view::view;
use crate::text::is_unsafe;

/// Time for which more keys are waited for. Without any, `crossterm` returns none of those that it
/// has read already.
const MORE_WITHIN: Duration = Duration::from_millis(1);

/// Largest number of events that are read at once.
pub(crate) const INPUT_BATCH_MAX: usize = 1_024;

/// Smallest terminal for the full-screen mode.
const SIZE_MIN: (u16, u16) = (10, 3);

/// Longest notification, in characters.
const NOTIFICATION_CHARS_MAX: usize = 200;

/// Exit code of a process that has panicked, as Rust's own.
const PANICKED: i32 = 101;

/// Saves the title, and restores it: xterm's stack of titles.
const SAVE_TITLE: &[u8] = b"\x1b[22;0t";
const RESTORE_TITLE: &[u8] = b"\x1b[23;0t";

/// The terminal. Dropping it restores the former modes.
pub(crate) struct Tty {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
    title: String,
    protocol: NotificationProtocol,
}

/// The escape sequence of notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotificationProtocol {
    /// Of iTerm2, kitty, WezTerm, Ghostty and others.
    Osc9,
    /// Of rxvt, foot and VTE.
    Osc777,
}

/// Returns whether the terminal can show a full screen.
pub(crate) fn is_capable() -> bool {
    let is_dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    let is_large =
        terminal::size().is_ok_and(|(columns, rows)| columns >= SIZE_MIN.0 && rows >= SIZE_MIN.1);
    !is_dumb && is_large
}

impl Tty {
    /// Enters the full-screen mode, which ends when the value is dropped. A panic of any
    /// thread ends the process, since the others would go on without it.
    pub(crate) fn open() -> io::Result<Self> {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            report(panic);
            std::process::exit(PANICKED);
        }));
        let terminal = Terminal::new(CrosstermBackend::new(BufWriter::new(io::stdout())))?;
        let tty = Self {
            terminal,
            title: String::new(),
            protocol: NotificationProtocol::of_terminal(),
        };
        enter()?;
        Ok(tty)
    }

    /// Returns the columns and rows.
    pub(crate) fn size(&self) -> io::Result<(u16, u16)> {
        let size = self.terminal.size()?;
        Ok((size.width, size.height))
    }

    /// Draws the state, and sets the title.
    pub(crate) fn draw(&mut self, app: &App) -> io::Result<()> {
        queue!(self.terminal.backend_mut(), BeginSynchronizedUpdate)?;
        self.terminal.draw(|frame| view(app, frame))?;
        let title: String = app.title().chars().filter(|c| !is_unsafe(*c)).collect();
        if title != self.title {
            queue!(self.terminal.backend_mut(), SetTitle(&title))?;
            self.title = title;
        }
        execute!(self.terminal.backend_mut(), EndSynchronizedUpdate)
    }

    /// Lets the next drawing repaint everything.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        // `Terminal::clear` would ask the terminal for the cursor, and wait for the answer
        // that the thread of the keys reads.
        execute!(self.terminal.backend_mut(), Clear(ClearType::All))?;
        self.terminal.swap_buffers();
        Ok(())
    }

    pub(crate) fn ring(&mut self) -> io::Result<()> {
        self.write(b"\x07")
    }

    /// Shows a notification on the desktop, if the terminal can.
    pub(crate) fn notify(&mut self, text: &str) -> io::Result<()> {
        let shown = |c: &char| !is_unsafe(*c) && *c != ';';
        let text: String = text
            .chars()
            .filter(shown)
            .take(NOTIFICATION_CHARS_MAX)
            .collect();
        let sequence = match self.protocol {
            NotificationProtocol::Osc9 => format!("\x1b]9;{text}\x07"),
            NotificationProtocol::Osc777 => format!("\x1b]777;notify;hark;{text}\x07"),
        };
        self.write(sequence.as_bytes())
    }

    /// Leaves the full-screen mode while the process is suspended.
    pub(crate) fn leave(&mut self) {
        restore();
    }

    /// Enters the full-screen mode again.
    pub(crate) fn enter_again(&mut self) -> io::Result<()> {
        // The shell may have changed the modes without our knowledge.
        disable_raw_mode()?;
        enter()?;
        self.title.clear();
        self.clear()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let out = self.terminal.backend_mut();
        out.write_all(bytes)?;
        io::Write::flush(out)
    }
}

impl Drop for Tty {
    fn drop(&mut self) {
        restore();
    }
}

impl NotificationProtocol {
    fn of_terminal() -> Self {
        let term = std::env::var("TERM").unwrap_or_default();
        let is_777 = term.starts_with("rxvt")
            || term.starts_with("foot")
            || std::env::var_os("VTE_VERSION").is_some();
        if is_777 { Self::Osc777 } else { Self::Osc9 }
    }
}

fn enter() -> io::Result<()> {
    enable_raw_mode()?;
    let mut out = io::stdout();
    out.write_all(SAVE_TITLE)?;
    execute!(
        out,
        EnterAlternateScreen,
        EnableBracketedPaste,
        EnableFocusChange
    )
}

/// Restores the terminal. A closed one needs no modes, so errors are ignored.
fn restore() {
    let mut out = io::stdout();
    drop(execute!(
        out,
        DisableFocusChange,
        DisableBracketedPaste,
        LeaveAlternateScreen,
        cursor::Show
    ));
    drop(out.write_all(RESTORE_TITLE).and_then(|()| out.flush()));
    drop(disable_raw_mode());
}

/// Reads events until the terminal is closed or the receiver is dropped. Each batch
/// has the events that came at once, so that an unmarked paste is recognized.
pub(crate) fn read_events(batches: &mpsc::Sender<Vec<TerminalEvent>>) {
    while let Ok(first) = event::read() {
        let mut batch = vec![first];
        while batch.len() < INPUT_BATCH_MAX && event::poll(MORE_WITHIN).unwrap_or(false) {
            match event::read() {
                Ok(event) => batch.push(event),
                Err(_) => break,
            }
        }
        if batches.blocking_send(batch).is_err() {
            return;
        }
    }
}
