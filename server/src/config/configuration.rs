//! [`Configuration`]: the settings of a server from flags, environment and file, in this
//! order of precedence, with the source of each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, CommandFactory as _, FromArgMatches as _};

use super::file::{self, DEFAULT_PATH, is_setting};
use super::{AdminCommand, Cli, ServeArgs};

/// The commands that use the settings of the server. The others do without the file, so
/// that a defect in it is not in their way.
const COMMANDS_WITH_SETTINGS: [&str; 4] = ["admin", "export", "import", "user"];

/// The width to which `--check` pads settings.
const SETTING_COLUMNS: usize = 40;

/// The effective configuration of a process.
#[derive(Debug)]
pub struct Configuration {
    /// The command to run instead of the server.
    pub command: Option<AdminCommand>,
    /// The settings.
    pub serve: ServeArgs,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    settings: BTreeMap<String, Setting>,
}

/// A setting, without its name.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    value: SettingValue,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum SettingValue {
    Flag(bool),
    One(String),
    List(Vec<String>),
    Unset,
}

/// The origin of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Default,
    File,
    Environment(String),
    CommandLine,
}

/// The reason that a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// A flag or a variable; also a request for help.
    #[error("{}", first_line(.0))]
    Usage(clap::Error),
    /// The file.
    #[error("{0:#}")]
    File(anyhow::Error),
}

impl Configuration {
    /// Parses the command line, which begins with the name of the program, with the
    /// environment and the file.
    ///
    /// # Errors
    /// [`ConfigurationError`].
    pub fn load(arguments: &[OsString]) -> Result<Self, ConfigurationError> {
        let command = Cli::command();
        let given = command
            .clone()
            .ignore_errors(true)
            .try_get_matches_from(arguments)
            .map_err(ConfigurationError::Usage)?;
        let file = file_path(&given);
        let from_file = match &file {
            Some(path) => file::read(path, &command).map_err(ConfigurationError::File)?,
            None => Vec::new(),
        };
        let is_given = |name: &str| {
            command
                .get_arguments()
                .find(|argument| argument.get_long() == Some(name))
                .is_some_and(|argument| is_given(argument, &given))
        };
        let (program, rest) = arguments.split_at(arguments.len().min(1));
        let mut all = program.to_vec();
        let mut names = Vec::new();
        for setting in from_file {
            if !is_given(&setting.name) {
                all.extend(setting.arguments);
                names.push(setting.name);
            }
        }
        all.extend_from_slice(rest);
        let matches = command
            .clone()
            .try_get_matches_from(all)
            .map_err(|error| of_file(error, file.as_deref(), &names))?;
        let settings = command
            .get_arguments()
            .filter(|argument| is_setting(argument))
            .filter_map(|argument| setting(argument, &matches, &names))
            .collect();
        let Cli { command, serve, .. } =
            Cli::from_arg_matches(&matches).map_err(ConfigurationError::Usage)?;
        Ok(Self {
            command,
            serve,
            file,
            settings,
        })
    }

    /// Returns the names of the settings that differ from `former`.
    #[must_use]
    pub fn changed_since(&self, former: &Self) -> Vec<String> {
        let differs = |(name, setting): &(&String, &Setting)| {
            former
                .settings
                .get(*name)
                .is_none_or(|former| former.value != setting.value)
        };
        self.settings
            .iter()
            .filter(differs)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Takes over settings of `former`, which stay in effect until a restart.
    pub fn keep(&mut self, former: &Self, names: &[String]) {
        for name in names {
            if let Some(setting) = former.settings.get(name) {
                self.settings.insert(name.clone(), setting.clone());
            }
        }
    }
}

/// Prints the settings as a configuration file, with the source of each and secrets
/// masked.
impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => writeln!(f, "# configuration file: {}", file.display())?,
            None => writeln!(
                f,
                "# configuration file: none ({DEFAULT_PATH} does not exist)"
            )?,
        }
        for (name, Setting { value, source }) in &self.settings {
            let line = match value {
                SettingValue::Flag(flag) => format!("{name} = {flag}"),
                SettingValue::One(text) => format!("{name} = {}", printed(text)),
                SettingValue::List(texts) => {
                    let texts: Vec<_> = texts.iter().map(|text| quoted(text)).collect();
                    format!("{name} = [{}]", texts.join(", "))
                }
                SettingValue::Unset => {
                    writeln!(f, "# {name} is not set")?;
                    continue;
                }
            };
            writeln!(f, "{line:SETTING_COLUMNS$} # {source}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File => f.write_str("file"),
            Self::Environment(variable) => write!(f, "environment variable {variable}"),
            Self::CommandLine => f.write_str("command line"),
        }
    }
}

/// Returns the file to read: the one that is named, or the default one if it exists and
/// the command uses it.
fn file_path(given: &ArgMatches) -> Option<PathBuf> {
    if let Some(path) = given.try_get_one::<PathBuf>("config").ok().flatten() {
        return Some(path.clone());
    }
    let uses_settings = given
        .subcommand_name()
        .is_none_or(|name| COMMANDS_WITH_SETTINGS.contains(&name));
    let default = Path::new(DEFAULT_PATH);
    (uses_settings && default.exists()).then(|| default.to_owned())
}

/// Returns whether a flag is on the command line or in the environment.
fn is_given(argument: &Arg, given: &ArgMatches) -> bool {
    let is_flag = given.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine);
    is_flag || argument.get_env().and_then(std::env::var_os).is_some()
}

