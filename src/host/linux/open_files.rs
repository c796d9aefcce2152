//! How many files stead may have open: each VM that lives takes two, and what most hosts allow by default is 1,024.

use std::sync::OnceLock;

use nix::libc;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
}

/// What a child is to be given back, for a VMM may use select(2); `None` if there is nothing to give back.
pub(super) fn given() -> Option<libc::rlimit> {
    let number = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    GIVEN.get().map(|given| libc::rlimit { rlim_cur: number(given.current), rlim_max: number(given.maximum) })
}
