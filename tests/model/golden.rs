//! The golden cases of tests/plan/, each a folder: see `tests/plan.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};
use stead::desired::hosts::{HostIdentity, Labels};
use stead::desired::load::Loader;
use stead::desired::{Desired, SourceName};
use stead::host::GuestState;
use stead::host::devices::DmDevice;
use stead::names::{Backing, DmLayer, Incarnation, VmName};
use stead::observed::{Fact, Guest, ObservedVm, OwnDisk, Record};
use stead::plan::{Absences, AllowPrune, Plan, Policy, plan};
use stead::spec::Disk;
use stead::state::ExitStatus;

use crate::model::{self, World, boot_id, deadline_ms, handles_of, ledger_of, now_at, process};

/// The moment of every golden case: an hour after boot.
pub const NOW_MS: u64 = 3_600_000;

/// The folders of all cases, in order.
pub fn cases() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plan");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path()).collect();
    cases.retain(|case| case.is_dir());
    cases.sort();
    assert!(cases.len() >= 40, "the golden cases are where this test looks");
    cases
}

fn load(folder: &Path) -> Desired {
    let here = HostIdentity::new("a1".into(), Labels::new(), None, "x86_64".into());
    Loader::new(SourceName("manifests".to_owned()), folder.to_owned(), Some(Arc::new(here))).load(&BTreeSet::new())
}

/// A golden case: what exists, and what is to be done.
#[allow(dead_code, reason = "each test binary uses a part of it")]
pub struct Case {
    pub world: World,
    pub plan: Plan,
}

/// Reads the case of a folder.
pub fn read(case: &Path) -> Case {
    let mut desired = load(&case.join("manifests"));
    let before = load(&case.join("before"));
    let host: Value = serde_yaml::from_str(&fs::read_to_string(case.join("host.yaml")).unwrap()).unwrap();
    let source = desired.sources.values_mut().next().unwrap();
    // Inodes differ from checkout to checkout; the cases speak of one root or another.
    let root = stead::desired::FileId { device: 1, inode: host["root"].as_u64().unwrap_or(1) };
    source.root = source.root.map(|_| root);
    source.incomplete.iter_mut().for_each(|why| *why = why.replace(&case.display().to_string(), "."));
    source.incomplete.extend(host["incomplete"].as_str().map(str::to_owned));

    let mut world = World::new(NOW_MS);
    for (fact, name) in [(&mut world.facts.kvm, "kvm")] {
        if host["lacks"].as_array().is_some_and(|lacks| lacks.contains(&json!(name))) {
            *fact = Err(format!("there is no {name}"));
        }
    }
    let lacks = |name: &str| host["lacks"].as_array().is_some_and(|lacks| lacks.contains(&json!(name)));
    if lacks("firecracker") {
        world.facts.firecracker = Err("firecracker is not in PATH".to_owned());
    }
    if lacks("qemu") {
        world.facts.qemu = Err("qemu-system-x86_64 is not in PATH".to_owned());
    }
    if lacks("device-mapper") {
        world.facts.device_mapper = Err("this kernel has no device-mapper".to_owned());
    }
    // The images of the cases are no files here.
    for declaration in desired.vms.values().flatten() {
        for disk in declaration.vm.iter().flat_map(|vm| &vm.spec.disks) {
            if !disk.image.starts_with("/missing") {
                desired.images.insert(disk.image.clone(), model::image(&disk.image).id);
            }
        }
    }
    if let Some(gates) = host.get("gates") {
        world.gates = serde_json::from_value(gates.clone()).unwrap();
    }
    let none = Map::new();
    let vms = host["vms"].as_object().unwrap_or(&none);
    for (name, facts) in vms {
        let name: VmName = name.parse().unwrap();
        let vm = observe(&name, facts, &desired, &before);
        world.vms.insert(name, vm);
    }
    for name in desired.vms.keys() {
        world.vms.entry(name.clone()).or_insert_with(|| model::nothing(name));
    }
    let mut absences = Absences::default();
    for name in world.vms.keys().filter(|name| !desired.vms.contains_key(*name)) {
        let for_ms = host["absentForMs"].as_u64().unwrap_or(60_000);
        absences.since.insert(name.clone(), deadline_ms(NOW_MS - for_ms));
    }
    let allow = AllowPrune(usize::try_from(host["allowPrune"].as_u64().unwrap_or(0)).unwrap());
    let now = now_at(NOW_MS);
    let plan = plan(&desired, &world.observed(), &absences, &Policy::default(), allow, &now);
    Case { world, plan }
}

