//! Asks the monitored nodes whether they sync before they acknowledge. Clients cannot
//! learn this over their connection.

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
use tokio::time::timeout;

const TIMEOUT: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// The relevant part of the answer to `/jsz?config=true`.
#[derive(Deserialize)]
struct JetStream {
    #[serde(default)]
    config: Config,
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    sync_always: bool,
}

/// Warns about each node that does not sync or does not answer.
pub(super) async fn check(monitors: &[String]) {
    if monitors.is_empty() {
        tracing::info!(
            "whether NATS syncs before it acknowledges is only seen with --nats-monitor; each node needs \
             `sync_interval: always` in its `jetstream` block, or `ok` does not mean on disk"
        );
    }
    let checks = monitors.iter().map(|monitor| async move {
        let synced = timeout(TIMEOUT, syncs(monitor)).await.context("no answer in time").flatten();
        match synced {
            Ok(true) => tracing::info!(monitor, "the node syncs before it acknowledges"),
            Ok(false) => tracing::warn!(
                monitor,
                "the node does NOT sync before it acknowledges: messages answered ok are lost if most \
                 nodes lose power together; set `sync_interval: always` in its `jetstream` block"
            ),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(monitor, error, "the node does not say whether it syncs");
            }
        }
    });
    join_all(checks).await;
}

async fn syncs(monitor: &str) -> anyhow::Result<bool> {
    let stream = TcpStream::connect(monitor).await.context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get("/jsz?config=true").header(HOST, monitor).body(Empty::<Bytes>::new())?;
    let asked = async move {
        let answer = sender.send_request(request).await?;
        ensure!(answer.status() == StatusCode::OK, "it answers {}", answer.status());
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
        let said: JetStream = serde_json::from_slice(&body).context("it is not a NATS monitor")?;
        Ok(said.config.sync_always)
    };
    // The connection makes progress only while it is polled beside the request.
    tokio::select! {
        said = asked => said,
        ended = connection => Err(ended.map_or_else(Into::into, |()| anyhow::anyhow!("it hung up"))),
    }
}
