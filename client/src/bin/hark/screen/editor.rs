//! The input line: a text of one or more lines, its cursor and earlier inputs. Pure.

use unicode_segmentation::UnicodeSegmentation as _;

use super::wrap::width;
use crate::text::is_unsafe;

/// Longest input, in bytes.
pub(crate) const INPUT_BYTES_MAX: usize = 64 * 1024;

/// Largest number of earlier inputs.
const HISTORY_MAX: usize = 200;

/// A text and the position of the cursor in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    text: String,
    /// Byte offset of a boundary between graphemes.
    cursor: usize,
}

/// The editor of the input line.
#[derive(Debug, Default)]
pub(crate) struct Editor {
    draft: Draft,
    /// The text that was removed last.
    killed: String,
    history: Vec<String>,
    /// Index of the earlier input that is being shown, and the draft before it.
    browsing: Option<(usize, Draft)>,
}

/// The input in rows, and the row and column of the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputRows {
    pub(crate) rows: Vec<String>,
    pub(crate) cursor: (usize, usize),
}

impl From<&str> for Draft {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            cursor: text.len(),
        }
    }
}

impl Draft {
    fn before(&self) -> &str {
        self.text.get(..self.cursor).unwrap_or_default()
    }

    fn after(&self) -> &str {
        self.text.get(self.cursor..).unwrap_or_default()
    }

    /// Returns the start of the word before the cursor.
    fn word_start(&self) -> usize {
        let mut before = self.before().trim_end().char_indices().rev();
        let space = before.find(|(_, c)| c.is_whitespace());
        space.map_or(0, |(at, c)| at + c.len_utf8())
    }

    fn word_end(&self) -> usize {
        let after = self.after();
        let skipped = after.len() - after.trim_start().len();
        let word = after.trim_start();
        self.cursor + skipped + word.find(char::is_whitespace).unwrap_or(word.len())
    }

    fn line_start(&self) -> usize {
        self.before().rfind('\n').map_or(0, |at| at + 1)
    }

    fn line_end(&self) -> usize {
        self.cursor + self.after().find('\n').unwrap_or(self.after().len())
    }

    fn left(&self) -> usize {
        let last = self.before().graphemes(true).next_back();
        self.cursor - last.map_or(0, str::len)
    }

    fn right(&self) -> usize {
        self.cursor + self.after().graphemes(true).next().map_or(0, str::len)
    }

    /// Returns the position in the previous or next line with the column of the
    /// cursor; `None` if there is no such line.
    fn vertical(&self, is_up: bool) -> Option<usize> {
        let start = self.line_start();
        let column = self.text.get(start..self.cursor)?.graphemes(true).count();
        let target = if is_up {
            let previous_end = start.checked_sub(1)?;
            self.text
                .get(..previous_end)?
                .rfind('\n')
                .map_or(0, |at| at + 1)
        } else {
            self.after().find('\n').map(|at| self.cursor + at + 1)?
        };
        let line = self.text.get(target..)?.split('\n').next()?;
        let within: usize = line.graphemes(true).take(column).map(str::len).sum();
        Some(target + within)
    }
}

/// A move of the cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    Left,
    Right,
    WordLeft,
    WordRight,
    LineStart,
    LineEnd,
}

impl Editor {
    pub(crate) fn text(&self) -> &str {
        &self.draft.text
    }

    /// Returns the text before the cursor.
    pub(crate) fn before_cursor(&self) -> &str {
        self.draft.before()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.draft.text.is_empty()
    }

    /// Inserts a text at the cursor, and returns whether there was room for it.
    pub(crate) fn insert(&mut self, text: &str) -> bool {
        if self.draft.text.len() + text.len() > INPUT_BYTES_MAX {
            return false;
        }
        self.draft.text.insert_str(self.draft.cursor, text);
        self.draft.cursor += text.len();
        true
    }

    /// Inserts a pasted text, whose lines may end in any way.
    pub(crate) fn paste(&mut self, text: &str) -> bool {
        self.insert(&text.replace("\r\n", "\n").replace('\r', "\n"))
    }

