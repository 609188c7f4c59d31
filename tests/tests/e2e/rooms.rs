//! Sections "Rooms" and "Devices" of `docs/PROTOCOL.md` with the real server: a
//! conversation over the native framing, over `BiDiChat`, and between the two; and
//! hostile users.

use hark_protocol::message::{LeftReason, RoomEntry, RoomMode};
use hark_protocol::{
    Code, Delivery, Frame, OkFields, Reply, Request, RoomName, RoomReply, RoomRequest, Sequence,
};
use hark_tests::{Classic, Client, Front, Harkd, Wire, name, send};

hark_tests::through_all_fronts!(mod wire, Native, Native,
    members_get_the_messages_after_their_join,
    each_device_gets_every_message,
    unacknowledged_room_message_is_repeated,
    repeated_send_to_room_is_stored_once,
    left_is_the_last_push_of_a_room,
    hidden_room_is_as_absent,
    history_pages_backwards_and_marks_count_unread,
    conversation_ends_with_a_block,
    connect_receives_no_rooms,
    room_names_cannot_be_taken);

hark_tests::through_all_fronts!(mod grpc, Bidi, Bidi,
    members_get_the_messages_after_their_join,
    each_device_gets_every_message,
    left_is_the_last_push_of_a_room,
    history_pages_backwards_and_marks_count_unread,
    connect_receives_no_rooms);

hark_tests::through_all_fronts!(mod wire_to_grpc, Native, Bidi,
    unacknowledged_room_message_is_repeated,
    repeated_send_to_room_is_stored_once);

fn room(text: &str) -> RoomName {
    text.parse().unwrap()
}

fn ask(request: RoomRequest) -> Request {
    Request::Room(request)
}

fn set(text: &str, mode: RoomMode) -> Request {
    ask(RoomRequest::Set {
        room: room(text),
        mode,
        keep_s: None,
    })
}

fn join(text: &str) -> Request {
    ask(RoomRequest::Join(room(text)))
}

/// Creates a user with a password, and logs in.
async fn user(front: Front, server: &Harkd, user: &str) -> Client {
    let mut client = front.connect(server.address()).await;
    client
        .ok(Request::Create {
            user: name(user),
            password: Some("secret".parse().unwrap()),
        })
        .await;
    client
        .ok(Request::Login {
            user: name(user),
            password: Some("secret".parse().unwrap()),
        })
        .await;
    client
}

/// Attaches a device, and returns the waiting messages and the rooms.
async fn attach(client: &mut Client, user: &str, device: &str) -> (u64, usize) {
    let fields = client
        .ok(ask(RoomRequest::Attach {
            user: name(user),
            device: device.parse().unwrap(),
            password: Some("secret".parse().unwrap()),
        }))
        .await;
    fields.as_attached().expect("two numbers")
}

/// Returns the next push, which is of rooms or devices.
async fn push(client: &mut Client) -> RoomReply {
    match client.next().await {
        Some(Frame {
            id: None,
            message: Reply::Room(push),
        }) => push,
        other => panic!("no push of a room but {other:?}"),
    }
}

/// Returns the next message of a room.
async fn said(client: &mut Client, text: &str) -> Delivery {
    match push(client).await {
        RoomReply::Said { room, delivery } if room.as_str() == text => delivery,
        other => panic!("no message of {text} but {other:?}"),
    }
}

/// Sends a text and returns its number.
async fn stored(client: &mut Client, to: &str, text: &str) -> Sequence {
    let fields = client.ok(send(to, text)).await;
    fields.as_stored().expect("a number")
}

async fn ack(client: &mut Client, text: &str, sequence: Sequence) {
    let ack = Request::Ack {
        log: Some(room(text)),
        sequence,
    };
    client.write(0, ack).await;
    client.ping().await;
}

/// Makes a request with an answer of many parts. Returns the parts and the end.
async fn parts(client: &mut Client, request: RoomRequest) -> (Vec<Reply>, OkFields) {
    const ID: u32 = 7;
    client.write(ID, ask(request)).await;
    let mut parts = Vec::new();
    loop {
        match client.reply_to(ID).await {
            Reply::Ok(fields) => return (parts, fields),
            Reply::NotOk(refusal) => panic!("{refusal}"),
            part => parts.push(part),
        }
    }
}

