//! Measures the store on disk beside a plain file: `cargo bench -p
//! hark-bench --bench store [-- FOLDER]`. The folder says which disk
//! is measured; without one it is the folder for temporary files.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytestring::ByteString;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hark_protocol::{RequestId, SessionToken, UserName};
use hark_server::shard::{ShardConfig, ShardStore};
use hark_server::store::{Account, Append, Created, Outcome, Position, ReadLimit, SendId, Store};

const TEXT_BYTES: usize = 100;
const USERS: usize = 100;
const SESSIONS: usize = 16;
const ROUNDS: usize = 3;
const ROUND_TIME: Duration = Duration::from_secs(2);
const QUEUED: u64 = 1_000_000;

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let folder = std::env::args_os()
        .skip(1)
        .find(|argument| argument != "--bench");
    let parent = folder.map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(appends(folder.path()))?;
    runtime.block_on(backlog(&folder.path().join("backlog")))
}

/// Durable appends a second, store and plain file in turn.
async fn appends(folder: &Path) -> Result<()> {
    println!("durable appends a second, {TEXT_BYTES} bytes, medians of {ROUNDS} rounds");
    println!(
        "{:>10} {:>12} {:>12} {:>7}",
        "in flight", "plain file", "store", "ratio"
    );
    let load = Load::open(&folder.join("store")).await?;
    for in_flight in [1, 64, 1024] {
        let (mut plain, mut store) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            plain.push(plain_file(&folder.join("plain"), in_flight)?);
            store.push(load.run(in_flight).await?);
        }
        let (plain, store) = (median(plain), median(store));
        println!(
            "{in_flight:>10} {plain:>12.0} {store:>12.0} {:>7.2}",
            store / plain
        );
    }
    load.store.close().await?;
    Ok(())
}

/// One write and one fdatasync for each group of messages.
fn plain_file(path: &Path, group: usize) -> Result<f64> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let bytes = vec![b'x'; group * (TEXT_BYTES + 32)];
    let started = Instant::now();
    let mut written = 0;
    while started.elapsed() < ROUND_TIME {
        file.write_all(&bytes)?;
        file.sync_data()?;
        written += group;
    }
    Ok(written as f64 / started.elapsed().as_secs_f64())
}

/// Sessions that send to users, each with ids of its own.
struct Load {
    store: Arc<ShardStore>,
    users: Vec<UserName>,
    sessions: Vec<SessionToken>,
    sent: std::sync::atomic::AtomicU32,
}

impl Load {
    async fn open(path: &Path) -> Result<Self> {
        let config = ShardConfig {
            queued_messages_max: u64::MAX,
            queued_bytes_max: u64::MAX,
            ..Default::default()
        };
        let store = Arc::new(ShardStore::on_disk(path, config)?);
        let users = (0..USERS)
            .map(|n| Ok(format!("user{n}").parse()?))
            .collect::<Result<Vec<UserName>>>()?;
        for user in &users {
            store.create(user, None).await?;
        }
        let sessions = (0..SESSIONS)
            .map(|n| Ok(format!("session{n}").parse()?))
            .collect::<Result<_>>()?;
        Ok(Self {
            store,
            users,
            sessions,
            sent: 0.into(),
        })
    }

    async fn run(&self, in_flight: usize) -> Result<f64> {
        let started = Instant::now();
        let mut pending = FuturesUnordered::new();
        for _ in 0..in_flight {
            pending.push(self.store.append(self.next()?));
        }
        let mut stored = 0_u64;
        while started.elapsed() < ROUND_TIME {
            let outcome = pending.next().await.context("something is in flight")??;
            ensure!(matches!(outcome, Outcome::Stored(_)), "{outcome:?}");
            stored += 1;
            pending.push(self.store.append(self.next()?));
        }
        let rate = stored as f64 / started.elapsed().as_secs_f64();
        while let Some(outcome) = pending.next().await {
            outcome?;
        }
        Ok(rate)
    }

    fn next(&self) -> Result<Append> {
        let sent = self.sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as usize;
        let session = self
            .sessions
            .get(sent % SESSIONS)
            .context("a session")?
            .clone();
        let id = RequestId::new((sent / SESSIONS + 1) as u32).context("an id")?;
        let to = self.users.get(sent % USERS).context("a user")?.clone();
        Ok(append(
            to,
            Some(SendId {
                session,
                id,
                in_order: true,
                from: None,
            }),
        ))
    }
}

fn append(to: UserName, send_id: Option<SendId>) -> Append {
    Append {
        to,
        sender: None,
        allow_anonymous: true,
        time_ms: 1,
        text: ByteString::from("x".repeat(TEXT_BYTES)),
        send_id,
        refusal: None,
    }
}

/// Many messages for one user: how long a start takes, and how fast they can
/// be read.
async fn backlog(path: &Path) -> Result<()> {
    let config = ShardConfig {
        queued_messages_max: u64::MAX,
        queued_bytes_max: u64::MAX,
        ..Default::default()
    };
    let store = ShardStore::on_disk(path, config.clone())?;
    let bob: UserName = "bob".parse()?;
    ensure!(
        store.create(&bob, None).await? == Created::Created,
        "an empty store"
    );
    let started = Instant::now();
    for _ in 0..QUEUED / 1000 {
        let group: Vec<_> = (0..1000)
            .map(|_| store.append(append(bob.clone(), None)))
            .collect();
        futures::future::try_join_all(group).await?;
    }
    println!("{QUEUED} messages queued in {:.1?}", started.elapsed());
    let account = store.account(&bob).await?.context("bob")?.account;
    drop(store);
    let started = Instant::now();
    let store = ShardStore::on_disk(path, config.clone())?;
    println!("opened after an unclean end in {:.2?}", started.elapsed());
    store.close().await?;
    let started = Instant::now();
    let store = ShardStore::on_disk(path, config)?;
    println!("opened after a close in {:.2?}", started.elapsed());
    drain(&store, &account).await?;
    let started = Instant::now();
    store.close().await?;
    println!("closed in {:.2?}", started.elapsed());
    Ok(())
}

async fn drain(store: &ShardStore, account: &Account) -> Result<()> {
    let limit = ReadLimit {
        messages: 256,
        bytes: 1024 * 1024,
    };
    let started = Instant::now();
    let (mut after, mut count) = (Position::default(), 0);
    loop {
        let page = store.read(account, after, limit).await?;
        count += page.messages.len() as u64;
        if let Some(last) = page.messages.last() {
            after = last.position;
            store.acknowledge(account, last.position);
        }
        if page.complete {
            break;
        }
    }
    ensure!(count == QUEUED, "read {count}");
    println!(
        "read and acknowledged {:.0} messages a second",
        count as f64 / started.elapsed().as_secs_f64()
    );
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}
