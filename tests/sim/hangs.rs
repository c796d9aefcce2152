//! A call to the host that does not return: a disk that is gone, a driver that waits for ever. One VM stands still then, and
//! no other; a daemon that is asked to end does so, a pass gives up at its time limit and says whom it waited for, and the
//! next life goes on where that one stopped.
//!
//! tokio's clock does not go on by itself while a thread is in a call. So it is moved here by hand, in steps, in each of
//! which those who work get some real time. Who works when is up to the machine: a run repeats nearly, not to the last step.
//!
//! `STEAD_HANGS=all` has each effect of each scenario hang, else some of them do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stead::control::{Reply, Request};
use stead::host::sim::{Effect, Fault, Faults, SimHost};
use stead::names::VmName;
use stead::plan::AllowPrune;
use stead::reconcile::{OnceOptions, Outcome, Stead, once, run};

use crate::bed::{Bed, runtime, vm};
use crate::crash_points::{DISKS, Scenario, begin, declare_with_disk, scenarios, undisturbed};

/// How far the clock goes in a step, and how long that takes.
const STEP: (Duration, Duration) = (Duration::from_millis(50), Duration::from_micros(150));
/// How long others may take, and how long the end of a stead may, in the time of the simulated host.
const BOUND: Duration = Duration::from_secs(900);
const TIMEOUT: Duration = Duration::from_secs(60);
/// As many of a scenario's effects hang when nothing says that all do.
const SOME: usize = 12;
const VMS: usize = 5;

/// VMs of all kinds that share nothing: who shares an image with one that hangs waits for it.
fn declare(bed: &Bed) {
    for index in 0..VMS {
        let name = format!("vm{index}");
        bed.add_image(&format!("{name}.img"));
        let image = bed.file(&format!("{name}.img")).display().to_string();
        let spec = match index {
            0 | 4 => DISKS.replace("BASE", &image),
            1 => format!(
                "  disks: [{{name: root, image: {image}, mode: copy}}]\n  networkInterfaces: [{{name: eth0}}]\n"
            ),
            2 => format!("  disks: [{{name: data, image: {image}, mode: direct}}]\n"),
            _ => "  vmm: qemu\n  networkInterfaces: [{name: eth0}, {name: eth1, bridge: br0}]\n".to_owned(),
        };
        bed.apply(&format!("{name}.yaml"), &vm(bed, &name, &spec));
    }
}

/// The VMs of which something is not as it is to be.
pub fn not_as(bed: &Bed, end: &BTreeSet<String>) -> BTreeSet<String> {
    // What the scenarios leave when they remove all of them.
    let names = (0..VMS).map(|index| format!("vm{index}")).chain(["stays".to_owned()]);
    let tokens = |name: &String| {
        let uid = bed.layout.uid(&name.parse::<VmName>().unwrap());
        [name.clone(), uid.to_string(), uid.short().as_str().to_owned()]
    };
    let names: Vec<(String, [String; 3])> = names.map(|name| (name.clone(), tokens(&name))).collect();
    let owner = |line: &String| {
        let owner = names.iter().find(|(_, tokens)| tokens.iter().any(|token| line.contains(token)));
        owner.map_or_else(|| line.clone(), |(name, _)| name.clone())
    };
    let now = bed.end_state();
    // What the gates remember is of no VM, and written before anything is deleted.
    let differ = now.symmetric_difference(end).filter(|line| !line.ends_with("gates.json"));
    differ.map(owner).collect()
}

/// Has time pass until it is so, but no more of it than this.
async fn until(time: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let steps = time.as_millis() / STEP.0.as_millis();
    for step in 0..steps {
        tokio::time::advance(STEP.0).await;
        // Those who work do so on threads of their own.
        std::thread::sleep(STEP.1);
        if step % 10 == 0 && is_so() {
            return true;
        }
    }
    is_so()
}

/// A life that ends with its test, so that nobody waits for the thread that hangs.
pub struct Life(pub Arc<SimHost>);

impl Drop for Life {
    fn drop(&mut self) {
        self.0.die();
    }
}

/// Runs a life of stead in which the effect of this number hangs.
pub fn live<T>(
    bed: &Bed,
    at: usize,
    parallel: usize,
    story: impl AsyncFnOnce(Stead, &SimHost) -> T,
) -> (T, Option<Effect>) {
    let runtime = runtime(8);
    let life = Life(bed.machine.life(Faults::at(at, Fault::Hang)));
    let mut stead = bed.stead(&life.0);
    stead.settings.parallel = parallel;
    let result = runtime.block_on(async {
        bed.machine.start_clock();
        let result = story(stead, &life.0).await;
        bed.machine.stop_clock();
        result
    });
    let hung = life.0.hung();
    drop(life);
    // What hung comes to its end, and does nothing any more.
    drop(runtime);
    (result, hung)
}

