//! NATS JetStream: file streams for a hundred users each, asynchronous publishes, and for each
//! user a durable consumer that acknowledges each message. A send is accepted with the
//! acknowledgement of the stream.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};

use super::{Durability, Peer, PeerCodec, Received, Role, user_name};
use crate::load::text::{Stamp, TEXT_BYTES, Text};
use crate::server::{Server, version, write_settings};

/// NATS with JetStream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nats {
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Without JetStream: nothing is stored, and a slow reader is disconnected.
    Core,
    Unsynced,
    Synced,
}

impl Nats {
    /// Publish and subscribe, for rooms alone. A send is accepted with the `PONG` to a `PING`
    /// behind it.
    pub(crate) const CORE: Self = Self { kind: Kind::Core };
    /// The default: a sync every two minutes.
    pub(crate) const UNSYNCED: Self = Self {
        kind: Kind::Unsynced,
    };
    /// With `sync_interval: always`.
    pub(crate) const SYNCED: Self = Self { kind: Kind::Synced };
}

/// The CONNECT of a client, with the usual options.
const CONNECT: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"1\",\
                       \"protocol\":1,\"headers\":true,\"no_responders\":true}\r\nPING\r\n";

/// The users of one stream: the cost of a consumer grows with the other users' messages in its
/// stream, and a stream supports a thousand consumers.
const USERS_PER_STREAM: usize = 100;

/// The unacknowledged messages of a consumer: the default.
const ACKS_PENDING_MAX: usize = 1_000;

impl Peer for Nats {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Core => "NATS core (no queue)",
            Kind::Unsynced => "NATS JetStream",
            Kind::Synced => "NATS JetStream, synced",
        }
    }

    fn durability(&self) -> Durability {
        match self.kind {
            Kind::Core => Durability::Nothing,
            Kind::Unsynced | Kind::Synced => Durability::OnDisk,
        }
    }

    fn has_users(&self) -> bool {
        self.kind != Kind::Core
    }

    fn has_rooms(&self) -> bool {
        self.kind != Kind::Synced
    }

    fn members_max(&self) -> usize {
        match self.kind {
            Kind::Core => usize::MAX,
            Kind::Unsynced | Kind::Synced => 1_000,
        }
    }

    /// Ten thousand consumers take minutes to create and to recover.
    fn users_max(&self) -> usize {
        1_000
    }

    fn version(&self) -> anyhow::Result<String> {
        version(Command::new(program()).arg("--version")).context(
            "nats-server is neither in .venv/bin nor in the PATH: run `python3 -m venv .venv` and `.venv/bin/pip \
             install --require-hashes --requirement bench/peers/requirements.txt`",
        )
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        let sync = match self.kind {
            Kind::Synced => "  sync_interval: always\n",
            Kind::Core | Kind::Unsynced => "",
        };
        let settings = format!(
            "listen: 127.0.0.1:{port}\n\
             max_connections: 1000000\n\
             jetstream {{\n  store_dir: \"{}\"\n  max_file_store: 100GB\n{sync}}}\n",
            folder.display()
        );
        let mut command = Command::new(program());
        command
            .arg("-c")
            .arg(write_settings(folder, "nats.conf", &settings)?);
        Server::start(self.name(), command, port, folder)
    }

    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        let makers = (0..users).step_by(USERS_PER_STREAM).map(move |first| {
            let users = first..users.min(first + USERS_PER_STREAM);
            Box::new(Maker::new(users, false)) as Box<dyn PeerCodec>
        });
        Box::new(makers)
    }

    fn room_preparations(&self, members: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        match self.kind {
            Kind::Core => Box::new(std::iter::empty()),
            Kind::Unsynced | Kind::Synced => {
                let maker = Maker::new(0..members, true);
                Box::new(std::iter::once(Box::new(maker) as Box<dyn PeerCodec>))
            }
        }
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        if self.kind == Kind::Core {
            return Box::new(CoreClient::new(role));
        }
        Box::new(Client {
            role,
            last_reply: 0,
            inbox: Vec::new(),
        })
    }
}