async fn rooms(client: &mut Client) -> Vec<RoomEntry> {
    let (parts, end) = parts(client, RoomRequest::Rooms { pattern: None }).await;
    assert_eq!(end.as_listed(), Some((parts.len(), false)));
    let entry = |part| match part {
        Reply::Room(RoomReply::Room(entry)) => entry,
        other => panic!("{other:?} is no room"),
    };
    parts.into_iter().map(entry).collect()
}

async fn members_get_the_messages_after_their_join(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    stored(&mut amy, "#team", "before").await;
    let mut bob = user(other, &server, "bob").await;
    assert_eq!(attach(&mut bob, "bob", "laptop").await, (0, 0));
    let joined = bob.ok(join("#team")).await.as_joined().unwrap();
    assert_eq!(joined.1, 1, "one message can be read back");
    for text in ["one", "two, and three"] {
        let number = stored(&mut amy, "#team", text).await;
        let message = said(&mut bob, "#team").await;
        assert!(message.sequence > joined.0);
        assert_eq!(
            (message.sequence, message.sender, &*message.text),
            (number, Some(name("amy")), text)
        );
        ack(&mut bob, "#team", number).await;
    }
    let number = stored(&mut bob, "#team", "mine").await;
    assert_eq!(said(&mut bob, "#team").await.sequence, number);
    amy.refused(send("#nowhere", "x"), Code::NoSuchUser).await;
    let mut eve = user(one, &server, "eve").await;
    eve.refused(send("#team", "x"), Code::Denied).await;
}

async fn each_device_gets_every_message(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut laptop = user(other, &server, "bob").await;
    laptop.ok(join("#team")).await;
    attach(&mut laptop, "bob", "laptop").await;
    let mut phone = other.connect(server.address()).await;
    assert_eq!(attach(&mut phone, "bob", "phone").await, (0, 1));
    assert!(matches!(push(&mut laptop).await, RoomReply::Device { .. }));
    stored(&mut amy, "#team", "to all").await;
    stored(&mut amy, "bob", "to bob").await;
    for device in [&mut laptop, &mut phone] {
        let mut texts = Vec::new();
        while texts.len() < 2 {
            match device.next().await.unwrap().message {
                Reply::String(message)
                | Reply::Room(RoomReply::Said {
                    delivery: message, ..
                }) => {
                    texts.push(message.text.to_string());
                }
                other => panic!("no message but {other:?}"),
            }
        }
        texts.sort();
        assert_eq!(texts, ["to all", "to bob"]);
    }
    let (devices, end) = parts(&mut phone, RoomRequest::Devices).await;
    assert_eq!(end.as_listed(), Some((2, false)), "{devices:?}");
    let mut again = other.connect(server.address()).await;
    attach(&mut again, "bob", "phone").await;
    assert!(
        matches!(phone.next().await.unwrap().message, Reply::Bye(_)),
        "the device is taken over"
    );
    assert!(laptop.is_quiet().await, "another device is not");
    let forget = RoomRequest::Forget(Some("phone".parse().unwrap()));
    laptop.ok(ask(forget)).await;
    let (devices, _) = parts(&mut laptop, RoomRequest::Devices).await;
    assert_eq!(devices.len(), 1, "{devices:?}");
}

async fn unacknowledged_room_message_is_repeated(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(other, &server, "bob").await;
    bob.ok(join("#team")).await;
    attach(&mut bob, "bob", "laptop").await;
    let first = stored(&mut amy, "#team", "first").await;
    let second = stored(&mut amy, "#team", "second").await;
    assert_eq!(said(&mut bob, "#team").await.sequence, first);
    assert_eq!(said(&mut bob, "#team").await.sequence, second);
    ack(&mut bob, "#team", first).await;
    drop(bob);
    let server = server.stop_and_restart();
    let mut bob = other.connect(server.address()).await;
    attach(&mut bob, "bob", "laptop").await;
    assert_eq!(said(&mut bob, "#team").await.sequence, second);
    ack(&mut bob, "#team", second).await;
    assert!(bob.is_quiet().await);
}

