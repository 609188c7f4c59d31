//! A lingering close, so that the last bytes written arrive: closing a socket with unread
//! input resets the connection, and the peer may lose output in flight.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long the peer has to read the last bytes and to close its side.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes the remaining output, closes the sending side, and discards input until the
/// peer closes, all within [`DRAIN_TIMEOUT`].
pub(super) async fn close(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    output: &mut BytesMut,
) -> io::Result<()> {
    let close = async {
        while output.has_remaining() {
            stream.write_buf(output).await?;
        }
        stream.shutdown().await?;
        let mut dropped = [0; 1024];
        while stream.read(&mut dropped).await? > 0 {}
        Ok(())
    };
    tokio::time::timeout(DRAIN_TIMEOUT, close)
        .await
        .unwrap_or(Ok(()))
}
