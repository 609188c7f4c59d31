//! [`Push`]: what a window pushes to its reader.

use std::sync::Arc;

use hark_protocol::Sequence;

use crate::store::{Message, Page, Position, Said};

/// A push to the reader, which acknowledges it.
#[derive(Debug, Clone)]
pub(crate) enum Push {
    /// A message of the inbox.
    Message(Arc<Message>),
    /// A message of a room.
    Said(Arc<Said>),
    /// Missing messages. Boxed, because it is rare and longer than the others.
    Gap(Box<LogGap>),
}

/// Messages that were removed before they were delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogGap {
    /// The first number that may be missing.
    pub(crate) from: Sequence,
    /// The position of the last number that may be missing.
    pub(crate) to: Position,
    /// The number of missing messages.
    pub(crate) count: u64,
}

impl Push {
    /// Returns its position in its log.
    pub(crate) fn position(&self) -> Position {
        match self {
            Self::Message(message) => message.position,
            Self::Said(said) => said.message.position,
            Self::Gap(gap) => gap.to,
        }
    }

    pub(super) fn text_bytes(&self) -> usize {
        match self {
            Self::Message(message) => message.text.len(),
            Self::Said(said) => said.message.text.len(),
            Self::Gap(_) => 0,
        }
    }
}

/// A page of a log, as pushes.
#[derive(Debug, Default)]
pub(crate) struct ReadPage {
    /// See [`Page::starts_after`].
    pub(crate) starts_after: Option<Position>,
    /// The messages.
    pub(crate) messages: Vec<Push>,
    /// Whether the page reached the end of the log.
    pub(crate) is_complete: bool,
    /// Whether the log has ended. The store may not have its messages any more.
    pub(crate) has_ended: bool,
}

impl ReadPage {
    /// Returns the page of an inbox.
    pub(crate) fn of_inbox(page: Page) -> Self {
        Self {
            starts_after: page.starts_after,
            messages: page.messages.into_iter().map(Push::Message).collect(),
            is_complete: page.complete,
            has_ended: false,
        }
    }
}
