//! Persist: a live VM proven to be ours is recorded, without touching it.

use super::{ActError, Actor, Outcome, has_identity_socket, live};
use crate::observed::{ObservedVm, Record, VmmProcess};
use crate::plan::PersistReason;
use crate::state::{Handles, Phase, StoredSpec, TapHandle};

impl Actor<'_> {
    /// Records the VM's live process.
    pub(super) fn persist(&self, vm: &ObservedVm, reason: &PersistReason) -> Result<Outcome, ActError> {
        let process = live(vm)?;
        self.make_vm_folder(&vm.name)?;
        if let Record::Flawed(_) = vm.record {
            self.host
                .set_aside(&self.layout.handles(&vm.name))
                .map_err(|error| ActError::one("setting handles.json aside", error))?;
        }
        self.write_handles(&vm.name, &self.record_of(vm, process, Phase::Running))?;
        self.cache.set_process(&vm.name, process.clone());
        Ok(Outcome::Done(match reason {
            PersistReason::Started => format!("running, pid {}", process.process.identity.pid),
            _ => format!("adopted pid {}: {reason}", process.process.identity.pid),
        }))
    }

    /// What the record of this live process should say, from all that is known: a sound record of this life, else the
    /// ledger's memory of what it booted with, else the objects that carry the VM's tag.
    pub(super) fn record_of(&self, vm: &ObservedVm, process: &VmmProcess, phase: Phase) -> Handles {
        let identity = &process.process.identity;
        let now = self.host.now();
        let sound = vm.record.handles().filter(|handles| handles.incarnation == process.incarnation);
        let mut handles = sound.cloned().unwrap_or_else(|| {
            let booted = vm.ledger.booted.as_ref().filter(|booted| booted.incarnation == process.incarnation);
            let spec = booted.map(|booted| booted.spec.clone());
            let tap_devices = match spec.as_ref().and_then(|spec: &StoredSpec| spec.read().ok()) {
                Some(spec) => self.tap_handles(&vm.name, &spec),
                None => self.tagged_taps(vm),
            };
            let (loops, dm_devices) = self.held_devices(vm);
            let (uid, socket) = (self.layout.uid(&vm.name), self.layout.api_socket(&vm.name, process.incarnation));
            Handles {
                identity_socket: has_identity_socket(process.vmm)
                    .then(|| self.layout.identity_socket(&vm.name, process.incarnation)),
                tap_devices,
                loops,
                dm_devices,
                cgroup: vm.cgroup.present().map(|_| self.layout.cgroup(&vm.name)),
                spec,
                origin: vm.ledger.accepted.as_ref().map(|accepted| accepted.origin.clone()),
                ..Handles::new(vm.name.clone(), uid, process.incarnation, process.vmm, socket, now.boot_id.clone())
            }
        });
        handles.phase = phase;
        handles.boot_id = now.boot_id;
        handles.pid = Some(identity.pid);
        handles.start_time = Some(identity.start_time);
        handles.pidfd_inode = identity.pidfd_inode;
        handles
    }

    /// The taps that were seen to carry this VM's tag.
    pub(super) fn tagged_taps(&self, vm: &ObservedVm) -> Vec<TapHandle> {
        let prefix = self.layout.uid(&vm.name).tap_alias_prefix(&self.layout.state_id);
        let handle = |tap: &crate::host::Tap| {
            let interface = tap.alias.as_deref()?.strip_prefix(&prefix)?.parse().ok()?;
            Some(TapHandle { interface, tap: tap.name.clone(), bridge: tap.bridge.clone() })
        };
        vm.taps.values().filter_map(|fact| handle(fact.present()?)).collect()
    }
}
