//! Tokens: entering by them, their scopes, and their end.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use clap::Parser as _;
use hark_protocol::message::{Scope, TokenEntry};
use hark_protocol::{Code, OkFields, Password, Reply, Request, RoomReply, RoomRequest};

use super::devices::{Client, Pushed, chat, user};
use crate::chat::{Chat, Fault};
use crate::config::Cli;
use crate::shard::{ShardConfig, ShardStore};

const PASSWORD: &str = "correct horse";
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn store() -> Arc<ShardStore> {
    let config = ShardConfig {
        numbers_after: Some(0),
        ..ShardConfig::DEFAULT
    };
    Arc::new(ShardStore::memory(config).unwrap())
}

fn secret(text: &str) -> Option<Password> {
    Some(text.parse().unwrap())
}

fn login(name: &str, password: &str) -> Request {
    Request::Login {
        user: user(name),
        password: secret(password),
    }
}

fn attach(name: &str, password: &str) -> Request {
    Request::Room(RoomRequest::Attach {
        user: user(name),
        device: "phone".parse().unwrap(),
        password: secret(password),
    })
}

fn send(to: &str) -> Request {
    Request::Send {
        user: user(to),
        text: "x".into(),
    }
}

fn create_token(name: &str, scope: &str) -> Request {
    Request::Room(RoomRequest::Token {
        name: name.parse().unwrap(),
        scope: scope.parse().unwrap(),
    })
}

fn revoke(name: &str) -> Request {
    Request::Room(RoomRequest::Revoke(name.parse().unwrap()))
}

fn delete(name: &str) -> Request {
    Request::Delete {
        user: user(name),
        password: None,
    }
}

/// Returns a chat with the users amy, who has a password, and bob, and a connection of amy.
async fn amy() -> (Arc<Chat>, Client) {
    with_amy(chat(store())).await
}

async fn with_amy(chat: Arc<Chat>) -> (Arc<Chat>, Client) {
    let mut client = Client::new(&chat);
    for (name, password) in [("amy", secret(PASSWORD)), ("bob", None)] {
        let user = user(name);
        client.ok(Request::Create { user, password }).await;
    }
    client.ok(login("amy", PASSWORD)).await;
    (chat, client)
}

impl Client {
    async fn token(&mut self, name: &str, scope: &str) -> String {
        let fields = self.ok(create_token(name, scope)).await;
        let secret = fields.as_token().unwrap().expose().to_owned();
        assert!(secret.starts_with("hk_") && secret.len() == 46, "{secret}");
        secret
    }
}

/// Returns a connection that has entered by a token.
async fn entered(chat: &Arc<Chat>, token: &str) -> Client {
    let mut client = Client::new(chat);
    client.ok(login("amy", token)).await;
    client
}

#[tokio::test]
async fn token_stands_for_the_password() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let mut client = Client::new(&chat);
    client.ok(attach("amy", &token)).await;
    client.ok(send("bob")).await;
    client.create_room("#team").await;
    client.ok(delete("#team")).await;
    let list = Request::Room(RoomRequest::Tokens);
    amy.begin(list).await;
    let Some(Reply::Room(RoomReply::Token(listed))) = amy.next().await else {
        panic!("no token")
    };
    let TokenEntry {
        name,
        scope,
        used_ms,
    } = listed;
    assert_eq!((name.as_str(), scope), ("laptop", Scope::All));
    assert!(used_ms > 1_700_000_000_000);
    assert_eq!(
        amy.next().await,
        Some(Reply::Ok(OkFields::Listed(1, false)))
    );
}

#[tokio::test]
async fn token_of_another_user_is_a_wrong_password() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let mut eve = Client::new(&chat);
    let create = Request::Create {
        user: user("eve"),
        password: secret(PASSWORD),
    };
    eve.ok(create).await;
    assert_eq!(eve.refused(login("eve", &token)).await, Code::Denied);
    let unknown = format!("hk_{}", "x".repeat(43));
    assert_eq!(eve.refused(login("amy", &unknown)).await, Code::Denied);
    eve.ok(login("eve", PASSWORD)).await;
}

#[tokio::test]
async fn token_administers_no_account() {
    let rules = Cli::parse_from(["harkd", "--admin", "amy"]).serve.rules();
    let store = store();
    let operator = Arc::new(Chat::new(
        Arc::clone(&store) as _,
        Cli::parse_from(["harkd"]).serve.rules(),
    ));
    let (_, mut amy) = with_amy(operator).await;
    let token = amy.token("laptop", "all").await;
    let chat = Arc::new(Chat::new(store, rules));
    let mut client = entered(&chat, &token).await;
    let change = Request::Password {
        user: user("amy"),
        old: secret(PASSWORD),
        new: PASSWORD.parse().unwrap(),
    };
    let forget = Request::Room(RoomRequest::Forget(None));
    for request in [
        change,
        forget,
        delete("amy"),
        delete("bob"),
        create_token("more", "send"),
        revoke("laptop"),
    ] {
        let code = client.refused(request.clone()).await;
        assert_eq!(code, Code::Denied, "{request:?}");
    }
    // Nor does it stand for the password as a field of a command.
    let mut anonymous = Client::new(&chat);
    let delete = Request::Delete {
        user: user("amy"),
        password: secret(&token),
    };
    assert_eq!(anonymous.refused(delete).await, Code::Denied);
}

