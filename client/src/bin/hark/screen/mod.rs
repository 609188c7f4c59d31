//! The chat on a full screen: the loop that joins the terminal, the client and the
//! model.
//!
//! | module | contents |
//! | --- | --- |
//! | `app` | the model: the state, and its change by events; pure |
//! | `view` | the screen, a function of the model; pure |
//! | `conversation`, `names`, `editor`, `alerts` | parts of the model; pure |
//! | `layout`, `rows`, `wrap`, `theme`, `fuzzy` | layout, colors, matching; pure |
//! | `tty` | the modes and the events of the terminal |
//! | `archive` | the thread of the local history, which everything passes |
//! | `jobs` | requests to the server, in order |
//!
//! Keys precede everything else. Other events are processed in batches of bounded
//! time, and the screen is drawn at most 60 times a second, or at once after a key.

mod alerts;
mod app;
mod archive;
mod conversation;
mod editor;
mod fuzzy;
mod jobs;
mod layout;
mod names;
mod rows;
mod theme;
mod tty;
mod view;
mod wrap;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::time::Duration;

use hark_client::{Events, Handle, RequestError};
use hark_protocol::{RoomName, Sequence, UserName};
use jiff::tz::TimeZone;
use ratatui::crossterm::event::{Event as TerminalEvent, KeyCode};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::app::{Action, App, Event, Setting, TypedSecrets};
use self::archive::{Archive, WORK_MAX, Work};
use self::conversation::Place;
use self::jobs::{JOBS_MAX, Job, Runner};
use self::theme::Theme;
use self::tty::Tty;
pub(crate) use self::tty::is_capable;
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::history::{EntryId, now_ms};
use crate::interactive::style::Style;
use crate::settings::Settings;
use crate::setup;
use crate::signals::{self, Continuation, Interrupts, Termination};

/// Time between two drawings.
const FRAME: Duration = Duration::from_micros(16_667);

/// Time for which other events are processed before keys are looked for.
const BATCH_TIME: Duration = Duration::from_millis(4);

/// Time between two moves of read marks.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Largest number of batches of keys that wait.
const INPUT_BATCHES_MAX: usize = 16;

/// Largest number of events that wait.
const EVENTS_MAX: usize = 1_024;

/// Time for which a query stays the same before the local history is searched.
const SEARCH_AFTER: Duration = Duration::from_millis(150);

/// Time limit for the last acknowledgements after a signal.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Time after which a suspended process that was not stopped continues.
const SUSPEND_TIMEOUT: Duration = Duration::from_millis(500);

/// The running program.
struct Screen {
    app: App,
    tty: Tty,
    handle: Handle,
    keys: mpsc::Receiver<Vec<TerminalEvent>>,
    /// Arrivals and outcomes.
    events: mpsc::Receiver<Event>,
    work: mpsc::Sender<Work>,
    /// Acknowledgements that the thread has no room for yet. At most one window.
    acks: VecDeque<u64>,
    /// Whether all jobs were handed over, after [`Work::Leave`].
    drained: watch::Receiver<bool>,
    marks: BTreeMap<RoomName, Sequence>,
    reads: BTreeMap<Place, EntryId>,
    /// The search that begins when the query has not changed for a while.
    search: Option<(Instant, Place, String)>,
    /// The time before which the screen is not drawn; `None` if nothing changed.
    draw_at: Option<Instant>,
    drawn_at: Instant,
    closing: Option<JoinHandle<usize>>,
    timeout: Duration,
}

/// Why the loop ends.
enum End {
    /// The client has closed, with this number of abandoned requests.
    Closed(usize),
    /// A signal.
    Terminated,
}

struct Signals {
    interrupts: Interrupts,
    termination: Termination,
    continuation: Continuation,
}

