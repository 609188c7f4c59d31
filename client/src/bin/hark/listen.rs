//! `hark listen`: prints messages as they come, and acknowledges each once it
//! has been printed.

use std::io::Write as _;

use hark_client::{Event, LinkState, Message};
use hark_protocol::UserName;

use crate::args::Settings;
use crate::command::Command;
use crate::exit::{Exit, Failure};
use crate::text::escape;
use crate::{lines, once, setup, signals};

/// How messages are printed, and how many.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printing {
    pub(crate) is_json: bool,
    pub(crate) count: Option<u64>,
}

/// Receives for `user` until `count` messages were printed, or until a signal.
pub(crate) async fn run(settings: &Settings, user: UserName, printing: Printing) -> Result<Exit, Failure> {
    let secrets = setup::secrets(settings)?;
    let mut stop = signals::stop()?;
    let (handle, mut events) = setup::client(settings)?;
    tokio::select! {
        connected = once::attempt(settings, &handle, Command::Connect(user), &secrets) => connected?,
        () = stop.received() => return Ok(Exit::Done),
    };
    let mut left = printing.count;
    let exit = loop {
        if left == Some(0) {
            break Exit::Done;
        }
        let event = tokio::select! {
            event = events.next() => event,
            () = stop.received() => break Exit::Done,
        };
        match event {
            Some(Event::Message(message)) => {
                print(message, printing.is_json)?;
                left = left.map(|left| left - 1);
            }
            Some(other) => {
                if let Some(exit) = say(settings, &other) {
                    break exit;
                }
            }
            None => break Exit::Failed,
        }
    };
    // What was printed is acknowledged; what was not comes again.
    handle.close(settings.timeout).await;
    Ok(exit)
}

fn print(message: Message, is_json: bool) -> Result<(), Failure> {
    let line = if is_json { lines::json(&message) } else { lines::message(&message.delivery) };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    message.ack().map_err(Failure::local)
}

/// Says on stderr what else happens; how to end, where that ends it.
fn say(settings: &Settings, event: &Event) -> Option<Exit> {
    match event {
        Event::Link(LinkState::Down { reason, .. }) => {
            eprintln!("hark: no link to {}: {}; trying again", settings.server, escape(reason));
            None
        }
        Event::TakenOver { user } => {
            eprintln!("hark: another connection receives for {} now", escape(user.as_str()));
            Some(Exit::Refused)
        }
        Event::IdentityLost { user, refusal } => {
            let explanation = escape(&refusal.explanation);
            eprintln!("hark: no longer {}: {explanation}", escape(user.as_str()));
            Some(Exit::Refused)
        }
        _ => None,
    }
}
