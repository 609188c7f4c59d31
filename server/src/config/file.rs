//! The configuration file: TOML with the names of the flags. Each setting becomes the flag
//! that it stands for, so that `clap` checks both by the same rules.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};
use toml::{Table, Value};

/// The file that is read without `--config`, if it exists.
pub(super) const DEFAULT_PATH: &str = "/etc/hark/harkd.toml";

/// The maximum size of the file, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Flags that are not settings.
const NOT_SETTINGS: [&str; 4] = ["check", "config", "help", "version"];

/// A setting of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct FileSetting {
    /// The name of its flag.
    pub(super) name: String,
    /// The command-line arguments that it stands for.
    pub(super) arguments: Vec<OsString>,
}

/// Returns whether a flag is a setting of a server.
pub(super) fn is_setting(argument: &Arg) -> bool {
    argument
        .get_long()
        .is_some_and(|name| !NOT_SETTINGS.contains(&name))
}

/// Reads the file at `path`.
///
/// # Errors
/// If it cannot be read, is too large or malformed, or has an unknown setting.
pub(super) fn read(path: &Path, command: &Command) -> anyhow::Result<Vec<FileSetting>> {
    let read = || -> anyhow::Result<Vec<FileSetting>> {
        let size = std::fs::metadata(path)?.len();
        if size > FILE_BYTES_MAX {
            bail!("it has {size} bytes; the maximum is {FILE_BYTES_MAX}");
        }
        parse(&std::fs::read_to_string(path)?, command)
    };
    read().with_context(|| format!("cannot use the configuration file {}", path.display()))
}

fn parse(text: &str, command: &Command) -> anyhow::Result<Vec<FileSetting>> {
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| {
            text.get(..span.start)
                .unwrap_or_default()
                .lines()
                .count()
                .max(1)
        });
        anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
    })?;
    table
        .into_iter()
        .map(|(name, value)| {
            let argument = command
                .get_arguments()
                .find(|argument| is_setting(argument) && argument.get_long() == Some(&name));
            let Some(argument) = argument else {
                bail!("{}", unknown(&name, &value, command));
            };
            let arguments = arguments(argument, &name, value)?;
            Ok(FileSetting { name, arguments })
        })
        .collect()
}

fn unknown(name: &str, value: &Value, command: &Command) -> String {
    if value.is_table() {
        return format!("settings are not grouped: remove the line [{name}]");
    }
    let suggestion = match suggestion(name, command) {
        Some(similar) => format!("did you mean '{similar}'?"),
        None => "harkd --help lists the settings".to_owned(),
    };
    format!("unknown setting '{name}'; {suggestion}")
}

/// Returns the name that `clap` suggests for a misspelt one.
fn suggestion(name: &str, command: &Command) -> Option<String> {
    let misspelt = format!("--{name}");
    let error = command
        .clone()
        .try_get_matches_from(["harkd", &misspelt])
        .err()?;
    let ContextValue::String(similar) = error.get(ContextKind::SuggestedArg)? else {
        return None;
    };
    let similar = similar.trim_start_matches("--");
    (!NOT_SETTINGS.contains(&similar)).then(|| similar.to_owned())
}

/// Returns the arguments of a setting.
fn arguments(argument: &Arg, name: &str, value: Value) -> anyhow::Result<Vec<OsString>> {
    let option = |value: &str| OsString::from(format!("--{name}={value}"));
    Ok(match (argument.get_action(), value) {
        (ArgAction::SetTrue, Value::Boolean(true)) => vec![format!("--{name}").into()],
        (ArgAction::SetTrue, Value::Boolean(false)) => Vec::new(),
        (ArgAction::SetTrue, _) => bail!("{name}: expected true or false"),
        (ArgAction::Append, Value::Array(values)) => {
            let texts = values.into_iter().map(|value| scalar(name, value));
            let texts: Vec<_> = texts.collect::<Result<_, _>>()?;
            texts.iter().map(|text| option(text)).collect()
        }
        (_, Value::Array(_)) => bail!("{name}: expected one value, not a list"),
        (_, value) => vec![option(&scalar(name, value)?)],
    })
}

fn scalar(name: &str, value: Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        other => bail!(
            "{name}: expected a string or a number, not a {}",
            other.type_str()
        ),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Cli;

    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let settings = parse(text, &Cli::command()).unwrap();
        let arguments: Vec<_> = settings
            .into_iter()
            .flat_map(|setting| setting.arguments)
            .collect();
        assert_eq!(arguments, expected, "{text}");
    }

    #[track_caller]
    fn check_refused(text: &str, expected: &str) {
        let refused = parse(text, &Cli::command()).unwrap_err().to_string();
        assert_eq!(refused, expected, "{text}");
    }

    #[test]
    fn settings_become_their_flags() {
        check("max-frame = 4096", &["--max-frame=4096"]);
        check("store = '/srv/hark'", &["--store=/srv/hark"]);
        check("require-password = true", &["--require-password"]);
        check("require-password = false", &[]);
        check("admin = ['ann', 'bob']", &["--admin=ann", "--admin=bob"]);
        check("admin = 'ann,bob'", &["--admin=ann,bob"]);
        check("# a comment\n\n", &[]);
    }

    #[test]
    fn unknown_setting_is_refused_with_a_suggestion() {
        check_refused(
            "max_frame = 1",
            "unknown setting 'max_frame'; did you mean 'max-frame'?",
        );
        check_refused(
            "zzz = 1",
            "unknown setting 'zzz'; harkd --help lists the settings",
        );
        check_refused(
            "[limits]\nmax-frame = 1",
            "settings are not grouped: remove the line [limits]",
        );
        for name in NOT_SETTINGS {
            assert!(parse(&format!("{name} = 'x'"), &Cli::command()).is_err());
        }
    }

    #[test]
    fn value_of_another_type_is_refused() {
        check_refused(
            "require-password = 'yes'",
            "require-password: expected true or false",
        );
        check_refused(
            "max-frame = [1]",
            "max-frame: expected one value, not a list",
        );
        check_refused(
            "max-frame = 1.5",
            "max-frame: expected a string or a number, not a float",
        );
    }

    #[test]
    fn malformed_file_is_refused_with_its_line() {
        let refused = parse("log = 'info'\n\nlog-format\n", &Cli::command()).unwrap_err();
        assert!(refused.to_string().starts_with("line 3: "), "{refused}");
    }
}
