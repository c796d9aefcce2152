//! A file of manifests: every problem has its place, what is sound keeps every rule of a spec, and is itself when it is
//! stored, or written as a manifest again.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use serde_json::{Map, Value, json};
use stead::desired::load::load_text;
use stead::desired::{Desired, SourceName};
use stead::names::{INTERFACE_NAME_MAX, Incarnation, StateId};
use stead::spec::{DiskMode, Vm, VmSpec, VmmKind};
use stead::state::{StoredSpec, TapHandle};
use stead::vmm::{DiskSource, LaunchInput, launch, qemu};

/// Any bytes; those that are no text are refused before they come here.
pub fn manifest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains('\0') {
        return;
    }
    let desired = load(text);
    check_problems(&desired, text);
    for vm in sound(&desired) {
        check_spec(&vm.spec);
        check_stored(vm);
        check_launch(vm);
        let again = load(&as_manifest(vm));
        assert!(again.problems.is_empty(), "{:?}\n{}", again.problems, as_manifest(vm));
        assert_eq!(sound(&again).collect::<Vec<_>>(), [vm]);
    }
    // A file that is being written is read at any length.
    if desired.problems.is_empty() && text.is_char_boundary(text.len() / 2) {
        load(&text[..text.len() / 2]);
    }
}

fn load(text: &str) -> Desired {
    load_text(SourceName("fuzz".into()), Path::new("web.yaml"), text)
}

fn sound(desired: &Desired) -> impl Iterator<Item = &Vm> {
    desired.vms.values().flatten().filter_map(|declaration| declaration.vm.as_deref().ok())
}

fn check_problems(desired: &Desired, text: &str) {
    let source = desired.sources.values().next().unwrap();
    // A carriage return ends a line too, in YAML.
    let lines = u64::try_from(text.split(['\n', '\r']).count()).unwrap();
    for problem in &desired.problems {
        let (line, column) = problem.place.expect("a text is no unreadable file");
        assert!((1..=lines + 1).contains(&line) && column >= 1, "{problem:?} of {lines} lines");
        assert!(!problem.message.is_empty(), "{problem:?}");
        let shown = problem.one_line();
        assert!(!shown.contains('\n') && shown.len() < 8_000, "{} bytes: {shown:.300}", shown.len());
    }
    if desired.problems.is_empty() {
        assert!(source.is_complete(), "{:?}", source.incomplete);
    }
    for (name, declaration) in desired.vms.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one))) {
        assert!((1..=lines + 1).contains(&declaration.origin.line), "{declaration:?}");
        match &declaration.vm {
            Ok(vm) => assert_eq!(vm.name, *name),
            Err(problems) => {
                assert!(!problems.is_empty());
                assert!(problems.iter().all(|problem| desired.problems.contains(problem)));
            }
        }
    }
    assert_eq!(source.empty, desired.vms.is_empty());
}

fn check_path(path: &Path) {
    assert!(path.is_absolute() && !path.components().any(|part| part == Component::ParentDir));
    assert!(!path.to_str().unwrap().contains(['\0', '\n']));
}

fn check_spec(spec: &VmSpec) {
    assert!((1..=32).contains(&spec.cpus) && spec.memory_mib >= 1);
    assert!(spec.memory_mib.checked_mul(1 << 20).is_some() && spec.termination_grace_period_seconds <= 86_400);
    check_path(&spec.boot.kernel);
    spec.boot.initrd.iter().for_each(|path| check_path(path));
    assert!(!spec.boot.args.contains(['\0', '\n']));
    assert_eq!(spec.disks.iter().map(|disk| &disk.name).collect::<BTreeSet<_>>().len(), spec.disks.len());
    for disk in &spec.disks {
        check_path(&disk.image);
        assert!(disk.size_bytes.is_none_or(|bytes| bytes > 0 && bytes % 512 == 0 && disk.has_own_file()));
        let sharers = spec.disks.iter().filter(|other| other.image == disk.image).count();
        assert!(disk.mode != DiskMode::Direct || disk.read_only || sharers == 1, "{disk:?}");
    }
    let interfaces = &spec.network_interfaces;
    assert_eq!(interfaces.iter().map(|one| &one.name).collect::<BTreeSet<_>>().len(), interfaces.len());
    let addresses: Vec<_> = interfaces.iter().filter_map(|one| one.mac_address).collect();
    assert_eq!(addresses.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), addresses.len());
    for bridge in interfaces.iter().filter_map(|one| one.bridge.as_deref()) {
        // dev_valid_name (net/core/dev.c).
        assert!((1..=INTERFACE_NAME_MAX).contains(&bridge.len()) && bridge != "." && bridge != "..", "{bridge:?}");
        let is_bad = |byte: u8| matches!(byte, b'/' | b':' | 0 | b' ' | 0xa0) || (9..=13).contains(&byte);
        assert!(!bridge.bytes().any(is_bad), "{bridge:?}");
    }
}

