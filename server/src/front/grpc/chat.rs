//! `hark.v1.Chat`: each call is made of requests on its own client connection.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use hark_grpc::v1::chat_server;
use hark_grpc::v1::{
    AckReply, AckRequest, ChatReply, ChatRequest, ConnectReply, ConnectRequest, CreateReply,
    CreateRequest, Credentials, DeleteReply, DeleteRequest, ListReply, ListRequest, PasswordReply,
    PasswordRequest, SendReply, SendRequest,
};
use hark_grpc::{request, status};
use hark_protocol::RequestId;
use tonic::{Code, Extensions, Request, Response, Status, Streaming};

use super::abortable::Abortable;
use super::bidi::Bidi;
use super::caller;
use super::connect::{DeliveryStream, Receipts};
use super::list::Pages;
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

#[tonic::async_trait]
impl chat_server::Chat for ChatService {
    type ListStream = ResponseStream<ListReply>;
    type ConnectStream = ResponseStream<ConnectReply>;
    type BiDiChatStream = ResponseStream<ChatReply>;

    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateReply>, Status> {
        let (_, extensions, mut request) = request.into_parts();
        let mut call = self.call_as(request.login.take(), &extensions).await?;
        call.request(request.try_into()).await?;
        Ok(Response::new(CreateReply {}))
    }

    async fn password(
        &self,
        request: Request<PasswordRequest>,
    ) -> Result<Response<PasswordReply>, Status> {
        let (_, extensions, mut request) = request.into_parts();
        let mut call = self.call_as(request.login.take(), &extensions).await?;
        call.request(request.try_into()).await?;
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
        let (_, extensions, mut request) = request.into_parts();
        let mut call = self.call_as(request.login.take(), &extensions).await?;
        call.wait_until_ready().await?;
        Ok(Response::new(Box::pin(Pages::new(call, request.into()))))
    }

    async fn connect(
        &self,
        request: Request<ConnectRequest>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (mut call, request) = self.call(request)?;
        let queued = call
            .request(request.try_into())
            .await?
            .as_queued()
            .unwrap_or_default();
        let reception = DeliveryStream::new(call, queued, &self.receipts, self.ack_timeout);
        Ok(Response::new(Box::pin(reception)))
    }

    async fn ack(&self, request: Request<AckRequest>) -> Result<Response<AckReply>, Status> {
        let AckRequest { receipt, sequence } = request.into_inner();
        self.receipts
            .acknowledge(&receipt, sequence)
            .map_err(|refusal| status::refused(&refusal))?;
        Ok(Response::new(AckReply {}))
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
