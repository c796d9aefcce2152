//! P4 and P5: every VM is proven anew, by a command that just began and by the daemon after a crash.

use std::time::{Duration, Instant};

use crate::Size;
use crate::bed::wait;
use crate::fleet::Fleet;
use crate::floors;
use crate::measure::{Figure, Samples, Unit};

const RUNS: usize = 15;
const FLOOR: &str = "floor: three files read and parsed, connect and one GET each, one after the other";

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
    assert_eq!(floors::look_at_each(&fleet.host.manifests(), &fleet.host.state(), &names), size.vms);
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

pub fn adoption(size: Size) -> Figure {
    let mut fleet = fleet(size);
    let lives: Vec<_> = fleet.first(size.vms).iter().map(|name| fleet.host.running(name)).collect();
    let (mut ours, mut floor) = (Samples::default(), Samples::default());
    for _ in 0..RUNS.min(size.runs) {
        fleet.host.kill_daemon();
        let before = full_passes(&fleet);
        let start = Instant::now();
        fleet.host.start_daemon_unready();
        wait("all are adopted", || (full_passes(&fleet) > before).then_some(()));
        ours.push(start.elapsed());
        floor.push(least(&fleet, size));
    }
    let now: Vec<_> = fleet.first(size.vms).iter().map(|name| fleet.host.running(name)).collect();
    assert_eq!(now, lives, "the same lives");
    let mut figure = Figure::new("P5", format!("stead is killed and started again; all {} VMs are adopted", size.vms));
    figure.ratio("median against the floor", ours.median() / floor.median(), 1.3);
    figure.add("stead run, from exec until its first full pass is through", Unit::Seconds, ours);
    figure.add(FLOOR, Unit::Seconds, floor);
    figure
}

fn full_passes(fleet: &Fleet) -> usize {
    fleet.host.log().matches("full pass").count()
}
