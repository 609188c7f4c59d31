//! Measures encoding and decoding of a `send` against a plain copy of the same
//! bytes, and the correlation of a call.
//!
//! `one` is one message per iteration; `thousand` is a buffer of 1,000, so that
//! its µs are ns per message. Run it with `cargo bench -p hark-bench --bench codec`.

#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use bytes::BytesMut;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use hark_protocol::correlation::Correlator;
use hark_protocol::framing::native::{self, ServerCodec};
use hark_protocol::limits::FRAME_BYTES_DEFAULT;
use hark_protocol::{Request, RequestId};
use tokio_util::codec::Decoder;

fn main() {
    divan::main();
}

/// Sizes of the texts, in bytes.
const TEXT_BYTES: [usize; 2] = [100, 10_000];

fn send(text_bytes: usize) -> Request {
    Request::Send {
        user: "user2".parse().unwrap(),
        text: "x".repeat(text_bytes).into(),
    }
}

fn write(request: &Request, count: u32, to: &mut BytesMut) {
    for id in 1..=count {
        native::encode(RequestId::new(id), request, to).unwrap();
    }
}

fn encoded(text_bytes: usize, count: u32) -> BytesMut {
    let mut bytes = BytesMut::new();
    write(&send(text_bytes), count, &mut bytes);
    bytes
}

fn encode(bencher: Bencher<'_, '_>, text_bytes: usize, count: u32) {
    let request = send(text_bytes);
    let mut to = encoded(text_bytes, count);
    bencher
        .counter(BytesCount::new(to.len()))
        .counter(ItemsCount::new(count))
        .bench_local(|| {
            to.clear();
            write(&request, count, &mut to);
            to.len()
        });
}

fn decode(bencher: Bencher<'_, '_>, text_bytes: usize, count: u32) {
    let bytes = encoded(text_bytes, count);
    let mut codec = ServerCodec::new(FRAME_BYTES_DEFAULT);
    bencher
        .counter(BytesCount::new(bytes.len()))
        .counter(ItemsCount::new(count))
        .with_inputs(|| bytes.clone())
        .bench_local_refs(|src| {
            let mut read = 0;
            while let Some(frame) = codec.decode(src).unwrap() {
                divan::black_box(frame);
                read += 1;
            }
            assert_eq!(read, count);
        });
}

/// Measures the baseline: copying the bytes.
fn copy(bencher: Bencher<'_, '_>, text_bytes: usize, count: u32) {
    let bytes = encoded(text_bytes, count);
    let mut to = bytes.clone();
    bencher
        .counter(BytesCount::new(bytes.len()))
        .counter(ItemsCount::new(count))
        .bench_local(|| {
            to.clear();
            to.extend_from_slice(divan::black_box(&bytes));
            to.len()
        });
}

mod one {
    #[divan::bench(args = super::TEXT_BYTES)]
    fn copy(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::copy(bencher, text_bytes, 1);
    }

    #[divan::bench(args = super::TEXT_BYTES)]
    fn encode(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::encode(bencher, text_bytes, 1);
    }

    #[divan::bench(args = super::TEXT_BYTES)]
    fn decode(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::decode(bencher, text_bytes, 1);
    }
}

mod thousand {
    #[divan::bench(args = super::TEXT_BYTES)]
    fn copy(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::copy(bencher, text_bytes, 1_000);
    }

    #[divan::bench(args = super::TEXT_BYTES)]
    fn encode(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::encode(bencher, text_bytes, 1_000);
    }

    #[divan::bench(args = super::TEXT_BYTES)]
    fn decode(bencher: divan::Bencher<'_, '_>, text_bytes: usize) {
        super::decode(bencher, text_bytes, 1_000);
    }
}

mod correlation {
    use super::{Correlator, RequestId};

    type Calls = Correlator<RequestId, u64, u64>;

    /// Numbers of calls that are pending meanwhile.
    const OPEN: [u32; 2] = [0, 1_000];

    /// Returns pending calls and an unused id.
    fn open(count: u32) -> (Calls, RequestId) {
        let calls = Calls::default();
        for id in 1..=count {
            let deadline = Some(u64::from(id));
            calls
                .call_back(RequestId::new(id).unwrap(), deadline, |_| {})
                .unwrap();
        }
        (calls, RequestId::new(count + 1).unwrap())
    }

    #[divan::bench(args = OPEN)]
    fn register_and_complete_a_future(bencher: divan::Bencher<'_, '_>, count: u32) {
        let (calls, id) = open(count);
        bencher.bench_local(|| {
            let call = calls.call(id, Some(500)).unwrap();
            calls.complete(&id, 1).unwrap();
            call
        });
    }

    #[divan::bench(args = OPEN)]
    fn register_and_complete_a_callback(bencher: divan::Bencher<'_, '_>, count: u32) {
        let (calls, id) = open(count);
        bencher.bench_local(|| {
            calls
                .call_back(id, Some(500), divan::black_box_drop)
                .unwrap();
            calls.complete(&id, 1).unwrap();
        });
    }

    #[divan::bench(args = OPEN)]
    fn register_and_drop(bencher: divan::Bencher<'_, '_>, count: u32) {
        let (calls, id) = open(count);
        bencher.bench_local(|| drop(calls.call(id, Some(500)).unwrap()));
    }
}
