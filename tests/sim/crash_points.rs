//! Each effect of each scenario fails, or is the last that stead does, or the last before the power goes. Whatever comes of
//! it, no rule is broken, and the next lives bring the host to where an undisturbed one would have brought it.
//!
//! The effects are counted, not listed: a new one is covered without anybody adding a test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nix::libc::EIO;
use stead::host::sim::{Effect, Fault, Faults, Moment, Random};

use crate::bed::{Bed, Pass, vm};
use crate::parallel::for_each;

/// What happens on a host.
pub struct Scenario {
    pub name: &'static str,
    /// Which VMs there are before.
    declare: fn(&Bed),
    /// What is done to them then, with nobody disturbed.
    before: fn(&Bed),
    /// What stead is then to deal with.
    change: fn(&Bed),
}

pub const DISKS: &str = "  disks: [{name: root, image: BASE, mode: snapshot, size: 16Mi}]\n  networkInterfaces: [{name: eth0, \
                     bridge: br0}]\n";

/// Declares a VM with a snapshot of the image that all share, and a tap.
pub fn declare_with_disk(bed: &Bed, name: &str) {
    let base = bed.file("base.img").display().to_string();
    bed.apply(&format!("{name}.yaml"), &vm(bed, name, &DISKS.replace("BASE", &base)));
}

/// VMs of all kinds: with a snapshot and a tap, with a copy, with a disk of the user's own, with nothing, and QEMU.
fn declare(bed: &Bed, count: usize) {
    let base = bed.file("base.img").display().to_string();
    let specs = [
        DISKS.replace("BASE", &base),
        format!("  disks: [{{name: root, image: {base}, mode: copy}}]\n  networkInterfaces: [{{name: eth0}}]\n"),
        format!("  disks: [{{name: data, image: {}, mode: direct}}]\n", bed.file("data.img").display()),
        "  vmm: qemu\n  networkInterfaces: [{name: eth0}, {name: eth1, bridge: br0}]\n".to_owned(),
        DISKS.replace("BASE", &base),
    ];
    for (index, spec) in specs.iter().take(count).enumerate() {
        let name = format!("vm{index}");
        bed.apply(&format!("{name}.yaml"), &vm(bed, &name, spec));
    }
}

fn edit_all(bed: &Bed, from: &str, to: &str) {
    for name in bed.declared() {
        let text = std::fs::read_to_string(bed.manifests().join(&name)).unwrap();
        bed.apply(&name, &text.replace(from, to));
    }
}

fn remove_all(bed: &Bed) {
    for name in bed.declared() {
        bed.remove(&name);
    }
    // A folder that declares nothing at all is held: it may not be mounted.
    bed.apply("stays.yaml", &vm(bed, "stays", "  powerState: Stopped\n"));
}

fn kill_all(bed: &Bed) {
    for pid in bed.machine.vmms() {
        bed.machine.kill(pid);
    }
}

/// What a VM held that no record names any more.
fn orphan_all(bed: &Bed) {
    remove_all(bed);
    kill_all(bed);
    bed.machine.lose(&bed.layout.vms());
    // Seen once, and old enough at the next look.
    bed.pass(&Faults::default());
    bed.machine.wait(Duration::from_secs(3600));
}

const TWO: fn(&Bed) = |bed| declare(bed, 2);
const ALL: fn(&Bed) = |bed| declare(bed, 5);
const NOTHING: fn(&Bed) = |_| {};

fn forget_disks(bed: &Bed) {
    edit_all(bed, "spec:\n", "spec:\n  deletionPolicy: Delete\n");
}

/// The scenarios, with VMs declared by `declare`.
pub fn scenarios(declare: fn(&Bed)) -> Vec<Scenario> {
    let scenario = |name, change| Scenario { name, declare, before: NOTHING, change };
    vec![
        Scenario { declare: NOTHING, ..scenario("start", declare) },
        scenario("persist", |bed| bed.machine.wait(Duration::from_secs(1))),
        scenario("records_are_lost", |bed| {
            for path in bed.machine.paths(&bed.layout.vms()).iter().filter(|path| path.ends_with("handles.json")) {
                bed.machine.lose(path);
            }
        }),
        scenario("teardown", remove_all),
        Scenario { before: forget_disks, ..scenario("teardown_with_disks", remove_all) },
        scenario("replace", |bed| edit_all(bed, "128Mi", "256Mi")),
        scenario("a_disk_grows", |bed| edit_all(bed, "16Mi", "32Mi")),
        scenario("pause", |bed| edit_all(bed, "spec:\n", "spec:\n  powerState: Paused\n")),
        scenario("stop", |bed| edit_all(bed, "spec:\n", "spec:\n  powerState: Stopped\n")),
        scenario("the_vmms_died", kill_all),
        scenario("reboot", |bed| bed.machine.reboot(true)),
        scenario("gc", orphan_all),
    ]
}

