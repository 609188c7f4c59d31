//! The first bytes of a connection: the preface of HTTP/2, which has to come
//! whole and soon. What hyper waits for has no end of its own.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;

/// The preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long a client has to send the preface, once its first byte has come.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the preface, and yields the connection as if it had not been read.
/// `None` where something else has come, or nothing in time; the log says which.
///
/// # Errors
/// What the socket says.
pub(super) async fn read(
    mut stream: TcpStream,
    address: IpAddr,
) -> io::Result<Option<impl AsyncRead + AsyncWrite + Unpin>> {
    match tokio::time::timeout(PREFACE_TIMEOUT, is_preface(&mut stream)).await {
        Ok(Ok(true)) => {}
        Ok(Ok(false)) => {
            tracing::warn!(%address, "closing a connection that begins with P and is not HTTP/2");
            return Ok(None);
        }
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            tracing::info!(%address, "closing a connection that has not said in time that it is HTTP/2");
            return Ok(None);
        }
    }
    let (reader, writer) = stream.into_split();
    Ok(Some(tokio::io::join(PREFACE.chain(reader), writer)))
}

async fn is_preface(stream: &mut TcpStream) -> io::Result<bool> {
    let mut bytes = [0; PREFACE.len()];
    let mut came = 0;
    while let Some(room) = bytes.get_mut(came..).filter(|room| !room.is_empty()) {
        let count = stream.read(room).await?;
        came += count;
        let so_far = bytes.get(..came).unwrap_or_default();
        if count == 0 || !PREFACE.starts_with(so_far) {
            return Ok(false);
        }
    }
    Ok(true)
}
