//! How long device-mapper takes, for people to see.

use crate::machine::{BOUND, Disk, Machine};

pub fn a_disk_is_made_in_little_time() {
    let mut machine = Machine::restore(&Disk::new(), "disks_are_timed");
    for _ in 0..4 {
        println!("{}", machine.wait_for("TIME ", BOUND));
    }
    machine.finish(BOUND);
}
