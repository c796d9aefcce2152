//! Processes, each pinned by a pidfd before anything is read of it and looked at again after: what `/proc/PID` says
//! then is of this process and of no other that got its number (pidfd_open(2)).

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::host::{ProcessHandle, ProcessIdentity, ProcessInfo};

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
    Ok(Some(ProcessHandle { identity, pidfd: Some(Arc::new(pidfd)) }))
}

/// What `/proc` says of it; `None` when it has ended.
pub(super) fn inspect(process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
    let Some(cmdline) = read_proc(process.identity.pid, "cmdline")? else { return Ok(None) };
    if !is_alive(process) {
        return Ok(None);
    }
    Ok(Some(ProcessInfo { argv: split_arguments(&cmdline) }))
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
        let id = cmdline.split(|byte| *byte == 0).find_map(as_process_id);
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

/// The argument as text if it is exactly a UUID, `-` and a number, as `VmUid::process_id` writes it.
fn as_process_id(argument: &[u8]) -> Option<&str> {
    const UUID_LENGTH: usize = 36;
    let text = std::str::from_utf8(argument).ok()?;
    let (uuid, rest) = text.split_at_checked(UUID_LENGTH)?;
    let digits = rest.strip_prefix('-')?;
    let number: u64 = digits.parse().ok()?;
    let parsed = uuid::Uuid::try_parse(uuid).ok()?;
    (parsed.hyphenated().to_string() == uuid && number.to_string() == digits).then_some(text)
}

/// Empty for a process that is just ending: its memory is gone, its devices are not yet.
fn split_arguments(cmdline: &[u8]) -> Vec<Vec<u8>> {
    let Some(cmdline) = cmdline.strip_suffix(&[0]).or((!cmdline.is_empty()).then_some(cmdline)) else {
        return Vec::new();
    };
    cmdline.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

/// A file of `/proc/PID`; `None` when the process is gone.
pub(super) fn read_proc(pid: i32, file: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/proc/{pid}/{file}")) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended between open and read.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is needed of `/proc/PID/stat` (proc_pid_stat(5)).
pub(super) struct Stat {
    /// Field 3.
    pub(super) state: u8,
    /// Field 22, in clock ticks since boot.
    pub(super) start_time: u64,
    /// Field 52, as waitpid(2) would give it; meaningful for a zombie that may be looked at.
    pub(super) exit_code: i32,
}

impl Stat {
    pub(super) fn parse(bytes: &[u8]) -> io::Result<Self> {
        let malformed = || super::error(io::ErrorKind::InvalidData, "/proc/PID/stat has a form that is not known");
        // The name in field 2 may hold anything, also parentheses and blanks; no later field holds a parenthesis.
        let end = bytes.iter().rposition(|byte| *byte == b')').ok_or_else(malformed)?;
        let rest = std::str::from_utf8(&bytes[end + 1..]).map_err(|_| malformed())?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).copied().ok_or_else(malformed);
        Ok(Self {
            state: field(3)?.as_bytes()[0],
            start_time: field(22)?.parse().map_err(|_| malformed())?,
            exit_code: field(52)?.parse().map_err(|_| malformed())?,
        })
    }
}

/// The pidfd's inode where it says which process it is: on pidfs. Elsewhere all pidfds share one.
fn inode(pidfd: &OwnedFd) -> io::Result<Option<u64>> {
    if rustix::fs::fstatfs(pidfd)?.f_type != PIDFS_MAGIC {
        return Ok(None);
    }
    Ok(Some(rustix::fs::fstat(pidfd)?.st_ino))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uuid_with_a_plain_number_is_taken_for_an_id() {
        let uuid = "6ba7b810-9dad-51d1-80b4-00c04fd430c8";
        assert_eq!(as_process_id(format!("{uuid}-12").as_bytes()), Some(format!("{uuid}-12").as_str()));
        for other in ["", "x", "-1", uuid, &format!("{uuid}-"), &format!("{uuid}-01"), &format!("{uuid}-+1")] {
            assert_eq!(as_process_id(other.as_bytes()), None, "{other}");
        }
        assert_eq!(as_process_id(format!("guest={uuid}-1").as_bytes()), None);
        assert_eq!(as_process_id(format!("{}-1", uuid.to_uppercase()).as_bytes()), None);
        assert_eq!(as_process_id(format!("{}-1", uuid.replace('-', "")).as_bytes()), None);
    }

    #[test]
    fn a_process_name_with_parentheses_does_not_shift_the_fields() {
        let fields: Vec<String> = (3..=52).map(|number| number.to_string()).collect();
        let line = format!("7 (a) Z (b) {}\n", fields.join(" "));
        let stat = Stat::parse(line.as_bytes()).unwrap();
        assert_eq!((stat.state, stat.start_time, stat.exit_code), (b'3', 22, 52));
        assert!(Stat::parse(b"7 (a").is_err());
        assert!(Stat::parse(b"7 (a) S 1").is_err());
    }

    #[test]
    fn arguments_are_split_byte_for_byte() {
        assert_eq!(split_arguments(b""), Vec::<Vec<u8>>::new());
        assert_eq!(split_arguments(b"a\0\0b\0"), [b"a".to_vec(), b"".to_vec(), b"b".to_vec()]);
        assert_eq!(split_arguments(b"a\0b"), [b"a".to_vec(), b"b".to_vec()]);
    }
}
