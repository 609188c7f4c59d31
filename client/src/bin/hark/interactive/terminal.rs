//! The terminal: one thread that reads lines, and one that prints above the
//! line being typed. Independent of the content.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hark_client::sync::lock;

use hark_prompt::Modes;
use hark_protocol::Password;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{ColorMode, Config, Editor, ExternalPrinter};
use tokio::sync::{mpsc, oneshot};

use super::editor::Completion;
use super::owner::{Owner, TerminalOwner};
use super::prompt::LinkPrompt;
use crate::exit::Failure;
use crate::{command, setup};

/// Largest number of texts that wait to be printed.
const LINES_MAX: usize = 64;

/// Length of the history, in lines.
const HISTORY_LINES_MAX: usize = 1000;

/// How long the editor is kept for a text that it may have drawn.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(500);

/// Turns off bracketed paste, which the editor has turned on.
const PASTE_UNMARKED: &str = "\x1b[?2004l";

/// Result of reading a line.
#[derive(Debug)]
pub(crate) enum Input {
    Line(String),
    /// Ctrl-C: the line is discarded.
    Interrupted,
    /// Ctrl-D, or the terminal was closed.
    Ended,
}

enum Request {
    Read(LinkPrompt, oneshot::Sender<Input>),
    Secret {
        prompt: String,
        is_new: bool,
        answer: oneshot::Sender<Result<Option<Password>, Failure>>,
    },
}

/// A text to print, and the sender that confirms it.
type Text = (String, oneshot::Sender<()>);

/// Handle to the two threads.
#[derive(Debug)]
pub(crate) struct Terminal {
    // `None` once reading has stopped; held for one access.
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    texts: mpsc::Sender<Text>,
    owner: Arc<TerminalOwner>,
}

/// The threads, to be joined after the [`Terminal`] is dropped.
pub(crate) struct Threads {
    editing: thread::JoinHandle<()>,
    printing: thread::JoinHandle<()>,
    /// Modes of the terminal before the chat.
    modes: Modes,
}

impl Terminal {
    /// Opens the terminal; `None` if it does not support line editing.
    pub(crate) fn open(
        completion: Completion,
        is_colored: bool,
        history: PathBuf,
    ) -> Result<Option<(Self, Threads)>, Failure> {
        let mut editor = new_editor(completion, is_colored).map_err(Failure::local)?;
        let Ok(printer) = editor.create_external_printer() else {
            return Ok(None);
        };
        let modes = Modes::now().map_err(Failure::local)?;
        let owner = Arc::<TerminalOwner>::default();
        let (requests, requests_in) = mpsc::channel(1);
        let (texts, texts_in) = mpsc::channel(LINES_MAX);
        let input_thread = InputThread {
            editor,
            history: Some(history),
            owner: Arc::clone(&owner),
        };
        let editing = thread::spawn(move || input_thread.run(requests_in));
        let printing = thread::spawn({
            let owner = Arc::clone(&owner);
            move || print_all(texts_in, printer, &owner)
        });
        let requests = Mutex::new(Some(requests));
        Ok(Some((
            Self {
                requests,
                texts,
                owner,
            },
            Threads {
                editing,
                printing,
                modes,
            },
        )))
    }

    /// Reads a line.
    pub(crate) async fn read(&self, prompt: LinkPrompt) -> Input {
        self.ask(|answer| Request::Read(prompt, answer))
            .await
            .unwrap_or(Input::Ended)
    }

    /// Prompts for a password without echo, twice if it is new; `None` if the
    /// input is empty.
    pub(crate) async fn secret(
        &self,
        prompt: String,
        is_new: bool,
    ) -> Result<Option<Password>, Failure> {
        self.ask(|answer| Request::Secret {
            prompt,
            is_new,
            answer,
        })
        .await
        .unwrap_or(Ok(None))
    }

    /// Ends line editing: from now on texts are written directly.
    pub(crate) fn stop_reading(&self) {
        drop(lock(&self.requests).take());
    }

    /// As [`Self::stop_reading`], even while a line is being typed, which is
    /// discarded.
    pub(crate) fn give_up_reading(&self) {
        self.stop_reading();
        if self.owner.release() != Owner::Free {
            write(&format!("{PASTE_UNMARKED}\n"));
        }
    }

