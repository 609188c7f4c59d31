//! The chat in a terminal: commands are typed, and messages and outcomes appear
//! above the line.

mod editor;
mod owner;
mod prompt;
pub(crate) mod style;
mod terminal;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytestring::ByteString;
use futures::FutureExt as _;
use hark_client::sync::lock;
use hark_client::{Event, Events, Handle, LinkState, Message, MissingMessages, RequestError};
use hark_protocol::message::LeftReason;
use hark_protocol::{Code, Password, Refusal, RoomName, Sequence, UserName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use self::editor::{Completion, SeenNames};
use self::prompt::{CurrentServer, LinkPrompt};
use self::style::Style;
use self::terminal::{Input, Terminal};
use crate::args::Settings;
use crate::command::{self, Command, Done, Secrets};
use crate::exit::{Exit, Failure};
use crate::signals::{self, Interrupts, Termination};
use crate::text::escape_name;
use crate::{piped, setup};

/// Time for which a command delays the next prompt.
const PROMPT_AFTER: Duration = Duration::from_secs(1);

/// Time for which a send or a local command delays the next prompt.
const PROMPT_SOON: Duration = Duration::from_millis(100);

/// Time after which an unanswered send is shown as pending.
const PENDING_AFTER: Duration = Duration::from_millis(400);

/// Time limit for each step of a shutdown by signal, such as sending the last
/// acknowledgement.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);

/// Time between two moves of read marks.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// Largest number of commands and sends that are pending.
const JOBS_MAX: usize = 2048;

/// Runs the chat until the user leaves.
pub(crate) async fn run(settings: &Settings) -> Result<Exit, Failure> {
    let secrets = setup::receiving(settings)?;
    let (mut interrupts, mut termination) = (signals::interrupts()?, signals::termination()?);
    let style = Style::of_terminal();
    let names = SeenNames::default();
    let history = setup::state_dir(settings)?.join("history");
    let completion = Completion {
        names: names.clone(),
    };
    let Some((terminal, threads)) = Terminal::open(completion, style.is_colored, history)? else {
        return piped::run(settings).await;
    };
    let (handle, events) = setup::client(settings)?;
    let chat = Arc::new(Chat {
        handle,
        terminal,
        style,
        secrets,
        names,
        user: Mutex::default(),
        current_server: CurrentServer::new(&settings.server),
        identity_changes: watch::Sender::default(),
        marks: Mutex::default(),
        is_marking: AtomicBool::new(false),
        showing: tokio::sync::Mutex::default(),
        jobs: TaskTracker::new(),
    });
    let watching = tokio::spawn(Arc::clone(&chat).watch(events));
    let is_terminated = tokio::select! {
        () = chat.read_commands() => false,
        () = termination.received() => true,
    };
    // Earlier interrupts were meant for a command.
    while interrupts.received().now_or_never().is_some() {}
    if is_terminated {
        let given_up = chat.leave_now(watching).await;
        threads.abandon();
        return Ok(exit_for(given_up));
    }
    let given_up = chat.leave(settings.timeout, interrupts, termination).await;
    watching
        .await
        .map_err(|error| Failure::local(format!("the display task failed: {error}")))?;
    drop(chat);
    tokio::task::spawn_blocking(|| threads.join())
        .await
        .map_err(|error| Failure::local(format!("the terminal threads failed: {error}")))?;
    Ok(exit_for(given_up))
}

/// Returns the result of a chat that abandoned this number of requests.
const fn exit_for(given_up: usize) -> Exit {
    if given_up == 0 {
        Exit::Done
    } else {
        Exit::Unknown
    }
}

/// One chat.
struct Chat {
    handle: Handle,
    terminal: Terminal,
    style: Style,
    secrets: Secrets,
    names: SeenNames,
    // The current user, for the prompt; held for one access.
    user: Mutex<Option<UserName>>,
    current_server: CurrentServer,
    /// Number of commands that change the user and have not printed their
    /// outcome, which precedes the user's messages.
    identity_changes: watch::Sender<usize>,
    // The rooms with messages that were shown and are not marked as read; held for
    // one access.
    marks: Mutex<BTreeMap<RoomName, Sequence>>,
    /// Whether marks are being sent.
    is_marking: AtomicBool,
    /// Held from displaying a message until acknowledging it.
    showing: tokio::sync::Mutex<()>,
    /// Commands that continue after the prompt has returned.
    jobs: TaskTracker,
}

/// State of a command that still delays the prompt.
#[derive(Debug, Default)]
struct Foreground {
    is_over: AtomicBool,
    is_prompting: AtomicBool,
}

/// Content of the last notice about the link.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    /// Address of the server, if the link is up.
    server: Option<Arc<str>>,
    /// Whether the failure is permanent.
    is_permanent: bool,
}

