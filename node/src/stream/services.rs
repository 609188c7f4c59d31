//! The services of a node by name, and the requests for them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::bidi::{self, Bidi, Conversation};
use super::server::{self, Output, Sink, Work};
use super::table::{Key, Sent, Table};
use super::wire::{self, Cancel, Open, Send, StreamId};
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::node::Node;
use crate::request::Request;

/// The streams that a node serves. Clones are handles to the same services.
pub struct Services<S> {
    registry: Rc<Registry<S>>,
}

impl<S> Clone for Services<S> {
    fn clone(&self) -> Self {
        Self {
            registry: Rc::clone(&self.registry),
        }
    }
}

struct Registry<S> {
    server_streams: RefCell<HashMap<Name, Rc<Serve<S>>>>,
    bidi: RefCell<HashMap<Name, Rc<Converse<S>>>>,
    table: Rc<Table>,
}

/// A service and its method.
type Name = (String, String);

/// Begins the work for one request, or refuses it.
type Serve<S> = dyn Fn(Node<S>, Option<&Json>, Rc<Output>) -> Result<Work, Error>;

/// Opens a stream for a client, or refuses it.
type Converse<S> = dyn Fn(&Node<S>, &str) -> Result<Conversation, Error>;

impl<S: 'static> Services<S> {
    /// Registers the handlers of a node for streams. A node has one table of
    /// services; a second one replaces the first.
    #[must_use]
    pub fn new(node: &Node<S>) -> Self {
        let (server_streams, bidi, table) = Default::default();
        let services = Self {
            registry: Rc::new(Registry {
                server_streams,
                bidi,
                table,
            }),
        };
        services.on(node, wire::SERVER_STREAM, Registry::serve);
        services.on(node, wire::CANCEL, Registry::cancel);
        services.on(node, wire::BIDI_OPEN, Registry::open);
        services.on(node, wire::BIDI_SEND, Registry::send);
        services.on(node, wire::BIDI_CLOSE, Registry::close);
        services
    }

    /// Serves a server stream: each request runs `handler`, which sends items to
    /// the sink and may wait in between. The stream ends when the handler returns,
    /// with its error if it fails.
    ///
    /// The handler is dropped at one of its waits when the client cancels, and
    /// when it has been idle for [`IDLE_MAX`](super::IDLE_MAX). A request without
    /// `msg_id` is not served, because it cannot be answered.
    pub fn server_stream<B, T>(
        &self,
        service: &str,
        method: &str,
        handler: impl AsyncFn(Node<S>, B, Sink<T>) -> Result<(), Error> + 'static,
    ) where
        B: DeserializeOwned + 'static,
        T: Serialize + 'static,
    {
        let handler = Rc::new(handler);
        let serve = move |node, request: Option<&Json>, output| -> Result<Work, Error> {
            // An empty request may be left out, as in protobuf.
            let request = request.map_or_else(|| serde_json::from_str("{}"), Json::parse);
            let request: B = request.map_err(|error| Error::malformed(&error))?;
            let handler = Rc::clone(&handler);
            Ok(Box::pin(async move {
                handler(node, request, Sink::new(output)).await
            }))
        };
        self.registry
            .server_streams
            .borrow_mut()
            .insert(name(service, method), Rc::new(serve));
    }

    /// Serves a bidirectional stream: `open` creates the state of each stream that
    /// a client opens, or refuses the stream. Its argument is the name of the
    /// client.
    pub fn bidi<B: Bidi<S>>(
        &self,
        service: &str,
        method: &str,
        open: impl Fn(&Node<S>, &str) -> Result<B, Error> + 'static,
    ) {
        let converse = move |node: &Node<S>, client: &str| -> Result<Conversation, Error> {
            let (service, node) = (open(node, client)?, node.clone());
            Ok(Box::new(move |entry, input| {
                Box::pin(bidi::run(node, service, entry, input))
            }))
        };
        self.registry
            .bidi
            .borrow_mut()
            .insert(name(service, method), Rc::new(converse));
    }

    /// Registers the handler of a request type; an error of the handler becomes
    /// the answer.
    fn on<B: DeserializeOwned + 'static>(
        &self,
        node: &Node<S>,
        kind: &str,
        handler: impl AsyncFn(&Registry<S>, Node<S>, Request<B>) -> Result<(), Error> + 'static,
    ) {
        let (registry, handler) = (Rc::clone(&self.registry), Rc::new(handler));
        node.register(kind, move |node, request| {
            let (registry, handler) = (Rc::clone(&registry), Rc::clone(&handler));
            Box::pin(async move {
                let responder = request.responder.clone();
                // A stream has its own bounds.
                responder.answer_within(Duration::MAX);
                if let Err(error) = handler(&registry, node, request).await {
                    responder.fail(&error);
                }
            })
        });
    }
}

impl<S: 'static> Registry<S> {
    async fn serve(&self, node: Node<S>, request: Request<Open<Json>>) -> Result<(), Error> {
        let Request {
            src,
            body,
            responder,
        } = request;
        let Some(key) = responder.msg_id().map(Key::Request) else {
            return Ok(());
        };
        if self.table.contains(&src, &key) {
            tracing::debug!(src, "duplicate request");
            return Ok(());
        }
        let serve = find(&self.server_streams, body.service, body.method)?;
        self.table.check_room(&src)?;
        let output = Rc::new(Output::new(Rc::clone(node.core()), responder.clone()));
        let work = serve(node, body.request.as_ref(), Rc::clone(&output))?;
        let (_entry, input) = self.table.open(&src, key);
        let end = server::run(work, input, output).await?;
        responder.reply_as(wire::END, &end);
        Ok(())
    }

    async fn cancel(&self, _: Node<S>, request: Request<Cancel>) -> Result<(), Error> {
        let key = Key::Request(request.body.request_id);
        if let Err(error) = self.table.half_close(&request.src, &key, None) {
            tracing::debug!(src = request.src, %error, "cancel after the end of its stream");
        }
        Ok(())
    }

    async fn open(&self, node: Node<S>, request: Request<Open<Json>>) -> Result<(), Error> {
        let Request {
            src,
            body,
            responder,
        } = request;
        if !responder.is_open() {
            // The client could not learn its id.
            return Ok(());
        }
        let converse = find(&self.bidi, body.service, body.method)?;
        self.table.check_room(&src)?;
        let conversation = converse(&node, &src)?;
        let stream_id = self.table.next_id();
        let (entry, input) = self.table.open(&src, Key::Id(stream_id.clone()));
        node.core().tasks.spawn(conversation(entry, input), None);
        responder.reply(&StreamId { stream_id });
        Ok(())
    }

    async fn send(&self, _: Node<S>, request: Request<Send<Json>>) -> Result<(), Error> {
        let Send { stream_id, data } = request.body;
        self.table.send(
            &request.src,
            stream_id,
            Sent {
                data,
                responder: request.responder,
            },
        )
    }

    async fn close(&self, _: Node<S>, request: Request<StreamId>) -> Result<(), Error> {
        let key = Key::Id(request.body.stream_id);
        self.table
            .half_close(&request.src, &key, Some(request.responder))
    }
}

fn name(service: &str, method: &str) -> Name {
    (service.to_owned(), method.to_owned())
}

fn find<T: ?Sized>(
    services: &RefCell<HashMap<Name, Rc<T>>>,
    service: String,
    method: String,
) -> Result<Rc<T>, Error> {
    let name = (service, method);
    services.borrow().get(&name).cloned().ok_or_else(|| {
        let text = format!("there is no such stream: {} of {}", name.1, name.0);
        Error::new(ErrorCode::NotSupported, text)
    })
}