/// What is stored of a VM is the VM, by itself and over any other.
fn check_stored(vm: &Vm) {
    let value = serde_json::to_value(vm).unwrap();
    assert_eq!(serde_json::from_value::<Vm>(value).unwrap(), *vm);
    let bytes = serde_json::to_vec(&StoredSpec::from(&vm.spec)).unwrap();
    let stored: StoredSpec = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(stored, StoredSpec::from(&vm.spec));
    assert_eq!(stored.read().unwrap(), vm.spec);
    // A newer field that its writer did not know, and one that this stead does not know.
    let mut other: Value = serde_json::from_slice(&bytes).unwrap();
    let fields = other.as_object_mut().unwrap();
    fields.remove("updatePolicy");
    fields.insert("fromTheFuture".into(), json!([1, null]));
    let stored: StoredSpec = serde_json::from_value(other.clone()).unwrap();
    assert_eq!(serde_json::to_value(&stored).unwrap(), other);
    assert_eq!(*stored.completed_from(&vm.spec).unwrap(), *vm.spec);
}

/// Both VMMs can be started with it: no argument has a NUL, which would cut it off, and a configuration is JSON.
fn check_launch(vm: &Vm) {
    let uid = StateId::derive("fuzz", Path::new("/state")).uid(&vm.name);
    let disks: Vec<DiskSource> = vm.spec.disks.iter().map(|disk| DiskSource::Raw(disk.image.clone())).collect();
    let taps: Vec<TapHandle> = vm
        .spec
        .network_interfaces
        .iter()
        .map(|one| TapHandle { interface: one.name.clone(), tap: uid.tap(&one.name), bridge: one.bridge.clone() })
        .collect();
    for kind in [VmmKind::Firecracker, VmmKind::Qemu] {
        let launch = launch(&LaunchInput {
            spec: &vm.spec,
            kind,
            id: uid.process_id(Incarnation(u64::MAX)),
            api_socket: Path::new("/r/a.sock"),
            identity_socket: Some(Path::new("/r/a.id.sock")),
            config_file: Path::new("/s/vmm.json"),
            console_log: Path::new("/s/console.log"),
            vmm_log: Path::new("/s/vmm.log"),
            disks: &disks,
            taps: &taps,
            accel: qemu::Accel::Auto,
            kvm_usable: true,
        });
        assert!(launch.args.iter().all(|argument| !argument.as_encoded_bytes().contains(&0)));
        if let Some(config) = launch.config {
            let config: Value = serde_json::from_slice(&config).unwrap();
            let ids: Vec<&str> =
                config["drives"].as_array().unwrap().iter().map(|drive| drive["drive_id"].as_str().unwrap()).collect();
            assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), vm.spec.disks.len(), "{ids:?}");
        }
    }
}

/// The VM as a manifest in JSON, with nothing left to a default.
fn as_manifest(vm: &Vm) -> String {
    let mut spec = serde_json::to_value(&vm.spec).unwrap();
    let fields: &mut Map<String, Value> = spec.as_object_mut().unwrap();
    fields.remove("memoryMib");
    fields.insert("memory".into(), format!("{}Mi", vm.spec.memory_mib).into());
    for disk in fields.get_mut("disks").unwrap().as_array_mut().unwrap() {
        let disk = disk.as_object_mut().unwrap();
        let size = disk.remove("sizeBytes").unwrap();
        disk.insert("size".into(), size);
    }
    let metadata = json!({"name": vm.name, "labels": vm.labels, "annotations": vm.annotations});
    let manifest = json!({
        "apiVersion": "stead.dev/v1alpha1", "kind": "VirtualMachine", "metadata": metadata, "spec": spec,
    });
    // JSON allows any character in a text, YAML only some: those that nobody can see are written as escapes.
    let escape = |c: char| match c {
        '\u{7f}'..='\u{ffff}' => format!("\\u{:04x}", u32::from(c)),
        other => other.to_string(),
    };
    manifest.to_string().chars().map(escape).collect()
}
