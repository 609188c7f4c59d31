//! The limits of this machine: a relay of Hark's frames over the loopback without a store, and
//! one that appends them to a plain file with group commit. It also forwards to the members of
//! one room. Neither has accounts, sessions,
//! acknowledgements, a bound on the queue of an absent reader, or a way to read its file.
//!
//! It runs as a process of its own, on one thread (and one for the file), which on two
//! processors is faster than two.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use hark_protocol::limits::{FRAME_BYTES_MIN, ID_BYTES, LENGTH_BYTES};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_blocking, spawn_local};

use super::hark::{Native, RoomClient, whole_frame};
use super::{Durability, Peer, PeerCodec, Role};
use crate::server::Server;

/// The size of a read, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// The unread output of a connected reader at which the relay stops reading.
const UNREAD_BYTES_MAX: usize = 64 * 1024;

/// A limit of the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Relay {
    has_log: bool,
}

impl Relay {
    /// Without a store.
    pub(crate) const BARE: Self = Self { has_log: false };
    /// With a plain file that is synced once per group.
    pub(crate) const LOGGED: Self = Self { has_log: true };
}

impl Peer for Relay {
    fn name(&self) -> &'static str {
        if self.has_log {
            "limit: relay, synced file"
        } else {
            "limit: relay"
        }
    }

    fn durability(&self) -> Durability {
        Durability::UntilRestart
    }

    fn users_max(&self) -> usize {
        usize::MAX
    }

    fn version(&self) -> anyhow::Result<String> {
        Ok(format!("hark-bench {}", env!("CARGO_PKG_VERSION")))
    }

    fn start(&self, port: u16, folder: &Path) -> anyhow::Result<Server> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("relay").arg(format!("--port={port}"));
        if self.has_log {
            command.arg("--log").arg(folder.join("log"));
        }
        Server::start(self.name(), command, port, folder)
    }

    fn preparations(&self, _users: usize) -> Box<dyn Iterator<Item = Box<dyn PeerCodec>>> {
        Box::new(std::iter::empty())
    }

    fn codec(&self, role: Role) -> Box<dyn PeerCodec> {
        match role.is_in_room() {
            true => Box::new(RoomClient::new(role)),
            false => Box::new(Native::new(role)),
        }
    }
}

/// The arguments of the relay's process.
#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// The port to listen on
    #[arg(long)]
    port: u16,
    /// The file to append to
    #[arg(long)]
    log: Option<PathBuf>,
}

/// Relays until it is killed.
///
/// # Errors
/// If it cannot listen, or cannot write its file.
pub(crate) fn serve(arguments: &RelayArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, async {
        let state = Rc::new(State::default());
        spawn_local(Rc::clone(&state).keep_flushing());
        if let Some(log) = &arguments.log {
            let file = File::options()
                .create(true)
                .append(true)
                .open(log)
                .context("no log")?;
            state.has_log.set(true);
            let committed = Rc::clone(&state).commit(file);
            spawn_local(async move {
                if let Err(error) = committed.await {
                    eprintln!("the file cannot be written: {error:#}");
                    std::process::exit(1);
                }
            });
        }
        let listener =
            TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], arguments.port))).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let state = Rc::clone(&state);
            spawn_local(async move {
                // A client error ends only its own connection.
                if let Err(error) = state.connection(stream).await {
                    eprintln!("a connection has ended: {error:#}");
                }
            });
        }
    })
}

#[derive(Default)]
struct State {
    users: RefCell<HashMap<Vec<u8>, Rc<Output>>>,
    members: RefCell<Vec<Rc<Output>>>,
    last_sequence: Cell<u64>,
    has_log: Cell<bool>,
    group: RefCell<Group>,
    grown: Notify,
    /// The connections with new output.
    touched: RefCell<Vec<Rc<Output>>>,
    touches: Notify,
    /// The connections over the limit of unread output.
    congested: Rc<Cell<usize>>,
    relieved: Rc<Notify>,
}

/// The group that waits for the next sync.
#[derive(Default)]
struct Group {
    /// The concatenated frames of the messages.
    frames: Vec<u8>,
    sends: Vec<Sent>,
}

/// A send, whose frame in the group ends at `end`.
struct Sent {
    end: usize,
    /// `None` for the members of the room.
    to: Option<Rc<Output>>,
    from: Rc<Output>,
    id: [u8; ID_BYTES],
}

/// The output of a connection, or of a user without one.
#[derive(Default)]
struct Output {
    bytes: RefCell<Vec<u8>>,
    stream: RefCell<Option<Rc<TcpStream>>>,
    /// Whether the stream is not writable, and its writer task waits for it.
    is_blocked: Cell<bool>,
    blocked: Notify,
    is_touched: Cell<bool>,
    is_congested: Cell<bool>,
    congested: Rc<Cell<usize>>,
    relieved: Rc<Notify>,
}

