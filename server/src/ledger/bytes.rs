//! Encoding of numbers and slices, for records and blocks. Decoding never panics and
//! trusts no length.
//!
//! Numbers are LEB128 (seven bits per byte, lowest first). A number near another one is
//! stored as the zigzag code of the difference.

use std::time::Duration;

use hark_protocol::{Sequence, UserName};

use crate::store::Position;

/// The bound of times in seconds: over 8,000 years. Sums of them do not overflow.
const SECONDS_BITS: u32 = 38;

/// Bytes that the encoder never produces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed bytes")]
pub(crate) struct Malformed;

pub(super) fn put_number(to: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        to.push(number as u8 | 0x80);
        number >>= 7;
    }
    to.push(number as u8);
}

/// Writes `number`, in few bytes if it is near `base`.
pub(super) fn put_near(to: &mut Vec<u8>, base: u64, number: u64) {
    let difference = number.wrapping_sub(base).cast_signed();
    put_number(to, ((difference << 1) ^ (difference >> 63)).cast_unsigned());
}

pub(super) fn put_text(to: &mut Vec<u8>, text: &str) {
    put_number(to, text.len() as u64);
    to.extend_from_slice(text.as_bytes());
}

pub(super) fn put_position(to: &mut Vec<u8>, base: u64, position: Position) {
    put_near(to, base, position.sequence.0);
    put_number(to, position.messages);
    put_number(to, position.bytes);
}

pub(super) fn take_number(rest: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(rest)?;
        let bits = u64::from(byte & 0x7f);
        number |= bits << shift;
        if (bits << shift) >> shift != bits {
            return Err(Malformed);
        }
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

pub(super) fn take_near(rest: &mut &[u8], base: u64) -> Result<u64, Malformed> {
    let code = take_number(rest)?;
    let difference = (code >> 1) ^ (code & 1).wrapping_neg();
    Ok(base.wrapping_add(difference))
}

/// Writes a time in whole seconds.
pub(super) fn put_seconds(to: &mut Vec<u8>, time: Duration) {
    put_number(to, time.as_secs());
}

pub(super) fn take_seconds(rest: &mut &[u8]) -> Result<Duration, Malformed> {
    seconds(take_number(rest)?)
}

/// Returns a time of so many seconds, if it can be one.
pub(super) fn seconds(seconds: u64) -> Result<Duration, Malformed> {
    if seconds >> SECONDS_BITS == 0 {
        Ok(Duration::from_secs(seconds))
    } else {
        Err(Malformed)
    }
}

pub(super) fn take_u32(rest: &mut &[u8]) -> Result<u32, Malformed> {
    u32::try_from(take_number(rest)?).map_err(|_| Malformed)
}

/// Reads eight bytes, lowest first.
pub(super) fn take_fixed(rest: &mut &[u8]) -> Result<u64, Malformed> {
    take_chunk(rest).map(u64::from_le_bytes)
}

/// Reads so many bytes.
pub(super) fn take_chunk<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (bytes, left) = rest.split_first_chunk().ok_or(Malformed)?;
    *rest = left;
    Ok(*bytes)
}

pub(super) fn take_slice<'r>(rest: &mut &'r [u8], bytes: u64) -> Result<&'r [u8], Malformed> {
    let bytes = usize::try_from(bytes).map_err(|_| Malformed)?;
    let (taken, left) = rest.split_at_checked(bytes).ok_or(Malformed)?;
    *rest = left;
    Ok(taken)
}

pub(super) fn take_byte(rest: &mut &[u8]) -> Result<u8, Malformed> {
    let (byte, left) = rest.split_first().ok_or(Malformed)?;
    *rest = left;
    Ok(*byte)
}

pub(super) fn take_text<'r>(rest: &mut &'r [u8]) -> Result<&'r str, Malformed> {
    let bytes = take_number(rest)?;
    std::str::from_utf8(take_slice(rest, bytes)?).map_err(|_| Malformed)
}

pub(super) fn take_position(rest: &mut &[u8], base: u64) -> Result<Position, Malformed> {
    let sequence = Sequence(take_near(rest, base)?);
    let messages = take_number(rest)?;
    let bytes = take_number(rest)?;
    Ok(Position {
        sequence,
        messages,
        bytes,
    })
}

pub(super) fn name(bytes: &[u8]) -> Result<UserName, Malformed> {
    std::str::from_utf8(bytes)
        .map_err(|_| Malformed)?
        .parse()
        .map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_near_and_far_come_back() {
        for base in [0, 1, 1 << 52, u64::MAX] {
            for number in [0, 1, 127, 128, (1 << 52) + 7, u64::MAX - 1, u64::MAX] {
                let mut bytes = Vec::new();
                put_near(&mut bytes, base, number);
                put_number(&mut bytes, number);
                let mut rest = &*bytes;
                assert_eq!(take_near(&mut rest, base), Ok(number));
                assert_eq!(take_number(&mut rest), Ok(number));
                assert!(rest.is_empty());
            }
        }
        let mut near = Vec::new();
        put_near(&mut near, 1 << 52, (1 << 52) - 3);
        assert_eq!(near.len(), 1);
    }

    #[test]
    fn truncated_and_oversized_numbers_are_refused() {
        assert_eq!(take_number(&mut &[0x80; 3][..]), Err(Malformed));
        assert_eq!(take_number(&mut &[0xff; 11][..]), Err(Malformed));
        assert_eq!(
            take_u32(&mut &[0x80, 0x80, 0x80, 0x80, 0x10][..]),
            Err(Malformed)
        );
        assert_eq!(take_text(&mut &[5, b'a'][..]), Err(Malformed));
        assert_eq!(take_fixed(&mut &[0; 7][..]), Err(Malformed));
        let mut bytes = Vec::new();
        put_number(&mut bytes, 1 << SECONDS_BITS);
        assert_eq!(take_seconds(&mut &*bytes), Err(Malformed));
    }
}
