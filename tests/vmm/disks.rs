//! Disks of the VM's own where there is no device-mapper: qcow2 overlays for QEMU, and copies.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use stead::host::devices::DeviceView;
use stead::host::linux::{LinuxHost, LinuxHostConfig};

use crate::bed::{Host, Vmm, manifest, wait};

/// An image of 8 MiB that begins with `BASE`.
fn image(host: &Host) -> PathBuf {
    let path = host.root.path().join("base.img");
    let file = fs::File::create(&path).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(b"BASE", 0).unwrap();
    path
}

/// A Linux on QEMU that says what it finds at both ends of its disk, and writes `word` there.
fn linux(host: &Host, word: &str, disk: &str) -> String {
    let image = host.root.path().join("base.img");
    manifest("web", Vmm::Qemu).replace("stead.name=web", &format!("stead.name=web stead.write={word}"))
        + &format!("  disks: [{{name: root, image: {}, {disk}}}]\n", image.display())
}

fn disk(host: &Host, file: &str) -> PathBuf {
    host.vm_dir("web").join("disks").join(file)
}

fn has_device_mapper() -> bool {
    LinuxHost::new(LinuxHostConfig::default()).unwrap().device_mapper().is_ok()
}

#[test]
fn a_guest_finds_what_it_wrote_on_its_overlay_or_snapshot_after_a_restart() {
    let host = Host::new();
    let base = image(&host);
    host.apply("web.yaml", &linux(&host, "first", "mode: snapshot, size: 16Mi"));
    host.once(0);
    host.console_shows("web", "GUEST FOUND BASE in sector 0");
    host.console_shows("web", "GUEST FOUND nothing in sector 32767");
    host.console_shows("web", "GUEST WROTE first");

    // It grows on its way.
    host.apply("web.yaml", &linux(&host, "second", "mode: snapshot, size: 24Mi"));
    host.once(0);
    host.console_shows("web", "GUEST FOUND first in sector 0");
    host.console_shows("web", "GUEST FOUND nothing in sector 49151");
    host.console_shows("web", "GUEST WROTE second");
    host.remove("web.yaml");
    host.once(0);
    assert_eq!(&fs::read(&base).unwrap()[..4], b"BASE", "the base was written to");
    if has_device_mapper() {
        assert!(disk(&host, "root.cow").exists());
        return;
    }
    // QEMU's own judgement of the file.
    let overlay = disk(&host, "root.qcow2");
    let check = Command::new("qemu-img").arg("check").arg(&overlay).output().unwrap();
    let told = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success() && told.contains("No errors were found"), "{told}{check:?}");
    let info = Command::new("qemu-img").args(["info", "--output=json"]).arg(&overlay).output().unwrap();
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert_eq!(info["virtual-size"], 24 << 20);
    assert_eq!(info["backing-filename"], base.display().to_string());
    assert_eq!(info["backing-filename-format"], "raw");
}

#[test]
fn a_copy_is_made_once_and_is_the_vms_own() {
    let host = Host::new();
    let base = image(&host);
    host.apply("web.yaml", &linux(&host, "first", "mode: copy, size: 12Mi"));
    let told = host.once(0);
    assert!(told.contains("disk root: a copy of"), "{told}");
    host.console_shows("web", "GUEST FOUND BASE in sector 0");
    host.console_shows("web", "GUEST WROTE first");
    // The image is needed no more.
    fs::remove_file(&base).unwrap();
    host.apply("web.yaml", &linux(&host, "second", "mode: copy, size: 12Mi"));
    host.once(0);
    host.console_shows("web", "GUEST FOUND first in sector 0");
    assert_eq!(fs::metadata(disk(&host, "root.img")).unwrap().len(), 12 << 20);
}