    /// Replaces the text before the cursor from `start` on.
    pub(crate) fn replace_before(&mut self, start: usize, with: &str) {
        let start = start.min(self.draft.cursor);
        self.draft
            .text
            .replace_range(start..self.draft.cursor, with);
        self.draft.cursor = start + with.len();
    }

    pub(crate) fn move_cursor(&mut self, to: Move) {
        let draft = &mut self.draft;
        draft.cursor = match to {
            Move::Left => draft.left(),
            Move::Right => draft.right(),
            Move::WordLeft => draft.word_start(),
            Move::WordRight => draft.word_end(),
            Move::LineStart => draft.line_start(),
            Move::LineEnd => draft.line_end(),
        };
    }

    pub(crate) fn backspace(&mut self) {
        let from = self.draft.left();
        self.remove(from, self.draft.cursor);
    }

    pub(crate) fn delete(&mut self) {
        let to = self.draft.right();
        self.remove(self.draft.cursor, to);
    }

    /// Removes the word before the cursor, for [`Self::yank`].
    pub(crate) fn kill_word(&mut self) {
        self.kill(self.draft.word_start(), self.draft.cursor);
    }

    /// Removes the line before the cursor.
    pub(crate) fn kill_to_start(&mut self) {
        self.kill(self.draft.line_start(), self.draft.cursor);
    }

    /// Removes the line behind the cursor.
    pub(crate) fn kill_to_end(&mut self) {
        self.kill(self.draft.cursor, self.draft.line_end());
    }

    /// Inserts the text that was removed last.
    pub(crate) fn yank(&mut self) -> bool {
        let killed = self.killed.clone();
        self.insert(&killed)
    }

    fn kill(&mut self, from: usize, to: usize) {
        if let Some(killed) = self
            .draft
            .text
            .get(from..to)
            .filter(|text| !text.is_empty())
        {
            self.killed = killed.to_owned();
        }
        self.remove(from, to);
    }

    fn remove(&mut self, from: usize, to: usize) {
        self.draft.text.replace_range(from..to, "");
        self.draft.cursor = from;
    }

    /// Moves to the previous line, or shows the previous input.
    pub(crate) fn up(&mut self) {
        if let Some(position) = self.draft.vertical(true) {
            self.draft.cursor = position;
            return;
        }
        let at = match &self.browsing {
            Some((at, _)) => *at,
            None => self.history.len(),
        };
        if let Some(text) = at.checked_sub(1).and_then(|at| self.history.get(at)) {
            let earlier = std::mem::replace(&mut self.draft, Draft::from(text.as_str()));
            let draft = self.browsing.take().map_or(earlier, |(_, draft)| draft);
            self.browsing = Some((at - 1, draft));
        }
    }

    /// Moves to the next line, or shows the next input.
    pub(crate) fn down(&mut self) {
        if let Some(position) = self.draft.vertical(false) {
            self.draft.cursor = position;
            return;
        }
        let Some((at, draft)) = self.browsing.take() else {
            return;
        };
        match self.history.get(at + 1) {
            Some(text) => {
                self.draft = Draft::from(text.as_str());
                self.browsing = Some((at + 1, draft));
            }
            None => self.draft = draft,
        }
    }

    /// Removes and returns the whole text.
    pub(crate) fn take(&mut self) -> String {
        self.browsing = None;
        std::mem::take(&mut self.draft).text
    }

    /// Adds an input to the history.
    pub(crate) fn remember(&mut self, text: &str) {
        if self.history.last().is_some_and(|last| last == text) {
            return;
        }
        if self.history.len() == HISTORY_MAX {
            self.history.remove(0);
        }
        self.history.push(text.to_owned());
    }

    /// Replaces the draft, and returns the former one.
    pub(crate) fn swap(&mut self, draft: Draft) -> Draft {
        self.browsing = None;
        std::mem::replace(&mut self.draft, draft)
    }

