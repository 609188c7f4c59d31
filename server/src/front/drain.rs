//! Closing a connection so that the last that was written arrives: a socket
//! that is closed with bytes unread resets the connection, and the peer may
//! never see what was on its way.

use std::io;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How long the peer has to take the last and to close its side.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Writes what is left, closes, and drops what the peer still says, for
/// [`DRAIN_TIMEOUT`] in all.
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
    tokio::time::timeout(DRAIN_TIMEOUT, close).await.unwrap_or(Ok(()))
}
