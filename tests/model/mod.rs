//! A world in memory: what the plan looks at, and what becomes of it when a plan is carried out.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Map;
use stead::desired::{FileId, Origin};
use stead::host::devices::{CgroupFacts, ImageIdentity};
use stead::host::{GuestState, HostFacts, ProcessHandle, ProcessIdentity, Program, Tap};
use stead::names::{Backing, Incarnation, StateId, VmName, VmUid};
use stead::observed::{Fact, Guest, Observed, ObservedVm, OwnDisk, Record, VmmProcess};
use stead::plan::{Action, Plan, Preparation};
use stead::spec::{DeletionPolicy, Disk, Vm, VmmKind};
use stead::state::{
    Accepted, Booted, DiskRecord, ExitStatus, FORMAT_VERSION, GateState, Handles, Ledger, Phase, Stopping, StoredSpec,
    TapHandle,
};
use stead::time::{BootId, Deadline, Now};

pub fn boot_id() -> BootId {
    BootId("11111111-2222-4333-8444-555555555555".to_owned())
}

pub fn now_at(boot_ms: u64) -> Now {
    Now { boot_id: boot_id(), boot_ms, wall: jiff::Timestamp::UNIX_EPOCH }
}

pub fn deadline_ms(boot_ms: u64) -> Deadline {
    Deadline { boot_id: boot_id(), boot_ms }
}

pub fn state_id() -> StateId {
    StateId::derive("model", Path::new("/state"))
}

pub fn uid(name: &VmName) -> VmUid {
    state_id().uid(name)
}

pub fn process(incarnation: Incarnation, vmm: VmmKind) -> VmmProcess {
    let pid = 1_000 + i32::try_from(incarnation.0).unwrap();
    let identity = ProcessIdentity { pid, start_time: 5, pidfd_inode: Some(10_000 + incarnation.0) };
    VmmProcess { process: ProcessHandle { identity, pidfd: None, line: None }, incarnation, vmm }
}

pub fn nothing(name: &VmName) -> ObservedVm {
    ObservedVm::nothing(name.clone(), uid(name))
}

pub fn handles_of(name: &VmName, vm: Option<(&Vm, &Origin)>, incarnation: Incarnation, vmm: VmmKind) -> Handles {
    let identity = process(incarnation, vmm).process.identity;
    let taps = vm.iter().flat_map(|(vm, _)| &vm.spec.network_interfaces).map(|interface| TapHandle {
        interface: interface.name.clone(),
        tap: uid(name).tap(&interface.name),
        bridge: interface.bridge.clone(),
    });
    Handles {
        phase: Phase::Running,
        pid: Some(identity.pid),
        start_time: Some(identity.start_time),
        pidfd_inode: identity.pidfd_inode,
        tap_devices: taps.collect(),
        spec: vm.map(|(vm, _)| StoredSpec::from(&vm.spec)),
        origin: vm.map(|(_, origin)| origin.clone()),
        began: Some(deadline_ms(1_000)),
        ..Handles::new(name.clone(), uid(name), incarnation, vmm, format!("/run/{name}.sock").into(), boot_id())
    }
}

pub fn ledger_of(vm: &Vm, origin: &Origin, incarnation: Incarnation, vmm: VmmKind) -> Ledger {
    let root = Some(FileId { device: 1, inode: 1 });
    Ledger {
        incarnation,
        accepted: Some(Accepted { vm: Arc::new(vm.clone()), origin: origin.clone(), root, generation: 1 }),
        booted: Some(Booted { incarnation, spec: StoredSpec::from(&vm.spec), generation: 1 }),
        vmm: Some(vmm),
        restarted_at: vm.restarted_at().map(str::to_owned),
        ..Ledger::new(vm.name.clone(), uid(&vm.name))
    }
}

/// The host, as far as plans see and change it.
#[derive(Debug, Clone)]
pub struct World {
    pub vms: BTreeMap<VmName, ObservedVm>,
    pub facts: HostFacts,
    pub gates: GateState,
    pub now_ms: u64,
}

