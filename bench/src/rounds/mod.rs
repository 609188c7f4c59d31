//! The rounds of measurements, one file for each.

pub(crate) mod fanout;
pub(crate) mod idle;
pub(crate) mod offline;
pub(crate) mod online;
pub(crate) mod soak;
pub(crate) mod start;

use crate::report::record::Record;

/// The limits that a subject is compared with: their records of the same setting.
pub(crate) struct Limits {
    bare: Option<Record>,
    logged: Option<Record>,
}

impl Limits {
    /// Returns the limits among the records of one setting.
    pub(crate) fn among(records: &[&Record]) -> Self {
        use crate::peers::{Peer as _, Relay};
        let of = |relay: Relay| {
            records
                .iter()
                .find(|record| record.subject == relay.name())
                .map(|&record| record.clone())
        };
        Self {
            bare: of(Relay::BARE),
            logged: of(Relay::LOGGED),
        }
    }

    /// Returns a figure of the relay without a store.
    pub(crate) fn bare(&self, figure: &str) -> Option<f64> {
        self.bare.as_ref().and_then(|record| record.figure(figure))
    }

    /// Returns a figure of the relay with a synced file.
    pub(crate) fn logged(&self, figure: &str) -> Option<f64> {
        self.logged
            .as_ref()
            .and_then(|record| record.figure(figure))
    }
}

/// Groups records by setting, in order of occurrence.
pub(crate) fn by_setting(records: &[Record]) -> Vec<Vec<&Record>> {
    let mut groups: Vec<Vec<&Record>> = Vec::new();
    for record in records {
        let same = |group: &&mut Vec<&Record>| {
            group
                .first()
                .is_some_and(|first| first.setting == record.setting)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(record),
            None => groups.push(vec![record]),
        }
    }
    groups
}

/// Returns the names of the subjects, in order of occurrence.
pub(crate) fn subjects(records: &[Record]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for record in records {
        if !names.contains(&record.subject) {
            names.push(record.subject.clone());
        }
    }
    names
}

/// Parses an argument in seconds.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("seconds are from 0.01 to 3600".to_owned()),
    }
}
