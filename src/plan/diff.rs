//! The decision table: one VM, what it should be and what exists of it, to what to do.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use super::claims::Claims;
use super::gates::{self, Verdict};
use super::{Action, Hold, PersistReason, Policy, TeardownReason, VmPlan, disks, drift, fields, remember};
use crate::desired::{Declaration, Desired, Origin};
use crate::host::{GuestState, HostFacts};
use crate::names::VmName;
use crate::observed::{Fact, Guest, ObservedVm, Record, VmmProcess};
use crate::spec::{PowerState, RestartPolicy, UpdatePolicy, Vm, VmSpec, VmmChoice, VmmKind};
use crate::state::{ExitStatus, Handles, Ledger, Phase};
use crate::time::Now;

/// What a note begins with that tells of a broken manifest of a VM which had a good one.
pub const LAST_GOOD: &str = "its manifest is invalid, so its last good spec stays in force";

/// The grace of a VM whose spec nobody knows, in seconds: the manifest's default.
const UNKNOWN_SPEC_GRACE: u32 = 10;

/// What a decision about any VM goes by.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What should exist.
    pub desired: &'a Desired,
    /// Who uses which image. Asked only when a VM with disks is to be started, so that it may be worked out then.
    pub claims: &'a dyn Deref<Target = Claims>,
    /// Which VMMs can run here. Asked only when a VM is to be started.
    pub facts: &'a dyn Deref<Target = HostFacts>,
    /// Bounds and waits.
    pub policy: &'a Policy,
    /// The present moment.
    pub now: &'a Now,
}

/// What a VM should be, as its declarations and its ledger say.
enum Wanted {
    Vm { vm: Arc<Vm>, origin: Origin },
    Nothing(Hold),
    Absent,
}