/// A daemon, asked to end when the story is over.
async fn daemon(stead: Stead, story: impl Future<Output = ()>) {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let story = async {
        story.await;
        stop.send(()).unwrap();
        until(BOUND, || false).await;
    };
    tokio::select! {
        biased;
        ended = run(stead, async { stopped.await.unwrap() }) => ended.unwrap(),
        () = story => panic!("it does not end"),
    }
}

async fn pass(stead: Stead) -> Outcome {
    let options = OnceOptions { timeout: TIMEOUT, allow_prune: AllowPrune(0), only: None, sync: false };
    let mut nobody_looks_on = |_| {};
    tokio::select! {
        biased;
        outcome = once(&stead, &options, &mut nobody_looks_on) => outcome.unwrap(),
        _ = until(BOUND, || false) => panic!("it does not give up"),
    }
}

/// Which effects hang.
fn effects(count: usize) -> impl Iterator<Item = usize> {
    let is_all = std::env::var("STEAD_HANGS").is_ok_and(|text| text == "all");
    (1..=count).step_by(if is_all { 1 } else { count.div_ceil(SOME).max(1) })
}

/// The scenarios in which VMs are worked on. What is nobody's any more waits until no VM is worked on, so that one that hangs
/// keeps it: that is no VM's delay.
pub fn of_vms() -> impl Iterator<Item = Scenario> {
    scenarios(declare).into_iter().filter(|scenario| scenario.name != "gc")
}

pub fn recovers(bed: &Bed, end: &BTreeSet<String>, when: &str) {
    bed.machine.wait(Duration::from_secs(1));
    bed.converge(when);
    bed.no_rule_is_broken(when);
    assert_eq!(not_as(bed, end), BTreeSet::new(), "{when}");
}

#[test]
fn a_call_that_hangs_in_a_daemon_delays_no_other_vm_nor_the_daemons_end() {
    let mut hung = 0;
    for scenario in of_vms() {
        let (pass, end) = undisturbed(&scenario);
        for at in effects(pass.effects.len()) {
            let bed = begin(&scenario, at as u64);
            let when = format!("{}: effect {at} hangs", scenario.name);
            let ((), effect) = live(&bed, at, 4, async |stead, host| {
                daemon(stead, async {
                    let are_done = until(BOUND, || not_as(&bed, &end).len() <= 1).await;
                    assert!(are_done, "{when}: {:?} leaves {:?}", host.hung(), not_as(&bed, &end));
                    // Now and then the call returns after all.
                    if at % 2 == 0 {
                        host.let_go();
                        let is_done = until(BOUND, || not_as(&bed, &end).is_empty()).await;
                        assert!(is_done, "{when}: {:?} returned: {:?}", host.hung(), not_as(&bed, &end));
                    }
                })
                .await;
            });
            hung += usize::from(effect.is_some());
            recovers(&bed, &end, &when);
        }
    }
    println!("{hung} calls hung in daemons");
    assert!(hung > 0);
}

#[test]
fn a_pass_gives_up_at_its_time_limit_and_says_which_vm_hangs() {
    let mut hung = 0;
    for scenario in of_vms() {
        let (first, end) = undisturbed(&scenario);
        let bed = begin(&scenario, 0);
        live(&bed, usize::MAX, 4, async |stead, _| pass(stead).await);
        let after_a_pass = bed.end_state();
        for at in effects(first.effects.len()) {
            let bed = begin(&scenario, at as u64);
            let when = format!("{}: effect {at} hangs", scenario.name);
            let (outcome, effect) = live(&bed, at, 4, async |stead, _| pass(stead).await);
            // One that backs off may have its next start while the pass waits.
            let left = &not_as(&bed, &after_a_pass) & &not_as(&bed, &end);
            assert!(left.len() <= 1, "{when}: {effect:?} leaves {left:?}");
            if let Some(effect) = effect {
                hung += 1;
                assert!(outcome.timed_out, "{when}: {effect:?}");
                let told: BTreeSet<String> = outcome
                    .failures
                    .iter()
                    .filter(|(_, why)| why.contains("has hung"))
                    .map(|(name, _)| name.to_string())
                    .collect();
                // The survey of orphans is of no VM.
                let is_of_vm = !effect.on.ends_with("orphans.json");
                // What is written down may be of either.
                let is_either = effect.on.ends_with("audit.jsonl") && told.is_empty();
                assert!(is_either || told.len() == usize::from(is_of_vm), "{when}: {effect:?}: {:?}", outcome.failures);
                assert!(left.is_subset(&told), "{when}: {effect:?}: {left:?}, {told:?}");
            }
            recovers(&bed, &end, &when);
        }
    }
    println!("{hung} calls hung in passes");
    assert!(hung > 0);
}

