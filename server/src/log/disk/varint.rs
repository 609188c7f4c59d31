//! Integers of variable length: seven bits in each byte, the lowest first.

/// Bytes of the longest integer.
pub(super) const MAX_BYTES: usize = 10;

/// Appends an integer.
pub(super) fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Appends the difference of two integers, which wraps around, so that a small
/// one of either sign is short.
pub(super) fn put_difference(bytes: &mut Vec<u8>, value: u64, base: u64) {
    let difference = value.wrapping_sub(base) as i64;
    put(bytes, ((difference << 1) ^ (difference >> 63)) as u64);
}

/// Decodes an integer and advances; `None` if there is none.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let (&first, rest) = bytes.split_first()?;
    if first < 0x80 {
        *bytes = rest;
        return Some(first.into());
    }
    if let Some(word) = bytes.first_chunk()
        && let Some((value, length)) = decode_word(u64::from_le_bytes(*word))
    {
        *bytes = bytes.get(length..)?;
        return Some(value);
    }
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(MAX_BYTES).enumerate() {
        let bits = u64::from(byte & 0x7f);
        let shift = 7 * index as u32;
        if shift == 63 && bits > 1 {
            return None;
        }
        value |= bits << shift;
        if byte < 0x80 {
            *bytes = bytes.get(index + 1..)?;
            return Some(value);
        }
    }
    None
}

/// Decodes an integer of at most eight bytes. Returns it and its length.
fn decode_word(word: u64) -> Option<(u64, usize)> {
    // The highest bit of the last byte is clear.
    let ends = !word & 0x8080_8080_8080_8080;
    if ends == 0 {
        return None;
    }
    let bits = ends.trailing_zeros() + 1;
    let bytes = word & (u64::MAX >> (u64::BITS - bits));
    // Closes the gaps between groups of 7, 14, and 28 bits.
    let pairs = (bytes & 0x007f_007f_007f_007f) | ((bytes & 0x7f00_7f00_7f00_7f00) >> 1);
    let fours = (pairs & 0x0000_3fff_0000_3fff) | ((pairs & 0x3fff_0000_3fff_0000) >> 2);
    let value = (fours & 0x0fff_ffff) | ((fours & 0x0fff_ffff_0000_0000) >> 4);
    Some((value, bits as usize / 8))
}

/// Decodes a difference written by [`put_difference`], and advances.
pub(super) fn take_difference(bytes: &mut &[u8], base: u64) -> Option<u64> {
    let coded = take(bytes)?;
    let difference = (coded >> 1) as i64 ^ -((coded & 1) as i64);
    Some(base.wrapping_add(difference as u64))
}

/// Decodes an integer of at most 32 bits, and advances.
pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_are_read_as_written(value: u64, shift in 0u32..64, base: u64, small in 0u64..300) {
            let value = value >> shift;
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            put(&mut bytes, small);
            put_difference(&mut bytes, value, base);
            put_difference(&mut bytes, base, value);
            put_difference(&mut bytes, base.wrapping_sub(small), base);
            let rest = &mut &bytes[..];
            prop_assert_eq!(take(rest), Some(value));
            prop_assert_eq!(take(rest), Some(small));
            prop_assert_eq!(take_difference(rest, base), Some(value));
            prop_assert_eq!(take_difference(rest, value), Some(base));
            prop_assert_eq!(take_difference(rest, base), Some(base.wrapping_sub(small)));
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let rest = &mut &bytes[..];
            while take(rest).is_some() {}
        }
    }
}
