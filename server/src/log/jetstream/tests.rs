//! Streams on three real nodes. The tests that kill nodes and cut links are in `tests/`.

use std::time::{Duration, Instant};

use async_nats::jetstream;

use super::*;
use crate::cluster::io::tests::{nodes, runtime};

const NODES: usize = 3;

async fn client() -> Client {
    async_nats::ConnectOptions::new()
        .retry_on_initial_connect()
        .connect(nodes())
        .await
        .unwrap()
}

/// Creates the stream of a chat once the nodes have found each other.
async fn open(chat: &str) -> JetStream {
    let client = client().await;
    let begun = Instant::now();
    let context = jetstream::new(client.clone());
    while let Err(error) = context.get_or_create_stream(config(chat, 0, NODES)).await {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    JetStream::new(client, chat, 0)
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
    match ask(
        stream,
        LogRequest::Append {
            id: 1,
            bytes: Bytes::from_static(text.as_bytes()),
            after,
        },
    )
    .await
    {
        LogReply::Stored { id: 1, sequence } => Ok(sequence),
        LogReply::Refused { id: 1, last } => Err(last),
        other => panic!("{other:?}"),
    }
}

async fn read(stream: &JetStream, from: u64) -> (u64, Vec<Bytes>, u64) {
    match ask(
        stream,
        LogRequest::Read {
            id: 2,
            from,
            messages_max: 256,
        },
    )
    .await
    {
        LogReply::Page {
            id: 2,
            first,
            messages,
            last,
        } => (first, messages, last),
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
        assert_eq!(
            append(&stream, "c", None).await,
            Ok(4),
            "there is no deduplication"
        );
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
            !messages.is_empty()
                && messages.len() <= 4
                && messages.iter().all(|message| message == "text")
        );
        assert_eq!(stream.message(5).await, Some(Bytes::from_static(b"text")));
        assert!(
            stream
                .carry_out(LogRequest::Purge { before: 4 })
                .await
                .is_none()
        );
        let (first, messages, last) = read(&stream, 1).await;
        assert_eq!((first, messages.len(), last), (4, 0, 5));
        assert_eq!(read(&stream, u64::MAX).await, (4, Vec::new(), 5));
        assert_eq!(
            append(&stream, "text", Some(5)).await,
            Ok(6),
            "the sequence goes on"
        );
    });
}

#[test]
fn setting_that_would_lose_messages_is_found() {
    runtime().block_on(async {
        let stream = open("changed").await;
        let context = jetstream::new(stream.client.clone());
        let wanted = config("changed", 0, NODES);
        let found = async || {
            context
                .get_stream(&stream.stream)
                .await
                .unwrap()
                .cached_info()
                .config
                .clone()
        };
        assert_eq!(difference(&found().await, &wanted), None);
        context
            .update_stream(Config {
                max_messages: 1000,
                ..wanted.clone()
            })
            .await
            .unwrap();
        assert_eq!(difference(&found().await, &wanted), Some("max_msgs"));
    });
}
