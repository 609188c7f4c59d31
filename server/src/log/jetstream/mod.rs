//! [`JetStream`]: the stream of one shard, on NATS JetStream. It carries out requests
//! of the cluster one by one, and knows neither claims nor frames: `cluster` decides
//! which answers count.
//!
//! Formats: the JetStream API and its headers, as in the NATS documentation and its
//! decision records ADR-8 (conditions) and ADR-31 (direct get).

#[cfg(test)]
mod tests;

use std::time::Duration;

use async_nats::jetstream::stream::{Config, RetentionPolicy, StorageType};
use async_nats::{Client, HeaderMap, Message, Request, StatusCode, Subscriber};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::StreamExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::cluster::{LogReply, LogRequest, ShardId};
use crate::store::StreamReplicas;

/// How long a request waits for its answer. The cluster repeats it or resolves its
/// outcome.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an append waits for its answer: as long as commands wait for it, so that a slow
/// disk answers in the end.
const APPEND_TIMEOUT: Duration = Duration::from_secs(20);

/// The limit of several requests in turn.
const TIMEOUT: Duration = APPEND_TIMEOUT;

/// Bytes of one page.
const PAGE_BYTES_MAX: usize = 8 << 20;

const WRONG_LAST_SEQUENCE: u64 = 10071;
const WRONG_LAST_SEQUENCE_UNKNOWN: u64 = 10164;

/// The name of a message's headers for the condition and the sequence.
const EXPECTED_LAST: &str = "Nats-Expected-Last-Sequence";
const SEQUENCE: &str = "Nats-Sequence";

/// The stream of one shard.
#[derive(Debug, Clone)]
pub(crate) struct JetStream {
    client: Client,
    stream: String,
    subject: String,
}

impl JetStream {
    /// Returns the existing stream of a shard of a chat.
    pub(crate) fn new(client: Client, chat: &str, shard: ShardId) -> Self {
        Self {
            client,
            stream: stream(chat, shard),
            subject: subject(chat, shard),
        }
    }

    /// Carries out a request. Returns `None` if it gets no answer: its outcome is
    /// unknown. Dropping the future also leaves the outcome unknown.
    pub(crate) async fn carry_out(&self, request: LogRequest) -> Option<LogReply> {
        let reply = async {
            match request {
                LogRequest::Append { id, bytes, after } => self.append(id, bytes, after).await,
                LogRequest::Read {
                    id,
                    from,
                    messages_max,
                } => self.read(id, from, messages_max).await,
                LogRequest::Get { id, sequence } => Some(LogReply::Message {
                    id,
                    bytes: match self.nearby(sequence).await {
                        Some(bytes) => Some(bytes),
                        None => self.message(sequence).await,
                    },
                }),
                LogRequest::Purge { before } => {
                    self.purge(before).await;
                    None
                }
            }
        };
        // The client waits without a limit while it is not connected.
        timeout(TIMEOUT, reply).await.ok().flatten()
    }

