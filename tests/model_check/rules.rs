//! The model as stateright takes it: who may do what next, and what must hold.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use stateright::{Model, Property};
use stead::wakeups::Reason;

use crate::state::{Breach, Daemon, Decl, Effect, File, Folder, Guest, Left, Phase, Slot, State, Stuck, Vm};
use crate::step::{Sight, slot};

/// A defect in what carries the plans out: each must be caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// Kernel objects are made before the record says so.
    EffectFirst,
    /// A VMM that no record names is not looked for.
    LockIgnored,
    /// What cannot be told is taken for absent.
    UnknownIsAbsent,
    /// An unreadable folder is taken for an empty one.
    GapsHidden,
    /// Nobody looks again by himself.
    NoFullPass,
    /// Nobody is told of a VMM's end.
    DeafToExits,
}

/// The model: how many work at once, what may go wrong, and what is wrong with the executor.
#[derive(Debug, Default)]
pub struct Rules {
    pub parallel: usize,
    pub left: Left,
    /// Whether one of the VMs only stands by.
    pub spares_one: bool,
    pub mutant: Option<Mutant>,
    /// Whether the worlds that are reached are kept.
    pub collects: bool,
    /// Every world that was reached, from where on nothing goes wrong any more.
    pub calm: Mutex<HashSet<State>>,
}

/// What is lost, or goes back in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rot {
    HandlesLost,
    HandlesTorn,
    HandlesOlder,
    LedgerLost,
    LedgerTorn,
    LedgerOlder,
}

const ROTS: [Rot; 6] =
    [Rot::HandlesLost, Rot::HandlesTorn, Rot::HandlesOlder, Rot::LedgerLost, Rot::LedgerTorn, Rot::LedgerOlder];

/// What happens next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    Boot,
    Relist,
    FullPass,
    Dispatch(usize, Sight),
    Work(usize, Sight),
    Tick,
    GuestRuns(usize),
    GuestStops(usize),
    FolderBack,
    Crash,
    Edit(usize, Option<Decl>, bool),
    FolderGone(Folder),
    Dies(usize),
    Hangs(usize),
    Rots(usize, Rot),
    LateTick,
}

impl Rules {
    fn of_stead(&self, state: &State, daemon: &Daemon, steps: &mut Vec<Step>) {
        if state.event {
            steps.push(Step::Relist);
        }
        let working = daemon.slots.iter().filter(|slot| slot.is_working).count();
        let is_idle = |(index, slot): (usize, &Slot)| {
            state.is_hung(index) || (!slot.is_working && !slot.is_woken && slot.turn.is_none())
        };
        if daemon.slots.iter().enumerate().all(is_idle) && !state.event && self.mutant != Some(Mutant::NoFullPass) {
            steps.push(Step::FullPass);
        }
        let sights: &[Sight] = if state.left.unknowns > 0 && state.left.faults > 0 {
            &[Sight::Clear, Sight::Unknown, Sight::Unread]
        } else {
            &[Sight::Clear]
        };
        for (index, slot) in daemon.slots.iter().enumerate().filter(|(index, _)| !state.is_hung(*index)) {
            let looks = slot.turn.as_ref().is_none_or(|turn| turn.effects.is_empty());
            let sights = if looks && !state.vms[index].is_spared { sights } else { &sights[..1] };
            if slot.turn.is_some() {
                steps.extend(sights.iter().map(|sight| Step::Work(index, *sight)));
            } else if slot.is_woken && working < self.parallel {
                steps.extend(sights.iter().map(|sight| Step::Dispatch(index, *sight)));
            }
        }
    }

    fn of_misfortune(state: &State, steps: &mut Vec<Step>) {
        let left = state.left;
        if state.daemon.is_some() && left.crashes > 0 {
            steps.push(Step::Crash);
        }
        if left.folders > 0 && state.folder == Folder::Sound {
            steps.extend([Step::FolderGone(Folder::Unreadable), Step::FolderGone(Folder::Foreign)]);
        }
        let works = |slot: &Slot| slot.turn.as_ref().is_some_and(|turn| !turn.effects.is_empty());
        if left.late_ticks > 0 && state.daemon.as_ref().is_some_and(|daemon| daemon.slots.iter().any(works)) {
            steps.push(Step::LateTick);
        }
        for (index, vm) in state.vms.iter().enumerate().filter(|(_, vm)| !vm.is_spared) {
            if left.deaths > 0 && vm.vmm.is_some() {
                steps.push(Step::Dies(index));
                if vm.vmm.is_some_and(|vmm| vmm.guest == Guest::Booting) {
                    steps.push(Step::Hangs(index));
                }
            }
            // Nothing rots while it is being written.
            let at_rest = state.daemon.as_ref().is_none_or(|daemon| !works(&daemon.slots[index]));
            if left.rots > 0 && at_rest {
                steps.extend(ROTS.into_iter().filter(|rot| rotten(vm, *rot) != *vm).map(|rot| Step::Rots(index, rot)));
            }
        }
    }

