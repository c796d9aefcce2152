//! stead on this host.

use crate::inside::bed::{Stead, fingerprint, guest, open_files};

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
    println!("{}", stead.once(0));
    let pid = stead.pid("web").expect("a VMM is on record");
    assert!(open_files(pid).contains("/dev/kvm"), "{:?}", open_files(pid));
    let running = fingerprint();
    assert!(running.changes_since(&before).contains("firecracker"), "{running}");

    println!("{}", stead.once(0));
    assert_eq!(stead.pid("web"), Some(pid));
    running.comes_back();

    stead.remove("web.yaml");
    println!("{}", stead.once(0));
    assert_eq!(stead.pid("web"), None);
    before.comes_back();
}
