//! One step of the model: what the loop, a worker, the host or misfortune does next. What to do is decided by stead's own
//! code; here its effects happen, one by one, in the order of `src/act/`.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use stead::observed::{Fact, ObservedVm};
use stead::plan::claims::Claims;
use stead::plan::{Action as PlanAction, Context, VmPlan};
use stead::reconcile::agenda::{Agenda, Report, wake_after};
use stead::wakeups::Reason;

use crate::real::{self, TICK, fixed};
use crate::state::{
    Breach, Decl, Effect, File, Folder, Guest, HIGHEST, Handles, Ledger, Phase, Seen, Slot, State, Stuck, Turn, Vm,
    Vmm, memory,
};
use crate::{Mutant, Rules};

/// How a look turns out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sight {
    Clear,
    /// It cannot be told whether its VMM lives.
    Unknown,
    /// Its files could not be read just now.
    Unread,
}

/// A look, and what it leads to: the steps of one action, or the end of the turn.
struct Look {
    effects: Vec<Effect>,
    observed: ObservedVm,
    plan: VmPlan,
    wake: Option<Duration>,
}

impl Rules {
    fn agenda<T>(&self, state: &mut State, first: usize, change: impl FnOnce(&mut Agenda) -> T) -> Option<T> {
        let daemon = state.daemon.as_ref()?;
        let mut agenda = real::agenda_of(daemon, first, self.mutant == Some(Mutant::GapsHidden));
        let result = change(&mut agenda);
        real::take_agenda(&agenda, state);
        Some(result)
    }

    /// The folder is listed; `event` tells whether something is known to have happened in it.
    pub fn list(&self, state: &mut State, event: bool) {
        let manifests = [state.vms[0].manifest, state.vms[1].manifest];
        let listed = real::desired(manifests, state.folder, self.mutant == Some(Mutant::GapsHidden));
        let gates = real::real_gates(&state.vms);
        let now = &fixed().now;
        self.agenda(state, 0, |agenda| {
            if event { agenda.list(listed, &gates, now) } else { agenda.list_again(listed, &gates, now) }
        });
        Self::note_listing(state, manifests);
    }

    fn note_listing(state: &mut State, manifests: [Option<Decl>; 2]) {
        let folder = state.folder;
        let Some(daemon) = &mut state.daemon else { return };
        let listed = if folder == Folder::Sound { manifests } else { [None; 2] };
        daemon.listing = (listed, folder);
        for vm in &mut state.vms {
            if folder == Folder::Sound {
                vm.missing = if vm.manifest.is_none() { Some(vm.missing.unwrap_or(0)) } else { None };
            }
        }
    }

    /// Everything is looked at.
    pub fn wake_all(&self, state: &mut State, reason: Reason) {
        let has_folder = |vm: &Vm| vm.handles != File::Missing || vm.ledger != File::Missing || vm.has_lived;
        let recorded: BTreeSet<_> = fixed()
            .names
            .iter()
            .zip(&state.vms)
            .filter(|(_, vm)| has_folder(vm))
            .map(|(name, _)| name.clone())
            .collect();
        self.agenda(state, 0, |agenda| agenda.wake_all(recorded, reason));
    }

    /// A waiting VM is given its turn, and looked at.
    pub fn dispatch(&self, state: &mut State, index: usize, sight: Sight) {
        let (name, now) = (&fixed().names[index], &fixed().now);
        let taken = self.agenda(state, index, |agenda| {
            let taken = agenda.wakeups.take(fixed().instant);
            assert_eq!(taken.map(|(taken, _)| taken).as_ref(), Some(name));
            agenda.wants_listing(name, now)
        });
        if Self::turn(state, index).is_some() {
            state.breach = Some(Breach::TwoWorkers);
            return;
        }
        if taken == Some(true) {
            self.list(state, false);
        }
        let gates = real::real_gates(&state.vms);
        let verdicts = self.agenda(state, index, |agenda| {
            (!agenda.desired().vms.contains_key(name)).then(|| agenda.verdicts(&gates, now))
        });
        let verdicts = verdicts.flatten().unwrap_or_default();
        if let Some(commit) = &verdicts.commit {
            real::take_gates(commit, &mut state.vms);
        }
        let Some(daemon) = &mut state.daemon else { return };
        let (manifests, folder) = daemon.listing;
        let verdict = real::small_verdict(verdicts.of(name));
        daemon.slots[index].turn = Some(Turn { manifest: manifests[index], folder, verdict, effects: Vec::new() });
        self.look(state, index, sight);
    }

