//! The signals of the process. SIGTERM and SIGINT shut the server down, SIGHUP reloads its
//! configuration, and SIGQUIT ends it at once, for a core dump. The others that would end
//! the process are ignored.

use std::sync::Arc;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio::sync::Notify;

/// Signals that end a process by default and have no meaning here. Without a handler, a file
/// beyond `RLIMIT_FSIZE` (SIGXFSZ) would end the server instead of the write.
const IGNORED: [Signal; 9] = [
    Signal::USR1,
    Signal::USR2,
    Signal::PIPE,
    Signal::ALARM,
    Signal::VTALARM,
    Signal::PROF,
    Signal::IO,
    Signal::XCPU,
    Signal::XFSZ,
];

/// The signals that ask for something other than the end.
#[derive(Debug)]
pub(crate) struct Signals {
    hang_up: unix::Signal,
}

impl Signals {
    /// Handles SIGHUP and ignores the unexpected signals from now on.
    ///
    /// # Errors
    /// An error of the system.
    pub(crate) fn install() -> anyhow::Result<Self> {
        for ignored in IGNORED {
            // The handler stays after this is dropped.
            drop(signal(SignalKind::from_raw(ignored.as_raw()))?);
        }
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next SIGHUP. Cancel-safe.
    pub(crate) async fn reload_requested(&mut self) {
        if self.hang_up.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT, or when `drain` is notified. The second signal
/// ends the process.
pub(crate) fn shutdown_signal(drain: Arc<Notify>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    // Not joined: a second signal may arrive at any time until the process ends.
    tokio::spawn(async move {
        let remaining = tokio::select! {
            _ = terminate.recv() => 1,
            _ = interrupt.recv() => 1,
            () = drain.notified() => 2,
        };
        drop(stop);
        for _ in 0..remaining {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        tracing::warn!("second signal: stopping immediately");
        std::process::exit(1);
    });
    // The signal drops the sender; no value is sent.
    Ok(async move { drop(stopped.await) })
}
