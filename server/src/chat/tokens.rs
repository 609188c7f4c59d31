//! Tokens: their secrets, the rights that their scopes grant, and the connections that
//! entered by them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hark_protocol::message::{Scope, TokenEntry};
use hark_protocol::{
    Code, OkFields, Password, Refusal, Reply, Request, RoomName, RoomReply, RoomRequest, TokenName,
    UserName,
};
use tokio::time::Instant;

use super::accounts::{Authenticated, Entrance, delay};
use super::replies::room_refusal;
use super::rooms::{Caller, Part};
use super::shutdown::{Shutdown, ShutdownSignal};
use super::{Chat, Fault, audit, now_ms};
use crate::store::{
    Account, AccountToken, NewToken, RoomAnswer, RoomCommand, Token, TokenDigest, Unavailable,
};
use crate::sync::Mutex;

/// The beginning of every secret.
const SECRET_PREFIX: &str = "hk_";

/// The random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// Their length in Base64 without padding, in characters.
const SECRET_CHARS: usize = 43;

/// The right that a request needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Right<'r> {
    /// That of everyone.
    Enter,
    /// Sending to this recipient; `None` for the session of sends.
    Send(Option<&'r UserName>),
    /// Receiving, and reading of rooms.
    Receive,
    /// Everything else that a user does.
    Use,
    /// The administration of the account.
    Administer,
}

impl<'r> Right<'r> {
    /// Returns the right that a request needs.
    pub(super) fn of(request: &'r Request) -> Self {
        match request {
            Request::Login { .. } | Request::Disconnect | Request::Ping => Self::Enter,
            Request::Hello { .. } => Self::Send(None),
            Request::Send { user, .. } => Self::Send(Some(user)),
            Request::Connect { .. } | Request::Ack { .. } => Self::Receive,
            Request::Create { .. } | Request::List { .. } => Self::Use,
            Request::Delete { user, .. } if user.as_str().starts_with(RoomName::MARK) => Self::Use,
            Request::Delete { .. } | Request::Password { .. } => Self::Administer,
            Request::Room(request) => Self::of_room(request),
        }
    }

    const fn of_room(request: &RoomRequest) -> Self {
        match request {
            RoomRequest::Attach { .. }
            | RoomRequest::History { .. }
            | RoomRequest::Seen { .. }
            | RoomRequest::Rooms { .. } => Self::Receive,
            RoomRequest::Set { .. }
            | RoomRequest::Join(_)
            | RoomRequest::Leave(_)
            | RoomRequest::Invite { .. }
            | RoomRequest::Expel { .. }
            | RoomRequest::Own { .. }
            | RoomRequest::Talk(_)
            | RoomRequest::Block(_)
            | RoomRequest::Unblock(_)
            | RoomRequest::Members { .. }
            | RoomRequest::Devices
            | RoomRequest::Tokens => Self::Use,
            RoomRequest::Forget(_) | RoomRequest::Token { .. } | RoomRequest::Revoke(_) => {
                Self::Administer
            }
        }
    }

    /// Returns whether a scope grants the right.
    pub(super) fn is_granted_by(self, scope: &Scope) -> bool {
        match (scope, self) {
            (_, Self::Enter) => true,
            (Scope::All, right) => right != Self::Administer,
            (Scope::Receive, right) => right == Self::Receive,
            (Scope::Send, right) => matches!(right, Self::Send(_)),
            (Scope::SendTo(only), Self::Send(to)) => to.is_none_or(|to| to == only),
            (Scope::SendTo(_), _) => false,
        }
    }
}

/// The refusal of a request that the scope of a token does not grant.
pub(super) fn out_of_scope() -> Refusal {
    Refusal::new(Code::Denied, OUT_OF_SCOPE)
}

/// The explanation of `denied` for a lacking scope.
pub(super) const OUT_OF_SCOPE: &str = "the scope of this token does not allow it";

/// The connection that logs in.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entering<'c> {
    pub(super) address: IpAddr,
    /// Ends the connection when the token is revoked.
    pub(super) shutdown: &'c Arc<ShutdownSignal>,
    /// The right that it needs.
    pub(super) right: Right<'static>,
}

/// The rights of a connection that entered by a token. The connection is closed when the
/// token ends.
#[derive(Debug)]
pub(super) struct Grant {
    name: TokenName,
    pub(super) scope: Scope,
    account: u64,
    digest: TokenDigest,
    shutdown: Arc<ShutdownSignal>,
    connections: Arc<TokenConnections>,
}

impl Grant {
    /// Returns the name of the token.
    pub(super) const fn name(&self) -> &TokenName {
        &self.name
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.connections.remove(self);
    }
}

/// The connections that entered by tokens.
#[derive(Debug, Default)]
pub(super) struct TokenConnections {
    // Locked because a connection is removed where it is dropped. Held for one operation on
    // the connections of an account.
    by_account: Mutex<HashMap<u64, Vec<TokenConnection>>>,
}

#[derive(Debug, Clone)]
struct TokenConnection {
    digest: TokenDigest,
    shutdown: Arc<ShutdownSignal>,
}

