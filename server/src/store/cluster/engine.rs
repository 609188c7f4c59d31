//! NATS JetStream as this store uses it: conditional publishing, atomic batches, reads by
//! subject, purges. It knows streams and subjects, and not their contents.
//!
//! Every call makes one attempt of bounded length. [`Lost`] means that no answer came and
//! the outcome is unknown. The caller knows how to retry.
//!
//! Formats: the JetStream API and its headers, as described by the NATS documentation and
//! its decision records ADR-8 (conditions), ADR-31 (direct get) and ADR-50 (atomic
//! batches).

use std::sync::Arc;
use std::time::Duration;

use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, StatusCode};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout};

use super::replies::Replies;

/// The timeout of one attempt.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);

/// The interval at which one attempt repeats a read: a stream without a leader does not
/// answer, and may have a leader a moment later.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Maximum concurrent requests. Others wait.
const REQUESTS_MAX: usize = 4096;

/// Maximum messages queued for the connection. When the queue is full, callers wait.
const OUTBOX_MAX: usize = 4096;

/// Maximum messages in one atomic batch. The engine accepts 1,000.
pub(super) const BATCH_MESSAGES_MAX: usize = 500;

const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
const NO_MESSAGE_FOUND: u64 = 10037;
const DUPLICATE_IN_PROCESS: u64 = 10158;
const BATCH_HOLDS_DUPLICATE: u64 = 10201;

/// No answer came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster does not answer")]
pub(super) struct Lost;

/// The reason why a publication was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStored {
    /// The last message of the subject is not the expected one.
    Moved,
    /// A message of the batch is already stored.
    HoldsRepeat,
    /// The engine cannot store it now.
    Busy,
    /// The outcome is unknown.
    Lost,
}

/// The id by which the engine deduplicates a message.
pub(super) type MessageId = String;

/// Returns a unique id.
pub(super) fn random_id() -> MessageId {
    format!("r.{:032x}", rand::random::<u128>())
}

/// Consecutive messages under one subject, conditional on `expected` as the sequence of
/// its last message (0 for none). A group has 1 to [`BATCH_MESSAGES_MAX`] messages.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) subject: String,
    pub(super) expected: u64,
    pub(super) messages: Vec<(MessageId, Bytes)>,
}

impl Group {
    pub(super) fn bytes(&self) -> usize {
        self.messages.iter().map(|(_, payload)| payload.len()).sum()
    }
}

/// The acknowledgement of a stored message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// The message was already stored.
    pub(super) duplicate: bool,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// Messages of a stream, and whether this replica has more.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) found: Vec<Found>,
    pub(super) more: bool,
}

/// A connection to the engine.
#[derive(Debug)]
pub(super) struct Engine {
    client: Client,
    outbox: mpsc::Sender<OutboundMessage>,
    replies: Arc<Replies>,
    requests: Semaphore,
}

