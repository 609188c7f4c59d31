//! Tokens over every front, by `curl` and by `hark token`.

use std::path::Path;
use std::process::Output;

use hark_grpc::v1::chat_client::ChatClient;
use hark_grpc::v1::{Credentials, RevokeRequest, SendRequest, TokenRequest, TokensRequest};
use hark_protocol::{Code, Password, Reply, Request, RoomRequest};
use hark_tests::{Client, Front, Harkd, Link, hark, harkd, name, send, wait_until};
use serde_json::json;
use tonic::transport::Endpoint;

use super::http::{Stream, curl};

const PASSWORD: &str = "correct horse";

fn secret(text: &str) -> Option<Password> {
    Some(text.parse().unwrap())
}

fn login(user: &str, password: &str) -> Request {
    Request::Login {
        user: name(user),
        password: secret(password),
    }
}

fn attach(user: &str, password: &str) -> Request {
    Request::Room(RoomRequest::Attach {
        user: name(user),
        device: "phone".parse().unwrap(),
        password: secret(password),
    })
}

fn revoke(token: &str) -> Request {
    Request::Room(RoomRequest::Revoke(token.parse().unwrap()))
}

/// Creates ann, who has a password, and bob. Returns a connection of ann.
async fn ann(server: &Harkd, front: Front) -> Client {
    let mut client = front.connect(server.address()).await;
    client.create("bob").await;
    let create = Request::Create {
        user: name("ann"),
        password: secret(PASSWORD),
    };
    client.ok(create).await;
    client.ok(login("ann", PASSWORD)).await;
    client
}

async fn token<L: Link>(client: &mut Client<L>, token: &str, scope: &str) -> String {
    let request = RoomRequest::Token {
        name: token.parse().unwrap(),
        scope: scope.parse().unwrap(),
    };
    let fields = client.ok(Request::Room(request)).await;
    fields.as_token().unwrap().expose().to_owned()
}

#[tokio::test]
async fn token_enters_and_ends_over_every_session_front() {
    for front in [Front::Native, Front::WebSocket, Front::Bidi] {
        let server = Harkd::start();
        let mut ann = ann(&server, front).await;
        let all = token(&mut ann, "laptop", "all").await;
        let to_bob = token(&mut ann, "to-bob", "send:bob").await;
        let mut reader = front.connect(server.address()).await;
        reader.ok(attach("ann", &all)).await;
        let mut sender = front.hello(server.address(), "s").await;
        sender.ok(login("ann", &to_bob)).await;
        sender.ok(send("bob", "hello")).await;
        sender.refused(send("ann", "hello"), Code::Denied).await;

        ann.ok(revoke("laptop")).await;
        assert_eq!(reader.next().await, None, "closed over {front:?}");
        let mut again = front.connect(server.address()).await;
        again.refused(login("ann", &all), Code::Denied).await;
        sender.ok(send("bob", "still")).await;

        let server = server.kill_and_restart();
        let mut sender = front.connect(server.address()).await;
        sender.ok(login("ann", &to_bob)).await;
        let mut again = front.connect(server.address()).await;
        again.refused(login("ann", &all), Code::Denied).await;
        let list = again.ask(Request::Room(RoomRequest::Tokens)).await;
        assert!(matches!(list, Reply::NotOk(_)), "{list:?}");
    }
}

