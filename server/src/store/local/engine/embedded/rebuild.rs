//! A new engine from what can be read of one whose tables are damaged. The
//! engine itself cannot go on with them: a merge that meets the damage fails,
//! and with it everything.

use fjall::{Guard, Keyspace, PersistMode};

use super::super::Table;
use super::Tables;

/// Bytes of a key that are looked at in order to find the end of a gap.
const PROBED_BYTES: usize = 16;

/// Copies every record that can be read.
pub(super) fn copy(from: &Tables, to: &Tables) -> fjall::Result<()> {
    for table in Table::ALL {
        let gaps = copy_table(from.keyspace(table), to.keyspace(table))?;
        if gaps > 0 {
            tracing::warn!("{gaps} parts of its {table:?} cannot be read and are left out");
        }
    }
    to.database.persist(PersistMode::SyncAll)
}

/// How many parts of it were left out.
fn copy_table(from: &Keyspace, to: &Keyspace) -> fjall::Result<u64> {
    let mut records = to.start_ingestion()?;
    let (mut next, mut gaps) = (Some(Vec::new()), 0);
    while let Some(begin) = next.take() {
        let mut end = begin.clone();
        for record in from.range(begin..) {
            let Ok((key, value)) = record.into_inner() else {
                gaps += 1;
                next = after_gap(from, &end);
                break;
            };
            // The first key that comes after this one.
            end = [&*key, &[0]].concat();
            records.write(key, value)?;
        }
    }
    records.finish()?;
    Ok(gaps)
}

/// A key after `from` where reading succeeds again, the first as far as halving
/// finds it. Keys are taken for numbers of [`PROBED_BYTES`] bytes.
fn after_gap(keyspace: &Keyspace, from: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = [0; PROBED_BYTES];
    bytes.iter_mut().zip(from).for_each(|(byte, known)| *byte = *known);
    let from = u128::from_be_bytes(bytes);
    let steps = (0..u128::BITS).map_while(|bit| from.checked_add(1 << bit));
    let mut good = steps.chain([u128::MAX]).find(|key| is_readable(keyspace, *key))?;
    let mut bad = from;
    while good - bad > 1 {
        let middle = bad + (good - bad) / 2;
        *(if is_readable(keyspace, middle) { &mut good } else { &mut bad }) = middle;
    }
    Some(good.to_be_bytes().to_vec())
}

fn is_readable(keyspace: &Keyspace, from: u128) -> bool {
    keyspace.range(from.to_be_bytes()..).next().is_none_or(|record: Guard| record.into_inner().is_ok())
}
