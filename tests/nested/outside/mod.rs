//! What runs outside: the tests that handle their machines themselves, and the way to run one function inside.

mod churn;
mod host;
mod power;
mod systemd;

use std::time::Duration;

use crate::machine::{Disk, Machine};
use crate::{Named, named};

/// Each is one test, run here.
pub const TESTS: &[Named] = named![
    churn::fifty_vms_come_and_go_and_leave_the_host_as_it_was,
    churn::the_kernel_objects_of_a_start_take_milliseconds,
    power::unsynced_data_is_really_lost_in_a_power_cut,
    power::a_vm_runs_again_after_a_power_cut_and_counts_its_lives_on,
    power::power_cuts_at_random_moments_break_no_rule,
    systemd::vms_outlive_whatever_ends_the_service,
    systemd::vms_outlive_the_unit_of_a_pass,
    systemd::vms_outlive_the_package,
    host::every_host_has_a_boot_id_random_numbers_and_a_clock_of_its_own,
    host::a_job_that_panics_ends_or_hangs_does_not_pass,
];

/// How long a test inside may take: some do hundreds of things on emulated CPUs.
const LONG: Duration = Duration::from_secs(900);

/// One test of `inside::TESTS`: in a fresh host, to its verdict.
pub fn run_inside(name: &str) {
    let disk = Disk::new();
    // How many runs a test of random calls makes, for those that heed it.
    let runs = std::env::var("STEAD_RUNS").unwrap_or_default();
    Machine::restore(&disk, format!("{name} {runs}").trim_end()).passes(LONG);
}
