//! Where a live VM is not what it should be: its spec, its taps, its disks.

use super::diff::life;
use super::{Action, Hold, VmPlan, fields};
use crate::observed::{Fact, ObservedVm, VmmProcess};
use crate::spec::{Vm, VmmChoice, VmmKind};

/// What changed since the VM booted that it cannot take up, in the manifest's words.
pub(super) fn changes(vm: &Vm, observed: &ObservedVm, process: &VmmProcess, plan: &mut VmPlan) -> Vec<String> {
    let stored = life(observed, process).and_then(|handles| handles.spec.as_ref());
    let Some(stored) = stored else {
        plan.notes.push("SpecUnknown: nobody knows what it booted with; a restart would settle it".to_owned());
        return Vec::new();
    };
    match stored.completed_from(&vm.spec) {
        Ok(booted) => {
            let mut changed = fields::compare(&booted, &vm.spec);
            let other_kind = match vm.spec.vmm {
                VmmChoice::Auto => false,
                VmmChoice::Firecracker => process.vmm != VmmKind::Firecracker,
                VmmChoice::Qemu => process.vmm != VmmKind::Qemu,
            };
            if other_kind {
                changed.push("vmm".to_owned());
            }
            changed
        }
        Err(error) => {
            plan.notes.push(format!("SpecUnknown: what it booted with cannot be read: {error}"));
            Vec::new()
        }
    }
}

/// Taps that are not where the manifest wants them.
pub(super) fn repair_taps(vm: &Vm, observed: &ObservedVm, plan: &mut VmPlan) {
    let Some(handles) = observed.record.handles() else { return };
    for handle in &handles.tap_devices {
        let wanted = vm.spec.network_interfaces.iter().find(|interface| interface.name == handle.interface);
        // An adopted VM's taps are as its other manager made them, until the VM is started anew.
        let Some(wanted) = wanted.filter(|_| handles.spec.is_some()) else { continue };
        match observed.taps.get(&handle.tap) {
            Some(Fact::Present(tap)) if tap.bridge != wanted.bridge => {
                plan.actions.push(Action::RepairTap { tap: handle.tap.clone(), bridge: wanted.bridge.clone() });
            }
            Some(Fact::Absent) => plan.notes.push(format!(
                "Drifted: its tap {} is gone, so its guest has no network on {}; `stead restart {}` makes a new one",
                handle.tap, handle.interface, vm.name
            )),
            _ => {}
        }
    }
}

/// Snapshots that device-mapper gave up: their guest gets errors from now on, and only another life may help.
pub(super) fn broken_snapshots(observed: &ObservedVm, plan: &mut VmPlan) {
    let broken = observed.dm_devices.values().filter_map(Fact::present).filter(|dm| dm.is_invalid());
    plan.holds.extend(broken.map(|dm| {
        Hold::Broken(format!(
            "device-mapper gave up the snapshot {} ({}): its copy-on-write file could not be written, most likely for \
             want of space",
            dm.name, dm.device
        ))
    }));
}