impl TokenConnections {
    /// Adds a connection until the grant is dropped.
    fn add(self: &Arc<Self>, found: &AccountToken, shutdown: &Arc<ShutdownSignal>) -> Grant {
        let (account, digest) = (found.account.incarnation, found.token.digest);
        let mut by_account = self.by_account.lock();
        by_account
            .entry(account)
            .or_default()
            .push(TokenConnection {
                digest,
                shutdown: Arc::clone(shutdown),
            });
        Grant {
            name: found.token.name.clone(),
            scope: found.token.scope.clone(),
            account,
            digest,
            shutdown: Arc::clone(shutdown),
            connections: Arc::clone(self),
        }
    }

    fn remove(&self, grant: &Grant) {
        let mut by_account = self.by_account.lock();
        let Some(connections) = by_account.get_mut(&grant.account) else {
            return;
        };
        let at = connections.iter().position(|connection| {
            Arc::ptr_eq(&connection.shutdown, &grant.shutdown) && connection.digest == grant.digest
        });
        if let Some(at) = at {
            connections.swap_remove(at);
        }
        if connections.is_empty() {
            by_account.remove(&grant.account);
        }
    }

    /// Returns the connections of an account.
    fn of(&self, account: &Account) -> Vec<TokenConnection> {
        let by_account = self.by_account.lock();
        let connections = by_account.get(&account.incarnation);
        connections.cloned().unwrap_or_default()
    }
}

impl Chat {
    /// Logs in by a token. Returns `None` if the password is not that of a token of this
    /// user.
    ///
    /// # Errors
    /// [`Code::Denied`] if its scope does not grant the right.
    pub(super) async fn login_by_token(
        &self,
        entering: Entering<'_>,
        user: &UserName,
        password: Option<&Password>,
    ) -> Result<Option<Authenticated>, Fault> {
        let Some(found) = self.find_token(password).await? else {
            return Ok(None);
        };
        let (account, token) = (&found.account, &found.token);
        if account.name != *user {
            return Ok(None);
        }
        if !entering.right.is_granted_by(&token.scope) {
            return Err(out_of_scope().into());
        }
        let grant = self.token_connections.add(&found, entering.shutdown);
        // If the token ends from now on, the connection is closed.
        if self.store.token(token.digest).await?.is_none() {
            return Ok(None);
        }
        let now_s = u32::try_from(now_ms() / 1000).unwrap_or(u32::MAX);
        if !token.was_used_lately(now_s) {
            self.store.note_token_use(account, token.digest);
        }
        Ok(Some(Authenticated {
            account: account.clone(),
            entrance: Entrance::Token(Arc::new(grant)),
        }))
    }

    /// Returns the user of a token; `None` if this is the secret of no token.
    ///
    /// # Errors
    /// [`Fault::Unavailable`].
    pub async fn token_user(&self, secret: Option<&Password>) -> Result<Option<UserName>, Fault> {
        let found = self.find_token(secret).await?;
        Ok(found.map(|found| found.account.name))
    }

    /// Returns the user of a token that comes without a name. The secret of no token counts
    /// as a wrong password from the address.
    ///
    /// # Errors
    /// [`Code::Denied`], [`Code::RateLimited`].
    pub async fn identify(&self, address: IpAddr, secret: &Password) -> Result<UserName, Fault> {
        if let Some(user) = self.token_user(Some(secret)).await? {
            return Ok(user);
        }
        self.login_limiter.check(None, address, Instant::now())?;
        audit::wrong_token(address);
        let now = Instant::now();
        delay(self.login_limiter.record_failure(None, address, now)).await;
        Fault::refused(Code::Denied, "wrong token")
    }

    async fn find_token(&self, secret: Option<&Password>) -> Result<Option<AccountToken>, Fault> {
        match secret.and_then(digest) {
            Some(digest) if self.store.has_rooms() => Ok(self.store.token(digest).await?),
            _ => Ok(None),
        }
    }

    /// Closes the connections of an account that entered by a token which has ended.
    pub(crate) async fn close_revoked(&self, account: &Account) -> Result<(), Fault> {
        for connection in self.token_connections.of(account) {
            if self.store.token(connection.digest).await?.is_none() {
                connection.shutdown.request(Shutdown::Close);
            }
        }
        Ok(())
    }
}

impl Caller {
    /// Creates a token. Its secret is answered once.
    pub(super) async fn create_token(
        self,
        name: TokenName,
        scope: Scope,
        request: &RoomRequest,
    ) -> Result<Reply, Fault> {
        let Entrance::Password(password) = &self.user.entrance else {
            return Err(room_refusal(Code::Denied, request).into());
        };
        let secret = new_secret()?;
        let token = NewToken {
            name: name.clone(),
            scope: scope.clone(),
            digest: TokenDigest::of(secret.expose()),
            password: password.clone(),
        };
        self.ask(RoomCommand::SetToken(token), request).await?;
        // A former token of this name has ended.
        self.chat.close_revoked(&self.user.account).await?;
        audit::token_created(&name, &scope, &self.user, self.address);
        Ok(Reply::Ok(OkFields::Token(secret)))
    }

