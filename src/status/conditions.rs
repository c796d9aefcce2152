//! The conditions of a VM, from what is observed of it and what is planned for it.

use super::compute::StatusInput;
use super::{ConditionStatus, ConditionType, VmPhase};
use crate::observed::Record;
use crate::plan::{Action, Hold};
use crate::reasons::Reason;

/// A condition before it is known when it last flipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub kind: ConditionType,
    pub status: ConditionStatus,
    pub reason: Reason,
    pub message: String,
}

impl Verdict {
    fn new(kind: ConditionType, status: bool, reason: Reason, message: impl Into<String>) -> Self {
        let status = if status { ConditionStatus::True } else { ConditionStatus::False };
        Self { kind, status, reason, message: message.into() }
    }
}

/// Every condition of a VM, in the order of their types.
pub(super) fn verdicts(phase: VmPhase, input: &StatusInput<'_>) -> Vec<Verdict> {
    let mut all = vec![ready(phase, input), progressing(input), degraded(input)];
    all.extend(advisory(input));
    all
}

fn ready(phase: VmPhase, input: &StatusInput<'_>) -> Verdict {
    let kind = ConditionType::Ready;
    if phase == VmPhase::Unknown {
        let message = held(input, |hold| matches!(hold, Hold::Unread(_) | Hold::IdentityUnknown(_)));
        let reason = message.map_or(Reason::IdentityUnknown, Hold::why);
        let message = message.map_or_else(|| "cannot tell whether its VMM lives".to_owned(), ToString::to_string);
        return Verdict { kind, status: ConditionStatus::Unknown, reason, message };
    }
    if super::compute::guest_runs(input.observed) && phase != VmPhase::Starting {
        return Verdict::new(kind, true, Reason::GuestRunning, "the guest runs");
    }
    let (reason, message) = match phase {
        VmPhase::Paused => (Reason::Paused, "the guest is paused"),
        VmPhase::Stopped => (Reason::Stopped, "no VMM runs, as declared"),
        VmPhase::Starting => (Reason::Starting, "the guest is not yet seen to run"),
        VmPhase::Stopping => (Reason::Stopping, "it is being torn down"),
        VmPhase::BackingOff => (Reason::BackingOff, "it waits after failures"),
        VmPhase::Finished => (Reason::Finished, "it ended, and its restartPolicy lets it rest"),
        VmPhase::Unhealthy => (Reason::Unhealthy, "its VMM does not answer"),
        VmPhase::Invalid => (Reason::InvalidManifest, "its manifest cannot be used"),
        VmPhase::Pending => (Reason::Unmet, "something it needs is not there"),
        VmPhase::Dead => (Reason::Dead, "its VMM is dead"),
        VmPhase::Running | VmPhase::Unclaimed | VmPhase::Held | VmPhase::Unknown => {
            (Reason::GuestStopped, "no guest runs")
        }
    };
    Verdict::new(kind, false, reason, message)
}

fn progressing(input: &StatusInput<'_>) -> Verdict {
    let kind = ConditionType::Progressing;
    if let Some((reason, message)) = input.plan.actions.iter().find_map(under_way) {
        // How far it has come says more than what it is.
        let message = input.under_way.map_or(message, str::to_owned);
        return Verdict::new(kind, true, reason, message);
    }
    if let Record::Valid(handles) = &input.observed.record
        && let Some(stopping) = &handles.stopping
    {
        return Verdict::new(kind, true, Reason::TearingDown, stopping.reason.clone());
    }
    let waits = |hold: &Hold| matches!(hold, Hold::Starting | Hold::BackingOff { .. } | Hold::PruneDelay(_));
    match held(input, waits).or_else(|| input.plan.holds.first()) {
        Some(hold) => Verdict::new(kind, waits(hold), hold.why(), hold.to_string()),
        None => Verdict::new(kind, false, Reason::Converged, "it is as declared"),
    }
}

/// What an action is about, where it moves the VM.
fn under_way(action: &Action) -> Option<(Reason, String)> {
    match action {
        Action::Record { .. } | Action::Persist { .. } => None,
        Action::Start { incarnation, vmm, .. } => {
            Some((Reason::Starting, format!("to be started by {vmm}, life {incarnation}")))
        }
        Action::Teardown { reason, .. } => Some((Reason::TearingDown, reason.to_string())),
        Action::PrepareDisk { disk, how } => Some((Reason::PreparingDisk, format!("disk {}: {how}", disk.name))),
        Action::Forget { .. } => Some((Reason::Forgetting, "it was deleted".to_owned())),
        Action::Pause => Some((Reason::Pausing, "to be paused".to_owned())),
        Action::Resume => Some((Reason::Resuming, "to be resumed".to_owned())),
        Action::RepairTap { tap, bridge: Some(bridge) } => {
            Some((Reason::Repairing, format!("{tap} goes back to {bridge}")))
        }
        Action::RepairTap { tap, bridge: None } => Some((Reason::Repairing, format!("{tap} comes off its bridge"))),
    }
}

fn degraded(input: &StatusInput<'_>) -> Verdict {
    let kind = ConditionType::Degraded;
    // The first is the nearest to the cause; `describe` shows the others as holds and events.
    if let Some(error) = input.last_error {
        return Verdict::new(kind, true, Reason::ActionFailed, error);
    }
    if let Some(hold) = held(input, needs_attention) {
        return Verdict::new(kind, true, hold.why(), hold.to_string());
    }
    if let Record::Valid(handles) = &input.observed.record
        && !handles.blocked.is_empty()
    {
        let steps: Vec<_> = handles.blocked.iter().map(|(step, blocked)| format!("{step}: {}", blocked.why)).collect();
        return Verdict::new(
            kind,
            true,
            Reason::TeardownBlocked,
            format!("could not be freed yet: {}", steps.join("; ")),
        );
    }
    if let Record::Flawed(why) = &input.observed.record {
        return Verdict::new(kind, true, Reason::RecordFlawed, format!("its record cannot be trusted: {why}"));
    }
    Verdict::new(kind, false, Reason::AsExpected, "nothing is wrong")
}

fn advisory(input: &StatusInput<'_>) -> Option<Verdict> {
    let reason = if input.advisories.is_empty() { Reason::Note } else { Reason::KnownVulnerability };
    let told: Vec<&str> = input.advisories.iter().chain(&input.plan.notes).map(String::as_str).collect();
    (!told.is_empty()).then(|| Verdict::new(ConditionType::Advisory, true, reason, told.join("; ")))
}

fn held<'a>(input: &StatusInput<'a>, wanted: impl Fn(&Hold) -> bool) -> Option<&'a Hold> {
    input.plan.holds.iter().find(|hold| wanted(hold))
}

/// Whether a person should look at it; the others pass by themselves or are as that person declared.
fn needs_attention(hold: &Hold) -> bool {
    let passes = matches!(hold, Hold::Starting | Hold::PruneDelay(_) | Hold::OnRestart(_));
    !passes && !hold.is_at_rest()
}
