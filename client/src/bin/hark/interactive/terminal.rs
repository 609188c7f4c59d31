//! The terminal: a thread that reads lines and one that prints above the line
//! being typed. Knows nothing of what the lines mean.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hark_prompt::Modes;
use hark_protocol::Password;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{ColorMode, Config, Editor, ExternalPrinter};
use tokio::sync::{mpsc, oneshot};

use super::editor::Completion;
use super::prompt::LinkPrompt;
use super::turns::{Turn, Turns};
use crate::exit::Failure;
use crate::{command, setup};

/// Lines that wait to be printed.
const LINES_MAX: usize = 64;

/// Lines of history that are kept.
const HISTORY_LINES_MAX: usize = 1000;

/// What the editor asks of the terminal beside its modes, taken back: that what
/// is pasted is marked.
const PASTE_UNMARKED: &str = "\x1b[?2004l";

/// What was typed.
#[derive(Debug)]
pub(crate) enum Input {
    Line(String),
    /// Ctrl-C: the line is dropped.
    Interrupted,
    /// Ctrl-D, or the terminal has gone.
    Ended,
}

enum Request {
    Read(LinkPrompt, oneshot::Sender<Input>),
    Secret { prompt: String, is_new: bool, answer: oneshot::Sender<Result<Option<Password>, Failure>> },
}

/// A text to print, and whom to tell that it is on the terminal.
type Text = (String, oneshot::Sender<()>);

/// The two threads, to talk to.
#[derive(Debug)]
pub(crate) struct Terminal {
    // `None` once nothing more is read; held for one look.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    texts: mpsc::Sender<Text>,
    turns: Arc<Turns>,
}

/// The threads, to wait for once the [`Terminal`] is dropped.
pub(crate) struct Threads {
    editing: thread::JoinHandle<()>,
    printing: thread::JoinHandle<()>,
    /// As the terminal was before.
    modes: Modes,
}

impl Terminal {
    /// Opens the terminal; `None` where it is not able to edit lines.
    pub(crate) fn open(
        completion: Completion,
        is_coloured: bool,
        history: PathBuf,
    ) -> Result<Option<(Self, Threads)>, Failure> {
        let mut editor = new_editor(completion, is_coloured).map_err(Failure::local)?;
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        let modes = Modes::now().map_err(Failure::local)?;
        let turns = Arc::<Turns>::default();
        let (requests, requests_in) = mpsc::channel(1);
        let (texts, texts_in) = mpsc::channel(LINES_MAX);
        let typist = Typist { editor, history: Some(history), turns: Arc::clone(&turns) };
        let editing = thread::spawn(move || typist.run(requests_in));
        let printing = thread::spawn({
            let turns = Arc::clone(&turns);
            move || print_all(texts_in, printer, &turns)
        });
        let requests = Mutex::new(Some(requests));
        Ok(Some((Self { requests, texts, turns }, Threads { editing, printing, modes })))
    }

    /// Reads a line.
    pub(crate) async fn read(&self, prompt: LinkPrompt) -> Input {
        self.ask(|answer| Request::Read(prompt, answer)).await.unwrap_or(Input::Ended)
    }

    /// Asks for a password without echo, twice if it is a new one; `None`
    /// where none is given.
    pub(crate) async fn secret(&self, prompt: String, is_new: bool) -> Result<Option<Password>, Failure> {
        self.ask(|answer| Request::Secret { prompt, is_new, answer }).await.unwrap_or(Ok(None))
    }

    /// Ends the editing: from now on what is printed is simply written.
    pub(crate) fn stop_reading(&self) {
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// As [`Self::stop_reading`], whatever is being typed: nobody waits for that
    /// any more.
    pub(crate) fn give_up_reading(&self) {
        self.stop_reading();
        if self.turns.end() != Turn::Free {
            write(&format!("{PASTE_UNMARKED}\n"));
        }
    }

    /// `None` where nothing more is read.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let (answer, answered) = oneshot::channel();
        requests.send(request(answer)).await.ok()?;
        // A clone must not keep the thread.
        drop(requests);
        answered.await.ok()
    }

    /// Prints lines; returns when they are on the terminal. While a line that
    /// was just entered is being carried out, that may only be with the next
    /// prompt: whoever gives the prompt must not wait for it without a bound.
    pub(crate) async fn show(&self, text: String) {
        let (done, is_done) = oneshot::channel();
        // The thread ends only after everybody who could print something.
        if self.texts.send((text, done)).await.is_ok() {
            drop(is_done.await);
        }
    }
}

