//! Programs that are not VMMs, run to their end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, setrlimit};

use super::spawn;
use crate::host::{ProgramOutput, ProgramRequest};

/// Runs a program and everything that it starts, in a process group of their own, to its end; what has not ended in time is
/// killed, and all of it if we end before.
pub(super) fn run(request: &ProgramRequest<'_>) -> io::Result<ProgramOutput> {
    // Files rather than pipes: nobody has to read or write while it runs.
    let (mut input, mut output, mut errors) = (memory("input")?, memory("output")?, memory("errors")?);
    input.write_all(request.input)?;
    input.rewind()?;
    #[expect(clippy::disallowed_methods, reason = "this is the room that runs programs")]
    let mut command = Command::new(request.program);
    command.args(&request.arguments).env_clear().envs(request.environment.iter().cloned()).current_dir(request.folder);
    command.stdin(input).stdout(output.try_clone()?).stderr(errors.try_clone()?).process_group(0);
    // Held until its end, and by nobody but us.
    let (lifeline, _held) = io::pipe()?;
    let line = lifeline.as_raw_fd();
    let limit = Rlimit { current: Some(request.file_max), maximum: Some(request.file_max) };
    let prepare = move || {
        // Before its exec: whatever it starts inherits it.
        setrlimit(Resource::Fsize, limit)?;
        // Who hits the limit is told so, and tidies up and says it, instead of being killed on the spot (setrlimit(2)).
        // SAFETY: a plain system call.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        hang_on(line)
    };
    // SAFETY: `prepare` makes plain system calls and allocates nothing; the number of the pipe is open in the child.
    unsafe { command.pre_exec(prepare) };
    let mut child = spawn::alone(|| command.spawn())?;
    drop(lifeline);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    let ended = ends_within(pid, request.bound);
    if !matches!(ended, Ok(true)) {
        // The group of our child, which nobody has waited for: its number is its own.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    let status = child.wait()?;
    let timed_out = !ended?;
    Ok(ProgramOutput {
        success: status.success() && !timed_out,
        timed_out,
        code: status.code(),
        output: content(&mut output, request.file_max)?,
        errors: String::from_utf8_lossy(&content(&mut errors, ERRORS_MAX)?).into_owned(),
    })
}

/// Runs in the child, before exec. Has the kernel kill its whole group once nobody holds the other end of this pipe any more:
/// not only the program itself, as PR_SET_PDEATHSIG would. git's own children wait for a server that is silent also when git is
/// gone. The child's copy of the other end is closed by its exec, so one whose parent is dead by then gets no further.
///
/// See fcntl(2), F_SETOWN, F_SETSIG and O_ASYNC.
fn hang_on(line: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls, all of them async-signal-safe.
    unsafe {
        // It stays open for as long as one of them lives: without it there is nobody to be told.
        let done = libc::fcntl(line, libc::F_SETFD, 0) >= 0
            && libc::fcntl(line, F_SETSIG, libc::SIGKILL) >= 0
            && libc::fcntl(line, libc::F_SETOWN, -libc::getpid()) >= 0
            && libc::fcntl(line, libc::F_SETFL, libc::O_ASYNC) >= 0;
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Of asm-generic/fcntl.h; the library does not know it.
const F_SETSIG: libc::c_int = 10;

/// What a program says of its troubles is kept up to so many bytes.
const ERRORS_MAX: u64 = 16 << 10;

fn memory(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn content(file: &mut File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a child of ours ends in time.
fn ends_within(child: Pid, bound: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let timeout = Timespec::try_from(bound).map_err(io::Error::other)?;
    Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout))? > 0)
}

/// What a program prints when it is given nothing but this argument.
pub(super) fn printed(program: &Path, argument: &str, bound: Duration) -> io::Result<String> {
    let request = ProgramRequest {
        program,
        arguments: vec![argument.into()],
        environment: vec![("PATH".into(), spawn::PATH.into())],
        folder: Path::new("/"),
        input: &[],
        bound,
        file_max: 4096,
    };
    Ok(String::from_utf8_lossy(&run(&request)?.output).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, bound: Duration) -> ProgramOutput {
        let request = ProgramRequest {
            program: Path::new("/bin/sh"),
            arguments: ["-c", script].map(Into::into).to_vec(),
            environment: vec![("PATH".into(), "/usr/bin:/bin".into())],
            folder: Path::new("/"),
            input: b"what it reads",
            bound,
            file_max: 1 << 20,
        };
        run(&request).unwrap()
    }

    #[test]
    fn a_program_gets_its_input_and_gives_its_output_and_how_it_ended() {
        let done = shell("cat; echo trouble >&2; exit 3", Duration::from_secs(10));
        assert_eq!((done.success, done.code, done.timed_out), (false, Some(3), false));
        assert_eq!((done.output.as_slice(), done.errors.as_str()), (b"what it reads".as_slice(), "trouble\n"));
        assert!(shell("[ -z \"$HOME\" ]", Duration::from_secs(10)).success, "nothing of our environment");
    }

    #[test]
    fn one_that_does_not_end_is_killed_with_all_that_it_started() {
        let done = shell("sleep 100 & echo $!; wait", Duration::from_millis(300));
        assert!(done.timed_out && !done.success);
        assert!(ends(&done));
    }

    /// Whether the `sleep` whose number a program printed is soon gone.
    fn ends(done: &ProgramOutput) -> bool {
        let sleep: i32 = String::from_utf8_lossy(&done.output).trim().parse().unwrap();
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleep}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || !stat.contains("(sleep)")
        };
        (0..500).any(|_| {
            is_gone() || {
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        })
    }

    #[test]
    fn what_it_leaves_behind_in_its_group_ends_with_it() {
        let done = shell("sleep 100 >/dev/null 2>&1 & echo $!", Duration::from_secs(10));
        assert!(done.success && ends(&done));
    }

    #[test]
    fn one_that_writes_too_much_is_ended() {
        let done = shell("head -c 100M /dev/zero", Duration::from_secs(20));
        assert!(!done.success && done.output.len() <= 1 << 20);
    }
}
