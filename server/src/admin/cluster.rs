//! `harkd export` and `import` on a cluster, which may be serving: the owners of the shards
//! read and write.

use std::io::{BufRead, BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt, stream};
use hark_protocol::{Sequence, UserName};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::export;
use super::import::{self, Item, LineOutcome, Target};
use super::line::{Line, VERSION};
use super::progress::Progress;
use crate::cluster::{ClusterStore, Nodes};
use crate::config::{Purpose, StoreArgs};
use crate::ledger::Imported;
use crate::shard::ShardConfig;
use crate::store::{
    Account, AccountEntry, Created, Page, Pending, Position, ReadLimit, Store, Unavailable,
};

/// Threads of the runtime. The server of the tool must answer others while a thread waits
/// for standard input or output.
const THREADS: usize = 2;

/// Maximum names in one fetch.
const PAGE_NAMES: usize = 1024;

/// Maximum accounts that are read concurrently, and the bytes of texts in the first page of
/// each.
const ACCOUNTS_AT_ONCE: usize = 128;
const FIRST_PAGE_BYTES: usize = 64 << 10;

/// The size of the other pages.
const PAGE_MESSAGES: usize = 1024;
const PAGE_BYTES: usize = 1 << 20;

/// How long requests are repeated while shards change their owner.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Exports the chat in a cluster.
pub(super) fn export(arguments: &StoreArgs, nodes: Nodes, to: impl Write) -> anyhow::Result<()> {
    let (runtime, store) = open(arguments, nodes, false)?;
    let mut to = BufWriter::new(to);
    let exported = runtime
        .block_on(write_all(&store, &mut to))
        .and_then(|()| Ok(to.flush()?));
    let closed = runtime.block_on(store.close());
    export::unless_reader_has_gone(exported)?;
    closed.context("cannot leave the cluster")
}

/// Imports into the chat in a cluster, which is created if it does not exist.
pub(super) fn import(
    arguments: &StoreArgs,
    nodes: Nodes,
    from: impl BufRead,
) -> anyhow::Result<()> {
    let (runtime, store) = open(arguments, nodes, true)?;
    let mut target = ClusterTarget { runtime, store };
    let imported = import::import(&mut target, from);
    let closed = target.runtime.block_on(target.store.close());
    import::report(imported, closed.context("cannot leave the cluster"))
}

fn open(
    arguments: &StoreArgs,
    nodes: Nodes,
    may_create: bool,
) -> anyhow::Result<(Runtime, ClusterStore)> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let purpose = Purpose::Tool { may_create };
    let opening = arguments.open_cluster(nodes, &ShardConfig::UNBOUNDED, purpose);
    let store = runtime.block_on(opening)?;
    Ok((runtime, store))
}

async fn write_all(store: &ClusterStore, to: &mut impl Write) -> anyhow::Result<()> {
    export::write(to, &Line::Export { version: VERSION })?;
    let (mut after, mut progress) = (None, Progress::new("accounts exported"));
    loop {
        let names = repeated(|| store.names(after.as_ref(), PAGE_NAMES)).await?;
        let Some(last) = names.last() else {
            return Ok(());
        };
        after = Some(last.clone());
        let accounts = stream::iter(&names).map(|name| first_page(store, name));
        let mut accounts = accounts.buffered(ACCOUNTS_AT_ONCE);
        while let Some(account) = accounts.next().await {
            // Without one, the account has ended since its name was read.
            if let Some((entry, page)) = account? {
                write_account(store, &entry, page, to).await?;
                progress.add(1);
            }
        }
    }
}

/// Reads an account and its first messages.
async fn first_page(
    store: &ClusterStore,
    name: &UserName,
) -> anyhow::Result<Option<(AccountEntry, Page)>> {
    let Some(entry) = repeated(|| store.account(name)).await? else {
        return Ok(None);
    };
    let page = read(store, &entry.account, Position::default(), FIRST_PAGE_BYTES).await?;
    Ok(Some((entry, page)))
}

async fn read(
    store: &ClusterStore,
    account: &Account,
    after: Position,
    bytes: usize,
) -> anyhow::Result<Page> {
    let limit = ReadLimit {
        messages: PAGE_MESSAGES,
        bytes,
    };
    repeated(|| store.read(account, after, limit))
        .await
        .with_context(|| format!("cannot read the messages of {}", account.name))
}

/// Writes an account and its messages, from its first page on.
async fn write_account(
    store: &ClusterStore,
    entry: &AccountEntry,
    mut page: Page,
    to: &mut impl Write,
) -> anyhow::Result<()> {
    let cursor = page.starts_after.unwrap_or_default();
    export::write(to, &Line::account(entry, cursor.sequence))?;
    loop {
        for message in &page.messages {
            export::write(to, &export::line(entry.account.name.as_str(), message))?;
        }
        let Some(last) = page.messages.last().filter(|_| !page.complete) else {
            return Ok(());
        };
        page = read(store, &entry.account, last.position, PAGE_BYTES).await?;
    }
}

