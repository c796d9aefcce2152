//! Loop devices, real ones: each test binds files of its own under tags of its own, and frees what carries them at its end.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use nix::sched::CloneFlags;
use stead::desired::FileId;
use stead::host::HostOps;
use stead::host::devices::{DeviceOps, DeviceView, DmRequest, LoopDevice, LoopRequest};
use stead::host::linux::LinuxHost;

use crate::bed::{host, in_namespaces, is_root, text, wait};

/// A folder with files to bind, and a tag that nobody else has.
struct Bench {
    host: Arc<LinuxHost>,
    dir: tempfile::TempDir,
    tag: String,
}

impl Bench {
    /// `None`, which is said, where loop devices cannot be bound.
    fn new() -> Option<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        if !is_root() {
            eprintln!("left out: loop devices need root");
            return None;
        }
        let tag = format!("stead-test:{}:{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Some(Self { host: host(), dir: tempfile::tempdir().unwrap(), tag })
    }

    /// A file of a megabyte that begins with its name.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut file = File::create(&path).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        file.set_len(1 << 20).unwrap();
        path
    }

    fn request(&self, file: &Path) -> LoopRequest {
        LoopRequest { file: file.to_owned(), backing: id_of(file), tag: self.tag.clone(), read_only: false }
    }

    fn attach(&self, file: &Path) -> LoopDevice {
        self.host.attach_loop(&self.request(file)).unwrap()
    }

    fn mine(&self) -> Vec<LoopDevice> {
        let mut loops = self.host.loop_devices().unwrap();
        loops.retain(|device| device.tag.starts_with(&self.tag));
        loops
    }

    /// Asserts that there is nothing left to detach. Another test may have the number by now: that is refused.
    #[track_caller]
    fn is_gone(&self, device: &LoopDevice) {
        match self.host.detach_loop(&device.device, &device.tag) {
            Ok(was_bound) => assert!(!was_bound),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{error}"),
        }
    }

    /// Detaches; true when it was bound. Others that just look at it keep it for a moment: udev, and a `losetup` that was
    /// about to bind the very same one.
    fn detach(&self, device: &LoopDevice) -> bool {
        let mut was_busy = false;
        wait(&format!("the release of {}", device.device), || {
            match self.host.detach_loop(&device.device, &device.tag) {
                Ok(was_bound) => Some(was_bound || was_busy),
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy, "{error}");
                    was_busy = true;
                    None
                }
            }
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for device in self.mine() {
            let _ = self.host.detach_loop(&device.device, &device.tag);
        }
    }
}

fn id_of(path: &Path) -> FileId {
    let metadata = fs::metadata(path).unwrap();
    FileId { device: metadata.dev(), inode: metadata.ino() }
}

fn node(device: &LoopDevice) -> PathBuf {
    Path::new("/dev").join(&device.device)
}

fn sysfs(device: &LoopDevice, file: &str) -> String {
    fs::read_to_string(Path::new("/sys/block").join(&device.device).join(file)).unwrap().trim_end().to_owned()
}