    fn of_users(state: &State, steps: &mut Vec<Step>) {
        let manifests = [None, Some(Decl::A), Some(Decl::B), Some(Decl::Paused), Some(Decl::Stopped)];
        for (index, vm) in state.vms.iter().enumerate().filter(|(_, vm)| !vm.is_spared) {
            for manifest in manifests.into_iter().filter(|manifest| *manifest != vm.manifest) {
                steps.push(Step::Edit(index, manifest, false));
                if state.left.lost_events > 0 && state.left.faults > 0 {
                    steps.push(Step::Edit(index, manifest, true));
                }
            }
        }
    }

    /// The worlds that were reached, each once.
    pub fn calm_worlds(&self) -> Vec<State> {
        self.calm.lock().unwrap_or_else(PoisonError::into_inner).drain().collect()
    }
}

fn rotten(vm: &Vm, rot: Rot) -> Vm {
    let mut vm = Vm { has_rotted: true, ..*vm };
    match rot {
        Rot::HandlesLost => vm.handles = File::Missing,
        Rot::HandlesTorn => vm.handles = File::Flawed,
        Rot::HandlesOlder => vm.handles = vm.handles_before,
        Rot::LedgerLost => vm.ledger = File::Missing,
        Rot::LedgerTorn => vm.ledger = File::Flawed,
        Rot::LedgerOlder => vm.ledger = vm.ledger_before,
    }
    vm
}

fn spend(left: &mut Left, what: impl FnOnce(&mut Left) -> &mut u8) {
    *what(left) -= 1;
    left.faults -= 1;
}

fn holds_without(breach: Breach) -> impl Fn(&State) -> bool {
    move |state| state.breach != Some(breach)
}

impl Model for Rules {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![State::new(self.left, self.spares_one).normal()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        // What comes of objects that are gone under a VMM is looked at too.
        if state.breach.is_some_and(|breach| breach != Breach::FreedUnderVmm) {
            return;
        }
        if self.collects {
            self.calm.lock().unwrap_or_else(PoisonError::into_inner).insert(state.calm());
        }
        match &state.daemon {
            None => steps.push(Step::Boot),
            Some(daemon) => self.of_stead(state, daemon, steps),
        }
        for (index, vm) in state.vms.iter().enumerate() {
            let Some(vmm) = vm.vmm else { continue };
            if vmm.guest == Guest::Booting {
                steps.push(Step::GuestRuns(index));
            }
            if vmm.asked {
                steps.push(Step::GuestStops(index));
            }
        }
        if state.folder != Folder::Sound {
            steps.push(Step::FolderBack);
        }
        if state.is_waiting() {
            steps.push(Step::Tick);
        }
        if state.left.faults > 0 {
            Self::of_misfortune(state, steps);
        }
        if state.left.edits > 0 {
            Self::of_users(state, steps);
        }
    }

