//! Handlers for the signals that end the process.

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// A handler for SIGINT.
pub(crate) struct Interrupts {
    #[cfg(unix)]
    signal: Signal,
}

/// A handler for SIGINT and SIGTERM.
pub(crate) struct Stop {
    interrupts: Interrupts,
    #[cfg(unix)]
    terminate: Signal,
}

/// A handler for SIGTERM and SIGHUP.
pub(crate) struct Termination {
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(unix)]
    hang_up: Signal,
}

/// A handler for SIGCONT.
pub(crate) struct Continuation {
    #[cfg(unix)]
    signal: Signal,
}

#[cfg(unix)]
fn catch(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|error| Failure::local(format!("cannot catch signals: {error}")))
}

/// Installs the handler: the signal no longer ends the process.
pub(crate) fn interrupts() -> Result<Interrupts, Failure> {
    Ok(Interrupts {
        #[cfg(unix)]
        signal: catch(SignalKind::interrupt())?,
    })
}

/// Installs the handler: the signals no longer end the process.
pub(crate) fn stop() -> Result<Stop, Failure> {
    Ok(Stop {
        interrupts: interrupts()?,
        #[cfg(unix)]
        terminate: catch(SignalKind::terminate())?,
    })
}

/// Installs the handler: the signals no longer end the process. Only for the
/// chat: under nohup, SIGHUP has to stay ignored.
pub(crate) fn termination() -> Result<Termination, Failure> {
    Ok(Termination {
        #[cfg(unix)]
        terminate: catch(SignalKind::terminate())?,
        #[cfg(unix)]
        hang_up: catch(SignalKind::hangup())?,
    })
}

/// Installs the handler for the continuation of a stopped process.
pub(crate) fn continuation() -> Result<Continuation, Failure> {
    Ok(Continuation {
        #[cfg(unix)]
        signal: catch(SignalKind::from_raw(hark_prompt::CONTINUE_SIGNAL))?,
    })
}

impl Continuation {
    /// Waits for the signal. Cancel-safe.
    pub(crate) async fn received(&mut self) {
        #[cfg(unix)]
        self.signal.recv().await;
        #[cfg(not(unix))]
        std::future::pending::<()>().await;
    }
}

impl Termination {
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
