//! A child that is in its cgroup from its first moment, and that costs the same however many VMs there are: clone3(2).
//!
//! Whoever joins a cgroup later, by writing to `cgroup.procs`, has the kernel stop every fork and every end of a process on the
//! host until all CPUs have passed a quiet point: five to thirty milliseconds each time, for the child and for everybody
//! else (`cgroup_threadgroup_rwsem`, kernel/cgroup/cgroup.c). Nobody waits for one that is born there.
//!
//! A fork copies the page tables and the table of open files, and both grow with the VMs that are known: seventeen
//! milliseconds with 5,000 of them. So the child shares our memory until its exec (`CLONE_VM`), on a stack of its own, and our
//! open files until it takes a copy of those it needs (`CLONE_FILES`, close_range(2) with `CLOSE_RANGE_UNSHARE`). These have
//! low numbers, which are kept for that: [`Slots`].
//!
//! Until its exec the child may only make system calls: other threads' locks stay as they were, and what it wrote to would be ours.
//! The C library keeps `errno` for each thread and takes it for the one that made it, which makes no call that sets it
//! meanwhile. What the child has to say goes through a pipe, which its exec closes.

use std::ffi::{CString, OsStr, c_char, c_int};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{DupFlags, Errno, dup3, fcntl_dupfd_cloexec};
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
/// Bytes of the child's stack. A debug build needs a quarter of it.
const STACK: usize = 256 << 10;
/// What the child says once its open files are its own.
const APART: u8 = 0;
/// What it says before the number of an error.
const FAILED: u8 = 1;

/// Numbers of open files that are kept for children, as low as could be had: of all above the last one a child takes no copy.
struct Slots {
    /// The three files that a child is given, and the pipe by which it speaks.
    files: [OwnedFd; 4],
    /// What they lead to while there is no child.
    nothing: OwnedFd,
}

static SLOTS: Mutex<Option<Slots>> = Mutex::new(None);

/// Keeps low numbers for children. To be called early, while there are some; a child that is born without takes longer.
pub(super) fn reserve() -> io::Result<()> {
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    if slots.is_none() {
        *slots = Some(Slots::new()?);
    }
    Ok(())
}

impl Slots {
    fn new() -> io::Result<Self> {
        let nothing = File::open("/dev/null")
            .map_err(|cause| super::error(cause.kind(), format!("/dev/null: {cause}; is /dev mounted?")))?;
        let nothing = OwnedFd::from(nothing);
        // Above those that the child's own input and outputs get.
        let slot = || fcntl_dupfd_cloexec(&nothing, 3);
        let files = [slot()?, slot()?, slot()?, slot()?];
        Ok(Self { files, nothing })
    }