    fn turn(state: &State, index: usize) -> Option<&Turn> {
        state.daemon.as_ref()?.slots[index].turn.as_ref()
    }

    /// A worker looks, plans, and either begins an action or ends its turn.
    pub fn look(&self, state: &mut State, index: usize, sight: Sight) {
        let sight = if state.stuck == Some(Stuck::Blind(index)) { Sight::Unknown } else { sight };
        let Some(turn) = Self::turn(state, index).cloned() else { return };
        let vm = state.vms[index];
        if let Some(slot) = slot(state, index)
            && sight == Sight::Clear
        {
            slot.is_watched = vm.vmm.is_some();
        }
        let look = self.plan(index, &vm, &turn, sight);
        if look.effects.is_empty() {
            let (observed, plan, wake) = (look.observed.clone(), look.plan.clone(), look.wake);
            return self.end_turn(state, index, observed, plan, wake);
        }
        let stops = look.effects.iter().any(|effect| matches!(effect, Effect::Ask(_) | Effect::Kill(_)));
        if stops && !is_justified(&vm, &turn) {
            state.breach = Some(Breach::Unjustified);
        }
        let is_current = turn.folder == state.folder && turn.folder == Folder::Sound && turn.manifest == vm.manifest;
        if is_current && sight == Sight::Clear && state.is_converged(index) {
            state.breach = Some(Breach::EffectAtRest);
        }
        if let Some(turn) = slot(state, index).and_then(|slot| slot.turn.as_mut()) {
            turn.effects.clone_from(&look.effects);
        }
    }

    /// What stead's core says of a VM like this. It is asked once for each such VM.
    fn plan(&self, index: usize, vm: &Vm, turn: &Turn, sight: Sight) -> Rc<Look> {
        type Asked = (usize, Vm, Turn, Sight, Option<Mutant>);
        thread_local!(static KNOWN: RefCell<HashMap<Asked, Rc<Look>>> = RefCell::default());
        let asked_of = Vm {
            manifest: None,
            is_spared: false,
            handles_before: File::Missing,
            ledger_before: File::Missing,
            missing: None,
            let_through: None,
            ..*vm
        };
        let asked = (index, asked_of, turn.clone(), sight, self.mutant);
        if let Some(look) = KNOWN.with_borrow(|known| known.get(&asked).cloned()) {
            return look;
        }
        let look = Rc::new(self.ask(index, vm, turn, sight));
        KNOWN.with_borrow_mut(|known| known.insert(asked, Rc::clone(&look)));
        look
    }

    fn ask(&self, index: usize, vm: &Vm, turn: &Turn, sight: Sight) -> Look {
        let fixed = fixed();
        let mut observed = real::observe(index, vm);
        // A VMM that no record names is known by the lock it holds.
        let is_recorded = vm.handles.valid().is_some_and(|handles| handles.has_pid);
        let is_overlooked = self.mutant == Some(Mutant::LockIgnored) && !is_recorded;
        match sight {
            Sight::Clear if is_overlooked => observed.process = Fact::Absent,
            Sight::Unknown if self.mutant == Some(Mutant::UnknownIsAbsent) => observed.process = Fact::Absent,
            Sight::Unknown => observed.process = Fact::Unknown("nobody knows".to_owned()),
            Sight::Unread => observed.unread = Some("handles.json: an error of the disk".to_owned()),
            Sight::Clear => {}
        }
        let desired = real::desired(
            std::array::from_fn(|other| turn.manifest.filter(|_| other == index)),
            turn.folder,
            self.mutant == Some(Mutant::GapsHidden),
        );
        let claims = Box::<Claims>::default();
        let claims: &dyn Deref<Target = Claims> = &claims;
        let context =
            Context { desired: &desired, claims, facts: &&fixed.facts, policy: &fixed.policy, now: &fixed.now };
        let verdict = real::real_verdict(turn.verdict);
        let plan = context.plan_vm(&fixed.names[index], &observed, verdict.as_ref());
        let effects = plan.actions.first().map(|action| self.effects(index, vm, &observed, action)).unwrap_or_default();
        let wake = wake_after(&plan, &observed, &fixed.now);
        Look { effects, observed, plan, wake }
    }

