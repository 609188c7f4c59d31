//! The requests of the protocol as consecutive requests of HTTP/1.1, for guarantees that
//! HTTP shares with a session.
#![expect(clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use hark_protocol::{
    ByeReason, Code, Delivery, Failure, Frame, OkFields, Password, Refusal, Reply, Request,
    RequestId, Sequence, UserName,
};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::Link;

/// Requests, each over a connection of its own.
#[derive(Debug)]
pub struct HttpRequests {
    address: SocketAddr,
    login: Option<(UserName, Option<Password>)>,
    /// The session of idempotent sends.
    session: Option<String>,
    stream: Option<MessageStream>,
    /// Frames that were received and not returned yet.
    answered: VecDeque<Frame<Reply>>,
}

/// The open response of a receiver.
#[derive(Debug)]
struct MessageStream {
    user: UserName,
    chunks: BufReader<TcpStream>,
    /// Bytes of an incomplete line.
    line: Vec<u8>,
    lines: VecDeque<String>,
}

/// A response.
struct Response {
    status: u16,
    body: Value,
}

impl HttpRequests {
    /// Looks for a server; `None` if there is none.
    pub async fn connect(address: SocketAddr) -> Option<Self> {
        TcpStream::connect(address).await.ok()?;
        Some(Self {
            address,
            login: None,
            session: None,
            stream: None,
            answered: VecDeque::new(),
        })
    }

    async fn write(&mut self, requests: Vec<(u32, Request)>) -> Option<()> {
        for (id, request) in requests {
            let replies = self.call(id, request).await?;
            // In a session an `ack` has no reply.
            let id = RequestId::new(id).into_iter();
            let frames = id.flat_map(|id| {
                let replies = replies.iter().cloned();
                replies.map(move |reply| Frame::new(Some(id), reply))
            });
            self.answered.extend(frames);
        }
        Some(())
    }

    async fn call(&mut self, id: u32, request: Request) -> Option<Vec<Reply>> {
        let (method, target, body) = match request {
            Request::Hello { version, session } => {
                self.session = Some(session.as_str().to_owned());
                return Some(vec![Reply::Ok(OkFields::Hello(version, 0))]);
            }
            // The credentials are checked by the requests that carry them.
            Request::Login { user, password } => {
                self.login = Some((user, password));
                return Some(vec![Reply::Ok(OkFields::None)]);
            }
            Request::Ping => {
                let listed = self.request("GET", "/v1/users?pattern=%24%5E", "").await?;
                self.take_pushed();
                return Some(vec![reply(&listed, |_| OkFields::None)]);
            }
            Request::Connect { user, password } => {
                return Some(vec![self.receive(user, password).await?]);
            }
            Request::Create { user, password } => {
                let password = password.as_ref().map_or("", |password| password.expose());
                (
                    "PUT",
                    format!("/v1/users/{}", encoded(user.as_str())),
                    password.to_owned(),
                )
            }
            Request::Delete { user, .. } => {
                let target = format!("/v1/users/{}", encoded(user.as_str()));
                ("DELETE", target, String::new())
            }
            Request::Send { user, text } => {
                let target = format!("/v1/send/{}", encoded(user.as_str()));
                ("POST", target, text.to_string())
            }
            Request::Ack { sequence, .. } => {
                let user = &self.stream.as_ref().expect("a response").user;
                let target = format!("/v1/ack/{}?number={sequence}", encoded(user.as_str()));
                ("POST", target, String::new())
            }
            Request::List { pattern } => {
                let pattern = encoded(&pattern.unwrap_or_default());
                ("GET", format!("/v1/users?pattern={pattern}"), String::new())
            }
            other => panic!("{other:?} has no request of HTTP"),
        };
        let key = self.session.as_ref().map_or_else(String::new, |session| {
            format!("Idempotency-Key: {session}/{id}\r\n")
        });
        let is_send = target.starts_with("/v1/send");
        let headers = if is_send { key } else { String::new() };
        let response = self.exchange(method, &target, &headers, &body).await?;
        Some(replies(&response))
    }

    async fn request(&self, method: &str, target: &str, body: &str) -> Option<Response> {
        self.exchange(method, target, "", body).await
    }

