//! The records of the ledger, and messages in a block.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hark_server::fuzzing::records(data));
