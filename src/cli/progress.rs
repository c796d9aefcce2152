//! What a pass is doing: one live line on a terminal, plain lines elsewhere, nothing at all where nothing changes.

use std::collections::BTreeMap;
use std::io::{self, Write};

use super::table::one_line;
use super::term::{Term, width};
use crate::names::VmName;
use crate::plan::Plan;
use crate::reconcile::{Outcome, Progress};

/// Tells of a pass. What was done goes to standard output; the live line and what went wrong to standard error, so that
/// cron can send one and drop the other.
pub(super) struct Reporter {
    term: Term,
    /// Whether the log tells what is done, and where it goes to nothing is to be said twice.
    is_logged: bool,
    /// What is being done now, by VM.
    acting: BTreeMap<VmName, String>,
    /// Whether the live line stands on the terminal.
    live: bool,
    /// The first error of writing to standard output; told once, at the end.
    failure: Option<io::Error>,
}

impl Reporter {
    pub(super) fn new(term: Term, is_logged: bool) -> Self {
        Self { term, is_logged, acting: BTreeMap::new(), live: false, failure: None }
    }

    /// Tells of one event.
    pub(super) fn tell(&mut self, event: Progress) {
        match event {
            Progress::Acting { vm, action } => {
                self.acting.insert(vm, action);
                self.draw(None);
            }
            Progress::Done { vm, action } => {
                self.acting.remove(&vm);
                if !self.is_logged {
                    self.say(&format!("{vm}: {action}"));
                }
                self.draw(None);
            }
            Progress::Failed { vm, error } => {
                self.acting.remove(&vm);
                // A log that is asked for errors alone leaves this out: an exit status of 2 needs its reason all the same.
                if !self.is_logged || !tracing::enabled!(target: "stead::reconcile", tracing::Level::WARN) {
                    let line = format!("{vm}: {} {}", self.term.err.bad("failed:"), one_line(&error));
                    self.complain(&line);
                }
                self.draw(None);
            }
            Progress::Waiting { vms, why } => self.draw(Some(&format!("waiting for {}: {why}", count(vms)))),
        }
    }

    /// Ends with one line that sums up, and what is left; nothing where nothing changed and all is well.
    pub(super) fn finish(&mut self, outcome: &Outcome) -> io::Result<()> {
        self.clear();
        for line in left(&outcome.plan) {
            self.complain(&line);
        }
        if outcome.timed_out {
            let line = format!("{} the time was up before everything was done", self.term.err.careful("warning:"));
            self.complain(&line);
        }
        if outcome.changes > 0 {
            let changes =
                if outcome.changes == 1 { "1 change".to_owned() } else { format!("{} changes", outcome.changes) };
            let line = match outcome.failures.len() {
                0 => format!("{changes}, {} as declared", self.term.out.good("done:")),
                failed => format!("{changes}, {} {} failed", self.term.out.bad("not done:"), count(failed)),
            };
            self.say(&line);
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    /// Writes a line to standard error, above the live one.
    pub(super) fn complain(&mut self, line: &str) {
        self.clear();
        let _ = writeln!(io::stderr(), "{line}");
    }

    /// Takes the live line off the terminal.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.live) {
            // Carriage return, erase to the end of the line (ECMA-48 CR and EL).
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn say(&mut self, line: &str) {
        self.clear();
        if let Err(error) = writeln!(io::stdout(), "{line}") {
            self.failure.get_or_insert(error);
        }
    }

    fn draw(&mut self, waiting: Option<&str>) {
        if !self.term.err.is_terminal {
            return;
        }
        self.clear();
        let line = match waiting {
            Some(why) if self.acting.is_empty() => why.to_owned(),
            _ => now_acting(&self.acting),
        };
        if line.is_empty() {
            return;
        }
        // A line that wraps could not be taken back.
        let line: String = line.chars().filter(|c| !c.is_control()).take(width() - 1).collect();
        let mut err = io::stderr();
        let _ = write!(err, "{line}").and_then(|()| err.flush());
        self.live = true;
    }
}

/// `2 VMs: db: start, web: teardown`.
fn now_acting(acting: &BTreeMap<VmName, String>) -> String {
    if acting.is_empty() {
        return String::new();
    }
    let each: Vec<_> = acting.iter().map(|(vm, action)| format!("{vm}: {action}")).collect();
    format!("{}: {}", count(acting.len()), each.join(", "))
}

/// What is not as declared, one line a VM.
fn left(plan: &Plan) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, vm) in &plan.vms {
        for hold in vm.holds.iter().filter(|hold| !hold.is_at_rest()) {
            lines.push(format!("{name}: {}", one_line(&hold.to_string())));
        }
    }
    if let Some(digest) = &plan.digest {
        lines.push(format!("to let these deletions through: stead approve {digest}"));
    }
    lines
}

fn count(vms: usize) -> String {
    if vms == 1 { "1 VM".to_owned() } else { format!("{vms} VMs") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Hold, VmPlan};

    #[test]
    fn the_live_line_names_who_is_worked_on() {
        let acting = [("web".parse().unwrap(), "start".to_owned())].into();
        assert_eq!(now_acting(&acting), "1 VM: web: start");
        assert_eq!(now_acting(&BTreeMap::new()), "");
    }

    #[test]
    fn what_is_left_names_the_digest_and_skips_what_is_at_rest() {
        let vm = |hold| VmPlan { actions: vec![], holds: vec![hold], notes: vec![], wake: None };
        let vms = [
            ("a".parse().unwrap(), vm(Hold::Protected)),
            ("b".parse().unwrap(), vm(Hold::PruneCap { deletions: 3, of: 4 })),
        ];
        let lines = left(&Plan { vms: vms.into(), digest: Some("abc".into()) });
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("b: deleting 3 of 4"), "{lines:?}");
        assert_eq!(lines[1], "to let these deletions through: stead approve abc");
    }
}