    /// Lists the tokens of the user.
    pub(super) async fn list_tokens(self) -> Result<Part, Fault> {
        let request = RoomRequest::Tokens;
        let RoomAnswer::Tokens(tokens) = self.ask(RoomCommand::Tokens, &request).await? else {
            return Err(Unavailable.into());
        };
        let end = Reply::Ok(OkFields::Listed(tokens.len(), false));
        let replies = tokens.into_iter().map(token_reply).chain([end]);
        Ok(Part {
            replies: replies.collect(),
            rest: None,
        })
    }

    /// Ends a token, and closes the connections that entered by it.
    pub(super) async fn revoke(
        self,
        name: TokenName,
        request: &RoomRequest,
    ) -> Result<Reply, Fault> {
        let answer = self.ask(RoomCommand::Revoke(name.clone()), request).await?;
        // Even if it did not exist: the answer to a former request may be lost.
        self.chat.close_revoked(&self.user.account).await?;
        if answer == RoomAnswer::Existed(true) {
            audit::token_revoked(&name, &self.user, self.address);
        }
        Ok(Reply::Ok(OkFields::None))
    }
}

fn token_reply(token: Token) -> Reply {
    Reply::Room(RoomReply::Token(TokenEntry {
        name: token.name,
        scope: token.scope,
        used_ms: u64::from(token.used_s) * 1000,
    }))
}

/// Returns a new secret.
fn new_secret() -> Result<Password, Fault> {
    let random: [u8; SECRET_BYTES] = rand::random();
    let secret = format!("{SECRET_PREFIX}{}", URL_SAFE_NO_PAD.encode(random));
    Ok(secret.parse().map_err(Refusal::from)?)
}

/// Returns the digest of a password that may be the secret of a token.
fn digest(password: &Password) -> Option<TokenDigest> {
    let random = password.expose().strip_prefix(SECRET_PREFIX)?;
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let is_secret = random.len() == SECRET_CHARS && random.bytes().all(is_allowed);
    is_secret.then(|| TokenDigest::of(password.expose()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_has_a_prefix_and_43_characters() {
        let (one, other) = (new_secret().unwrap(), new_secret().unwrap());
        assert_eq!(one.expose().len(), SECRET_PREFIX.len() + SECRET_CHARS);
        assert!(digest(&one).is_some());
        assert_ne!(digest(&one), digest(&other));
        for password in ["hk_", "hk_short", &format!("{}.", &one.expose()[..45])] {
            assert_eq!(digest(&password.parse().unwrap()), None, "{password}");
        }
    }

    /// Returns the commands that a scope allows, of one request each.
    fn allowed(scope: &str) -> Vec<String> {
        let scope: Scope = scope.parse().unwrap();
        let requests = [
            ("hello", "1,x"),
            ("create", "eve"),
            ("login", "bob"),
            ("connect", "bob"),
            ("disconnect", ""),
            ("password", "bob,,new"),
            ("delete", "bob"),
            ("delete", "#team"),
            ("list", ""),
            ("send", "bob,x"),
            ("send", "#team,x"),
            ("ack", "1"),
            ("ping", ""),
            ("room", "#team,open"),
            ("join", "#team"),
            ("leave", "#team"),
            ("invite", "#team,bob"),
            ("expel", "#team,bob"),
            ("own", "#team,bob"),
            ("talk", "bob"),
            ("block", "bob"),
            ("unblock", "bob"),
            ("rooms", ""),
            ("members", "#team"),
            ("attach", "bob,phone"),
            ("devices", ""),
            ("forget", "phone"),
            ("history", "#team,0,1"),
            ("seen", "#team,1"),
            ("token", "x,all"),
            ("tokens", ""),
            ("revoke", "x"),
        ];
        let granted = requests.into_iter().filter(|(command, payload)| {
            use hark_protocol::message::Message as _;
            let request = Request::parse(command, payload).unwrap();
            Right::of(&request).is_granted_by(&scope)
        });
        granted
            .map(|(command, payload)| match command {
                "send" | "delete" => format!("{command} {payload}"),
                _ => command.to_owned(),
            })
            .collect()
    }

    #[test]
    fn scopes_allow_the_commands_of_the_protocol() {
        assert_eq!(
            allowed("send"),
            [
                "hello",
                "login",
                "disconnect",
                "send bob,x",
                "send #team,x",
                "ping"
            ]
        );
        assert_eq!(
            allowed("send:#team"),
            ["hello", "login", "disconnect", "send #team,x", "ping"]
        );
        assert_eq!(
            allowed("receive"),
            [
                "login",
                "connect",
                "disconnect",
                "ack",
                "ping",
                "rooms",
                "attach",
                "history",
                "seen"
            ]
        );
        let all = allowed("all");
        for denied in ["password", "token", "revoke", "forget", "delete bob"] {
            assert!(!all.iter().any(|command| command == denied), "{denied}");
        }
        assert_eq!(all.len(), 32 - 5);
    }
}
