//! A connection of HTTP/1.1: its first bytes, its heads and its requests.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hark_server::fuzzing::http(data));
