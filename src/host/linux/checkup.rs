//! A look at the whole host for a person who wants to know what is wrong with it. Changes nothing: no file is
//! made, no lock taken, and no module loaded that a look at the host by any other command would not load.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::{kernel_files, process};
use crate::host::HostView;
use crate::host::checkup::{
    Bridge, Checkup, Clock, Device, Folder, Inotify, Loops, Opened, Owner, Room, Threads, User,
};
use crate::spec::VmmKind;

/// The bit of `CAP_NET_ADMIN` (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;
/// Bits of a device's minor number (linux/kdev_t.h).
const MINOR_BITS: u32 = 20;
/// The most folders that are counted, and how deep: what stead itself reads.
const FOLDERS_MAX: u64 = 100_000;
const DEPTH_MAX: usize = 16;

/// Looks at this host.
pub fn look(host: &dyn HostView) -> Checkup {
    let facts = host.host_facts();
    let programs = [(VmmKind::Firecracker, &facts.firecracker), (VmmKind::Qemu, &facts.qemu)];
    let version = |(kind, program): (VmmKind, &Result<crate::host::Program, String>)| {
        Some((kind, host.program_version(kind, program.as_ref().ok()?)?))
    };
    let versions: BTreeMap<VmmKind, String> = programs.into_iter().filter_map(version).collect();
    Checkup {
        versions,
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        user: user(nix::unistd::geteuid().as_raw()),
        net_admin: capabilities() & (1 << CAP_NET_ADMIN) != 0,
        // A pass opens these two as well; the others may have a driver loaded by that.
        kvm: device("/dev/kvm", None),
        dm_control: device("/dev/mapper/control", Some("device-mapper")),
        tun: device("/dev/net/tun", Some("tun")),
        loop_control: device("/dev/loop-control", Some("loop-control")),
        loops: loops(),
        threads: threads(),
        open_files: getrlimit(Resource::Nofile).maximum,
        inotify: inotify(),
        clock: Clock {
            wall: host.now().wall,
            // In this order: time goes on between the two.
            monotonic_ms: milliseconds(ClockId::Monotonic),
            boot_ms: milliseconds(ClockId::Boottime),
            synchronised: is_synchronised(),
        },
        confined: confined(),
        facts,
    }
}

/// A user by its number.
fn user(id: u32) -> User {
    let name = nix::unistd::User::from_uid(id.into()).ok().flatten().map(|user| user.name);
    User { id, name }
}

fn group(id: u32) -> User {
    let name = nix::unistd::Group::from_gid(id.into()).ok().flatten().map(|group| group.name);
    User { id, name }
}

fn owner(metadata: &fs::Metadata) -> Owner {
    Owner { user: user(metadata.uid()), group: group(metadata.gid()), mode: metadata.mode() & 0o7777 }
}

/// Effective capabilities, as `/proc/self/status` has them.
fn capabilities() -> u64 {
    let status = kernel_files::read_text("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

/// A device file. With `misc`, the name of its driver among those of `/proc/misc`, it is opened only if that is loaded.
fn device(path: &str, misc: Option<&str>) -> Device {
    let path = PathBuf::from(path);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let is_missing = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
            let opened = if is_missing { Opened::Missing } else { Opened::No(error.to_string()) };
            return Device { path, owner: None, opened };
        }
    };
    let owner = Some(owner(&metadata));
    if !metadata.file_type().is_char_device() {
        return Device { path, owner, opened: Opened::No("it is no device".to_owned()) };
    }
    if misc.is_some_and(|driver| !has_driver(driver)) {
        return Device { path, owner, opened: Opened::NoDriver };
    }
    let opened = match OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path) {
        Ok(_) => Opened::Yes,
        Err(error) => Opened::No(error.to_string()),
    };
    Device { path, owner, opened }
}

fn has_driver(name: &str) -> bool {
    let drivers = kernel_files::read_text("/proc/misc").unwrap_or_default();
    drivers.lines().any(|line| line.split_ascii_whitespace().nth(1) == Some(name))
}

/// A number that is all there is in a file.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    kernel_files::read_text(path).ok()?.trim().parse().ok()
}

