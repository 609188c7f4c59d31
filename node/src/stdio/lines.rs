//! Splits bytes into blocks of whole lines. It knows no messages.

use std::io::{self, Read};

/// The size of a read, in bytes.
pub(super) const READ_BYTES: usize = 64 * 1024;

/// Reads blocks of whole lines into one buffer, in which they are parsed.
pub(super) struct Lines {
    line_bytes_max: usize,
    buffer: Vec<u8>,
    /// The end of the bytes that were read.
    filled: usize,
    /// The end of the lines that were returned.
    returned: usize,
    /// The rest of a line that is too long is dropped.
    is_skipping: bool,
    is_over: bool,
}

impl Lines {
    pub(super) const fn new(line_bytes_max: usize) -> Self {
        Self {
            line_bytes_max,
            buffer: Vec::new(),
            filled: 0,
            returned: 0,
            is_skipping: false,
            is_over: false,
        }
    }

    /// Reads once, and returns the lines that are then complete, possibly
    /// none; at the end of the input, returns the rest, and then `None`.
    pub(super) fn read(&mut self, input: &mut impl Read) -> io::Result<Option<&[u8]>> {
        if self.is_over {
            return Ok(None);
        }
        self.make_room();
        let start = self.filled;
        let count = input.read(self.buffer.get_mut(start..).unwrap_or_default())?;
        self.filled += count;
        let fresh = self.buffer.get(start..self.filled).unwrap_or_default();
        let end = match fresh.iter().rposition(|byte| *byte == b'\n') {
            _ if count == 0 => {
                self.is_over = true;
                self.filled
            }
            Some(position) => start + position + 1,
            None => {
                self.bound();
                return Ok(Some(&[]));
            }
        };
        self.returned = end;
        let lines = self.buffer.get(..end).unwrap_or_default();
        if std::mem::take(&mut self.is_skipping) {
            let rest = lines
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(end, |position| position + 1);
            return Ok(lines.get(rest..));
        }
        Ok(Some(lines))
    }

    /// Moves the beginning of a line to the front, and leaves room for a read.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.returned..self.filled, 0);
        self.filled -= std::mem::take(&mut self.returned);
        let needed = self.filled + READ_BYTES;
        if self.buffer.len() < needed {
            // Doubled, so that a long line is copied only a few times.
            self.buffer.resize(needed.max(2 * self.filled), 0);
        } else if self.buffer.len() > 4 * needed {
            self.buffer.truncate(needed);
            self.buffer.shrink_to_fit();
        }
    }

    fn bound(&mut self) {
        if self.filled > self.line_bytes_max {
            tracing::warn!(self.line_bytes_max, "line too long, dropped");
            self.is_skipping = true;
        }
        if self.is_skipping {
            self.filled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines of an input that comes in pieces, if lines are bounded.
    fn lines_of(input: &[u8], line_bytes_max: usize, piece: usize) -> Vec<u8> {
        let mut lines = Lines::new(line_bytes_max);
        let mut all = Vec::new();
        let mut pieces = input.chunks(piece);
        while let Some(block) = lines.read(&mut pieces.next().unwrap_or_default()).unwrap() {
            all.extend_from_slice(block);
        }
        all
    }

    #[test]
    fn lines_are_the_same_in_pieces_of_any_size() {
        let input = b"first\n\nsecond\r\nthe last has no end";
        for piece in 1..=input.len() {
            assert_eq!(lines_of(input, 100, piece), input, "pieces of {piece}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_dropped_alone() {
        let long = "x".repeat(50);
        for piece in 1..=8 {
            for (input, expected) in [
                (format!("first\n{long}\nlast\n"), "first\nlast\n"),
                (format!("{long}\n{long}\nlast"), "last"),
                (format!("first\n{long}"), "first\n"),
            ] {
                let lines = lines_of(input.as_bytes(), 10, piece);
                assert_eq!(
                    String::from_utf8(lines).unwrap(),
                    expected,
                    "pieces of {piece}"
                );
            }
        }
    }

    #[test]
    fn the_memory_of_a_long_line_is_given_back() {
        let mut lines = Lines::new(usize::MAX);
        let long = "x".repeat(8 * 1024 * 1024) + "\n";
        let mut input = long.as_bytes();
        while lines.read(&mut input).unwrap().unwrap().is_empty() {}
        assert!(lines.buffer.len() >= long.len());
        assert_eq!(
            lines.read(&mut &b"short\n"[..]).unwrap(),
            Some(&b"short\n"[..])
        );
        assert!(
            lines.buffer.capacity() <= 4 * READ_BYTES,
            "{}",
            lines.buffer.capacity()
        );
    }
}
