//! P4: every VM is proven anew by a command that just began.

use std::time::{Duration, Instant};

use crate::Size;
use crate::fleet::Fleet;
use crate::floors;
use crate::measure::{Figure, Samples, Unit};

const RUNS: usize = 15;
const FLOOR: &str = "floor: read, parse, connect and one GET each, one after the other";

fn fleet(size: Size) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.declare(size.vms);
    fleet.host.start_daemon();
    fleet.all_run();
    fleet
}

fn least(fleet: &Fleet, size: Size) -> Duration {
    let names = fleet.first(size.vms);
    let start = Instant::now();
    assert_eq!(floors::look_at_each(&fleet.host.state(), &names), size.vms);
    start.elapsed()
}

pub fn once(size: Size) -> Figure {
    let mut fleet = fleet(size);
    assert_eq!(fleet.host.stop_daemon(), Some(0));
    fleet.once();
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..RUNS.min(size.runs) {
        ours.push(fleet.once());
        floor.push(least(&fleet, size));
    }
    let mut figure = Figure::new("P4", format!("`stead reconcile --once`, cold, over {} VMs", size.vms));
    figure.ratio("median against the floor", ours.median() / floor.median(), 1.1);
    figure.add("stead reconcile --once, from exec to exit", Unit::Seconds, ours);
    figure.add(FLOOR, Unit::Seconds, floor);
    figure
}
