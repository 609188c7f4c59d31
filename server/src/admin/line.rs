//! The lines of an export: JSON objects, one per line.
//!
//! | `type` | fields |
//! | --- | --- |
//! | `export` | `version` of the format, in the first line |
//! | `account` | `name`, `password` (hash in the PHC format, absent without a password), `suspended` (absent unless true), `cursor` (number of the last acknowledged message) |
//! | `message` | `to`, `number`, `sender` (absent without a sender), `time` in ms since 1970, `text` |
//! | `gap` | `to`, `from` and `through` (numbers), `count` of messages that are missing |
//!
//! An account comes before its messages, and the messages are in the order of their
//! numbers.

use hark_protocol::Sequence;
use serde::{Deserialize, Serialize};

use crate::store::{AccountEntry, PasswordHash};

/// The version of the format.
pub(super) const VERSION: u32 = 1;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Line {
    Export {
        version: u32,
    },
    Account {
        name: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        password: Option<String>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        suspended: bool,
        #[serde(default)]
        cursor: u64,
    },
    Message {
        to: String,
        number: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sender: Option<String>,
        time: u64,
        text: String,
    },
    Gap {
        to: String,
        from: u64,
        through: u64,
        count: u64,
    },
}

impl Line {
    /// Returns the line of an account whose messages up to `cursor` are acknowledged.
    pub(super) fn account(entry: &AccountEntry, cursor: Sequence) -> Self {
        let password = entry.password.as_ref();
        Self::Account {
            name: entry.account.name.to_string(),
            password: password.map(|hash| PasswordHash::as_str(hash).to_owned()),
            suspended: entry.is_suspended,
            cursor: cursor.0,
        }
    }
}