fn setting(
    argument: &Arg,
    matches: &ArgMatches,
    from_file: &[String],
) -> Option<(String, Setting)> {
    let (id, name) = (argument.get_id().as_str(), argument.get_long()?.to_owned());
    let raw: Vec<String> = matches
        .get_raw(id)
        .into_iter()
        .flatten()
        .map(|value| value.to_string_lossy().into_owned())
        .collect();
    let is_unset = raw.is_empty();
    let value = match argument.get_action() {
        ArgAction::SetTrue => SettingValue::Flag(matches.get_flag(id)),
        ArgAction::Append => SettingValue::List(
            raw.iter()
                .flat_map(|values| values.split(','))
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .collect(),
        ),
        _ if is_unset => SettingValue::Unset,
        _ => SettingValue::One(raw.concat()),
    };
    let source = match matches.value_source(id) {
        _ if from_file.contains(&name) => Source::File,
        Some(ValueSource::CommandLine) => Source::CommandLine,
        Some(ValueSource::EnvVariable) => {
            let variable = argument.get_env().unwrap_or_default();
            Source::Environment(variable.to_string_lossy().into_owned())
        }
        _ => Source::Default,
    };
    Some((name, Setting { value, source }))
}

/// Attributes an error to the file, if it has the value.
fn of_file(error: clap::Error, file: Option<&Path>, names: &[String]) -> ConfigurationError {
    let name = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => {
            let words = argument.trim_start_matches("--");
            words
                .split([' ', '='])
                .next()
                .unwrap_or_default()
                .to_owned()
        }
        _ => String::new(),
    };
    match file {
        Some(file) if names.contains(&name) => ConfigurationError::File(anyhow::anyhow!(
            "cannot use the configuration file {}: {}",
            file.display(),
            first_line(&error)
        )),
        _ => ConfigurationError::Usage(error),
    }
}

fn first_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.is_empty());
    let line: Vec<_> = lines.map(str::trim).collect();
    line.join(" ").trim_start_matches("error: ").to_owned()
}

/// Returns a value as TOML, with the password of a URL masked.
fn printed(text: &str) -> String {
    if text.parse::<i64>().is_ok() {
        return text.to_owned();
    }
    quoted(&masked(text))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Masks the credentials of a URL.
fn masked(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => match rest.rsplit_once('@') {
            Some((_, host)) => format!("{scheme}://********@{host}"),
            None => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, flags: &[&str]) -> Result<Configuration, ConfigurationError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("harkd.toml");
        std::fs::write(&path, file).unwrap();
        let config = format!("--config={}", path.display());
        let arguments: Vec<_> = ["harkd", &config]
            .iter()
            .chain(flags)
            .map(OsString::from)
            .collect();
        Configuration::load(&arguments)
    }

    #[track_caller]
    fn check(configuration: &Configuration, line: &str) {
        let printed = configuration.to_string();
        let squeezed: Vec<_> = printed
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        assert!(squeezed.iter().any(|l| l == line), "{line}: {printed}");
    }

    #[test]
    fn flag_overrides_file_and_file_overrides_default() {
        let file = "max-frame = 4096\nadmin = ['ann']\nlisten = ['[::1]:1', 'unix:/x']\n";
        let configuration = load(file, &["--admin=eve"]).unwrap();
        check(&configuration, "max-frame = 4096 # file");
        check(&configuration, "admin = [\"eve\"] # command line");
        check(&configuration, "listen = [\"[::1]:1\", \"unix:/x\"] # file");
        check(&configuration, "max-list = 10000 # default");
        check(&configuration, "# numbers-after is not set");
        assert_eq!(configuration.serve.max_frame, 4096);
        let admins: Vec<_> = configuration
            .serve
            .admins()
            .map(ToString::to_string)
            .collect();
        assert_eq!(admins, ["eve"]);
    }

    #[test]
    fn rules_between_flags_hold_across_sources() {
        let refused = load("tls-key = 'k'", &[]).unwrap_err().to_string();
        assert!(refused.contains("--tls-cert"), "{refused}");
        assert!(load("tls-key = 'k'", &["--tls-cert=c"]).is_ok());
        assert!(load("nats-token-file = 'k'", &["--nats-creds=c"]).is_err());
    }

    #[test]
    fn bad_value_names_the_file() {
        let refused = load("max-frame = 1", &[]).unwrap_err().to_string();
        assert!(
            refused.contains("harkd.toml: invalid value '1'"),
            "{refused}"
        );
        let refused = load("", &["--max-frame=1"]).unwrap_err().to_string();
        assert!(!refused.contains("harkd.toml"), "{refused}");
    }

    #[test]
    fn output_is_a_file_with_the_same_settings() {
        let file = "log = 'debug,hark_server=info'\nnats-user = '7'\nnats-password-file = 'p'\n";
        let configuration = load(file, &["--require-password", "--admin=ann,bob"]).unwrap();
        let again = load(&configuration.to_string(), &[]).unwrap();
        assert_eq!(again.changed_since(&configuration), Vec::<String>::new());
        check(&again, "require-password = true # file");
    }

    #[test]
    fn changes_are_found_by_value() {
        let former = load("max-list = 5\nlog = 'info'", &[]).unwrap();
        let mut new = load("max-list = 6\nlog = 'debug'", &[]).unwrap();
        assert_eq!(new.changed_since(&former), ["log", "max-list"]);
        new.keep(&former, &["max-list".to_owned()]);
        assert_eq!(new.changed_since(&former), ["log"]);
    }

    #[test]
    fn credentials_of_a_url_are_masked() {
        let configuration = load("store = 'nats://ann:secret@a:4222'", &[]).unwrap();
        check(&configuration, "store = \"nats://********@a:4222\" # file");
        assert!(!configuration.to_string().contains("secret"));
    }
}
