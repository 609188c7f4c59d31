//! The first bytes of a connection, or the first ones inside TLS, which select its
//! protocol. It does not know the protocols beyond them.

use std::fmt;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// How long the first bytes may take, from the first one on.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);

/// The preface of HTTP/2 (RFC 9113, section 3.4). All of it is awaited here, since hyper
/// would wait for it indefinitely.
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The methods of HTTP/1.1 with which a connection may begin.
const METHODS: [&[u8]; 6] = [
    b"GET ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"HEAD ",
    b"OPTIONS ",
];

/// The first byte of a TLS handshake (RFC 8446, section 5.1).
const HANDSHAKE: u8 = 0x16;

/// The protocol of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The native framing: the first byte of a length is zero.
    Native,
    /// The classic framing: a command of lower-case letters.
    Classic,
    /// TLS.
    Tls,
    /// HTTP/1.1 and WebSocket.
    Http1,
    /// HTTP/2: gRPC and HTTP.
    Http2,
}

/// The meaning of the first bytes so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstBytes {
    /// More bytes are needed.
    Incomplete,
    /// They select a protocol.
    Known(Protocol),
    /// They select none.
    Unknown,
}

impl FirstBytes {
    /// Classifies the first bytes. One byte suffices for every protocol but HTTP.
    pub(super) fn of(bytes: &[u8]) -> Self {
        match bytes.first() {
            None => return Self::Incomplete,
            Some(0) => return Self::Known(Protocol::Native),
            Some(b'a'..=b'z') => return Self::Known(Protocol::Classic),
            Some(&HANDSHAKE) => return Self::Known(Protocol::Tls),
            Some(_) => {}
        }
        if bytes.starts_with(HTTP_2_PREFACE) {
            return Self::Known(Protocol::Http2);
        }
        if METHODS.iter().any(|method| bytes.starts_with(method)) {
            return Self::Known(Protocol::Http1);
        }
        let mut rows = METHODS.iter().copied().chain([HTTP_2_PREFACE]);
        if rows.any(|row| row.starts_with(bytes)) {
            Self::Incomplete
        } else {
            Self::Unknown
        }
    }
}

/// The reason why a connection has no protocol.
#[derive(Debug)]
pub(super) enum NoProtocol {
    /// The peer closed the connection first.
    Closed,
    /// The first bytes took too long.
    TimedOut,
    /// The first bytes select no protocol. The log gets the first one alone: the others may
    /// be a text or a password.
    Unknown(u8),
}

impl fmt::Display for NoProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed by the peer"),
            Self::TimedOut => write!(f, "first bytes incomplete after {FIRST_BYTES_TIMEOUT:?}"),
            Self::Unknown(first) => write!(f, "unknown protocol: first byte {first:#04x}"),
        }
    }
}

/// Reads until the first bytes select a protocol, for at most [`FIRST_BYTES_TIMEOUT`].
/// Returns the protocol and all bytes that were read.
///
/// # Errors
/// An error of the stream.
pub(super) async fn read(
    stream: &mut (impl AsyncRead + Unpin),
) -> io::Result<Result<(Protocol, BytesMut), NoProtocol>> {
    let mut bytes = BytesMut::new();
    let reading = async {
        loop {
            match (FirstBytes::of(&bytes), bytes.first()) {
                (FirstBytes::Known(protocol), _) => return Ok(Ok(protocol)),
                (FirstBytes::Unknown, Some(first)) => return Ok(Err(NoProtocol::Unknown(*first))),
                _ => {}
            }
            let missing = HTTP_2_PREFACE.len().saturating_sub(bytes.len());
            let mut limited = (&mut *stream).take(missing as u64);
            if limited.read_buf(&mut bytes).await? == 0 {
                return Ok::<_, io::Error>(Err(NoProtocol::Closed));
            }
        }
    };
    match tokio::time::timeout(FIRST_BYTES_TIMEOUT, reading).await {
        Ok(read) => Ok(read?.map(|protocol| (protocol, bytes))),
        Err(_) => Ok(Err(NoProtocol::TimedOut)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[track_caller]
    fn check(bytes: &[u8], expected: FirstBytes) {
        assert_eq!(
            FirstBytes::of(bytes),
            expected,
            "{:?}",
            bytes.escape_ascii()
        );
    }

    #[test]
    fn first_bytes_select_the_protocol() {
        check(b"", FirstBytes::Incomplete);
        check(b"\0", FirstBytes::Known(Protocol::Native));
        check(b"login", FirstBytes::Known(Protocol::Classic));
        check(b"get / HTTP/1.1", FirstBytes::Known(Protocol::Classic));
        check(b"\x16\x03", FirstBytes::Known(Protocol::Tls));
        check(HTTP_2_PREFACE, FirstBytes::Known(Protocol::Http2));
        for method in METHODS {
            check(method, FirstBytes::Known(Protocol::Http1));
            for end in 1..method.len() {
                check(&method[..end], FirstBytes::Incomplete);
            }
        }
    }

    #[test]
    fn unknown_first_bytes_are_known_early() {
        for bytes in [
            &b"PRI * HTTP/1.1"[..],
            b"PRX",
            b"PATCH / HTTP/1.1",
            b"GET/",
            b"CONNECT host:1 HTTP/1.1",
            b"\x01",
            b"\x80",
            b" GET ",
            b"0",
        ] {
            check(bytes, FirstBytes::Unknown);
        }
        check(b"PRI * HTTP/2", FirstBytes::Incomplete);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_arrive_one_by_one_are_awaited() {
        let (mut client, mut server) = tokio::io::duplex(100);
        let reading = tokio::spawn(async move { read(&mut server).await.unwrap() });
        for byte in b"OPTIONS " {
            client.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let (protocol, bytes) = reading.await.unwrap().unwrap();
        assert_eq!((protocol, &bytes[..]), (Protocol::Http1, &b"OPTIONS "[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn incomplete_first_bytes_time_out() {
        let (mut client, mut server) = tokio::io::duplex(100);
        client.write_all(b"DEL").await.unwrap();
        let begun = tokio::time::Instant::now();
        let read = read(&mut server).await.unwrap();
        assert!(matches!(read, Err(NoProtocol::TimedOut)), "{read:?}");
        assert_eq!(begun.elapsed(), FIRST_BYTES_TIMEOUT);
    }

    proptest! {
        #[test]
        fn more_bytes_never_change_a_known_protocol(bytes in prop::collection::vec(any::<u8>(), 1..30)) {
            let all = FirstBytes::of(&bytes);
            for end in 1..bytes.len() {
                match FirstBytes::of(&bytes[..end]) {
                    FirstBytes::Incomplete => {}
                    known => prop_assert_eq!(known, all),
                }
            }
        }
    }
}
