//! Device-mapper through stead's own seam, on a kernel that has it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt,
};
use stead::desired::FileId;
use stead::host::devices::{DeviceOps, DeviceView, DmDevice, DmRequest, DmTarget, LoopDevice, LoopRequest, SECTOR};
use stead::host::linux::{LinuxHost, LinuxHostConfig};

use crate::inside::bed::{Running, fingerprint, run, wait};

const UUID: &str = "STEAD-test-web-root";
const NAME: &str = "stead-web-root";
/// Sectors of the base of each test: 8 MiB.
const BASE: u64 = 16384;

fn host() -> LinuxHost {
    let host = LinuxHost::new(LinuxHostConfig::default()).unwrap();
    assert_eq!(host.device_mapper(), Ok(()));
    host
}

/// A base of 8 MiB that begins with `BASE`, a file for what is written, and a loop device on each.
struct Loops {
    base: LoopDevice,
    cow: LoopDevice,
}

impl Loops {
    fn new(host: &LinuxHost, name: &str) -> Self {
        let path = |kind: &str| PathBuf::from(format!("/state/{name}.{kind}"));
        let mut base = File::create(path("base")).unwrap();
        base.write_all(b"BASE").unwrap();
        base.set_len(BASE * SECTOR).unwrap();
        File::create(path("cow")).unwrap().set_len(16 << 20).unwrap();
        Self { base: attach(host, &path("base"), true), cow: attach(host, &path("cow"), false) }
    }

    fn table(&self) -> Vec<DmTarget> {
        let parameters = format!("/dev/{} /dev/{} P 8", self.base.device, self.cow.device);
        vec![DmTarget { start: 0, length: BASE, kind: "snapshot", parameters }]
    }

    fn request(&self) -> DmRequest {
        DmRequest { name: NAME.into(), uuid: UUID.into(), table: self.table(), read_only: false }
    }

    /// Lets go of both, which must be free by then.
    fn detach(&self, host: &LinuxHost) {
        for device in [&self.cow, &self.base] {
            assert!(host.detach_loop(&device.device, &device.tag).unwrap());
            fs::remove_file(&device.backing_path).unwrap();
        }
    }
}

fn attach(host: &LinuxHost, file: &Path, read_only: bool) -> LoopDevice {
    let metadata = fs::metadata(file).unwrap();
    let backing = FileId { device: metadata.dev(), inode: metadata.ino() };
    let tag = format!("stead:{}", file.file_name().unwrap().to_str().unwrap());
    host.attach_loop(&LoopRequest { file: file.to_owned(), backing, tag, read_only }).unwrap()
}

fn node(device: &DmDevice) -> PathBuf {
    Path::new("/dev").join(&device.device)
}

fn read_write(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Another process that has a device open.
fn opener(path: &Path) -> Running {
    Running(Command::new("sleep").arg("1000").stdin(Stdio::from(File::open(path).unwrap())).spawn().unwrap())
}

#[track_caller]
fn is(error: &io::Error, kind: io::ErrorKind, parts: &[&str]) {
    assert_eq!(error.kind(), kind, "{error}");
    for part in parts {
        assert!(error.to_string().contains(part), "no {part:?} in: {error}");
    }
}

pub fn a_snapshot_is_made_seen_written_and_removed() {
    let before = fingerprint();
    let host = host();
    let loops = Loops::new(&host, "web");
    let device = host.create_dm(&loops.request()).unwrap();
    let DmDevice { device: kernel_name, status, .. } = device.clone();
    let expected = DmDevice {
        name: NAME.into(),
        uuid: UUID.into(),
        device: kernel_name,
        open_count: 0,
        has_table: true,
        suspended: false,
        deferred_remove: false,
        status,
    };
    assert_eq!(device, expected);
    // USED/TOTAL METADATA, in sectors.
    assert!(device.status.split(['/', ' ']).all(|word| word.parse::<u64>().is_ok()), "{device:?}");
    assert!(device.status.contains("/32768 "), "{device:?}");
    assert_eq!(host.dm_device(NAME).unwrap(), Some(device.clone()));
    assert_eq!(host.dm_devices().unwrap(), std::slice::from_ref(&device));
    assert_eq!(run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,uuid"]), format!("{NAME}:{UUID}"));

    let disk = read_write(&node(&device));
    let mut start = [0; 4];
    disk.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"BASE");
    disk.write_all_at(b"SNAP", 0).unwrap();
    disk.sync_all().unwrap();
    assert_eq!(host.dm_device(NAME).unwrap().unwrap().open_count, 1);
    drop(disk);
    File::open("/state/web.base").unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"BASE", "the base was written to");

    // What lies on a loop device is told by its name, and the loop is in use as long as it does.
    let holders = host.holders(&loops.base.device).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    assert_eq!(holders[0].pid, 0);
    assert_eq!(holders[0].command, format!("{}, named {NAME}", device.device));
    let error = host.detach_loop(&loops.base.device, &loops.base.tag).unwrap_err();
    is(&error, io::ErrorKind::ResourceBusy, &[&loops.base.device, NAME]);

    assert!(host.remove_dm(NAME, UUID).unwrap());
    assert!(!host.remove_dm(NAME, UUID).unwrap());
    assert_eq!(host.dm_device(NAME).unwrap(), None);
    assert_eq!(host.dm_devices().unwrap(), []);
    // It was told to let go while it was in use: that it did at once, when it was free.
    assert_eq!(host.loop_device(&loops.base.device).unwrap(), None);

    // What was written is there when it is made anew.
    let base = attach(&host, &loops.base.backing_path, true);
    let loops = Loops { base, cow: loops.cow };
    let device = host.create_dm(&loops.request()).unwrap();
    File::open(node(&device)).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"SNAP");
    assert!(host.remove_dm(NAME, UUID).unwrap());
    loops.detach(&host);
    before.comes_back();
}

