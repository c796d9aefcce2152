//! A VM's status, from what it was before and what is known now. Pure.

use jiff::Timestamp;

use super::{Condition, ConditionStatus, NewEvent, Status, VmPhase, conditions, events};
use crate::host::GuestState;
use crate::names::Incarnation;
use crate::observed::{Fact, Guest, ObservedVm, Record, VmmProcess};
use crate::plan::{Action, Hold, VmPlan};
use crate::spec::{PowerState, VmmKind};
use crate::state::Phase;
use crate::time::Now;

/// What a status follows from.
#[derive(Debug, Clone)]
pub struct StatusInput<'a> {
    /// What exists.
    pub observed: &'a ObservedVm,
    /// What is still to be done, and what is held.
    pub plan: &'a VmPlan,
    /// The generation of the declaration in force.
    pub generation: Option<u64>,
    /// What went wrong in this pass.
    pub last_error: Option<&'a str>,
    /// How far something has come that was begun and goes on.
    pub under_way: Option<&'a str>,
    /// Known holes of this VMM's version, where they apply.
    pub advisories: &'a [String],
}

/// What holds a VM back and should be known to people.
pub fn holds_of(plan: &VmPlan) -> Vec<String> {
    let worth_saying = |hold: &&Hold| {
        matches!(hold, Hold::Suspended) || (!hold.is_at_rest() && !matches!(hold, Hold::Starting | Hold::PruneDelay(_)))
    };
    plan.holds.iter().filter(worth_saying).map(ToString::to_string).collect()
}

/// The status of a VM now.
///
/// # Guarantees
/// - A condition's `lastTransitionTime` changes only when its status flips (Kubernetes API conventions).
/// - Where nothing but `updatedAt` would change, the previous status is returned as it was: a converged pass writes nothing.
pub fn compute(previous: Option<&Status>, input: &StatusInput<'_>, new_events: Vec<NewEvent>, now: &Now) -> Status {
    let observed = input.observed;
    let phase = phase(input);
    let process = observed.process.present();
    let incarnation = last_life(observed);
    let verdicts = conditions::verdicts(phase, input);
    let conditions = verdicts.into_iter().map(|verdict| {
        let before = previous.and_then(|status| status.condition(verdict.kind));
        let flipped_at = before.filter(|c| c.status == verdict.status).map(|c| c.last_transition_time);
        Condition {
            kind: verdict.kind,
            status: verdict.status,
            reason: verdict.reason.word().to_owned(),
            message: verdict.message,
            last_transition_time: flipped_at.unwrap_or(now.wall),
            observed_generation: input.generation,
        }
    });
    let unchanged = previous.filter(|status| (status.phase, status.incarnation) == (phase, incarnation));
    let history = previous.map(|status| status.events.clone()).unwrap_or_default();
    let mut status = Status {
        name: observed.name.clone(),
        uid: observed.ledger.uid,
        observed_generation: input.generation,
        phase,
        vmm: process.map(|process| process.vmm).or(observed.ledger.vmm),
        pid: process.map(|process| process.process.identity.pid),
        incarnation,
        restarts: observed.ledger.restarts,
        since: unchanged.map_or(now.wall, |status| status.since),
        conditions: conditions.collect(),
        holds: holds_of(input.plan),
        events: events::add(history, new_events, now.wall),
        updated_at: now.wall,
    };
    if let Some(previous) = previous {
        status.updated_at = previous.updated_at;
        if status != *previous {
            status.updated_at = now.wall;
        }
    }
    status
}

