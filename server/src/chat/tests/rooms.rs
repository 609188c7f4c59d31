//! Rooms, from the commands to the pushes, over a store in memory.

use std::sync::Arc;
use std::time::Duration;

use hark_protocol::message::LeftReason;
use hark_protocol::{Code, OkFields, Reply, Request, RoomRequest, Sequence};
use tokio::time::timeout;

use super::devices::{Client, Pushed, chat, chat_with, room, user};
use crate::chat::{Chat, Fault, Inbox, MayCreateRooms, Rules};
use crate::shard::{RoomLimits, ShardConfig, ShardStore};

fn config() -> ShardConfig {
    ShardConfig {
        numbers_after: Some(0),
        ..ShardConfig::DEFAULT
    }
}

fn memory(config: ShardConfig) -> Arc<Chat> {
    chat(Arc::new(ShardStore::memory(config).unwrap()))
}

/// Returns a chat with users, of which the first has created `#team`.
async fn team(users: &[&str]) -> (Arc<Chat>, Vec<Client>) {
    team_with(config(), users).await
}

async fn team_with(config: ShardConfig, users: &[&str]) -> (Arc<Chat>, Vec<Client>) {
    team_in(memory(config), users).await
}

async fn team_in(chat: Arc<Chat>, users: &[&str]) -> (Arc<Chat>, Vec<Client>) {
    let mut clients = Vec::new();
    for name in users {
        let create = Request::Create {
            user: user(name),
            password: None,
        };
        Client::new(&chat).ok(create).await;
        clients.push(Client::attach(&chat, name, "phone").await);
    }
    clients[0].create_room("#team").await;
    (chat, clients)
}

fn said(number: u64, text: &str) -> Pushed {
    Pushed::Said("#team".to_owned(), number, text.to_owned())
}

fn join() -> RoomRequest {
    RoomRequest::Join(room("#team"))
}

fn leave() -> RoomRequest {
    RoomRequest::Leave(room("#team"))
}

#[tokio::test]
async fn members_get_messages_on_all_devices() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    let mut laptop = Client::attach(&chat, "bob", "laptop").await;
    assert_eq!(bob.pushes(1).await, [Pushed::Device("laptop".to_owned())]);
    amy.say("#team", "before").await;
    bob.room(join()).await;
    assert_eq!(laptop.pushes(1).await, [Pushed::Joined("#team".to_owned())]);
    let number = amy.say("#team", "x").await;
    for reader in [bob, &mut laptop] {
        assert_eq!(reader.pushes(1).await, [said(number, "x")]);
        assert!(reader.pushes.is_empty());
    }
    assert_eq!(
        amy.pushes(2).await.last(),
        Some(&said(number, "x")),
        "its own"
    );
}

#[tokio::test]
async fn reply_to_a_send_precedes_its_own_push() {
    let (_, mut clients) = team(&["amy"]).await;
    let amy = &mut clients[0];
    for nth in 0..200 {
        let number = amy.say("#team", "x").await;
        assert!(amy.pushes.is_empty(), "message {nth}");
        assert_eq!(amy.pushes(1).await, [said(number, "x")]);
        amy.ack("#team", number);
    }
}

#[tokio::test]
async fn messages_below_the_leave_come_before_it() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let mut control = Client::login(&chat, "bob").await;
    let mut numbers = Vec::new();
    for _ in 0..300 {
        numbers.push(amy.say("#team", "x").await);
    }
    control.room(leave()).await;
    amy.say("#team", "after").await;
    // The window is full: the rest and the end wait for acknowledgements.
    let pushed = bob.pushes(256).await;
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
    assert_eq!(pushed.last(), Some(&said(numbers[255], "x")));
    bob.ack("#team", numbers[255]);
    let pushed = bob.pushes(45).await;
    let left = Pushed::Left("#team".to_owned(), LeftReason::Left);
    assert_eq!(pushed[43], said(numbers[299], "x"));
    assert_eq!(pushed[44], left, "the last push");
    bob.ack("#team", numbers[299]);
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
}

