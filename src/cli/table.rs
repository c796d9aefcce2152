//! Aligned columns, JSON and YAML.

use serde::Serialize;

use super::CliError;

/// Rows in columns as wide as their widest cell, three blanks between, as kubectl has them.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("   ");
        format!("{}\n", line.trim_end())
    };
    rows.iter().map(line).collect()
}

/// Indented JSON.
pub(super) fn json<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_json::to_string_pretty(value).map(|text| text + "\n").map_err(|error| CliError::Format(error.to_string()))
}

/// YAML.
pub(super) fn yaml<T: Serialize>(value: &T) -> Result<String, CliError> {
    serde_yaml::to_string(value).map_err(|error| CliError::Format(error.to_string()))
}

/// A time span as kubectl writes it: its two largest units at most.
pub(super) fn age(seconds: i64) -> String {
    match seconds.max(0) {
        s @ 0..120 => format!("{s}s"),
        s @ 120..600 => format!("{}m{}s", s / 60, s % 60),
        s @ 600..10_800 => format!("{}m", s / 60),
        s @ 10_800..172_800 => format!("{}h", s / 3_600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_without_blanks_at_the_end() {
        let rows = [vec!["NAME", "PID"], vec!["a", "1"], vec!["longer", ""]];
        let rows = rows.map(|row| row.into_iter().map(str::to_owned).collect());
        assert_eq!(columns(&rows), "NAME     PID\na        1\nlonger\n");
    }

    #[test]
    fn ages_are_short() {
        assert_eq!([5, 130, 700, 11_000, 200_000].map(age), ["5s", "2m10s", "11m", "3h", "2d"]);
    }
}
