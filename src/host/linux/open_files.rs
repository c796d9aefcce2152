//! How many files stead may have open: each VM that lives takes two, and what most hosts allow by default is 1,024.

use std::fs::File;
use std::sync::OnceLock;

use nix::libc;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// So many open files there is room for from the beginning: those of some two thousand VMs.
const ROOM: u64 = 4096;

/// What this process was given, before it took more.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Takes as many as may be had without asking: the hard limit. The soft one is low for the sake of programs that use
/// select(2), as stead does not; see "File Descriptor Limits" in systemd.exec(5).
pub(super) fn allow_most() {
    let given = *GIVEN.get_or_init(|| getrlimit(Resource::Nofile));
    let most = Rlimit { current: given.maximum, maximum: given.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, most) {
        tracing::warn!("open files stay limited to {:?}: {error}", given.current);
    }
    make_room();
}

/// Has the kernel make its table of this process's open files large at once. It would begin with 64 and double it each time it
/// is full, and in a process with several threads each time lets whoever opens a file wait for an RCU grace period, which takes
/// ten milliseconds (`expand_fdtable` in fs/file.c): among a thousand VMs a quarter of the first pass. Here there are no other
/// threads yet, and nothing to wait for. The table never shrinks.
fn make_room() {
    let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let last = i32::try_from(ROOM.min(most).saturating_sub(1)).unwrap_or(i32::MAX);
    // Where it cannot be had, stead is slower once, and whatever is wrong shows elsewhere.
    let _ = File::open("/").and_then(|any| Ok(fcntl_dupfd_cloexec(any, last)?));
}

/// What a child is to be given back, for a VMM may use select(2); `None` if there is nothing to give back.
pub(super) fn given() -> Option<libc::rlimit> {
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    GIVEN.get().map(|given| libc::rlimit { rlim_cur: number(given.current), rlim_max: number(given.maximum) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_open_files_is_large_from_the_beginning() {
        allow_most();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let most = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        assert!(size.trim().parse::<u64>().unwrap() >= ROOM.min(most), "{size}");
    }
}