    /// The steps of an action, in the order of `src/act/`.
    fn effects(&self, index: usize, vm: &Vm, observed: &ObservedVm, action: &PlanAction) -> Vec<Effect> {
        let mut effects = Vec::new();
        let aside = |flawed: bool, drop: Effect| flawed.then_some(drop);
        match action {
            PlanAction::Record { ledger, .. } => {
                effects.extend(aside(vm.ledger == File::Flawed, Effect::DropLedger));
                effects.push(Effect::WriteLedger(real::small_ledger(index, ledger)));
            }
            PlanAction::Forget { .. } => {
                effects.extend(aside(vm.ledger == File::Flawed, Effect::DropLedger));
                let incarnation = real::small_ledger(index, &observed.ledger).incarnation;
                effects.push(Effect::WriteLedger(Ledger { incarnation, ..Ledger::default() }));
            }
            PlanAction::Persist { .. } => {
                effects.extend(aside(vm.handles == File::Flawed, Effect::DropHandles));
                let vmm = vm.vmm.expect("only what lives is persisted");
                effects.push(Effect::WriteHandles(record_of(index, vm, observed, &vmm, Phase::Running)));
            }
            PlanAction::Start { vm: declared, incarnation, .. } => {
                let spec = [Decl::A, Decl::B, Decl::Paused, Decl::Stopped];
                let spec = spec.into_iter().find(|decl| fixed().vm(index, *decl) == declared).expect("it is declared");
                let incarnation = u8::try_from(incarnation.0).unwrap();
                let phase = Phase::Starting;
                let spec_known = Some(spec);
                let intent = Handles {
                    incarnation,
                    phase,
                    spec: spec_known,
                    has_origin: true,
                    has_pid: false,
                    began: 0,
                    grace: 0,
                };
                effects.extend([Effect::WriteHandles(intent), Effect::MakeObjects(incarnation)]);
                effects.push(Effect::Spawn(incarnation, spec));
                effects.push(Effect::WriteHandles(Handles { has_pid: true, ..intent }));
                if self.mutant == Some(Mutant::EffectFirst) {
                    effects.swap(0, 1);
                }
            }
            PlanAction::Teardown { grace_seconds, .. } => {
                let later = Effect::Later(real::seen_of(observed));
                if let Some(vmm) = vm.vmm.filter(|_| observed.process.present().is_some()) {
                    let begun = vm
                        .handles
                        .valid()
                        .filter(|handles| handles.incarnation == vmm.incarnation && handles.phase == Phase::Stopping);
                    let handles = begun.unwrap_or_else(|| {
                        effects.extend(aside(vm.handles == File::Flawed, Effect::DropHandles));
                        let record = record_of(index, vm, observed, &vmm, Phase::Stopping);
                        let grace = Duration::from_secs((*grace_seconds).into()).as_millis().div_ceil(TICK.as_millis());
                        let handles = Handles { grace: u8::try_from(grace).unwrap(), ..record };
                        effects.push(Effect::WriteHandles(handles));
                        handles
                    });
                    let (ask, kill) = (Effect::Ask(vmm.incarnation), Effect::Kill(vmm.incarnation));
                    effects.extend([if handles.grace == 0 { kill } else { ask }, later]);
                } else {
                    effects.extend(vm.objects.then_some(Effect::FreeObjects));
                    let lived = vm.handles.valid().map_or(0, |handles| handles.incarnation);
                    let ledger = real::small_ledger(index, &observed.ledger);
                    if ledger.incarnation < lived {
                        effects.extend(aside(vm.ledger == File::Flawed, Effect::DropLedger));
                        effects.push(Effect::WriteLedger(Ledger { incarnation: lived, ..ledger }));
                    }
                    effects.extend((vm.handles != File::Missing).then_some(Effect::DropHandles));
                }
            }
            PlanAction::Pause => effects.push(Effect::Halt(true)),
            PlanAction::Resume => effects.push(Effect::Halt(false)),
            PlanAction::PrepareDisk { .. } | PlanAction::RepairTap { .. } => panic!("not in this model: {action:?}"),
        }
        assert!(!effects.is_empty(), "an action without an effect: {action:?} of {vm:?}");
        effects
    }

