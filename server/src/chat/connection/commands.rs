//! The start of each command. The parent module decides when a command starts and
//! sends its reply.

use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;

use bytestring::ByteString;
use hark_protocol::limits::VERSION;
use hark_protocol::{Code, OkFields, Password, Refusal, Reply, Request, RequestId, SessionToken, UserName};

use super::{Answer, ClientConnection, Done, SendSession};
use crate::chat::{Fault, ROOM_UNITS, UNIT_BYTES, now_ms};
use crate::store::{Append, Pending, SendId, Unavailable};

/// The initial capacity of a burst of sends.
const BURST_SENDS: usize = 8;

impl ClientConnection {
    /// Starts the waiting request, if every earlier one is answered.
    pub(super) fn start_waiting(&mut self) {
        if self.operation.is_some() || !self.answers.is_empty() {
            return;
        }
        let Some((id, request)) = self.waiting.take().map(|waiting| *waiting) else { return };
        match request {
            Request::Hello { version, session } => self.hello(id, version, session),
            Request::Create { user, password } => self.create(id, user, password),
            Request::Login { user, password } => self.login(id, user, password),
            Request::Connect { user, password } => self.connect(id, user, password),
            Request::Disconnect => self.disconnect(id),
            Request::Password { user, old, new } => self.set_password(id, user, old, new),
            Request::Delete { user, password } => self.delete(id, user, password),
            Request::List { pattern } => self.list(id, pattern),
            // Handled at once; they never wait.
            Request::Send { .. } | Request::Ack { .. } | Request::Ping => {}
        }
    }

    fn start(
        &mut self,
        id: Option<RequestId>,
        operation: impl Future<Output = Result<Done, Fault>> + Send + 'static,
    ) {
        self.operation = Some((id, Box::pin(operation)));
    }

    fn hello(&mut self, id: Option<RequestId>, version: u32, session: SessionToken) {
        if version != VERSION {
            let refusal = Refusal::new(Code::BadRequest, "this server speaks version 1 of the protocol");
            return self.refuse_hello(id, refusal);
        }
        let (sessions, shutdown) = (Arc::clone(&self.chat.send_sessions), Arc::clone(&self.shutdown));
        let from = self.network();
        self.start(id, async move {
            Ok(sessions.open(session, from, shutdown).await.map_or_else(Done::NoSession, Done::Hello))
        });
    }

    /// Creates an account without a password, pipelined.
    pub(super) fn create_open(&mut self, id: Option<RequestId>, user: UserName) {
        if let Err(fault) = self.chat.check_password_required(false) {
            return self.answer(id, Answer::Reply(fault.into()));
        }
        // If the budget is exhausted, the request waits instead.
        let Ok(room) = Arc::clone(&self.chat.room).try_acquire_owned() else {
            self.waiting = Some((id, Request::Create { user, password: None }).into());
            return;
        };
        let created = self.chat.store.create(&user, None);
        self.answer(id, Answer::Created { user, created, _room: Some(room) });
    }

    fn create(&mut self, id: Option<RequestId>, user: UserName, password: Option<Password>) {
        let (chat, address, by) = (Arc::clone(&self.chat), self.address, self.user.clone());
        self.start(id, async move {
            let created = chat.create(address, by.as_ref(), &user, password).await?;
            Ok(Done::Creating(user, created))
        });
    }

    fn login(&mut self, id: Option<RequestId>, user: UserName, password: Option<Password>) {
        let (chat, address) = (Arc::clone(&self.chat), self.address);
        self.start(id, async move { chat.login(address, user, password).await.map(Done::LoggedIn) });
    }

    fn connect(&mut self, id: Option<RequestId>, user: UserName, password: Option<Password>) {
        let (chat, address) = (Arc::clone(&self.chat), self.address);
        self.start(id, async move {
            let (authenticated, receiver) = chat.receive(address, user, password).await?;
            Ok(Done::Receiving(authenticated, receiver))
        });
    }

    fn disconnect(&mut self, id: Option<RequestId>) {
        self.user = None;
        self.stop_receiving();
        self.answer(id, Answer::Reply(Reply::Ok(OkFields::none())));
    }

    fn set_password(&mut self, id: Option<RequestId>, user: UserName, old: Option<Password>, new: Password) {
        let (chat, address, by) = (Arc::clone(&self.chat), self.address, self.user.clone());
        self.start(id, async move {
            chat.set_password(address, by.as_ref(), user, old, new).await.map(Done::Reply)
        });
    }

    fn delete(&mut self, id: Option<RequestId>, user: UserName, password: Option<Password>) {
        let (chat, address, by) = (Arc::clone(&self.chat), self.address, self.user.clone());
        self.start(
            id,
            async move { chat.delete(address, by.as_ref(), user, password).await.map(Done::Reply) },
        );
    }

    fn list(&mut self, id: Option<RequestId>, pattern: Option<ByteString>) {
        let (chat, address, by) = (Arc::clone(&self.chat), self.address, self.user.clone());
        self.start(id, async move {
            chat.may_list(by.as_ref()).await?;
            chat.list(address, pattern).await.map(Done::Replies)
        });
    }

    /// Sends a message, pipelined. Waits for room in the budget if there is none.
    pub(super) fn send(&mut self, id: Option<RequestId>, to: UserName, text: ByteString) {
        let rules = &self.chat.rules;
        let refusal = if rules.require_password && self.user.is_none() {
            Some(Code::Denied)
        } else if text.len() > rules.text_bytes_max() {
            Some(Code::TooLarge)
        } else {
            None
        };
        let send_id =
            self.send_session.as_ref().zip(id).map(|(session, id)| session.send_id(id, self.network()));
        let append = Append {
            to,
            sender: self.account().cloned(),
            from_nobody: !rules.require_password,
            // A burst has one time.
            time_ms: self.sends.last().map_or_else(now_ms, |(send, _)| send.time_ms),
            send_id,
            refusal,
            fence: self.fence().clone(),
            permit: None,
            text,
        };
        let units = units(&append.text);
        match Arc::clone(&self.chat.room).try_acquire_many_owned(units) {
            Ok(permit) => self.append(id, Append { permit: Some(permit), ..append }),
            Err(_) => {
                let room = Arc::clone(&self.chat.room);
                self.start(id, async move {
                    let permit = room.acquire_many_owned(units).await.map_err(|_| Unavailable)?;
                    Ok(Done::RoomFor(Box::new(Append { permit: Some(permit), ..append })))
                });
            }
        }
    }

    /// Adds a message that has its permit to the burst for the store.
    pub(super) fn append(&mut self, id: Option<RequestId>, append: Append) {
        let to = append.to.clone();
        let (completer, outcome) = Pending::new();
        if self.sends.is_empty() {
            self.sends.reserve(BURST_SENDS);
        }
        self.sends.push((append, completer));
        self.answer(id, Answer::Sent { to, outcome });
    }
}

impl SendSession {
    fn send_id(&self, id: RequestId, from: Option<IpAddr>) -> SendId {
        let (session, in_order) = match self {
            Self::Open(session) => (session.token(), true),
            Self::Shared(session) => (session, false),
        };
        SendId { session: session.clone(), id, in_order, from }
    }
}

/// Returns the units of the budget that a text takes.
fn units(text: &str) -> u32 {
    u32::try_from((1 + text.len() / UNIT_BYTES).min(ROOM_UNITS)).unwrap_or(u32::MAX)
}