#[test]
fn a_long_copy_tells_how_far_it_is_and_delays_no_other_vm() {
    let mut host = Host::new();
    let base = host.root.path().join("base.img");
    let big = fs::File::create(&base).unwrap();
    // No holes, so that it takes more than one slice.
    let block = vec![7; 8 << 20];
    for index in 0..96 {
        big.write_all_at(&block, index * (8 << 20)).unwrap();
    }
    big.sync_all().unwrap();
    host.apply("web.yaml", &linux(&host, "first", "mode: copy"));
    host.start_daemon();
    let progress = wait("how far it is", || {
        let output = host.run(&["get", "web", "-o", "json"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if disk(&host, "root.img").exists() {
            return Some("too fast to be seen".to_owned());
        }
        text.contains("copying the image of disk root: ").then_some(text)
    });
    println!("{progress}");
    host.apply("api.yaml", &manifest("api", Vmm::Firecracker));
    host.running("api");
    host.running("web");
    assert_eq!(fs::metadata(disk(&host, "root.img")).unwrap().len(), 96 * (8 << 20));
}

#[test]
fn one_image_is_never_a_base_and_written_to() {
    let host = Host::new();
    let image = image(&host);
    let with = |name: &str, mode: &str| {
        let disk = format!("  disks: [{{name: root, image: {}, mode: {mode}}}]\n", image.display());
        manifest(name, Vmm::Qemu) + &disk
    };
    host.apply("base.yaml", &with("a", "snapshot"));
    host.once(0);
    host.apply("direct.yaml", &with("b", "direct"));
    let told = host.once(2);
    assert!(told.contains("b: VM a declares the image of disk root"), "{told}");
    assert!(host.life("a").is_some() && host.life("b").is_none());
    let output = host.run(&["validate", host.manifests().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("VM a: VM b declares the image") && told.contains("direct.yaml:1:1"), "{told}");
}

#[test]
fn validate_says_what_cannot_run_without_device_mapper() {
    let host = Host::new();
    let image = image(&host);
    let disk = format!("  disks: [{{name: root, image: {}, mode: snapshot}}]\n", image.display());
    host.apply("web.yaml", &(manifest("web", Vmm::Firecracker) + &disk));
    let output = host.run(&["validate", host.manifests().to_str().unwrap()]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    if has_device_mapper() {
        assert_eq!(told, "");
        return;
    }
    assert!(told.contains("warning: on this host VM web could not start: disk root is of mode snapshot"), "{told}");
    let told = host.once(2);
    assert!(told.contains("Firecracker needs device-mapper"), "{told}");
    assert!(host.life("web").is_none());
}

#[test]
fn an_orphan_tap_and_cgroup_are_found_and_freed() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let handles = host.handles("web").unwrap();
    let Some(cgroup) = handles["cgroup"].as_str() else { return eprintln!("left out: there is no cgroup v2 here") };
    let path = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|root| PathBuf::from(root).join(cgroup));
    let path = path.into_iter().find(|path| path.exists()).expect("the VM's cgroup");
    let pid = handles["pid"].as_i64().unwrap().to_string();
    assert!(fs::read_to_string(path.join("cgroup.procs")).unwrap().lines().any(|line| line == pid));

    // Everything that led to it is lost, and its VMM dies.
    host.remove("web.yaml");
    fs::remove_dir_all(host.vm_dir("web")).unwrap();
    let held = host.run(&["gc", "--orphan-age", "0s"]);
    let told = String::from_utf8_lossy(&held.stdout).into_owned();
    assert!(told.contains("held: ") && host.processes().len() == 1, "{told}");
    for pid in host.processes() {
        crate::bed::signal(pid, rustix::process::Signal::KILL);
    }
    wait("its end", || host.processes().is_empty().then_some(()));
    // The kernel takes a moment to see the dead out of their cgroup.
    wait("it is listed", || {
        let listed = host.run(&["gc", "--dry-run", "--orphan-age", "0s"]);
        let told = String::from_utf8_lossy(&listed.stdout).into_owned();
        (listed.status.code() == Some(3) && told.contains("cgroup ") && !told.contains("held: ")).then_some(())
    });
    assert!(path.exists());
    let freed = host.run(&["gc", "--orphan-age", "0s"]);
    assert!(freed.status.success() && !path.exists(), "{freed:?}");
    let output = host.run(&["gc"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Nothing is left over.\n");
}
