//! Programs that are not VMMs, run to their end.

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, kill_process_group, pidfd_open, prlimit};

use super::{facts, spawn};
use crate::host::{ProgramOutput, ProgramRequest};

/// Runs a program and everything that it starts, in a process group of their own, to its end; what has not ended in time is
/// killed.
pub(super) fn run(request: &ProgramRequest<'_>) -> io::Result<ProgramOutput> {
    // Files rather than pipes: nobody has to read or write while it runs.
    let (mut input, mut output, mut errors) = (memory("input")?, memory("output")?, memory("errors")?);
    input.write_all(request.input)?;
    input.rewind()?;
    // By its whole path: one that is looked for in the PATH of its own environment is forked, which copies our memory's tables;
    // this way it shares them until its exec.
    let program = facts::find(request.program);
    #[expect(clippy::disallowed_methods, reason = "this is the room that runs programs")]
    let mut command = Command::new(program.as_deref().unwrap_or(request.program));
    command.args(&request.arguments).env_clear().envs(request.environment.iter().cloned()).current_dir(request.folder);
    command.stdin(input).stdout(output.try_clone()?).stderr(errors.try_clone()?).process_group(0);
    let mut child = spawn::alone(|| command.spawn())?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
    // Whatever it starts later inherits the limit.
    let limit = Rlimit { current: Some(request.file_max), maximum: Some(request.file_max) };
    let limited = prlimit(Some(pid), Resource::Fsize, limit);
    let ended = limited.map_err(io::Error::from).and_then(|_| ends_within(pid, request.bound));
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
        let sleep: i32 = String::from_utf8(done.output).unwrap().trim().parse().unwrap();
        let is_gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{sleep}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ") || !stat.contains("(sleep)")
        };
        assert!((0..500).any(|_| is_gone() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }));
    }

    #[test]
    fn one_that_writes_too_much_is_ended() {
        let done = shell("head -c 100M /dev/zero", Duration::from_secs(20));
        assert!(!done.success && done.output.len() <= 1 << 20);
    }
}
