//! Where there is no terminal as Unix has it: what a library makes of it.

use std::io;

use zeroize::Zeroizing;

/// The terminal, which is quiet while it is asked.
#[derive(Debug)]
pub struct Quiet(());

/// The modes of the terminal, which no signal leaves changed here.
#[derive(Debug)]
pub struct Modes(());

impl Modes {
    /// The modes as they are.
    ///
    /// # Errors
    /// None.
    pub const fn now() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Makes them so again.
    ///
    /// # Errors
    /// None.
    pub const fn restore(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the end of standard input waits to be read: not known here.
///
/// # Errors
/// None.
pub const fn is_ended() -> io::Result<bool> {
    Ok(false)
}

impl Quiet {
    /// Begins to ask.
    ///
    /// # Errors
    /// None.
    pub const fn begin() -> io::Result<Self> {
        Ok(Self(()))
    }

    /// Shows the prompt, and reads a line.
    ///
    /// # Errors
    /// What the terminal says.
    pub fn ask(&mut self, prompt: &str) -> io::Result<Zeroizing<String>> {
        rpassword::prompt_password(prompt).map(Zeroizing::new)
    }
}
