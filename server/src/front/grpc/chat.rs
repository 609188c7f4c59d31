//! `hark.v1.Chat`: each call is made of requests on its own client connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use hark_grpc::rooms::WithLogin;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::{
    AckReply, AckRequest, AttachReply, AttachRequest, ChatReply, ChatRequest, ConnectReply,
    ConnectRequest, CreateReply, CreateRequest, Credentials, DeleteReply, DeleteRequest,
    DevicesReply, DevicesRequest, ForgetReply, ForgetRequest, HistoryReply, HistoryRequest,
    JoinReply, JoinRequest, LeaveReply, LeaveRequest, ListReply, ListRequest, MemberReply,
    MemberRequest, MembersReply, MembersRequest, PasswordReply, PasswordRequest, RevokeReply,
    RevokeRequest, RoomReply, RoomRequest, RoomsReply, RoomsRequest, SeenReply, SeenRequest,
    SendReply, SendRequest, TalkReply, TalkRequest, TokenReply, TokenRequest, TokensReply,
    TokensRequest, UserReply, UserRequest, chat_server,
};
use hark_grpc::{request, status};
use hark_protocol::{OkFields, Refusal, RequestId};
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use super::abortable::Abortable;
use super::bidi::Bidi;
use super::caller;
use super::connect::{Delivered, DeliveryStream, Receipts};
use super::list::{Part, Parts};
use crate::chat::Chat;
use crate::front::call::Call;

/// A response stream.
type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The chat as a service.
#[derive(Debug)]
pub(super) struct ChatService {
    chat: Arc<Chat>,
    receipts: Arc<Receipts>,
    ack_timeout: Duration,
}

impl ChatService {
    /// Returns the service of `chat`. After a takeover, the acknowledgements of a stream
    /// count for `ack_timeout`.
    pub(super) fn new(chat: Arc<Chat>, ack_timeout: Duration) -> Self {
        Self {
            chat,
            receipts: Arc::default(),
            ack_timeout,
        }
    }

    fn call<T>(&self, request: Request<T>) -> Result<(Call, T), Status> {
        let call = Call::new(&self.chat, caller(request.extensions())?);
        Ok((call, request.into_inner()))
    }

    /// Returns a call that is logged in, or anonymous without credentials.
    async fn call_as(
        &self,
        login: Option<Credentials>,
        extensions: &Extensions,
    ) -> Result<Call, Status> {
        let mut call = Call::new(&self.chat, caller(extensions)?);
        if let Some(credentials) = login {
            call.request(credentials.try_into()).await?;
        }
        Ok(call)
    }

    /// Makes a request as its caller.
    async fn ask<T: WithLogin>(
        &self,
        request: Request<T>,
        convert: impl FnOnce(T) -> Result<hark_protocol::Request, Refusal>,
    ) -> Result<OkFields, Status> {
        let (_, extensions, mut request) = request.into_parts();
        let mut call = self.call_as(request.take_login(), &extensions).await?;
        Ok(call.request(convert(request)).await?)
    }

    /// Makes a request as its caller, with an answer of many parts.
    async fn ask_for_parts<T: WithLogin, P: Part + 'static>(
        &self,
        request: Request<T>,
        convert: impl FnOnce(T) -> Result<hark_protocol::Request, Refusal>,
    ) -> Result<Response<ResponseStream<P>>, Status> {
        let (_, extensions, mut request) = request.into_parts();
        let call = self.call_as(request.take_login(), &extensions).await?;
        let parts = Parts::new(call, convert(request)).await?;
        Ok(Response::new(Box::pin(parts)))
    }

    /// Begins the delivery of a `Connect` or an `Attach`.
    async fn deliver<T: Delivered>(
        &self,
        mut call: Call,
        request: Result<hark_protocol::Request, Refusal>,
    ) -> Result<Response<ResponseStream<T>>, Status> {
        let fields = call.request(request).await?;
        let stream = DeliveryStream::new(call, &fields, &self.receipts, self.ack_timeout);
        Ok(Response::new(Box::pin(stream)))
    }
}

