//! The Hark chat server, as a library; `harkd` is its binary.

pub mod session;
pub mod store;
