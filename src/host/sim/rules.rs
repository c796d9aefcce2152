//! What the machine sees stead do that it must never do. The numbers are those of ARCHITECTURE.md's list.

use std::collections::BTreeSet;
use std::path::Path;

use super::world::{Process, World};
use crate::desired::FileId;

impl World {
    /// Before something that a record must name is made.
    pub(super) fn needs_record(&mut self, kind: &str, tag: &str) {
        if !self.is_on_record(tag) {
            self.violations.push(format!("3: {kind} {tag} is made and no durable record names it"));
        }
    }

    fn is_on_record(&self, tag: &str) -> bool {
        let vms = self.state_dir.join("vms");
        let names = self.files.list(&vms);
        let records = names.iter().map(|name| vms.join(name).join("handles.json"));
        records.filter_map(|path| self.files.read_durable(&path)).any(|bytes| contains(&bytes, tag.as_bytes()))
    }

    /// Before a process is killed by stead.
    pub(super) fn may_kill(&mut self, pid: i32) {
        let Some(process) = self.processes.get(&pid) else { return };
        if process.vmm.is_none() {
            let argv = process.argv.join(" ");
            self.violations.push(format!("2: pid {pid} is killed, which is a stranger: {argv}"));
        }
    }

    /// When a VMM has been started.
    pub(super) fn one_vmm(&mut self, pid: i32) {
        let Some(mine) = self.processes.get(&pid).and_then(uid_of) else { return };
        let vmms = self.processes.iter().filter(|(_, process)| process.vmm.is_some());
        let others = vmms.filter(|(other, process)| **other != pid && uid_of(process) == Some(mine));
        let others: Vec<i32> = others.map(|(other, _)| *other).collect();
        if !others.is_empty() {
            self.violations.push(format!("1: pid {pid} is started while {others:?} live for {mine}"));
        }
    }

    /// Before a file is removed by stead.
    pub(super) fn may_remove(&mut self, path: &Path) {
        let Some(id) = self.files.file(path) else { return };
        // Another name of it would keep it.
        if self.files.paths_of(id).count() == 1 && self.is_held(id) {
            self.violations.push(format!("4: {} is removed while it is in use", path.display()));
        }
    }

    fn is_held(&self, id: FileId) -> bool {
        let drives = self.processes.values().filter_map(|process| process.vmm.as_ref()).flat_map(|vmm| &vmm.drives);
        self.loops.values().any(|found| found.backing == id)
            || drives.filter_map(|drive| self.files.file(&drive.path)).any(|open| open == id)
    }

    /// Everything there is beside files.
    pub(super) fn objects(&self) -> BTreeSet<String> {
        let processes = self.processes.values().map(|process| format!("process {}", process.argv.join(" ")));
        let loops = self.loops.values().map(|found| format!("loop {} over {}", found.tag, found.path.display()));
        let dm = self.dm.iter().map(|(name, dm)| format!("dm {name} {}", dm.uuid));
        let taps = self.taps.iter().map(|(name, tap)| format!("tap {name} {:?} on {:?}", tap.alias, tap.bridge));
        let cgroups = self.cgroups.keys().filter(|path| !path.is_empty()).map(|path| format!("cgroup {path}"));
        let sockets = self.files.below(&self.run_dir).filter(|(path, _)| path.extension().is_some());
        let sockets = sockets.map(|(path, _)| format!("socket {}", path.display()));
        processes.chain(loops).chain(dm).chain(taps).chain(cgroups).chain(sockets).collect()
    }
}

/// The id argument of a VMM.
pub(super) fn id_of(process: &Process) -> Option<&str> {
    let option = process.argv.iter().position(|word| word == "--id" || word == "-name")?;
    process.argv.get(option + 1).map(String::as_str)
}

/// The VM that a VMM was started for: its id argument, without the number of its life.
fn uid_of(process: &Process) -> Option<&str> {
    id_of(process)?.rsplit_once('-').map(|(uid, _)| uid)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