/// Returns the binary of the Python package, or that of the system.
fn program() -> PathBuf {
    let ours = PathBuf::from(".venv/bin/nats-server");
    if ours.exists() {
        ours
    } else {
        PathBuf::from("nats-server")
    }
}

/// A connection.
struct Client {
    role: Role,
    last_reply: u64,
    /// The prefix of the acknowledgements' subjects, with its dot.
    inbox: Vec<u8>,
}

impl PeerCodec for Client {
    fn open(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(CONNECT.as_bytes());
        match self.role {
            Role::Sender(sender) | Role::Speaker(sender) => {
                self.inbox = format!("_INBOX.s{sender}.").into_bytes();
                output.extend_from_slice(format!("SUB _INBOX.s{sender}.* 1\r\n").as_bytes());
            }
            Role::Receiver(user) | Role::Joining(user) | Role::Member(user) => {
                output.extend_from_slice(format!("SUB d.{user} 1\r\n").as_bytes());
            }
        }
        // The answer to the second PING confirms the subscription.
        output.extend_from_slice(b"PING\r\n");
    }

    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>) {
        self.last_reply += 1;
        let subject = match self.role.is_in_room() {
            true => ROOM.to_owned(),
            false => subject(to),
        };
        output.extend_from_slice(format!("PUB {subject} ").as_bytes());
        output.extend_from_slice(&self.inbox);
        output.extend_from_slice(format!("{} {TEXT_BYTES}\r\n", self.last_reply).as_bytes());
        output.extend_from_slice(text);
        output.extend_from_slice(b"\r\n");
    }

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((operation, bytes)) = operation(input.get(done..).unwrap_or_default())? {
            match (operation, self.role.is_receiver()) {
                (Operation::Pong, _) => received.is_ready = true,
                (Operation::Message { payload, .. }, false) => {
                    check_answer(payload)?;
                    received.accepted += 1;
                }
                (Operation::Message { reply, payload }, true) => {
                    received.delivered.push(Stamp::read(payload)?);
                    output.extend_from_slice(b"PUB ");
                    output.extend_from_slice(reply);
                    output.extend_from_slice(b" 0\r\n\r\n");
                }
                (Operation::Ping, _) => output.extend_from_slice(b"PONG\r\n"),
                (Operation::Other, _) => {}
            }
            done += bytes;
        }
        Ok(done)
    }
}

/// Creates a stream, and a consumer for each of its users.
struct Maker {
    users: Range<usize>,
    /// Each user reads all messages of the room, instead of its own.
    is_room: bool,
    /// The outstanding answers.
    left: usize,
}

impl Maker {
    fn new(users: Range<usize>, is_room: bool) -> Self {
        Self {
            left: users.len() + 1,
            users,
            is_room,
        }
    }

    /// Returns the subject of the messages of a user.
    fn subject_of(&self, user: usize) -> String {
        match self.is_room {
            true => ROOM.to_owned(),
            false => subject(user),
        }
    }

    fn stream(&self) -> usize {
        self.users.start / USERS_PER_STREAM
    }

    fn ask(&self, subject: &str, settings: &str, output: &mut Vec<u8>) {
        let (stream, length) = (self.stream(), settings.len());
        let asked = format!("PUB $JS.API.{subject} _INBOX.m{stream} {length}\r\n{settings}\r\n");
        output.extend_from_slice(asked.as_bytes());
    }

    fn ask_for_consumers(&self, output: &mut Vec<u8>) {
        let stream = self.stream();
        for user in self.users.clone() {
            let settings = format!(
                "{{\"stream_name\":\"BENCH{stream}\",\"config\":{{\"durable_name\":\"c{user}\",\
                 \"deliver_subject\":\"d.{user}\",\"filter_subject\":\"{}\",\"ack_policy\":\"explicit\",\
                 \"deliver_policy\":\"all\",\"max_ack_pending\":{ACKS_PENDING_MAX}}}}}",
                self.subject_of(user)
            );
            self.ask(
                &format!("CONSUMER.DURABLE.CREATE.BENCH{stream}.c{user}"),
                &settings,
                output,
            );
        }
    }
}

