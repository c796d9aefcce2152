//! What a life of a VM holds for its disks: loops under device-mapper. Named first, made after the record is durable, freed
//! in the opposite order.

use std::io;
use std::path::{Path, PathBuf};

use super::disks::{CHUNK, known_record};
use super::{ActError, Actor};
use crate::host::devices::{CgroupLimits, DmRequest, DmTarget, LoopRequest, SECTOR};
use crate::names::{Backing, DmLayer};
use crate::observed::{Fact, ObservedVm};
use crate::spec::{Disk, Vm, VmSpec, VmmKind};
use crate::state::{DiskRecord, DmHandle, Handles, LoopHandle};
use crate::vmm::DiskSource;

/// What a VMM uses beside the guest's memory, in bytes: its own, and what the kernel keeps for it. Firecracker itself needs
/// some 5 MiB (its specification), QEMU some tens; the rest is room, since the limit is to stop a VMM gone wild and no other.
const FIRECRACKER_OVERHEAD: u64 = 64 << 20;
const QEMU_OVERHEAD: u64 = 256 << 20;
/// What QEMU keeps of the guest's code in translation (`tb-size`, qemu(1)) at most, by default.
const TCG_OVERHEAD: u64 = 1 << 30;

/// What is to be opened for a disk, once it is attached.
pub(super) enum DiskIntent<'a> {
    /// There is nothing to attach.
    Ready(DiskSource),
    /// A snapshot of this record's image.
    Snapshot(&'a DiskRecord),
}

