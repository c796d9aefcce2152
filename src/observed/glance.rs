//! A glance at VMs that are at rest: is everything as it was when each was looked at last?
//!
//! It takes one dump of each kind of kernel object and a few stats a VM, where a look takes a conversation with each VMM and
//! reads every file. It finds what is likely to change behind stead's back: a process that ended, an object that is gone,
//! altered or on no record, a record that is another, a log that has grown too long. It asks no guest how it is, and
//! believes a file's inode, length and time of change: the thorough pass does not.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;

use super::orphans::{Dumps, tags_of};
use super::snapshot::Looker;
use super::{Fact, ObservedVm};
use crate::host::Tap;
use crate::host::devices::{DmDevice, LoopDevice};
use crate::names::VmName;

/// A VM that was looked at before.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub name: VmName,
    /// What existed of it.
    pub observed: Arc<ObservedVm>,
    /// Whether the glance compares it with what there is: where nothing is to be done about it or waited for, nobody else does.
    pub is_compared: bool,
}

/// What a glance found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance {
    /// The VMs among those compared that differ from what was seen of them.
    pub changed: BTreeSet<VmName>,
    /// Whether there are objects with this state's tag that no record of a known VM names.
    pub has_unaccounted: bool,
}

impl Looker<'_> {
    /// Compares the host with what is known. `log_limit` is how many bytes a log may grow to.
    ///
    /// # Errors
    /// When some kind of object cannot be listed: then nothing was compared.
    pub fn glance(&self, known: &[Known], log_limit: u64) -> io::Result<Glance> {
        let dumps = self.dumps()?;
        let changed = {
            let objects = Objects::of(&dumps);
            let compared = known.iter().filter(|known| known.is_compared);
            let changed = compared.filter(|known| {
                let observed = &known.observed;
                !(objects.are_as_in(observed) && self.lives(observed) && self.files_are_as_in(observed, log_limit))
            });
            changed.map(|known| known.name.clone()).collect()
        };
        let records = known.iter().filter_map(|known| known.observed.record.handles());
        let accounted: HashSet<_> = records.flat_map(|handles| tags_of(&self.layout.state_id, handles)).collect();
        let has_unaccounted = self.tagged(dumps, &|tag| accounted.contains(tag)).next().is_some();
        Ok(Glance { changed, has_unaccounted })
    }

    fn lives(&self, observed: &ObservedVm) -> bool {
        observed.process.present().is_some_and(|vmm| self.view.is_alive(&vmm.process))
    }

    /// A file that cannot be looked at now is for a look to tell of.
    fn files_are_as_in(&self, observed: &ObservedVm, log_limit: u64) -> bool {
        let name = &observed.name;
        let record = self.view.file_stamp(&self.layout.handles(name));
        let mut logs = [self.layout.console_log(name), self.layout.vmm_log(name)].into_iter();
        record.is_ok_and(|stamp| stamp.is_some() && stamp == observed.record_stamp)
            && logs.all(|log| self.view.file_stamp(&log).is_ok_and(|log| log.is_none_or(|log| log.bytes <= log_limit)))
    }
}

/// The kernel objects there are, by what the kernel calls them.
struct Objects<'a> {
    taps: HashMap<&'a str, &'a Tap>,
    dm_devices: HashMap<&'a str, &'a DmDevice>,
    loops: HashMap<&'a str, &'a LoopDevice>,
}

impl<'a> Objects<'a> {
    fn of(dumps: &'a Dumps) -> Self {
        Self {
            taps: dumps.taps.iter().map(|tap| (tap.name.as_str(), tap)).collect(),
            dm_devices: dumps.dm_devices.iter().map(|dm| (dm.name.as_str(), dm)).collect(),
            loops: dumps.loops.iter().map(|device| (device.device.as_str(), device)).collect(),
        }
    }

    fn are_as_in(&self, observed: &ObservedVm) -> bool {
        let is_same_loop = |seen: &LoopDevice| {
            self.loops.get(seen.device.as_str()).is_some_and(|found| {
                found.tag == seen.tag && found.backing == seen.backing && found.read_only == seen.read_only
            })
        };
        all(&observed.taps, |seen| self.taps.get(seen.name.as_str()) == Some(&seen))
            && all(&observed.dm_devices, |seen| {
                self.dm_devices.get(seen.name.as_str()).is_some_and(|found| is_same_dm(seen, found))
            })
            && all(&observed.loops, is_same_loop)
            && all(&observed.base_loops, is_same_loop)
    }
}

/// What is absent or unknown is for a look to tell of.
fn all<K, T>(facts: &BTreeMap<K, Fact<T>>, is_same: impl Fn(&T) -> bool) -> bool {
    facts.values().all(|fact| fact.present().is_some_and(&is_same))
}

/// How full it is differs with every write of the guest's, and who has it open with everybody who looks.
fn is_same_dm(seen: &DmDevice, found: &DmDevice) -> bool {
    let state = |dm: &DmDevice| (dm.has_table, dm.suspended, dm.deferred_remove, dm.is_invalid());
    seen.uuid == found.uuid && seen.device == found.device && state(seen) == state(found)
}
