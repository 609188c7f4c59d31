//! Users that do what they may, in large numbers.

use std::time::{Duration, Instant};

use hark_protocol::{Code, OkFields, Reply, Request, RoomRequest, Sequence};

use super::devices::{Client, Pushed, chat_with, room, user};
use crate::shard::{ShardConfig, ShardStore};

fn config() -> ShardConfig {
    ShardConfig {
        numbers_after: Some(0),
        ..ShardConfig::DEFAULT
    }
}

/// Returns a chat with a room of so many members.
async fn crowd(members: usize) -> (std::sync::Arc<crate::chat::Chat>, Client) {
    let store = ShardStore::memory(config()).unwrap();
    let chat = chat_with(std::sync::Arc::new(store), &["--max-list=10000"]);
    let mut client = Client::new(&chat);
    for n in 0..members {
        let name = format!("u{n:05}");
        let create = Request::Create {
            user: user(&name),
            password: None,
        };
        client.ok(create).await;
        let login = Request::Login {
            user: user(&name),
            password: None,
        };
        client.ok(login).await;
        match n {
            0 => client.create_room("#crowd").await,
            _ => drop(client.room(RoomRequest::Join(room("#crowd"))).await),
        }
    }
    (chat, client)
}

/// Returns the names in the answer to `members`.
async fn members(client: &mut Client, after: Option<&str>) -> Vec<String> {
    let request = RoomRequest::Members {
        room: room("#crowd"),
        after: after.map(user),
    };
    client.begin(Request::Room(request)).await;
    let mut names = Vec::new();
    loop {
        match client.next().await {
            Some(Reply::List(part)) => names.extend(part.iter().map(ToString::to_string)),
            Some(Reply::Ok(OkFields::Listed(count, false))) => {
                assert_eq!(count, names.len());
                return names;
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn huge_member_lists_delay_nobody() {
    const MEMBERS: usize = 2_600;
    let (chat, mut client) = crowd(MEMBERS).await;
    let all = members(&mut client, None).await;
    assert!(all.is_sorted() && all.len() == MEMBERS);
    assert_eq!(members(&mut client, Some("u02000")).await, all[2_001..]);
    // One member asks again and again, while others talk.
    let asking = tokio::spawn(async move {
        for _ in 0..30 {
            assert_eq!(members(&mut client, None).await.len(), MEMBERS);
        }
    });
    let mut sender = Client::login(&chat, "u00001").await;
    let mut longest = Duration::ZERO;
    while !asking.is_finished() {
        let begun = Instant::now();
        sender.say("#crowd", "x").await;
        longest = longest.max(begun.elapsed());
    }
    asking.await.unwrap();
    // Far less than one list takes.
    assert!(longest < Duration::from_secs(2), "{longest:?}");
}

#[tokio::test]
async fn squatters_of_room_names_are_bounded() {
    let (_, mut client) = crowd(1).await;
    for n in 1..16 {
        client.create_room(&format!("#squat{n}")).await;
    }
    let more = RoomRequest::Set {
        room: room("#one-more"),
        mode: hark_protocol::message::RoomMode::Open,
        keep_s: None,
    };
    let refused = client.refused(Request::Room(more.clone())).await;
    assert_eq!(refused, Code::TooMany);
    // A room whose only member leaves is free again.
    client.room(RoomRequest::Leave(room("#squat1"))).await;
    client.room(more).await;
}

#[tokio::test]
async fn silent_member_of_many_rooms_is_bounded() {
    const ROOMS: usize = 60;
    let (chat, mut amy) = crowd(1).await;
    let mut names = Vec::new();
    for n in 0..ROOMS {
        // Each owner may own sixteen.
        let name = format!("#r{n}");
        if n % 16 == 0 {
            let owner = format!("o{n}");
            let create = Request::Create {
                user: user(&owner),
                password: None,
            };
            amy.ok(create).await;
            amy = Client::login(&chat, &owner).await;
        }
        amy.create_room(&name).await;
        let mut silent = Client::login(&chat, "u00000").await;
        silent.room(RoomRequest::Join(room(&name))).await;
        names.push((name, owner_of(n)));
    }
    let mut silent = Client::attach(&chat, "u00000", "phone").await;
    for round in 0..10 {
        for (name, owner) in &names {
            let mut sender = Client::login(&chat, owner).await;
            sender.say(name, &format!("{round}")).await;
        }
        silent.take_ready().await;
    }
    let pushed = std::mem::take(&mut silent.pushes);
    let is_said = |push: &&Pushed| matches!(push, Pushed::Said(..));
    assert_eq!(pushed.iter().filter(is_said).count(), 256, "its window");
    // Each acknowledgement makes room for others, until it has everything.
    let mut count = 256;
    let mut pushed = pushed;
    while count < ROOMS * 10 {
        for push in &pushed {
            if let Pushed::Said(name, number, _) = push {
                silent.ack(name, *number);
            }
        }
        pushed = silent.pushes(1).await;
        count += pushed.iter().filter(is_said).count();
    }
    assert_eq!(count, ROOMS * 10);
    let history = RoomRequest::History {
        room: room("#r0"),
        before: Sequence(0),
        count: u32::MAX,
    };
    silent.begin(Request::Room(history)).await;
    let mut past = 0;
    loop {
        match silent.next().await {
            Some(Reply::Ok(OkFields::Past(count, _))) => {
                break assert_eq!((count, past), (10, 10));
            }
            Some(_) => past += 1,
            None => {}
        }
    }
}

/// Returns the owner of the n-th room.
fn owner_of(n: usize) -> String {
    format!("o{}", n / 16 * 16)
}
