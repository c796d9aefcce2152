//! What runs inside the nested host.

pub mod bed;
mod host;
mod power;
mod stead;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::machine::{FAILED, OK};
use crate::{Named, named};

/// Each is one test, run in a fresh host.
pub const TESTS: &[Named] = named![
    host::device_mapper_loop_tun_bridge_kvm_and_cgroup_v2_are_real_here,
    host::a_reflink_is_real_here,
    host::firecracker_boots_linux_from_a_dm_snapshot_with_a_tap,
    stead::a_vm_starts_stays_and_goes_without_a_trace,
];

/// What the tests of `outside` have done inside.
const JOBS: &[Named] = named![
    power::write_with_and_without_sync,
    power::only_what_was_synced_is_there,
    stead::a_vm_runs_until_the_power_goes,
    stead::the_vm_lives_again,
    host::say_who_you_are,
    host::panics,
    host::ends_without_a_verdict,
    host::takes_the_host_down,
    host::hangs,
];

/// Runs the named test or job; its last line says how it went.
pub fn main(args: &[String]) -> ExitCode {
    let name = args.first().map_or("", String::as_str);
    let Some((_, function)) = TESTS.iter().chain(JOBS).find(|(known, _)| *known == name) else {
        println!("{FAILED} {name}: there is nothing of that name");
        return ExitCode::FAILURE;
    };
    bed::fresh_randomness();
    // The panic itself is printed when it happens.
    if catch_unwind(AssertUnwindSafe(function)).is_err() {
        println!("{FAILED} {name}");
        return ExitCode::FAILURE;
    }
    println!("{OK} {name}");
    ExitCode::SUCCESS
}

/// The words that came with the job's name.
pub fn arguments() -> Vec<String> {
    std::env::args().skip(3).collect()
}
