//! The configuration file, `--check`, reloads, and several addresses to listen on.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;

use hark_protocol::{Code, Request, Sequence};
use hark_tests::{Classic, Front, Harkd, Wire, harkd, name, wait_until};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// A configuration file in a folder of its own.
struct ConfigFile {
    folder: TempDir,
}

impl ConfigFile {
    fn new(text: &str) -> Self {
        let file = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        file.write(text);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("harkd.toml")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    fn check(&self, flags: &[&str]) -> Output {
        let mut command = harkd();
        command.arg("--check").arg("--config").arg(self.path());
        command.args(flags).output().unwrap()
    }
}

fn create(user: &str) -> Request {
    Request::Create {
        user: name(user),
        password: None,
    }
}

#[test]
fn check_prints_each_setting_with_its_source() {
    let file = ConfigFile::new("max-list = 7\nregistration = 'closed'\nstore = 'memory:'\n");
    let Output { status, stdout, .. } = file.check(&["--max-list=8"]);
    assert!(status.success());
    let text = String::from_utf8(stdout).unwrap();
    let lines: Vec<_> = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    for expected in [
        "max-list = 8 # command line",
        "registration = \"closed\" # file",
        "segment-size = 4 # environment variable HARKD_SEGMENT_SIZE",
        "max-frame = 65536 # default",
        "# the configuration is valid",
    ] {
        assert!(lines.iter().any(|line| line == expected), "{text}");
    }
}

#[test]
fn check_finds_every_kind_of_defect() {
    let missing = Path::new("/nowhere/cert.pem").display().to_string();
    for (text, expected) in [
        ("lisen = ':0'", "did you mean 'listen'?"),
        ("max-frame = 'x'", "harkd.toml: invalid value 'x'"),
        ("log = 'loud'", "invalid --log \"loud\""),
        ("listen = '0.0.0.0:0'", "other machines can reach 0.0.0.0:0"),
        ("store = 'redis://x'", "unknown --store"),
        ("store = '/dev/null'", "not a folder"),
        ("max-list = ", "line 1"),
        (
            &format!("tls-cert = '{missing}'\ntls-key = '{missing}'"),
            &missing,
        ),
    ] {
        let Output { status, stderr, .. } = ConfigFile::new(text).check(&[]);
        let error = String::from_utf8(stderr).unwrap();
        assert!(
            !status.success() && error.contains(expected),
            "{text}: {error}"
        );
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[tokio::test]
async fn reload_applies_changes_and_names_the_rest() {
    let file = ConfigFile::new("registration = 'open'\nmax-frame = 5000\nlog = 'info'\n");
    let path = file.path().display().to_string();
    let server = Harkd::builder().args(["--config", &path]).start();
    let mut wire = Wire::connect(server.address()).await;
    wire.ok(create("bob")).await;
    file.write("registration = 'closed'\nmax-frame = 6000\nlog = 'debug'\nmax-connections = 1\n");
    server.signal("HUP");
    server.wait_for_log("configuration reloaded changed=\"log max-connections registration\"");
    server.wait_for_log("settings changed that need a restart settings=\"max-frame\"");
    wire.refused(create("eve"), Code::Denied).await;
    let mut second = Wire::connect(server.address()).await;
    second.write_all([(1, Request::Ping)]).await;
    assert_eq!(second.next().await.map(|frame| frame.id), Some(None));
    assert_eq!(second.next().await, None, "the only connection is taken");
    // Without a delivery, an acknowledgement is ignored and logged at debug.
    wire.ack(Sequence(1)).await;
    server.wait_for_log("ack ignored");

    file.write("registration = 'loud'\n");
    server.signal("HUP");
    server.wait_for_log("cannot reload the configuration; the previous one stays in use");
    wire.refused(create("eve"), Code::Denied).await;

    file.write("registration = 'open'\nmax-frame = 6000\nlog = 'info'\n");
    server.signal("HUP");
    wait_until("the second warning", || {
        server.log().matches("settings=\"max-frame\"").count() == 2
    });
    wire.ok(create("eve")).await;
    wire.ping().await;
}

/// Relays connections to a Unix socket, and returns the address of the relay.
async fn relay(path: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the runtime of the test.
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let path = path.clone();
            tokio::spawn(async move {
                let mut unix = UnixStream::connect(path).await.unwrap();
                // The client may close at any time.
                drop(tokio::io::copy_bidirectional(&mut tcp, &mut unix).await);
            });
        }
    });
    address
}

#[tokio::test]
async fn unix_socket_serves_every_front() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harkd.sock");
    let listen = format!("--listen=unix:{}", path.display());
    let mut server = Harkd::builder().arg(&listen).start();
    server.wait_for_log("harkd.sock");
    let address = relay(path.clone()).await;
    for front in [Front::Native, Front::Bidi, Front::Calls] {
        let user = format!("{front:?}").to_lowercase();
        let mut client = front.connect(address).await;
        client.create(&user).await;
        client.sent(&user, "hello").await;
        client.receive(&user).await;
        assert_eq!(&*client.message().await.text, "hello");
    }
    Classic::connect(address).await.ok("create", "amy").await;
    let mut http = TcpStream::connect(address).await.unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    http.write_all(request).await.unwrap();
    let mut response = String::new();
    http.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    let mut tcp = Wire::connect(server.address()).await;
    tcp.refused(create("amy"), Code::Exists).await;
    drop(tcp);
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(!path.exists(), "the socket is removed");
}

#[test]
fn killed_server_leaves_no_obstacle() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("harkd.sock");
    let listen = format!("--listen=unix:{}", path.display());
    let server = Harkd::builder().arg(&listen).start();
    let server = server.kill_and_restart();
    server.wait_for_log("harkd.sock");
    let output = harkd()
        .args([&*listen, "--store=memory:"])
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.contains("in use"),
        "{error}"
    );
}
