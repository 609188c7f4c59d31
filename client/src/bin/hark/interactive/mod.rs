//! The chat in a terminal: commands are typed, and messages and outcomes appear
//! above the line.
//!
//! | file | contents |
//! | --- | --- |
//! | `mod.rs` | the chat, from its start to its end |
//! | `input.rs` | the lines that are typed, and the jobs that they start |
//! | `requests.rs` | requests to the server, with their passwords |
//! | `records.rs` | the local history: what is stored, shown, and sent later |
//! | `display.rs` | display of events, and acknowledgement |
//! | `terminal.rs`, `owner.rs` | the threads that read lines and print texts |
//! | `editor.rs`, `prompt.rs`, `style.rs` | completion, the prompt, formats |

mod display;
mod editor;
mod input;
mod owner;
mod prompt;
mod records;
mod requests;
pub(crate) mod style;
mod terminal;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use hark_client::Handle;
use hark_protocol::{RoomName, Sequence, UserName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use self::editor::{Completion, SeenNames};
use self::prompt::{CurrentServer, CurrentUser};
use self::style::Style;
use self::terminal::Terminal;
use crate::command::Secrets;
use crate::exit::{Exit, Failure};
use crate::history::{Conversation, EntryId, HistoryFile};
use crate::settings::Settings;
use crate::signals::{self, Interrupts, Termination};
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
    let secrets = setup::receiving(settings, settings.user())?;
    let (mut interrupts, mut termination) = (signals::interrupts()?, signals::termination()?);
    let style = Style::of_terminal(settings.colors);
    let names = SeenNames::default();
    let history = setup::state_dir(settings)?.join("history");
    let completion = Completion::new(names.clone());
    let Some((terminal, threads)) = Terminal::open(completion, style.is_colored, history)? else {
        return piped::run(settings).await;
    };
    let records = setup::history(settings)?;
    let (handle, events) = setup::chat_client(settings, &records)?;
    let chat = Arc::new(Chat {
        handle,
        terminal,
        style,
        secrets,
        names,
        user: CurrentUser::default(),
        expected_user: CurrentUser::default(),
        records,
        servers: settings.server.clone(),
        record_failure: Mutex::default(),
        typed: Mutex::default(),
        read: Mutex::default(),
        current_server: CurrentServer::new(&settings.server),
        identity_changes: watch::Sender::default(),
        marks: Mutex::default(),
        is_marking: AtomicBool::new(false),
        is_leaving: AtomicBool::new(false),
        to_delete: Mutex::default(),
        aliases: settings.aliases.clone(),
        showing: tokio::sync::Mutex::default(),
        jobs: TaskTracker::new(),
    });
    let watching = tokio::spawn(Arc::clone(&chat).watch(events));
    let is_terminated = tokio::select! {
        () = chat.read_commands(settings.user().cloned()) => false,
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
    user: CurrentUser,
    /// The user after all commands that were typed.
    expected_user: CurrentUser,
    /// The local history, of each user of these servers.
    records: HistoryFile,
    servers: String,
    // The last failure of the history that was shown; held for one access.
    record_failure: Mutex<Option<String>>,
    // The own messages that may be taken back, the last one at the end; held for one
    // access.
    typed: Mutex<Vec<EntryId>>,
    // The last entries that were shown and are not marked as read in the history;
    // held for one access.
    read: Mutex<BTreeMap<(UserName, Conversation), EntryId>>,
    current_server: CurrentServer,
    /// Number of commands that change the user and have not printed their
    /// outcome, which precedes the user's messages.
    identity_changes: watch::Sender<usize>,
    // The rooms with messages that were shown and are not marked as read; held for
    // one access.
    marks: Mutex<BTreeMap<RoomName, Sequence>>,
    /// Whether marks are being sent.
    is_marking: AtomicBool,
    /// Whether the chat ends: a line that is not sent is kept.
    is_leaving: AtomicBool,
    // The account or room that the next line may delete; held for one access.
    to_delete: Mutex<Option<UserName>>,
    /// Words that stand for the beginning of a command.
    aliases: BTreeMap<String, String>,
    /// Held from displaying a message until acknowledging it.
    showing: tokio::sync::Mutex<()>,
    /// Commands that continue after the prompt has returned.
    jobs: TaskTracker,
}

impl Chat {
    /// Leaves the chat after pending requests have completed or timed out, and
    /// shows their outcomes.
    async fn leave(
        self: &Arc<Self>,
        timeout: Duration,
        mut interrupts: Interrupts,
        mut termination: Termination,
    ) -> usize {
        self.is_leaving.store(true, Ordering::Relaxed);
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
        self.mark_records().await;
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
    async fn leave_now(self: &Arc<Self>, watching: JoinHandle<()>) -> usize {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.terminal.give_up_reading();
        let shown = tokio::time::timeout(LEAVE_WITHIN, self.showing.lock()).await;
        drop(shown);
        drop(tokio::time::timeout(LEAVE_WITHIN, self.mark_records()).await);
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
