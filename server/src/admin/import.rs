//! `harkd import`: accounts and messages from JSON lines. Numbers are kept.

use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, bail};
use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Sequence, UserName};

use super::line::{Line, VERSION};
use super::print;
use crate::ledger::Imported;
use crate::shard::COUNTER_MAX;
use crate::shard::offline::OfflineStore;
use crate::store::{Created, Message, PasswordHash, Position};

/// The longest line: a text with every byte escaped.
const LINE_BYTES_MAX: u64 = 7 * FRAME_BYTES_MAX as u64;

/// The maximum number of bad lines that are reported.
const REPORTS_MAX: u64 = 100;

/// The counts of imported lines.
#[derive(Debug, Default)]
struct Counts {
    accounts: u64,
    messages: u64,
    /// Accounts and messages that already existed.
    known: u64,
    bad: u64,
}

/// The outcome of one line.
#[derive(Debug, PartialEq, Eq)]
enum LineOutcome {
    Account,
    Message,
    Known,
    Nothing,
}

/// Imports into the store in a folder, which is created if it does not exist.
pub(super) fn run(folder: &Path, from: impl BufRead) -> anyhow::Result<()> {
    let mut store = OfflineStore::open(folder)?;
    let imported = import(&mut store, from).and_then(|counts| {
        store.commit().context("cannot write to the store")?;
        Ok(counts)
    });
    let closed = store.close();
    let Counts {
        accounts,
        messages,
        known,
        bad,
    } = imported?;
    closed.context("cannot close the store")?;
    print(format_args!(
        "imported {accounts} accounts and {messages} messages; {known} already existed"
    ))?;
    if bad > 0 {
        bail!("{bad} lines were not imported");
    }
    Ok(())
}

fn import(store: &mut OfflineStore, mut from: impl BufRead) -> anyhow::Result<Counts> {
    let mut counts = Counts::default();
    let mut bytes = Vec::new();
    for number in 1_u64.. {
        bytes.clear();
        let read = from
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut bytes);
        if read.context("cannot read the input")? == 0 {
            break;
        }
        let is_whole = bytes.last() == Some(&b'\n') || (bytes.len() as u64) < LINE_BYTES_MAX;
        let outcome = if is_whole {
            line(store, &bytes)?
        } else {
            skip_line(&mut from)?
        };
        match outcome {
            Ok(LineOutcome::Account) => counts.accounts += 1,
            Ok(LineOutcome::Message) => counts.messages += 1,
            Ok(LineOutcome::Known) => counts.known += 1,
            Ok(LineOutcome::Nothing) => {}
            Err(why) => {
                counts.bad += 1;
                if counts.bad <= REPORTS_MAX {
                    eprintln!("harkd: line {number}: {why}");
                }
            }
        }
    }
    Ok(counts)
}

/// Skips the rest of a line that is too long.
fn skip_line(from: &mut impl BufRead) -> anyhow::Result<Result<LineOutcome, String>> {
    from.skip_until(b'\n').context("cannot read the input")?;
    Ok(Err(format!("longer than {LINE_BYTES_MAX} bytes")))
}

/// Imports a line. The inner error concerns the line, the outer one the store.
fn line(store: &mut OfflineStore, bytes: &[u8]) -> anyhow::Result<Result<LineOutcome, String>> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Ok(LineOutcome::Nothing));
    }
    Ok(match serde_json::from_slice(bytes) {
        Err(error) => Err(format!("malformed: {error}")),
        Ok(Line::Export { version: VERSION } | Line::Gap { .. }) => Ok(LineOutcome::Nothing),
        Ok(Line::Export { version }) => {
            bail!("the export has format version {version}; this harkd reads version {VERSION}")
        }
        Ok(Line::Account {
            name,
            password,
            suspended,
            cursor,
        }) => {
            let created = account(store, &name, password.as_deref(), cursor)?;
            if suspended && created == Ok(LineOutcome::Account) {
                suspend(store, &name)?;
            }
            created
        }
        Ok(Line::Message {
            to,
            number,
            sender,
            time,
            text,
        }) => match checked_message(&to, number, sender.as_deref(), time, text) {
            Ok((to, message)) => store_message(store, &to, message)?,
            Err(why) => Err(why),
        },
    })
}

fn account(
    store: &mut OfflineStore,
    name: &str,
    password: Option<&str>,
    cursor: u64,
) -> anyhow::Result<Result<LineOutcome, String>> {
    let name: UserName = match name.parse() {
        Ok(name) => name,
        Err(error) => return Ok(Err(format!("bad name: {error}"))),
    };
    if let Err(why) = checked_number(cursor) {
        return Ok(Err(why));
    }
    let password = password.map(PasswordHash::new);
    let created = store.import_account(&name, password, Sequence(cursor));
    Ok(match created.context("cannot write to the store")? {
        Created::Created => Ok(LineOutcome::Account),
        Created::Exists => Ok(LineOutcome::Known),
        Created::TooMany => Err("too many accounts".to_owned()),
    })
}

fn suspend(store: &mut OfflineStore, name: &str) -> anyhow::Result<()> {
    let name: UserName = name.parse()?;
    store.suspend(&name).context("cannot write to the store")
}

