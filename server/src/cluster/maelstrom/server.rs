//! [`Server`]: the state of a node. It owns the server, its streams and the ends of its
//! connections, passes inputs to the server and performs its outputs. It knows no request
//! of a client.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use tokio::sync::oneshot;

use super::connection::Inbox;
use super::network::{self, Network, Packet};
use super::stream::Stream;
use super::{SHARDS, TICK};
use crate::cluster::host::{Answered, Host, Input, Output, Push};
use crate::cluster::member::Member;
use crate::cluster::{Config, ConnectionId, LogRequest, ShardId};

/// Maximum open connections to a server.
const CONNECTIONS_MAX: usize = 4096;

/// The state of a node.
#[derive(Debug)]
pub(super) struct Server {
    config: Config,
    network: Option<Network>,
    /// `None` before `init`, and for good after a panic of the server.
    host: Option<Host>,
    streams: Vec<Rc<Stream>>,
    connections: BTreeMap<ConnectionId, End>,
    last_connection: ConnectionId,
    last_request: u64,
    /// Connections that their clients have dropped.
    dropped: Rc<RefCell<Vec<ConnectionId>>>,
}

/// The server's end of a connection.
#[derive(Debug)]
struct End {
    answers: BTreeMap<u64, oneshot::Sender<Answered>>,
    inbox: Rc<Inbox>,
}

/// Registers the parts of a program that every workload has.
pub(super) fn serve(node: &Node<Server>) {
    node.on_init(async |node: Node<Server>| {
        let network = Network::join(&node);
        let (life, now) = (network.server(), node.now());
        let mut server = node.state();
        let member = Member::new(life, &[life], SHARDS, server.config);
        let mut host = Host::new(Duration::ZERO);
        host.start(life, member, now);
        (server.network, server.host) = (Some(network), Some(host));
    });
    node.every(TICK, async |node: Node<Server>| step(&node, Input::Tick));
    node.receive(
        network::KIND,
        async |node: Node<Server>, request: Request<Packet>| {
            let message = node
                .state()
                .network()
                .and_then(|network| network.take(request.src, request.body));
            if let Some(message) = message {
                step(&node, Input::Message(message));
            }
        },
    );
}

/// Passes an input to the server, and performs its outputs.
pub(super) fn step(node: &Node<Server>, input: Input) {
    let dropped = node.state().dropped.take();
    let mut inputs: VecDeque<_> = dropped.into_iter().map(Input::Hangup).collect();
    inputs.push_back(input);
    while let Some(input) = inputs.pop_front() {
        let outputs = node.state().handle(input, node.now());
        for output in outputs {
            perform(node, output, &mut inputs);
        }
    }
}

fn perform(node: &Node<Server>, output: Output, inputs: &mut VecDeque<Input>) {
    match output {
        Output::Log(shard, request) => ask_stream(node, shard, request),
        Output::Send(server, message) => {
            let own = node.state().network().map(|network| network.server());
            if own == Some(server) {
                inputs.push_back(Input::Message(message));
            } else {
                network::send(node, server, &message);
            }
        }
        Output::Broadcast(message) => {
            network::broadcast(node, &message);
            inputs.push_back(Input::Message(message));
        }
        Output::Push(_, connection, push) => node.state().push(connection, push),
    }
}

fn ask_stream(node: &Node<Server>, shard: ShardId, request: LogRequest) {
    let stream = node.state().streams.get(shard as usize).cloned();
    if let Some(stream) = stream {
        let asking = node.clone();
        node.spawn(async move {
            if let Some(reply) = stream.carry_out(&asking.lin_kv(), request).await {
                step(&asking, Input::Log(shard, reply));
            }
        });
    }
}

impl Server {
    /// Returns the state of a node that has no name yet.
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            network: None,
            host: None,
            streams: (0..SHARDS).map(Stream::new).map(Rc::new).collect(),
            connections: BTreeMap::new(),
            last_connection: 0,
            last_request: 0,
            dropped: Rc::default(),
        }
    }

    /// Returns the network, after `init`.
    pub(super) const fn network(&mut self) -> Option<&mut Network> {
        self.network.as_mut()
    }

    /// Adds a connection, which the caller must open by an input. Its id is to be put into
    /// the list that is returned when the client drops it.
    ///
    /// # Errors
    /// 11 if there are too many, and before `init`.
    pub(super) fn connect(&mut self) -> Result<Connected, Error> {
        if self.host.is_none() || self.connections.len() >= CONNECTIONS_MAX {
            let text = "the server takes no connection now";
            return Err(Error::new(ErrorCode::TemporarilyUnavailable, text));
        }
        self.last_connection += 1;
        let inbox = Rc::<Inbox>::default();
        let end = End {
            answers: BTreeMap::new(),
            inbox: Rc::clone(&inbox),
        };
        self.connections.insert(self.last_connection, end);
        Ok(Connected {
            id: self.last_connection,
            inbox,
            dropped: Rc::clone(&self.dropped),
        })
    }

    /// Returns the id of a new request, whose answer goes to `answer`; `None` if the
    /// connection is closed.
    pub(super) fn request(
        &mut self,
        connection: ConnectionId,
        answer: oneshot::Sender<Answered>,
    ) -> Option<u64> {
        let end = self.connections.get_mut(&connection)?;
        self.last_request += 1;
        end.answers.insert(self.last_request, answer);
        Some(self.last_request)
    }

    fn handle(&mut self, input: Input, now: Duration) -> Vec<Output> {
        if let Input::Hangup(connection) = input {
            self.connections.remove(&connection);
        }
        // After a panic there is no server any more, as after one of `harkd`.
        let Some(mut host) = self.host.take() else {
            return Vec::new();
        };
        let outputs = host.handle(input, now, self.last_connection);
        self.host = Some(host);
        outputs
    }

    fn push(&mut self, connection: ConnectionId, push: Push) {
        let Some(end) = self.connections.get_mut(&connection) else {
            return;
        };
        match push {
            Push::Answer(request, answered) => {
                if let Some(answer) = end.answers.remove(&request) {
                    // The client may not wait any more.
                    drop(answer.send(answered));
                }
            }
            Push::Message(message) => end.inbox.push(message),
            Push::Ended(reason) => {
                tracing::debug!(?reason, "reception ended");
                end.inbox.end();
            }
            Push::Closed => {
                end.inbox.end();
                self.connections.remove(&connection);
            }
        }
    }
}

/// The parts of a new connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) id: ConnectionId,
    pub(super) inbox: Rc<Inbox>,
    pub(super) dropped: Rc<RefCell<Vec<ConnectionId>>>,
}
