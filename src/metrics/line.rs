//! How many VMs are in which phase, in one line: what `systemctl status` shows.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::status::{ConditionStatus, ConditionType, Status, VmPhase};

/// One word for a VM, in the order in which the words are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Word {
    Running,
    /// Whatever its phase, a person should look at it.
    Degraded,
    Other(VmPhase),
}

impl Word {
    pub(super) fn of(status: &Status) -> Self {
        let degraded = status.condition(ConditionType::Degraded);
        if degraded.is_some_and(|condition| condition.status == ConditionStatus::True) {
            return Self::Degraded;
        }
        match status.phase {
            VmPhase::Running => Self::Running,
            other => Self::Other(other),
        }
    }
}

/// So many VMs of each word.
pub(super) fn line(words: &BTreeMap<Word, u64>) -> String {
    let mut line = String::new();
    for (word, count) in words.iter().filter(|(_, count)| **count > 0) {
        let between = if line.is_empty() { "" } else { ", " };
        let word = match word {
            Word::Running => "running".to_owned(),
            Word::Degraded => "degraded".to_owned(),
            Word::Other(VmPhase::BackingOff) => "backing off".to_owned(),
            Word::Other(phase) => phase.to_string().to_lowercase(),
        };
        let _ = write!(line, "{between}{count} {word}");
    }
    if line.is_empty() { "no VMs".to_owned() } else { line }
}
