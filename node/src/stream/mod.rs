//! Streams: requests with many replies, and conversations.
//!
//! A *server stream* is one request that is answered by any number of items and
//! an end. A *bidirectional stream* is opened, takes any number of messages,
//! each of which gets one answer, and is closed. [`Services`] serves both;
//! `open_stream` and `open_bidi` of [`Node`](crate::Node) use those of another
//! node. The deadline of requests does not apply to streams, which are bounded
//! by [`IDLE_MAX`].
//!
//! ```
//! use hark_node::stream::{Bidi, Services, Sink};
//! use hark_node::{Error, Node, Request};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct Number {
//!     n: u64,
//! }
//!
//! /// Adds up the numbers of its client.
//! struct Sum(u64);
//!
//! impl Bidi<()> for Sum {
//!     type In = Number;
//!     type Out = Number;
//!
//!     async fn receive(&mut self, _: &Node<()>, Number { n }: Number) -> Result<Number, Error> {
//!         self.0 += n;
//!         Ok(Number { n: self.0 })
//!     }
//! }
//!
//! fn program(node: &Node<()>) {
//!     let services = Services::new(node);
//!     services.server_stream("Math", "Count", async |_, to: Number, sink: Sink<Number>| {
//!         (1..=to.n).try_for_each(|n| sink.send(&Number { n }))
//!     });
//!     services.bidi("Math", "Sum", |_, _| Ok(Sum(0)));
//! }
//!
//! # fn check(input: &str, output: &[&str]) {
//! let mut machine = hark_node::Machine::new(program, 0);
//! # let init = r#"{"src": "c", "body": {"type": "init", "msg_id": 1, "node_id": "n1", "node_ids": []}}"#;
//! # machine.handle_line(Default::default(), init.as_bytes());
//! # let request = format!(r#"{{"src": "c", "body": {input}}}"#);
//! # machine.handle_line(Default::default(), request.as_bytes());
//! # let mut text = Vec::new();
//! # machine.take_output(&mut text);
//! # let text = String::from_utf8(text).unwrap();
//! # let lines: Vec<_> = text.lines().skip(1).collect();
//! # let expected: Vec<_> = output.iter().map(|body| format!(r#"{{"src": "n1", "dest": "c", "body": {body}}}"#)).collect();
//! # assert_eq!(lines, expected);
//! # }
//! # check(
//! #     r#"{"type": "grpc_server_stream", "msg_id": 7, "service": "Math", "method": "Count", "request": {"n": 2}}"#,
//! #     &[
//! #         r#"{"type": "grpc_stream_msg", "seq": 1, "data": {"n": 1}, "in_reply_to": 7, "msg_id": 1}"#,
//! #         r#"{"type": "grpc_stream_msg", "seq": 2, "data": {"n": 2}, "in_reply_to": 7, "msg_id": 2}"#,
//! #         r#"{"type": "grpc_stream_end", "status": "OK", "count": 2, "in_reply_to": 7, "msg_id": 3}"#,
//! #     ],
//! # );
//! ```
//!
//! # On the wire
//!
//! | request | fields | answered by |
//! | --- | --- | --- |
//! | `grpc_server_stream` | `service`, `method`, `request` (absent: `{}`) | `grpc_stream_msg` with `seq` from 1 and `data`, repeatedly; then `grpc_stream_end` with `status` and `count` |
//! | `grpc_stream_cancel` | `request_id`: the `msg_id` of the stream's request | nothing; the stream's request is answered by `grpc_stream_end` with the status `CANCELLED` |
//! | `grpc_bidi_stream_open` | `service`, `method` | `grpc_bidi_stream_open_ok` with `stream_id` |
//! | `grpc_bidi_stream_send` | `stream_id`, `data` | `grpc_bidi_stream_recv` with `data` |
//! | `grpc_bidi_stream_close` | `stream_id` | `grpc_stream_end` with `status` and `count`, after all earlier messages |
//!
//! `grpc_stream_cancel` is an addition of this library. It applies to streams of
//! its sender; a cancellation for an unknown stream is ignored, because it may
//! have crossed the end.
//!
//! | error | reason |
//! | --- | --- |
//! | 10 | there is no such service or method |
//! | 11 | a bound is reached: [`STREAMS_PER_CLIENT_MAX`], [`CLIENTS_MAX`] or [`WAITING_MAX`] |
//! | 12 | the request or message is not of the service's type; a stream continues |
//! | 13 | the service has panicked, which ends the stream |
//! | 14 | a server stream was idle for [`IDLE_MAX`], or a message waited for a service that has panicked |
//! | 20 | the client has opened no such stream, or one before the last [`CLOSED_MAX`] that were closed |
//! | 22 | the stream is closed or half-closed, or was idle for [`IDLE_MAX`] |
//!
//! A second close gets 22, not 20, and so does a message after the close: the
//! stream existed and is closed.

mod bidi;
mod client;
pub mod frame;
mod inbox;
mod server;
mod services;
mod table;
mod wire;

use std::time::Duration;

pub use bidi::Bidi;
pub use client::{BidiStream, ServerStream};
pub use inbox::ITEMS_MAX;
pub(crate) use inbox::Inbox;
pub use server::Sink;
pub use services::Services;
pub use table::{CLIENTS_MAX, CLOSED_MAX, STREAMS_PER_CLIENT_MAX, WAITING_MAX};
pub use wire::{CANCELLED, End, OK};

/// The time after which an idle stream ends: a bidirectional stream whose client
/// sends nothing and whose service has nothing to do, and a server stream whose
/// service sends nothing.
pub const IDLE_MAX: Duration = Duration::from_secs(600);