/// Everything in one word.
fn phase(input: &StatusInput<'_>) -> VmPhase {
    let held = |wanted: fn(&Hold) -> bool| input.plan.holds.iter().any(wanted);
    let acts = |wanted: fn(&Action) -> bool| input.plan.actions.iter().any(wanted);
    let starts = acts(|action| matches!(action, Action::Start { .. }));
    let stopping = acts(|action| matches!(action, Action::Teardown { .. })) || is_stopping(input.observed);
    match &input.observed.process {
        Fact::Unknown(_) => VmPhase::Unknown,
        Fact::Present(_) if stopping => VmPhase::Stopping,
        Fact::Present(_) => match alive(input.observed) {
            VmPhase::Unhealthy if held(|hold| matches!(hold, Hold::Starting)) => VmPhase::Starting,
            VmPhase::Running if held(|hold| matches!(hold, Hold::Starting)) => VmPhase::Starting,
            VmPhase::Running | VmPhase::Paused if held(|hold| matches!(hold, Hold::Unclaimed)) => VmPhase::Unclaimed,
            VmPhase::Running | VmPhase::Paused if held(keeps_undeclared) => VmPhase::Held,
            alive => alive,
        },
        Fact::Absent if held(|hold| matches!(hold, Hold::Unread(_))) => VmPhase::Unknown,
        Fact::Absent if held(|hold| matches!(hold, Hold::BackingOff { .. })) => VmPhase::BackingOff,
        Fact::Absent if held(|hold| matches!(hold, Hold::Finished(_))) => VmPhase::Finished,
        Fact::Absent if held(|hold| matches!(hold, Hold::InvalidManifest(_) | Hold::Conflict(_))) => VmPhase::Invalid,
        Fact::Absent if held(|hold| matches!(hold, Hold::Unmet(_))) => VmPhase::Pending,
        Fact::Absent if starts => VmPhase::Starting,
        Fact::Absent if stopping => VmPhase::Stopping,
        Fact::Absent if held(keeps_undeclared) => VmPhase::Held,
        Fact::Absent => at_rest(input.observed),
    }
}

/// A VM that no manifest declares any more is kept.
fn keeps_undeclared(hold: &Hold) -> bool {
    matches!(
        hold,
        Hold::SourceIncomplete(_) | Hold::Protected | Hold::KeptHere | Hold::FolderReplaced | Hold::PruneCap { .. }
    )
}

/// The word for a VM whose VMM lives, from its guest alone.
fn alive(observed: &ObservedVm) -> VmPhase {
    match &observed.guest {
        Guest::Is(GuestState::Running) => VmPhase::Running,
        Guest::Is(GuestState::Paused) => VmPhase::Paused,
        Guest::Is(GuestState::NotStarted) => VmPhase::Starting,
        Guest::Is(GuestState::ShutDown) => VmPhase::Stopping,
        Guest::Silent(_) | Guest::NoVmm => VmPhase::Unhealthy,
    }
}

/// The word for a VM whose VMM is proven absent, when no plan is at hand.
fn at_rest(observed: &ObservedVm) -> VmPhase {
    let wanted = observed.ledger.accepted.as_ref().map(|accepted| accepted.vm.spec.power_state);
    match wanted {
        Some(PowerState::Running | PowerState::Paused) => VmPhase::Dead,
        Some(PowerState::Stopped) | None => VmPhase::Stopped,
    }
}

fn is_stopping(observed: &ObservedVm) -> bool {
    observed.record.handles().is_some_and(|handles| handles.phase == Phase::Stopping)
}

/// The last life that anything tells of: that of the living VMM, of the record, or of the ledger.
fn last_life(observed: &ObservedVm) -> Incarnation {
    let recorded = observed.record.handles().map_or(Incarnation::default(), |handles| handles.incarnation);
    observed.process.present().map_or_else(|| recorded.max(observed.ledger.incarnation), |process| process.incarnation)
}

/// Whether a guest runs in a process proven ours.
pub(super) fn guest_runs(observed: &ObservedVm) -> bool {
    observed.process.present().is_some() && observed.guest == Guest::Is(GuestState::Running)
}

/// What `stead get` shows: what was just proven, and of what was recorded only what does not contradict it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Live {
    /// Everything in one word.
    pub phase: VmPhase,
    /// Whether its guest runs.
    pub ready: ConditionStatus,
    /// What runs it.
    pub vmm: Option<VmmKind>,
    /// The VMM's pid, while it lives.
    pub pid: Option<i32>,
    /// Its last life.
    pub incarnation: Incarnation,
    /// Since when it is so, as far as is known.
    pub since: Option<Timestamp>,
    /// What a person should know; empty when all is well.
    pub message: String,
}

