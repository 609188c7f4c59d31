//! Clients for the services that Maelstrom runs beside the nodes
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/services.md>): three
//! stores of keys and values, and one of timestamps. They know the bodies of
//! these services, and not how a call is made.

use std::rc::Rc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::call::{Call, ONCE, Retry};
use crate::core::Core;
use crate::error::{Error, ErrorCode};
use crate::message::Body;
use crate::node::Node;

/// The name of the linearizable store.
pub const LIN_KV: &str = "lin-kv";
/// The name of the sequentially consistent store.
pub const SEQ_KV: &str = "seq-kv";
/// The name of the store in which the last write wins.
pub const LWW_KV: &str = "lww-kv";
/// The name of the service that gives out timestamps.
pub const LIN_TSO: &str = "lin-tso";

impl<S: 'static> Node<S> {
    /// The linearizable store: an operation sees all that ended before it began.
    #[must_use]
    pub fn lin_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), LIN_KV)
    }

    /// The sequentially consistent store: all see the same changes in the same
    /// order, and each its own at once, but others' perhaps late.
    #[must_use]
    pub fn seq_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), SEQ_KV)
    }

    /// The store in which the last write wins, by clocks that differ: what was
    /// written may be seen late, and may be lost to another write.
    #[must_use]
    pub fn lww_kv(&self) -> Kv {
        Kv::new(Rc::clone(self.core()), LWW_KV)
    }

    /// The service that gives out timestamps.
    #[must_use]
    pub fn lin_tso(&self) -> Tso {
        Tso { core: Rc::clone(self.core()), retry: ONCE }
    }
}

/// A client of a store of keys and values. A key may be anything that has a
/// form in JSON; mostly it is a string.
///
/// Every operation ends with what the service answers as an error, and with
/// error 0 where nothing came in time: what it should do has happened then, or
/// has not, or will.
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
        Self { core, service, retry: ONCE }
    }

    /// Tries again, and does not wait 1 s once. A `cas` that is tried again may
    /// find what its first attempt has done, and end with error 22 although it
    /// has happened.
    #[must_use]
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The value under a key.
    ///
    /// # Errors
    /// 20, where there is none; 13, where it is no `T`.
    pub async fn read<T: DeserializeOwned>(&self, key: impl Serialize) -> Result<T, Error> {
        let reply = self.call("read", &Read { key }).await?;
        Ok(reply.parse::<ReadOk<T>>()?.value)
    }

    /// As [`Self::read`], but `None` where there is no value.
    ///
    /// # Errors
    /// 13, where the value is no `T`.
    pub async fn find<T: DeserializeOwned>(&self, key: impl Serialize) -> Result<Option<T>, Error> {
        match self.read(key).await {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.code == ErrorCode::KeyDoesNotExist => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts a value under a key.
    ///
    /// # Errors
    /// 0, where no answer came.
    pub async fn write(&self, key: impl Serialize, value: impl Serialize) -> Result<(), Error> {
        self.call("write", &Write { key, value }).await.map(drop)
    }

    /// Puts `to` under a key, if `from` is there.
    ///
    /// # Errors
    /// 20, where nothing is there, and 22, where it is something else.
    pub async fn cas(
        &self,
        key: impl Serialize,
        from: impl Serialize,
        to: impl Serialize,
    ) -> Result<(), Error> {
        let cas = Cas { key, from, to, create_if_not_exists: false };
        self.call("cas", &cas).await.map(drop)
    }

    /// Puts `to` under a key, if `from` is there or nothing.
    ///
    /// # Errors
    /// 22, where something else is there.
    pub async fn cas_or_create(
        &self,
        key: impl Serialize,
        from: impl Serialize,
        to: impl Serialize,
    ) -> Result<(), Error> {
        let cas = Cas { key, from, to, create_if_not_exists: true };
        self.call("cas", &cas).await.map(drop)
    }

    fn call(&self, kind: &str, fields: &impl Serialize) -> Call {
        Call::new(Rc::clone(&self.core), self.service, Body::new(kind, fields)).retry(self.retry)
    }
}

/// A client of the service that gives out timestamps.
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
    /// Tries again, and does not wait 1 s once.
    #[must_use]
    pub const fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// A timestamp greater than all that were given out before this began.
    ///
    /// # Errors
    /// 0, where no answer came.
    pub async fn timestamp(&self) -> Result<u64, Error> {
        let call = Call::new(Rc::clone(&self.core), LIN_TSO, Body::new("ts", &()));
        let reply = call.retry(self.retry).await?;
        Ok(reply.parse::<TsOk>()?.ts)
    }
}
