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
//! | `jobs` | requests to the server, in order |
//!
//! Keys precede everything else. Other events are processed in batches of bounded
//! time, and the screen is drawn at most 60 times a second, or at once after a key.

mod alerts;
mod app;
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

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use hark_client::{Event as ClientEvent, Events, Handle, Message, MissingMessages, RequestError};
use hark_protocol::{RoomName, Sequence};
use jiff::tz::TimeZone;
use ratatui::crossterm::event::{Event as TerminalEvent, KeyCode};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::app::{Action, App, Event, Received, Setting, TypedSecrets};
use self::jobs::{JOBS_MAX, Job, Runner};
use self::theme::Theme;
use self::tty::Tty;
pub(crate) use self::tty::is_capable;
use crate::args::Settings;
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::interactive::style::Style;
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

/// Largest number of outcomes that wait.
const OUTCOMES_MAX: usize = 256;

/// Time limit for the last acknowledgements after a signal.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Time after which a suspended process that was not stopped continues.
const SUSPEND_TIMEOUT: Duration = Duration::from_millis(500);

/// What is acknowledged once it was on the screen.
enum Held {
    Message(Message),
    Gap(MissingMessages),
}

/// The running program.
struct Screen {
    app: App,
    tty: Tty,
    handle: Handle,
    events: Events,
    keys: mpsc::Receiver<Vec<TerminalEvent>>,
    /// `None` once no further request is accepted.
    jobs: Option<mpsc::Sender<Job>>,
    outcomes: mpsc::Receiver<Event>,
    held: HashMap<u64, Held>,
    next_ack: u64,
    marks: BTreeMap<RoomName, Sequence>,
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
    let secrets = setup::receiving(settings)?;
    let mut signals = Signals {
        interrupts: signals::interrupts()?,
        termination: signals::termination()?,
        continuation: signals::continuation()?,
    };
    let tty = Tty::open().map_err(Failure::local)?;
    let size = tty.size().map_err(Failure::local)?;
    let setting = Setting {
        zone: TimeZone::system(),
        theme: Theme {
            is_colored: Style::of_terminal().is_colored,
        },
        server: settings.server.clone(),
        has_password: secrets.password.is_some(),
    };
    let app = App::new(setting, size, now_ms());
    let (handle, events) = setup::client(settings)?;
    let (keys_out, keys) = mpsc::channel(INPUT_BATCHES_MAX);
    // The thread ends with the process: a read of the terminal cannot be interrupted.
    std::thread::spawn(move || tty::read_events(&keys_out));
    let (jobs, jobs_in) = mpsc::channel(JOBS_MAX);
    let (outcomes_out, outcomes) = mpsc::channel(OUTCOMES_MAX);
    let runner = Runner {
        handle: handle.clone(),
        secrets,
        outcomes: outcomes_out,
    };
    let running = tokio::spawn(runner.run(jobs_in));
    let mut screen = Screen {
        app,
        tty,
        handle,
        events,
        keys,
        jobs: Some(jobs),
        outcomes,
        held: HashMap::new(),
        next_ack: 0,
        marks: BTreeMap::new(),
        draw_at: Some(Instant::now()),
        drawn_at: Instant::now(),
        closing: None,
        timeout: settings.timeout,
    };
    let end = screen.run(&mut signals).await;
    let given_up = screen.finish(end, running).await?;
    Ok(if given_up == 0 {
        Exit::Done
    } else {
        Exit::Unknown
    })
}

