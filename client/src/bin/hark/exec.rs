//! A command of the user for each message: the text on its stdin, the rest in its
//! environment.

use std::io::Write as _;
use std::process::Stdio;

use hark_client::Message;
use hark_protocol::{RoomName, UserName};

use crate::exit::Failure;
use crate::{lines, setup};

/// A shell command.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    command: String,
}

impl Script {
    pub(crate) const fn new(command: String) -> Self {
        Self { command }
    }

    /// Runs the command for a message, and waits for its end.
    ///
    /// # Errors
    /// If it cannot be started, or does not succeed.
    pub(crate) async fn run(&self, message: &Message) -> Result<(), Failure> {
        let delivery = message.delivery.clone();
        let mut shell = setup::shell(&self.command);
        let sender = delivery.sender.as_ref().map_or("", UserName::as_str);
        shell
            .env("HARK_SENDER", sender)
            .env(
                "HARK_ROOM",
                message.room.as_ref().map_or("", RoomName::as_str),
            )
            .env("HARK_NUMBER", delivery.sequence.to_string())
            .env("HARK_TIME", lines::time(delivery.time_ms))
            .env("HARK_USER", message.user.as_str())
            .stdin(Stdio::piped());
        let command = self.command.clone();
        let work = move || {
            let mut child = shell.spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // A command need not read the text.
                drop(stdin.write_all(delivery.text.as_bytes()));
            }
            child.wait()
        };
        let failed = |why: String| Failure::local(format!("command {command:?}: {why}"));
        let ended = tokio::task::spawn_blocking(work).await;
        match ended.map_err(|error| failed(error.to_string()))? {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failed(status.to_string())),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}