    /// Lays out the text in rows of at most `columns` columns.
    pub(crate) fn rows(&self, columns: usize) -> InputRows {
        let columns = columns.max(2);
        let mut laid = InputRows {
            rows: vec![String::new()],
            cursor: (0, 0),
        };
        let (mut used, mut at) = (0, 0);
        for grapheme in self.draft.text.graphemes(true) {
            if at == self.draft.cursor {
                laid.cursor = (laid.rows.len() - 1, used);
            }
            at += grapheme.len();
            if grapheme == "\n" || grapheme == "\r\n" {
                laid.rows.push(String::new());
                used = 0;
                continue;
            }
            let shown = shown(grapheme);
            let needed = width(&shown);
            // The last column is left for the cursor.
            if used + needed >= columns {
                laid.rows.push(String::new());
                used = 0;
            }
            if let Some(row) = laid.rows.last_mut() {
                row.push_str(&shown);
            }
            used += needed;
        }
        if at == self.draft.cursor {
            laid.cursor = (laid.rows.len() - 1, used);
        }
        laid
    }
}

/// Returns a grapheme as it is shown in the input: control characters as their
/// symbols.
fn shown(grapheme: &str) -> String {
    let symbol = |c: char| match u32::from(c) {
        code @ 0..=0x1f => char::from_u32(0x2400 + code).unwrap_or('\u{fffd}'),
        0x7f => '\u{2421}',
        _ if is_unsafe(c) => '\u{fffd}',
        _ => c,
    };
    grapheme.chars().map(symbol).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(text: &str) -> Editor {
        let mut editor = Editor::default();
        assert!(editor.insert(text));
        editor
    }

    #[test]
    fn editing_moves_by_graphemes() {
        let mut editor = typed("ae\u{301}👩‍👧");
        editor.move_cursor(Move::Left);
        editor.backspace();
        assert_eq!(editor.text(), "a👩‍👧");
        editor.delete();
        assert_eq!(editor.text(), "a");
        editor.delete();
        editor.move_cursor(Move::Left);
        editor.move_cursor(Move::Left);
        editor.backspace();
        assert_eq!(editor.text(), "a");
    }

    #[test]
    fn removed_words_can_be_inserted_again() {
        let mut editor = typed("one two ");
        editor.kill_word();
        assert_eq!(editor.text(), "one ");
        editor.yank();
        assert_eq!(editor.text(), "one two ");
        editor.move_cursor(Move::WordLeft);
        editor.kill_to_end();
        assert_eq!(editor.text(), "one ");
        editor.kill_to_start();
        assert!(editor.is_empty());
    }

    #[test]
    fn up_and_down_move_between_lines() {
        let mut editor = typed("one\nlonger");
        editor.up();
        editor.insert("!");
        assert_eq!(editor.text(), "one!\nlonger");
        editor.down();
        editor.insert("?");
        assert_eq!(editor.text(), "one!\nlong?er");
    }

    #[test]
    fn up_and_down_browse_earlier_inputs() {
        let mut editor = typed("draft");
        editor.remember("first");
        editor.remember("second");
        editor.remember("second");
        editor.up();
        assert_eq!(editor.text(), "second");
        editor.up();
        editor.up();
        assert_eq!(editor.text(), "first");
        editor.down();
        editor.down();
        assert_eq!(editor.text(), "draft");
        editor.down();
        assert_eq!(editor.text(), "draft");
    }

    #[test]
    fn rows_leave_room_for_the_cursor() {
        let rows = typed("abcd").rows(4);
        assert_eq!(rows.rows, ["abc", "d"]);
        assert_eq!(rows.cursor, (1, 1));
        let rows = typed("日本\na").rows(4);
        assert_eq!(rows.rows, ["日", "本", "a"]);
        let mut editor = typed("a\tb\x1b");
        editor.move_cursor(Move::Left);
        let rows = editor.rows(9);
        assert_eq!((rows.rows, rows.cursor), (vec!["a␉b␛".to_owned()], (0, 3)));
    }

    #[test]
    fn input_is_bounded() {
        let mut editor = typed(&"x".repeat(INPUT_BYTES_MAX));
        assert!(!editor.insert("y"));
        assert_eq!(editor.text().len(), INPUT_BYTES_MAX);
    }

    #[test]
    fn pasted_lines_end_in_newlines() {
        let mut editor = Editor::default();
        editor.paste("a\r\nb\rc\nd");
        assert_eq!(editor.text(), "a\nb\nc\nd");
    }
}
