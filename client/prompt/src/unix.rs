//! The controlling terminal of this process, by POSIX termios.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionread;
use rustix::process::{Signal, getpgrp, getpid, kill_process, kill_process_group};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, SpecialCodes, Termios, tcgetattr, tcgetpgrp,
    tcsetattr,
};
use zeroize::Zeroizing;

/// The longest line, in bytes. Every password is shorter.
const LINE_BYTES_MAX: usize = 1024;

const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const CTRL_U: u8 = 0x15;
const BACKSPACE: u8 = 0x08;
const DELETE: u8 = 0x7f;

/// The terminal without echo. Dropping it restores the former modes.
#[derive(Debug)]
pub struct Quiet {
    terminal: File,
    before: Termios,
}

impl Quiet {
    /// Turns off the echo, signals and the terminal's own line editing: Ctrl-C
    /// must not end the process before the echo is on again.
    ///
    /// # Errors
    /// If this process has no controlling terminal, or if its modes cannot be set.
    pub fn begin() -> io::Result<Self> {
        let terminal = File::options().read(true).write(true).open("/dev/tty")?;
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes -=
            LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG;
        byte_by_byte(&mut quiet.special_codes);
        tcsetattr(&terminal, OptionalActions::Now, &quiet)?;
        Ok(Self { terminal, before })
    }

    /// Shows the prompt and reads a line, without its end. Backspace deletes a
    /// character, Ctrl-U the line.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] for Ctrl-C, if SIGINT does not end this
    /// process; [`io::ErrorKind::UnexpectedEof`] for Ctrl-D in an empty line;
    /// [`io::ErrorKind::InvalidData`] if the line is not UTF-8 or over 1,024 bytes;
    /// any error of the terminal.
    pub fn ask(&mut self, prompt: &str) -> io::Result<Zeroizing<String>> {
        self.terminal.write_all(prompt.as_bytes())?;
        let line = read_line(&mut self.terminal);
        self.terminal.write_all(b"\n")?;
        if line
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::Interrupted)
        {
            self.restore()?;
            kill_process(getpid(), Signal::INT)?;
        }
        line
    }

    fn restore(&self) -> io::Result<()> {
        Ok(tcsetattr(
            &self.terminal,
            OptionalActions::Now,
            &self.before,
        )?)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // A closed terminal needs no echo.
        drop(self.restore());
    }
}

/// The saved modes of the terminal on standard input.
#[derive(Debug)]
pub struct Modes(Termios);

impl Modes {
    /// Returns the current modes.
    ///
    /// # Errors
    /// If standard input is not a terminal, or if it fails.
    pub fn now() -> io::Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }

    /// Restores the modes, unless another process group is in the foreground of
    /// the terminal: a background process must not change it.
    ///
    /// # Errors
    /// Any error of the terminal.
    pub fn restore(&self) -> io::Result<()> {
        let stdin = io::stdin();
        if tcgetpgrp(&stdin)? == getpgrp() {
            tcsetattr(&stdin, OptionalActions::Now, &self.0)?;
        }
        Ok(())
    }
}

/// The number of the signal that continues a stopped process.
pub const CONTINUE_SIGNAL: i32 = Signal::CONT.as_raw();

/// Stops the processes of this job, as Ctrl-Z does, if a shell controls them.
///
/// # Errors
/// Any error of the system.
pub fn suspend() -> io::Result<()> {
    Ok(kill_process_group(getpgrp(), Signal::TSTP)?)
}

/// Returns whether the next read of standard input would report its end, that is
/// Ctrl-D. Only the terminal's own line editing knows that.
///
/// # Errors
/// Any error of the terminal.
pub fn is_ended() -> io::Result<bool> {
    let stdin = io::stdin();
    let mut waiting = [PollFd::new(&stdin, PollFlags::IN)];
    let is_there = poll(
        &mut waiting,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )? > 0;
    // The end is readable, but has no bytes.
    Ok(is_there && ioctl_fionread(&stdin)? == 0)
}

fn byte_by_byte(codes: &mut SpecialCodes) {
    codes[SpecialCodeIndex::VMIN] = 1;
    codes[SpecialCodeIndex::VTIME] = 0;
}

/// Reads a line, and no byte after it.
fn read_line(from: &mut impl Read) -> io::Result<Zeroizing<String>> {
    // The buffer never grows, so no copy of the password is left behind.
    let mut line = Zeroizing::new(String::with_capacity(LINE_BYTES_MAX));
    let mut part = Zeroizing::new(Vec::with_capacity(char::MAX_LEN_UTF8));
    loop {
        let mut byte = Zeroizing::new([0]);
        if from.read(&mut *byte)? == 0 {
            return if line.is_empty() {
                Err(io::ErrorKind::UnexpectedEof.into())
            } else {
                Ok(line)
            };
        }
        let [byte] = *byte;
        match byte {
            b'\n' | b'\r' => return Ok(line),
            CTRL_C => return Err(io::ErrorKind::Interrupted.into()),
            CTRL_D if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            CTRL_D => {}
            CTRL_U => line.clear(),
            BACKSPACE | DELETE => drop(line.pop()),
            byte => part.push(byte),
        }
        if line.len() + part.len() > LINE_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the password is too long",
            ));
        }
        match std::str::from_utf8(&part) {
            Ok(text) => line.push_str(text),
            Err(error) if error.error_len().is_none() => continue,
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the password is not UTF-8",
                ));
            }
        }
        part.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(typed: &[u8], expected: Result<&str, io::ErrorKind>) {
        let line = read_line(&mut &*typed);
        let line = line
            .as_ref()
            .map(|line| line.as_str())
            .map_err(io::Error::kind);
        assert_eq!(line, expected, "{typed:?}");
    }

    #[test]
    fn line_editing_keys_are_obeyed() {
        check(b"secret\r", Ok("secret"));
        check(b"secret\nrest", Ok("secret"));
        check(b"\r", Ok(""));
        check("pä\x7f\x08bob\r".as_bytes(), Ok("bob"));
        check("wrong\x15größe\r".as_bytes(), Ok("größe"));
        check(b"\x7fx\x04y\r", Ok("xy"));
        check(b"cut", Ok("cut"));
    }

    #[test]
    fn interrupt_end_and_invalid_lines_are_refused() {
        check(b"sec\x03ret\r", Err(io::ErrorKind::Interrupted));
        check(b"\x04", Err(io::ErrorKind::UnexpectedEof));
        check(b"", Err(io::ErrorKind::UnexpectedEof));
        check(b"\xffx\r", Err(io::ErrorKind::InvalidData));
        check(&[b'x'; LINE_BYTES_MAX + 1], Err(io::ErrorKind::InvalidData));
    }

    #[test]
    fn bytes_behind_a_line_stay_unread() {
        let mut typed = &b"one\rtwo\r"[..];
        assert_eq!(read_line(&mut typed).unwrap().as_str(), "one");
        assert_eq!(read_line(&mut typed).unwrap().as_str(), "two");
    }
}
