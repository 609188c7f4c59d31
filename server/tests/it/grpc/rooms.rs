//! The calls of rooms and devices, and `Attach`.

use std::sync::Arc;

use hark_grpc::v1::attach_reply::Event;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::history_reply::Event as Past;
use hark_grpc::v1::{
    AckRequest, AttachReply, AttachRequest, Credentials, DeleteRequest, DevicesRequest,
    ForgetRequest, HistoryRequest, JoinRequest, LeaveRequest, MemberRequest, MembersRequest,
    RoomEntry, RoomRequest, RoomsRequest, SeenRequest, SendRequest, TalkRequest, UserRequest,
};
use hark_server::shard::{ShardConfig, ShardStore};
use hark_server::store::{Operation, Store};
use tonic::Streaming;
use tonic::transport::Channel;

use super::server::{LIMITS, RULES, Server, code};

const TEAM: &str = "#team";

fn as_user(user: &str) -> Option<Credentials> {
    Some(Credentials {
        user: user.to_owned(),
        password: String::new(),
    })
}

fn team(mode: &str) -> RoomRequest {
    RoomRequest {
        room: TEAM.to_owned(),
        mode: mode.to_owned(),
        keep_s: None,
        login: as_user("amy"),
    }
}

fn join(user: &str) -> JoinRequest {
    JoinRequest {
        room: TEAM.to_owned(),
        login: as_user(user),
    }
}

fn member(user: &str) -> MemberRequest {
    MemberRequest {
        room: TEAM.to_owned(),
        user: user.to_owned(),
        login: as_user("amy"),
    }
}

async fn send(client: &mut ChatClient<Channel>, from: &str, to: &str, text: &str) -> u64 {
    let request = SendRequest {
        to: to.to_owned(),
        text: text.to_owned(),
        login: as_user(from),
        idempotency: None,
    };
    let stored = client.send(request).await.unwrap().into_inner();
    stored.sequence.unwrap()
}

async fn attach(client: &mut ChatClient<Channel>, user: &str) -> (String, Streaming<AttachReply>) {
    let request = AttachRequest {
        user: user.to_owned(),
        password: String::new(),
        device: "laptop".to_owned(),
    };
    let mut events = client.attach(request).await.unwrap().into_inner();
    match next(&mut events).await {
        Event::Connected(connected) => (connected.receipt, events),
        other => panic!("{other:?} is not `connected`"),
    }
}

async fn next(events: &mut Streaming<AttachReply>) -> Event {
    let event = events.message().await.unwrap().expect("an event");
    event.event.expect("a known event")
}

/// Collects the items of a stream.
async fn all<T>(mut items: Streaming<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(item) = items.message().await.unwrap() {
        all.push(item);
    }
    all
}

async fn rooms(client: &mut ChatClient<Channel>, user: &str) -> Vec<RoomEntry> {
    let request = RoomsRequest {
        pattern: "^#t".to_owned(),
        login: as_user(user),
    };
    let rooms = client.rooms(request).await.unwrap().into_inner();
    let rooms = all(rooms).await.into_iter();
    rooms.map(|reply| reply.room.expect("a room")).collect()
}

#[tokio::test]
async fn calls_manage_rooms_and_members() {
    let server = Server::start().await;
    let mut client = server.client_and(&["amy", "bob"]).await;
    client.room(team("open")).await.unwrap();
    let joined = client.join(join("bob")).await.unwrap().into_inner();
    assert!(joined.last > 0 && joined.held == 0);
    client.own(member("bob")).await.unwrap();
    let members = MembersRequest {
        room: TEAM.to_owned(),
        after: String::new(),
        login: as_user("bob"),
    };
    let members = client.members(members).await.unwrap().into_inner();
    let names = all(members).await.into_iter().flat_map(|page| page.names);
    assert_eq!(names.collect::<Vec<_>>(), ["amy", "bob"]);
    let refused = client.expel(member("bob")).await.unwrap_err();
    assert_eq!(code(&refused).1, "denied", "bob is an owner");
    let leave = LeaveRequest {
        room: TEAM.to_owned(),
        login: as_user("bob"),
    };
    client.leave(leave.clone()).await.unwrap();
    client.leave(leave).await.unwrap();
    client.expel(member("bob")).await.unwrap();
    let refused = client.join(join("bob")).await.unwrap_err();
    assert_eq!(code(&refused).1, "denied");
    client.invite(member("bob")).await.unwrap();
    client.join(join("bob")).await.unwrap();
    let entry = rooms(&mut client, "bob").await.remove(0);
    assert_eq!(
        (&*entry.name, &*entry.mode, entry.members, entry.unread),
        (TEAM, "open", 2, Some(0))
    );
    let delete = DeleteRequest {
        user: TEAM.to_owned(),
        password: String::new(),
        login: as_user("amy"),
    };
    assert!(client.delete(delete).await.unwrap().into_inner().existed);
    assert_eq!(rooms(&mut client, "bob").await, []);
}

