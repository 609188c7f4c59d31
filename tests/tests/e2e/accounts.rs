//! Accounts, passwords, `list` and the flags for them, with the real server and
//! over all fronts.

use std::io::Write;
use std::process::{Command, Stdio};

use hark_protocol::{Code, Reply, Request, UserName};
use hark_tests::{Client, Front, Harkd, HarkdBuilder, StoreLocation, Wire, harkd, name, send};

hark_tests::through_all_fronts_on_all_stores! {
    sessions:
        logged_in_user_deletes_itself_without_password,
        wrong_passwords_are_limited_by_address,
        concurrent_password_guesses_are_limited,
        flood_of_logins_does_not_stall_the_chat,
        require_password_limits_anonymous_clients_to_create,
        require_password_closes_accounts_without_one,
        login_without_password_gives_no_admin_rights,
        deleted_admin_loses_its_rights,
        list_can_be_restricted_to_users_or_admins,
        list_is_sorted_unanchored_and_marked_if_truncated;
    calls:
        account_password_is_needed_except_to_send,
        open_account_can_get_a_password,
        closed_registration_leaves_creation_to_operator,
        admin_manages_any_account,
        admin_account_is_created_by_operator_or_admin,
        limits_of_accounts_and_inboxes_are_reported;
    sample:
        logged_in_user_deletes_itself_without_password,
        account_password_is_needed_except_to_send,
        limits_of_accounts_and_inboxes_are_reported;
}

fn create(user: &str, password: Option<&str>) -> Request {
    Request::Create {
        user: name(user),
        password: secret(password),
    }
}

fn login(user: &str, password: Option<&str>) -> Request {
    Request::Login {
        user: name(user),
        password: secret(password),
    }
}

fn connect(user: &str, password: Option<&str>) -> Request {
    Request::Connect {
        user: name(user),
        password: secret(password),
    }
}

fn delete(user: &str, password: Option<&str>) -> Request {
    Request::Delete {
        user: name(user),
        password: secret(password),
    }
}

fn set_password(user: &str, old: Option<&str>, new: &str) -> Request {
    Request::Password {
        user: name(user),
        old: secret(old),
        new: new.parse().unwrap(),
    }
}

fn list(pattern: &str) -> Request {
    Request::List {
        pattern: (!pattern.is_empty()).then(|| pattern.to_owned().into()),
    }
}

fn secret(password: Option<&str>) -> Option<hark_protocol::Password> {
    password.map(|password| password.parse().unwrap())
}

async fn start(front: Front, builder: HarkdBuilder) -> (Harkd, Client) {
    let server = builder.start();
    let client = front.connect(server.address()).await;
    (server, client)
}

/// An id that no other request of these tests uses.
const LIST_ID: u32 = 1_000_000;

/// Returns all names of a list, and the fields of its `ok`.
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

async fn account_password_is_needed_except_to_send(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    wire.refused(create("bob", Some("secret")), Code::Exists)
        .await;
    wire.sent("bob", "hello").await;
    let mut bob = other.connect(server.address()).await;
    for wrong in [None, Some("wrong")] {
        bob.refused(connect("bob", wrong), Code::Denied).await;
        bob.refused(delete("bob", wrong), Code::Denied).await;
    }
    bob.refused(set_password("bob", None, "new"), Code::Denied)
        .await;
    bob.ok(set_password("bob", Some("secret"), "new")).await;
    let server = server.kill_and_restart();
    let mut wire = one.connect(server.address()).await;
    wire.refused(connect("bob", Some("secret")), Code::Denied)
        .await;
    assert_eq!(
        wire.ok(connect("bob", Some("new"))).await.as_queued(),
        Some(1)
    );
    let mut bob = other.connect(server.address()).await;
    assert_eq!(
        bob.ok(delete("bob", Some("new"))).await.as_deleted(),
        Some(true)
    );
    assert_eq!(
        bob.ok(delete("bob", Some("new"))).await.as_deleted(),
        Some(false)
    );
}

