//! Full passes of a daemon that the clock asks for: a quick one takes a few looks a VM, and still finds what somebody else
//! did to a VM at rest.

use std::path::{Path, PathBuf};
use std::time::Duration;

use stead::host::sim::Faults;
use stead::reconcile::run;

use crate::bed::{Bed, runtime, vm};
use crate::crash_points::declare_with_disk;

/// Between two full passes, with the jitter.
const INTERVAL: Duration = Duration::from_secs(661);
/// Looks of a quick pass that are not of one VM: the trash, the folder of VMs, five kinds of objects, what is known of orphans.
const LOOKS: usize = 8;
/// Looks of a quick pass at one VM: its record and two logs.
const LOOKS_A_VM: usize = 3;

fn declare(bed: &Bed, vms: usize) {
    for index in 0..vms {
        declare_with_disk(bed, &format!("vm{index}"));
    }
}

/// A daemon on a host that is as declared; `then` is what happens meanwhile.
pub fn daemon<T>(bed: &Bed, then: impl AsyncFnOnce(&dyn Fn() -> usize) -> T) -> T {
    let host = bed.machine.life(Faults::default());
    let stead = bed.stead(&host);
    let runtime = runtime(1);
    runtime.block_on(async {
        bed.machine.start_clock();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let looks = || host.looks();
        let run = run(stead, async { stopped.await.unwrap_or_default() });
        let then = async {
            let result = then(&looks).await;
            drop(stop);
            result
        };
        let (ended, result) = tokio::join!(run, then);
        ended.unwrap();
        bed.machine.stop_clock();
        result
    })
}

#[test]
fn a_quick_pass_takes_a_few_looks_a_vm_and_the_sixth_looks_closely() {
    for vms in [1, 5] {
        let bed = Bed::new(0);
        declare(&bed, vms);
        bed.converge("they run");
        let changes = bed.machine.changes();
        let took = daemon(&bed, async |looks| {
            tokio::time::sleep(INTERVAL / 2).await;
            let mut took = Vec::new();
            for _ in 0..7 {
                let before = looks();
                tokio::time::sleep(INTERVAL * 9 / 10).await;
                took.push(looks() - before);
            }
            took
        });
        let (quick, thorough): (Vec<usize>, Vec<usize>) =
            took.iter().partition(|&&looks| looks <= 2 * (LOOKS + vms * LOOKS_A_VM));
        assert!(quick.iter().all(|looks| looks % (LOOKS + vms * LOOKS_A_VM) == 0), "{vms} VMs: {took:?}");
        assert_eq!(thorough.len(), 1, "{vms} VMs: {took:?}");
        assert_eq!(bed.machine.changes(), changes, "nothing was to be done");
    }
}

#[test]
fn a_pass_alone_watches_those_only_that_it_does_something_about_and_a_daemon_all() {
    let bed = Bed::new(0);
    declare(&bed, 2);
    bed.converge("they run");
    let at_rest = bed.machine.vmms();
    assert_eq!((at_rest.len(), bed.pass(&Faults::default()).watched), (2, vec![]));
    bed.apply("new.yaml", &vm(&bed, "new", ""));
    let watched = bed.pass(&Faults::default()).watched;
    assert!(watched.len() == 1 && !at_rest.contains(&watched[0]), "{watched:?}");
    daemon(&bed, async |_| {
        tokio::time::sleep(INTERVAL / 2).await;
        assert_eq!(bed.machine.watched(), bed.machine.vmms());
    });
}

fn is_json(bed: &Bed, path: &Path) -> bool {
    bed.machine.read(path).is_some_and(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).is_ok())
}

#[test]
fn what_others_do_to_a_vm_at_rest_is_found_by_the_next_quick_pass() {
    type Meddle = fn(&Bed, &[PathBuf]);
    let meddlers: &[(&str, Meddle)] = &[
        ("taps are unplugged", |bed, _| bed.machine.unplug_taps()),
        ("records are lost", |bed, records| records.iter().for_each(|record| bed.machine.lose(record))),
        ("records rot", |bed, records| records.iter().for_each(|record| bed.machine.overwrite(record, b"{"))),
    ];
    for (what, meddle) in meddlers {
        let bed = Bed::new(0);
        declare(&bed, 2);
        bed.converge("they run");
        let records = bed.machine.paths(&bed.layout.vms());
        let records: Vec<PathBuf> = records.into_iter().filter(|path| path.ends_with("handles.json")).collect();
        let state = || (bed.end_state(), records.iter().map(|path| is_json(&bed, path)).collect::<Vec<_>>());
        let (end, lives) = (state(), bed.machine.lives_of_vms());
        daemon(&bed, async |_| {
            tokio::time::sleep(INTERVAL / 2).await;
            meddle(&bed, &records);
            assert_ne!(state(), end, "{what}: it shows");
            tokio::time::sleep(INTERVAL).await;
        });
        assert_eq!(state(), end, "{what}");
        assert_eq!(bed.machine.lives_of_vms(), lives, "{what}: no VM is restarted for it");
        bed.no_rule_is_broken(what);
    }
}

/// Nobody can give a running VM its tap back; its user is told.
#[test]
fn a_tap_that_somebody_removed_is_told_of() {
    let bed = Bed::new(0);
    declare(&bed, 1);
    bed.converge("it runs");
    let status = || bed.machine.read(&bed.layout.status(&"vm0".parse().unwrap())).unwrap();
    daemon(&bed, async |_| {
        tokio::time::sleep(INTERVAL / 2).await;
        bed.machine.lose_taps();
        assert!(!String::from_utf8(status()).unwrap().contains("is gone"));
        tokio::time::sleep(INTERVAL).await;
    });
    assert!(String::from_utf8(status()).unwrap().contains("is gone"));
}

/// What no record names is found although every VM that is known is as it was.
#[test]
fn an_orphan_is_found_by_quick_passes() {
    let bed = Bed::new(0);
    declare(&bed, 1);
    bed.converge("it runs");
    let end = bed.end_state();
    let uid = bed.layout.uid(&"other".parse().unwrap());
    daemon(&bed, async |_| {
        tokio::time::sleep(INTERVAL / 2).await;
        bed.machine.make_half_dm(
            "orphan",
            &uid.dm_uuid(&bed.layout.state_id, &"root".parse().unwrap(), stead::names::DmLayer::Snapshot),
        );
        assert_ne!(bed.end_state(), end);
        tokio::time::sleep(INTERVAL * 2).await;
    });
    assert_eq!(bed.end_state(), end, "it was freed once it was old enough");
}
