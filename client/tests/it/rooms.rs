//! Rooms and devices: delivery, acknowledgement, and repeats.

use std::sync::Arc;

use hark_client::seen::FileSeenStore;
use hark_client::{Client, Config, Event, RequestError};
use hark_protocol::message::{Gap, LeftReason};
use hark_protocol::{
    Code, Delivery, DeviceName, OkFields, Reply, Request, RoomName, RoomReply, RoomRequest,
    Sequence,
};

use super::{config, up};
use crate::peer::{Peer, event, message, quiet, user};

fn team() -> RoomName {
    "#team".parse().unwrap()
}

fn laptop() -> DeviceName {
    "laptop".parse().unwrap()
}

/// Accepts an `attach`.
async fn attached(peer: &mut Peer, waiting: u64) {
    match peer.next().await {
        (id, Request::Room(RoomRequest::Attach { device, .. })) => {
            assert_eq!(device, laptop());
            let fields = OkFields::Attached(waiting, 1);
            peer.reply(id, Reply::Ok(fields)).await;
        }
        other => panic!("{other:?} is not an attach"),
    }
}

async fn say(peer: &mut Peer, sequence: u64) {
    let delivery = Delivery {
        sequence: Sequence(sequence),
        sender: Some(user("amy")),
        time_ms: 1_000_000 + sequence,
        text: sequence.to_string().into(),
    };
    let said = RoomReply::Said {
        room: team(),
        delivery,
    };
    peer.reply(0, Reply::Room(said)).await;
}