/// What may happen at an effect.
fn faults_at(effect: &Effect) -> Vec<Fault> {
    let mut moments = vec![Moment::Before, Moment::After];
    if effect.has_half {
        moments.push(Moment::Half);
    }
    let fail = effect.errors.iter().map(|errno| Fault::Fail(*errno));
    let fail_done = effect.errors_done.iter().map(|errno| Fault::FailDone(*errno));
    let die = moments.iter().map(|moment| Fault::Die(*moment));
    let cut = moments.iter().map(|moment| Fault::Cut(*moment));
    fail.chain(fail_done).chain(die).chain(cut).collect()
}

/// Brings a new host to where the scenario begins.
pub fn begin(scenario: &Scenario, seed: u64) -> Bed {
    let bed = Bed::new(seed);
    (scenario.declare)(&bed);
    (scenario.before)(&bed);
    bed.converge(scenario.name);
    (scenario.change)(&bed);
    bed
}

/// The first pass of the undisturbed scenario, and its end.
pub fn undisturbed(scenario: &Scenario) -> (Pass, BTreeSet<String>) {
    let bed = begin(scenario, 0);
    let pass = bed.pass(&Faults::default());
    let outcome = bed.converge(scenario.name);
    assert!(outcome.problems.is_empty(), "{:?}", outcome.problems);
    bed.no_rule_is_broken(scenario.name);
    (pass, bed.end_state())
}

/// Runs a scenario with faults in its first lives, and looks at the end. Gives the life after them.
fn disturbed(scenario: &Scenario, lives: &[Faults], end: &BTreeSet<String>, when: &str) -> Pass {
    let seed = lives.iter().flat_map(|faults| faults.effects.keys()).sum::<usize>();
    let bed = begin(scenario, seed as u64);
    for faults in lives {
        bed.pass(faults);
        bed.machine.wait(Duration::from_secs(1));
    }
    let next = bed.pass(&Faults::default());
    bed.converge(when);
    bed.no_rule_is_broken(when);
    let found = bed.end_state();
    let more: Vec<_> = found.difference(end).collect();
    let less: Vec<_> = end.difference(&found).collect();
    assert!(more.is_empty() && less.is_empty(), "{when}\nmore: {more:#?}\nless: {less:#?}");
    next
}

fn scenario(name: &str, declare: fn(&Bed)) -> Scenario {
    scenarios(declare).into_iter().find(|scenario| scenario.name == name).unwrap()
}

/// One fault at every effect of a scenario with five VMs.
fn one_fault_everywhere(name: &str) {
    let scenario = scenario(name, ALL);
    let (pass, end) = undisturbed(&scenario);
    let faults = faults_of(&pass.effects);
    println!("{name}: {} effects, {} faults", pass.effects.len(), faults.len());
    for (what, fault) in faults {
        disturbed(&scenario, &[fault], &end, &format!("{name}: {what}"));
    }
}

/// How many pairs of faults of a scenario are tried when `STEAD_PAIRS` does not say; `all` tries each.
const PAIRS: usize = 150;
/// How many second faults are tried for a first one, where not all are.
const SECONDS: usize = 5;

