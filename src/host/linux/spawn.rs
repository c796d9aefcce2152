//! Starting a VMM: in a session of its own, with nothing of ours but its lock and its outputs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::libc;
use rustix::process::geteuid;

use super::birth::{self, Child, Program};
use super::cgroup::Cgroups;
use super::{open_files, process};
use crate::host::{ProcessHandle, SpawnError, SpawnRequest};

/// How often, and how far apart, the child tries to take a lock that is taken: who looks at it holds it for microseconds.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE_NS: i64 = 5_000_000;

/// How the child says that the lock is held: an errno that neither clone3(2), fork(2) nor execve(2) gives.
const LOCK_HELD: i32 = libc::EDEADLK;

/// Where programs find others.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One fork at a time: a child forked by another thread meanwhile would hold this VM's lock too until its exec.
static FORKING: Mutex<()> = Mutex::new(());

/// Runs `fork` while no other child of ours is being born.
pub(super) fn alone<T>(fork: impl FnOnce() -> T) -> T {
    let _alone = FORKING.lock().unwrap_or_else(PoisonError::into_inner);
    fork()
}

/// With SIGCHLD ignored, as some parents leave it, the kernel reaps children by itself: their status is lost, and their
/// pid may be another's before we have looked at it (sigaction(2), SA_NOCLDWAIT).
pub(super) fn keep_exit_statuses() {
    // SAFETY: a zeroed sigaction is SIG_DFL without flags; both pointers are to live values of the right type.
    unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGCHLD, std::ptr::null(), &raw mut old) == 0 && old.sa_sigaction == libc::SIG_IGN {
            let default: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGCHLD, &raw const default, std::ptr::null_mut());
        }
    }
}

/// Starts it. The lock is taken in the child before exec, so that no VMM of this VM ever lives without it.
pub(super) fn spawn(request: &SpawnRequest, cgroups: &Cgroups) -> Result<ProcessHandle, SpawnError> {
    let failed = |source: io::Error| SpawnError::Failed { program: request.program.clone(), source };
    let child = alone(|| spawn_alone(request, cgroups)).map_err(|error| {
        if error.raw_os_error() == Some(LOCK_HELD) { SpawnError::LockHeld(request.lock.clone()) } else { failed(error) }
    })?;
    // Nobody has waited for it yet, so its number is still its own.
    let handle = process::identify(child.pid, child.pidfd).map_err(failed)?;
    let reaped = || super::error(io::ErrorKind::NotFound, "its process was reaped by another");
    handle.ok_or_else(|| failed(reaped()))
}

/// Our copies of its files go before anybody else forks.
fn spawn_alone(request: &SpawnRequest, cgroups: &Cgroups) -> io::Result<Child> {
    let lock = open(&request.lock, OpenOptions::new().read(true).write(true).create(true).truncate(false))?;
    let stdout = open(&request.stdout, OpenOptions::new().append(true).create(true))?;
    let stderr = open(&request.stderr, OpenOptions::new().append(true).create(true))?;
    let cgroup = request.cgroup.as_ref().map(|cgroup| {
        cgroups.open(cgroup).map_err(|error| super::error(error.kind(), format!("cgroup {cgroup}: {error}")))
    });
    let cgroup = cgroup.transpose()?;
    let program = Program::new(
        request.program.as_os_str(),
        request.args.iter().map(std::ffi::OsString::as_os_str),
        // Nor are secrets in the environment any of the VMM's business.
        &[&format!("PATH={PATH}")],
    )?;
    let open_files = open_files::given();
    let streams = [lock.as_fd(), stdout.as_fd(), stderr.as_fd()];
    let prepare = |streams| prepare_child(streams, open_files.as_ref());
    // SAFETY: `prepare_child` makes plain system calls, allocates nothing, takes no lock and writes to its stack only.
    unsafe { birth::spawn(&program, cgroup.as_ref(), streams, &prepare) }
}

