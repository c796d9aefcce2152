//! What one VM holds beyond its process: taps, device-mapper devices, loops, its cgroup, its own disks.
//!
//! Objects are found by the names on record. Without a sound record they are found by the names that the VM's specs and
//! disks lead to, since every name derives from the VM.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::snapshot::{Looker, Shared};
use super::{Fact, OwnDisk, Record};
use crate::desired::FileId;
use crate::host::Tap;
use crate::host::devices::{Cgroup, DmDevice, LoopDevice};
use crate::names::{Backing, DmLayer, Layout, VmName, VmUid};
use crate::spec::{Disk, NetworkInterface, VmSpec};
use crate::state::{Ledger, LoopHandle, parse_disk_record};

/// What a VM holds beyond its process.
#[expect(clippy::struct_field_names, reason = "a device-mapper device is called just that")]
pub(super) struct Devices {
    pub(super) taps: BTreeMap<String, Fact<Tap>>,
    pub(super) dm_devices: BTreeMap<String, Fact<DmDevice>>,
    pub(super) loops: BTreeMap<String, Fact<LoopDevice>>,
    pub(super) base_loops: BTreeMap<FileId, Fact<LoopDevice>>,
    pub(super) disks: BTreeMap<VmName, OwnDisk>,
    pub(super) disks_unknown: Option<String>,
    pub(super) trashed: Option<u64>,
}

