//! Start of a server on a cluster, and its errors: one line with the remedy.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use hark_protocol::{ByeReason, Reply, Request};
use hark_tests::{Authority, Harkd, HarkdBuilder, Nats, StoreLocation, Wire, name};
use nkeys::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;

#[track_caller]
fn check_refused(builder: HarkdBuilder, words: &[&str]) {
    let refusal = builder.try_start().map(|server| server.log()).unwrap_err();
    assert!(!refusal.status.success());
    let lines: Vec<&str> = refusal.log.lines().collect();
    let said = lines
        .iter()
        .position(|line| line.starts_with("harkd: "))
        .expect("a line of harkd's own");
    assert_eq!(
        said,
        lines.len() - 1,
        "one line, and the last: {}",
        refusal.log
    );
    assert!(
        words.iter().all(|word| lines[said].contains(word)),
        "{:?} lacks one of {words:?}",
        lines[said]
    );
}

fn at(address: impl std::fmt::Display) -> HarkdBuilder {
    Harkd::builder().store(format!("nats://{address}/chat"))
}

#[test]
fn unreachable_cluster_is_refused_with_its_address() {
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    check_refused(
        at(free),
        &[
            "cannot connect to the cluster",
            &free.to_string(),
            "is it running",
        ],
    );
}

/// Starts a pretended node that sends `INFO` with these values in place of
/// valid ones, and `PONG`. Returns its address.
fn pretended_node(values: Value) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut info = json!({
        "server_id": "x", "server_name": "old", "version": "2.15.1", "go": "x", "host": "127.0.0.1",
        "port": address.port(), "headers": true, "max_payload": 1_048_576, "proto": 1, "client_id": 1,
        "jetstream": true,
    });
    info.as_object_mut()
        .unwrap()
        .extend(values.as_object().unwrap().clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            write!(stream, "INFO {info}\r\n").unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in lines.map_while(Result::ok) {
                // The server may have disconnected.
                if line == "PING" && stream.write_all(b"PONG\r\n").is_err() {
                    break;
                }
            }
        }
    });
    address
}

#[test]
fn older_node_is_refused_by_version() {
    for version in ["2.9.10", "2.15.0"] {
        let node = pretended_node(json!({ "version": version }));
        check_refused(at(node), &["old", version, "upgrade it to 2.15.1"]);
    }
}

#[test]
fn node_without_jetstream_is_refused() {
    let node = pretended_node(json!({ "jetstream": false }));
    check_refused(at(node), &["old", "no JetStream", "add `jetstream"]);
}

#[test]
fn node_with_small_payload_limit_is_refused() {
    let nats = Nats::builder(1).config("max_payload: 16KB").start();
    check_refused(
        at(nats.address_of(0)),
        &["16384", "max_payload", "--max-frame"],
    );
    let fitting = at(nats.address_of(0)).args(["--max-frame=8192", "--shards=1"]);
    drop(fitting.start());
}

#[test]
fn foreign_stream_is_refused_and_untouched() {
    let nats = Nats::builder(1).start();
    let orders = json!({ "name": "chat-shard-0", "subjects": ["orders"], "num_replicas": 1 });
    let made = request(
        nats.address_of(0),
        "$JS.API.STREAM.CREATE.chat-shard-0",
        &orders,
    );
    assert!(made["error"].is_null(), "{made}");
    check_refused(
        at(nats.address_of(0)),
        &["chat-shard-0", "its subjects", "--store nats://…/NAME"],
    );
    let found = request(
        nats.address_of(0),
        "$JS.API.STREAM.INFO.chat-shard-0",
        &Value::Null,
    );
    assert_eq!(found["config"]["subjects"], orders["subjects"]);
    // There is room for another chat on the same cluster.
    drop(Harkd::builder().store(StoreLocation::on(&nats)).start());
}

#[test]
fn chat_with_the_former_layout_is_refused() {
    let nats = Nats::builder(1).start();
    let accounts = json!({
        "name": "chat-accounts", "subjects": ["chat.account.*"], "num_replicas": 1,
        "metadata": { "hark-layout": "1" },
    });
    let made = request(
        nats.address_of(0),
        "$JS.API.STREAM.CREATE.chat-accounts",
        &accounts,
    );
    assert!(made["error"].is_null(), "{made}");
    check_refused(
        at(nats.address_of(0)),
        &["chat-accounts", "early version", "--store nats://…/NAME"],
    );
}

#[test]
fn more_replicas_than_nodes_are_refused() {
    let nats = Nats::builder(1).start();
    let builder = Harkd::builder()
        .store(StoreLocation::on(&nats))
        .arg("--replicas=3");
    check_refused(builder, &["-shard-0", "--replicas"]);
}

