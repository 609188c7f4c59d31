//! Clients of the services that Maelstrom runs alongside the nodes
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/services.md>): three
//! key-value stores and a timestamp oracle. They know the message bodies of
//! these services, but not how a call is made.

use std::rc::Rc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::{Backoff, Call, FromReply, ONCE, Retry};
use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::json::Json;
use crate::message::Body;
use crate::node::Node;
use crate::timers::Sleep;

/// The name of the linearizable store.
pub const LIN_KV: &str = "lin-kv";
/// The name of the sequentially consistent store.
pub const SEQ_KV: &str = "seq-kv";
/// The name of the store in which the last write wins.
pub const LWW_KV: &str = "lww-kv";
/// The name of the timestamp oracle.
pub const LIN_TSO: &str = "lin-tso";

/// Conflicts after which [`Kv::update`] gives up.
pub const UPDATE_ATTEMPTS_MAX: u32 = 64;

/// The pause of [`Kv::update`] after a conflict.
const UPDATE_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(5),
    max: Duration::from_millis(200),
};

impl<S: 'static> Node<S> {
    /// Returns a client of the linearizable store: an operation sees all that
    /// ended before it began.
    #[must_use]
    pub fn lin_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), LIN_KV)
    }

    /// Returns a client of the sequentially consistent store: all nodes see the
    /// same changes in the same order, their own at once and others possibly
    /// late. Writing the value that is already there may take effect in the
    /// past, so it does not make later reads fresh.
    #[must_use]
    pub fn seq_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), SEQ_KV)
    }

    /// Returns a client of the store in which the last write wins, according to
    /// clocks that differ: a write may be seen late, and may be lost to another
    /// write. It ignores `create_if_not_exists`: only [`Kv::write`] creates a
    /// key.
    #[must_use]
    pub fn lww_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), LWW_KV)
    }

    /// Returns a client of the timestamp oracle.
    #[must_use]
    pub fn lin_tso(&self) -> Tso {
        Tso {
            core: Rc::clone(self.core()),
            retry: ONCE,
        }
    }
}

/// A client of a key-value store. A key may be any value that JSON can
/// represent; usually it is a string.
///
/// Every operation can end with an error of the service, or with error 0 if no
/// reply came in time: then the operation has happened, will happen, or never
/// will.
#[derive(Clone)]
pub struct Kv {
    core: Rc<Core>,
    service: &'static str,
    retry: Retry,
}

#[derive(Serialize)]
struct Read<K> {
    key: K,
}

#[derive(Deserialize)]
struct ReadOk<T> {
    value: T,
}

#[derive(Serialize)]
struct Write<K, V> {
    key: K,
    value: V,
}

#[derive(Serialize)]
struct Cas<K, V, W> {
    key: K,
    from: V,
    to: W,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    create_if_not_exists: bool,
}

impl Kv {
    const fn new(core: Rc<Core>, service: &'static str) -> Self {
        Self {
            core,
            service,
            retry: ONCE,
        }
    }