fn losetup(args: &[&str]) -> String {
    let output = Command::new("losetup").args(args).output().unwrap();
    assert!(output.status.success(), "losetup {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

/// A process of another name that has a device open until it is dropped.
struct Opener(Child);

impl Opener {
    fn of(path: &Path) -> Self {
        Self(Command::new("sleep").arg("1000").stdin(Stdio::from(File::open(path).unwrap())).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        self.0.id().try_into().unwrap()
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_file_is_bound_known_by_tag_and_identity_and_freed_again() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let device = bench.attach(&path);
    let expected = LoopDevice {
        device: device.device.clone(),
        tag: bench.tag.clone(),
        backing: id_of(&path),
        backing_path: path.clone(),
        read_only: false,
        autoclear: false,
        devices_on_top: 0,
    };
    assert_eq!(device, expected);
    assert_eq!(bench.host.loop_device(&device.device).unwrap(), Some(expected.clone()));
    assert_eq!(bench.mine(), std::slice::from_ref(&expected));
    assert_eq!(sysfs(&device, "size"), "2048");
    assert_eq!(sysfs(&device, "queue/logical_block_size"), "512");
    assert_eq!(losetup(&["-j", path.to_str().unwrap(), "-n", "-O", "NAME"]), node(&device).to_str().unwrap());

    // What is written and flushed through it is in the file.
    let disk = OpenOptions::new().read(true).write(true).open(node(&device)).unwrap();
    disk.write_all_at(&[7; 4096], 4096).unwrap();
    disk.sync_all().unwrap();
    let mut read = [0; 4096];
    File::open(&path).unwrap().read_exact_at(&mut read, 4096).unwrap();
    assert_eq!(read, [7; 4096]);
    drop(disk);

    // It is the file and not its name.
    let renamed = bench.dir.path().join("renamed");
    fs::rename(&path, &renamed).unwrap();
    let found = bench.host.loop_device(&device.device).unwrap().unwrap();
    assert_eq!(found, LoopDevice { backing_path: renamed.clone(), ..expected.clone() });
    fs::remove_file(&renamed).unwrap();
    let found = bench.host.loop_device(&device.device).unwrap().unwrap();
    let deleted = PathBuf::from(format!("{} (deleted)", renamed.display()));
    assert_eq!(found, LoopDevice { backing_path: deleted, ..expected });

    assert!(bench.detach(&device));
    assert_eq!(bench.mine(), []);
    bench.is_gone(&device);
}

#[test]
fn asked_twice_there_is_one() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let first = bench.attach(&path);
    assert_eq!(bench.attach(&path), first);
    // Also by another name, and through a link.
    let link = bench.dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(bench.attach(&link), first);
    fs::rename(&path, bench.dir.path().join("renamed")).unwrap();
    assert_eq!(bench.attach(&bench.dir.path().join("renamed")).device, first.device);
    assert_eq!(bench.mine().len(), 1);
}

#[test]
fn another_file_under_the_path_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let request = bench.request(&path);
    fs::rename(bench.file("other"), &path).unwrap();
    let error = bench.host.attach_loop(&request).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StaleNetworkFileHandle);
    assert!(text(&error).contains(path.to_str().unwrap()), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(bench.host.attach_loop(&request).unwrap_err().kind(), io::ErrorKind::NotFound);
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(bench.host.attach_loop(&LoopRequest { read_only: true, ..request }).is_err(), "and it does not wait");
    assert!(bench.host.attach_loop(&LoopRequest { read_only: true, ..bench.request(&path) }).is_err());
    assert_eq!(bench.mine(), []);
}

#[test]
fn what_is_no_tag_and_no_name_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let longest = format!("{}{}", bench.tag, "x".repeat(63 - bench.tag.len()));
    for tag in [String::new(), format!("{longest}x"), "a\0b".to_owned()] {
        let error = bench.host.attach_loop(&LoopRequest { tag, ..bench.request(&path) }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    let device = bench.host.attach_loop(&LoopRequest { tag: longest.clone(), ..bench.request(&path) }).unwrap();
    assert_eq!(device.tag, longest);
    assert!(bench.detach(&device));

    for name in ["", "sda", "loop", "loop-control", "loop01", "../loop0", "loop1p1"] {
        assert_eq!(bench.host.loop_device(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        assert_eq!(bench.host.detach_loop(name, "x").unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
    }
    assert_eq!(bench.host.loop_device("loop999999").unwrap(), None);
    assert!(!bench.host.detach_loop("loop999999", "x").unwrap());
}

#[test]
fn a_base_is_really_read_only_and_shared() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("base");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    let request = LoopRequest { read_only: true, ..bench.request(&path) };
    let base = bench.host.attach_loop(&request).unwrap();
    assert!(base.read_only);
    assert_eq!(sysfs(&base, "ro"), "1");
    // All VMs of a base share what one has read of it.
    assert_eq!(sysfs(&base, "loop/dio"), "0");
    let mut start = [0; 4];
    File::open(node(&base)).unwrap().read_exact(&mut start).unwrap();
    assert_eq!(&start, b"base");
    let refused = OpenOptions::new().write(true).open(node(&base)).and_then(|disk| disk.write_all_at(b"x", 0));
    assert!(refused.is_err());
    assert_eq!(bench.host.attach_loop(&request).unwrap(), base);
    // Another VM's of the same base is another loop.
    let other = LoopRequest { tag: format!("{}:other", bench.tag), ..request };
    assert_ne!(bench.host.attach_loop(&other).unwrap().device, base.device);
}

#[test]
fn a_disk_goes_past_the_cache_where_its_filesystem_can() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let device = bench.attach(&path);
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(&path);
    let direct = file.and_then(|file| {
        let mut room = vec![0; 8192];
        let aligned = room.as_ptr().align_offset(4096);
        file.read_at(&mut room[aligned..aligned + 512], 512)
    });
    assert_eq!(sysfs(&device, "loop/dio") == "1", direct.is_ok(), "{direct:?}");
}

#[test]
fn a_disk_keeps_its_block_size_wherever_its_file_lies() {
    in_private_mounts(|| {
        let Some(bench) = Bench::new() else { return };
        // A filesystem on a disk with blocks of 4 KiB.
        let path = bench.file("disk");
        OpenOptions::new().write(true).open(&path).unwrap().set_len(32 << 20).unwrap();
        let below = losetup(&["--show", "-f", "-b", "4096", path.to_str().unwrap()]);
        let below = Below(below, bench.dir.path().join("mnt"));
        mkfs(Path::new(&below.0));
        fs::create_dir(&below.1).unwrap();
        mount(Path::new(&below.0), &below.1, "ext4");
        let cow = below.1.join("cow");
        File::create(&cow).unwrap().set_len(1 << 20).unwrap();
        let device = bench.attach(&cow);
        assert_eq!(sysfs(&device, "queue/logical_block_size"), "512");
        bench.detach(&device);
    });
}

/// A mounted loop device of nobody's tag.
struct Below(String, PathBuf);

impl Drop for Below {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.1);
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn a_node_that_stands_for_another_device_is_not_believed() {
    in_private_mounts(|| {
        let Some(bench) = Bench::new() else { return };
        let mine = bench.attach(&bench.file("cow"));
        let rdev = fs::metadata(node(&mine)).unwrap().rdev();
        let none = nix::libc::makedev(7, 1_000_000);
        let request = LoopRequest { read_only: true, ..bench.request(&bench.file("other")) };
        mount(Path::new("tmpfs"), Path::new("/dev"), "tmpfs");
        let make = |name: &str, kind, rdev| {
            let _ = fs::remove_file(Path::new("/dev").join(name));
            let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
            nix::sys::stat::mknod(&Path::new("/dev").join(name), kind, mode, rdev).unwrap();
        };
        let (block, character) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::SFlag::S_IFCHR);
        // Ours under another's name, which would have it freed by that name.
        make("loop5000", block, rdev);
        assert_eq!(bench.host.loop_device("loop5000").unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(bench.host.detach_loop("loop5000", &bench.tag).unwrap_err().kind(), io::ErrorKind::InvalidData);
        // /dev/null, and no device at all.
        make(&mine.device, character, nix::libc::makedev(1, 3));
        assert_eq!(bench.host.loop_device(&mine.device).unwrap_err().kind(), io::ErrorKind::InvalidData);
        make(&mine.device, block, none);
        assert_eq!(bench.host.loop_device(&mine.device).unwrap(), None);
        // Every free one is named after ours.
        make("loop-control", character, nix::libc::makedev(10, 237));
        make(&mine.device, block, rdev);
        for number in 0..64 {
            make(&format!("loop{number}"), block, rdev);
        }
        for device in bench.host.loop_devices().into_iter().flatten() {
            assert_eq!(device.device, mine.device);
        }
        assert_eq!(bench.host.attach_loop(&request).unwrap_err().kind(), io::ErrorKind::InvalidData);
        nix::mount::umount("/dev").unwrap();
        assert_eq!(bench.mine(), std::slice::from_ref(&mine));
    });
}

/// Runs a test in mounts of its own, which nobody else sees.
fn in_private_mounts(test: impl FnOnce() + Send + 'static) {
    in_namespaces(CloneFlags::CLONE_NEWNS, || {
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE, none)
            .unwrap();
        test();
    });
}

fn mount(what: &Path, place: &Path, kind: &str) {
    let none: Option<&str> = None;
    nix::mount::mount(Some(what), place, Some(kind), nix::mount::MsFlags::empty(), none).unwrap();
}

fn mkfs(on: &Path) {
    let status = Command::new("mkfs.ext4").args(["-q", "-O", "^has_journal"]).arg(on).status().unwrap();
    assert!(status.success());
}

#[test]
fn two_writers_on_one_file_are_refused() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let first = bench.attach(&path);
    let other = LoopRequest { tag: format!("{}:other", bench.tag), ..bench.request(&path) };
    let error = bench.host.attach_loop(&other).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(text(&error).contains(&first.device) && text(&error).contains(&first.tag), "{error}");
    assert_eq!(bench.mine(), [first]);
}

#[test]
fn a_busy_loop_is_told_with_its_holder_and_frees_itself_when_that_ends() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    let device = bench.attach(&path);
    let opener = Opener::of(&node(&device));
    let holders = bench.host.holders(&device.device).unwrap();
    assert!(holders.iter().any(|holder| holder.pid == opener.pid() && holder.command == "sleep"), "{holders:?}");

    let start = Instant::now();
    let error = bench.host.detach_loop(&device.device, &bench.tag).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    for part in [&device.device, &format!("pid {} (sleep)", opener.pid())] {
        assert!(text(&error).contains(part.as_str()), "{error}");
    }
    // It is still bound, and its file still there.
    let found = bench.host.loop_device(&device.device).unwrap().unwrap();
    assert_eq!(found, LoopDevice { autoclear: true, ..device.clone() });
    assert!(path.exists());
    // One that is about to go is not given to anybody.
    let error = bench.host.attach_loop(&bench.request(&path)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(text(&error).contains(&opener.pid().to_string()), "{error}");

    drop(opener);
    wait("its release", || bench.mine().is_empty().then_some(()));
    bench.is_gone(&device);
    assert_eq!(bench.attach(&path).tag, bench.tag);
}

#[test]
fn a_mounted_loop_is_told_with_its_mount_point() {
    in_namespaces(CloneFlags::CLONE_NEWNS, || {
        let Some(bench) = Bench::new() else { return };
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE, none)
            .unwrap();
        let path = bench.file("disk");
        mkfs(&path);
        let device = bench.attach(&path);
        let place = bench.dir.path().join("mnt");
        fs::create_dir(&place).unwrap();
        mount(&node(&device), &place, "ext4");
        // The thread's own namespace is not that of its process, by which /proc lists; so a process of it is needed.
        let mut inside = Opener(Command::new("sleep").arg("1000").spawn().unwrap());
        let error = bench.host.detach_loop(&device.device, &bench.tag).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(text(&error).contains(&format!("mounted at {}", place.display())), "{error}");
        inside.0.kill().unwrap();
        inside.0.wait().unwrap();
        nix::mount::umount(&place).unwrap();
        wait("its release", || bench.mine().is_empty().then_some(()));
    });
}

#[test]
fn what_carries_no_tag_or_anothers_is_refused_and_untouched() {
    let Some(bench) = Bench::new() else { return };
    let close = format!("{}x", bench.tag);
    let near =
        bench.host.attach_loop(&LoopRequest { tag: close.clone(), ..bench.request(&bench.file("near")) }).unwrap();
    // losetup writes the path, or nothing, where we write the tag.
    let path = bench.file("far");
    let far = losetup(&["--show", "-f", path.to_str().unwrap()]);
    let far = far.strip_prefix("/dev/").unwrap();
    for device in [near.device.as_str(), far] {
        let before = bench.host.loop_device(device).unwrap().unwrap();
        let error = bench.host.detach_loop(device, &bench.tag).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(text(&error).contains(device), "{error}");
        assert_eq!(bench.host.loop_device(device).unwrap(), Some(before));
    }
    losetup(&["-d", &format!("/dev/{far}")]);
    bench.detach(&near);
}

#[test]
fn twenty_at_a_time_get_twenty() {
    let Some(bench) = Bench::new() else { return };
    let barrier = Barrier::new(20);
    let devices: Vec<LoopDevice> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|number| {
                let path = bench.file(&format!("disk{number}"));
                let (bench, barrier) = (&bench, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    let device = bench.attach(&path);
                    assert_eq!(device.backing, id_of(&path));
                    device
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let names: BTreeSet<&String> = devices.iter().map(|device| &device.device).collect();
    assert_eq!(names.len(), 20);
    assert_eq!(bench.mine().len(), 20);
    // And away again, while others look at them all.
    std::thread::scope(|scope| {
        for device in &devices {
            scope.spawn(|| assert!(bench.detach(device)));
        }
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| drop(bench.host.loop_devices().unwrap())));
        }
    });
    assert_eq!(bench.mine(), []);
}

