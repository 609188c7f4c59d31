//! Output outside of the chat: lines on stdout, flushed one by one, and notices
//! on stderr.

use std::io::{self, Write as _};

use hark_client::{Event, Message, MissingMessages};

use crate::exit::Failure;
use crate::text::{escape, escape_name};

/// Prints a line.
pub(crate) fn line(line: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Prints a message as `shown`, then acknowledges it.
pub(crate) fn message(message: Message, shown: &str) -> Result<(), Failure> {
    line(shown)?;
    message.ack().map_err(Failure::local)
}

/// Prints missing messages as `shown`, then acknowledges the gap.
pub(crate) fn gap(gap: MissingMessages, shown: &str) -> Result<(), Failure> {
    line(shown)?;
    gap.ack();
    Ok(())
}

/// Reports and returns whether the event ends the receiving.
pub(crate) fn report_end(event: &Event) -> bool {
    match event {
        Event::TakenOver { user } => {
            eprintln!(
                "hark: another connection now receives the messages of {}",
                escape_name(user.as_str())
            );
            true
        }
        Event::IdentityLost { user, refusal } => {
            let explanation = escape(&refusal.explanation);
            eprintln!(
                "hark: no longer logged in as {}: {explanation}",
                escape_name(user.as_str())
            );
            true
        }
        _ => false,
    }
}
