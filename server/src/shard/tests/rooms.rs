//! Rooms and devices through the commit thread, on each log.

use hark_protocol::message::RoomMode;
use hark_protocol::{Code, DeviceName, RoomName};

use super::super::kept::Failure;
use super::{Folder, Memory, config, faulty};
use crate::store::contract::{ALL, Home, WIDE, create, name, number, stored, text, token};
use crate::store::{
    Account, Append, DeviceSubscription, End, Point, RoomAnswer, RoomCommand, Store, Unavailable,
};

fn room(text: &str) -> RoomName {
    text.parse().unwrap()
}

fn device(text: &str) -> DeviceName {
    text.parse().unwrap()
}

async fn command(
    store: &dyn Store,
    caller: &Account,
    command: RoomCommand,
) -> Result<RoomAnswer, Code> {
    store.room_command(caller, None, command).await.unwrap()
}

async fn attach(store: &dyn Store, account: &Account, name: &str) -> DeviceSubscription {
    let attached = store.attach(account, &device(name)).await;
    attached.unwrap().unwrap()
}

/// Creates an open room of `owner`.
async fn open_room(store: &dyn Store, owner: &Account, name: &str) {
    let set = RoomCommand::Set {
        room: room(name),
        mode: RoomMode::Open,
        keep: None,
    };
    assert_eq!(command(store, owner, set).await, Ok(RoomAnswer::Done));
}

async fn join(store: &dyn Store, member: &Account, name: &str) -> u64 {
    match command(store, member, RoomCommand::Join(room(name))).await {
        Ok(RoomAnswer::Joined(joined)) => joined.number,
        other => panic!("{other:?}"),
    }
}

/// Sends a message from a member. Returns its number.
async fn say(store: &dyn Store, member: &Account, to: &str, content: &str) -> u64 {
    let append = Append {
        sender: Some(member.clone()),
        ..text(to, content)
    };
    stored(store, append).await.0
}

/// Returns the texts behind the cursor of an attached room, and the point of the last one.
async fn behind(store: &dyn Store, id: u64, cursor: Point) -> (Vec<String>, Point) {
    let page = store.read_room(id, cursor, ALL).await;
    let page = page.unwrap();
    assert!(page.complete);
    let last = page.messages.last().map_or(cursor, |m| m.position.into());
    let texts = page.messages.iter().map(|message| message.text.to_string());
    (texts.collect(), last)
}

async fn device_continues_at_its_cursor(home: &impl Home) {
    let store = home.open(WIDE);
    let amy = create(&*store, "amy").await;
    let bob = create(&*store, "bob").await;
    open_room(&*store, &amy, "#team").await;
    say(&*store, &amy, "#team", "before").await;
    let phone = attach(&*store, &bob, "phone").await;
    assert!(phone.rooms.is_empty());
    let joined = join(&*store, &bob, "#team").await;
    say(&*store, &amy, "#team", "1").await;
    say(&*store, &bob, "#team", "2").await;
    let latter = attach(&*store, &bob, "phone").await;
    // The new attachment is answered before the former one ends.
    while phone.inbox.end().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(phone.inbox.end(), Some(End::TakenOver));
    let [attached] = &latter.rooms[..] else {
        panic!("{latter:?}")
    };
    assert_eq!(attached.cursor.number, joined);
    let (texts, last) = behind(&*store, attached.ring.id(), attached.cursor).await;
    assert_eq!(texts, ["1", "2"]);
    store.acknowledge_room(&bob, latter.device, attached.ring.id(), last);
    // The next attachment waits for the acknowledgement of the former one.
    let attached = attach(&*store, &bob, "phone").await.rooms;
    assert_eq!(attached[0].cursor, last);
    say(&*store, &amy, "#team", "3").await;
    let (texts, last) = behind(&*store, attached[0].ring.id(), last).await;
    assert_eq!(texts, ["3"]);
    store.acknowledge_room(&bob, latter.device, attached[0].ring.id(), last);
    store.close().await.unwrap();

    let store = home.open(WIDE);
    say(&*store, &amy, "#team", "4").await;
    let again = attach(&*store, &bob, "phone").await;
    assert_eq!(again.rooms[0].cursor, last, "a close saves it");
    let (texts, _) = behind(&*store, again.rooms[0].ring.id(), last).await;
    assert_eq!(texts, ["4"]);
}

