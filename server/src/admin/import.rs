//! `harkd import`: accounts and messages from JSON lines. Numbers are kept.

use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{Context, bail};
use bytestring::ByteString;
use hark_protocol::limits::FRAME_BYTES_MAX;
use hark_protocol::{Sequence, UserName};

use super::line::{Line, VERSION};
use super::print;
use super::progress::Progress;
use crate::ledger::Imported;
use crate::log::AppendError;
use crate::shard::COUNTER_MAX;
use crate::shard::offline::OfflineStore;
use crate::store::{Created, Message, PasswordHash, Position};

/// The longest line: a text with every byte escaped.
const LINE_BYTES_MAX: u64 = 7 * FRAME_BYTES_MAX as u64;

/// The maximum number of bad lines that are reported.
const REPORTS_MAX: u64 = 100;

/// Lines and bytes of texts that are passed to the store at a time.
const BATCH_LINES: usize = 16_384;
const BATCH_BYTES: usize = 4 << 20;

/// The longest password hash. Those of `harkd` have about 100 bytes.
const HASH_BYTES_MAX: usize = 512;

/// An account or a message of a line.
#[derive(Debug)]
pub(super) enum Item {
    /// An account whose messages up to `cursor` were acknowledged.
    Account {
        name: UserName,
        password: Option<PasswordHash>,
        is_suspended: bool,
        cursor: Sequence,
    },
    /// A message with its number.
    Message { to: UserName, message: Message },
}

/// A store that takes imported lines.
pub(super) trait Target {
    /// Imports items in their order, and returns an outcome for each.
    ///
    /// # Errors
    /// If the store fails.
    fn import(&mut self, items: Vec<Item>) -> anyhow::Result<Vec<LineOutcome>>;

    /// Makes everything durable. From here on, the store assigns no number up to `highest`.
    ///
    /// # Errors
    /// If the store fails.
    fn finish(&mut self, highest: Sequence) -> anyhow::Result<()>;
}

/// The counts of imported lines.
#[derive(Debug, Default)]
pub(super) struct Counts {
    accounts: u64,
    messages: u64,
    /// Accounts and messages that already existed.
    known: u64,
    bad: u64,
}

/// The outcome of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LineOutcome {
    Account,
    Message,
    /// The account or the message already existed.
    Known,
    /// The line is not imported, for this reason.
    Bad(String),
}

/// Imports into the store in a folder, which is created if it does not exist.
pub(super) fn run(folder: &Path, from: impl BufRead) -> anyhow::Result<()> {
    let mut store = OfflineStore::open(folder)?;
    let imported = import(&mut store, from);
    report(imported, store.close().context("cannot close the store"))
}

/// Prints the counts of an import, after its store was closed.
pub(super) fn report(
    imported: anyhow::Result<Counts>,
    closed: anyhow::Result<()>,
) -> anyhow::Result<()> {
    let Counts {
        accounts,
        messages,
        known,
        bad,
    } = imported?;
    closed?;
    print(format_args!(
        "imported {accounts} accounts and {messages} messages; {known} already existed"
    ))?;
    if bad > 0 {
        bail!("{bad} lines were not imported");
    }
    Ok(())
}

/// Imports all lines.
pub(super) fn import(target: &mut impl Target, mut from: impl BufRead) -> anyhow::Result<Counts> {
    let mut import = Import::new(target);
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
        let item = if is_whole {
            parse(&bytes)?
        } else {
            skip_line(&mut from)?
        };
        import.add(number, item)?;
    }
    import.finish()
}

/// An import under way.
struct Import<'t, T> {
    target: &'t mut T,
    /// The numbers of lines, and bad lines among them, since the last batch.
    lines: Vec<(u64, Option<String>)>,
    items: Vec<Item>,
    text_bytes: usize,
    highest: Sequence,
    counts: Counts,
    progress: Progress,
}

impl<'t, T: Target> Import<'t, T> {
    fn new(target: &'t mut T) -> Self {
        Self {
            target,
            lines: Vec::new(),
            items: Vec::new(),
            text_bytes: 0,
            highest: Sequence(0),
            counts: Counts::default(),
            progress: Progress::new("lines imported"),
        }
    }