#[tokio::test]
async fn scope_bounds_what_a_token_allows() {
    let (chat, mut amy) = amy().await;
    let to_bob = amy.token("to-bob", "send:bob").await;
    let mut client = entered(&chat, &to_bob).await;
    client.ok(send("bob")).await;
    for request in [
        send("amy"),
        attach("amy", &to_bob),
        Request::List { pattern: None },
    ] {
        let code = client.refused(request.clone()).await;
        assert_eq!(code, Code::Denied, "{request:?}");
    }
    assert_eq!(
        Client::new(&chat).refused(attach("amy", &to_bob)).await,
        Code::Denied
    );
    let receive = amy.token("reader", "receive").await;
    let mut client = Client::new(&chat);
    client.ok(attach("amy", &receive)).await;
    assert_eq!(client.refused(send("bob")).await, Code::Denied);
    let number = amy.say("amy", "hello").await;
    let message = Pushed::Message(number, "hello".to_owned());
    assert_eq!(client.pushes(1).await, [message]);
    client.ack("", number);
}

#[tokio::test]
async fn revocation_closes_the_connections_of_its_token() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let other = amy.token("phone", "all").await;
    let mut first = Client::new(&chat);
    first.ok(attach("amy", &token)).await;
    let mut second = entered(&chat, &token).await;
    let mut third = entered(&chat, &other).await;
    let connection = crate::chat::ShutdownSignal::default();
    let inbox = chat.inbox((&connection, HERE), user("amy"), secret(&token), None);
    let inbox = inbox.await.unwrap();
    let mut log = inbox.unread_logs().await.unwrap().remove(0);
    amy.ok(revoke("laptop")).await;
    // Before the answer: what arrives from now on is not served.
    for client in [&mut first, &mut second] {
        assert_eq!(client.pushes(1).await, [Pushed::Closed]);
    }
    let Err(Fault::Refused(refusal)) = inbox.read(&mut log).await else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, Code::Denied);
    third.ok(send("bob")).await;
    let login = login("amy", &token);
    assert_eq!(Client::new(&chat).refused(login).await, Code::Denied);
}

#[tokio::test]
async fn login_with_the_password_outlives_the_token() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let mut client = Client::new(&chat);
    client.ok(attach("amy", &token)).await;
    client.ok(login("amy", PASSWORD)).await;
    amy.ok(revoke("laptop")).await;
    client.ok(Request::Ping).await;
    assert!(client.pushes.is_empty());
}

#[tokio::test]
async fn new_token_replaces_the_one_of_its_name() {
    let (chat, mut amy) = amy().await;
    let former = amy.token("laptop", "all").await;
    let mut client = entered(&chat, &former).await;
    let token = amy.token("laptop", "send").await;
    assert_eq!(client.pushes(1).await, [Pushed::Closed]);
    assert_eq!(
        Client::new(&chat).refused(login("amy", &former)).await,
        Code::Denied
    );
    entered(&chat, &token).await;
}

#[tokio::test]
async fn new_password_ends_tokens_and_their_connections() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let mut client = entered(&chat, &token).await;
    let change = Request::Password {
        user: user("amy"),
        old: secret(PASSWORD),
        new: "battery staple".parse().unwrap(),
    };
    amy.ok(change).await;
    assert_eq!(client.pushes(1).await, [Pushed::Closed]);
    assert_eq!(
        Client::new(&chat).refused(login("amy", &token)).await,
        Code::Denied
    );
    // The connection stays logged in, but proves no more than the former password.
    let request = create_token("laptop", "all");
    assert_eq!(amy.refused(request).await, Code::Denied);
}

#[tokio::test]
async fn account_without_a_password_has_no_token() {
    let (chat, _) = amy().await;
    let mut bob = Client::login(&chat, "bob").await;
    assert_eq!(bob.refused(create_token("x", "all")).await, Code::Denied);
    assert_eq!(
        Client::new(&chat).refused(create_token("x", "all")).await,
        Code::Denied
    );
}

#[tokio::test]
async fn wrong_tokens_count_for_their_address() {
    let (chat, mut amy) = amy().await;
    let token = amy.token("laptop", "all").await;
    let right: Password = token.parse().unwrap();
    let wrong: Password = format!("hk_{}", "x".repeat(43)).parse().unwrap();
    let code = async |secret: &Password| match chat.identify(HERE, secret).await {
        Ok(user) => Err(user.to_string()),
        Err(Fault::Refused(refusal)) => Ok(refusal.code),
        Err(fault) => panic!("{fault:?}"),
    };
    assert_eq!(code(&right).await, Err("amy".to_owned()));
    for _ in 0..20 {
        assert_eq!(code(&wrong).await, Ok(Code::Denied));
    }
    assert_eq!(code(&wrong).await, Ok(Code::RateLimited));
    assert_eq!(code(&right).await, Err("amy".to_owned()));
    let login = login("amy", "wrong password");
    assert_eq!(Client::new(&chat).refused(login).await, Code::RateLimited);
}