/// Returns the credentials of a user that deletes itself with its password. Under
/// `--require-password`, only this and an admin can delete an account.
fn own_credentials(delete: &mut DeleteRequest) -> Option<Credentials> {
    let password = std::mem::take(&mut delete.password);
    (!password.is_empty()).then(|| Credentials {
        user: delete.user.clone(),
        password,
    })
}

/// Converts the request of a command.
fn of<T>(command: fn(T) -> Command) -> impl FnOnce(T) -> Result<hark_protocol::Request, Refusal> {
    move |request| command(request).try_into()
}

#[tonic::async_trait]
impl chat_server::Chat for ChatService {
    type ListStream = ResponseStream<ListReply>;
    type ConnectStream = ResponseStream<ConnectReply>;
    type AttachStream = ResponseStream<AttachReply>;
    type RoomsStream = ResponseStream<RoomsReply>;
    type MembersStream = ResponseStream<MembersReply>;
    type DevicesStream = ResponseStream<DevicesReply>;
    type TokensStream = ResponseStream<TokensReply>;
    type HistoryStream = ResponseStream<HistoryReply>;
    type BiDiChatStream = ResponseStream<ChatReply>;

    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateReply>, Status> {
        self.ask(request, of(Command::Create)).await?;
        Ok(Response::new(CreateReply {}))
    }

    async fn password(
        &self,
        request: Request<PasswordRequest>,
    ) -> Result<Response<PasswordReply>, Status> {
        self.ask(request, of(Command::Password)).await?;
        Ok(Response::new(PasswordReply {}))
    }

    async fn delete(
        &self,
        request: Request<DeleteRequest>,
    ) -> Result<Response<DeleteReply>, Status> {
        let (_, extensions, mut delete) = request.into_parts();
        let mut call = match delete.login.take() {
            Some(login) => self.call_as(Some(login), &extensions).await?,
            None => match self
                .call_as(own_credentials(&mut delete), &extensions)
                .await
            {
                Err(refused) if refused.code() == Code::NotFound => {
                    return Ok(Response::new(DeleteReply { existed: false }));
                }
                call => call?,
            },
        };
        let existed = call
            .request(delete.try_into())
            .await?
            .as_deleted()
            .unwrap_or_default();
        Ok(Response::new(DeleteReply { existed }))
    }

    async fn send(&self, request: Request<SendRequest>) -> Result<Response<SendReply>, Status> {
        let (_, extensions, mut request) = request.into_parts();
        let mut call = self.call_as(request.login.take(), &extensions).await?;
        let id = match request.idempotency.take() {
            Some(idempotency) => {
                let (session, id) =
                    request::send_id(&idempotency).map_err(|refusal| status::refused(&refusal))?;
                call = call.in_session(session);
                Some(id)
            }
            None => RequestId::new(1),
        };
        let fields = call.request_as(id, request.try_into()).await?;
        Ok(Response::new(SendReply {
            sequence: fields.as_stored().map(|sequence| sequence.0),
        }))
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        self.ask_for_parts(request, |request: ListRequest| Ok(request.into()))
            .await
    }

    async fn connect(
        &self,
        request: Request<ConnectRequest>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (call, request) = self.call(request)?;
        self.deliver(call, request.try_into()).await
    }

    async fn attach(
        &self,
        request: Request<AttachRequest>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let (call, request) = self.call(request)?;
        self.deliver(call, Command::Attach(request).try_into())
            .await
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<AckReply>, Status> {
        let AckRequest {
            receipt,
            sequence,
            room,
        } = request.into_inner();
        let acknowledged = match room.filter(|room| !room.is_empty()) {
            Some(room) => room
                .parse()
                .map_err(Refusal::from)
                .and_then(|room| self.receipts.acknowledge(&receipt, Some(&room), sequence)),
            None => self.receipts.acknowledge(&receipt, None, sequence),
        };
        acknowledged.map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(AckReply {}))
    }

    async fn room(&self, request: Request<RoomRequest>) -> Result<Response<RoomReply>, Status> {
        self.ask(request, of(Command::Room)).await?;
        Ok(Response::new(RoomReply {}))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let fields = self.ask(request, of(Command::Join)).await?;
        let (last, held) = fields.as_joined().unwrap_or_default();
        Ok(Response::new(JoinReply { last: last.0, held }))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.ask(request, of(Command::Leave)).await?;
        Ok(Response::new(LeaveReply {}))
    }