    /// Adds a line: an item, nothing, or the reason why it is bad.
    fn add(&mut self, line: u64, item: Result<Option<Item>, String>) -> anyhow::Result<()> {
        match item {
            Ok(None) => return Ok(()),
            Ok(Some(item)) => {
                let (number, bytes) = match &item {
                    Item::Account { cursor, .. } => (*cursor, 0),
                    Item::Message { message, .. } => {
                        (message.position.sequence, message.text.len())
                    }
                };
                self.highest = self.highest.max(number);
                self.text_bytes += bytes;
                self.lines.push((line, None));
                self.items.push(item);
            }
            Err(why) => self.lines.push((line, Some(why))),
        }
        if self.lines.len() >= BATCH_LINES || self.text_bytes >= BATCH_BYTES {
            return self.flush();
        }
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.text_bytes = 0;
        let items = std::mem::take(&mut self.items);
        let mut outcomes = self.target.import(items)?.into_iter();
        self.progress.add(self.lines.len() as u64);
        for (line, bad) in std::mem::take(&mut self.lines) {
            let outcome = bad.map(LineOutcome::Bad).or_else(|| outcomes.next());
            match outcome.context("an imported line has no outcome")? {
                LineOutcome::Account => self.counts.accounts += 1,
                LineOutcome::Message => self.counts.messages += 1,
                LineOutcome::Known => self.counts.known += 1,
                LineOutcome::Bad(why) => {
                    self.counts.bad += 1;
                    if self.counts.bad <= REPORTS_MAX {
                        eprintln!("harkd: line {line}: {why}");
                    }
                }
            }
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<Counts> {
        self.flush()?;
        self.target.finish(self.highest)?;
        Ok(self.counts)
    }
}

impl Target for OfflineStore {
    fn import(&mut self, items: Vec<Item>) -> anyhow::Result<Vec<LineOutcome>> {
        let outcomes = items.into_iter().map(|item| {
            Ok(match item {
                Item::Account {
                    name,
                    password,
                    is_suspended,
                    cursor,
                } => {
                    let created = self.import_account(&name, password, cursor)?;
                    if is_suspended && created == Created::Created {
                        self.suspend(&name)?;
                    }
                    account_outcome(created)
                }
                Item::Message { to, message } => {
                    message_outcome(self.import_message(&to, message)?, &to)
                }
            })
        });
        let outcomes: Result<_, AppendError> = outcomes.collect();
        outcomes.context("cannot write to the store")
    }

    fn finish(&mut self, highest: Sequence) -> anyhow::Result<()> {
        self.skip_number(highest);
        self.commit().context("cannot write to the store")
    }
}

/// Returns the outcome of the line of an account.
pub(super) fn account_outcome(created: Created) -> LineOutcome {
    match created {
        Created::Created => LineOutcome::Account,
        Created::Exists => LineOutcome::Known,
        Created::TooMany => LineOutcome::Bad("too many accounts".to_owned()),
    }
}

/// Returns the outcome of the line of a message to this user.
pub(super) fn message_outcome(imported: Imported, to: &UserName) -> LineOutcome {
    match imported {
        Imported::Stored => LineOutcome::Message,
        Imported::Known => LineOutcome::Known,
        Imported::Behind(_) => LineOutcome::Bad(format!(
            "{to} already has a later message; import into an empty store, in the order of the numbers"
        )),
        Imported::NoSuchUser => {
            LineOutcome::Bad(format!("no earlier line creates the account {to}"))
        }
    }
}

/// Skips the rest of a line that is too long.
fn skip_line(from: &mut impl BufRead) -> anyhow::Result<Result<Option<Item>, String>> {
    from.skip_until(b'\n').context("cannot read the input")?;
    Ok(Err(format!("longer than {LINE_BYTES_MAX} bytes")))
}

/// Parses a line. The inner error concerns the line, the outer one the whole input.
fn parse(bytes: &[u8]) -> anyhow::Result<Result<Option<Item>, String>> {
    if bytes.trim_ascii().is_empty() {
        return Ok(Ok(None));
    }
    let item = match serde_json::from_slice(bytes) {
        Err(error) => Err(format!("malformed: {error}")),
        Ok(Line::Export { version: VERSION } | Line::Gap { .. }) => return Ok(Ok(None)),
        Ok(Line::Export { version }) => {
            bail!("the export has format version {version}; this harkd reads version {VERSION}")
        }
        Ok(Line::Account {
            name,
            password,
            suspended,
            cursor,
        }) => checked_account(&name, password.as_deref(), suspended, cursor),
        Ok(Line::Message {
            to,
            number,
            sender,
            time,
            text,
        }) => checked_message(&to, number, sender.as_deref(), time, text),
    };
    Ok(item.map(Some))
}

fn checked_account(
    name: &str,
    password: Option<&str>,
    is_suspended: bool,
    cursor: u64,
) -> Result<Item, String> {
    let name = name.parse().map_err(|error| format!("bad name: {error}"))?;
    checked_number(cursor)?;
    if password.is_some_and(|hash| hash.len() > HASH_BYTES_MAX) {
        return Err(format!("the password hash has over {HASH_BYTES_MAX} bytes"));
    }
    Ok(Item::Account {
        name,
        password: password.map(PasswordHash::new),
        is_suspended,
        cursor: Sequence(cursor),
    })
}

fn checked_message(
    to: &str,
    number: u64,
    sender: Option<&str>,
    time_ms: u64,
    text: String,
) -> Result<Item, String> {
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
    let text = ByteString::from(text);
    let message = Message {
        position,
        sender,
        time_ms,
        text,
    };
    Ok(Item::Message { to, message })
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
        let zoe = store.logs().pop().unwrap();
        assert!(zoe.id > 9_000_000_005);
    }
}