/// Counts a command that changes the user, until dropped.
struct IdentityChange<'a>(&'a watch::Sender<usize>);

impl<'a> IdentityChange<'a> {
    fn begin(identity_changes: &'a watch::Sender<usize>) -> Self {
        identity_changes.send_modify(|count| *count += 1);
        Self(identity_changes)
    }
}

impl Drop for IdentityChange<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Command input.
impl Chat {
    async fn read_commands(self: &Arc<Self>) {
        self.wait_for_link_state().await;
        let mut was_interrupted = false;
        loop {
            match self.terminal.read(self.prompt()).await {
                Input::Line(line) => {
                    was_interrupted = false;
                    if self.handle_line(&line).await.is_break() {
                        return;
                    }
                }
                Input::Interrupted if !was_interrupted => {
                    was_interrupted = true;
                    self.say(
                        self.style
                            .notice("press Ctrl-C again or Ctrl-D, or type quit, to leave"),
                    )
                    .await;
                }
                Input::Interrupted | Input::Ended => return,
            }
        }
    }

    /// Waits briefly for the link, so that the first prompt shows its state.
    async fn wait_for_link_state(&self) {
        let mut link = self.handle.link();
        let is_settled = |state: &LinkState| match state {
            LinkState::Connecting => false,
            LinkState::Down { retry_in, .. } => !retry_in.is_zero(),
            LinkState::Up { .. } | LinkState::Closed => true,
        };
        let first = link.wait_for(is_settled);
        // The prompt shows whether the link is up.
        drop(tokio::time::timeout(PROMPT_AFTER, first).await);
    }

    fn prompt(&self) -> LinkPrompt {
        let user = lock(&self.user).clone();
        LinkPrompt::new(user.as_ref(), self.style, self.current_server.clone())
    }

    async fn handle_line(self: &Arc<Self>, line: &str) -> std::ops::ControlFlow<()> {
        if line.trim().is_empty() {
            return std::ops::ControlFlow::Continue(());
        }
        match command::parse(line) {
            Ok(Command::Quit) => return std::ops::ControlFlow::Break(()),
            Ok(Command::Help) => self.say(command::help()).await,
            Ok(_) if self.jobs.len() >= JOBS_MAX => {
                self.say(self.style.notice("too many commands are pending"))
                    .await;
            }
            Ok(Command::Send(user, text)) => {
                let foreground = Arc::default();
                self.run(Arc::clone(self).send(user, text), &foreground, PROMPT_SOON)
                    .await;
            }
            Ok(command) => self.start(command).await,
            Err(bad) => self.say(self.style.bad(&bad.to_string())).await,
        }
        std::ops::ControlFlow::Continue(())
    }

    async fn start(self: &Arc<Self>, command: Command) {
        let me = lock(&self.user).clone();
        let command = match (command, me) {
            (Command::Password(None), Some(me)) => Command::Password(Some(me)),
            (Command::Password(None), None) => {
                return self
                    .say(
                        self.style
                            .notice("you are not logged in: log in first, or use password USER"),
                    )
                    .await;
            }
            (command, _) => command,
        };
        let foreground = Arc::<Foreground>::default();
        let job = Arc::clone(self).execute(command, Arc::clone(&foreground));
        if !self.run(job, &foreground, PROMPT_AFTER).await && !self.current_server.is_up() {
            self.say(self.style.notice("waiting for the server")).await;
        }
    }