impl Looker<'_> {
    /// Everything of one VM but its process.
    pub(super) fn look_at_devices(&self, name: &VmName, record: &Record, ledger: &Ledger, shared: &Shared) -> Devices {
        let uid = ledger.uid;
        // One that was not seen would be made anew, over what it was made from.
        let (disks, unlisted) = match self.look_at_disks(name, uid) {
            Ok(disks) => (disks, None),
            Err(error) => (BTreeMap::new(), Some(format!("{}: {error}", self.layout.disks(name).display()))),
        };
        let trashed = if disks.is_empty() { self.trashed(name, shared) } else { Ok(None) };
        let specs = if record.handles().is_some() { Vec::new() } else { remembered_specs(ledger) };
        let named = specs.iter().flat_map(|spec| &spec.disks).filter(|disk: &&Disk| disk.has_own_file());
        let mut of_disks: BTreeSet<VmName> = named.map(|disk| disk.name.clone()).collect();
        of_disks.extend(disks.keys().cloned());
        Devices {
            taps: self.look_at_taps(uid, record, &specs, shared),
            dm_devices: self.look_at_dm(uid, record, &of_disks),
            loops: self.look_at_loops(uid, record, &of_disks, shared),
            base_loops: self.look_at_base_loops(record, shared),
            disks_unknown: unlisted.or_else(|| trashed.as_ref().err().cloned()),
            trashed: trashed.unwrap_or_default(),
            disks,
        }
    }

    /// The VM's cgroup.
    pub(super) fn look_at_cgroup(&self, name: &VmName, record: &Record) -> Fact<Cgroup> {
        let recorded = record.handles().and_then(|handles| handles.cgroup.as_deref());
        fact(self.view.cgroup(&self.layout.cgroup_of(name, recorded)))
    }

    fn look_at_taps(
        &self,
        uid: VmUid,
        record: &Record,
        specs: &[Arc<VmSpec>],
        shared: &Shared,
    ) -> BTreeMap<String, Fact<Tap>> {
        let recorded = record.handles().into_iter().flat_map(|handles| &handles.tap_devices);
        let recorded = recorded.map(|handle| (handle.tap.clone(), handle.interface.clone()));
        let derived = specs.iter().flat_map(|spec| &spec.network_interfaces);
        let derived = derived.map(|of: &NetworkInterface| (uid.tap(&of.name), of.name.clone()));
        let wanted: BTreeMap<String, VmName> = recorded.chain(derived).collect();
        let look = |(tap, interface): (String, VmName)| {
            let alias = uid.tap_alias(&self.layout.state_id, &interface);
            // A tap of this name that does not carry the VM's tag is a stranger's, and none of ours.
            let is_ours = |found: &Tap| found.alias.as_ref() == Some(&alias);
            let fact = match shared.tap(self.view, &tap) {
                Ok(found) => found.filter(is_ours).map_or(Fact::Absent, Fact::Present),
                Err(why) => Fact::Unknown(why),
            };
            (tap, fact)
        };
        wanted.into_iter().map(look).collect()
    }

    fn look_at_dm(&self, uid: VmUid, record: &Record, disks: &BTreeSet<VmName>) -> BTreeMap<String, Fact<DmDevice>> {
        let wanted: Vec<(String, String)> = if let Some(handles) = record.handles() {
            handles.dm_devices.iter().map(|dm| (dm.name.clone(), dm.uuid.clone())).collect()
        } else {
            let layers = |disk| [DmLayer::Snapshot, DmLayer::Origin].map(|layer| (disk, layer));
            let names = |(disk, layer)| (uid.dm_name(disk, layer), uid.dm_uuid(&self.layout.state_id, disk, layer));
            disks.iter().flat_map(layers).map(names).collect()
        };
        let look = |(dm, uuid): (String, String)| {
            // As with taps: another's device of this name is none of ours.
            let fact = fact(self.view.dm_device(&dm).map(|found| found.filter(|found| found.uuid == uuid)));
            (dm, fact)
        };
        wanted.into_iter().map(look).collect()
    }

    fn look_at_loops(
        &self,
        uid: VmUid,
        record: &Record,
        disks: &BTreeSet<VmName>,
        shared: &Shared,
    ) -> BTreeMap<String, Fact<LoopDevice>> {
        let base = self.layout.state_id.base_loop_tag();
        if let Some(handles) = record.handles() {
            let own = handles.loops.iter().filter(|handle| handle.tag != base);
            return own.map(|handle| (handle.tag.clone(), self.recorded_loop(handle, shared))).collect();
        }
        let tags = disks.iter().map(|disk| uid.loop_tag(&self.layout.state_id, disk));
        tags.map(|tag| {
            let fact = self.find_loop(&tag, shared);
            (tag, fact)
        })
        .collect()
    }

    fn look_at_base_loops(&self, record: &Record, shared: &Shared) -> BTreeMap<FileId, Fact<LoopDevice>> {
        let tag = self.layout.state_id.base_loop_tag();
        let base = record.handles().into_iter().flat_map(|handles| &handles.loops).filter(|handle| handle.tag == tag);
        base.map(|handle| {
            let is_it = |found: &LoopDevice| found.tag == tag && found.backing == handle.backing;
            let fact = match &handle.device {
                Some(device) => fact(self.view.loop_device(device).map(|found| found.filter(is_it))),
                None => match shared.loops(self.view) {
                    Err(why) => Fact::Unknown(why.clone()),
                    Ok(all) => all.iter().find(|found| is_it(found)).cloned().map_or(Fact::Absent, Fact::Present),
                },
            };
            (handle.backing, fact)
        })
        .collect()
    }

    fn recorded_loop(&self, handle: &LoopHandle, shared: &Shared) -> Fact<LoopDevice> {
        let Some(device) = &handle.device else { return self.find_loop(&handle.tag, shared) };
        // A number is reused as soon as it is free; the tag tells.
        fact(self.view.loop_device(device).map(|found| found.filter(|found| found.tag == handle.tag)))
    }

    fn find_loop(&self, tag: &str, shared: &Shared) -> Fact<LoopDevice> {
        match shared.loops(self.view) {
            Err(why) => Fact::Unknown(why.clone()),
            Ok(all) => all.iter().find(|device| device.tag == tag).cloned().map_or(Fact::Absent, Fact::Present),
        }
    }

    fn look_at_disks(&self, name: &VmName, uid: VmUid) -> io::Result<BTreeMap<VmName, OwnDisk>> {
        let entries = self.view.list_folder(&self.layout.disks(name))?;
        let disk_of = |entry: &String| {
            let (stem, extension) = entry.rsplit_once('.')?;
            let known = extension == "json" || Backing::ALL.iter().any(|backing| backing.extension() == extension);
            known.then(|| VmName::new(stem).ok()).flatten()
        };
        let disks: BTreeSet<VmName> = entries.iter().filter_map(disk_of).collect();
        let look = |disk: VmName| (disk.clone(), self.look_at_disk(name, uid, &disk, &entries));
        Ok(disks.into_iter().map(look).collect())
    }

    fn look_at_disk(&self, name: &VmName, uid: VmUid, disk: &VmName, entries: &[String]) -> OwnDisk {
        let path = self.layout.disk_record(name, disk);
        let record = match self.view.read_state_file(&path) {
            Ok(None) => Err("there is no record of what it was made from".to_owned()),
            Ok(Some(bytes)) => {
                parse_disk_record(&bytes, name, uid, disk).map_err(|flaw| format!("{}: {flaw}", path.display()))
            }
            Err(error) => Err(error.to_string()),
        };
        let backings = match &record {
            Ok(record) => vec![record.backing],
            Err(_) => Backing::ALL.to_vec(),
        };
        let exists = |backing: &&Backing| entries.contains(&format!("{disk}.{}", backing.extension()));
        let file = backings.iter().find(exists).map(|backing| {
            let image = self.view.image(&self.layout.disk_file(name, disk, *backing));
            image.ok().flatten().map_or(0, |image| image.bytes)
        });
        let image = match &record {
            Ok(record) => fact(self.view.image(&record.image)),
            Err(why) => Fact::Unknown(why.clone()),
        };
        OwnDisk { record, file, image }
    }

    fn trashed(&self, name: &VmName, shared: &Shared) -> Result<Option<u64>, String> {
        let entries = shared.trash(self.view, &self.layout.trash())?.iter();
        let entries = entries.filter_map(|entry| Layout::read_trash_entry(entry)).filter(|(of, _)| of == name);
        Ok(entries.map(|(_, at)| at).max())
    }
}

/// The specs that the ledger knows of: the one taken up last, and the one it booted with.
fn remembered_specs(ledger: &Ledger) -> Vec<Arc<VmSpec>> {
    let accepted = ledger.accepted.as_ref().map(|accepted| Arc::clone(&accepted.vm.spec));
    let booted = ledger.booted.as_ref().and_then(|booted| booted.spec.read().ok());
    accepted.into_iter().chain(booted).collect()
}

fn fact<T>(found: io::Result<Option<T>>) -> Fact<T> {
    match found {
        Ok(Some(found)) => Fact::Present(found),
        Ok(None) => Fact::Absent,
        Err(error) => Fact::Unknown(error.to_string()),
    }
}