pub fn a_grown_disk_reads_its_base_and_then_zeros() {
    let before = fingerprint();
    let host = host();
    let loops = Loops::new(&host, "web");
    let (name, uuid) = ("stead-web-root-origin", "STEAD-test-web-root-origin");
    let target = |start, length, kind, parameters: String| DmTarget { start, length, kind, parameters };
    let table = vec![
        target(0, BASE, "linear", format!("/dev/{} 0", loops.base.device)),
        target(BASE, BASE, "zero", String::new()),
    ];
    let request = DmRequest { name: name.into(), uuid: uuid.into(), table, read_only: true };
    let origin = host.create_dm(&request).unwrap();
    assert_eq!(fs::read_to_string(format!("/sys/block/{}/ro", origin.device)).unwrap().trim(), "1");
    let refused = File::options().write(true).open(node(&origin)).and_then(|disk| disk.write_all_at(b"x", 0));
    assert!(refused.is_err());
    let parameters = format!("/dev/{} /dev/{} P 8", origin.device, loops.cow.device);
    let table = vec![target(0, 2 * BASE, "snapshot", parameters)];
    let disk = host.create_dm(&DmRequest { table, ..loops.request() }).unwrap();
    for device in [&origin, &disk] {
        let sectors = fs::read_to_string(format!("/sys/block/{}/size", device.device)).unwrap();
        assert_eq!(sectors.trim(), (2 * BASE).to_string());
    }
    let file = read_write(&node(&disk));
    let mut read = [7; 4];
    file.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(&read, b"BASE");
    file.read_exact_at(&mut read, BASE * SECTOR).unwrap();
    assert_eq!(read, [0; 4]);
    file.write_all_at(b"GROW", BASE * SECTOR).unwrap();
    file.sync_all().unwrap();
    file.read_exact_at(&mut read, BASE * SECTOR).unwrap();
    assert_eq!(&read, b"GROW");
    drop(file);
    // In the wrong order it is refused.
    is(&host.remove_dm(name, uuid).unwrap_err(), io::ErrorKind::ResourceBusy, &[name, NAME]);
    assert!(host.remove_dm(NAME, UUID).unwrap());
    assert!(host.remove_dm(name, uuid).unwrap());
    loops.detach(&host);
    before.comes_back();
}

pub fn an_open_device_is_busy_at_once_with_its_holder_and_goes_after_it() {
    let before = fingerprint();
    let host = host();
    let loops = Loops::new(&host, "web");
    let device = host.create_dm(&loops.request()).unwrap();

    let process = opener(&node(&device));
    let holder = format!("pid {} (sleep)", process.0.id());
    let start = Instant::now();
    let error = host.remove_dm(NAME, UUID).unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(700), "it waited: {:?}", start.elapsed());
    is(&error, io::ErrorKind::ResourceBusy, &[NAME, &holder]);
    assert!(!host.dm_device(NAME).unwrap().unwrap().deferred_remove, "removal was put off rather than refused");

    // Somebody else asks for a removal that is put off: it is there all the same.
    run("dmsetup", &["remove", "--deferred", NAME]);
    let found = host.dm_device(NAME).unwrap().unwrap();
    assert!(found.deferred_remove && found.open_count == 1, "{found:?}");
    is(&host.remove_dm(NAME, UUID).unwrap_err(), io::ErrorKind::ResourceBusy, &[&holder, "still there"]);
    drop(process);
    wait("its removal", || host.dm_device(NAME).unwrap().is_none().then_some(()));
    assert!(!host.remove_dm(NAME, UUID).unwrap());

    // Mounted.
    let device = host.create_dm(&loops.request()).unwrap();
    run("mkfs.ext4", &["-q", "-F", node(&device).to_str().unwrap()]);
    run("mount", &["-t", "ext4", node(&device).to_str().unwrap(), "/mnt"]);
    is(&host.remove_dm(NAME, UUID).unwrap_err(), io::ErrorKind::ResourceBusy, &["mounted at /mnt"]);
    run("umount", &["/mnt"]);

    // Another loop device on it.
    let node = node(&device);
    let on_top = run("losetup", &["-f"]);
    run("losetup", &["-r", &on_top, node.to_str().unwrap()]);
    let on_top_name = on_top.trim_start_matches("/dev/");
    is(&host.remove_dm(NAME, UUID).unwrap_err(), io::ErrorKind::ResourceBusy, &[on_top_name]);
    run("losetup", &["-d", &on_top]);

    // Suspended by somebody.
    run("dmsetup", &["suspend", NAME]);
    assert!(host.dm_device(NAME).unwrap().unwrap().suspended);
    let process = opener(&node);
    is(&host.remove_dm(NAME, UUID).unwrap_err(), io::ErrorKind::ResourceBusy, &["suspended", "dmsetup resume"]);
    drop(process);
    wait("its close", || (host.dm_device(NAME).unwrap().unwrap().open_count == 0).then_some(()));
    assert!(host.remove_dm(NAME, UUID).unwrap());
    loops.detach(&host);
    before.comes_back();
}

