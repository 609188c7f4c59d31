//! Several servers of one chat on the real cluster: interaction between them.
//! The guarantees of a single server are covered by the contract tests.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hark_protocol::{ByeReason, Code, Delivery, Frame, Reply, Request};
use hark_tests::{
    Client, Front, Harkd, HarkdBuilder, Link, Nats, StoreLocation, TIMEOUT, Trial, Wire, name, send,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// Smallest number of rounds of a race.
const ROUNDS_MIN: u32 = 5;

/// Time below the interval at which a server polls for messages that it was not
/// notified of.
const BELOW_POLL_INTERVAL: Duration = Duration::from_secs(24);

const BYE_TAKEN_OVER: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::TakenOver));
const BYE_DELETED: Frame<Reply> = Frame::new(None, Reply::Bye(ByeReason::Deleted));

/// Returns the rounds of a race: at least `min`, and more until the time of
/// [`Trial`] is over.
fn rounds(min: u32) -> impl Iterator<Item = u32> {
    let (begun, time) = (Instant::now(), Trial::from_env().time);
    (0..).take_while(move |round| *round < min || begun.elapsed() < time)
}

/// Starts two servers of one chat.
fn servers() -> [Harkd; 2] {
    let location = StoreLocation::on(Nats::shared());
    [(); 2].map(|()| Harkd::builder().store(location.clone()).start())
}

async fn clients(servers: &[Harkd; 2]) -> [Client; 2] {
    let [one, two] = servers;
    // Each test also crosses two fronts.
    [
        Front::Native.connect(one.address()).await,
        Front::Bidi.connect(two.address()).await,
    ]
}

fn create(user: &str, password: Option<&str>) -> Request {
    Request::Create {
        user: name(user),
        password: password.map(|password| password.parse().unwrap()),
    }
}

fn login(user: &str, password: Option<&str>) -> Request {
    Request::Login {
        user: name(user),
        password: password.map(|password| password.parse().unwrap()),
    }
}

fn connect(user: &str) -> Request {
    Request::Connect {
        user: name(user),
        password: None,
    }
}

fn delete(user: &str) -> Request {
    Request::Delete {
        user: name(user),
        password: None,
    }
}

