//! Requests to the server, in the order in which they were entered. Their outcomes
//! become events of the model.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytestring::ByteString;
use hark_client::{Handle, Receipt, RequestError};
use hark_protocol::{RoomName, Sequence, UserName};
use tokio::sync::{mpsc, watch};
use tokio_util::task::TaskTracker;

use super::app::{Event, Page, Past, TypedSecrets};
use super::archive::Work;
use super::conversation::{Place, Position};
use crate::command::{self, Command, Secrets};
use crate::history::EntryId;

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
        /// The place in the local history.
        filed: Option<EntryId>,
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
        before_filed: Option<EntryId>,
    },
}

/// The task that starts the jobs.
pub(crate) struct Runner {
    pub(crate) handle: Handle,
    /// The passwords and the device of the settings.
    pub(crate) secrets: Secrets,
    pub(crate) outcomes: mpsc::Sender<Event>,
    pub(crate) work: mpsc::Sender<Work>,
    /// Signals that all jobs were handed over.
    pub(crate) drained: watch::Sender<bool>,
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
        runner.drained.send_replace(true);
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
                filed,
            } => {
                let is_room = recipient.as_str().starts_with(RoomName::MARK);
                let accepted = runner.send(recipient, text, filed).await;
                Box::pin(async move {
                    let outcome = match accepted {
                        Ok(receipt) => receipt.await,
                        Err(error) => Err(error),
                    };
                    if let Some(filed) = filed {
                        let outcome = outcome.clone();
                        // The thread lives as long as the runner.
                        drop(runner.work.send(Work::Outcome { filed, outcome }).await);
                    }
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
                let secrets = runner.secrets(&command, &typed);
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
                before_filed: _,
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

    async fn send(
        &self,
        recipient: UserName,
        text: ByteString,
        filed: Option<EntryId>,
    ) -> Result<Receipt, RequestError> {
        match filed {
            Some(filed) => self.handle.send_tagged(recipient, text, filed.tag()).await,
            None => self.handle.send(recipient, text).await,
        }
    }

    /// Returns the passwords of a command: typed ones precede those of the settings.
    fn secrets(&self, command: &Command, typed: &TypedSecrets) -> Secrets {
        let TypedSecrets(typed) = typed.clone();
        let given = self.secrets.for_command(command);
        Secrets {
            password: typed.password.or(given.password),
            new_password: typed.new_password.or(given.new_password),
            ..self.secrets.clone()
        }
    }

    async fn page(&self, room: RoomName, before: Sequence) -> Result<Page, RequestError> {
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
            status: None,
            missing: None,
            filed: None,
        });
        Ok(Page {
            messages: messages.collect(),
            is_end: oldest.is_none_or(|oldest| oldest <= history.oldest),
        })
    }
}