    /// Sets the time that each attempt waits for its reply, 1 s by default.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.retry.timeout = timeout;
        self
    }

    /// Retries after a timeout or an indefinite error. A `cas` that is retried
    /// may find the effect of its own first attempt, and then ends with error 22
    /// although it has happened.
    #[must_use]
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Returns the value under a key.
    ///
    /// # Errors
    /// 20 if the key does not exist; 13 if the value is not a `T`.
    pub async fn read<T: DeserializeOwned + 'static>(
        &self,
        key: impl Serialize,
    ) -> Result<T, Error> {
        Ok(self.call::<ReadOk<T>>("read", &Read { key }).await?.value)
    }

    /// Returns the value under a key, or `None` if the key does not exist.
    ///
    /// # Errors
    /// 13 if the value is not a `T`.
    pub async fn find<T: DeserializeOwned + 'static>(
        &self,
        key: impl Serialize,
    ) -> Result<Option<T>, Error> {
        match self.read(key).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code == ErrorCode::KeyDoesNotExist => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a value under a key.
    ///
    /// # Errors
    /// 0 if no reply came.
    pub async fn write(&self, key: impl Serialize, value: impl Serialize) -> Result<(), Error> {
        self.call("write", &Write { key, value }).await
    }

    /// Puts a value under a key that does not exist. If there are several
    /// callers, one succeeds.
    ///
    /// # Errors
    /// 21 if the key exists (with a value other than `null`); 20 from
    /// [`Node::lww_kv`], which cannot do this.
    pub async fn create(&self, key: impl Serialize, value: impl Serialize) -> Result<(), Error> {
        let created = self.cas_or_create(key, (), value).await;
        created.map_err(|error| match error.code {
            ErrorCode::PreconditionFailed => Error {
                code: ErrorCode::KeyAlreadyExists,
                ..error
            },
            _ => error,
        })
    }

    /// Puts `to` under a key if its value is `from`.
    ///
    /// # Errors
    /// 20 if the key does not exist; 22 if it has another value.
    pub async fn cas(
        &self,
        key: impl Serialize,
        from: impl Serialize,
        to: impl Serialize,
    ) -> Result<(), Error> {
        self.call(
            "cas",
            &Cas {
                key,
                from,
                to,
                create_if_not_exists: false,
            },
        )
        .await
    }

    /// Puts `to` under a key if its value is `from` or the key does not exist.
    ///
    /// # Errors
    /// 22 if it has another value; 20 from [`Node::lww_kv`] if it does not
    /// exist.
    pub async fn cas_or_create(
        &self,
        key: impl Serialize,
        from: impl Serialize,
        to: impl Serialize,
    ) -> Result<(), Error> {
        self.call(
            "cas",
            &Cas {
                key,
                from,
                to,
                create_if_not_exists: true,
            },
        )
        .await
    }

    /// Replaces the value under a key with the result of `change`, which gets
    /// the old value (`None` if the key does not exist), and returns the new
    /// value. If another node changes the value meanwhile, this method pauses
    /// for a random time and starts again, so `change` may run several times.
    ///
    /// ```
    /// # use hark_node::{Error, Node};
    /// async fn add(node: &Node<()>, delta: i64) -> Result<i64, Error> {
    ///     node.lin_kv().update("sum", |sum: Option<i64>| Ok(sum.unwrap_or(0) + delta)).await
    /// }
    /// ```
    ///
    /// # Errors
    /// The error of `change`; 30 after [`UPDATE_ATTEMPTS_MAX`] conflicts; 0 if a
    /// reply is missing: a change whose reply is missing may have happened, so
    /// it is not repeated.
    pub async fn update<T: Serialize + DeserializeOwned>(
        &self,
        key: impl Serialize,
        mut change: impl FnMut(Option<T>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        // A second attempt could not tell the effect of the first one from a
        // conflict.
        let once = self.clone().retry(Retry {
            attempts: 1,
            ..self.retry
        });
        for conflicts in 1..=UPDATE_ATTEMPTS_MAX {
            // The text is compared, because a `T` may not contain all of it.
            let current: Option<Json> = self.find(&key).await?;
            let parsed = current.as_ref().map(Json::parse).transpose()?;
            let new = change(parsed)?;
            let changed = match &current {
                Some(current) => once.cas(&key, current, &new).await,
                None => once.create(&key, &new).await,
            };
            match changed.map_err(|error| (error.code, error)) {
                Ok(()) => return Ok(new),
                Err((ErrorCode::PreconditionFailed | ErrorCode::KeyAlreadyExists, _)) => {}
                Err((ErrorCode::KeyDoesNotExist, _)) if current.is_some() => {}
                Err((_, error)) => return Err(error),
            }
            let pause = self.core.random_part(UPDATE_BACKOFF.pause_max(conflicts));
            Sleep::new(Rc::clone(&self.core), pause, false).await;
        }
        Err(Error::new(
            ErrorCode::TxnConflict,
            "other nodes kept changing the value",
        ))
    }

    fn call<R: FromReply>(&self, kind: &str, fields: &impl Serialize) -> Call<R> {
        Call::new(Rc::clone(&self.core), self.service, Body::new(kind, fields)).retry(self.retry)
    }
}

/// A client of the timestamp oracle.
#[derive(Clone)]
pub struct Tso {
    core: Rc<Core>,
    retry: Retry,
}

#[derive(Deserialize)]
struct TsOk {
    ts: u64,
}

impl Tso {
    /// Retries after a timeout.
    #[must_use]
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// Returns a timestamp greater than all that were issued before this call
    /// began. The very first timestamp is 0.
    ///
    /// # Errors
    /// 0 if no reply came.
    pub async fn timestamp(&self) -> Result<u64, Error> {
        let call = Call::<TsOk>::new(Rc::clone(&self.core), LIN_TSO, Body::new("ts", &()));
        Ok(call.retry(self.retry).await?.ts)
    }
}
