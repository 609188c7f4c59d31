//! The signals that ask to end.

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// SIGINT, as something to wait for.
pub(crate) struct Interrupts {
    #[cfg(unix)]
    signal: Signal,
}

/// SIGINT and SIGTERM, as something to wait for.
pub(crate) struct Stop {
    interrupts: Interrupts,
    #[cfg(unix)]
    terminate: Signal,
}

/// SIGTERM and SIGHUP, as something to wait for.
pub(crate) struct Ends {
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(unix)]
    hang_up: Signal,
}

#[cfg(unix)]
fn catch(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::local(format!("cannot catch signals: {error}")))
}

/// Begins to catch SIGINT: from now on it does not end the process.
pub(crate) fn interrupts() -> Result<Interrupts, Failure> {
    Ok(Interrupts {
        #[cfg(unix)]
        signal: catch(SignalKind::interrupt())?,
    })
}

/// Begins to catch both: from now on they do not end the process.
pub(crate) fn stop() -> Result<Stop, Failure> {
    Ok(Stop {
        interrupts: interrupts()?,
        #[cfg(unix)]
        terminate: catch(SignalKind::terminate())?,
    })
}

/// Begins to catch those that are no key: from now on they do not end the
/// process. Not for who may be told by nohup to outlive its terminal.
pub(crate) fn ends() -> Result<Ends, Failure> {
    Ok(Ends {
        #[cfg(unix)]
        terminate: catch(SignalKind::terminate())?,
        #[cfg(unix)]
        hang_up: catch(SignalKind::hangup())?,
    })
}

impl Ends {
    /// Waits for either signal. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
        #[cfg(not(unix))]
        std::future::pending().await
    }
}

#[cfg(unix)]
impl Interrupts {
    /// Waits for the signal. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        self.signal.recv().await;
    }
}

#[cfg(not(unix))]
impl Interrupts {
    /// Waits for Ctrl-C. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}

impl Stop {
    /// Waits for either signal. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            () = self.interrupts.received() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        self.interrupts.received().await;
    }
}
