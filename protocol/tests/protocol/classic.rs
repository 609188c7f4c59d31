//! The classic framing: its rules one by one, padded blocks under any permitted
//! fragmentation, bare messages, and arbitrary bytes.

use bytes::BytesMut;
use hark_protocol::framing::classic::{self, ClassicClientCodec, ClassicServerCodec};
use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};
use hark_protocol::message::Message;
use hark_protocol::{Code, Delivery, Malformed, Refusal, Reply, Request, Sequence, UserName};
use proptest::prelude::*;
use proptest::sample::Index;
use tokio_util::codec::{Decoder, Encoder};

use crate::any_bytes::{self, GIVES_UP, READ_BYTES};
use crate::reader::{Reader, pieces};
use crate::strategies::{classic_text, common_request, delivery, user_name};

/// A decoded request, or the code of its refusal.
type Outcome = Result<Request, Code>;

const PAYLOAD_BYTES: usize = CLASSIC_BLOCK_BYTES - COMMAND_BYTES;

fn server() -> Reader<ClassicServerCodec> {
    Reader::new(ClassicServerCodec::default())
}

fn read(reader: &mut Reader<ClassicServerCodec>, bytes: &[u8]) -> Vec<Outcome> {
    outcomes(reader.read(bytes).unwrap())
}

/// Decodes as if the time to wait for more had passed.
fn give_up(reader: &mut Reader<ClassicServerCodec>) -> Vec<Outcome> {
    reader.decoder.give_up_on_fields();
    outcomes(reader.decode().unwrap())
}

fn outcomes(items: Vec<Result<Request, Malformed>>) -> Vec<Outcome> {
    items
        .into_iter()
        .map(|item| item.map_err(|malformed| malformed.refusal.code))
        .collect()
}

fn awaits_fields(reader: &Reader<ClassicServerCodec>) -> bool {
    reader.decoder.awaits_fields(&reader.buffer)
}

fn bare(request: &Request) -> Vec<u8> {
    let mut payload = BytesMut::new();
    request.write_payload(&mut payload);
    let mut message = request.command().as_bytes().to_vec();
    message.resize(COMMAND_BYTES, 0);
    message.extend_from_slice(&payload);
    message
}

fn block(request: &Request) -> Vec<u8> {
    let mut block = bare(request);
    assert!(block.len() <= CLASSIC_BLOCK_BYTES);
    block.resize(CLASSIC_BLOCK_BYTES, 0);
    block
}

fn send(text: &str) -> Request {
    Request::Send {
        user: "bob".parse().unwrap(),
        text: text.to_owned().into(),
    }
}

/// Returns a `send` of `bytes` bytes in all.
fn send_of(bytes: usize) -> Request {
    send(&"x".repeat(bytes - COMMAND_BYTES - "bob,".len()))
}

fn create(name: &str) -> Request {
    Request::Create {
        user: name.parse().unwrap(),
        password: None,
    }
}

/// Checks the outcomes of consecutive reads.
#[track_caller]
fn check_reads(reads: &[&[u8]], expected: &[Outcome]) {
    let mut reader = server();
    let outcomes: Vec<_> = reads
        .iter()
        .flat_map(|bytes| read(&mut reader, bytes))
        .collect();
    assert_eq!(outcomes, expected);
}

#[test]
fn bare_message_ends_with_its_read() {
    check_reads(
        &[
            b"create\0\0\0\0\0\0\0\0\0bob",
            b"send\0\0\0\0\0\0\0\0\0\0\0bob,hello, there\nyou",
        ],
        &[Ok(create("bob")), Ok(send("hello, there\nyou"))],
    );
}

#[test]
fn fewer_than_15_bytes_wait_for_more() {
    check_reads(
        &[b"pi", b"ng\0\0\0\0\0\0\0\0\0", b"\0", b"\0"],
        &[Ok(Request::Ping)],
    );
}