#[tokio::test]
async fn rejoin_begins_at_the_new_number() {
    let (_, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let first = amy.say("#team", "1").await;
    bob.room(leave()).await;
    amy.say("#team", "2").await;
    let OkFields::Joined(last, held) = bob.room(join()).await else {
        panic!("no fields")
    };
    assert_eq!(held, 2);
    let third = amy.say("#team", "3").await;
    assert!(last.0 < third);
    // Its own end of the membership is not pushed to the device.
    assert_eq!(bob.pushes(2).await, [said(first, "1"), said(third, "3")]);
}

#[tokio::test]
async fn deleted_room_is_no_part_of_its_successor() {
    let (_, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let first = amy.say("#team", "old").await;
    assert_eq!(bob.pushes(1).await, [said(first, "old")]);
    let delete = Request::Delete {
        user: user("#team"),
        password: None,
    };
    amy.ok(delete).await;
    assert_eq!(
        bob.pushes(1).await,
        [Pushed::Left("#team".to_owned(), LeftReason::Deleted)]
    );
    amy.create_room("#team").await;
    let send = Request::Send {
        user: user("#team"),
        text: "x".into(),
    };
    assert_eq!(bob.refused(send).await, Code::Denied);
    bob.room(join()).await;
    bob.ack("#team", first);
    let number = amy.say("#team", "new").await;
    assert_eq!(bob.pushes(1).await, [said(number, "new")]);
}

#[tokio::test]
async fn expelled_member_learns_of_it() {
    let (_, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let number = amy.say("#team", "x").await;
    let expel = RoomRequest::Expel {
        room: room("#team"),
        user: user("bob"),
    };
    amy.room(expel).await;
    amy.say("#team", "y").await;
    let left = Pushed::Left("#team".to_owned(), LeftReason::Expelled);
    assert_eq!(bob.pushes(2).await, [said(number, "x"), left]);
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
}

#[tokio::test]
async fn unacknowledged_messages_come_again() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let one = amy.say("#team", "1").await;
    let two = amy.say("#team", "2").await;
    assert_eq!(bob.pushes(2).await, [said(one, "1"), said(two, "2")]);
    bob.ack("#team", one);
    let mut again = Client::attach(&chat, "bob", "phone").await;
    assert_eq!(again.pushes(1).await, [said(two, "2")]);
    assert_eq!(bob.pushes(1).await, [Pushed::Bye]);
    let three = amy.say("#team", "3").await;
    assert_eq!(again.pushes(1).await, [said(three, "3")]);
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
}

#[tokio::test]
async fn lagging_member_learns_of_removed_messages() {
    let rooms = RoomLimits {
        room_bytes_max: 600_000,
        ..RoomLimits::DEFAULT
    };
    let config = ShardConfig { rooms, ..config() };
    let users = ["amy", "bob", "cat", "dan", "eve", "fay"];
    let (chat, mut clients) = team_with(config, &users).await;
    for client in &mut clients[1..] {
        client.room(join()).await;
    }
    let lagging = clients.remove(1);
    drop(lagging);
    // No sender may have more than a quarter of the room.
    let text = "x".repeat(10_000);
    let mut numbers = Vec::new();
    for _ in 0..12 {
        for sender in &mut clients[..] {
            numbers.push(sender.say("#team", &text).await);
            sender.pushes.clear();
            sender.ack("#team", numbers[numbers.len() - 1]);
        }
    }
    let mut bob = Client::attach(&chat, "bob", "phone").await;
    let pushed = bob.pushes(2).await;
    let Pushed::Gap(log, from, to, count) = &pushed[0] else {
        panic!("{:?}", pushed[0])
    };
    assert_eq!(log, "#team");
    assert!(*from <= numbers[0] && *count > 0);
    let removed = numbers.iter().filter(|number| **number <= *to).count();
    assert_eq!(removed as u64, *count);
    assert_eq!(pushed[1], said(numbers[removed], &text), "the next message");
    // The gap comes again until it is acknowledged.
    let to = *to;
    let mut bob = Client::attach(&chat, "bob", "phone").await;
    assert_eq!(bob.pushes(1).await[0], pushed[0]);
    bob.ack("#team", to);
    let mut bob = Client::attach(&chat, "bob", "phone").await;
    assert_eq!(bob.pushes(1).await[0], pushed[1]);
}

#[tokio::test]
async fn long_inbox_leaves_no_room_starved() {
    let (_, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    for _ in 0..300 {
        amy.say("bob", "x").await;
    }
    let number = amy.say("#team", "y").await;
    // Its answer comes after the first message has woken the members.
    amy.say("#team", "z").await;
    let pushed = bob.pushes(256).await;
    assert!(pushed[..17].contains(&said(number, "y")), "a turn is 16");
}

#[tokio::test]
async fn slow_member_reads_the_store() {
    let (_, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    // More than a ring holds. Half of them is sent without waiting for the reader.
    let mut numbers = Vec::new();
    for nth in 0..1500 {
        numbers.push(amy.say("#team", &nth.to_string()).await);
        amy.pushes.clear();
        amy.ack("#team", numbers[nth]);
    }
    for (nth, number) in numbers.iter().enumerate() {
        if bob.pushes.is_empty() {
            assert_eq!(bob.next().await, None);
        }
        assert_eq!(bob.pushes.remove(0), said(*number, &nth.to_string()));
        bob.ack("#team", *number);
    }
}

#[tokio::test]
async fn read_mark_reaches_other_devices() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(join()).await;
    let mut laptop = Client::attach(&chat, "bob", "laptop").await;
    assert_eq!(bob.pushes(1).await, [Pushed::Device("laptop".to_owned())]);
    let number = amy.say("#team", "x").await;
    let seen = RoomRequest::Seen {
        room: room("#team"),
        sequence: Sequence(number),
    };
    bob.room(seen).await;
    let mark = Pushed::Seen("#team".to_owned(), number);
    let pushed = laptop.pushes(2).await;
    assert!(pushed.contains(&mark) && pushed.contains(&said(number, "x")));
    assert_eq!(bob.pushes(1).await, [said(number, "x")]);
    bob.take_ready().await;
    assert!(bob.pushes.is_empty(), "not to the device itself");
}

#[tokio::test]
async fn every_member_of_a_large_room_is_woken() {
    let names: Vec<_> = (0..60).map(|n| format!("user{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let (_, mut clients) = team(&names).await;
    for client in &mut clients[1..] {
        client.room(join()).await;
    }
    for _ in 0..3 {
        let (amy, others) = clients.split_first_mut().unwrap();
        // Others wait for their message when it is sent.
        let waiting = others.iter_mut().map(|client| client.pushes(1));
        let waiting = futures::future::join_all(waiting);
        let (number, pushed) = tokio::join!(amy.say("#team", "x"), waiting);
        for pushed in pushed {
            assert_eq!(pushed, [said(number, "x")]);
        }
        for client in &mut clients {
            client.ack("#team", number);
        }
    }
}

#[tokio::test]
async fn device_with_many_unread_notices_is_disconnected() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let bob = &mut clients[1];
    let mut control = Client::login(&chat, "bob").await;
    for _ in 0..130 {
        control.room(join()).await;
        control.room(leave()).await;
    }
    control.room(join()).await;
    assert_eq!(bob.pushes(1).await, [Pushed::Closed]);
    let mut bob = Client::attach(&chat, "bob", "phone").await;
    let number = clients[0].say("#team", "x").await;
    assert_eq!(bob.pushes(1).await, [said(number, "x")]);
}

/// Returns a user whose window is full of `#team`, and another connection of it.
async fn full_window() -> (Arc<Chat>, Vec<Client>, Client, Vec<u64>) {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    amy.create_room("#other").await;
    for name in ["#team", "#other"] {
        bob.room(RoomRequest::Join(room(name))).await;
    }
    let control = Client::login(&chat, "bob").await;
    let mut numbers = Vec::new();
    for _ in 0..300 {
        numbers.push(amy.say("#team", "x").await);
    }
    assert_eq!(bob.pushes(256).await.len(), 256);
    (chat, clients, control, numbers)
}

#[tokio::test]
async fn expulsion_waits_for_no_other_membership() {
    let (_chat, mut clients, mut control, numbers) = full_window().await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    control.room(leave()).await;
    let expel = RoomRequest::Expel {
        room: room("#other"),
        user: user("bob"),
    };
    amy.room(expel).await;
    for _ in 0..3 {
        amy.say("#other", "secret").await;
    }
    let left = Pushed::Left("#other".to_owned(), LeftReason::Expelled);
    assert_eq!(bob.pushes(1).await, [left], "the window is full");
    bob.ack("#team", numbers[299 - 44]);
    let pushed = bob.pushes(45).await;
    let team: Vec<_> = numbers[256..].iter().map(|n| said(*n, "x")).collect();
    assert_eq!(pushed[..44], team);
    assert_eq!(
        pushed[44],
        Pushed::Left("#team".to_owned(), LeftReason::Left)
    );
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
}

#[tokio::test]
async fn rejoin_waits_for_the_former_membership() {
    let (_chat, mut clients, mut control, numbers) = full_window().await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    control.room(leave()).await;
    amy.say("#team", "between").await;
    control.room(join()).await;
    let number = amy.say("#team", "new").await;
    bob.take_ready().await;
    assert!(bob.pushes.is_empty());
    bob.ack("#team", numbers[255]);
    let pushed = bob.pushes(47).await;
    assert_eq!(pushed[43], said(numbers[299], "x"));
    assert_eq!(
        pushed[44..],
        [
            Pushed::Left("#team".to_owned(), LeftReason::Left),
            Pushed::Joined("#team".to_owned()),
            said(number, "new"),
        ]
    );
}

#[tokio::test]
async fn own_leave_needs_no_acknowledgement() {
    let (_chat, mut clients, _, numbers) = full_window().await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    bob.room(leave()).await;
    let number = amy.say("bob", "hi").await;
    let pushed = bob.pushes(45).await;
    assert!(pushed.contains(&Pushed::Message(number, "hi".to_owned())));
    assert!(pushed.contains(&said(numbers[299], "x")));
    bob.room(join()).await;
    let number = amy.say("#team", "new").await;
    assert_eq!(bob.pushes(1).await, [said(number, "new")]);
}

#[tokio::test]
async fn leave_of_the_last_member_hides_nothing() {
    let (chat, mut clients) = team(&["amy"]).await;
    let amy = &mut clients[0];
    let mut laptop = Client::attach(&chat, "amy", "laptop").await;
    let mut control = Client::login(&chat, "amy").await;
    for _ in 0..1500 {
        let number = amy.say("#team", "x").await;
        amy.pushes.clear();
        amy.ack("#team", number);
    }
    let pushed = laptop.pushes(256).await;
    control.room(leave()).await;
    let Some(Pushed::Said(_, number, _)) = pushed.last() else {
        panic!()
    };
    laptop.ack("#team", *number);
    let mut count = 256;
    loop {
        match &laptop.pushes(1).await[..] {
            [Pushed::Left(..)] => break,
            pushed => {
                for push in pushed {
                    match push {
                        Pushed::Gap(_, _, _, missing) => count += missing,
                        Pushed::Said(_, number, _) => {
                            laptop.ack("#team", *number);
                            count += 1;
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }
    assert_eq!(count, 1500);
}

#[tokio::test]
async fn superseded_attachment_acknowledges_nothing() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let [amy, bob] = &mut clients[..] else {
        panic!()
    };
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.push(amy.say("bob", "x").await);
    }
    let messages: Vec<_> = numbers
        .iter()
        .map(|number| Pushed::Message(*number, "x".to_owned()))
        .collect();
    assert_eq!(bob.pushes(3).await, messages);
    let mut latter = Client::attach(&chat, "bob", "phone").await;
    bob.ack("", numbers[1]);
    assert_eq!(latter.pushes(3).await, messages, "no gap");
    let mut latter = Client::attach(&chat, "bob", "phone").await;
    assert_eq!(latter.pushes(3).await, messages);
}

#[tokio::test]
async fn commands_of_a_superseded_attachment_are_pushed() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    let bob = &mut clients[1];
    let mut latter = Client::attach(&chat, "bob", "phone").await;
    assert_eq!(bob.pushes(1).await, [Pushed::Bye]);
    bob.room(join()).await;
    assert_eq!(latter.pushes(1).await, [Pushed::Joined("#team".to_owned())]);
    bob.room(leave()).await;
    let left = Pushed::Left("#team".to_owned(), LeftReason::Left);
    assert_eq!(latter.pushes(1).await, [left]);
}

/// Returns a team with limited deliveries on a chat that limits the loopback, too.
async fn limited_team(users: &[&str]) -> (Arc<Chat>, Vec<Client>) {
    let store = Arc::new(ShardStore::memory(config()).unwrap());
    let flags = ["--limit-loopback", "--max-user-deliveries-per-second=1"];
    team_in(chat_with(store, &flags), users).await
}

#[tokio::test]
async fn stored_messages_are_charged_without_their_connection() {
    let (chat, mut clients) = limited_team(&["amy"]).await;
    for device in ["tablet", "laptop", "desktop"] {
        clients.push(Client::attach(&chat, "amy", device).await);
    }
    for client in &mut clients {
        client.take_ready().await;
    }
    // The bucket has five deliveries, and the room four devices.
    for _ in 0..3 {
        let mut control = Client::login(&chat, "amy").await;
        let send = Request::Send {
            user: user("#team"),
            text: "x".into(),
        };
        control.begin(send).await;
    }
    let control = Client::login(&chat, "amy").await;
    let is_charged = async {
        while control.wait_to_send("#team").is_zero() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(4), is_charged).await.unwrap();
    assert_eq!(control.wait_to_send("amy"), Duration::ZERO);
}

#[tokio::test]
async fn refused_messages_cost_no_deliveries() {
    let (_, mut clients) = limited_team(&["amy", "eve"]).await;
    let [amy, eve] = &mut clients[..] else {
        panic!()
    };
    for _ in 0..20 {
        let send = Request::Send {
            user: user("#team"),
            text: "x".into(),
        };
        assert_eq!(eve.refused(send).await, Code::Denied);
    }
    assert_eq!(eve.wait_to_send("#team"), Duration::ZERO);
    for _ in 0..40 {
        amy.say("#team", "x").await;
    }
    assert_ne!(amy.wait_to_send("#team"), Duration::ZERO);
}

#[tokio::test]
async fn rooms_that_are_off_are_hidden() {
    let (chat, mut clients) = team(&["amy", "bob"]).await;
    clients[1].room(join()).await;
    clients[0].say("#team", "x").await;
    let set_rooms = |rooms| {
        let rules = Rules::clone(&chat.rules());
        chat.update_rules(Rules { rooms, ..rules });
    };
    set_rooms(MayCreateRooms::Off);
    let bob = |device: &str| {
        Request::Room(RoomRequest::Attach {
            user: user("bob"),
            device: device.parse().unwrap(),
            password: None,
        })
    };
    let mut client = Client::new(&chat);
    assert_eq!(client.ok(bob("phone")).await, OkFields::Attached(0, 0));
    let send = Request::Send {
        user: user("#team"),
        text: "y".into(),
    };
    assert_eq!(client.refused(send).await, Code::NoSuchUser);
    let history = RoomRequest::History {
        room: room("#team"),
        before: Sequence(0),
        count: 1,
    };
    for request in [join(), leave(), history] {
        let refused = client.refused(Request::Room(request)).await;
        assert_eq!(refused, Code::UnknownCommand);
    }
    let delete = Request::Delete {
        user: user("#team"),
        password: None,
    };
    assert_eq!(client.ok(delete).await, OkFields::Deleted(false));
    let number = client.say("bob", "direct").await;
    let direct = Pushed::Message(number, "direct".to_owned());
    assert_eq!(client.pushes(1).await, [direct], "the inbox alone");
    set_rooms(MayCreateRooms::Users);
    assert_eq!(client.ok(bob("phone")).await, OkFields::Attached(1, 1));
    let pushes = client.pushes(2).await;
    let is_kept = |push: &Pushed| matches!(push, Pushed::Said(_, _, text) if text == "x");
    assert!(pushes.iter().any(is_kept), "{pushes:?}");
}

async fn inbox(chat: &Arc<Chat>, name: &str) -> Inbox {
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let connection = crate::chat::ShutdownSignal::default();
    let inbox = chat.inbox((&connection, address), user(name), None, None);
    inbox.await.unwrap()
}

#[tokio::test]
async fn acknowledgement_alone_creates_no_second_device() {
    let (chat, mut clients) = team(&["amy"]).await;
    let amy = &mut clients[0];
    let number = amy.say("amy", "x").await;
    let inbox = inbox(&chat, "amy").await;
    match inbox.acknowledge(None, Sequence(number)).await {
        Err(Fault::Refused(refusal)) => assert_eq!(refusal.code, Code::BadRequest),
        other => panic!("{other:?}"),
    }
    amy.begin(Request::Room(RoomRequest::Devices)).await;
    let listed = loop {
        if let Some(Reply::Ok(fields)) = amy.next().await {
            break fields;
        }
    };
    assert_eq!(listed, OkFields::Listed(1, false));
}

#[tokio::test]
async fn first_acknowledgement_counts_for_user_without_devices() {
    let (chat, mut clients) = team(&["amy"]).await;
    let create = Request::Create {
        user: user("bob"),
        password: None,
    };
    clients[0].ok(create).await;
    let number = clients[0].say("bob", "x").await;
    let bob = inbox(&chat, "bob").await;
    bob.acknowledge(None, Sequence(number)).await.unwrap();
    let connect = Request::Connect {
        user: user("bob"),
        password: None,
    };
    let mut client = Client::new(&chat);
    assert_eq!(client.ok(connect).await, OkFields::Queued(0));
    // The device without a name may acknowledge beside others.
    let _phone = Client::attach(&chat, "bob", "phone").await;
    bob.acknowledge(None, Sequence(number)).await.unwrap();
}
