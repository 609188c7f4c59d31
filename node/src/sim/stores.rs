//! The values of the three stores, and the version that each client sees. They
//! know no messages; a key is its JSON as text.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;

use super::party::Party;
use crate::error::{Error, ErrorCode};

/// An operation on a key.
#[derive(Debug, Clone)]
pub(super) enum Change {
    Read,
    Write(Value),
    Cas {
        from: Value,
        to: Value,
        creates: bool,
    },
}

/// The effect of an operation on a key with a certain value.
enum Effect {
    /// No change; this value was read.
    None(Value),
    Set(Value),
}

impl Change {
    fn effect(&self, current: Option<&Value>) -> Result<Effect, Error> {
        match (self, current) {
            (Self::Read, Some(value)) => Ok(Effect::None(value.clone())),
            (Self::Write(value), _) => Ok(Effect::Set(value.clone())),
            (
                Self::Cas {
                    to, creates: true, ..
                },
                None,
            ) => Ok(Effect::Set(to.clone())),
            (Self::Cas { from, to, .. }, Some(value)) if value == from => {
                Ok(Effect::Set(to.clone()))
            }
            (Self::Cas { from, .. }, Some(value)) => {
                let text = format!("the value is {value}, not {from}");
                Err(Error::new(ErrorCode::PreconditionFailed, text))
            }
            (Self::Read | Self::Cas { .. }, None) => Err(missing()),
        }
    }
}

fn missing() -> Error {
    Error::new(ErrorCode::KeyDoesNotExist, "the key does not exist")
}

/// Linearizable: an operation happens when its request arrives.
#[derive(Default)]
pub(super) struct LinKv {
    values: BTreeMap<String, Value>,
}

impl LinKv {
    pub(super) fn apply(&mut self, key: String, change: &Change) -> Result<Value, Error> {
        match change.effect(self.values.get(&key))? {
            Effect::None(value) => Ok(value),
            Effect::Set(value) => {
                self.values.insert(key, value);
                Ok(Value::Null)
            }
        }
    }
}

/// The maximum number of changes that a reader may not see yet.
const SEQ_KV_STALE_MAX: u64 = 100;

/// Sequentially consistent: all changes are in one order, and each of them is
/// made on the newest state. An operation that changes nothing takes effect on
/// an older state, any that is not older than the last one of the same client:
/// a read, a `cas` that fails, and a write of the value that was there.
pub(super) struct SeqKv {
    /// The values of a key with the versions that brought them, the oldest
    /// first.
    values: BTreeMap<String, VecDeque<(u64, Value)>>,
    /// The number of changes.
    newest: u64,
    /// The version that each client has seen.
    seen: BTreeMap<Party, u64>,
    random: SmallRng,
}

impl SeqKv {
    pub(super) fn new(seed: u64) -> Self {
        let random = SmallRng::seed_from_u64(seed);
        Self {
            values: BTreeMap::new(),
            newest: 0,
            seen: BTreeMap::new(),
            random,
        }
    }

    pub(super) fn apply(
        &mut self,
        client: Party,
        key: String,
        change: &Change,
    ) -> Result<Value, Error> {
        let seen = self.seen.get(&client).copied().unwrap_or_default();
        let oldest = seen.max(self.newest.saturating_sub(SEQ_KV_STALE_MAX));
        let version = self.random.random_range(oldest..=self.newest);
        let current = self.value_at(&key, version);
        let effect = change.effect(current);
        if !matches!(&effect, Ok(Effect::Set(value)) if current != Some(value)) {
            self.seen.insert(client, version);
            return effect.map(|effect| match effect {
                Effect::None(value) => value,
                Effect::Set(_) => Value::Null,
            });
        }
        let effect = change.effect(self.value_at(&key, self.newest));
        if let Ok(Effect::Set(value)) = &effect {
            self.set(key, value.clone());
        }
        self.seen.insert(client, self.newest);
        effect.map(|_| Value::Null)
    }

