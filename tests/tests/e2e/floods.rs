//! Overload of the real server: it delays excessive input, refuses what exceeds
//! its limits, and reports both.

use std::process::Command;
use std::time::{Duration, Instant};

use futures::future::join_all;
use hark_protocol::{Code, Reply, Request};
use hark_tests::{
    Classic, Client, Front, Harkd, HarkdBuilder, Native, TIMEOUT, Wire, name, send, wait_until,
};
use tokio::net::{TcpSocket, TcpStream};

hark_tests::through_all_fronts! {
    sessions:
        connection_over_byte_rate_is_delayed,
        user_over_byte_rate_is_delayed,
        throttled_session_stores_once_in_order,
        throttled_user_still_receives_at_full_speed,
        sessions_per_address_are_limited,
        unacceptable_connections_cost_no_time;
    calls:
        connection_over_command_rate_is_delayed,
        connections_of_a_user_share_its_rate,
        loopback_is_not_throttled_by_default,
        connections_over_the_rate_are_refused_with_wait;
}

/// Starts a server with only these limits, which also apply to the loopback.
fn limited<'a>(arguments: impl IntoIterator<Item = &'a str>) -> HarkdBuilder {
    let all = [
        "--limit-loopback",
        "--max-connects-per-second=0",
        "--max-commands-per-second=0",
        "--max-bytes-per-second=0",
        "--max-user-commands-per-second=0",
        "--max-user-bytes-per-second=0",
    ];
    let chosen: Vec<&str> = arguments.into_iter().collect();
    let flag = |argument: &str| argument.split('=').next().unwrap().to_owned();
    let remaining = all
        .into_iter()
        .filter(|one| chosen.iter().all(|other| flag(one) != flag(other)));
    remaining
        .chain(chosen.iter().copied())
        .fold(Harkd::builder(), HarkdBuilder::arg)
}

/// Sends pings, as many at once as possible.
async fn ping(client: &mut Client, count: u32) {
    client
        .write_all((1..=count).map(|id| (id, Request::Ping)))
        .await;
    for id in 1..=count {
        let reply = client.reply_to(id).await;
        assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
    }
}

fn login(user: &str) -> Request {
    Request::Login {
        user: name(user),
        password: None,
    }
}

#[track_caller]
fn check_took(begun: Instant, at_least: Duration) {
    let took = begun.elapsed();
    assert!(took >= at_least, "{took:?}, and not {at_least:?}");
}

async fn connection_over_command_rate_is_delayed(one: Front, _: Front) {
    let server = limited(["--max-commands-per-second=100"]).start();
    let mut client = one.connect(server.address()).await;
    let begun = Instant::now();
    ping(&mut client, 600).await;
    check_took(begun, Duration::from_millis(900));
}

async fn connections_of_a_user_share_its_rate(one: Front, other: Front) {
    let server = limited(["--max-user-commands-per-second=100"]).start();
    let mut client = other.connect(server.address()).await;
    client.create("bob").await;
    client.create("eve").await;
    let begun = Instant::now();
    let flood = |_| async {
        let mut bob = one.connect(server.address()).await;
        bob.ok(login("bob")).await;
        ping(&mut bob, 200).await;
    };
    let flood = join_all((0..5).map(flood));
    let others = async {
        client.ok(login("eve")).await;
        for _ in 0..20 {
            client.sent("bob", "hello").await;
        }
        Instant::now()
    };
    let (_, sent) = tokio::join!(flood, others);
    check_took(begun, Duration::from_millis(4900));
    assert!(
        sent.elapsed() > Duration::from_millis(200),
        "eve has waited for bob: {:?}",
        sent - begun
    );
}

async fn loopback_is_not_throttled_by_default(one: Front, other: Front) {
    let rates = [
        "connects",
        "commands",
        "bytes",
        "user-commands",
        "user-bytes",
    ];
    let builder = rates.iter().fold(Harkd::builder(), |all, rate| {
        all.arg(format!("--max-{rate}-per-second=1"))
    });
    let server = builder.start();
    let begun = Instant::now();
    for front in [one, other].repeat(5) {
        let mut client = front.connect(server.address()).await;
        ping(&mut client, 20).await;
    }
    // With these limits in force it would take minutes.
    assert!(begun.elapsed() < TIMEOUT, "{:?}", begun.elapsed());
}

async fn connection_over_byte_rate_is_delayed(one: Front, other: Front) {
    let server = limited(["--max-bytes-per-second=100000"]).start();
    let mut client = one.connect(server.address()).await;
    client.create("bob").await;
    check_bytes(client).await;
    // Another connection has a limit of its own.
    let begun = Instant::now();
    other
        .connect(server.address())
        .await
        .sent("bob", &"x".repeat(60_000))
        .await;
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
}