/// Runs the chat until the user leaves.
pub(crate) async fn run(settings: &Settings) -> Result<Exit, Failure> {
    let secrets = setup::receiving(settings, settings.user())?;
    let mut signals = Signals {
        interrupts: signals::interrupts()?,
        termination: signals::termination()?,
        continuation: signals::continuation()?,
    };
    let file = setup::history(settings)?;
    let tty = Tty::open().map_err(Failure::local)?;
    let size = tty.size().map_err(Failure::local)?;
    let setting = Setting {
        zone: TimeZone::system(),
        theme: Theme {
            is_colored: Style::of_terminal(settings.colors).is_colored,
        },
        server: settings.server.clone(),
        has_password: secrets.password.is_some(),
        password_owner: secrets.owner.clone(),
        aliases: settings.aliases.clone(),
    };
    let app = App::new(setting, size, now_ms());
    let (handle, client_events) = setup::chat_client(settings, &file)?;
    let (keys_out, keys) = mpsc::channel(INPUT_BATCHES_MAX);
    // The thread ends with the process: a read of the terminal cannot be interrupted.
    std::thread::spawn(move || tty::read_events(&keys_out));
    let (work, work_in) = mpsc::channel(WORK_MAX);
    let (jobs, jobs_in) = mpsc::channel(JOBS_MAX);
    let (events_out, events) = mpsc::channel(EVENTS_MAX);
    let (drained_out, drained) = watch::channel(false);
    let runner = Runner {
        handle: handle.clone(),
        secrets,
        outcomes: events_out.clone(),
        work: work.clone(),
        drained: drained_out,
    };
    let archive = Archive::new(file, settings.server.clone(), jobs, events_out);
    let running = tokio::spawn(runner.run(jobs_in));
    let receiving = tokio::spawn(receive(client_events, work.clone()));
    let archiving = tokio::task::spawn_blocking(move || archive.run(work_in));
    let mut screen = Screen {
        app,
        tty,
        handle,
        keys,
        events,
        work,
        acks: VecDeque::new(),
        drained,
        marks: BTreeMap::new(),
        reads: BTreeMap::new(),
        search: None,
        draw_at: Some(Instant::now()),
        drawn_at: Instant::now(),
        closing: None,
        timeout: settings.timeout,
    };
    screen.start_as(settings.user());
    let end = screen.run(&mut signals).await;
    let given_up = screen
        .finish(end, async { tokio::join!(running, receiving, archiving) })
        .await?;
    Ok(if given_up == 0 {
        Exit::Done
    } else {
        Exit::Unknown
    })
}

/// The loop.
impl Screen {
    /// Connects as the user of the settings, and opens its local history.
    fn start_as(&mut self, user: Option<&UserName>) {
        for action in user
            .map(|user| self.app.start_as(user.clone()))
            .into_iter()
            .flatten()
        {
            // A terminal that fails now fails again at the first drawing.
            drop(self.perform(action));
        }
    }

    async fn run(&mut self, signals: &mut Signals) -> io::Result<End> {
        let mut marking = tokio::time::interval(MARK_EVERY);
        loop {
            if self.draw_at.is_some_and(|at| Instant::now() >= at) {
                self.draw()?;
            }
            let draw_at = self.draw_at;
            let search_at = self.search.as_ref().map(|search| search.0);
            tokio::select! {
                biased;
                batch = self.keys.recv() => match batch {
                    Some(batch) => self.input(batch, signals).await?,
                    None => return Ok(End::Terminated),
                },
                () = signals.termination.received() => return Ok(End::Terminated),
                () = signals.interrupts.received() => return Ok(End::Terminated),
                () = signals.continuation.received() => self.continue_after_stop()?,
                () = sleep_until(draw_at) => {}
                () = sleep_until(search_at) => self.search(),
                _ = marking.tick() => self.tick(),
                Some(event) = self.events.recv() => self.events(event)?,
                Some(given_up) = closed(&mut self.closing) => {
                    self.closing = None;
                    return Ok(End::Closed(given_up));
                }
            }
        }
    }

    fn draw(&mut self) -> io::Result<()> {
        self.tty.draw(&self.app)?;
        self.draw_at = None;
        self.drawn_at = Instant::now();
        self.update_only(Event::Drawn)
    }

