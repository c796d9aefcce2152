//! `vmm.lock` as others see it: is it held, and by whom (flock(2)).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{FlockOperation, flock};

use super::process::{numbers, read_proc};
use crate::host::LockProbe;

/// Looks whether the lock is held. Taking it shared for a moment is how one looks; a VMM that starts in this very moment
/// tries again until it is past.
pub(super) fn probe(path: &Path) -> LockProbe {
    match try_probe(path) {
        Ok(probe) => probe,
        Err(error) => LockProbe::Unknown(error.to_string()),
    }
}

fn try_probe(path: &Path) -> io::Result<LockProbe> {
    let file = match OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockProbe::NoFile),
        Err(error) => return Err(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            flock(&file, FlockOperation::Unlock)?;
            Ok(LockProbe::Free)
        }
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(LockProbe::Held(holder(file)?)),
        Err(errno) => Err(errno.into()),
    }
}

/// The process whose open file is this lock: the one that the file names, else the one that is found.
fn holder(mut file: File) -> io::Result<Option<i32>> {
    let of = file.metadata()?;
    let mut text = String::new();
    // Written by the child: a decimal number. Anything else only costs the search.
    let _ = file.by_ref().take(32).read_to_string(&mut text);
    if let Ok(pid) = text.trim().parse::<i32>()
        && holds(pid, "0", &of)
    {
        return Ok(Some(pid));
    }
    let pids = numbers()?;
    Ok(pids.into_iter().find(|pid| descriptors(*pid).iter().any(|fd| holds(*pid, fd, &of))))
}

/// The numbers of a process's open files; none when it may not be looked at.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Whether this descriptor of this process is that file, with its lock on it. Device and inode are compared by stat(2),
/// since the lock's own line names the device differently on btrfs and overlayfs.
fn holds(pid: i32, fd: &str, of: &fs::Metadata) -> bool {
    let is_file = fs::metadata(format!("/proc/{pid}/fd/{fd}"))
        .is_ok_and(|found| (found.dev(), found.ino()) == (of.dev(), of.ino()));
    is_file
        && read_proc(pid, &format!("fdinfo/{fd}")).is_ok_and(|info| {
            let info = info.unwrap_or_default();
            String::from_utf8_lossy(&info).lines().any(|line| {
                let mut words = line.split_ascii_whitespace();
                words.next() == Some("lock:") && words.any(|word| word == "FLOCK") && words.any(|word| word == "WRITE")
            })
        })
}