    /// The next effect of a worker's action happens; after the last it looks again.
    pub fn act(&self, state: &mut State, index: usize, sight: Sight) {
        let Some(turn) = slot(state, index).and_then(|slot| slot.turn.as_mut()) else { return };
        if turn.effects.is_empty() {
            return self.look(state, index, sight);
        }
        let effect = turn.effects.remove(0);
        let vm = &mut state.vms[index];
        let is_on_record = |phase: Phase, incarnation: u8, vm: &Vm| {
            vm.handles.valid().is_some_and(|handles| handles.phase == phase && handles.incarnation == incarnation)
        };
        match effect {
            Effect::WriteHandles(handles) => {
                vm.handles_before = std::mem::replace(&mut vm.handles, File::Valid(handles));
                if let Some(vmm) = vm.vmm.as_mut().filter(|vmm| vmm.incarnation == handles.incarnation) {
                    vmm.doomed |= handles.phase == Phase::Stopping;
                }
            }
            Effect::DropHandles => vm.handles_before = std::mem::replace(&mut vm.handles, File::Missing),
            Effect::WriteLedger(ledger) => vm.ledger_before = std::mem::replace(&mut vm.ledger, File::Valid(ledger)),
            Effect::DropLedger => vm.ledger_before = std::mem::replace(&mut vm.ledger, File::Missing),
            Effect::MakeObjects(incarnation) if is_on_record(Phase::Starting, incarnation, vm) => vm.objects = true,
            Effect::Spawn(incarnation, spec) if is_on_record(Phase::Starting, incarnation, vm) => {
                state.breach = spawn(vm, incarnation, spec);
                let life = vm.vmm.map_or(incarnation, |vmm| vmm.incarnation);
                let rest = slot(state, index).and_then(|slot| slot.turn.as_mut()?.effects.first_mut());
                if let Some(Effect::WriteHandles(handles)) = rest {
                    handles.incarnation = life;
                }
            }
            Effect::MakeObjects(_) | Effect::Spawn(..) => state.breach = Some(Breach::NoIntent),
            Effect::FreeObjects => {
                vm.objects = false;
                if vm.vmm.is_some() {
                    state.breach = Some(Breach::FreedUnderVmm);
                }
            }
            Effect::Ask(incarnation) | Effect::Kill(incarnation) => {
                if !is_on_record(Phase::Stopping, incarnation, vm) {
                    state.breach = Some(Breach::NoIntent);
                } else if vm.vmm.is_some_and(|vmm| vmm.incarnation == incarnation) {
                    if effect == Effect::Kill(incarnation) {
                        self.vmm_ends(state, index);
                    } else if let Some(vmm) = &mut vm.vmm {
                        vmm.asked = true;
                        if vmm.guest == Guest::Paused {
                            vmm.guest = Guest::Running;
                        }
                    }
                }
            }
            Effect::Halt(halt) => {
                if let Some(vmm) = &mut vm.vmm {
                    vmm.guest = if halt { Guest::Paused } else { Guest::Running };
                }
            }
            Effect::Later(seen) => self.end_later(state, index, seen),
        }
    }

    fn end_later(&self, state: &mut State, index: usize, seen: Seen) {
        // What was begun is not through, whatever it was: such a VM is not forgotten.
        let plan = VmPlan { holds: vec![stead::plan::Hold::Starting], ..VmPlan::default() };
        self.end_turn(state, index, real::seen_vm(index, seen), plan, Some(TICK));
    }

    fn end_turn(&self, state: &mut State, index: usize, observed: ObservedVm, plan: VmPlan, wake: Option<Duration>) {
        let name = fixed().names[index].clone();
        let report = Report { observed, plan, changes: 0, failure: None, wake, under_way: None };
        self.agenda(state, 0, |agenda| agenda.end_turn(name, report, fixed().instant));
        if let Some(slot) = slot(state, index) {
            slot.turn = None;
        }
    }

    /// A VMM is gone, however that came about; the kernel tells whoever watches it.
    pub fn vmm_ends(&self, state: &mut State, index: usize) {
        state.vms[index].vmm = None;
        let is_watched = slot(state, index).is_some_and(|slot| std::mem::take(&mut slot.is_watched));
        if is_watched && self.mutant != Some(Mutant::DeafToExits) {
            self.agenda(state, 0, |agenda| agenda.wakeups.wake(&fixed().names[index], Reason::Exited));
        }
    }