impl Actor<'_> {
    /// Names everything that the VM's disks will hold, and makes nothing.
    pub(super) fn intend_disks<'a>(
        &self,
        vm: &Vm,
        observed: &'a ObservedVm,
        handles: &mut Handles,
    ) -> Result<Vec<DiskIntent<'a>>, ActError> {
        let mut intents = Vec::new();
        for disk in &vm.spec.disks {
            if !disk.has_own_file() {
                intents.push(DiskIntent::Ready(DiskSource::Raw(disk.image.clone())));
                continue;
            }
            let record = known_record(observed, &disk.name)?;
            let file = self.layout.disk_file(&vm.name, &disk.name, record.backing);
            match record.backing {
                Backing::Copy => intents.push(DiskIntent::Ready(DiskSource::Raw(file))),
                Backing::Qcow2 => {
                    let image = record.image.clone();
                    intents.push(DiskIntent::Ready(DiskSource::Overlay { overlay: file, image }));
                }
                Backing::Cow => {
                    self.intend_snapshot(handles, disk, record, file)?;
                    intents.push(DiskIntent::Snapshot(record));
                }
            }
        }
        Ok(intents)
    }

    fn intend_snapshot(
        &self,
        handles: &mut Handles,
        disk: &Disk,
        record: &DiskRecord,
        file: PathBuf,
    ) -> Result<(), ActError> {
        let what = |error: io::Error| ActError::one(format!("disk {}", disk.name), error);
        let state = &self.layout.state_id;
        let own = self.host.image(&file).map_err(what)?;
        let own = own.ok_or_else(|| what(io::Error::new(io::ErrorKind::NotFound, file.display().to_string())))?;
        handles.loops.push(LoopHandle {
            disk: disk.name.clone(),
            tag: state.base_loop_tag(),
            file: record.image.clone(),
            backing: record.base.id,
            read_only: true,
            device: None,
        });
        handles.loops.push(LoopHandle {
            disk: disk.name.clone(),
            tag: handles.uid.loop_tag(state, &disk.name),
            file,
            backing: own.id,
            read_only: false,
            device: None,
        });
        let is_grown = record.bytes > record.base.bytes;
        let layers = [is_grown.then_some(DmLayer::Origin), Some(DmLayer::Snapshot)];
        for layer in layers.into_iter().flatten() {
            handles.dm_devices.push(DmHandle {
                disk: disk.name.clone(),
                layer,
                name: handles.uid.dm_name(&disk.name, layer),
                uuid: handles.uid.dm_uuid(state, &disk.name, layer),
                device: None,
            });
        }
        Ok(())
    }

    /// Makes what was named, and notes what the kernel called it.
    pub(super) fn attach_disks(
        &self,
        intents: Vec<DiskIntent<'_>>,
        handles: &mut Handles,
    ) -> Result<Vec<DiskSource>, ActError> {
        let attach = |intent: DiskIntent<'_>| match intent {
            DiskIntent::Ready(source) => Ok(source),
            DiskIntent::Snapshot(record) => self.attach_snapshot(record, handles).map_err(|(what, error)| {
                let step = format!("{what} of disk {}", record.disk);
                ActError::one(step, error)
            }),
        };
        intents.into_iter().map(attach).collect()
    }

    fn attach_snapshot(
        &self,
        record: &DiskRecord,
        handles: &mut Handles,
    ) -> Result<DiskSource, (&'static str, io::Error)> {
        // Held until the snapshot keeps the base's loop in use: between the two, a VM that is torn down would take the loop
        // for one that nobody needs.
        let _lock = self.lock_image(record.base.id).map_err(|error| ("the image", error))?;
        for handle in handles.loops.iter_mut().filter(|handle| handle.disk == record.disk) {
            let request = LoopRequest {
                file: handle.file.clone(),
                backing: handle.backing,
                tag: handle.tag.clone(),
                read_only: handle.read_only,
            };
            let device = self.host.attach_loop(&request).map_err(|error| ("the loop device", error))?;
            handle.device = Some(device.device);
        }
        // Looked at once more now that the file cannot be swapped any more under this path: the loop has it open.
        if self.host.image(&record.image).map_err(|error| ("the image", error))? != Some(record.base) {
            let text = format!("{} changed since the disk was made from it", record.image.display());
            return Err(("the image", io::Error::other(text)));
        }
        let loops: Vec<PathBuf> = handles.loops.iter().filter(|handle| handle.disk == record.disk).map(node).collect();
        let [base, cow] = loops.as_slice() else {
            return Err(("the record", io::Error::other("a snapshot has two loop devices")));
        };
        let mut origin = base.clone();
        for handle in handles.dm_devices.iter_mut().filter(|handle| handle.disk == record.disk) {
            let table = match handle.layer {
                DmLayer::Origin => grown(record, base),
                DmLayer::Snapshot => vec![snapshot(record, &origin, cow)],
            };
            let read_only = handle.layer == DmLayer::Origin;
            let request = DmRequest { name: handle.name.clone(), uuid: handle.uuid.clone(), table, read_only };
            let made = make_room_and(
                || self.host.create_dm(&request),
                // Under this VM's own tag, while no VMM of it lives: left by a life that nobody remembers.
                || self.host.remove_dm(&request.name, &request.uuid),
            );
            let made = made.map_err(|error| ("the device-mapper device", error))?;
            origin = Path::new("/dev").join(&made.device);
            handle.device = Some(made.device);
        }
        Ok(DiskSource::Raw(origin))
    }

    /// Frees the VM's disks from above: device-mapper devices, then the loops under them. What stands on something that
    /// could not be freed is not tried: a loop in use would only promise to let go.
    pub(super) fn free_disks(&self, vm: &ObservedVm, block: &mut dyn FnMut(String, io::Error)) {
        let (loops, dm_devices) = self.held_devices(vm);
        let mut stuck = Vec::new();
        // One that is not there, or that carries another's tag, is none of ours: a start may have failed on it.
        let is_ours = |handle: &&DmHandle| !vm.dm_devices.get(&handle.name).is_some_and(Fact::is_absent);
        for handle in dm_devices.iter().rev().filter(is_ours) {
            let step = format!("device-mapper device {}", handle.name);
            if stuck.contains(&&handle.disk) {
                block(step, blocked_by(&handle.disk));
            } else if let Err(error) = self.host.remove_dm(&handle.name, &handle.uuid) {
                stuck.push(&handle.disk);
                block(step, error);
            }
        }
        let base_tag = self.layout.state_id.base_loop_tag();
        for handle in loops.iter().rev() {
            let step = format!("loop device over {}", handle.file.display());
            let freed = if stuck.contains(&&handle.disk) {
                Err(blocked_by(&handle.disk))
            } else if handle.tag == base_tag {
                self.free_base_loop(handle)
            } else {
                self.free_own_loop(vm, handle)
            };
            if let Err(error) = freed {
                block(step, error);
            }
        }
    }

    fn free_own_loop(&self, vm: &ObservedVm, handle: &LoopHandle) -> io::Result<()> {
        let device = match vm.loops.get(&handle.tag) {
            Some(Fact::Present(found)) => found.device.clone(),
            Some(Fact::Unknown(why)) => return Err(io::Error::other(why.clone())),
            Some(Fact::Absent) | None => return Ok(()),
        };
        self.host.detach_loop(&device, &handle.tag).map(drop)
    }

    /// Frees the loop over a base image, unless another VM's disk is on it.
    fn free_base_loop(&self, handle: &LoopHandle) -> io::Result<()> {
        let _lock = self.lock_image(handle.backing)?;
        let is_it =
            |found: &crate::host::devices::LoopDevice| found.tag == handle.tag && found.backing == handle.backing;
        let known = match &handle.device {
            Some(device) => self.host.loop_device(device)?.filter(is_it),
            None => None,
        };
        let found = match known {
            Some(found) => Some(found),
            // The crash came before its number was on record.
            None if handle.device.is_none() => self.host.loop_devices()?.into_iter().find(is_it),
            None => None,
        };
        match found {
            Some(found) if found.devices_on_top == 0 => self.host.detach_loop(&found.device, &handle.tag).map(drop),
            _ => Ok(()),
        }
    }

    /// The devices that the VM holds or may hold: those on record, else those that were found by their names.
    pub(super) fn held_devices(&self, vm: &ObservedVm) -> (Vec<LoopHandle>, Vec<DmHandle>) {
        if let Some(handles) = vm.record.handles() {
            return (handles.loops.clone(), handles.dm_devices.clone());
        }
        let (uid, state) = (self.layout.uid(&vm.name), &self.layout.state_id);
        let (mut loops, mut dm_devices) = (Vec::new(), Vec::new());
        for (disk, own) in &vm.disks {
            let tag = uid.loop_tag(state, disk);
            if let Some(Fact::Present(found)) = vm.loops.get(&tag) {
                if let Ok(record) = &own.record {
                    loops.push(LoopHandle {
                        disk: disk.clone(),
                        tag: state.base_loop_tag(),
                        file: record.image.clone(),
                        backing: record.base.id,
                        read_only: true,
                        device: None,
                    });
                }
                loops.push(LoopHandle {
                    disk: disk.clone(),
                    tag,
                    file: found.backing_path.clone(),
                    backing: found.backing,
                    read_only: found.read_only,
                    device: Some(found.device.clone()),
                });
            }
            for layer in [DmLayer::Origin, DmLayer::Snapshot] {
                let name = uid.dm_name(disk, layer);
                if let Some(Fact::Present(found)) = vm.dm_devices.get(&name) {
                    dm_devices.push(DmHandle {
                        disk: disk.clone(),
                        layer,
                        name,
                        uuid: found.uuid.clone(),
                        device: Some(found.device.clone()),
                    });
                }
            }
        }
        (loops, dm_devices)
    }

    /// What the VM's cgroup lets its VMM use: what its spec gives the guest, and room for the VMM itself.
    pub(super) fn cgroup_limits(&self, spec: &VmSpec, kind: VmmKind) -> CgroupLimits {
        let memory = spec.memory_mib << 20;
        let overhead = match kind {
            VmmKind::Firecracker => FIRECRACKER_OVERHEAD,
            VmmKind::Qemu if self.accel.is_kvm(self.facts.kvm.is_ok()) => QEMU_OVERHEAD,
            VmmKind::Qemu => QEMU_OVERHEAD + TCG_OVERHEAD,
        };
        // The tables that map the guest's memory: 8 bytes a page, twice.
        let tables = memory / 256;
        // Half a CPU emulates devices while all of the guest's run.
        let cpu_quota_us = u64::from(spec.cpus) * CgroupLimits::CPU_PERIOD_US + CgroupLimits::CPU_PERIOD_US / 2;
        CgroupLimits { cpu_quota_us, memory_bytes: memory + tables + overhead }
    }
}

