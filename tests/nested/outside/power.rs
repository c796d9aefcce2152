//! Power cuts.

use crate::machine::{BOUND, Disk, Machine};

/// The rig is honest: a power cut loses what a program did not have synced, and nothing that it had.
pub fn unsynced_data_is_really_lost_in_a_power_cut() {
    let disk = Disk::new();
    let mut before = Machine::boot(&disk, "write_with_and_without_sync /state/synced /state/unsynced");
    before.wait_for("WRITTEN", BOUND);
    before.cut();
    Machine::boot(&disk, "only_what_was_synced_is_there /state/synced /state/unsynced").finish(BOUND);
}

pub fn a_vm_runs_again_after_a_power_cut_and_counts_its_lives_on() {
    let disk = Disk::new();
    let mut before = Machine::boot(&disk, "a_vm_runs_until_the_power_goes");
    before.wait_for("RUNNING", BOUND);
    before.cut();
    Machine::boot(&disk, "the_vm_lives_again").passes(BOUND);
}
