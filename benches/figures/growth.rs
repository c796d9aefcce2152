//! How costs grow with the number of VMs.

use crate::Size;
use crate::fleet::Fleet;
use crate::measure::Samples;
use crate::{p1_start, p6_rest};

/// One cost at several numbers of VMs.
pub struct Curve {
    pub id: &'static str,
    pub title: String,
    pub what: &'static str,
    /// VMs and seconds.
    pub points: Vec<(usize, f64)>,
    /// The most that the last point may be of the first.
    pub target: f64,
}

impl Curve {
    /// The last point against the first.
    pub fn ratio(&self) -> f64 {
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return f64::NAN };
        last.1 / first.1
    }

    pub fn verdict(&self) -> String {
        let (ratio, target) = (self.ratio(), self.target);
        let verdict = if ratio <= target { "met" } else { "missed" };
        format!("among the most VMs against the fewest: {ratio:.2}, at most {target} wanted: {verdict}.")
    }
}

/// One event among ever more VMs.
pub fn take(size: Size) -> Vec<Curve> {
    let mut points = Vec::new();
    let mut fleet = Fleet::new();
    fleet.host.start_daemon();
    for count in [size.vms / 10, size.vms, size.vms * 5] {
        eprintln!("{count} VMs ...");
        fleet.declare(count);
        fleet.all_run();
        p6_rest::settle(&fleet);
        points.push((count, one_event(&fleet, count, size.runs)));
    }
    vec![Curve {
        id: "growth-event",
        title: "One manifest changes among ever more VMs".to_owned(),
        what: "from its rename until the new VMM begins",
        points,
        target: 1.1,
    }]
}

/// A new VM among `count`, again and again; the median.
fn one_event(fleet: &Fleet, count: usize, runs: usize) -> f64 {
    let host = &fleet.host;
    let mut samples = Samples::default();
    for run in 0..runs.min(100) {
        let name = format!("event-{count}-{run}");
        samples.push(p1_start::until_began(&host.manifests(), &host.vm_dir(&name), &name, &Fleet::manifest(&name)));
    }
    samples.median()
}
