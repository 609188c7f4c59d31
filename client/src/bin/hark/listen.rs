//! `hark listen`: prints messages as they arrive, and acknowledges each once it
//! is printed. Its loop serves `hark watch` as well.

use std::future::Future;
use std::io::IsTerminal as _;

use hark_client::{Event, LinkState, Message};
use hark_protocol::UserName;

use crate::command::Command;
use crate::exec::Script;
use crate::exit::{Exit, Failure};
use crate::history::HistoryError;
use crate::interactive::style::{self, Style};
use crate::settings::Settings;
use crate::text::escape;
use crate::{lines, once, output, setup, signals};

/// The output of a message.
#[derive(Debug, Clone)]
pub(crate) enum Printing {
    /// Lines for programs.
    Lines,
    /// Lines of JSON.
    Json,
    /// Lines for people.
    People,
    /// A command for each message.
    Exec(String),
}

impl Printing {
    /// Returns the output for these flags, and for the kind of stdout.
    pub(crate) fn of(is_json: bool, exec: Option<String>) -> Self {
        match exec {
            Some(command) => Self::Exec(command),
            None if is_json => Self::Json,
            None if std::io::stdout().is_terminal() => Self::People,
            None => Self::Lines,
        }
    }
}

/// The effect of received events.
pub(crate) trait Sink {
    /// Processes a message or a gap, and acknowledges it. Returns whether it was the last
    /// one.
    fn take(&mut self, event: Event) -> impl Future<Output = Result<bool, Failure>>;

    /// Returns whether nothing is wanted.
    fn is_over(&self) -> bool {
        false
    }
}

/// Receives for `user`, or the user of the settings, until `count` messages are printed,
/// or until a signal.
pub(crate) async fn run(
    settings: &Settings,
    user: Option<UserName>,
    printing: Printing,
    count: Option<u64>,
) -> Result<Exit, Failure> {
    let user = receiver(settings, user)?;
    let printer = Printer {
        printing,
        style: Style::of_terminal(settings.colors),
        remaining: count,
    };
    receive(settings, user, printer).await
}

/// Returns the user to receive for.
pub(crate) fn receiver(settings: &Settings, user: Option<UserName>) -> Result<UserName, Failure> {
    match user {
        Some(user) => Ok(user),
        None => settings.require_user().cloned(),
    }
}

/// Receives for `user` until the sink ends it, or until a signal.
pub(crate) async fn receive(
    settings: &Settings,
    user: UserName,
    mut sink: impl Sink,
) -> Result<Exit, Failure> {
    let secrets = setup::receiving(settings, Some(&user))?;
    let mut stop = signals::stop()?;
    let (handle, mut events) = setup::client(settings)?;
    tokio::select! {
        connected = once::attempt(settings, &handle, Command::Connect(user), &secrets) => connected?,
        () = stop.received() => return Ok(Exit::Done),
    };
    let exit = loop {
        if sink.is_over() {
            break Ok(Exit::Done);
        }
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.received() => break Ok(Exit::Done),
        };
        match event {
            Some(event @ (Event::Message(_) | Event::Gap(_))) => match sink.take(event).await {
                Ok(false) => {}
                Ok(true) => break Ok(Exit::Done),
                Err(failure) => break Err(failure),
            },
            Some(other) => {
                if let Some(exit) = say(settings, &other) {
                    break Ok(exit);
                }
            }
            None => break Ok(Exit::Failed),
        }
    };
    // Printed messages are acknowledged; others are delivered again.
    handle.close(settings.timeout).await;
    exit
}

/// Runs an operation on the local history, on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    operation: impl FnOnce() -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, Failure> {
    let done = tokio::task::spawn_blocking(operation).await;
    done.map_err(Failure::local)?.map_err(Failure::local)
}

/// The output of `listen`.
struct Printer {
    printing: Printing,
    style: Style,
    /// Number of messages still to be printed; `None` without a limit.
    remaining: Option<u64>,
}

impl Sink for Printer {
    async fn take(&mut self, event: Event) -> Result<bool, Failure> {
        match event {
            Event::Message(message) => {
                self.print(message).await?;
                self.remaining = self.remaining.map(|remaining| remaining - 1);
            }
            Event::Gap(gap) => {
                let line = match self.printing {
                    Printing::Json => lines::json_gap(&gap.gap),
                    Printing::People => self.style.notice(&style::missing(&gap.gap)),
                    Printing::Lines | Printing::Exec(_) => lines::gap(&gap.gap),
                };
                output::gap(gap, &line)?;
            }
            _ => {}
        }
        Ok(self.is_over())
    }

    fn is_over(&self) -> bool {
        self.remaining == Some(0)
    }
}

impl Printer {
    async fn print(&self, message: Message) -> Result<(), Failure> {
        let (room, delivery) = (message.room.as_ref(), &message.delivery);
        let line = match &self.printing {
            Printing::Json => lines::json(&message),
            Printing::Lines => lines::message(room, delivery),
            Printing::People => self.style.message(room, delivery, &style::now()),
            Printing::Exec(command) => {
                Script::new(command.clone()).run(&message).await?;
                return message.ack().map_err(Failure::local);
            }
        };
        output::message(message, &line)
    }
}

/// Reports other events on stderr. Returns the exit code if the event ends the
/// run.
fn say(settings: &Settings, event: &Event) -> Option<Exit> {
    match event {
        Event::Link(LinkState::Down {
            server,
            reason,
            retry_in,
            ..
        }) => {
            let next = if retry_in.is_zero() {
                "trying the next server"
            } else {
                "reconnecting"
            };
            eprintln!(
                "hark: no connection to {server}: {}; {next}",
                escape(reason)
            );
        }
        // The address is worth reporting only if there are several.
        Event::Link(LinkState::Up { server }) if **server != *settings.server => {
            eprintln!("hark: connected to {server}");
        }
        _ => {}
    }
    output::report_end(event).then_some(Exit::Refused)
}
