//! The bounds that the protocol itself sets. What a server may choose within
//! them (such as its largest frame) is a setting of the server.

/// Bytes of the command field, padded with NUL.
pub const COMMAND_BYTES: usize = 15;

/// Largest user name, in bytes.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// Largest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;

/// Largest session token, in bytes.
pub const SESSION_TOKEN_BYTES_MAX: usize = 64;

/// Bytes of a native frame's length field.
pub const LENGTH_BYTES: usize = 4;

/// Bytes of a native frame's id field.
pub const ID_BYTES: usize = 4;

/// The smallest value of a native frame's length field: an id and a command.
pub const FRAME_BYTES_MIN: usize = ID_BYTES + COMMAND_BYTES;

/// Default of the largest native frame, in bytes.
pub const FRAME_BYTES_DEFAULT: usize = 64 * 1024;

/// The largest frame that a server can be set to, in bytes. It keeps the first
/// byte of every native frame zero, which is how the framing is recognised.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024 - 1;

/// What a text leaves free in the largest frame, in bytes.
pub const FRAME_BYTES_BESIDE_TEXT: usize = 256;

/// Bytes of one block of the classic framing, and its longest message.
pub const CLASSIC_BLOCK_BYTES: usize = 1024;

/// Messages that are pushed and not acknowledged, at most.
pub const WINDOW_MESSAGES_MAX: usize = 256;

/// Bytes of text that are pushed and not acknowledged, at most (but at least
/// one message).
pub const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Sends of one session that are not answered yet, at most.
pub const SENDS_UNANSWERED_MAX: usize = 1024;

/// Outcomes that a server remembers for each session.
pub const OUTCOMES_REMEMBERED: usize = 1024;

/// How long an outcome is remembered at least, in seconds of the server's own
/// running time.
pub const OUTCOME_SECONDS_MIN: u64 = 10 * 60;

/// How long after the first try a client may repeat a send, in seconds of its
/// own steady clock.
pub const REPEAT_SECONDS_MAX: u64 = 9 * 60;

/// The version of the protocol that `hello` names.
pub const VERSION: u32 = 1;

/// The longest text under a largest frame of `frame_bytes_max` bytes.
#[must_use]
pub const fn text_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max.saturating_sub(FRAME_BYTES_BESIDE_TEXT)
}
