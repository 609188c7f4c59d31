//! The messages of `BiDiChat`.

#![no_main]

#[path = "../../grpc/tests/any_bytes.rs"]
mod any_bytes;

libfuzzer_sys::fuzz_target!(|data: &[u8]| any_bytes::grpc(data));
