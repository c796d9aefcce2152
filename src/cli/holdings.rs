//! Every kernel object and file of its own that a VM holds, each with its state.

use serde_json::{Value, json};

use super::table::one_line;
use super::view::View;
use crate::host::devices::{DmDevice, LoopDevice};
use crate::names::Backing;
use crate::observed::{Fact, ObservedVm, OwnDisk};
use crate::state::{Handles, LoopHandle};

/// One thing that a VM holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holding {
    kind: &'static str,
    name: String,
    /// Which of the VM's parts it serves.
    of: String,
    state: String,
}

impl Holding {
    pub(super) fn row(&self) -> Vec<String> {
        vec![self.kind.to_owned(), self.name.clone(), self.of.clone(), one_line(&self.state)]
    }

    pub(super) fn json(&self) -> Value {
        json!({"kind": self.kind, "name": self.name, "for": self.of, "state": self.state})
    }
}

/// What the VM holds: what its record names, and what was found of it without a record.
pub(super) fn holdings(view: &View) -> Vec<Holding> {
    let vm = &view.observed;
    let mut all = Vec::new();
    if let Some(process) = vm.process.present() {
        let pid = process.process.identity.pid;
        all.push(holding("process", format!("pid {pid}"), format!("incarnation {}", process.incarnation), "alive"));
    }
    let handles = vm.record.handles();
    if let Some(handles) = handles {
        sockets(handles, vm, &mut all);
    }
    for (tap, fact) in &vm.taps {
        let of = handles.and_then(|handles| handles.tap_devices.iter().find(|handle| handle.tap == *tap));
        let interface = of.map_or_else(String::new, |handle| handle.interface.to_string());
        let state = state(fact, |tap| {
            let up = if tap.up { "up" } else { "down" };
            tap.bridge.as_ref().map_or_else(|| up.to_owned(), |bridge| format!("{up}, on bridge {bridge}"))
        });
        all.push(holding("tap", tap.clone(), interface, state));
    }
    for (name, fact) in &vm.dm_devices {
        let of = handles.and_then(|handles| handles.dm_devices.iter().find(|handle| handle.name == *name));
        let disk = of.map_or_else(String::new, |handle| format!("disk {}", handle.disk));
        all.push(holding("dm", name.clone(), disk, state(fact, dm_state)));
    }
    for handle in handles.iter().flat_map(|handles| &handles.loops) {
        let base = vm.base_loops.get(&handle.backing).filter(|_| handle.read_only);
        let Some(fact) = base.or_else(|| vm.loops.get(&handle.tag)) else { continue };
        let name = match (fact, &handle.device) {
            (Fact::Present(found), _) => found.device.clone(),
            (_, Some(device)) => device.clone(),
            (_, None) => "loop".to_owned(),
        };
        all.push(holding(
            "loop",
            name,
            format!("disk {}", handle.disk),
            state(fact, |found| loop_state(handle, found)),
        ));
    }
    if let Some(cgroup) = handles.and_then(|handles| handles.cgroup.clone()) {
        let state = state(&vm.cgroup, |found| {
            let limit = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!(", {name} {value}"));
            let limits = [limit("cpu.max", &found.cpu_max), limit("memory.max", &found.memory_max)];
            let processes = found.processes.len();
            let word = if processes == 1 { "process" } else { "processes" };
            format!("{processes} {word}{}", limits.into_iter().flatten().collect::<String>())
        });
        all.push(holding("cgroup", cgroup, String::new(), state));
    }
    for (disk, own) in &vm.disks {
        all.push(holding("file", file_name(disk.as_str(), own), format!("disk {disk}"), disk_state(own)));
    }
    all
}

fn sockets(handles: &Handles, vm: &ObservedVm, all: &mut Vec<Holding>) {
    let sockets = [(Some(&handles.api_socket), "API"), (handles.identity_socket.as_ref(), "identity")];
    for (socket, of) in sockets.into_iter().filter_map(|(socket, of)| Some((socket?, of))) {
        let state = match &vm.process {
            Fact::Present(_) => "listening",
            Fact::Absent if vm.leftover_files.contains(socket) => "left over",
            Fact::Absent => "gone",
            Fact::Unknown(_) => "cannot tell who listens",
        };
        all.push(holding("socket", socket.display().to_string(), of, state));
    }
}

fn holding(kind: &'static str, name: String, of: impl Into<String>, state: impl Into<String>) -> Holding {
    Holding { kind, name, of: of.into(), state: state.into() }
}

fn state<T>(fact: &Fact<T>, describe: impl FnOnce(&T) -> String) -> String {
    match fact {
        Fact::Present(found) => describe(found),
        Fact::Absent => "not there".to_owned(),
        Fact::Unknown(why) => format!("cannot be told: {why}"),
    }
}

fn dm_state(dm: &DmDevice) -> String {
    let mut words = vec![dm.device.clone()];
    words.push(match (dm.has_table, dm.suspended) {
        (false, _) => "half made: it has no table".to_owned(),
        (true, true) => "suspended".to_owned(),
        (true, false) => "active".to_owned(),
    });
    words.push(format!("open {} times", dm.open_count));
    if !dm.status.is_empty() {
        words.push(dm.status.clone());
    }
    if dm.deferred_remove {
        words.push("its removal was deferred".to_owned());
    }
    words.join(", ")
}

fn loop_state(handle: &LoopHandle, found: &LoopDevice) -> String {
    let access = if found.read_only { "read-only" } else { "read-write" };
    let shared = if handle.read_only { format!(", under {} devices", found.devices_on_top) } else { String::new() };
    format!("{access} over {}{shared}", found.backing_path.display())
}

fn file_name(disk: &str, own: &OwnDisk) -> String {
    let backing = own.record.as_ref().map(|record| record.backing);
    backing.map_or_else(|_| disk.to_owned(), |backing| format!("disks/{disk}.{}", backing.extension()))
}

fn disk_state(own: &OwnDisk) -> String {
    let record = match (&own.record, own.file) {
        (Err(why), _) => return format!("not used: {why}"),
        (Ok(_), None) => return "not made yet".to_owned(),
        (Ok(record), Some(_)) => record,
    };
    let what = match record.backing {
        Backing::Cow => "snapshot of",
        Backing::Qcow2 => "qcow2 overlay over",
        Backing::Copy => "copy of",
    };
    let image = record.image.display();
    let base = match &own.image {
        _ if record.backing == Backing::Copy => "",
        Fact::Present(found) if *found == record.base => "",
        Fact::Present(_) => ", which CHANGED since",
        Fact::Absent => ", which is GONE",
        Fact::Unknown(_) => ", which cannot be looked at",
    };
    format!("{what} {image}{base}, {} MiB", record.bytes >> 20)
}