/// The kernel gives each loop device as many minor numbers as it may have partitions (`max_part` of drivers/block/loop.c), and so
/// there can be as many as minors go into that.
fn loops() -> Loops {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let bound = devices.filter(|device| device.path().join("loop/backing_file").exists()).count();
    let partitions = number("/sys/module/loop/parameters/max_part").unwrap_or(0);
    let bits = u64::BITS - partitions.leading_zeros();
    Loops { bound: bound as u64, most: 1 << MINOR_BITS.saturating_sub(bits) }
}

fn threads() -> Threads {
    let load = kernel_files::read_text("/proc/loadavg").unwrap_or_default();
    // Field 4 is RUNNING/ALL (proc_loadavg(5)).
    let all = load.split_ascii_whitespace().nth(3).and_then(|field| field.split_once('/')?.1.parse().ok());
    let limit = |file: &str| number(format!("/proc/sys/kernel/{file}")).unwrap_or(u64::MAX);
    Threads { used: all.unwrap_or(0), pid_max: limit("pid_max"), threads_max: limit("threads-max") }
}

fn inotify() -> Inotify {
    use nix::sys::inotify::{InitFlags, Inotify as Instance};
    let one_more = Instance::init(InitFlags::IN_CLOEXEC).map(drop).map_err(|errno| errno.desc().to_owned());
    let me = nix::unistd::geteuid().as_raw();
    let (mut instances, mut watches) = (0, 0);
    for pid in process::numbers().unwrap_or_default() {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        if fs::metadata(&folder).map(|found| found.uid()).ok() != Some(me) {
            continue;
        }
        for entry in fs::read_dir(folder.join("fd")).into_iter().flatten().flatten() {
            if fs::read_link(entry.path()).is_ok_and(|target| target == Path::new("anon_inode:inotify")) {
                instances += 1;
                let info = kernel_files::read_text(folder.join("fdinfo").join(entry.file_name())).unwrap_or_default();
                watches += info.lines().filter(|line| line.starts_with("inotify wd:")).count() as u64;
            }
        }
    }
    // A user namespace may allow less than the host does (namespaces(7)).
    let limit = |name: &str| {
        let of = |file: String| number(file).unwrap_or(u64::MAX);
        of(format!("/proc/sys/fs/inotify/max_user_{name}")).min(of(format!("/proc/sys/user/max_inotify_{name}")))
    };
    Inotify { one_more, instances, instances_max: limit("instances"), watches, watches_max: limit("watches") }
}

fn milliseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(time.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Asks the kernel about its clock, and sets nothing.
fn is_synchronised() -> Result<bool, String> {
    // SAFETY: a struct of plain numbers, for which zeros are a value: `modes` of 0 asks and changes nothing.
    let mut answer: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes to this struct of ours alone.
    match unsafe { libc::adjtimex(&raw mut answer) } {
        -1 => Err(io::Error::last_os_error().to_string()),
        _ => Ok(answer.status & libc::STA_UNSYNC == 0),
    }
}

/// What AppArmor or SELinux says of this process, if it is held to anything.
fn confined() -> Option<String> {
    let label = kernel_files::read_text("/proc/self/attr/current").ok()?;
    let label = label.trim_end_matches(['\0', '\n']).to_owned();
    let enforces = kernel_files::read_text("/sys/fs/selinux/enforce").is_ok_and(|text| text.trim() == "1");
    let is_held = label.ends_with("(enforce)") || (enforces && !label.contains(":unconfined_t:"));
    is_held.then_some(label)
}

/// The room on the filesystem that a path is on, or would be.
///
/// # Errors
/// What the kernel says.
pub fn room(path: &Path) -> io::Result<Room> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(there)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Room {
        bytes: bytes(found.f_blocks),
        bytes_free: bytes(found.f_bavail),
        inodes: found.f_files,
        inodes_free: found.f_favail,
    })
}

/// An interface that is to be a bridge; `None` when there is none of this name in this network namespace.
pub fn bridge(name: &str) -> Option<Bridge> {
    /// `IFF_UP` of netdevice(7).
    const UP: u64 = 1;
    let folder = PathBuf::from("/sys/class/net").join(name);
    let flags = kernel_files::read_text(folder.join("flags")).ok()?;
    let flags = u64::from_str_radix(flags.trim().trim_start_matches("0x"), 16).unwrap_or(0);
    Some(Bridge {
        is_bridge: folder.join("bridge").is_dir(),
        is_up: flags & UP != 0,
        ports: fs::read_dir(folder.join("brif")).map_or(0, |ports| ports.count() as u64),
        mtu: number(folder.join("mtu")).unwrap_or(0),
    })
}

