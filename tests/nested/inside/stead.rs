//! stead on this host.

use crate::inside::bed::{Stead, fingerprint, fingerprint_of, guest};

pub fn a_vm_starts_stays_and_goes_without_a_trace() {
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply(
        "web.yaml",
        &format!(
            "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: web\nspec:\n  vmm: firecracker\n  \
             memory: 4Mi\n  boot: {{kernel: {}, args: console=ttyS0}}\n  terminationGracePeriodSeconds: 1\n",
            guest("halt").display()
        ),
    );
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
