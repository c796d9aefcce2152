//! `plan` over many VMs: linear in their number, converged and with one in a hundred to be replaced.

#[path = "../tests/model/mod.rs"]
mod model;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use stead::desired::{Declaration, Desired, FileId, Origin, SourceName, SourceState};
use stead::host::GuestState;
use stead::names::{Incarnation, VmName};
use stead::observed::{Fact, Guest, Observed, Record};
use stead::plan::{Absences, AllowPrune, Policy, plan};
use stead::spec::{Vm, VmmKind};

use model::World;

fn worlds(count: usize, changed_every: Option<usize>) -> (Desired, Observed) {
    let mut desired = Desired::default();
    let mut world = World::new(3_600_000);
    let source = SourceName("manifests".to_owned());
    for number in 0..count {
        let name: VmName = format!("vm-{number}").parse().expect("a name");
        let vm = |memory: u64| -> Vm {
            serde_json::from_value(json!({
                "name": name,
                "spec": {
                    "powerState": "Running", "restartPolicy": "Always", "vmm": "auto", "cpus": 1, "memoryMib": memory,
                    "boot": {"kernel": "/k", "initrd": null, "args": "console=ttyS0"},
                    "disks": [{"name": "root", "image": format!("/i/{number}"), "mode": "direct", "readOnly": false}],
                    "networkInterfaces": [{"name": "eth0", "bridge": "br0", "macAddress": null}],
                    "terminationGracePeriodSeconds": 10, "updatePolicy": "Recreate", "deletionPolicy": "Retain",
                },
            }))
            .expect("a spec")
        };
        let origin = Origin { source: source.clone(), path: format!("{name}.yaml").into(), line: 1 };
        let booted = vm(128);
        let is_changed = changed_every.is_some_and(|every| number % every == 0);
        let declared = vm(if is_changed { 256 } else { 128 });
        let mut observed = model::nothing(&name);
        let life = Incarnation(1);
        observed.ledger = model::ledger_of(&booted, &origin, life, VmmKind::Firecracker);
        observed.record =
            Record::Valid(Box::new(model::handles_of(&name, Some((&booted, &origin)), life, VmmKind::Firecracker)));
        observed.process = Fact::Present(model::process(life, VmmKind::Firecracker));
        observed.guest = Guest::Is(GuestState::Running);
        world.vms.insert(name.clone(), observed);
        desired.vms.insert(name, vec![Declaration { origin, vm: Ok(Arc::new(declared)) }]);
    }
    let root = Some(FileId { device: 1, inode: 1 });
    desired.sources.insert(
        source,
        SourceState { incomplete: Vec::new(), root, empty: false, elsewhere: std::sync::Arc::default() },
    );
    (desired, world.observed())
}

fn bench(criterion: &mut Criterion) {
    let now = model::now_at(3_600_000);
    for (what, changed_every) in [("converged", None), ("one in a hundred changed", Some(100))] {
        let mut group = criterion.benchmark_group(what);
        for count in [100, 1_000, 10_000] {
            let (desired, observed) = worlds(count, changed_every);
            group.throughput(Throughput::Elements(count as u64));
            group.bench_with_input(BenchmarkId::from_parameter(count), &count, |bencher, _| {
                bencher.iter(|| {
                    let plan = plan(&desired, &observed, &Absences::default(), &Policy::default(), AllowPrune(0), &now);
                    assert_eq!(plan.is_empty(), changed_every.is_none());
                    black_box(plan)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(plans, bench);
criterion_main!(plans);
