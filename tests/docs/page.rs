//! The fenced blocks of a page, and what a test is to do with each.
//!
//! The first word of a fence says what is in it, the others how it is tested:
//!
//! ```text
//! console                      `$ ` begins a command, `> ` right below goes on with it; the rest is what it prints
//! console no-test=REASON       is not run; the reason is one of REASONS, and the block is named in not_run.txt
//! console exit=N               its commands may exit with N (and with 0)
//! console retry                commands of stead that only look are run again until they print this
//! console any-order            what is printed may come in any order of lines
//! console only=systemd         wants packages or systemd: is typed on the clean host, where a page with such a block is followed too
//! yaml file=PATH               the reader writes this file, and so does the test
//! <!-- test-setup COMMANDS -->  what prepares a test, not shown to the reader
//! <!-- test-setup only=here COMMANDS -->  the same, instead of a block that is only=systemd; or only=systemd
//! ```

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Why a block may be left out, and what shows the same instead.
pub const REASONS: &[(&str, &str)] = &[
    ("needs-systemd", "wants systemd as PID 1; tests/nested has a host with one, tests/contrib.rs reads the units"),
    ("needs-a-build", "builds the project; whoever runs this test has built it"),
    ("takes-hours", "is one of the long runs of docs/testing.md"),
];

/// What may stand in a fence and is no command.
const NO_COMMANDS: &[&str] = &["yaml", "ini", "json", "nginx", "rust", "text", "toml"];

/// Whether a line of a block that nobody runs is one to be typed. What a screen shows has columns.
fn is_command(line: &str) -> bool {
    let typed = line.split(" #").next().unwrap_or_default().trim_end();
    line.starts_with("$ ") || typed.starts_with("stead ") && !typed.contains("  ")
}

#[derive(Debug)]
pub struct Page {
    /// From the project's folder.
    pub path: PathBuf,
    pub steps: Vec<Step>,
    /// What is on it that this test does not understand.
    pub flaws: Vec<String>,
}

#[derive(Debug)]
pub struct Step {
    pub line: usize,
    /// On which host alone it is done; none if on each.
    pub only: Option<Host>,
    pub kind: Kind,
}

/// The hosts on which pages are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The machine that runs the test, with every change kept apart and the programs of this build on its `PATH`.
    Here,
    /// A new one: what Debian's installer leaves, with systemd, and the package of this build.
    Clean,
}

#[derive(Debug)]
pub enum Kind {
    Console { commands: Vec<Command>, how: How },
    Skipped { reason: String, commands: Vec<Command> },
    File { path: String, text: String },
    Manifest { text: String },
    Script { text: String },
    Setup { text: String },
}

#[derive(Debug, Default)]
pub struct How {
    pub exits: Vec<i32>,
    pub retry: bool,
    pub any_order: bool,
}

#[derive(Debug)]
pub struct Command {
    pub line: usize,
    pub text: String,
    pub output: Vec<String>,
}

impl Page {
    pub fn read(root: &Path, path: &Path) -> Self {
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        let mut page = Self { path: path.to_owned(), steps: Vec::new(), flaws: Vec::new() };
        let lines: Vec<&str> = text.lines().collect();
        let mut at = 0;
        while at < lines.len() {
            let line = at + 1;
            if let Some(info) = lines[at].strip_prefix("```") {
                let body = take_until(&lines, at + 1, "```");
                at += body.len() + 1;
                page.block(line, info.trim(), &body);
            } else if lines[at].trim_start().starts_with("```") && lines[at].trim_start() != lines[at] {
                page.flaw(line, "a block in a list is not tested: let it begin at the margin");
                at += 1 + take_until(&lines, at + 1, "```").len();
            } else if let Some((only, first)) = setup(lines[at]) {
                let body = take_until(&lines, at + 1, "-->");
                at += body.len() + 1;
                let text = format!("{first}\n{}", body.join("\n"));
                page.steps.push(Step { line, only, kind: Kind::Setup { text } });
            } else if lines[at].starts_with("    ")
                && at > 0
                && lines[at - 1].is_empty()
                && !within_a_list(&lines[..at])
            {
                page.flaw(line, "a block that is only indented: put it between fences that say what it is");
                while at + 1 < lines.len() && lines[at + 1].starts_with("    ") {
                    at += 1;
                }
            }
            at += 1;
        }
        page
    }

