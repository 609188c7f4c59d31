//! Layout of untrusted text in columns: escapes, widths and line breaks. Pure, and
//! independent of the screen.

use std::borrow::Cow;

use unicode_segmentation::UnicodeSegmentation as _;
use unicode_width::UnicodeWidthStr as _;

use crate::text::escape;

/// Longest part of a text that is laid out, in bytes.
const SHOWN_BYTES_MAX: usize = 16 * 1024;

/// Returns the number of columns of a text.
pub(crate) fn width(text: &str) -> usize {
    text.width()
}

/// Splits a text into rows of at most `columns` columns, at spaces if possible.
/// Unsafe characters are escaped. There is at least one row.
pub(crate) fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(1);
    let (text, is_cut) = shorten(text);
    let mut rows = Vec::new();
    for line in text.split('\n') {
        let line = line
            .strip_suffix('\r')
            .unwrap_or(line)
            .replace('\t', "    ");
        wrap_line(&escape(&line), columns, &mut rows);
    }
    if is_cut {
        rows.push("…".to_owned());
    }
    rows
}

fn shorten(text: &str) -> (&str, bool) {
    if text.len() <= SHOWN_BYTES_MAX {
        return (text, false);
    }
    let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
    (text.get(..end).unwrap_or(text), true)
}

fn wrap_line(line: &str, columns: usize, rows: &mut Vec<String>) {
    let mut row = String::new();
    let mut used = 0;
    // End of the part of the row that ends in a space.
    let mut break_at = None;
    for grapheme in line.graphemes(true) {
        let (grapheme, needed) = fitting(grapheme, columns);
        if used + needed > columns {
            let rest = break_at
                .take()
                .map_or_else(String::new, |at| row.split_off(at));
            row.truncate(row.trim_end_matches(' ').len());
            rows.push(std::mem::replace(&mut row, rest));
            used = width(&row);
            // A space at a line break is not shown.
            if row.is_empty() && grapheme == " " {
                continue;
            }
        }
        row.push_str(&grapheme);
        used += needed;
        if grapheme == " " {
            break_at = Some(row.len());
        }
    }
    rows.push(row);
}

/// Returns a grapheme and its width; a replacement if it is wider than a row.
fn fitting(grapheme: &str, columns: usize) -> (Cow<'_, str>, usize) {
    match width(grapheme) {
        needed if needed <= columns => (Cow::Borrowed(grapheme), needed),
        _ => (Cow::Borrowed("?"), 1),
    }
}

/// Cuts a text to at most `columns` columns; the last one is then an ellipsis.
pub(crate) fn cut(text: &str, columns: usize) -> Cow<'_, str> {
    if width(text) <= columns {
        return Cow::Borrowed(text);
    }
    let mut shown = String::new();
    let mut used = 1;
    for grapheme in text.graphemes(true) {
        used += width(grapheme);
        if used > columns {
            break;
        }
        shown.push_str(grapheme);
    }
    if columns > 0 {
        shown.push('…');
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, columns: usize, expected: &[&str]) {
        let rows = wrap(text, columns);
        assert_eq!(rows, expected);
        assert!(rows.iter().all(|row| width(row) <= columns));
    }

    #[test]
    fn rows_break_at_spaces() {
        check("", 5, &[""]);
        check("one two three", 8, &["one two", "three"]);
        check("one two", 7, &["one two"]);
        check("abcdefgh ij", 3, &["abc", "def", "gh", "ij"]);
        check("a\nb\r\n\nc", 9, &["a", "b", "", "c"]);
    }

    #[test]
    fn wide_and_combining_characters_are_not_split() {
        check("日本語", 4, &["日本", "語"]);
        check("日本", 1, &["?", "?"]);
        check(
            "e\u{301}e\u{301}e\u{301}",
            2,
            &["e\u{301}e\u{301}", "e\u{301}"],
        );
        check("👩‍👩‍👧x", 2, &["👩‍👩‍👧", "x"]);
    }

    #[test]
    fn unsafe_characters_are_escaped_before_layout() {
        check("\x1b[2J", 20, &["\\u{1b}[2J"]);
        check("\u{202e}a", 4, &["\\u{2", "02e}", "a"]);
    }

    #[test]
    fn long_text_is_shortened() {
        let rows = wrap(&"é".repeat(SHOWN_BYTES_MAX), 80);
        assert_eq!(rows.last().map(String::as_str), Some("…"));
        assert!(rows.len() < SHOWN_BYTES_MAX / 100);
    }

    #[test]
    fn cut_text_ends_in_an_ellipsis() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 3), "ab…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("abc", 0), "");
    }
}