/// Returns the answer to a request, which is repeated while it is unavailable.
async fn repeated<T: Unpin>(mut request: impl FnMut() -> Pending<T>) -> anyhow::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(Unavailable) if Instant::now() < deadline => sleep(RETRY_PAUSE).await,
            Err(Unavailable) => bail!("the cluster is unavailable; is a majority of its nodes up?"),
        }
    }
}

/// A cluster that takes imported lines.
struct ClusterTarget {
    runtime: Runtime,
    store: ClusterStore,
}

impl Target for ClusterTarget {
    fn import(&mut self, items: Vec<Item>) -> anyhow::Result<Vec<LineOutcome>> {
        self.runtime.block_on(import_all(&self.store, &items))
    }

    fn finish(&mut self, highest: Sequence) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            for shard in 0..self.store.shards() {
                repeated(|| self.store.skip_numbers(shard, highest)).await?;
            }
            Ok(())
        })
    }
}

/// Imports items in their order. Those that are unavailable, among them all later ones of the
/// same inbox, are imported again.
async fn import_all(store: &ClusterStore, items: &[Item]) -> anyhow::Result<Vec<LineOutcome>> {
    let deadline = Instant::now() + PATIENCE;
    let mut outcomes = vec![None; items.len()];
    for attempt in 0_u32.. {
        let undecided = items.iter().zip(&mut outcomes);
        let undecided = undecided.filter(|(_, outcome)| outcome.is_none());
        let submitted: Vec<_> = undecided
            .map(|(item, outcome)| (submit(store, item, attempt > 0), outcome))
            .collect();
        for (answer, outcome) in submitted {
            *outcome = answer.await.ok();
        }
        if outcomes.iter().all(Option::is_some) {
            break;
        }
        if Instant::now() >= deadline {
            bail!(
                "the cluster is unavailable; is a majority of its nodes up? Repeat the import \
                 afterwards: it skips everything that exists"
            );
        }
        sleep(RETRY_PAUSE).await;
    }
    Ok(outcomes.into_iter().flatten().collect())
}

/// Submits an item, and returns its outcome. A repeated item that exists may have been
/// imported by its first attempt, and counts as imported.
fn submit<'s>(
    store: &'s ClusterStore,
    item: &'s Item,
    is_repeat: bool,
) -> BoxFuture<'s, Result<LineOutcome, Unavailable>> {
    match item {
        Item::Account {
            name,
            password,
            cursor,
            is_suspended,
        } => {
            let created = store.import_account(name, password.clone(), *cursor);
            let outcome = async move {
                let created = created.await?;
                let is_imported = created == Created::Created || is_repeat;
                if *is_suspended
                    && is_imported
                    && let Some(entry) = store.account(name).await?
                {
                    store.set_suspended(&entry.account, true).await?;
                }
                Ok(match created {
                    Created::Exists if is_repeat => LineOutcome::Account,
                    created => import::account_outcome(created),
                })
            };
            outcome.boxed()
        }
        Item::Message { to, message } => {
            let (bytes, bytes_max) = (message.text.len(), store.text_bytes_max());
            if bytes > bytes_max {
                let why = format!(
                    "the text has {bytes} bytes, and the NATS servers take at most {bytes_max}; \
                     raise their max_payload"
                );
                return ready(Ok(LineOutcome::Bad(why))).boxed();
            }
            let imported = store.import_message(to, message.clone());
            let outcome = async move {
                Ok(match imported.await? {
                    Imported::Known if is_repeat => LineOutcome::Message,
                    Imported::Behind(incarnation)
                        if has(store, to, incarnation, message.position).await? =>
                    {
                        if is_repeat {
                            LineOutcome::Message
                        } else {
                            LineOutcome::Known
                        }
                    }
                    imported => import::message_outcome(imported, to),
                })
            };
            outcome.boxed()
        }
    }
}

/// Returns whether an inbox has a message with the number of this position.
async fn has(
    store: &ClusterStore,
    name: &UserName,
    incarnation: u64,
    position: Position,
) -> Result<bool, Unavailable> {
    let account = Account {
        name: name.clone(),
        incarnation,
    };
    let after = Position {
        sequence: Sequence(position.sequence.0.saturating_sub(1)),
        ..Position::default()
    };
    let limit = ReadLimit {
        messages: 1,
        bytes: 0,
    };
    let page = store.read(&account, after, limit).await?;
    let mut messages = page.messages.iter();
    Ok(messages.any(|message| message.position.sequence == position.sequence))
}
