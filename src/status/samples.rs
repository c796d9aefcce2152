//! VMs and moments for tests.

use std::path::Path;

use jiff::Timestamp;

use crate::host::{GuestState, ProcessHandle, ProcessIdentity};
use crate::names::{Incarnation, StateId, VmName};
use crate::observed::{Fact, Guest, ObservedVm, VmmProcess};
use crate::plan::{Action, Hold, VmPlan};
use crate::spec::VmmKind;
use crate::time::{BootId, Now};

/// A moment, in seconds since boot and since 1970.
pub(crate) fn now(second: i64) -> Now {
    let boot_ms = u64::try_from(second).unwrap() * 1000;
    Now { boot_id: BootId("boot".into()), boot_ms, wall: Timestamp::from_second(second).unwrap() }
}

/// A VM of which there is nothing.
pub(crate) fn gone() -> ObservedVm {
    let name: VmName = "web".parse().unwrap();
    let uid = StateId::derive("m", Path::new("/s")).uid(&name);
    ObservedVm::nothing(name, uid)
}

/// A VM whose guest does this, in its third life.
pub(crate) fn alive_with(guest: Guest) -> ObservedVm {
    let identity = ProcessIdentity { pid: 4711, start_time: 1, pidfd_inode: None };
    let process = VmmProcess {
        process: ProcessHandle { identity, pidfd: None, line: None },
        incarnation: Incarnation(3),
        vmm: VmmKind::Firecracker,
    };
    ObservedVm { process: Fact::Present(process), guest, ..gone() }
}

/// A VM whose guest runs.
pub(crate) fn running() -> ObservedVm {
    alive_with(Guest::Is(GuestState::Running))
}

/// What is to be done about it.
pub(crate) fn plan(actions: Vec<Action>, holds: Vec<Hold>) -> VmPlan {
    VmPlan { actions, holds, notes: vec![], wake: None }
}
