//! Records in the state folder: what is read is what would be written, what is not understood is kept, and no record makes
//! a plan that breaks a rule.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stead::desired::{Declaration, Desired, FileId, Origin, SourceName, SourceState};
use stead::host::devices::CgroupFacts;
use stead::host::{GuestState, HostFacts, ProcessHandle, ProcessIdentity, Program};
use stead::names::{Incarnation, StateId, VmName, VmUid};
use stead::observed::{Fact, Guest, Observed, ObservedVm, Record, VmmProcess};
use stead::plan::{Absences, Action, AllowPrune, Plan, Policy, plan, show};
use stead::spec::{Vm, VmSpec, VmmKind};
use stead::state::{
    Accepted, Booted, DiskRecord, FORMAT_VERSION, Flaw, Handles, Ledger, Phase, StoredSpec, encode, own_fields,
    parse_disk_record, parse_gates, parse_handles, parse_ledger, parse_orphans,
};
use stead::time::{BootId, Now};

/// What does not change from one run to the next.
struct Fixed {
    name: VmName,
    uid: VmUid,
    vm: Arc<Vm>,
    origin: Origin,
    desired: Desired,
    facts: HostFacts,
    now: Now,
}

/// The VM `web` of one state. Whoever makes seeds for these targets needs its uid, which stands in each record.
fn fixed() -> &'static Fixed {
    static FIXED: OnceLock<Fixed> = OnceLock::new();
    FIXED.get_or_init(|| {
        let name = VmName::new("web").unwrap();
        let spec = json!({
            "powerState": "Running", "restartPolicy": "Always", "vmm": "auto", "cpus": 1, "memoryMib": 128,
            "boot": {"kernel": "/k", "initrd": null, "args": ""}, "disks": [],
            "networkInterfaces": [{"name": "eth0", "bridge": null, "macAddress": null}],
            "terminationGracePeriodSeconds": 1, "updatePolicy": "Recreate", "deletionPolicy": "Retain",
        });
        let vm: Arc<Vm> = Arc::new(serde_json::from_value(json!({"name": name, "spec": spec})).unwrap());
        let source = SourceName("manifests".into());
        let origin = Origin { source: source.clone(), path: "web.yaml".into(), line: 1 };
        let declaration = Declaration { origin: origin.clone(), vm: Ok(Arc::clone(&vm)) };
        let root = Some(FileId { device: 1, inode: 1 });
        let desired = Desired {
            sources: BTreeMap::from([(
                source,
                SourceState { incomplete: Vec::new(), root, empty: false, elsewhere: std::sync::Arc::default() },
            )]),
            vms: BTreeMap::from([(name.clone(), vec![declaration])]),
            ..Desired::default()
        };
        let program = |path: &str| Ok(Program { path: path.into() });
        let facts = HostFacts {
            firecracker: program("/bin/firecracker"),
            qemu: program("/bin/qemu"),
            kvm: Ok(()),
            device_mapper: Ok(()),
            cgroups: Ok(CgroupFacts { no_limits: None }),
        };
        let boot_id = BootId("11111111-2222-4333-8444-555555555555".into());
        let now = Now { boot_id, boot_ms: 3_600_000, wall: jiff::Timestamp::UNIX_EPOCH };
        let uid = StateId::derive("fuzz", Path::new("/state")).uid(&name);
        Fixed { name, uid, vm, origin, desired, facts, now }
    })
}

/// The ledger of a VM that runs as declared.
fn sound_ledger(fixed: &Fixed, incarnation: Incarnation) -> Ledger {
    let accepted = Accepted {
        vm: fixed.vm.clone(),
        origin: fixed.origin.clone(),
        root: Some(FileId { device: 1, inode: 1 }),
        generation: 1,
    };
    Ledger {
        incarnation,
        accepted: Some(accepted),
        booted: Some(Booted { incarnation, spec: StoredSpec::from(&fixed.vm.spec), generation: 1 }),
        vmm: Some(VmmKind::Firecracker),
        ..Ledger::new(fixed.name.clone(), fixed.uid)
    }
}

