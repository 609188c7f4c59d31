//! The commands that take time, as futures. Each gets the identity of its
//! connection at its start and results in a change, which the connection applies; it
//! knows no connection.

use std::future::{Future, ready};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytestring::ByteString;
use hark_protocol::limits::VERSION;
use hark_protocol::{
    Code, DeviceName, OkFields, Password, Refusal, Reply, Request, RoomRequest, SessionToken,
    UserName,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep};

use crate::chat::accounts::Authenticated;
use crate::chat::rate_limiter::{Charged, SendSize};
use crate::chat::replies::LOGIN_REQUIRED;
use crate::chat::rooms::{Caller, Part, Rest};
use crate::chat::send_sessions::OpenSession;
use crate::chat::shutdown::ShutdownSignal;
use crate::chat::tokens::{Entering, Right};
use crate::chat::{Chat, Fault};
use crate::store::{
    Append, Created, DeviceId, DeviceSubscription, Pending, Subscription, Unavailable,
};

/// A command in progress.
pub(super) type RunningCommand = Pin<Box<dyn Future<Output = Result<Done, Fault>> + Send>>;

/// The result of a [`RunningCommand`], to be applied to the connection.
pub(super) enum Done {
    /// A part of an answer.
    Part(Part),
    Replies(Vec<Reply>),
    Reply(Reply),
    Hello(OpenSession),
    NoSession(Fault),
    LoggedIn(Authenticated),
    LoggedOut,
    Receiving(Authenticated, Subscription),
    /// Begins the delivery of a device.
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
            Request::Room(RoomRequest::Attach {
                user,
                device,
                password,
            }) => Box::pin(self.attach(user, device, password)),
            Request::Room(request) => Box::pin(self.room(request)),
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

    fn entering(&self, right: Right<'static>) -> Entering<'_> {
        Entering {
            address: self.address,
            shutdown: &self.shutdown,
            right,
        }
    }

    async fn login(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        let entering = self.entering(Right::Enter);
        self.chat
            .login(entering, user, password)
            .await
            .map(Done::LoggedIn)
    }

    async fn connect(self, user: UserName, password: Option<Password>) -> Result<Done, Fault> {
        let entering = self.entering(Right::Receive);
        let (authenticated, subscription) = self.chat.receive(entering, user, password).await?;
        Ok(Done::Receiving(authenticated, subscription))
    }

    async fn attach(
        self,
        user: UserName,
        device: DeviceName,
        password: Option<Password>,
    ) -> Result<Done, Fault> {
        let entering = self.entering(Right::Receive);
        let (authenticated, attached) = self.chat.attach(entering, user, device, password).await?;
        Ok(Done::Attached(authenticated, Box::new(attached)))
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
        if self.user.is_some()
            && let Some(room) = self.chat.room_to_delete(&user).await?
        {
            let is_admin = self.chat.is_admin(self.user.as_ref()).await?;
            let existed = self.caller()?.delete_room(room, is_admin).await?;
            return Ok(Done::Reply(Reply::Ok(OkFields::Deleted(existed))));
        }
        self.chat
            .delete(self.address, self.user.as_ref(), user, password)
            .await
            .map(Done::Reply)
    }

    async fn room(self, request: RoomRequest) -> Result<Done, Fault> {
        self.chat.check_served(&request)?;
        self.caller()?.answer(request).await.map(Done::Part)
    }

    /// Returns the user of the connection, which a request of rooms needs.
    fn caller(self) -> Result<Caller, Fault> {
        match self.user {
            Some(user) => Ok(Caller {
                chat: self.chat,
                address: self.address,
                user,
                device: self.device,
            }),
            None => Fault::refused(Code::Denied, LOGIN_REQUIRED),
        }
    }

    async fn list(self, pattern: Option<ByteString>) -> Result<Done, Fault> {
        self.chat.may_list(self.user.as_ref()).await?;
        self.chat
            .list(self.address, pattern)
            .await
            .map(Done::Replies)
    }
}

/// Continues an answer.
pub(super) fn continue_answer(rest: Rest) -> RunningCommand {
    Box::pin(async move { rest.await.map(Done::Part) })
}

/// The send of a message that cannot go to the store at once.
pub(super) struct DelayedSend {
    pub(super) chat: Arc<Chat>,
    pub(super) append: Append,
    /// The wait before its user may send again.
    pub(super) wait: Option<Duration>,
    /// See [`Charged`].
    pub(super) is_exempt: bool,
}

impl DelayedSend {
    /// Waits until the user may send, and for a share of the budget for messages.
    pub(super) fn start(self) -> RunningCommand {
        Box::pin(self.run())
    }

    async fn run(mut self) -> Result<Done, Fault> {
        let (chat, append) = (self.chat, &mut self.append);
        let send = SendSize {
            bytes: append.text.len(),
            is_to_room: chat.is_room(&append.to),
        };
        while let Some(wait) = self.wait.take() {
            sleep(wait).await;
            if let Some(sender) = &append.sender {
                let charged = Charged {
                    user: &sender.name,
                    is_exempt: self.is_exempt,
                };
                let admitted = chat.users.admit_send(charged, send, Instant::now());
                self.wait = admitted.err();
            }
        }
        // An old account may have the name of a room.
        if chat.hides_room(&append.to) && chat.store.account(&append.to).await?.is_none() {
            append.refusal = append.refusal.or(Some(Code::NoSuchUser));
        }
        let units = super::sends::units(&append.text);
        let permit = Arc::clone(&chat.budget).acquire_many_owned(units).await;
        let permit = permit.map_err(|_| Unavailable)?;
        Ok(Done::Permitted(Box::new((self.append, permit))))
    }
}
