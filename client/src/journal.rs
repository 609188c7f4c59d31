//! A record of sends, kept by the application, that survives the process.
//!
//! An application that sends the lines of a former run must know which of them may have
//! reached a server. It gives each send a tag, and learns of the first write before it
//! happens.

use std::fmt;
use std::io;

/// A name for a send, chosen by the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SendTag(pub u64);

/// The record of an application. It may block for a small write to a file.
pub trait SendJournal: fmt::Debug + Send + Sync {
    /// Records that a send may reach a server from now on, before it is written for the
    /// first time. Returns whether it is still wanted.
    ///
    /// # Errors
    /// If it cannot be recorded. The send is not written in that case.
    fn begin(&self, tag: SendTag) -> io::Result<bool>;
}

/// No record.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoJournal;

impl SendJournal for NoJournal {
    fn begin(&self, _: SendTag) -> io::Result<bool> {
        Ok(true)
    }
}