    /// Prints a text before or along with the next prompt.
    async fn say(self: &Arc<Self>, text: String) {
        let chat = Arc::clone(self);
        let job = async move { chat.terminal.show(text).await };
        self.run(job, &Foreground::default(), PROMPT_SOON).await;
    }

    /// Runs a command while it may delay the prompt, then in the background.
    /// Returns whether it has completed. The first poll happens here, so that
    /// commands are sent in the order in which they were typed.
    async fn run(
        &self,
        job: impl Future<Output = ()> + Send + 'static,
        foreground: &Foreground,
        prompt_after: Duration,
    ) -> bool {
        let mut job = Box::pin(job);
        loop {
            let is_done = tokio::time::timeout(prompt_after, &mut job).await.is_ok();
            if is_done {
                return true;
            }
            if !foreground.is_prompting.load(Ordering::Relaxed) {
                break;
            }
        }
        foreground.is_over.store(true, Ordering::Relaxed);
        self.jobs.spawn(job);
        false
    }

    /// Leaves the chat after pending requests have completed or timed out, and
    /// shows their outcomes.
    async fn leave(
        &self,
        timeout: Duration,
        mut interrupts: Interrupts,
        mut termination: Termination,
    ) -> usize {
        self.terminal.stop_reading();
        let waiting = self.handle.unanswered();
        if waiting > 0 {
            let seconds = timeout.as_secs();
            self.notice(&format!(
                "waiting up to {seconds} s for {waiting} answers; press Ctrl-C to leave now"
            ))
            .await;
        }
        // Displayed messages are acknowledged on this link.
        drop(self.showing.lock().await);
        if self.current_server.is_up() {
            drop(tokio::time::timeout(LEAVE_WITHIN, self.mark_read()).await);
        }
        let given_up = tokio::select! {
            given_up = self.handle.close(timeout) => given_up,
            () = interrupts.received() => self.handle.close(Duration::ZERO).await,
            () = termination.received() => self.handle.close(Duration::ZERO).await,
        };
        self.jobs.close();
        self.jobs.wait().await;
        given_up
    }

    /// Leaves the chat at once. Texts may be stuck in the editor, so every wait
    /// is bounded.
    async fn leave_now(&self, watching: JoinHandle<()>) -> usize {
        self.terminal.give_up_reading();
        let shown = tokio::time::timeout(LEAVE_WITHIN, self.showing.lock()).await;
        drop(shown);
        let given_up = self.handle.close(LEAVE_WITHIN).await;
        self.jobs.close();
        let said = async { tokio::join!(self.jobs.wait(), watching) };
        drop(tokio::time::timeout(LEAVE_WITHIN, said).await);
        given_up
    }

    async fn notice(&self, text: &str) {
        self.terminal.show(self.style.notice(text)).await;
    }
}

