//! Whether a VM's own disks are ready for it to start with, and what makes them so.

use super::{Hold, Preparation};
use crate::desired::Desired;
use crate::host::HostFacts;
use crate::names::Backing;
use crate::observed::{Fact, ObservedVm, OwnDisk};
use crate::spec::{Disk, DiskMode, VmSpec, VmmKind};
use crate::state::DiskRecord;

/// What has to be done to the VM's own disks before it can start, in this order; or why it cannot start with them.
pub(super) fn prepare(
    spec: &VmSpec,
    vmm: VmmKind,
    observed: &ObservedVm,
    desired: &Desired,
    facts: &HostFacts,
) -> Result<Vec<(Disk, Preparation)>, Hold> {
    let mut steps = Vec::new();
    if let Some(why) = &observed.disks_unknown
        && spec.disks.iter().any(Disk::has_own_file)
    {
        return Err(Hold::Unmet(format!("its disks cannot be told: {why}")));
    }
    for disk in spec.disks.iter().filter(|disk| disk.has_own_file()) {
        let own = observed.disks.get(&disk.name);
        if let (None, Some(deleted_at)) = (own, observed.trashed) {
            // All of the VM's disks come back at once, and are looked at then.
            return Ok(vec![(disk.clone(), Preparation::Restore { deleted_at })]);
        }
        let step = match own {
            None => Some(Preparation::Create { backing: new_backing(disk, vmm, facts)? }),
            Some(own) => judge(disk, own, vmm, desired, facts)?,
        };
        let is_set_aside = matches!(step, Some(Preparation::SetAside { .. }));
        steps.extend(step.map(|step| (disk.clone(), step)));
        if is_set_aside {
            steps.push((disk.clone(), Preparation::Create { backing: new_backing(disk, vmm, facts)? }));
        }
    }
    Ok(steps)
}

/// What the file of a disk that is made now will be.
fn new_backing(disk: &Disk, vmm: VmmKind, facts: &HostFacts) -> Result<Backing, Hold> {
    match (disk.mode, vmm, &facts.device_mapper) {
        (DiskMode::Copy, ..) => Ok(Backing::Copy),
        (_, _, Ok(())) => Ok(Backing::Cow),
        (_, VmmKind::Qemu, Err(_)) => Ok(Backing::Qcow2),
        (_, VmmKind::Firecracker, Err(why)) => Err(Hold::Unmet(no_device_mapper(disk, why))),
    }
}

/// What to tell of a snapshot disk on a host that cannot make one for Firecracker.
pub fn no_device_mapper(disk: &Disk, why: &str) -> String {
    format!(
        "disk {} is of mode snapshot, which Firecracker needs device-mapper for: {why}; or use mode: copy, or vmm: qemu, \
         which can do without",
        disk.name
    )
}

fn judge(
    disk: &Disk,
    own: &OwnDisk,
    vmm: VmmKind,
    desired: &Desired,
    facts: &HostFacts,
) -> Result<Option<Preparation>, Hold> {
    let record = match (&own.record, own.file) {
        (Ok(record), _) => record,
        // Nothing is lost: there is no file that the record was of.
        (Err(_), None) => return Ok(Some(Preparation::Create { backing: new_backing(disk, vmm, facts)? })),
        (Err(why), Some(_)) => {
            let what = "its file is kept; move it out of the VM's disks folder to begin with a fresh one";
            return Err(Hold::Unmet(format!("disk {} is not used: {why}; {what}", disk.name)));
        }
    };
    let is_of_mode = (record.backing == Backing::Copy) == (disk.mode == DiskMode::Copy);
    if own.file.is_none() {
        // Begun, and not complete under its name: it goes on, or begins anew if anything changed.
        let backing = if is_of_mode { record.backing } else { new_backing(disk, vmm, facts)? };
        let backing = if backing == Backing::Copy { backing } else { new_backing(disk, vmm, facts)? };
        return Ok(Some(Preparation::Create { backing }));
    }
    if !is_of_mode {
        return Ok(Some(Preparation::SetAside { why: "its mode changed".to_owned() }));
    }
    if record.image != disk.image {
        return match desired.images.get(&disk.image) {
            Some(id) if *id == record.base.id => Ok(Some(Preparation::Relocate)),
            Some(_) => {
                let why = format!("its image was {} before", record.image.display());
                Ok(Some(Preparation::SetAside { why }))
            }
            None => Err(Hold::Unmet(format!(
                "the image of disk {} ({}) cannot be read, so the disk made from {} is left as it is",
                disk.name,
                disk.image.display(),
                record.image.display()
            ))),
        };
    }
    check_backing(disk, record, own, vmm, facts)?;
    match disk.size_bytes {
        Some(bytes) if bytes < record.bytes => Err(Hold::Unmet(format!(
            "disk {} has {} bytes and its manifest says {bytes}: a disk never shrinks",
            disk.name, record.bytes
        ))),
        Some(bytes) if bytes > record.bytes => Ok(Some(Preparation::Grow { bytes })),
        _ => Ok(None),
    }
}

/// Why the file cannot be attached: the image under it changed, or this host or VMM cannot read it.
fn check_backing(disk: &Disk, record: &DiskRecord, own: &OwnDisk, vmm: VmmKind, facts: &HostFacts) -> Result<(), Hold> {
    match (record.backing, vmm, &facts.device_mapper) {
        // A copy needs its image no more.
        (Backing::Copy, ..) => return Ok(()),
        (Backing::Qcow2, VmmKind::Firecracker, _) => {
            return Err(Hold::Unmet(format!(
                "disk {} is a qcow2 overlay, made where there was no device-mapper: Firecracker cannot read it; set vmm: qemu",
                disk.name
            )));
        }
        (Backing::Cow, _, Err(why)) => {
            return Err(Hold::Unmet(format!("disk {} is a device-mapper snapshot: {why}", disk.name)));
        }
        (Backing::Cow, _, Ok(())) | (Backing::Qcow2, VmmKind::Qemu, _) => {}
    }
    let image = record.image.display();
    let changed = match &own.image {
        Fact::Present(found) if *found == record.base => return Ok(()),
        Fact::Present(found) if found.id != record.base.id => format!("{image} is another file than before"),
        Fact::Present(found) if found.bytes != record.base.bytes => {
            format!("{image} had {} bytes and has {}", record.base.bytes, found.bytes)
        }
        Fact::Present(_) => format!("{image} was written to since"),
        Fact::Absent => format!("{image} is gone"),
        Fact::Unknown(why) => return Err(Hold::Unmet(format!("the image of disk {}: {why}", disk.name))),
    };
    Err(Hold::BaseChanged(format!(
        "{changed}, and what the VM wrote over it would be garbage over anything else: put the image back as it was, or give \
         the new one another name, for disk {} to begin afresh",
        disk.name
    )))
}