async fn repeated_send_to_room_is_stored_once(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(other, &server, "bob").await;
    bob.ok(join("#team")).await;
    attach(&mut bob, "bob", "laptop").await;
    let mut numbers = Vec::new();
    for _ in 0..3 {
        let mut amy = one.hello(server.address(), "session").await;
        amy.ok(Request::Login {
            user: name("amy"),
            password: Some("secret".parse().unwrap()),
        })
        .await;
        amy.write(1, send("#team", "once")).await;
        match amy.reply_to(1).await {
            Reply::Ok(fields) => numbers.push(fields.as_stored().unwrap()),
            other => panic!("{other:?}"),
        }
    }
    numbers.dedup();
    assert_eq!(numbers.len(), 1, "one number");
    assert_eq!(said(&mut bob, "#team").await.sequence, numbers[0]);
    assert!(bob.is_quiet().await);
}

async fn left_is_the_last_push_of_a_room(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(other, &server, "bob").await;
    bob.ok(join("#team")).await;
    attach(&mut bob, "bob", "laptop").await;
    let expel = RoomRequest::Expel {
        room: room("#team"),
        user: name("bob"),
    };
    amy.ok(ask(expel)).await;
    let left = |reason| RoomReply::Left {
        room: room("#team"),
        reason,
    };
    assert_eq!(push(&mut bob).await, left(LeftReason::Expelled));
    stored(&mut amy, "#team", "without bob").await;
    assert!(bob.is_quiet().await);
    bob.refused(join("#team"), Code::Denied).await;
    let invite = RoomRequest::Invite {
        room: room("#team"),
        user: name("bob"),
    };
    amy.ok(ask(invite)).await;
    bob.ok(join("#team")).await;
    bob.refused(
        Request::Delete {
            user: name("#team"),
            password: None,
        },
        Code::Denied,
    )
    .await;
    let delete = Request::Delete {
        user: name("#team"),
        password: None,
    };
    let existed = amy.ok(delete.clone()).await.as_deleted();
    assert_eq!(existed, Some(true));
    assert_eq!(push(&mut bob).await, left(LeftReason::Deleted));
    assert_eq!(amy.ok(delete).await.as_deleted(), Some(false));
}

async fn hidden_room_is_as_absent(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#secret", RoomMode::Invite)).await;
    let mut eve = user(other, &server, "eve").await;
    let mut answers = Vec::new();
    for of in ["#secret", "#absent"] {
        let room = room(of);
        let (user, sequence) = (name("amy"), Sequence(1));
        let requests = [
            send(of, "x"),
            join(of),
            ask(RoomRequest::Leave(room.clone())),
            ask(RoomRequest::Invite {
                room: room.clone(),
                user: user.clone(),
            }),
            ask(RoomRequest::Expel {
                room: room.clone(),
                user: user.clone(),
            }),
            ask(RoomRequest::Own {
                room: room.clone(),
                user,
            }),
            ask(RoomRequest::Members {
                room: room.clone(),
                after: None,
            }),
            ask(RoomRequest::History {
                room: room.clone(),
                before: Sequence(0),
                count: 1,
            }),
            ask(RoomRequest::Seen { room, sequence }),
        ];
        let mut explanations = Vec::new();
        for request in requests {
            let explanation = eve.refused(request, Code::NoSuchUser).await;
            explanations.push(explanation.replace(of, "#room"));
        }
        let delete = Request::Delete {
            user: name(of),
            password: None,
        };
        assert_eq!(eve.ok(delete).await.as_deleted(), Some(false));
        answers.push(explanations);
    }
    assert_eq!(answers[0], answers[1], "the explanations agree");
    assert_eq!(rooms(&mut eve).await, []);
    eve.refused(set("#secret", RoomMode::Open), Code::Exists)
        .await;
}

