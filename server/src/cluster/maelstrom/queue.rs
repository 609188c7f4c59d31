//! The workload `queue`: sessions that send to users, and readers that acknowledge. A client
//! repeats a send with its id, at any node, until it is answered, and a reader remembers the
//! last number that it processed. Then each message is read once, and those of a session in
//! order.
//!
//! | request | answer |
//! | --- | --- |
//! | `create` `user` | none |
//! | `send` `session`, `messages`: id, user, text of each | `numbers`; `null` if refused |
//! | `receive` `user`, `acknowledged`: a number | `messages`: number, text of each |

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use hark_node::{Error, ErrorCode, Node, Request};
use hark_protocol::{RequestId, SessionToken, UserName};
use serde::{Deserialize, Serialize};

use super::connection::{Connection, ask, unavailable};
use super::server::{Server, serve};
use crate::cluster::host::{Answered, Call};
use crate::cluster::message::Answer;
use crate::store::{Outcome, SendId};

/// How long a request for messages waits for the first one.
const RECEIVE_WAIT: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct Create {
    user: String,
}

#[derive(Deserialize)]
struct Send {
    session: String,
    messages: Vec<(u32, String, String)>,
}

#[derive(Serialize)]
struct SendOk {
    numbers: Vec<Option<u64>>,
}

#[derive(Deserialize)]
struct Receive {
    user: String,
    acknowledged: u64,
}

#[derive(Serialize)]
struct ReceiveOk {
    messages: Vec<(u64, String)>,
}

/// Connections by the session or the user that they hold.
type Connections = RefCell<HashMap<String, Rc<Connection>>>;

pub(super) fn program(node: &Node<Server>) {
    serve(node);
    node.handle("create", async |node, request: Request<Create>| {
        ask(&node, &Call::Create(user(&request.body.user)?))
            .await
            .map(drop)
    });
    let sessions = Connections::default();
    node.handle("send", async move |node, request: Request<Send>| {
        send(&node, &sessions, request.body).await
    });
    let readers = Connections::default();
    node.handle("receive", async move |node, request: Request<Receive>| {
        receive(&node, &readers, request.body).await
    });
}

/// Sends messages in order, all at once.
async fn send(node: &Node<Server>, sessions: &Connections, body: Send) -> Result<SendOk, Error> {
    let session: SessionToken = body.session.parse().map_err(|_| malformed())?;
    let mut calls = Vec::new();
    for (id, to, text) in body.messages {
        let send_id = Some(SendId {
            session: session.clone(),
            id: RequestId::new(id).ok_or_else(malformed)?,
            in_order: true,
            from: None,
        });
        let (to, text) = (user(&to)?, text.into());
        calls.push(Call::Send { to, text, send_id });
    }
    let connection = match held(sessions, &body.session) {
        Some(connection) => connection,
        None => {
            let connection = Connection::open(node)?;
            connection.tell(node, Call::Hello(session));
            hold(sessions, body.session, connection)
        }
    };
    let sent: Vec<_> = calls
        .into_iter()
        .map(|call| connection.call(node, call))
        .collect();
    let mut numbers = Vec::new();
    for sent in sent {
        numbers.push(match sent.await {
            Some(Answered::Answer(Answer::Sent(Outcome::Stored(number)))) => Some(number.0),
            Some(Answered::Answer(Answer::Sent(Outcome::Refused(_)))) => None,
            _ => {
                let text = "it is unknown which messages were stored; repeat them";
                return Err(Error::new(ErrorCode::Timeout, text));
            }
        });
    }
    Ok(SendOk { numbers })
}

/// Acknowledges messages, and waits for the next ones.
async fn receive(
    node: &Node<Server>,
    readers: &Connections,
    body: Receive,
) -> Result<ReceiveOk, Error> {
    let Receive { user, acknowledged } = body;
    let reader = match held(readers, &user) {
        Some(reader) => reader,
        None => hold(readers, user.clone(), subscribe(node, &user).await?),
    };
    reader.tell(node, Call::Ack(acknowledged));
    reader.inbox().acknowledge(acknowledged);
    let found = node
        .timeout(RECEIVE_WAIT, reader.inbox().after(acknowledged))
        .await;
    let messages = found.unwrap_or_default();
    if messages.is_empty() && reader.inbox().has_ended() {
        return Err(Error::new(
            ErrorCode::Abort,
            "another reader has taken over, or the server was out of touch",
        ));
    }
    let messages = messages
        .iter()
        .map(|message| (message.position.sequence.0, message.text.to_string()))
        .collect();
    Ok(ReceiveOk { messages })
}

/// Begins the reception of a user on a new connection.
async fn subscribe(node: &Node<Server>, name: &str) -> Result<Connection, Error> {
    let entry = match ask(node, &Call::LookUp(user(name)?)).await? {
        Answer::Account(entry) => entry,
        _ => return Err(unavailable()),
    };
    let missing = || {
        Error::new(
            ErrorCode::KeyDoesNotExist,
            format!("there is no user {name}"),
        )
    };
    let account = entry.ok_or_else(missing)?.account;
    let connection = Connection::open(node)?;
    match connection.call(node, Call::Receive(account)).await {
        Some(Answered::Subscribed(true)) => Ok(connection),
        _ => Err(unavailable()),
    }
}

/// Returns the connection under a name, unless it has ended.
fn held(connections: &Connections, name: &str) -> Option<Rc<Connection>> {
    let held = connections.borrow().get(name).cloned();
    held.filter(|connection| !connection.inbox().has_ended())
}

/// Holds a connection in the place of the ended ones.
fn hold(connections: &Connections, name: String, connection: Connection) -> Rc<Connection> {
    let connection = Rc::new(connection);
    let mut connections = connections.borrow_mut();
    connections.retain(|_, held| !held.inbox().has_ended());
    connections.insert(name, Rc::clone(&connection));
    connection
}

fn user(name: &str) -> Result<UserName, Error> {
    name.parse().map_err(|_| malformed())
}

fn malformed() -> Error {
    Error::new(
        ErrorCode::MalformedRequest,
        "a name, a session or an id is not valid",
    )
}
