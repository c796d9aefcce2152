//! The last of what a guest printed, as lines.

use std::collections::VecDeque;

use super::text::{expand_tabs, wrap};
use crate::cli::sanitize::Sanitizer;

/// How many lines are kept.
pub(super) const LINES_MAX: usize = 5_000;
/// The longest line in characters; what goes on is a line of its own.
const LINE_MAX: usize = 4_000;

/// A console as it is shown.
#[derive(Debug, Default)]
pub(super) struct Console {
    sanitizer: Sanitizer,
    lines: VecDeque<String>,
    /// The line that has no end yet.
    last: String,
    /// How many characters that is.
    length: usize,
    /// Whether the last thing was a carriage return.
    returned: bool,
    /// How many lines from the end the last one shown is; 0 follows.
    pub back: usize,
    /// Whether anything was read yet, if only that there is nothing.
    pub read: bool,
}

impl Console {
    /// Takes in what was printed. A carriage return begins a line, so that a guest cannot print over what it printed before.
    pub(super) fn push(&mut self, piece: &[u8]) {
        self.read = true;
        for c in self.sanitizer.push(piece).chars() {
            match c {
                '\n' => self.end_line(),
                '\r' => {}
                _ => {
                    if (self.returned && self.length > 0) || self.length >= LINE_MAX {
                        self.end_line();
                    }
                    self.last.push(c);
                    self.length += 1;
                }
            }
            self.returned = c == '\r';
        }
    }

    fn end_line(&mut self) {
        self.lines.push_back(expand_tabs(&std::mem::take(&mut self.last)));
        self.length = 0;
        if self.lines.len() > LINES_MAX {
            self.lines.pop_front();
        }
        // Who reads further up goes on reading the same.
        if self.back > 0 {
            self.back = (self.back + 1).min(self.lines.len());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.last.is_empty()
    }

    /// Moves by so many lines: up into the past if negative.
    pub(super) fn scroll(&mut self, by: isize) {
        self.back = self.back.saturating_add_signed(-by).min(self.lines.len().saturating_sub(1));
    }

    /// What fills `rows` of `columns` and ends where it was scrolled to.
    pub(super) fn shown(&self, columns: usize, rows: usize) -> Vec<String> {
        let last = expand_tabs(&self.last);
        let all = std::iter::once(&last).filter(|last| !last.is_empty()).chain(self.lines.iter().rev());
        let mut shown: Vec<String> = Vec::new();
        for line in all.skip(self.back) {
            if shown.len() >= rows {
                break;
            }
            shown.extend(wrap(line, columns).into_iter().rev().map(str::to_owned));
        }
        shown.truncate(rows);
        shown.reverse();
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(pieces: &[&str]) -> Console {
        let mut console = Console::default();
        for piece in pieces {
            console.push(piece.as_bytes());
        }
        console
    }

    #[test]
    fn a_console_ends_with_what_was_printed_last() {
        let console = console(&["one\r\ntwo\r", "\nthree\n", "lo", "gin: "]);
        assert_eq!(console.shown(20, 2), ["three", "login: "]);
        assert_eq!(console.shown(20, 9), ["one", "two", "three", "login: "]);
        assert_eq!(console.shown(3, 3), ["log", "in:", " "]);
    }

    #[test]
    fn a_guest_hides_nothing_and_commands_nothing() {
        let console = console(&["rm -rf /\rls       \n\x1b[2J\x1b]0;x\x07\x1b[31mred\x1b[0m\n"]);
        assert_eq!(console.shown(40, 9), ["rm -rf /", "ls       ", "^[[2J^[]0;x^Gred"]);
    }

    #[test]
    fn who_reads_further_up_is_not_moved_by_what_comes() {
        let mut console = console(&["1\n2\n3\n4\n5\n"]);
        console.scroll(-2);
        assert_eq!(console.shown(9, 2), ["2", "3"]);
        console.push(b"6\n7\n");
        assert_eq!(console.shown(9, 2), ["2", "3"]);
        console.scroll(99);
        assert_eq!(console.shown(9, 2), ["6", "7"]);
        console.scroll(-99);
        assert_eq!(console.shown(9, 2), ["1"]);
    }

    #[test]
    fn neither_lines_nor_a_line_grow_without_end() {
        let mut console = Console::default();
        for _ in 0..LINES_MAX + 10 {
            console.push(b"x\n");
        }
        console.push(&vec![b'y'; 10 * LINE_MAX]);
        assert!(console.lines.len() <= LINES_MAX);
        assert!(console.last.len() <= LINE_MAX);
    }
}