async fn history_pages_backwards_and_marks_count_unread(one: Front, other: Front) {
    const MESSAGES: usize = 300;
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(other, &server, "bob").await;
    bob.ok(join("#team")).await;
    let mut numbers = Vec::new();
    for n in 0..MESSAGES {
        numbers.push(stored(&mut amy, "#team", &n.to_string()).await);
    }
    assert_eq!(rooms(&mut bob).await[0].unread, Some(MESSAGES as u64));
    let (mut before, mut read) = (Sequence(0), Vec::new());
    loop {
        let history = RoomRequest::History {
            room: room("#team"),
            before,
            count: 1000,
        };
        let (page, end) = parts(&mut bob, history).await;
        let (count, oldest) = end.as_past().unwrap();
        assert_eq!(count, page.len());
        if count == 0 {
            assert_eq!(oldest, Sequence(0), "an empty page");
            break;
        }
        assert!(count <= 256 && oldest == numbers[0]);
        for part in page {
            let Reply::Room(RoomReply::Past(message)) = part else {
                panic!("{part:?} is no message")
            };
            before = message.sequence;
            read.push(message.sequence);
        }
    }
    read.reverse();
    assert_eq!(read, numbers);
    for (number, unread) in [
        (numbers[MESSAGES - 11], 10),
        (numbers[0], 10),
        (Sequence(u64::MAX), 0),
    ] {
        let seen = RoomRequest::Seen {
            room: room("#team"),
            sequence: number,
        };
        bob.ok(ask(seen)).await;
        assert_eq!(rooms(&mut bob).await[0].unread, Some(unread));
    }
}

async fn conversation_ends_with_a_block(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    let mut bob = user(other, &server, "bob").await;
    attach(&mut bob, "bob", "laptop").await;
    let talk = ask(RoomRequest::Talk(name("bob")));
    let talking = amy.ok(talk.clone()).await.as_room().unwrap();
    assert_eq!(talking.as_str(), "#=CVTZLVZJEQHWEW4X55T4YWXG26");
    assert!(matches!(push(&mut bob).await, RoomReply::Joined { .. }));
    stored(&mut amy, talking.as_str(), "hello").await;
    assert_eq!(*said(&mut bob, talking.as_str()).await.text, *"hello");
    amy.refused(
        Request::Delete {
            user: name(talking.as_str()),
            password: None,
        },
        Code::Denied,
    )
    .await;
    bob.ok(ask(RoomRequest::Block(name("amy")))).await;
    for to in [talking.as_str(), "bob"] {
        amy.refused(send(to, "again"), Code::Denied).await;
    }
    amy.refused(talk, Code::Denied).await;
    bob.ok(ask(RoomRequest::Unblock(name("amy")))).await;
    stored(&mut amy, "bob", "again").await;
}