pub fn what_is_not_ours_is_refused_and_what_fails_leaves_nothing() {
    let before = fingerprint();
    let host = host();
    let loops = Loops::new(&host, "web");
    let request = loops.request();

    // A stranger's, with another uuid and with none.
    for uuid in [&["-u", "LVM-x"][..], &[]] {
        run("dmsetup", &[&["create", NAME, "--table", "0 8 zero"], uuid].concat());
        is(&host.remove_dm(NAME, UUID).unwrap_err(), io::ErrorKind::PermissionDenied, &[NAME]);
        is(&host.create_dm(&request).unwrap_err(), io::ErrorKind::AlreadyExists, &[NAME]);
        assert!(host.dm_device(NAME).unwrap().unwrap().has_table);
        run("dmsetup", &["remove", NAME]);
    }
    // Our uuid under another name.
    run("dmsetup", &["create", "other", "-u", UUID, "--table", "0 8 zero"]);
    is(&host.create_dm(&request).unwrap_err(), io::ErrorKind::AlreadyExists, &[]);
    assert_eq!(host.dm_device(NAME).unwrap(), None);
    assert!(!host.remove_dm(NAME, UUID).unwrap());
    assert!(host.remove_dm("other", UUID).unwrap());

    // Left half made, by a crash between its making and its table, and between table and life.
    run("dmsetup", &["create", "-n", NAME, "-u", UUID]);
    let half = host.dm_device(NAME).unwrap().unwrap();
    assert!(!half.has_table && half.status.is_empty(), "{half:?}");
    is(&host.create_dm(&request).unwrap_err(), io::ErrorKind::AlreadyExists, &[NAME]);
    assert!(host.remove_dm(NAME, UUID).unwrap());
    run("dmsetup", &["create", "-n", NAME, "-u", UUID]);
    run("dmsetup", &["load", NAME, "--table", "0 8 zero"]);
    assert!(!host.dm_device(NAME).unwrap().unwrap().has_table);
    assert!(host.remove_dm(NAME, UUID).unwrap());

    // What the kernel refuses.
    let with = |kind, parameters: &str| {
        let table = vec![DmTarget { start: 0, length: BASE, kind, parameters: parameters.into() }];
        host.create_dm(&DmRequest { table, ..request.clone() }).unwrap_err()
    };
    is(&with("nonsense", ""), io::ErrorKind::Unsupported, &["target nonsense", "modprobe dm-nonsense"]);
    is(&with("a-target-with-a-long-name", ""), io::ErrorKind::InvalidInput, &[]);
    let error = with("linear", "/dev/loop99 0");
    assert!(error.to_string().contains(NAME) && error.to_string().contains("/dev/loop99"), "{error}");
    let error = with("snapshot", "nonsense");
    assert!(error.to_string().contains(NAME), "{error}");
    assert_eq!(host.dm_devices().unwrap(), []);

    // A /dev that is not the kernel's own: nobody could open what is made.
    std::thread::scope(|scope| {
        let lonely = scope.spawn(|| {
            use nix::mount::{MsFlags, mount};
            use nix::sched::{CloneFlags, unshare};
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), none).unwrap();
            let table = vec![DmTarget { start: 0, length: BASE, kind: "zero", parameters: String::new() }];
            host.create_dm(&DmRequest { table, ..request.clone() }).unwrap_err()
        });
        is(&lonely.join().unwrap(), io::ErrorKind::NotFound, &["/dev/dm-", "container"]);
    });
    assert_eq!(host.dm_devices().unwrap(), []);

    // And after all that it works.
    host.create_dm(&request).unwrap();
    assert!(host.remove_dm(NAME, UUID).unwrap());
    loops.detach(&host);
    before.comes_back();
}