/// Sends a request to a node in the NATS text protocol.
fn request(node: SocketAddr, subject: &str, body: &Value) -> Value {
    let mut stream = std::net::TcpStream::connect(node).unwrap();
    let body = if body.is_null() {
        String::new()
    } else {
        body.to_string()
    };
    let length = body.len();
    write!(
        stream,
        "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {length}\r\n{body}\r\n"
    )
    .unwrap();
    let lines = BufReader::new(stream).lines();
    let answer = lines
        .map(Result::unwrap)
        .skip_while(|line| !line.starts_with("MSG "))
        .nth(1);
    serde_json::from_str(&answer.unwrap()).unwrap()
}

#[tokio::test]
async fn chat_keeps_its_number_of_streams() {
    let nats = Nats::builder(1).start();
    let users: Vec<String> = (0..8).map(|n| format!("user{n}")).collect();
    let first = at(nats.address_of(0)).arg("--shards=3").start();
    let mut sender = Wire::connect(first.address()).await;
    for user in &users {
        sender.create(user).await;
        sender.sent(user, "made over three").await;
    }
    drop(first);
    // A new chat would use a different number of streams.
    let second = at(nats.address_of(0)).start();
    let names = request(nats.address_of(0), "$JS.API.STREAM.NAMES", &Value::Null);
    assert_eq!(names["total"], 3, "{names}");
    for user in &users {
        let mut reader = Wire::connect(second.address()).await;
        assert_eq!(reader.receive(user).await, 1);
        assert_eq!(reader.message().await.text, "made over three");
    }
}

/// Returns a file with this first line, and its folder.
fn secret(line: &str) -> (PathBuf, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    std::fs::write(&path, format!("{line}\n")).unwrap();
    (path, folder)
}

#[test]
fn nats_password_comes_from_a_file() {
    let nats = Nats::builder(1)
        .config("authorization { user: hark, password: right }")
        .start();
    let location = StoreLocation::on(&nats);
    let (right, _right) = secret("right");
    let (wrong, _wrong) = secret("wrong");
    let with = |file: &PathBuf| {
        let file = file.display().to_string();
        Harkd::builder().store(location.clone()).args([
            "--nats-user=hark",
            "--nats-password-file",
            &file,
        ])
    };
    drop(with(&right).start());
    check_refused(
        with(&wrong),
        &["cannot connect to the cluster", "authorization", "--nats-"],
    );
    check_refused(
        Harkd::builder().store(location.clone()),
        &["cannot connect to the cluster", "--nats-"],
    );
    check_refused(with(&PathBuf::from("/none")), &["cannot read /none"]);
}

#[test]
fn nats_token_comes_from_a_file() {
    let nats = Nats::builder(1)
        .config("authorization { token: right }")
        .start();
    let location = StoreLocation::on(&nats);
    for (line, is_right) in [("right", true), ("wrong", false)] {
        let (file, _folder) = secret(line);
        let file = file.display().to_string();
        let builder = Harkd::builder()
            .store(location.clone())
            .args(["--nats-token-file", &file]);
        if is_right {
            drop(builder.start());
        } else {
            check_refused(
                builder,
                &["cannot connect to the cluster", "authorization", "--nats-"],
            );
        }
    }
}

/// Returns a JWT with these claims about `subject`, signed by an nkey (NATS
/// decision record ADR-14).
fn jwt(signer: &KeyPair, subject: &KeyPair, nats: &Value) -> String {
    let claims = json!({
        "iss": signer.public_key(), "sub": subject.public_key(), "iat": 1_700_000_000,
        "name": "hark", "nats": nats,
    });
    let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let signature = signer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", encode(&signature))
}

#[test]
fn nats_credentials_come_from_a_creds_file() {
    let [operator, system] = [KeyPair::new_operator(), KeyPair::new_account()];
    let [account, stranger] = [KeyPair::new_account(), KeyPair::new_account()];
    let unlimited = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let of_account = json!({"type": "account", "version": 2, "limits": unlimited});
    let of_system = json!({"type": "account", "version": 2});
    let nats = Nats::builder(1)
        .config(&format!(
            "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload {{ {}: {}, {}: {} }}",
            jwt(&operator, &operator, &json!({"type": "operator", "version": 2})),
            system.public_key(),
            system.public_key(),
            jwt(&operator, &system, &of_system),
            account.public_key(),
            jwt(&operator, &account, &of_account),
        ))
        .start();
    let location = StoreLocation::on(&nats);
    let with = |account: &KeyPair| {
        let user = KeyPair::new_user();
        let rights = json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1});
        let (file, folder) = secret(&format!(
            "-----BEGIN NATS USER JWT-----\n{}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------",
            jwt(account, &user, &rights),
            user.seed().unwrap(),
        ));
        let file = file.display().to_string();
        (
            Harkd::builder()
                .store(location.clone())
                .args(["--nats-creds", &file]),
            folder,
        )
    };
    let (right, _right) = with(&account);
    drop(right.start());
    let (wrong, _wrong) = with(&stranger);
    check_refused(
        wrong,
        &["cannot connect to the cluster", "authorization", "--nats-"],
    );
}

