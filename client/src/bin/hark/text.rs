//! Making text that others wrote safe to print: what a terminal would obey is
//! shown instead.

use std::borrow::Cow;

/// Whether a terminal or the eye would take this character for an order: C0,
/// C1 and DEL, the characters that turn the direction of a text, those that
/// end a line, and those that are not seen.
pub(crate) const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text with what is unsafe written as an escape, as in `\u{1b}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_where(text, is_unsafe)
}

/// The same, on one line and such that it can be reversed.
pub(crate) fn escape_line(text: &str) -> Cow<'_, str> {
    escape_where(text, |c| is_unsafe(c) || c == '\\')
}

fn escape_where(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    Cow::Owned(escaped)
}

/// Escaped for several lines: each but the first is indented by `indent`
/// columns, so that none looks like a line of its own.
pub(crate) fn block(text: &str, indent: usize) -> String {
    let lines: Vec<_> =
        text.split('\n').map(|line| escape(line.strip_suffix('\r').unwrap_or(line))).collect();
    lines.join(&format!("\n{:indent$}", ""))
}

/// A piece of JSON whose strings hold nothing that a terminal would obey.
/// Such characters can only be inside a string, where `\uXXXX` is the same.
pub(crate) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) { escaped.push_str(&format!("\\u{:04x}", u32::from(c))) } else { escaped.push(c) }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(escape("plain, ünï 🦀"), "plain, ünï 🦀");
        assert_eq!(escape("\x1b[31mred\x07"), r"\u{1b}[31mred\u{7}");
        assert_eq!(escape("a\u{9b}b\x7f"), r"a\u{9b}b\u{7f}");
        assert_eq!(escape("a\u{202e}b\u{2066}"), r"a\u{202e}b\u{2066}");
        assert_eq!(escape("a\tb\r"), r"a\tb\r");
    }

    #[test]
    fn a_line_can_be_read_back() {
        assert_eq!(escape_line("a\nb\\n"), r"a\nb\\n");
    }

    #[test]
    fn further_lines_are_indented() {
        assert_eq!(block("one\r\ntwo\n\x1b", 4), "one\n    two\n    \\u{1b}");
    }

    #[test]
    fn json_stays_the_same_value() {
        let text = "a\u{9b}\u{202e}\n\"";
        let json = escape_json(&serde_json::to_string(text).unwrap());
        assert!(!json.contains(is_unsafe));
        assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
    }
}