/// A folder of manifests, and how many are in it.
pub fn folder(path: &Path) -> Folder {
    let owner = fs::metadata(path).ok().map(|metadata| owner(&metadata));
    let unreadable = fs::read_dir(path).err().map(|error| error.to_string());
    let mut folders = 0;
    let mut left = vec![(path.to_owned(), 0)];
    // A user's and a group's name are asked for once: there are few kinds, and many files.
    let mut below: BTreeMap<(u32, u32, u32), (Owner, PathBuf, u64)> = BTreeMap::new();
    while let Some((folder, depth)) = left.pop().filter(|_| folders < FOLDERS_MAX) {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        folders += 1;
        for entry in entries.flatten() {
            // Of the entry itself: a link has no mode, and leads where it leads.
            let Some(metadata) = entry.metadata().ok().filter(|metadata| !metadata.is_symlink()) else { continue };
            let kind = (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
            below.entry(kind).or_insert_with(|| (self::owner(&metadata), entry.path(), 0)).2 += 1;
            if metadata.is_dir() && depth < DEPTH_MAX {
                left.push((entry.path(), depth + 1));
            }
        }
    }
    Folder { owner, unreadable, folders, below: below.into_values().collect() }
}

/// How many files another process may have open; `None` when that cannot be read. No limit is `u64::MAX`.
pub fn open_files_of(pid: u32) -> Option<u64> {
    let limits = kernel_files::read_text(format!("/proc/{pid}/limits")).ok()?;
    // Max open files            1024                 524288               files
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    let hard = line.split_ascii_whitespace().nth(1)?;
    if hard == "unlimited" { Some(u64::MAX) } else { hard.parse().ok() }
}

/// What a program on the PATH prints for `--version`; an error that says why it does not.
///
/// # Errors
/// When there is none, or it does not answer.
pub fn program_version(name: &str) -> io::Result<String> {
    let path = super::facts::find(Path::new(name)).ok_or(io::ErrorKind::NotFound)?;
    super::programs::printed(&path, "--version", super::facts::VERSION_BOUND)
}

/// Whether a program is on the PATH.
pub fn has_program(name: &str) -> bool {
    super::facts::find(Path::new(name)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_no_device_or_not_there_is_told_apart() {
        assert_eq!(device("/nonexistent/kvm", None).opened, Opened::Missing);
        assert!(matches!(device("/etc/passwd", None).opened, Opened::No(why) if why == "it is no device"));
        let null = device("/dev/null", None);
        assert_eq!((null.opened, null.owner.unwrap().mode & 0o666), (Opened::Yes, 0o666));
        assert_eq!(device("/dev/null", Some("no-such-driver")).opened, Opened::NoDriver);
    }

    #[test]
    fn what_the_kernel_says_of_its_limits_is_read() {
        let threads = threads();
        assert!(threads.used > 0 && threads.used < threads.pid_max && threads.threads_max < u64::MAX, "{threads:?}");
        assert_eq!(open_files_of(std::process::id()), Some(getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)));
        assert!(loops().most >= 1 << 15);
        assert!(is_synchronised().is_ok());
        let room = room(Path::new("/nonexistent/folder")).unwrap();
        assert!(room.bytes > room.bytes_free);
        assert!(bridge("lo").is_some_and(|lo| !lo.is_bridge) && bridge("nosuchif0").is_none());
    }

    #[test]
    fn inotify_is_counted_as_it_is_used() {
        use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify as Instance};
        let before = inotify();
        let folder = tempfile::tempdir().unwrap();
        let instance = Instance::init(InitFlags::IN_CLOEXEC).unwrap();
        instance.add_watch(folder.path(), AddWatchFlags::IN_CREATE).unwrap();
        let after = inotify();
        assert!(after.one_more.is_ok() && after.instances >= 1 && after.watches >= 1, "{before:?} {after:?}");
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        assert_eq!(super::folder(folder.path()).folders, 3);
    }
}
