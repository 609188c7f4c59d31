//! A scripted client of the classic framing.

use std::net::SocketAddr;

use hark_protocol::limits::{CLASSIC_BLOCK_BYTES, COMMAND_BYTES};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::TIMEOUT;

/// A connection.
#[derive(Debug)]
pub struct Classic {
    stream: TcpStream,
}

impl Classic {
    /// Connects.
    ///
    /// # Panics
    /// If that fails.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.expect("a connection");
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Returns the client's address of the connection.
    ///
    /// # Panics
    /// If the connection is closed.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().unwrap()
    }

    /// Returns a bare message, without padding.
    #[must_use]
    pub fn bare(command: &str, payload: &str) -> Vec<u8> {
        format!("{command:\0<COMMAND_BYTES$}{payload}").into_bytes()
    }

    /// Returns a message padded to a block.
    #[must_use]
    pub fn padded(command: &str, payload: &str) -> Vec<u8> {
        let mut block = Self::bare(command, payload);
        block.resize(CLASSIC_BLOCK_BYTES, 0);
        block
    }

    /// Writes raw bytes.
    ///
    /// # Panics
    /// If writing fails.
    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(TIMEOUT, self.stream.write_all(bytes))
            .await
            .expect("the server does not read")
            .unwrap();
    }

    /// Returns the command and the payload of the next block, or `None` at the
    /// end of the connection.
    ///
    /// # Panics
    /// If no whole block arrives in time.
    pub async fn next(&mut self) -> Option<(String, String)> {
        let mut block = Vec::new();
        let mut stream = (&mut self.stream).take(CLASSIC_BLOCK_BYTES as u64);
        let read = timeout(TIMEOUT, stream.read_to_end(&mut block))
            .await
            .expect("nothing came in time");
        match read {
            Ok(_) => {}
            // A killed server resets its connections.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
        if block.is_empty() {
            return None;
        }
        assert_eq!(
            block.len(),
            CLASSIC_BLOCK_BYTES,
            "not a whole block: {block:?}"
        );
        let text = std::str::from_utf8(&block)
            .expect("UTF-8")
            .trim_end_matches('\0');
        let (command, payload) = text.split_at(COMMAND_BYTES.min(text.len()));
        Some((
            command.trim_end_matches('\0').to_owned(),
            payload.to_owned(),
        ))
    }

    /// Writes a bare message, and returns the next block.
    ///
    /// # Panics
    /// If none arrives.
    pub async fn ask(&mut self, command: &str, payload: &str) -> (String, String) {
        self.write(&Self::bare(command, payload)).await;
        self.next().await.expect("an answer")
    }

    /// As [`Self::ask`], but requires `ok` and returns its payload.
    ///
    /// # Panics
    /// On any other answer.
    pub async fn ok(&mut self, command: &str, payload: &str) -> String {
        let (answer, answered) = self.ask(command, payload).await;
        assert_eq!(answer, "ok", "{command} {payload} got {answer} {answered}");
        answered
    }

    /// Returns the next text.
    ///
    /// # Panics
    /// If another command arrives.
    pub async fn text(&mut self) -> String {
        match self.next().await {
            Some((command, text)) if command == "string" => text,
            other => panic!("no text but {other:?}"),
        }
    }
}
