//! A room of `harkd`. Members attach a device, and acknowledge the room once for each read;
//! speakers are members without a device, each with a session.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail, ensure};
use bytes::BytesMut;
use hark_protocol::framing::native::encode;
use hark_protocol::limits::{COMMAND_BYTES, FRAME_BYTES_MIN, ID_BYTES, LENGTH_BYTES};
use hark_protocol::message::RoomMode;
use hark_protocol::{
    OkFields, Reply, Request, RequestId, RoomName, RoomReply, RoomRequest, Sequence,
};

use super::{delivery, hello, reply, whole_frame};
use crate::load::text::{TEXT_BYTES, Text};
use crate::peers::{PeerCodec, Received, Role, SPEAKERS_MAX, user_name};

/// The room.
pub(crate) const ROOM: &str = "#bench";

/// The name of a member's device.
const DEVICE: &str = "bench";

/// The most requests of a [`Console`] or a [`RoomMaker`] in flight.
const IN_FLIGHT_MAX: usize = 512;

const OK: &[u8; COMMAND_BYTES] = b"ok\0\0\0\0\0\0\0\0\0\0\0\0\0";
const SAID: &[u8; COMMAND_BYTES] = b"said\0\0\0\0\0\0\0\0\0\0\0";

/// A connection of a member or a speaker.
pub(crate) struct RoomClient {
    role: Role,
    /// The answers to the first requests that are missing.
    opening: usize,
    /// The id of the next send.
    next_id: u32,
    /// The frame of a send up to its text.
    head: Vec<u8>,
    /// The frame of the last acknowledgement.
    frame: BytesMut,
}

impl RoomClient {
    /// Returns a connection that is to be opened.
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            opening: 0,
            next_id: 1,
            head: Vec::new(),
            frame: BytesMut::new(),
        }
    }

    /// Returns the requests that open the connection.
    fn first_requests(&self) -> Vec<Request> {
        let join = Request::Room(RoomRequest::Join(room(ROOM)));
        match self.role {
            Role::Speaker(_) | Role::Sender(_) => {
                vec![hello(), login(&self.role.user_name()), join]
            }
            Role::Joining(_) => vec![attach(&self.role.user_name()), join],
            Role::Member(_) | Role::Receiver(_) => vec![attach(&self.role.user_name())],
        }
    }

    /// Handles a rare frame.
    fn take_rare(&self, frame: &[u8]) -> anyhow::Result<()> {
        match reply(frame)? {
            Some((Reply::Room(RoomReply::Joined { .. } | RoomReply::Device { .. }), _)) => Ok(()),
            other => bail!("the server says {other:?}"),
        }
    }
}

impl PeerCodec for RoomClient {
    fn open(&mut self, output: &mut Vec<u8>) {
        let requests = self.first_requests();
        self.opening = requests.len();
        for (request, id) in requests.iter().zip(u32::MAX - requests.len() as u32..) {
            put(id, request, output);
        }
    }

    fn send(&mut self, _to: usize, text: &Text, output: &mut Vec<u8>) {
        if self.head.is_empty() {
            let send = Request::Send {
                user: user(ROOM),
                text: "x".repeat(TEXT_BYTES).into(),
            };
            put(1, &send, &mut self.head);
            self.head.truncate(self.head.len() - TEXT_BYTES);
        }
        let start = output.len();
        output.extend_from_slice(&self.head);
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
            let command = frame.get(LENGTH_BYTES + ID_BYTES..);
            match command.and_then(<[u8]>::first_chunk) {
                Some(OK) if self.opening > 0 => {
                    self.opening -= 1;
                    received.is_ready = self.opening == 0;
                }
                Some(OK) => received.accepted += 1,
                Some(SAID) => {
                    let payload = frame.get(LENGTH_BYTES + FRAME_BYTES_MIN..);
                    let payload = payload.unwrap_or_default();
                    let comma = payload.iter().position(|&byte| byte == b',');
                    let fields = payload.get(comma.context("no room")? + 1..);
                    let (sequence, stamp) = delivery(fields.unwrap_or_default())?;
                    received.delivered.push(stamp);
                    last = Some(sequence);
                }
                _ => self.take_rare(frame)?,
            }
            done += frame.len();
        }
        if let Some(sequence) = last {
            let log = Some(room(ROOM));
            let ack = Request::Ack { log, sequence };
            self.frame.clear();
            encode(None, &ack, &mut self.frame)?;
            output.extend_from_slice(&self.frame);
        }
        Ok(done)
    }
}