impl PeerCodec for Maker {
    fn open(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(CONNECT.as_bytes());
        let stream = self.stream();
        output.extend_from_slice(format!("SUB _INBOX.m{stream} 1\r\n").as_bytes());
        let subjects = match self.is_room {
            true => ROOM.to_owned(),
            false => format!("b.{stream}.*"),
        };
        let settings = format!(
            "{{\"name\":\"BENCH{stream}\",\"subjects\":[\"{subjects}\"],\"storage\":\"file\",\
             \"retention\":\"limits\",\"num_replicas\":1,\"max_age\":0,\"max_msgs\":-1,\"max_bytes\":-1}}"
        );
        self.ask(&format!("STREAM.CREATE.BENCH{stream}"), &settings, output);
    }

    fn send(&mut self, _to: usize, _text: &Text, _output: &mut Vec<u8>) {}

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((operation, bytes)) = operation(input.get(done..).unwrap_or_default())? {
            match operation {
                Operation::Message { payload, .. } => {
                    check_answer(payload)?;
                    if self.left > self.users.len() {
                        self.ask_for_consumers(output);
                    }
                    self.left -= 1;
                    received.is_ready = self.left == 0;
                }
                Operation::Ping => output.extend_from_slice(b"PONG\r\n"),
                Operation::Pong | Operation::Other => {}
            }
            done += bytes;
        }
        Ok(done)
    }
}

/// The subject of the room.
const ROOM: &str = "room";

/// A connection without JetStream.
struct CoreClient {
    role: Role,
    sent: usize,
    accepted: usize,
    /// The sends before each `PING` that is not answered.
    pings: VecDeque<usize>,
}

impl CoreClient {
    const fn new(role: Role) -> Self {
        Self {
            role,
            sent: 0,
            accepted: 0,
            pings: VecDeque::new(),
        }
    }
}

impl PeerCodec for CoreClient {
    fn open(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(CONNECT.as_bytes());
        self.pings.push_back(0);
        if self.role.is_receiver() {
            output.extend_from_slice(format!("SUB {ROOM} 1\r\n").as_bytes());
        }
        self.sent(output);
    }

    fn send(&mut self, _to: usize, text: &Text, output: &mut Vec<u8>) {
        self.sent += 1;
        output.extend_from_slice(format!("PUB {ROOM} {TEXT_BYTES}\r\n").as_bytes());
        output.extend_from_slice(text);
        output.extend_from_slice(b"\r\n");
    }

    fn sent(&mut self, output: &mut Vec<u8>) {
        self.pings.push_back(self.sent);
        output.extend_from_slice(b"PING\r\n");
    }

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((operation, bytes)) = operation(input.get(done..).unwrap_or_default())? {
            match operation {
                Operation::Pong => {
                    let accepted = self.pings.pop_front().context("a PONG without a PING")?;
                    received.accepted += accepted - self.accepted;
                    self.accepted = accepted;
                    received.is_ready |= self.pings.is_empty();
                }
                Operation::Message { payload, .. } => {
                    received.delivered.push(Stamp::read(payload)?);
                }
                Operation::Ping => output.extend_from_slice(b"PONG\r\n"),
                Operation::Other => {}
            }
            done += bytes;
        }
        Ok(done)
    }
}

/// Returns the subject of a user's messages.
fn subject(user: usize) -> String {
    format!("b.{}.{}", user / USERS_PER_STREAM, user_name(user))
}

/// An operation of the server.
#[derive(Debug, PartialEq, Eq)]
enum Operation<'a> {
    /// A message, and the subject of its acknowledgement.
    Message {
        reply: &'a [u8],
        payload: &'a [u8],
    },
    Ping,
    Pong,
    /// An operation without an answer: `INFO`, `+OK`.
    Other,
}

/// Returns the first complete operation of the input, with its length.
fn operation(input: &[u8]) -> anyhow::Result<Option<(Operation<'_>, usize)>> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let (line, bytes) = (input.get(..end).unwrap_or_default(), end + 2);
    let is = |name: &[u8]| line.starts_with(name);
    let operation = if is(b"MSG ") || is(b"HMSG ") {
        return message(line, input.get(bytes..).unwrap_or_default(), bytes);
    } else if is(b"PING") {
        Operation::Ping
    } else if is(b"PONG") {
        Operation::Pong
    } else if is(b"INFO") || is(b"+OK") {
        Operation::Other
    } else {
        bail!("the server says {}", String::from_utf8_lossy(line));
    };
    Ok(Some((operation, bytes)))
}

