//! Creation of a client from the command line: settings, passwords and files.

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use etcetera::BaseStrategy as _;
use hark_client::seen::FileSeenStore;
use hark_client::{Client, Config, Events, Handle, Trust};
use hark_prompt::Quiet;
use hark_protocol::name::BadPassword;
use hark_protocol::{DeviceName, Password, UserName};
use rand::RngExt as _;
use rand::distr::Alphanumeric;
use zeroize::Zeroizing;

use crate::command::Secrets;
use crate::exit::Failure;
use crate::history::HistoryFile;
use crate::settings::Settings;
use crate::text::escape;

/// Length of the random part of a device name, in characters.
const DEVICE_CHARS: usize = 8;

/// Returns the directory for this user's state.
pub(crate) fn state_dir(settings: &Settings) -> Result<PathBuf, Failure> {
    if let Some(directory) = &settings.state_dir {
        return Ok(directory.clone());
    }
    let base = etcetera::choose_base_strategy()
        .map_err(|error| Failure::local(format!("no home directory; use --state-dir: {error}")))?;
    Ok(base
        .state_dir()
        .unwrap_or_else(|| base.data_dir())
        .join("hark"))
}

/// Returns the directory for the state of the device: a device that was chosen for
/// this run has its own.
fn device_dir(settings: &Settings) -> Result<PathBuf, Failure> {
    let state = state_dir(settings)?;
    Ok(match &settings.device {
        Some(device) => state.join("devices").join(device.as_str()),
        None => state,
    })
}

/// Returns the name of the device. It is made up at the first start, and kept in a
/// file.
fn device(settings: &Settings) -> Result<DeviceName, Failure> {
    if let Some(device) = &settings.device {
        return Ok(device.clone());
    }
    let path = state_dir(settings)?.join("device");
    let name = kept_device(&path).map_err(|error| {
        let path = path.display();
        Failure::local(format!("cannot keep the device name in {path}: {error}"))
    })?;
    name.trim()
        .parse()
        .map_err(|bad| Failure::local(format!("{}: {bad}", path.display())))
}

/// Reads the device name in a file, or makes one up. The lock serializes the first
/// starts of several processes.
fn kept_device(path: &Path) -> io::Result<String> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)?;
    file.lock()?;
    let mut name = String::new();
    file.read_to_string(&mut name)?;
    if name.trim().is_empty() {
        let suffix = rand::rng().sample_iter(&Alphanumeric).take(DEVICE_CHARS);
        let suffix: String = suffix.map(char::from).collect();
        name = format!("hark-{}\n", suffix.to_lowercase());
        file.write_all(name.as_bytes())?;
    }
    Ok(name)
}

/// Starts a client with a record of seen messages in files.
pub(crate) fn client(settings: &Settings) -> Result<(Handle, Events), Failure> {
    Ok(Client::connect(with_seen(settings)?))
}

/// As [`client`], with the local history as the journal of its sends.
pub(crate) fn chat_client(
    settings: &Settings,
    history: &HistoryFile,
) -> Result<(Handle, Events), Failure> {
    Ok(Client::connect(Config {
        journal: Arc::new(history.clone()),
        ..with_seen(settings)?
    }))
}

fn with_seen(settings: &Settings) -> Result<Config, Failure> {
    let seen = FileSeenStore::new(&device_dir(settings)?.join("taken"), &settings.server);
    Ok(Config {
        seen: Arc::new(seen),
        ..config(settings)?
    })
}

/// Opens the local history of the device, or one in memory for `--no-history`.
pub(crate) fn history(settings: &Settings) -> Result<HistoryFile, Failure> {
    if settings.no_history {
        return HistoryFile::in_memory().map_err(Failure::local);
    }
    let path = device_dir(settings)?.join("history.db");
    HistoryFile::open(&path).map_err(Failure::local)
}

/// Returns the configuration for the chosen transport.
fn config(settings: &Settings) -> Result<Config, Failure> {
    #[cfg(feature = "grpc")]
    if settings.grpc {
        return grpc(settings);
    }
    let server = settings.server.as_str();
    let over_tls = |trust| Config::tls(server, &trust).map_err(Failure::local);
    trust(settings).map_or_else(|| Ok(Config::tcp(server)), over_tls)
}

/// Returns the configuration for gRPC, regardless of the settings.
#[cfg(feature = "grpc")]
pub(crate) fn grpc(settings: &Settings) -> Result<Config, Failure> {
    let server = settings.server.as_str();
    let over_tls = |trust| Config::grpc_tls(server, &trust).map_err(Failure::local);
    trust(settings).map_or_else(|| Ok(Config::grpc(server)), over_tls)
}

/// Returns the trusted authorities; `None` without TLS. `--ca` implies TLS.
fn trust(settings: &Settings) -> Option<Trust> {
    let named = settings.ca.clone().map(Trust::File);
    named.or_else(|| settings.tls.then_some(Trust::System))
}

