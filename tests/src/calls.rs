//! The requests of the protocol as consecutive gRPC calls, for guarantees that
//! `Send`, `Connect` and `Ack` share with a session.

use std::collections::VecDeque;
use std::net::SocketAddr;

use futures::FutureExt;
use futures::future::BoxFuture;
use hark_grpc::status::CODE;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::chat_request::Command;
use hark_grpc::v1::connect_reply::Event;
use hark_grpc::v1::{
    AckRequest, Bye, ConnectReply, ConnectRequest, CreateRequest, Credentials, DeleteRequest,
    Idempotency, ListRequest, PasswordRequest, Send, SendRequest,
};
use hark_grpc::{request, v1};
use hark_protocol::{
    ByeReason, Code, Frame, OkFields, Refusal, Reply, Request, RequestId, Sequence,
};
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::Link;
use crate::bidi::{client, ok_unless_closed};

/// A pattern that matches no name.
const NO_NAME: &str = "$^";

/// Calls over a connection of its own, which closes on drop.
#[derive(Debug)]
pub struct Calls {
    client: ChatClient<Channel>,
    /// Credentials for the calls.
    login: Option<Credentials>,
    /// Session for idempotent sends.
    session: Option<String>,
    subscription: Option<Subscription>,
    /// Frames that were received and not returned yet.
    answered: VecDeque<Frame<Reply>>,
}

#[derive(Debug)]
struct Subscription {
    receipt: String,
    events: Streaming<ConnectReply>,
}

impl Calls {
    /// Connects; `None` if there is no server.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        let client = client(address).await?;
        Some(Self {
            client,
            login: None,
            session: None,
            subscription: None,
            answered: VecDeque::new(),
        })
    }

    async fn write(&mut self, requests: Vec<(u32, Request)>) -> Option<()> {
        for (id, request) in requests {
            let replies = match self.call(id, request).await {
                Ok(replies) => replies,
                Err(status) => vec![refused(status)?],
            };
            // In a session an `ack` has no reply.
            let id = RequestId::new(id).into_iter();
            self.answered.extend(id.flat_map(|id| {
                replies
                    .iter()
                    .map(move |reply| Frame::new(Some(id), reply.clone()))
            }));
        }
        Some(())
    }

    async fn call(&mut self, id: u32, request: Request) -> Result<Vec<Reply>, Status> {
        let fields = match request::outgoing(None, request).command.expect("a command") {
            Command::Hello(hello) => {
                self.session = Some(hello.session);
                OkFields::Hello(hello.version, 0)
            }
            // The credentials are checked by the calls that carry them.
            Command::Login(credentials) => {
                self.login = Some(credentials);
                OkFields::None
            }
            Command::Create(request) => {
                self.client
                    .create(CreateRequest {
                        login: self.login.clone(),
                        ..request
                    })
                    .await?;
                OkFields::None
            }
            Command::Password(request) => {
                self.client
                    .password(PasswordRequest {
                        login: self.login.clone(),
                        ..request
                    })
                    .await?;
                OkFields::None
            }
            Command::Delete(request) => {
                let request = DeleteRequest {
                    login: self.login.clone(),
                    ..request
                };
                OkFields::Deleted(self.client.delete(request).await?.into_inner().existed)
            }
            Command::Send(send) => {
                let stored = self
                    .client
                    .send(self.send_request(id, send))
                    .await?
                    .into_inner();
                stored
                    .sequence
                    .map_or(OkFields::None, |number| OkFields::Stored(Sequence(number)))
            }
            Command::Connect(request) => OkFields::Queued(self.receive(request).await?),
            Command::Ack(sequence) => {
                let receipt = self
                    .subscription
                    .as_ref()
                    .expect("a subscription")
                    .receipt
                    .clone();
                self.client
                    .ack(AckRequest {
                        receipt,
                        sequence,
                        room: None,
                    })
                    .await?;
                OkFields::None
            }
            Command::List(v1::List { pattern }) => return self.list(pattern).await,
            Command::Ping(_) => {
                self.list(NO_NAME.to_owned()).await?;
                self.take_pushed();
                OkFields::None
            }
            other => panic!("{other:?} has no unary call"),
        };
        Ok(vec![Reply::Ok(fields)])
    }

    fn send_request(&self, id: u32, Send { to, text }: Send) -> SendRequest {
        let idempotency = self
            .session
            .clone()
            .map(|session| Idempotency { session, id });
        SendRequest {
            to,
            text,
            login: self.login.clone(),
            idempotency,
        }
    }

    async fn receive(&mut self, request: ConnectRequest) -> Result<u64, Status> {
        let login = Credentials {
            user: request.user.clone(),
            password: request.password.clone(),
        };
        let mut events = self.client.connect(request).await?.into_inner();
        let first = events.message().await?.and_then(|reply| reply.event);
        let Some(Event::Connected(connected)) = first else {
            panic!("{first:?} is not `connected`")
        };
        self.login = Some(login);
        self.subscription = Some(Subscription {
            receipt: connected.receipt,
            events,
        });
        Ok(connected.queued)
    }

    async fn list(&mut self, pattern: String) -> Result<Vec<Reply>, Status> {
        let mut pages = self
            .client
            .list(ListRequest {
                pattern,
                login: self.login.clone(),
            })
            .await?
            .into_inner();
        let (mut replies, mut count, mut truncated) = (Vec::new(), 0, false);
        while let Some(page) = pages.message().await? {
            count += page.names.len();
            truncated |= page.truncated;
            let names = page.names.iter().map(|name| name.parse().expect("a name"));
            replies.push(Reply::List(names.collect()));
        }
        replies.push(Reply::Ok(OkFields::Listed(count, truncated)));
        Ok(replies)
    }

    /// Queues pushes that have arrived before the following answers.
    fn take_pushed(&mut self) {
        let Some(subscription) = &mut self.subscription else {
            return;
        };
        while let Some(Some(pushed)) = subscription.read().now_or_never() {
            self.answered.push_back(pushed);
        }
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        match self.answered.pop_front() {
            Some(answer) => Some(answer),
            None => {
                self.subscription
                    .as_mut()
                    .expect("something to come")
                    .read()
                    .await
            }
        }
    }
}

impl Subscription {
    async fn read(&mut self) -> Option<Frame<Reply>> {
        let reply = match ok_unless_closed(self.events.message().await)??
            .event
            .expect("an event")
        {
            Event::Message(message) => Reply::String(message.try_into().expect("a message")),
            Event::Bye(Bye { reason }) => Reply::Bye(ByeReason::parse(&reason).expect("a reason")),
            Event::Connected(again) => panic!("a second {again:?}"),
        };
        Some(Frame::new(None, reply))
    }
}

impl Link for Calls {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        Box::pin(self.write(requests))
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}

/// Returns the refusal in a status; `None` if the connection was lost.
fn refused(status: Status) -> Option<Reply> {
    let code = status
        .metadata()
        .get(CODE)
        .and_then(|code| code.to_str().ok())
        .and_then(Code::parse);
    match code {
        Some(code) => Some(Reply::NotOk(Refusal::new(
            code,
            status.message().to_owned(),
        ))),
        None => ok_unless_closed(Err(status)),
    }
}