    fn value_at(&self, key: &str, version: u64) -> Option<&Value> {
        let values = self.values.get(key)?;
        values
            .iter()
            .rev()
            .find(|(since, _)| *since <= version)
            .map(|(_, value)| value)
    }

    fn set(&mut self, key: String, value: Value) {
        self.newest += 1;
        let oldest = self.newest.saturating_sub(SEQ_KV_STALE_MAX);
        let values = self.values.entry(key).or_default();
        values.push_back((self.newest, value));
        // No client sees a value that was replaced so long ago.
        while values.get(1).is_some_and(|(since, _)| *since <= oldest) {
            values.pop_front();
        }
    }
}

const LWW_KV_REPLICAS: usize = 3;

/// The maximum time of a write to the other replicas.
const LWW_KV_LAG_MAX: Duration = Duration::from_secs(1);

/// The maximum difference between the clocks of two replicas.
const LWW_KV_SKEW_MAX: Duration = Duration::from_millis(100);

/// Eventually consistent: an operation happens at a random replica. A write
/// reaches the others later, and of two writes to a key, the one that is later
/// by the clock of its replica wins. `create_if_not_exists` is ignored.
pub(super) struct LwwKv {
    replicas: Vec<Replica>,
    writes: u64,
    random: SmallRng,
}

#[derive(Default)]
struct Replica {
    skew: Duration,
    values: BTreeMap<String, (Stamp, Value)>,
    /// Writes of other replicas, by the time of their arrival.
    coming: BTreeMap<(Duration, u64), (String, Stamp, Value)>,
}

/// The time and the number of a write.
type Stamp = (Duration, u64);

impl Replica {
    fn catch_up(&mut self, now: Duration) {
        while let Some(entry) = self.coming.first_entry()
            && entry.key().0 <= now
        {
            let (key, stamp, value) = entry.remove();
            self.set(key, stamp, value);
        }
    }

    fn set(&mut self, key: String, stamp: Stamp, value: Value) {
        if self
            .values
            .get(&key)
            .is_none_or(|(before, _)| *before < stamp)
        {
            self.values.insert(key, (stamp, value));
        }
    }
}

impl LwwKv {
    pub(super) fn new(seed: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut replica = || {
            let skew = random.random_range(Duration::ZERO..=LWW_KV_SKEW_MAX);
            Replica {
                skew,
                ..Replica::default()
            }
        };
        let replicas = (0..LWW_KV_REPLICAS).map(|_| replica()).collect();
        Self {
            replicas,
            writes: 0,
            random,
        }
    }

    pub(super) fn apply(
        &mut self,
        now: Duration,
        key: String,
        change: &Change,
    ) -> Result<Value, Error> {
        let chosen = self.random.random_range(0..LWW_KV_REPLICAS);
        let Some(replica) = self.replicas.get_mut(chosen) else {
            return Ok(Value::Null);
        };
        replica.catch_up(now);
        let current = replica.values.get(&key).map(|(_, value)| value);
        if current.is_none() && matches!(change, Change::Cas { .. }) {
            return Err(missing());
        }
        match change.effect(current)? {
            Effect::None(value) => Ok(value),
            Effect::Set(value) => {
                self.writes += 1;
                let stamp = (now.saturating_add(replica.skew), self.writes);
                replica.set(key.clone(), stamp, value.clone());
                self.spread(chosen, now, &(key, stamp, value));
                Ok(Value::Null)
            }
        }
    }

    fn spread(&mut self, from: usize, now: Duration, write: &(String, Stamp, Value)) {
        let others = self
            .replicas
            .iter_mut()
            .enumerate()
            .filter(|(index, _)| *index != from);
        for (_, replica) in others {
            let lag = self.random.random_range(Duration::ZERO..=LWW_KV_LAG_MAX);
            replica
                .coming
                .insert((now.saturating_add(lag), self.writes), write.clone());
        }
    }
}
