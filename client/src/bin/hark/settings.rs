//! The settings of a run: flags and their environment variables, then the configuration
//! file, then defaults.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy as _;
use hark_protocol::{DeviceName, Password, UserName};
use serde::Deserialize;

use crate::args::{Flags, check_servers};
use crate::exit::Failure;

/// The server of a run without flags and configuration.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:3000";

/// Settings of all modes.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The servers, joined by commas.
    pub(crate) server: String,
    #[cfg(feature = "grpc")]
    pub(crate) grpc: bool,
    pub(crate) tls: bool,
    pub(crate) ca: Option<PathBuf>,
    pub(crate) timeout: Duration,
    /// The user that was given by `--as`.
    pub(crate) as_user: Option<UserName>,
    /// The user of the configuration file.
    pub(crate) configured_user: Option<UserName>,
    pub(crate) password_file: Option<PathBuf>,
    pub(crate) new_password_file: Option<PathBuf>,
    /// A shell command that prints the password of the configured user.
    pub(crate) password_command: Option<String>,
    pub(crate) device: Option<DeviceName>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) no_history: bool,
    pub(crate) plain: bool,
    pub(crate) colors: Colors,
    /// Words that stand for the beginning of a command.
    pub(crate) aliases: BTreeMap<String, String>,
    /// The password that was typed at the first start.
    pub(crate) typed_password: Option<Password>,
    /// Where to write the first configuration: `None` if there is one, or if flags name a
    /// server or a user.
    pub(crate) first_start: Option<PathBuf>,
}

/// Use of colors in a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Colors {
    /// Unless `NO_COLOR` is set.
    #[default]
    Auto,
    Always,
    Never,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    server: Option<String>,
    user: Option<String>,
    device: Option<String>,
    tls: bool,
    ca: Option<PathBuf>,
    grpc: bool,
    password_file: Option<PathBuf>,
    password_command: Option<String>,
    history: Option<bool>,
    screen: Option<bool>,
    state_dir: Option<PathBuf>,
    colors: Colors,
    aliases: BTreeMap<String, String>,
    servers: BTreeMap<String, Section>,
}

/// A server of the configuration file, with a name.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Section {
    server: String,
    user: Option<String>,
    device: Option<String>,
    tls: bool,
    ca: Option<PathBuf>,
    grpc: bool,
    password_file: Option<PathBuf>,
    password_command: Option<String>,
}

impl Settings {
    /// Completes the flags by the configuration file.
    ///
    /// # Errors
    /// If the file cannot be read, or is invalid.
    pub(crate) fn resolve(flags: Flags) -> Result<Self, Failure> {
        let path = match &flags.config {
            Some(path) => Some(path.clone()),
            None => default_path(),
        };
        let text = path.as_deref().map(read).transpose()?.flatten();
        if text.is_none()
            && let Some(path) = &flags.config
        {
            return Err(invalid(path, "there is no such file"));
        }
        let is_first = text.is_none() && flags.server.is_none() && flags.as_user.is_none();
        let first_start = path.clone().filter(|_| is_first);
        let name = path.unwrap_or_default();
        let file = match text {
            Some(text) => toml::from_str(&text).map_err(|error| invalid(&name, error))?,
            None => File::default(),
        };
        let mut settings = Self::of(flags, file).map_err(|error| invalid(&name, error))?;
        settings.first_start = first_start;
        Ok(settings)
    }

    fn of(flags: Flags, file: File) -> Result<Self, String> {
        let section = file.section(flags.server.as_deref())?;
        check_servers(&section.server)?;
        Ok(Self {
            server: section.server,
            #[cfg(feature = "grpc")]
            grpc: flags.grpc || section.grpc,
            tls: flags.tls || section.tls,
            ca: flags.ca.or(section.ca),
            timeout: flags.timeout,
            as_user: flags.as_user,
            configured_user: parsed("user", section.user)?,
            password_file: flags.password_file.or(section.password_file),
            new_password_file: flags.new_password_file,
            password_command: section.password_command,
            device: match flags.device {
                Some(device) => Some(device),
                None => parsed("device", section.device)?,
            },
            state_dir: flags.state_dir.or(file.state_dir),
            no_history: flags.no_history || file.history == Some(false),
            plain: flags.plain || file.screen == Some(false),
            colors: file.colors,
            aliases: file.aliases,
            typed_password: None,
            first_start: None,
        })
    }

    /// Returns the user of this run: of `--as`, otherwise of the configuration file.
    pub(crate) fn user(&self) -> Option<&UserName> {
        self.as_user.as_ref().or(self.configured_user.as_ref())
    }

    /// Returns the user of this run.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn require_user(&self) -> Result<&UserName, Failure> {
        self.user().ok_or_else(|| {
            Failure::local("no user given; use --as USER, or set `user` in the configuration file")
        })
    }
}

