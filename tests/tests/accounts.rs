//! Accounts, passwords, `list`, and the flags about them, of the real server
//! and through all fronts.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::Write;
use std::process::{Command, Stdio};

use hark_protocol::{Code, Reply, Request, UserName};
use hark_tests::{Client, Front, Harkd, HarkdBuilder, Wire, name, send};

hark_tests::through_all_fronts! {
    sessions:
        who_has_entered_an_account_deletes_it_without_a_password,
        wrong_passwords_are_limited_and_lock_out_nobody_who_is_right_elsewhere,
        a_flood_of_logins_does_not_stall_the_chat,
        with_require_password_nobody_does_nothing_but_create,
        with_require_password_an_account_without_one_is_not_entered,
        list_is_sorted_matches_anywhere_and_is_cut_with_a_word;
    calls:
        an_account_with_a_password_needs_it_for_everything_but_mail,
        an_open_account_can_be_given_a_password,
        with_closed_registration_only_the_operator_creates,
        accounts_and_queues_have_limits_that_say_so;
}

fn create(user: &str, password: Option<&str>) -> Request {
    Request::Create { user: name(user), password: secret(password) }
}

fn login(user: &str, password: Option<&str>) -> Request {
    Request::Login { user: name(user), password: secret(password) }
}

fn connect(user: &str, password: Option<&str>) -> Request {
    Request::Connect { user: name(user), password: secret(password) }
}

fn delete(user: &str, password: Option<&str>) -> Request {
    Request::Delete { user: name(user), password: secret(password) }
}

fn set_password(user: &str, old: Option<&str>, new: &str) -> Request {
    Request::Password { user: name(user), old: secret(old), new: new.parse().unwrap() }
}

fn list(pattern: &str) -> Request {
    Request::List { pattern: (!pattern.is_empty()).then(|| pattern.to_owned().into()) }
}

fn secret(password: Option<&str>) -> Option<hark_protocol::Password> {
    password.map(|password| password.parse().unwrap())
}

async fn start(front: Front, builder: HarkdBuilder) -> (Harkd, Client) {
    let server = builder.start();
    let client = front.connect(server.address()).await;
    (server, client)
}

/// An id that no other request of these tests has.
const LIST_ID: u32 = 1_000_000;

/// All names of a list, and what its `ok` says.
async fn listed(wire: &mut Client, pattern: &str) -> (Vec<UserName>, (usize, bool)) {
    wire.write(LIST_ID, list(pattern)).await;
    let mut names = Vec::new();
    loop {
        match wire.reply_to(LIST_ID).await {
            Reply::List(more) => names.extend(more),
            Reply::Ok(fields) => return (names, fields.as_listed().unwrap()),
            other => panic!("{other:?}"),
        }
    }
}

async fn an_account_with_a_password_needs_it_for_everything_but_mail(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    wire.refused(create("bob", Some("secret")), Code::Exists).await;
    wire.sent("bob", "hello").await;
    let mut bob = other.connect(server.address()).await;
    for wrong in [None, Some("wrong")] {
        bob.refused(connect("bob", wrong), Code::Denied).await;
        bob.refused(delete("bob", wrong), Code::Denied).await;
    }
    bob.refused(set_password("bob", None, "new"), Code::Denied).await;
    bob.ok(set_password("bob", Some("secret"), "new")).await;
    let server = server.kill_and_restart();
    let mut wire = one.connect(server.address()).await;
    wire.refused(connect("bob", Some("secret")), Code::Denied).await;
    assert_eq!(wire.ok(connect("bob", Some("new"))).await.as_queued(), Some(1));
    let mut bob = other.connect(server.address()).await;
    assert_eq!(bob.ok(delete("bob", Some("new"))).await.as_deleted(), Some(true));
    assert_eq!(bob.ok(delete("bob", Some("new"))).await.as_deleted(), Some(false));
}

async fn who_has_entered_an_account_deletes_it_without_a_password(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    let mut bob = other.connect(server.address()).await;
    for wrong in [None, Some("wrong")] {
        bob.refused(login("bob", wrong), Code::Denied).await;
    }
    bob.ok(login("bob", Some("secret"))).await;
    wire.refused(delete("bob", None), Code::Denied).await;
    assert_eq!(bob.ok(delete("bob", None)).await.as_deleted(), Some(true));
}

async fn an_open_account_can_be_given_a_password(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", None)).await;
    let mut bob = other.connect(server.address()).await;
    bob.ok(connect("bob", None)).await;
    bob.ok(set_password("bob", None, "secret")).await;
    wire.refused(connect("bob", None), Code::Denied).await;
    wire.ok(connect("bob", Some("secret"))).await;
}