#[tokio::test]
async fn device_continues_on_disk() {
    device_continues_at_its_cursor(&Folder::new()).await;
}

#[tokio::test]
async fn device_continues_in_memory() {
    device_continues_at_its_cursor(&Memory::default()).await;
}

#[tokio::test]
async fn ended_room_is_not_read() {
    let store = Memory::default().open(WIDE);
    let amy = create(&*store, "amy").await;
    open_room(&*store, &amy, "#team").await;
    say(&*store, &amy, "#team", "x").await;
    let phone = attach(&*store, &amy, "phone").await;
    let delete = RoomCommand::Delete {
        room: room("#team"),
        is_admin: false,
    };
    let existed = command(&*store, &amy, delete.clone()).await;
    assert_eq!(existed, Ok(RoomAnswer::Existed(true)));
    let (texts, _) = behind(&*store, phone.rooms[0].ring.id(), Point::default()).await;
    assert_eq!(texts, [""; 0]);
    assert_eq!(
        command(&*store, &amy, delete).await,
        Ok(RoomAnswer::Existed(false))
    );
}

#[tokio::test]
async fn named_device_keeps_its_inbox_messages() {
    let store = Folder::new();
    let store = store.open(WIDE);
    let bob = create(&*store, "bob").await;
    let _nameless = store.receive(&bob).await.unwrap().unwrap();
    let phone = attach(&*store, &bob, "phone").await;
    let sequence = stored(&*store, text("bob", "x")).await;
    let page = store.read(&bob, phone.inbox.cursor(), ALL).await.unwrap();
    let position = page.messages[0].position;
    assert_eq!(position.sequence, sequence);
    store.acknowledge(&bob, position);
    let devices = command(&*store, &bob, RoomCommand::Devices).await;
    let Ok(RoomAnswer::Devices(devices)) = devices else {
        panic!("{devices:?}")
    };
    assert_eq!(devices.last().unwrap().waiting, 1);
    store.acknowledge_inbox(&bob, phone.device, position);
    let again = attach(&*store, &bob, "phone").await;
    assert_eq!((again.inbox.queued(), again.inbox.cursor()), (0, position));
}

#[tokio::test]
async fn failed_commit_leaves_rooms_as_they_were() {
    for failure in [Failure::Before, Failure::After] {
        let (store, faults) = faulty(config(WIDE));
        let amy = create(&store, "amy").await;
        let bob = create(&store, "bob").await;
        open_room(&store, &amy, "#team").await;
        let phone = attach(&store, &amy, "phone").await;
        faults.fail_next(failure);
        let joined = store
            .room_command(&bob, None, RoomCommand::Join(room("#team")))
            .await;
        assert_eq!(joined, Err(Unavailable));
        while store.open_session(&token("probe"), None).await.is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // The notices of the commit are lost: the device has to attach again.
        assert_eq!(phone.inbox.end(), Some(End::Interrupted));
        let phone = attach(&store, &amy, "phone").await;
        let number = join(&store, &bob, "#team").await;
        assert!(say(&store, &bob, "#team", "x").await > number);
        let (texts, _) = behind(&store, phone.rooms[0].ring.id(), phone.rooms[0].cursor).await;
        assert_eq!(texts, ["x"]);
    }
}

#[tokio::test]
async fn message_to_a_room_is_stored_once() {
    let store = Memory::default().open(WIDE);
    let amy = create(&*store, "amy").await;
    open_room(&*store, &amy, "#team").await;
    let send = || Append {
        sender: Some(amy.clone()),
        ..crate::store::contract::send("s", 1, "#team", "x")
    };
    let first = number(store.append(send()).await);
    assert_eq!(number(store.append(send()).await), first);
    let refused = store.append(text("#team", "x")).await;
    assert_eq!(refused, Ok(crate::store::Outcome::Refused(Code::Denied)));
    let rooms = command(&*store, &amy, RoomCommand::Rooms(0)).await;
    let Ok(RoomAnswer::Rooms(rooms)) = rooms else {
        panic!("{rooms:?}")
    };
    let entry = &rooms.rooms[0];
    assert_eq!((entry.last, entry.unread), (first.0, Some(0)));
    assert_eq!(name("amy"), amy.name);
}
