//! Secrets must not leak: passwords and texts into the log at any level, and
//! passwords into the memory of the server after their use.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use hark_protocol::{Code, Reply, Request};
use hark_tests::{Certificate, Classic, Client, Front, Harkd, Wire, name, set_mode, wait_until};

const PASSWORD: &str = "correct-horse-battery-staple";
const WRONG: &str = "incorrect-mule-charger-nail";
const TEXT: &str = "the eagle has landed at midnight";

/// Substrings of the secrets, so that truncated or escaped ones are found.
const SECRETS: [&str; 6] = [
    "horse-battery",
    "rrect-horse",
    "mule-charger",
    "charger-nail",
    "eagle",
    "midnight",
];

fn connect(user: &str, password: &str) -> Request {
    Request::Connect {
        user: name(user),
        password: Some(password.parse().unwrap()),
    }
}

/// Uses a password and a text in every request, over this front.
async fn use_secrets(front: Front, server: &Harkd) {
    let user = format!("{front:?}");
    let password = || Some(PASSWORD.parse().unwrap());
    let mut client = front
        .hello(server.address(), &format!("session-{user}"))
        .await;
    client
        .ok(Request::Create {
            user: name(&user),
            password: password(),
        })
        .await;
    client
        .refused(
            Request::Create {
                user: name(&user),
                password: password(),
            },
            Code::Exists,
        )
        .await;
    client.refused(connect(&user, WRONG), Code::Denied).await;
    client
        .ok(Request::Login {
            user: name(&user),
            password: password(),
        })
        .await;
    client
        .ok(Request::Send {
            user: name(&user),
            text: TEXT.into(),
        })
        .await;
    let absent = Request::Send {
        user: name("absent"),
        text: TEXT.into(),
    };
    client.refused(absent, Code::NoSuchUser).await;
    client.ok(connect(&user, PASSWORD)).await;
    assert_eq!(&*client.message().await.text, TEXT);
    let change = Request::Password {
        user: name(&user),
        old: password(),
        new: PASSWORD.parse().unwrap(),
    };
    client.ok(change).await;
}

/// Does the same in the classic framing, and with mistakes.
async fn misuse_secrets(server: &Harkd) {
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("create", &format!("classic,{PASSWORD}")).await;
    for (command, payload) in [
        ("login", format!("classic,{WRONG}")),
        ("logni", format!("classic,{PASSWORD}")),
        ("login", format!("classic,{PASSWORD},{PASSWORD}")),
        ("password", format!("classic,{PASSWORD}")),
        ("send", format!("absent,{TEXT}")),
        ("list", format!("({TEXT}")),
    ] {
        let (answer, _) = classic.ask(command, &payload).await;
        assert_eq!(answer, "notok", "{command} {payload}");
    }
    // Bytes that violate the protocol.
    let mut wire = Wire::connect(server.address()).await;
    wire.write_bytes(format!("\0\0\0\x05{PASSWORD}{TEXT}").as_bytes())
        .await;
    let broken = wire.next().await.unwrap();
    assert!(matches!(broken.message, Reply::Error { .. }), "{broken:?}");
}

/// Uses a password and a text over both versions of HTTP. Returns the credentials as they
/// are in the head of the requests.
fn use_secrets_by_curl(server: &Harkd) -> String {
    let credentials = format!("curl:{PASSWORD}");
    let curl = |target: &str, arguments: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--noproxy", "*"])
            .args(arguments);
        let output = curl.arg(format!("http://{}{target}", server.address()));
        let output = output.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    curl("/v1/users/curl", &["-X", "PUT", "-d", PASSWORD]);
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        curl("/v1/send/curl", &[version, "-u", &credentials, "-d", TEXT]);
        let received = curl("/v1/receive/curl", &[version, "-u", &credentials]);
        assert!(String::from_utf8_lossy(&received).contains(TEXT));
    }
    base64::prelude::BASE64_STANDARD.encode(credentials)
}

#[tokio::test]
async fn passwords_and_texts_are_never_logged() {
    for format in ["text", "json"] {
        let log_format = format!("--log-format={format}");
        let mut server = Harkd::builder().args(["--log=trace", &log_format]).start();
        for front in [
            Front::Native,
            Front::Tls,
            Front::WebSocket,
            Front::Bidi,
            Front::Calls,
        ] {
            use_secrets(front, &server).await;
        }
        let encoded = use_secrets_by_curl(&server);
        misuse_secrets(&server).await;
        server.kill();
        let log = server.log();
        assert!(
            log.contains("TRACE") && log.contains("wrong password"),
            "there is not much to look through"
        );
        let told = log.lines().find(|line| {
            line.contains(&encoded) || SECRETS.iter().any(|secret| line.contains(secret))
        });
        assert_eq!(told, None);
    }
}