fn store_message(
    store: &mut OfflineStore,
    to: &UserName,
    message: Message,
) -> anyhow::Result<Result<LineOutcome, String>> {
    let imported = store
        .import_message(to, message)
        .context("cannot write to the store")?;
    Ok(match imported {
        Imported::Stored => Ok(LineOutcome::Message),
        Imported::Known => Ok(LineOutcome::Known),
        Imported::Behind(_) => Err(format!(
            "{to} already has a later message; import into an empty store, in the order of the numbers"
        )),
        Imported::NoSuchUser => Err(format!("no earlier line creates the account {to}")),
    })
}

fn checked_message(
    to: &str,
    number: u64,
    sender: Option<&str>,
    time_ms: u64,
    text: String,
) -> Result<(UserName, Message), String> {
    let bad_name = |error| format!("bad name: {error}");
    let to = to.parse().map_err(bad_name)?;
    let sender = sender.map(str::parse).transpose().map_err(bad_name)?;
    checked_number(number)?;
    if text.len() > FRAME_BYTES_MAX {
        return Err(format!("the text is too long ({} bytes)", text.len()));
    }
    if time_ms > TIME_MS_MAX {
        return Err(format!("the time {time_ms} ms is after the year 2100"));
    }
    let position = Position {
        sequence: Sequence(number),
        ..Position::default()
    };
    Ok((
        to,
        Message {
            position,
            sender,
            time_ms,
            text: ByteString::from(text),
        },
    ))
}

/// The latest time of a message: 2100-01-01, in milliseconds since 1970. Times never decrease,
/// so a message from the future would distort the times of those after it.
const TIME_MS_MAX: u64 = 4_102_444_800_000;

fn checked_number(number: u64) -> Result<(), String> {
    if number <= COUNTER_MAX {
        Ok(())
    } else {
        Err(format!("the number {number} is above {COUNTER_MAX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::export;
    use super::*;
    use crate::shard::snapshot::StoreSnapshot;

    fn imported(folder: &Path, lines: &str) -> Counts {
        let mut store = OfflineStore::open(folder).unwrap();
        let counts = import(&mut store, lines.as_bytes()).unwrap();
        store.commit().unwrap();
        store.close().unwrap();
        counts
    }

    fn exported(folder: &Path) -> String {
        let mut lines = Vec::new();
        export::run(folder, &mut lines).unwrap();
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn message_behind_a_later_one_is_a_bad_line() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("store");
        let line = |number, time| {
            format!(
                r#"{{"type":"message","to":"amy","number":{number},"sender":null,"time":{time},"text":"x"}}"#
            )
        };
        let account = r#"{"type":"account","name":"amy","cursor":0}"#;
        let head = r#"{"type":"export","version":1}"#;
        let lines = [
            head,
            account,
            &line(9, 1),
            &line(12, 1),
            &line(9, 1),
            &line(8, 1),
            &line(13, u64::MAX),
        ];
        let counts = imported(&folder, &lines.join("\n"));
        assert_eq!((counts.messages, counts.known, counts.bad), (2, 1, 2));
    }

    const LINES: &str = r#"{"type":"export","version":1}
{"type":"account","name":"amy","cursor":0}
{"type":"message","to":"amy","number":9000000001,"sender":"bob","time":5,"text":"a,b\n🦀"}
{"type":"message","to":"amy","number":9000000005,"time":6,"text":""}
{"type":"account","name":"bob","password":"$argon2id$x","suspended":true,"cursor":77}
"#;

    #[test]
    fn export_of_an_import_is_identical() {
        let [first, second] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let counts = imported(first.path(), LINES);
        assert_eq!(
            (counts.accounts, counts.messages, counts.known, counts.bad),
            (2, 2, 0, 0)
        );
        assert_eq!(exported(first.path()), LINES);
        imported(second.path(), &exported(first.path()));
        assert_eq!(exported(second.path()), LINES);
    }

    #[test]
    fn repeated_import_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        imported(folder.path(), LINES);
        let counts = imported(folder.path(), LINES);
        assert_eq!(
            (counts.accounts, counts.messages, counts.known, counts.bad),
            (0, 0, 4, 0)
        );
        assert_eq!(exported(folder.path()), LINES);
    }

    #[test]
    fn bad_lines_are_counted_and_skipped() {
        let folder = tempfile::tempdir().unwrap();
        let bad = [
            "no json",
            "{\"type\":\"other\"}",
            "\u{7f}",
            r#"{"type":"message","to":"eve","number":1,"time":1,"text":""}"#,
            r#"{"type":"message","to":"amy","number":9007199254740992,"time":1,"text":""}"#,
            r#"{"type":"message","to":"a b","number":1,"time":1,"text":""}"#,
            r#"{"type":"account","name":""}"#,
        ];
        let lines = format!(
            "{LINES}{}\n\n{}",
            bad.join("\n"),
            r#"{"type":"account","name":"zoe"}"#
        );
        let counts = imported(folder.path(), &lines);
        assert_eq!(
            (counts.accounts, counts.messages, counts.bad),
            (3, 2, bad.len() as u64)
        );
    }

    #[test]
    fn later_numbers_are_above_all_imported_ones() {
        let folder = tempfile::tempdir().unwrap();
        imported(folder.path(), LINES);
        let zoe = r#"{"type":"account","name":"zoe"}"#;
        imported(folder.path(), zoe);
        let store = StoreSnapshot::open(folder.path()).unwrap();
        let zoe = store.inboxes().pop().unwrap();
        assert!(zoe.entry.account.incarnation > 9_000_000_005);
    }
}
