//! Text from elsewhere made fit for a cell of the screen, and numbers as people read them.

use std::time::Duration;

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::cli::sanitize::Sanitizer;

/// Columns from one tab stop to the next.
const TAB: usize = 8;
/// What stands for the rest of a text that is too long.
const REST: char = '…';

/// Text from elsewhere as one line that commands no terminal; what it is indented by stays.
pub(super) fn harmless(text: &str) -> String {
    let mut sanitizer = Sanitizer::default();
    let text = sanitizer.push(text.as_bytes()) + &sanitizer.finish();
    expand_tabs(&text.replace(['\n', '\r'], " "))
}

/// The same without blanks at its ends.
pub(super) fn clean(text: &str) -> String {
    harmless(text).trim().to_owned()
}

/// A line with its tabs as blanks.
pub(super) fn expand_tabs(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut column = 0;
    for c in line.chars() {
        let columns = if c == '\t' { TAB - column % TAB } else { width_of(c) };
        match c {
            '\t' => text.push_str(&" ".repeat(columns)),
            other => text.push(other),
        }
        column += columns;
    }
    text
}

/// The columns that a text takes.
pub(super) fn width(text: &str) -> usize {
    text.width()
}

fn width_of(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// At most `columns` of a text; `…` stands for what is cut off.
pub(super) fn truncate(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    if columns == 0 {
        return String::new();
    }
    let mut cut = head(text, columns - 1).to_owned();
    cut.push(REST);
    cut
}

/// A text in exactly `columns`.
pub(super) fn fit(text: &str, columns: usize) -> String {
    let mut text = truncate(text, columns);
    text.push_str(&" ".repeat(columns - width(&text).min(columns)));
    text
}

/// The same, at the right edge: for numbers.
pub(super) fn fit_right(text: &str, columns: usize) -> String {
    let text = truncate(text, columns);
    " ".repeat(columns - width(&text).min(columns)) + &text
}

/// A line in pieces of at most `columns`, at least one. Breaks anywhere: what a guest prints has no words to respect.
pub(super) fn wrap(line: &str, columns: usize) -> Vec<&str> {
    let columns = columns.max(2);
    let mut pieces = Vec::new();
    let mut rest = line;
    loop {
        let piece = head(rest, columns);
        pieces.push(piece);
        rest = &rest[piece.len()..];
        if rest.is_empty() || piece.is_empty() {
            return pieces;
        }
    }
}

/// As much of a text from its start as `columns` hold.
fn head(text: &str, columns: usize) -> &str {
    let mut used = 0;
    let end = text.char_indices().find_map(|(at, c)| {
        used += width_of(c);
        (used > columns).then_some(at)
    });
    &text[..end.unwrap_or(text.len())]
}

/// Bytes in the largest binary unit of which there is at least one, as manifests write them.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 40, "Ti"), (1 << 30, "Gi"), (1 << 20, "Mi")];
    let Some((unit, name)) = UNITS.into_iter().find(|(unit, _)| bytes >= *unit) else {
        return format!("{}Ki", bytes >> 10);
    };
    let (whole, tenths) = (bytes / unit, bytes % unit * 10 / unit);
    if whole >= 10 || tenths == 0 { format!("{whole}{name}") } else { format!("{whole}.{tenths}{name}") }
}

/// The share of one CPU in tenths of a percent; several CPUs are more than 1000. `None` where no time has passed.
pub(super) fn share(cpu: Duration, of: Duration) -> Option<u64> {
    let tenths = (cpu.as_micros() * 1000).checked_div(of.as_micros())?;
    u64::try_from(tenths).ok()
}

/// `12.5%`.
pub(super) fn percent(tenths: u64) -> String {
    format!("{}.{}%", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_is_one_harmless_line() {
        assert_eq!(clean("a\x1b[2J\nb\tc\u{202e}\u{9b}d"), "a^[[2J b        c\u{fffd}\u{fffd}d");
        assert_eq!(harmless("  a: b\n"), "  a: b ");
        assert_eq!(expand_tabs("a\tb\t\tc"), "a       b               c");
        assert_eq!(expand_tabs("日\tb"), "日      b");
    }

    #[test]
    fn what_is_too_long_says_so_and_fits_whatever_its_letters() {
        for (text, columns, cut) in [
            ("abcdef", 6, "abcdef"),
            ("abcdef", 4, "abc…"),
            ("abcdef", 1, "…"),
            ("abcdef", 0, ""),
            ("日本語", 5, "日本…"),
            ("日本語", 4, "日…"),
            ("日本語", 2, "…"),
            ("e\u{301}e\u{301}e\u{301}", 2, "e\u{301}…"),
        ] {
            assert_eq!(truncate(text, columns), cut, "{text} in {columns}");
            assert_eq!(width(&fit(text, columns)), columns, "{text} in {columns}");
            assert_eq!(width(&fit_right(text, columns)), columns, "{text} in {columns}");
        }
    }

    #[test]
    fn a_wrapped_line_loses_nothing() {
        for (line, columns) in [("", 5), ("abcdefghijk", 4), ("日本語日本語", 5), ("x", 0), ("日", 1)] {
            let pieces = wrap(line, columns);
            assert_eq!(pieces.concat(), line);
            assert!(pieces.iter().all(|piece| width(piece) <= columns.max(2)), "{pieces:?}");
        }
    }

    #[test]
    fn sizes_and_shares_are_short() {
        for (size, text) in [
            (0, "0Ki"),
            (300 << 10, "300Ki"),
            (1 << 20, "1Mi"),
            (3 << 19, "1.5Mi"),
            (200 << 20, "200Mi"),
            (5 << 29, "2.5Gi"),
            (2 << 40, "2Ti"),
        ] {
            assert_eq!(bytes(size), text);
        }
        let ms = Duration::from_millis;
        assert_eq!(share(ms(10), ms(2000)).map(percent).as_deref(), Some("0.5%"));
        assert_eq!(share(ms(6000), ms(2000)).map(percent).as_deref(), Some("300.0%"));
        assert_eq!(share(ms(1), ms(0)), None);
    }
}
