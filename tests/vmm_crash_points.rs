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

use stead::config::{Settings, Source};

use bed::{Host, Vmm, bed, manifest};
use mortal::Mortal;

fn settings(host: &Host) -> Settings {
    Settings {
        sources: vec![Source::manifests(host.manifests())],
        state_dir: host.state(),
        run_dir: host.run_dir(),
        firecracker: bed("bin/firecracker"),
        ..mortal::settings()
    }
}

fn converge(host: &Host) {
    mortal::converge(&settings(host));
}

fn dies_everywhere(scenario: &str, before: impl Fn(&Host), change: impl Fn(&Host), end: impl Fn(&Host, &str)) -> usize {
    mortal::dies_everywhere(scenario, &[false, true], Host::new, settings, before, change, end)
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
    let settings = settings(&host);
    let mortal = Mortal::immortal(&settings);
    let outcome = mortal::pass(&settings, &mortal);
    assert_eq!((mortal.effects(), outcome.changes), (0, 0));
}
