//! What the model remembers: small numbers instead of paths, pids and clocks, so that worlds that do not differ for any
//! decision are one state. All time is relative to now, all incarnations to the highest there ever was.

use std::ops::Not;

/// The highest incarnation there ever was of a VM, once it had one: what is older is below it.
pub const HIGHEST: u8 = 9;

/// What a manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decl {
    A,
    /// With other memory: a change that needs a restart.
    B,
    Paused,
    Stopped,
}

/// What is listed at the place of the manifests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Folder {
    Sound,
    /// It cannot be read: the source is incomplete.
    Unreadable,
    /// An empty folder that is another one, as under a mount that went away.
    Foreign,
}

/// A state file on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum File<T> {
    #[default]
    Missing,
    Flawed,
    Valid(T),
}

impl<T: Copy> File<T> {
    pub fn valid(self) -> Option<T> {
        match self {
            Self::Valid(content) => Some(content),
            Self::Missing | Self::Flawed => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Starting,
    Running,
    Stopping,
}

/// handles.json, as far as decisions go by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handles {
    pub incarnation: u8,
    pub phase: Phase,
    pub spec: Option<Decl>,
    pub has_origin: bool,
    pub has_pid: bool,
    /// Ticks since it began; those beyond the start timeout are as one.
    pub began: u8,
    /// Ticks until its guest's grace is over.
    pub grace: u8,
}

/// ledger.json, as far as decisions go by it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ledger {
    pub incarnation: u8,
    pub accepted: Option<Decl>,
    pub booted: Option<(u8, Decl)>,
    /// Which life ended last, and whether that was asked for.
    pub exit: Option<(u8, bool)>,
    /// Ticks until its back-off is over.
    pub backoff: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Guest {
    Booting,
    /// It never will run.
    Hung,
    Running,
    Paused,
}

/// A live process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vmm {
    pub incarnation: u8,
    pub spec: Decl,
    pub guest: Guest,
    /// Its guest was asked to stop.
    pub asked: bool,
    /// Its end was decided on for a good reason, which is on record.
    pub doomed: bool,
}

/// One VM: its manifest, its files, what the kernel has of it.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vm {
    pub manifest: Option<Decl>,
    /// It stands by: nothing goes wrong with it alone, and its manifest stays as it is.
    pub is_spared: bool,
    pub handles: File<Handles>,
    pub ledger: File<Ledger>,
    /// What was durable before, as long as a file may still turn into it.
    pub handles_before: File<Handles>,
    pub ledger_before: File<Ledger>,
    pub objects: bool,
    pub vmm: Option<Vmm>,
    pub has_lived: bool,
    /// A file of it was lost or went back in time: its incarnations may too.
    pub has_rotted: bool,
    /// Ticks since the first of the complete listings in a row that do not declare it.
    pub missing: Option<u8>,
    /// Ticks since the gates let its deletion through; 3 when it was declared again since.
    pub let_through: Option<u8>,
}

/// What the gates say of an undeclared VM whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    Unheard,
    Delete,
    Unclaimed,
    PruneDelay(u8),
    Incomplete,
    Replaced,
}

/// One step of an action: what a crash cannot cut in half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    WriteHandles(Handles),
    DropHandles,
    WriteLedger(Ledger),
    DropLedger,
    MakeObjects(u8),
    FreeObjects,
    Spawn(u8, Decl),
    Ask(u8),
    Kill(u8),
    Halt(bool),
    /// The turn ends, and the VM is looked at again in a while.
    Later(Seen),
}

/// What one turn of a VM goes by, and what is left of its present action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn {
    pub manifest: Option<Decl>,
    pub folder: Folder,
    pub verdict: Verdict,
    pub effects: Vec<Effect>,
}

/// What the loop keeps of a VM's last look, as far as the gates ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seen {
    pub accepted: bool,
    pub origin_in_record: bool,
    pub is_unknown: bool,
}

/// What stead has in memory of one VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    pub missing_since: Option<u8>,
    pub seen: Option<Seen>,
    pub is_woken: bool,
    pub is_working: bool,
    pub deadline: Option<u8>,
    pub is_watched: bool,
    pub turn: Option<Turn>,
}

/// A stead that runs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Daemon {
    pub listing: ([Option<Decl>; 2], Folder),
    pub listed: u8,
    pub slots: [Slot; 2],
}

/// What may yet go wrong, and what users may yet do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Left {
    pub edits: u8,
    pub crashes: u8,
    pub lost_events: u8,
    pub rots: u8,
    pub unknowns: u8,
    pub deaths: u8,
    pub folders: u8,
    pub late_ticks: u8,
    /// Of all these together, users' edits apart.
    pub faults: u8,
}

/// What one VM is kept from for good, to see that the other one is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stuck {
    /// Its worker never comes back from a call.
    Hung(usize),
    /// It can never be told whether it lives.
    Blind(usize),
}

/// A rule that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Breach {
    TwoVmms,
    NoIntent,
    Unjustified,
    FreedUnderVmm,
    EffectAtRest,
    TwoWorkers,
    IncarnationFell,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    pub vms: [Vm; 2],
    pub folder: Folder,
    /// Something happened in the folder that stead has not taken up.
    pub event: bool,
    pub daemon: Option<Daemon>,
    pub left: Left,
    pub stuck: Option<Stuck>,
    pub breach: Option<Breach>,
}

impl State {
    /// Two manifests, and nothing else yet.
    pub fn new(left: Left, spares_one: bool) -> Self {
        let vm = Vm { manifest: Some(Decl::A), ..Vm::default() };
        let vms = [vm, Vm { is_spared: spares_one, ..vm }];
        Self { vms, folder: Folder::Sound, event: false, daemon: None, left, stuck: None, breach: None }
    }

