//! What holds of every plan, over worlds that chance makes.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod model;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use stead::desired::{Declaration, Desired, FileId, Origin, SourceName, SourceState};
use stead::host::GuestState;
use stead::names::{Incarnation, VmName};
use stead::observed::{Fact, Guest, ObservedVm, Record};
use stead::plan::{Absences, Action, AllowPrune, Plan, Policy, TeardownReason, plan};
use stead::spec::{Vm, VmmKind};
use stead::state::{ExitStatus, Phase};

use model::{World, handles_of, ledger_of, now_at, process};

const NOW_MS: u64 = 3_600_000;

fn vm(name: &VmName, memory: u64, power: &str, policy: &str, update: &str) -> Vm {
    serde_json::from_value(json!({
        "name": name,
        "spec": {
            "powerState": power, "restartPolicy": policy, "vmm": "auto", "cpus": 1, "memoryMib": memory,
            "boot": {"kernel": "/k", "initrd": null, "args": ""}, "disks": [],
            "networkInterfaces": [{"name": "eth0", "bridge": null, "macAddress": null}],
            "terminationGracePeriodSeconds": 1, "updatePolicy": update, "deletionPolicy": "Retain",
        },
    }))
    .unwrap()
}

fn any_vm(name: VmName) -> impl Strategy<Value = Vm> {
    let power = prop_oneof![6 => Just("Running"), 1 => Just("Paused"), 1 => Just("Stopped")];
    let policy = prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")];
    let update = prop_oneof![3 => Just("Recreate"), 1 => Just("OnRestart")];
    (1..4_u64, power, policy, update)
        .prop_map(move |(memory, power, policy, update)| vm(&name, memory, power, policy, update))
}

fn origin(name: &VmName) -> Origin {
    Origin { source: SourceName("manifests".into()), path: format!("{name}.yaml").into(), line: 1 }
}

/// Anything that may exist of a VM.
fn any_observed(name: VmName) -> impl Strategy<Value = ObservedVm> {
    let exit = prop_oneof![Just(ExitStatus::Code(0)), Just(ExitStatus::Code(1)), Just(ExitStatus::Unknown)];
    let phase = prop_oneof![Just(Phase::Running), Just(Phase::Starting), Just(Phase::Stopping)];
    let applied = prop::option::of(any_vm(name.clone()));
    (0..4_u8, 0..4_u8, 0..5_u8, phase, exit, applied, 1..4_u64, any::<bool>()).prop_map(
        move |(alive, record, guest, phase, exit, applied, life, asked)| {
            let incarnation = Incarnation(life);
            let mut vm = model::nothing(&name);
            if let Some(applied) = &applied {
                vm.ledger = ledger_of(applied, &origin(&name), incarnation, VmmKind::Firecracker);
                vm.ledger.restart_requested = asked;
            }
            let mut handles = handles_of(
                &name,
                applied.as_ref().map(|vm| (vm, origin(&name))).as_ref().map(|(vm, o)| (*vm, o)),
                incarnation,
                VmmKind::Firecracker,
            );
            handles.phase = phase;
            vm.exit = exit;
            vm.record = match record {
                0 => Record::Missing,
                1 => Record::Flawed("it is empty".into()),
                _ => Record::Valid(Box::new(handles)),
            };
            vm.process = match alive {
                0 => Fact::Absent,
                1 => Fact::Unknown("nobody knows".into()),
                _ => Fact::Present(process(incarnation, VmmKind::Firecracker)),
            };
            if vm.process.present().is_some() {
                vm.guest = match guest {
                    0 => Guest::Is(GuestState::Paused),
                    1 => Guest::Is(GuestState::NotStarted),
                    2 => Guest::Is(GuestState::ShutDown),
                    3 => Guest::Silent("hung".into()),
                    _ => Guest::Is(GuestState::Running),
                };
            }
            vm
        },
    )
}

#[derive(Debug, Clone)]
struct Case {
    desired: Desired,
    world: World,
}

fn any_case() -> impl Strategy<Value = Case> {
    let names: Vec<VmName> = ["a", "b", "c", "d"].map(|name| name.parse().unwrap()).into();
    let one = |name: VmName| (prop::option::of(any_vm(name.clone())), prop::option::of(any_observed(name)));
    let each: Vec<_> = names.iter().cloned().map(one).collect();
    (each, any::<bool>()).prop_map(move |(each, complete)| {
        let mut desired = Desired::default();
        let mut world = World::new(NOW_MS);
        for (name, (declared, observed)) in names.iter().zip(each) {
            if let Some(vm) = declared {
                let declaration = Declaration { origin: origin(name), vm: Ok(Arc::new(vm)) };
                desired.vms.insert(name.clone(), vec![declaration]);
                world.vms.insert(name.clone(), model::nothing(name));
            }
            if let Some(observed) = observed {
                world.vms.insert(name.clone(), observed);
            }
        }
        let incomplete = if complete { Vec::new() } else { vec!["a file cannot be read".to_owned()] };
        let root = Some(FileId { device: 1, inode: 1 });
        let state =
            SourceState { incomplete, root, empty: desired.vms.is_empty(), elsewhere: std::sync::Arc::default() };
        desired.sources = BTreeMap::from([(SourceName("manifests".into()), state)]);
        Case { desired, world }
    })
}

