//! The VM's own disks on device-mapper, from the manifest to what the guest finds.

use std::fs;
use std::path::Path;

use crate::inside::bed::{BOUND, Bridge, Stead, base_image, fingerprint, fingerprint_of, initrd, loops, vmlinux, wait};

/// A Linux on a snapshot of `/state/images/base.img` that is twice as long, which says what it finds and writes `word`.
fn linux(name: &str, word: &str) -> String {
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: {name}\nspec:\n  vmm: firecracker\n  \
         memory: 96Mi\n  boot:\n    kernel: {}\n    initrd: {}\n    args: >-\n      console=ttyS0 quiet reboot=k panic=-1 \
         tsc_early_khz=2300000 no_timer_check stead.name={name} stead.write={word}\n  disks:\n    - {{name: root, image: \
         /state/images/base.img, mode: snapshot, size: 16Mi}}\n  networkInterfaces: [{{name: eth0, bridge: br0}}]\n  \
         terminationGracePeriodSeconds: 0\n",
        vmlinux().display(),
        initrd().display()
    )
}

fn console(stead: &Stead, name: &str) -> String {
    fs::read_to_string(stead.vm_dir(name).join("console.log")).unwrap_or_default()
}

#[track_caller]
fn says(stead: &Stead, name: &str, text: &str) {
    let start = std::time::Instant::now();
    while !console(stead, name).contains(text) {
        assert!(start.elapsed() < BOUND, "{name} does not say {text:?}:\n{}", console(stead, name));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The whole product: a real Linux in Firecracker, booted because a manifest says so, on a disk of its own over a base that
/// others share, with a network interface on a bridge.
pub fn linux_finds_what_it_wrote_after_a_restart_and_its_base_is_untouched() {
    let base = base_image();
    let bridge = Bridge::new("br0");
    let before = fingerprint();
    let stead = Stead::at("/state/stead");

    stead.apply("web.yaml", &linux("web", "first"));
    stead.once(0);
    // 16 MiB, of which the image has 8.
    says(&stead, "web", "GUEST DISK vda sectors=32768 ro=0");
    says(&stead, "web", "GUEST FOUND BASE in sector 0");
    says(&stead, "web", "GUEST FOUND nothing in sector 32767");
    says(&stead, "web", "GUEST WROTE first");
    says(&stead, "web", "GUEST NIC eth0");

    let told = stead.stead(&["describe", "web"]).stdout;
    for line in [
        "process  pid ",
        "tap      st",
        "up, on bridge br0",
        "dm       stead-",
        "active",
        "loop     loop",
        "read-only over /state/images/base.img, under 1 devices",
        "disks/root.cow",
        "cgroup   stead/",
        // KVM's own thread for this VMM is in it too.
        "2 processes, cpu.max 150000 100000, memory.max ",
        "snapshot of /state/images/base.img, 16 MiB",
    ] {
        assert!(told.contains(line), "no {line:?} in\n{told}");
    }

    // Another life of it, and another VM on the same base.
    stead.apply("web.yaml", &linux("web", "second"));
    stead.apply("api.yaml", &linux("api", "other"));
    stead.once(0);
    says(&stead, "web", "GUEST FOUND first in sector 0");
    says(&stead, "web", "GUEST FOUND first in sector 32767");
    says(&stead, "web", "GUEST WROTE second");
    says(&stead, "api", "GUEST FOUND BASE in sector 0");
    says(&stead, "api", "GUEST WROTE other");
    let of_base = loops().into_iter().filter(|(_, file)| file == "/state/images/base.img").count();
    assert_eq!(of_base, 1, "one loop for one base: {:?}", loops());
    assert_eq!(fs::read("/state/images/base.img").unwrap(), base, "the base was written to");

    let pids = [stead.pid("web").unwrap(), stead.pid("api").unwrap()];
    let running = fingerprint_of(&pids);
    assert_eq!(stead.once(0), "", "a converged pass did something");
    running.comes_back();

    for name in ["web", "api"] {
        stead.remove(&format!("{name}.yaml"));
    }
    stead.once(0);
    before.comes_back();
    assert_eq!(fs::read("/state/images/base.img").unwrap(), base);
    // deletionPolicy: Retain.
    assert!(stead.vm_dir("web").join("disks/root.cow").exists());
    drop(bridge);
}

/// A halted guest on a snapshot, with this deletion policy.
fn small(name: &str, image: &str, size: &str, policy: &str) -> String {
    crate::inside::bed::vm(
        name,
        &format!(
            "  disks: [{{name: root, image: {image}, mode: snapshot{size}}}]\n  networkInterfaces: [{{name: eth0}}]\n  \
             deletionPolicy: {policy}\n"
        ),
    )
}

pub fn a_disk_goes_to_the_trash_and_comes_back_from_it() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &small("web", "/state/images/base.img", "", "Delete"));
    stead.once(0);
    let record = |stead: &Stead| fs::read_to_string(stead.vm_dir("web").join("disks/root.json")).unwrap();
    let first = record(&stead);
    stead.remove("web.yaml");
    stead.once(0);
    before.comes_back();
    assert!(!stead.vm_dir("web").join("disks").exists(), "its disks are in the trash");
    assert_eq!(fs::read_dir(stead.state().join("trash")).unwrap().count(), 1);

    stead.apply("web.yaml", &small("web", "/state/images/base.img", "", "Delete"));
    let told = stead.once(0);
    assert!(told.contains("came back from the trash"), "{told}");
    assert_eq!(record(&stead), first);
    assert_eq!(fs::read_dir(stead.state().join("trash")).unwrap().count(), 0);
    stead.remove("web.yaml");
    stead.once(0);
    before.comes_back();
}

