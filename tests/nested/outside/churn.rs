//! Many VMs at once, and how long stead's own part of a start takes.

use std::time::Duration;

use crate::machine::{BOUND, Disk, Machine};

/// Rounds when `STEAD_ROUNDS` does not say.
const ROUNDS: usize = 3;

/// Fifty VMs with disks and taps come and go at random. `STEAD_ROUNDS=20 make test-nested` takes some minutes.
pub fn fifty_vms_come_and_go_and_leave_the_host_as_it_was() {
    let rounds = std::env::var("STEAD_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let mut machine = Machine::restore(&Disk::new(), &format!("vms_come_and_go {rounds}"));
    for _ in 0..rounds {
        println!("{}", machine.wait_for("round ", BOUND));
    }
    println!("{}", machine.wait_for("starts and ", BOUND));
    machine.passes(BOUND);
}

/// The bound is ten milliseconds on a machine; in here every instruction is emulated, some ten to thirty times slower.
pub fn the_kernel_objects_of_a_start_take_milliseconds() {
    let mut machine = Machine::restore(&Disk::new(), "the_objects_of_a_start_are_timed");
    let line = machine.wait_for("TIME ", BOUND);
    println!("{line}");
    let median = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(Duration::from_micros(median) < Duration::from_millis(150), "{line}");
    machine.passes(BOUND);
}