#[test]
fn payload_ending_in_nul_waits_for_full_block() {
    let mut reader = server();
    let block = block(&send("hello"));
    assert_eq!(read(&mut reader, &block[..30]), []);
    assert_eq!(read(&mut reader, &block[30..1023]), []);
    assert!(!awaits_fields(&reader));
    assert_eq!(give_up(&mut reader), []);
    assert_eq!(read(&mut reader, &block[1023..]), [Ok(send("hello"))]);
}

#[test]
fn command_waits_for_required_fields() {
    let mut reader = server();
    assert_eq!(read(&mut reader, b"create\0\0\0\0\0\0\0\0\0"), []);
    assert!(awaits_fields(&reader));
    assert_eq!(read(&mut reader, b"bob"), [Ok(create("bob"))]);
    assert!(!awaits_fields(&reader));
}

#[test]
fn command_without_required_fields_is_refused() {
    let mut reader = server();
    assert_eq!(read(&mut reader, b"create\0\0\0\0\0\0\0\0\0"), []);
    assert_eq!(give_up(&mut reader), [Err(Code::BadRequest)]);
    assert!(reader.buffer.is_empty());
}

#[test]
fn late_timeout_does_not_affect_next_command() {
    let mut reader = server();
    assert_eq!(read(&mut reader, b"create\0\0\0\0\0\0\0\0\0"), []);
    assert_eq!(read(&mut reader, b"bob"), [Ok(create("bob"))]);
    assert_eq!(give_up(&mut reader), []);
    assert_eq!(read(&mut reader, b"create\0\0\0\0\0\0\0\0\0"), []);
    assert!(awaits_fields(&reader));
    assert_eq!(read(&mut reader, b"alice"), [Ok(create("alice"))]);
}

#[test]
fn command_without_required_fields_is_taken_at_once() {
    check_reads(
        &[
            b"list\0\0\0\0\0\0\0\0\0\0\0",
            b"ping\0\0\0\0\0\0\0\0\0\0\0",
            b"disconnect\0\0\0\0\0",
            b"nonsense\0\0\0\0\0\0\0",
        ],
        &[
            Ok(Request::List { pattern: None }),
            Ok(Request::Ping),
            Ok(Request::Disconnect),
            Err(Code::UnknownCommand),
        ],
    );
}

#[test]
fn several_blocks_in_one_read_are_several_messages() {
    let blocks = [
        block(&create("bob")),
        block(&send("one")),
        block(&Request::Ping),
    ]
    .concat();
    check_reads(
        &[&blocks],
        &[Ok(create("bob")), Ok(send("one")), Ok(Request::Ping)],
    );
}

#[test]
fn unpadded_blocks_are_split_at_next_command() {
    let full = send_of(1024);
    let blocks = [block(&full), block(&full), block(&Request::Ping)].concat();
    check_reads(&[&blocks], &[Ok(full.clone()), Ok(full), Ok(Request::Ping)]);
}

#[test]
fn unpadded_block_waits_for_whole_next_command() {
    let full = send_of(1024);
    let blocks = [block(&full), block(&create("bob"))].concat();
    let mut reader = server();
    assert_eq!(read(&mut reader, &blocks[..1025]), []);
    assert!(awaits_fields(&reader));
    assert_eq!(read(&mut reader, &blocks[1025..1038]), []);
    assert!(awaits_fields(&reader));
    assert_eq!(read(&mut reader, &blocks[1038..1039]), [Ok(full)]);
    assert!(
        awaits_fields(&reader),
        "now for the fields of the second one"
    );
    assert_eq!(read(&mut reader, &blocks[1039..]), [Ok(create("bob"))]);
}

#[test]
fn nuls_before_a_command_are_skipped() {
    check_reads(
        &[
            b"\0\0\0",
            b"\0ping\0\0\0\0\0\0\0\0\0\0\0",
            b"\0\0create\0\0\0\0\0\0\0\0\0bob",
            &[0; 3_000],
        ],
        &[Ok(Request::Ping), Ok(create("bob"))],
    );
}

#[test]
fn bare_message_of_1024_bytes_is_complete() {
    check_reads(&[&bare(&send_of(1024))], &[Ok(send_of(1024))]);
}