    /// Returns `None` once reading has stopped.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let requests = lock(&self.requests).clone()?;
        let (answer, answered) = oneshot::channel();
        requests.send(request(answer)).await.ok()?;
        // A clone would keep the thread alive.
        drop(requests);
        answered.await.ok()
    }

    /// Prints a text and waits until it is on the terminal. After a line was
    /// entered, that may take until the next prompt, so the caller that shows
    /// the prompt must not wait without a bound.
    pub(crate) async fn show(&self, text: String) {
        let (done, is_done) = oneshot::channel();
        // The thread ends only after all senders.
        if self.texts.send((text, done)).await.is_ok() {
            drop(is_done.await);
        }
    }
}

impl Threads {
    /// Waits until everything is printed. Requires that the terminal was
    /// dropped and no line is being read.
    pub(crate) fn join(self) {
        for thread in [self.editing, self.printing] {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Restores the terminal and leaves the threads to end with the process.
    /// For use after [`Terminal::give_up_reading`].
    pub(crate) fn abandon(self) {
        // A closed terminal needs no modes.
        drop(self.modes.restore());
    }
}

type LineEditor = Editor<Completion, FileHistory>;

fn new_editor(completion: Completion, is_colored: bool) -> rustyline::Result<LineEditor> {
    let color_mode = if is_colored {
        ColorMode::Enabled
    } else {
        ColorMode::Disabled
    };
    let config = Config::builder()
        .max_history_size(HISTORY_LINES_MAX)?
        .history_ignore_dups(true)?
        .color_mode(color_mode)
        .build();
    let mut editor = Editor::with_config(config)?;
    editor.set_helper(Some(completion));
    Ok(editor)
}

/// Reads input on its own thread, since reading blocks.
struct InputThread {
    editor: LineEditor,
    /// File of the history; `None` once it has failed.
    history: Option<PathBuf>,
    owner: Arc<TerminalOwner>,
}

impl InputThread {
    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        self.load_history();
        while let Some(request) = requests.blocking_recv() {
            match request {
                // The receiver is gone if hark is ending.
                Request::Read(prompt, answer) => drop(answer.send(self.read(&prompt))),
                Request::Secret {
                    prompt,
                    is_new,
                    answer,
                } => drop(answer.send(self.secret(&prompt, is_new))),
            }
        }
        // The editor is dropped after this.
        self.owner.wait_for_handover(HANDOVER_TIMEOUT);
    }

    fn read(&mut self, prompt: &LinkPrompt) -> Input {
        // The editor would ignore a pending end of file.
        if hark_prompt::is_ended().unwrap_or(true) {
            return Input::Ended;
        }
        self.owner.set(Owner::Editor);
        let read = self.editor.readline(prompt);
        self.owner.set(Owner::Free);
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
        self.owner.set(Owner::PasswordPrompt);
        let secret = if is_new {
            setup::prompt_new(prompt)
        } else {
            setup::ask(prompt)
        };
        self.owner.set(Owner::Free);
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

    /// Saves a valid command in the history. An invalid one may be a misplaced
    /// password.
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
            eprintln!(
                "hark: cannot save the history in {}: {error}",
                path.display()
            );
        }
    }
}

/// Prints texts until all senders are dropped.
fn print_all(
    mut texts: mpsc::Receiver<Text>,
    mut printer: impl ExternalPrinter,
    owner: &TerminalOwner,
) {
    while let Some((text, done)) = texts.blocking_recv() {
        let line = format!("{text}\n");
        owner.print(|| write(&line), || hand_to_editor(&mut printer, &line));
        // Fails only if the sender no longer waits.
        done.send(()).unwrap_or_default();
    }
}

/// Passes a line to the editor, and returns whether the editor has taken it.
/// The editor has room for one untaken line, so accepting a second one proves
/// that the first was taken. The second changes nothing: it moves the cursor up
/// and down again.
fn hand_to_editor(printer: &mut impl ExternalPrinter, line: &str) -> bool {
    printer.print(line.to_owned()).is_ok() && printer.print("\x1b[A\n".to_owned()).is_ok()
}

/// Writes to a terminal that is not in use by the editor. Errors of a closed
/// terminal are ignored, since the editor notices them.
fn write(line: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(line.as_bytes()).and_then(|()| out.flush()));
}