/// The VM's VMM, proven ours.
fn live(incarnation: Incarnation) -> Fact<VmmProcess> {
    let identity = ProcessIdentity { pid: 1_000, start_time: 5, pidfd_inode: Some(10_000) };
    let process = ProcessHandle { identity, pidfd: None, line: None };
    Fact::Present(VmmProcess { process, incarnation, vmm: VmmKind::Firecracker })
}

/// The plan for the one VM, as declared or as it is when its manifest is gone.
fn plan_of(vm: ObservedVm, is_declared: bool) -> Plan {
    let fixed = fixed();
    let mut desired = fixed.desired.clone();
    if !is_declared {
        desired.vms.clear();
    }
    let absences = Absences::long_past(std::iter::once(&fixed.name).filter(|_| !is_declared), &fixed.now);
    let observed = Observed {
        vms: BTreeMap::from([(fixed.name.clone(), vm)]),
        facts: fixed.facts.clone(),
        gates: stead::state::GateState::default(),
    };
    let plan = plan(&desired, &observed, &absences, &Policy::default(), AllowPrune(9), &fixed.now);
    assert!(!show::text(&plan, false).is_empty() || plan.is_empty());
    plan
}

/// Whatever a record says: who may be alive is neither started nor torn down, a life is never used twice, and what would be
/// written can be read.
fn check_plans(record: &Record, ledger: &Ledger) {
    let fixed = fixed();
    let recorded = record.handles().map(|handles| handles.incarnation).unwrap_or_default();
    let lived = recorded.max(ledger.incarnation);
    for process in [Fact::Absent, Fact::Unknown("nobody knows".to_owned()), live(lived)] {
        for is_declared in [true, false] {
            let mut vm = ObservedVm::nothing(fixed.name.clone(), fixed.uid);
            vm.record = record.clone();
            vm.ledger = ledger.clone();
            vm.guest = if process.present().is_some() { Guest::Is(GuestState::Running) } else { Guest::NoVmm };
            vm.process = process.clone();
            let plan = plan_of(vm, is_declared);
            for action in &plan.vms[&fixed.name].actions {
                check_action(action, &process, lived);
            }
        }
    }
}

fn check_action(action: &Action, process: &Fact<VmmProcess>, lived: Incarnation) {
    let fixed = fixed();
    match action {
        Action::Start { incarnation, .. } => {
            assert!(!matches!(process, Fact::Unknown(_)), "a start of what may be alive");
            assert!(*incarnation > lived, "incarnation {incarnation} after {lived}");
        }
        Action::Teardown { .. } => assert!(!matches!(process, Fact::Unknown(_)), "a teardown of what is not known"),
        Action::Record { ledger, .. } => {
            let again = parse_ledger(&encode(ledger), &fixed.name, fixed.uid).unwrap();
            assert_eq!(again, **ledger);
        }
        _ => {}
    }
}

/// What is on disk, as JSON, and what would be there after a rewrite: every field that this stead does not know is the same.
fn check_rewrite<T: Serialize + DeserializeOwned>(bytes: &[u8], parsed: &T) {
    let Ok(before) = serde_json::from_slice::<Value>(bytes) else { return };
    let after: Value = serde_json::from_slice(&encode(parsed)).unwrap();
    for (key, value) in before.as_object().unwrap() {
        if !own_fields::<T>().contains(&key.as_str()) {
            assert_eq!(after.get(key), Some(value), "{key}");
        }
    }
    if let Some(spec) = before.get("spec").filter(|spec| !spec.is_null()) {
        assert_eq!(after.get("spec"), Some(spec));
    }
}

/// A record and the fields beside its own, read in the plainest way: the whole file is made a value, and the value a record.
fn read_plainly<T: DeserializeOwned>(bytes: &[u8]) -> Option<(T, Map<String, Value>)> {
    let Ok(Value::Object(all)) = serde_json::from_slice(bytes) else { return None };
    let mut unknown = all.clone();
    unknown.retain(|key, _| !own_fields::<T>().contains(&key.as_str()));
    Some((serde_json::from_value(Value::Object(all)).ok()?, unknown))
}

