//! `harkd admin` on a running server, and `harkd restore`.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use hark_grpc::admin::add_credentials;
use hark_grpc::v1::admin_client::AdminClient;
use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{self, BackupRequest, DrainRequest, GetStatsRequest};
use hark_protocol::{Code, Request, Sequence};
use hark_tests::{FarMachine, Front, Harkd, StoreLocation, Wire, add_user, harkd, name, send};
use serde_json::{Value, json};

/// Runs `harkd admin`.
fn admin(store: &Path, arguments: &[&str]) -> Output {
    let mut command = harkd();
    command.arg("admin").arg("--store").arg(store);
    command
        .args(arguments)
        .env("HARKD_PASSWORD", "new secret")
        .output()
        .unwrap()
}

/// Runs `harkd admin --json`, and returns the objects that it prints.
#[track_caller]
pub(crate) fn answers(server: &Harkd, arguments: &[&str]) -> Vec<Value> {
    let output = admin(server.store(), &[&["--json"], arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[track_caller]
pub(crate) fn answer(server: &Harkd, arguments: &[&str]) -> Value {
    let mut all = answers(server, arguments);
    assert_eq!(all.len(), 1, "{arguments:?}: {all:?}");
    all.remove(0)
}

/// Returns the message of a command that fails.
#[track_caller]
pub(crate) fn failure(server: &Harkd, arguments: &[&str]) -> String {
    let output = admin(server.store(), arguments);
    assert!(!output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn login(user: &str, password: Option<&str>) -> Request {
    Request::Login {
        user: name(user),
        password: password.map(|password| password.parse().unwrap()),
    }
}

#[tokio::test]
async fn users_and_connections_are_listed() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["amy", "bob", "eve"] {
        wire.create(user).await;
    }
    wire.sent("bob", "hello").await;
    wire.receive("bob").await;
    let bob = answer(&server, &["show", "bob"]);
    for (field, expected) in [
        ("receiving", Value::Bool(true)),
        ("password", Value::Bool(false)),
        ("suspended", Value::Bool(false)),
        ("waiting", 1.into()),
        ("waiting_bytes", 5.into()),
    ] {
        assert_eq!(bob[field], expected, "{bob}");
    }
    let mut grpc = Front::Bidi.connect(server.address()).await;
    grpc.receive("eve").await;
    let page = answers(&server, &["users", "--limit=2"]);
    assert_eq!(page.len(), 2);
    assert_eq!(page[1]["name"], "bob");
    let rest = answers(&server, &["users", "--after=bob"]);
    assert_eq!(rest[0]["name"], "eve");
    let connections = answers(&server, &["connections"]);
    let users: Vec<_> = connections.iter().map(|c| c["users"].to_string()).collect();
    assert_eq!(users, ["[\"bob\"]", "[\"eve\"]"]);
    let stats = answer(&server, &["stats"]);
    assert_eq!(
        (&stats["accounts"], &stats["connections"]),
        (&3.into(), &2.into())
    );
    assert!(failure(&server, &["show", "nobody"]).contains("there is no user nobody"));
    let table = admin(server.store(), &["show", "bob"]).stdout;
    let table = String::from_utf8(table).unwrap();
    let fields: Vec<_> = table.lines().map(str::split_whitespace).collect();
    let name: Vec<_> = fields[0].clone().collect();
    assert_eq!(name, ["name", "bob"], "{table}");
    assert!(!server.log().contains("hello"), "no text is logged");
}

#[tokio::test]
async fn kick_closes_the_connections_of_a_user() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.receive("bob").await;
    let mut grpc = Front::Bidi.connect(server.address()).await;
    grpc.receive("bob").await;
    let mut other = Wire::connect(server.address()).await;
    other.ping().await;
    assert_eq!(answer(&server, &["kick", "bob"])["closed"], 2);
    other.ping().await;
    let mut again = Wire::connect(server.address()).await;
    again.receive("bob").await;
    // The connection of the call stays open.
    let connections = answers(&server, &["connections"]);
    let mut idle = connections.iter().filter(|open| open["users"] == json!([]));
    let id = idle.next_back().unwrap()["id"].to_string();
    assert_eq!(answer(&server, &["kick", &id])["closed"], 1);
    assert_eq!(other.next().await, None);
    again.ping().await;
    server.wait_for_log("administration command=\"kick\" object=\"bob\" uid=");
}

#[tokio::test]
async fn kick_finds_a_call_among_many() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    let mut client = ChatClient::new(channel(&server).await);
    let connect = v1::ConnectRequest {
        user: "bob".to_owned(),
        ..v1::ConnectRequest::default()
    };
    let mut received = client.connect(connect).await.unwrap().into_inner();
    for n in 0..40 {
        let user = format!("user{n}");
        wire.create(&user).await;
        let send = v1::SendRequest {
            to: "bob".to_owned(),
            text: "hello".to_owned(),
            login: Some(v1::Credentials {
                user,
                password: String::new(),
            }),
            ..v1::SendRequest::default()
        };
        client.send(send).await.unwrap();
    }
    assert_eq!(answer(&server, &["kick", "bob"])["closed"], 1);
    let ended = loop {
        match received.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert!(ended.is_err(), "{ended:?}");
    assert_eq!(answer(&server, &["show", "bob"])["receiving"], false);
}

#[tokio::test]
async fn suspended_user_cannot_log_in_or_send() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["amy", "bob"] {
        wire.create(user).await;
    }
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    answer(&server, &["suspend", "bob"]);
    while bob.next().await.is_some() {}
    wire.refused(login("bob", None), Code::Denied).await;
    wire.sent("bob", "for later").await;
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.refused(login("bob", None), Code::Denied).await;
    assert_eq!(answer(&server, &["show", "bob"])["suspended"], true);
    answer(&server, &["resume", "bob"]);
    assert_eq!(wire.receive("bob").await, 1);
    assert_eq!(&*wire.message().await.text, "for later");
    wire.sent("amy", "I am back").await;
    assert!(failure(&server, &["suspend", "nobody"]).contains("no user nobody"));
}

#[tokio::test]
async fn ban_refuses_a_network_until_it_ends() {
    let test = "ban_refuses_a_network_until_it_ends";
    let Some(_far) = FarMachine::of_test(module_path!(), test) else {
        return;
    };
    let server = Harkd::builder()
        .listen(&format!("{}:0", FarMachine::NEAR_ADDRESS))
        .args(["--allow-plaintext", "--allow-open-accounts"])
        .start();
    let mut open = Wire::connect(server.address()).await;
    open.ping().await;
    let network = "10.200.0.0/24";
    answer(&server, &["ban", network, "--for=1h"]);
    assert_eq!(open.next().await, None);
    let server = server.kill_and_restart();
    let bans = answers(&server, &["bans"]);
    assert_eq!(bans[0]["network"], network);
    assert!(bans[0]["until_ms"].as_u64() > Some(0), "{bans:?}");
    let mut refused = Wire::connect(server.address()).await;
    refused.write_all([(1, Request::Ping)]).await;
    let reply = format!("{:?}", refused.next().await);
    assert!(reply.contains("banned"), "{reply}");
    answer(&server, &["unban", network]);
    Wire::connect(server.address()).await.ping().await;
    assert!(failure(&server, &["unban", network]).contains("is not banned"));
    assert!(failure(&server, &["ban", "nonsense"]).contains("ADDRESS/PREFIX"));
}

/// Asks for figures over the network.
async fn stats_as(server: &Harkd, user: &str, password: &str) -> Result<u64, tonic::Code> {
    let mut request = tonic::Request::new(GetStatsRequest {});
    let (user, password) = (name(user), password.parse().unwrap());
    add_credentials(request.metadata_mut(), &user, &password).unwrap();
    let mut client = AdminClient::new(channel(server).await);
    match client.get_stats(request).await {
        Ok(stats) => Ok(stats.into_inner().accounts),
        Err(status) => Err(status.code()),
    }
}

async fn channel(server: &Harkd) -> tonic::transport::Channel {
    let address = format!("http://{}", server.address());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    endpoint.connect().await.unwrap()
}

#[tokio::test]
async fn only_admins_administer_over_the_network() {
    let store = tempfile::tempdir().unwrap();
    let store = store.path().join("store");
    for user in ["ann", "bob"] {
        add_user(&store, user, Some("secret"));
    }
    let builder = Harkd::builder().store(StoreLocation::from(store));
    let server = builder.arg("--admin=ann").start();
    assert_eq!(stats_as(&server, "ann", "secret").await, Ok(2));
    for (user, password) in [("ann", "wrong"), ("bob", "secret")] {
        let refused = stats_as(&server, user, password).await;
        assert_eq!(refused, Err(tonic::Code::PermissionDenied), "{user}");
    }
    let mut anonymous = AdminClient::new(channel(&server).await);
    let refused = anonymous.drain(DrainRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    let backup = BackupRequest {
        folder: "/nowhere".to_owned(),
    };
    let mut request = tonic::Request::new(backup);
    let (user, password) = (name("ann"), "secret".parse().unwrap());
    add_credentials(request.metadata_mut(), &user, &password).unwrap();
    let refused = anonymous.backup(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    server.wait_for_log("administration command=\"stats\" object=\"\" by=ann address=127.0.0.1");
}

#[tokio::test]
async fn password_log_level_reload_and_drain() {
    let mut server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    answer(&server, &["set-password", "bob"]);
    wire.refused(login("bob", None), Code::Denied).await;
    wire.ok(login("bob", Some("new secret"))).await;
    answer(&server, &["log", "--level=debug"]);
    wire.ping().await;
    drop(Wire::connect(server.address()).await);
    server.wait_for_log("DEBUG");
    let reloaded = answer(&server, &["reload"]);
    assert_eq!(reloaded["changed"].to_string(), "[]", "{reloaded}");
    assert!(failure(&server, &["log", "--level=loud"]).contains("invalid --log"));
    drop(wire);
    answer(&server, &["drain"]);
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.log().contains("new secret"));
    let error = failure(&server, &["stats"]);
    assert!(error.contains("cannot reach the server"), "{error}");
}

/// A sender that counts the messages that were answered.
async fn send_until(
    server: std::net::SocketAddr,
    to: &'static str,
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
) {
    let mut wire = Wire::connect(server).await;
    let padding = ".".repeat(2000);
    while !stop.load(Ordering::Acquire) {
        let number = answered.load(Ordering::Acquire);
        wire.sent(to, &format!("{number} {padding}")).await;
        answered.store(number + 1, Ordering::Release);
    }
}

/// Receives and acknowledges all waiting messages, and returns their numbers and the first
/// word of each text.
async fn drain_inbox(wire: &mut Wire, user: &str) -> Vec<(Sequence, usize)> {
    let mut messages = Vec::new();
    for _ in 0..wire.receive(user).await {
        let message = wire.message().await;
        wire.ack(message.sequence).await;
        let word = message.text.split(' ').next().unwrap().parse().unwrap();
        messages.push((message.sequence, word));
    }
    messages
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_under_load_has_every_answered_message() {
    let server = Harkd::builder().numbers_by_clock().start();
    let mut wire = Wire::connect(server.address()).await;
    for user in ["bob", "eve"] {
        wire.create(user).await;
    }
    let stop = Arc::<AtomicBool>::default();
    let [kept, read] = [(); 2].map(|()| Arc::<AtomicUsize>::default());
    let senders = [("bob", &kept), ("eve", &read)].map(|(to, answered)| {
        let (stop, answered) = (Arc::clone(&stop), Arc::clone(answered));
        tokio::spawn(send_until(server.address(), to, stop, answered))
    });
    // A reader that acknowledges, so that segments are recycled meanwhile.
    let mut reader = Wire::connect(server.address()).await;
    reader.receive("eve").await;
    let reader = tokio::spawn(async move {
        loop {
            let message = reader.message().await;
            reader.ack(message.sequence).await;
        }
    });
    let folder = tempfile::tempdir().unwrap();
    while kept.load(Ordering::Acquire) < 500 {
        tokio::task::yield_now().await;
    }
    let mut backups = Vec::new();
    for number in 0..3 {
        let before = kept.load(Ordering::Acquire);
        let backup = folder.path().join(number.to_string());
        let (store, to) = (server.store().to_owned(), backup.clone());
        let run = move || admin(&store, &["backup", "--to", to.to_str().unwrap()]);
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        backups.push((backup, before));
    }
    stop.store(true, Ordering::Release);
    for sender in senders {
        sender.await.unwrap();
    }
    reader.abort();
    let last: u64 = answer(&server, &["stats"])["last_number"].as_u64().unwrap();
    drop(server);
    for (backup, before) in backups {
        check_restored(&backup, before, last).await;
    }
}

/// Restores a backup, and checks that it has at least the first `before` messages, in
/// order, and numbers new ones above `last`.
async fn check_restored(backup: &Path, before: usize, last: u64) {
    let folder: PathBuf = backup.join("restored");
    let mut command = harkd();
    let output = command.arg("restore").arg(backup).arg(&folder).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    let builder = Harkd::builder().store(StoreLocation::from(folder.clone()));
    let server = builder.numbers_by_clock().start();
    let mut wire = Wire::connect(server.address()).await;
    let messages = drain_inbox(&mut wire, "bob").await;
    assert!(messages.len() >= before, "{} of {before}", messages.len());
    for (expected, (_, word)) in messages.iter().enumerate() {
        assert_eq!(*word, expected);
    }
    assert!(messages.is_sorted_by_key(|(sequence, _)| *sequence));
    wire.sent("bob", "0 new").await;
    let new = wire.message().await;
    assert!(new.sequence.0 > last, "{} and {last}", new.sequence);
}

#[tokio::test]
async fn incomplete_or_misplaced_backup_is_refused() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    wire.create("bob").await;
    wire.ok(send("bob", "hello")).await;
    let folder = tempfile::tempdir().unwrap();
    let backup = folder.path().join("backup");
    let to = backup.to_str().unwrap();
    answer(&server, &["backup", "--to", to]);
    let error = failure(&server, &["backup", "--to", to]);
    assert!(error.contains("not empty"), "{error}");
    let restore = |to: &Path| {
        let mut command = harkd();
        let output = command.arg("restore").arg(&backup).arg(to).output();
        output.unwrap()
    };
    let output = restore(server.store());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("is not empty"), "{error}");
    let within = server.store().join("log/backup");
    let error = failure(&server, &["backup", "--to", within.to_str().unwrap()]);
    assert!(error.contains("within the folder"), "{error}");
    std::fs::remove_file(backup.join("COMPLETE")).unwrap();
    let output = restore(&folder.path().join("store"));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("no complete backup"), "{error}");
}
