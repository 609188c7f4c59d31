//! A store that was written before rooms and devices: `before_rooms` has the files of a server
//! of that time, without the zeros at their ends. In it, bob has acknowledged the first of three
//! messages, amy has one, and eve was deleted.

use std::fs;

use hark_protocol::message::RoomMode;
use hark_protocol::{DeviceName, RoomName};

use super::Folder;
use crate::store::contract::{ALL, Home, WIDE, stored, text};
use crate::store::{Account, Append, RoomAnswer, RoomCommand, Store};

const FORMAT: &str = "hark store 3\n";
const HEAD: (&[u8], u64) = (include_bytes!("before_rooms/HEAD"), 8192);
const SEGMENT: (&[u8], u64) = (include_bytes!("before_rooms/00000000.segment"), 64 << 20);

/// Returns a folder with the store.
fn old_store() -> Folder {
    let folder = Folder::new();
    let log = folder.path().join("log");
    fs::create_dir_all(&log).unwrap();
    fs::write(folder.path().join("FORMAT"), FORMAT).unwrap();
    for (name, (bytes, length)) in [("HEAD", HEAD), ("00000000.segment", SEGMENT)] {
        let path = log.join(name);
        fs::write(&path, bytes).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(length).unwrap();
    }
    folder
}

async fn account(store: &dyn Store, name: &str) -> Account {
    let entry = store.account(&name.parse().unwrap()).await.unwrap();
    entry.unwrap().account
}

/// Attaches a device. Returns the texts that wait for it in the inbox, and in its only room.
async fn texts(store: &dyn Store, account: &Account) -> (Vec<String>, Vec<String>) {
    let device: DeviceName = "phone".parse().unwrap();
    let attached = store.attach(account, &device).await.unwrap().unwrap();
    let inbox = store.read(account, attached.inbox.cursor(), ALL).await;
    let mut said = Vec::new();
    for room in &attached.rooms {
        let page = store.read_room(room.ring.id(), room.cursor, ALL).await;
        said.extend(page.unwrap().messages);
    }
    let texts = |message: &std::sync::Arc<crate::store::Message>| message.text.to_string();
    (
        inbox.unwrap().messages.iter().map(texts).collect(),
        said.iter().map(texts).collect(),
    )
}

#[tokio::test]
async fn store_written_before_rooms_opens() {
    let folder = old_store();
    let team: RoomName = "#team".parse().unwrap();
    {
        let store = folder.open(WIDE);
        let names = store.names(None, 10).await.unwrap();
        assert_eq!(
            names.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
            ["amy", "bob"]
        );
        let (amy, bob) = (account(&*store, "amy").await, account(&*store, "bob").await);
        let none = Vec::<String>::new();
        let waiting = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            texts(&*store, &amy).await,
            (waiting(&["hello"]), none.clone())
        );
        assert_eq!(
            texts(&*store, &bob).await,
            (waiting(&["two", "three"]), none)
        );
        let set = RoomCommand::Set {
            room: team.clone(),
            mode: RoomMode::Open,
            keep: None,
        };
        for (caller, command) in [(&amy, set), (&bob, RoomCommand::Join(team))] {
            let answer = store.room_command(caller, None, command).await.unwrap();
            assert!(matches!(
                answer,
                Ok(RoomAnswer::Done | RoomAnswer::Joined(_))
            ));
        }
        let append = Append {
            sender: Some(amy),
            ..text("#team", "in the room")
        };
        stored(&*store, append).await;
        store.close().await.unwrap();
    }
    let store = folder.open(WIDE);
    let bob = account(&*store, "bob").await;
    let (inbox, said) = texts(&*store, &bob).await;
    assert_eq!(inbox, ["two", "three"]);
    assert_eq!(said, ["in the room"]);
}