async fn logged_in_user_deletes_itself_without_password(one: Front, other: Front) {
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

async fn open_account_can_get_a_password(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", None)).await;
    let mut bob = other.connect(server.address()).await;
    bob.ok(connect("bob", None)).await;
    bob.ok(set_password("bob", None, "secret")).await;
    wire.refused(connect("bob", None), Code::Denied).await;
    wire.ok(connect("bob", Some("secret"))).await;
}

async fn wrong_passwords_are_limited_by_address(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    let mut guesser = other.connect(server.address()).await;
    for n in 0..5 {
        let client = if n % 2 == 0 { &mut wire } else { &mut guesser };
        client
            .refused(login("bob", Some("wrong")), Code::Denied)
            .await;
    }
    let explanation = guesser
        .refused(login("bob", Some("wrong")), Code::RateLimited)
        .await;
    let seconds: u64 = explanation
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .expect("seconds to wait");
    assert!((1..=10).contains(&seconds), "{explanation}");
    assert!(
        !server.log().contains("secret") && server.log().contains("wrong password"),
        "{}",
        server.log()
    );
    // The limit does not apply to another address.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(server.address()).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream
        .write_all(b"login\0\0\0\0\0\0\0\0\0\0bob,secret")
        .await
        .unwrap();
    let mut answer = [0; 1024];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(
        answer.starts_with(b"ok\0"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
}

async fn concurrent_password_guesses_are_limited(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", Some("secret"))).await;
    let mut guessers = Vec::new();
    for n in 0..60 {
        let mut guesser = [one, other][n % 2].connect(server.address()).await;
        guesser.ping().await;
        guessers.push(guesser);
    }
    for guesser in &mut guessers {
        guesser.write(1000, login("bob", Some("wrong"))).await;
    }
    let mut tried = 0;
    for mut guesser in guessers {
        let Reply::NotOk(refusal) = guesser.reply_to(1000).await else {
            panic!("a guess was right")
        };
        assert!(
            [Code::Denied, Code::RateLimited].contains(&refusal.code),
            "{refusal}"
        );
        tried += usize::from(refusal.code == Code::Denied);
    }
    // Passwords that are hashed at the same time all pass.
    let at_once =
        std::thread::available_parallelism().map_or(1, |processors| processors.get().div_ceil(2));
    assert!(
        (5..5 + at_once).contains(&tried),
        "{tried} passwords were tried"
    );
}

async fn flood_of_logins_does_not_stall_the_chat(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder()).await;
    wire.ok(create("bob", None)).await;
    let mut floods = Vec::new();
    for n in 0..20 {
        let mut flood = other.connect(server.address()).await;
        flood
            .write(1, create(&format!("u{n}"), Some("secret")))
            .await;
        floods.push(flood);
    }
    // These are hashed one after another; a send does not wait for them.
    wire.sent("bob", "hello").await;
    assert_eq!(wire.receive("bob").await, 1);
    for mut flood in floods {
        assert!(matches!(flood.reply_to(1).await, Reply::Ok(_)));
    }
}

async fn require_password_limits_anonymous_clients_to_create(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder().arg("--require-password")).await;
    wire.refused(create("bob", None), Code::Denied).await;
    wire.ok(create("bob", Some("b"))).await;
    wire.ok(create("eve", Some("e"))).await;
    let mut wire = other.connect(server.address()).await;
    wire.refused(send("bob", "x"), Code::Denied).await;
    wire.refused(list(""), Code::Denied).await;
    wire.refused(delete("bob", Some("b")), Code::Denied).await;
    let nobody = wire.refused(login("absent", Some("x")), Code::Denied).await;
    assert_eq!(
        nobody,
        wire.refused(login("bob", Some("x")), Code::Denied).await,
        "one answer for both"
    );
    assert_eq!(nobody, wire.refused(login("bob", None), Code::Denied).await);
    assert_eq!(
        nobody,
        wire.refused(login("absent", None), Code::Denied).await
    );
    for user in ["absent", "bob"] {
        assert_eq!(
            nobody,
            wire.refused(connect(user, None), Code::Denied).await
        );
        assert_eq!(
            nobody,
            wire.refused(set_password(user, None, "new"), Code::Denied)
                .await
        );
        assert_eq!(
            nobody,
            wire.refused(set_password(user, Some("x"), "new"), Code::Denied)
                .await
        );
    }
    wire.ok(login("eve", Some("e"))).await;
    wire.sent("bob", "hi").await;
    assert_eq!(listed(&mut wire, "").await.0, [name("bob"), name("eve")]);
    wire.refused(delete("bob", Some("b")), Code::Denied).await;
    wire.refused(delete("absent", None), Code::Denied).await;
    assert_eq!(wire.ok(delete("eve", None)).await.as_deleted(), Some(true));
    wire.refused(send("bob", "from nobody again"), Code::Denied)
        .await;
    wire.refused(list(""), Code::Denied).await;
}

async fn require_password_closes_accounts_without_one(one: Front, other: Front) {
    let location = StoreLocation::fresh();
    let server = Harkd::builder().store(location.clone()).start();
    other
        .connect(server.address())
        .await
        .ok(create("bob", None))
        .await;
    drop(server);
    let (_server, mut wire) = start(
        one,
        Harkd::builder().store(location).arg("--require-password"),
    )
    .await;
    wire.refused(login("bob", None), Code::Denied).await;
    wire.refused(connect("bob", Some("x")), Code::Denied).await;
    wire.refused(set_password("bob", None, "mine"), Code::Denied)
        .await;
    wire.refused(delete("bob", None), Code::Denied).await;
}

/// Starts a server with these accounts, by name and password, and with the
/// admins `root` and `ann`.
fn with_admins(accounts: &[(&str, Option<&str>)], builder: HarkdBuilder) -> Harkd {
    let location = StoreLocation::fresh();
    for (name, password) in accounts {
        let without = ["add", name, "--no-password"];
        let words = if password.is_some() {
            &without[..2]
        } else {
            &without
        };
        operator_on(&location, words, *password).unwrap();
    }
    builder
        .store(location)
        .env("HARKD_ADMIN", "root,ann")
        .start()
}

async fn admin_manages_any_account(one: Front, other: Front) {
    let builder = Harkd::builder()
        .arg("--registration=closed")
        .arg("--require-password");
    let server = with_admins(&[("root", Some("toor")), ("eve", Some("e"))], builder);
    let mut admin = one.connect(server.address()).await;
    admin.ok(login("root", Some("toor"))).await;
    let mut eve = other.connect(server.address()).await;
    eve.ok(login("eve", Some("e"))).await;
    for request in [
        create("bob", Some("b")),
        delete("root", None),
        set_password("root", None, "mine"),
    ] {
        eve.refused(request, Code::Denied).await;
    }
    admin.ok(create("bob", Some("b"))).await;
    admin.refused(create("bob", Some("b")), Code::Exists).await;
    admin.refused(create("open", None), Code::Denied).await;
    admin.ok(set_password("bob", None, "c")).await;
    admin
        .ok(set_password("bob", Some("not the old one"), "d"))
        .await;
    admin
        .refused(set_password("absent", None, "x"), Code::NoSuchUser)
        .await;
    let mut bob = other.connect(server.address()).await;
    bob.refused(connect("bob", Some("b")), Code::Denied).await;
    bob.ok(connect("bob", Some("d"))).await;
    assert_eq!(admin.ok(delete("bob", None)).await.as_deleted(), Some(true));
    assert_eq!(
        admin.ok(delete("bob", None)).await.as_deleted(),
        Some(false)
    );
    admin
        .refused(set_password("root", None, "mine"), Code::Denied)
        .await;
    admin.ok(set_password("root", Some("toor"), "new")).await;
}

async fn admin_account_is_created_by_operator_or_admin(one: Front, other: Front) {
    let server = with_admins(&[("ann", Some("a"))], Harkd::builder());
    server.wait_for_log("admin 'root' has no account; create it with: harkd user add root");
    let mut nobody = one.connect(server.address()).await;
    nobody.ok(create("eve", Some("e"))).await;
    for password in [None, Some("mine")] {
        let explanation = nobody.refused(create("root", password), Code::Denied).await;
        assert!(
            explanation.contains("this name is reserved"),
            "{explanation}"
        );
    }
    nobody
        .refused(connect("root", None), Code::NoSuchUser)
        .await;
    let mut ann = other.connect(server.address()).await;
    ann.ok(login("ann", Some("a"))).await;
    ann.ok(create("root", Some("toor"))).await;
    let mut root = one.connect(server.address()).await;
    root.ok(login("root", Some("toor"))).await;
    assert_eq!(root.ok(delete("eve", None)).await.as_deleted(), Some(true));
}

async fn login_without_password_gives_no_admin_rights(one: Front, other: Front) {
    let accounts = [("root", None), ("ann", Some("a")), ("eve", Some("e"))];
    let server = with_admins(&accounts, Harkd::builder().arg("--list=admin"));
    server.wait_for_log("admin 'root' has no password");
    let mut anybody = one.connect(server.address()).await;
    anybody.ok(connect("root", None)).await;
    let forbidden = || {
        [
            delete("eve", None),
            set_password("eve", None, "x"),
            create("ann", None),
            list(""),
            list("e"),
        ]
    };
    for request in forbidden() {
        anybody.refused(request, Code::Denied).await;
    }
    // Setting a password does not make the account an admin.
    let explanation = anybody
        .refused(set_password("root", None, "mine"), Code::Denied)
        .await;
    assert!(
        explanation.contains("this name is reserved"),
        "{explanation}"
    );
    let mut ann = other.connect(server.address()).await;
    ann.ok(login("ann", Some("a"))).await;
    ann.ok(set_password("root", None, "toor")).await;
    for request in forbidden() {
        anybody.refused(request, Code::Denied).await;
    }
    anybody.ok(login("root", Some("toor"))).await;
    assert_eq!(
        anybody.ok(delete("eve", None)).await.as_deleted(),
        Some(true)
    );
}

async fn deleted_admin_loses_its_rights(one: Front, other: Front) {
    let accounts = [
        ("root", Some("toor")),
        ("ann", Some("a")),
        ("eve", Some("e")),
    ];
    let server = with_admins(&accounts, Harkd::builder());
    let mut root = one.connect(server.address()).await;
    root.ok(login("root", Some("toor"))).await;
    let mut ann = other.connect(server.address()).await;
    ann.ok(login("ann", Some("a"))).await;
    ann.ok(delete("root", None)).await;
    root.refused(delete("eve", None), Code::Denied).await;
    ann.ok(create("root", Some("another"))).await;
    root.refused(delete("eve", None), Code::Denied).await;
    root.refused(create("root", None), Code::Denied).await;
}

async fn list_can_be_restricted_to_users_or_admins(one: Front, other: Front) {
    let accounts = [("root", Some("toor")), ("eve", Some("e"))];
    for (argument, users_may) in [("--list=users", true), ("--list=admin", false)] {
        for builder in [Harkd::builder(), Harkd::builder().arg("--require-password")] {
            let server = with_admins(&accounts, builder.arg(argument));
            let mut client = one.connect(server.address()).await;
            client.refused(list(""), Code::Denied).await;
            client.ok(login("eve", Some("e"))).await;
            if users_may {
                assert_eq!(listed(&mut client, "").await.0, [name("eve"), name("root")]);
            } else {
                client.refused(list("."), Code::Denied).await;
            }
            let mut admin = other.connect(server.address()).await;
            admin.ok(login("root", Some("toor"))).await;
            assert_eq!(listed(&mut admin, "oo").await.0, [name("root")]);
            client.ok(delete("eve", None)).await;
            client.refused(list(""), Code::Denied).await;
        }
    }
}

async fn closed_registration_leaves_creation_to_operator(one: Front, other: Front) {
    let server = Harkd::builder().arg("--registration=closed").start();
    for front in [one, other] {
        let mut client = front.connect(server.address()).await;
        client.refused(create("bob", None), Code::Denied).await;
        client.refused(create("bob", Some("x")), Code::Denied).await;
    }
}

async fn list_is_sorted_unanchored_and_marked_if_truncated(one: Front, other: Front) {
    let (server, mut wire) = start(one, Harkd::builder().arg("--max-list=2000")).await;
    let users: Vec<String> = (0..3000)
        .map(|n| format!("{n:04}-{}", "x".repeat(40)))
        .collect();
    for (n, chunk) in users.chunks(1000).enumerate() {
        let first = u32::try_from(n * 1000 + 1).unwrap();
        wire.write_all((first..).zip(chunk.iter().map(|user| create(user, None))))
            .await;
        wire.reply_to(first + 999).await;
    }
    let mut wire = other.connect(server.address()).await;
    let (names, outcome) = listed(&mut wire, "").await;
    assert_eq!(outcome, (2000, true));
    assert!(
        names
            .iter()
            .map(UserName::as_str)
            .eq(users[..2000].iter().map(String::as_str))
    );
    assert_eq!(listed(&mut wire, "^29.9-").await.1, (10, false));
    assert_eq!(listed(&mut wire, "9-x{40}$").await.1, (300, false));
    assert_eq!(listed(&mut wire, "nobody").await, (vec![], (0, false)));
    let explanation = wire.refused(list("("), Code::BadPattern).await;
    assert!(explanation.contains("unclosed group"), "{explanation}");
}

async fn limits_of_accounts_and_inboxes_are_reported(one: Front, other: Front) {
    let arguments = [
        "--max-accounts=2",
        "--max-queued-messages=3",
        "--max-queued-bytes=100",
    ];
    let (server, mut wire) = start(
        one,
        arguments
            .into_iter()
            .fold(Harkd::builder(), HarkdBuilder::arg),
    )
    .await;
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
    wire.refused(send("max", &"x".repeat(60)), Code::QueueFull)
        .await;
    assert_eq!(bob.receive("bob").await, 3);
    let first = bob.message().await;
    bob.ack(first.sequence).await;
    wire.sent("bob", "4").await;
}

#[tokio::test]
async fn connections_per_address_are_limited() {
    let server = Harkd::builder()
        .arg("--max-connections-per-address=3")
        .arg("--limit-loopback")
        .start();
    let mut open = Vec::new();
    for front in [Front::Native, Front::Bidi, Front::Native] {
        let mut client = front.connect(server.address()).await;
        client.ping().await;
        open.push(client);
    }
    let mut fourth = Wire::connect(server.address()).await;
    fourth.write(1, Request::Ping).await;
    let refused = fourth.next().await.unwrap();
    assert!(
        matches!(&refused.message, Reply::NotOk(r) if r.code == Code::TooMany),
        "{refused:?}"
    );
    assert_eq!(fourth.next().await, None);
}

/// Runs `harkd user …` on this store with this password, and returns its output
/// if it succeeds.
fn operator(server: &Harkd, arguments: &[&str], password: Option<&str>) -> Result<String, String> {
    operator_on(server.location(), arguments, password)
}

fn operator_on(
    location: &StoreLocation,
    arguments: &[&str],
    password: Option<&str>,
) -> Result<String, String> {
    let mut command = harkd();
    command
        .args(location.args())
        .arg("user")
        .args(arguments)
        .stdin(Stdio::null());
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
async fn new_name_with_reserved_first_character_is_refused() {
    let (_server, mut wire) = start(Front::Native, Harkd::builder()).await;
    for user in ["(anonymous)", "#room"] {
        for password in [None, Some("secret")] {
            wire.refused(create(user, password), Code::BadName).await;
        }
    }
    assert_eq!(listed(&mut wire, "").await.0, []);
}

#[tokio::test]
async fn operator_manages_accounts_of_a_stopped_server() {
    let (mut server, mut wire) = start(Front::Native, Harkd::builder()).await;
    wire.create("eve").await;
    let refused = operator(&server, &["list"], None).unwrap_err();
    assert!(
        refused.contains("in use") && refused.lines().count() == 1,
        "{refused}"
    );
    server.signal("TERM");
    assert!(server.wait().success());
    assert_eq!(
        operator(&server, &["add", "bob"], Some("secret")).unwrap(),
        "added bob\n"
    );
    assert!(
        operator(&server, &["add", "bob"], Some("secret"))
            .unwrap_err()
            .contains("already")
    );
    assert_eq!(
        operator(&server, &["add", "open", "--no-password"], None).unwrap(),
        "added open\n"
    );
    assert!(
        operator(&server, &["add", "none"], None)
            .unwrap_err()
            .contains("--password-file")
    );
    assert_eq!(
        operator(&server, &["remove", "eve"], None).unwrap(),
        "removed eve\n"
    );
    assert!(
        operator(&server, &["remove", "eve"], None)
            .unwrap_err()
            .contains("no user eve")
    );
    assert_eq!(operator(&server, &["list"], None).unwrap(), "bob\nopen\n");
    assert!(operator(&server, &["set-password", "bob"], Some("new")).is_ok());
    let server = server.kill_and_restart();
    let mut wire = Wire::connect(server.address()).await;
    wire.refused(login("bob", Some("secret")), Code::Denied)
        .await;
    wire.ok(login("bob", Some("new"))).await;
    wire.ok(login("open", None)).await;
    wire.refused(login("eve", None), Code::NoSuchUser).await;
}

#[tokio::test]
async fn account_events_are_logged() {
    let server = Harkd::builder().arg("--max-queued-messages=1").start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ok(create("eve", Some("secret"))).await;
    wire.ok(login("eve", Some("secret"))).await;
    wire.ok(set_password("eve", Some("secret"), "other")).await;
    wire.sent("eve", "one").await;
    wire.refused(send("eve", "two"), Code::QueueFull).await;
    wire.ok(delete("eve", None)).await;
    for event in [
        "account created user=eve address=127.0.0.1",
        "logged in user=eve by_password=true address=127.0.0.1",
        "password set user=eve by=eve by_admin=false address=127.0.0.1",
        "send refused: queue full recipient=eve by=eve address=127.0.0.1",
        "account deleted user=eve by=eve by_admin=false address=127.0.0.1",
    ] {
        server.wait_for_log(event);
    }
}