/// What exists of one VM: `process` (alive, absent, unknown), `guest`, `record` (sound, missing, flawed, stale), and
/// changes to the `handles` and the `ledger` that a VM started from its manifest would have.
fn observe(name: &VmName, facts: &Value, desired: &Desired, before: &Desired) -> ObservedVm {
    let word = |key: &str, default: &str| facts[key].as_str().unwrap_or(default).to_owned();
    let declared = |from: &Desired| {
        let declaration = from.vms.get(name)?.iter().find(|declaration| declaration.vm.is_ok())?;
        Some((declaration.vm.clone().unwrap(), declaration.origin.clone()))
    };
    let applied = if facts["applied"] == json!(false) { None } else { declared(before).or_else(|| declared(desired)) };
    let alive = word("process", "absent");
    let incarnation = Incarnation(facts["incarnation"].as_u64().unwrap_or(1));
    let vmm = if word("vmm", "firecracker") == "qemu" {
        stead::spec::VmmKind::Qemu
    } else {
        stead::spec::VmmKind::Firecracker
    };

    let mut vm = model::nothing(name);
    if let Some((declared, origin)) = &applied {
        vm.ledger = ledger_of(declared, origin, incarnation, vmm);
        if facts["started"] == json!(false) {
            vm.ledger.booted = None;
            vm.ledger.incarnation = Incarnation(0);
        }
    }
    merge(&mut vm.ledger, &facts["ledger"]);
    let handles = || {
        let spec = applied.as_ref().map(|(declared, origin)| (&**declared, origin));
        let mut handles = handles_of(name, spec, incarnation, vmm);
        merge(&mut handles, &facts["handles"]);
        handles
    };
    let default = if alive == "absent" { "missing" } else { "sound" };
    vm.record = match word("record", default).as_str() {
        "missing" => Record::Missing,
        "flawed" => Record::Flawed("it is empty".to_owned()),
        "stale" => {
            let mut handles = handles();
            handles.pid = Some(4);
            handles.pidfd_inode = Some(4);
            Record::Valid(Box::new(handles))
        }
        _ => Record::Valid(Box::new(handles())),
    };
    vm.process = match alive.as_str() {
        "alive" => Fact::Present(process(incarnation, vmm)),
        "unknown" => Fact::Unknown("its vmm.lock is held by a process that is not proven to be its VMM".to_owned()),
        _ => Fact::Absent,
    };
    if alive == "alive" {
        vm.guest = match word("guest", "running").as_str() {
            "paused" => Guest::Is(GuestState::Paused),
            "notStarted" => Guest::Is(GuestState::NotStarted),
            "shutDown" => Guest::Is(GuestState::ShutDown),
            "silent" => Guest::Silent("the API did not answer within 2s".to_owned()),
            _ => Guest::Is(GuestState::Running),
        };
    }
    if let Some(exit) = facts.get("exit") {
        vm.exit = serde_json::from_value(exit.clone()).unwrap();
    } else if alive == "absent" {
        vm.exit = ExitStatus::Unknown;
    }
    vm.exit_message = facts["exitMessage"].as_str().map(str::to_owned);
    for (tap, state) in facts["taps"].as_object().into_iter().flatten() {
        let tap = if tap == "eth0" { model::uid(name).tap(&tap.parse().unwrap()) } else { tap.clone() };
        let bridge = state["bridge"].as_str().map(str::to_owned);
        let fact = match state {
            Value::Null => Fact::Absent,
            _ => Fact::Present(stead::host::Tap { name: tap.clone(), alias: None, bridge, up: true }),
        };
        vm.taps.insert(tap, fact);
    }
    vm.trashed = facts["trashed"].as_u64();
    vm.unread = facts["unread"].as_str().map(str::to_owned);
    vm.disks_unknown = facts["disksUnknown"].as_str().map(str::to_owned);
    let disks = applied.iter().flat_map(|(declared, _)| &declared.spec.disks);
    for disk in disks.filter(|disk| facts["disks"].get(disk.name.as_str()).is_some()) {
        vm.disks.insert(disk.name.clone(), own_disk(name, disk, &facts["disks"][disk.name.as_str()]));
    }
    for (dm, status) in facts["dmStatus"].as_object().into_iter().flatten() {
        let name = model::uid(name).dm_name(&dm.parse().unwrap(), DmLayer::Snapshot);
        let device = DmDevice {
            name: name.clone(),
            uuid: String::new(),
            device: "dm-0".to_owned(),
            open_count: 1,
            has_table: true,
            suspended: false,
            deferred_remove: false,
            status: status.as_str().unwrap().to_owned(),
        };
        vm.dm_devices.insert(name, Fact::Present(device));
    }
    vm.leftover_files =
        facts["leftovers"].as_array().into_iter().flatten().map(|f| f.as_str().unwrap().into()).collect();
    assert_eq!(boot_id(), now_at(0).boot_id);
    vm
}

/// A disk of a VM's own: `backing` (cow, qcow2, copy), `file: false` where it is not made yet, `image` (same, written,
/// replaced, grown, gone, unknown), and `record: false` where it is lost.
fn own_disk(vm: &VmName, disk: &Disk, facts: &Value) -> OwnDisk {
    let backing = facts.get("backing").map_or(Backing::Cow, |backing| serde_json::from_value(backing.clone()).unwrap());
    let record = model::disk_record(vm, disk, backing);
    let mut image = record.base;
    let image = match facts["image"].as_str().unwrap_or("same") {
        "same" => Fact::Present(image),
        "written" => {
            image.mtime_ns += 1;
            Fact::Present(image)
        }
        "replaced" => {
            image.id.inode += 1;
            Fact::Present(image)
        }
        "grown" => {
            image.bytes += 4096;
            Fact::Present(image)
        }
        "gone" => Fact::Absent,
        _ => Fact::Unknown("Permission denied".to_owned()),
    };
    let file = (facts["file"] != json!(false)).then_some(record.bytes);
    let lost = facts["record"] == json!(false);
    OwnDisk { record: if lost { Err("it is empty".to_owned()) } else { Ok(record) }, file, image }
}

/// Lays the fields of `changes` over a value.
fn merge<T: serde::Serialize + serde::de::DeserializeOwned>(value: &mut T, changes: &Value) {
    let Some(changes) = changes.as_object() else { return };
    let mut json = serde_json::to_value(&*value).unwrap();
    for (key, change) in changes {
        json[key] = change.clone();
    }
    *value = serde_json::from_value(json).unwrap();
}
