//! That the nested host is what the other tests take it for.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::machine::{BOUND, Disk, Machine};

/// The rig is honest: a power cut loses what a program did not have synced, and nothing that it had.
pub fn unsynced_data_is_really_lost_in_a_power_cut() {
    let disk = Disk::new();
    let mut before = Machine::boot(&disk, "write_with_and_without_sync /state/synced /state/unsynced");
    before.wait_for("WRITTEN", BOUND);
    before.cut();
    Machine::boot(&disk, "only_what_was_synced_is_there /state/synced /state/unsynced").finish(BOUND);
}

pub fn every_host_has_a_boot_id_random_numbers_and_a_clock_of_its_own() {
    let disk = Disk::new();
    let mut seen = BTreeSet::new();
    let starts: [fn(&Disk, &str) -> Machine; 4] = [Machine::restore, Machine::restore, Machine::boot, Machine::boot];
    for start in starts {
        let mut machine = start(&disk, "say_who_you_are");
        for what in ["BOOT ", "RANDOM "] {
            let line = machine.wait_for(what, BOUND);
            assert!(seen.insert(line.clone()), "two hosts say {line}");
        }
        let line = machine.wait_for("CLOCK ", BOUND);
        let theirs = Duration::from_secs(line.trim_start_matches("CLOCK ").parse().unwrap());
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(theirs.abs_diff(ours) < Duration::from_secs(30), "{theirs:?} there, {ours:?} here");
        machine.finish(BOUND);
    }
}