impl Context<'_> {
    /// What to do about one VM. Costs the same however many there are.
    pub fn plan_vm(&self, name: &VmName, observed: &ObservedVm, verdict: Option<&Verdict>) -> VmPlan {
        let mut plan = VmPlan::default();
        if let Some(why) = &observed.unread {
            plan.holds.push(Hold::Unread(why.clone()));
            return plan;
        }
        plan.notes
            .extend(observed.ledger_flaw.iter().map(|flaw| format!("its ledger.json could not be trusted: {flaw}")));
        match self.wanted(name, observed, &mut plan) {
            Wanted::Vm { vm, origin } => self.keep(&vm, &origin, observed, &mut plan),
            Wanted::Nothing(hold) => self.keep_alive(observed, hold, &mut plan),
            Wanted::Absent => self.absent(observed, verdict, &mut plan),
        }
        plan
    }

    /// Settles which declaration is in force (design: the one already applied stays, a newcomer is refused).
    fn wanted(&self, name: &VmName, observed: &ObservedVm, plan: &mut VmPlan) -> Wanted {
        let Some(declarations) = self.desired.vms.get(name) else { return Wanted::Absent };
        let applied = gates::origin_of(observed);
        let is_of_owner = |d: &&Declaration| applied.is_some_and(|origin| origin.source == d.origin.source);
        let mut candidates: Vec<&Declaration> = declarations.iter().filter(is_of_owner).collect();
        if candidates.is_empty() {
            if let Some(wanted) = self.kept_for_owner(applied, declarations, observed, plan) {
                return wanted;
            }
            candidates = declarations.iter().collect();
        }
        let in_force = candidates.iter().copied().find(|declaration| Some(&declaration.origin) == applied);
        // A file that was renamed, or into which lines were put before the document, is still the one declaration.
        let chosen: &Declaration = match (in_force, candidates.as_slice()) {
            (Some(chosen), _) => chosen,
            (None, [chosen]) => chosen,
            (None, [first, rest @ ..]) => {
                let same = |other: &&&Declaration| other.vm.is_ok() && other.vm == first.vm;
                let has_its_path = |d: &&Declaration| applied.is_some_and(|origin| origin.path == d.origin.path);
                let same_file: Vec<_> = candidates.iter().copied().filter(has_its_path).collect();
                if let [moved] = same_file.as_slice() {
                    moved
                } else if rest.iter().all(|other| same(&other)) {
                    first
                } else {
                    let places: Vec<String> = declarations.iter().map(|d| d.origin.to_string()).collect();
                    let why = format!("it is declared {} times, differently: {}", places.len(), places.join(", "));
                    return match &observed.ledger.accepted {
                        Some(accepted) => {
                            plan.notes.push(format!("{why}; the last good declaration stays in force"));
                            Wanted::Vm { vm: Arc::clone(&accepted.vm), origin: accepted.origin.clone() }
                        }
                        None => Wanted::Nothing(Hold::Conflict(format!("{why}; remove all but one"))),
                    };
                }
            }
            (None, []) => return Wanted::Absent,
        };
        let others = declarations.iter().filter(|other| other.origin != chosen.origin);
        plan.notes.extend(others.map(|other| {
            format!("it is declared in {} too, which is refused: {} is in force", other.origin, chosen.origin)
        }));
        match (&chosen.vm, &observed.ledger.accepted) {
            (Ok(vm), _) => Wanted::Vm { vm: Arc::clone(vm), origin: chosen.origin.clone() },
            (Err(problems), Some(accepted)) => {
                plan.notes.extend(problems.iter().map(|problem| format!("{LAST_GOOD}: {}", problem.one_line())));
                Wanted::Vm { vm: Arc::clone(&accepted.vm), origin: accepted.origin.clone() }
            }
            (Err(problems), None) => {
                let why = problems.iter().map(crate::desired::Problem::one_line).collect::<Vec<_>>().join("; ");
                Wanted::Nothing(Hold::InvalidManifest(why))
            }
        }
    }

    /// What is in force of a VM that others declare while its own source cannot be read: as long as nobody knows whether that
    /// one declares it still, it is not handed over.
    fn kept_for_owner(
        &self,
        applied: Option<&Origin>,
        others: &[Declaration],
        observed: &ObservedVm,
        plan: &mut VmPlan,
    ) -> Option<Wanted> {
        let owner = &applied?.source;
        let gaps = &self.desired.sources.get(owner).filter(|source| !source.is_complete())?.incomplete;
        let Some(accepted) = &observed.ledger.accepted else {
            return Some(Wanted::Nothing(Hold::SourceIncomplete(gaps.clone())));
        };
        let places: Vec<String> =
            others.iter().map(|other| format!("{}: {}", other.origin.source, other.origin)).collect();
        plan.notes.push(format!(
            "its source {owner} cannot be read whole ({}), so its last good declaration stays in force, and {} is refused",
            gaps.join("; "),
            places.join(", "),
        ));
        Some(Wanted::Vm { vm: Arc::clone(&accepted.vm), origin: accepted.origin.clone() })
    }

    /// A VM that is declared, and whose spec is known.
    fn keep(&self, vm: &Arc<Vm>, origin: &Origin, observed: &ObservedVm, plan: &mut VmPlan) {
        let root = self.desired.sources.get(&origin.source).and_then(|source| source.root);
        let ledger = remember::next_ledger(observed, vm, origin, root, self.policy, self.now);
        match &observed.process {
            Fact::Unknown(why) => plan.holds.push(Hold::IdentityUnknown(why.clone())),
            Fact::Present(process) => self.alive(vm, origin, observed, process, &ledger, plan),
            Fact::Absent => self.dead(vm, origin, observed, &ledger, plan),
        }
        if vm.is_suspended() {
            suspend(observed, plan);
        }
        // A start is not kept waiting for the ledger: handles.json carries what it must know until then.
        let starts_now = matches!(plan.actions.first(), Some(Action::Start { .. }));
        if let Cow::Owned(ledger) = ledger
            && !starts_now
        {
            let why = remember::explain(&observed.ledger, &ledger);
            plan.actions.insert(0, Action::Record { ledger: Box::new(ledger), why });
        }
    }

    /// Its VMM lives and is ours.
    fn alive(
        &self,
        vm: &Arc<Vm>,
        origin: &Origin,
        observed: &ObservedVm,
        process: &VmmProcess,
        ledger: &Ledger,
        plan: &mut VmPlan,
    ) {
        let spec = &vm.spec;
        let grace_seconds = spec.termination_grace_period_seconds;
        let mut replace = |reason: TeardownReason, plan: &mut VmPlan| {
            let mut next = VmPlan::default();
            self.start(vm, origin, observed, ledger, &mut next);
            // A guest that runs is not stopped for one that could not start.
            let is_wish = matches!(reason, TeardownReason::SpecChanged(_) | TeardownReason::RestartRequested);
            if !(is_wish && next.holds.iter().any(Hold::is_unmet)) {
                plan.actions.push(Action::Teardown { reason, grace_seconds });
                plan.actions.append(&mut next.actions);
            }
            plan.holds.append(&mut next.holds);
            plan.wake = plan.wake.take().or(next.wake);
        };
        if is_stopping(observed, process) {
            return replace(TeardownReason::Resumed, plan);
        }
        let is_starting = is_starting(observed, process);
        if let Some(reason) = self.needs_persist(observed, process).filter(|_| !is_starting) {
            return plan.actions.push(Action::Persist { reason });
        }
        if spec.power_state == PowerState::Stopped {
            return plan.actions.push(Action::Teardown { reason: TeardownReason::Stopped, grace_seconds });
        }
        if ledger.restart_requested || remember::restart_annotated(vm, ledger) {
            return replace(TeardownReason::RestartRequested, plan);
        }
        let changed = drift::changes(vm, observed, process, plan);
        if !changed.is_empty() {
            match spec.update_policy {
                UpdatePolicy::Recreate => return replace(TeardownReason::SpecChanged(changed), plan),
                UpdatePolicy::OnRestart => plan.holds.push(Hold::OnRestart(changed)),
            }
        }
        match &observed.guest {
            Guest::Is(GuestState::ShutDown) => return replace(TeardownReason::GuestShutDown, plan),
            Guest::Is(GuestState::NotStarted) => {
                return self.not_running("its guest was not started", is_starting, observed, &mut replace, plan);
            }
            Guest::Silent(why) if is_starting => return self.not_running(why, true, observed, &mut replace, plan),
            Guest::Silent(why) => return plan.holds.push(Hold::Unhealthy(why.clone())),
            Guest::NoVmm => return plan.holds.push(Hold::IdentityUnknown("its VMM was not asked".to_owned())),
            Guest::Is(GuestState::Running | GuestState::Paused) if is_starting => {
                return plan.actions.push(Action::Persist { reason: PersistReason::Started });
            }
            Guest::Is(GuestState::Running) if spec.power_state == PowerState::Paused => {
                plan.actions.push(Action::Pause);
            }
            Guest::Is(GuestState::Paused) if spec.power_state == PowerState::Running => {
                plan.actions.push(Action::Resume);
            }
            Guest::Is(GuestState::Running | GuestState::Paused) => {}
        }
        drift::repair_taps(vm, observed, plan);
        drift::broken_snapshots(observed, plan);
    }

    /// Its VMM lives, and its guest does not run yet.
    fn not_running(
        &self,
        why: &str,
        is_starting: bool,
        observed: &ObservedVm,
        replace: &mut dyn FnMut(TeardownReason, &mut VmPlan),
        plan: &mut VmPlan,
    ) {
        let began = observed.record.handles().and_then(|handles| handles.began.as_ref());
        match began.map(|began| began.after(self.policy.start_timeout)) {
            Some(deadline) if is_starting && !self.now.is_past(&deadline) => {
                plan.holds.push(Hold::Starting);
                plan.wake = Some(deadline);
            }
            _ => replace(TeardownReason::NeverStarted(why.to_owned()), plan),
        }
    }

    /// Why the live process is not on record as it should be, if so.
    fn needs_persist(&self, observed: &ObservedVm, process: &VmmProcess) -> Option<PersistReason> {
        match &observed.record {
            Record::Missing => Some(PersistReason::RecordMissing),
            Record::Flawed(why) => Some(PersistReason::RecordFlawed(why.clone())),
            Record::Valid(handles) => {
                let is_same = handles.is_of(&process.process.identity, &self.now.boot_id)
                    && handles.incarnation == process.incarnation;
                (!is_same).then_some(PersistReason::RecordStale)
            }
        }
    }

    /// Its VMM is proven gone.
    fn dead(&self, vm: &Arc<Vm>, origin: &Origin, observed: &ObservedVm, ledger: &Ledger, plan: &mut VmPlan) {
        if has_leftovers(observed) {
            plan.actions
                .push(Action::Teardown { reason: reason_to_free(observed, vm.spec.power_state), grace_seconds: 0 });
        }
        self.start(vm, origin, observed, ledger, plan);
    }

    /// Starts the VM, unless something keeps it from being started.
    fn start(&self, vm: &Arc<Vm>, origin: &Origin, observed: &ObservedVm, ledger: &Ledger, plan: &mut VmPlan) {
        if vm.spec.power_state == PowerState::Stopped {
            return;
        }
        let booted = ledger.booted.as_ref().and_then(|booted| booted.spec.read().ok());
        // Another spec, or a person's word, is a reason to try anew.
        let is_as_before = booted.as_ref().is_none_or(|booted| fields::compare(booted, &vm.spec).is_empty());
        let is_asked = ledger.restart_requested || remember::restart_annotated(vm, ledger);
        if is_as_before
            && !is_asked
            && let Some(hold) = self.rests(vm, ledger, plan)
        {
            return plan.holds.push(hold);
        }
        let vmm = match self.choose_vmm(&vm.spec, observed, ledger) {
            Ok(vmm) => vmm,
            Err(why) => return plan.holds.push(Hold::Unmet(why)),
        };
        if let Some(why) = self.claims.conflict(self.desired, &vm.name, &vm.spec, booted.as_deref()) {
            return plan.holds.push(Hold::Unmet(why));
        }
        match disks::prepare(&vm.spec, vmm, observed, self.desired, self.facts) {
            Ok(steps) => {
                plan.actions.extend(steps.into_iter().map(|(disk, how)| Action::PrepareDisk { disk, how }));
            }
            Err(hold) => return plan.holds.push(hold),
        }
        let lived = observed.record.handles().map(|handles| handles.incarnation).unwrap_or_default();
        let live = observed.process.present().map(|process| process.incarnation).unwrap_or_default();
        let incarnation = ledger.incarnation.max(lived).max(live).next();
        plan.actions.push(Action::Start { vm: Arc::clone(vm), origin: origin.clone(), incarnation, vmm });
    }

    /// Why a VM whose last life ended by itself is not started now: it has finished, or it backs off.
    fn rests(&self, vm: &Vm, ledger: &Ledger, plan: &mut VmPlan) -> Option<Hold> {
        let exit =
            ledger.last_exit.as_ref().filter(|exit| !exit.requested && exit.incarnation == ledger.incarnation)?;
        let is_finished = match vm.spec.restart_policy {
            // A start that failed is no life that ended.
            _ if exit.status == ExitStatus::NeverRan => false,
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => exit.status.is_success(),
            RestartPolicy::Never => true,
        };
        if is_finished {
            return Some(Hold::Finished(exit.clone()));
        }
        let backoff = ledger.backoff.as_ref().filter(|backoff| !self.now.is_past(&backoff.until))?;
        plan.wake = Some(backoff.until.clone());
        Some(Hold::BackingOff { failures: backoff.failures, until: backoff.until.clone(), last: Some(exit.clone()) })
    }

    /// Which VMM runs it: the one asked for, else the one that `auto` was settled on, else the best there is.
    fn choose_vmm(&self, spec: &VmSpec, observed: &ObservedVm, ledger: &Ledger) -> Result<VmmKind, String> {
        let snapshot = spec.disks.iter().find(|disk| disk.is_written_snapshot());
        let firecracker = || match (&self.facts.firecracker, &self.facts.kvm, &self.facts.device_mapper, snapshot) {
            (Err(why), ..) | (_, Err(why), ..) => Err(why.clone()),
            // A disk that was made elsewhere says more about what is wrong than the lack of device-mapper here does.
            (.., Err(why), Some(disk)) if !observed.disks.contains_key(&disk.name) => {
                Err(disks::no_device_mapper(disk, why))
            }
            _ => Ok(VmmKind::Firecracker),
        };
        let qemu = || self.facts.qemu.as_ref().map(|_| VmmKind::Qemu).map_err(Clone::clone);
        match (spec.vmm, ledger.vmm) {
            (VmmChoice::Firecracker, _) | (VmmChoice::Auto, Some(VmmKind::Firecracker)) => firecracker(),
            (VmmChoice::Qemu, _) | (VmmChoice::Auto, Some(VmmKind::Qemu)) => qemu(),
            (VmmChoice::Auto, None) => firecracker().or_else(|no_firecracker| {
                qemu().map_err(|no_qemu| format!("no VMM runs here: {no_firecracker}; {no_qemu}"))
            }),
        }
    }

    /// A VM that is declared in a way that cannot be obeyed, and never was applied: what lives is recorded, and stays.
    fn keep_alive(&self, observed: &ObservedVm, hold: Hold, plan: &mut VmPlan) {
        match &observed.process {
            Fact::Unknown(why) => plan.holds.push(Hold::IdentityUnknown(why.clone())),
            Fact::Present(process) if is_stopping(observed, process) => {
                plan.actions.push(Action::Teardown { reason: TeardownReason::Resumed, grace_seconds: 0 });
            }
            Fact::Present(process) => {
                plan.actions.extend(self.needs_persist(observed, process).map(|reason| Action::Persist { reason }));
            }
            Fact::Absent if has_leftovers(observed) => {
                plan.actions.push(Action::Teardown { reason: TeardownReason::Died, grace_seconds: 0 });
            }
            Fact::Absent => {}
        }
        plan.holds.push(hold);
    }

    /// No manifest declares it.
    fn absent(&self, observed: &ObservedVm, verdict: Option<&Verdict>, plan: &mut VmPlan) {
        let accepted = observed.ledger.accepted.as_ref();
        let grace_seconds =
            accepted.map_or(UNKNOWN_SPEC_GRACE, |accepted| accepted.vm.spec.termination_grace_period_seconds);
        let process = match &observed.process {
            Fact::Unknown(why) => {
                plan.holds.push(Hold::IdentityUnknown(why.clone()));
                // An approval of the batch that it is in would delete it as soon as its identity is known.
                if let Some(Verdict::Hold(cap @ Hold::PruneCap { .. })) = verdict {
                    plan.holds.push(cap.clone());
                }
                return;
            }
            Fact::Present(process) => Some(process),
            Fact::Absent => None,
        };
        let reason = if observed.ledger.delete_requested {
            TeardownReason::DeleteRequested
        } else if gates::origin_of(observed)
            .is_some_and(|origin| self.desired.is_elsewhere(&origin.source, &observed.name))
        {
            TeardownReason::Elsewhere
        } else {
            TeardownReason::Absent
        };
        let policy = accepted.map(|accepted| accepted.vm.spec.deletion_policy).unwrap_or_default();
        let may_have_disks = !observed.disks.is_empty() || observed.disks_unknown.is_some();
        let disks = may_have_disks.then_some(policy);
        match verdict {
            Some(Verdict::Delete) => {
                let is_stopping = process.is_some_and(|process| is_stopping(observed, process));
                if process.is_some() || has_leftovers(observed) {
                    let reason = if is_stopping { TeardownReason::Resumed } else { reason };
                    plan.actions.push(Action::Teardown { reason, grace_seconds });
                    plan.actions.push(Action::Forget { disks });
                } else if !remember::is_forgotten(&observed.ledger) {
                    plan.actions.push(Action::Forget { disks });
                }
            }
            Some(Verdict::Unclaimed) if process.is_none() && !has_leftovers(observed) => {}
            Some(Verdict::Unclaimed) if process.is_none() => {
                plan.actions.push(Action::Teardown { reason: TeardownReason::Died, grace_seconds: 0 });
            }
            Some(Verdict::Unclaimed) => self.keep_alive(observed, Hold::Unclaimed, plan),
            Some(Verdict::Hold(hold)) => self.held(observed, process, hold.clone(), plan),
            // The gates have not heard of it yet.
            None if has_leftovers(observed) || process.is_some() || accepted.is_some() => {
                let until = self.now.deadline(self.policy.prune_delay);
                self.held(observed, process, Hold::PruneDelay(until), plan);
            }
            None => {}
        }
    }

    /// A gate holds its deletion back: it stays as it is. A live one stays on record, and one being stopped is stopped.
    fn held(&self, observed: &ObservedVm, process: Option<&VmmProcess>, hold: Hold, plan: &mut VmPlan) {
        if let Hold::PruneDelay(until) = &hold {
            plan.wake = Some(until.clone());
        }
        match process {
            Some(_) => self.keep_alive(observed, hold, plan),
            None => plan.holds.push(hold),
        }
    }
}

