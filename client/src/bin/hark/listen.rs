//! `hark listen`: prints messages as they arrive, and acknowledges each once it
//! is printed.

use hark_client::{Event, LinkState};
use hark_protocol::UserName;

use crate::args::Settings;
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::text::escape;
use crate::{lines, once, output, setup, signals};

/// Output format, and number of messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printing {
    pub(crate) is_json: bool,
    pub(crate) count: Option<u64>,
}

/// Receives for `user` until `count` messages are printed, or until a signal.
pub(crate) async fn run(
    settings: &Settings,
    user: UserName,
    printing: Printing,
) -> Result<Exit, Failure> {
    let secrets = setup::receiving(settings)?;
    let mut stop = signals::stop()?;
    let (handle, mut events) = setup::client(settings)?;
    tokio::select! {
        connected = once::attempt(settings, &handle, Command::Connect(user), &secrets) => connected?,
        () = stop.received() => return Ok(Exit::Done),
    };
    let mut remaining = printing.count;
    let exit = loop {
        if remaining == Some(0) {
            break Exit::Done;
        }
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.received() => break Exit::Done,
        };
        match event {
            Some(Event::Message(message)) => {
                let is_json = printing.is_json;
                let line = if is_json {
                    lines::json(&message)
                } else {
                    lines::message(message.room.as_ref(), &message.delivery)
                };
                output::message(message, &line)?;
                remaining = remaining.map(|remaining| remaining - 1);
            }
            Some(Event::Gap(gap)) => {
                let line = if printing.is_json {
                    lines::json_gap(&gap.gap)
                } else {
                    lines::gap(&gap.gap)
                };
                output::gap(gap, &line)?;
            }
            Some(other) => {
                if let Some(exit) = say(settings, &other) {
                    break exit;
                }
            }
            None => break Exit::Failed,
        }
    };
    // Printed messages are acknowledged; others are delivered again.
    handle.close(settings.timeout).await;
    Ok(exit)
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
