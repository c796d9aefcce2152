//! Who has a device open: what `/proc` and sysfs tell, to explain a failure to people.
//!
//! Nothing is opened: a look must not hold what it asks about. What a process is doing meanwhile may be missed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};

use super::proc::{self, DeviceNumber as Number};
use super::{kernel_files, process};
use crate::host::devices::Holder;

/// The most that are named in an error.
const NAMED: usize = 5;

/// Who has this block device open: processes by their open files; processes in whose mount namespace it is mounted, one
/// for each namespace, their name followed by where; and, as pid 0, what in the kernel lies on it: device-mapper devices,
/// loop devices and swap. A device that does not exist is held by nobody.
pub(super) fn of_device(device: &str) -> io::Result<Vec<Holder>> {
    if device.is_empty() || device.starts_with('.') || device.contains('/') {
        return Err(super::error(io::ErrorKind::InvalidInput, format!("{device:?} is no name of a block device")));
    }
    let numbers = numbers_of(device)?;
    if numbers.is_empty() {
        return Ok(Vec::new());
    }
    let mut holders = in_the_kernel(device, &numbers)?;
    let dm_name = kernel_files::read_text(format!("/sys/block/{device}/dm/name")).unwrap_or_default();
    let sources = [format!("/dev/{device}"), format!("/dev/mapper/{}", dm_name.trim_end())];
    let mut namespaces = BTreeSet::new();
    for pid in sorted_pids()? {
        if descriptors(pid).iter().any(|fd| number_of_block_device(fd).is_some_and(|found| numbers.contains(&found))) {
            holders.push(Holder { pid, command: command(pid) });
        }
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt"));
        // One that ended since, or that may not be looked at.
        let Ok(namespace) = namespace else { continue };
        if !namespaces.insert(namespace) {
            continue;
        }
        let mounts = kernel_files::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        if let Some(place) = proc::mount_of(&String::from_utf8_lossy(&mounts), &numbers, &sources) {
            holders.push(Holder { pid, command: format!("{}, which has it mounted at {place}", command(pid)) });
        }
    }
    Ok(holders)
}

/// The processes attached to each tap, by the tap's name. Names are those of each process's own network namespace.
pub(super) fn of_taps() -> io::Result<Vec<(String, Holder)>> {
    let mut found = Vec::new();
    for pid in sorted_pids()? {
        let mut taps = BTreeSet::new();
        for fd in descriptors(pid) {
            // A jailed VMM has a node of its own, below its jail.
            if !fs::read_link(&fd).is_ok_and(|target| target.ends_with("net/tun")) {
                continue;
            }
            let Some(number) = fd.file_name().and_then(|name| name.to_str()) else { continue };
            let info = process::read_proc(pid, &format!("fdinfo/{number}")).ok().flatten().unwrap_or_default();
            taps.extend(proc::tun_interface(&String::from_utf8_lossy(&info)).map(str::to_owned));
        }
        found.extend(taps.into_iter().map(|tap| (tap, Holder { pid, command: command(pid) })));
    }
    Ok(found)
}

/// Who has a device open, as the end of a sentence.
pub(super) fn told(device: &str) -> String {
    let holders = match of_device(device) {
        Ok(holders) if holders.is_empty() => return ", but who has it open is not to be found".to_owned(),
        Ok(holders) => holders,
        Err(error) => return format!("; who has it open could not be looked up: {error}"),
    };
    let named: Vec<String> = holders.iter().take(NAMED).map(ToString::to_string).collect();
    let more = holders.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!(" by {}{more}", named.join(", "))
}

/// The numbers of a block device and of its partitions: who has one of these open has the whole open.
fn numbers_of(device: &str) -> io::Result<BTreeSet<Number>> {
    let folder = PathBuf::from(format!("/sys/block/{device}"));
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(error),
    };
    let mut numbers: BTreeSet<Number> = number_in(&folder.join("dev")).into_iter().collect();
    for entry in entries {
        // A partition's folder is named after its device.
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(device) {
            numbers.extend(number_in(&entry.path().join("dev")));
        }
    }
    Ok(numbers)
}

fn number_in(file: &Path) -> Option<Number> {
    proc::device_number(kernel_files::read_text(file).ok()?.trim_end())
}

/// What in the kernel lies on it. No process has it open for these.
fn in_the_kernel(device: &str, numbers: &BTreeSet<Number>) -> io::Result<Vec<Holder>> {
    let mut commands = Vec::new();
    for name in super::files::list_folder(Path::new(&format!("/sys/block/{device}/holders")))? {
        let dm_name = kernel_files::read_text(format!("/sys/block/{name}/dm/name")).unwrap_or_default();
        let dm_name = dm_name.trim_end();
        commands.push(if dm_name.is_empty() { name } else { format!("{name}, named {dm_name}") });
    }
    // A loop device on a block device is not among its `holders`.
    for name in super::files::list_folder(Path::new("/sys/block"))? {
        let backing = kernel_files::read_text(format!("/sys/block/{name}/loop/backing_file")).unwrap_or_default();
        if is_one_of(Path::new(backing.trim_end()), numbers) {
            commands.push(name);
        }
    }
    let swaps = kernel_files::read_text("/proc/swaps").unwrap_or_default();
    let mut files = swaps.lines().skip(1).filter_map(|line| line.split_ascii_whitespace().next());
    if files.any(|file| is_one_of(Path::new(file), numbers)) {
        commands.push("swap".to_owned());
    }
    Ok(commands.into_iter().map(|command| Holder { pid: 0, command }).collect())
}

fn is_one_of(path: &Path, numbers: &BTreeSet<Number>) -> bool {
    path.starts_with("/dev") && number_of_block_device(path).is_some_and(|found| numbers.contains(&found))
}

/// The number of the block device that this path leads to.
fn number_of_block_device(path: &Path) -> Option<Number> {
    // Of what lies on a network filesystem the server is not asked: it may not answer.
    let stat = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE).ok()?;
    let is_block_device = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::BlockDevice;
    is_block_device.then_some((stat.stx_rdev_major, stat.stx_rdev_minor))
}

fn sorted_pids() -> io::Result<Vec<i32>> {
    let mut pids = process::numbers()?;
    pids.sort_unstable();
    Ok(pids)
}

/// A process's open files; none when it has ended or may not be looked at.
fn descriptors(pid: i32) -> Vec<PathBuf> {
    fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// A process's name.
fn command(pid: i32) -> String {
    let comm = process::read_proc(pid, "comm").ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&comm).trim_end().to_owned()
}