#[test]
fn tls_nodes_are_trusted_by_named_authority() {
    // The port of the node is known only after its start.
    let certificate = Authority::trusted().sign(&["localhost"]);
    let (file, key) = (certificate.path(), certificate.key());
    let tls = format!("tls {{ cert_file: {file:?}, key_file: {key:?} }}");
    let mut nats = Nats::builder(1).config(&tls).start();
    let address = nats.address_of(0);
    certificate.replace(Authority::trusted(), &[&address.ip().to_string()]);
    nats.kill(0);
    nats.restart(0);
    nats.wait_until_current();
    let location = StoreLocation::on(&nats);
    for scheme in ["tls", "nats"] {
        let builder =
            || Harkd::builder().store(location.reached_by(&format!("{scheme}://{address}")));
        let authority = certificate.authority().display().to_string();
        drop(builder().args(["--nats-ca", &authority]).start());
        check_refused(
            builder(),
            &["cannot connect to the cluster", "certificate", "--nats-ca"],
        );
    }
    let other = Authority::new()
        .sign(&["localhost"])
        .authority()
        .display()
        .to_string();
    let builder = Harkd::builder().store(location.reached_by(&format!("tls://{address}")));
    check_refused(
        builder.args(["--nats-ca", &other]),
        &["cannot connect to the cluster", "certificate", "--nats-ca"],
    );
}

#[test]
fn secret_in_the_address_is_refused() {
    check_refused(
        at("hark:secret@127.0.0.1"),
        &["must not contain a user or a secret", "--nats-user"],
    );
}

#[test]
fn sync_setting_of_nodes_is_logged() {
    for (builder, words) in [
        (
            Nats::builder(1),
            "INFO hark_server::cluster::io::monitor: NATS node syncs before it acknowledges",
        ),
        (
            Nats::builder(1).without_sync(),
            "NATS node acknowledges before it syncs",
        ),
    ] {
        let nats = builder.start();
        let location = StoreLocation::on(&nats);
        let silent = Harkd::builder().store(location.clone()).start();
        assert!(
            silent.log().contains("durability of NATS not checked"),
            "{}",
            silent.log()
        );
        let monitor = nats.monitor_of(0).to_string();
        let server = Harkd::builder()
            .store(location)
            .args(["--nats-monitor", &monitor])
            .start();
        assert!(server.log().contains(words), "{}", server.log());
    }
    let nats = Nats::builder(1).start();
    let nobody = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let server = Harkd::builder()
        .store(StoreLocation::on(&nats))
        .args(["--nats-monitor", &nobody])
        .start();
    assert!(
        server.log().contains("durability of NATS node unknown"),
        "{}",
        server.log()
    );
}

#[tokio::test]
async fn operator_manages_accounts_of_a_running_cluster() {
    let nats = Nats::builder(1).start();
    let location = StoreLocation::on(&nats);
    let user = |arguments: &[&str]| {
        let mut command = Command::new(hark_tests::binary("harkd"));
        command
            .args(location.args())
            .arg("user")
            .args(arguments)
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let said = if output.status.success() {
            output.stdout
        } else {
            output.stderr
        };
        String::from_utf8(said).unwrap()
    };
    // The chat does not exist yet; the first command creates it.
    assert_eq!(user(&["add", "bob", "--no-password"]), "added bob\n");
    let server = Harkd::builder().store(location.clone()).start();
    let mut bob = Wire::connect(server.address()).await;
    bob.receive("bob").await;
    let (file, _folder) = secret("secret");
    assert_eq!(
        user(&["add", "eve", "--password-file", file.to_str().unwrap()]),
        "added eve\n"
    );
    let password = |text: &str| Some(text.parse().unwrap());
    let mut eve = Wire::connect(server.address()).await;
    eve.ok(Request::Login {
        user: name("eve"),
        password: password("secret"),
    })
    .await;
    let (file, _folder) = secret("new");
    let changed = user(&[
        "set-password",
        "eve",
        "--password-file",
        file.to_str().unwrap(),
    ]);
    assert_eq!(changed, "set the password of eve\n");
    eve.ok(Request::Login {
        user: name("eve"),
        password: password("new"),
    })
    .await;
    assert_eq!(user(&["list"]), "bob\neve\n");
    assert_eq!(user(&["remove", "bob"]), "removed bob\n");
    assert_eq!(
        bob.next().await.map(|frame| frame.message),
        Some(Reply::Bye(ByeReason::Deleted))
    );
    assert_eq!(user(&["list"]), "eve\n");
}
