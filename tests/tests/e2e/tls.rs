//! TLS on the same port: every framing inside of it, refusals and their
//! messages, reloading of certificates, and shutdown.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hark_protocol::framing::native;
use hark_protocol::{ByeReason, Frame, Reply, Request, RequestId};
use hark_tests::{
    Authority, Certificate, Classic, Client, Front, Harkd, HarkdBuilder, NativeTls, TIMEOUT, Wire,
    client_config, hark, harkd, name, send, set_mode, wait_until,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Time limit of the server for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The beginning of a `ClientHello`.
const HALF_A_HANDSHAKE: &[u8] = &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01];

async fn handshake(
    address: SocketAddr,
    protocols: &[&str],
) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(client_config(protocols))
        .connect(address.ip().into(), stream)
        .await
}

/// Returns the server's answer to these bytes, up to the end of the connection.
async fn answer(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut said = Vec::new();
    // A connection that is closed with unread bytes is reset.
    drop(
        timeout(TIMEOUT, stream.read_to_end(&mut said))
            .await
            .expect("the connection stays open"),
    );
    said
}

fn frame(id: u32, request: &Request) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    native::encode(RequestId::new(id), request, &mut bytes).unwrap();
    bytes.to_vec()
}

/// Starts a server with a certificate and these arguments.
fn server(arguments: &[&str]) -> Harkd {
    arguments
        .iter()
        .fold(Harkd::builder(), |builder, argument| builder.arg(*argument))
        .start()
}

/// Starts a server whose certificate can be replaced.
fn server_with(certificate: &Arc<Certificate>) -> Harkd {
    Harkd::builder().certificate(Some(certificate)).start()
}

/// Runs `hark` and returns exit code, stdout and stderr.
fn run(server: &str, words: &[&str]) -> (Option<i32>, String, String) {
    let state = tempfile::tempdir().unwrap();
    let mut command = hark(state.path());
    command
        .env("HARK_SERVER", server)
        .args(words)
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test]
async fn plain_text_and_tls_share_one_chat() {
    let server = server(&[]);
    let mut inside = Front::Tls.connect(server.address()).await;
    let mut outside = Wire::connect(server.address()).await;
    inside.create("bob").await;
    outside.receive("bob").await;
    inside.sent("bob", "from inside").await;
    assert_eq!(&*outside.message().await.text, "from inside");
}

#[tokio::test]
async fn largest_text_passes_in_both_directions() {
    let server = server(&["--max-frame=1000000"]);
    let mut client = Front::Tls.connect(server.address()).await;
    client.create("bob").await;
    client.receive("bob").await;
    let text = "x".repeat(900_000);
    client.sent("bob", &text).await;
    assert_eq!(client.message().await.text.len(), text.len());
}

#[tokio::test]
async fn late_tls_reader_gets_everything() {
    // More than the socket buffers hold.
    const TEXT_BYTES: usize = 12_000_000;
    let server = server(&["--max-frame=16000000"]);
    let mut writer = Wire::connect(server.address()).await;
    writer.create("bob").await;
    writer.sent("bob", &"x".repeat(TEXT_BYTES)).await;
    // A small buffer, so that the server has to wait in the middle.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(server.address()).await.unwrap();
    let address = stream.local_addr().unwrap();
    let connector = TlsConnector::from(client_config(&[]));
    let mut reader = NativeTls::over(
        connector
            .connect(server.address().ip().into(), stream)
            .await
            .unwrap(),
    );
    reader
        .write_bytes(&frame(
            1,
            &Request::Connect {
                user: name("bob"),
                password: None,
            },
        ))
        .await
        .unwrap();
    wait_until("the server to be held up", || {
        server.unsent_bytes(address) > 0
    });
    let mut reader = Client::over(reader);
    reader.reply_to(1).await;
    assert_eq!(reader.message().await.text.len(), TEXT_BYTES);
}

#[tokio::test]
async fn classic_framing_works_over_tls() {
    let server = server(&[]);
    let mut stream = handshake(server.address(), &[]).await.unwrap();
    for (command, payload) in [("create", "bob"), ("send", "bob,hello"), ("connect", "bob")] {
        stream
            .write_all(&Classic::padded(command, payload))
            .await
            .unwrap();
        let mut block = [0; 1024];
        stream.read_exact(&mut block).await.unwrap();
        assert!(
            block.starts_with(b"ok\0"),
            "{command}: {}",
            String::from_utf8_lossy(&block)
        );
    }
    let mut block = [0; 1024];
    stream.read_exact(&mut block).await.unwrap();
    assert!(
        block.starts_with(b"string\0\0\0\0\0\0\0\0\0hello\0"),
        "{}",
        String::from_utf8_lossy(&block)
    );
}

