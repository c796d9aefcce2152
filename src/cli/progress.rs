//! A pass as it goes: a live line on a terminal, plain lines elsewhere, nothing when nothing happens.

use std::io::{self, Write};

use super::{CliError, Term};
use crate::plan::{Hold, show};
use crate::reconcile::{self, Outcome};

/// Shows the steps of a pass.
pub(super) struct Progress<'a> {
    term: &'a Term,
    /// Whether the last line on the terminal is one that the next may overwrite.
    is_live: bool,
}

impl<'a> Progress<'a> {
    pub(super) fn new(term: &'a Term) -> Self {
        Self { term, is_live: false }
    }

    /// Shows one step. Progress goes to standard output as lines, and to the terminal as a line that changes.
    pub(super) fn take_in(&mut self, step: &reconcile::Progress) {
        match step {
            reconcile::Progress::Acting { vm, action } => self.live(&format!("{vm}: {action}")),
            reconcile::Progress::Waiting { vms, why } => {
                let more = if *vms > 1 { format!(" (and {} more)", vms - 1) } else { String::new() };
                self.live(&format!("waiting: {why}{more}"));
            }
            reconcile::Progress::Done { vm, action } => {
                self.line(&format!("{} {vm}: {action}", self.term.out.good("✓")));
            }
            reconcile::Progress::Failed { vm, error } => {
                self.line(&format!("{} {vm}: {error}", self.term.out.bad("✗")));
            }
        }
    }

    /// Says how the pass ended, if there is anything to say.
    pub(super) fn end(&mut self, outcome: &Outcome) -> Result<(), CliError> {
        self.clear();
        let out = self.term.out;
        let mut text = String::new();
        for problem in &outcome.problems {
            text += &format!("{} {}\n", out.bad("✗"), problem.one_line());
        }
        for (name, vm) in &outcome.plan.vms {
            for hold in vm.holds.iter().filter(|hold| !hold.is_at_rest() && !matches!(hold, Hold::InvalidManifest(_))) {
                text += &format!("{} {name}: {hold}\n", out.careful("!"));
            }
        }
        if let Some(digest) = &outcome.plan.digest {
            text += &format!(
                "Look at the deletions held back with `stead plan`; `stead approve {digest}` lets them through.\n"
            );
        }
        if outcome.timed_out {
            text += "The time ran out before all was done; `--timeout` gives it more.\n";
        }
        if outcome.changes > 0 {
            let changes = outcome.changes;
            let steps = if changes == 1 { "1 step".to_owned() } else { format!("{changes} steps") };
            text += &format!("Done in {steps}. Now: {}\n", show::summary(&outcome.plan));
        }
        self.term.print(text)?;
        Ok(())
    }

    fn live(&mut self, text: &str) {
        if !self.term.err.is_terminal {
            return;
        }
        let width = super::term::width().saturating_sub(1);
        let text: String = text.chars().take(width).collect();
        // A terminal that went away has nobody who looks.
        let _ = write!(io::stderr(), "\r\x1b[K{text}");
        let _ = io::stderr().flush();
        self.is_live = true;
    }

    fn line(&mut self, text: &str) {
        self.clear();
        let _ = self.term.print(format!("{text}\n"));
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_live) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
