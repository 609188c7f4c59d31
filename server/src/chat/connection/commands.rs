//! The commands that take time, as futures. Each gets the identity of its
//! connection at its start and results in a change, which the connection applies; it
//! knows no connection.

use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytestring::ByteString;
use hark_protocol::limits::VERSION;
use hark_protocol::{Code, Password, Refusal, Reply, Request, SessionToken, UserName};
use tokio::sync::OwnedSemaphorePermit;

use crate::chat::accounts::Authenticated;
use crate::chat::send_sessions::OpenSession;
use crate::chat::shutdown::ShutdownSignal;
use crate::chat::{Chat, Fault};
use crate::store::{
    Append, Created, DeviceId, DeviceSubscription, Pending, Subscription, Unavailable,
};

/// A command in progress.
pub(super) type RunningCommand = Pin<Box<dyn Future<Output = Result<Done, Fault>> + Send>>;

/// The result of a [`RunningCommand`], to be applied to the connection.
pub(super) enum Done {
    Replies(Vec<Reply>),
    Reply(Reply),
    Hello(OpenSession),
    NoSession(Fault),
    LoggedIn(Authenticated),
    LoggedOut,
    Receiving(Authenticated, Subscription),
    /// Begins the delivery of a device.
    #[expect(dead_code, reason = "no command attaches a device yet")]
    Attached(Authenticated, Box<DeviceSubscription>),
    Creating(UserName, Pending<Created>),
    Permitted(Box<(Append, OwnedSemaphorePermit)>),
}

/// The state of the connection at the start of a command.
pub(super) struct CommandContext {
    pub(super) chat: Arc<Chat>,
    pub(super) address: IpAddr,
    pub(super) user: Option<Authenticated>,
    /// The device of the user that is attached to the connection.
    #[expect(dead_code, reason = "no command concerns rooms yet")]
    pub(super) device: Option<DeviceId>,
    pub(super) shutdown: Arc<ShutdownSignal>,
}

impl CommandContext {
    /// Starts a request.
    pub(super) fn start(self, request: Request) -> RunningCommand {
        match request {
            Request::Hello { version, session } => Box::pin(self.hello(version, session)),
            Request::Create { user, password } => Box::pin(self.create(user, password)),
            Request::Login { user, password } => Box::pin(self.login(user, password)),
            Request::Connect { user, password } => Box::pin(self.connect(user, password)),
            Request::Password { user, old, new } => Box::pin(self.set_password(user, old, new)),
            Request::Delete { user, password } => Box::pin(self.delete(user, password)),
            Request::List { pattern } => Box::pin(self.list(pattern)),
            Request::Disconnect => Box::pin(ready(Ok(Done::LoggedOut))),
            // The connection answers these at once.
            Request::Send { .. } | Request::Ack { .. } | Request::Ping => {
                Box::pin(ready(Ok(Done::Replies(Vec::new()))))
            }
        }
    }

    async fn hello(self, version: u32, session: SessionToken) -> Result<Done, Fault> {
        if version != VERSION {
            let refusal = Refusal::new(
                Code::BadRequest,
                "this server speaks version 1 of the protocol",
            );
            return Ok(Done::NoSession(refusal.into()));
        }
        let from = self.chat.network(self.address);
        let opened = self
            .chat
            .send_sessions
            .open(session, from, self.shutdown)
            .await;
        Ok(opened.map_or_else(Done::NoSession, Done::Hello))
    }

    async fn create(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        let created = self
            .chat
            .create(self.address, self.user.as_ref(), &user, password)
            .await?;
        Ok(Done::Creating(user, created))
    }

    async fn login(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        self.chat
            .login(self.address, user, password)
            .await
            .map(Done::LoggedIn)
    }

    async fn connect(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        let (authenticated, subscription) = self.chat.receive(self.address, user, password).await?;
        Ok(Done::Receiving(authenticated, subscription))
    }

    async fn set_password(
        self,
        user: UserName,
        old: Option<Password>,
        new: Password,
    ) -> Result<Done, Fault> {
        self.chat
            .set_password(self.address, self.user.as_ref(), user, old, new)
            .await
            .map(Done::Reply)
    }

    async fn delete(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        self.chat
            .delete(self.address, self.user.as_ref(), user, password)
            .await
            .map(Done::Reply)
    }

    async fn list(self, pattern: Option<ByteString>) -> Result<Done, Fault> {
        self.chat.may_list(self.user.as_ref()).await?;
        self.chat
            .list(self.address, pattern)
            .await
            .map(Done::Replies)
    }
}

/// Waits for a share of the budget for messages.
pub(super) fn wait_for_budget(chat: &Chat, append: Append) -> RunningCommand {
    let (budget, units) = (Arc::clone(&chat.budget), super::sends::units(&append.text));
    Box::pin(async move {
        let permit = budget
            .acquire_many_owned(units)
            .await
            .map_err(|_| Unavailable)?;
        Ok(Done::Permitted(Box::new((append, permit))))
    })
}