    /// The same world when nothing goes wrong any more.
    pub fn calm(&self) -> Self {
        Self { left: Left::default(), ..self.clone() }.normal()
    }

    /// Whether the other VM is kept from nothing: who is stuck is left out of every wait.
    pub fn is_hung(&self, index: usize) -> bool {
        self.stuck == Some(Stuck::Hung(index))
    }

    /// Whether a VM is as its manifest says, on the host and on disk.
    pub fn is_converged(&self, index: usize) -> bool {
        let vm = &self.vms[index];
        let ledger = vm.ledger.valid().unwrap_or_default();
        let is_free = vm.vmm.is_none() && !vm.objects && vm.handles == File::Missing;
        let Some(manifest) = vm.manifest else {
            // A torn ledger of a VM that is gone stays as evidence: nobody goes by it.
            return is_free && ledger.accepted.is_none();
        };
        if ledger.accepted != Some(manifest) {
            return false;
        }
        if manifest == Decl::Stopped {
            return is_free;
        }
        let (Some(vmm), Some(handles)) = (vm.vmm, vm.handles.valid()) else { return false };
        let guest = if manifest == Decl::Paused { Guest::Paused } else { Guest::Running };
        let is_of = handles.incarnation == vmm.incarnation && handles.has_pid && handles.phase == Phase::Running;
        // What a record that was lost before the ledger followed it booted with, nobody knows: it runs on.
        let is_spec = handles.spec.is_none_or(|spec| spec == vmm.spec && memory(spec) == memory(manifest));
        vm.objects && vmm.guest == guest && is_of && is_spec && ledger.incarnation == vmm.incarnation
    }

    /// Whether nobody can be asked to do more for it, since what stead knew of it rotted away.
    pub fn is_left_alone(&self, index: usize) -> bool {
        let vm = &self.vms[index];
        if vm.manifest.is_some() || !vm.has_rotted || vm.ledger.valid().unwrap_or_default().accepted.is_some() {
            return false;
        }
        match (vm.vmm, vm.handles) {
            // What no record that is left says was ever applied is nobody's to stop: it runs on, unclaimed.
            (Some(_), File::Valid(handles)) => !handles.has_origin && handles.phase == Phase::Running,
            // What no file names any more is the collector's, which goes by tags and is not in this model.
            (None, File::Missing) => true,
            _ => false,
        }
    }

    pub fn is_at_rest(&self) -> bool {
        (0..2).all(|index| self.is_converged(index))
    }

    /// What is on disk, in the kernel and in the manifests: what an effect would change.
    pub fn world(&self) -> [Vm; 2] {
        self.vms.map(|vm| Vm { missing: None, let_through: None, ..vm })
    }

    /// One of all the states that differ in no decision.
    pub fn normal(mut self) -> Self {
        for index in 0..2 {
            let slot = self.daemon.as_ref().map(|daemon| (daemon.slots[index].missing_since, daemon.listed));
            let vm = &mut self.vms[index];
            if self.left.rots == 0 || self.left.faults == 0 {
                (vm.handles_before, vm.ledger_before) = (File::Missing, File::Missing);
            }
            for handles in [&mut vm.handles, &mut vm.handles_before] {
                if let File::Valid(handles) = handles {
                    handles.began = if handles.phase == Phase::Starting { handles.began.min(1) } else { 1 };
                    handles.grace *= u8::from(handles.phase == Phase::Stopping);
                }
            }
            vm.missing = vm.missing.map(|ticks| ticks.min(1));
            let since = slot.and_then(|(since, _)| since);
            vm.let_through = vm.let_through.map(|at| match since {
                Some(since) if at <= since => at.min(2),
                Some(_) => 3,
                None => at.min(3),
            });
        }
        if let Some(daemon) = &mut self.daemon {
            let listed = daemon.listed;
            for (slot, vm) in daemon.slots.iter_mut().zip(&mut self.vms) {
                // What counts is whether the delay is over and whether the listing was made after it.
                slot.missing_since = slot.missing_since.map(|since| match since {
                    0 => 0,
                    since if since > listed => 2,
                    _ => 1,
                });
                if let (Some(since), Some(at)) = (slot.missing_since, vm.let_through) {
                    vm.let_through = Some(if at == 3 { 3 } else { at.min(since) });
                }
            }
            let waits = daemon.slots.iter().any(|slot| slot.missing_since.is_some());
            daemon.listed = if waits { listed.min(1) } else { 0 };
        }
        let swapped = self.swapped();
        self.min(swapped)
    }

    /// The same with the VMs' names exchanged.
    fn swapped(&self) -> Self {
        let mut other = self.clone();
        other.vms.swap(0, 1);
        if let Some(daemon) = &mut other.daemon {
            daemon.slots.swap(0, 1);
            daemon.listing.0.swap(0, 1);
        }
        other.stuck = other.stuck.map(|stuck| match stuck {
            Stuck::Hung(index) => Stuck::Hung(1 - index),
            Stuck::Blind(index) => Stuck::Blind(1 - index),
        });
        other
    }

    /// Whether time may pass: who has something to do does it first.
    pub fn is_waiting(&self) -> bool {
        let boots = self.vms.iter().any(|vm| vm.vmm.is_some_and(|vmm| vmm.guest == Guest::Booting));
        let busy = |(index, slot): (usize, &Slot)| (slot.is_woken || slot.is_working) && !self.is_hung(index);
        let works = self.daemon.as_ref().is_some_and(|daemon| daemon.slots.iter().enumerate().any(busy));
        boots.not() && works.not() && self.event.not()
    }
}

/// What a running VM cannot take up when it changes.
pub fn memory(decl: Decl) -> u64 {
    if decl == Decl::B { 2 } else { 1 }
}
