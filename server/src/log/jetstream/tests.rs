//! Streams on three real nodes, and two servers that own a shard on one. What kills
//! nodes and cuts links stands in `tests/`.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::mpsc;

use super::*;
use crate::cluster::member::Member;
use crate::cluster::message::{Answer, Message as PeerMessage, Reply, Request as Command, Send};
use crate::cluster::{Action, Config as ShardConfig, Now, ServerId};
use crate::ledger::Limits;
use crate::store::cluster::tests::{nodes, runtime};
use crate::store::{Account, Outcome, Position, ReadLimit};

const NODES: usize = 3;

async fn client() -> Client {
    async_nats::ConnectOptions::new().retry_on_initial_connect().connect(nodes()).await.unwrap()
}

/// Opens a stream of its own once the nodes have found each other.
async fn open(chat: &str) -> JetStream {
    let client = client().await;
    let begun = Instant::now();
    loop {
        match JetStream::open(client.clone(), chat, 0, NODES).await {
            Ok(stream) => return stream,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(60), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Carries out a request, again if it has no answer.
async fn ask(stream: &JetStream, request: LogRequest) -> LogReply {
    for _ in 0..10 {
        if let Some(reply) = stream.carry_out(request.clone()).await {
            return reply;
        }
    }
    panic!("no answer to {request:?}")
}

async fn append(stream: &JetStream, text: &'static str, after: Option<u64>) -> Result<u64, u64> {
    match ask(stream, LogRequest::Append { id: 1, bytes: Bytes::from_static(text.as_bytes()), after }).await {
        LogReply::Stored { id: 1, sequence } => Ok(sequence),
        LogReply::Refused { id: 1, last } => Err(last),
        other => panic!("{other:?}"),
    }
}

async fn read(stream: &JetStream, from: u64) -> (u64, Vec<Bytes>, u64) {
    match ask(stream, LogRequest::Read { id: 2, from }).await {
        LogReply::Page { id: 2, first, messages, last } => (first, messages, last),
        other => panic!("{other:?}"),
    }
}

#[test]
fn append_on_another_last_sequence_is_refused() {
    runtime().block_on(async {
        let stream = open("conditions").await;
        assert_eq!(append(&stream, "a", Some(0)).await, Ok(1));
        assert_eq!(append(&stream, "b", Some(0)).await, Err(1));
        assert_eq!(append(&stream, "b", Some(7)).await, Err(1));
        assert_eq!(append(&stream, "b", Some(1)).await, Ok(2));
        assert_eq!(append(&stream, "c", None).await, Ok(3));
        assert_eq!(append(&stream, "c", None).await, Ok(4), "there is no deduplication");
    });
}

#[test]
fn pages_are_consecutive_and_begin_behind_a_purge() {
    runtime().block_on(async {
        let stream = open("pages").await;
        assert_eq!(read(&stream, 1).await.1, Vec::<Bytes>::new());
        for after in 0..5 {
            append(&stream, "text", Some(after)).await.unwrap();
        }
        let (first, messages, last) = read(&stream, 2).await;
        assert_eq!((first, last), (1, 5));
        assert!(
            !messages.is_empty() && messages.len() <= 4 && messages.iter().all(|message| message == "text")
        );
        assert_eq!(stream.message(5).await, Some(Bytes::from_static(b"text")));
        assert!(stream.carry_out(LogRequest::Purge { before: 4 }).await.is_none());
        let (first, messages, last) = read(&stream, 1).await;
        assert_eq!((first, messages.len(), last), (4, 0, 5));
        assert_eq!(read(&stream, u64::MAX).await, (4, Vec::new(), 5));
        assert_eq!(append(&stream, "text", Some(5)).await, Ok(6), "the sequence goes on");
    });
}

#[test]
fn stream_that_would_lose_messages_is_refused() {
    runtime().block_on(async {
        let stream = open("changed").await;
        let context = jetstream::new(stream.client.clone());
        let limited = Config { max_messages: 1000, ..config(&stream.stream, &stream.subject, NODES) };
        context.update_stream(limited).await.unwrap();
        let opened = JetStream::open(stream.client.clone(), "changed", 0, NODES).await;
        assert!(matches!(opened, Err(OpenError::Foreign { field: "max_msgs", .. })), "{opened:?}");
    });
}

/// Two servers of one shard. Messages between them arrive at once.
struct Servers {
    stream: JetStream,
    members: Vec<Option<Member>>,
    begun: Instant,
    mail: VecDeque<(usize, PeerMessage)>,
    replies: (mpsc::UnboundedSender<(usize, LogReply)>, mpsc::UnboundedReceiver<(usize, LogReply)>),
    answers: Vec<(u64, Reply)>,
    requests: u64,
    /// The server that sent the last heartbeat of an owner.
    owner: usize,
}

impl Servers {
    fn new(stream: JetStream) -> Self {
        let ids = [ServerId(1), ServerId(2)];
        let limits = Limits {
            accounts_max: 10,
            sessions_max: 10,
            queued_messages_max: 10_000,
            queued_bytes_max: 1 << 24,
        };
        let config = ShardConfig { tail_entries_max: 50, ..ShardConfig::new(limits) };
        let members = ids.iter().map(|id| Some(Member::new(*id, &ids, 1, config))).collect();
        let (mail, answers) = (VecDeque::new(), Vec::new());
        Self {
            stream,
            members,
            begun: Instant::now(),
            mail,
            replies: mpsc::unbounded_channel(),
            answers,
            requests: 0,
            owner: 0,
        }
    }

    fn act(&mut self, host: usize, act: impl FnOnce(&mut Member, Now, &mut Vec<Action>)) {
        let Some(member) = &mut self.members[host] else { return };
        let now = Now { running: self.begun.elapsed(), wall: SystemTime::now() };
        let mut actions = Vec::new();
        act(member, now, &mut actions);
        for action in actions {
            match action {
                Action::Log(_, request) => {
                    let (stream, replies) = (self.stream.clone(), self.replies.0.clone());
                    tokio::spawn(async move {
                        if let Some(reply) = stream.carry_out(request).await {
                            drop(replies.send((host, reply)));
                        }
                    });
                }
                Action::Send(ServerId(id), message) => self.mail.push_back((id as usize - 1, message)),
                Action::Broadcast(message) => {
                    self.owner = host;
                    self.mail.extend((0..2).map(|to| (to, message.clone())));
                }
                Action::Answer { request, reply, .. } => self.answers.push((request, reply)),
                Action::EndIdentity(_) | Action::Close(_) | Action::CloseAll => {}
            }
        }
    }

    async fn step(&mut self) {
        (0..2).for_each(|host| self.act(host, |member, now, out| member.tick(now, out)));
        let wait = tokio::time::sleep(Duration::from_millis(100));
        tokio::pin!(wait);
        loop {
            while let Some((to, message)) = self.mail.pop_front() {
                self.act(to, |member, now, out| member.handle_message(message, now, out));
            }
            tokio::select! {
                () = &mut wait => return,
                Some((host, reply)) = self.replies.1.recv() => {
                    self.act(host, |member, now, out| member.handle_log(0, reply, now, out));
                }
            }
        }
    }

    /// Asks until it is answered.
    async fn ask(&mut self, host: usize, command: Command) -> Answer {
        let begun = Instant::now();
        loop {
            self.requests += 1;
            let request = self.requests;
            let command = command.clone();
            self.act(host, |member, now, out| member.submit(0, (1, request), command, now, out));
            while !self.answers.iter().any(|(id, _)| *id == request) {
                assert!(begun.elapsed() < Duration::from_secs(60), "no answer");
                self.step().await;
            }
            if let Some((_, Reply::Answer(answer))) = self.answers.pop() {
                return answer;
            }
        }
    }
}

#[test]
fn shard_outlives_its_owner_on_real_nodes() {
    runtime().block_on(async {
        let mut servers = Servers::new(open("owned").await);
        let ann: hark_protocol::UserName = "ann".parse().unwrap();
        assert!(matches!(servers.ask(0, Command::Create(ann.clone(), None)).await, Answer::Created(_)));
        let Answer::Account(Some(entry)) = servers.ask(1, Command::LookUp(ann.clone())).await else {
            panic!()
        };
        let mut numbers = Vec::new();
        for n in 0..120 {
            let (to, text) = (ann.clone(), format!("{n}").into());
            let (sender, send_id, refusal) = (None, None, None);
            let send = Send { to, sender, from_nobody: true, time_ms: 1, text, send_id, refusal };
            let answer = servers.ask(n % 2, Command::Send(Box::new(send))).await;
            let Answer::Sent(Outcome::Stored(number)) = answer else { panic!("{answer:?}") };
            numbers.push(number);
        }
        let owner = servers.owner;
        servers.members[owner] = None;
        let other = 1 - owner;
        let begun = Instant::now();
        let account = Account { ..entry.account };
        let limit = ReadLimit { messages: 1000, bytes: 1 << 20 };
        let page = loop {
            let read = Command::Read { account: account.clone(), after: Position::default(), limit };
            if let Answer::Page(page) = servers.ask(other, read).await {
                break page;
            }
        };
        println!("answered {:?} after the owner was gone", begun.elapsed());
        let found: Vec<_> = page.messages.iter().map(|message| message.position.sequence).collect();
        assert_eq!(found, numbers);
        let (first, _, last) = read(&servers.stream, u64::MAX).await;
        assert!(first > 1, "snapshots have purged nothing of {last}");
    });
}
