//! What exists: identity, health and each kernel fact on its own.
//!
//! Everything here is given a [`crate::host::HostView`] only: looking changes nothing, by type.

pub mod handles;
pub mod process;
pub mod snapshot;

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::host::{GuestState, ProcessHandle, Tap, VmmFacts};
use crate::names::{Incarnation, VmName};
use crate::spec::VmmKind;
use crate::state::{ExitStatus, GateState, Handles, Ledger};

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
    /// Which VMMs can run here.
    pub vmms: VmmFacts,
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
    /// Its ledger.json; that of a new VM when there is none or it cannot be trusted.
    pub ledger: Ledger,
    /// Why its ledger.json cannot be trusted, if so.
    pub ledger_flaw: Option<String>,
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
    /// Files and sockets of a VMM that may be left over: those that exist.
    pub leftover_files: Vec<PathBuf>,
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
