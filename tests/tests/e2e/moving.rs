//! A chat moves from the folder of one machine to a cluster and back: `harkd export` and
//! `import` keep accounts, messages and numbers, and users get every message once.

use std::io::Write;
use std::path::Path;
use std::process::{Output, Stdio};

use hark_protocol::{Delivery, Reply, Request, Sequence};
use hark_tests::{Harkd, HarkdBuilder, Nats, Wire, harkd, name, send};

const USERS: u32 = 24;
const MESSAGES: u32 = 240;
/// Messages of the first user, who acknowledges one on each machine.
const OF_FIRST: u32 = MESSAGES / USERS;

fn on(store: impl AsRef<Path>) -> HarkdBuilder {
    Harkd::builder().store(store.as_ref()).numbers_by_clock()
}

/// Runs `harkd` with an input.
fn run(arguments: &[&str], store: impl AsRef<Path>, input: &[u8]) -> Output {
    let mut command = harkd();
    command.args(arguments).arg(store.as_ref());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A refusal reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn export(store: impl AsRef<Path>) -> Vec<u8> {
    let output = run(&["export"], store, b"");
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn import(store: impl AsRef<Path>, lines: &[u8]) -> String {
    let output = run(&["--shards=5", "import"], store, lines);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Fills a chat with users and messages. The first user has a password.
async fn fill(server: &Harkd) {
    let mut sender = Wire::hello(server.address(), "session").await;
    let ann = (name("ann"), Some("correct horse".parse().unwrap()));
    sender
        .ok(Request::Create {
            user: ann.0.clone(),
            password: ann.1.clone(),
        })
        .await;
    sender
        .ok(Request::Login {
            user: ann.0,
            password: ann.1,
        })
        .await;
    for user in 0..USERS {
        sender.create(&format!("user{user}")).await;
    }
    let sends = (0..MESSAGES).map(|n| (1000 + n, send(&format!("user{}", n % USERS), &text(n))));
    sender.write_all(sends).await;
    for n in 0..MESSAGES {
        assert!(matches!(sender.reply_to(1000 + n).await, Reply::Ok(_)));
    }
}

fn text(n: u32) -> String {
    format!("{n}, \"quoted\"\n🦀")
}

/// Receives all messages of a user, and acknowledges the first one.
async fn receive(server: &Harkd, user: u32) -> Vec<Delivery> {
    let mut reader = Wire::connect(server.address()).await;
    let mut messages = Vec::new();
    for _ in 0..reader.receive(&format!("user{user}")).await {
        messages.push(reader.message().await);
    }
    assert!(reader.is_quiet().await);
    if let Some(first) = messages.first() {
        reader.ack(first.sequence).await;
        reader.ping().await;
    }
    messages
}

fn stop(mut server: Harkd) {
    server.signal("TERM");
    assert!(server.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn chat_moves_to_a_cluster_and_back() {
    let [first, last] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let server = on(first.path()).start();
    fill(&server).await;
    let received = receive(&server, 0).await;
    assert_eq!(received.len(), OF_FIRST as usize);
    stop(server);
    let lines = export(first.path());

    let cluster = format!("{}/moved", Nats::shared().url());
    let total = MESSAGES - 1;
    let accounts = USERS + 1;
    assert_eq!(
        import(&cluster, &lines),
        format!("imported {accounts} accounts and {total} messages; 0 already existed\n")
    );
    assert!(export(&cluster) == lines, "the lines differ");

    let servers = [(); 2].map(|()| on(&cluster).start());
    let known = total + accounts;
    assert_eq!(
        import(&cluster, &lines),
        format!("imported 0 accounts and 0 messages; {known} already existed\n")
    );
    assert!(export(&cluster) == lines, "the lines differ");
    assert_eq!(receive(&servers[0], 0).await, received[1..]);
    for user in 1..USERS {
        let messages = receive(&servers[user as usize % 2], user).await;
        let texts = messages.iter().map(|message| message.text.to_string());
        assert!(texts.eq((user..MESSAGES).step_by(USERS as usize).map(text)));
    }
    let [one, two] = servers;
    let mut sender = Wire::connect(one.address()).await;
    let number = sender.ok(send("user0", "later")).await.as_stored();
    let highest = received.last().unwrap().sequence;
    assert!(number.is_some_and(|number| number > highest));
    stop(one);
    stop(two);

    let lines = export(&cluster);
    let remaining = MESSAGES - USERS;
    assert_eq!(
        import(last.path(), &lines),
        format!("imported {accounts} accounts and {remaining} messages; 0 already existed\n")
    );
    assert!(export(last.path()) == lines, "the lines differ");
    let server = on(last.path()).start();
    let rest = receive(&server, 0).await;
    assert_eq!(rest[..rest.len() - 1], received[2..]);
    assert_eq!(rest.last().map(|last| last.sequence), number);
}

#[tokio::test(flavor = "multi_thread")]
async fn import_into_a_cluster_continues_after_bad_lines() {
    let cluster = format!("{}/bad-lines", Nats::shared().url());
    let message = |to: &str, number: u64, text: &str| {
        format!(
            r#"{{"type":"message","to":"{to}","number":{number},"sender":"ann","time":5,"text":"{text}"}}"#
        )
    };
    let beyond: u64 = 9_000_000_000_000_000 - (1 << 42);
    let long = "x".repeat(9 << 20);
    let lines = [
        r#"{"type":"export","version":1}"#,
        r#"{"type":"account","name":"amy","cursor":3}"#,
        "no json",
        &message("amy", 7, "first"),
        &message("amy", 9, &long),
        &message("amy", 12, "last"),
        &message("amy", 7, "known"),
        &message("amy", 8, "behind"),
        &message("eve", 8, "to no account"),
        &format!(r#"{{"type":"account","name":"zoe","cursor":{beyond}}}"#),
    ];
    let output = run(
        &["--shards=5", "import"],
        &cluster,
        lines.join("\n").as_bytes(),
    );
    let (said, why) = (
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    );
    assert_eq!(
        said,
        "imported 2 accounts and 2 messages; 1 already existed\n"
    );
    assert!(!output.status.success() && why.contains("4 lines were not imported"));
    for bad in ["line 3:", "line 5: the text has", "line 8:", "line 9:"] {
        assert!(why.contains(bad), "{why}");
    }
    // The numbers of every shard are above all imported ones.
    let server = on(&cluster).start();
    let mut sender = Wire::connect(server.address()).await;
    for user in 0..USERS {
        let user = format!("user{user}");
        sender.create(&user).await;
        let number = sender.ok(send(&user, "hi")).await.as_stored();
        assert!(
            number.is_some_and(|number| number > Sequence(beyond)),
            "{number:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn import_continues_when_an_owner_is_killed() {
    const NUMBER: u64 = 8_000_000_000_000_000;
    let cluster = format!("{}/killed", Nats::shared().url());
    let mut servers = [(); 2].map(|()| on(&cluster).arg("--shards=5").start());
    let mut lines = vec![r#"{"type":"export","version":1}"#.to_owned()];
    for user in 0..100 {
        lines.push(format!(
            r#"{{"type":"account","name":"user{user}","cursor":0}}"#
        ));
    }
    for n in 0..20_000 {
        let (user, number) = (n % 100, NUMBER + n);
        lines.push(format!(
            r#"{{"type":"message","to":"user{user}","number":{number},"time":5,"text":"text {n}"}}"#
        ));
    }
    let input = lines.join("\n").into_bytes();
    let importing = {
        let cluster = cluster.clone();
        tokio::task::spawn_blocking(move || import(&cluster, &input))
    };
    let mut created = Wire::connect(servers[1].address()).await;
    while !matches!(created.ask(login("user99")).await, Reply::Ok(_)) {}
    servers[0].kill();
    assert_eq!(
        importing.await.unwrap(),
        "imported 100 accounts and 20000 messages; 0 already existed\n"
    );
    let exported = String::from_utf8(export(&cluster)).unwrap();
    let mut exported: Vec<_> = exported.lines().map(str::to_owned).collect();
    exported.sort_unstable();
    lines.sort_unstable();
    assert!(exported == lines, "the lines differ");
}

fn login(user: &str) -> Request {
    Request::Login {
        user: name(user),
        password: None,
    }
}

#[test]
fn export_of_an_absent_chat_is_refused() {
    let cluster = format!("{}/absent", Nats::shared().url());
    for _ in 0..2 {
        let output = run(&["export"], &cluster, b"");
        let why = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(why.contains("there is no chat \"absent\""), "{why}");
    }
    let output = run(&["export", "--salvage"], &cluster, b"");
    let why = String::from_utf8(output.stderr).unwrap();
    assert!(why.contains("--salvage applies only to a folder"), "{why}");
}