    fn next_state(&self, last: &State, step: Step) -> Option<State> {
        let mut state = last.clone();
        match step {
            Step::Boot => {
                state.event = false;
                state.daemon =
                    Some(Daemon { listing: ([None; 2], Folder::Sound), listed: 0, slots: Default::default() });
                // What an earlier stead let through goes on from when it was.
                for index in 0..2 {
                    let since = state.vms[index].let_through;
                    slot(&mut state, index)?.missing_since = since;
                }
                self.list(&mut state, true);
                self.wake_all(&mut state, Reason::Startup);
            }
            Step::Relist => {
                state.event = false;
                self.list(&mut state, true);
            }
            Step::FullPass => {
                self.list(&mut state, false);
                self.wake_all(&mut state, Reason::Resync);
            }
            Step::Dispatch(index, sight) | Step::Work(index, sight) => {
                if sight != Sight::Clear {
                    spend(&mut state.left, |left| &mut left.unknowns);
                }
                if matches!(step, Step::Dispatch(..)) {
                    self.dispatch(&mut state, index, sight);
                } else {
                    self.act(&mut state, index, sight);
                }
            }
            Step::Tick => self.tick(&mut state),
            Step::LateTick => {
                spend(&mut state.left, |left| &mut left.late_ticks);
                self.tick(&mut state);
            }
            Step::GuestRuns(index) => state.vms[index].vmm.as_mut()?.guest = Guest::Running,
            Step::GuestStops(index) => self.vmm_ends(&mut state, index),
            Step::FolderBack => state.folder = Folder::Sound,
            Step::Crash => {
                spend(&mut state.left, |left| &mut left.crashes);
                state.daemon = None;
                state.event = false;
            }
            Step::Edit(index, manifest, is_lost) => {
                state.left.edits -= 1;
                if is_lost {
                    spend(&mut state.left, |left| &mut left.lost_events);
                }
                state.vms[index].manifest = manifest;
                // Nobody watches while stead is down, or a folder that is gone.
                state.event |= !is_lost && state.daemon.is_some() && state.folder == Folder::Sound;
            }
            Step::FolderGone(folder) => {
                spend(&mut state.left, |left| &mut left.folders);
                state.folder = folder;
                state.event |= state.daemon.is_some();
            }
            Step::Dies(index) => {
                spend(&mut state.left, |left| &mut left.deaths);
                self.vmm_ends(&mut state, index);
            }
            Step::Hangs(index) => {
                spend(&mut state.left, |left| &mut left.deaths);
                state.vms[index].vmm.as_mut()?.guest = Guest::Hung;
            }
            Step::Rots(index, rot) => {
                spend(&mut state.left, |left| &mut left.rots);
                state.vms[index] = rotten(&state.vms[index], rot);
            }
        }
        let next = state.normal();
        (next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("never two live VMMs for one VM", |_, s: &State| holds_without(Breach::TwoVmms)(s)),
            Property::always("no effect without durable intent", |_, s: &State| holds_without(Breach::NoIntent)(s)),
            Property::always("no live VM is stopped without a reason", |_, s: &State| {
                holds_without(Breach::Unjustified)(s)
            }),
            Property::always("nothing is freed under a live VMM", |_, s: &State| {
                holds_without(Breach::FreedUnderVmm)(s)
            }),
            Property::always("no effect on what is as declared", |_, s: &State| holds_without(Breach::EffectAtRest)(s)),
            Property::always("never two workers on one VM", |_, s: &State| holds_without(Breach::TwoWorkers)(s)),
            Property::always("incarnations never fall", |_, s: &State| holds_without(Breach::IncarnationFell)(s)),
            Property::sometimes("both VMs are as declared", |_, s: &State| s.is_at_rest() && s.vms[0].vmm.is_some()),
            Property::sometimes("a VM was replaced", |_, s: &State| {
                let is_b = |index: usize| s.vms[index].manifest == Some(Decl::B) && s.is_converged(index);
                let is_new = |vm: &Vm| vm.ledger.valid().is_some_and(|ledger| ledger.exit.is_some_and(|exit| exit.1));
                (0..2).any(|index| is_b(index) && is_new(&s.vms[index]))
            }),
            Property::sometimes("stead died between a spawn and its record", |_, s: &State| {
                let is_unrecorded = |vm: &Vm| vm.vmm.is_some() && vm.handles.valid().is_some_and(|h| !h.has_pid);
                s.daemon.is_none() && s.vms.iter().any(is_unrecorded)
            }),
            Property::sometimes("stead died in the middle of a teardown", |_, s: &State| {
                let is_half =
                    |vm: &Vm| vm.vmm.is_none() && vm.handles.valid().is_some_and(|h| h.phase == Phase::Stopping);
                s.daemon.is_none() && s.vms.iter().any(|vm| is_half(vm) && !vm.objects)
            }),
            Property::sometimes("Unknown holds a VM that lives", |_, s: &State| {
                let holds = |slot: &Slot| slot.seen.is_some_and(|seen| seen.is_unknown) && slot.turn.is_none();
                s.daemon
                    .as_ref()
                    .is_some_and(|daemon| (0..2).any(|i| holds(&daemon.slots[i]) && s.vms[i].vmm.is_some()))
            }),
            Property::sometimes("a VM is deleted while the other one runs", |_, s: &State| {
                let is_gone = |vm: &Vm| vm.manifest.is_none() && vm.has_lived && vm.let_through.is_some();
                (0..2).any(|i| is_gone(&s.vms[i]) && s.is_at_rest() && s.vms[1 - i].vmm.is_some())
            }),
            Property::sometimes("a stop is under way while stead writes of the other VM", |_, s: &State| {
                let writes = |slot: &Slot| {
                    slot.turn.as_ref().is_some_and(|turn| matches!(turn.effects.first(), Some(Effect::WriteHandles(_))))
                };
                let stops = |vm: &Vm| vm.vmm.is_some_and(|vmm| vmm.doomed);
                s.daemon.as_ref().is_some_and(|d| (0..2).any(|i| stops(&s.vms[i]) && writes(&d.slots[1 - i])))
            }),
        ]
    }
}

/// Worlds in which one VM is stuck for good, from one in which none is.
pub fn stuck_worlds(state: &State) -> Vec<State> {
    let acts = |index: usize| {
        let turn = state.daemon.as_ref().and_then(|daemon| daemon.slots[index].turn.as_ref());
        turn.is_some_and(|turn| !turn.effects.is_empty())
    };
    let hung = (0..2).filter(|index| acts(*index)).map(Stuck::Hung);
    let blind = (0..2).filter(|index| !acts(*index)).map(Stuck::Blind);
    hung.chain(blind).map(|stuck| State { stuck: Some(stuck), ..state.clone() }.normal()).collect()
}