impl Engine {
    /// Wraps a connection.
    ///
    /// # Errors
    /// Fails if the client cannot subscribe to replies.
    pub(super) async fn new(client: Client) -> Result<Self, async_nats::Error> {
        let replies = Arc::new(Replies::new(format!("{}.", client.new_inbox())));
        let mut subscriber = client.subscribe(replies.subjects()).await?;
        let task = Arc::downgrade(&replies);
        // Ends with the client, which ends the subscription.
        tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                let Some(replies) = task.upgrade() else { return };
                replies.pass(message);
            }
        });
        let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
        // Ends with the engine.
        tokio::spawn(post(client.clone(), posted));
        Ok(Self { client, outbox, replies, requests: Semaphore::new(REQUESTS_MAX) })
    }

    /// Returns the underlying client, for subscriptions.
    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Stores a message if the last sequence of its subject is `expected` (0 for none). A
    /// message whose `id` is already stored is reported as a duplicate; an engine with
    /// one replica does so only if `expected` matches.
    pub(super) async fn publish(
        &self,
        subject: &str,
        id: &MessageId,
        expected: u64,
        payload: Bytes,
    ) -> Result<Stored, NotStored> {
        self.publish_with(subject, condition(Some(id), Some(expected)), payload).await
    }

    /// Stores a message as [`Self::publish`] does, for the duration `kept`. Without
    /// `expected`, the write is unconditional.
    pub(super) async fn publish_for(
        &self,
        kept: Duration,
        subject: &str,
        id: &MessageId,
        expected: Option<u64>,
        payload: Bytes,
    ) -> Result<Stored, NotStored> {
        let mut headers = condition(Some(id), expected);
        headers.insert("Nats-TTL", kept.as_secs().to_string());
        self.publish_with(subject, headers, payload).await
    }

    async fn publish_with(
        &self,
        subject: &str,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<Stored, NotStored> {
        let reply = self.request(subject, Some(headers), payload).await.map_err(|Lost| NotStored::Lost)?;
        PublishReply::parse(&reply.payload)
    }

    /// Stores the messages of a group in order, or none of them. `duplicate` is set only
    /// for a group of one message.
    pub(super) async fn publish_group(&self, group: &Group) -> Result<Stored, NotStored> {
        match group.messages.as_slice() {
            [(id, payload)] => self.publish(&group.subject, id, group.expected, payload.clone()).await,
            _ => self.publish_batch(std::slice::from_ref(group)).await,
        }
    }

    /// Stores all groups as [`Self::publish_group`] does, or none of them. They must
    /// belong to one stream, have different subjects, and contain at most
    /// [`BATCH_MESSAGES_MAX`] messages in total.
    pub(super) async fn publish_groups(&self, groups: &[Group]) -> Result<Vec<Stored>, NotStored> {
        if let [group] = groups {
            return self.publish_group(group).await.map(|stored| vec![stored]);
        }
        // The sequences of a batch are consecutive.
        let mut sequence = self.publish_batch(groups).await?.sequence;
        let mut stored = Vec::with_capacity(groups.len());
        for group in groups.iter().rev() {
            stored.push(Stored { sequence, duplicate: false });
            sequence = sequence.saturating_sub(group.messages.len() as u64);
        }
        stored.reverse();
        Ok(stored)
    }

    /// Returns the acknowledgement of the last message.
    async fn publish_batch(&self, groups: &[Group]) -> Result<Stored, NotStored> {
        let batch = format!("{:032x}", rand::random::<u128>());
        let _permit = self.requests.acquire().await.map_err(|_| NotStored::Lost)?;
        let mut waiting = self.replies.wait_for_first();
        let count: usize = groups.iter().map(|group| group.messages.len()).sum();
        let published = async {
            let mut number = 0;
            for group in groups {
                for (index, (id, payload)) in group.messages.iter().enumerate() {
                    number += 1;
                    let mut headers = condition(Some(id), (index == 0).then_some(group.expected));
                    headers.insert("Nats-Batch-Id", batch.as_str());
                    headers.insert("Nats-Batch-Sequence", number.to_string());
                    let reply = (number == count).then(|| waiting.subject());
                    if reply.is_some() {
                        headers.insert("Nats-Batch-Commit", "1");
                    }
                    self.post(&group.subject, reply, Some(headers), payload.clone()).await?;
                }
            }
            (&mut waiting.reply).await.map_err(|_| Lost)
        };
        match timeout(ATTEMPT, published).await {
            Ok(Ok(reply)) if reply.status != Some(StatusCode::NO_RESPONDERS) => {
                PublishReply::parse(&reply.payload)
            }
            Ok(_) => {
                tracing::debug!(count, "no responders for batch");
                Err(NotStored::Lost)
            }
            Err(_) => {
                tracing::debug!(count, "batch timed out");
                Err(NotStored::Lost)
            }
        }
    }

    /// Returns the message with this sequence, read from the leader of the stream.
    pub(super) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { seq: Some(sequence), ..Fetch::default() }).await
    }

    /// Returns the last message of a subject, read from the leader of the stream.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { last_by_subj: Some(subject), ..Fetch::default() }).await
    }

    /// Returns the first message from `from` on with a matching subject, read from the
    /// leader of the stream.
    pub(super) async fn next(&self, stream: &str, subject: &str, from: u64) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { seq: Some(from), next_by_subj: Some(subject), ..Fetch::default() }).await
    }

    /// Returns messages from `from` on with a matching subject, at most `messages` and
    /// about `bytes`, from any replica. A replica may lack the latest messages.
    pub(super) async fn page(
        &self,
        stream: &str,
        subject: &str,
        from: u64,
        messages: usize,
        bytes: usize,
    ) -> Result<Batch, Lost> {
        let fetch = Fetch {
            seq: Some(from),
            next_by_subj: Some(subject),
            batch: Some(messages),
            max_bytes: Some(bytes),
            ..Fetch::default()
        };
        let request = serde_json::to_vec(&fetch).map_err(|_| Lost)?;
        let _permit = self.requests.acquire().await.map_err(|_| Lost)?;
        let mut waiting = self.replies.wait_for_each();
        let subject = format!("$JS.API.DIRECT.GET.{stream}");
        let read = async {
            self.post(&subject, Some(waiting.subject()), None, request.into()).await?;
            let mut batch = Batch::default();
            loop {
                let reply = waiting.reply.recv().await.ok_or(Lost)?;
                match reply.status {
                    None | Some(StatusCode::OK) => batch.found.push(Found::of_direct(reply)?),
                    // 204 ends a batch; 404 means that no message was found.
                    Some(status) if status.as_u16() == 204 => {
                        batch.more = number(&reply, "Nats-Num-Pending").unwrap_or(0) > 0;
                        return Ok(batch);
                    }
                    Some(status) if status.as_u16() == 404 => return Ok(batch),
                    Some(status) => {
                        tracing::debug!(%status, "page request failed");
                        return Err(Lost);
                    }
                }
            }
        };
        timeout(ATTEMPT, read).await.unwrap_or(Err(Lost))
    }

    /// Deletes the messages of a subject with a sequence below `below`.
    pub(super) async fn purge(&self, stream: &str, subject: &str, below: u64) -> Result<(), Lost> {
        #[derive(Serialize)]
        struct Purge<'a> {
            filter: &'a str,
            seq: u64,
        }
        #[derive(Deserialize)]
        struct Purged {
            #[serde(default)]
            success: bool,
        }
        let request = serde_json::to_vec(&Purge { filter: subject, seq: below }).map_err(|_| Lost)?;
        let reply = self.request(&format!("$JS.API.STREAM.PURGE.{stream}"), None, request.into()).await?;
        let purged: Purged = serde_json::from_slice(&reply.payload).map_err(|_| Lost)?;
        if purged.success { Ok(()) } else { Err(Lost) }
    }

    /// Sends a request to the subscribers of a subject. Returns `None` if there are none.
    pub(super) async fn ask(&self, subject: &str, payload: Bytes) -> Result<Option<Message>, Lost> {
        let reply = self.try_request(subject, None, payload).await?;
        Ok((reply.status != Some(StatusCode::NO_RESPONDERS)).then_some(reply))
    }

    async fn fetch(&self, stream: &str, fetch: &Fetch<'_>) -> Result<Option<Found>, Lost> {
        let request = Bytes::from(serde_json::to_vec(fetch).map_err(|_| Lost)?);
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let _permit = self.requests.acquire().await.map_err(|_| Lost)?;
        // Any answer will do: each reflects the leader's state after the first request.
        let mut waiting = self.replies.wait_for_first();
        let deadline = Instant::now() + ATTEMPT;
        while Instant::now() < deadline {
            let asked = async {
                self.post(&subject, Some(waiting.subject()), None, request.clone()).await?;
                (&mut waiting.reply).await.map_err(|_| Lost)
            };
            match timeout(ASK_AGAIN, asked).await {
                Ok(reply) => return Fetched::parse(&reply?),
                Err(_) => tracing::debug!(stream, "stream leader did not answer"),
            }
        }
        Err(Lost)
    }

    async fn request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Lost> {
        let reply = self.try_request(subject, headers, payload).await?;
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            tracing::debug!(subject, "no responders");
            // The stream has no leader at the moment. Retrying callers must pause.
            return Err(Lost);
        }
        Ok(reply)
    }

    async fn try_request(
        &self,
        subject: &str,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<Message, Lost> {
        let _permit = self.requests.acquire().await.map_err(|_| Lost)?;
        let mut waiting = self.replies.wait_for_first();
        let asked = async {
            self.post(subject, Some(waiting.subject()), headers, payload).await?;
            (&mut waiting.reply).await.map_err(|_| Lost)
        };
        let begun = Instant::now();
        timeout(ATTEMPT, asked).await.unwrap_or_else(|_| {
            tracing::debug!(subject, waited = ?begun.elapsed(), "request timed out");
            Err(Lost)
        })
    }

    async fn post(
        &self,
        subject: &str,
        reply: Option<String>,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Result<(), Lost> {
        let (subject, reply) = (subject.into(), reply.map(Into::into));
        let message = OutboundMessage { subject, reply, payload, headers };
        self.outbox.send(message).await.map_err(|_| Lost)
    }
}

/// Forwards queued messages to the connection. It yields first, so that tasks that are
/// about to publish do so as well: the connection then writes the messages together, and
/// the engine stores them in one step.
async fn post(mut client: Client, mut posted: mpsc::Receiver<OutboundMessage>) {
    while let Some(first) = posted.recv().await {
        tokio::task::yield_now().await;
        let mut next = Some(first);
        while let Some(message) = next {
            if let Err(error) = client.feed(message).await {
                // The caller treats it like a message lost on the network.
                tracing::debug!(%error, "publish failed");
            }
            next = posted.try_recv().ok();
        }
    }
}

impl Found {
    fn of_direct(message: Message) -> Result<Self, Lost> {
        let sequence = number(&message, "Nats-Sequence").ok_or(Lost)?;
        let headers = message.headers.as_ref().ok_or(Lost)?;
        let subject = headers.get("Nats-Subject").ok_or(Lost)?.as_str().to_owned();
        Ok(Self { subject, sequence, payload: message.payload })
    }
}

/// Returns a number in a header of a message.
pub(super) fn number(message: &Message, header: &str) -> Option<u64> {
    message.headers.as_ref()?.get(header)?.as_str().parse().ok()
}

fn condition(id: Option<&MessageId>, expected: Option<u64>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(id) = id {
        headers.insert("Nats-Msg-Id", id.as_str());
    }
    if let Some(expected) = expected {
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
    }
    headers
}

/// The request of `MSG.GET` and `DIRECT.GET`.
#[derive(Debug, Default, Serialize)]
struct Fetch<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_by_subj: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_bytes: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct ApiError {
    err_code: Option<u64>,
    #[serde(default)]
    description: String,
}

#[derive(Debug, Deserialize)]
struct Fetched {
    message: Option<FetchedMessage>,
    error: Option<ApiError>,
}

#[derive(Debug, Deserialize)]
struct FetchedMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
}