#[test]
fn overlong_bare_message_is_refused_once() {
    let long = bare(&send_of(3_000));
    check_reads(
        &[
            &long[..1_500],
            &long[1_500..1_600],
            &long[1_600..],
            b"ping\0\0\0\0\0\0\0\0\0\0\0",
        ],
        &[Err(Code::TooLarge), Ok(Request::Ping)],
    );
}

#[test]
fn overlong_message_resembling_a_block_is_refused() {
    for end in ["s", "se", "ping"] {
        let long = bare(&send(&format!(
            "{}{end}",
            "x".repeat(1024 - COMMAND_BYTES - "bob,".len())
        )));
        let mut reader = server();
        assert_eq!(read(&mut reader, &long), []);
        assert!(awaits_fields(&reader));
        assert_eq!(give_up(&mut reader), [Err(Code::TooLarge)]);
        assert!(!awaits_fields(&reader));
        assert_eq!(
            read(&mut reader, &bare(&create("bob"))),
            [Ok(create("bob"))]
        );
    }
}

#[test]
fn message_behind_overlong_message_is_taken() {
    let rest = [
        &bare(&send_of(1_200))[..],
        &block(&create("bob")),
        &bare(&Request::Ping),
    ]
    .concat();
    check_reads(
        &[&rest],
        &[Err(Code::TooLarge), Ok(create("bob")), Ok(Request::Ping)],
    );
}

#[test]
fn buffer_end_never_splits_a_bare_message() {
    let mut reader = server();
    // Every message is retained, so that the buffer shrinks as messages are
    // taken.
    let mut held = Vec::new();
    for bytes in (20..=1024).rev().chain(20..=1024) {
        held.extend(read(&mut reader, &bare(&send_of(bytes))));
        assert_eq!(held.pop(), Some(Ok(send_of(bytes))), "of {bytes} bytes");
        held.push(Ok(send_of(bytes)));
    }
    assert_eq!(held.len(), 2 * 1005);
}

#[test]
fn invalid_utf_8_is_refused_and_decoding_continues() {
    check_reads(
        &[
            b"list\0\0\0\0\0\0\0\0\0\0\0\xff",
            b"ping\0\0\0\0\0\0\0\0\0\0\0",
        ],
        &[Err(Code::BadRequest), Ok(Request::Ping)],
    );
}

#[test]
fn commands_of_native_framing_are_refused() {
    check_reads(
        &[
            b"hello\0\0\0\0\0\0\0\0\0\x001,token",
            b"ack\0\0\0\0\0\0\0\0\0\0\0\x001",
        ],
        &[Err(Code::BadRequest), Err(Code::BadRequest)],
    );
}

#[test]
fn client_refuses_message_larger_than_a_block() {
    let mut dst = BytesMut::new();
    assert!(ClassicClientCodec.encode(send_of(1025), &mut dst).is_err());
    assert!(dst.is_empty());
    assert!(ClassicClientCodec.encode(send_of(1024), &mut dst).is_ok());
}

/// Returns the commands and payloads that a classic client receives.
fn received(reply: &Reply) -> Vec<(String, String)> {
    let mut bytes = BytesMut::new();
    classic::encode(reply, &mut bytes);
    assert_eq!(bytes.len() % CLASSIC_BLOCK_BYTES, 0);
    let messages = Reader::new(ClassicClientCodec).read(&bytes).unwrap();
    messages
        .into_iter()
        .map(|message| {
            message
                .map(|(command, payload)| (command.to_string(), payload.to_string()))
                .unwrap()
        })
        .collect()
}

fn delivered(text: &str) -> Vec<String> {
    let reply = Reply::String(Delivery {
        sequence: Sequence(1),
        sender: None,
        time_ms: 0,
        text: text.to_owned().into(),
    });
    received(&reply)
        .into_iter()
        .map(|(command, text)| {
            assert_eq!(command, "string");
            text
        })
        .collect()
}

