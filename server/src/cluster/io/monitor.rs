//! Asks the monitored nodes whether they sync before they acknowledge, and for their free
//! storage. Clients cannot learn this over their connection.

use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::future::join_all;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::cluster::Storage;

const TIMEOUT: Duration = Duration::from_secs(5);
/// The interval at which free storage is polled.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The relevant part of the answer to `/jsz?config=true`.
#[derive(Deserialize)]
struct JetStream {
    #[serde(default)]
    config: Config,
    /// Used bytes of file storage.
    #[serde(default)]
    storage: u64,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    sync_always: bool,
    /// Maximum bytes of file storage.
    #[serde(default)]
    max_storage: u64,
}

/// Warns about each node that does not sync or does not answer.
pub(super) async fn check(monitors: &[String]) {
    if monitors.is_empty() {
        tracing::info!(
            remedy = "set --nats-monitor, and `sync_interval: always` in the `jetstream` block of each node",
            "durability of NATS not checked"
        );
    }
    let checks = monitors.iter().map(|monitor| async move {
        let synced = ask(monitor).await.map(|said| said.config.sync_always);
        match synced {
            Ok(true) => tracing::info!(monitor, "NATS node syncs before it acknowledges"),
            Ok(false) => tracing::warn!(
                monitor,
                effect = "messages answered ok are lost if most nodes lose power together",
                remedy = "set `sync_interval: always` in its `jetstream` block",
                "NATS node acknowledges before it syncs"
            ),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(monitor, error, "durability of NATS node unknown");
            }
        }
    });
    join_all(checks).await;
}

/// Polls the storage of the monitored nodes without end. A node that does not answer is
/// left out.
pub(super) async fn poll_storage(monitors: Vec<String>, storage: watch::Sender<Vec<Storage>>) {
    if monitors.is_empty() {
        return;
    }
    loop {
        let answers = join_all(monitors.iter().map(|monitor| ask(monitor))).await;
        let known = answers
            .into_iter()
            .flatten()
            .filter(|said| said.config.max_storage > 0);
        let free = |said: &JetStream| said.config.max_storage.saturating_sub(said.storage);
        let replicas = known.map(|said| Storage {
            free: free(&said),
            total: said.config.max_storage,
        });
        storage.send_replace(replicas.collect());
        sleep(POLL_INTERVAL).await;
    }
}

async fn ask(monitor: &str) -> anyhow::Result<JetStream> {
    timeout(TIMEOUT, ask_patiently(monitor))
        .await
        .context("no answer in time")
        .flatten()
}

async fn ask_patiently(monitor: &str) -> anyhow::Result<JetStream> {
    let stream = TcpStream::connect(monitor)
        .await
        .context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/jsz?config=true")
        .header(HOST, monitor)
        .body(Empty::<Bytes>::new())?;
    let asked = async move {
        let answer = sender.send_request(request).await?;
        ensure!(
            answer.status() == StatusCode::OK,
            "it answers {}",
            answer.status()
        );
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        let said: JetStream = serde_json::from_slice(&body).context("it is not a NATS monitor")?;
        Ok(said)
    };
    // The connection makes progress only while it is polled beside the request.
    tokio::select! {
        said = asked => said,
        ended = connection => Err(ended.map_or_else(Into::into, |()| anyhow::anyhow!("it hung up"))),
    }
}
