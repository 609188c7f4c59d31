//! Reports to the service manager that started the process, such as systemd, by the
//! protocol of `sd_notify(3)`: readiness, status, and signs of life for its watchdog.
//! Without a service manager it does nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::server::{Server, ServerState};

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
    /// The time within which it expects a sign of life.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// Returns the service manager that the environment names.
    pub(crate) fn of_process() -> Self {
        Self {
            watchdog: sd_notify::watchdog_enabled(),
        }
    }

    /// Reports that the store is being opened.
    pub(crate) fn starting(&self) {
        notify(&[NotifyState::Status("Opening the store")]);
    }

    /// Reports that the server is ready, at the start or after a reload.
    pub(crate) fn ready(&self) {
        notify(&[NotifyState::Ready]);
    }

    /// Reports that a reload begins; [`Self::ready`] ends it.
    pub(crate) fn reloading(&self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "cannot read the monotonic clock"),
        }
    }

    /// Reports that connections are closed and the store is being saved.
    pub(crate) fn closing(&self) {
        notify(&[
            NotifyState::Stopping,
            NotifyState::Status("Closing the store"),
            extension(),
        ]);
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
            report(state, is_alive && self.watchdog.is_some());
            let interval = if state.is_draining {
                interval.min(DRAIN_REPORT_INTERVAL)
            } else {
                interval
            };
            tokio::time::sleep(interval).await;
        }
    }
}

fn report(state: ServerState, has_watchdog: bool) {
    let status = status(state);
    let mut states = vec![NotifyState::Status(&status)];
    if state.is_draining {
        // In case that the drain timeout is longer than that of the service manager.
        states.extend([NotifyState::Stopping, extension()]);
    }
    if has_watchdog {
        states.push(NotifyState::Watchdog);
    }
    notify(&states);
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

const fn extension() -> NotifyState<'static> {
    NotifyState::ExtendTimeoutUsec(DRAIN_EXTENSION.as_micros() as u32)
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "cannot notify the service manager");
    }
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