#[test]
fn long_text_is_split_between_characters() {
    assert_eq!(
        delivered(&"x".repeat(PAYLOAD_BYTES)),
        ["x".repeat(PAYLOAD_BYTES)]
    );
    assert_eq!(
        delivered(&"x".repeat(PAYLOAD_BYTES + 1)),
        ["x".repeat(PAYLOAD_BYTES), "x".to_owned()]
    );
    let begin = "x".repeat(PAYLOAD_BYTES - 1);
    assert_eq!(
        delivered(&format!("{begin}é!")),
        [begin.clone(), "é!".to_owned()]
    );
    assert_eq!(delivered(&format!("{begin}🦀")), [begin, "🦀".to_owned()]);
}

#[test]
fn a_list_is_split_between_names() {
    let names: Vec<UserName> = (0..300)
        .map(|i| format!("user-number-{i}").parse().unwrap())
        .collect();
    let lists = received(&Reply::List(names.clone()));
    assert!(lists.len() > 1);
    assert!(lists.iter().all(|(command, _)| command == "list"));
    let joined = lists
        .into_iter()
        .map(|(_, names)| names)
        .collect::<Vec<_>>()
        .join(",");
    assert_eq!(
        joined,
        names
            .iter()
            .map(UserName::as_str)
            .collect::<Vec<_>>()
            .join(",")
    );
}

#[test]
fn list_that_fills_a_block_is_not_split() {
    for (last_bytes, blocks) in [(17, 1), (18, 2)] {
        // 62 names of 15 bytes and as many commas leave 17 bytes.
        let lengths = std::iter::repeat_n(15, 62).chain([last_bytes]);
        let names = lengths
            .map(|bytes| "x".repeat(bytes).parse().unwrap())
            .collect();
        assert_eq!(received(&Reply::List(names)).len(), blocks);
    }
}

#[test]
fn long_explanation_is_truncated_between_characters() {
    let refusal = Refusal::new(Code::Denied, "é".repeat(1_000));
    let messages = received(&Reply::NotOk(refusal));
    assert_eq!(
        messages,
        [("notok".to_owned(), format!("denied,{}", "é".repeat(501)))]
    );
}

/// Returns whether a cut at `at` falls inside a payload, or directly before the
/// payload of a command that does not wait for one.
fn is_inside_payload(blocks: &[Vec<u8>], at: usize) -> bool {
    let Some(block) = blocks.get(at / CLASSIC_BLOCK_BYTES) else {
        return false;
    };
    let end = block.iter().rposition(|&b| b != 0).unwrap() + 1;
    let begin = if block.starts_with(b"list") {
        COMMAND_BYTES
    } else {
        COMMAND_BYTES + 1
    };
    (begin..end).contains(&(at % CLASSIC_BLOCK_BYTES))
}

fn classic_request() -> impl Strategy<Value = Request> {
    common_request(classic_text())
}

