//! `harkd export`: accounts and unread messages as JSON lines.

use std::io::{BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::bail;
use hark_protocol::UserName;

use super::line::{Line, VERSION};
use super::progress::Progress;
use crate::shard::snapshot::{InboxSnapshot, StoreSnapshot};
use crate::store::{Message, Position};

/// Exports the store in a folder.
pub(super) fn run(folder: &Path, to: impl Write) -> anyhow::Result<()> {
    let store = StoreSnapshot::open(folder)?;
    let mut to = BufWriter::new(to);
    let exported = export(&store, &mut to).and_then(|damaged| {
        to.flush()?;
        Ok(damaged)
    });
    match unless_reader_has_gone(exported)? {
        None | Some(0) => Ok(()),
        Some(damaged) => bail!(
            "skipped damaged messages of {damaged} accounts; --salvage exports the others of them; \
             see: harkd check"
        ),
    }
}

/// Returns the result of an export; `None` if standard output was closed, which is
/// not an error.
pub(super) fn unless_reader_has_gone<T>(exported: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
    match exported {
        Ok(exported) => Ok(Some(exported)),
        Err(error) if is_broken_pipe(&error) => Ok(None),
        Err(error) => Err(error.context("cannot export")),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Returns the number of accounts with damaged messages.
fn export(store: &StoreSnapshot, to: &mut impl Write) -> anyhow::Result<u64> {
    write(to, &Line::Export { version: VERSION })?;
    let (mut damaged, mut progress) = (0, Progress::new("accounts exported"));
    for inbox in store.inboxes() {
        progress.add(1);
        write(to, &account(&inbox))?;
        damaged += u64::from(!messages(store, &inbox, to)?);
    }
    Ok(damaged)
}

/// The line of an account.
pub(super) fn account(inbox: &InboxSnapshot) -> Line {
    Line::account(&inbox.entry, inbox.cursor.sequence)
}

/// Returns whether all messages could be read.
fn messages(
    store: &StoreSnapshot,
    inbox: &InboxSnapshot,
    to: &mut impl Write,
) -> anyhow::Result<bool> {
    let name = &inbox.entry.account.name;
    let mut at = inbox.cursor;
    loop {
        let page = match store.read(&inbox.entry.account, at.sequence) {
            Ok(page) => page,
            Err(error) => {
                eprintln!(
                    "harkd: {name}: messages after number {} skipped: {error}",
                    at.sequence
                );
                return Ok(false);
            }
        };
        if let Some(end) = page.starts_after {
            gap(name, at, end, to)?;
            at = end;
        }
        for message in &page.messages {
            write(to, &line(name, message))?;
            at = message.position;
        }
        if page.complete {
            return Ok(true);
        }
    }
}

fn gap(name: &UserName, from: Position, end: Position, to: &mut impl Write) -> anyhow::Result<()> {
    let count = end.messages.saturating_sub(from.messages);
    let (from, through) = (from.sequence.0.saturating_add(1), end.sequence.0);
    write(
        to,
        &Line::Gap {
            to: name.to_string(),
            from,
            through,
            count,
        },
    )
}

/// The line of a message.
pub(super) fn line(to: &UserName, message: &Message) -> Line {
    Line::Message {
        to: to.to_string(),
        number: message.position.sequence.0,
        sender: message.sender.as_ref().map(UserName::to_string),
        time: message.time_ms,
        text: message.text.to_string(),
    }
}

/// Writes a line.
pub(super) fn write(to: &mut impl Write, line: &Line) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *to, line).map_err(std::io::Error::from)?;
    to.write_all(b"\n")?;
    Ok(())
}
