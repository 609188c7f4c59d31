//! The Hark wire protocol: messages, framings, limits and the correlation of
//! replies with requests.
//!
//! This crate has no I/O, no clock and no randomness: bytes and times are
//! arguments. It implements `docs/PROTOCOL.md`.
//!
//! | module | contents |
//! | --- | --- |
//! | [`message`] | [`Request`] and [`Reply`] |
//! | [`code`] | codes of refusals, failures and `bye` |
//! | [`name`] | user names, passwords, session tokens, request ids, sequence numbers |
//! | [`framing`] | the native and the classic framing, as codecs |
//! | [`limits`] | the bounds of the protocol |
//! | [`correlation`] | matching of replies to pending calls |
//!
//! ```
//! use bytes::BytesMut;
//! use hark_protocol::framing::native::{ClientCodec, ServerCodec};
//! use hark_protocol::limits::FRAME_BYTES_DEFAULT;
//! use hark_protocol::{Frame, Request, RequestId};
//! use tokio_util::codec::{Decoder, Encoder};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let request = Request::Send { user: "bob".parse()?, text: "hello, again".into() };
//! let mut bytes = BytesMut::new();
//! ClientCodec::new(FRAME_BYTES_DEFAULT).encode(Frame::new(RequestId::new(7), request.clone()), &mut bytes)?;
//! let frame = ServerCodec::new(FRAME_BYTES_DEFAULT).decode(&mut bytes)?.ok_or("incomplete")?;
//! assert_eq!(frame, Frame::new(RequestId::new(7), Ok(request)));
//! # Ok(())
//! # }
//! ```

pub mod code;
pub mod correlation;
pub mod framing;
pub mod limits;
pub mod message;
pub mod name;

pub use code::{ByeReason, Code, Failure, Refusal};
pub use framing::{Frame, Incoming, Malformed, ProtocolError};
pub use message::{Delivery, OkFields, Push, Reply, Request};
pub use name::{Password, RequestId, Sequence, SessionToken, UserName};