    async fn invite(
        &self,
        request: Request<MemberRequest>,
    ) -> Result<Response<MemberReply>, Status> {
        self.ask(request, of(Command::Invite)).await?;
        Ok(Response::new(MemberReply {}))
    }

    async fn expel(
        &self,
        request: Request<MemberRequest>,
    ) -> Result<Response<MemberReply>, Status> {
        self.ask(request, of(Command::Expel)).await?;
        Ok(Response::new(MemberReply {}))
    }

    async fn own(&self, request: Request<MemberRequest>) -> Result<Response<MemberReply>, Status> {
        self.ask(request, of(Command::Own)).await?;
        Ok(Response::new(MemberReply {}))
    }

    async fn talk(&self, request: Request<TalkRequest>) -> Result<Response<TalkReply>, Status> {
        let fields = self.ask(request, of(Command::Talk)).await?;
        let room = fields.as_room();
        Ok(Response::new(TalkReply {
            room: room.map_or_else(String::new, |room| room.to_string()),
        }))
    }

    async fn block(&self, request: Request<UserRequest>) -> Result<Response<UserReply>, Status> {
        self.ask(request, of(Command::Block)).await?;
        Ok(Response::new(UserReply {}))
    }

    async fn unblock(&self, request: Request<UserRequest>) -> Result<Response<UserReply>, Status> {
        self.ask(request, of(Command::Unblock)).await?;
        Ok(Response::new(UserReply {}))
    }

    async fn rooms(
        &self,
        request: Request<RoomsRequest>,
    ) -> Result<Response<Self::RoomsStream>, Status> {
        self.ask_for_parts(request, of(Command::Rooms)).await
    }

    async fn members(
        &self,
        request: Request<MembersRequest>,
    ) -> Result<Response<Self::MembersStream>, Status> {
        self.ask_for_parts(request, of(Command::Members)).await
    }

    async fn devices(
        &self,
        request: Request<DevicesRequest>,
    ) -> Result<Response<Self::DevicesStream>, Status> {
        self.ask_for_parts(request, of(Command::Devices)).await
    }

    async fn forget(
        &self,
        request: Request<ForgetRequest>,
    ) -> Result<Response<ForgetReply>, Status> {
        self.ask(request, of(Command::Forget)).await?;
        Ok(Response::new(ForgetReply {}))
    }

    async fn token(&self, request: Request<TokenRequest>) -> Result<Response<TokenReply>, Status> {
        let fields = self.ask(request, of(Command::Token)).await?;
        let secret = fields.as_token();
        Ok(Response::new(TokenReply {
            secret: secret.map_or_else(String::new, |secret| secret.expose().to_owned()),
        }))
    }

    async fn tokens(
        &self,
        request: Request<TokensRequest>,
    ) -> Result<Response<Self::TokensStream>, Status> {
        self.ask_for_parts(request, of(Command::Tokens)).await
    }

    async fn revoke(
        &self,
        request: Request<RevokeRequest>,
    ) -> Result<Response<RevokeReply>, Status> {
        self.ask(request, of(Command::Revoke)).await?;
        Ok(Response::new(RevokeReply {}))
    }

    async fn history(
        &self,
        request: Request<HistoryRequest>,
    ) -> Result<Response<Self::HistoryStream>, Status> {
        self.ask_for_parts(request, of(Command::History)).await
    }

    async fn seen(&self, request: Request<SeenRequest>) -> Result<Response<SeenReply>, Status> {
        self.ask(request, of(Command::Seen)).await?;
        Ok(Response::new(SeenReply {}))
    }

    async fn bi_di_chat(
        &self,
        request: Request<Streaming<ChatRequest>>,
    ) -> Result<Response<Self::BiDiChatStream>, Status> {
        let caller = caller(request.extensions())?.clone();
        let (call, requests) = self.call(request)?;
        let shutdown = call.shutdown();
        let call = call.limited(&caller);
        Ok(Response::new(Box::pin(Abortable::new(
            Bidi::new(call, requests),
            shutdown,
            &caller,
        ))))
    }
}