pub fn a_missing_module_is_named_loaded_if_possible_and_used_once_it_is_there() {
    let host = LinuxHost::new(LinuxHostConfig::default()).unwrap();
    // The program by which the kernel loads modules.
    let setting = "/proc/sys/kernel/modprobe";
    let loader = fs::read_to_string(setting).unwrap();
    fs::write(setting, "/nonexistent").unwrap();
    run("rmmod", &["dm_snapshot", "dm_bufio", "dm_flakey", "dm_mod"]);
    let why = host.device_mapper().unwrap_err();
    assert!(why.contains("no device-mapper") && why.contains("modprobe"), "{why}");
    assert_eq!(host.dm_devices().unwrap(), []);
    assert_eq!(host.dm_device(NAME).unwrap(), None);
    assert!(!host.remove_dm(NAME, UUID).unwrap());

    run("modprobe", &["dm-mod"]);
    let why = host.device_mapper().unwrap_err();
    assert!(why.contains("target snapshot") && why.contains("modprobe dm-snapshot"), "{why}");
    assert_eq!(host.dm_devices().unwrap(), []);

    fs::write(setting, loader.trim()).unwrap();
    assert_eq!(host.device_mapper(), Ok(()));
    let loops = Loops::new(&host, "web");
    host.create_dm(&loops.request()).unwrap();
    assert!(host.remove_dm(NAME, UUID).unwrap());
    loops.detach(&host);
}

pub fn an_overflown_snapshot_says_so() {
    let host = host();
    let loops = Loops::new(&host, "web");
    assert!(host.detach_loop(&loops.cow.device, &loops.cow.tag).unwrap());
    // Room for a part of what is written below.
    File::create("/state/small").unwrap().set_len(1 << 20).unwrap();
    let loops = Loops { cow: attach(&host, Path::new("/state/small"), false), ..loops };
    let device = host.create_dm(&loops.request()).unwrap();
    let disk = read_write(&node(&device));
    let failed = disk.write_all_at(&vec![7; 4 << 20], 0).and_then(|()| disk.sync_all());
    assert!(failed.is_err());
    drop(disk);
    assert_eq!(host.dm_device(NAME).unwrap().unwrap().status, "Invalid");
    assert!(host.remove_dm(NAME, UUID).unwrap());
    loops.detach(&host);
}

/// On a host whose udev has no rules for device-mapper, whoever waits for them waits for ever.
pub fn udev_is_told_to_keep_off_and_not_waited_for() {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .unwrap();
    // The kernel's own group (udev(7), netlink(7)).
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1)).unwrap();
    setsockopt(&events, sockopt::RcvBuf, &(1 << 20)).unwrap();
    // By this libdevmapper, and the crate, tell that udev runs.
    fs::create_dir_all("/run/udev").unwrap();
    File::create("/run/udev/control").unwrap();

    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let host = host();
        let loops = Loops::new(&host, "web");
        let device = host.create_dm(&loops.request()).unwrap();
        assert!(host.remove_dm(NAME, UUID).unwrap());
        loops.detach(&host);
        done.send(device.device).unwrap();
    });
    let device = is_done.recv_timeout(Duration::from_secs(20)).expect("made and removed in time");

    let mut cookies = Vec::new();
    let mut buffer = vec![0; 8192];
    while let Ok(length) = recv(events.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
        let event = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let value = |key: &str| event.split('\0').find_map(|line| line.strip_prefix(key)).map(str::to_owned);
        if value("DEVNAME=").is_some_and(|name| name == device) {
            cookies
                .extend(value("DM_COOKIE=").map(|cookie| (value("ACTION=").unwrap(), cookie.parse::<u32>().unwrap())));
        }
    }
    let actions: Vec<&str> = cookies.iter().map(|(action, _)| action.as_str()).collect();
    assert_eq!(actions, ["change", "remove"]);
    for (action, cookie) in &cookies {
        // As 55-dm.rules reads it.
        let flags = run("dmsetup", &["udevflags", &cookie.to_string()]);
        for flag in ["PRIMARY_SOURCE", "DISABLE_SUBSYSTEM_RULES", "DISABLE_DISK_RULES", "DISABLE_OTHER_RULES"] {
            assert!(flags.contains(&format!("DM_UDEV_{flag}_FLAG='1'")), "{action}: {flags}");
        }
        assert!(!flags.contains("DISABLE_DM_RULES"), "{action}: {flags}");
        // As 95-dm-notify.rules does at the end: content, though nobody waits.
        run("dmsetup", &["udevcomplete", &cookie.to_string()]);
    }
}
