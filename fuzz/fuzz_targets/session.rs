//! A whole chat over the memory store, as a list of operations.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hark_server::fuzzing::session(data));
