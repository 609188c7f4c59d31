//! Deletes acknowledged messages once no client may repeat their sends: after a restart,
//! the engine deduplicates only by messages that it still stores.
//!
//! Acknowledgements at this server are noted and processed in time. An hourly scan of all
//! inboxes finds those noted at servers that have stopped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::TryStreamExt;
use hark_protocol::Sequence;
use tokio::time::{Instant, sleep};

use super::Shared;
use super::engine::Lost;
use super::setup::KEPT;
use crate::store::Account;

/// The interval at which due notes are processed.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);

/// The interval between scans of all inboxes.
const SEARCH_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The pause between two inboxes of a scan, which limits its load.
const SEARCH_PAUSE: Duration = Duration::from_millis(2);

/// Pending deletions and their times.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    // A lock, because many tasks add notes. It is held for one note, or for one pass over
    // all of them.
    notes: Mutex<HashMap<Account, Note>>,
}

/// The pending deletions of one inbox: the first note, and the latest, which covers all
/// in between and stays pending after the first has been processed.
#[derive(Debug)]
struct Note {
    first: Due,
    later: Option<Due>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    pub(super) at: Instant,
    /// Deletes all messages below this sequence.
    pub(super) below: u64,
    /// The account has ended: deletes all its records.
    pub(super) whole: bool,
}

impl Note {
    fn last(&self) -> Due {
        self.later.unwrap_or(self.first)
    }
}

impl Sweeper {
    /// Notes that all messages up to `sequence` are acknowledged.
    pub(super) fn acknowledged(&self, account: &Account, sequence: Sequence) {
        if sequence.0 > 0 {
            self.note(account, sequence.0.saturating_add(1), false);
        }
    }

    /// Notes that the account has ended.
    pub(super) fn ended(&self, account: &Account) {
        self.note(account, u64::MAX, true);
    }

    fn note(&self, account: &Account, below: u64, whole: bool) {
        let due = Due { at: Instant::now() + KEPT, below, whole };
        let mut notes = self.lock();
        match notes.get_mut(account) {
            Some(note) if note.last().below >= below => {}
            Some(note) => note.later = Some(due),
            None => drop(notes.insert(account.clone(), Note { first: due, later: None })),
        }
    }

    /// Processes due notes until the store closes.
    pub(super) async fn run(shared: Arc<Shared>) {
        let mut search_at = Instant::now() + SEARCH_INTERVAL.mul_f64(rand::random_range(0.1..0.3));
        loop {
            sleep(ROUND_INTERVAL).await;
            for (account, due) in shared.sweeper.take_due() {
                if let Err(Lost) = drop_messages(&shared, &account, due).await {
                    shared.sweeper.note(&account, due.below, due.whole);
                }
            }
            if Instant::now() >= search_at {
                match search(&shared).await {
                    Ok(found) => tracing::debug!(found, "scanned inboxes"),
                    Err(error) => tracing::debug!(%error, "inbox scan failed"),
                }
                search_at = Instant::now() + SEARCH_INTERVAL.mul_f64(rand::random_range(0.8..1.2));
            }
        }
    }

    fn take_due(&self) -> Vec<(Account, Due)> {
        let now = Instant::now();
        let mut due = Vec::new();
        self.lock().retain(|account, note| {
            if note.first.at > now {
                return true;
            }
            due.push((account.clone(), note.first));
            let Some(later) = note.later.take() else { return false };
            note.first = later;
            true
        });
        due
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Account, Note>> {
        // No code panics while it holds the lock.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes the due messages of one inbox.
pub(super) async fn drop_messages(shared: &Arc<Shared>, account: &Account, due: Due) -> Result<(), Lost> {
    let (names, engine) = (&shared.names, &shared.engine);
    let mut below = due.below;
    if due.whole {
        // The account may have been created after the last update.
        shared.refresh(Instant::now()).await?;
        if shared.directory.is_alive(account) {
            return Ok(());
        }
        // The end marker stays for servers that have not learned of the deletion.
        below = shared.end_inbox(account).await.map_err(|_| Lost)?;
        engine.purge(&names.state_stream(), &names.state(account), u64::MAX).await?;
    }
    engine.purge(&names.inbox_stream_of(&account.name), &names.inbox(account), below).await
}

/// Notes the deletable messages of all inboxes.
async fn search(shared: &Shared) -> Result<usize, async_nats::Error> {
    let context = async_nats::jetstream::new(shared.engine.client().clone());
    let mut found = 0;
    for shard in 0..shared.names.shards() {
        let stream = context.get_stream_no_info(shared.names.inbox_stream(shard)).await?;
        let mut subjects = stream.info_with_subjects(shared.names.inboxes(shard)).await?;
        while let Some((subject, _)) = subjects.try_next().await? {
            let Ok(account) = shared.names.parse_inbox(&subject) else { continue };
            if !shared.directory.is_alive(&account) {
                shared.sweeper.ended(&account);
                found += 1;
            } else if has_acknowledged(shared, &account).await? {
                found += 1;
            }
            sleep(SEARCH_PAUSE).await;
        }
    }
    Ok(found)
}

/// Notes acknowledged messages of an inbox that are still stored. Returns whether there
/// are any.
async fn has_acknowledged(shared: &Shared, account: &Account) -> Result<bool, Lost> {
    let (_, state) = shared.state(account).await?;
    let stream = shared.names.inbox_stream_of(&account.name);
    let first = shared.engine.page(&stream, &shared.names.inbox(account), 1, 1, 1).await?;
    let has = first.found.first().is_some_and(|first| first.sequence <= state.cursor.sequence.0);
    if has {
        shared.sweeper.acknowledged(account, state.cursor.sequence);
    }
    Ok(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_acknowledged_again_and_again_is_dropped_in_time() {
        let sweeper = Sweeper::default();
        let bob = Account { name: "bob".parse().unwrap(), incarnation: 1 };
        let mut dropped = Vec::new();
        for minute in 1..=30 {
            sweeper.acknowledged(&bob, Sequence(minute));
            dropped.extend(sweeper.take_due().into_iter().map(|(_, due)| (minute, due.below)));
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        // Nothing is due before 11 minutes, and everything within twice that.
        assert_eq!(dropped, [(12, 2), (23, 13)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_that_has_ended_is_dropped_whole() {
        let sweeper = Sweeper::default();
        let bob = Account { name: "bob".parse().unwrap(), incarnation: 1 };
        sweeper.acknowledged(&bob, Sequence(7));
        sweeper.ended(&bob);
        sweeper.acknowledged(&bob, Sequence(9));
        tokio::time::advance(KEPT).await;
        let due = sweeper.take_due();
        assert_eq!(due.iter().map(|(_, due)| due.below).collect::<Vec<_>>(), [8]);
        let due = sweeper.take_due();
        assert!(due.iter().all(|(_, due)| due.whole) && due.len() == 1, "{due:?}");
    }
}
