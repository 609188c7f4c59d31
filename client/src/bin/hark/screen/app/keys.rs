//! Keys: one table, from which their effect and the help are derived, and the input
//! line.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::super::editor::{Editor, Move};
use super::{Action, App};

/// Rows that Shift-Up and Shift-Down scroll by.
const SCROLL_ROWS: usize = 1;

/// A key with an effect of its own.
pub(crate) struct Binding {
    pub(crate) code: KeyCode,
    pub(crate) modifiers: KeyModifiers,
    /// The name in the help; empty for a second key of the same effect.
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    run: fn(&mut App),
}

const fn key(
    modifiers: KeyModifiers,
    code: KeyCode,
    name: &'static str,
    help: &'static str,
    run: fn(&mut App),
) -> Binding {
    Binding {
        code,
        modifiers,
        name,
        help,
        run,
    }
}

const NONE: KeyModifiers = KeyModifiers::NONE;
const CTRL: KeyModifiers = KeyModifiers::CONTROL;
const ALT: KeyModifiers = KeyModifiers::ALT;
const SHIFT: KeyModifiers = KeyModifiers::SHIFT;

fn edit(app: &mut App, change: fn(&mut Editor)) {
    change(&mut app.input);
}

/// Every key but the characters, Tab and Alt with a digit.
#[rustfmt::skip]
pub(crate) static BINDINGS: &[Binding] = &[
    key(NONE, KeyCode::Enter, "Enter", "send the line, or run the command", App::enter),
    key(ALT, KeyCode::Enter, "Alt-Enter", "begin another line", App::insert_newline),
    key(CTRL, KeyCode::Char('j'), "", "", App::insert_newline),
    key(CTRL, KeyCode::Char('n'), "Ctrl-N", "next conversation", |app| app.step(1)),
    key(CTRL, KeyCode::Char('p'), "Ctrl-P", "previous conversation", |app| app.step(-1)),
    key(ALT, KeyCode::Char('a'), "Alt-A", "next conversation with unread messages", App::next_unread),
    key(ALT, KeyCode::Char('l'), "Alt-L", "the conversation before this one", App::back),
    key(ALT, KeyCode::Char('r'), "Alt-R", "answer the last message to you", |app| app.reply("")),
    key(CTRL, KeyCode::Char('k'), "Ctrl-K", "jump to a conversation by some of its letters", App::open_jump),
    key(CTRL, KeyCode::Char('r'), "Ctrl-R", "search in this conversation", |app| app.open_search("")),
    key(NONE, KeyCode::PageUp, "PgUp", "older messages", App::page_up),
    key(NONE, KeyCode::PageDown, "PgDn", "newer messages", App::page_down),
    key(SHIFT, KeyCode::Up, "Shift-Up", "one row up", |app| app.scroll_up(SCROLL_ROWS)),
    key(SHIFT, KeyCode::Down, "Shift-Down", "one row down", |app| app.scroll_down(SCROLL_ROWS)),
    key(ALT, KeyCode::Home, "Alt-Home", "the oldest message that is loaded", App::scroll_to_top),
    key(ALT, KeyCode::End, "Alt-End", "the newest message", App::scroll_to_bottom),
    key(NONE, KeyCode::Esc, "Esc", "back to the newest message", App::scroll_to_bottom),
    key(NONE, KeyCode::Up, "Up", "line above, or the input before", |app| edit(app, Editor::up)),
    key(NONE, KeyCode::Down, "Down", "line below, or the input after", |app| edit(app, Editor::down)),
    key(NONE, KeyCode::Left, "Left", "one character left", |app| app.input.move_cursor(Move::Left)),
    key(NONE, KeyCode::Right, "Right", "one character right", |app| app.input.move_cursor(Move::Right)),
    key(CTRL, KeyCode::Left, "Ctrl-Left", "one word left", |app| app.input.move_cursor(Move::WordLeft)),
    key(CTRL, KeyCode::Right, "Ctrl-Right", "one word right", |app| app.input.move_cursor(Move::WordRight)),
    key(ALT, KeyCode::Char('b'), "", "", |app| app.input.move_cursor(Move::WordLeft)),
    key(ALT, KeyCode::Char('f'), "", "", |app| app.input.move_cursor(Move::WordRight)),
    key(NONE, KeyCode::Home, "Home", "start of the line", |app| app.input.move_cursor(Move::LineStart)),
    key(NONE, KeyCode::End, "End", "end of the line", |app| app.input.move_cursor(Move::LineEnd)),
    key(CTRL, KeyCode::Char('a'), "", "", |app| app.input.move_cursor(Move::LineStart)),
    key(CTRL, KeyCode::Char('e'), "", "", |app| app.input.move_cursor(Move::LineEnd)),
    key(CTRL, KeyCode::Char('b'), "", "", |app| app.input.move_cursor(Move::Left)),
    key(CTRL, KeyCode::Char('f'), "", "", |app| app.input.move_cursor(Move::Right)),
    key(NONE, KeyCode::Backspace, "Backspace", "delete the character before", |app| edit(app, Editor::backspace)),
    key(CTRL, KeyCode::Char('h'), "", "", |app| edit(app, Editor::backspace)),
    key(NONE, KeyCode::Delete, "Delete", "delete the character", |app| edit(app, Editor::delete)),
    key(CTRL, KeyCode::Char('w'), "Ctrl-W", "cut the word before", |app| edit(app, Editor::kill_word)),
    key(ALT, KeyCode::Backspace, "", "", |app| edit(app, Editor::kill_word)),
    key(CTRL, KeyCode::Char('u'), "Ctrl-U", "cut the line before the cursor", |app| edit(app, Editor::kill_to_start)),
    key(ALT, KeyCode::Char('k'), "Alt-K", "cut the line behind the cursor", |app| edit(app, Editor::kill_to_end)),
    key(CTRL, KeyCode::Char('y'), "Ctrl-Y", "insert what was cut last", |app| app.yank()),
    key(CTRL, KeyCode::Char('l'), "Ctrl-L", "draw the screen again", |app| app.actions.push(Action::Clear)),
    key(CTRL, KeyCode::Char('z'), "Ctrl-Z", "suspend", |app| app.actions.push(Action::Suspend)),
    key(CTRL, KeyCode::Char('c'), "Ctrl-C", "discard the input; twice: leave", App::interrupt),
    key(CTRL, KeyCode::Char('d'), "Ctrl-D", "leave, if the input is empty", App::delete_or_leave),
    key(NONE, KeyCode::F(1), "F1", "this help", App::open_help),
];

