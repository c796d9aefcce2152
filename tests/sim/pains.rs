//! Accidents that befell others (docs/pains.md), made to happen here.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::EIO;
use stead::control::{Reply, Request};
use stead::host::sim::{Fault, Faults, Moment};

use crate::bed::{Bed, vm};
use crate::crash_points::{Scenario, begin, declare_with_disk, scenarios, undisturbed};

/// Longer than any back-off.
const LATER: Duration = Duration::from_secs(400);
/// Longer than the passes of a test.
const DYING: Duration = Duration::from_secs(100_000);

/// Two VMs, one of which has something of every kind.
fn declare(bed: &Bed) {
    declare_with_disk(bed, "vm0");
    bed.apply("vm1.yaml", &vm(bed, "vm1", "  networkInterfaces: [{name: eth0}]\n"));
}

fn scenario(name: &str) -> Scenario {
    scenarios(declare).into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// A host on which both run.
fn both_run() -> Bed {
    begin(&scenario("persist"), 0)
}

fn handles(bed: &Bed, name: &str) -> PathBuf {
    bed.layout.handles(&name.parse().unwrap())
}

/// What carries the tag of this VM: its VMM, its devices, its cgroup.
fn held_by(bed: &Bed, name: &str) -> BTreeSet<String> {
    let uid = bed.layout.uid(&name.parse().unwrap());
    let (long, short) = (uid.to_string(), uid.short());
    let cgroup = bed.layout.cgroup(&name.parse().unwrap());
    let objects = bed.machine.objects().into_iter();
    objects
        .filter(|object| object.contains(&long) || object.contains(short.as_str()) || object.ends_with(&cgroup))
        .filter(|object| !object.starts_with("socket "))
        .collect()
}

/// Everything that is done from this effect on fails.
fn all_fails_from(at: usize) -> Faults {
    Faults { effects: (at..at + 1000).map(|effect| (effect, Fault::Fail(EIO))).collect(), ..Faults::default() }
}

/// Wherever a pass begins to fail, and goes on failing: what a VM holds then is on record, so that whoever comes next finds
/// it. Gives how many passes left something.
fn what_is_held_is_on_record(name: &str) -> usize {
    let scenario = scenario(name);
    let (pass, end) = undisturbed(&scenario);
    let mut left = 0;
    for at in 1..=pass.effects.len() {
        let bed = begin(&scenario, at as u64);
        let when = format!("{name}: all fails from effect {at} on");
        for _ in 0..3 {
            bed.pass(&all_fails_from(at));
            for vm in ["vm0", "vm1"] {
                let held = held_by(&bed, vm);
                left += usize::from(!held.is_empty());
                let record = bed.machine.read(&handles(&bed, vm));
                assert!(held.is_empty() || record.is_some(), "{when}: nothing says that {vm} holds {held:#?}");
            }
            bed.machine.wait(Duration::from_secs(70));
        }
        bed.converge(&when);
        bed.no_rule_is_broken(&when);
        assert_eq!(bed.end_state(), end, "{when}");
    }
    left
}

#[test]
fn a_vm_whose_deletion_fails_stays_on_record_and_is_deleted_in_the_end() {
    assert!(what_is_held_is_on_record("teardown") > 0);
}

#[test]
fn what_a_vm_holds_is_on_disk_before_it_is_in_memory() {
    assert!(what_is_held_is_on_record("start") > 0);
    assert!(what_is_held_is_on_record("replace") > 0);
}

#[test]
fn a_vmm_that_takes_minutes_to_die_keeps_all_it_holds_and_gets_no_successor() {
    for name in ["teardown", "replace", "stop"] {
        let scenario = scenario(name);
        let (_, end) = undisturbed(&scenario);
        let bed = begin(&scenario, 0);
        for pid in bed.machine.vmms() {
            // Its guest hears nothing, so that it has to be killed.
            bed.machine.hang(pid, true);
        }
        bed.machine.die_slowly(DYING);
        let before = (held_by(&bed, "vm0"), held_by(&bed, "vm1"));
        for _ in 0..3 {
            bed.pass(&Faults::default());
            assert_eq!((held_by(&bed, "vm0"), held_by(&bed, "vm1")), before, "{name}: it is not gone yet");
            bed.machine.wait(Duration::from_secs(60));
        }
        bed.machine.wait(DYING);
        bed.converge(name);
        bed.no_rule_is_broken(name);
        assert_eq!(bed.end_state(), end, "{name}");
    }
}

#[test]
fn a_step_of_a_teardown_that_fails_strands_nothing_beside_it() {
    let bed = begin(&scenario("teardown"), 0);
    let devices = bed.machine.devices();
    let top = devices.iter().filter(|device| device.starts_with("dm-")).max().unwrap();
    bed.machine.open_device(top, true);
    for _ in 0..3 {
        let outcome = bed.pass(&Faults::default()).outcome.unwrap();
        let left = held_by(&bed, "vm0");
        let devices = left.iter().filter(|object| object.starts_with("dm ") || object.starts_with("loop ")).count();
        assert_eq!(left.len(), devices, "its tap and its cgroup go all the same: {left:#?}");
        assert!(devices > 0, "somebody has {top} open");
        assert_eq!(held_by(&bed, "vm1"), BTreeSet::new(), "another VM waits for nothing");
        let record: serde_json::Value =
            serde_json::from_slice(&bed.machine.read(&handles(&bed, "vm0")).unwrap()).unwrap();
        // All that is left is told with its reason, not the first of it alone.
        let blocked = record["blocked"].as_object().unwrap().len();
        assert!(blocked >= devices, "{record:#}\n{left:#?}\n{:?}", outcome.failures);
        bed.machine.wait(LATER);
    }
    bed.machine.open_device(top, false);
    bed.converge("nobody has it open");
    bed.no_rule_is_broken("nobody has it open");
    assert_eq!(bed.machine.devices(), Vec::<String>::new());
}

/// A host on which two VMs run, and on which there is what a third one left; the collector waits for nothing.
fn with_orphans() -> Bed {
    let mut bed = both_run();
    bed.apply("gone.yaml", &vm(&bed, "gone", "  networkInterfaces: [{name: eth0}]\n"));
    bed.converge("all three run");
    bed.remove("gone.yaml");
    let uid = bed.layout.uid(&"gone".parse().unwrap()).to_string();
    let pids = bed.machine.vmms().into_iter();
    for pid in pids.filter(|pid| bed.machine.process_id(*pid).is_some_and(|id| id.starts_with(&uid))) {
        bed.machine.kill(pid);
    }
    bed.machine.lose(&bed.layout.vm_dir(&"gone".parse().unwrap()));
    bed.settings.policy.orphan_min_age = Duration::ZERO;
    bed
}

#[test]
fn a_collector_that_sees_badly_takes_nothing_from_vms_that_run() {
    let looks = with_orphans().pass(&Faults::default()).looks;
    for at in 1..=looks {
        let bed = with_orphans();
        let before = (held_by(&bed, "vm0"), held_by(&bed, "vm1"));
        let blind = Faults { looks: [(at, EIO)].into(), ..Faults::default() };
        bed.pass(&blind);
        assert_eq!((held_by(&bed, "vm0"), held_by(&bed, "vm1")), before, "look {at} failed");
        bed.converge("it sees again");
        bed.no_rule_is_broken("it sees again");
        assert_eq!(held_by(&bed, "gone"), BTreeSet::new(), "the collector had something to do");
        assert_eq!((held_by(&bed, "vm0"), held_by(&bed, "vm1")), before, "look {at} failed before");
    }
}

#[test]
fn a_collector_takes_nothing_from_a_start_that_is_under_way() {
    let scenario = scenario("start");
    let (pass, end) = undisturbed(&scenario);
    let mut found = 0;
    for at in 1..=pass.effects.len() {
        for moment in [Moment::Before, Moment::After] {
            let mut bed = begin(&scenario, at as u64);
            bed.settings.policy.orphan_min_age = Duration::ZERO;
            bed.pass(&Faults::at(at, Fault::Die(moment)));
            let before = bed.machine.objects();
            found += usize::from(bed.machine.devices().len() > 1);
            // Twice: what the first look notes could be old enough for the second.
            for _ in 0..2 {
                let reply = bed.ask(&Request::Gc);
                assert!(matches!(reply, Reply::Collected { unfreed: 0, .. }), "{reply:?}");
                bed.machine.wait(Duration::from_secs(1));
            }
            let freed: Vec<_> = before.difference(&bed.machine.objects()).cloned().collect();
            assert_eq!(freed, Vec::<String>::new(), "a start stopped at effect {at}");
            bed.converge("the start goes on");
            bed.no_rule_is_broken("the start goes on");
            assert_eq!(bed.end_state(), end);
        }
    }
    assert!(found > 0, "no start had begun to hold anything");
}

#[test]
fn a_wall_clock_that_jumps_hastens_and_delays_no_start() {
    const YEARS: i64 = 10 * 365 * 24 * 60 * 60;
    for ahead in [-YEARS, 0, YEARS] {
        let bed = both_run();
        for pid in bed.machine.vmms() {
            bed.machine.kill(pid);
        }
        // It jumps before the back-off is written down, and once more while it lasts.
        bed.machine.set_wall_clock(ahead);
        bed.pass(&Faults::default());
        assert_eq!(bed.machine.lives_of_vms().len(), 0, "{ahead} s ahead: nobody waits for the back-off");
        bed.machine.set_wall_clock(-ahead);
        bed.machine.wait(Duration::from_secs(3));
        bed.pass(&Faults::default());
        assert_eq!(bed.machine.lives_of_vms().len(), 2, "{ahead} s: the back-off is over");
        bed.no_rule_is_broken("the clock jumped");
    }
}

#[test]
fn many_vms_that_start_together_do_not_time_out_together() {
    const MANY: usize = 30;
    let bed = Bed::new(0);
    for index in 0..MANY {
        let name = format!("vm{index}");
        bed.apply(&format!("{name}.yaml"), &vm(&bed, &name, "  networkInterfaces: [{name: eth0}]\n"));
    }
    let effects = bed.pass(&Faults::default()).effects;
    bed.converge("they run");
    let lives = bed.machine.lives_of_vms();
    bed.machine.reboot(true);
    // The last of them waits for longer than a guest may take to start: its own time begins when its turn does.
    let slow = effects.iter().enumerate().filter(|(_, effect)| effect.call == "make_tap");
    let slow = slow.map(|(index, _)| (index + 1, Fault::Slow(Duration::from_secs(8)))).collect();
    let pass = bed.pass(&Faults { effects: slow, ..Faults::default() });
    let outcome = pass.outcome.unwrap();
    assert_eq!(outcome.failures, std::collections::BTreeMap::new());
    bed.converge("they run again");
    let again = bed.machine.lives_of_vms();
    assert_eq!(again.len(), MANY);
    let second: Vec<_> = again.iter().filter(|life| life.ends_with("-2")).collect();
    assert_eq!(second.len(), MANY, "each was started once: {lives:?} {again:?}");
}

#[test]
fn a_file_of_state_that_rots_stops_neither_stead_nor_a_vm() {
    let paths = |bed: &Bed| -> Vec<PathBuf> {
        let paths = bed.machine.paths(&bed.layout.state_dir).into_iter();
        paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
    };
    let all = paths(&with_orphans_noted());
    assert!(all.len() >= 8, "{all:?}");
    for path in all {
        for rot in ["", "half", "null", "[]", "\0\0\0\0", "{\"version\": 999}"] {
            let bed = with_orphans_noted();
            let whole = bed.machine.read(&path).unwrap_or_default();
            let bytes = if rot == "half" { &whole[..whole.len() / 2] } else { rot.as_bytes() };
            let when = format!("{} is {rot:?}", path.display());
            let before = bed.machine.lives_of_vms();
            bed.machine.overwrite(&path, bytes);
            bed.apply("new.yaml", &vm(&bed, "new", ""));
            for _ in 0..3 {
                assert!(bed.pass(&Faults::default()).outcome.is_some(), "{when}: it does not start");
                let lives = bed.machine.lives_of_vms();
                assert!(lives.is_superset(&before), "{when}: {before:?} {lives:?}");
                assert_eq!(lives.len(), before.len() + 1, "{when}: other VMs are seen to as ever");
                bed.machine.wait(LATER);
            }
            bed.no_rule_is_broken(&when);
        }
    }
}

/// A host on which every file of STATE is there that there can be.
fn with_orphans_noted() -> Bed {
    let mut bed = with_orphans();
    bed.settings.policy.orphan_min_age = Duration::from_secs(1 << 20);
    bed.pass(&Faults::default());
    bed
}

#[test]
fn a_process_that_only_looks_like_a_vmm_is_never_signalled() {
    let bed = both_run();
    let id = bed.machine.lives_of_vms().into_iter().next().unwrap();
    let (uid, _) = id.rsplit_once('-').unwrap();
    let socket = bed.layout.run_dir.join(format!("{id}.sock")).display().to_string();
    let [part, more, other] = [format!("{id}-1"), format!("x{id}"), format!("{uid}-1x")];
    let alike: &[&[&str]] = &[
        &[],
        &[""],
        &["grep", &id],
        &["vim", "--id", &more],
        &["firecracker"],
        &["firecracker", "--id"],
        &["firecracker", "--id", ""],
        &["firecracker", "--id", uid],
        &["firecracker", "--id", &part],
        &["firecracker", "--id", &other],
        &["firecracker", "--api-sock", &socket],
        &["stead", "run"],
    ];
    let mut strangers = BTreeSet::new();
    for argv in alike {
        bed.machine.start_stranger(argv);
        strangers.insert(format!("process {}", argv.join(" ")));
    }
    let all_live = |when: &str| {
        let objects = bed.machine.objects();
        let gone: Vec<_> = strangers.difference(&objects).collect();
        assert!(gone.is_empty(), "{when}: {gone:?}");
        bed.no_rule_is_broken(when);
    };
    // Without a record everybody who might be one of ours is looked at.
    for name in ["vm0", "vm1"] {
        bed.machine.lose(&handles(&bed, name));
    }
    bed.converge("records are lost");
    all_live("records are lost");
    for pid in bed.machine.vmms() {
        bed.machine.kill(pid);
    }
    bed.converge("the VMMs died");
    all_live("the VMMs died");
    bed.remove("vm0.yaml");
    bed.remove("vm1.yaml");
    bed.apply("stays.yaml", &vm(&bed, "stays", "  powerState: Stopped\n"));
    bed.converge("they are deleted");
    bed.ask(&Request::Gc);
    all_live("they are deleted");
    assert_eq!(bed.machine.lives_of_vms(), BTreeSet::new());
}
