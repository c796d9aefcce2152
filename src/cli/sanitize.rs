//! Guest output on a terminal. A guest is not trusted: what it prints must not move the cursor, set titles, or make the
//! terminal answer.

/// Longest escape sequence that is waited for; a longer one is no colour.
const SEQUENCE_MAX: usize = 64;

/// Makes guest output harmless, in pieces as they come.
///
/// Newline, tab and carriage return pass. Colours (`ESC [ … m`) are dropped, since a guest could hide text with them. All
/// other control characters are shown as `^X`, bytes that are not UTF-8 and invisible characters that reorder text as `�`.
#[derive(Debug, Default)]
pub(super) struct Sanitizer {
    /// The start of a character or sequence whose end has not come yet.
    pending: Vec<u8>,
}

impl Sanitizer {
    /// The harmless form of the next piece.
    pub(super) fn push(&mut self, piece: &[u8]) -> String {
        self.pending.extend_from_slice(piece);
        let bytes = std::mem::take(&mut self.pending);
        let mut text = String::with_capacity(bytes.len());
        let mut rest = bytes.as_slice();
        while let Some(&first) = rest.first() {
            let taken = match first {
                b'\n' | b'\t' | b'\r' | 0x20..=0x7e => plain(&mut text, char::from(first)),
                0x1b => match color(rest) {
                    Sequence::Color(length) => length,
                    Sequence::Unfinished => break,
                    Sequence::Other => caret(&mut text, first),
                },
                0..=0x1f | 0x7f => caret(&mut text, first),
                0x80.. => match wide(rest) {
                    Some((c, length)) => {
                        text.push(if is_harmless(c) { c } else { char::REPLACEMENT_CHARACTER });
                        length
                    }
                    None if is_unfinished(rest) => break,
                    None => plain(&mut text, char::REPLACEMENT_CHARACTER),
                },
            };
            rest = &rest[taken..];
        }
        self.pending = rest.to_vec();
        text
    }

    /// What is left when nothing more comes.
    pub(super) fn finish(self) -> String {
        let mut text = String::new();
        for byte in self.pending {
            match byte {
                0..=0x1f | 0x7f => drop(caret(&mut text, byte)),
                0x20..=0x7e => text.push(char::from(byte)),
                0x80.. => text.push(char::REPLACEMENT_CHARACTER),
            }
        }
        text
    }
}

fn plain(text: &mut String, c: char) -> usize {
    text.push(c);
    1
}

fn caret(text: &mut String, control: u8) -> usize {
    text.push('^');
    text.push(char::from(control ^ 0x40));
    1
}

enum Sequence {
    /// A colour of this length.
    Color(usize),
    /// It may become a colour.
    Unfinished,
    /// Something else.
    Other,
}

/// What starts with ESC: `ESC [ digits and semicolons m` is a colour (ECMA-48 SGR).
fn color(bytes: &[u8]) -> Sequence {
    match bytes.get(1) {
        None => return Sequence::Unfinished,
        Some(b'[') => {}
        Some(_) => return Sequence::Other,
    }
    let parameters = bytes[2..].iter().take_while(|byte| matches!(byte, b'0'..=b'9' | b';' | b':')).count();
    match bytes.get(2 + parameters) {
        Some(b'm') => Sequence::Color(3 + parameters),
        None if bytes.len() < SEQUENCE_MAX => Sequence::Unfinished,
        _ => Sequence::Other,
    }
}

/// The character of several bytes that these start with, and its length.
fn wide(bytes: &[u8]) -> Option<(char, usize)> {
    let head = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&head[..error.valid_up_to()]).ok()?,
    };
    valid.chars().next().map(|c| (c, c.len_utf8()))
}

/// Whether these bytes are the start of a character whose end is missing.
fn is_unfinished(bytes: &[u8]) -> bool {
    bytes.len() < 4
        && std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

/// Not a C1 control (some terminals obey them), and not one that reorders the text around it (Unicode TR9).
fn is_harmless(c: char) -> bool {
    !matches!(c, '\u{80}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(pieces: &[&[u8]]) -> String {
        let mut sanitizer = Sanitizer::default();
        let text: String = pieces.iter().map(|piece| sanitizer.push(piece)).collect();
        text + &sanitizer.finish()
    }

    #[test]
    fn guest_output_cannot_command_the_terminal() {
        assert_eq!(clean(&[b"\x1b]0;pwned\x07ok\n"]), "^[]0;pwned^Gok\n");
        assert_eq!(clean(&[b"\x1b[2J\x1b[6n"]), "^[[2J^[[6n");
        assert_eq!(clean(&["a\u{9b}2J".as_bytes()]), "a\u{fffd}2J");
        assert_eq!(clean(&["\u{202e}evil".as_bytes()]), "\u{fffd}evil");
    }

    #[test]
    fn text_passes_and_colours_are_dropped() {
        assert_eq!(clean(&["[\x1b[0;32m  OK  \x1b[0m] grüß\t€\r\n".as_bytes()]), "[  OK  ] grüß\t€\r\n");
        assert_eq!(clean(&[b"\xff\xfe a"]), "\u{fffd}\u{fffd} a");
    }

    #[test]
    fn pieces_may_end_anywhere() {
        let whole = "\x1b[1;31mé€😀\x1b[0m\x1b[2Jend".as_bytes();
        for cut in 0..whole.len() {
            assert_eq!(clean(&[&whole[..cut], &whole[cut..]]), "é€😀^[[2Jend", "cut at {cut}");
        }
        let single: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(clean(&single), "é€😀^[[2Jend");
        assert_eq!(clean(&[b"x\x1b["]), "x^[[");
        assert_eq!(clean(&[b"\xe2\x82"]), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn an_endless_sequence_is_not_kept() {
        let mut sanitizer = Sanitizer::default();
        sanitizer.push(b"\x1b[");
        for _ in 0..1000 {
            sanitizer.push(b"1;");
        }
        assert!(sanitizer.pending.len() <= SEQUENCE_MAX);
    }
}