pub fn a_base_that_changed_is_never_attached_and_a_new_one_begins_afresh() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &small("web", "/state/images/base.img", "", "Retain"));
    stead.once(0);
    // While the VM runs, a changed base is no reason to touch it.
    fs::write("/state/images/new.img", vec![1; 8 << 20]).unwrap();
    fs::rename("/state/images/new.img", "/state/images/base.img").unwrap();
    let pid = stead.pid("web").unwrap();
    stead.once(0);
    assert_eq!(stead.pid("web"), Some(pid));

    stead.stead(&["restart", "web"]);
    let told = stead.once(2);
    assert_eq!(stead.pid("web"), Some(pid), "a VM that could not start again was stopped: {told}");
    assert!(told.contains("is another file than before"), "{told}");

    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let told = wait("it is held", || {
        let ended = stead.stead(&["reconcile", "--once"]);
        ended.stderr.contains("is another file than before").then_some(ended)
    });
    assert_eq!(told.status.code(), Some(2));
    before.comes_back();

    fs::rename("/state/images/base.img", "/state/images/v2.img").unwrap();
    stead.apply("web.yaml", &small("web", "/state/images/v2.img", "", "Retain"));
    stead.once(0);
    let kept = fs::read_dir(stead.vm_dir("web").join("disks")).unwrap().flatten();
    let kept: Vec<String> = kept.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(kept.iter().any(|file| file.starts_with("root.cow.aside-")), "{kept:?}");
    assert!(kept.iter().any(|file| file.starts_with("root.json.aside-")), "{kept:?}");
    stead.remove("web.yaml");
    stead.once(0);
    before.comes_back();
}

pub fn a_disk_grows_at_its_next_start_and_never_shrinks() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    let sectors = |stead: &Stead| {
        let handles = stead.handles("web").unwrap();
        let dm = handles["dm_devices"].as_array().unwrap().last().unwrap()["device"].as_str().unwrap().to_owned();
        fs::read_to_string(Path::new("/sys/block").join(dm).join("size")).unwrap().trim().parse::<u64>().unwrap()
    };
    for (size, expected) in [("", 16384), (", size: 12Mi", 24576), (", size: 64Mi", 131_072)] {
        stead.apply("web.yaml", &small("web", "/state/images/base.img", size, "Retain"));
        stead.once(0);
        assert_eq!(sectors(&stead), expected);
    }
    let pid = stead.pid("web");
    stead.apply("web.yaml", &small("web", "/state/images/base.img", ", size: 32Mi", "Retain"));
    let told = stead.once(2);
    assert!(told.contains("a disk never shrinks"), "{told}");
    assert_eq!(stead.pid("web"), pid);
    stead.remove("web.yaml");
    stead.once(0);
    before.comes_back();
}
