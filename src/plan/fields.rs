//! What a difference between two specs means for a running VM, field by field.

use crate::spec::{Boot, Disk, NetworkInterface, VmSpec};

/// The fields in which what a VM booted with differs from what it should be and which a running VM cannot take up, in the
/// manifest's words. Every field is named here, so that a new one cannot be forgotten.
///
/// A bridge is taken up live: its tap is moved. What stead itself reads when it acts (`powerState`, `restartPolicy`, the grace period, the policies) says nothing to a VMM:
/// it takes effect by being recorded.
pub fn compare(booted: &VmSpec, wanted: &VmSpec) -> Vec<String> {
    let VmSpec {
        power_state: _,
        restart_policy: _,
        // Which kind runs it is settled at its first start; the caller compares kinds.
        vmm: _,
        cpus,
        memory_mib,
        boot: Boot { kernel, initrd, args },
        disks,
        network_interfaces,
        termination_grace_period_seconds: _,
        update_policy: _,
        deletion_policy: _,
    } = booted;
    let scalars = [
        (*cpus != wanted.cpus, "cpus"),
        (*memory_mib != wanted.memory_mib, "memory"),
        (*kernel != wanted.boot.kernel, "boot.kernel"),
        (*initrd != wanted.boot.initrd, "boot.initrd"),
        (*args != wanted.boot.args, "boot.args"),
    ];
    let mut restart: Vec<String> =
        scalars.iter().filter(|(differs, _)| *differs).map(|(_, field)| (*field).to_owned()).collect();
    compare_disks(disks, &wanted.disks, &mut restart);
    compare_interfaces(network_interfaces, &wanted.network_interfaces, &mut restart);
    restart
}

fn compare_disks(booted: &[Disk], wanted: &[Disk], restart: &mut Vec<String>) {
    if booted.len() != wanted.len() || booted.iter().zip(wanted).any(|(b, w)| b.name != w.name) {
        restart.push("disks".to_owned());
        return;
    }
    for (disk, wanted) in booted.iter().zip(wanted) {
        let Disk { name, image, mode, read_only, size_bytes } = disk;
        let fields = [
            (*image != wanted.image, "image"),
            (*mode != wanted.mode, "mode"),
            (*read_only != wanted.read_only, "readOnly"),
            (*size_bytes != wanted.size_bytes, "size"),
        ];
        restart
            .extend(fields.iter().filter(|(differs, _)| *differs).map(|(_, field)| format!("disks[{name}].{field}")));
    }
}

fn compare_interfaces(booted: &[NetworkInterface], wanted: &[NetworkInterface], restart: &mut Vec<String>) {
    if booted.len() != wanted.len() || booted.iter().zip(wanted).any(|(b, w)| b.name != w.name) {
        restart.push("networkInterfaces".to_owned());
        return;
    }
    for (interface, wanted) in booted.iter().zip(wanted) {
        let NetworkInterface { name, bridge: _, mac_address } = interface;
        if *mac_address != wanted.mac_address {
            restart.push(format!("networkInterfaces[{name}].macAddress"));
        }
    }
}
