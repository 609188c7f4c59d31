//! Asks for passwords on the terminal. The echo is off before the first prompt
//! is there, and until the last answer is: whoever types fast shows nothing.

#[cfg(not(unix))]
mod other;
#[cfg(unix)]
mod unix;

#[cfg(not(unix))]
pub use other::Quiet;
#[cfg(unix)]
pub use unix::Quiet;