impl File {
    /// Returns the settings of a server: of a section, if the flag or the file names one.
    /// A server that was given by its address has none of the user's settings.
    fn section(&self, flag: Option<&str>) -> Result<Section, String> {
        let named = flag.or(self.server.as_deref()).unwrap_or(DEFAULT_SERVER);
        if !named.contains(':') {
            let section = self.servers.get(named).cloned();
            return section.ok_or_else(|| format!("there is no section [servers.{named}]"));
        }
        if flag.is_some_and(|flag| Some(flag) != self.server.as_deref()) {
            return Ok(Section {
                server: named.to_owned(),
                ..Section::default()
            });
        }
        Ok(Section {
            server: named.to_owned(),
            user: self.user.clone(),
            device: self.device.clone(),
            tls: self.tls,
            ca: self.ca.clone(),
            grpc: self.grpc,
            password_file: self.password_file.clone(),
            password_command: self.password_command.clone(),
        })
    }
}

fn parsed<T: std::str::FromStr>(name: &str, text: Option<String>) -> Result<Option<T>, String>
where
    T::Err: std::fmt::Display,
{
    let parse = |text: String| text.parse().map_err(|bad| format!("{name}: {bad}"));
    text.map(parse).transpose()
}

/// Returns the default path of the configuration file; `None` without a home directory.
fn default_path() -> Option<PathBuf> {
    let base = etcetera::choose_base_strategy().ok()?;
    Some(base.config_dir().join("hark").join("config.toml"))
}

/// Reads the file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(path, error)),
    }
}

fn invalid(path: &Path, error: impl std::fmt::Display) -> Failure {
    Failure::Usage(format!("configuration {}: {error}", path.display()))
}

/// Writes the first configuration, readable by its owner alone.
///
/// # Errors
/// If the file cannot be written, or exists by now.
pub(crate) fn write_first(
    path: &Path,
    server: &str,
    tls: bool,
    user: &UserName,
) -> Result<(), Failure> {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let (server, user) = (quoted(server), quoted(user.as_str()));
    let text = format!(
        "# Settings of hark; `man hark` lists all of them.\n\
         server = {server}\ntls = {tls}\nuser = {user}\n"
    );
    let mut options = fs::OpenOptions::new();
    options.create_new(true).write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let write = || {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        options.open(path)?.write_all(text.as_bytes())
    };
    write().map_err(|error| invalid(path, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::CommandLine;
    use clap::Parser as _;

    fn resolve(text: &str, flags: &[&str]) -> Result<Settings, String> {
        let arguments = ["hark"].iter().chain(flags);
        let flags = CommandLine::try_parse_from(arguments).unwrap().flags;
        Settings::of(
            flags,
            toml::from_str(text).map_err(|error| error.to_string())?,
        )
    }

    const FILE: &str = "
        server = \"chat.example:3000\"
        tls = true
        user = \"ann\"
        password_command = \"pass show hark\"
        history = false
        [aliases]
        j = \"join\"
        [servers.work]
        server = \"a.example:1,b.example:1\"
        user = \"amy\"
        device = \"desk\"
    ";

    #[test]
    fn file_stands_in_for_flags() {
        let settings = resolve(FILE, &[]).unwrap();
        assert_eq!(
            (settings.server.as_str(), settings.tls),
            ("chat.example:3000", true)
        );
        assert_eq!(settings.user().unwrap().as_str(), "ann");
        assert_eq!(settings.password_command.as_deref(), Some("pass show hark"));
        assert!(settings.no_history);
        let settings = resolve(FILE, &["--as", "bob"]).unwrap();
        assert_eq!(settings.user().unwrap().as_str(), "bob");
    }

    #[test]
    fn server_is_chosen_by_name() {
        let settings = resolve(FILE, &["--server", "work"]).unwrap();
        assert_eq!(settings.server, "a.example:1,b.example:1");
        assert_eq!(settings.user().unwrap().as_str(), "amy");
        assert_eq!(settings.device.as_ref().unwrap().as_str(), "desk");
        assert!(!settings.tls && settings.password_command.is_none());
        assert!(resolve(FILE, &["--server", "home"]).is_err());
    }

    #[test]
    fn other_server_gets_no_password() {
        let settings = resolve(FILE, &["--server", "other.example:3000"]).unwrap();
        assert_eq!(settings.user(), None);
        assert_eq!(settings.password_command, None);
    }

    #[test]
    fn invalid_file_is_refused() {
        for bad in [
            "sever = \"a:1\"",
            "server = \"nowhere\"",
            "server = \"a:x\"",
            "user = \"a,b\"",
            "colors = \"some\"",
        ] {
            assert!(resolve(bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn first_configuration_can_be_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hark/config.toml");
        let user = "ann \"the\" 2nd".replace(' ', "-").parse().unwrap();
        write_first(&path, "here:3000", true, &user).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let settings = resolve(&text, &[]).unwrap();
        assert_eq!(settings.user(), Some(&user));
        assert!(settings.tls);
        assert!(write_first(&path, "here:3000", true, &user).is_err());
    }
}