#[tokio::test]
async fn grpc_calls_manage_and_take_tokens() {
    let server = Harkd::start();
    drop(ann(&server, Front::Native).await);
    let endpoint = Endpoint::from_shared(format!("http://{}", server.address())).unwrap();
    let mut chat = ChatClient::new(endpoint.connect().await.unwrap());
    let login = |password: &str| {
        Some(Credentials {
            user: "ann".to_owned(),
            password: password.to_owned(),
        })
    };
    let create = TokenRequest {
        name: "backup".to_owned(),
        scope: "send:bob".to_owned(),
        login: login(PASSWORD),
    };
    let token = chat.token(create).await.unwrap().into_inner().secret;
    let send = |to: &str| SendRequest {
        to: to.to_owned(),
        text: "done".to_owned(),
        login: login(&token),
        idempotency: None,
    };
    assert!(chat.send(send("bob")).await.unwrap().into_inner().sequence > Some(0));
    let refused = chat.send(send("ann")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);

    let list = TokensRequest {
        login: login(PASSWORD),
    };
    let mut tokens = chat.tokens(list).await.unwrap().into_inner();
    let listed = tokens.message().await.unwrap().unwrap().token.unwrap();
    assert_eq!((&*listed.name, &*listed.scope), ("backup", "send:bob"));
    assert!(listed.used_ms > 0);
    assert_eq!(tokens.message().await.unwrap(), None);

    let revoke = RevokeRequest {
        name: "backup".to_owned(),
        login: login(PASSWORD),
    };
    chat.revoke(revoke).await.unwrap();
    let refused = chat.send(send("bob")).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    // A token is no part of a debug output.
    let reply = hark_grpc::v1::TokenReply { secret: token };
    assert!(!format!("{reply:?}").contains("hk_"));
}

#[tokio::test]
async fn http_takes_tokens_as_basic_and_bearer() {
    let server = Harkd::builder().arg("--require-password").start();
    let create = |user: &str| {
        let target = format!("/v1/users/{user}");
        assert_eq!(
            curl(&server, &target, &["-X", "PUT", "-d", PASSWORD]).status,
            201
        );
    };
    create("ann");
    create("bob");
    let mut ann = Front::Native.connect(server.address()).await;
    ann.ok(login("ann", PASSWORD)).await;
    let to_bob = token(&mut ann, "to-bob", "send:bob").await;
    let reader = token(&mut ann, "reader", "receive").await;
    let all = token(&mut ann, "laptop", "all").await;
    let bearer = |token: &str| format!("Authorization: Bearer {token}");

    let post = |to: &str, token: &str| {
        let target = format!("/v1/send/{to}");
        curl(&server, &target, &["-d", "done", "-H", &bearer(token)])
    };
    assert_eq!(post("bob", &to_bob).status, 201);
    let basic = format!("ann:{to_bob}");
    let sent = curl(&server, "/v1/send/bob", &["-d", "done", "-u", &basic]);
    assert_eq!(sent.status, 201);
    post("ann", &to_bob).check(403, "denied");
    post("bob", &reader).check(403, "denied");
    post("bob", &format!("hk_{}", "x".repeat(43))).check(401, "denied");
    let messages = curl(
        &server,
        "/v1/receive/bob",
        &["-u", &format!("bob:{PASSWORD}")],
    );
    let senders = messages
        .lines()
        .into_iter()
        .map(|line| line["sender"].clone());
    assert_eq!(senders.collect::<Vec<_>>(), ["ann", "ann"]);

    let number = post("ann", &all).json()["number"].to_string();
    for token in [&reader, &all] {
        let read = curl(&server, "/v1/receive/ann", &["-H", &bearer(token)]);
        assert_eq!(read.lines().len(), 1);
    }
    curl(&server, "/v1/receive/ann", &["-H", &bearer(&to_bob)]).check(403, "denied");
    curl(&server, "/v1/receive/bob", &["-H", &bearer(&reader)]).check(403, "denied");
    let wrong_scope = ["-X", "POST", "-H", &bearer(&to_bob)];
    curl(&server, "/v1/receive/ann", &wrong_scope).check(403, "denied");
    curl(
        &server,
        "/v1/users/ann",
        &["-X", "DELETE", "-H", &bearer(&all)],
    )
    .check(403, "denied");

    let mut stream = Stream::open(&server, "/v1/receive/ann", &["-H", &bearer(&reader)]);
    assert_eq!(stream.next()["text"], "done");
    let ack = format!("/v1/ack/ann?number={number}");
    let acked = curl(&server, &ack, &["-X", "POST", "-H", &bearer(&reader)]);
    assert_eq!(acked.json(), json!({}));
    ann.ok(revoke("reader")).await;
    assert_eq!(stream.rest(), "", "closed");
    curl(&server, "/v1/receive/ann", &["-H", &bearer(&reader)]).check(401, "denied");
    wait_until("the acknowledgement", || {
        let read = curl(&server, "/v1/receive/ann", &["-H", &bearer(&all)]);
        read.body.is_empty()
    });
}

