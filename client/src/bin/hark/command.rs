//! Execution of commands that are typed, piped or given as arguments. The
//! commands themselves are defined in the library.

use hark_client::handle::Names;
use hark_client::rooms::{Device, Joined};
use hark_client::{Handle, RequestError};
use hark_protocol::message::{RoomEntry, TokenEntry};
use hark_protocol::{Delivery, DeviceName, Password, RoomName, UserName};

pub(crate) use hark_client::command::{COMMANDS, Command, Completes, help, parse};

/// Passwords and the device for a command.
#[derive(Debug, Clone, Default)]
pub(crate) struct Secrets {
    /// Password of the account.
    pub(crate) password: Option<Password>,
    /// New password, for `password`, and for `create` by a user that is logged in.
    pub(crate) new_password: Option<Password>,
    /// The user that the password belongs to; `None` if it is for any user.
    pub(crate) owner: Option<UserName>,
    /// The user that is logged in with the password. No new account gets it.
    pub(crate) login: Option<UserName>,
    /// The device that receives; `None` for that of `connect`.
    pub(crate) device: Option<DeviceName>,
}

impl Secrets {
    /// Returns the secrets for a command: without the password if that belongs to another
    /// user than the one that the command names.
    pub(crate) fn for_command(&self, command: &Command) -> Self {
        let user = match command {
            Command::Create(user)
            | Command::Login(user)
            | Command::Connect(user)
            | Command::Delete(user)
            | Command::Password(Some(user)) => user,
            _ => return self.clone(),
        };
        let mut secrets = self.clone();
        if self.owner.as_ref().is_some_and(|owner| owner != user) {
            secrets.password = None;
        }
        secrets
    }

    /// Returns the password of a new account. If a user is logged in, the password is the
    /// user's own.
    fn of_new_account(self) -> Result<Option<Password>, RequestError> {
        match (self.login, self.password, self.new_password) {
            (Some(login), Some(_), None) => Err(RequestError::NotSent(
                format!(
                    "the password is that of {login}; give one to the new account by \
                     --new-password-file"
                )
                .into(),
            )),
            (Some(_), _, new) => Ok(new),
            (None, password, new) => Ok(password.or(new)),
        }
    }
}

/// Result of a successful command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    Plain,
    /// The number of queued messages.
    Connected(u64),
    /// Whether the account or room existed.
    Deleted(bool),
    Listed(Names),
    Joined(Joined),
    /// The room of a conversation.
    Talking(RoomName),
    Rooms(Vec<RoomEntry>),
    /// Messages of a room, the oldest first.
    Past(Vec<Delivery>),
    Devices(Vec<Device>),
    /// The secret of a new token.
    Token(Password),
    Tokens(Vec<TokenEntry>),
}

/// Sends a command to the server and waits for the answer. `help` and `quit`
/// send nothing.
pub(crate) async fn execute(
    handle: &Handle,
    command: Command,
    secrets: Secrets,
) -> Result<Done, RequestError> {
    if let Command::Create(user) = command {
        let password = secrets.of_new_account()?;
        return handle.create(user, password).await.map(plain);
    }
    let Secrets {
        password,
        new_password,
        device,
        login,
        ..
    } = secrets;
    match command {
        Command::Login(user) => handle.login(user, password).await.map(plain),
        Command::Connect(user) => match device {
            Some(device) => handle.receive(user, device, password).await,
            None => handle.connect(user, password).await,
        }
        .map(Done::Connected),
        Command::Disconnect => handle.disconnect().await.map(plain),
        Command::Delete(user) => handle.delete(user, password).await.map(Done::Deleted),
        Command::List(pattern) => handle.list(pattern).await.map(Done::Listed),
        Command::Send(user, text) => handle.send(user, text).await?.await.map(|_| Done::Plain),
        Command::Ping => handle.ping().await.map(plain),
        Command::Password(user) => match (user, new_password) {
            (Some(user), Some(new)) => {
                let old = password.filter(|_| login.is_none_or(|login| login == user));
                handle.password(user, old, new).await.map(plain)
            }
            (None, _) => Err(RequestError::NotSent("no user given".into())),
            (_, None) => Err(RequestError::NotSent("no new password given".into())),
        },
        Command::Recall(..) | Command::Undo | Command::Ignore(_) | Command::Unignore(_) => {
            let why = "this command belongs to the chat in a terminal";
            Err(RequestError::NotSent(why.into()))
        }
        Command::Help | Command::Quit => Ok(Done::Plain),
        command => execute_in_rooms(handle, command).await,
    }
}

/// Sends a command of rooms, devices or tokens.
async fn execute_in_rooms(handle: &Handle, command: Command) -> Result<Done, RequestError> {
    match command {
        Command::Room(room, mode, keep_s) => handle.room(room, mode, keep_s).await.map(plain),
        Command::Join(room) => handle.join(room).await.map(Done::Joined),
        Command::Leave(room) => handle.leave(room).await.map(plain),
        Command::Invite(room, user) => handle.invite(room, user).await.map(plain),
        Command::Expel(room, user) => handle.expel(room, user).await.map(plain),
        Command::Own(room, user) => handle.own(room, user).await.map(plain),
        Command::Talk(user) => handle.talk(user).await.map(Done::Talking),
        Command::Block(user) => handle.block(user).await.map(plain),
        Command::Unblock(user) => handle.unblock(user).await.map(plain),
        Command::Rooms(pattern) => handle.rooms(pattern).await.map(Done::Rooms),
        Command::Members(room) => handle.members(room, None).await.map(Done::Listed),
        Command::History(room, count, before) => {
            let mut page = handle.history(room, before, count).await?;
            page.messages.reverse();
            Ok(Done::Past(page.messages))
        }
        Command::Seen(room, number) => handle.seen(room, number).await.map(plain),
        Command::Devices => handle.devices().await.map(Done::Devices),
        Command::Forget(device) => handle.forget(device).await.map(plain),
        Command::Token(name, scope) => handle.token(name, scope).await.map(Done::Token),
        Command::Tokens => handle.tokens().await.map(Done::Tokens),
        Command::Revoke(name) => handle.revoke(name).await.map(plain),
        _ => Ok(Done::Plain),
    }
}

const fn plain((): ()) -> Done {
    Done::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn password_goes_to_its_owner_alone() {
        let user = |name: &str| name.parse::<UserName>().unwrap();
        let secrets = Secrets {
            password: Some("secret".parse().unwrap()),
            owner: Some(user("ann")),
            ..Secrets::default()
        };
        let has = |command| secrets.for_command(&command).password.is_some();
        assert!(has(Command::Connect(user("ann"))));
        assert!(!has(Command::Connect(user("bob"))));
        assert!(!has(Command::Create(user("bob"))));
        let any = Secrets {
            owner: None,
            ..secrets.clone()
        };
        let kept = any.for_command(&Command::Login(user("bob")));
        assert!(kept.password.is_some());
    }

    #[test]
    fn new_account_gets_no_password_of_another() {
        let password = |text: &str| text.parse::<Password>().ok();
        let secrets = |login: Option<&str>, new: Option<&str>| Secrets {
            password: password("adm"),
            new_password: new.and_then(password),
            login: login.map(|name| name.parse().unwrap()),
            ..Secrets::default()
        };
        let of = |secrets: Secrets| secrets.of_new_account().ok().flatten();
        assert_eq!(of(secrets(None, Some("new"))), password("adm"));
        assert_eq!(of(secrets(Some("root"), Some("new"))), password("new"));
        assert!(secrets(Some("root"), None).of_new_account().is_err());
    }
}
