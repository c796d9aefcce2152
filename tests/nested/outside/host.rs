//! That a nested host is what the tests take it for.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::machine::{BOUND, Disk, Machine};

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

/// Otherwise a test could pass without having run to its end.
pub fn a_job_that_panics_ends_or_hangs_does_not_pass() {
    for (job, why) in [
        ("panics", "NESTED FAILED panics"),
        ("ends_without_a_verdict", "ended 0"),
        ("takes_the_host_down", "the machine has ended"),
        ("hangs", "not within 5s"),
        ("unheard_of", "there is nothing of that name"),
    ] {
        let mut machine = Machine::restore(&Disk::new(), job);
        let bound = if job == "hangs" { Duration::from_secs(5) } else { BOUND };
        let panic = catch_unwind(AssertUnwindSafe(|| machine.passes(bound))).expect_err(job);
        let said = panic.downcast_ref::<String>().unwrap();
        assert!(said.lines().next().unwrap().contains(why), "{job}: not for {why:?} but for\n{said}");
    }
}
