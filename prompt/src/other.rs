//! Where there is no terminal as Unix has it: what a library makes of it.

use std::io;

use zeroize::Zeroizing;

/// The terminal, which is quiet while it is asked.
#[derive(Debug)]
pub struct Quiet(());

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
