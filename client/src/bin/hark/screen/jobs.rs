//! Requests to the server, in the order in which they were entered. Their outcomes
//! become events of the model.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytestring::ByteString;
use hark_client::Handle;
use hark_protocol::{RoomName, Sequence, UserName};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::app::{Event, Page, Past, TypedSecrets};
use super::conversation::{Place, Position};
use crate::command::{self, Command, Secrets};

/// Largest number of jobs that wait for their turn.
pub(crate) const JOBS_MAX: usize = 2_048;

/// Number of messages of a page of older ones.
const PAGE_MESSAGES: u32 = 100;

/// A request to the server.
#[derive(Debug)]
pub(crate) enum Job {
    Send {
        id: u64,
        recipient: UserName,
        text: ByteString,
    },
    Run {
        command: Command,
        typed: TypedSecrets,
        is_quiet: bool,
    },
    LoadOlder {
        place: Place,
        room: Option<RoomName>,
        before: Sequence,
    },
}

/// The task that starts the jobs.
pub(crate) struct Runner {
    pub(crate) handle: Handle,
    /// The passwords and the device of the settings.
    pub(crate) secrets: Secrets,
    pub(crate) outcomes: mpsc::Sender<Event>,
}

type Running = Pin<Box<dyn Future<Output = Event> + Send>>;

impl Runner {
    /// Starts jobs until the sender of `jobs` is dropped, and waits for all outcomes.
    pub(crate) async fn run(self, mut jobs: mpsc::Receiver<Job>) {
        let runner = Arc::new(self);
        let running = TaskTracker::new();
        while let Some(job) = jobs.recv().await {
            let mut job = runner.start(job).await;
            // The first poll hands the request over, so that requests are in order.
            let outcome = tokio::select! {
                biased;
                event = &mut job => Some(event),
                () = std::future::ready(()) => None,
            };
            let outcomes = runner.outcomes.clone();
            running.spawn(async move {
                let event = match outcome {
                    Some(event) => event,
                    None => job.await,
                };
                // The receiver is gone if the program is ending.
                drop(outcomes.send(event).await);
            });
        }
        running.close();
        running.wait().await;
    }

    /// Returns the rest of a job. A send is accepted before this returns.
    async fn start(self: &Arc<Self>, job: Job) -> Running {
        let runner = Arc::clone(self);
        match job {
            Job::Send {
                id,
                recipient,
                text,
            } => {
                let is_room = recipient.as_str().starts_with(RoomName::MARK);
                let accepted = runner.handle.send(recipient, text).await;
                Box::pin(async move {
                    let outcome = match accepted {
                        Ok(receipt) => receipt.await,
                        Err(error) => Err(error),
                    };
                    Event::Answered {
                        id,
                        is_room,
                        outcome,
                    }
                })
            }
            Job::Run {
                command,
                typed,
                is_quiet,
            } => Box::pin(async move {
                let secrets = runner.secrets(&typed);
                let outcome = command::execute(&runner.handle, command.clone(), secrets).await;
                Event::Done {
                    command,
                    typed,
                    is_quiet,
                    outcome,
                }
            }),
            Job::LoadOlder {
                place,
                room,
                before,
            } => Box::pin(async move {
                let is_of_room = room.is_some();
                let outcome = match room {
                    Some(room) => runner.page(room, before).await,
                    None => Ok(Page {
                        is_end: true,
                        ..Page::default()
                    }),
                };
                Event::Older {
                    place,
                    is_of_room,
                    outcome,
                }
            }),
        }
    }

    /// Returns the passwords of a command: typed ones precede those of the settings.
    fn secrets(&self, typed: &TypedSecrets) -> Secrets {
        let TypedSecrets(typed) = typed.clone();
        Secrets {
            password: typed.password.or_else(|| self.secrets.password.clone()),
            new_password: typed
                .new_password
                .or_else(|| self.secrets.new_password.clone()),
            ..self.secrets.clone()
        }
    }

    async fn page(
        &self,
        room: RoomName,
        before: Sequence,
    ) -> Result<Page, hark_client::RequestError> {
        let history = self.handle.history(room, before, PAGE_MESSAGES).await?;
        let oldest = history.messages.last().map(|message| message.sequence);
        let messages = history.messages.into_iter().map(|message| Past {
            position: Some(Position {
                is_room: true,
                number: message.sequence,
            }),
            sender: message.sender,
            text: message.text,
            time_ms: message.time_ms,
        });
        Ok(Page {
            messages: messages.collect(),
            is_end: oldest.is_none_or(|oldest| oldest <= history.oldest),
        })
    }
}
