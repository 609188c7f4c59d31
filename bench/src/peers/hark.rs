//! `harkd`, in its native framing: a session for every sender, and one `ack` for each read.

mod room;

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, anyhow, bail, ensure};
use bytes::BytesMut;
use hark_protocol::framing::native::{ClientCodec, encode};
use hark_protocol::limits::{
    COMMAND_BYTES, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, FRAME_BYTES_MIN, ID_BYTES, LENGTH_BYTES,
    SENDS_UNANSWERED_MAX, VERSION,
};
use hark_protocol::{Reply, Request, RequestId, Sequence};
use tokio_util::codec::Decoder as _;

use super::{Durability, Peer, PeerCodec, Received, Role, user_name};
use crate::load::text::{Stamp, TEXT_BYTES, Text};
use crate::server::Server;

pub(super) use self::room::RoomClient;
use self::room::RoomMaker;
pub(crate) use self::room::{Console, ROOM};

/// The configuration of `harkd`.
#[derive(Debug, Clone)]
pub(crate) struct Hark {
    name: &'static str,
    program: PathBuf,
    store: Store,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Folder,
    Memory,
}

impl Hark {
    /// The default: accepted messages are on disk.
    pub(crate) fn durable(program: &Path) -> Self {
        Self {
            name: "harkd, durable",
            program: program.to_owned(),
            store: Store::Folder,
        }
    }

    /// With `--store memory:`.
    pub(crate) fn memory(program: &Path) -> Self {
        Self {
            name: "harkd, memory",
            program: program.to_owned(),
            store: Store::Memory,
        }
    }
}

/// Returns the build profile of a program, from its folder below `target`.
fn profile(program: &Path) -> &str {
    let folder = program
        .parent()
        .and_then(Path::file_name)
        .and_then(OsStr::to_str);
    folder
        .filter(|folder| ["debug", "release", "dist"].contains(folder))
        .unwrap_or("unknown")
}

impl Hark {
    /// Returns a connection that repeats `list` for this many accounts. The end of each list
    /// counts as accepted.
    pub(crate) fn lister(accounts: usize) -> Box<dyn PeerCodec> {
        Box::new(Lister { accounts })
    }

    /// Sends large texts to so many users in turn, until they have `bytes` bytes, and
    /// waits until all are accepted.
    ///
    /// # Errors
    /// If the server refuses one.
    pub(crate) fn send_large(address: SocketAddr, users: usize, bytes: u64) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(address)?;
        let text = "x".repeat(LARGE_TEXT_BYTES);
        let count = bytes.div_ceil(LARGE_TEXT_BYTES as u64);
        let (mut sent, mut accepted) = (0, 0);
        let (mut frame, mut input, mut buffer) = (BytesMut::new(), Vec::new(), vec![0; 1 << 16]);
        while accepted < count {
            while sent < count && sent - accepted < LARGE_IN_FLIGHT {
                frame.clear();
                let user = name(usize::try_from(sent)? % users);
                let id = RequestId::new(u32::try_from(sent + 1)?);
                encode(
                    id,
                    &Request::Send {
                        user,
                        text: text.as_str().into(),
                    },
                    &mut frame,
                )?;
                stream.write_all(&frame)?;
                sent += 1;
            }
            let read = stream.read(&mut buffer)?;
            ensure!(read > 0, "the server has closed the connection");
            input.extend_from_slice(buffer.get(..read).unwrap_or_default());
            let mut done = 0;
            while let Some(frame) = whole_frame(input.get(done..).unwrap_or_default())? {
                let command = frame
                    .get(LENGTH_BYTES + ID_BYTES..)
                    .and_then(<[u8]>::first_chunk);
                ensure!(command == Some(OK), "the server says {:?}", reply(frame)?);
                accepted += 1;
                done += frame.len();
            }
            input.drain(..done);
        }
        Ok(())
    }
}

/// Bytes of a large text.
const LARGE_TEXT_BYTES: usize = 60_000;

/// Sends of large texts that are not accepted yet.
const LARGE_IN_FLIGHT: u64 = 64;