/// Requests to the server.
impl Chat {
    async fn send(self: Arc<Self>, user: UserName, text: ByteString) {
        let sending = async {
            self.handle
                .send(user.clone(), text.clone())
                .await?
                .await
                .map(|_| Done::Plain)
        };
        let mut sending = pin!(sending);
        let outcome = match tokio::time::timeout(PENDING_AFTER, &mut sending).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let pending = self.style.pending(self.current_server.is_up());
                self.terminal
                    .show(self.style.sent(&user, &text, &pending))
                    .await;
                sending.await
            }
        };
        let status = self.style.send_status(&outcome);
        self.terminal
            .show(self.style.sent(&user, &text, &status))
            .await;
        if outcome.is_ok() {
            self.names.learn([&user]);
        }
    }

    async fn execute(self: Arc<Self>, command: Command, foreground: Arc<Foreground>) {
        let changes_identity = matches!(command, Command::Connect(_) | Command::Login(_));
        let _identity_change =
            changes_identity.then(|| IdentityChange::begin(&self.identity_changes));
        let mut secrets = self.secrets.clone();
        if let (Command::Password(Some(user)), None) = (&command, &secrets.new_password) {
            let prompt = format!("New password for {}: ", escape_name(user.as_str()));
            match self.ask(prompt, true, &foreground).await {
                Some(new) => secrets.new_password = Some(new),
                None => return self.notice("the password was not changed").await,
            }
        }
        let mut outcome = command::execute(&self.handle, command.clone(), secrets.clone()).await;
        if is_denied(&outcome)
            && secrets.password.is_none()
            && let Some(password) = self.ask_password(&command, &foreground).await
        {
            secrets.password = Some(password);
            outcome = command::execute(&self.handle, command.clone(), secrets).await;
        }
        self.update(&command, &outcome);
        self.terminal
            .show(self.style.outcome(&command, &outcome))
            .await;
    }

    /// Prompts for the password that a denied command needs.
    async fn ask_password(&self, command: &Command, foreground: &Foreground) -> Option<Password> {
        let (user, is_new) = match command {
            Command::Create(user) => (user, true),
            Command::Login(user) | Command::Connect(user) | Command::Delete(user) => (user, false),
            Command::Password(Some(user)) => (user, false),
            _ => return None,
        };
        let word = if matches!(command, Command::Password(_)) {
            "Old password"
        } else {
            "Password"
        };
        self.ask(
            format!("{word} for {}: ", escape_name(user.as_str())),
            is_new,
            foreground,
        )
        .await
    }

    /// Prompts for a password, unless the command runs in the background by
    /// now.
    async fn ask(&self, prompt: String, is_new: bool, foreground: &Foreground) -> Option<Password> {
        if foreground.is_over.load(Ordering::Relaxed) {
            self.notice("a password is required: repeat the command")
                .await;
            return None;
        }
        foreground.is_prompting.store(true, Ordering::Relaxed);
        let secret = self.terminal.secret(prompt, is_new).await;
        foreground.is_prompting.store(false, Ordering::Relaxed);
        match secret {
            Ok(secret) => secret,
            Err(failure) => {
                self.notice(&failure.to_string()).await;
                None
            }
        }
    }

    /// Updates the current user and the known names after a command.
    fn update(&self, command: &Command, outcome: &Result<Done, RequestError>) {
        let Ok(done) = outcome else {
            return;
        };
        match (command, done) {
            (Command::Login(user) | Command::Connect(user), _) => {
                self.become_user(Some(user.clone()))
            }
            (Command::Disconnect, _) => self.become_user(None),
            (Command::Delete(user), _) => {
                let mut me = lock(&self.user);
                me.take_if(|me| me == user);
            }
            (Command::Create(user), _) => self.names.learn([user]),
            (_, Done::Listed(answer)) => self.names.learn(&answer.names),
            (Command::Room(room, ..) | Command::Join(room), _) => self.names.learn_rooms([room]),
            (_, Done::Talking(room)) => self.names.learn_rooms([room]),
            (_, Done::Rooms(rooms)) => {
                self.names.learn_rooms(rooms.iter().map(|room| &room.name));
            }
            _ => {}
        }
    }

    fn become_user(&self, user: Option<UserName>) {
        self.names.learn(&user);
        // The marks belong to the former user.
        lock(&self.marks).clear();
        *lock(&self.user) = user;
    }
}

/// Waits until no command that changes the user is pending.
async fn identity_settled(identity_changes: &mut watch::Receiver<usize>) {
    // The chat keeps the sender while it watches.
    drop(identity_changes.wait_for(|count| *count == 0).await);
}

fn is_denied(outcome: &Result<Done, RequestError>) -> bool {
    matches!(
        outcome,
        Err(RequestError::Refused(Refusal {
            code: Code::Denied,
            ..
        }))
    )
}

/// Display of events.
impl Chat {
    /// Shows events until the client has ended.
    async fn watch(self: Arc<Self>, mut events: Events) {
        // Attempts between two states are not shown, except that a failure
        // turned out to be permanent.
        let mut shown = None;
        let mut identity_changes = self.identity_changes.subscribe();
        // Events that follow a command that changes the user and has not
        // printed its outcome. Bounded by one window, since none is
        // acknowledged.
        let mut held = VecDeque::new();
        let mut marking = tokio::time::interval(MARK_EVERY);
        loop {
            tokio::select! {
                _ = marking.tick() => self.spawn_marks(),
                event = events.next() => match event {
                    // Link states are shown at once.
                    Some(Event::Link(state)) => self.show_link(&state, &mut shown).await,
                    Some(event) => held.push_back(event),
                    None => break,
                },
                () = identity_settled(&mut identity_changes), if !held.is_empty() => {
                    if let Some(event) = held.pop_front() {
                        self.show_event(event).await;
                    }
                }
            }
        }
        identity_settled(&mut identity_changes).await;
        for event in held {
            self.show_event(event).await;
        }
    }