/// Opens a file of the VM's own: a regular file of our user, made if need be.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    // O_NONBLOCK: a FIFO in its place must not block us.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let named = |error: io::Error| super::error(error.kind(), format!("{}: {error}", path.display()));
    let file = options.mode(0o600).custom_flags(flags).open(path).map_err(named)?;
    let metadata = file.metadata().map_err(named)?;
    if !metadata.is_file() || metadata.uid() != geteuid().as_raw() {
        let what = format!("{} is not a regular file of stead's own user; move it away", path.display());
        return Err(super::error(io::ErrorKind::PermissionDenied, what));
    }
    Ok(file)
}

/// Runs in the child, before exec. `streams` become its standard input, output and error.
fn prepare_child(streams: [RawFd; 3], open_files: Option<&libc::rlimit>) -> io::Result<()> {
    // SAFETY: every call is async-signal-safe and gets pointers to live values on this stack only.
    unsafe {
        for (number, stream) in (0..).zip(streams) {
            if libc::dup2(stream, number) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // Relative paths and mounts of whoever runs stead are none of the VMM's business.
        if libc::chdir(c"/".as_ptr()) < 0 {
            return Err(io::Error::last_os_error());
        }
        // A session of its own: no terminal's Ctrl-C and no hang-up reaches it.
        if libc::setsid() < 0 {
            return Err(io::Error::last_os_error());
        }
        // What an ancestor ignored would stay ignored. SIGKILL, SIGSTOP and the C library's own refuse, and may.
        for signal in 1..=64 {
            // Ignored for a moment, so that what came in the meantime is gone.
            libc::signal(signal, libc::SIG_IGN);
            libc::signal(signal, libc::SIG_DFL);
        }
        // Nothing is blocked but SIGPIPE. Firecracker (1.12.1) handles it, but its own system call filter lets the thread of
        // its API return from no handler: whoever hangs up just before his reply is written, as we do when our time for it
        // is over, would kill the VM (firecracker-microvm/firecracker#6143). Blocked, it leaves the write to fail.
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut blocked);
        libc::sigaddset(&raw mut blocked, libc::SIGPIPE);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const blocked, std::ptr::null_mut());
        if let Some(limit) = open_files
            && libc::setrlimit(libc::RLIMIT_NOFILE, limit) < 0
        {
            return Err(io::Error::last_os_error());
        }
        // Its sockets are for our user only.
        libc::umask(0o077);
        take_lock()?;
        write_pid();
        // The pipe through which a failing exec is told must live until then.
        let from: libc::c_uint = 3;
        let flag = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
        if libc::syscall(libc::SYS_close_range, from, libc::c_uint::MAX, flag) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// # Safety
/// Async-signal-safe; file descriptor 0 must be the lock.
unsafe fn take_lock() -> io::Result<()> {
    for _ in 0..LOCK_TRIES {
        // SAFETY: flock and nanosleep are system calls on a descriptor and a value of our own.
        unsafe {
            if libc::flock(0, libc::LOCK_EX | libc::LOCK_NB) == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() != Some(libc::EWOULDBLOCK) {
                return Err(error);
            }
            let pause = libc::timespec { tv_sec: 0, tv_nsec: LOCK_PAUSE_NS };
            libc::nanosleep(&raw const pause, std::ptr::null_mut());
        }
    }
    Err(io::Error::from_raw_os_error(LOCK_HELD))
}

/// Writes the own pid into the lock, for whoever wants to know who holds it. That it fails is no reason not to start: the
/// holder is found without it.
///
/// # Safety
/// Async-signal-safe; file descriptor 0 must be the lock, and held.
unsafe fn write_pid() {
    let mut text = [0_u8; 12];
    let mut at = text.len() - 1;
    text[at] = b'\n';
    // SAFETY: getpid takes nothing, the others a descriptor and a buffer of our own with its length.
    unsafe {
        let mut rest = libc::getpid().unsigned_abs();
        loop {
            at -= 1;
            // One decimal digit fits.
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        libc::ftruncate(0, 0);
        libc::pwrite(0, text[at..].as_ptr().cast(), text.len() - at, 0);
    }
}
