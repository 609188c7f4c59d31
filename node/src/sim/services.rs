//! The protocol of the services alongside the nodes
//! (<https://github.com/jepsen-io/maelstrom/blob/main/doc/services.md>):
//! requests to operations, and results to replies. The values are in the
//! stores.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::party::{Party, Service};
use super::stores::{Change, LinKv, LwwKv, SeqKv};
use crate::error::{Error, ErrorCode};
use crate::message::{self, Message, MsgId};

pub(super) struct Services {
    lin_kv: LinKv,
    seq_kv: SeqKv,
    lww_kv: LwwKv,
    timestamp: u64,
    /// Messages sent by all of them.
    sent: i64,
}

#[derive(Deserialize)]
struct Read {
    key: Value,
}

#[derive(Deserialize)]
struct Write {
    key: Value,
    value: Value,
}

#[derive(Deserialize)]
struct Cas {
    key: Value,
    from: Value,
    to: Value,
    #[serde(default)]
    create_if_not_exists: bool,
}

#[derive(Serialize)]
struct ReadOk {
    value: Value,
}

#[derive(Serialize)]
struct TsOk {
    ts: u64,
}

impl Services {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            lin_kv: LinKv::default(),
            seq_kv: SeqKv::new(seed),
            lww_kv: LwwKv::new(seed),
            timestamp: 0,
            sent: 0,
        }
    }

    /// Takes a message, and appends the reply to `out`.
    pub(super) fn handle(
        &mut self,
        service: Service,
        now: Duration,
        src: Party,
        line: &[u8],
        out: &mut Vec<u8>,
    ) {
        let Ok(message) = message::parse(line) else {
            return;
        };
        if message.in_reply_to.is_some() {
            return;
        }
        let replied = match (service, &*message.kind) {
            (Service::LinTso, "ts") => {
                let ts = self.timestamp;
                self.timestamp += 1;
                self.reply(&message, "ts_ok", &TsOk { ts }, out)
            }
            (_, "read" | "write" | "cas") if service != Service::LinTso => {
                self.take_change(service, now, src, &message, out)
            }
            // The harness does not answer an unknown request.
            _ => return,
        };
        // A store's value can be represented in JSON, and so can an error.
        replied
            .or_else(|error| self.reply(&message, "error", &error, out))
            .unwrap_or_default();
    }

    /// Appends the error for a client that asks a party that does not exist.
    pub(super) fn refuse(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Ok(message) = message::parse(line) else {
            return;
        };
        let error = Error::new(
            ErrorCode::NodeNotFound,
            format!("there is no {}", message.dest),
        );
        self.reply(&message, "error", &error, out)
            .unwrap_or_default();
    }

    fn take_change(
        &mut self,
        service: Service,
        now: Duration,
        src: Party,
        message: &Message<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let (key, change) = change(message)?;
        let key = key.to_string();
        let value = match service {
            Service::SeqKv => self.seq_kv.apply(src, key, &change),
            Service::LwwKv => self.lww_kv.apply(now, key, &change),
            Service::LinKv | Service::LinTso => self.lin_kv.apply(key, &change),
        }?;
        match change {
            Change::Read => self.reply(message, "read_ok", &ReadOk { value }, out),
            Change::Write(_) => self.reply(message, "write_ok", &(), out),
            Change::Cas { .. } => self.reply(message, "cas_ok", &(), out),
        }
    }

    fn reply(
        &mut self,
        message: &Message<'_>,
        kind: &str,
        fields: &impl Serialize,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        if message.msg_id.is_some() {
            message::open_message(&message.dest, &message.src, out);
            message::open_body(kind, fields, out)?;
            message::close_message(message.msg_id, Some(MsgId(self.sent)), out);
            self.sent += 1;
        }
        Ok(())
    }
}

/// Parses the key of a request, and the operation on it.
fn change(message: &Message<'_>) -> Result<(Value, Change), Error> {
    match &*message.kind {
        "read" => parse(message).map(|Read { key }| (key, Change::Read)),
        "write" => parse(message).map(|Write { key, value }| (key, Change::Write(value))),
        _ => {
            let Cas {
                key,
                from,
                to,
                create_if_not_exists,
            } = parse(message)?;
            Ok((
                key,
                Change::Cas {
                    from,
                    to,
                    creates: create_if_not_exists,
                },
            ))
        }
    }
}

fn parse<'a, T: Deserialize<'a>>(message: &Message<'a>) -> Result<T, Error> {
    let malformed =
        |error: serde_json::Error| Error::new(ErrorCode::MalformedRequest, error.to_string());
    serde_json::from_str(message.body).map_err(malformed)
}