/// Leaves a VM alone: what is remembered of it is kept true, and nothing else is done. A teardown that was begun is finished.
fn suspend(observed: &ObservedVm, plan: &mut VmPlan) {
    let is_begun = observed.record.handles().is_some_and(|handles| handles.phase == Phase::Stopping);
    let is_left = |action: &Action| match action {
        Action::Record { .. } | Action::Persist { .. } => true,
        Action::Teardown { .. } => is_begun,
        _ => false,
    };
    plan.actions.retain(is_left);
    plan.holds.retain(|hold| matches!(hold, Hold::IdentityUnknown(_) | Hold::Starting));
    // Its guest is waited for, so that its record becomes true.
    plan.wake = plan.wake.take().filter(|_| plan.holds.contains(&Hold::Starting));
    plan.holds.push(Hold::Suspended);
}

/// Whether this life of the VM is being torn down already.
fn is_stopping(observed: &ObservedVm, process: &VmmProcess) -> bool {
    life(observed, process).is_some_and(|handles| handles.phase == Phase::Stopping)
}

/// Whether this life of the VM has begun and its guest was not yet seen to run.
fn is_starting(observed: &ObservedVm, process: &VmmProcess) -> bool {
    life(observed, process).is_some_and(|handles| handles.phase == Phase::Starting)
}

/// The record, if it is of this life.
pub(super) fn life<'a>(observed: &'a ObservedVm, process: &VmmProcess) -> Option<&'a Handles> {
    observed.record.handles().filter(|handles| handles.incarnation == process.incarnation)
}

/// Whether a dead VM left anything that is to be freed.
fn has_leftovers(observed: &ObservedVm) -> bool {
    let has_record = !matches!(observed.record, Record::Missing);
    has_record
        || !observed.leftover_files.is_empty()
        || observed.taps.values().any(|tap| tap.present().is_some())
        || observed.dm_devices.values().any(|dm| dm.present().is_some())
        || observed.loops.values().any(|device| device.present().is_some())
        || observed.cgroup.present().is_some()
}

fn reason_to_free(observed: &ObservedVm, power_state: PowerState) -> TeardownReason {
    match observed.record.handles().map(|handles| handles.phase) {
        Some(Phase::Stopping) => TeardownReason::Resumed,
        _ if power_state == PowerState::Stopped => TeardownReason::Stopped,
        _ => TeardownReason::Died,
    }
}
