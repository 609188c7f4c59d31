//! The requests of the chat, with the passwords that they need.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytestring::ByteString;
use hark_client::RequestError;
use hark_client::sync::lock;
use hark_protocol::{Code, Password, Refusal, UserName};
use tokio::sync::watch;

use super::input::Foreground;
use super::{Chat, PENDING_AFTER};
use crate::command::{self, Command, Done, Secrets};
use crate::history::EntryId;
use crate::text::escape_name;

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

impl Chat {
    /// Sends a message, which the history has under this id if the user is logged in.
    pub(super) async fn send(
        self: Arc<Self>,
        user: UserName,
        text: ByteString,
        id: Option<EntryId>,
    ) {
        let sending = async {
            let (user, text) = (user.clone(), text.clone());
            match id {
                Some(id) => self.handle.send_tagged(user, text, id.tag()).await?.await,
                None => self.handle.send(user, text).await?.await,
            }
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
        let is_kept = match id {
            Some(id) => self.file_outcome(id, &outcome).await,
            None => false,
        };
        let status = if is_kept {
            self.style.kept()
        } else {
            self.style.send_status(&outcome)
        };
        self.terminal
            .show(self.style.sent(&user, &text, &status))
            .await;
        if outcome.is_ok() {
            self.names.learn([&user]);
        }
    }

    pub(super) async fn execute(self: Arc<Self>, command: Command, foreground: Arc<Foreground>) {
        let changes_identity = matches!(command, Command::Connect(_) | Command::Login(_));
        let _identity_change =
            changes_identity.then(|| IdentityChange::begin(&self.identity_changes));
        let mut secrets = Secrets {
            login: self.user.get(),
            ..self.secrets.for_command(&command)
        };
        if let Command::Create(user) = &command
            && secrets.login.is_some()
            && secrets.password.is_some()
            && secrets.new_password.is_none()
        {
            let prompt = format!("Password for {}: ", escape_name(user.as_str()));
            match self.ask(prompt, true, &foreground).await {
                Some(new) => secrets.new_password = Some(new),
                None => return self.notice("no account was created").await,
            }
        }
        if let (Command::Password(Some(user)), None) = (&command, &secrets.new_password) {
            let prompt = format!("New password for {}: ", escape_name(user.as_str()));
            match self.ask(prompt, true, &foreground).await {
                Some(new) => secrets.new_password = Some(new),
                None => return self.notice("the password was not changed").await,
            }
        }
        let mut outcome = command::execute(&self.handle, command.clone(), secrets.clone()).await;
        let is_new = matches!(command, Command::Create(_)) && secrets.login.is_some();
        let given = if is_new {
            &secrets.new_password
        } else {
            &secrets.password
        };
        if is_denied(&outcome)
            && given.is_none()
            && let Some(password) = self.ask_password(&command, &foreground).await
        {
            if is_new {
                secrets.new_password = Some(password);
            } else {
                secrets.password = Some(password);
            }
            outcome = command::execute(&self.handle, command.clone(), secrets).await;
        }
        self.update(&command, &outcome);
        self.after(&command, &outcome);
        self.terminal
            .show(self.style.outcome(&command, &outcome))
            .await;
    }

    /// Continues after a command: with the lines of former runs, and the room of a
    /// conversation.
    fn after(self: &Arc<Self>, command: &Command, outcome: &Result<Done, RequestError>) {
        match (command, outcome) {
            (Command::Login(user) | Command::Connect(user), Ok(_)) => {
                self.jobs.spawn(Arc::clone(self).send_kept(user.clone()));
            }
            (Command::Talk(user), Ok(Done::Talking(room))) => {
                let job = Arc::clone(self).file_talk(user.clone(), room.clone());
                self.jobs.spawn(job);
            }
            (Command::Login(_) | Command::Connect(_), Err(_)) => {
                self.expected_user.set(self.user.get());
            }
            _ => {}
        }
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
            (Command::Delete(user), _) => self.user.clear_if(user),
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

    pub(super) fn become_user(&self, user: Option<UserName>) {
        self.names.learn(&user);
        // The marks belong to the former user.
        lock(&self.marks).clear();
        self.user.set(user);
    }
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
