//! The input lines of `hark-node`.

#![no_main]

#[path = "../../node/tests/it/any_lines.rs"]
mod any_lines;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_lines::lines(data));
