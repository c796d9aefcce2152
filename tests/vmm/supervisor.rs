//! Has system calls of `stead` fail, from outside: a seccomp filter hands them to this process, which lets the kernel go on
//! with them or gives an error in their place (seccomp_unotify(2)). Nothing is preloaded and nothing is traced, so that what
//! runs is the binary that users run.

#![allow(unsafe_code, reason = "a filter between fork and exec, and its ioctls, that no crate wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

use nix::libc;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, pidfd_getfd, pidfd_open, pidfd_send_signal};

/// Where the child keeps its listener for the supervisor: a number that nothing else reaches.
const LISTENER: i32 = 700;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The kernel makes it.
    GoOn,
    /// It is not made, and gives this error.
    Fail(i32),
    /// It is not made: its process is killed first.
    Kill,
}

/// Which calls are handed over.
#[derive(Debug, Clone, Copy)]
pub enum Calls {
    /// Each that comes back, but for the two between fork and the time when the supervisor is there.
    All,
    /// The one of this number.
    One(i64),
}

/// Starts `command` under supervision. Each such call of `program` is told to `answer` by its number, which says what becomes
/// of it. Those of other programs that it becomes or starts go on undisturbed.
pub fn spawn(
    command: &mut Command,
    program: &Path,
    calls: Calls,
    mut answer: impl FnMut(i64) -> Answer + Send + 'static,
) -> Child {
    let mut filter = filter(calls);
    // SAFETY: between fork and exec nothing but two system calls is made; the filter was allocated before.
    let command = unsafe { command.pre_exec(move || install(&mut filter)) };
    let child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id().cast_signed()).expect("a child has a pid");
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let listener = pidfd_getfd(&process, LISTENER, PidfdGetfdFlags::empty()).unwrap();
    let program = program.canonicalize().unwrap();
    // It ends by itself, with the last process that has the filter: VMMs outlive the stead that started them.
    std::thread::spawn(move || {
        while let Some(notification) = next(&listener) {
            let tid = notification.pid;
            let is_its = std::fs::read_link(format!("/proc/{tid}/exe")).is_ok_and(|exe| exe == program);
            match if is_its { answer(i64::from(notification.data.nr)) } else { Answer::GoOn } {
                Answer::GoOn => respond(&listener, &notification, None),
                Answer::Fail(error) => respond(&listener, &notification, Some(error)),
                Answer::Kill => {
                    pidfd_send_signal(&process, Signal::KILL).unwrap();
                    // A fork of it, which is about to become a VMM, lives on.
                    if !Path::new(&format!("/proc/{}/task/{tid}", pid.as_raw_nonzero())).exists() {
                        respond(&listener, &notification, None);
                    }
                }
            }
        }
    });
    child
}

fn filter(calls: Calls) -> Vec<libc::sock_filter> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt: 0, jf: 0, k };
    // Jumps over the next statement if the number is not this one.
    let is = |number: i64| libc::sock_filter {
        jt: 0,
        jf: 1,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::try_from(number).unwrap())
    };
    let end = |with: u32| statement(libc::BPF_RET | libc::BPF_K, with);
    // `struct seccomp_data` begins with the number.
    let load_number = statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0);
    let mut program = vec![load_number];
    match calls {
        Calls::One(number) => {
            program.extend([is(number), end(libc::SECCOMP_RET_USER_NOTIF), end(libc::SECCOMP_RET_ALLOW)]);
        }
        Calls::All => {
            for number in
                [libc::SYS_dup3, libc::SYS_execve, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_rt_sigreturn]
            {
                program.extend([is(number), end(libc::SECCOMP_RET_ALLOW)]);
            }
            program.push(end(libc::SECCOMP_RET_USER_NOTIF));
        }
    }
    program
}

fn install(filter: &mut [libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: u16::try_from(filter.len()).unwrap_or(u16::MAX), filter: filter.as_mut_ptr() };
    // SAFETY: the program is valid for the call, which copies it.
    let listener = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel closes a listener at exec; this one is to be there still when the supervisor comes for it.
    // SAFETY: of two numbers of descriptors.
    if unsafe { libc::syscall(libc::SYS_dup3, listener, LISTENER, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The next call, or nothing when nobody is left who could make one.
fn next(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut ready = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) if ready[0].revents().contains(PollFlags::IN) => {}
            Ok(_) => return None,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => panic!("waiting for system calls: {error}"),
        }
        // SAFETY: the kernel wants it zeroed, and all zeroes are a valid value of it.
        let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: of a struct of its own.
        let received =
            unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut notification) };
        // Else it was killed meanwhile.
        if received == 0 {
            return Some(notification);
        }
    }
}

fn respond(listener: &OwnedFd, notification: &libc::seccomp_notif, error: Option<i32>) {
    let go_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("a flag");
    let response = libc::seccomp_notif_resp {
        id: notification.id,
        val: 0,
        error: -error.unwrap_or(0),
        flags: if error.is_some() { 0 } else { go_on },
    };
    // It may have been killed meanwhile: then there is nobody to tell.
    // SAFETY: of a struct of its own.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response) };
}
