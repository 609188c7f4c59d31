//! Maelstrom's workload `kafka`. A log is the inbox of the account with its key as the name,
//! and the offset of a message is its number: offsets are sparse. No reader acknowledges, so a
//! log keeps its messages. The committed offset of a log is the password of its account,
//! which is set by compare-and-set.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytestring::ByteString;
use hark_node::{Error, ErrorCode, Json, Node, Request};
use hark_protocol::{RequestId, Sequence, SessionToken, UserName};
use serde::{Deserialize, Serialize};

use super::connection::{Connection, RETRY_AFTER, ask, unavailable};
use super::server::{Server, serve};
use crate::cluster::host::{Answered, Call};
use crate::cluster::message::Answer;
use crate::store::{Account, AccountEntry, Outcome, PasswordHash, Position, ReadLimit, SendId};

/// How long a send is repeated. Its request was answered with error 0 before.
const REPEATED_FOR: Duration = Duration::from_secs(60);

/// Attempts to advance a committed offset that others change, too.
const COMMIT_ATTEMPTS_MAX: u32 = 8;

/// Maximum messages of one key in the answer to a poll, and bytes of their texts in a page.
const POLLED_MAX: usize = 100;
const PAGE_BYTES_MAX: usize = 64 << 10;

type Offsets = BTreeMap<String, u64>;

#[derive(Deserialize)]
struct Send {
    key: String,
    msg: Json,
}

#[derive(Serialize)]
struct SendOk {
    offset: u64,
}

#[derive(Serialize, Deserialize)]
struct OffsetsOf {
    offsets: Offsets,
}

#[derive(Serialize)]
struct PollOk {
    msgs: BTreeMap<String, Vec<(u64, Json)>>,
}

#[derive(Deserialize)]
struct Keys {
    keys: Vec<String>,
}

pub(super) fn program(node: &Node<Server>) {
    serve(node);
    let senders = Rc::new(Senders::default());
    node.handle("send", async move |node, request: Request<Send>| {
        let Send { key, msg } = request.body;
        let to = find_or_create(&node, &key).await?.account.name;
        let offset = senders.send(&node, &to, msg.to_string().into()).await?;
        Ok(SendOk { offset })
    });
    node.handle("poll", async |node, request: Request<OffsetsOf>| {
        let mut msgs = BTreeMap::new();
        for (key, offset) in request.body.offsets {
            if let Some(entry) = find(&node, &key).await? {
                msgs.insert(key, poll(&node, &entry.account, offset).await?);
            }
        }
        Ok(PollOk { msgs })
    });
    node.handle(
        "commit_offsets",
        async |node, request: Request<OffsetsOf>| {
            for (key, offset) in request.body.offsets {
                commit(&node, &key, offset).await?;
            }
            Ok(())
        },
    );
    node.handle(
        "list_committed_offsets",
        async |node, request: Request<Keys>| {
            let mut offsets = Offsets::new();
            for key in request.body.keys {
                let entry = find(&node, &key).await?;
                if let Some(offset) = entry.as_ref().and_then(committed) {
                    offsets.insert(key, offset);
                }
            }
            Ok(OffsetsOf { offsets })
        },
    );
}

/// Sessions that wait for their next send. Each sends one message at a time, so a pending
/// one delays no other.
#[derive(Default)]
struct Senders(RefCell<Vec<Sender>>);

/// A session with its connection. After an unknown outcome it repeats the same id.
struct Sender {
    session: SessionToken,
    connection: Connection,
    last_id: RequestId,
}

impl Senders {
    /// Sends a message, and returns its number.
    async fn send(
        &self,
        node: &Node<Server>,
        to: &UserName,
        text: ByteString,
    ) -> Result<u64, Error> {
        let idle = self.0.borrow_mut().pop();
        let mut sender = match idle.and_then(Sender::next) {
            Some(sender) => sender,
            None => Sender::new(node)?,
        };
        let begun = node.now();
        loop {
            let sent = sender.send(node, to, &text).await;
            if let Some(outcome) = sent {
                self.0.borrow_mut().push(sender);
                return match outcome {
                    Outcome::Stored(number) => Ok(number.0),
                    Outcome::Refused(code) => Err(Error::new(ErrorCode::Abort, code.to_string())),
                };
            }
            if node.now().saturating_sub(begun) >= REPEATED_FOR {
                let text = "it is unknown whether the message was stored";
                return Err(Error::new(ErrorCode::Timeout, text));
            }
            node.sleep(RETRY_AFTER).await;
            if let Ok(connection) = open(node, &sender.session) {
                sender.connection = connection;
            }
        }
    }
}

