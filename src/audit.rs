//! What stead did to this host, and what kept it from doing so: STATE/audit.jsonl, one JSON object a line, oldest first.
//!
//! Written by whoever holds STATE/lock, read by anybody who may read STATE. Nothing is decided from it: that a line cannot be
//! written stops no action. A line is not made durable by itself: what it tells of is on record elsewhere before it happens, and
//! an fsync a line would take as long as a whole start. After a power cut the last seconds may be missing, and the last line cut.

mod read;
mod repeats;

pub use read::{News, Tail, last};
pub use repeats::Repeats;

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::desired::{Origin, SourceName};
use crate::host::HostOps;
use crate::names::{Layout, VmName};
use crate::reasons::Reason;
use crate::status::EventType;

/// How long the log grows, in bytes, before it gets its other name and a new one begins: twice as much is kept at most.
pub const LOG_MAX: u64 = 8 << 20;
/// The longest message in a line, in bytes: what git or a VMM says of an error may be long.
const MESSAGE_MAX: usize = 4096;

/// One thing that was done, or kept from being done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When it was done.
    pub time: Timestamp,
    /// Whether it needs attention.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The VM that it is about; none where it is about the host or a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmName>,
    /// What, in one CamelCase word for programs: the same as of the VM's events.
    pub reason: String,
    /// What, for people; of a failure, everything that went wrong.
    pub message: String,
    /// The action, where it is one: `start`, `teardown` …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// How the action ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// How long the action took, in microseconds; of one that was begun, until it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_micros: Option<u64>,
    /// The digest of the plan of this VM that the action was the first of, as `stead plan -o json` gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_digest: Option<String>,
    /// Where the declaration stands that it follows from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// Where the same was left out before: how often it happened since `since`, this time included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// When it happened first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is done.
    Done,
    /// It was begun, and is done when something has happened that it waits for.
    Begun,
    /// It failed.
    Failed,
    /// Another stead wrote a word that this one does not know.
    #[serde(other)]
    Other,
}

impl Outcome {
    /// Those that actions have.
    pub const ALL: [Self; 3] = [Self::Done, Self::Begun, Self::Failed];

    /// Its word, for programs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Begun => "begun",
            Self::Failed => "failed",
            Self::Other => "other",
        }
    }
}

/// Where a declaration stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The source's name.
    pub name: SourceName,
    /// The file in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The line in that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// Of a git source, the commit that was in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
}

impl Source {
    /// The place of a declaration, of which this commit was in force.
    pub fn of(origin: &Origin, commit: Option<String>) -> Self {
        let Origin { source, path, line } = origin;
        Self { name: source.clone(), path: Some(path.clone()), line: Some(*line), commit }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path, line, commit: _ } = self;
        write!(f, "{name}")?;
        if let Some(path) = path {
            write!(f, ":{}", path.display())?;
        }
        line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl Entry {
    /// Something that happened now, of which nothing more is known yet.
    pub fn new(time: Timestamp, kind: EventType, reason: Reason, message: &str) -> Self {
        Self {
            time,
            kind,
            vm: None,
            reason: reason.word().to_owned(),
            message: message.to_owned(),
            action: None,
            outcome: None,
            duration_micros: None,
            plan_digest: None,
            source: None,
            count: None,
            since: None,
        }
    }

    /// An action that ended so after this time.
    #[must_use]
    pub fn with_action(self, action: &str, outcome: Outcome, took: Duration) -> Self {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        Self { action: Some(action.to_owned()), outcome: Some(outcome), duration_micros: Some(micros), ..self }
    }

    /// Its line, with the newline that ends it.
    fn line(&self) -> Vec<u8> {
        let mut short;
        let entry = if self.message.len() > MESSAGE_MAX {
            short = self.clone();
            let end = (0..=MESSAGE_MAX).rev().find(|at| self.message.is_char_boundary(*at)).unwrap_or(0);
            short.message.truncate(end);
            short.message.push('…');
            &short
        } else {
            self
        };
        // No map with keys that are no strings, and no number that is none: it can be written.
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        line
    }

    /// Reads a line. `None` for one that was cut, or is of a stead that writes otherwise.
    pub fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }
}

/// Writes the log, and says in stead's own if that cannot be done.
#[derive(Debug, Default)]
pub struct Writer {
    is_failing: AtomicBool,
}

impl Writer {
    /// Writes one line; false where that failed. Whoever acts goes on whatever comes of it: that is told once, until it works
    /// again.
    pub fn write(&self, host: &dyn HostOps, layout: &Layout, entry: &Entry) -> bool {
        match host.append_log(&layout.audit_log(), &layout.audit_log_before(), &entry.line(), LOG_MAX) {
            Ok(()) => {
                self.is_failing.store(false, Ordering::Relaxed);
                true
            }
            Err(error) => {
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    let path = layout.audit_log();
                    tracing::warn!(
                        "{} cannot be written, so what is done now is only told here: {error}",
                        path.display()
                    );
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(message: &str) -> Entry {
        let entry = Entry::new(Timestamp::UNIX_EPOCH, EventType::Normal, Reason::Started, message);
        entry.with_action("persist", Outcome::Done, Duration::from_micros(7))
    }

    #[test]
    fn an_entry_is_one_line_and_is_read_back() {
        let written = Entry { vm: Some("web".parse().unwrap()), ..entry("two\nlines") };
        let line = written.line();
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(
            String::from_utf8_lossy(&line),
            "{\"time\":\"1970-01-01T00:00:00Z\",\"type\":\"Normal\",\"vm\":\"web\",\"reason\":\"Started\",\
             \"message\":\"two\\nlines\",\"action\":\"persist\",\"outcome\":\"done\",\"durationMicros\":7}\n"
        );
        assert_eq!(Entry::parse(&line), Some(written));
        assert_eq!(Entry::parse(&line[..line.len() / 2]), None);
    }

    #[test]
    fn a_later_stead_may_write_more() {
        let line = String::from_utf8(entry("x").line()).unwrap();
        let later = line.replace("\"done\"", "\"undone\"").replacen('{', "{\"mood\":\"good\",", 1);
        assert_eq!(Entry::parse(later.as_bytes()).unwrap().outcome, Some(Outcome::Other));
    }

    #[test]
    fn a_message_is_no_longer_than_its_bound() {
        let long = entry(&"ü".repeat(MESSAGE_MAX)).line();
        assert!(long.len() < MESSAGE_MAX + 300);
        assert!(Entry::parse(&long).unwrap().message.ends_with("ü…"));
    }
}