#[test]
fn whoever_lacks_the_right_is_told_so() {
    let Some(bench) = Bench::new() else { return };
    let path = bench.file("cow");
    for (path, mode) in [(bench.dir.path(), 0o755), (path.as_path(), 0o666)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let request = bench.request(&path);
    let host = bench.host.clone();
    let error = std::thread::spawn(move || {
        // Of this thread alone: the system call, unlike the C library's function.
        // SAFETY: the call takes plain numbers.
        assert_eq!(unsafe { nix::libc::syscall(nix::libc::SYS_setresuid, -1, 65534, -1) }, 0);
        host.attach_loop(&request)
    })
    .join()
    .unwrap()
    .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    assert!(text(&error).contains("need root"), "{error}");
}

#[test]
fn a_host_without_loop_devices_is_told_what_to_do() {
    in_namespaces(CloneFlags::CLONE_NEWNS, || {
        let Some(bench) = Bench::new() else { return };
        let none: Option<&str> = None;
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE, none)
            .unwrap();
        let path = bench.file("cow");
        let device = bench.attach(&path);
        let request = LoopRequest { read_only: true, ..bench.request(&bench.file("other")) };
        // A /dev as in a container.
        mount(Path::new("tmpfs"), Path::new("/dev"), "tmpfs");
        let error = bench.host.loop_device(&device.device).unwrap_err();
        assert!(text(&error).contains(&format!("/dev/{} is missing", device.device)), "{error}");
        assert!(text(&error).contains("container"), "{error}");
        let error = bench.host.attach_loop(&request).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        nix::mount::umount("/dev").unwrap();
        bench.detach(&device);
    });
}

