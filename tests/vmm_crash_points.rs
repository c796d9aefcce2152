//! stead dies before and after each single effect of a start, a replacement and a deletion, on real VMMs; the next stead
//! must bring the host to the same end, with never a second VMM.
//!
//! Death is a host on which, from the chosen effect on, nothing can be done any more: what is on disk and in the kernel is
//! exactly what a SIGKILL at that point leaves. The effects are counted, not listed: a new one is covered by itself.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "vmm/bed.rs"]
#[allow(dead_code, reason = "the other tests on real VMMs use the rest")]
mod bed;
#[path = "vmm/mortal.rs"]
mod mortal;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stead::config::{Access, Settings, open_state};
use stead::host::HostOps;
use stead::plan::{AllowPrune, Policy};
use stead::reconcile::{OnceOptions, Outcome, Stead, once};

use bed::{Host, Vmm, bed, manifest};
use mortal::Mortal;

fn immortal() -> Arc<Mortal> {
    Mortal::new(&bed("bin/firecracker"), usize::MAX, false)
}

fn settings(host: &Host) -> Settings {
    Settings {
        manifests: host.manifests(),
        state_dir: host.state(),
        run_dir: host.run_dir(),
        firecracker: bed("bin/firecracker"),
        qemu: "qemu-system-x86_64".into(),
        qemu_accel: stead::config::QemuAccel::Tcg,
        parallel: 4,
        api_timeout: Duration::from_secs(5),
        resync: Duration::from_secs(600),
        log_limit: 1 << 20,
        policy: Policy {
            prune_delay: Duration::from_millis(50),
            backoff_initial: Duration::from_millis(10),
            ..Policy::default()
        },
    }
}

/// One pass of a stead on this host.
fn pass(host: &Host, mortal: &Arc<Mortal>) -> Outcome {
    let settings = settings(host);
    let layout = open_state(&settings, Access::Actor).unwrap();
    let real: Arc<dyn HostOps> = Arc::clone(mortal) as Arc<dyn HostOps>;
    let stead = Stead { settings, layout, host: real };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The dead wait for what never comes.
    let timeout = Duration::from_secs(if mortal.is_immortal() { 30 } else { 1 });
    let options = OnceOptions { timeout, allow_prune: AllowPrune(0), only: None };
    runtime.block_on(once(&stead, &options, &mut |_| {})).unwrap()
}

/// Passes of living steads until one finds nothing to do.
#[track_caller]
fn converge(host: &Host) {
    for _ in 0..20 {
        let outcome = pass(host, &immortal());
        if outcome.changes == 0 && outcome.plan.is_empty() && outcome.failures.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not come to rest: {:?}", pass(host, &immortal()));
}

/// Brings the host to where the scenario begins, dies at every point of it, and looks at the end each time. Gives how many
/// points there were.
fn dies_everywhere(scenario: &str, before: impl Fn(&Host), change: impl Fn(&Host), end: impl Fn(&Host, &str)) -> usize {
    for after in [false, true] {
        for point in 1.. {
            let host = Host::new();
            before(&host);
            converge(&host);
            change(&host);
            let mortal = Mortal::new(&bed("bin/firecracker"), point, after);
            pass(&host, &mortal);
            let died = mortal.effects() >= point;
            converge(&host);
            let when = format!("{scenario}: died {} effect {point}", if after { "after" } else { "before" });
            end(&host, &when);
            if !died {
                if after {
                    return point - 1;
                }
                break;
            }
            assert!(point < 200, "{scenario} never comes to its end");
        }
    }
    unreachable!("both directions return or break")
}

fn exactly_one_runs(host: &Host, when: &str) {
    assert!(host.life("web").is_some(), "{when}: {:?}", host.handles("web"));
    assert_eq!(host.processes().len(), 1, "{when}: exactly one VMM");
    let sockets = host.sockets().len();
    assert!(sockets == 1 || sockets == 2, "{when}: sockets of its one life only");
}

fn start(vmm: Vmm) -> usize {
    let apply = move |host: &Host| host.apply("web.yaml", &manifest("web", vmm));
    dies_everywhere("start", |_| {}, apply, exactly_one_runs)
}

#[test]
fn death_at_any_point_of_a_start_leads_to_exactly_one_vmm() {
    let points = start(Vmm::Firecracker);
    println!("{points} effects of a start with Firecracker");
    assert!(points >= 6, "{points}");
}

#[test]
fn death_at_any_point_of_a_start_with_qemu_leads_to_exactly_one_vmm() {
    let points = start(Vmm::Qemu);
    println!("{points} effects of a start with QEMU");
    assert!(points >= 5, "{points}");
}

#[test]
fn death_at_any_point_of_a_replacement_leads_to_the_new_spec_and_exactly_one_vmm() {
    let text = manifest("web", Vmm::Firecracker);
    let bigger = text.replace("memory: 4Mi", "memory: 6Mi");
    let points = dies_everywhere(
        "replacement",
        |host| host.apply("web.yaml", &text),
        |host| host.apply("web.yaml", &bigger),
        |host, when| {
            exactly_one_runs(host, when);
            assert_eq!(host.handles("web").unwrap()["spec"]["memoryMib"], 6, "{when}");
        },
    );
    println!("{points} effects of a replacement");
    assert!(points >= 12, "{points}");
}

#[test]
fn death_at_any_point_of_a_deletion_leaves_nothing() {
    let text = manifest("web", Vmm::Firecracker);
    let points = dies_everywhere(
        "deletion",
        |host| host.apply("web.yaml", &text),
        |host| host.remove("web.yaml"),
        |host, when| {
            assert_eq!(host.processes(), Vec::<i32>::new(), "{when}");
            assert_eq!(host.sockets(), Vec::<PathBuf>::new(), "{when}");
            assert_eq!(host.leftovers("web"), Vec::<PathBuf>::new(), "{when}");
        },
    );
    println!("{points} effects of a deletion");
    assert!(points >= 8, "{points}");
}

#[test]
fn a_converged_pass_makes_no_effect() {
    let host = Host::new();
    for (name, vmm) in [("a", Vmm::Firecracker), ("b", Vmm::Firecracker), ("c", Vmm::Qemu)] {
        host.apply(&format!("{name}.yaml"), &manifest(name, vmm));
    }
    converge(&host);
    let mortal = immortal();
    let outcome = pass(&host, &mortal);
    assert_eq!((mortal.effects(), outcome.changes), (0, 0));
}
