//! A line typed into `hark`.

#![no_main]

#[path = "../../client/tests/it/any_line.rs"]
mod any_line;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_line::command(data));