impl State {
    async fn connection(&self, stream: TcpStream) -> anyhow::Result<()> {
        let stream = Rc::new(stream);
        let own = self.output();
        own.attach(&stream);
        let mut receives = None;
        let mut input = Vec::with_capacity(READ_BYTES);
        loop {
            while self.congested.get() > 0 {
                self.relieved.notified().await;
            }
            stream.readable().await?;
            match stream.try_read_buf(&mut input) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            let mut done = 0;
            while let Some(frame) = whole_frame(input.get(done..).unwrap_or_default())? {
                self.take(frame, &own, &stream, &mut receives);
                done += frame.len();
            }
            input.drain(..done);
            input.reserve(READ_BYTES / 2);
        }
        own.close();
        if let Some(receiving) = receives {
            receiving.close();
        }
        Ok(())
    }

    fn take(
        &self,
        frame: &[u8],
        own: &Rc<Output>,
        stream: &Rc<TcpStream>,
        receives: &mut Option<Rc<Output>>,
    ) {
        let (head, payload) = frame.split_at(LENGTH_BYTES + FRAME_BYTES_MIN);
        let (_, head) = head.split_at(LENGTH_BYTES);
        let Some((id, command)) = head.split_first_chunk::<ID_BYTES>() else {
            return;
        };
        match command {
            b"send\0\0\0\0\0\0\0\0\0\0\0" => {
                let comma = payload
                    .iter()
                    .position(|&byte| byte == b',')
                    .unwrap_or(payload.len());
                let (name, text) = payload.split_at(comma);
                let to = (name.first() != Some(&b'#')).then(|| self.user(name));
                self.send(text.get(1..).unwrap_or_default(), *id, own, to);
            }
            b"ack\0\0\0\0\0\0\0\0\0\0\0\0" => {}
            b"join\0\0\0\0\0\0\0\0\0\0\0" => {
                own.push_ok(*id);
                own.flush();
                self.members.borrow_mut().extend(receives.clone());
            }
            b"connect\0\0\0\0\0\0\0\0" | b"attach\0\0\0\0\0\0\0\0\0" => {
                // Its messages follow, over an output of its own.
                own.push_ok(*id);
                own.flush();
                let name = payload.split(|&byte| byte == b',').next();
                let user = self.user(name.unwrap_or_default());
                user.attach(stream);
                self.touch(&user);
                *receives = Some(user);
            }
            _ => {
                own.push_ok(*id);
                self.touch(own);
            }
        }
    }

    fn output(&self) -> Rc<Output> {
        Rc::new(Output {
            congested: Rc::clone(&self.congested),
            relieved: Rc::clone(&self.relieved),
            ..Output::default()
        })
    }

    fn user(&self, name: &[u8]) -> Rc<Output> {
        let mut users = self.users.borrow_mut();
        if let Some(user) = users.get(name) {
            return Rc::clone(user);
        }
        Rc::clone(
            users
                .entry(name.to_owned())
                .or_insert_with(|| self.output()),
        )
    }

    fn send(&self, text: &[u8], id: [u8; ID_BYTES], own: &Rc<Output>, to: Option<Rc<Output>>) {
        let sequence = self.last_sequence.get() + 1;
        self.last_sequence.set(sequence);
        let head = match &to {
            Some(_) => STRING,
            None => SAID,
        };
        if self.has_log.get() {
            let mut group = self.group.borrow_mut();
            push_message(&mut group.frames, head, sequence, text);
            let end = group.frames.len();
            let from = Rc::clone(own);
            group.sends.push(Sent { end, to, from, id });
            self.grown.notify_one();
        } else {
            let mut frame = Vec::new();
            match &to {
                Some(to) => push_message(&mut to.bytes.borrow_mut(), head, sequence, text),
                None => push_message(&mut frame, head, sequence, text),
            }
            own.push_ok(id);
            self.touch(own);
            self.deliver(&frame, to.as_ref());
        }
    }

    /// Appends a frame to the output of a user, or to those of all members.
    fn deliver(&self, frame: &[u8], to: Option<&Rc<Output>>) {
        let members = self.members.borrow();
        let to = match to {
            Some(to) => std::slice::from_ref(to),
            None => &**members,
        };
        for output in to {
            output.bytes.borrow_mut().extend_from_slice(frame);
            self.touch(output);
        }
    }

