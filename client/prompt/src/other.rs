//! The fallback for systems without termios, over `rpassword`.

use std::io;

use zeroize::Zeroizing;

/// The terminal while it asks for passwords.
#[derive(Debug)]
pub struct Quiet(());

/// The modes of the terminal. No signal leaves them changed on these systems.
#[derive(Debug)]
pub struct Modes(());

impl Modes {
    /// Returns the current modes.
    ///
    /// # Errors
    /// None.
    pub const fn now() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Restores the modes.
    ///
    /// # Errors
    /// None.
    pub const fn restore(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The number of the signal that continues a process; these systems have none.
pub const CONTINUE_SIGNAL: i32 = 0;

/// Does nothing: these systems do not suspend a program.
///
/// # Errors
/// None.
pub const fn suspend() -> io::Result<()> {
    Ok(())
}

/// Returns false: whether an end of file is pending is unknown on these systems.
///
/// # Errors
/// None.
pub const fn is_ended() -> io::Result<bool> {
    Ok(false)
}

impl Quiet {
    /// Returns the terminal.
    ///
    /// # Errors
    /// None.
    pub const fn begin() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Shows the prompt and reads a line.
    ///
    /// # Errors
    /// If the terminal cannot be read or written.
    pub fn ask(&mut self, prompt: &str) -> io::Result<Zeroizing<String>> {
        rpassword::prompt_password(prompt).map(Zeroizing::new)
    }
}