    /// Processes a batch of keys. The screen is drawn at once, unless more have come.
    async fn input(&mut self, batch: Vec<TerminalEvent>, signals: &mut Signals) -> io::Result<()> {
        let is_char = |event: &TerminalEvent| matches!(event, TerminalEvent::Key(key) if matches!(key.code, KeyCode::Char(_)));
        for (index, event) in batch.iter().enumerate() {
            let event = match event {
                TerminalEvent::Key(key) => {
                    // Text around it: a person presses Tab and looks.
                    let is_pasted = batch.iter().skip(index + 1).any(is_char)
                        || batch.iter().take(index).filter(|one| is_char(one)).count() > 1;
                    Event::Key {
                        key: *key,
                        is_pasted,
                    }
                }
                TerminalEvent::Paste(text) => Event::Pasted(text.clone()),
                TerminalEvent::Resize(columns, rows) => Event::Resized(*columns, *rows),
                TerminalEvent::FocusGained => Event::Focused(true),
                TerminalEvent::FocusLost => Event::Focused(false),
                TerminalEvent::Mouse(_) => continue,
            };
            for action in self.updated(event) {
                match action {
                    Action::Suspend => self.suspend(signals).await?,
                    action => self.perform(action)?,
                }
            }
        }
        if self.keys.is_empty() {
            self.draw_at = Some(Instant::now());
        }
        Ok(())
    }

    fn events(&mut self, first: Event) -> io::Result<()> {
        let until = Instant::now() + BATCH_TIME;
        self.update(first)?;
        while Instant::now() < until
            && let Ok(event) = self.events.try_recv()
        {
            self.update(event)?;
        }
        Ok(())
    }
}

/// Passes events of the client on until it is closed.
async fn receive(mut events: Events, work: mpsc::Sender<Work>) {
    while let Some(event) = events.next().await {
        if work.send(Work::Client(event)).await.is_err() {
            return;
        }
    }
}

