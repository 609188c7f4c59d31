//! The signals that ask to end.

use crate::exit::Failure;

/// SIGINT and SIGTERM, as something to wait for.
#[cfg(unix)]
pub(crate) struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

/// Begins to catch the signals: from now on they do not end the process.
#[cfg(unix)]
pub(crate) fn stop() -> Result<Stop, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let catch = |kind| signal(kind).map_err(|error| Failure::local(format!("cannot catch signals: {error}")));
    Ok(Stop { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
}

#[cfg(unix)]
impl Stop {
    /// Waits for either signal. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Ctrl-C, as something to wait for.
#[cfg(not(unix))]
pub(crate) struct Stop;

/// Begins to catch Ctrl-C.
#[cfg(not(unix))]
pub(crate) fn stop() -> Result<Stop, Failure> {
    Ok(Stop)
}

#[cfg(not(unix))]
impl Stop {
    /// Waits for Ctrl-C. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
