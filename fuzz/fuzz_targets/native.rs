//! The native framing, as a server and as a client read it.

#![no_main]

#[path = "../../protocol/tests/protocol/any_bytes.rs"]
#[allow(dead_code, reason = "the other framing has a target of its own")]
mod any_bytes;
#[path = "../../protocol/tests/protocol/reader.rs"]
#[allow(dead_code, reason = "the tests of the protocol need more of it")]
mod reader;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::native(data));
