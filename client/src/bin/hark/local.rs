//! `hark export` and `hark status`: the local history, without a connection.

use std::io::Write as _;

use hark_protocol::UserName;

use crate::exit::{Exit, Failure};
use crate::history::{Conversation, EntryId, History, PAGE_MAX, Summary};
use crate::settings::Settings;
use crate::text::escape_name;
use crate::{lines, setup};

/// Prints the local history, or one conversation of it, as lines of JSON.
pub(crate) fn export(settings: &Settings, name: Option<UserName>) -> Result<Exit, Failure> {
    let history = history(settings)?;
    let conversations = match &name {
        Some(name) => vec![Conversation::with(name)],
        None => {
            let all = history.conversations().map_err(Failure::local)?;
            all.into_iter().map(|one| one.conversation).collect()
        }
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for conversation in conversations {
        let mut after = EntryId::START;
        loop {
            let page = history.page_after(&conversation, after, PAGE_MAX);
            let page = page.map_err(Failure::local)?;
            let Some(last) = page.last() else { break };
            after = last.id;
            for entry in &page {
                writeln!(out, "{}", lines::json_entry(&conversation, entry))?;
            }
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Prints the conversations with unread messages, one per line or on one line.
pub(crate) fn status(settings: &Settings, is_short: bool) -> Result<Exit, Failure> {
    let all = history(settings)?.conversations().map_err(Failure::local)?;
    let unread: Vec<_> = all.iter().filter(|one| one.unread > 0).collect();
    let mut out = std::io::stdout().lock();
    if is_short {
        writeln!(out, "{}", short(&unread))?;
    } else {
        for one in unread {
            let name = shown(&one.conversation);
            writeln!(out, "{name} {} {}", one.unread, one.mentions)?;
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}

/// Returns the total, and the conversations with their counts; an empty text if nothing
/// is unread.
fn short(unread: &[&Summary]) -> String {
    if unread.is_empty() {
        return String::new();
    }
    let total: u64 = unread.iter().map(|one| one.unread).sum();
    let names: Vec<_> = unread
        .iter()
        .map(|one| format!("{} {}", shown(&one.conversation), one.unread))
        .collect();
    format!("{total} ({})", names.join(", "))
}

fn shown(conversation: &Conversation) -> String {
    escape_name(&conversation.to_string()).into_owned()
}

/// Opens the local history of the user.
fn history(settings: &Settings) -> Result<History, Failure> {
    let user = settings.require_user()?;
    let file = setup::history(settings)?;
    file.of(&settings.server, user).map_err(Failure::local)
}
