//! Measures the store on disk: `cargo bench -p hark-bench --bench store [-- PART…]`, on
//! the disk of `--folder`. The parts `page`, `index` and `scattered` write gigabytes.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytestring::ByteString;
use clap::{Parser, ValueEnum};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use hark_protocol::{RequestId, Sequence, SessionToken, UserName};
use hark_server::shard::{ShardConfig, ShardStore, Sync};
use hark_server::store::{Account, Append, Created, Outcome, Position, ReadLimit, SendId, Store};

const TEXT_BYTES: usize = 100;
const USERS: usize = 100;
const SESSIONS: usize = 16;
const ROUNDS: usize = 3;
const ROUND_TIME: Duration = Duration::from_secs(2);
const QUEUED: u64 = 1_000_000;

/// Commands that are in flight when a store is filled; they fit into one commit.
const FILL_GROUP: usize = 4096;
/// Pages that are read of a store.
const PAGES: u64 = 1000;
/// Users and messages of each, for a store of scattered inboxes.
const SCATTERED_USERS: usize = 1000;
const SCATTERED_MESSAGES: usize = 3000;
/// More than the time of a merge.
const MERGE_TIME: Duration = Duration::from_secs(1);

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Durable appends, beside a plain file
    Appends,
    /// The start with a million messages of one user, and their reading
    Backlog,
    /// A page of 100 messages out of those of one user
    Page,
    /// The memory and the start of a store with one block for each message
    Index,
    /// Pages of inboxes in blocks of one message, before and after they are merged
    Scattered,
}

/// Measures the store on disk.
#[derive(Debug, Parser)]
struct Args {
    #[arg(value_enum, default_values_t = [Part::Appends, Part::Backlog])]
    parts: Vec<Part>,
    /// Where the store is written [default: the folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Messages of the parts `page` and `index`
    #[arg(long, default_value_t = 10_000_000)]
    messages: u64,
    /// Users of the part `index`
    #[arg(long, default_value_t = 1_000_000)]
    users: usize,
    /// Opens a store and prints the time and the memory that it takes
    #[arg(long, hide = true)]
    open: Option<PathBuf>,
    /// Cargo adds it.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let parent = args.folder.clone().unwrap_or_else(std::env::temp_dir);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    if let Some(path) = &args.open {
        return runtime.block_on(open(path));
    }
    for part in &args.parts {
        let folder = tempfile::tempdir_in(&parent)?;
        let path = folder.path().join("store");
        runtime.block_on(async {
            match part {
                Part::Appends => appends(folder.path()).await,
                Part::Backlog => backlog(&path).await,
                Part::Page => page(&path, args.messages).await,
                Part::Index => index(&path, args.users, args.messages).await,
                Part::Scattered => scattered(&path).await,
            }
        })?;
    }
    Ok(())
}

