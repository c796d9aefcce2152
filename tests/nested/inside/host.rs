//! That the nested host has what the tests of stead's storage and network need, by hand and without stead.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::inside::bed::{BOUND, Running, ends, fingerprint, firecracker, initrd, run, vmlinux, wait};

/// A base of 8 MiB that begins with `BASE`, an empty file for what is written, and a snapshot of the one in the other.
struct Snapshot {
    base: String,
    cow: String,
}

impl Snapshot {
    const DEVICE: &str = "/dev/mapper/snapshot";

    fn new() -> Self {
        let mut base = File::create("/state/base.img").unwrap();
        base.set_len(8 << 20).unwrap();
        base.write_all(b"BASE").unwrap();
        File::create("/state/cow.img").unwrap().set_len(8 << 20).unwrap();
        let attach = |args: &[&str], file: &str| {
            let device = run("losetup", &["-f"]);
            run("losetup", &[args, &[&device, file]].concat());
            device
        };
        let snapshot = Self { base: attach(&["-r"], "/state/base.img"), cow: attach(&[], "/state/cow.img") };
        let table = format!("0 16384 snapshot {} {} P 8", snapshot.base, snapshot.cow);
        run("dmsetup", &["create", "snapshot", "--table", &table]);
        snapshot
    }

    fn remove(self) {
        run("dmsetup", &["remove", "snapshot"]);
        for device in [self.cow, self.base] {
            run("losetup", &["-d", &device]);
        }
        for file in ["/state/base.img", "/state/cow.img"] {
            fs::remove_file(file).unwrap();
        }
    }
}

pub fn device_mapper_loop_tun_bridge_kvm_and_cgroup_v2_are_real_here() {
    let before = fingerprint();

    let snapshot = Snapshot::new();
    let mut device = File::options().read(true).write(true).open(Snapshot::DEVICE).unwrap();
    let mut start = [0; 4];
    device.read_exact(&mut start).unwrap();
    assert_eq!(&start, b"BASE");
    device.seek(SeekFrom::Start(0)).unwrap();
    device.write_all(b"SNAP").unwrap();
    device.sync_all().unwrap();
    File::open("/state/base.img").unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"BASE", "the base was written to");
    let cow = fs::read("/state/cow.img").unwrap();
    assert!(cow.windows(4).any(|window| window == b"SNAP"), "the write is not in the snapshot's own file");
    let busy = ends(Command::new("dmsetup").args(["remove", "--noudevsync", "snapshot"]));
    assert!(!busy.status.success(), "an open device was removed");
    drop(device);

    run("ip", &["tuntap", "add", "tap0", "mode", "tap"]);
    run("ip", &["link", "add", "br0", "type", "bridge"]);
    run("ip", &["link", "set", "tap0", "master", "br0", "up"]);

    let cgroup = Path::new("/sys/fs/cgroup/one");
    fs::create_dir(cgroup).unwrap();
    let mut sleeper = Running(Command::new("sleep").arg("1000").spawn().unwrap());
    fs::write(cgroup.join("cgroup.procs"), sleeper.0.id().to_string()).unwrap();
    fs::write(cgroup.join("memory.max"), "64M").unwrap();

    let changes = fingerprint().changes_since(&before);
    for held in [
        "+ loop loop0 ",
        "+ loop loop1 ",
        "+ dm snapshot",
        "+ link tap0 master=br0",
        "+ link br0",
        "+ cgroup ",
        "+ process ",
    ] {
        assert!(changes.contains(held), "no {held:?} in\n{changes}");
    }

    fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    wait("what is in the cgroup is killed", || sleeper.0.try_wait().unwrap());
    fs::remove_dir(cgroup).unwrap();
    run("ip", &["link", "del", "tap0"]);
    run("ip", &["link", "del", "br0"]);
    snapshot.remove();
    before.comes_back();

    File::options().read(true).write(true).open("/dev/kvm").unwrap();
}

pub fn a_reflink_is_real_here() {
    File::create("/state/xfs.img").unwrap().set_len(512 << 20).unwrap();
    run("mkfs.xfs", &["-q", "/state/xfs.img"]);
    run("mount", &["-t", "xfs", "-o", "loop", "/state/xfs.img", "/mnt"]);
    let image = File::create("/mnt/image").unwrap();
    image.write_all_at(&vec![7; 1 << 20], 0).unwrap();
    image.sync_all().unwrap();
    let copy = File::create("/mnt/copy").unwrap();
    rustix::fs::ioctl_ficlone(&copy, File::open("/mnt/image").unwrap()).unwrap();
    drop((image, copy));
    assert_eq!(fs::read("/mnt/copy").unwrap(), vec![7; 1 << 20]);
    // On ext4 the same is refused: this is what tells the two apart.
    let copy = File::create("/state/copy").unwrap();
    let refused = rustix::fs::ioctl_ficlone(&copy, File::open("/state/xfs.img").unwrap()).unwrap_err();
    assert_eq!(refused, rustix::io::Errno::OPNOTSUPP);
    run("umount", &["/mnt"]);
}

pub fn firecracker_boots_linux_from_a_dm_snapshot_with_a_tap() {
    let before = fingerprint();
    let snapshot = Snapshot::new();
    run("ip", &["tuntap", "add", "tap0", "mode", "tap"]);
    run("ip", &["link", "set", "tap0", "up"]);
    let config = serde_json::json!({
        "boot-source": {
            "kernel_image_path": vmlinux(),
            "initrd_path": initrd(),
            "boot_args": "console=ttyS0 quiet reboot=k panic=-1 tsc_early_khz=2300000 no_timer_check stead.name=web",
        },
        "drives": [{
            "drive_id": "root", "path_on_host": Snapshot::DEVICE, "is_root_device": false, "is_read_only": false,
        }],
        "network-interfaces": [{"iface_id": "eth0", "guest_mac": "06:00:ac:10:00:02", "host_dev_name": "tap0"}],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
    });
    fs::write("/run/vm.json", config.to_string()).unwrap();
    let console = File::create("/run/console").unwrap();
    let vmm = Command::new(firecracker())
        .args(["--no-api", "--config-file", "/run/vm.json"])
        .stdin(Stdio::null())
        .stdout(console.try_clone().unwrap())
        .stderr(console)
        .spawn()
        .unwrap();
    let vmm = Running(vmm);
    let said = || fs::read_to_string("/run/console").unwrap_or_default();
    wait("the guest's greeting", || said().contains("GUEST READY").then_some(()));
    let text = said();
    for has in ["Hello from web", "GUEST NIC eth0 06:00:ac:10:00:02", "GUEST DISK vda sectors=16384 ro=0"] {
        assert!(text.contains(has), "no {has:?} in\n{text}");
    }
    drop(vmm);
    run("ip", &["link", "del", "tap0"]);
    snapshot.remove();
    before.comes_back();
}

pub fn say_who_you_are() {
    let mut random = [0; 16];
    File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    println!("BOOT {}", fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    println!("RANDOM {random:?}");
    println!("CLOCK {}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
}

pub fn panics() {
    panic!("as it should");
}

pub fn ends_without_a_verdict() {
    std::process::exit(0);
}

/// At once, with not a word more from init.
pub fn takes_the_host_down() {
    fs::write("/proc/sysrq-trigger", "o").unwrap();
    std::thread::sleep(BOUND);
}

pub fn hangs() {
    std::thread::sleep(crate::machine::BOUND);
}
