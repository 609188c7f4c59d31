//! A journal as a sequence chart in text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::journal::{Entry, Journal, Loss, Millis, Number, Record, What};
use super::party::Party;

/// The maximum number of rows by default.
pub const CHART_ROWS_MAX: usize = 200;

/// The number of characters of a body that are shown.
const BODY_CHARS_MAX: usize = 100;

/// The narrowest column, in characters.
const COLUMN_MIN: usize = 6;

/// The last rows of a journal as a sequence chart, to be printed: a column for
/// each party that takes part in them, with time downwards.
///
/// A message has one row, at the time at which it arrives or is lost, with an
/// arrow from the sender to the receiver, its number, its body and its latency.
/// A message that is in flight at the end of the journal has no row.
///
/// ```text
///     time/ms  c1    n1    n2
///    1003.500  ●────▶│     │      #7 {"type": "shower", "dest": "n2", "msg_id": 3} (1.500 ms)
///    1003.500  │     ●────✗│      #8 {"type": "number", "number": 0, "msg_id": 3} lost: by chance
///    1005.000  │◀────●     │      #9 {"type": "shower_ok", "in_reply_to": 3, "msg_id": 4} (1.500 ms)
///    2005.000  ~~~~~~~~~~~~~~~~~~ n2 crashes
/// ```
#[derive(Clone)]
pub struct Chart<'a> {
    journal: &'a Journal,
    rows_max: usize,
    only: BTreeSet<String>,
}

impl<'a> Chart<'a> {
    pub(super) const fn new(journal: &'a Journal) -> Self {
        Self {
            journal,
            rows_max: CHART_ROWS_MAX,
            only: BTreeSet::new(),
        }
    }

    /// Shows this number of rows, the last ones.
    #[must_use]
    pub const fn last(mut self, rows: usize) -> Self {
        self.rows_max = rows;
        self
    }

    /// Shows only the messages between these parties.
    #[must_use]
    pub fn only(mut self, names: &[&str]) -> Self {
        self.only = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    fn is_wanted(&self, row: &Row<'_>) -> bool {
        let is_named = |party: Party| self.only.contains(&party.to_string());
        self.only.is_empty()
            || row
                .record()
                .is_none_or(|record| is_named(record.src) && is_named(record.dest))
    }
}

/// One row.
struct Row<'a> {
    entry: &'a Entry,
    shows: Shows<'a>,
}

enum Shows<'a> {
    Message(Number, &'a Record, Option<Loss>),
    Event(&'a str),
}

impl<'a> Row<'a> {
    fn new(entry: &'a Entry, journal: &'a Journal) -> Option<Self> {
        let message = |number: Number, loss| {
            journal
                .messages
                .get(number)
                .map(|record| Shows::Message(number, record, loss))
        };
        let shows = match &entry.what {
            What::Sent(_) | What::Doubled(_) => None,
            What::Delivered(number) => message(*number, None),
            What::Lost(number, why) => message(*number, Some(*why)),
            What::Event(text) => Some(Shows::Event(text)),
        };
        shows.map(|shows| Self { entry, shows })
    }

    const fn record(&self) -> Option<&'a Record> {
        match self.shows {
            Shows::Message(_, record, _) => Some(record),
            Shows::Event(_) => None,
        }
    }
}

/// The positions of the columns.
struct Columns {
    /// The first character of each column.
    starts: BTreeMap<Party, usize>,
    names: Vec<Party>,
    width: usize,
}

impl Columns {
    fn new(parties: &BTreeSet<Party>) -> Self {
        let names: Vec<Party> = parties.iter().copied().collect();
        let longest = names
            .iter()
            .map(|name| name.to_string().len())
            .max()
            .unwrap_or_default();
        let width = COLUMN_MIN.max(longest + 2);
        let starts = names
            .iter()
            .enumerate()
            .map(|(index, name)| (*name, index * width))
            .collect();
        Self {
            starts,
            names,
            width,
        }
    }

    fn start(&self, party: Party) -> usize {
        self.starts.get(&party).copied().unwrap_or_default()
    }

    fn head(&self) -> String {
        let names = self
            .names
            .iter()
            .map(|name| format!("{:width$}", name.to_string(), width = self.width));
        names.collect::<String>().trim_end().to_owned()
    }

    /// Returns a lifeline for each party.
    fn lifelines(&self) -> Vec<char> {
        let mut line = vec![' '; self.names.len() * self.width];
        line.iter_mut()
            .step_by(self.width)
            .for_each(|char| *char = '│');
        line
    }

    fn arrow(&self, record: &Record, is_lost: bool) -> String {
        let mut line = self.lifelines();
        let (from, to) = (self.start(record.src), self.start(record.dest));
        let (left, right) = (from.min(to), from.max(to));
        for (index, char) in line.iter_mut().enumerate() {
            if (left..=right).contains(&index) {
                *char = if *char == '│' && index != to {
                    '┼'
                } else {
                    '─'
                };
            }
        }
        let head = match (is_lost, to > from) {
            (true, _) => '✗',
            (false, true) => '▶',
            (false, false) => '◀',
        };
        let mut put = |at: usize, char| {
            if let Some(place) = line.get_mut(at) {
                *place = char;
            }
        };
        put(to, '│');
        put(from, '●');
        // An arrow of a party to itself returns from the right.
        put(if to > from { to - 1 } else { to + 1 }, head);
        line.into_iter().collect()
    }

    fn row(&self, row: &Row<'_>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>11.3}  ", Millis(row.entry.at))?;
        match row.shows {
            Shows::Event(text) => {
                writeln!(f, "{} {text}", "~".repeat(self.names.len() * self.width))
            }
            Shows::Message(number, record, loss) => {
                let (body, arrow) = (shortened(record.body()), self.arrow(record, loss.is_some()));
                write!(f, "{arrow} #{number} {body} ")?;
                match loss {
                    Some(why) => writeln!(f, "lost: {why}"),
                    None => {
                        let latency = row.entry.at.saturating_sub(record.sent_at);
                        writeln!(f, "({:.3} ms)", Millis(latency))
                    }
                }
            }
        }
    }
}

impl fmt::Display for Chart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self
            .journal
            .entries
            .iter()
            .filter_map(|entry| Row::new(entry, self.journal));
        let rows: Vec<_> = rows.filter(|row| self.is_wanted(row)).collect();
        let left_out = rows.len().saturating_sub(self.rows_max);
        let rows = rows.get(left_out..).unwrap_or_default();
        let records = rows.iter().filter_map(Row::record);
        let columns = Columns::new(
            &records
                .flat_map(|record| [record.src, record.dest])
                .collect(),
        );
        writeln!(f, "{:>11}  {}", "time/ms", columns.head())?;
        if left_out > 0 {
            writeln!(
                f,
                "{:>11}  {left_out} rows before these are left out",
                "..."
            )?;
        }
        rows.iter().try_for_each(|row| columns.row(row, f))
    }
}

fn shortened(body: &str) -> String {
    match body.char_indices().nth(BODY_CHARS_MAX) {
        Some((end, _)) => format!("{}…", body.get(..end).unwrap_or_default()),
        None => body.to_owned(),
    }
}