/// Makes something; where something of its name is in the way that `clear` may remove, once more after that.
pub(super) fn make_room_and<T>(
    make: impl Fn() -> io::Result<T>,
    clear: impl FnOnce() -> io::Result<bool>,
) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match clear() {
            Ok(_) => make(),
            // What is in the way says more than why it could not be removed.
            Err(_) => Err(error),
        },
        first => first,
    }
}

fn node(handle: &LoopHandle) -> PathBuf {
    Path::new("/dev").join(handle.device.as_deref().unwrap_or_default())
}

fn blocked_by(disk: &crate::names::VmName) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, format!("waits for what is on top of it, for disk {disk}"))
}

/// The base made longer by zeros.
fn grown(record: &DiskRecord, base: &Path) -> Vec<DmTarget> {
    let (image, all) = (record.base.bytes / SECTOR, record.bytes / SECTOR);
    vec![
        DmTarget { start: 0, length: image, kind: "linear", parameters: format!("{} 0", base.display()) },
        DmTarget { start: image, length: all - image, kind: "zero", parameters: String::new() },
    ]
}

/// A snapshot that outlives the device (`P`), which is how the guest's writes outlive its restarts
/// (`Documentation/admin-guide/device-mapper/snapshot.rst`).
fn snapshot(record: &DiskRecord, origin: &Path, cow: &Path) -> DmTarget {
    let parameters = format!("{} {} P {}", origin.display(), cow.display(), CHUNK / SECTOR);
    DmTarget { start: 0, length: record.bytes / SECTOR, kind: "snapshot", parameters }
}
