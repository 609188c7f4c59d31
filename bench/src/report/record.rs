//! A measurement: its subject, setting and figures. Written as a line of JSON; repeated
//! measurements are merged by the median of each figure.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A measurement.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Record {
    /// The round, which is a section of the report.
    pub(crate) round: &'static str,
    /// The measured server.
    pub(crate) subject: String,
    /// The parameters, such as `senders`, in the order of the report.
    pub(crate) setting: Vec<(&'static str, f64)>,
    /// The figures. Their names end with the unit.
    pub(crate) figures: BTreeMap<&'static str, f64>,
}

impl Record {
    /// Returns a measurement without figures.
    pub(crate) fn new(round: &'static str, subject: &str, setting: &[(&'static str, f64)]) -> Self {
        Self {
            round,
            subject: subject.to_owned(),
            setting: setting.to_vec(),
            figures: BTreeMap::new(),
        }
    }

    /// Adds a figure.
    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: f64) -> Self {
        self.figures.insert(name, value);
        self
    }

    /// Returns a figure, if it was taken.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        self.figures.get(name).copied()
    }

    /// Returns a parameter.
    pub(crate) fn with_what(&self, name: &str) -> Option<f64> {
        self.setting
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    }

    /// Formats it as a JSON object.
    pub(crate) fn json(&self) -> Value {
        let figures: Map<_, _> = self
            .figures
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        let setting: Map<_, _> = self
            .setting
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!(value)))
            .collect();
        json!({ "round": self.round, "subject": self.subject, "setting": setting, "figures": figures })
    }

    fn is_of_the_same(&self, other: &Self) -> bool {
        (self.round, &self.subject, &self.setting) == (other.round, &other.subject, &other.setting)
    }
}

/// Merges the records of the same subject and setting, in the order of their first occurrence,
/// with the median of each figure.
pub(crate) fn medians(records: &[Record]) -> Vec<Record> {
    let mut all: Vec<(Record, BTreeMap<&'static str, Vec<f64>>)> = Vec::new();
    for record in records {
        let at = all
            .iter()
            .position(|(known, _)| known.is_of_the_same(record))
            .unwrap_or(all.len());
        if at == all.len() {
            all.push((record.clone(), BTreeMap::new()));
        }
        if let Some((_, values)) = all.get_mut(at) {
            for (name, value) in &record.figures {
                values.entry(name).or_default().push(*value);
            }
        }
    }
    let record = |(mut record, values): (Record, BTreeMap<_, Vec<f64>>)| {
        record.figures = values
            .into_iter()
            .filter_map(|(name, values)| Some((name, median(values)?)))
            .collect();
        record
    };
    all.into_iter().map(record).collect()
}

/// Returns the median.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get(values.len().saturating_sub(1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 9.0]), Some(3.0));
    }

    #[test]
    fn repeated_measurements_are_merged() {
        let record = |subject, senders, rate| {
            Record::new("online", subject, &[("senders", senders)]).with("rate", rate)
        };
        let all = [
            record("a", 1.0, 5.0),
            record("b", 1.0, 1.0),
            record("a", 1.0, 9.0),
            record("a", 8.0, 2.0),
        ];
        let medians = medians(&[all.as_slice(), &[record("a", 1.0, 6.0)]].concat());
        assert_eq!(
            medians,
            [
                record("a", 1.0, 6.0),
                record("b", 1.0, 1.0),
                record("a", 8.0, 2.0)
            ]
        );
    }

    #[test]
    fn a_record_is_a_line_of_json() {
        let record =
            Record::new("online", "harkd", &[("senders", 8.0)]).with("accepted_per_second", 1.5);
        let line = r#"{"figures":{"accepted_per_second":1.5},"round":"online","setting":{"senders":8.0},"subject":"harkd"}"#;
        assert_eq!(record.json().to_string(), line);
    }
}