impl App {
    /// Handles a key.
    pub(super) fn key(&mut self, key: KeyEvent, is_pasted: bool) {
        if key.kind == KeyEventKind::Release {
            return;
        }
        let was_interrupted = self.hint.take().is_some_and(|hint| hint == LEAVE_HINT);
        if self.overlay.is_some() {
            return self.overlay_key(key);
        }
        if key.code == KeyCode::Tab && key.modifiers.is_empty() {
            return if is_pasted {
                self.type_text("\t")
            } else {
                self.complete()
            };
        }
        self.completing = None;
        if was_interrupted && key.code == KeyCode::Char('c') && key.modifiers == CTRL {
            return self.actions.push(Action::Quit);
        }
        match (key.code, key.modifiers) {
            (KeyCode::Char(digit @ '0'..='9'), ALT) => {
                let index = digit.to_digit(10).map_or(0, |digit| digit as usize);
                self.select(index);
            }
            (KeyCode::Char(c), NONE | SHIFT) => self.type_text(c.encode_utf8(&mut [0; 4])),
            (code, modifiers) => {
                let bound = BINDINGS
                    .iter()
                    .find(|one| one.code == code && one.modifiers == modifiers);
                if let Some(binding) = bound {
                    (binding.run)(self);
                }
            }
        }
    }

    pub(super) fn paste(&mut self, text: &str) {
        self.hint = None;
        self.completing = None;
        if self.overlay.is_some() {
            return self.overlay_paste(text);
        }
        if !self.input.paste(text) {
            self.hint = Some(TOO_LONG.to_owned());
        }
    }

    fn type_text(&mut self, text: &str) {
        if !self.input.insert(text) {
            self.hint = Some(TOO_LONG.to_owned());
        }
    }

    fn insert_newline(&mut self) {
        self.type_text("\n");
    }

    fn yank(&mut self) {
        if !self.input.yank() {
            self.hint = Some(TOO_LONG.to_owned());
        }
    }

    fn step(&mut self, by: isize) {
        let count = self.conversations.list().len();
        let at = self.conversations.index().saturating_add(count);
        if let Some(next) = at.checked_add_signed(by) {
            self.select(next % count);
        }
    }

    fn next_unread(&mut self) {
        match self.conversations.next_unread() {
            Some(index) => self.select(index),
            None => self.hint = Some("no unread messages".to_owned()),
        }
    }

    fn back(&mut self) {
        if let Some(index) = self.conversations.previous() {
            self.select(index);
        }
    }

    fn interrupt(&mut self) {
        if self.input.is_empty() {
            self.hint = Some(LEAVE_HINT.to_owned());
        } else {
            self.input.take();
        }
    }

    fn delete_or_leave(&mut self) {
        if self.input.is_empty() {
            self.actions.push(Action::Quit);
        } else {
            self.input.delete();
        }
    }
}

const LEAVE_HINT: &str = "press Ctrl-C again or Ctrl-D, or type /quit, to leave";

const TOO_LONG: &str = "the input is full";