    fn touch(&self, output: &Rc<Output>) {
        if !output.is_touched.replace(true) {
            self.touched.borrow_mut().push(Rc::clone(output));
            self.touches.notify_one();
        }
    }

    /// Writes once for all input of one round of reads.
    async fn keep_flushing(self: Rc<Self>) {
        loop {
            self.touches.notified().await;
            tokio::task::yield_now().await;
            for output in self.touched.take() {
                output.is_touched.set(false);
                output.flush();
            }
        }
    }

    /// Appends each group to the file and syncs it, then accepts and delivers its messages.
    async fn commit(self: Rc<Self>, mut file: File) -> anyhow::Result<()> {
        loop {
            let group = self.group.take();
            if group.sends.is_empty() {
                self.grown.notified().await;
                continue;
            }
            let frames = group.frames;
            let (file_again, frames) = spawn_blocking(move || {
                file.write_all(&frames)?;
                file.sync_data()?;
                anyhow::Ok((file, frames))
            })
            .await??;
            file = file_again;
            let mut start = 0;
            for sent in group.sends {
                sent.from.push_ok(sent.id);
                self.touch(&sent.from);
                let frame = frames.get(start..sent.end).unwrap_or_default();
                self.deliver(frame, sent.to.as_ref());
                start = sent.end;
            }
        }
    }
}

impl Output {
    /// Attaches a stream, with a task that writes the output that the stream does not take at
    /// once.
    fn attach(self: &Rc<Self>, stream: &Rc<TcpStream>) {
        self.stream.replace(Some(Rc::clone(stream)));
        self.is_blocked.set(false);
        let (output, stream) = (Rc::clone(self), Rc::clone(stream));
        spawn_local(async move {
            while output.is_over(&stream) {
                output.blocked.notified().await;
                while output.is_blocked.get()
                    && output.is_over(&stream)
                    && stream.writable().await.is_ok()
                {
                    output.is_blocked.set(false);
                    output.flush();
                }
            }
        });
    }

    fn is_over(&self, stream: &Rc<TcpStream>) -> bool {
        self.stream
            .borrow()
            .as_ref()
            .is_some_and(|other| Rc::ptr_eq(other, stream))
    }

    fn close(&self) {
        self.stream.replace(None);
        self.blocked.notify_one();
        self.set_congested(false);
    }

    fn push_ok(&self, id: [u8; ID_BYTES]) {
        let mut bytes = self.bytes.borrow_mut();
        bytes.extend_from_slice(&OK_LENGTH);
        bytes.extend_from_slice(&id);
        bytes.extend_from_slice(b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    /// Writes as much as the stream takes.
    fn flush(&self) {
        if self.is_blocked.get() {
            return;
        }
        let mut bytes = self.bytes.borrow_mut();
        let stream = self.stream.borrow();
        let Some(stream) = stream.as_ref() else {
            return;
        };
        let mut done = 0;
        while done < bytes.len() {
            match stream.try_write(bytes.get(done..).unwrap_or_default()) {
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.is_blocked.set(true);
                    self.blocked.notify_one();
                    break;
                }
                // The reader task notices the end.
                Err(_) => done = bytes.len(),
            }
        }
        bytes.drain(..done);
        self.set_congested(bytes.len() >= UNREAD_BYTES_MAX);
    }

    fn set_congested(&self, is_congested: bool) {
        let was_congested = self.is_congested.replace(is_congested);
        self.congested
            .set(self.congested.get() + usize::from(is_congested) - usize::from(was_congested));
        if self.congested.get() == 0 {
            self.relieved.notify_waiters();
        }
    }
}

/// The length of an `ok` without fields.
const OK_LENGTH: [u8; LENGTH_BYTES] = [0, 0, 0, FRAME_BYTES_MIN as u8];

/// The command and the first fields of a message to a user, and to a room.
const STRING: &[u8] = b"string\0\0\0\0\0\0\0\0\0";
const SAID: &[u8] = b"said\0\0\0\0\0\0\0\0\0\0\0#bench,";

/// Appends a message as a frame.
fn push_message(to: &mut Vec<u8>, head: &[u8], sequence: u64, text: &[u8]) {
    let start = to.len();
    to.extend_from_slice(&[0; LENGTH_BYTES + ID_BYTES]);
    to.extend_from_slice(head);
    let time_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_millis());
    // A write to memory cannot fail.
    if write!(to, "{sequence},,{time_ms},").is_err() {
        unreachable!("memory takes what is written to it");
    }
    to.extend_from_slice(text);
    let length = u32::try_from(to.len() - start - LENGTH_BYTES).unwrap_or(u32::MAX);
    if let Some(field) = to.get_mut(start..start + LENGTH_BYTES) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}