/// `MSG subject sid [reply] bytes`, with the payload and a line end; with
/// headers, their bytes come before those of all.
fn message<'a>(
    line: &'a [u8],
    rest: &'a [u8],
    head: usize,
) -> anyhow::Result<Option<(Operation<'a>, usize)>> {
    let mut words = line.split(|&byte| byte == b' ');
    let has_headers = words.next() == Some(b"HMSG");
    let mut words = words.skip(2);
    let mut numbers = words.by_ref().peekable();
    let mut reply: &[u8] = &[];
    if let Some(word) = numbers.next_if(|word| !word.first().is_some_and(u8::is_ascii_digit)) {
        reply = word;
    }
    let mut number = || {
        let word = numbers.next().context("no length in a message")?;
        std::str::from_utf8(word)
            .ok()
            .and_then(|word| word.parse::<usize>().ok())
            .context("no length in a message")
    };
    let headers = if has_headers { number()? } else { 0 };
    let all = number()?;
    let Some(_) = rest.get(..all + 2) else {
        return Ok(None);
    };
    let payload = rest
        .get(headers..all)
        .context("headers longer than the message")?;
    Ok(Some((
        Operation::Message { reply, payload },
        head + all + 2,
    )))
}

/// Checks an answer of the stream for an error, without a JSON parser.
fn check_answer(payload: &[u8]) -> anyhow::Result<()> {
    let is_refused = payload.is_empty() || payload.windows(8).any(|word| word == b"\"error\":");
    ensure!(
        !is_refused,
        "the stream refuses: {}",
        String::from_utf8_lossy(payload)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_read_once_they_are_whole() {
        let message =
            |reply: &'static [u8], payload: &'static [u8]| Operation::Message { reply, payload };
        for (text, expected) in [
            ("INFO {\"a\":1}\r\n", Operation::Other),
            ("PING\r\n", Operation::Ping),
            ("MSG d.1 1 5\r\nhello\r\n", message(b"", b"hello")),
            (
                "MSG d.1 1 $JS.ACK.x.1 2\r\n\r\n\r\n",
                message(b"$JS.ACK.x.1", b"\r\n"),
            ),
            (
                "HMSG d.1 1 re 12 14\r\nNATS/1.0\r\n\r\nhi\r\n",
                message(b"re", b"hi"),
            ),
        ] {
            assert_eq!(
                operation(text.as_bytes()).unwrap(),
                Some((expected, text.len())),
                "{text}"
            );
            assert_eq!(
                operation(&text.as_bytes()[..text.len() - 1]).unwrap(),
                None,
                "{text}"
            );
        }
        operation(b"-ERR 'no'\r\n").unwrap_err();
    }

    #[test]
    fn a_refusal_of_the_stream_is_no_acceptance() {
        check_answer(b"{\"stream\":\"BENCH\",\"seq\":7}").unwrap();
        check_answer(b"{\"error\":{\"code\":503}}").unwrap_err();
        check_answer(b"").unwrap_err();
    }

    #[test]
    fn a_message_is_taken_and_acknowledged() {
        let stamp = Stamp {
            due_ns: 5,
            sender: 1,
            number: 2,
        };
        let text = String::from_utf8(stamp.write().to_vec()).unwrap();
        let (mut answer, mut received) = (Vec::new(), Received::default());
        let input = format!("MSG d.3 1 $JS.ACK.1 {TEXT_BYTES}\r\n{text}\r\n");
        let mut receiver = Nats::SYNCED.codec(Role::Receiver(3));
        assert_eq!(
            receiver
                .take(input.as_bytes(), &mut answer, &mut received)
                .unwrap(),
            input.len()
        );
        assert_eq!(
            (received.delivered, answer),
            (vec![stamp], b"PUB $JS.ACK.1 0\r\n\r\n".to_vec())
        );
    }
}
