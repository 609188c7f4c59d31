//! The records of the stores, and the files of the engine as they are checked.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hark_server::fuzzing::records(data));
