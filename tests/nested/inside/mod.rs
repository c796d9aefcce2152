//! What runs inside the nested host.

pub mod bed;
pub mod churn;
mod deaths;
mod device_mapper;
mod disks;
mod host;
mod objects;
mod power;
mod simulated;
mod stead;
mod systemd;

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
    disks::linux_finds_what_it_wrote_after_a_restart_and_its_base_is_untouched,
    disks::a_disk_goes_to_the_trash_and_comes_back_from_it,
    disks::a_base_that_changed_is_never_attached_and_a_new_one_begins_afresh,
    disks::a_disk_grows_at_its_next_start_and_never_shrinks,
    objects::a_dm_device_held_by_another_process_blocks_what_is_under_it_and_nothing_else,
    objects::the_backing_file_of_a_busy_loop_is_never_deleted,
    objects::the_trash_is_emptied_of_what_nothing_uses,
    objects::foreign_objects_are_never_touched,
    objects::a_start_that_meets_a_strangers_object_fails_and_leaves_it_alone,
    objects::orphans_are_listed_aged_and_freed,
    deaths::death_at_any_point_of_a_start_leads_to_one_vmm_on_its_disk,
    deaths::death_at_any_point_of_a_teardown_leaves_nothing,
    device_mapper::a_snapshot_is_made_seen_written_and_removed,
    device_mapper::a_grown_disk_reads_its_base_and_then_zeros,
    device_mapper::an_open_device_is_busy_at_once_with_its_holder_and_goes_after_it,
    device_mapper::what_is_not_ours_is_refused_and_what_fails_leaves_nothing,
    device_mapper::a_missing_module_is_named_loaded_if_possible_and_used_once_it_is_there,
    device_mapper::an_overflown_snapshot_says_so,
    simulated::simulated_devices_answer_as_real_ones_do,
    device_mapper::udev_is_told_to_keep_off_and_not_waited_for,
];

/// What the tests of `outside` have done inside.
const JOBS: &[Named] = named![
    power::write_with_and_without_sync,
    power::only_what_was_synced_is_there,
    power::vms_come_and_go_until_the_power_goes,
    stead::a_vm_runs_until_the_power_goes,
    stead::the_vm_lives_again,
    churn::vms_come_and_go,
    churn::the_objects_of_a_start_are_timed,
    systemd::the_service_ends_in_every_way,
    systemd::a_pass_is_a_unit,
    systemd::the_package_comes_and_goes,
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
    bed::log_fatal_signals();
    // Of steads that run within this process: what they say is the story of a test that fails.
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_ansi(false).init();
    // The panic itself is printed when it happens.
    if catch_unwind(AssertUnwindSafe(function)).is_err() {
        println!("{}\n{FAILED} {name}", bed::story());
        return ExitCode::FAILURE;
    }
    println!("{OK} {name}");
    ExitCode::SUCCESS
}

/// The words that came with the job's name.
pub fn arguments() -> Vec<String> {
    std::env::args().skip(3).collect()
}