fn now_ms() -> u64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The loop.
impl Screen {
    async fn run(&mut self, signals: &mut Signals) -> io::Result<End> {
        let mut marking = tokio::time::interval(MARK_EVERY);
        loop {
            if self.draw_at.is_some_and(|at| Instant::now() >= at) {
                self.draw()?;
            }
            let draw_at = self.draw_at;
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
                _ = marking.tick() => self.send_marks(),
                Some(outcome) = self.outcomes.recv() => self.outcomes(outcome)?,
                event = self.events.next() => match event {
                    Some(event) => self.client_events(event)?,
                    None => if let Some(closing) = self.closing.take() {
                        return Ok(End::Closed(closing.await.unwrap_or(1)));
                    },
                },
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

    fn outcomes(&mut self, first: Event) -> io::Result<()> {
        let until = Instant::now() + BATCH_TIME;
        self.update(first)?;
        while Instant::now() < until
            && let Ok(outcome) = self.outcomes.try_recv()
        {
            self.update(outcome)?;
        }
        Ok(())
    }

    fn client_events(&mut self, first: ClientEvent) -> io::Result<()> {
        let until = Instant::now() + BATCH_TIME;
        self.client_event(first)?;
        while Instant::now() < until
            && let Some(Some(event)) = self.events.next().now_or_never()
        {
            self.client_event(event)?;
        }
        Ok(())
    }

    fn client_event(&mut self, event: ClientEvent) -> io::Result<()> {
        let event = match event {
            ClientEvent::Link(state) => Event::Link(state),
            ClientEvent::Message(message) => {
                let received = Received {
                    ack: Some(self.next_ack),
                    user: message.user.clone(),
                    room: message.room.clone(),
                    delivery: message.delivery.clone(),
                };
                self.hold(Held::Message(message));
                Event::Received(received)
            }
            ClientEvent::Gap(missing) => {
                let (ack, gap) = (self.next_ack, missing.gap.clone());
                self.hold(Held::Gap(missing));
                Event::Missing { ack, gap }
            }
            ClientEvent::CaughtUp { .. } => Event::CaughtUp,
            ClientEvent::Joined { room, .. } => Event::Joined(room),
            ClientEvent::Left { room, reason } => Event::Left(room, reason),
            ClientEvent::Seen { room, sequence } => Event::Seen(room, sequence),
            ClientEvent::NewDevice { name } => Event::NewDevice(name),
            ClientEvent::TakenOver { user } => Event::TakenOver(user),
            ClientEvent::IdentityLost { user, refusal } => Event::IdentityLost {
                user,
                why: refusal.explanation.into_owned(),
            },
        };
        self.update(event)
    }

    fn hold(&mut self, held: Held) {
        self.held.insert(self.next_ack, held);
        self.next_ack += 1;
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
            } => self.start(Job::Send {
                id,
                recipient,
                text,
            }),
            Action::Run {
                command,
                typed,
                is_quiet,
            } => self.start(Job::Run {
                command,
                typed,
                is_quiet,
            }),
            Action::LoadOlder {
                place,
                room,
                before,
            } => self.start(Job::LoadOlder {
                place,
                room,
                before,
            }),
            Action::Ack(ack) => return self.acknowledge(ack),
            Action::Mark(room, number) => {
                self.marks.insert(room, number);
                Ok(())
            }
            Action::Bell => self.tty.ring(),
            Action::Notify(text) => self.tty.notify(&text),
            Action::Clear => self.tty.clear(),
            Action::Quit => self.close(),
            // Only keys suspend.
            Action::Suspend => Ok(()),
        }
    }

    /// Starts a job, or answers it if too many wait.
    fn start(&mut self, job: Job) -> io::Result<()> {
        let Some(jobs) = &self.jobs else {
            return Ok(());
        };
        let Err(refused) = jobs.try_send(job) else {
            return Ok(());
        };
        let error = RequestError::NotSent("too many commands are pending".into());
        let event = match refused.into_inner() {
            Job::Send { id, recipient, .. } => Event::Answered {
                id,
                is_room: recipient.as_str().starts_with(RoomName::MARK),
                outcome: Err(error),
            },
            Job::Run {
                command,
                typed,
                is_quiet,
            } => Event::Done {
                command,
                typed,
                is_quiet,
                outcome: Err(error),
            },
            Job::LoadOlder { place, room, .. } => Event::Older {
                place,
                is_of_room: room.is_some(),
                outcome: Err(error),
            },
        };
        self.update(event)
    }

    fn acknowledge(&mut self, ack: u64) -> io::Result<()> {
        match self.held.remove(&ack) {
            Some(Held::Message(message)) => {
                if let Err(error) = message.ack() {
                    self.app.hint = Some(format!("a message will be delivered again: {error}"));
                }
            }
            Some(Held::Gap(missing)) => missing.ack(),
            None => {}
        }
        Ok(())
    }

    /// Moves the read marks of rooms whose messages were read.
    fn send_marks(&mut self) {
        let Some(jobs) = &self.jobs else {
            return;
        };
        while let Some((room, number)) = self.marks.pop_first() {
            let job = Job::Run {
                command: Command::Seen(room.clone(), number),
                typed: TypedSecrets::default(),
                is_quiet: true,
            };
            if jobs.try_send(job).is_err() {
                self.marks.insert(room, number);
                return;
            }
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
    fn close(&mut self) -> io::Result<()> {
        self.send_marks();
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
        let (handle, jobs) = (self.handle.clone(), self.jobs.take());
        self.closing = Some(tokio::spawn(async move {
            if let Some(jobs) = jobs {
                // Everything that was entered has been handed over once the queue is empty.
                let all = jobs.reserve_many(JOBS_MAX);
                drop(tokio::time::timeout(within, all).await);
            }
            handle.close(within).await
        }));
        Ok(())
    }

    /// Restores the terminal and reports own messages that are not stored. Returns the
    /// number of abandoned requests.
    async fn finish(
        mut self,
        end: io::Result<End>,
        running: JoinHandle<()>,
    ) -> Result<usize, Failure> {
        self.jobs = None;
        let given_up = match &end {
            Ok(End::Closed(given_up)) => *given_up,
            Ok(End::Terminated) | Err(_) => self.handle.close(LEAVE_WITHIN).await,
        };
        let ended = tokio::time::timeout(LEAVE_WITHIN, async {
            let drained = async {
                while let Some(outcome) = self.outcomes.recv().await {
                    drop(self.app.update(outcome));
                }
            };
            tokio::join!(drained, running).1
        });
        // Requests that have not ended by now count as given up.
        drop(ended.await);
        let Self { app, tty, .. } = self;
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
