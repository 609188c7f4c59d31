//! `harkd` under a service manager: notifications, watchdog, and unexpected signals.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use hark_tests::{Harkd, HarkdBuilder, TIMEOUT, Wire};
use tempfile::TempDir;

use crate::slow_peers::fill_buffers;

/// A service manager that records the notifications of one server.
struct Manager {
    folder: TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        Self { folder, socket }
    }

    /// Returns the builder of a server that it supervises.
    fn builder(&self, watchdog: Duration) -> HarkdBuilder {
        let path = self.folder.path().join("notify");
        Harkd::builder()
            .env("NOTIFY_SOCKET", path.to_str().unwrap())
            .env("WATCHDOG_USEC", &watchdog.as_micros().to_string())
    }

    /// Waits for a notification with this line, and returns all of its lines.
    #[track_caller]
    fn wait_for(&self, line: &str) -> Vec<String> {
        let until = Instant::now() + TIMEOUT;
        let mut seen = Vec::new();
        while Instant::now() < until {
            let mut bytes = [0; 4096];
            let length = match self.socket.recv(&mut bytes) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("{error}"),
            };
            let text = std::str::from_utf8(&bytes[..length]).unwrap();
            let lines: Vec<_> = text.lines().map(str::to_owned).collect();
            if lines.iter().any(|l| l == line) {
                return lines;
            }
            seen.push(lines);
        }
        panic!("no {line:?} in {seen:?}")
    }
}

#[tokio::test]
async fn service_manager_learns_of_every_stage() {
    let manager = Manager::new();
    let mut server = manager.builder(Duration::from_millis(300)).start();
    manager.wait_for("STATUS=Opening the store");
    manager.wait_for("READY=1");
    let mut wire = Wire::connect(server.address()).await;
    wire.ping().await;
    for _ in 0..3 {
        manager.wait_for("WATCHDOG=1");
    }
    manager.wait_for("STATUS=Serving 1 connections");
    server.signal("HUP");
    let reloading = manager.wait_for("RELOADING=1");
    let has_time = |line: &String| line.starts_with("MONOTONIC_USEC=");
    assert!(reloading.iter().any(has_time), "{reloading:?}");
    manager.wait_for("READY=1");
    drop(wire);
    server.signal("TERM");
    let lines = manager.wait_for("STATUS=Closing the store");
    assert!(lines.iter().any(|line| line == "STOPPING=1"), "{lines:?}");
    assert!(server.wait().success());
}

#[tokio::test]
async fn drain_reports_its_progress() {
    let manager = Manager::new();
    let builder = manager.builder(Duration::from_millis(300));
    let mut server = builder.arg("--drain-timeout=3").start();
    let mut holdout = Wire::connect(server.address()).await;
    fill_buffers(&server, &mut holdout).await;
    server.signal("TERM");
    let lines = manager.wait_for("STATUS=Draining: 1 connections left");
    for expected in ["STOPPING=1", "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=30000000"] {
        assert!(lines.iter().any(|line| line == expected), "{lines:?}");
    }
    assert!(server.wait().success());
    let log = server.log();
    assert!(log.contains("draining connections=1"), "{log}");
    drop(holdout);
}

#[tokio::test]
async fn unexpected_signals_do_not_end_the_server() {
    let mut server = Harkd::start();
    let mut wire = Wire::connect(server.address()).await;
    for signal in [
        "USR1", "USR2", "PIPE", "ALRM", "VTALRM", "PROF", "IO", "XCPU", "XFSZ", "HUP",
    ] {
        server.signal(signal);
        wire.ping().await;
    }
    drop(wire);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}