#[test]
fn a_vm_that_hangs_does_not_keep_the_only_worker() {
    let scenario = of_vms().find(|scenario| scenario.name == "start").unwrap();
    let (_, end) = undisturbed(&scenario);
    let bed = begin(&scenario, 0);
    let ((), effect) = live(&bed, 12, 1, async |stead, _| {
        daemon(stead, async {
            let are_done = until(BOUND, || not_as(&bed, &end).len() <= 1).await;
            assert!(are_done, "{:?}", not_as(&bed, &end));
        })
        .await;
    });
    assert!(effect.is_some());
    recovers(&bed, &end, "a hang");
}

/// Asks the daemon, as a command does.
async fn ask(bed: &Bed, request: Request) -> Reply {
    let layout = bed.layout.clone();
    let asked = tokio::task::spawn_blocking(move || stead::control::ask(&layout, &request, Duration::from_secs(60)));
    tokio::select! {
        biased;
        reply = asked => reply.unwrap().unwrap().expect("a daemon that answers"),
        _ = until(BOUND, || false) => panic!("no answer in time"),
    }
}

#[test]
fn what_a_vm_holds_is_known_while_what_is_told_of_it_hangs() {
    let begin = || {
        let bed = Bed::new(0);
        declare_with_disk(&bed, "vm0");
        bed.converge("it runs");
        bed.machine.lose(&bed.layout.status(&"vm0".parse().unwrap()));
        bed
    };
    let is_status = |effect: &Effect| effect.on.ends_with("vm0/status.json");
    let at = begin().pass(&Faults::default()).effects.iter().position(is_status).unwrap();
    let bed = begin();
    let ((), effect) = live(&bed, at + 1, 4, async |stead, host| {
        daemon(stead, async {
            assert!(until(BOUND, || host.hung().is_some()).await);
            // Of the same image, of which nobody could know before the look at the other how it uses that.
            declare_with_disk(&bed, "vm1");
            assert!(until(BOUND, || bed.machine.lives_of_vms().len() == 2).await, "it waits for a look at the other");
        })
        .await;
    });
    assert!(effect.is_some_and(|effect| is_status(&effect)));
    bed.no_rule_is_broken("a status that hung");
}

#[test]
fn who_asks_for_a_moment_in_which_nobody_works_is_refused_while_a_vm_hangs_and_delays_nobody() {
    let scenario = of_vms().find(|scenario| scenario.name == "start").unwrap();
    let (_, end) = undisturbed(&scenario);
    let bed = begin(&scenario, 0);
    live(&bed, 12, 4, async |stead, host| {
        daemon(stead, async {
            assert!(until(BOUND, || host.hung().is_some()).await);
            for request in [Request::Gc, Request::Adopt { dir: "/nowhere".into() }] {
                let reply = ask(&bed, request).await;
                assert!(matches!(&reply, Reply::Refused { message, .. } if message.contains("hangs")), "{reply:?}");
            }
            assert!(until(BOUND, || not_as(&bed, &end).len() <= 1).await, "{:?}", not_as(&bed, &end));
        })
        .await;
    });
    recovers(&bed, &end, "a hang");
}

#[test]
fn an_orphan_that_cannot_be_freed_for_a_call_that_hangs_keeps_no_vm_from_starting() {
    let scenario = scenarios(declare).into_iter().find(|scenario| scenario.name == "gc").unwrap();
    let (pass, _) = undisturbed(&scenario);
    let is_freed =
        |effect: &Effect| ["detach_loop", "remove_dm", "remove_taps", "remove_cgroup"].contains(&effect.call);
    let mut hung = 0;
    for (index, freed) in pass.effects.iter().enumerate().filter(|(_, effect)| is_freed(effect)).step_by(4) {
        let bed = begin(&scenario, 0);
        let is_device = |object: &String| ["dm ", "loop ", "tap "].iter().any(|kind| object.starts_with(kind));
        let orphans: BTreeSet<String> = bed.machine.objects().into_iter().filter(is_device).collect();
        let new = bed.layout.uid(&"new".parse().unwrap()).to_string();
        let ((), effect) = live(&bed, index + 1, 4, async |stead, host| {
            daemon(stead, async {
                assert!(until(BOUND, || host.hung().is_some()).await, "{freed:?}");
                bed.apply("new.yaml", &vm(&bed, "new", "  networkInterfaces: [{name: eth0}]\n"));
                let runs = || bed.machine.lives_of_vms().iter().any(|life| life.starts_with(&new));
                assert!(until(BOUND, runs).await, "{:?}", host.hung());
                host.let_go();
                let is_clean = || bed.machine.objects().is_disjoint(&orphans);
                assert!(until(BOUND, is_clean).await, "{:?}: {:?}", host.hung(), bed.machine.objects());
            })
            .await;
        });
        hung += usize::from(effect.is_some_and(|effect| is_freed(&effect)));
        let when = format!("{freed:?} hung");
        bed.converge(&when);
        bed.no_rule_is_broken(&when);
        assert_eq!(bed.machine.lives_of_vms().len(), 1, "{when}");
    }
    assert!(hung > 0);
}

