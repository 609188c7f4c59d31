//! Execution of commands that are typed, piped or given as arguments. The
//! commands themselves are defined in the library.

use hark_client::handle::Names;
use hark_client::{Handle, RequestError};
use hark_protocol::Password;

pub(crate) use hark_client::command::{COMMANDS, Command, help, parse};

/// Passwords for a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    /// Password of the account.
    pub(crate) password: Option<Password>,
    /// New password, for `password`.
    pub(crate) new_password: Option<Password>,
}

/// Result of a successful command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    Plain,
    /// The number of queued messages.
    Connected(u64),
    /// Whether the account existed.
    Deleted(bool),
    Listed(Names),
}

/// Sends a command to the server and waits for the answer. `help` and `quit`
/// send nothing.
pub(crate) async fn execute(
    handle: &Handle,
    command: Command,
    secrets: Secrets,
) -> Result<Done, RequestError> {
    let Secrets {
        password,
        new_password,
    } = secrets;
    match command {
        Command::Create(user) => handle.create(user, password).await.map(plain),
        Command::Login(user) => handle.login(user, password).await.map(plain),
        Command::Connect(user) => handle.connect(user, password).await.map(Done::Connected),
        Command::Disconnect => handle.disconnect().await.map(plain),
        Command::Delete(user) => handle.delete(user, password).await.map(Done::Deleted),
        Command::List(pattern) => handle.list(pattern).await.map(Done::Listed),
        Command::Send(user, text) => handle.send(user, text).await?.await.map(|_| Done::Plain),
        Command::Ping => handle.ping().await.map(plain),
        Command::Password(user) => match (user, new_password) {
            (Some(user), Some(new)) => handle.password(user, password, new).await.map(plain),
            (None, _) => Err(RequestError::NotSent("no user given".into())),
            (_, None) => Err(RequestError::NotSent("no new password given".into())),
        },
        Command::Help | Command::Quit => Ok(Done::Plain),
    }
}

const fn plain((): ()) -> Done {
    Done::Plain
}
