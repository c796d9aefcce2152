//! Aligned columns, and times as people say them.

use jiff::Timestamp;

/// Lines of aligned columns, two spaces between; the last column is not padded.
pub(super) fn align(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| visible(cell)).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    rows.iter()
        .map(|row| {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line += cell;
                line.push_str(&" ".repeat(width - visible(cell) + 2));
            }
            line.truncate(line.trim_end().len());
            line
        })
        .collect()
}

/// How many columns a cell takes: colours take none.
fn visible(cell: &str) -> usize {
    let mut count = 0;
    let mut chars = cell.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            let _ = chars.by_ref().find(|c| *c == 'm');
        } else {
            count += 1;
        }
    }
    count
}

/// How long ago `then` was: the two largest units, as kubectl says it.
pub(super) fn age(now: Timestamp, then: Timestamp) -> String {
    let seconds = u64::try_from(now.as_second() - then.as_second()).unwrap_or(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, 1..10) => format!("{minutes}m{}s", seconds % 60),
        (0, 0, _) => format!("{minutes}m"),
        (0, 1..10, _) => format!("{hours}h{}m", minutes % 60),
        (0, _, _) => format!("{hours}h"),
        (1..10, _, _) => format!("{days}d{}h", hours % 24),
        _ => format!("{days}d"),
    }
}

/// Text from elsewhere as one line that cannot move the cursor.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let rows = vec![
            vec!["NAME".into(), "STATUS".into()],
            vec!["a-long-name".into(), "x".into()],
            vec!["\x1b[31mred\x1b[0m".into(), "y".into()],
        ];
        let lines = align(&rows);
        assert_eq!(lines[0], "NAME         STATUS");
        assert_eq!(lines[1], "a-long-name  x");
        assert_eq!(lines[2], "\x1b[31mred\x1b[0m          y");
    }

    #[test]
    fn ages_have_their_two_largest_units() {
        let at = |second| Timestamp::from_second(second).unwrap();
        for (seconds, text) in [
            (0, "0s"),
            (59, "59s"),
            (65, "1m5s"),
            (1_800, "30m"),
            (5_400, "1h30m"),
            (90_000, "1d1h"),
            (8_640_000, "100d"),
        ] {
            assert_eq!(age(at(seconds), at(0)), text);
        }
        assert_eq!(age(at(0), at(5)), "0s", "a clock that went back is no panic");
    }

    #[test]
    fn text_from_elsewhere_cannot_move_the_cursor() {
        assert_eq!(one_line("a\x1b[2Jb\nc\u{9b}d"), "a [2Jb c d");
    }
}
