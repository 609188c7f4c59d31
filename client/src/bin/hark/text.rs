//! Escaping of untrusted text for terminals.

use std::borrow::Cow;

/// Returns whether a character may control a terminal or mislead a reader: C0,
/// C1 and DEL, direction changes, line ends, and invisible characters.
pub(crate) const fn is_unsafe(c: char) -> bool {
    matches!(c,
        '\0'..='\x1f' | '\x7f'..='\u{9f}' | '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// Escapes unsafe characters, as in `\u{1b}`.
pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    escape_where(text, is_unsafe)
}

/// Escapes unsafe characters and backslashes, so that the result is reversible.
pub(crate) fn escape_line(text: &str) -> Cow<'_, str> {
    escape_where(text, |c| is_unsafe(c) || c == '\\')
}

fn escape_where(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            escaped.extend(c.escape_default())
        } else {
            escaped.push(c)
        }
    }
    Cow::Owned(escaped)
}

/// Escapes a user name. Invisible characters are escaped as well, so that no
/// name looks like another one, and so are backslashes.
pub(crate) fn escape_name(name: &str) -> Cow<'_, str> {
    escape_where(name, |c| is_unsafe(c) || is_unseen(c) || c == '\\')
}

/// Returns whether a character is invisible. In texts some of these are
/// meaningful, as in Persian and in emoji.
const fn is_unseen(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200c}' | '\u{200d}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

/// Escapes a text of several lines, and indents all but the first by `indent`
/// columns, so that none looks like a separate message.
pub(crate) fn block(text: &str, indent: usize) -> String {
    let lines: Vec<_> = text
        .split('\n')
        .map(|line| escape(line.strip_suffix('\r').unwrap_or(line)))
        .collect();
    lines.join(&format!("\n{:indent$}", ""))
}

/// Escapes unsafe characters in JSON. They occur only inside of strings, where
/// `\uXXXX` is equivalent.
pub(crate) fn escape_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if is_unsafe(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)))
        } else {
            escaped.push(c)
        }
    }
    escaped
}

/// Returns a count and its noun, such as `1 message` or `2 messages`.
pub(crate) fn counted(count: u64, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_characters_are_escaped() {
        assert_eq!(escape("plain, ünï 🦀"), "plain, ünï 🦀");
        assert_eq!(escape("\x1b[31mred\x07"), r"\u{1b}[31mred\u{7}");
        assert_eq!(escape("a\u{9b}b\x7f"), r"a\u{9b}b\u{7f}");
        assert_eq!(escape("a\u{202e}b\u{2066}"), r"a\u{202e}b\u{2066}");
        assert_eq!(escape("a\tb\r"), r"a\tb\r");
    }

    #[test]
    fn escaped_line_is_reversible() {
        assert_eq!(escape_line("a\nb\\n"), r"a\nb\\n");
    }

    #[test]
    fn names_are_never_ambiguous() {
        assert_eq!(escape_name("Zoë-🦀.$"), "Zoë-🦀.$");
        let same = [
            "bob",
            "bob\u{2060}",
            "b\u{ad}ob",
            "bob\u{3164}",
            "bob\u{200d}",
            "bob\u{fe0f}",
            "bob\u{e0041}",
        ];
        for name in &same[1..] {
            assert!(escape_name(name).contains("\\u{"), "{name:?}");
        }
        assert_eq!(
            escape_name("bob\\u{2060}"),
            "bob\\\\u{2060}",
            "nor like what stands for it"
        );
    }

    #[test]
    fn noun_agrees_with_its_count() {
        let all = [0, 1, 2].map(|count| counted(count, "message"));
        assert_eq!(all, ["0 messages", "1 message", "2 messages"]);
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
