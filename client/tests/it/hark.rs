//! Execution of the real binary.

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::chat::ChatServer;

/// A user of hark, with a state directory and a server.
pub(crate) struct Terminal {
    pub(crate) state: tempfile::TempDir,
    pub(crate) server: String,
}

/// Output and exit code of a run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Terminal {
    pub(crate) fn at(server: &ChatServer) -> Self {
        Self {
            state: tempfile::tempdir().unwrap(),
            server: server.address.to_string(),
        }
    }

    /// Returns a command for hark, isolated from the settings of this machine.
    pub(crate) fn hark(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hark"));
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("HARK_") {
                command.env_remove(variable);
            }
        }
        command
            .args(arguments)
            .env("HARK_SERVER", &self.server)
            .env("XDG_STATE_HOME", self.state.path())
            .env("XDG_CONFIG_HOME", self.state.path().join("config"))
            .env("TZ", "UTC")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Writes the configuration file.
    pub(crate) fn configure(&self, text: &str) {
        let directory = self.state.path().join("config/hark");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("config.toml"), text).unwrap();
    }

    /// Runs one command to completion.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        ran(self.hark(arguments).output().unwrap())
    }

    /// Runs hark with these lines on stdin.
    pub(crate) fn pipe(&self, lines: &str) -> Ran {
        pipe(self.hark([""; 0]), lines)
    }
}

pub(crate) fn pipe(mut command: Command, lines: &str) -> Ran {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(lines.as_bytes()).unwrap();
    drop(stdin);
    ran(child.wait_with_output().unwrap())
}

pub(crate) fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Returns a successful run with this output.
pub(crate) fn fine(out: &str) -> Ran {
    Ran {
        code: Some(0),
        out: out.to_owned(),
        err: String::new(),
    }
}
