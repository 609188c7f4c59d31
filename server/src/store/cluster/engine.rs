//! NATS as this store uses it: publishing on a condition, atomic batches,
//! reading by subject, purging. It knows streams and subjects, and nothing of
//! what they are for.
//!
//! Every call makes one try of bounded length. [`Lost`] says that no answer
//! came: whether it happened is unknown, and the caller knows how to ask again.
//!
//! Formats: the JetStream API and its headers, as in the NATS documentation
//! and its decision records ADR-8 (conditions), ADR-31 (direct get) and ADR-50
//! (atomic batches).

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

/// How long one try waits for its answer.
pub(super) const ATTEMPT: Duration = Duration::from_secs(2);

/// How long a question waits for its answer before it is asked again within one
/// try: a stream without a leader answers nothing, and has one the next moment.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// Requests whose answers are awaited at the same time, at most. Others wait.
const REQUESTS_MAX: usize = 4096;

/// Messages that wait for the connection, at most. Who has more waits itself.
const OUTBOX_MAX: usize = 4096;

/// Messages in one atomic batch, at most; the engine takes 1,000.
pub(super) const BATCH_MESSAGES_MAX: usize = 500;

const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
const NO_MESSAGE_FOUND: u64 = 10037;
const DUPLICATE_IN_PROCESS: u64 = 10158;
const BATCH_HOLDS_DUPLICATE: u64 = 10201;

/// No answer came in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the cluster does not answer")]
pub(super) struct Lost;

/// Why a publication was not stored as it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotStored {
    /// The last message of the subject is another one than was said.
    Moved,
    /// A message of the batch is stored already.
    HoldsRepeat,
    /// The engine cannot take it now.
    Busy,
    /// It is unknown whether it is stored.
    Lost,
}

/// What identifies a message for as long as the engine remembers.
pub(super) type MessageId = String;

/// One that nothing else has.
pub(super) fn random_id() -> MessageId {
    format!("r.{:032x}", rand::random::<u128>())
}

/// Messages that follow each other under one subject, where the last one is
/// `expected` (0 for none). There is one at least, at most
/// [`BATCH_MESSAGES_MAX`].
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

/// A message is in its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    /// It was there before.
    pub(super) duplicate: bool,
}

/// A message of a stream.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) payload: Bytes,
}

