//! What holds for any bytes at all. The fuzz targets `native` and `classic` run
//! these, and the tests in [`crate`] with bytes that are nearly right.

use std::fmt::Debug;

use bytes::BytesMut;
use hark_protocol::framing::classic::{self, ClassicClientCodec, ClassicServerCodec};
use hark_protocol::framing::native::{self, NativeCodec};
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES, LENGTH_BYTES};
use hark_protocol::message::Message;
use hark_protocol::{Frame, Incoming, Malformed, Reply, Request};
use tokio_util::codec::{Decoder, Encoder as _};

use crate::reader::Reader;

/// The largest frame of the connections that take any bytes.
pub(crate) const LARGEST: usize = 40_000;

/// What a decoder leaves a buffer to grow to by itself.
const SMALL: usize = 16 * 1024;

/// The classic decoder makes this of its buffer, at most.
const CLASSIC_CAPACITY_MAX: usize = 8 * CLASSIC_BLOCK_BYTES;

/// Reads all but the first byte as the native framing, as a server and as a
/// client do: at once, and in pieces that are by 1 longer than the first byte
/// says.
pub(crate) fn native(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    read_natively::<Request, Reply>(bytes, usize::from(*piece) + 1);
    read_natively::<Reply, Request>(bytes, usize::from(*piece) + 1);
}

fn read_natively<In: Message + PartialEq + Debug, Out>(bytes: &[u8], piece: usize) {
    let read = |piece| {
        let mut reader = Reader::new(NativeCodec::<In, Out>::new(LARGEST));
        let result = read_in_pieces(&mut reader, bytes, piece);
        let allowed = SMALL.max(LENGTH_BYTES + LARGEST);
        assert!(reader.capacity_max <= allowed, "{} over {allowed}", reader.capacity_max);
        result
    };
    let at_once = read(bytes.len());
    assert_eq!(read(piece), at_once);
    for Frame { id, message } in at_once.0 {
        match message {
            Ok(message) => check_said_again(Frame { id, message }),
            Err(malformed) => check_said_again(Frame { id, message: Reply::NotOk(malformed.refusal) }),
        }
    }
}

/// What comes of these pieces: the items, and the error that ends them.
fn read_in_pieces<D: Decoder<Error: Debug>>(
    reader: &mut Reader<D>,
    bytes: &[u8],
    piece: usize,
) -> (Vec<D::Item>, Option<String>) {
    let mut items = Vec::new();
    let error = bytes.chunks(piece.max(1)).find_map(|bytes| reader.read_into(bytes, &mut items).err());
    (items, error.map(|error| format!("{error:?}")))
}

/// What came in can be said, and arrives as itself.
fn check_said_again<M: Message + PartialEq + Debug>(frame: Frame<M>) {
    let mut bytes = BytesMut::new();
    native::encode(frame.id, &frame.message, &mut bytes).unwrap();
    let mut reader = Reader::new(NativeCodec::<M, M>::new(bytes.len()));
    let Frame { id, message } = frame;
    assert_eq!(reader.read(&bytes).unwrap(), [Incoming { id, message: Ok(message) }]);
}

/// The bit of a read's head that says that nothing follows for a while.
pub(crate) const GIVES_UP: u16 = 1 << 15;

/// The bits of a read's head that say how many bytes it has.
pub(crate) const READ_BYTES: u16 = (1 << 13) - 1;

/// Reads the bytes as the classic framing: as a client does, and as a server
/// does, in reads of which each has a head of two bytes, little endian
/// ([`READ_BYTES`], [`GIVES_UP`]).
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
        // What is kept is what the next call looks at again.
        assert!(reader.buffer.len() < CLASSIC_BLOCK_BYTES + COMMAND_BYTES);
        assert!(bytes.is_empty() || reader.buffer.capacity() - reader.buffer.len() > CLASSIC_BLOCK_BYTES);
        take_classically(items, &mut requests);
        if head & GIVES_UP != 0 {
            reader.decoder.give_up_on_fields();
            take_classically(reader.decode().unwrap(), &mut requests);
            let awaits = reader.decoder.awaits_fields(&reader.buffer);
            assert!(!awaits || reader.buffer.len() == COMMAND_BYTES);
        }
        assert!(reader.capacity_max <= CLASSIC_CAPACITY_MAX, "{}", reader.capacity_max);
    }
    check_in_blocks(requests);
}

fn take_classically(items: Vec<Result<Request, Malformed>>, requests: &mut Vec<Request>) {
    for item in items {
        match item {
            Ok(request) => {
                let is_native = matches!(request, Request::Hello { .. } | Request::Ack { .. });
                assert!(!is_native, "{request:?}");
                check_said_again(Frame::new(None, request.clone()));
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

/// The requests arrive as themselves in padded blocks, all in one read.
fn check_in_blocks(requests: Vec<Request>) {
    let mut blocks = BytesMut::new();
    for request in &requests {
        ClassicClientCodec.encode(request.clone(), &mut blocks).unwrap();
    }
    let read = Reader::new(ClassicServerCodec::default()).read(&blocks).unwrap();
    assert_eq!(read, requests.into_iter().map(Ok).collect::<Vec<_>>());
}

/// As a client that reads 1024 bytes at a time.
fn read_blocks(bytes: &[u8]) {
    let read = |piece| {
        let mut reader = Reader::new(ClassicClientCodec);
        let (items, error) = read_in_pieces(&mut reader, bytes, piece);
        assert_eq!((items.len(), error), (bytes.len() / CLASSIC_BLOCK_BYTES, None));
        assert!(reader.capacity_max <= SMALL, "{}", reader.capacity_max);
        items
    };
    assert_eq!(read(bytes.len()), read(7));
}

#[test]
fn any_bytes_are_read_alike_in_any_pieces_and_in_bounded_memory() {
    hark_seeds::check("native", native);
}

#[test]
fn any_bytes_are_requests_or_refused_in_bounded_memory() {
    hark_seeds::check("classic", classic);
}
