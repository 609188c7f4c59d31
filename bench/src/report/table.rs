//! A table of the report, in Markdown.

use std::fmt::Write as _;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    /// The title.
    pub(crate) title: String,
    /// The column headers; all columns but the first are numbers.
    pub(crate) columns: Vec<String>,
    /// The rows, with a cell for each column.
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// Returns a table without rows.
    pub(crate) fn new(title: impl Into<String>, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|&column| column.to_owned()).collect();
        Self {
            title: title.into(),
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn push(&mut self, row: Vec<String>) {
        debug_assert_eq!(row.len(), self.columns.len(), "a row of another table");
        self.rows.push(row);
    }

    /// Formats it as Markdown, with the title as a paragraph.
    pub(crate) fn markdown(&self) -> String {
        let mut to = format!("**{}**\n\n", self.title);
        let mut line = |cells: &[String]| {
            // Writing to a string cannot fail.
            if writeln!(to, "| {} |", cells.join(" | ")).is_err() {
                unreachable!("writes to a string do not fail");
            }
        };
        line(&self.columns);
        let rule = |index| if index == 0 { "---" } else { "---:" }.to_owned();
        line(&(0..self.columns.len()).map(rule).collect::<Vec<_>>());
        self.rows.iter().for_each(|row| line(row));
        to
    }
}

/// Formats a number with three significant digits and separated thousands.
pub(crate) fn number(value: Option<f64>) -> String {
    let Some(value) = value.filter(|value| value.is_finite()) else {
        return "–".to_owned();
    };
    let magnitude = value.abs();
    match magnitude {
        0.0 => "0".to_owned(),
        _ if magnitude < 0.995 => format!("{value:.3}"),
        _ if magnitude < 9.95 => format!("{value:.2}"),
        _ if magnitude < 99.5 => format!("{value:.1}"),
        _ => thousands(value),
    }
}

/// Formats a count.
pub(crate) fn count(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), thousands)
}

/// Formats a ratio, such as `0.43`.
pub(crate) fn ratio(value: Option<f64>, of: Option<f64>) -> String {
    match (value, of) {
        (Some(value), Some(of)) if of > 0.0 => format!("{:.2}", value / of),
        _ => "–".to_owned(),
    }
}

fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = digits.as_str();
    while let Some((head, tail)) = rest
        .len()
        .checked_sub(3)
        .and_then(|at| rest.split_at_checked(at))
    {
        parts.push(tail);
        rest = head;
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts.reverse();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, parts.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (value, expected) in [
            (0.0, "0"),
            (0.5432, "0.543"),
            (1.0, "1.00"),
            (9.94, "9.94"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1_234.0, "1 234"),
            (1_970_000.0, "1 970 000"),
            (-4_000.0, "-4 000"),
        ] {
            assert_eq!(number(Some(value)), expected);
        }
        assert_eq!([number(None), number(Some(f64::NAN))], ["–", "–"]);
        assert_eq!(
            [count(Some(8.0)), count(Some(18_000.0)), count(None)],
            ["8", "18 000", "–"]
        );
    }

    #[test]
    fn ratio_to_zero_is_none() {
        assert_eq!(ratio(Some(1.0), Some(4.0)), "0.25");
        assert_eq!(
            [
                ratio(Some(1.0), Some(0.0)),
                ratio(None, Some(1.0)),
                ratio(Some(1.0), None)
            ],
            ["–", "–", "–"]
        );
    }

    #[test]
    fn a_table_is_markdown() {
        let mut table = Table::new("Sends", &["server", "a second"]);
        table.push(vec!["harkd".to_owned(), number(Some(150_000.0))]);
        let expected = "**Sends**\n\n| server | a second |\n| --- | ---: |\n| harkd | 150 000 |\n";
        assert_eq!(table.markdown(), expected);
    }
}