    /// Starts to mark shown messages as read, if there are any and the former marks
    /// are answered.
    fn spawn_marks(self: &Arc<Self>) {
        let is_idle = !self.is_marking.load(Ordering::Relaxed);
        if is_idle && !lock(&self.marks).is_empty() && !self.jobs.is_closed() {
            self.is_marking.store(true, Ordering::Relaxed);
            let chat = Arc::clone(self);
            self.jobs.spawn(async move {
                chat.mark_read().await;
                chat.is_marking.store(false, Ordering::Relaxed);
            });
        }
    }

    async fn show_event(&self, event: Event) {
        match event {
            Event::Message(message) => self.show_message(message).await,
            Event::TakenOver { user } => {
                let user = escape_name(user.as_str());
                self.notice(&format!(
                    "another connection now receives the messages of {user}; connect to receive them here"
                ))
                .await;
            }
            Event::IdentityLost { user, refusal } => {
                self.become_user(None);
                let (user, why) = (escape_name(user.as_str()), &refusal.explanation);
                self.notice(&format!(
                    "no longer logged in as {user}: {why}; use login, connect or disconnect"
                ))
                .await;
            }
            Event::Gap(gap) => self.show_gap(gap).await,
            Event::Joined { room, .. } => {
                self.names.learn_rooms([&room]);
                self.notice(&format!("you are now in {room}")).await;
            }
            Event::Left { room, reason } => {
                let cause = match reason {
                    LeftReason::Left => format!("you have left {room}"),
                    LeftReason::Expelled => format!("you were expelled from {room}"),
                    LeftReason::Deleted => format!("{room} was deleted"),
                };
                self.notice(&cause).await;
            }
            Event::NewDevice { name: Some(name) } => {
                self.notice(&format!("you have a new device: {name}")).await;
            }
            Event::NewDevice { name: None }
            | Event::Seen { .. }
            | Event::Link(_)
            | Event::CaughtUp { .. } => {}
        }
    }

    /// Shows a message, then acknowledges it.
    async fn show_message(&self, message: Message) {
        let _showing = self.showing.lock().await;
        self.names.learn(&message.delivery.sender);
        self.names.learn_rooms(&message.room);
        let room = message.room.as_ref();
        self.terminal
            .show(self.style.message(room, &message.delivery, &style::now()))
            .await;
        if let Some(room) = &message.room {
            lock(&self.marks).insert(room.clone(), message.delivery.sequence);
        }
        if let Err(error) = message.ack() {
            self.notice(&format!("this message will be delivered again: {error}"))
                .await;
        }
    }

    /// Shows that messages are missing, then acknowledges the gap.
    async fn show_gap(&self, gap: MissingMessages) {
        let _showing = self.showing.lock().await;
        self.notice(&style::missing(&gap.gap)).await;
        gap.ack();
    }

    /// Marks the messages of rooms that were shown as read. A mark is a convenience:
    /// its failure is not reported.
    async fn mark_read(&self) {
        let marks = std::mem::take(&mut *lock(&self.marks));
        for (room, number) in marks {
            drop(self.handle.seen(room, number).await);
        }
    }

    async fn show_link(&self, state: &LinkState, shown: &mut Option<Shown>) {
        let server = match state {
            LinkState::Up { server } => Some(Arc::clone(server)),
            _ => None,
        };
        self.current_server.set(server.as_deref());
        let now = Shown {
            server,
            is_permanent: matches!(
                state,
                LinkState::Down {
                    is_permanent: true,
                    ..
                }
            ),
        };
        if *state == LinkState::Connecting || shown.as_ref() == Some(&now) {
            return;
        }
        *shown = Some(now);
        if let Some(notice) = self.style.link(state) {
            self.terminal.show(notice).await;
        }
    }
}
