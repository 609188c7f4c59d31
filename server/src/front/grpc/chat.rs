//! `hark.v1.Chat`: each call as requests to a peer of its own.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use hark_grpc::v1::chat_server;
use hark_grpc::v1::{
    AckReply, AckRequest, ChatReply, ChatRequest, ConnectReply, ConnectRequest, CreateReply, CreateRequest,
    DeleteReply, DeleteRequest, ListReply, ListRequest, PasswordReply, PasswordRequest, SendReply,
    SendRequest,
};
use tonic::{Request, Response, Status, Streaming};

use super::call::Call;
use crate::chat::Chat;

/// A stream of replies.
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The chat as a service.
#[derive(Debug)]
pub(super) struct ChatService {
    chat: Arc<Chat>,
}

impl ChatService {
    /// The service of this chat.
    pub(super) const fn new(chat: Arc<Chat>) -> Self {
        Self { chat }
    }

    fn call<T>(&self, request: Request<T>) -> Result<(Call, T), Status> {
        let call = Call::new(&self.chat, request.extensions())?;
        Ok((call, request.into_inner()))
    }
}

#[tonic::async_trait]
impl chat_server::Chat for ChatService {
    type ListStream = Replies<ListReply>;
    type ConnectStream = Replies<ConnectReply>;
    type BiDiChatStream = Replies<ChatReply>;

    async fn create(&self, request: Request<CreateRequest>) -> Result<Response<CreateReply>, Status> {
        let (mut call, request) = self.call(request)?;
        call.ask(request.try_into()).await?;
        Ok(Response::new(CreateReply {}))
    }

    async fn password(&self, request: Request<PasswordRequest>) -> Result<Response<PasswordReply>, Status> {
        let (mut call, request) = self.call(request)?;
        call.ask(request.try_into()).await?;
        Ok(Response::new(PasswordReply {}))
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<DeleteReply>, Status> {
        let (mut call, request) = self.call(request)?;
        let fields = call.ask(request.try_into()).await?;
        let existed = fields.as_deleted().unwrap_or_default();
        Ok(Response::new(DeleteReply { existed }))
    }

    async fn send(&self, _: Request<SendRequest>) -> Result<Response<SendReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn list(&self, _: Request<ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn connect(&self, _: Request<ConnectRequest>) -> Result<Response<Self::ConnectStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn ack(&self, _: Request<AckRequest>) -> Result<Response<AckReply>, Status> {
        Err(Status::unimplemented("not yet"))
    }

    async fn bi_di_chat(
        &self,
        _: Request<Streaming<ChatRequest>>,
    ) -> Result<Response<Self::BiDiChatStream>, Status> {
        Err(Status::unimplemented("not yet"))
    }
}