impl World {
    pub fn new(now_ms: u64) -> Self {
        let program = |path: &str| Ok(Program { path: path.into() });
        let facts = HostFacts {
            firecracker: program("/bin/firecracker"),
            qemu: program("/bin/qemu"),
            kvm: Ok(()),
            device_mapper: Ok(()),
            cgroups: Ok(CgroupFacts { no_limits: None }),
        };
        Self { vms: BTreeMap::new(), facts, gates: GateState::default(), now_ms }
    }

    pub fn observed(&self) -> Observed {
        Observed { vms: self.vms.clone(), facts: self.facts.clone(), gates: self.gates.clone() }
    }

    pub fn now(&self) -> Now {
        now_at(self.now_ms)
    }

    /// Carries out the first action of each VM, as a worker does; true when there was any.
    pub fn apply(&mut self, plan: &Plan) -> bool {
        let mut any = false;
        for (name, vm_plan) in &plan.vms {
            let Some(action) = vm_plan.actions.first() else { continue };
            any = true;
            let now_ms = self.now_ms;
            let vm = self.vms.entry(name.clone()).or_insert_with(|| nothing(name));
            act(vm, action, now_ms);
        }
        any
    }
}

/// An image by its path, as if it lay still.
pub fn image(path: &Path) -> ImageIdentity {
    let inode =
        path.to_string_lossy().bytes().fold(7, |inode: u64, byte| inode.wrapping_mul(31).wrapping_add(byte.into()));
    ImageIdentity { id: FileId { device: 1, inode }, bytes: 8 << 20, mtime_ns: 1 }
}

/// The record of a disk that was made from its image.
pub fn disk_record(vm: &VmName, disk: &Disk, backing: Backing) -> DiskRecord {
    let base = image(&disk.image);
    DiskRecord {
        version: FORMAT_VERSION,
        name: vm.clone(),
        uid: uid(vm),
        disk: disk.name.clone(),
        backing,
        image: disk.image.clone(),
        base,
        bytes: disk.size_bytes.unwrap_or(base.bytes),
        extra: Map::new(),
    }
}

fn prepare(vm: &mut ObservedVm, disk: &Disk, how: &Preparation) {
    assert!(vm.process.is_absent(), "a disk is prepared under a live VMM: {vm:?}");
    let own = vm.disks.get_mut(&disk.name);
    match (how, own) {
        (Preparation::Create { backing }, own) => {
            assert!(own.is_none_or(|own| own.file.is_none()), "a disk is made over another");
            let record = disk_record(&vm.name, disk, *backing);
            let image = Fact::Present(record.base);
            vm.disks.insert(disk.name.clone(), OwnDisk { file: Some(record.bytes), record: Ok(record), image });
        }
        (Preparation::SetAside { .. }, _) => drop(vm.disks.remove(&disk.name)),
        (Preparation::Restore { .. }, _) => vm.trashed = None,
        (Preparation::Grow { bytes }, Some(OwnDisk { record: Ok(record), .. })) => record.bytes = *bytes,
        (Preparation::Relocate, Some(OwnDisk { record: Ok(record), .. })) => record.image.clone_from(&disk.image),
        (how, own) => panic!("{how:?} of {own:?}"),
    }
}