/// What stead makes of a file is what comes of it when it is read plainly, or both refuse it; a newer one is told as such.
fn check_reading<T: Serialize + PartialEq + Debug>(bytes: &[u8], read: &Result<T, Flaw>, plainly: Option<&T>) {
    match (read, plainly) {
        (Ok(read), Some(plainly)) => {
            assert_eq!(read, plainly);
            assert_eq!(encode(read), encode(plainly), "fields in another order");
        }
        (Err(flaw), Some(_)) => panic!("{flaw}"),
        // What nobody needs may be what no value can hold, such as 1e999.
        (Ok(_), None) => assert!(!fits_a_value(bytes)),
        (Err(flaw), None) => {
            let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
            let newer =
                value.get("version").and_then(Value::as_u64).is_some_and(|version| version > u64::from(FORMAT_VERSION));
            assert_eq!(newer, matches!(flaw, Flaw::Newer { .. }), "{flaw}");
        }
    }
}

/// Whether the file, which is JSON, can be made a value in which every number is what it is in the file.
fn fits_a_value(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).unwrap();
    serde_json::from_slice(bytes).is_ok_and(|value: Value| !value["base"]["mtime_ns"].is_f64())
}

/// A stored spec is exactly one of this stead's, or kept as it is.
fn check_spec(spec: &StoredSpec, value: &Value) {
    assert_eq!(serde_json::to_value(spec).unwrap(), *value);
    let exact = VmSpec::deserialize(value).ok().filter(|spec| serde_json::to_value(spec).unwrap() == *value);
    match exact {
        Some(exact) => assert_eq!(*spec, StoredSpec::from(&exact.into())),
        None => assert!(spec.read().map_or(true, |read| *spec != StoredSpec::from(&read))),
    }
}

/// The bytes of a handles.json.
pub fn handles(data: &[u8]) {
    let fixed = fixed();
    let read = parse_handles(data, &fixed.name, fixed.uid);
    let plainly = read_plainly(data).map(|(handles, extra)| Handles { extra, ..handles });
    check_reading(data, &read, plainly.filter(|it| it.name == fixed.name && it.uid == fixed.uid).as_ref());
    match read {
        Ok(handles) => {
            assert!((&handles.name, handles.uid) == (&fixed.name, fixed.uid));
            let again = parse_handles(&encode(&handles), &fixed.name, fixed.uid).unwrap();
            assert_eq!(again, handles);
            check_rewrite(data, &handles);
            if let Some(spec) = &handles.spec {
                if let Ok(value) = serde_json::from_slice::<Value>(data) {
                    check_spec(spec, &value["spec"]);
                }
                // What can be read by itself says the same with any other beneath it.
                if let Ok(read) = spec.read() {
                    let _ =
                        spec.completed_from(&read).map(|completed| assert_eq!(completed.disks.len(), read.disks.len()));
                }
                let _ = spec.completed_from(&fixed.vm.spec);
            }
            let ledger = sound_ledger(fixed, handles.incarnation);
            check_plans(&Record::Valid(Box::new(handles)), &ledger);
        }
        Err(flaw) => {
            // Rule 5: a record that is no good ends nobody.
            let mut vm = ObservedVm::nothing(fixed.name.clone(), fixed.uid);
            vm.record = Record::Flawed(flaw.to_string());
            vm.ledger = sound_ledger(fixed, Incarnation(1));
            vm.process = live(Incarnation(1));
            vm.guest = Guest::Is(GuestState::Running);
            spares(&plan_of(vm, true));
        }
    }
}

/// No action of a plan ends or restarts what runs.
fn spares(plan: &Plan) {
    for action in plan.vms.values().flat_map(|vm| &vm.actions) {
        assert!(!matches!(action, Action::Teardown { .. } | Action::Start { .. } | Action::Pause), "{action:?}");
    }
}

