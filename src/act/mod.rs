//! Carrying out a plan's actions: intent made durable, then the effect, then its result made durable. Decides nothing.
//!
//! No step waits for anybody: what takes time says when to look again and returns, and the end of a process or a timer
//! wakes the VM again. Every step may be the last before a power cut, and may be repeated.

mod adopt;
mod collect;
mod devices;
mod disks;
pub mod image_locks;
mod persist;
mod start;
mod teardown;

pub use adopt::{Adopted, adopt};

use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use self::image_locks::ImageLocks;
use crate::host::{HostFacts, HostOps, VmmCommand, VmmError};
use crate::names::{Layout, VmName};
use crate::observed::handles::HandleCache;
use crate::observed::{Fact, ObservedVm, VmmProcess};
use crate::plan::Action;
use crate::spec::{VmSpec, VmmKind};
use crate::state::{Handles, Ledger, TapHandle, encode};
use crate::time::Deadline;

/// What every action needs.
#[derive(Clone, Copy)]
pub struct Actor<'a> {
    /// The host.
    pub host: &'a dyn HostOps,
    /// Where the state lies.
    pub layout: &'a Layout,
    /// What is known in memory; written after the file.
    pub cache: &'a HandleCache,
    /// Who works on which image.
    pub images: &'a ImageLocks,
    /// Has a VM looked at again, when something ended that it waits for.
    pub wake: &'a Wake,
    /// What this host has, asked only by a start.
    pub facts: &'a dyn Deref<Target = HostFacts>,
    /// How QEMU virtualises.
    pub accel: crate::vmm::qemu::Accel,
    /// How long a VMM's API may take to answer.
    pub api_bound: Duration,
}

/// Has a VM looked at again.
pub type Wake = Arc<dyn Fn(&VmName) + Send + Sync>;

/// How an action ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is done. The text says what changed; empty when nothing did.
    Done(String),
    /// It goes on when something happens, or at this moment at the latest. The text says what it waits for.
    Later(String, Deadline),
}

/// Everything that went wrong in one action. No failure hides another.
#[derive(Debug, Default)]
pub struct ActError {
    failures: Vec<(String, Box<dyn std::error::Error + Send + Sync>)>,
}

impl ActError {
    /// One failure: the step, and what went wrong.
    pub fn one(step: impl Into<String>, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self { failures: vec![(step.into(), error.into())] }
    }

    fn push(&mut self, step: impl Into<String>, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        self.failures.push((step.into(), error.into()));
    }
}

impl fmt::Display for ActError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (step, error)) in self.failures.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{step}: {error}")?;
            let mut cause = error.source();
            while let Some(inner) = cause {
                write!(f, ": {inner}")?;
                cause = inner.source();
            }
        }
        Ok(())
    }
}

impl std::error::Error for ActError {}

impl Actor<'_> {
    /// Carries out one action on a VM that was just observed.
    ///
    /// # Errors
    /// Everything that failed. What was begun is on record, so that the next look goes on from there.
    pub fn act(&self, vm: &ObservedVm, action: &Action) -> Result<Outcome, ActError> {
        match action {
            Action::Record { ledger, why } => {
                self.make_vm_folder(&vm.name)?;
                self.write_ledger(vm, ledger)?;
                Ok(Outcome::Done(why.clone()))
            }
            Action::Persist { reason } => self.persist(vm, reason),
            Action::PrepareDisk { disk, how } => self.prepare_disk(vm, disk, how),
            Action::Start { vm: declared, origin, incarnation, vmm } => {
                self.start(vm, declared, origin, *incarnation, *vmm)
            }
            Action::Teardown { reason, grace_seconds } => self.teardown(vm, reason, *grace_seconds),
            Action::Forget { disks } => self.forget(vm, *disks),
            Action::Pause => self.command(vm, VmmCommand::Pause, "paused"),
            Action::Resume => self.command(vm, VmmCommand::Resume, "resumed"),
            Action::RepairTap { tap, bridge } => self.repair_tap(vm, tap, bridge.as_deref()),
        }
    }

    fn command(&self, vm: &ObservedVm, command: VmmCommand, done: &str) -> Result<Outcome, ActError> {
        let process = live(vm)?;
        self.tell(vm, process, command).map_err(|error| ActError::one("asking the VMM", error))?;
        Ok(Outcome::Done(done.to_owned()))
    }

    fn tell(&self, vm: &ObservedVm, process: &VmmProcess, command: VmmCommand) -> Result<(), VmmError> {
        let socket = match vm.record.handles() {
            Some(handles) if handles.incarnation == process.incarnation => handles.api_socket.clone(),
            _ => self.layout.api_socket(&vm.name, process.incarnation),
        };
        self.host.command_vmm(process.vmm, &socket, &process.process, command, self.api_bound)
    }

    fn repair_tap(&self, vm: &ObservedVm, tap: &str, bridge: Option<&str>) -> Result<Outcome, ActError> {
        // The record comes first: what it names is what the next teardown and the next look go by.
        if let Some(handles) = vm.record.handles() {
            let mut handles = handles.clone();
            for handle in handles.tap_devices.iter_mut().filter(|handle| handle.tap == tap) {
                handle.bridge = bridge.map(str::to_owned);
            }
            self.write_handles(&vm.name, &handles)?;
        }
        self.host.set_tap_bridge(tap, bridge).map_err(|error| ActError::one(format!("tap {tap}"), error))?;
        Ok(Outcome::Done(match bridge {
            Some(bridge) => format!("tap {tap} is on bridge {bridge} again"),
            None => format!("tap {tap} is off its bridge"),
        }))
    }

    fn make_vm_folder(&self, name: &VmName) -> Result<(), ActError> {
        self.host.make_folder(&self.layout.vm_dir(name)).map_err(|error| ActError::one("its state folder", error))?;
        Ok(())
    }

    fn write_handles(&self, name: &VmName, handles: &Handles) -> Result<(), ActError> {
        let path = self.layout.handles(name);
        self.host.write_durable(&path, &encode(handles)).map_err(|error| ActError::one("writing handles.json", error))
    }

    fn write_ledger(&self, vm: &ObservedVm, ledger: &Ledger) -> Result<(), ActError> {
        let path = self.layout.ledger(&vm.name);
        if vm.ledger_flaw.is_some() {
            self.host.set_aside(&path).map_err(|error| ActError::one("setting ledger.json aside", error))?;
        }
        self.host.write_durable(&path, &encode(ledger)).map_err(|error| ActError::one("writing ledger.json", error))
    }

    /// A VM's taps, by the names its spec leads to.
    fn tap_handles(&self, name: &VmName, spec: &VmSpec) -> Vec<TapHandle> {
        let uid = self.layout.uid(name);
        let handle = |interface: &crate::spec::NetworkInterface| TapHandle {
            interface: interface.name.clone(),
            tap: uid.tap(&interface.name),
            bridge: interface.bridge.clone(),
        };
        spec.network_interfaces.iter().map(handle).collect()
    }
}

/// The VM's proven process, which the plan took for granted.
fn live(vm: &ObservedVm) -> Result<&VmmProcess, ActError> {
    match &vm.process {
        Fact::Present(process) => Ok(process),
        Fact::Absent | Fact::Unknown(_) => Err(ActError::one("its VMM", io::Error::from(io::ErrorKind::NotFound))),
    }
}

/// Whether a VMM of this kind has a second socket that only tells who listens.
fn has_identity_socket(vmm: VmmKind) -> bool {
    vmm == VmmKind::Qemu
}
