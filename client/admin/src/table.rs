//! Tables: aligned columns for people, or a JSON object for each row.

use std::io;

use serde_json::{Map, Value};

use crate::Console;

/// A table.
#[derive(Debug)]
pub(crate) struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// Returns a table without rows.
    pub(crate) const fn new(columns: &'static [&'static str]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row with a value for each column.
    pub(crate) fn row(mut self, row: Vec<Value>) -> Self {
        debug_assert_eq!(row.len(), self.columns.len());
        self.rows.push(row);
        self
    }

    /// Prints the rows below the names of the columns, or as JSON objects.
    ///
    /// # Errors
    /// An error of standard output.
    pub(crate) fn print(&self, console: &mut Console<'_>) -> io::Result<()> {
        if console.is_json {
            return self.print_json(console);
        }
        self.lines().iter().try_for_each(|line| console.print(line))
    }

    /// Prints each value of each row in a line with the name of its column, or the rows as
    /// JSON objects.
    ///
    /// # Errors
    /// An error of standard output.
    pub(crate) fn print_fields(&self, console: &mut Console<'_>) -> io::Result<()> {
        if console.is_json {
            return self.print_json(console);
        }
        let width = self
            .columns
            .iter()
            .map(|name| name.len())
            .max()
            .unwrap_or(0);
        for row in &self.rows {
            for (name, value) in self.columns.iter().zip(row) {
                console.print(format_args!("{name:width$}  {}", cell(value)))?;
            }
        }
        Ok(())
    }

    fn print_json(&self, console: &mut Console<'_>) -> io::Result<()> {
        for row in &self.rows {
            let names = self.columns.iter().map(|name| (*name).to_owned());
            let object: Map<_, _> = names.zip(row.iter().cloned()).collect();
            console.print(Value::Object(object))?;
        }
        Ok(())
    }

    fn lines(&self) -> Vec<String> {
        let header = self.columns.iter().map(|name| (*name).to_owned()).collect();
        let rows = self.rows.iter().map(|row| row.iter().map(cell).collect());
        let cells: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
        let width = |column: usize| {
            let of_row = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
            cells.iter().map(of_row).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |row: &Vec<String>| {
            let padded = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:width$}"));
            padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        cells.iter().map(line).collect()
    }
}

/// Returns a value for people.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.escape_debug().to_string(),
        Value::Array(values) if values.is_empty() => "-".to_owned(),
        Value::Object(fields) if fields.is_empty() => "-".to_owned(),
        Value::Object(fields) => {
            let fields = fields.iter();
            let fields = fields.map(|(name, value)| format!("{name}={}", cell(value)));
            fields.collect::<Vec<_>>().join(" ")
        }
        Value::Array(values) => values.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_controls_escaped() {
        let table = Table::new(&["name", "waiting"])
            .row(vec!["bob".into(), 7.into()])
            .row(vec!["a\u{1b}[2Jb".into(), Value::Null]);
        assert_eq!(
            table.lines(),
            ["name         waiting", "bob          7", "a\\u{1b}[2Jb  -"]
        );
    }
}
