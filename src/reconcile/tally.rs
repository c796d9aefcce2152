//! How many VMs are in which phase, in one line: kept as it changes, however many there are.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use crate::names::VmName;
use crate::status::{ConditionStatus, ConditionType, Status, VmPhase};

/// One word for a VM, in the order in which the words are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Running,
    /// Whatever its phase, a person should look at it.
    Degraded,
    Other(VmPhase),
}

/// All VMs, each counted once.
#[derive(Debug, Default)]
pub(super) struct Tally {
    words: HashMap<VmName, Word>,
    counts: BTreeMap<Word, usize>,
    has_changed: bool,
}

impl Tally {
    /// A VM is so now, or is no more.
    pub(super) fn set(&mut self, name: &VmName, status: Option<&Status>) {
        let word = status.map(word);
        let before = match word {
            Some(word) => self.words.insert(name.clone(), word),
            None => self.words.remove(name),
        };
        if before == word {
            return;
        }
        self.has_changed = true;
        if let Some(word) = word {
            *self.counts.entry(word).or_default() += 1;
        }
        if let Some(before) = before
            && let Some(count) = self.counts.get_mut(&before)
        {
            *count -= 1;
        }
        self.counts.retain(|_, count| *count > 0);
    }

    /// The line, if it may differ from the one that was told last.
    pub(super) fn take_change(&mut self) -> Option<String> {
        std::mem::take(&mut self.has_changed).then(|| self.to_string())
    }
}

fn word(status: &Status) -> Word {
    let degraded = status.condition(ConditionType::Degraded);
    if degraded.is_some_and(|condition| condition.status == ConditionStatus::True) {
        return Word::Degraded;
    }
    match status.phase {
        VmPhase::Running => Word::Running,
        other => Word::Other(other),
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.counts.is_empty() {
            return f.write_str("no VMs");
        }
        for (number, (word, count)) in self.counts.iter().enumerate() {
            if number > 0 {
                f.write_str(", ")?;
            }
            match word {
                Word::Running => write!(f, "{count} running")?,
                Word::Degraded => write!(f, "{count} degraded")?,
                Word::Other(VmPhase::BackingOff) => write!(f, "{count} backing off")?,
                Word::Other(phase) => write!(f, "{count} {}", phase.to_string().to_lowercase())?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Condition;

    fn status(name: &str, phase: VmPhase, degraded: bool) -> (VmName, Status) {
        let name: VmName = name.parse().unwrap();
        let condition = Condition {
            kind: ConditionType::Degraded,
            status: if degraded { ConditionStatus::True } else { ConditionStatus::False },
            reason: String::new(),
            message: String::new(),
            last_transition_time: jiff::Timestamp::UNIX_EPOCH,
            observed_generation: None,
        };
        let value = serde_json::json!({
            "name": name, "uid": "9a0b4d60-55a8-5a52-8a09-b4ee9dc3d0c4", "phase": phase, "incarnation": 1, "restarts": 0,
            "since": "1970-01-01T00:00:00Z", "conditions": [condition], "updatedAt": "1970-01-01T00:00:00Z",
        });
        (name, serde_json::from_value(value).unwrap())
    }

    #[test]
    fn each_vm_is_counted_once_and_the_line_is_told_when_it_may_differ() {
        let mut tally = Tally::default();
        assert_eq!((tally.take_change(), tally.to_string()), (None, "no VMs".to_owned()));
        let all = [
            status("a", VmPhase::Running, false),
            status("b", VmPhase::BackingOff, true),
            status("c", VmPhase::Running, false),
            status("d", VmPhase::BackingOff, false),
            status("e", VmPhase::Stopped, false),
        ];
        for (name, status) in &all {
            tally.set(name, Some(status));
        }
        let line = "2 running, 1 degraded, 1 stopped, 1 backing off";
        assert_eq!(tally.take_change().as_deref(), Some(line));
        for (name, status) in &all {
            tally.set(name, Some(status));
        }
        assert_eq!(tally.take_change(), None, "the same again is no news");
        tally.set(&all[1].0, None);
        tally.set(&all[0].0, Some(&status("a", VmPhase::Unhealthy, true).1));
        assert_eq!(tally.take_change().as_deref(), Some("1 running, 1 degraded, 1 stopped, 1 backing off"));
    }
}