fn plan_of(case: &Case) -> Plan {
    let now = now_at(case.world.now_ms);
    let absent: BTreeSet<&VmName> =
        case.world.vms.keys().filter(|name| !case.desired.vms.contains_key(*name)).collect();
    let absences = Absences::long_past(absent.into_iter(), &now);
    plan(&case.desired, &case.world.observed(), &absences, &Policy::default(), AllowPrune(9), &now)
}

/// Carries plans out until there is nothing to do. The model itself refuses a start beside what may live, a start over a
/// record, and a teardown of what may not be there.
fn converge(case: &mut Case) -> usize {
    for round in 0..40 {
        let plan = plan_of(case);
        if !case.world.apply(&plan) {
            return round;
        }
    }
    panic!("it never comes to rest: {:#?}", plan_of(case));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_plan(mut case in any_case()) {
        converge(&mut case);
        prop_assert!(plan_of(&case).is_empty());
    }

    #[test]
    fn what_comes_to_rest_stays_at_rest(mut case in any_case()) {
        converge(&mut case);
        let rest = case.world.vms.clone();
        prop_assert_eq!(converge(&mut case), 0);
        prop_assert_eq!(rest, case.world.vms);
    }

    #[test]
    fn an_incomplete_source_never_deletes(mut case in any_case()) {
        let state = case.desired.sources.values_mut().next().unwrap();
        state.incomplete = vec!["a file cannot be read".to_owned()];
        for (name, vm) in plan_of(&case).vms {
            for action in vm.actions {
                let deletes = matches!(action, Action::Forget { .. } | Action::Teardown { reason: TeardownReason::Absent, .. });
                prop_assert!(!deletes, "{}: {:?}", name, action);
            }
        }
    }

    #[test]
    fn unknown_is_neither_started_nor_torn_down(case in any_case()) {
        for (name, vm) in plan_of(&case).vms {
            if matches!(case.world.vms[&name].process, Fact::Unknown(_)) {
                let harmless = vm.actions.iter().all(|action| matches!(action, Action::Record { .. }));
                prop_assert!(harmless, "{}: {:?}", name, vm);
            }
        }
    }

    #[test]
    fn a_live_vm_is_not_torn_down_for_its_record(case in any_case()) {
        // Whatever its record says, a VM that runs what is declared goes on running.
        let mut case = case;
        let names: Vec<VmName> = case.desired.vms.keys().cloned().collect();
        for name in names {
            let declared = case.desired.vms[&name][0].vm.clone().unwrap();
            let spoiled = case.world.vms[&name].record.clone();
            if spoiled.handles().is_some_and(|handles| handles.phase == Phase::Stopping) {
                continue;
            }
            let mut vm = model::nothing(&name);
            vm.ledger = ledger_of(&declared, &origin(&name), Incarnation(1), VmmKind::Firecracker);
            vm.process = Fact::Present(process(Incarnation(1), VmmKind::Firecracker));
            vm.guest = Guest::Is(GuestState::Running);
            vm.record = match spoiled {
                Record::Valid(_) => Record::Missing,
                other => other,
            };
            case.world.vms.insert(name.clone(), vm);
            let wants_stop = declared.spec.power_state == stead::spec::PowerState::Stopped;
            for action in &plan_of(&case).vms[&name].actions {
                let stops = matches!(action, Action::Teardown { .. } | Action::Start { .. });
                prop_assert!(!stops || wants_stop, "{:?}", action);
            }
        }
    }

    #[test]
    fn an_older_steads_record_restarts_nothing(memory in 1..4_u64, dropped in 0..11_usize) {
        let name: VmName = "web".parse().unwrap();
        let declared = vm(&name, memory, "Running", "Always", "Recreate");
        let mut observed = model::nothing(&name);
        observed.ledger = ledger_of(&declared, &origin(&name), Incarnation(1), VmmKind::Firecracker);
        let mut handles = handles_of(&name, Some((&declared, &origin(&name))), Incarnation(1), VmmKind::Firecracker);
        let mut spec = serde_json::to_value(handles.spec.take()).unwrap();
        let field = spec.as_object().unwrap().keys().nth(dropped).cloned();
        if let Some(field) = field {
            spec.as_object_mut().unwrap().remove(&field);
        }
        handles.spec = serde_json::from_value(spec).unwrap();
        observed.record = Record::Valid(Box::new(handles));
        observed.process = Fact::Present(process(Incarnation(1), VmmKind::Firecracker));
        observed.guest = Guest::Is(GuestState::Running);
        let mut case = Case { desired: Desired::default(), world: World::new(NOW_MS) };
        let declaration = Declaration { origin: origin(&name), vm: Ok(Arc::new(declared)) };
        case.desired.vms.insert(name.clone(), vec![declaration]);
        case.world.vms.insert(name.clone(), observed);
        let root = Some(FileId { device: 1, inode: 1 });
        let state = SourceState { incomplete: Vec::new(), root, empty: false, elsewhere: std::sync::Arc::default() };
        case.desired.sources.insert(SourceName("manifests".into()), state);
        prop_assert!(plan_of(&case).is_empty(), "{:?}", plan_of(&case));
    }
}
