//! Colours and text on a terminal: plain ANSI, and only where it is wanted.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;

/// When to use colours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set (no-color.org).
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Standard output and standard error.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// Standard output.
    pub out: Stream,
    /// Standard error.
    pub err: Stream,
}

/// Where text goes; by default neither a terminal nor coloured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stream {
    /// Whether it is a terminal.
    pub is_terminal: bool,
    /// Whether it gets colours.
    pub color: bool,
}

impl Term {
    /// What `choice` and the environment make of this process's streams.
    pub fn new(choice: ColorChoice) -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let plain = set("NO_COLOR").is_some() || set("TERM").is_some_and(|term| term == "dumb");
        let stream = |is_terminal: bool| Stream { is_terminal, color: wants_color(choice, is_terminal, plain) };
        Self { out: stream(io::stdout().is_terminal()), err: stream(io::stderr().is_terminal()) }
    }

    /// Writes to standard output.
    pub fn print(&self, text: impl AsRef<str>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_ref().as_bytes())?;
        out.flush()
    }

    /// Writes a note for the person at the terminal to standard error, so that it never mixes with output.
    pub fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{} {text}", self.err.strong("note:"));
    }
}

fn wants_color(choice: ColorChoice, is_terminal: bool, plain: bool) -> bool {
    match choice {
        ColorChoice::Auto => is_terminal && !plain,
        ColorChoice::Always => true,
        ColorChoice::Never => false,
    }
}

impl Stream {
    /// What went wrong: red.
    pub fn bad(self, text: &str) -> String {
        self.paint("31", text)
    }

    /// What went well: green.
    pub fn good(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// What needs an eye: yellow.
    pub fn careful(self, text: &str) -> String {
        self.paint("33", text)
    }

    /// What is a heading: bold.
    pub fn strong(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// How many columns standard error has, where it is a terminal that tells.
pub fn width() -> usize {
    rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col).max(20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_used_on_terminals_unless_somebody_objects() {
        use ColorChoice::{Always, Auto, Never};
        assert!(wants_color(Auto, true, false));
        assert!(!wants_color(Auto, true, true));
        assert!(!wants_color(Auto, false, false));
        assert!(wants_color(Always, false, true));
        assert!(!wants_color(Never, true, false));
    }

    #[test]
    fn a_stream_without_colours_has_no_escape_sequences() {
        assert_eq!(Stream::default().bad("x"), "x");
        assert_eq!(Stream { is_terminal: true, color: true }.bad("x"), "\x1b[31mx\x1b[0m");
    }
}