async fn wrong_passwords_are_limited_and_lock_out_nobody_who_is_right_elsewhere(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    let mut guesser = other.connect(server.address()).await;
    for n in 0..5 {
        let client = if n % 2 == 0 { &mut wire } else { &mut guesser };
        client.refused(login("bob", Some("wrong")), Code::Denied).await;
    }
    let explanation = guesser.refused(login("bob", Some("wrong")), Code::RateLimited).await;
    let seconds: u64 = explanation.split(' ').next().unwrap().parse().expect("seconds to wait");
    assert!((1..=10).contains(&seconds), "{explanation}");
    assert!(!server.log().contains("secret") && server.log().contains("wrong password"), "{}", server.log());
    // From another address bob gets in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(b"login\0\0\0\0\0\0\0\0\0\0bob,secret").await.unwrap();
    let mut answer = [0; 1024];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"ok\0"), "{:?}", String::from_utf8_lossy(&answer));
}

async fn a_flood_of_logins_does_not_stall_the_chat(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", None)).await;
    let mut floods = Vec::new();
    for n in 0..20 {
        let mut flood = other.connect(server.address()).await;
        flood.write(1, create(&format!("u{n}"), Some("secret"))).await;
        floods.push(flood);
    }
    // Each of these is hashed after the other; a send does not wait for them.
    wire.sent("bob", "hello").await;
    assert_eq!(wire.receive("bob").await, 1);
    for mut flood in floods {
        assert!(matches!(flood.reply_to(1).await, Reply::Ok(_)));
    }
}

async fn with_require_password_nobody_does_nothing_but_create(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder().arg("--require-password")).await;
    wire.refused(create("bob", None), Code::Denied).await;
    wire.ok(create("bob", Some("b"))).await;
    wire.ok(create("eve", Some("e"))).await;
    let mut wire = other.connect(server.address()).await;
    wire.refused(send("bob", "x"), Code::Denied).await;
    wire.refused(list(""), Code::Denied).await;
    wire.refused(delete("bob", Some("b")), Code::Denied).await;
    let nobody = wire.refused(login("absent", Some("x")), Code::Denied).await;
    assert_eq!(nobody, wire.refused(login("bob", Some("x")), Code::Denied).await, "one answer for both");
    assert_eq!(nobody, wire.refused(login("bob", None), Code::Denied).await);
    assert_eq!(nobody, wire.refused(login("absent", None), Code::Denied).await);
    wire.ok(login("eve", Some("e"))).await;
    wire.sent("bob", "hi").await;
    assert_eq!(listed(&mut wire, "").await.0, [name("bob"), name("eve")]);
    wire.refused(delete("bob", Some("b")), Code::Denied).await;
    wire.refused(delete("absent", None), Code::Denied).await;
    assert_eq!(wire.ok(delete("eve", None)).await.as_deleted(), Some(true));
    wire.refused(send("bob", "from nobody again"), Code::Denied).await;
    wire.refused(list(""), Code::Denied).await;
}

async fn with_require_password_an_account_without_one_is_not_entered(one: Front, other: Front) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let server = Harkd::builder().store(&store).start();
    other.connect(server.address()).await.ok(create("bob", None)).await;
    drop(server);
    let (_server, mut wire) = start(one, Harkd::builder().store(&store).arg("--require-password")).await;
    wire.refused(login("bob", None), Code::Denied).await;
    wire.refused(connect("bob", Some("x")), Code::Denied).await;
    wire.refused(set_password("bob", None, "mine"), Code::Denied).await;
    wire.refused(delete("bob", None), Code::Denied).await;
}

async fn with_closed_registration_only_the_operator_creates(one: Front, other: Front) {
    let server = Harkd::builder().arg("--registration=closed").start();
    for front in [one, other] {
        let mut client = front.connect(server.address()).await;
        client.refused(create("bob", None), Code::Denied).await;
        client.refused(create("bob", Some("x")), Code::Denied).await;
    }
}

