//! What is asked of the terminal beside lines. Passwords: the echo is off before
//! the first prompt is there, and until the last answer is, so that whoever types
//! fast shows nothing. Its modes, to give them back. A Ctrl-D that nobody has read.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub use other::{Modes, Quiet, is_ended};
#[cfg(unix)]
pub use unix::{Modes, Quiet, is_ended};
