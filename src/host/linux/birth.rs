//! A child that is in its cgroup from its first moment: clone3(2) with `CLONE_INTO_CGROUP`.
//!
//! Whoever joins a cgroup later, by writing to `cgroup.procs`, has the kernel stop every fork and every end of a process on the
//! host until all CPUs have passed a quiet point: five to thirty milliseconds each time, for the child and for everybody
//! else (`cgroup_threadgroup_rwsem`, kernel/cgroup/cgroup.c). Nobody waits for one that is born there.
//!
//! Until its exec the child runs our program in a copy of our memory, in which other threads' locks stay as they were: it may only
//! make system calls. What goes wrong there it says through a pipe, which its exec closes.

use std::ffi::{CString, OsStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid,
};

/// What a child is to become.
pub(super) struct Program {
    path: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    /// This program, its own name first among its arguments, with no environment but `environment`.
    pub(super) fn new<'a>(
        path: &'a OsStr,
        arguments: impl Iterator<Item = &'a OsStr>,
        environment: &[&str],
    ) -> io::Result<Self> {
        let c_string = |text: &OsStr| CString::new(text.as_bytes()).map_err(io::Error::from);
        Ok(Self {
            path: c_string(path)?,
            arguments: std::iter::once(path).chain(arguments).map(c_string).collect::<io::Result<_>>()?,
            environment: environment.iter().map(OsStr::new).map(c_string).collect::<io::Result<_>>()?,
        })
    }
}

/// A child of ours that nobody has waited for yet.
pub(super) struct Child {
    pub(super) pid: i32,
    pub(super) pidfd: OwnedFd,
}

/// How long a child may take to become its program. It takes microseconds, but for a program on a disk that hangs or a cgroup
/// above ours that is frozen, and no other VMM can be born meanwhile.
const TIME_TO_EXEC: Duration = Duration::from_secs(10);

/// Starts `program` in the cgroup of this folder. `prepare` runs in the child, before the program.
///
/// # Safety
/// Of a process with threads, the child may make only calls that are async-signal-safe (signal-safety(7)): `prepare` allocates
/// nothing, takes no lock, and does not panic.
///
/// # Errors
/// That of the program's exec, of `prepare`, of joining the cgroup, or of making a child at all; `TimedOut` if it did not
/// become its program in time, and was killed.
pub(super) unsafe fn spawn(
    program: &Program,
    cgroup: Option<&File>,
    prepare: impl Fn() -> io::Result<()>,
) -> io::Result<Child> {
    // SAFETY: as the caller promises.
    unsafe { spawn_by(true, program, cgroup, &prepare, TIME_TO_EXEC) }
}

/// The same, by clone3(2) where it `may_clone`, within this time.
///
/// # Safety
/// As for [`spawn`].
unsafe fn spawn_by(
    may_clone: bool,
    program: &Program,
    cgroup: Option<&File>,
    prepare: &impl Fn() -> io::Result<()>,
    time_to_exec: Duration,
) -> io::Result<Child> {
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    // Before the fork: the child allocates nothing.
    let (arguments, environment) = (pointers(&program.arguments), pointers(&program.environment));
    let (mut told, tell) = io::pipe()?;
    let cgroup = cgroup.map(AsRawFd::as_raw_fd);
    // SAFETY: what follows in the child is async-signal-safe.
    let born = unsafe { give_birth(may_clone, cgroup) };
    let Born::Parent(child) = born else {
        let joined = match (born, cgroup) {
            // SAFETY: an open folder of the caller's.
            (Born::ChildOutside, Some(folder)) => unsafe { join(folder) },
            _ => Ok(()),
        };
        let error = joined.and_then(|()| prepare()).err().unwrap_or_else(|| {
            // SAFETY: both arrays end with a null and point to strings that live.
            unsafe { libc::execve(program.path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
            io::Error::last_os_error()
        });
        let number = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        // SAFETY: a buffer of our own with its length; `_exit` runs nothing of what the parent would have run at its end.
        unsafe {
            libc::write(tell.as_raw_fd(), number.as_ptr().cast(), number.len());
            libc::_exit(127);
        }
    };
    let child = child?;
    drop(tell);
    if !is_readable(&told, time_to_exec).unwrap_or(false) {
        let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
        // Not for long: what hangs may outlive its SIGKILL for a while. It becomes nothing but dead.
        let _ = is_readable(&child.pidfd, Duration::from_millis(100));
        let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        let what = format!("it was not its program after {time_to_exec:?}: a disk hangs, or a cgroup is frozen");
        return Err(super::error(io::ErrorKind::TimedOut, what));
    }
    let mut number = [0; size_of::<c_int>()];
    match told.read_exact(&mut number) {
        Ok(()) => {
            let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(number)))
        }
        // Closed by its exec, or because somebody killed it: whoever looks at it finds out.
        Err(_) => Ok(child),
    }
}

