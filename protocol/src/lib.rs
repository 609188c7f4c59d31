#![doc = include_str!("../README.md")]
//!
//! | module | contents |
//! | --- | --- |
//! | [`message`] | [`Request`] and [`Reply`] |
//! | [`code`] | codes of refusals, failures and `bye` |
//! | [`name`] | names of users, rooms, devices and tokens, passwords, session tokens, request ids, sequence numbers |
//! | [`framing`] | the native and the classic framing, as codecs |
//! | [`limits`] | the bounds of the protocol |
//! | [`correlation`] | matching of replies to pending calls |

pub mod code;
pub mod correlation;
pub mod framing;
pub mod limits;
pub mod message;
pub mod name;

pub use code::{ByeReason, Code, Failure, Refusal};
pub use framing::{Frame, Incoming, Malformed, ProtocolError};
pub use message::{Delivery, OkFields, Push, Reply, Request, RoomReply, RoomRequest};
pub use name::{
    DeviceName, Password, RequestId, RoomName, Sequence, SessionToken, TokenName, UserName,
};