    fn put(&mut self, files: [BorrowedFd<'_>; 4]) -> io::Result<[RawFd; 4]> {
        for (slot, file) in self.files.iter_mut().zip(files) {
            dup3(file, slot, DupFlags::CLOEXEC)?;
        }
        Ok(self.files.each_ref().map(AsRawFd::as_raw_fd))
    }

    /// Lets go of what was put there: a lock must be its child's alone.
    fn clear(&mut self) {
        for slot in &mut self.files {
            // Fails for a number that is none, and these are.
            let _ = dup3(&self.nothing, slot, DupFlags::CLOEXEC);
        }
    }
}

/// Starts `program` in the cgroup of this folder. `prepare` runs in the child before the program, and gets the numbers that
/// `files` have there.
///
/// # Safety
/// `prepare` makes only calls that are async-signal-safe (signal-safety(7)): it allocates nothing, takes no lock, does not
/// panic, and writes to nothing that is not its own.
///
/// # Errors
/// That of the program's exec, of `prepare`, of joining the cgroup, or of making a child at all; `TimedOut` if it did not
/// become its program in time, and was killed.
pub(super) unsafe fn spawn(
    program: &Program,
    cgroup: Option<&File>,
    files: [BorrowedFd<'_>; 3],
    prepare: &dyn Fn([RawFd; 3]) -> io::Result<()>,
) -> io::Result<Child> {
    // SAFETY: as the caller promises.
    unsafe { spawn_by(true, program, cgroup, files, prepare, TIME_TO_EXEC) }
}

/// The same, by clone3(2) where it `may_clone`, within this time.
///
/// # Safety
/// As for [`spawn`].
unsafe fn spawn_by(
    may_clone: bool,
    program: &Program,
    cgroup: Option<&File>,
    files: [BorrowedFd<'_>; 3],
    prepare: &dyn Fn([RawFd; 3]) -> io::Result<()>,
    time_to_exec: Duration,
) -> io::Result<Child> {
    reserve()?;
    let mut slots = SLOTS.lock().unwrap_or_else(PoisonError::into_inner);
    let slots = slots.as_mut().ok_or(io::ErrorKind::NotFound)?;
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        texts.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (mut told, tell) = io::pipe()?;
    let until = Instant::now() + time_to_exec;
    let [first, second, third] = files;
    let birth = Birth {
        program,
        arguments: pointers(&program.arguments),
        environment: pointers(&program.environment),
        slots: slots.put([first, second, third, tell.as_fd()])?,
        prepare,
    };
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    // SAFETY: as the caller promises; what the child uses lives until it has become its program or is dead.
    let child = unsafe { give_birth(may_clone, &birth, cgroup.map(AsRawFd::as_raw_fd), &mut stack) };
    let child = child.inspect_err(|_| slots.clear())?;
    // Its files are those in the slots until it says that it has its own: nothing else may lie there before.
    let mut said = [0];
    let has_spoken = is_readable(&told, until).unwrap_or(false) && told.read(&mut said).is_ok();
    if !has_spoken {
        kill(&child);
    }
    slots.clear();
    drop(tell);
    if !has_spoken || !is_readable(&told, until).unwrap_or(false) {
        kill(&child);
        // What hangs may outlive that for a while. It runs no more of our program, but its stack is left to it.
        std::mem::forget(stack);
        let what = format!("it was not its program after {time_to_exec:?}: a disk hangs, or a cgroup is frozen");
        return Err(super::error(io::ErrorKind::TimedOut, what));
    }
    let mut message = Vec::new();
    // The end of it comes with its exec, or because somebody killed it: whoever looks at it finds out.
    let _ = told.read_to_end(&mut message);
    let number = if said == [FAILED] { message.as_slice() } else { message.get(1..).unwrap_or_default() };
    let Ok(number) = number.try_into() else { return Ok(child) };
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
    Err(io::Error::from_raw_os_error(c_int::from_ne_bytes(number)))
}

/// Kills a child, and waits for its end, but not for long.
fn kill(child: &Child) {
    let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
    let _ = is_readable(&child.pidfd, Instant::now() + Duration::from_millis(100));
    let _ = waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
}

/// Whether there is something to read, or the end of it, until then. Of a pidfd: whether its process ends.
fn is_readable(file: &impl AsFd, until: Instant) -> io::Result<bool> {
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        match poll(&mut [PollFd::new(file, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            answered => return Ok(answered? > 0),
        }
    }
}

/// What a child is made of: all of it before it is made, since it allocates nothing.
struct Birth<'a> {
    program: &'a Program,
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
    /// The numbers of its three files, and of the pipe by which it speaks.
    slots: [RawFd; 4],
    prepare: &'a dyn Fn([RawFd; 3]) -> io::Result<()>,
}

impl Birth<'_> {
    /// What the child does.
    ///
    /// # Safety
    /// To be called in the child alone. `join` is the open folder of the cgroup to be joined.
    unsafe fn become_program(&self, shares_files: bool, join: Option<RawFd>) -> ! {
        // SAFETY: as the caller promises.
        let error = unsafe { self.prepared(shares_files, join) }.err().unwrap_or_else(|| {
            // SAFETY: both arrays end with a null and point to strings that live.
            unsafe {
                libc::execve(self.program.path.as_ptr(), self.arguments.as_ptr(), self.environment.as_ptr());
            }
            io::Error::last_os_error()
        });
        let [a, b, c, d] = error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes();
        self.say(&[FAILED, a, b, c, d]);
        // SAFETY: it runs nothing of what the parent would have run at its end.
        unsafe { libc::_exit(127) }
    }

    /// # Safety
    /// As for [`Birth::become_program`].
    unsafe fn prepared(&self, shares_files: bool, join: Option<RawFd>) -> io::Result<()> {
        let [first, second, third, _] = self.slots;
        if shares_files {
            let above = self.slots.iter().max().map_or(3, |last| last + 1).cast_unsigned();
            let flag = libc::c_long::from(libc::CLOSE_RANGE_UNSHARE);
            // SAFETY: a plain system call. Until it is done, every number is also the parent's.
            if unsafe { libc::syscall(libc::SYS_close_range, above, libc::c_uint::MAX, flag) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        self.say(&[APART]);
        if let Some(folder) = join {
            // SAFETY: an open folder of the caller's.
            unsafe { join_cgroup(folder)? };
        }
        (self.prepare)([first, second, third])
    }

    fn say(&self, message: &[u8]) {
        let [.., tell] = self.slots;
        // SAFETY: a buffer of our own with its length.
        unsafe { libc::write(tell, message.as_ptr().cast(), message.len()) };
    }
}

/// Makes the child: in its cgroup at once and sharing what it need not have for itself, where the kernel (Linux 5.9) and its
/// filters of system calls let us; else a copy of us that joins its cgroup itself.
///
/// # Safety
/// As for [`spawn`]; and `birth` and `stack` live until the child has become its program or is dead.
unsafe fn give_birth(
    may_clone: bool,
    birth: &Birth<'_>,
    cgroup: Option<RawFd>,
    stack: &mut [u128],
) -> io::Result<Child> {
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
    let cloned = if may_clone { unsafe { clone_into(birth, cgroup, stack) } } else { None };
    // SAFETY: as the caller promises.
    let child = cloned.unwrap_or_else(|| unsafe { fork(birth, cgroup) });
    // SAFETY: a set that lives.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    child
}

/// clone3(2). `None` where it is not to be had: an old kernel, a filter, flags and a size of arguments that an old kernel
/// does not know.
///
/// # Safety
/// As for [`give_birth`].
unsafe fn clone_into(birth: &Birth<'_>, cgroup: Option<RawFd>, stack: &mut [u128]) -> Option<io::Result<Child>> {
    let flag = |flag: c_int| u64::from(flag.cast_unsigned());
    let mut pidfd: RawFd = -1;
    // SAFETY: a structure of plain numbers, for which zeros mean that nothing is asked for.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // Handlers are ours, and would write to pipes that we share until the exec.
    arguments.flags = flag(libc::CLONE_PIDFD) | flag(libc::CLONE_VM) | flag(libc::CLONE_FILES) | CLONE_CLEAR_SIGHAND;
    arguments.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = flag(libc::SIGCHLD);
    arguments.stack = stack.as_mut_ptr().expose_provenance() as u64;
    arguments.stack_size = size_of_val(stack) as u64;
    if let Some(folder) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = flag(folder);
    }
    // SAFETY: as the caller promises; the kernel writes to `pidfd`, which lives.
    let pid = unsafe { clone3(&arguments, birth) }?;
    if pid > 0 {
        // SAFETY: the kernel made it for us, and nobody else knows of it.
        return Some(Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }));
    }
    let is_missing = matches!(-pid, libc::ENOSYS | libc::EPERM | libc::EINVAL | libc::E2BIG);
    (!is_missing).then_some(Err(io::Error::from_raw_os_error(-pid)))
}

/// The system call itself: the child's pid, or an error's number below zero. The child begins on the stack that it was
/// given, where nothing is to return to, so it is sent on from here.
///
/// # Safety
/// As for [`give_birth`]; the stack in `arguments` is aligned to 16 bytes at its end.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(arguments: &libc::clone_args, birth: &Birth<'_>) -> Option<i32> {
    unsafe extern "C" fn begin(birth: &Birth<'_>) -> ! {
        // SAFETY: this is the child.
        unsafe { birth.become_program(true, None) }
    }
    let result: i64;
    // SAFETY: the kernel keeps every register but rax, rcx and r11 (syscall(2)). The child's stack is empty and aligned, and a
    // zero in rbp ends it for debuggers; `begin` never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {birth}",
            "call {begin}",
            "ud2",
            "2:",
            begin = in(reg) begin as *const (),
            birth = in(reg) std::ptr::from_ref(birth),
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") std::ptr::from_ref(arguments),
            in("rsi") size_of::<libc::clone_args>(),
            // Not late: what is needed after the call must not lie where the kernel writes.
            out("rcx") _,
            out("r11") _,
        );
    }
    i32::try_from(result).ok()
}

