//! The bounds that the protocol itself sets. A bound that a server may choose
//! within these, such as its largest frame, is a setting of the server.

/// Length of the command field in bytes, including its NUL padding.
pub const COMMAND_BYTES: usize = 15;

/// Largest user name, in bytes.
pub const USER_NAME_BYTES_MAX: usize = 64;

/// Largest room name, in bytes, including its `#`.
pub const ROOM_NAME_BYTES_MAX: usize = 64;

/// Largest device name, in bytes.
pub const DEVICE_NAME_BYTES_MAX: usize = 32;

/// Largest token name, in bytes.
pub const TOKEN_NAME_BYTES_MAX: usize = 32;

/// Largest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 256;

/// Largest session token, in bytes.
pub const SESSION_TOKEN_BYTES_MAX: usize = 64;

/// Length of a native frame's length field, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// Length of a native frame's id field, in bytes.
pub const ID_BYTES: usize = 4;

/// Smallest valid value of a native frame's length field: an id and a command.
pub const FRAME_BYTES_MIN: usize = ID_BYTES + COMMAND_BYTES;

/// Default for the largest native frame, in bytes.
pub const FRAME_BYTES_DEFAULT: usize = 64 * 1024;

/// Upper limit for the largest frame of a server, in bytes. It keeps the first
/// byte of every native frame zero, which identifies the framing.
pub const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024 - 1;

/// Bytes of the largest frame that are reserved for everything but the text.
pub const FRAME_BYTES_BESIDE_TEXT: usize = 256;

/// Size of one block of the classic framing in bytes, and its longest message.
pub const CLASSIC_BLOCK_BYTES: usize = 1024;

/// Largest number of unacknowledged messages in flight to a connection.
pub const WINDOW_MESSAGES_MAX: usize = 256;

/// Largest total of unacknowledged text in flight to a connection, in bytes. A
/// single message may exceed it.
pub const WINDOW_BYTES_MAX: usize = 1024 * 1024;

/// Largest number of unanswered sends of one session.
pub const SENDS_UNANSWERED_MAX: usize = 1024;

/// Number of outcomes that a server remembers for each session. Part of the format of
/// stores and clusters: an older server refuses a record with more.
pub const OUTCOMES_REMEMBERED: usize = 1024;

/// Minimum time for which an outcome is remembered, in seconds of the server's
/// running time.
pub const OUTCOME_SECONDS_MIN: u64 = 10 * 60;

/// Time after the first attempt during which a client may repeat a send, in
/// seconds of its own monotonic clock.
pub const REPEAT_SECONDS_MAX: u64 = 9 * 60;

/// Protocol version that `hello` names.
pub const VERSION: u32 = 1;

/// Returns the longest text, in bytes, if frames have at most `frame_bytes_max`
/// bytes.
#[must_use]
pub const fn text_bytes_max(frame_bytes_max: usize) -> usize {
    frame_bytes_max.saturating_sub(FRAME_BYTES_BESIDE_TEXT)
}