/// Whoever asks for such a moment keeps turns from beginning until it comes, and no longer than it is waited for.
#[test]
fn who_gives_up_waiting_for_a_moment_in_which_nobody_works_keeps_no_turn_from_beginning() {
    for line in ["{\"request\":\"gc\"}\n", "{\"request\":\"adopt\",\"dir\":\"/nowhere\"}\n"] {
        let scenario = of_vms().find(|scenario| scenario.name == "start").unwrap();
        let bed = begin(&scenario, 0);
        live(&bed, 12, 4, async |stead, host| {
            daemon(stead, async {
                assert!(until(BOUND, || host.hung().is_some()).await);
                let began = tokio::time::Instant::now();
                let mut client = std::os::unix::net::UnixStream::connect(bed.layout.control_socket()).unwrap();
                std::io::Write::write_all(&mut client, line.as_bytes()).unwrap();
                until(Duration::from_secs(2), || false).await;
                drop(client);
                let new = bed.layout.uid(&"new".parse().unwrap()).to_string();
                bed.apply("new.yaml", &vm(&bed, "new", ""));
                let runs = || bed.machine.lives_of_vms().iter().any(|life| life.starts_with(&new));
                assert!(until(BOUND, runs).await, "{line}");
                let waited = began.elapsed();
                assert!(
                    waited < Duration::from_secs(30),
                    "{line}: not before the call that hangs is overdue: {waited:?}"
                );
            })
            .await;
        });
        bed.converge(line);
        bed.no_rule_is_broken(line);
        assert_eq!(bed.machine.lives_of_vms().len(), VMS + 1, "{line}");
    }
}

/// The look for orphans, with the glance at VMs at rest that belongs to it.
#[test]
fn a_survey_that_hangs_delays_no_turn_and_no_pass_and_gc_says_so() {
    let begin = || {
        let bed = Bed::new(0);
        bed.apply("vm0.yaml", &vm(&bed, "vm0", "  networkInterfaces: [{name: eth0, bridge: br0}]\n"));
        bed.converge("it runs");
        let uid = bed.layout.uid(&"other".parse().unwrap());
        let layer = stead::names::DmLayer::Snapshot;
        bed.machine.make_half_dm("orphan", &uid.dm_uuid(&bed.layout.state_id, &"root".parse().unwrap(), layer));
        bed
    };
    let is_survey = |effect: &Effect| effect.on.ends_with("orphans.json");
    let at = begin().pass(&Faults::default()).effects.iter().position(is_survey).unwrap();
    let bed = begin();
    let (end, lives) = (bed.end_state(), bed.machine.lives_of_vms());
    let ((), effect) = live(&bed, at + 1, 1, async |stead, host| {
        daemon(stead, async {
            assert!(until(BOUND, || host.hung().is_some()).await);
            let reply = ask(&bed, Request::Gc).await;
            assert!(matches!(&reply, Reply::Refused { message, .. } if message.contains("hangs")), "{reply:?}");
            bed.apply("new.yaml", &vm(&bed, "new", ""));
            assert!(until(BOUND, || bed.machine.lives_of_vms().len() == 2).await, "a turn waits");
            bed.remove("new.yaml");
            assert!(until(BOUND, || bed.machine.lives_of_vms() == lives && bed.end_state().is_superset(&end)).await);
            bed.machine.unplug_taps();
            assert!(!bed.end_state().is_superset(&end), "it shows");
            let is_mended = || bed.end_state().is_superset(&end);
            assert!(until(BOUND, is_mended).await, "the next quick pass does not look at a VM at rest");
            host.let_go();
            until(Duration::from_secs(5), || false).await;
            let reply = ask(&bed, Request::Gc).await;
            assert!(matches!(&reply, Reply::Collected { .. }), "{reply:?}");
        })
        .await;
    });
    assert!(effect.is_some_and(|effect| is_survey(&effect)));
    bed.no_rule_is_broken("a survey that hung");
}