impl Sender {
    fn new(node: &Node<Server>) -> Result<Self, Error> {
        let token = format!("{:016x}", node.random());
        let session: SessionToken = token.parse().map_err(|_| unavailable())?;
        let connection = open(node, &session)?;
        let last_id = RequestId::new(1).ok_or_else(unavailable)?;
        Ok(Self {
            session,
            connection,
            last_id,
        })
    }

    /// Returns the sender with its next id, if there is one.
    fn next(self) -> Option<Self> {
        let last_id = RequestId::new(self.last_id.value().checked_add(1)?)?;
        Some(Self { last_id, ..self })
    }

    async fn send(&self, node: &Node<Server>, to: &UserName, text: &ByteString) -> Option<Outcome> {
        let call = Call::Send {
            to: to.clone(),
            text: text.clone(),
            send_id: Some(SendId {
                session: self.session.clone(),
                id: self.last_id,
                in_order: true,
                from: None,
            }),
        };
        match self.connection.call(node, call).await? {
            Answered::Answer(Answer::Sent(outcome)) => Some(outcome),
            _ => None,
        }
    }
}

/// Opens a connection that holds a session.
fn open(node: &Node<Server>, session: &SessionToken) -> Result<Connection, Error> {
    let connection = Connection::open(node)?;
    connection.tell(node, Call::Hello(session.clone()));
    Ok(connection)
}

/// Returns the account of a key.
async fn find(node: &Node<Server>, key: &str) -> Result<Option<AccountEntry>, Error> {
    match ask(node, &Call::LookUp(name(key)?)).await? {
        Answer::Account(entry) => Ok(entry),
        _ => Err(unavailable()),
    }
}

async fn find_or_create(node: &Node<Server>, key: &str) -> Result<AccountEntry, Error> {
    if let Some(entry) = find(node, key).await? {
        return Ok(entry);
    }
    // The outcome is that of the next lookup.
    ask(node, &Call::Create(name(key)?)).await?;
    find(node, key).await?.ok_or_else(unavailable)
}

fn name(key: &str) -> Result<UserName, Error> {
    key.parse()
        .map_err(|_| Error::new(ErrorCode::MalformedRequest, "a key is no name of a user"))
}

/// Reads the messages of a log from an offset on, page by page.
async fn poll(
    node: &Node<Server>,
    account: &Account,
    offset: u64,
) -> Result<Vec<(u64, Json)>, Error> {
    let mut messages = Vec::new();
    let mut after = Position {
        sequence: Sequence(offset.saturating_sub(1)),
        ..Position::default()
    };
    while messages.len() < POLLED_MAX {
        let call = Call::Read {
            account: account.clone(),
            after,
            limit: ReadLimit {
                messages: POLLED_MAX - messages.len(),
                bytes: PAGE_BYTES_MAX,
            },
        };
        let Answer::Page(page) = ask(node, &call).await? else {
            return Err(unavailable());
        };
        for message in &page.messages {
            after = message.position;
            messages.push((after.sequence.0, serde_json::from_str(&message.text)?));
        }
        if page.complete {
            break;
        }
    }
    Ok(messages)
}

/// Advances the committed offset of a log, unless it is as high already.
async fn commit(node: &Node<Server>, key: &str, offset: u64) -> Result<(), Error> {
    for _ in 0..COMMIT_ATTEMPTS_MAX {
        let entry = find_or_create(node, key).await?;
        if committed(&entry).is_some_and(|committed| committed >= offset) {
            return Ok(());
        }
        let call = Call::SetPassword {
            account: entry.account,
            old: entry.password,
            new: PasswordHash::new(&offset.to_string()),
        };
        // Whether it took effect, and after which change, shows the next lookup.
        Connection::open(node)?.call(node, call).await;
    }
    let text = "others have changed the offset again and again";
    Err(Error::new(ErrorCode::TxnConflict, text))
}

fn committed(entry: &AccountEntry) -> Option<u64> {
    entry.password.as_ref()?.as_str().parse().ok()
}
