//! A client over `hark-protocol` alone, with blocking sockets. It sends each line of
//! standard input exactly once, or prints each message of a user exactly once.
//!
//! Start `harkd`, then
//!
//! ```text
//! cargo run -p hark-protocol --example client 127.0.0.1:3000 receive amy
//! seq 3 | cargo run -p hark-protocol --example client 127.0.0.1:3000 send amy
//! ```
//!
//! If the connection is lost, the client opens another one and repeats the requests
//! that were not answered. A send keeps its id in the session, so the server stores it
//! once; a message keeps its number, so the receiver prints it once.

use std::collections::BTreeMap;
use std::error::Error;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use hark_protocol::framing::native::{self, ClientCodec};
use hark_protocol::limits::{FRAME_BYTES_MAX, VERSION};
use hark_protocol::{
    Code, Frame, Refusal, Reply, Request, RequestId, Sequence, SessionToken, UserName,
};
use tokio_util::codec::Decoder as _;

/// The maximum number of sends that are not answered.
const IN_FLIGHT_MAX: usize = 64;

/// The maximum number of connection attempts.
const ATTEMPTS_MAX: u32 = 50;

/// The pause before another connection.
const RETRY_AFTER: Duration = Duration::from_millis(200);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &*arguments.iter().map(String::as_str).collect::<Vec<_>>() {
        [server, "send", to] => send(
            server,
            &to.parse()?,
            io::stdin().lines().collect::<io::Result<_>>()?,
        ),
        [server, "receive", user] => receive(server, &user.parse()?),
        _ => Err("usage: client HOST:PORT send|receive USER".into()),
    }
}

/// Sends the lines to a user, in order.
fn send(server: &str, to: &UserName, lines: Vec<String>) -> Result<()> {
    let random = RandomState::new().build_hasher().finish();
    let session: SessionToken = format!("example-{random:x}").parse()?;
    let mut unanswered: BTreeMap<u32, String> = (1..).zip(lines).collect();
    reconnecting(server, |connection| {
        connection.request(&Request::Hello {
            version: VERSION,
            session: session.clone(),
        })?;
        let (mut next, mut in_flight) = (1, 0);
        while !unanswered.is_empty() {
            for (&id, line) in unanswered.range(next..).take(IN_FLIGHT_MAX - in_flight) {
                connection.write(
                    id,
                    &Request::Send {
                        user: to.clone(),
                        text: line.as_str().into(),
                    },
                )?;
                (next, in_flight) = (id + 1, in_flight + 1);
            }
            let (id, reply) = connection.read()?;
            check(reply)?;
            unanswered.remove(&id);
            in_flight -= 1;
        }
        Ok(())
    })
}

/// Prints the messages of a user, until another client receives for it.
fn receive(server: &str, user: &UserName) -> Result<()> {
    let mut last = Sequence(0);
    reconnecting(server, |connection| {
        match connection.request(&Request::Create {
            user: user.clone(),
            password: None,
        }) {
            Err(error)
                if error
                    .downcast_ref::<Refusal>()
                    .is_some_and(|why| why.code == Code::Exists) => {}
            created => created?,
        }
        connection.request(&Request::Connect {
            user: user.clone(),
            password: None,
        })?;
        loop {
            match connection.read()?.1 {
                Reply::String(message) => {
                    if message.sequence > last {
                        println!("{}", message.text);
                        last = message.sequence;
                    }
                    connection.write(
                        0,
                        &Request::Ack {
                            log: None,
                            sequence: message.sequence,
                        },
                    )?;
                }
                Reply::Bye(_) => return Ok(()),
                other => check(other)?,
            }
        }
    })
}

/// Runs `work` on a connection, and again on another one if the first is lost.
fn reconnecting(server: &str, mut work: impl FnMut(&mut Connection) -> Result<()>) -> Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        match Connection::open(server).and_then(|mut connection| work(&mut connection)) {
            Err(error) if error.is::<io::Error>() => {
                eprintln!("no connection: {error}; trying again")
            }
            done => return done,
        }
        thread::sleep(RETRY_AFTER);
    }
    Err(format!("{server} was not reached in {ATTEMPTS_MAX} attempts").into())
}

/// Returns the refusal in a reply as an error, and a failure of the server as the end of
/// the connection.
fn check(reply: Reply) -> Result<()> {
    match reply {
        Reply::NotOk(refusal) => Err(refusal.into()),
        Reply::Error { explanation, .. } => Err(io::Error::other(explanation).into()),
        _ => Ok(()),
    }
}

/// A connection in the native framing.
struct Connection {
    socket: TcpStream,
    codec: ClientCodec,
    input: BytesMut,
}

impl Connection {
    fn open(server: &str) -> Result<Self> {
        let socket = TcpStream::connect(server)?;
        Ok(Self {
            socket,
            codec: ClientCodec::new(FRAME_BYTES_MAX),
            input: BytesMut::new(),
        })
    }

    /// Sends a request and waits for its reply. Requires that no other one is in flight.
    fn request(&mut self, request: &Request) -> Result<()> {
        self.write(u32::MAX, request)?;
        check(self.read()?.1)
    }

    fn write(&mut self, id: u32, request: &Request) -> Result<()> {
        let mut frame = BytesMut::new();
        native::encode(RequestId::new(id), request, &mut frame)?;
        Ok(self.socket.write_all(&frame)?)
    }

    /// Waits for the next message, and returns it with its id; a push has the id 0.
    fn read(&mut self) -> Result<(u32, Reply)> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(Frame { id, message }) = self.codec.decode(&mut self.input)? {
                let reply = message.map_err(|malformed| malformed.refusal)?;
                return Ok((id.map_or(0, RequestId::value), reply));
            }
            match self.socket.read(&mut bytes)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => self
                    .input
                    .extend_from_slice(bytes.get(..count).unwrap_or_default()),
            }
        }
    }
}