    async fn append(&self, id: u64, bytes: Bytes, after: Option<u64>) -> Option<LogReply> {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert(EXPECTED_LAST, after.to_string());
        }
        let appended = self.request_within(APPEND_TIMEOUT, &self.subject, headers, bytes);
        let message = appended.await?;
        let Published { seq, error } = parse(&message)?;
        match error {
            None => Some(LogReply::Stored { id, sequence: seq? }),
            Some(ApiError {
                err_code: WRONG_LAST_SEQUENCE,
                description,
            }) => {
                // "wrong last sequence: 7"
                let last = description.rsplit(' ').next()?.parse().ok()?;
                Some(LogReply::Refused { id, last })
            }
            Some(ApiError {
                err_code: WRONG_LAST_SEQUENCE_UNKNOWN,
                ..
            }) => Some(LogReply::Refused {
                id,
                last: self.state().await?.last_seq,
            }),
            Some(ApiError {
                err_code,
                description,
            }) => {
                tracing::warn!(stream = self.stream, err_code, description, "append failed");
                None
            }
        }
    }

    /// Reads consecutive messages, from any replica or, if that has not caught up, from
    /// the leader.
    async fn read(&self, id: u64, from: u64, messages_max: u32) -> Option<LogReply> {
        let page = async {
            match messages_max {
                0 => Vec::new(),
                count => self.page(from, count).await.unwrap_or_default(),
            }
        };
        let (state, mut messages) = tokio::join!(self.state(), page);
        let State {
            first_seq: first,
            last_seq: last,
        } = state?;
        if messages.is_empty() && messages_max > 0 && (first..=last).contains(&from) {
            messages.extend(self.message(from).await);
        }
        Some(LogReply::Page {
            id,
            first,
            messages,
            last,
        })
    }

    async fn page(&self, from: u64, count: u32) -> Option<Vec<Bytes>> {
        #[derive(Serialize)]
        struct Get {
            seq: u64,
            batch: u32,
            max_bytes: usize,
        }
        let request = to_json(&Get {
            seq: from,
            batch: count,
            max_bytes: PAGE_BYTES_MAX,
        })?;
        let inbox = self.client.new_inbox();
        let mut replies = self.client.subscribe(inbox.clone()).await.ok()?;
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        self.client
            .publish_with_reply(subject, inbox, request)
            .await
            .ok()?;
        timeout(REQUEST_TIMEOUT, collect(&mut replies, from))
            .await
            .ok()
    }

    /// Reads one message from any replica, which may be behind.
    async fn nearby(&self, sequence: u64) -> Option<Bytes> {
        #[derive(Serialize)]
        struct Get {
            seq: u64,
        }
        let subject = format!("$JS.API.DIRECT.GET.{}", self.stream);
        let request = to_json(&Get { seq: sequence })?;
        let reply = self.request(&subject, HeaderMap::new(), request).await?;
        (sequence_of(&reply) == Some(sequence)).then_some(reply.payload)
    }

    /// Reads one message from the leader.
    async fn message(&self, sequence: u64) -> Option<Bytes> {
        #[derive(Serialize)]
        struct Get {
            seq: u64,
        }
        #[derive(Deserialize)]
        struct Got {
            message: Option<Found>,
        }
        #[derive(Deserialize)]
        struct Found {
            #[serde(default)]
            data: String,
        }
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.stream);
        let reply = self
            .request(&subject, HeaderMap::new(), to_json(&Get { seq: sequence })?)
            .await?;
        let found = parse::<Got>(&reply)?.message?;
        BASE64_STANDARD.decode(found.data).ok().map(Bytes::from)
    }

    async fn purge(&self, before: u64) {
        #[derive(Serialize)]
        struct Purge {
            seq: u64,
        }
        #[derive(Deserialize)]
        struct Purged {
            error: Option<ApiError>,
        }
        // 0 would purge everything.
        let Some(request) = to_json(&Purge { seq: before }).filter(|_| before > 1) else {
            return;
        };
        let subject = format!("$JS.API.STREAM.PURGE.{}", self.stream);
        let reply = self.request(&subject, HeaderMap::new(), request).await;
        if let Some(error) = reply
            .and_then(|reply| parse::<Purged>(&reply))
            .and_then(|purged| purged.error)
        {
            tracing::warn!(stream = self.stream, ?error, "purge failed");
        }
    }

    /// Returns the state of the stream as its leader knows it.
    async fn state(&self) -> Option<State> {
        #[derive(Deserialize)]
        struct Info {
            state: Option<State>,
        }
        let subject = format!("$JS.API.STREAM.INFO.{}", self.stream);
        parse::<Info>(
            &self
                .request(&subject, HeaderMap::new(), Bytes::new())
                .await?,
        )?
        .state
    }

    /// Returns the replicas of the stream, as its leader knows them.
    pub(crate) async fn replicas(&self) -> Option<StreamReplicas> {
        #[derive(Deserialize)]
        struct Info {
            state: Contents,
            #[serde(default)]
            cluster: Group,
        }
        #[derive(Deserialize)]
        struct Contents {
            messages: u64,
            bytes: u64,
        }
        #[derive(Default, Deserialize)]
        struct Group {
            leader: Option<String>,
            /// The others.
            #[serde(default)]
            replicas: Vec<Replica>,
        }
        #[derive(Deserialize)]
        struct Replica {
            #[serde(default)]
            current: bool,
            #[serde(default)]
            lag: u64,
        }
        let subject = format!("$JS.API.STREAM.INFO.{}", self.stream);
        let reply = self.request(&subject, HeaderMap::new(), Bytes::new());
        let Info { state, cluster } = parse(&reply.await?)?;
        let others = &cluster.replicas;
        let current = others.iter().filter(|replica| replica.current).count();
        Some(StreamReplicas {
            count: 1 + others.len() as u64,
            current: 1 + current as u64,
            lag: others.iter().map(|replica| replica.lag).max().unwrap_or(0),
            leader: cluster.leader,
            messages: state.messages,
            bytes: state.bytes,
        })
    }

    async fn request(&self, subject: &str, headers: HeaderMap, payload: Bytes) -> Option<Message> {
        self.request_within(REQUEST_TIMEOUT, subject, headers, payload)
            .await
    }

    async fn request_within(
        &self,
        timeout: Duration,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Option<Message> {
        let request = Request::new()
            .headers(headers)
            .payload(payload)
            .timeout(Some(timeout));
        match self.client.send_request(subject.to_owned(), request).await {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!(subject, %error, "no answer");
                None
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct State {
    first_seq: u64,
    last_seq: u64,
}

#[derive(Debug, Deserialize)]
struct Published {
    seq: Option<u64>,
    error: Option<ApiError>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

/// Returns the name of the stream of a shard.
fn stream(chat: &str, shard: ShardId) -> String {
    format!("{chat}-shard-{shard}")
}

fn subject(chat: &str, shard: ShardId) -> String {
    format!("{chat}.shard.{shard}")
}

/// Returns the settings of a shard's stream: it keeps everything until it is purged.
pub(crate) fn config(chat: &str, shard: ShardId, replicas: usize) -> Config {
    Config {
        name: stream(chat, shard),
        subjects: vec![subject(chat, shard)],
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        num_replicas: replicas,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_bytes: -1,
        max_age: Duration::ZERO,
        allow_direct: true,
        deny_delete: true,
        ..Config::default()
    }
}

/// Returns a setting that differs from what a shard needs.
pub(crate) fn difference(found: &Config, needed: &Config) -> Option<&'static str> {
    let fields = [
        ("its subjects", found.subjects == needed.subjects),
        ("its retention", found.retention == needed.retention),
        (
            "its storage is not in files",
            found.storage == needed.storage,
        ),
        ("it acknowledges nothing", !found.no_ack),
        ("max_msgs", found.max_messages == -1),
        ("max_msgs_per_subject", found.max_messages_per_subject == -1),
        ("max_bytes", found.max_bytes == -1),
        ("max_age", found.max_age.is_zero()),
        ("allow_direct", found.allow_direct),
        ("deny_purge", !found.deny_purge),
        ("sealed", !found.sealed),
        ("mirror", found.mirror.is_none()),
        ("sources", found.sources.as_ref().is_none_or(Vec::is_empty)),
    ];
    fields
        .into_iter()
        .find(|(_, is_right)| !is_right)
        .map(|(field, _)| field)
}

/// Collects the messages of a page up to the first that is missing.
async fn collect(replies: &mut Subscriber, from: u64) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some(reply) = replies.next().await {
        if !matches!(reply.status, None | Some(StatusCode::OK)) {
            // The end of the page, or nothing was found.
            break;
        }
        if sequence_of(&reply) != Some(from + messages.len() as u64) {
            break;
        }
        messages.push(reply.payload);
    }
    messages
}

/// Returns the sequence of a message that was read directly.
fn sequence_of(message: &Message) -> Option<u64> {
    let sequence = message.headers.as_ref()?.get(SEQUENCE)?;
    sequence.as_str().parse().ok()
}

fn to_json(value: &impl Serialize) -> Option<Bytes> {
    serde_json::to_vec(value).ok().map(Bytes::from)
}

fn parse<'m, T: Deserialize<'m>>(message: &'m Message) -> Option<T> {
    serde_json::from_slice(&message.payload).ok()
}