#[tokio::test]
async fn alpn_selects_a_version_of_http_or_nothing() {
    let server = server(&[]);
    for (offered, chosen) in [
        (&["h2", "http/1.1"][..], Some(&b"h2"[..])),
        (&["http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let stream = handshake(server.address(), offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
    }
    let error = handshake(server.address(), &["acme-tls/1"])
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("NoApplicationProtocol"),
        "{error}"
    );
}

#[tokio::test]
async fn first_bytes_that_contradict_alpn_close() {
    let server = server(&[]);
    for (chosen, bytes) in [
        (
            "h2",
            &b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"[..],
        ),
        ("http/1.1", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ("http/1.1", &frame(7, &Request::Ping)),
        ("h2", b"login ann"),
    ] {
        let mut stream = handshake(server.address(), &[chosen]).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut said = Vec::new();
        let reading = timeout(TIMEOUT, stream.read_to_end(&mut said));
        // It is closed silently.
        drop(reading.await.expect("the connection stays open"));
        assert!(said.is_empty(), "{said:?}");
    }
    server.wait_for_log("first bytes contradict ALPN");
}

#[tokio::test]
async fn tls_inside_tls_is_refused() {
    let server = server(&["--log=debug"]);
    let mut stream = handshake(server.address(), &[]).await.unwrap();
    stream.write_all(HALF_A_HANDSHAKE).await.unwrap();
    stream.flush().await.unwrap();
    let mut said = Vec::new();
    // It is closed silently.
    drop(
        timeout(TIMEOUT, stream.read_to_end(&mut said))
            .await
            .expect("the connection stays open"),
    );
    assert!(said.is_empty(), "{said:?}");
    server.wait_for_log("unexpected protocol inside TLS");
}

#[tokio::test]
async fn tls_without_certificate_is_refused_and_logged() {
    let server = Harkd::builder().certificate(None).start();
    assert_eq!(
        answer(server.address(), HALF_A_HANDSHAKE).await,
        [0x15, 3, 3, 0, 2, 2, 40]
    );
    server.wait_for_log("TLS connection refused: no certificate (--tls-cert and --tls-key)");
    Wire::connect(server.address()).await.ping().await;
}

#[tokio::test]
async fn tls_only_refuses_plain_text_in_every_framing() {
    let server = server(&["--tls-only"]);
    let reason = "denied,this server requires TLS; connect with TLS (hark --tls)";
    let native = answer(server.address(), &frame(7, &Request::Ping)).await;
    assert!(
        String::from_utf8_lossy(&native).ends_with(reason),
        "{}",
        String::from_utf8_lossy(&native)
    );
    let classic = answer(server.address(), &Classic::padded("ping", "")).await;
    assert!(
        String::from_utf8_lossy(&classic).contains(reason),
        "{}",
        String::from_utf8_lossy(&classic)
    );
    assert_eq!(classic.len(), 1024);
    let http = answer(server.address(), b"GET / HTTP/1.1\r\n\r\n").await;
    let http = String::from_utf8_lossy(&http);
    assert!(http.starts_with("HTTP/1.1 403 "), "{http}");
    assert!(http.contains("this server requires TLS"), "{http}");
    server.wait_for_log("plaintext connection refused");
    Front::Tls.connect(server.address()).await.ping().await;
}

#[tokio::test]
async fn excess_tls_connection_gets_an_alert() {
    let server = server(&["--max-connections-per-address=1", "--limit-loopback"]);
    let mut first = Front::Tls.connect(server.address()).await;
    first.ping().await;
    assert_eq!(
        answer(server.address(), HALF_A_HANDSHAKE).await,
        [0x15, 3, 3, 0, 2, 2, 80]
    );
    let certificate = Certificate::trusted();
    let authority = certificate.authority();
    let words = ["--timeout=1", "--ca", utf8(&authority), "ping"];
    let (code, _, said) = run(&server.address().to_string(), &words);
    assert_eq!(code, Some(3));
    assert!(
        said.contains("the server refused the connection for now"),
        "{said}"
    );
}

#[tokio::test]
async fn handshake_counts_as_a_connection() {
    let server = server(&["--max-connections-per-address=1", "--limit-loopback"]);
    let _stalled = stalled(&server).await;
    assert_eq!(
        answer(server.address(), HALF_A_HANDSHAKE).await,
        [0x15, 3, 3, 0, 2, 2, 80]
    );
}

/// Returns a connection whose handshake has stalled.
async fn stalled(server: &Harkd) -> TcpStream {
    let mut stalled = TcpStream::connect(server.address()).await.unwrap();
    stalled.write_all(HALF_A_HANDSHAKE).await.unwrap();
    server.wait_until_read();
    stalled
}

/// The short run checks in `links` that such a connection is closed, but not
/// when.
mod long {
    use super::*;

    #[tokio::test]
    async fn stalled_handshake_is_dropped_after_timeout() {
        let server = server(&["--max-connections-per-address=1", "--limit-loopback"]);
        let begun = Instant::now();
        let mut stalled = stalled(&server).await;
        let mut said = Vec::new();
        drop(
            timeout(TIMEOUT, stalled.read_to_end(&mut said))
                .await
                .expect("the connection stays open"),
        );
        assert!(
            begun.elapsed() >= HANDSHAKE_TIMEOUT,
            "dropped after {:?}",
            begun.elapsed()
        );
        server.wait_for_log("TLS handshake timed out");
        Front::Tls.connect(server.address()).await.ping().await;
    }
}

#[tokio::test]
async fn shutdown_does_not_wait_for_a_handshake() {
    let mut server = server(&["--drain-timeout=60"]);
    let stalled = stalled(&server).await;
    // A connection that is silent after its handshake does not delay the
    // shutdown either.
    let silent = handshake(server.address(), &[]).await.unwrap();
    server.wait_until_read();
    let asked = Instant::now();
    server.signal("TERM");
    assert!(server.wait().success());
    assert!(
        asked.elapsed() < HANDSHAKE_TIMEOUT / 2,
        "it took {:?}",
        asked.elapsed()
    );
    drop((stalled, silent));
}

#[tokio::test]
async fn shutdown_says_bye_and_closes_tls_in_order() {
    let mut server = server(&[]);
    let mut client = NativeTls::connect_tls(server.address()).await.unwrap();
    client
        .write_bytes(&frame(
            1,
            &Request::Create {
                user: name("bob"),
                password: None,
            },
        ))
        .await
        .unwrap();
    client
        .write_bytes(&frame(
            2,
            &Request::Connect {
                user: name("bob"),
                password: None,
            },
        ))
        .await
        .unwrap();
    let mut client = Client::over(client);
    for _ in 0..2 {
        assert!(matches!(client.next().await.unwrap().message, Reply::Ok(_)));
    }
    server.signal("TERM");
    assert_eq!(
        client.next().await,
        Some(Frame::new(None, Reply::Bye(ByeReason::Shutdown)))
    );
    // `NativeTls` accepts a missing close_notify, so the raw stream is checked.
    let mut stream = client.into_link().into_stream();
    let mut rest = Vec::new();
    let end = timeout(TIMEOUT, stream.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(end.expect("close_notify"), 0);
    drop(stream);
    assert!(server.wait().success());
}

#[tokio::test]
async fn half_closed_tls_client_gets_its_answers() {
    let server = server(&[]);
    for says_so in [true, false] {
        let mut stream = handshake(server.address(), &[]).await.unwrap();
        let user = format!("bob{says_so}");
        let requests = [
            frame(
                1,
                &Request::Create {
                    user: name(&user),
                    password: None,
                },
            ),
            frame(2, &send(&user, "last words")),
        ];
        stream.write_all(&requests.concat()).await.unwrap();
        stream.flush().await.unwrap();
        if says_so {
            stream.shutdown().await.unwrap();
            let mut said = Vec::new();
            timeout(TIMEOUT, stream.read_to_end(&mut said))
                .await
                .unwrap()
                .unwrap();
            let oks = said.windows(3).filter(|bytes| bytes == b"ok\0").count();
            assert_eq!(oks, 2, "{said:?}");
        } else {
            // Without close_notify: only TCP is closed.
            let socket = stream.get_mut().0;
            socket.shutdown().await.unwrap();
            timeout(TIMEOUT, socket.read_to_end(&mut Vec::new()))
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!(
            Wire::connect(server.address()).await.receive(&user).await,
            1
        );
    }
}

#[tokio::test]
async fn blocked_tls_client_is_dropped() {
    let server = server(&["--ack-timeout=2"]);
    let mut writer = Wire::connect(server.address()).await;
    writer.create("bob").await;
    let mut reader = NativeTls::connect_tls(server.address()).await.unwrap();
    reader
        .write_bytes(&frame(
            1,
            &Request::Connect {
                user: name("bob"),
                password: None,
            },
        ))
        .await
        .unwrap();
    let text = "x".repeat(60_000);
    for _ in 0..100 {
        writer.sent("bob", &text).await;
    }
    server.wait_for_log("slow consumer");
    drop(reader);
}

/// Returns the memory of the server per idle receiving connection, in bytes.
async fn cost_of_idling(front: Front) -> u64 {
    const WARM_UP: usize = 100;
    const MEASURED: usize = 300;
    let server = server(&[]);
    let mut clients = Vec::new();
    let mut before = 0;
    for nth in 0..WARM_UP + MEASURED {
        if nth == WARM_UP {
            before = server.resident_bytes();
        }
        let mut client = front.connect(server.address()).await;
        let user = format!("user{nth}");
        client.create(&user).await;
        client.receive(&user).await;
        clients.push(client);
    }
    (server.resident_bytes() - before) / MEASURED as u64
}

#[tokio::test]
async fn idle_tls_connection_memory_is_bounded() {
    let (plain, inside) = (
        cost_of_idling(Front::Native).await,
        cost_of_idling(Front::Tls).await,
    );
    println!("an idle connected user: {plain} bytes in plain text, {inside} inside TLS");
    assert!(
        inside < plain + 16 * 1024,
        "{inside} bytes inside TLS, {plain} in plain text"
    );
}

#[tokio::test]
async fn sighup_reloads_certificate_and_keeps_connections() {
    let certificate = Arc::new(Certificate::trusted());
    let server = server_with(&certificate);
    let mut before = Front::Tls.connect(server.address()).await;
    before.ping().await;
    certificate.replace(&Authority::new(), &["127.0.0.1"]);
    server.signal("HUP");
    server.wait_for_log("certificate reloaded");
    let error = handshake(server.address(), &[]).await.unwrap_err();
    assert!(
        error.to_string().contains("invalid peer certificate"),
        "{error}"
    );
    before.ping().await;
    certificate.replace(Authority::trusted(), &["127.0.0.1"]);
    server.signal("HUP");
    wait_until("the second reading", || {
        server.log().matches("certificate reloaded").count() == 2
    });
    Front::Tls.connect(server.address()).await.ping().await;
    before.ping().await;
}

#[tokio::test]
async fn invalid_certificate_is_ignored_at_sighup() {
    let certificate = Arc::new(Certificate::trusted());
    let server = server_with(&certificate);
    let key = std::fs::read(certificate.key()).unwrap();
    certificate.replace(Authority::trusted(), &["127.0.0.1"]);
    std::fs::write(certificate.key(), key).unwrap();
    server.signal("HUP");
    server.wait_for_log(
        "cannot reload the certificate; the previous one stays in use error=the private key ",
    );
    Front::Tls.connect(server.address()).await.ping().await;
    std::fs::remove_file(certificate.path()).unwrap();
    server.signal("HUP");
    server.wait_for_log(
        "cannot reload the certificate; the previous one stays in use error=cannot read ",
    );
    Front::Tls.connect(server.address()).await.ping().await;
}

#[test]
fn invalid_certificate_is_refused_at_start() {
    let certificate = Certificate::trusted();
    let other = Certificate::trusted();
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().join("empty");
    std::fs::write(&empty, "nothing").unwrap();
    set_mode(&empty, 0o600);
    let check = |certificate: &Path, key: &Path, expected: &str| {
        let mut command = harkd();
        command
            .args(["--listen=127.0.0.1:0", "--store=memory:", "--tls-cert"])
            .arg(certificate);
        let output = command.arg("--tls-key").arg(key).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.starts_with("harkd: ") && said.contains(expected),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    };
    check(
        &certificate.path(),
        &other.key(),
        " does not match the certificate ",
    );
    check(
        &certificate.path(),
        &folder.path().join("none"),
        "cannot read ",
    );
    check(
        &folder.path().join("none"),
        &certificate.key(),
        "cannot read ",
    );
    check(&empty, &certificate.key(), " holds no certificate");
    check(
        &certificate.path(),
        &empty,
        " holds no unencrypted private key",
    );
    check(
        &certificate.path(),
        &certificate.path(),
        "is accessible to every user of this machine",
    );
    set_mode(&certificate.path(), 0o600);
    check(
        &certificate.path(),
        &certificate.path(),
        " holds no unencrypted private key",
    );
    set_mode(&certificate.key(), 0o604);
    check(
        &certificate.path(),
        &certificate.key(),
        "is accessible to every user of this machine",
    );
}

#[test]
fn public_address_needs_explicit_flags() {
    let refused = |words: &[&str], expected: &str| {
        let mut command = harkd();
        let output = command
            .args(["--listen=0.0.0.0:0", "--store=memory:"])
            .args(words)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.as_str()), (Some(1), expected));
    };
    refused(
        &[],
        "harkd: other machines can reach 0.0.0.0:0: add --tls-cert FILE and --tls-key FILE (or \
         --allow-plaintext), and --require-password (or --allow-open-accounts)\n",
    );
    refused(
        &["--allow-plaintext"],
        "harkd: other machines can reach 0.0.0.0:0: add --require-password (or --allow-open-accounts)\n",
    );
}

#[tokio::test]
async fn plain_text_on_public_address_needs_permission() {
    let everywhere = |builder: HarkdBuilder| {
        builder
            .listen("0.0.0.0:0")
            .arg("--allow-open-accounts")
            .start()
    };
    let server = everywhere(Harkd::builder());
    let refusal = answer(server.address(), &frame(1, &Request::Ping)).await;
    assert!(String::from_utf8_lossy(&refusal).contains("this server requires TLS"));
    Front::Tls.connect(server.address()).await.ping().await;
    for builder in [Harkd::builder(), Harkd::builder().certificate(None)] {
        let server = everywhere(builder.arg("--allow-plaintext"));
        Wire::connect(server.address()).await.ping().await;
    }
}

#[test]
fn hark_supports_tls_over_every_transport() {
    let certificate = Arc::new(Certificate::trusted());
    let server = Harkd::builder()
        .certificate(Some(&certificate))
        .args(["--tls-only", "--watch-logs=loopback"])
        .start();
    let address = server.address().to_string();
    let authority = certificate.authority();
    for words in [
        &["create", "bob"][..],
        &["--grpc", "send", "bob", "hello"],
        &["logs", "--limit=1"],
    ] {
        let (code, out, said) = run(
            &address,
            &[&["--tls", "--ca", utf8(&authority)], words].concat(),
        );
        assert_eq!((code, said.as_str()), (Some(0), ""), "{words:?} {out}");
    }
    let (code, out, said) = run(
        &address,
        &["--ca", utf8(&authority), "listen", "bob", "--count=1"],
    );
    assert_eq!((code, said.as_str()), (Some(0), ""));
    assert!(out.ends_with("hello\n"), "{out}");
    let by_name = format!("localhost:{}", server.address().port());
    assert_eq!(
        run(&by_name, &["--ca", utf8(&authority), "ping"]).0,
        Some(0)
    );
}

/// Runs `hark ping` over the wire protocol and over gRPC; each has to fail at
/// once with this explanation.
#[track_caller]
fn check_tls_error(server: &str, words: &[&str], expected: &str) {
    for grpc in [&[][..], &["--grpc"]] {
        let begun = Instant::now();
        let (code, out, said) = run(server, &[words, grpc, &["--timeout=60", "ping"]].concat());
        assert_eq!((code, out.as_str()), (Some(3), ""), "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(begun.elapsed() < Duration::from_secs(20), "it has waited");
    }
}

#[test]
fn hark_refuses_untrusted_certificate_at_once() {
    let certificate = Arc::new(Certificate::trusted());
    let server = server_with(&certificate);
    let address = server.address().to_string();
    let authority = certificate.authority();
    let ca = ["--ca", utf8(&authority)];
    let renew = |count| {
        server.signal("HUP");
        wait_until("the reading", || {
            server.log().matches("certificate reloaded").count() == count
        });
    };
    check_tls_error(
        &address,
        &["--tls"],
        "is not trusted: its issuer is unknown to this machine; name the authority with --ca FILE",
    );
    let other = Authority::new().sign(&["127.0.0.1"]);
    let (file, expected) = (other.authority(), "is not trusted: its issuer is not in ");
    check_tls_error(&address, &["--ca", utf8(&file)], expected);

    certificate.replace(Authority::trusted(), &["hark.test", "192.0.2.1"]);
    renew(1);
    check_tls_error(
        &address,
        &ca,
        "the server's certificate is not valid for 127.0.0.1, only for hark.test, 192.0.2.1",
    );
    certificate.replace_by_expired(Authority::trusted(), &["127.0.0.1"]);
    renew(2);
    check_tls_error(
        &address,
        &ca,
        "the server's certificate expired on 2020-02-03",
    );
    certificate.replace_by_self_signed(&["127.0.0.1"], true);
    renew(3);
    check_tls_error(&address, &ca, "is a CA certificate (CA:TRUE)");
    certificate.replace_by_self_signed(&["127.0.0.1"], false);
    renew(4);
    assert_eq!(
        run(&address, &[&ca[..], &["ping"]].concat()).0,
        Some(0),
        "a certificate may vouch for itself"
    );
}

#[test]
fn hark_reports_tls_mismatch_at_once() {
    let encrypted = server(&["--tls-only"]);
    check_tls_error(
        &encrypted.address().to_string(),
        &[],
        "connect with TLS (hark --tls)",
    );
    let plain = Harkd::builder().certificate(None).start();
    check_tls_error(
        &plain.address().to_string(),
        &["--tls"],
        "the server refused the handshake: it has no certificate",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hark_reports_a_foreign_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0; 1];
            stream.read_exact(&mut first).await.unwrap();
            let said: &[u8] = if first == [0x16] {
                b"SSH-2.0-x\r\n"
            } else {
                &[0x15, 3, 3, 0, 2, 2, 70]
            };
            stream.write_all(said).await.unwrap();
            // The client closes the connection.
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    });
    tokio::task::block_in_place(|| {
        check_tls_error(&address, &["--tls"], "the server does not support TLS");
        let (code, _, said) = run(&address, &["--timeout=60", "ping"]);
        assert_eq!(code, Some(3));
        assert!(
            said.contains("the server requires TLS") && said.contains("hark --tls"),
            "{said}"
        );
    });
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hark_never_falls_back_to_plain_text() {
    // Several attempts, each answered in a different unhelpful way.
    const TRIES: usize = 3;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let hearing = tokio::spawn(async move {
        let mut heard = Vec::new();
        for nth in 0..TRIES {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4096];
            let count = stream.read(&mut bytes).await.unwrap();
            bytes.truncate(count);
            if nth == 1 {
                // Silence, then the end.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stream.shutdown().await.unwrap();
            heard.push(bytes);
        }
        heard
    });
    tokio::task::block_in_place(|| {
        let state = tempfile::tempdir().unwrap();
        let mut command = hark(state.path());
        command
            .env("HARK_SERVER", &address)
            .env("HARK_PASSWORD", "hunter2-hunter2");
        let mut child = command
            .args([
                "--tls",
                "--timeout=60",
                "send",
                "--as",
                "amy",
                "bob",
                "a secret",
            ])
            .spawn()
            .unwrap();
        let heard = tokio::runtime::Handle::current()
            .block_on(timeout(TIMEOUT, hearing))
            .unwrap()
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(heard.len(), TRIES);
        for bytes in heard {
            assert!(bytes.starts_with(&[0x16, 3]), "not a handshake: {bytes:?}");
            let text = String::from_utf8_lossy(&bytes);
            assert!(
                !["hunter2", "secret", "amy", "bob", "hello"]
                    .iter()
                    .any(|word| text.contains(word)),
                "{text}"
            );
        }
    });
}

#[test]
fn chat_shows_untrusted_certificate() {
    let certificate = Arc::new(Certificate::trusted());
    let server = server_with(&certificate);
    let state = tempfile::tempdir().unwrap();
    let authority = certificate.authority();
    let terminal = hark_tests::Terminal::open(
        server.address(),
        state.path(),
        &[("HARK_CA", utf8(&authority))],
    );
    terminal.wait_for("connected to");
    // The certificate after the restart is from another authority.
    certificate.replace(&Authority::new(), &["127.0.0.1"]);
    std::fs::copy(Certificate::trusted().authority(), &authority).unwrap();
    let _server = server.kill_and_restart();
    terminal.wait_for("is not trusted: its issuer is not in");
}

/// Python's `ssl`, which uses OpenSSL, as a client.
#[test]
fn openssl_client_is_compatible() {
    let certificate = Arc::new(Certificate::trusted());
    let server = Harkd::builder()
        .certificate(Some(&certificate))
        .arg("--tls-only")
        .start();
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tls_client.py");
    let mut command = Command::new("python3");
    command
        .arg(program)
        .arg(server.address().port().to_string())
        .arg(certificate.authority());
    let output = command.output().expect("python3; ./test installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "TLSv1.3 native classic\nTLSv1.2 native classic\n"
    );
}