/// Whether there is something to read, or the end of it, within this time. Of a pidfd: whether its process ends.
fn is_readable(file: &impl AsFd, time: Duration) -> io::Result<bool> {
    let until = Instant::now() + time;
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            answered => return Ok(answered? > 0),
        }
    }
}

/// Who one is after a fork.
enum Born {
    /// The one that forked: its child, or why there is none.
    Parent(io::Result<Child>),
    /// The child, in its cgroup already.
    Child,
    /// The child, in the cgroup of its parent.
    ChildOutside,
}

/// Makes a child that is a copy of us: in its cgroup at once, where the kernel (Linux 5.7) and its filters of system calls
/// let us; else it joins its cgroup itself.
///
/// # Safety
/// As for fork(2).
unsafe fn give_birth(may_clone: bool, cgroup: Option<RawFd>) -> Born {
    // Nothing reaches the child before it is in a session of its own: a Ctrl-C would end it, with no handler of ours left. It
    // lets go of what came meanwhile, and sets a mask of its own.
    // SAFETY: both sets live.
    let before = unsafe {
        let (mut all, mut before): (libc::sigset_t, libc::sigset_t) = (std::mem::zeroed(), std::mem::zeroed());
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
        before
    };
    // SAFETY: as the caller promises.
    let born = if may_clone { unsafe { clone_into(cgroup) } } else { None };
    // SAFETY: as the caller promises.
    let born = born.unwrap_or_else(|| unsafe { fork() });
    if matches!(born, Born::Parent(_)) {
        // SAFETY: a set that lives.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    }
    born
}

/// clone3(2). `None` where it is not to be had: an old kernel, a filter, flags and a size of arguments that an old kernel
/// does not know.
///
/// # Safety
/// As for fork(2).
unsafe fn clone_into(cgroup: Option<RawFd>) -> Option<Born> {
    let flag = |flag: c_int| u64::from(flag.cast_unsigned());
    let mut pidfd: RawFd = -1;
    // SAFETY: a structure of plain numbers, for which zeros mean that nothing is asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // Handlers are ours, and would write to pipes that we share until the exec.
    arguments.flags = flag(libc::CLONE_PIDFD) | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = flag(libc::SIGCHLD);
    if let Some(folder) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = flag(folder);
    }
    // SAFETY: the kernel reads as many bytes as it is told, and writes to `pidfd`, which lives.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match i32::try_from(pid).unwrap_or(-1) {
        0 => Some(Born::Child),
        1.. => {
            // SAFETY: the kernel made it for us, and nobody else knows of it.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Some(Born::Parent(Ok(Child { pid: i32::try_from(pid).unwrap_or(-1), pidfd })))
        }
        _ => {
            let error = io::Error::last_os_error();
            let is_missing =
                matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG));
            (!is_missing).then_some(Born::Parent(Err(error)))
        }
    }
}

/// # Safety
/// As for fork(2).
unsafe fn fork() -> Born {
    // SAFETY: as the caller promises.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        return Born::ChildOutside;
    }
    let Some(own) = Pid::from_raw(pid).filter(|_| pid > 0) else {
        return Born::Parent(Err(io::Error::last_os_error()));
    };
    let child = pidfd_open(own, PidfdFlags::empty()).map(|pidfd| Child { pid, pidfd }).map_err(|error| {
        #[expect(clippy::disallowed_methods, reason = "no pidfd is to be had, and its number is its own until we wait")]
        let _ = kill_process(own, Signal::KILL);
        let _ = waitid(WaitId::Pid(own), WaitIdOptions::EXITED);
        error.into()
    });
    Born::Parent(child)
}

