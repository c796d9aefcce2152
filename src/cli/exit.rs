//! Exit statuses, in one place.

use std::process::ExitCode;

use crate::plan::Plan;
use crate::reconcile::Outcome;

/// How a command ended. Scripts rely on the numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, or nothing to do.
    Converged = 0,
    /// Could not run, or bad input.
    Failed = 1,
    /// Finished, but a VM failed, is held or is backing off, or the time was up.
    Unconverged = 2,
    /// Changes are pending.
    Pending = 3,
    /// A safety gate refused.
    Gated = 4,
    /// Another stead works on this state (`EX_TEMPFAIL` of sysexits.h).
    Locked = 75,
    /// What it was told to use cannot be used, and the same again would end the same way (`EX_CONFIG` of sysexits.h): a
    /// service manager is not to try again until a person has mended it.
    Misconfigured = 78,
}

/// What an exit status follows from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending<'a> {
    /// A plan was shown.
    Shown(&'a Plan),
    /// A pass was made.
    Passed(&'a Outcome),
}

impl Exit {
    /// Each of them.
    pub(super) const ALL: [Self; 7] = [
        Self::Converged,
        Self::Failed,
        Self::Unconverged,
        Self::Pending,
        Self::Gated,
        Self::Locked,
        Self::Misconfigured,
    ];

    /// What it means.
    pub(super) fn meaning(self) -> &'static str {
        match self {
            Self::Converged => "Done, or nothing to do.",
            Self::Failed => "Could not run, or bad input. The error says what to do.",
            Self::Unconverged => {
                "Finished, but a VM failed, is held or is backing off, or the time was up; of `doctor`, a check failed."
            }
            Self::Pending => "Changes are pending (`plan`, `reconcile --dry-run`, `gc --dry-run`).",
            Self::Gated => "A safety gate refused: `stead plan` shows which, and the digest to approve.",
            Self::Locked => "Another stead works on this state: try again later.",
            Self::Misconfigured => {
                "A flag, a variable, the configuration file or the state's folder cannot be used. The error says what to mend."
            }
        }
    }

    /// The exit status of an ending. A gate comes first: it is what a person has to decide, and it stays until then.
    pub(super) fn of(ending: Ending<'_>) -> Self {
        let plan = match ending {
            Ending::Shown(plan) => plan,
            Ending::Passed(outcome) => &outcome.plan,
        };
        let mut holds = plan.vms.values().flat_map(|vm| &vm.holds);
        if holds.clone().any(crate::plan::Hold::is_gate) {
            return Self::Gated;
        }
        match ending {
            Ending::Shown(plan) if plan.is_empty() => Self::Converged,
            Ending::Shown(_) => Self::Pending,
            Ending::Passed(outcome) => {
                let Outcome { plan, changes: _, failures, problems, unsynced, timed_out } = outcome;
                let held = holds.any(|hold| !hold.is_at_rest());
                let is_read = problems.is_empty() && unsynced.is_empty();
                let settled = plan.is_empty() && failures.is_empty() && is_read && !*timed_out && !held;
                if settled { Self::Converged } else { Self::Unconverged }
            }
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Problem;
    use crate::plan::{Action, Hold, VmPlan};
    use crate::state::{ExitRecord, ExitStatus};
    use crate::time::{BootId, Deadline};

    fn plan(actions: Vec<Action>, holds: Vec<Hold>) -> Plan {
        let vm = VmPlan { actions, holds, notes: vec![], wake: None };
        Plan { vms: [("web".parse().unwrap(), vm)].into(), digest: None }
    }

    fn passed(plan: Plan) -> Outcome {
        Outcome { plan, ..Outcome::default() }
    }

    fn finished() -> Hold {
        let exit = ExitRecord {
            incarnation: crate::names::Incarnation(1),
            status: ExitStatus::Code(0),
            requested: false,
            message: None,
            at: jiff::Timestamp::UNIX_EPOCH,
        };
        Hold::Finished(exit)
    }

    fn backing_off() -> Hold {
        let until = Deadline { boot_id: BootId("b".into()), boot_ms: 1 };
        Hold::BackingOff { failures: 1, until, last: None }
    }

    #[test]
    fn a_pass_exits_with_what_is_left() {
        let gate = || Hold::PruneCap { deletions: 3, of: 3 };
        for (expected, outcome) in [
            (Exit::Converged, passed(Plan::default())),
            (Exit::Converged, Outcome { changes: 9, ..passed(plan(vec![], vec![])) }),
            (Exit::Converged, passed(plan(vec![], vec![finished(), Hold::Protected]))),
            (Exit::Unconverged, passed(plan(vec![], vec![backing_off()]))),
            (Exit::Unconverged, passed(plan(vec![], vec![finished(), Hold::Unhealthy("hung".into())]))),
            (Exit::Unconverged, passed(plan(vec![Action::Pause], vec![]))),
            (Exit::Unconverged, Outcome { timed_out: true, ..Outcome::default() }),
            (Exit::Unconverged, {
                let failures = [("web".parse().unwrap(), "disk full".to_owned())].into();
                Outcome { failures, ..Outcome::default() }
            }),
            (Exit::Unconverged, {
                let broken = Problem {
                    path: "a.yaml".into(),
                    place: None,
                    message: "not YAML".into(),
                    hint: None,
                    snippet: None,
                };
                Outcome { problems: vec![broken], ..Outcome::default() }
            }),
            (Exit::Gated, passed(plan(vec![], vec![gate()]))),
            (
                Exit::Gated,
                Outcome { timed_out: true, ..passed(plan(vec![Action::Pause], vec![backing_off(), gate()])) },
            ),
        ] {
            assert_eq!(Exit::of(Ending::Passed(&outcome)), expected, "{outcome:?}");
        }
    }

    #[test]
    fn a_plan_exits_with_what_it_would_do() {
        for (expected, plan) in [
            (Exit::Converged, Plan::default()),
            (Exit::Converged, plan(vec![], vec![backing_off()])),
            (Exit::Pending, plan(vec![Action::Pause], vec![])),
            (Exit::Gated, plan(vec![Action::Pause], vec![Hold::FolderReplaced])),
        ] {
            assert_eq!(Exit::of(Ending::Shown(&plan)), expected, "{plan:?}");
        }
    }

    #[test]
    fn the_numbers_are_those_that_scripts_know() {
        assert_eq!(Exit::ALL.map(|exit| exit as u8), [0, 1, 2, 3, 4, 75, 78]);
    }
}
