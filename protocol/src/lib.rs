//! The Hark wire protocol: messages, framings, limits and the correlation of
//! replies with requests.
//!
//! This crate has no I/O, no clock and no randomness: bytes and times come in
//! as arguments. `docs/PROTOCOL.md` is the page that it implements.
//!
//! | module | what it owns |
//! | --- | --- |
//! | [`message`] | [`Request`] and [`Reply`] |
//! | [`code`] | why something was refused, failed or ended |
//! | [`name`] | user names, passwords, session tokens, request ids, sequence numbers |
//! | [`framing`] | the native and the classic framing, as codecs |
//! | [`limits`] | every bound of the protocol |
//! | [`correlation`] | which reply belongs to which waiting call |

pub mod code;
pub mod correlation;
pub mod framing;
pub mod limits;
pub mod message;
pub mod name;

pub use code::{ByeReason, Code, Failure, Refusal};
pub use framing::{Frame, Incoming, ProtocolError};
pub use message::{Delivery, OkFields, Reply, Request};
pub use name::{Password, RequestId, Sequence, SessionToken, UserName};