#[test]
fn without_device_mapper_there_is_no_such_device_and_it_is_said_why() {
    let host = host();
    if !is_root() || Path::new("/sys/class/misc/device-mapper").exists() {
        eprintln!("left out: it takes root on a kernel without device-mapper");
        return;
    }
    let why = host.device_mapper().unwrap_err();
    assert!(why.contains("no device-mapper") && why.contains("modprobe") && why.contains("dm_snapshot"), "{why}");
    assert_eq!(host.dm_devices().unwrap(), []);
    assert_eq!(host.dm_device("stead-test").unwrap(), None);
    assert!(!host.remove_dm("stead-test", "stead-test").unwrap());
    let request =
        DmRequest { name: "stead-test".into(), uuid: "stead-test".into(), table: Vec::new(), read_only: false };
    let error = host.create_dm(&request).unwrap_err();
    assert_eq!((error.kind(), text(&error)), (io::ErrorKind::Unsupported, why));
    for name in ["", "a/b", ".", "a\0b"] {
        assert_eq!(host.dm_device(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name:?}");
    }
}

#[test]
fn the_processes_on_taps_are_known_by_the_taps_name() {
    in_namespaces(CloneFlags::CLONE_NEWNET, || {
        let host = host();
        let name = format!("sth{}", std::process::id() % 1_000_000_000);
        host.create_tap(&name, "stead:test", None).unwrap();
        let on = |host: &LinuxHost| {
            let mut holders = host.tap_holders().unwrap();
            holders.retain(|(tap, _)| *tap == name);
            holders
        };
        assert_eq!(on(&host), []);
        // socat and VMMs attach as this does; the file is then open in `sleep`.
        let tun = attach_to_tap(&name);
        let opener = Opener(Command::new("sleep").arg("1000").stdin(Stdio::from(tun)).spawn().unwrap());
        let holders = on(&host);
        assert_eq!(holders.len(), 1, "{holders:?}");
        assert_eq!((holders[0].1.pid, holders[0].1.command.as_str()), (opener.pid(), "sleep"));
        drop(opener);
        assert_eq!(on(&host), []);
        assert!(host.delete_tap(&name, "stead:test").unwrap());
    });
}

fn attach_to_tap(name: &str) -> File {
    nix::ioctl_write_ptr_bad!(tun_set_iff, nix::libc::TUNSETIFF, nix::libc::ifreq);
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeros are a valid ifreq.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
    // SAFETY: `request` is a whole ifreq with a terminated name, and lives through the call.
    unsafe { tun_set_iff(std::os::fd::AsRawFd::as_raw_fd(&file), &raw const request) }.unwrap();
    file
}