impl Peer for Hark {
    fn name(&self) -> &'static str {
        self.name
    }

    fn durability(&self) -> Durability {
        match self.store {
            Store::Folder => Durability::OnDisk,
            Store::Memory => Durability::UntilRestart,
        }
    }

    fn users_max(&self) -> usize {
        usize::MAX
    }

    fn version(&self) -> anyhow::Result<String> {
        let version =
            crate::server::version(Command::new(&self.program).arg("--version")).with_context(|| {
                format!(
                    "cannot run {}: build it with `cargo build --profile dist -p hark-server --features jemalloc`, \
                     or name another with --harkd",
                    self.program.display()
                )
            })?;
        Ok(format!("{version}, profile {}", profile(&self.program)))
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(&self.program);
        // Settings in the environment must not affect the measurement.
        for (variable, _) in
            std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HARKD_"))
        {
            command.env_remove(variable);
        }
        command.arg("--listen").arg(format!("127.0.0.1:{port}"));
        match self.store {
            Store::Memory => command.arg("--store=memory:"),
            Store::Folder => command.arg("--store").arg(folder.join("store")),
        };
        command.args([
            "--max-queued-messages=1000000000",
            "--max-queued-bytes=1000000000000",
        ]);
        command.args([
            "--max-accounts=20000000",
            "--max-list=1000000",
            "--log=warn",
        ]);
        command.args([
            "--max-room-members=100000",
            "--max-room-bytes=1000000000000",
            "--rooms-bytes=1000000000000",
        ]);
        Server::start(self.name, command, port, folder)
    }

    fn room_preparations(&self, members: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::once(
            Box::new(RoomMaker::new(members)) as Box<dyn PeerCodec>
        ))
    }

    fn preparations(&self, users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::once(Box::new(Maker {
            users,
            asked: 0,
            made: 0,
        }) as Box<dyn PeerCodec>))
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        match role.is_in_room() {
            true => Box::new(RoomClient::new(role)),
            false => Box::new(Native::new(role)),
        }
    }
}

/// A connection in the native framing, to `harkd` or to a relay.
pub(super) struct Native {
    role: Role,
    is_ready: bool,
    /// The id of the next send.
    next_id: u32,
    frame: BytesMut,
    /// The frame of a send to each user, without id and text.
    heads: Vec<Vec<u8>>,
}

impl Native {
    pub(super) fn new(role: Role) -> Self {
        Self {
            role,
            is_ready: false,
            next_id: 1,
            frame: BytesMut::new(),
            heads: Vec::new(),
        }
    }

    fn say(&mut self, id: u32, request: &Request, output: &mut Vec<u8>) {
        self.frame.clear();
        // A short request always fits into a frame.
        if encode(RequestId::new(id), request, &mut self.frame).is_err() {
            unreachable!("a small frame is too large");
        }
        output.extend_from_slice(&self.frame);
    }

    /// Returns the cached frame of a send up to its text.
    fn head(&mut self, to: usize) -> Vec<u8> {
        let text = String::from_utf8_lossy(&[b'x'; TEXT_BYTES]).into_owned();
        let mut frame = Vec::new();
        self.say(
            1,
            &Request::Send {
                user: name(to),
                text: text.into(),
            },
            &mut frame,
        );
        frame.truncate(frame.len() - TEXT_BYTES);
        frame
    }

    /// Handles a rare frame.
    fn take_rare(&mut self, frame: &[u8], received: &mut Received) -> anyhow::Result<()> {
        match reply(frame)? {
            Some((Reply::Ok(_), _)) if !self.is_ready => {
                self.is_ready = true;
                received.is_ready = true;
                Ok(())
            }
            other => bail!("the server says {other:?}"),
        }
    }
}

impl PeerCodec for Native {
    fn open(&mut self, output: &mut Vec<u8>) {
        match self.role {
            Role::Sender(_) | Role::Speaker(_) => self.say(u32::MAX, &hello(), output),
            Role::Receiver(user) | Role::Joining(user) | Role::Member(user) => {
                self.say(
                    u32::MAX,
                    &Request::Connect {
                        user: name(user),
                        password: None,
                    },
                    output,
                );
            }
        }
    }

    fn send(&mut self, to: usize, text: &Text, output: &mut Vec<u8>) {
        if self.heads.len() <= to && to < HEADS_MAX {
            for user in self.heads.len()..=to {
                let head = self.head(user);
                self.heads.push(head);
            }
        }
        let start = output.len();
        match self.heads.get(to) {
            Some(head) => output.extend_from_slice(head),
            None => output.extend(self.head(to)),
        }
        if let Some(id) = output.get_mut(start + LENGTH_BYTES..start + LENGTH_BYTES + ID_BYTES) {
            id.copy_from_slice(&self.next_id.to_be_bytes());
        }
        self.next_id += 1;
        output.extend_from_slice(text);
    }

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let (mut done, mut last) = (0, None);
        while let Some(rest) = input.get(done..)
            && let Some(frame) = whole_frame(rest)?
        {
            match frame
                .get(LENGTH_BYTES + ID_BYTES..)
                .and_then(<[u8]>::first_chunk)
            {
                Some(OK) if self.is_ready => received.accepted += 1,
                Some(STRING) => {
                    let payload = frame
                        .get(LENGTH_BYTES + FRAME_BYTES_MIN..)
                        .unwrap_or_default();
                    let (sequence, stamp) = delivery(payload)?;
                    received.delivered.push(stamp);
                    last = Some(sequence);
                }
                _ => self.take_rare(frame, received)?,
            }
            done += frame.len();
        }
        if let Some(sequence) = last {
            self.say(
                0,
                &Request::Ack {
                    log: None,
                    sequence,
                },
                output,
            );
        }
        Ok(done)
    }
}