async fn list_is_sorted_matches_anywhere_and_is_cut_with_a_word(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder().arg("--max-list=2000")).await;
    let users: Vec<String> = (0..3000).map(|n| format!("{n:04}-{}", "x".repeat(40))).collect();
    for (n, chunk) in users.chunks(1000).enumerate() {
        let first = u32::try_from(n * 1000 + 1).unwrap();
        wire.write_all((first..).zip(chunk.iter().map(|user| create(user, None)))).await;
        wire.reply_to(first + 999).await;
    }
    let mut wire = other.connect(server.address()).await;
    let (names, outcome) = listed(&mut wire, "").await;
    assert_eq!(outcome, (2000, true));
    assert!(names.iter().map(UserName::as_str).eq(users[..2000].iter().map(String::as_str)));
    assert_eq!(listed(&mut wire, "^29.9-").await.1, (10, false));
    assert_eq!(listed(&mut wire, "9-x{40}$").await.1, (300, false));
    assert_eq!(listed(&mut wire, "nobody").await, (vec![], (0, false)));
    let explanation = wire.refused(list("("), Code::BadPattern).await;
    assert!(explanation.contains("unclosed group"), "{explanation}");
}

async fn accounts_and_queues_have_limits_that_say_so(one: Front, other: Front) {
    let arguments = ["--max-accounts=2", "--max-queued-messages=3", "--max-queued-bytes=100"];
    let (server, mut wire) =
        start(one, arguments.into_iter().fold(Harkd::builder(), HarkdBuilder::arg)).await;
    wire.create("bob").await;
    wire.create("eve").await;
    let mut bob = other.connect(server.address()).await;
    bob.refused(create("max", None), Code::TooMany).await;
    bob.ok(delete("eve", None)).await;
    wire.create("max").await;
    for text in ["1", "2", "3"] {
        wire.sent("bob", text).await;
    }
    bob.refused(send("bob", "4"), Code::QueueFull).await;
    bob.sent("max", &"x".repeat(60)).await;
    wire.refused(send("max", &"x".repeat(60)), Code::QueueFull).await;
    assert_eq!(bob.receive("bob").await, 3);
    let first = bob.message().await;
    bob.ack(first.sequence).await;
    wire.sent("bob", "4").await;
}

#[tokio::test]
async fn connections_of_one_address_have_a_limit_that_says_so() {
    let server = Harkd::builder().arg("--max-connections-per-address=3").start();
    let mut open = Vec::new();
    for front in [Front::Native, Front::Bidi, Front::Native] {
        let mut client = front.connect(server.address()).await;
        client.ping().await;
        open.push(client);
    }
    let mut fourth = Wire::connect(server.address()).await;
    fourth.write(1, Request::Ping).await;
    let refused = fourth.next().await.unwrap();
    assert!(matches!(&refused.message, Reply::NotOk(r) if r.code == Code::TooMany), "{refused:?}");
    assert_eq!(fourth.next().await, None);
}

/// `harkd user …` on this store, with this password; its output if it succeeds.
fn operator(server: &Harkd, arguments: &[&str], password: Option<&str>) -> Result<String, String> {
    let mut command = Command::new(hark_tests::binary("harkd"));
    command.arg("--store").arg(server.store()).arg("user").args(arguments).stdin(Stdio::null());
    if let Some(password) = password {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "{password}").unwrap();
        command.arg("--password-file").arg(file.path());
        return finish(command, Some(file));
    }
    finish(command, None)
}

fn finish(mut command: Command, _file: Option<tempfile::NamedTempFile>) -> Result<String, String> {
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

#[tokio::test]
async fn the_operator_looks_after_the_accounts_of_a_stopped_server() {
    let (mut server, mut wire) = start(Front::Native, Harkd::builder()).await;
    wire.create("eve").await;
    let refused = operator(&server, &["list"], None).unwrap_err();
    assert!(refused.contains("in use") && refused.lines().count() == 1, "{refused}");
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(operator(&server, &["add", "bob"], Some("secret")).unwrap(), "added bob\n");
    assert!(operator(&server, &["add", "bob"], Some("secret")).unwrap_err().contains("already"));
    assert_eq!(operator(&server, &["add", "open", "--no-password"], None).unwrap(), "added open\n");
    assert!(operator(&server, &["add", "none"], None).unwrap_err().contains("--password-file"));
    assert_eq!(operator(&server, &["remove", "eve"], None).unwrap(), "removed eve\n");
    assert!(operator(&server, &["remove", "eve"], None).unwrap_err().contains("no user eve"));
    assert_eq!(operator(&server, &["list"], None).unwrap(), "bob\nopen\n");
    assert!(operator(&server, &["set-password", "bob"], Some("new")).is_ok());
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.refused(login("bob", Some("secret")), Code::Denied).await;
    wire.ok(login("bob", Some("new"))).await;
    wire.ok(login("open", None)).await;
    wire.refused(login("eve", None), Code::NoSuchUser).await;
}
