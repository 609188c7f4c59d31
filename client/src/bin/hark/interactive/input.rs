//! The lines that are typed: each becomes a job, which may delay the next prompt.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hark_client::LinkState;
use hark_client::sync::lock;
use hark_protocol::UserName;

use super::prompt::LinkPrompt;
use super::terminal::Input;
use super::{Chat, JOBS_MAX, PROMPT_AFTER, PROMPT_SOON};
use crate::command::{self, Command};
use crate::text::escape_name;

/// State of a command that still delays the prompt.
#[derive(Debug, Default)]
pub(super) struct Foreground {
    pub(super) is_over: AtomicBool,
    pub(super) is_prompting: AtomicBool,
}

impl Chat {
    /// Connects as `user`, if there is one, and reads commands until the user leaves.
    pub(super) async fn read_commands(self: &Arc<Self>, user: Option<UserName>) {
        self.wait_for_link_state().await;
        if let Some(user) = user {
            self.start(Command::Connect(user)).await;
        }
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
        LinkPrompt::new(self.user.clone(), self.style, self.current_server.clone())
    }

    async fn handle_line(self: &Arc<Self>, line: &str) -> ControlFlow<()> {
        if line.trim().is_empty() {
            return ControlFlow::Continue(());
        }
        let command = command::parse(&self.expanded(line));
        let confirmed = lock(&self.to_delete).take();
        match command {
            Ok(Command::Delete(name)) if confirmed.as_ref() != Some(&name) => {
                self.say(self.style.notice(&confirmation(&name))).await;
                *lock(&self.to_delete) = Some(name);
            }
            Ok(Command::Quit) => return ControlFlow::Break(()),
            Ok(Command::Help) => self.say(command::help()).await,
            Ok(_) if self.jobs.len() >= JOBS_MAX => {
                self.say(self.style.notice("too many commands are pending"))
                    .await;
            }
            Ok(Command::Send(user, text)) => {
                let foreground = Arc::default();
                let id = self.file_typed(&user, &text).await;
                let job = Arc::clone(self).send(user, text, id);
                self.run(job, &foreground, PROMPT_SOON).await;
            }
            Ok(Command::Undo) => self.run_here(Arc::clone(self).undo()).await,
            Ok(Command::Ignore(user)) => self.run_here(Arc::clone(self).ignore(user, true)).await,
            Ok(Command::Unignore(user)) => {
                self.run_here(Arc::clone(self).ignore(user, false)).await;
            }
            Ok(Command::Recall(user, count)) => {
                self.run_here(Arc::clone(self).recall(user, count)).await;
            }
            Ok(command) => self.start(command).await,
            Err(bad) => self.say(self.style.bad(&bad.to_string())).await,
        }
        ControlFlow::Continue(())
    }

    /// Replaces an alias at the beginning of a line.
    fn expanded(&self, line: &str) -> String {
        let line = line.trim_start();
        let (word, rest) = line.split_at(line.find(' ').unwrap_or(line.len()));
        let beginning = self.aliases.get(word).map_or(word, String::as_str);
        format!("{beginning}{rest}")
    }

    async fn start(self: &Arc<Self>, command: Command) {
        let me = self.user.get();
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
        match &command {
            Command::Login(user) | Command::Connect(user) => {
                self.expected_user.set(Some(user.clone()));
            }
            Command::Disconnect => self.expected_user.set(None),
            _ => {}
        }
        let foreground = Arc::<Foreground>::default();
        let job = Arc::clone(self).execute(command, Arc::clone(&foreground));
        if !self.run(job, &foreground, PROMPT_AFTER).await && !self.current_server.is_up() {
            self.say(self.style.notice("waiting for the server")).await;
        }
    }

    /// Prints a text before or along with the next prompt.
    async fn say(self: &Arc<Self>, text: String) {
        let chat = Arc::clone(self);
        self.run_here(async move { chat.terminal.show(text).await })
            .await;
    }

    /// Runs a command that needs no answer of the server.
    async fn run_here(&self, job: impl Future<Output = ()> + Send + 'static) {
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
}

/// Returns the question before a deletion.
fn confirmation(name: &UserName) -> String {
    let name = escape_name(name.as_str());
    format!("{name} and all its messages will be deleted for good: repeat the line to confirm")
}