/// Returns the request for a new session: ids increase within a session.
fn hello() -> Request {
    static SESSIONS: AtomicU64 = AtomicU64::new(0);
    let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
    let session = format!("bench-{}-{session}", std::process::id());
    match session.parse() {
        Ok(session) => Request::Hello {
            version: VERSION,
            session,
        },
        Err(error) => unreachable!("{session}: {error}"),
    }
}

/// The most users whose frame heads are cached.
const HEADS_MAX: usize = 10_000;

const OK: &[u8; COMMAND_BYTES] = b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0";
const STRING: &[u8; COMMAND_BYTES] = b"string\0\0\0\0\0\0\0\0\0";

/// Returns the first complete frame of the input, with its length.
pub(super) fn whole_frame(input: &[u8]) -> anyhow::Result<Option<&[u8]>> {
    let Some(length) = input.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let length = u32::from_be_bytes(*length) as usize;
    ensure!(
        (FRAME_BYTES_MIN..=2 * FRAME_BYTES_DEFAULT).contains(&length),
        "a frame of {length} bytes"
    );
    Ok(input.get(..LENGTH_BYTES + length))
}

/// Decodes the number and the stamp of a `string`.
fn delivery(payload: &[u8]) -> anyhow::Result<(Sequence, Stamp)> {
    let (fields, text) = payload
        .split_at_checked(payload.len().saturating_sub(TEXT_BYTES))
        .context("no text")?;
    let digits = fields
        .split(|&byte| byte == b',')
        .next()
        .unwrap_or_default();
    let sequence = digits.iter().try_fold(0u64, |number, digit| {
        ensure!(
            digit.is_ascii_digit(),
            "a sequence number that is no number"
        );
        Ok(number * 10 + u64::from(digit - b'0'))
    })?;
    Ok((Sequence(sequence), Stamp::read(text)?))
}

fn name(user: usize) -> hark_protocol::UserName {
    match user_name(user).parse() {
        Ok(name) => name,
        Err(error) => unreachable!("{error}"),
    }
}

/// Creates the accounts.
struct Maker {
    users: usize,
    asked: usize,
    made: usize,
}

impl Maker {
    fn ask(&mut self, output: &mut Vec<u8>) {
        while self.asked < self.users && self.asked - self.made < SENDS_UNANSWERED_MAX {
            let request = Request::Create {
                user: name(self.asked),
                password: None,
            };
            output.extend_from_slice(&frame(&request));
            self.asked += 1;
        }
    }
}

impl PeerCodec for Maker {
    fn open(&mut self, output: &mut Vec<u8>) {
        self.ask(output);
    }

    fn send(&mut self, _to: usize, _text: &Text, _output: &mut Vec<u8>) {}

    fn take(
        &mut self,
        input: &[u8],
        output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((reply, bytes)) = reply(input.get(done..).unwrap_or_default())? {
            ensure!(
                matches!(reply, Reply::Ok(_)),
                "no account was made: {reply:?}"
            );
            self.made += 1;
            done += bytes;
        }
        self.ask(output);
        received.is_ready = self.made == self.users;
        Ok(done)
    }
}

/// Lists all accounts.
struct Lister {
    accounts: usize,
}

impl PeerCodec for Lister {
    fn open(&mut self, output: &mut Vec<u8>) {
        self.sent(output);
    }

    fn send(&mut self, _to: usize, _text: &Text, _output: &mut Vec<u8>) {}

    /// Requests another list.
    fn sent(&mut self, output: &mut Vec<u8>) {
        output.extend_from_slice(&frame(&Request::List { pattern: None }));
    }

    fn take(
        &mut self,
        input: &[u8],
        _output: &mut Vec<u8>,
        received: &mut Received,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        while let Some((reply, bytes)) = reply(input.get(done..).unwrap_or_default())? {
            match reply {
                Reply::List(_) => {}
                Reply::Ok(fields) => {
                    let (names, is_cut) = fields.as_listed().context("no number of names")?;
                    ensure!(names >= self.accounts && !is_cut, "a list of {names} names");
                    received.accepted += 1;
                    received.is_ready = true;
                }
                other => bail!("the server says {other:?}"),
            }
            done += bytes;
        }
        Ok(done)
    }
}

/// Encodes a request as a frame with an arbitrary id.
fn frame(request: &Request) -> BytesMut {
    let mut frame = BytesMut::new();
    if encode(RequestId::new(1), request, &mut frame).is_err() {
        unreachable!("a small frame is too large");
    }
    frame
}

/// Returns the first complete reply of the input, with its length.
fn reply(input: &[u8]) -> anyhow::Result<Option<(Reply, usize)>> {
    let Some(frame) = whole_frame(input)? else {
        return Ok(None);
    };
    let decoded = ClientCodec::new(FRAME_BYTES_MAX).decode(&mut BytesMut::from(frame))?;
    let reply = decoded
        .context("half a frame")?
        .message
        .map_err(|refusal| anyhow!("{refusal:?}"))?;
    Ok(Some((reply, frame.len())))
}