proptest! {
    #[test]
    fn padded_blocks_decode_under_any_fragmentation(
        requests in proptest::collection::vec(classic_request(), 0..6), cuts in any::<Vec<Index>>(),
    ) {
        let blocks: Vec<_> = requests.iter().map(block).collect();
        let bytes = blocks.concat();
        let cuts: Vec<usize> = cuts
            .iter()
            .map(|cut| cut.index(bytes.len() + 1))
            .flat_map(|at| [at, at % CLASSIC_BLOCK_BYTES, at - at % 17])
            .filter(|&at| !is_inside_payload(&blocks, at))
            .collect();
        let mut reader = server();
        let mut outcomes = Vec::new();
        for piece in pieces(&bytes, &cuts) {
            outcomes.extend(read(&mut reader, piece));
        }
        prop_assert_eq!(outcomes, requests.into_iter().map(Ok).collect::<Vec<_>>());
        prop_assert!(reader.buffer.iter().all(|&b| b == 0));
    }

    #[test]
    fn bare_messages_decode_one_per_read(
        requests in proptest::collection::vec(classic_request(), 0..12),
    ) {
        let mut reader = server();
        for request in requests {
            prop_assert_eq!(read(&mut reader, &bare(&request)), [Ok(request)]);
            prop_assert!(reader.buffer.is_empty());
        }
    }

    #[test]
    fn no_part_of_an_overlong_message_is_taken(
        text in "[a-z ]{1,8}", bytes in 1025..5_000usize, cuts in any::<Vec<Index>>(),
    ) {
        let text: String = text.chars().cycle().take(bytes - COMMAND_BYTES - "bob,".len()).collect();
        let message = bare(&send(&text));
        // The first read shows that the message is too long.
        let cuts: Vec<_> = cuts.iter().map(|cut| 1025 + cut.index(message.len() - 1024)).collect();
        let mut reader = server();
        let mut outcomes = Vec::new();
        for piece in pieces(&message, &cuts) {
            outcomes.extend(read(&mut reader, piece));
        }
        if awaits_fields(&reader) {
            outcomes.extend(give_up(&mut reader));
        }
        outcomes.extend(read(&mut reader, &bare(&Request::Ping)));
        prop_assert_eq!(outcomes, [Err(Code::TooLarge), Ok(Request::Ping)]);
    }

    #[test]
    fn nearly_valid_reads_are_bounded(
        reads in proptest::collection::vec(hostile_read(), 0..20),
    ) {
        let head = |bytes: &[u8], gives_up: bool| {
            let length = u16::try_from(bytes.len()).unwrap().min(READ_BYTES);
            (length | if gives_up { GIVES_UP } else { 0 }).to_le_bytes()
        };
        let reads = reads.iter().map(|(bytes, gives_up)| [&head(bytes, *gives_up)[..], bytes].concat());
        any_bytes::classic(&reads.collect::<Vec<_>>().concat());
    }

    #[test]
    fn text_takes_as_few_blocks_as_possible(delivery in delivery()) {
        // A classic client cannot distinguish trailing NULs from padding.
        let parts = delivered(&delivery.text.replace('\0', "0"));
        prop_assert!(parts.iter().rev().skip(1).all(|part| part.len() > PAYLOAD_BYTES - 4));
        prop_assert_eq!(parts.concat(), delivery.text.replace('\0', "0"));
    }

    #[test]
    fn split_list_has_every_name(names in proptest::collection::vec(user_name(), 1..200)) {
        let lists: Vec<_> = received(&Reply::List(names.clone())).into_iter().map(|(_, names)| names).collect();
        let names: Vec<_> = names.iter().map(UserName::as_str).collect();
        prop_assert_eq!(lists.join(","), names.join(","));
    }
}

/// Returns nearly valid messages, and whether a timeout follows.
fn hostile_read() -> impl Strategy<Value = (Vec<u8>, bool)> {
    let part = prop_oneof![
        classic_request().prop_map(|request| bare(&request)),
        classic_request().prop_map(|request| block(&request)),
        (0..2_000usize).prop_map(|bytes| vec![0; bytes]),
        (0..2_000usize).prop_map(|bytes| vec![b's'; bytes]),
        "(create|list|send|ping|s){0,3}".prop_map(String::into_bytes),
        proptest::collection::vec(any::<u8>(), 0..40),
    ];
    let bytes = (proptest::collection::vec(part, 0..4), any::<Index>()).prop_map(|(parts, end)| {
        let mut bytes = parts.concat();
        bytes.truncate(end.index(bytes.len() + 1));
        bytes
    });
    (bytes, any::<bool>())
}

#[test]
fn overlong_message_byte_by_byte_is_not_retained() {
    let mut codec = ClassicServerCodec::default();
    let mut src = BytesMut::new();
    let long = bare(&send_of(1_025));
    src.extend_from_slice(&long);
    assert!(matches!(codec.decode(&mut src), Ok(Some(Err(_)))));
    for _ in 0..100_000 {
        src.extend_from_slice(b"c");
        assert!(matches!(codec.decode(&mut src), Ok(None)));
        assert!(
            src.len() < COMMAND_BYTES,
            "only what may begin a command is kept"
        );
    }
}