async fn user_over_byte_rate_is_delayed(one: Front, other: Front) {
    let server = limited(["--max-user-bytes-per-second=100000"]).start();
    let mut client = one.connect(server.address()).await;
    client.create("bob").await;
    client.ok(login("bob")).await;
    check_bytes(client).await;
    // Another connection of the user continues where the first one ended.
    let mut client = other.connect(server.address()).await;
    client.ok(login("bob")).await;
    let begun = Instant::now();
    for _ in 0..3 {
        client.sent("bob", &"x".repeat(60_000)).await;
    }
    check_took(begun, Duration::from_millis(900));
}

/// Sends 660 kB, of which 500 pass at once and 100 per second afterwards.
async fn check_bytes(mut client: Client) {
    let begun = Instant::now();
    let text = "x".repeat(60_000);
    client
        .write_all((1..=11).map(|id| (id, send("bob", &text))))
        .await;
    client.write(12, Request::Ping).await;
    client.reply_to(12).await;
    check_took(begun, Duration::from_millis(700));
    for id in 1..=11 {
        assert!(matches!(client.reply_to(id).await, Reply::Ok(_)));
    }
}

async fn throttled_session_stores_once_in_order(one: Front, other: Front) {
    let server = limited([
        "--max-commands-per-second=200",
        "--max-user-commands-per-second=200",
    ])
    .start();
    let mut bob = other.connect(server.address()).await;
    bob.create("bob").await;
    let requests = |from: u32| (from..=1500).map(|id| (id, send("bob", &id.to_string())));
    let mut client = one.hello(server.address(), "session").await;
    client.ok(login("bob")).await;
    client.write_all(requests(1).take(1400)).await;
    // The connection is throttled by now, and most of its input is unread.
    for id in 1..=1050 {
        assert!(matches!(client.reply_to(id).await, Reply::Ok(_)));
    }
    drop(client);
    let mut client = one.hello(server.address(), "session").await;
    client.ok(login("bob")).await;
    client.write_all(requests(1051)).await;
    for id in 1051..=1500 {
        let reply = client.reply_to(id).await;
        assert!(matches!(reply, Reply::Ok(_)), "{id}: {reply:?}");
    }
    assert_eq!(bob.receive("bob").await, 1500);
    for id in 1..=1500 {
        let message = bob.message().await;
        assert_eq!(*message.text, *id.to_string());
        if id % 100 == 0 {
            bob.write(
                0,
                Request::Ack {
                    log: None,
                    sequence: message.sequence,
                },
            )
            .await;
        }
    }
}

async fn throttled_user_still_receives_at_full_speed(one: Front, other: Front) {
    let server = limited(["--max-commands-per-second=100"]).start();
    let mut bob = one.connect(server.address()).await;
    bob.create("bob").await;
    bob.receive("bob").await;
    bob.write_all((1..=2000).map(|id| (id, Request::Ping)))
        .await;
    bob.reply_to(500).await;
    // From here on one command is read every 10 ms, for 15 s.
    let mut eve = other.connect(server.address()).await;
    for nth in 0..100 {
        eve.sent("bob", &nth.to_string()).await;
    }
    let mut replies = 0;
    let mut messages = 0;
    while messages < 100 {
        match bob.next().await.unwrap().message {
            Reply::String(_) => messages += 1,
            reply => {
                assert!(matches!(reply, Reply::Ok(_)), "{reply:?}");
                replies += 1;
            }
        }
    }
    assert!(replies < 1900, "the messages came after all replies");
}

async fn connections_over_the_rate_are_refused_with_wait(one: Front, other: Front) {
    let server = limited(["--max-connects-per-second=1"]).start();
    let mut open = Vec::new();
    for front in [one, other, one, other, one] {
        let mut client = front.connect(server.address()).await;
        client.ping().await;
        open.push(client);
    }
    let mut refused = Wire::connect(server.address()).await;
    refused.write(1, Request::Ping).await;
    let frame = refused.next().await.expect("a word");
    let Reply::NotOk(refusal) = frame.message else {
        panic!("{frame:?}")
    };
    assert_eq!((frame.id, refusal.code), (None, Code::RateLimited));
    assert_eq!(refused.next().await, None);
    tokio::time::sleep(refusal.retry_after().expect("the seconds to wait")).await;
    other.connect(server.address()).await.ping().await;
    open[0].ping().await;
}

#[tokio::test]
async fn old_client_over_the_rate_is_delayed() {
    let server = limited(["--max-commands-per-second=5"]).start();
    let mut client = Classic::connect(server.address()).await;
    let begun = Instant::now();
    for _ in 0..30 {
        assert_eq!(
            client.ask("ping", "").await,
            ("ok".to_owned(), String::new())
        );
    }
    check_took(begun, Duration::from_millis(900));
}

fn open_files(server: &Harkd) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid()))
        .unwrap()
        .count()
}

/// Limits the open files of a running server.
fn limit_files(server: &Harkd, files_max: usize) {
    let pid = server.pid().to_string();
    let status = Command::new("prlimit")
        .args(["--pid", &pid, &format!("--nofile={files_max}")])
        .status();
    assert!(status.expect("prlimit, of util-linux").success());
}

