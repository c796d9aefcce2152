//! What exists: identity, health and each kernel fact on its own.
//!
//! Everything here is given a [`crate::host::HostView`] only: looking changes nothing, by type.

mod devices;
pub mod glance;
pub mod handles;
pub mod orphans;
pub mod process;
pub mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::desired::FileId;
use crate::host::devices::{Cgroup, DmDevice, ImageIdentity, LoopDevice};
use crate::host::{FileStamp, GuestState, HostFacts, ProcessHandle, Tap};
use crate::names::{Incarnation, VmName, VmUid};
use crate::spec::{Vm, VmmKind};
use crate::state::{DiskRecord, ExitStatus, GateState, Handles, Ledger};

/// Something that was looked for. `Unknown` is neither: it forbids every action that needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<T> {
    /// It is there.
    Present(T),
    /// It is proven not to be there.
    Absent,
    /// It could not be told; why, for people.
    Unknown(String),
}

impl<T> Fact<T> {
    /// The thing, if it is there.
    pub fn present(&self) -> Option<&T> {
        match self {
            Self::Present(thing) => Some(thing),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    /// Whether it is proven not to be there.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// What exists on the host.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Every VM that has a folder in STATE/vms, and every one that was asked for.
    pub vms: BTreeMap<VmName, ObservedVm>,
    /// What this host has.
    pub facts: HostFacts,
    /// What the gates remember.
    pub gates: GateState,
}

/// What exists of one VM.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedVm {
    /// Its name.
    pub name: VmName,
    /// Its handles.json.
    pub record: Record,
    /// Which handles.json that was, where there is one.
    pub record_stamp: Option<FileStamp>,
    /// Its ledger.json; that of a new VM when there is none or it cannot be trusted.
    pub ledger: Ledger,
    /// Why its ledger.json cannot be trusted, if so.
    pub ledger_flaw: Option<String>,
    /// Why its handles.json or ledger.json could not be read just now, if so: what they say is not known then, and neither
    /// flawed nor missing.
    pub unread: Option<String>,
    /// Its VMM: present only if proven ours, absent only if proven so.
    pub process: Fact<VmmProcess>,
    /// What its guest is doing; meaningful while the process is present.
    pub guest: Guest,
    /// How its last VMM ended; meaningful while the process is absent.
    pub exit: ExitStatus,
    /// What went wrong with it, where more is known than its status: why a start failed.
    pub exit_message: Option<String>,
    /// Its taps, by name on the host: those recorded, those its spec leads to, those that carry its tag.
    pub taps: BTreeMap<String, Fact<Tap>>,
    /// Its device-mapper devices, by name: those recorded, else those its disks lead to.
    pub dm_devices: BTreeMap<String, Fact<DmDevice>>,
    /// Its loop devices by tag, in the same way, without those over base images: these are shared.
    pub loops: BTreeMap<String, Fact<LoopDevice>>,
    /// The loop devices over base images that its record names, by the image: shared with other VMs.
    pub base_loops: BTreeMap<FileId, Fact<LoopDevice>>,
    /// Its cgroup.
    pub cgroup: Fact<Cgroup>,
    /// Its own disks, whether its spec still has them or not.
    pub disks: BTreeMap<VmName, OwnDisk>,
    /// Why there may be more of them than that, here or in the trash, if something could not be listed.
    pub disks_unknown: Option<String>,
    /// When its disks were put into the trash, in seconds since the epoch: the latest, if there are any.
    pub trashed: Option<u64>,
    /// Files and sockets of a VMM that may be left over: those that exist.
    pub leftover_files: Vec<PathBuf>,
}

impl ObservedVm {
    /// A VM of which there is nothing.
    pub fn nothing(name: VmName, uid: VmUid) -> Self {
        Self {
            ledger: Ledger::new(name.clone(), uid),
            name,
            record: Record::Missing,
            record_stamp: None,
            ledger_flaw: None,
            unread: None,
            process: Fact::Absent,
            guest: Guest::NoVmm,
            exit: ExitStatus::Unknown,
            exit_message: None,
            taps: BTreeMap::new(),
            dm_devices: BTreeMap::new(),
            loops: BTreeMap::new(),
            base_loops: BTreeMap::new(),
            cgroup: Fact::Absent,
            disks: BTreeMap::new(),
            disks_unknown: None,
            trashed: None,
            leftover_files: Vec::new(),
        }
    }
}

impl ObservedVm {
    /// Keeps what the declaration of this VM says in the same place as the declaration itself, wherever the records say the
    /// same: of thousands of VMs, copies of it are most of what is kept.
    pub fn share(&mut self, declared: Option<&Arc<Vm>>) {
        let accepted = self.ledger.accepted.as_mut();
        let vm = accepted.map(|accepted| {
            if let Some(declared) = declared.filter(|declared| **declared == accepted.vm) {
                accepted.vm.clone_from(declared);
            }
            &accepted.vm
        });
        let Some(spec) = vm.or(declared).map(|vm| &vm.spec) else { return };
        if let Some(booted) = &mut self.ledger.booted {
            booted.spec.share(spec);
        }
        if let Record::Valid(handles) = &mut self.record
            && let Some(booted) = &mut handles.spec
        {
            booted.share(spec);
        }
    }
}

/// A disk of the VM's own, as it was found in its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnDisk {
    /// What it was made from; why that cannot be told, if so.
    pub record: Result<DiskRecord, String>,
    /// Bytes of its file; `None` when it is not made yet.
    pub file: Option<u64>,
    /// The image that the record names, as it is now.
    pub image: Fact<ImageIdentity>,
}

/// A handles.json as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// There is none: normal for a stopped VM.
    Missing,
    /// It is sound and of this VM.
    Valid(Box<Handles>),
    /// It is there and cannot be trusted: why. It is set aside before a new one is written.
    Flawed(String),
}

impl Record {
    /// The handles, where they are sound.
    pub fn handles(&self) -> Option<&Handles> {
        match self {
            Self::Valid(handles) => Some(handles),
            Self::Missing | Self::Flawed(_) => None,
        }
    }
}

/// A live process proven to be a VM's VMM.
#[derive(Debug, Clone, PartialEq)]
pub struct VmmProcess {
    /// The process, pinned.
    pub process: ProcessHandle,
    /// Which life of the VM it is, read from its id argument.
    pub incarnation: Incarnation,
    /// What kind of VMM it is.
    pub vmm: VmmKind,
}

/// What a VM's guest is doing, as far as its VMM tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Guest {
    /// The VMM answered.
    Is(GuestState),
    /// The VMM lives and does not answer: why. Never a reason to start another.
    Silent(String),
    /// There is no VMM to ask.
    NoVmm,
}