/// Returns the names of all users.
async fn listed(client: &mut Client) -> Vec<String> {
    const ID: u32 = 1;
    client.write(ID, Request::List { pattern: None }).await;
    let mut names = Vec::new();
    loop {
        match client.reply_to(ID).await {
            Reply::List(more) => names.extend(more.iter().map(ToString::to_string)),
            Reply::Ok(_) => return names,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn message_reaches_receiver_at_another_server() {
    let servers = servers();
    let [mut alice, mut bob] = clients(&servers).await;
    alice.create("alice").await;
    bob.create("bob").await;
    alice.receive("alice").await;
    bob.receive("bob").await;
    let began = Instant::now();
    for n in 0..50 {
        alice.sent("bob", &format!("ping {n}")).await;
        let ping = bob.message().await;
        assert_eq!(
            (&*ping.text, ping.sender),
            (&*format!("ping {n}"), Some(name("alice")))
        );
        bob.ack(ping.sequence).await;
        bob.sent("alice", &format!("pong {n}")).await;
        let pong = alice.message().await;
        assert_eq!(
            (&*pong.text, pong.sender),
            (&*format!("pong {n}"), Some(name("bob")))
        );
        alice.ack(pong.sequence).await;
    }
    assert!(
        began.elapsed() < BELOW_POLL_INTERVAL,
        "a hundred messages took {:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn connect_at_another_server_takes_over() {
    let servers = servers();
    let [mut former, mut latter] = clients(&servers).await;
    former.create("bob").await;
    former.receive("bob").await;
    for text in ["one", "two", "three"] {
        latter.sent("bob", text).await;
    }
    let [one, two, three] = [
        former.message().await,
        former.message().await,
        former.message().await,
    ];
    former.ack(one.sequence).await;
    // An ack travels for some 20 ms.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        latter.receive("bob").await,
        2,
        "an ack at the former server counts at the latter"
    );
    assert_eq!(former.next().await, Some(BYE_TAKEN_OVER));
    assert_eq!(
        [latter.message().await, latter.message().await],
        [two.clone(), three.clone()]
    );
    latter.sent("bob", "four").await;
    assert_eq!(&*latter.message().await.text, "four");
    assert!(former.is_quiet().await, "no further messages");

    // Acks of the former receiver count for its pushes, with a delay.
    former.ack(two.sequence).await;
    let until = Instant::now() + TIMEOUT;
    while latter.receive("bob").await != 2 {
        assert!(
            Instant::now() < until,
            "the ack at the former server was lost"
        );
        while latter.message().await.text != *"four" {}
    }
    assert_eq!(latter.message().await, three);
    assert_eq!(former.receive("bob").await, 2);
    assert_eq!(former.message().await, three);
}

#[tokio::test]
async fn deletion_is_seen_by_every_server() {
    let servers = servers();
    let [mut one, mut two] = clients(&servers).await;
    let began = Instant::now();
    for _ in 0..10 {
        one.create("bob").await;
        assert_eq!(two.receive("bob").await, 0);
        one.sent("bob", "unread").await;
        let unread = two.message().await;
        assert_eq!(one.ok(delete("bob")).await.as_deleted(), Some(true));
        two.refused(send("bob", "x"), Code::NoSuchUser).await;
        two.refused(connect("bob"), Code::NoSuchUser).await;
        assert_eq!(two.next().await, Some(BYE_DELETED));
        assert_eq!(two.ok(delete("bob")).await.as_deleted(), Some(false));

        // The new account has neither messages nor acks of the former one.
        two.create("bob").await;
        two.ack(unread.sequence).await;
        one.sent("bob", "new").await;
        assert_eq!(one.receive("bob").await, 1);
        let new = one.message().await;
        assert!(
            &*new.text == "new" && new.sequence > unread.sequence,
            "{new:?}"
        );
        assert_eq!(two.ok(delete("bob")).await.as_deleted(), Some(true));
        assert_eq!(one.next().await, Some(BYE_DELETED));
    }
    assert!(
        began.elapsed() < BELOW_POLL_INTERVAL,
        "twenty ends took {:?}",
        began.elapsed()
    );
}

/// The other server has just sent to the account, so that it does not check
/// whether the account still exists.
#[tokio::test]
async fn send_sees_deletion_and_recreation_at_once() {
    let servers = servers();
    let [mut one, mut two] = clients(&servers).await;
    for round in rounds(ROUNDS_MIN) {
        one.create("bob").await;
        for text in ["before", "before"] {
            two.sent("bob", text).await;
        }
        assert_eq!(one.ok(delete("bob")).await.as_deleted(), Some(true));
        for _ in 0..2 {
            two.refused(send("bob", "between"), Code::NoSuchUser).await;
        }
        one.create("bob").await;
        two.sent("bob", "old news").await;
        assert_eq!(one.ok(delete("bob")).await.as_deleted(), Some(true));
        one.create("bob").await;
        let text = format!("round {round}");
        two.sent("bob", &text).await;
        assert_eq!(one.receive("bob").await, 1, "round {round}");
        assert_eq!(*one.message().await.text, *text);
        assert_eq!(one.ok(delete("bob")).await.as_deleted(), Some(true));
        assert_eq!(one.next().await, Some(BYE_DELETED));
    }
}

#[tokio::test]
async fn account_changes_hold_at_every_server() {
    let servers = servers();
    let [mut one, mut two] = clients(&servers).await;
    let names: Vec<String> = (0..20).map(|n| format!("user{n:02}")).collect();
    for (at, user) in names.iter().enumerate() {
        let (maker, other) = if at % 2 == 0 {
            (&mut one, &mut two)
        } else {
            (&mut two, &mut one)
        };
        maker.ok(create(user, None)).await;
        assert_eq!(listed(other).await, names[..=at]);
    }
    one.ok(create("bob", Some("secret"))).await;
    two.refused(create("bob", None), Code::Exists).await;
    two.refused(login("bob", Some("wrong")), Code::Denied).await;
    two.ok(login("bob", Some("secret"))).await;
    let (old, new) = ("secret".parse().unwrap(), "changed".parse().unwrap());
    two.ok(Request::Password {
        user: name("bob"),
        old: Some(old),
        new,
    })
    .await;
    one.refused(login("bob", Some("secret")), Code::Denied)
        .await;
    one.ok(login("bob", Some("changed"))).await;
}

#[tokio::test]
async fn concurrent_creation_succeeds_at_one_server() {
    let servers = servers();
    let [mut one, mut two] = clients(&servers).await;
    for round in rounds(ROUNDS_MIN) {
        let user = format!("user{round}");
        let replies = tokio::join!(one.ask(create(&user, None)), two.ask(create(&user, None)));
        match replies {
            (Reply::Ok(_), Reply::NotOk(refusal)) | (Reply::NotOk(refusal), Reply::Ok(_)) => {
                assert_eq!(refusal.code, Code::Exists);
            }
            other => panic!("round {round}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn concurrent_connects_leave_one_receiver() {
    let servers = servers();
    let [mut one, mut two] = clients(&servers).await;
    let mut sender = Wire::connect(servers[0].address()).await;
    sender.create("bob").await;
    for round in rounds(ROUNDS_MIN) {
        let text = format!("round {round}");
        tokio::join!(one.ok(connect("bob")), two.ok(connect("bob")));
        // The loser gets a `bye`.
        let (lost, (loser, winner)) = tokio::select! {
            lost = one.next() => (lost, (&mut one, &mut two)),
            lost = two.next() => (lost, (&mut two, &mut one)),
        };
        assert_eq!(lost, Some(BYE_TAKEN_OVER), "round {round}");
        sender.sent("bob", &text).await;
        let message = winner.message().await;
        assert_eq!(message.text, *text);
        winner.ack(message.sequence).await;
        assert!(
            loser.is_quiet().await && winner.is_quiet().await,
            "round {round}"
        );
        // Acks are written with a delay; the next round must not depend on it.
        loser.ok(Request::Disconnect).await;
        winner.ok(Request::Disconnect).await;
    }
}

#[tokio::test]
async fn recreated_account_gets_no_former_messages() {
    let servers = servers();
    let [mut operator, mut reader] = clients(&servers).await;
    let mut sender = Wire::connect(servers[1].address()).await;
    operator.create("bob").await;
    let mut last_sequence = 0;
    for round in rounds(ROUNDS_MIN) {
        // Number of sends answered when the new account was requested, and when
        // it was created.
        let [asked, made] = [AtomicU32::new(0), AtomicU32::new(0)];
        let (sent, is_over) = (AtomicU32::new(0), AtomicU32::new(0));
        let remake = async {
            // The race begins after a message of this round is stored.
            while sent.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
            operator.ok(delete("bob")).await;
            asked.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
            operator.ok(create("bob", None)).await;
            made.store(sent.load(Ordering::SeqCst), Ordering::SeqCst);
            is_over.store(1, Ordering::SeqCst);
        };
        let sending = async {
            let (mut stored, mut after) = (Vec::new(), 0);
            // At least three messages are for the new account.
            for n in 0.. {
                match sender.ask(send("bob", &n.to_string())).await {
                    Reply::Ok(_) => stored.push(n),
                    Reply::NotOk(refusal) if refusal.code == Code::NoSuchUser => {}
                    other => panic!("{other:?}"),
                }
                sent.store(n + 1, Ordering::SeqCst);
                after += is_over.load(Ordering::SeqCst);
                if after > 3 {
                    break;
                }
            }
            stored
        };
        let ((), stored) = tokio::join!(remake, sending);
        let queued = reader.receive("bob").await;
        let mut texts = Vec::new();
        for _ in 0..queued {
            let message = reader.message().await;
            assert!(
                message.sequence.0 > last_sequence,
                "a number was used twice"
            );
            last_sequence = message.sequence.0;
            texts.push(message.text.parse::<u32>().unwrap());
            reader.ack(message.sequence).await;
        }
        // Messages to this receiver must not affect the next round.
        reader.ok(Request::Disconnect).await;
        assert!(
            texts.is_sorted_by(|one, other| one < other),
            "round {round}: {texts:?}"
        );
        let (asked, made) = (asked.into_inner(), made.into_inner());
        assert!(
            texts.iter().all(|text| *text >= asked),
            "round {round}: {texts:?} from before {asked}"
        );
        // The first message requested after the account was created is `made +
        // 1`.
        let owed: Vec<u32> = stored.iter().copied().filter(|text| *text > made).collect();
        assert!(
            owed.len() >= 3 && texts.ends_with(&owed),
            "round {round}: {texts:?} lacks some of {owed:?}"
        );
        assert!(
            texts.iter().all(|text| stored.contains(text)),
            "round {round}: {texts:?} of {stored:?}"
        );
    }
}

/// Sends these texts of a session to bob until each has its outcome, and
/// repeats unanswered ones by the protocol's rules.
async fn send_all(server: &Harkd, session: &str, count: u32, mut answered: impl FnMut(usize)) {
    let mut open: Vec<u32> = (1..=count).collect();
    let until = Instant::now() + 3 * TIMEOUT;
    while !open.is_empty() {
        assert!(
            Instant::now() < until,
            "{} sends have no outcome",
            open.len()
        );
        let mut client = Wire::hello(server.address(), session).await;
        client
            .write_all(open.iter().map(|id| (*id, send("bob", &id.to_string()))))
            .await;
        let mut stored = HashSet::new();
        while stored.len() < open.len() {
            match next_within(&mut client, TIMEOUT).await {
                Some(Frame {
                    id: Some(id),
                    message: Reply::Ok(_),
                }) => {
                    stored.insert(id.value());
                    answered(stored.len());
                }
                // The connection was closed, or the send has to be repeated.
                None
                | Some(Frame {
                    message: Reply::Error { .. },
                    ..
                }) => break,
                Some(other) => panic!("{other:?}"),
            }
        }
        open.retain(|id| !stored.contains(id));
    }
}

async fn next_within<L: Link>(
    client: &mut Client<L>,
    answer_timeout: Duration,
) -> Option<Frame<Reply>> {
    timeout(answer_timeout, client.next()).await.ok().flatten()
}

/// Receives all messages queued for bob.
async fn drain(server: &Harkd, count: u64) -> Vec<Delivery> {
    let mut bob = Wire::connect(server.address()).await;
    assert_eq!(bob.receive("bob").await, count);
    let mut all = Vec::new();
    for _ in 0..count {
        let message = bob.message().await;
        bob.write(
            0,
            Request::Ack {
                log: None,
                sequence: message.sequence,
            },
        )
        .await;
        all.push(message);
    }
    assert!(bob.is_quiet().await);
    all
}

#[tokio::test]
async fn pipelined_sends_keep_order_across_leader_changes() {
    const COUNT: u32 = 1000;
    let mut nats = Nats::start();
    let location = StoreLocation::on(&nats);
    let stream = format!("{}-shard-0", location.chat());
    let [one, two] = [(); 2].map(|()| Harkd::builder().store(location.clone()).start());
    Wire::connect(one.address()).await.create("bob").await;
    for round in rounds(1) {
        let leader = nats.leader_of(&stream);
        let mut is_killed = false;
        send_all(&one, &format!("session{round}"), COUNT, |answered| {
            // Kills the leader in the middle, at a different position in each
            // round.
            if !is_killed && answered > 50 * (round as usize % 19) {
                nats.kill(leader);
                is_killed = true;
            }
        })
        .await;
        assert!(is_killed);
        nats.restart(leader);
        nats.wait_until_current();
        let texts = drain(&two, COUNT.into()).await;
        let expected: Vec<String> = (1..=COUNT).map(|n| n.to_string()).collect();
        assert!(
            texts.iter().map(|message| &*message.text).eq(&expected),
            "round {round}: {texts:?}"
        );
    }
}

/// Returns an address that forwards to a node, and stops forwarding its answers
/// once the client has sent `word`.
async fn deaf_proxy(node: SocketAddr, word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (mut from_node, mut to_node) = TcpStream::connect(node).await.unwrap().into_split();
            let (mut from_client, mut to_client) = client.into_split();
            let (deaf, mut is_deaf) = watch::channel(false);
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = from_client.read(&mut buffer).await {
                    let said = &buffer[..count];
                    deaf.send_modify(|deaf| {
                        *deaf |= said.windows(word.len()).any(|part| part == word.as_bytes())
                    });
                    to_node.write_all(said).await.unwrap();
                }
            });
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy(&mut from_node, &mut to_client) => {}
                    _ = is_deaf.wait_for(|is_deaf| *is_deaf) => {}
                }
                // Keeps the connection open and silent.
                std::future::pending::<()>().await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn repeat_is_stored_once_after_nats_restart() {
    let mut nats = Nats::start();
    let deaf = deaf_proxy(nats.address_of(0), "once").await;
    let location = StoreLocation::on(&nats);
    let mut two = Harkd::builder().store(location.clone()).start();
    let mut bob = Wire::connect(two.address()).await;
    bob.create("bob").await;
    bob.receive("bob").await;
    let mut one = Harkd::builder()
        .store(location.reached_by(&format!("nats://{deaf}")))
        .start();
    let mut alice = Wire::hello(one.address(), "session").await;
    alice.write(1, send("bob", "once")).await;
    let message = bob.message().await;
    assert_eq!(&*message.text, "once");
    one.kill();
    assert_eq!(alice.next().await, None, "no answer has come through");
    bob.ack(message.sequence).await;
    two.signal("TERM");
    assert!(two.wait().success(), "what was acknowledged is written");

    (0..3).for_each(|node| nats.kill(node));
    (0..3).for_each(|node| nats.restart(node));
    nats.wait_until_current();
    let one = Harkd::builder().store(location.clone()).start();
    let mut alice = Wire::hello(one.address(), "session").await;
    alice.write(1, send("bob", "once")).await;
    assert!(matches!(alice.reply_to(1).await, Reply::Ok(_)));
    alice.write(2, send("bob", "twice")).await;
    assert!(matches!(alice.reply_to(2).await, Reply::Ok(_)));
    let texts = drain(&one, 1).await;
    assert_eq!(&*texts[0].text, "twice");
}

/// Returns a server of a chat with several shards.
fn sharded(nats: &str, chat: &str) -> HarkdBuilder {
    let store = format!("{nats}/{chat}");
    Harkd::builder().store(store).arg("--shards=6")
}

/// Returns how often a server has claimed a shard.
fn claims(server: &Harkd) -> usize {
    server.log().matches("shard claimed").count()
}

/// Creates users, which are spread over the shards.
async fn create_users(server: &Harkd, count: usize) -> Vec<String> {
    let mut client = Wire::connect(server.address()).await;
    let users: Vec<_> = (0..count).map(|n| format!("user{n}")).collect();
    for user in &users {
        client.create(user).await;
    }
    users
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_joins_takes_over_its_shards() {
    let nats = Nats::shared().url();
    let one = sharded(&nats, "joined").start();
    let users = create_users(&one, 24).await;
    // That neither of them is preferred for any shard is as likely as one in 700.
    let joined = [(); 2].map(|()| sharded(&nats, "joined").start());
    let mut sender = Wire::hello(one.address(), "session").await;
    let (mut id, until) = (0, Instant::now() + 3 * TIMEOUT);
    while joined.iter().map(claims).sum::<usize>() == 0 {
        assert!(Instant::now() < until, "no shard has moved: {}", one.log());
        let burst = id + 1..=id + 24;
        id += 24;
        let sends = burst.clone().zip(&users);
        sender
            .write_all(sends.map(|(id, user)| (id, send(user, &id.to_string()))))
            .await;
        for id in burst {
            let reply = sender.reply_to(id).await;
            assert!(matches!(reply, Reply::Ok(_)), "{id}: {reply:?}");
        }
    }
    assert!(one.log().contains("handing the shard over"));
    for (at, user) in (1..).zip(&users) {
        let mut reader = Wire::connect(joined[0].address()).await;
        assert_eq!(reader.receive(user).await, u64::from(id / 24));
        let texts = (at..=id).step_by(24).map(|id| id.to_string());
        for text in texts.take(256) {
            assert_eq!(*reader.message().await.text, text);
        }
    }
}

mod long {
    use super::*;

    /// Longer than a server may be out of touch with a shard: see `timing.rs`.
    const OUT_OF_TOUCH: Duration = Duration::from_secs(40);

    #[tokio::test(flavor = "multi_thread")]
    async fn server_that_stood_still_stores_no_stale_send() {
        let [one, two] = servers();
        let mut reader = Wire::connect(one.address()).await;
        reader.create("bob").await;
        reader.receive("bob").await;
        let mut sender = Wire::hello(two.address(), "session").await;
        sender.write(1, send("bob", "before")).await;
        assert!(matches!(sender.reply_to(1).await, Reply::Ok(_)));
        two.signal("STOP");
        // One is in the socket, and the other in the backlog.
        sender.write(2, send("bob", "stale")).await;
        let mut unaccepted = TcpStream::connect(two.address()).await.unwrap();
        tokio::time::sleep(OUT_OF_TOUCH).await;
        two.signal("CONT");
        // The server may read before it learns how long it stood still, but passes nothing
        // on.
        let mut last = next_within(&mut sender, TIMEOUT).await;
        if let Some(frame) = &last {
            assert!(matches!(frame.message, Reply::Error { .. }), "{frame:?}");
            last = next_within(&mut sender, TIMEOUT).await;
        }
        assert_eq!(last, None, "the connection is closed");
        let read = timeout(TIMEOUT, unaccepted.read(&mut [0; 1]))
            .await
            .unwrap();
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
        let before = reader.message().await;
        assert_eq!(&*before.text, "before");
        reader.ack(before.sequence).await;
        assert!(reader.is_quiet().await, "the stale send is not stored");
        let mut sender = Wire::hello(two.address(), "session").await;
        sender.write(2, send("bob", "repeated")).await;
        assert!(matches!(sender.reply_to(2).await, Reply::Ok(_)));
        assert_eq!(&*reader.message().await.text, "repeated");
    }

    /// Longer than the election of a leader usually takes.
    const LEADER_FROZEN: Duration = Duration::from_secs(8);

    #[tokio::test(flavor = "multi_thread")]
    async fn appends_without_a_leader_change_no_owner() {
        let mut nats = Nats::start();
        // No server is connected to the third node.
        let [one, two] = [0, 1].map(|node| sharded(&nats.url_of(node), "slow").start());
        let users = create_users(&one, 24).await;
        let owners = || (claims(&one), claims(&two));
        let mut settled = (owners(), Instant::now());
        while settled.1.elapsed() < Duration::from_secs(12) {
            if owners() != settled.0 {
                settled = (owners(), Instant::now());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let leaders: Vec<_> = (0..6)
            .map(|shard| nats.leader_of(&format!("slow-shard-{shard}")))
            .collect();
        // A frozen node without a stream to lead changes nothing, either.
        println!("leaders: {leaders:?}");
        let mut sender = Wire::hello(two.address(), "session").await;
        nats.freeze(2);
        for (id, user) in (1..).zip(&users) {
            sender.write(id, send(user, "late")).await;
        }
        tokio::time::sleep(LEADER_FROZEN).await;
        nats.thaw(2);
        for id in 1..=24 {
            let reply = sender.reply_to(id).await;
            assert!(matches!(reply, Reply::Ok(_)), "{id}: {reply:?}");
        }
        assert_eq!(owners(), settled.0, "{}{}", one.log(), two.log());
    }
}