/// What an action makes of a VM when nothing goes wrong.
fn act(vm: &mut ObservedVm, action: &Action, now_ms: u64) {
    match action {
        Action::Record { ledger, .. } => {
            vm.ledger = (**ledger).clone();
            vm.ledger_flaw = None;
        }
        Action::PrepareDisk { disk, how } => prepare(vm, disk, how),
        Action::Start { vm: declared, origin, incarnation, vmm } => {
            let own = declared.spec.disks.iter().filter(|disk| disk.has_own_file());
            for disk in own {
                assert!(vm.disks.get(&disk.name).is_some_and(|own| own.file.is_some()), "no disk {}", disk.name);
            }
            assert!(vm.process.is_absent(), "a start beside what may be alive: {vm:?}");
            assert!(vm.record == Record::Missing, "a start over a record: {vm:?}");
            assert!(*incarnation > vm.ledger.incarnation, "an incarnation used twice");
            let mut handles = handles_of(&declared.name, Some((declared, origin)), *incarnation, *vmm);
            handles.phase = Phase::Starting;
            handles.began = Some(deadline_ms(now_ms));
            for tap in &handles.tap_devices {
                let present = Tap { name: tap.tap.clone(), alias: None, bridge: tap.bridge.clone(), up: true };
                vm.taps.insert(tap.tap.clone(), Fact::Present(present));
            }
            vm.record = Record::Valid(Box::new(handles));
            vm.process = Fact::Present(process(*incarnation, *vmm));
            vm.guest = Guest::Is(GuestState::Running);
        }
        Action::Persist { .. } => {
            let process = vm.process.present().expect("only what lives is persisted").clone();
            let known = vm.record.handles().filter(|handles| handles.incarnation == process.incarnation).cloned();
            let mut handles = known.unwrap_or_else(|| {
                let mut handles = handles_of(&vm.name, None, process.incarnation, process.vmm);
                let booted = vm.ledger.booted.as_ref().filter(|booted| booted.incarnation == process.incarnation);
                handles.spec = booted.map(|booted| booted.spec.clone());
                handles.origin = vm.ledger.accepted.as_ref().map(|accepted| accepted.origin.clone());
                handles
            });
            let identity = process.process.identity;
            handles.phase = Phase::Running;
            handles.boot_id = boot_id();
            handles.pid = Some(identity.pid);
            handles.start_time = Some(identity.start_time);
            handles.pidfd_inode = identity.pidfd_inode;
            vm.record = Record::Valid(Box::new(handles));
        }
        Action::Teardown { .. } => match &vm.process {
            Fact::Unknown(_) => panic!("a teardown of what may or may not be there: {vm:?}"),
            Fact::Present(process) => {
                let known = vm.record.handles().filter(|handles| handles.incarnation == process.incarnation);
                let mut handles =
                    known.cloned().unwrap_or_else(|| handles_of(&vm.name, None, process.incarnation, process.vmm));
                handles.phase = Phase::Stopping;
                handles.stopping = Some(Stopping { reason: String::new(), deadline: deadline_ms(now_ms) });
                vm.record = Record::Valid(Box::new(handles));
                vm.process = Fact::Absent;
                vm.guest = Guest::NoVmm;
                vm.exit = ExitStatus::Code(0);
            }
            Fact::Absent => {
                let lived = vm.record.handles().map(|handles| handles.incarnation).unwrap_or_default();
                vm.ledger.incarnation = vm.ledger.incarnation.max(lived);
                vm.record = Record::Missing;
                vm.taps.clear();
                vm.dm_devices.clear();
                vm.loops.clear();
                vm.cgroup = Fact::Absent;
                vm.leftover_files.clear();
            }
        },
        Action::Forget { disks } => {
            assert!(vm.process.is_absent() && vm.record == Record::Missing, "forgotten before it is gone: {vm:?}");
            vm.ledger = Ledger { incarnation: vm.ledger.incarnation, ..Ledger::new(vm.name.clone(), vm.ledger.uid) };
            vm.ledger_flaw = None;
            if *disks == Some(DeletionPolicy::Delete) {
                vm.disks.clear();
                vm.trashed = Some(now_ms / 1000);
            }
        }
        Action::Pause => vm.guest = Guest::Is(GuestState::Paused),
        Action::Resume => vm.guest = Guest::Is(GuestState::Running),
        Action::RepairTap { tap, bridge } => {
            if let Some(Fact::Present(found)) = vm.taps.get_mut(tap) {
                found.bridge.clone_from(bridge);
            }
        }
    }
}
