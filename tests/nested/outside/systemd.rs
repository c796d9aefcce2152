//! stead as a service, on a host whose PID 1 is systemd.

use std::time::Duration;

use crate::machine::{Disk, Machine, packages};

/// systemd and some ten starts of services, all of it emulated.
const LONG: Duration = Duration::from_secs(900);

pub fn vms_outlive_whatever_ends_the_service() {
    Machine::boot_systemd(&Disk::new(), "the_service_ends_in_every_way").passes(LONG);
}

pub fn vms_outlive_the_package() {
    let packages = packages(&["1", "2"]);
    Machine::boot_systemd(&Disk::holding(packages.path()), "the_package_comes_and_goes").passes(LONG);
}

pub fn vms_outlive_the_unit_of_a_pass() {
    Machine::boot_systemd(&Disk::new(), "a_pass_is_a_unit").passes(LONG);
}
