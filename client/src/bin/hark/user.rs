//! `hark user …`: runs `harkd user …`, which has access to the store, with the
//! same password.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use crate::exit::{Exit, Failure};

/// Replaces this process with `harkd user` and these arguments.
pub(crate) fn run(arguments: Vec<OsString>) -> Result<Exit, Failure> {
    let program = beside_this_one().unwrap_or_else(|| "harkd".into());
    let mut command = Command::new(&program);
    command.arg("user").args(arguments);
    if std::env::var_os("HARKD_PASSWORD").is_none()
        && let Some(password) =
            std::env::var_os("HARK_PASSWORD").filter(|password| !password.is_empty())
    {
        command.env("HARKD_PASSWORD", password);
    }
    let error = exec(&mut command)?;
    Err(Failure::local(match error.kind() {
        std::io::ErrorKind::NotFound => {
            "cannot find harkd, which manages the accounts: it is neither next to hark nor in PATH"
                .to_owned()
        }
        _ => format!("cannot run {}: {error}", program.display()),
    }))
}

fn beside_this_one() -> Option<PathBuf> {
    let name = format!("harkd{}", std::env::consts::EXE_SUFFIX);
    let path = std::env::current_exe().ok()?.parent()?.join(name);
    path.is_file().then_some(path)
}

/// Replaces the process. Returns only on failure.
#[cfg(unix)]
fn exec(command: &mut Command) -> Result<std::io::Error, Failure> {
    use std::os::unix::process::CommandExt as _;
    Ok(command.exec())
}

/// Runs the command and exits with its code. Returns only on failure.
#[cfg(not(unix))]
fn exec(command: &mut Command) -> Result<std::io::Error, Failure> {
    match command.status() {
        Ok(status) => std::process::exit(status.code().unwrap_or(4)),
        Err(error) => Ok(error),
    }
}