/// Returns a configuration without limits, which syncs only if `sync` says so.
fn unbounded(sync: Sync) -> ShardConfig {
    ShardConfig {
        accounts_max: usize::MAX,
        queued_messages_max: u64::MAX,
        queued_bytes_max: u64::MAX,
        sync,
        ..ShardConfig::default()
    }
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
        let config = unbounded(Sync::Always);
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
    let config = unbounded(Sync::Always);
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

/// Creates users, and returns their names.
async fn create(store: &ShardStore, count: usize) -> Result<Vec<UserName>> {
    let names = (0..count).map(|n| Ok(format!("user{n}").parse()?));
    let names = names.collect::<Result<Vec<UserName>>>()?;
    for group in names.chunks(FILL_GROUP) {
        let created = group.iter().map(|name| store.create(name, None));
        futures::future::try_join_all(created).await?;
    }
    Ok(names)
}

/// Stores messages for these users in turn. Returns the number of the last one.
async fn fill(store: &ShardStore, users: &[UserName], count: u64) -> Result<Sequence> {
    let (mut users, mut left, mut last) = (users.iter().cycle(), count, Sequence(0));
    while left > 0 {
        let size = left.min(FILL_GROUP as u64);
        let group = users.by_ref().take(size as usize);
        let sent = group.map(|user| store.append(append(user.clone(), None)));
        let outcomes = futures::future::try_join_all(sent).await?;
        if let Some(Outcome::Stored(number)) = outcomes.last() {
            last = *number;
        }
        left -= size;
    }
    Ok(last)
}

/// Many messages of one user: how long a page takes, anywhere among them.
async fn page(path: &Path, messages: u64) -> Result<()> {
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    let users = create(&store, 1).await?;
    let first = fill(&store, &users, 1).await?;
    let last = fill(&store, &users, messages - 1).await?;
    let account = store.account(users.first().context("a user")?).await?;
    let account = account.context("the account")?.account;
    store.close().await?;
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    let times = pages(&store, &account, (first, last), 100).await?;
    println!("a page of 100 messages out of {messages}: {times}");
    Ok(())
}

/// Reads pages, each after another number of a range. Returns the median and the longest
/// time.
async fn pages(
    store: &ShardStore,
    account: &Account,
    (first, last): (Sequence, Sequence),
    messages: usize,
) -> Result<String> {
    let limit = ReadLimit {
        messages,
        bytes: 1024 * 1024,
    };
    let mut times = Vec::new();
    for number in 0..PAGES {
        // A step that visits all parts of the range in an irregular order.
        let place = (number * 617) % PAGES;
        let after = Position {
            sequence: Sequence(first.0 + (last.0 - first.0) / (PAGES + 1) * place),
            ..Position::default()
        };
        let started = Instant::now();
        let page = store.read(account, after, limit).await?;
        times.push(started.elapsed().as_secs_f64());
        ensure!(page.messages.len() == messages, "{}", page.messages.len());
    }
    let longest = times.iter().copied().fold(0.0, f64::max);
    let (median, longest) = (1e3 * median(times), 1e3 * longest);
    Ok(format!("{median:.3} ms, at most {longest:.3} ms"))
}

/// Many inboxes with a few blocks each: the memory of their index, and the start.
async fn index(path: &Path, users: usize, messages: u64) -> Result<()> {
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    let users = create(&store, users).await?;
    store.close().await?;
    drop(store);
    println!("{} accounts: {}", users.len(), opened(path)?);
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    fill(&store, &users, messages).await?;
    println!("filled: {} MiB", resident_mib()?);
    drop(store);
    println!("{messages} messages, unclean: {}", opened(path)?);
    println!("{messages} messages: {}", opened(path)?);
    Ok(())
}

/// Opens a store in another process. Returns what it prints.
fn opened(path: &Path) -> Result<String> {
    let output = Command::new(std::env::current_exe()?)
        .arg("--open")
        .arg(path)
        .output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

async fn open(path: &Path) -> Result<()> {
    let before = resident_mib()?;
    let started = Instant::now();
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    let elapsed = started.elapsed();
    println!("opened in {elapsed:.2?}, {} MiB", resident_mib()? - before);
    store.close().await?;
    Ok(())
}

/// Returns the resident memory of this process.
fn resident_mib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kib.context("VmRSS")?.parse::<u64>()? / 1024)
}

/// Inboxes whose messages were committed one by one: pages before and after the blocks
/// are merged.
async fn scattered(path: &Path) -> Result<()> {
    let store = ShardStore::on_disk(path, unbounded(Sync::Os))?;
    let users = create(&store, SCATTERED_USERS).await?;
    for _ in 0..SCATTERED_MESSAGES {
        fill(&store, &users, SCATTERED_USERS as u64).await?;
    }
    println!(
        "{SCATTERED_USERS} users with {SCATTERED_MESSAGES} messages, each in a block of its own"
    );
    let account = store.account(users.last().context("a user")?).await?;
    let account = account.context("the account")?.account;
    let limit = ReadLimit {
        messages: 256,
        bytes: 1024 * 1024,
    };
    for pass in 1..=3 {
        let (mut after, mut count, mut times) = (Position::default(), 0, Vec::new());
        loop {
            let started = Instant::now();
            let page = store.read(&account, after, limit).await?;
            times.push(1e3 * started.elapsed().as_secs_f64());
            count += page.messages.len();
            after = page.messages.last().map_or(after, |last| last.position);
            if page.complete {
                break;
            }
        }
        ensure!(count == SCATTERED_MESSAGES, "read {count}");
        let first = times.first().copied().unwrap_or_default();
        println!(
            "pass {pass}: first page of 256 in {first:.3} ms, median {:.3} ms",
            median(times)
        );
        // The blocks are merged meanwhile.
        tokio::time::sleep(MERGE_TIME).await;
    }
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(0.0)
}
