#![doc = include_str!("../README.md")]
//!
//! The caller opens a byte stream to the server, by the socket in the folder of its store or
//! over the network, and passes it to [`Connection::open`]. [`execute`] runs one command.
//!
//! | module | contents |
//! | --- | --- |
//! | `arguments` | the command line of a command |
//! | `connection` | the HTTP/2 connection, and the credentials of its calls |
//! | `commands` | a call for each command, and its output |
//! | `rows` | the columns of users, rooms and connections |
//! | `table` | aligned columns, or JSON |

mod arguments;
mod commands;
mod connection;
mod rows;
mod table;

use std::io;

use hark_protocol::Password;

pub use arguments::{BanTime, Command, LimitArgs, Ranking};
pub use commands::execute;
pub use connection::Connection;

/// How a command prints and asks.
pub struct Console<'c> {
    /// The output.
    pub output: &'c mut dyn io::Write,
    /// Prints JSON: one object per line.
    pub is_json: bool,
    /// Whether the output is a terminal.
    pub is_terminal: bool,
    /// Asks for the new password of an account.
    pub new_password: &'c mut dyn FnMut() -> Result<Password, String>,
}

impl std::fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console")
            .field("is_json", &self.is_json)
            .field("is_terminal", &self.is_terminal)
            .finish_non_exhaustive()
    }
}

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused the call, or the connection failed.
    #[error("{}", .0.message())]
    Call(Box<tonic::Status>),
    /// The object of the command is missing or damaged.
    #[error("{0}")]
    Failed(String),
    /// A failure on this machine.
    #[error("{0}")]
    Local(String),
    /// The output cannot be written.
    #[error("cannot write to the output: {0}")]
    Output(#[from] io::Error),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Call(Box::new(status))
    }
}

impl Console<'_> {
    /// Prints a line. A closed pipe is not an error.
    pub(crate) fn print(&mut self, line: impl std::fmt::Display) -> io::Result<()> {
        let written = writeln!(self.output, "{line}").and_then(|()| self.output.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written,
        }
    }
}
