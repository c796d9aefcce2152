//! A plan for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::{Action, Hold, Plan, VmPlan};

/// A plan as text: a line for each action and each hold, and a summary. VMs with nothing to say are only counted.
pub fn text(plan: &Plan, color: bool) -> String {
    let paint = |code: &str, text: &str| if color { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() };
    let width = plan.vms.iter().filter(|(_, vm)| has_news(vm)).map(|(name, _)| name.as_str().len()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, vm) in plan.vms.iter().filter(|(_, vm)| has_news(vm)) {
        for action in &vm.actions {
            let (sign, code) = sign(action);
            let _ = writeln!(out, "{} {name:width$}  {action}", paint(code, sign));
        }
        for hold in &vm.holds {
            let _ = writeln!(out, "{} {name:width$}  held: {hold}", paint("33", "!"));
        }
        for note in &vm.notes {
            let _ = writeln!(out, "{} {name:width$}  {note}", paint("33", "!"));
        }
    }
    if let Some(digest) = &plan.digest {
        let _ = writeln!(out, "To let the deletions through that the prune cap holds back: stead approve {digest}");
    }
    let _ = writeln!(out, "{}", summary(plan));
    out
}

/// How many VMs what is to be done with.
pub fn summary(plan: &Plan) -> String {
    let count = |matches: &dyn Fn(&VmPlan) -> bool| plan.vms.values().filter(|vm| matches(vm)).count();
    let has = |vm: &VmPlan, kind: &str| vm.actions.iter().any(|action| action.kind() == kind);
    let replaced = count(&|vm| has(vm, "start") && has(vm, "teardown"));
    let started = count(&|vm| has(vm, "start")) - replaced;
    let torn_down = count(&|vm| has(vm, "teardown")) - replaced;
    let other = count(&|vm| !vm.actions.is_empty() && !has(vm, "start") && !has(vm, "teardown"));
    let held = count(&|vm| vm.holds.iter().any(|hold| !hold.is_at_rest()));
    let unchanged = count(&|vm| vm.actions.is_empty() && vm.holds.iter().all(Hold::is_at_rest));
    let counts = [
        (started, "to start"),
        (replaced, "to replace"),
        (torn_down, "to tear down"),
        (other, "to record or adjust"),
        (held, "held"),
        (unchanged, "unchanged"),
    ];
    let said: Vec<String> =
        counts.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
    if said.is_empty() { "No VM is declared or known.".to_owned() } else { format!("{}.", said.join(", ")) }
}

/// A plan as JSON: `{"vms": [{"name", "actions": [{"action", "description"}], "holds": [{"reason", "message", "gate"}],
/// "notes", "digest"}], "approve"}`; `digest` is by what `stead events` names these actions, or null where there are none, and
/// `approve` the digest for `stead approve`, or null.
pub fn json(plan: &Plan) -> Value {
    let vm = |(name, vm): (&crate::names::VmName, &VmPlan)| {
        let action = |action: &Action| json!({"action": action.kind(), "description": action.to_string()});
        let hold = |hold: &Hold| json!({"reason": hold.reason(), "message": hold.to_string(), "gate": hold.is_gate()});
        json!({
            "name": name,
            "actions": vm.actions.iter().map(action).collect::<Vec<_>>(),
            "holds": vm.holds.iter().map(hold).collect::<Vec<_>>(),
            "notes": vm.notes,
            "digest": (!vm.actions.is_empty()).then(|| vm.digest(name)),
        })
    };
    json!({"vms": plan.vms.iter().map(vm).collect::<Vec<_>>(), "approve": plan.digest})
}

fn has_news(vm: &VmPlan) -> bool {
    !vm.actions.is_empty() || !vm.holds.is_empty() || !vm.notes.is_empty()
}

fn sign(action: &Action) -> (&'static str, &'static str) {
    match action {
        Action::Start { .. } => ("+", "32"),
        Action::Teardown { .. } | Action::Forget { .. } => ("-", "31"),
        Action::Record { .. }
        | Action::Persist { .. }
        | Action::PrepareDisk { .. }
        | Action::Pause
        | Action::Resume
        | Action::RepairTap { .. } => ("~", "36"),
    }
}