/// Creates the accounts of members and speakers, and the room.
pub(super) struct RoomMaker {
    requests: VecDeque<Request>,
    in_flight: usize,
}

impl RoomMaker {
    pub(super) fn new(members: usize) -> Self {
        let speakers = (0..SPEAKERS_MAX).map(|sender| Role::Speaker(sender).user_name());
        let names = speakers.chain((0..members).map(user_name));
        let mut requests: VecDeque<_> = names.map(|name| create(&name)).collect();
        requests.push_back(login(&Role::Speaker(0).user_name()));
        requests.push_back(open_room(ROOM));
        Self {
            requests,
            in_flight: 0,
        }
    }

    fn ask(&mut self, output: &mut Vec<u8>) {
        while self.in_flight < IN_FLIGHT_MAX
            && let Some(request) = self.requests.pop_front()
        {
            self.in_flight += 1;
            put(self.requests.len() as u32 + 1, &request, output);
        }
    }
}

impl PeerCodec for RoomMaker {
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
            ensure!(matches!(reply, Reply::Ok(_)), "no room: {reply:?}");
            self.in_flight -= 1;
            done += bytes;
        }
        self.ask(output);
        received.is_ready = self.in_flight == 0;
        Ok(done)
    }
}

/// A blocking connection for single requests.
pub(crate) struct Console {
    stream: TcpStream,
    input: Vec<u8>,
    /// The bytes of `input` that are decoded.
    taken: usize,
    last_id: u32,
}

impl Console {
    /// Connects.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            input: Vec::new(),
            taken: 0,
            last_id: 0,
        })
    }

    /// Makes a request. Returns the fields of its `ok`, and the number of replies before it.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn ask(&mut self, request: &Request) -> anyhow::Result<(OkFields, usize)> {
        self.write(std::iter::once(request))?;
        self.answer()
    }

    /// Makes requests, some at a time.
    ///
    /// # Errors
    /// If the server refuses one.
    pub(crate) fn ask_all(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> anyhow::Result<()> {
        let mut requests = requests.into_iter();
        let mut in_flight = 0;
        loop {
            let due = IN_FLIGHT_MAX - in_flight;
            let batch: Vec<_> = requests.by_ref().take(due).collect();
            in_flight += batch.len();
            if in_flight == 0 {
                return Ok(());
            }
            self.write(batch.iter())?;
            // Half of the answers, so that the server has always something to do.
            for _ in 0..in_flight.div_ceil(2) {
                self.answer()?;
                in_flight -= 1;
            }
        }
    }

    fn write<'a>(&mut self, requests: impl Iterator<Item = &'a Request>) -> anyhow::Result<()> {
        let mut output = Vec::new();
        for request in requests {
            self.last_id += 1;
            put(self.last_id, request, &mut output);
        }
        self.stream.write_all(&output)?;
        Ok(())
    }

    fn answer(&mut self) -> anyhow::Result<(OkFields, usize)> {
        let mut parts = 0;
        loop {
            let rest = self.input.get(self.taken..).unwrap_or_default();
            if let Some((reply, bytes)) = reply(rest)? {
                self.taken += bytes;
                match reply {
                    Reply::Ok(fields) => return Ok((fields, parts)),
                    Reply::List(_) | Reply::Room(_) => parts += 1,
                    other => bail!("the server says {other:?}"),
                }
                continue;
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            let mut buffer = [0; 1 << 14];
            let count = self.stream.read(&mut buffer)?;
            ensure!(count > 0, "the server has closed the connection");
            self.input
                .extend_from_slice(buffer.get(..count).unwrap_or_default());
        }
    }
}