async fn connect_receives_no_rooms(one: Front, other: Front) {
    let server = Harkd::start();
    let mut amy = user(one, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(other, &server, "bob").await;
    bob.ok(join("#team")).await;
    let fields = bob
        .ok(Request::Connect {
            user: name("bob"),
            password: Some("secret".parse().unwrap()),
        })
        .await;
    assert_eq!(fields, OkFields::Queued(0));
    stored(&mut amy, "#team", "to the room").await;
    stored(&mut bob, "#team", "also by connect").await;
    stored(&mut amy, "bob", "to bob").await;
    assert_eq!(*bob.message().await.text, *"to bob");
    assert!(bob.is_quiet().await);
}

async fn room_names_cannot_be_taken(one: Front, other: Front) {
    let server = Harkd::builder().args(["--max-owned-rooms", "2"]).start();
    let mut amy = user(one, &server, "amy").await;
    let mut eve = user(other, &server, "eve").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    amy.ok(set("#team", RoomMode::News)).await;
    eve.refused(set("#team", RoomMode::Open), Code::Exists)
        .await;
    eve.refused(
        Request::Create {
            user: name("#team2"),
            password: None,
        },
        Code::BadName,
    )
    .await;
    eve.refused(
        set("#=CVTZLVZJEQHWEW4X55T4YWXG26", RoomMode::Open),
        Code::Denied,
    )
    .await;
    for squatted in ["#one", "#two"] {
        eve.ok(set(squatted, RoomMode::Open)).await;
    }
    eve.refused(set("#three", RoomMode::Open), Code::TooMany)
        .await;
    eve.refused(send("#team", "news"), Code::Denied).await;
}

/// Makes a request in the classic framing, and returns the next block.
async fn classic(client: &mut Classic, command: &str, payload: &str) -> String {
    client.write(&Classic::padded(command, payload)).await;
    let (command, payload) = client.next().await.unwrap();
    format!("{command},{payload}")
}

#[tokio::test]
async fn classic_client_sends_to_rooms_only() {
    let server = Harkd::start();
    let mut amy = Wire::connect(server.address()).await;
    amy.create("amy").await;
    amy.ok(Request::Login {
        user: name("amy"),
        password: None,
    })
    .await;
    amy.ok(set("#team", RoomMode::Open)).await;
    amy.ok(ask(RoomRequest::Attach {
        user: name("amy"),
        device: "laptop".parse().unwrap(),
        password: None,
    }))
    .await;
    let mut bob = Classic::connect(server.address()).await;
    for (command, payload, answer) in [
        ("create", "bob", "ok,"),
        ("connect", "bob", "ok,0"),
        ("join", "#team", "notok,unknown-command,"),
        ("join", "team", "notok,unknown-command,"),
        ("rooms", "", "notok,unknown-command,"),
    ] {
        let answered = classic(&mut bob, command, payload).await;
        assert!(answered.starts_with(answer), "{command} got {answered}");
    }
    let mut bob_native = Wire::connect(server.address()).await;
    bob_native
        .ok(Request::Login {
            user: name("bob"),
            password: None,
        })
        .await;
    bob_native.ok(join("#team")).await;
    let sent = classic(&mut bob, "send", "#team,from an old client").await;
    assert_eq!(sent, "ok,", "without a number");
    match amy.next().await.unwrap().message {
        Reply::Room(RoomReply::Said { delivery, .. }) => {
            assert_eq!(*delivery.text, *"from an old client");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        classic(&mut bob, "ping", "").await,
        "ok,",
        "no push of the room comes first"
    );
}

#[tokio::test]
async fn rooms_obey_the_flags_of_the_operator() {
    for (flags, code) in [
        (&["--rooms", "off"][..], Code::UnknownCommand),
        (&["--rooms", "admin"], Code::Denied),
    ] {
        let server = Harkd::builder().args(flags.iter().copied()).start();
        let mut bob = user(Front::Native, &server, "bob").await;
        bob.refused(set("#team", RoomMode::Open), code).await;
        attach(&mut bob, "bob", "laptop").await;
    }
    let server = Harkd::builder()
        .args(["--list", "admin", "--max-user-rooms", "1"])
        .start();
    let mut amy = user(Front::Native, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let mut bob = user(Front::Native, &server, "bob").await;
    assert_eq!(rooms(&mut bob).await, [], "others' rooms are not listed");
    assert_eq!(rooms(&mut amy).await.len(), 1, "one's own are");
    let members = RoomRequest::Members {
        room: room("#team"),
        after: None,
    };
    amy.refused(ask(members), Code::Denied).await;
    amy.refused(set("#more", RoomMode::Open), Code::TooMany)
        .await;
    let mut anonymous = Wire::connect(server.address()).await;
    for request in [
        RoomRequest::Rooms { pattern: None },
        RoomRequest::Join(room("#team")),
        RoomRequest::Devices,
    ] {
        anonymous.refused(ask(request), Code::Denied).await;
    }
}

#[tokio::test]
async fn retention_is_announced_by_a_gap() {
    let server = Harkd::builder()
        .args(["--max-room-bytes", "1048576"])
        .start();
    let mut senders = Vec::new();
    for n in 0..8 {
        senders.push(user(Front::Native, &server, &format!("user{n}")).await);
    }
    senders[0].ok(set("#team", RoomMode::Open)).await;
    let mut reader = user(Front::Native, &server, "reader").await;
    reader.ok(join("#team")).await;
    attach(&mut reader, "reader", "laptop").await;
    drop(reader);
    let text = "x".repeat(60_000);
    let mut sent = 0;
    for sender in &mut senders {
        sender.ok(join("#team")).await;
        for _ in 0..4 {
            stored(sender, "#team", &text).await;
            sent += 1;
        }
    }
    let mut reader = Front::Native.connect(server.address()).await;
    attach(&mut reader, "reader", "laptop").await;
    let RoomReply::Gap(gap) = push(&mut reader).await else {
        panic!("no gap first")
    };
    assert_eq!(gap.log, Some(room("#team")));
    assert!(gap.count > 0 && gap.from <= gap.to, "{gap:?}");
    drop(reader);
    let mut reader = Front::Native.connect(server.address()).await;
    attach(&mut reader, "reader", "laptop").await;
    let RoomReply::Gap(again) = push(&mut reader).await else {
        panic!("it does not come again")
    };
    assert_eq!(again, gap);
    ack(&mut reader, "#team", again.to).await;
    for _ in gap.count..sent {
        let message = said(&mut reader, "#team").await;
        assert!(message.sequence > gap.to);
        ack(&mut reader, "#team", message.sequence).await;
    }
    assert!(reader.is_quiet().await);
}

#[tokio::test]
async fn silent_member_costs_the_others_nothing() {
    const MESSAGES: usize = 600;
    let server = Harkd::start();
    let mut amy = user(Front::Native, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    let (mut silent, mut bob) = (
        user(Front::Native, &server, "silent").await,
        user(Front::Native, &server, "bob").await,
    );
    for (client, user) in [(&mut silent, "silent"), (&mut bob, "bob")] {
        client.ok(join("#team")).await;
        attach(client, user, "laptop").await;
    }
    let sending = async {
        for n in 0..MESSAGES {
            stored(&mut amy, "#team", &n.to_string()).await;
        }
    };
    let receiving = async {
        for n in 0..MESSAGES {
            let message = said(&mut bob, "#team").await;
            assert_eq!(*message.text, n.to_string());
            let ack = Request::Ack {
                log: Some(room("#team")),
                sequence: message.sequence,
            };
            bob.write(0, ack).await;
        }
    };
    tokio::join!(sending, receiving);
    for n in 0..256 {
        assert_eq!(*said(&mut silent, "#team").await.text, n.to_string());
    }
    assert!(silent.is_quiet().await, "its window is full");
}

#[tokio::test]
async fn history_in_a_loop_does_not_stall_the_chat() {
    const ASKED: u32 = 500;
    let server = Harkd::start();
    let mut amy = user(Front::Native, &server, "amy").await;
    amy.ok(set("#team", RoomMode::Open)).await;
    for n in 0..200 {
        stored(&mut amy, "#team", &format!("{n} {}", "x".repeat(2_000))).await;
    }
    let mut loops = Vec::new();
    for _ in 0..4 {
        let mut greedy = Wire::connect(server.address()).await;
        greedy
            .ok(Request::Login {
                user: name("amy"),
                password: Some("secret".parse().unwrap()),
            })
            .await;
        let history = |_| RoomRequest::History {
            room: room("#team"),
            before: Sequence(0),
            count: 256,
        };
        let asked = (1..=ASKED).map(|id| (id, ask(history(id))));
        // Nothing is read: the answers stay unmade.
        let written =
            tokio::time::timeout(std::time::Duration::from_secs(2), greedy.write_all(asked));
        drop(written.await);
        loops.push(greedy);
    }
    let began = std::time::Instant::now();
    for n in 0..100 {
        stored(&mut amy, "#team", &n.to_string()).await;
    }
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert!(server.resident_bytes() < 300 << 20);
}

#[tokio::test]
async fn thousand_rooms_are_listed_and_received() {
    const ROOMS: u32 = 1_000;
    let server = Harkd::builder()
        .args(["--max-user-rooms", "1000", "--max-owned-rooms", "1000"])
        .start();
    let mut amy = user(Front::Native, &server, "amy").await;
    let named = |n: u32| format!("#room{n:04}");
    amy.write_all((1..=ROOMS).map(|n| (n, set(&named(n), RoomMode::Open))))
        .await;
    for n in 1..=ROOMS {
        let reply = amy.reply_to(n).await;
        assert!(matches!(reply, Reply::Ok(_)), "{n}: {reply:?}");
    }
    assert_eq!(rooms(&mut amy).await.len(), ROOMS as usize);
    let matching = RoomRequest::Rooms {
        pattern: Some("00[0-9]{2}$".into()),
    };
    let (_, end) = parts(&mut amy, matching).await;
    assert_eq!(end.as_listed(), Some((99, false)));
    assert_eq!(attach(&mut amy, "amy", "laptop").await, (0, ROOMS as usize));
    for n in [1, 500, ROOMS] {
        let number = stored(&mut amy, &named(n), "x").await;
        assert_eq!(said(&mut amy, &named(n)).await.sequence, number);
    }
}
