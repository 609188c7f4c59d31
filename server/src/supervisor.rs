//! Reports to the service manager that started the process, such as systemd, by the
//! protocol of `sd_notify(3)`: readiness, status, and signs of life for its watchdog.
//! Without a service manager it does nothing.
//!
//! The protocol is here because the library for it waits without a bound for a manager that
//! does not read.

use std::convert::Infallible;
use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::server::{Server, ServerState};

/// The longest wait for a manager that does not read. The report is then dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);

/// The longest time between two reports.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// The interval of reports while the server shuts down.
const DRAIN_REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How much longer than announced before an end takes, at most: the last report may be
/// this old.
const DRAIN_EXTENSION: Duration = Duration::from_secs(30);

/// The service manager of this process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// The time within which it expects a sign of life.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Returns the service manager that the environment names.
    pub(crate) fn of_process() -> Self {
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|name| {
            let connected = connect(&name).inspect_err(|error| {
                tracing::warn!(name, %error, "cannot reach the service manager");
            });
            connected.ok()
        });
        Self {
            socket,
            watchdog: watchdog(),
        }
    }

    /// Reports that the store is being opened.
    pub(crate) fn starting(&self) {
        self.notify(&["STATUS=Opening the store"]);
    }

    /// Reports that the server is ready, at the start or after a reload.
    pub(crate) fn ready(&self) {
        self.notify(&["READY=1"]);
    }

    /// Reports that a reload begins; [`Self::ready`] ends it.
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let now_us = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
        self.notify(&["RELOADING=1", &format!("MONOTONIC_USEC={now_us}")]);
    }

    /// Reports that connections are closed and the store is being saved.
    pub(crate) fn closing(&self) {
        self.notify(&["STOPPING=1", "STATUS=Closing the store", &extension()]);
    }

    /// Reports the state of the server at intervals. A sign of life for the watchdog
    /// requires that a thread of the runtime can run a task: a server that hangs is
    /// restarted, and one whose store is unavailable recovers by itself.
    pub(crate) async fn keep_reporting(&self, server: Arc<Server>) -> Infallible {
        let interval = self.watchdog.map_or(REPORT_INTERVAL, |watchdog| {
            (watchdog / 3).min(REPORT_INTERVAL)
        });
        loop {
            let state = server.state();
            let is_alive = tokio::spawn(async {}).await.is_ok();
            self.report(state, is_alive && self.watchdog.is_some());
            let interval = if state.is_draining {
                interval.min(DRAIN_REPORT_INTERVAL)
            } else {
                interval
            };
            tokio::time::sleep(interval).await;
        }
    }

    fn report(&self, state: ServerState, is_alive: bool) {
        let (status, extension) = (format!("STATUS={}", status(state)), extension());
        let mut lines = vec![&*status];
        if state.is_draining {
            // In case that the drain timeout is longer than that of the service manager.
            lines.extend(["STOPPING=1", &extension]);
        }
        if is_alive {
            lines.push("WATCHDOG=1");
        }
        self.notify(&lines);
    }

    fn notify(&self, lines: &[&str]) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = socket.send(lines.join("\n").as_bytes()) {
            tracing::debug!(%error, "cannot notify the service manager");
        }
    }
}

/// Connects to the socket of a service manager: a path, or an abstract name after `@`.
fn connect(name: &str) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

/// Returns the time within which the service manager expects a sign of life of this process.
fn watchdog() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_of_other =
        number("WATCHDOG_PID").is_some_and(|pid| pid != u64::from(std::process::id()));
    let timeout = number("WATCHDOG_USEC").filter(|_| !is_of_other)?;
    Some(Duration::from_micros(timeout))
}

fn status(state: ServerState) -> String {
    let ServerState {
        connections,
        is_draining,
        is_available,
    } = state;
    match (is_draining, is_available) {
        (true, _) => format!("Draining: {connections} connections left"),
        (false, true) => format!("Serving {connections} connections"),
        (false, false) => format!("Store unavailable; {connections} connections"),
    }
}

fn extension() -> String {
    format!("EXTEND_TIMEOUT_USEC={}", DRAIN_EXTENSION.as_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(is_draining: bool, is_available: bool, expected: &str) {
        let state = ServerState {
            connections: 3,
            is_draining,
            is_available,
        };
        assert_eq!(status(state), expected);
    }

    #[test]
    fn status_names_the_state_and_connections() {
        check(false, true, "Serving 3 connections");
        check(false, false, "Store unavailable; 3 connections");
        check(true, true, "Draining: 3 connections left");
    }
}
