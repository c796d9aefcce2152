//! Processes, each pinned by a pidfd before anything is read of it and looked at again after: what `/proc/PID` says
//! then is of this process and of no other that got its number (pidfd_open(2)).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::kernel_files;
use super::proc::{self, Stat};
use crate::host::{ProcessHandle, ProcessIdentity, ProcessInfo, Usage};

/// `f_type` of pidfs (`PID_FS_MAGIC` of linux/magic.h).
const PIDFS_MAGIC: i64 = 0x5049_4446;

/// Pins the process that has this pid now; `None` when there is none or it has ended.
pub(super) fn open(pid: i32) -> io::Result<Option<ProcessHandle>> {
    // 0 and negative numbers name process groups elsewhere and nothing here.
    let Some(number) = (pid > 0).then(|| Pid::from_raw(pid)).flatten() else { return Ok(None) };
    match pidfd_open(number, PidfdFlags::empty()) {
        Ok(pidfd) => {
            let handle = identify(pid, pidfd)?;
            Ok(handle.filter(is_alive))
        }
        // EINVAL: the number is a thread's, not a process's.
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// The handle of the process behind `pidfd`, whose pid is `pid`; `None` when it is gone. A zombie is not gone yet: what
/// identifies it can still be read.
pub(super) fn identify(pid: i32, pidfd: OwnedFd) -> io::Result<Option<ProcessHandle>> {
    let Some(stat) = read_proc(pid, "stat")? else { return Ok(None) };
    let start_time = Stat::parse(&stat)?.start_time;
    let pidfd_inode = inode(&pidfd)?;
    // Without pidfs nothing but being not yet reaped ties the number to the pidfd, and signal 0 asks just that.
    if !is_unreaped(&pidfd) {
        return Ok(None);
    }
    let identity = ProcessIdentity { pid, start_time, pidfd_inode };
    Ok(Some(ProcessHandle { identity, pidfd: Some(Arc::new(pidfd)), line: None }))
}

/// What `/proc` says of it; `None` when it has ended.
pub(super) fn inspect(process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
    let Some(cmdline) = read_proc(process.identity.pid, "cmdline")? else { return Ok(None) };
    if !is_alive(process) {
        return Ok(None);
    }
    Ok(Some(ProcessInfo { argv: proc::split_arguments(&cmdline) }))
}

/// What it takes of the host; `None` when it has ended. `is_alive` comes last: what was read is of whoever had the number then.
pub(super) fn usage(process: &ProcessHandle) -> io::Result<Option<Usage>> {
    let Some(stat) = read_proc(process.identity.pid, "stat")? else { return Ok(None) };
    if !is_alive(process) {
        return Ok(None);
    }
    let stat = Stat::parse(&stat)?;
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let cpu = Duration::from_secs(stat.cpu_ticks / per_second)
        + Duration::from_secs(stat.cpu_ticks % per_second) / u32::try_from(per_second).unwrap_or(u32::MAX);
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(0);
    Ok(Some(Usage { cpu, resident: stat.resident_pages.saturating_mul(page) }))
}

/// Whether it lives. A zombie does not; signalling it would succeed all the same, so the pidfd is asked: it is readable
/// from the moment the last thread has ended.
pub(super) fn is_alive(process: &ProcessHandle) -> bool {
    process.pidfd.as_ref().is_some_and(|pidfd| !has_ended(pidfd))
}

/// Whether the process behind this pidfd has ended.
pub(super) fn has_ended(pidfd: &impl AsFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        match poll(&mut fds, Some(&now)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            // Out of memory; not a reason to call anything dead.
            Err(_) => return false,
        }
    }
}

/// Kills it; false when it had ended.
pub(super) fn kill(process: &ProcessHandle) -> io::Result<bool> {
    let Some(pidfd) = &process.pidfd else {
        return Err(super::error(io::ErrorKind::InvalidInput, "a process without a pidfd is never signalled"));
    };
    if has_ended(pidfd) {
        return Ok(false);
    }
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Every process that has `UUID-NUMBER` among its arguments, with that argument.
pub(super) fn scan() -> io::Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for pid in numbers()? {
        // One that ended since, or that may not be looked at, is not one of ours.
        let Ok(Some(cmdline)) = read_proc(pid, "cmdline") else { continue };
        let id = cmdline.split(|byte| *byte == 0).find_map(proc::as_process_id);
        found.extend(id.map(|id| (pid, id.to_owned())));
    }
    Ok(found)
}

/// Every pid in `/proc`.
pub(super) fn numbers() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// A file of `/proc/PID`; `None` when the process is gone.
pub(super) fn read_proc(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    match kernel_files::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended between open and read.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The pidfd's inode where it says which process it is: on pidfs. Elsewhere all pidfds share one.
fn inode(pidfd: &OwnedFd) -> io::Result<Option<u64>> {
    // The kernel has it or not, for as long as it runs.
    static HAS_PIDFS: OnceLock<bool> = OnceLock::new();
    let has_pidfs = if let Some(known) = HAS_PIDFS.get() {
        *known
    } else {
        let found = rustix::fs::fstatfs(pidfd)?.f_type == PIDFS_MAGIC;
        *HAS_PIDFS.get_or_init(|| found)
    };
    Ok(if has_pidfs { Some(rustix::fs::fstat(pidfd)?.st_ino) } else { None })
}

/// Whether its number is still its own: nobody has waited for it.
fn is_unreaped(pidfd: &OwnedFd) -> bool {
    if !has_ended(pidfd) {
        return true;
    }
    // SAFETY: signal 0 is sent to nobody; the call reads no memory of ours (the siginfo pointer is null, which is allowed).
    let result = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_pidfd_send_signal,
            std::os::fd::AsRawFd::as_raw_fd(pidfd),
            0,
            std::ptr::null::<nix::libc::siginfo_t>(),
            0,
        )
    };
    result == 0
}