/// `CLONE_CLEAR_SIGHAND` and `CLONE_INTO_CGROUP` of linux/sched.h. They do not fit the type that the library gives them.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Joins the cgroup of this folder.
///
/// # Safety
/// Async-signal-safe.
unsafe fn join(folder: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls with strings that live.
    unsafe {
        let procs = libc::openat(folder, c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        // 0 is whoever writes it.
        if procs < 0 || libc::write(procs, c"0".as_ptr().cast(), 1) != 1 {
            return Err(io::Error::last_os_error());
        }
        libc::close(procs);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Program {
        let arguments = ["-c", script].map(OsStr::new);
        Program::new(OsStr::new("/bin/sh"), arguments.into_iter(), &["NAME=value"]).unwrap()
    }

    fn wait(child: &Child) -> Option<i32> {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap().exit_status()
    }

    #[test]
    fn both_ways_start_the_program_with_its_arguments_and_nothing_else_around_it() {
        for may_clone in [true, false] {
            let script = r#"[ "$NAME" = value ] && [ -z "$HOME" ] && exit 7"#;
            // SAFETY: it does nothing.
            let child = unsafe { spawn_by(may_clone, &shell(script), None, &|| Ok(()), TIME_TO_EXEC) }.unwrap();
            assert_eq!(wait(&child), Some(7), "may clone: {may_clone}");
        }
    }

    #[test]
    fn what_goes_wrong_before_the_program_runs_is_told_and_no_zombie_stays() {
        let missing = Program::new(OsStr::new("/no/such/program"), [].into_iter(), &[]).unwrap();
        for may_clone in [true, false] {
            // SAFETY: it does nothing.
            let error = unsafe { spawn_by(may_clone, &missing, None, &|| Ok(()), TIME_TO_EXEC) }.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "may clone: {may_clone}");
            // SAFETY: an error with a number takes no memory.
            let refused = || Err(io::Error::from_raw_os_error(libc::EDEADLK));
            let error = unsafe { spawn_by(may_clone, &shell("exit 0"), None, &refused, TIME_TO_EXEC) }.err().unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::EDEADLK), "may clone: {may_clone}");
        }
        let own = std::fs::read_to_string("/proc/thread-self/children").expect("a kernel with PROC_CHILDREN");
        for pid in own.split_ascii_whitespace() {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            assert!(!stat.contains(") Z "), "{stat}");
        }
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_no_place_to_be_born_in() {
        let folder = File::open("/").unwrap();
        for may_clone in [true, false] {
            // SAFETY: it does nothing.
            assert!(
                unsafe { spawn_by(may_clone, &shell("exit 0"), Some(&folder), &|| Ok(()), TIME_TO_EXEC) }.is_err(),
                "may clone: {may_clone}"
            );
        }
    }

    #[test]
    fn a_child_that_hangs_before_it_is_its_program_is_killed_and_keeps_nobody_waiting() {
        let time = Duration::from_millis(50);
        for may_clone in [true, false] {
            let (mut told, tell) = io::pipe().unwrap();
            let hangs = || {
                // SAFETY: a plain system call.
                unsafe { libc::pause() };
                Ok(())
            };
            // SAFETY: it makes a system call only.
            let error = unsafe { spawn_by(may_clone, &shell("exit 0"), None, &hangs, time) }.err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "may clone: {may_clone}");
            drop(tell);
            // Its copy of the other end goes with it.
            assert_eq!(told.read(&mut [0]).unwrap(), 0, "may clone: {may_clone}");
        }
    }

    #[test]
    fn the_pidfd_is_the_childs_and_closed_by_an_exec() {
        // SAFETY: it does nothing.
        let child = unsafe { spawn(&shell("exit 3"), None, || Ok(())) }.unwrap();
        let flags = rustix::io::fcntl_getfd(child.pidfd.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(child.pid > 1);
        assert_eq!(wait(&child), Some(3));
    }
}