/// Messages of a stream, and whether there are more on this replica.
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
    /// Takes a connection over.
    ///
    /// # Errors
    /// Where there can be no subscription.
    pub(super) async fn new(client: Client) -> Result<Self, async_nats::Error> {
        let replies = Arc::new(Replies::new(format!("{}.", client.new_inbox())));
        let mut subscriber = client.subscribe(replies.subjects()).await?;
        let task = Arc::downgrade(&replies);
        // It ends with the client, which ends the subscription.
        tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                let Some(replies) = task.upgrade() else { return };
                replies.pass(message);
            }
        });
        let (outbox, posted) = mpsc::channel(OUTBOX_MAX);
        // It ends with the engine.
        tokio::spawn(post(client.clone(), posted));
        Ok(Self { client, outbox, replies, requests: Semaphore::new(REQUESTS_MAX) })
    }

    /// The connection itself, for subscriptions.
    pub(super) const fn client(&self) -> &Client {
        &self.client
    }

    /// Stores a message if the last one of its subject is `expected` (0 for
    /// none). One whose `id` is stored already is not stored again; of an engine
    /// with one replica that is only said where `expected` is right.
    pub(super) async fn publish(
        &self,
        subject: &str,
        id: &MessageId,
        expected: u64,
        payload: Bytes,
    ) -> Result<Stored, NotStored> {
        self.publish_with(subject, condition(Some(id), Some(expected)), payload).await
    }

    /// As [`Self::publish`], and the engine drops the message after `kept`;
    /// without a condition where nothing is `expected`.
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

    /// Stores the messages of a group one after the other, or none. Whether they
    /// were there before is only said of one that is alone.
    pub(super) async fn publish_group(&self, group: &Group) -> Result<Stored, NotStored> {
        match group.messages.as_slice() {
            [(id, payload)] => self.publish(&group.subject, id, group.expected, payload.clone()).await,
            _ => self.publish_batch(std::slice::from_ref(group)).await,
        }
    }

    /// As [`Self::publish_group`] with each of them, or none at all. They are of
    /// one stream, and of different subjects; at most [`BATCH_MESSAGES_MAX`]
    /// messages together. Yields what is stored of each.
    pub(super) async fn publish_groups(&self, groups: &[Group]) -> Result<Vec<Stored>, NotStored> {
        if let [group] = groups {
            return self.publish_group(group).await.map(|stored| vec![stored]);
        }
        // A batch has numbers that follow each other.
        let mut sequence = self.publish_batch(groups).await?.sequence;
        let mut stored = Vec::with_capacity(groups.len());
        for group in groups.iter().rev() {
            stored.push(Stored { sequence, duplicate: false });
            sequence = sequence.saturating_sub(group.messages.len() as u64);
        }
        stored.reverse();
        Ok(stored)
    }

    /// Yields the last one.
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
                tracing::debug!(count, "nobody takes a batch");
                Err(NotStored::Lost)
            }
            Err(_) => {
                tracing::debug!(count, "no answer to a batch");
                Err(NotStored::Lost)
            }
        }
    }

    /// The message of this number, as the leader of the stream knows it.
    pub(super) async fn message(&self, stream: &str, sequence: u64) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { seq: Some(sequence), ..Fetch::default() }).await
    }

    /// The last message of a subject, as the leader of the stream knows it.
    pub(super) async fn last(&self, stream: &str, subject: &str) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { last_by_subj: Some(subject), ..Fetch::default() }).await
    }

    /// The first message from `from` on whose subject matches, as the leader of
    /// the stream knows it.
    pub(super) async fn next(&self, stream: &str, subject: &str, from: u64) -> Result<Option<Found>, Lost> {
        self.fetch(stream, &Fetch { seq: Some(from), next_by_subj: Some(subject), ..Fetch::default() }).await
    }

    /// Messages from `from` on whose subject matches, from any replica, which
    /// may not have the latest: at most `messages`, and about `bytes`.
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
                    // The end of the batch, and nothing found.
                    Some(status) if status.as_u16() == 204 => {
                        batch.more = number(&reply, "Nats-Num-Pending").unwrap_or(0) > 0;
                        return Ok(batch);
                    }
                    Some(status) if status.as_u16() == 404 => return Ok(batch),
                    Some(status) => {
                        tracing::debug!(%status, "a page cannot be read");
                        return Err(Lost);
                    }
                }
            }
        };
        timeout(ATTEMPT, read).await.unwrap_or(Err(Lost))
    }

    /// Drops the messages of a subject that are below `below`.
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

    /// Asks whoever subscribes to this subject. `None` where nobody does.
    pub(super) async fn ask(&self, subject: &str, payload: Bytes) -> Result<Option<Message>, Lost> {
        let reply = self.try_request(subject, None, payload).await?;
        Ok((reply.status != Some(StatusCode::NO_RESPONDERS)).then_some(reply))
    }

    async fn fetch(&self, stream: &str, fetch: &Fetch<'_>) -> Result<Option<Found>, Lost> {
        let request = Bytes::from(serde_json::to_vec(fetch).map_err(|_| Lost)?);
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let _permit = self.requests.acquire().await.map_err(|_| Lost)?;
        // Any of the answers will do: each is what the leader knew after the
        // first question.
        let mut waiting = self.replies.wait_for_first();
        let deadline = Instant::now() + ATTEMPT;
        while Instant::now() < deadline {
            let asked = async {
                self.post(&subject, Some(waiting.subject()), None, request.clone()).await?;
                (&mut waiting.reply).await.map_err(|_| Lost)
            };
            match timeout(ASK_AGAIN, asked).await {
                Ok(reply) => return Fetched::parse(&reply?),
                Err(_) => tracing::debug!(stream, "no answer from the leader of the stream"),
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
            tracing::debug!(subject, "nobody answers");
            // There is no leader at the moment. Whoever tries again must not spin.
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
            tracing::debug!(subject, waited = ?begun.elapsed(), "no answer");
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

/// Passes on to the connection what is published. Whoever is about to publish
/// as well does so first: what reaches the connection at once goes in one piece,
/// and what comes to the engine in one piece it stores in one step.
async fn post(mut client: Client, mut posted: mpsc::Receiver<OutboundMessage>) {
    while let Some(first) = posted.recv().await {
        tokio::task::yield_now().await;
        let mut next = Some(first);
        while let Some(message) = next {
            if let Err(error) = client.feed(message).await {
                // As if it had been lost on its way.
                tracing::debug!(%error, "a message cannot be published");
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

/// A number in a header of a message.
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

/// What is asked for, by `MSG.GET` and `DIRECT.GET`.
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
                tracing::debug!(?other, "a message could not be fetched");
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
                tracing::debug!(?other, "an answer that is none");
                Err(NotStored::Lost)
            }
        }
    }

    fn classify(error: &ApiError) -> NotStored {
        match error.err_code {
            Some(code) if WRONG_LAST_SEQUENCE.contains(&code) => NotStored::Moved,
            Some(BATCH_HOLDS_DUPLICATE) => NotStored::HoldsRepeat,
            // The first one is on its way: whether it arrives is not known yet.
            Some(DUPLICATE_IN_PROCESS) => NotStored::Lost,
            _ => {
                let ApiError { err_code, description } = error;
                tracing::debug!(err_code, description, "the engine has not stored a message");
                NotStored::Busy
            }
        }
    }
}