/// Counts the occurrences of a text in the writable memory of a server.
fn count_in_memory(server: &Harkd, what: &str) -> usize {
    let pid = server.pid();
    // Frozen, so that memory is not released meanwhile.
    server.signal("STOP");
    wait_until("the server to stand still", || {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .unwrap()
            .contains(") T ")
    });
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).expect("the memory of a child");
    let (mut looked_at, mut found) = (0, 0);
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") || rest.contains("[vvar") {
            continue;
        }
        let (from, to) = range.split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        memory
            .read_exact_at(&mut bytes, from)
            .expect("memory that is mapped");
        looked_at += bytes.len();
        // Only valid text is searched.
        found += String::from_utf8_lossy(&bytes).matches(what).count();
    }
    server.signal("CONT");
    assert!(looked_at > 1 << 20, "only {looked_at} bytes were looked at");
    found
}

#[tokio::test]
async fn used_password_is_wiped_from_memory() {
    let server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    let password = || Some(PASSWORD.parse().unwrap());
    wire.ok(Request::Create {
        user: name("bob"),
        password: password(),
    })
    .await;
    wire.refused(connect("bob", WRONG), Code::Denied).await;
    wire.ok(Request::Login {
        user: name("bob"),
        password: password(),
    })
    .await;
    wire.ok(connect("bob", PASSWORD)).await;
    wire.sent("bob", TEXT).await;
    let mut classic = Classic::connect(server.address()).await;
    classic.ok("login", &format!("bob,{PASSWORD}")).await;
    assert_ne!(
        count_in_memory(&server, TEXT),
        0,
        "what is there is not found"
    );
    for password in [PASSWORD, WRONG] {
        assert_eq!(count_in_memory(&server, password), 0, "{password}");
    }
    drop((wire, classic));
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn store_folder_is_private_or_warned_about() {
    let mut server = Harkd::start();
    assert_eq!(mode(server.store()), 0o700);
    assert!(!server.log().contains("other users of this machine"));
    server.signal("TERM");
    server.wait();
    set_mode(server.store(), 0o750);
    let server = server.restart();
    server.wait_for_log("store accessible to other users of this machine; run chmod 700 on it");
    server.wait_for_log("mode=\"750\"");
}

#[test]
fn no_flag_takes_a_secret() {
    let helps = [
        hark_tests::harkd().arg("--help").output().unwrap(),
        hark_tests::harkd()
            .args(["user", "add", "--help"])
            .output()
            .unwrap(),
        hark_tests::harkd()
            .args(["user", "set-password", "--help"])
            .output()
            .unwrap(),
        hark_tests::hark(Path::new("/nonexistent"))
            .arg("--help")
            .output()
            .unwrap(),
        hark_tests::hark(Path::new("/nonexistent"))
            .args(["send", "--help"])
            .output()
            .unwrap(),
    ];
    let mut looked_at = 0;
    for help in helps {
        let help = String::from_utf8(help.stdout).unwrap();
        for flag in help
            .split_whitespace()
            .filter(|word| word.starts_with("--"))
        {
            let flag = flag.trim_end_matches(['.', ',', ';', ':', ')', '`']);
            let is_about_one = ["password", "secret", "token", "key"]
                .iter()
                .any(|word| flag.contains(word));
            let takes_none = ["--require-password", "--no-password"].contains(&flag);
            // The name of the file is allowed, not its content.
            let names_a_file = flag.ends_with("-file") || flag == "--tls-key";
            assert!(!is_about_one || takes_none || names_a_file, "{flag}");
            looked_at += 1;
        }
    }
    assert!(looked_at > 40, "only {looked_at} flags were looked at");
}

#[tokio::test]
async fn private_key_is_never_logged() {
    // The key is in the memory of a server that uses it, but never in its log.
    let certificate = std::sync::Arc::new(Certificate::trusted());
    let mut server = Harkd::builder()
        .certificate(Some(&certificate))
        .arg("--log=trace")
        .start();
    let mut client: Client = Front::Tls.connect(server.address()).await;
    client.ping().await;
    server.signal("HUP");
    server.wait_for_log("certificate reloaded");
    server.kill();
    let key = fs::read_to_string(certificate.key()).unwrap();
    let line = key.lines().nth(1).unwrap();
    assert!(!server.log().contains(line));
}
