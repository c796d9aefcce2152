//! Durations and sizes as people write them on a command line.

use std::time::Duration;

/// Why a text is not a duration or a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not a duration.
    #[error("a duration is numbers with units ms, s, m, h or d, such as 500ms, 60s, 10m or 1h30m")]
    Duration,
    /// Not a size.
    #[error("a size is a whole number of bytes, or one with Ki, Mi or Gi, such as 4Mi")]
    Size,
    /// More than fits.
    #[error("this is too large")]
    TooLarge,
}

/// Reads `500ms`, `60s`, `10m`, `1h30m`, `7d`; `0` needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (digits, after) = split_number(rest).ok_or(ParseError::Duration)?;
        let unit_end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let milliseconds: u64 = match &after[..unit_end] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(ParseError::Duration),
        };
        let number: u64 = digits.parse().map_err(|_| ParseError::TooLarge)?;
        let part = number.checked_mul(milliseconds).ok_or(ParseError::TooLarge)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or(ParseError::TooLarge)?;
        rest = &after[unit_end..];
    }
    if text.is_empty() { Err(ParseError::Duration) } else { Ok(total) }
}

/// Reads `4096`, `64Ki`, `4Mi`, `1Gi`.
pub fn parse_bytes(text: &str) -> Result<u64, ParseError> {
    let (digits, unit) = split_number(text).ok_or(ParseError::Size)?;
    let factor: u64 = match unit {
        "" => 1,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(ParseError::Size),
    };
    let number: u64 = digits.parse().map_err(|_| ParseError::TooLarge)?;
    number.checked_mul(factor).ok_or(ParseError::TooLarge)
}

/// The digits that `text` starts with, at least one, and what follows.
fn split_number(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, milliseconds) in
            [("0", 0), ("500ms", 500), ("60s", 60_000), ("10m", 600_000), ("1h30m", 5_400_000), ("7d", 604_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in ["", "5", "s", "-1s", "1.5s", "1 s", "10M", "5m ", "1h30", "ü"] {
            assert_eq!(parse_duration(text), Err(ParseError::Duration), "{text:?}");
        }
        for text in ["18446744073709551615d", "99999999999999999999s"] {
            assert_eq!(parse_duration(text), Err(ParseError::TooLarge), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_in_bytes_and_binary_units() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("4Mi"), Ok(4 << 20));
        for text in ["", "Mi", "4M", "-4", "4 Mi", "4mi"] {
            assert_eq!(parse_bytes(text), Err(ParseError::Size), "{text:?}");
        }
        assert_eq!(parse_bytes("18446744073709551615Gi"), Err(ParseError::TooLarge));
    }
}