    /// What is done on this host.
    pub fn steps_on(&self, host: Host) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(move |step| step.only.is_none_or(|only| only == host))
    }

    /// Whether it is to be followed on this host.
    pub fn is_for(&self, host: Host) -> bool {
        match host {
            Host::Here => {
                self.steps_on(host).any(|step| !matches!(step.kind, Kind::Skipped { .. } | Kind::Setup { .. }))
            }
            Host::Clean => self.steps.iter().any(|step| step.only == Some(host)),
        }
    }

    fn flaw(&mut self, line: usize, what: &str) {
        self.flaws.push(format!("{}:{line}: {what}", self.path.display()));
    }

    fn block(&mut self, line: usize, info: &str, body: &[&str]) {
        let mut words = info.split([' ', ',']).filter(|word| !word.is_empty());
        let language = words.next().unwrap_or_default();
        let (mut how, mut reason, mut file) = (How { exits: vec![0], ..How::default() }, None, None);
        let mut only = None;
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("no-test", given) => reason = Some(given.to_owned()),
                ("exit", status) if status.parse::<u8>().is_ok() => how.exits.push(status.parse().unwrap()),
                ("file", path) if path.starts_with('/') => file = Some(path.to_owned()),
                ("retry", "") => how.retry = true,
                ("any-order", "") => how.any_order = true,
                ("only", "systemd") => only = Some(Host::Clean),
                _ => self.flaw(line, &format!("`{word}` says nothing to this test")),
            }
        }
        let text = body.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        if let Some(reason) = &reason
            && !REASONS.iter().any(|(known, _)| known == reason)
        {
            self.flaw(line, &format!("`{reason}` is none of the reasons for which a block may be left out"));
        }
        let kind = match (language, reason, file) {
            ("console", reason, None) => {
                let commands = self.commands(line, body);
                match reason {
                    Some(reason) => Kind::Skipped { reason, commands },
                    None => Kind::Console { commands, how },
                }
            }
            // Of a script only the syntax is tested; the reader puts it where the page says.
            ("sh", None, None) if text.starts_with("#!") => Kind::Script { text },
            (language, None, Some(path)) if language == "sh" || NO_COMMANDS.contains(&language) => {
                Kind::File { path, text }
            }
            ("yaml", None, None) if text.starts_with("apiVersion:") => Kind::Manifest { text },
            (language, None, None) if NO_COMMANDS.contains(&language) => {
                if body.iter().any(|line| is_command(line)) {
                    self.flaw(line, "commands in a block that is not marked as `console`");
                }
                return;
            }
            ("", ..) => return self.flaw(line, "a block that does not say what it is: `console`, `yaml`, `text` ..."),
            _ => return self.flaw(line, &format!("`{info}`: this test does not know what to do with it")),
        };
        if only.is_some() && !matches!(kind, Kind::Console { .. }) {
            self.flaw(line, "only commands may be left to one of the hosts");
        }
        self.steps.push(Step { line, only, kind });
    }

    fn commands(&mut self, fence: usize, body: &[&str]) -> Vec<Command> {
        let mut commands: Vec<Command> = Vec::new();
        for (number, text) in (fence + 1..).zip(body) {
            if let Some(command) = text.strip_prefix("$ ") {
                commands.push(Command { line: number, text: command.to_owned(), output: Vec::new() });
                continue;
            }
            let Some(command) = commands.last_mut() else {
                self.flaw(number, "output without a command: one begins with `$ `");
                continue;
            };
            match text.strip_prefix("> ").or((*text == ">").then_some("")) {
                Some(more) if command.output.is_empty() => {
                    command.text.push('\n');
                    command.text.push_str(more);
                }
                _ => command.output.push((*text).to_owned()),
            }
        }
        if commands.is_empty() {
            self.flaw(fence, "a block of commands without any: one begins with `$ `");
        }
        commands
    }
}

/// Of the first line of a comment that says what to run: on which host alone, and what else is in it.
fn setup(line: &str) -> Option<(Option<Host>, &str)> {
    let rest = line.strip_prefix("<!-- test-setup")?;
    let only = |word, host| rest.strip_prefix(word).map(|rest| (Some(host), rest));
    Some(only(" only=here", Host::Here).or_else(|| only(" only=systemd", Host::Clean)).unwrap_or((None, rest)))
}

fn take_until<'a>(lines: &[&'a str], from: usize, end: &str) -> Vec<&'a str> {
    lines[from..].iter().take_while(|line| line.trim() != end).copied().collect()
}

/// Whether the paragraph before is of a list, in which text goes on indented.
fn within_a_list(before: &[&str]) -> bool {
    let last = before.iter().rev().find(|line| !line.is_empty() && !line.starts_with(' '));
    last.is_some_and(|line| line.starts_with("- ") || line.starts_with(|c: char| c.is_ascii_digit()))
}