/// The bytes of a ledger.json.
pub fn ledger(data: &[u8]) {
    let fixed = fixed();
    let read = parse_ledger(data, &fixed.name, fixed.uid);
    let plainly = read_plainly(data).map(|(ledger, extra)| Ledger { extra, ..ledger });
    check_reading(data, &read, plainly.filter(|it| it.name == fixed.name && it.uid == fixed.uid).as_ref());
    match read {
        Ok(ledger) => {
            assert!((&ledger.name, ledger.uid) == (&fixed.name, fixed.uid));
            assert_eq!(parse_ledger(&encode(&ledger), &fixed.name, fixed.uid).unwrap(), ledger);
            check_rewrite(data, &ledger);
            check_plans(&Record::Missing, &ledger);
        }
        Err(flaw) => {
            let boot = fixed.now.boot_id.clone();
            let mut handles =
                Handles::new(fixed.name.clone(), fixed.uid, Incarnation(1), VmmKind::Firecracker, "/s".into(), boot);
            handles.phase = Phase::Running;
            handles.pid = Some(1_000);
            handles.start_time = Some(5);
            handles.pidfd_inode = Some(10_000);
            handles.spec = Some(StoredSpec::from(&fixed.vm.spec));
            handles.origin = Some(fixed.origin.clone());
            let mut vm = ObservedVm::nothing(fixed.name.clone(), fixed.uid);
            vm.ledger_flaw = Some(flaw.to_string());
            vm.record = Record::Valid(Box::new(handles));
            vm.process = live(Incarnation(1));
            vm.guest = Guest::Is(GuestState::Running);
            spares(&plan_of(vm, true));
        }
    }
}

/// A choice of the record, and its bytes: a disk's, the gates', the orphans'.
pub fn records(data: &[u8]) {
    let fixed = fixed();
    let Some((choice, bytes)) = super::split_choice(data) else { return };
    match choice % 3 {
        0 => {
            let parse = |bytes: &[u8]| parse_disk_record(bytes, &fixed.name, fixed.uid, &fixed.name);
            let read = parse(bytes);
            let plainly = read_plainly(bytes).map(|(record, extra)| DiskRecord { extra, ..record });
            let is_it = |it: &DiskRecord| it.name == fixed.name && it.uid == fixed.uid && it.disk == fixed.name;
            check_reading(bytes, &read, plainly.filter(is_it).as_ref());
            let Ok(record) = read else { return };
            assert_eq!(parse(&encode(&record)).unwrap(), record);
            check_rewrite(bytes, &record);
        }
        1 => {
            let read = parse_gates(bytes);
            check_reading(bytes, &read, read_plainly(bytes).map(|(gates, _)| gates).as_ref());
            let Ok(gates) = read else { return };
            assert_eq!(parse_gates(&encode(&gates)).unwrap(), gates);
            let observed = Observed { vms: BTreeMap::new(), facts: fixed.facts.clone(), gates };
            let (policy, absences) = (Policy::default(), Absences::default());
            let plan = plan(&Desired::default(), &observed, &absences, &policy, AllowPrune(0), &fixed.now);
            assert!(plan.is_empty());
            let mut vm = ObservedVm::nothing(fixed.name.clone(), fixed.uid);
            vm.ledger = sound_ledger(fixed, Incarnation(1));
            let vms = BTreeMap::from([(fixed.name.clone(), vm)]);
            let mut desired = fixed.desired.clone();
            desired.vms.clear();
            let absences = Absences::long_past(vms.keys(), &fixed.now);
            let observed = Observed { vms: vms.clone(), ..observed };
            let _ = stead::plan::plan(&desired, &observed, &absences, &policy, AllowPrune(0), &fixed.now);
        }
        _ => {
            let read = parse_orphans(bytes);
            check_reading(bytes, &read, read_plainly(bytes).map(|(orphans, _)| orphans).as_ref());
            let Ok(orphans) = read else { return };
            assert_eq!(parse_orphans(&encode(&orphans)).unwrap(), orphans);
            for first in orphans.seen.values() {
                let _ = (fixed.now.since(first), first.after(std::time::Duration::MAX));
            }
        }
    }
}
