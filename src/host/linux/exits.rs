//! How a VMM ended, and being told when it does.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, geteuid, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::io_thread::IoThread;
use super::proc::Stat;
use super::process::{has_ended, read_proc};
use crate::host::{ProcessHandle, ProcessIdentity};
use crate::state::ExitStatus;

/// How many children are looked at when another one is born, to reap those that ended and that nobody asked about: more than
/// one, so that zombies become fewer, and few, since there may be thousands.
const LOOKED_AT: usize = 4;

/// How many statuses of ended children are kept for who asks late.
const KEPT: usize = 4096;

/// Children, and how those that ended did so.
#[derive(Clone, Default)]
pub(super) struct Exits(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    /// Children that were not reaped yet.
    living: HashMap<ProcessIdentity, Arc<OwnedFd>>,
    /// Whom to look at next among them; some may be gone.
    to_look_at: VecDeque<ProcessIdentity>,
    ended: HashMap<ProcessIdentity, ExitStatus>,
    /// The keys of `ended`, the oldest first.
    order: VecDeque<ProcessIdentity>,
}

impl Exits {
    /// Remembers a child, so that it is reaped, whoever watches it or not.
    pub(super) fn register(&self, child: &ProcessHandle) {
        let mut table = self.table();
        for _ in 0..LOOKED_AT.min(table.to_look_at.len()) {
            let Some(identity) = table.to_look_at.pop_front() else { break };
            let Some(pidfd) = table.living.get(&identity).cloned() else { continue };
            if table.reap(identity, &pidfd).is_none() {
                table.to_look_at.push_back(identity);
            }
        }
        if let Some(pidfd) = &child.pidfd {
            table.living.insert(child.identity, Arc::clone(pidfd));
            table.to_look_at.push_back(child.identity);
        }
    }

    /// How it ended, as far as it can be known; reaps it if it was a child.
    pub(super) fn status(&self, process: &ProcessHandle) -> ExitStatus {
        let Some(pidfd) = &process.pidfd else { return ExitStatus::Unknown };
        if !has_ended(pidfd) {
            return ExitStatus::Unknown;
        }
        let own = {
            // Locked while reaping: whoever comes second finds the status in the table, not ECHILD.
            let mut table = self.table();
            table.reap(process.identity, pidfd).or_else(|| table.ended.get(&process.identity).copied())
        };
        own.or_else(|| status_of_zombie(&process.identity))
            .or_else(|| status_of_reaped(pidfd))
            .unwrap_or(ExitStatus::Unknown)
    }

    /// Calls `on_exit` once when it ends: on the runtime that the caller is of, so that the news reaches it without another
    /// thread being woken, else on the I/O thread.
    pub(super) fn watch(
        &self,
        io: &IoThread,
        process: &ProcessHandle,
        on_exit: Box<dyn FnOnce() + Send>,
    ) -> io::Result<()> {
        let Some(pidfd) = process.pidfd.clone() else {
            return Err(super::error(io::ErrorKind::InvalidInput, "a process without a pidfd cannot be watched"));
        };
        // A file descriptor of its own: epoll takes each number once, and a process may be watched twice.
        let own = pidfd.try_clone()?;
        let handle = Handle::try_current().or_else(|_| io.handle())?;
        let watcher = {
            let _runtime = handle.enter();
            // SAFETY: the AsyncFd owns `own`, so the descriptor stays open and this very file for as long as it is
            // registered.
            unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }?
        };
        let exits = self.clone();
        let process = process.clone();
        handle.spawn(async move {
            // An error can only mean that the runtime ends, and then nobody waits for the news.
            if watcher.readable().await.is_ok() {
                drop(watcher);
                exits.status(&process);
                on_exit();
            }
        });
        Ok(())
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        // Each use leaves the table whole, so a panic elsewhere while it was locked did not break it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Reaps it if it is a child that ended; never waits.
    fn reap(&mut self, identity: ProcessIdentity, pidfd: &impl AsFd) -> Option<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = loop {
            match waitid(WaitId::PidFd(pidfd.as_fd()), options) {
                Ok(Some(status)) => break read_wait_status(&status),
                Ok(None) => return None,
                Err(rustix::io::Errno::INTR) => {}
                // Not a child (ECHILD), or reaped already.
                Err(_) => {
                    self.living.remove(&identity);
                    return None;
                }
            }
        };
        self.living.remove(&identity);
        if self.ended.insert(identity, status).is_none() {
            self.order.push_back(identity);
        }
        if self.order.len() > KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.ended.remove(&oldest);
        }
        Some(status)
    }
}

fn read_wait_status(status: &WaitIdStatus) -> ExitStatus {
    let code = status.exit_status().map(ExitStatus::Code);
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal)).unwrap_or(ExitStatus::Unknown)
}

/// A status as waitpid(2) gives it.
fn read_raw_status(raw: i32) -> ExitStatus {
    match raw & 0x7f {
        0 => ExitStatus::Code((raw >> 8) & 0xff),
        signal => ExitStatus::Signal(signal),
    }
}

/// Of another's child that its parent has not reaped yet: `/proc/PID/stat` tells (proc_pid_stat(5), `exit_code`).
fn status_of_zombie(identity: &ProcessIdentity) -> Option<ExitStatus> {
    // Who may not look is told 0, which would pass for success: only our own user's processes are believed.
    let owner = std::fs::metadata(format!("/proc/{}", identity.pid)).ok()?.uid();
    if owner != geteuid().as_raw() {
        return None;
    }
    let stat = Stat::parse(&read_proc(identity.pid, "stat").ok()??).ok()?;
    let same = stat.state == b'Z' && stat.start_time == identity.start_time;
    same.then(|| read_raw_status(stat.exit_code))
}

/// `struct pidfd_info` in its first version, 64 bytes (linux/pidfd.h).
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroupid: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ruid: u32,
    rgid: u32,
    euid: u32,
    egid: u32,
    suid: u32,
    sgid: u32,
    fsuid: u32,
    fsgid: u32,
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`: the exit status is asked for, or was given.
const PIDFD_INFO_EXIT: u64 = 1 << 3;

nix::ioctl_readwrite!(
    /// `PIDFD_GET_INFO`, Linux 6.13 and later; with the exit status from 6.15 on.
    pidfd_get_info,
    0xff,
    11,
    PidfdInfo
);

/// Of another's child after it was reaped: the kernel keeps the status for as long as a pidfd is open.
fn status_of_reaped(pidfd: &OwnedFd) -> Option<ExitStatus> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: the kernel writes at most the size that is part of the request's number, which is that of `info`.
    unsafe { pidfd_get_info(pidfd.as_raw_fd(), &raw mut info) }.ok()?;
    // A kernel that does not know the flag answers without it.
    (info.mask & PIDFD_INFO_EXIT != 0).then(|| read_raw_status(info.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_kernels() {
        assert_eq!(size_of::<PidfdInfo>(), 64);
    }

    #[test]
    fn a_raw_status_is_an_exit_code_or_a_signal() {
        assert_eq!(read_raw_status(0), ExitStatus::Code(0));
        assert_eq!(read_raw_status(1 << 8), ExitStatus::Code(1));
        assert_eq!(read_raw_status(9), ExitStatus::Signal(9));
        // With a core dump.
        assert_eq!(read_raw_status(0x0b | 0x80), ExitStatus::Signal(11));
    }
}