    /// A tick of the clock passes.
    pub fn tick(&self, state: &mut State) {
        for vm in &mut state.vms {
            for handles in [&mut vm.handles, &mut vm.handles_before] {
                if let File::Valid(handles) = handles {
                    (handles.began, handles.grace) = (handles.began + 1, handles.grace.saturating_sub(1));
                }
            }
            for ledger in [&mut vm.ledger, &mut vm.ledger_before] {
                if let File::Valid(ledger) = ledger {
                    ledger.backoff = ledger.backoff.saturating_sub(1);
                }
            }
            vm.missing = vm.missing.map(|ticks| ticks + 1);
            vm.let_through = vm.let_through.map(|ticks| ticks + 1);
        }
        if let Some(daemon) = &mut state.daemon {
            daemon.listed += 1;
            for slot in &mut daemon.slots {
                slot.missing_since = slot.missing_since.map(|ticks| ticks + 1);
                slot.deadline = slot.deadline.map(|ticks| ticks.saturating_sub(1));
            }
        }
        self.agenda(state, 0, |agenda| agenda.wakeups.promote(fixed().instant));
    }
}

pub fn slot(state: &mut State, index: usize) -> Option<&mut Slot> {
    state.daemon.as_mut().map(|daemon| &mut daemon.slots[index])
}

fn spawn(vm: &mut Vm, incarnation: u8, spec: Decl) -> Option<Breach> {
    if vm.vmm.is_some() {
        return Some(Breach::TwoVmms);
    }
    let has_fallen = vm.has_lived && incarnation <= HIGHEST && !vm.has_rotted;
    vm.vmm = Some(Vmm { incarnation, spec, guest: Guest::Booting, asked: false, doomed: false });
    // All lives are told by how far they are from the highest.
    let shift = if vm.has_lived { incarnation.saturating_sub(HIGHEST) } else { 0 };
    let lift = if vm.has_lived { 0 } else { HIGHEST - incarnation };
    let moved = |life: u8| if life == 0 { 0 } else { life.saturating_sub(shift).max(1) + lift };
    for handles in [&mut vm.handles, &mut vm.handles_before] {
        if let File::Valid(handles) = handles {
            handles.incarnation = moved(handles.incarnation);
        }
    }
    for ledger in [&mut vm.ledger, &mut vm.ledger_before] {
        if let File::Valid(ledger) = ledger {
            ledger.incarnation = moved(ledger.incarnation);
            ledger.booted = ledger.booted.map(|(life, spec)| (moved(life), spec));
            ledger.exit = ledger.exit.map(|(life, requested)| (moved(life), requested));
        }
    }
    if let Some(vmm) = &mut vm.vmm {
        vmm.incarnation = moved(vmm.incarnation);
    }
    vm.has_lived = true;
    has_fallen.then_some(Breach::IncarnationFell)
}

/// What is written of a live process, as `src/act/persist.rs` puts it together.
fn record_of(index: usize, vm: &Vm, observed: &ObservedVm, vmm: &Vmm, phase: Phase) -> Handles {
    let sound = vm.handles.valid().filter(|handles| handles.incarnation == vmm.incarnation);
    let ledger = real::small_ledger(index, &observed.ledger);
    let booted = ledger.booted.filter(|(life, _)| *life == vmm.incarnation).map(|(_, spec)| spec);
    let anew = Handles {
        incarnation: vmm.incarnation,
        phase,
        spec: booted,
        has_origin: ledger.accepted.is_some(),
        has_pid: true,
        began: 1,
        grace: 0,
    };
    sound.map_or(anew, |sound| Handles { phase, has_pid: true, ..sound })
}

/// Whether a live VMM may be stopped by a turn that goes by this: its manifest asks for it, it is absent for certain, or it
/// never ran.
fn is_justified(vm: &Vm, turn: &Turn) -> bool {
    let Some(vmm) = &vm.vmm else { return true };
    let never_ran = matches!(vmm.guest, Guest::Booting | Guest::Hung);
    let is_wanted = if let Some(manifest) = turn.manifest {
        manifest == Decl::Stopped || memory(manifest) != memory(vmm.spec)
    } else {
        let is_absent = turn.folder == Folder::Sound && vm.missing.is_some_and(|ticks| ticks >= 1);
        is_absent && vm.let_through.is_some_and(|at| at < 3)
    };
    vmm.doomed || never_ran || is_wanted
}
