//! The question that comes before an approval: exactly which deletions, and what each of them ends.

use super::text::{clean, wrap};
use crate::names::VmName;
use crate::observed::{Fact, ObservedVm};
use crate::plan::Hold;
use crate::reconcile::Preview;
use crate::spec::DeletionPolicy;

/// Where an approval stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Approval {
    /// What waits is being looked at.
    Looking,
    /// This waits. `seen` is how many lines of it were on the screen.
    Asked { held: Held, scroll: usize, seen: usize },
    /// The running stead was asked.
    Sent { digest: String },
    /// It could not be told what waits.
    Failed(String),
}

/// What the safety gates hold back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    /// What lets the deletions through, if there are any.
    pub digest: Option<String>,
    /// The deletions, each with what it ends.
    pub deletions: Vec<(VmName, String)>,
    /// Why they wait.
    pub why: String,
    /// What no approval lets through, each with the reason.
    pub others: Vec<(VmName, String)>,
}

impl Held {
    /// What of a plan waits at its gates.
    pub(super) fn of(preview: &Preview) -> Self {
        let mut held =
            Self { digest: preview.plan.digest.clone(), deletions: vec![], why: String::new(), others: vec![] };
        for (name, vm) in &preview.plan.vms {
            for hold in vm.holds.iter().filter(|hold| hold.is_gate()) {
                if matches!(hold, Hold::PruneCap { .. }) && held.digest.is_some() {
                    held.why = hold.to_string();
                    held.deletions.push((name.clone(), consequence(preview.observed.vms.get(name))));
                } else {
                    held.others.push((name.clone(), clean(&hold.to_string())));
                }
            }
        }
        held
    }

    /// All of it, in lines of at most `columns`. Nothing is cut off: what is approved must have been seen.
    pub(super) fn lines(&self, columns: usize) -> Vec<String> {
        let mut lines = Vec::new();
        match &self.digest {
            None => lines.push("No deletion waits for an approval.".to_owned()),
            Some(digest) => {
                let word = if self.deletions.len() == 1 { "VM" } else { "VMs" };
                lines.push(format!("An approval DELETES {} {word}:", self.deletions.len()));
                lines.push(String::new());
                let longest = self.deletions.iter().map(|(name, _)| name.as_str().len()).max().unwrap_or(0);
                lines.extend(self.deletions.iter().map(|(name, end)| format!("  - {name:longest$}  {end}")));
                lines.push(String::new());
                lines.push(format!("Why they wait: {}", clean(&self.why)));
                lines.push(format!("Digest: {digest}"));
                lines.push("Any change to what would be deleted voids the approval.".to_owned());
            }
        }
        if !self.others.is_empty() {
            lines.push(String::new());
            lines.push("Held, and not let through by an approval:".to_owned());
            lines.extend(self.others.iter().map(|(name, why)| format!("  ! {name}  {why}")));
        }
        lines.iter().flat_map(|line| wrap(line, columns)).map(str::to_owned).collect()
    }
}

/// What a deletion ends, and what becomes of the disks.
fn consequence(vm: Option<&ObservedVm>) -> String {
    let Some(vm) = vm else { return "not looked at".to_owned() };
    let process = match &vm.process {
        Fact::Present(vmm) => format!("stops {} (pid {})", vmm.vmm, vmm.process.identity.pid),
        Fact::Absent => "does not run".to_owned(),
        Fact::Unknown(_) => "cannot be told whether it runs".to_owned(),
    };
    let policy = vm.ledger.accepted.as_ref().map(|accepted| accepted.vm.spec.deletion_policy);
    let disks = match (vm.disks.len(), policy.unwrap_or_default()) {
        (0, _) => "no disks of its own",
        (_, DeletionPolicy::Retain) => "its disks stay",
        (_, DeletionPolicy::Delete) => "its disks go to the trash",
    };
    format!("{process}, {disks}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(deletions: usize) -> Held {
        let name = |number: usize| format!("vm-{number}").parse().unwrap();
        Held {
            digest: (deletions > 0).then(|| "3f9a1c".to_owned()),
            deletions: (0..deletions).map(|number| (name(number), "does not run, its disks stay".to_owned())).collect(),
            why: "deleting 3 of 4".to_owned(),
            others: vec![],
        }
    }

    #[test]
    fn the_question_names_every_vm_and_the_digest_however_narrow() {
        for columns in [2, 7, 20, 80] {
            let text = held(12).lines(columns).concat();
            for number in 0..12 {
                assert!(text.contains(&format!("- vm-{number}")), "{columns}");
            }
            assert!(text.contains("DELETES 12 VMs") && text.contains("Digest: 3f9a1c"), "{columns}: {text}");
        }
    }

    #[test]
    fn where_nothing_waits_nothing_is_asked() {
        assert_eq!(held(0).lines(80), ["No deletion waits for an approval."]);
    }
}