/// Nobody has written down yet how a child begins on another machine.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn clone3(_: &libc::clone_args, _: &Birth<'_>) -> Option<i32> {
    None
}

/// # Safety
/// As for [`give_birth`].
unsafe fn fork(birth: &Birth<'_>, cgroup: Option<RawFd>) -> io::Result<Child> {
    // SAFETY: as the caller promises.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: this is the child.
        unsafe { birth.become_program(false, cgroup) }
    }
    let Some(own) = Pid::from_raw(pid).filter(|_| pid > 0) else {
        return Err(io::Error::last_os_error());
    };
    pidfd_open(own, PidfdFlags::empty()).map(|pidfd| Child { pid, pidfd }).map_err(|error| {
        #[expect(clippy::disallowed_methods, reason = "no pidfd is to be had, and its number is its own until we wait")]
        let _ = kill_process(own, Signal::KILL);
        let _ = waitid(WaitId::Pid(own), WaitIdOptions::EXITED);
        error.into()
    })
}

/// `CLONE_CLEAR_SIGHAND` and `CLONE_INTO_CGROUP` of linux/sched.h. They do not fit the type that the library gives them.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Joins the cgroup of this folder.
///
/// # Safety
/// Async-signal-safe.
unsafe fn join_cgroup(folder: RawFd) -> io::Result<()> {
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

    /// What a test does in the child.
    type Prepare<'a> = &'a dyn Fn([RawFd; 3]) -> io::Result<()>;

    /// By clone3(2), or by fork(2).
    fn born(may_clone: bool, program: &Program, cgroup: Option<&File>, prepare: Prepare<'_>) -> io::Result<Child> {
        born_within(TIME_TO_EXEC, may_clone, program, cgroup, prepare)
    }

    fn born_within(
        time: Duration,
        may_clone: bool,
        program: &Program,
        cgroup: Option<&File>,
        prepare: Prepare<'_>,
    ) -> io::Result<Child> {
        let nothing = File::open("/dev/null").unwrap();
        // SAFETY: tests prepare nothing but what system calls do.
        unsafe { spawn_by(may_clone, program, cgroup, [nothing.as_fd(); 3], prepare, time) }
    }

    fn wait(child: &Child) -> Option<i32> {
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED).unwrap().unwrap().exit_status()
    }

    #[test]
    fn both_ways_start_the_program_with_its_arguments_and_nothing_else_around_it() {
        for may_clone in [true, false] {
            let script = r#"[ "$NAME" = value ] && [ -z "$HOME" ] && exit 7"#;
            let child = born(may_clone, &shell(script), None, &|_| Ok(())).unwrap();
            assert_eq!(wait(&child), Some(7), "may clone: {may_clone}");
        }
    }

    #[test]
    fn what_goes_wrong_before_the_program_runs_is_told_and_no_zombie_stays() {
        let missing = Program::new(OsStr::new("/no/such/program"), [].into_iter(), &[]).unwrap();
        for may_clone in [true, false] {
            let error = born(may_clone, &missing, None, &|_| Ok(())).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "may clone: {may_clone}");
            // An error with a number takes no memory.
            let refused = |_: [RawFd; 3]| Err(io::Error::from_raw_os_error(libc::EDEADLK));
            let error = born(may_clone, &shell("exit 0"), None, &refused).err().unwrap();
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
            let child = born(may_clone, &shell("exit 0"), Some(&folder), &|_| Ok(()));
            assert!(child.is_err(), "may clone: {may_clone}");
        }
    }

    #[test]
    fn a_child_that_hangs_before_it_is_its_program_is_killed_and_keeps_nobody_waiting() {
        let time = Duration::from_millis(50);
        for may_clone in [true, false] {
            let (mut told, tell) = io::pipe().unwrap();
            let hangs = |_: [RawFd; 3]| {
                // SAFETY: a plain system call.
                unsafe { libc::pause() };
                Ok(())
            };
            let error = born_within(time, may_clone, &shell("exit 0"), None, &hangs).err().unwrap();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "may clone: {may_clone}");
            drop(tell);
            // Its copy of the other end goes with it.
            assert_eq!(told.read(&mut [0]).unwrap(), 0, "may clone: {may_clone}");
        }
    }

    /// What the child does to its own must not be done to ours, whose memory and numbers it shares at first.
    #[test]
    fn a_child_has_files_and_limits_of_its_own_and_leaves_ours_alone() {
        let limit = || rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let (before, folder) = (limit(), std::env::current_dir().unwrap());
        for may_clone in [true, false] {
            let (mut read, write) = io::pipe().unwrap();
            let lives_on = File::open("/dev/null").unwrap();
            let changes = |[first, ..]: [RawFd; 3]| {
                // SAFETY: plain system calls.
                unsafe {
                    libc::dup2(first, 1);
                    libc::close(lives_on.as_raw_fd());
                    libc::chdir(c"/proc".as_ptr());
                    let few = libc::rlimit { rlim_cur: 32, rlim_max: 32 };
                    libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few);
                    let flag = libc::c_long::from(libc::CLOSE_RANGE_CLOEXEC);
                    libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flag);
                }
                Ok(())
            };
            let script = shell("pwd; ulimit -n; ls /proc/self/fd | wc -l");
            // SAFETY: `changes` makes plain system calls.
            let child = unsafe { spawn_by(may_clone, &script, None, [write.as_fd(); 3], &changes, TIME_TO_EXEC) };
            drop(write);
            let mut said = String::new();
            read.read_to_string(&mut said).unwrap();
            assert_eq!(wait(&child.unwrap()), Some(0));
            // Its input, its outputs, and the folder that `ls` reads.
            assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["/proc", "32", "4"], "may clone: {may_clone}");
            assert!(lives_on.metadata().is_ok() && limit() == before && std::env::current_dir().unwrap() == folder);
        }
    }

    #[test]
    fn many_are_born_at_once_while_other_threads_allocate() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for code in 0..25 {
                        let mut kept: Vec<String> = (0..100).map(|number| format!("{thread} {number}")).collect();
                        let script = shell(&format!("exit {code}"));
                        let child = born(true, &script, None, &|_| Ok(())).unwrap();
                        kept.push(String::new());
                        assert_eq!(wait(&child), Some(code));
                        assert_eq!(kept[99], format!("{thread} 99"));
                    }
                });
            }
        });
    }

    #[test]
    fn the_pidfd_is_the_childs_and_closed_by_an_exec() {
        let child = born(true, &shell("exit 3"), None, &|_| Ok(())).unwrap();
        let flags = rustix::io::fcntl_getfd(child.pidfd.as_fd()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert!(child.pid > 1);
        assert_eq!(wait(&child), Some(3));
    }
}
