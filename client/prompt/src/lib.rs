//! The terminal of a process, for `hark` and `harkd`: passwords without echo, the
//! modes to restore, suspension, and a pending Ctrl-D. The echo is off from before the first
//! prompt until after the last answer, so that early keystrokes stay hidden. Line
//! editing is not done here.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub use other::{CONTINUE_SIGNAL, Modes, Quiet, is_ended, suspend};
#[cfg(unix)]
pub use unix::{CONTINUE_SIGNAL, Modes, Quiet, is_ended, suspend};