/// Lays what was just seen over the last status.
pub fn live(status: Option<&Status>, observed: &ObservedVm, now: &Now) -> Live {
    let recorded = status.map(|status| status.phase);
    let (phase, seen) = match &observed.process {
        Fact::Unknown(why) => (VmPhase::Unknown, why.clone()),
        Fact::Present(_) => (live_phase(recorded, observed), silence(observed)),
        Fact::Absent => (dead_phase(recorded, observed), String::new()),
    };
    let ready = match &observed.process {
        Fact::Unknown(_) => ConditionStatus::Unknown,
        Fact::Present(_) if guest_runs(observed) && phase != VmPhase::Starting => ConditionStatus::True,
        Fact::Present(_) | Fact::Absent => ConditionStatus::False,
    };
    let incarnation = last_life(observed);
    let process: Option<&VmmProcess> = observed.process.present();
    let same = status.filter(|status| (status.phase, status.incarnation) == (phase, incarnation));
    Live {
        phase,
        ready,
        vmm: process.map(|process| process.vmm).or(observed.ledger.vmm),
        pid: process.map(|process| process.process.identity.pid),
        incarnation,
        since: same.map(|status| status.since).or_else(|| began(observed, now)),
        message: if seen.is_empty() { same.map_or("", |status| status.message()).to_owned() } else { seen },
    }
}

fn live_phase(recorded: Option<VmPhase>, observed: &ObservedVm) -> VmPhase {
    let handles = observed.record.handles();
    match alive(observed) {
        _ if is_stopping(observed) => VmPhase::Stopping,
        VmPhase::Running | VmPhase::Unhealthy if handles.is_some_and(|handles| handles.phase == Phase::Starting) => {
            VmPhase::Starting
        }
        // What only a plan can tell, and what is seen does not deny.
        VmPhase::Running | VmPhase::Paused => {
            let told = recorded.filter(|phase| matches!(phase, VmPhase::Held | VmPhase::Unclaimed));
            told.unwrap_or_else(|| alive(observed))
        }
        seen => seen,
    }
}

fn dead_phase(recorded: Option<VmPhase>, observed: &ObservedVm) -> VmPhase {
    match recorded {
        Some(
            rest @ (VmPhase::Stopped
            | VmPhase::Starting
            | VmPhase::Stopping
            | VmPhase::BackingOff
            | VmPhase::Finished
            | VmPhase::Held
            | VmPhase::Invalid
            | VmPhase::Pending
            | VmPhase::Dead),
        ) => rest,
        Some(VmPhase::Running | VmPhase::Paused | VmPhase::Unhealthy | VmPhase::Unclaimed) => VmPhase::Dead,
        Some(VmPhase::Unknown) | None => at_rest(observed),
    }
}

fn silence(observed: &ObservedVm) -> String {
    match &observed.guest {
        Guest::Silent(why) => format!("its VMM does not answer: {why}"),
        Guest::Is(_) | Guest::NoVmm => String::new(),
    }
}

/// When this life began, on the wall clock.
fn began(observed: &ObservedVm, now: &Now) -> Option<Timestamp> {
    let ago = now.since(observed.record.handles()?.began.as_ref()?)?;
    now.wall.checked_sub(jiff::SignedDuration::try_from(ago).ok()?).ok()
}

/// Whether a VM belongs in a list: one that was deleted leaves only its last incarnation behind.
pub fn is_listed(status: Option<&Status>, observed: &ObservedVm) -> bool {
    status.is_some()
        || !observed.process.is_absent()
        || observed.record != Record::Missing
        || observed.ledger.accepted.is_some()
        || observed.ledger_flaw.is_some()
}

#[cfg(test)]
mod tests;