impl Fetched {
    fn parse(reply: &Message) -> Result<Option<Found>, Lost> {
        match serde_json::from_slice(&reply.payload) {
            Ok(Self { message: Some(message), .. }) => {
                let payload = BASE64_STANDARD.decode(message.data).map_err(|_| Lost)?;
                Ok(Some(Found { subject: message.subject, sequence: message.seq, payload: payload.into() }))
            }
            Ok(Self { error: Some(error), .. }) if error.err_code == Some(NO_MESSAGE_FOUND) => Ok(None),
            other => {
                tracing::debug!(?other, "fetch failed");
                Err(Lost)
            }
        }
    }
}

#[derive(Debug, Deserialize)]
struct PublishReply {
    seq: Option<u64>,
    #[serde(default)]
    duplicate: bool,
    error: Option<ApiError>,
}

impl PublishReply {
    fn parse(reply: &[u8]) -> Result<Stored, NotStored> {
        match serde_json::from_slice(reply) {
            Ok(Self { error: Some(error), .. }) => Err(Self::classify(&error)),
            Ok(Self { seq: Some(sequence), duplicate, error: None }) => Ok(Stored { sequence, duplicate }),
            other => {
                tracing::debug!(?other, "malformed answer");
                Err(NotStored::Lost)
            }
        }
    }

    fn classify(error: &ApiError) -> NotStored {
        match error.err_code {
            Some(code) if WRONG_LAST_SEQUENCE.contains(&code) => NotStored::Moved,
            Some(BATCH_HOLDS_DUPLICATE) => NotStored::HoldsRepeat,
            // The first copy is in flight, and its outcome is unknown.
            Some(DUPLICATE_IN_PROCESS) => NotStored::Lost,
            _ => {
                let ApiError { err_code, description } = error;
                tracing::debug!(err_code, description, "publish refused");
                NotStored::Busy
            }
        }
    }
}