/// Returns the passwords and the device for a run that receives as this user.
pub(crate) fn receiving(settings: &Settings, user: Option<&UserName>) -> Result<Secrets, Failure> {
    Ok(Secrets {
        device: Some(device(settings)?),
        ..secrets_of(settings, user)?
    })
}

/// Returns the passwords from files and the environment.
pub(crate) fn secrets(settings: &Settings) -> Result<Secrets, Failure> {
    Ok(Secrets {
        password: given(settings.password_file.as_deref(), "HARK_PASSWORD")?,
        new_password: given(settings.new_password_file.as_deref(), "HARK_NEW_PASSWORD")?,
        ..Secrets::default()
    })
}

/// Returns the passwords for a run as this user: from files and the environment, otherwise
/// from the command of the configuration.
pub(crate) fn secrets_of(settings: &Settings, user: Option<&UserName>) -> Result<Secrets, Failure> {
    let mut secrets = secrets(settings)?;
    let is_configured = user.is_some() && user == settings.configured_user.as_ref();
    if secrets.password.is_none() && is_configured {
        secrets.password.clone_from(&settings.typed_password);
        secrets.owner = user.cloned();
    }
    if let Some(command) = &settings.password_command
        && secrets.password.is_none()
        && is_configured
    {
        secrets.password = Some(printed_by(command)?);
    }
    Ok(secrets)
}

/// Returns the password that a shell command prints.
fn printed_by(command: &str) -> Result<Password, Failure> {
    let failed = |why: String| Failure::local(format!("password-command {command:?}: {why}"));
    let mut shell = shell(command);
    shell.stdin(Stdio::inherit()).stderr(Stdio::inherit());
    let output = shell.output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let text = Zeroizing::new(output.stdout);
    let text = std::str::from_utf8(&text).map_err(|_| failed("not UTF-8".to_owned()))?;
    let line = text.lines().next().unwrap_or_default();
    line.parse()
        .map_err(|bad: BadPassword| failed(bad.to_string()))
}

/// Returns a command for the shell.
pub(crate) fn shell(command: &str) -> std::process::Command {
    let (shell, flag) = if cfg!(windows) {
        ("cmd", "/C")
    } else {
        ("sh", "-c")
    };
    let mut shell = std::process::Command::new(shell);
    shell.args([flag, command]);
    shell
}

fn given(file: Option<&Path>, variable: &str) -> Result<Option<Password>, Failure> {
    let (text, source) = match (file, std::env::var(variable)) {
        (Some(path), _) => {
            let text = fs::read_to_string(path).map_err(|error| {
                Failure::local(format!("cannot read {}: {error}", path.display()))
            })?;
            (Zeroizing::new(text), path.display().to_string())
        }
        (None, Ok(text)) if !text.is_empty() => (Zeroizing::new(text), variable.to_owned()),
        (None, _) => return Ok(None),
    };
    let line = text.lines().next().unwrap_or_default();
    line.parse()
        .map(Some)
        .map_err(|bad| Failure::local(format!("{source}: {bad}")))
}

/// Returns whether a password can be prompted for.
pub(crate) fn can_prompt() -> bool {
    io::stdin().is_terminal()
}

/// Asks for a confirmation. Without a terminal, the answer is yes.
pub(crate) fn confirm(question: &str) -> Result<bool, Failure> {
    if !can_prompt() {
        return Ok(true);
    }
    eprint!("{} [y/N] ", escape(question));
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    read.map_err(|error| Failure::local(format!("stdin: {error}")))?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// Prompts for a password without echo; `None` if the input is empty.
pub(crate) fn ask(prompt: &str) -> Result<Option<Password>, Failure> {
    prompt_with(&mut quiet()?, prompt)
}

/// Prompts for a new password twice.
pub(crate) fn prompt_new(prompt: &str) -> Result<Option<Password>, Failure> {
    let mut quiet = quiet()?;
    let Some(first) = prompt_with(&mut quiet, prompt)? else {
        return Ok(None);
    };
    match prompt_with(&mut quiet, "Repeat the password: ")? {
        Some(second) if second == first => Ok(Some(first)),
        _ => Err(Failure::local("the passwords do not match")),
    }
}

fn quiet() -> Result<Quiet, Failure> {
    Quiet::begin().map_err(prompt_error)
}

fn prompt_with(quiet: &mut Quiet, prompt: &str) -> Result<Option<Password>, Failure> {
    let text = quiet.ask(prompt).map_err(prompt_error)?;
    if text.is_empty() {
        Ok(None)
    } else {
        text.parse().map(Some).map_err(Failure::local)
    }
}

fn prompt_error(error: io::Error) -> Failure {
    Failure::local(format!("cannot prompt for a password: {error}"))
}
