//! stead on this host.

use crate::inside::bed::{Stead, fingerprint, fingerprint_of, guest};

/// A VM that only waits, in the few MiB that it needs.
fn manifest() -> String {
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: web\nspec:\n  vmm: firecracker\n  \
         memory: 4Mi\n  boot: {{kernel: {}, args: console=ttyS0}}\n  terminationGracePeriodSeconds: 1\n",
        guest("halt").display()
    )
}

pub fn a_vm_starts_stays_and_goes_without_a_trace() {
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &manifest());
    stead.once(0);
    let pid = stead.pid("web").expect("a VMM is on record");
    let running = fingerprint_of(&[pid]);
    let changes = running.changes_since(&before);
    for held in [format!("+ process {pid} /bed/bin/firecracker"), format!("+ file of {pid}: /dev/kvm")] {
        assert!(changes.contains(&held), "no {held:?} in\n{changes}");
    }

    assert_eq!(stead.once(0), "", "a second pass did something");
    assert_eq!(stead.pid("web"), Some(pid));
    running.comes_back();

    stead.remove("web.yaml");
    stead.once(0);
    assert_eq!(stead.pid("web"), None);
    before.comes_back();
}

/// The first life of the VM of `the_vm_lives_again`.
pub fn a_vm_runs_until_the_power_goes() {
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &manifest());
    // The manifest is the user's, and so is its safety. What stead writes from here on is stead's.
    rustix::fs::sync();
    stead.once(0);
    assert_eq!(stead.handles("web").unwrap()["incarnation"], 1);
    println!("RUNNING");
    std::thread::sleep(crate::machine::BOUND);
}

pub fn the_vm_lives_again() {
    let stead = Stead::at("/state/stead");
    assert_eq!(stead.handles("web").expect("the record of a started VM is durable")["incarnation"], 1);
    stead.once(0);
    assert_eq!(stead.handles("web").unwrap()["incarnation"], 2);
    let pid = stead.pid("web").unwrap();
    let running = fingerprint_of(&[pid]);
    assert_eq!(stead.once(0), "");
    running.comes_back();
}