/// Waits until the client is closed, and returns the number of abandoned requests.
async fn closed(closing: &mut Option<JoinHandle<usize>>) -> Option<usize> {
    match closing {
        Some(closing) => Some(closing.await.unwrap_or(1)),
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Events and actions of the model.
impl Screen {
    fn updated(&mut self, event: Event) -> Vec<Action> {
        self.app.now_ms = now_ms();
        self.app.update(event)
    }

    /// Changes the model, and performs its actions. Not for keys, which may suspend.
    fn update(&mut self, event: Event) -> io::Result<()> {
        self.draw_at = self.draw_at.or(Some(self.drawn_at + FRAME));
        self.update_only(event)
    }

    fn update_only(&mut self, event: Event) -> io::Result<()> {
        for action in self.updated(event) {
            self.perform(action)?;
        }
        Ok(())
    }

    fn perform(&mut self, action: Action) -> io::Result<()> {
        match action {
            Action::Send {
                id,
                recipient,
                text,
                filed,
            } => self.start(Job::Send {
                id,
                recipient,
                text,
                filed,
            })?,
            Action::Run {
                command,
                typed,
                is_quiet,
            } => self.start(Job::Run {
                command,
                typed,
                is_quiet,
            })?,
            Action::LoadOlder {
                place,
                room,
                before,
                before_filed,
            } => self.start(Job::LoadOlder {
                place,
                room,
                before,
                before_filed,
            })?,
            Action::Ack(ack) => self.acks.push_back(ack),
            Action::Mark(room, number) => drop(self.marks.insert(room, number)),
            Action::ReadUpTo(place, filed) => drop(self.reads.insert(place, filed)),
            Action::Search(place, query) => {
                self.search = Some((Instant::now() + SEARCH_AFTER, place, query));
            }
            Action::Use(user) => self.order(Work::Use(user)),
            Action::Talk(user, room) => self.order(Work::Talk(user, room)),
            Action::Undo(filed) => self.order(Work::Undo(filed)),
            Action::Ignore(user, is_ignored) => self.order(Work::Ignore(user, is_ignored)),
            Action::Bell => self.tty.ring()?,
            Action::Notify(text) => self.tty.notify(&text)?,
            Action::Clear => self.tty.clear()?,
            Action::Quit => self.close(),
            // Only keys suspend.
            Action::Suspend => {}
        }
        self.flush_acks();
        Ok(())
    }

    /// Orders work that may be lost only if thousands of others wait.
    fn order(&mut self, work: Work) {
        if self.work.try_send(work).is_err() {
            self.app.hint = Some("the local history is too slow".to_owned());
        }
    }

    fn flush_acks(&mut self) {
        while let Some(ack) = self.acks.front() {
            if self.work.try_send(Work::Ack(*ack)).is_err() {
                return;
            }
            self.acks.pop_front();
        }
    }

    /// Starts a job, or answers it if too many wait.
    fn start(&mut self, job: Job) -> io::Result<()> {
        let Err(refused) = self.work.try_send(Work::Job(job)) else {
            return Ok(());
        };
        let error = RequestError::NotSent("too many commands are pending".into());
        let event = match refused.into_inner() {
            Work::Job(Job::Send { id, recipient, .. }) => Event::Answered {
                id,
                is_room: recipient.as_str().starts_with(RoomName::MARK),
                outcome: Err(error),
            },
            Work::Job(Job::Run {
                command,
                typed,
                is_quiet,
            }) => Event::Done {
                command,
                typed,
                is_quiet,
                outcome: Err(error),
            },
            Work::Job(Job::LoadOlder { place, room, .. }) => Event::Older {
                place,
                is_of_room: room.is_some(),
                outcome: Err(error),
            },
            _ => return Ok(()),
        };
        self.update(event)
    }

    /// Moves the read marks of conversations that were read, and searches.
    fn tick(&mut self) {
        while let Some((room, number)) = self.marks.pop_first() {
            self.order(Work::Job(Job::Run {
                command: Command::Seen(room, number),
                typed: TypedSecrets::default(),
                is_quiet: true,
            }));
        }
        while let Some((place, filed)) = self.reads.pop_first() {
            self.order(Work::ReadUpTo(place, filed));
        }
        self.flush_acks();
    }

    fn search(&mut self) {
        if let Some((_, place, query)) = self.search.take() {
            self.order(Work::Search { place, query });
        }
    }
}

/// Suspension and the end.
impl Screen {
    /// Stops the process like Ctrl-Z in a shell, until it is continued.
    async fn suspend(&mut self, signals: &mut Signals) -> io::Result<()> {
        self.tty.leave();
        hark_prompt::suspend()?;
        // Not stopped if no shell controls the process.
        drop(tokio::time::timeout(SUSPEND_TIMEOUT, signals.continuation.received()).await);
        self.continue_after_stop()
    }

    fn continue_after_stop(&mut self) -> io::Result<()> {
        self.tty.enter_again()?;
        let (columns, rows) = self.tty.size()?;
        self.update(Event::Resized(columns, rows))
    }

    /// Closes the client after pending requests are answered; the second time at once.
    fn close(&mut self) {
        self.tick();
        let within = if self.closing.is_some() {
            Duration::ZERO
        } else {
            self.timeout
        };
        let waiting = self.handle.unanswered();
        if waiting > 0 {
            let seconds = within.as_secs();
            self.app.hint = Some(format!(
                "waiting up to {seconds} s for {waiting} answers; press Ctrl-D to leave now"
            ));
        }
        self.order(Work::Leave);
        let (handle, mut drained) = (self.handle.clone(), self.drained.clone());
        let is_up = self.handle.link().borrow().is_up();
        self.closing = Some(tokio::spawn(async move {
            // Lines that were typed without a link are kept for the next start.
            if is_up {
                let all = drained.wait_for(|is_drained| *is_drained);
                drop(tokio::time::timeout(within, all).await);
            }
            handle.close(within).await
        }));
    }

    /// Restores the terminal and reports own messages that are not stored. Returns the
    /// number of abandoned requests.
    async fn finish(mut self, end: io::Result<End>, tasks: impl Future) -> Result<usize, Failure> {
        let given_up = match &end {
            Ok(End::Closed(given_up)) => *given_up,
            Ok(End::Terminated) | Err(_) => {
                self.close();
                let closed = tokio::time::timeout(2 * LEAVE_WITHIN, closed(&mut self.closing));
                match closed.await {
                    Ok(Some(given_up)) => given_up,
                    _ => self.handle.close(Duration::ZERO).await,
                }
            }
        };
        let Self {
            mut app,
            tty,
            mut events,
            work,
            ..
        } = self;
        drop(work);
        let drained = async {
            while let Some(event) = events.recv().await {
                drop(app.update(event));
            }
        };
        // What has not ended by now counts as given up.
        let ended = tokio::time::timeout(LEAVE_WITHIN, async { tokio::join!(drained, tasks) });
        drop(ended.await);
        drop(tty);
        for line in app.unstored() {
            eprintln!("{line}");
        }
        match end {
            Ok(_) => Ok(given_up),
            Err(error) => Err(Failure::local(format!("the terminal failed: {error}"))),
        }
    }
}