#[tokio::test]
async fn attach_receives_inbox_and_rooms_and_acknowledges_each() {
    let server = Server::start().await;
    let mut client = server.client_and(&["amy", "bob"]).await;
    client.room(team("open")).await.unwrap();
    client.join(join("bob")).await.unwrap();
    let (receipt, mut events) = attach(&mut client, "bob").await;
    let first = send(&mut client, "amy", TEAM, "to the room").await;
    let second = send(&mut client, "amy", "bob", "to bob").await;
    let (mut said, mut direct) = (None, None);
    for _ in 0..2 {
        match next(&mut events).await {
            Event::Said(message) => said = message.message,
            Event::Message(message) => direct = Some(message),
            other => panic!("no message but {other:?}"),
        }
    }
    assert_eq!(said.map(|message| message.sequence), Some(first));
    assert_eq!(direct.map(|message| message.sequence), Some(second));
    let ack = |room: Option<&str>, sequence| AckRequest {
        receipt: receipt.clone(),
        sequence,
        room: room.map(str::to_owned),
    };
    client.ack(ack(Some(TEAM), first)).await.unwrap();
    let refused = client.ack(ack(Some(TEAM), second)).await.unwrap_err();
    assert_eq!(code(&refused).1, "bad-request", "it is of another log");
    drop(events);
    let (_, mut events) = attach(&mut client, "bob").await;
    match next(&mut events).await {
        Event::Message(message) => assert_eq!(message.sequence, second),
        other => panic!("the inbox is unacknowledged: {other:?}"),
    }
}

#[tokio::test]
async fn history_marks_and_devices_are_called() {
    let server = Server::start().await;
    let mut client = server.client_and(&["amy", "bob"]).await;
    client.room(team("open")).await.unwrap();
    client.join(join("bob")).await.unwrap();
    let mut numbers = Vec::new();
    for text in ["one", "two", "three"] {
        numbers.push(send(&mut client, "amy", TEAM, text).await);
    }
    let history = HistoryRequest {
        room: TEAM.to_owned(),
        before: numbers[2],
        count: 10,
        login: as_user("bob"),
    };
    let history = client.history(history).await.unwrap().into_inner();
    let events = all(history).await.into_iter();
    let events: Vec<_> = events.map(|reply| reply.event.unwrap()).collect();
    let [Past::Past(newer), Past::Past(older), Past::Oldest(oldest)] = &*events else {
        panic!("{events:?} are not two messages and the end")
    };
    assert_eq!((&*newer.text, &*older.text), ("two", "one"));
    assert_eq!(*oldest, numbers[0]);
    let seen = SeenRequest {
        room: TEAM.to_owned(),
        sequence: numbers[1],
        login: as_user("bob"),
    };
    client.seen(seen).await.unwrap();
    assert_eq!(rooms(&mut client, "bob").await[0].unread, Some(1));
    drop(attach(&mut client, "bob").await);
    let devices = || DevicesRequest {
        login: as_user("bob"),
    };
    let listed = client.devices(devices()).await.unwrap().into_inner();
    let listed = all(listed).await;
    let device = listed[0].device.as_ref().unwrap();
    assert_eq!((listed.len(), &*device.name), (1, "laptop"));
    let forget = ForgetRequest {
        device: "laptop".to_owned(),
        login: as_user("bob"),
    };
    client.forget(forget).await.unwrap();
    let listed = client.devices(devices()).await.unwrap().into_inner();
    assert_eq!(all(listed).await, []);
}

#[tokio::test]
async fn blocked_user_cannot_send() {
    let server = Server::start().await;
    let mut client = server.client_and(&["amy", "bob"]).await;
    let block = UserRequest {
        user: "amy".to_owned(),
        login: as_user("bob"),
    };
    client.block(block.clone()).await.unwrap();
    let request = SendRequest {
        to: "bob".to_owned(),
        text: "x".to_owned(),
        login: as_user("amy"),
        idempotency: None,
    };
    let refused = client.send(request).await.unwrap_err();
    assert_eq!(
        (code(&refused).1, refused.message()),
        ("denied", "bob has blocked you")
    );
    client.unblock(block).await.unwrap();
    send(&mut client, "amy", "bob", "x").await;
    let talk = TalkRequest {
        user: "bob".to_owned(),
        login: as_user("amy"),
    };
    let refused = client.talk(talk).await.unwrap_err();
    assert_eq!(code(&refused).1, "denied", "the users have no passwords");
}

/// A store without rooms and devices.
#[derive(Debug)]
struct Roomless(ShardStore);

impl Store for Roomless {
    fn submit(&self, operation: Operation) {
        self.0.submit(operation);
    }

    fn is_available(&self) -> bool {
        self.0.is_available()
    }
}

#[tokio::test]
async fn server_without_rooms_does_not_know_their_commands() {
    let config = ShardConfig {
        numbers_after: Some(0),
        ..ShardConfig::DEFAULT
    };
    let store = Arc::new(Roomless(ShardStore::memory(config).unwrap()));
    let server = Server::start_on(store, RULES, LIMITS).await;
    let mut client = server.client_and(&["amy"]).await;
    let request = AttachRequest {
        user: "amy".to_owned(),
        password: String::new(),
        device: "laptop".to_owned(),
    };
    let refused = [
        client.attach(request).await.map(drop).unwrap_err(),
        client.room(team("open")).await.map(drop).unwrap_err(),
        client.join(join("amy")).await.map(drop).unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(code(&refused).1, "unknown-command");
    }
}
