//! Properties of the decoders for arbitrary bytes. The fuzz targets `native`
//! and `classic` run these functions; the tests in [`crate`] pass them nearly
//! valid input.

use std::fmt::Debug;

use bytes::BytesMut;
use hark_protocol::framing::classic::{self, ClassicClientCodec, ClassicServerCodec};
use hark_protocol::framing::native::{self, NativeCodec};
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES, LENGTH_BYTES};
use hark_protocol::message::Message;
use hark_protocol::{Frame, Incoming, Malformed, Reply, Request};
use tokio_util::codec::{Decoder, Encoder as _};

use crate::reader::Reader;

/// Largest frame in bytes of the connections under test.
pub(crate) const LARGEST: usize = 40_000;

/// Capacity in bytes up to which a decoder leaves the buffer's growth alone.
const SMALL: usize = 16 * 1024;

/// Upper limit for the capacity of the classic decoder's buffer, in bytes.
const CLASSIC_CAPACITY_MAX: usize = 8 * CLASSIC_BLOCK_BYTES;

/// Decodes all but the first byte as the native framing, on the server's and on
/// the client's side: in one read, and in pieces of the first byte's value plus
/// 1.
pub(crate) fn native(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else {
        return;
    };
    decode_native::<Request, Reply>(bytes, usize::from(*piece) + 1);
    decode_native::<Reply, Request>(bytes, usize::from(*piece) + 1);
}

fn decode_native<In: Message + PartialEq + Debug, Out>(bytes: &[u8], piece: usize) {
    let read = |piece| {
        let mut reader = Reader::new(NativeCodec::<In, Out>::new(LARGEST));
        let result = read_in_pieces(&mut reader, bytes, piece);
        let allowed = SMALL.max(LENGTH_BYTES + LARGEST);
        assert!(
            reader.capacity_max <= allowed,
            "{} over {allowed}",
            reader.capacity_max
        );
        result
    };
    let at_once = read(bytes.len());
    assert_eq!(read(piece), at_once);
    for Frame { id, message } in at_once.0 {
        match message {
            Ok(message) => check_round_trip(Frame { id, message }),
            Err(malformed) => check_round_trip(Frame {
                id,
                message: Reply::NotOk(malformed.refusal),
            }),
        }
    }
}

/// Returns the items decoded from these pieces, and the error that ends them.
fn read_in_pieces<D: Decoder<Error: Debug>>(
    reader: &mut Reader<D>,
    bytes: &[u8],
    piece: usize,
) -> (Vec<D::Item>, Option<String>) {
    let mut items = Vec::new();
    let error = bytes
        .chunks(piece.max(1))
        .find_map(|bytes| reader.read_into(bytes, &mut items).err());
    (items, error.map(|error| format!("{error:?}")))
}

/// Encodes a decoded frame and checks that it decodes to itself.
fn check_round_trip<M: Message + PartialEq + Debug>(frame: Frame<M>) {
    let mut bytes = BytesMut::new();
    native::encode(frame.id, &frame.message, &mut bytes).unwrap();
    let mut reader = Reader::new(NativeCodec::<M, M>::new(bytes.len()));
    let Frame { id, message } = frame;
    assert_eq!(
        reader.read(&bytes).unwrap(),
        [Incoming {
            id,
            message: Ok(message)
        }]
    );
}

/// Bit of a read's header: a timeout follows the read.
pub(crate) const GIVES_UP: u16 = 1 << 15;

/// Bits of a read's header: its length in bytes.
pub(crate) const READ_BYTES: u16 = (1 << 13) - 1;

/// Decodes the bytes as the classic framing: on the client's side, and on the
/// server's side in reads that each begin with a header of two bytes, little
/// endian ([`READ_BYTES`], [`GIVES_UP`]).
pub(crate) fn classic(data: &[u8]) {
    read_blocks(data);
    let mut reader = Reader::new(ClassicServerCodec::default());
    let (mut requests, mut rest) = (Vec::new(), data);
    while let Some((head, after)) = rest.split_first_chunk::<2>() {
        let head = u16::from_le_bytes(*head);
        let (bytes, after) = after.split_at(usize::from(head & READ_BYTES).min(after.len()));
        rest = after;
        let known = reader.buffer.len() + bytes.len();
        let items = reader.read(bytes).unwrap();
        assert!(items.len() <= known);
        // The next call examines the retained bytes again.
        assert!(reader.buffer.len() < CLASSIC_BLOCK_BYTES + COMMAND_BYTES);
        assert!(
            bytes.is_empty()
                || reader.buffer.capacity() - reader.buffer.len() > CLASSIC_BLOCK_BYTES
        );
        check_classic_items(items, &mut requests);
        if head & GIVES_UP != 0 {
            reader.decoder.give_up_on_fields();
            check_classic_items(reader.decode().unwrap(), &mut requests);
            let awaits = reader.decoder.awaits_fields(&reader.buffer);
            assert!(!awaits || reader.buffer.len() == COMMAND_BYTES);
        }
        assert!(
            reader.capacity_max <= CLASSIC_CAPACITY_MAX,
            "{}",
            reader.capacity_max
        );
    }
    check_in_blocks(requests);
}

fn check_classic_items(items: Vec<Result<Request, Malformed>>, requests: &mut Vec<Request>) {
    for item in items {
        match item {
            Ok(request) => {
                let is_native = matches!(
                    request,
                    Request::Hello { .. } | Request::Ack { .. } | Request::Room(_)
                );
                assert!(!is_native, "{request:?}");
                check_round_trip(Frame::new(None, request.clone()));
                requests.push(request);
            }
            Err(Malformed { refusal, .. }) => {
                let mut bytes = BytesMut::new();
                classic::encode(&Reply::NotOk(refusal), &mut bytes);
                assert_eq!(bytes.len(), CLASSIC_BLOCK_BYTES);
            }
        }
    }
}

/// Checks that the requests survive encoding as padded blocks, read at once.
fn check_in_blocks(requests: Vec<Request>) {
    let mut blocks = BytesMut::new();
    for request in &requests {
        ClassicClientCodec
            .encode(request.clone(), &mut blocks)
            .unwrap();
    }
    let read = Reader::new(ClassicServerCodec::default())
        .read(&blocks)
        .unwrap();
    assert_eq!(read, requests.into_iter().map(Ok).collect::<Vec<_>>());
}

/// Decodes as a client that reads 1024 bytes at a time.
fn read_blocks(bytes: &[u8]) {
    let read = |piece| {
        let mut reader = Reader::new(ClassicClientCodec);
        let (items, error) = read_in_pieces(&mut reader, bytes, piece);
        assert_eq!(
            (items.len(), error),
            (bytes.len() / CLASSIC_BLOCK_BYTES, None)
        );
        assert!(reader.capacity_max <= SMALL, "{}", reader.capacity_max);
        items
    };
    assert_eq!(read(bytes.len()), read(7));
}

#[test]
fn native_decoding_is_independent_of_fragmentation() {
    hark_seeds::check("native", native);
}

#[test]
fn classic_decoding_of_any_bytes_is_bounded() {
    hark_seeds::check("classic", classic);
}