impl Console {
    /// Logs in as a user.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn log_in(&mut self, user: usize) -> anyhow::Result<()> {
        self.ask(&login(&user_name(user))).map(drop)
    }

    /// Creates rooms, as the first user.
    ///
    /// # Errors
    /// If the server refuses one.
    pub(crate) fn create_rooms(&mut self, names: &[String]) -> anyhow::Result<()> {
        self.log_in(0)?;
        self.ask_all(names.iter().map(|name| open_room(name)))
    }

    /// Makes so many users members of rooms.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn join_all(&mut self, users: usize, rooms: &[String]) -> anyhow::Result<()> {
        let requests = (0..users).flat_map(|user| {
            let joins = rooms.iter().map(|name| join(name));
            std::iter::once(login(&user_name(user))).chain(joins)
        });
        self.ask_all(requests)
    }

    /// Joins a room. Returns its last number, and the number of its messages.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn join(&mut self, name: &str) -> anyhow::Result<(Sequence, u64)> {
        let fields = self.ask(&join(name))?.0;
        let joined = fields.as_joined();
        joined.with_context(|| format!("the server says {fields:?}"))
    }

    /// Reads messages of a room back. Returns their number.
    ///
    /// # Errors
    /// If the server refuses it.
    pub(crate) fn history(
        &mut self,
        name: &str,
        before: Sequence,
        count: u32,
    ) -> anyhow::Result<usize> {
        let room = room(name);
        let history = RoomRequest::History {
            room,
            before,
            count,
        };
        Ok(self.ask(&Request::Room(history))?.1)
    }

    /// Sends so many short texts to a room.
    ///
    /// # Errors
    /// If the server refuses one.
    pub(crate) fn fill(&mut self, name: &str, count: usize) -> anyhow::Result<()> {
        let send = Request::Send {
            user: user(name),
            text: "sixteen letters.".into(),
        };
        self.ask_all(std::iter::repeat_n(send, count))
    }
}

fn create(name: &str) -> Request {
    Request::Create {
        user: user(name),
        password: None,
    }
}

fn login(name: &str) -> Request {
    Request::Login {
        user: user(name),
        password: None,
    }
}

fn attach(name: &str) -> Request {
    let device = match DEVICE.parse() {
        Ok(device) => device,
        Err(error) => unreachable!("{error}"),
    };
    Request::Room(RoomRequest::Attach {
        user: user(name),
        device,
        password: None,
    })
}

fn join(name: &str) -> Request {
    Request::Room(RoomRequest::Join(room(name)))
}

fn open_room(name: &str) -> Request {
    Request::Room(RoomRequest::Set {
        room: room(name),
        mode: RoomMode::Open,
        keep_s: None,
    })
}

fn room(name: &str) -> RoomName {
    match name.parse() {
        Ok(room) => room,
        Err(error) => unreachable!("{error}"),
    }
}

fn user(name: &str) -> hark_protocol::UserName {
    match name.parse() {
        Ok(user) => user,
        Err(error) => unreachable!("{error}"),
    }
}

/// Appends a request, which fits into a frame.
fn put(id: u32, request: &Request, output: &mut Vec<u8>) {
    let mut frame = BytesMut::new();
    if encode(RequestId::new(id), request, &mut frame).is_err() {
        unreachable!("a small frame is too large");
    }
    output.extend_from_slice(&frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::text::Stamp;

    fn frame(reply: &Reply) -> Vec<u8> {
        let mut frame = BytesMut::new();
        encode(RequestId::new(1), reply, &mut frame).unwrap();
        frame.to_vec()
    }

    #[test]
    fn member_is_ready_and_acknowledges_its_room() {
        let mut member = RoomClient::new(Role::Joining(3));
        let (mut output, mut received) = (Vec::new(), Received::default());
        member.open(&mut output);
        for is_ready in [false, true] {
            let ok = frame(&Reply::Ok(OkFields::None));
            member.take(&ok, &mut output, &mut received).unwrap();
            assert_eq!(received.is_ready, is_ready);
        }
        let stamp = Stamp {
            due_ns: 5,
            sender: 1,
            number: 2,
        };
        let said = RoomReply::Said {
            room: room(ROOM),
            delivery: hark_protocol::Delivery {
                sequence: Sequence(77),
                sender: Some(user("s1")),
                time_ms: 5,
                text: String::from_utf8(stamp.write().to_vec()).unwrap().into(),
            },
        };
        output.clear();
        let said = frame(&Reply::Room(said));
        let taken = member.take(&said, &mut output, &mut received).unwrap();
        assert_eq!((taken, received.delivered), (said.len(), vec![stamp]));
        assert!(output.ends_with(b"77,#bench"), "{output:?}");
    }
}
