//! Who listens on a unix socket, told by the kernel (`SO_PEERPIDFD` and `SO_PEERCRED`, unix(7)).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{PeerCredentials, PeerPidfd};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect as nix_connect, getsockopt, socket};

use super::process;
use crate::host::{Line, ProcessHandle, SocketPeer};

/// A connection that was made, or why there is none.
pub(super) enum Connected {
    /// Connected; the socket does not block.
    To(OwnedFd),
    /// There is no such file.
    NoSocket,
    /// Nobody listens.
    Refused,
    /// The queue of connections not yet accepted is full.
    Full,
    /// Anything else.
    Failed(io::Error),
}

/// Connects without waiting: a unix socket's listener is there or it is not.
pub(super) fn connect(path: &Path) -> Connected {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let attempt = || -> Result<OwnedFd, Errno> {
        let address = UnixAddr::new(path)?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        nix_connect(fd.as_raw_fd(), &address)?;
        Ok(fd)
    };
    match attempt() {
        Ok(fd) => Connected::To(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Connected::NoSocket,
        Err(Errno::ECONNREFUSED) => Connected::Refused,
        Err(Errno::EAGAIN) => Connected::Full,
        Err(errno) => Connected::Failed(errno.into()),
    }
}

/// Who listens on the socket at this path.
pub(super) fn socket_peer(path: &Path) -> SocketPeer {
    match connect(path) {
        Connected::To(fd) => match peer_of(path, &fd) {
            SocketPeer::Listener(process) => {
                let line = Some(Arc::new(Line::new(path, fd)));
                SocketPeer::Listener(ProcessHandle { line, ..process })
            }
            nobody => nobody,
        },
        Connected::NoSocket => SocketPeer::NoSocket,
        Connected::Refused => SocketPeer::NobodyListens,
        Connected::Full => SocketPeer::Unknown("its queue of connections is full".to_owned()),
        Connected::Failed(error) => SocketPeer::Unknown(error.to_string()),
    }
}

/// Whether this very process listens at the other end of a connection, and lives: what is true nearly always, told by the
/// kernel alone, without `/proc`. False does not say that it is another: [`peer_of`] knows.
pub(super) fn is_at_end_of(fd: &OwnedFd, process: &ProcessHandle) -> bool {
    // Known only where there is pidfs, whose inodes are never used again: then this pidfd is on it too.
    let Some(known) = process.identity.pidfd_inode else { return false };
    let Ok(pidfd) = getsockopt(fd, PeerPidfd) else { return false };
    rustix::fs::fstat(&pidfd).is_ok_and(|found| found.st_ino == known) && !process::has_ended(&pidfd)
}

/// Who listens at the other end of this connection to `path`.
pub(super) fn peer_of(path: &Path, fd: &OwnedFd) -> SocketPeer {
    let pinned = match getsockopt(fd, PeerPidfd) {
        Ok(pidfd) => pid_of(fd).map(|pid| pid.map(|pid| (pid, pidfd))),
        // The process is gone, and reaped; nobody can be named.
        Err(Errno::ESRCH | Errno::ENODATA | Errno::EINVAL) => Ok(None),
        // Before Linux 6.5.
        Err(Errno::ENOPROTOOPT) => by_credentials(path, fd),
        Err(errno) => Err(errno.into()),
    };
    let handle = match pinned {
        Ok(Some((pid, pidfd))) => process::identify(pid, pidfd),
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    match handle {
        // Called listen() once and died: whoever inherited the socket is not known to the kernel.
        Ok(handle) => handle.filter(process::is_alive).map_or(SocketPeer::NobodyListens, SocketPeer::Listener),
        Err(error) => SocketPeer::Unknown(error.to_string()),
    }
}

/// The pid that the process at the other end has or had: both options tell of one and the same `struct pid`, which the
/// connection got from its listener (`sk_peer_pid`, net/core/sock.c). Whoever is told it must see that it is not reaped.
fn pid_of(fd: &OwnedFd) -> io::Result<Option<i32>> {
    match getsockopt(fd, PeerCredentials)?.pid() {
        0 => Err(io::Error::other("the listener is in a pid namespace that cannot be seen from here")),
        pid => Ok((pid > 0).then_some(pid)),
    }
}

/// By pid, which is pinned and then asked for again: if it is still the listener's after it was pinned, then it was his
/// when it was pinned, or has been another's all along, whose argument vector tells.
fn by_credentials(path: &Path, fd: &OwnedFd) -> io::Result<Option<(i32, OwnedFd)>> {
    let Some(pid) = pid_of(fd)? else { return Ok(None) };
    let Some(number) = rustix::process::Pid::from_raw(pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(number, rustix::process::PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    match connect(path) {
        Connected::To(again) if getsockopt(&again, PeerCredentials)?.pid() == pid => Ok(Some((pid, pidfd))),
        Connected::To(_) | Connected::Full => Err(io::Error::other("the listener changed while it was looked at")),
        Connected::NoSocket | Connected::Refused => Ok(None),
        Connected::Failed(error) => Err(error),
    }
}

/// Whether two handles are of one process. Both pinned and alive, equal pids are enough.
pub(super) fn is_same(one: &ProcessHandle, other: &ProcessHandle) -> bool {
    match (one.identity.pidfd_inode, other.identity.pidfd_inode) {
        (Some(one), Some(other)) => one == other,
        _ => one.identity.pid == other.identity.pid && process::is_alive(one) && process::is_alive(other),
    }
}