/// Returns the log and the number of the next ack, and answers pings before it.
async fn acked(peer: &mut Peer) -> (Option<RoomName>, u64) {
    loop {
        match peer.next().await {
            (0, Request::Ack { log, sequence }) => return (log, sequence.0),
            (id, Request::Ping) => peer.ok(id).await,
            other => panic!("{other:?} is not an ack"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_log_is_acknowledged_across_links() {
    let (handle, mut events, mut peers, mut peer) = up().await;
    let attaching = tokio::spawn({
        let handle = handle.clone();
        async move { handle.attach(user("bob"), laptop(), None).await }
    });
    attached(&mut peer, 1).await;
    assert_eq!(attaching.await.unwrap().unwrap().waiting, 1);
    say(&mut peer, 5).await;
    peer.push(5).await;
    let of_room = message(&mut events).await;
    assert_eq!(of_room.room, Some(team()));
    of_room.ack().unwrap();
    assert_eq!(acked(&mut peer).await, (Some(team()), 5));
    let direct = message(&mut events).await;
    assert_eq!(direct.room, None);
    drop(peer);
    let mut peer = peers.greeted().await;
    attached(&mut peer, 1).await;
    direct.ack().unwrap();
    say(&mut peer, 5).await;
    assert_eq!(acked(&mut peer).await, (Some(team()), 5), "it was seen");
    peer.push(5).await;
    assert_eq!(acked(&mut peer).await, (None, 5));
    say(&mut peer, 6).await;
    assert_eq!(message(&mut events).await.delivery.sequence, Sequence(6));
}

#[tokio::test(start_paused = true)]
async fn seen_room_messages_are_remembered_by_another_process() {
    let directory = tempfile::tempdir().unwrap();
    for is_first in [true, false] {
        let (config, mut peers) = config();
        let (handle, mut events) = Client::connect(Config {
            seen: Arc::new(FileSeenStore::new(directory.path(), "server:1")),
            ..config
        });
        let mut peer = peers.greeted().await;
        let attaching = tokio::spawn({
            let handle = handle.clone();
            async move { handle.attach(user("bob"), laptop(), None).await }
        });
        attached(&mut peer, 0).await;
        attaching.await.unwrap().unwrap();
        say(&mut peer, 5).await;
        if is_first {
            message(&mut events).await.ack().unwrap();
        }
        assert_eq!(acked(&mut peer).await, (Some(team()), 5));
    }
}

#[tokio::test(start_paused = true)]
async fn pushes_become_events() {
    let (handle, mut events, _peers, mut peer) = up().await;
    let attaching = tokio::spawn({
        let handle = handle.clone();
        async move { handle.attach(user("bob"), laptop(), None).await }
    });
    attached(&mut peer, 0).await;
    attaching.await.unwrap().unwrap();
    assert!(matches!(event(&mut events).await, Event::CaughtUp { .. }));
    let gap = Gap {
        log: Some(team()),
        from: Sequence(1),
        to: Sequence(7),
        count: 3,
    };
    peer.reply(0, Reply::Room(RoomReply::Gap(gap.clone()))).await;
    match event(&mut events).await {
        Event::Gap(missing) => {
            assert_eq!(missing.gap, gap);
            missing.ack();
        }
        other => panic!("{other:?} is no gap"),
    }
    assert_eq!(acked(&mut peer).await, (Some(team()), 7));
    let left = RoomReply::Left {
        room: team(),
        reason: LeftReason::Expelled,
    };
    peer.reply(0, Reply::Room(left)).await;
    assert!(matches!(
        event(&mut events).await,
        Event::Left {
            reason: LeftReason::Expelled,
            ..
        }
    ));
}

#[tokio::test(start_paused = true)]
async fn receive_connects_to_a_server_without_devices() {
    let (handle, _events, mut peers, mut peer) = up().await;
    let receiving = tokio::spawn({
        let handle = handle.clone();
        async move { handle.receive(user("bob"), laptop(), None).await }
    });
    let (id, request) = peer.next().await;
    assert!(matches!(request, Request::Room(RoomRequest::Attach { .. })));
    // Accepted meanwhile, it is sent as bob.
    let sending = tokio::spawn({
        let handle = handle.clone();
        async move { handle.send(user("amy"), "hi".into()).await.unwrap().await }
    });
    peer.refuse(id, Code::UnknownCommand).await;
    assert_eq!(peer.grant(3).await, (user("bob"), true));
    assert_eq!(receiving.await.unwrap(), Ok(3));
    let (id, _) = peer.sent().await;
    peer.ok(id).await;
    sending.await.unwrap().unwrap();
    drop(peer);
    let mut peer = peers.greeted().await;
    assert_eq!(peer.grant(0).await, (user("bob"), true), "it stays so");
    quiet(&handle).await;
}

#[tokio::test(start_paused = true)]
async fn repeated_leave_of_a_hidden_room_is_done() {
    let (handle, _events, mut peers, mut peer) = up().await;
    for is_repeat in [false, true] {
        let leaving = tokio::spawn({
            let handle = handle.clone();
            async move { handle.leave(team()).await }
        });
        let (mut id, request) = peer.next().await;
        assert_eq!(request, Request::Room(RoomRequest::Leave(team())));
        if is_repeat {
            drop(peer);
            peer = peers.greeted().await;
            let (again, repeated) = peer.next().await;
            assert_eq!(repeated, request);
            id = again;
        }
        peer.refuse(id, Code::NoSuchUser).await;
        match leaving.await.unwrap() {
            Ok(()) => assert!(is_repeat),
            Err(RequestError::Refused(_)) => assert!(!is_repeat),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn answer_of_many_parts_is_collected() {
    let (handle, _events, _peers, mut peer) = up().await;
    let reading = tokio::spawn({
        let handle = handle.clone();
        async move { handle.history(team(), Sequence(0), 2).await }
    });
    let (id, _) = peer.next().await;
    for sequence in [9, 7] {
        let past = Delivery {
            sequence: Sequence(sequence),
            sender: None,
            time_ms: 0,
            text: "x".into(),
        };
        peer.reply(id, Reply::Room(RoomReply::Past(past))).await;
    }
    peer.reply(id, Reply::Ok(OkFields::Past(2, Sequence(3)))).await;
    let history = reading.await.unwrap().unwrap();
    let numbers = history.messages.iter().map(|message| message.sequence.0);
    assert_eq!(numbers.collect::<Vec<_>>(), [9, 7]);
    assert_eq!(history.oldest, Sequence(3));
}