async fn sessions_per_address_are_limited(one: Front, other: Front) {
    let server = limited(["--require-password", "--max-sessions=8"]).start();
    let mut refused = 0;
    for nth in 0..20 {
        let mut nobody = [one, other][nth % 2].connect(server.address()).await;
        let session = format!("session{nth}").parse().unwrap();
        match nobody
            .ask(Request::Hello {
                version: 1,
                session,
            })
            .await
        {
            // A refusal is remembered like any other outcome.
            Reply::Ok(_) => drop(nobody.refused(send("bob", "x"), Code::Denied).await),
            Reply::NotOk(refusal) if refusal.code == Code::TooMany => refused += 1,
            reply => panic!("{reply:?}"),
        }
    }
    assert_eq!(refused, 18, "a quarter of all is for one address");
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut elsewhere = Client::over(Native::over(
        socket.connect(server.address()).await.unwrap(),
    ));
    elsewhere
        .ok(Request::Hello {
            version: 1,
            session: "elsewhere".parse().unwrap(),
        })
        .await;
}

/// Waits until the server has created the files that the store prepares.
async fn wait_for_prepared_files(server: &Harkd) {
    let mut before = 0;
    while std::mem::replace(&mut before, open_files(server)) != before {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn unacceptable_connections_cost_no_time(one: Front, other: Front) {
    let server = Harkd::start();
    let mut eve = one.connect(server.address()).await;
    eve.create("bob").await;
    let mut bob = other.connect(server.address()).await;
    bob.receive("bob").await;
    wait_for_prepared_files(&server).await;
    limit_files(&server, open_files(&server) + 10);
    // The system accepts all of them; the server can have ten.
    let mut crowd = Vec::new();
    for _ in 0..40 {
        crowd.push(TcpStream::connect(server.address()).await.unwrap());
    }
    server.wait_for_log("cannot accept connections");
    let (before, begun) = (server.processor_time(), Instant::now());
    for nth in 0..30 {
        eve.sent("bob", &nth.to_string()).await;
        let message = bob.message().await;
        assert_eq!(*message.text, *nth.to_string());
        bob.ack(message.sequence).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (used, elapsed) = (
        server.processor_time() - before,
        begun.elapsed().as_millis() as u64 / 10,
    );
    assert!(
        used < elapsed / 4,
        "{used} of {elapsed} hundredths of a second"
    );
    // The store may close a file, whose slot the next connection takes.
    let reported = server.log().matches("cannot accept connections").count();
    assert!(reported <= 3, "{}", server.log());
    crowd.truncate(10);
    crowd.remove(0);
    crowd.remove(0);
    server.wait_for_log("accepting connections again");
    let mut late = one.connect(server.address()).await;
    late.sent("bob", "in").await;
    assert_eq!(&*bob.message().await.text, "in");
}

#[tokio::test]
async fn connections_leave_files_for_the_store() {
    let server = Harkd::builder()
        .run_by(["prlimit", "--nofile=500:500"])
        .start();
    assert!(
        server.log().contains("connections limited by open files"),
        "{}",
        server.log()
    );
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let mut crowd = Vec::new();
    for _ in 0..300 {
        crowd.push(TcpStream::connect(server.address()).await.unwrap());
    }
    wait_until("a connection to be refused", || {
        server.log().contains("has reached its connection limit")
    });
    // The store creates further files meanwhile.
    let text = "x".repeat(60_000);
    for _ in 0..10 {
        wire.write_all((1..=60).map(|id| (id, send("bob", &text))))
            .await;
        for id in 1..=60 {
            assert!(matches!(wire.reply_to(id).await, Reply::Ok(_)));
        }
    }
    assert!(
        !server.log().contains("cannot accept") && !server.log().contains("ERROR"),
        "{}",
        server.log()
    );
    drop(crowd);
}

#[tokio::test]
async fn log_lines_of_refused_connections_are_limited() {
    const REFUSED: usize = 400;
    let mut server = Harkd::builder()
        .arg("--max-connections-per-address=1")
        .arg("--limit-loopback")
        .start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ping().await;
    for _ in 0..REFUSED {
        let mut refused = Wire::connect(server.address()).await;
        refused.write(1, Request::Ping).await;
        assert!(matches!(
            refused.next().await.expect("a word").message,
            Reply::NotOk(_)
        ));
    }
    drop(wire);
    server.signal("TERM");
    assert!(server.wait().success());
    let log = server.log();
    let lines = log.matches("connection refused").count();
    assert!((100..REFUSED / 2).contains(&lines), "{lines} lines");
    let suppressed: usize = log
        .lines()
        .filter(|line| line.contains("suppressed similar lines"))
        .filter_map(|line| {
            line.split_once("count=")?
                .1
                .split_whitespace()
                .next()?
                .parse::<usize>()
                .ok()
        })
        .sum();
    assert_eq!(lines + suppressed, REFUSED, "{log}");
}
