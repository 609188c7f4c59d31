//! The segments of the log on disk.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hark_server::fuzzing::segments(data));