    async fn exchange(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> Option<Response> {
        let mut stream = self.open(method, target, headers, body).await?;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.ok()?;
        let response = String::from_utf8(bytes).expect("UTF-8");
        let (head, body) = response.split_once("\r\n\r\n")?;
        Some(Response {
            status: status(head),
            body: serde_json::from_str(body).unwrap_or_else(|_| panic!("{response}")),
        })
    }

    /// Writes a request on a new connection.
    async fn open(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: &str,
    ) -> Option<TcpStream> {
        let mut stream = TcpStream::connect(self.address).await.ok()?;
        let login = self.login.as_ref().map_or_else(String::new, |login| {
            let (user, password) = login;
            let password = password.as_ref().map_or("", |password| password.expose());
            let login = STANDARD.encode(format!("{user}:{password}"));
            format!("Authorization: Basic {login}\r\n")
        });
        let length = body.len();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Length: {length}\r\n{login}{headers}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.ok()?;
        Some(stream)
    }

    /// Becomes the receiver of a user. The answer counts the messages that wait.
    async fn receive(&mut self, user: UserName, password: Option<Password>) -> Option<Reply> {
        self.login = Some((user.clone(), password));
        let target = format!("/v1/receive/{}", encoded(user.as_str()));
        let mut waiting = String::new();
        let mut unread = self.open("GET", &target, "", "").await?;
        unread.read_to_string(&mut waiting).await.ok()?;
        let count = waiting.matches("\"number\":").count() as u64;
        let stream = self.open("POST", &target, "", "").await?;
        let mut chunks = BufReader::new(stream);
        let (mut head, mut length) = (String::new(), 0);
        while !head.ends_with("\r\n\r\n") {
            let read = chunks.read_line(&mut head).await.ok()?;
            if read == 0 {
                return None;
            }
            let line = head.lines().last().unwrap_or_default();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
        }
        if status(&head) != 200 {
            let mut body = vec![0; length];
            chunks.read_exact(&mut body).await.ok()?;
            let body = serde_json::from_slice(&body).expect("JSON");
            let status = status(&head);
            return Some(reply(&Response { status, body }, |_| OkFields::None));
        }
        self.stream = Some(MessageStream {
            user,
            chunks,
            line: Vec::new(),
            lines: VecDeque::new(),
        });
        Some(Reply::Ok(OkFields::Queued(count)))
    }

    /// Queues pushes that have arrived before the following answers.
    fn take_pushed(&mut self) {
        let Some(stream) = &mut self.stream else {
            return;
        };
        while let Some(Some(pushed)) = stream.read().now_or_never() {
            self.answered.push_back(pushed);
        }
    }

    async fn read(&mut self) -> Option<Frame<Reply>> {
        match self.answered.pop_front() {
            Some(answer) => Some(answer),
            None => {
                let stream = self.stream.as_mut();
                stream.expect("something to come").read().await
            }
        }
    }
}

impl MessageStream {
    /// Returns the next push; `None` at the end of the response. Cancel-safe.
    async fn read(&mut self) -> Option<Frame<Reply>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                match push(&line) {
                    Some(reply) => return Some(Frame::new(None, reply)),
                    None => continue,
                }
            }
            let bytes = self.chunks.fill_buf().await.ok()?;
            if bytes.is_empty() {
                return None;
            }
            let count = bytes.len();
            self.line.extend_from_slice(bytes);
            self.chunks.consume(count);
            // The framing of chunks never looks like a line of JSON.
            while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                let line = String::from_utf8(line).expect("UTF-8");
                if line.starts_with('{') {
                    self.lines.push_back(line);
                }
            }
        }
    }
}

/// Returns the push of a line.
fn push(line: &str) -> Option<Reply> {
    let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
    if let Some(reason) = line["bye"].as_str() {
        return Some(Reply::Bye(ByeReason::parse(reason).expect("a reason")));
    }
    Some(Reply::String(Delivery {
        sequence: Sequence(line["number"].as_u64()?),
        sender: line["sender"].as_str().and_then(|name| name.parse().ok()),
        time_ms: line["time"].as_u64().expect("a time"),
        text: line["text"].as_str().expect("a text").into(),
    }))
}

fn status(head: &str) -> u16 {
    let status = head.split(' ').nth(1).map(u16::from_str);
    status.expect("a status").expect("a number")
}

/// Returns the reply of a response, with these fields if it is no refusal.
fn reply(response: &Response, fields: impl FnOnce(&Value) -> OkFields) -> Reply {
    let Response { status, body } = response;
    if *status < 300 {
        return Reply::Ok(fields(body));
    }
    let explanation = body["explanation"].as_str().unwrap_or_default().to_owned();
    match body["code"].as_str().and_then(Code::parse) {
        Some(code) => Reply::NotOk(Refusal::new(code, explanation)),
        None => Reply::Error {
            failure: Failure::Unavailable,
            explanation: explanation.into(),
        },
    }
}

fn replies(response: &Response) -> Vec<Reply> {
    let users = response.body["users"].as_array();
    let mut replies: Vec<Reply> = Vec::new();
    if let Some(users) = users.filter(|users| !users.is_empty()) {
        let names = users.iter().filter_map(|name| name.as_str()?.parse().ok());
        replies.push(Reply::List(names.collect()));
    }
    replies.push(reply(response, |body| {
        if let Some(number) = body["number"].as_u64() {
            OkFields::Stored(Sequence(number))
        } else if let Some(existed) = body["deleted"].as_bool() {
            OkFields::Deleted(existed)
        } else if let Some(users) = users {
            OkFields::Listed(users.len(), body["truncated"] == true)
        } else {
            OkFields::None
        }
    }));
    replies
}

/// Percent-encodes a segment of a path or a parameter.
fn encoded(text: &str) -> String {
    let bytes = text.bytes().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    });
    bytes.collect()
}

impl Link for HttpRequests {
    fn write_all(&mut self, requests: Vec<(u32, Request)>) -> BoxFuture<'_, Option<()>> {
        Box::pin(self.write(requests))
    }

    fn next(&mut self) -> BoxFuture<'_, Option<Frame<Reply>>> {
        Box::pin(self.read())
    }
}