fn hark_token(server: &Harkd, state: &Path, password: &str, arguments: &[&str]) -> Output {
    hark(state)
        .args(arguments)
        .env("HARK_SERVER", server.address().to_string())
        .env("HARK_AS", "ann")
        .env("HARK_PASSWORD", password)
        .output()
        .unwrap()
}

#[tokio::test]
async fn hark_creates_lists_and_revokes_tokens() {
    let server = Harkd::start();
    drop(ann(&server, Front::Native).await);
    let state = tempfile::tempdir().unwrap();
    let run = |password: &str, arguments: &[&str]| {
        let output = hark_token(&server, state.path(), password, arguments);
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        (output.status.success(), text)
    };
    let (_, created) = run(PASSWORD, &["token", "create", "backup", "send:bob"]);
    let secret = created.trim_end();
    assert!(secret.starts_with("hk_"), "{created:?}");
    assert_eq!(
        run(PASSWORD, &["token", "list"]),
        (true, "backup send:bob -\n".to_owned())
    );
    assert!(run(secret, &["send", "bob", "done"]).0);
    assert!(!run(secret, &["send", "ann", "done"]).0);
    let (_, listed) = run(PASSWORD, &["token", "list"]);
    assert!(listed.starts_with("backup send:bob 2"), "{listed}");
    assert!(run(PASSWORD, &["token", "revoke", "backup"]).0);
    assert!(!run(secret, &["send", "bob", "done"]).0);
}

fn admin(server: &Harkd, arguments: &[&str]) {
    let admin = harkd()
        .args(["admin", "--store"])
        .arg(server.store())
        .args(arguments)
        .env("HARKD_PASSWORD", "new secret")
        .output()
        .unwrap();
    assert!(admin.status.success(), "{admin:?}");
}

#[tokio::test]
async fn administrator_holds_up_and_ends_tokens() {
    let server = Harkd::start();
    let mut ann = ann(&server, Front::Native).await;
    let all = token(&mut ann, "laptop", "all").await;
    let mut reader = Front::WebSocket.connect(server.address()).await;
    reader.ok(attach("ann", &all)).await;
    let bearer = format!("Authorization: Bearer {all}");
    let post = || curl(&server, "/v1/send/bob", &["-d", "x", "-H", &bearer]);
    let mut stream = Stream::open(&server, "/v1/receive/ann", &["-H", &bearer]);
    let number = curl(&server, "/v1/send/ann", &["-d", "x", "-H", &bearer]);
    assert_eq!(number.status, 201);
    assert_eq!(stream.next()["text"], "x");

    admin(&server, &["suspend", "ann"]);
    assert_eq!(stream.rest(), "");
    reader.message().await;
    assert_eq!(reader.next().await, None);
    post().check(403, "denied");
    let mut again = Front::Native.connect(server.address()).await;
    again.refused(login("ann", &all), Code::Denied).await;

    admin(&server, &["resume", "ann"]);
    assert_eq!(post().status, 201);
    again.ok(login("ann", &all)).await;
    admin(&server, &["set-password", "ann"]);
    assert_eq!(again.next().await, None, "its token has ended");
    post().check(401, "denied");
    let server = server.kill_and_restart();
    let mut again = Front::Native.connect(server.address()).await;
    again.refused(login("ann", &all), Code::Denied).await;
    again.ok(login("ann", "new secret")).await;

    let all = token(&mut again, "laptop", "all").await;
    curl(
        &server,
        "/v1/users/ann",
        &["-u", "ann:new secret", "-X", "DELETE"],
    );
    let bearer = format!("Authorization: Bearer {all}");
    let ended = curl(&server, "/v1/send/bob", &["-d", "x", "-H", &bearer]);
    ended.check(401, "denied");
}