impl Threads {
    /// Waits until everything is printed. The terminal must have been dropped,
    /// and no line be asked for.
    pub(crate) fn join(self) {
        for thread in [self.editing, self.printing] {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Leaves them to end with the process, where reading was given up: the terminal
    /// is as it was before.
    pub(crate) fn abandon(self) {
        // One that has gone needs no modes.
        drop(self.modes.restore());
    }
}

type LineEditor = Editor<Completion, FileHistory>;

fn new_editor(completion: Completion, is_coloured: bool) -> rustyline::Result<LineEditor> {
    let colours = if is_coloured { ColorMode::Enabled } else { ColorMode::Disabled };
    let config = Config::builder()
        .max_history_size(HISTORY_LINES_MAX)?
        .history_ignore_dups(true)?
        .color_mode(colours)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(completion));
    Ok(editor)
}

/// Reads what is typed, on a thread of its own since it blocks.
struct Typist {
    editor: LineEditor,
    /// Where the history is kept; `None` once that has failed.
    history: Option<PathBuf>,
    turns: Arc<Turns>,
}

impl Typist {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        self.load_history();
        while let Some(request) = requests.blocking_recv() {
            match request {
                // Whoever asked may be gone: then hark is ending.
                Request::Read(prompt, answer) => drop(answer.send(self.read(&prompt))),
                Request::Secret { prompt, is_new, answer } => drop(answer.send(self.secret(&prompt, is_new))),
            }
        }
    }

    fn read(&mut self, prompt: &LinkPrompt) -> Input {
        // To the editor the mark of the end would be a key that means nothing.
        if hark_prompt::is_ended().unwrap_or(true) {
            return Input::Ended;
        }
        self.turns.set(Turn::Editing);
        let read = self.editor.readline(prompt);
        self.turns.set(Turn::Free);
        match read {
            Ok(line) => {
                self.remember(&line);
                Input::Line(line)
            }
            Err(ReadlineError::Interrupted) => Input::Interrupted,
            Err(_) => Input::Ended,
        }
    }

    fn secret(&self, prompt: &str, is_new: bool) -> Result<Option<Password>, Failure> {
        self.turns.set(Turn::Asking);
        let secret = if is_new { setup::ask_new(prompt) } else { setup::ask(prompt) };
        self.turns.set(Turn::Free);
        secret
    }

    fn load_history(&mut self) {
        let Some(path) = &self.history else {
            return;
        };
        let parent = path.parent().map_or(Ok(()), std::fs::create_dir_all);
        let loaded = match self.editor.load_history(path) {
            Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            loaded => loaded,
        };
        if let Err(error) = parent.map_err(ReadlineError::from).and(loaded) {
            self.give_up_history(&error);
        }
    }

    /// Remembers a line that was understood. One that was not may be a
    /// password in the wrong place.
    fn remember(&mut self, line: &str) {
        if command::parse(line).is_err() {
            return;
        }
        let added = self.editor.add_history_entry(line);
        let saved = match &self.history {
            Some(path) => added.and_then(|_| self.editor.append_history(path)),
            None => Ok(()),
        };
        if let Err(error) = saved {
            self.give_up_history(&error);
        }
    }

    fn give_up_history(&mut self, error: &ReadlineError) {
        if let Some(path) = self.history.take() {
            eprintln!("hark: what you type is not remembered: {}: {error}", path.display());
        }
    }
}

/// Prints until nobody can send any more.
fn print_all(mut texts: mpsc::Receiver<Text>, mut printer: impl ExternalPrinter, turns: &Turns) {
    while let Some((text, done)) = texts.blocking_recv() {
        let line = format!("{text}\n");
        turns.print(|| write(&line), || hand(&mut printer, &line));
        // `Err` only says that nobody waits for it.
        done.send(()).unwrap_or_default();
    }
}

/// Gives a line to the editor, and returns when it has taken it; whether it
/// has. The editor has room for one line that it has not taken, so the first
/// is taken when there is room for a second, which changes nothing: below the
/// line just printed, the cursor goes up and down again.
fn hand(printer: &mut impl ExternalPrinter, line: &str) -> bool {
    printer.print(line.to_owned()).is_ok() && printer.print("\x1b[A\n".to_owned()).is_ok()
}

/// Writes to a terminal that nobody else writes to. One that has gone takes
/// nothing, and the editor will notice.
fn write(line: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(line.as_bytes()).and_then(|()| out.flush()));
}