/// A fault, and another one in the life after it, in a scenario with two VMs.
fn two_faults(name: &str) {
    let scenario = scenario(name, TWO);
    let (pass, end) = undisturbed(&scenario);
    let wanted = match std::env::var("STEAD_PAIRS").as_deref() {
        Ok("all") => None,
        Ok(count) => Some(count.parse().unwrap()),
        Err(_) => Some(PAIRS),
    };
    let mut random = Random::new(7);
    let firsts = some(faults_of(&pass.effects), wanted.map(|pairs| pairs / SECONDS), &mut random);
    let seeded = firsts.into_iter().map(|first| (first, Random::new(random.number())));
    let runs = for_each(seeded.collect::<Vec<_>>(), |((what, first), mut random)| {
        let when = format!("{name}: {what}");
        let next = disturbed(&scenario, std::slice::from_ref(&first), &end, &when);
        let seconds = some(faults_of(&next.effects), wanted.map(|_| SECONDS), &mut random);
        let count = seconds.len();
        for (then, second) in seconds {
            disturbed(&scenario, &[first.clone(), second], &end, &format!("{when}; then {then}"));
        }
        count
    });
    let runs: usize = runs.into_iter().sum();
    println!("{name}: {runs} pairs of faults");
}

/// Every fault at every one of these effects, in words and as it is.
fn faults_of(effects: &[Effect]) -> Vec<(String, Faults)> {
    let numbered = effects.iter().enumerate().map(|(index, effect)| (index + 1, effect));
    let each = numbered.flat_map(|(at, effect)| faults_at(effect).into_iter().map(move |fault| (at, effect, fault)));
    let named = |(at, effect, fault): (usize, &Effect, Fault)| {
        (format!("effect {at}, {} {}: {fault}", effect.call, effect.on), Faults::at(at, fault))
    };
    each.map(named).collect()
}

/// As many of them as are wanted, by chance; all if no number says.
fn some<T>(mut from: Vec<T>, wanted: Option<usize>, random: &mut Random) -> Vec<T> {
    let Some(wanted) = wanted else { return from };
    while from.len() > wanted {
        let at = usize::try_from(random.below(from.len() as u64)).unwrap();
        from.swap_remove(at);
    }
    from
}

/// One look after the other fails, in a scenario with two VMs: what could not be seen is neither dead nor absent.
fn one_look_fails_everywhere(name: &str) {
    let scenario = scenario(name, TWO);
    let (pass, end) = undisturbed(&scenario);
    for at in 1..=pass.looks {
        let blind = Faults { looks: BTreeMap::from([(at, EIO)]), ..Faults::default() };
        disturbed(&scenario, &[blind], &end, &format!("{name}: look {at} failed"));
    }
    println!("{name}: {} looks", pass.looks);
}

/// Longer than any wait of stead's: the grace of a guest, the start of a VMM, the API's bound.
const SLOW: Duration = Duration::from_secs(90);

/// One call after the other, effect or look, takes very long, in a scenario with two VMs: that changes nothing about the end.
fn one_slow_call_everywhere(name: &str) {
    let scenario = scenario(name, TWO);
    let (pass, end) = undisturbed(&scenario);
    for (index, effect) in pass.effects.iter().enumerate() {
        let slow = Faults::at(index + 1, Fault::Slow(SLOW));
        disturbed(&scenario, &[slow], &end, &format!("{name}: effect {} {} was slow", effect.call, effect.on));
    }
    for at in 1..=pass.looks {
        let slow = Faults { slow_looks: BTreeMap::from([(at, SLOW)]), ..Faults::default() };
        disturbed(&scenario, &[slow], &end, &format!("{name}: look {at} was slow"));
    }
    println!("{name}: {} slow calls", pass.effects.len() + pass.looks);
}

macro_rules! tests {
    ($($name:ident)*) => {
        /// The scenarios that have a test each.
        const TESTED: &[&str] = &[$(stringify!($name)),*];

        mod one_fault {
            $(
                #[test]
                fn $name() {
                    super::one_fault_everywhere(stringify!($name));
                }
            )*
        }

        mod two_faults {
            $(
                #[test]
                fn $name() {
                    super::two_faults(stringify!($name));
                }
            )*
        }

        mod one_slow_call {
            $(
                #[test]
                fn $name() {
                    super::one_slow_call_everywhere(stringify!($name));
                }
            )*
        }

        mod one_look_fails {
            $(
                #[test]
                fn $name() {
                    super::one_look_fails_everywhere(stringify!($name));
                }
            )*
        }
    };
}

tests! {
    start persist records_are_lost teardown teardown_with_disks replace a_disk_grows pause stop the_vmms_died reboot gc
}

#[test]
fn every_scenario_is_tested() {
    let names: Vec<&str> = scenarios(ALL).iter().map(|scenario| scenario.name).collect();
    assert_eq!(names, TESTED);
}
