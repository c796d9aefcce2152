//! How costs grow with the number of VMs.

use rustix::process::{Resource, getrlimit};

use crate::Size;
use crate::fleet::Fleet;
use crate::measure::Samples;
use crate::{p1_start, p3_pass};

/// One cost at several numbers of VMs.
pub struct Curve {
    pub id: &'static str,
    pub title: String,
    pub what: &'static str,
    /// VMs and seconds.
    pub points: Vec<(usize, f64)>,
    /// The most that the last point may be of the first: of the whole, or of its share a VM.
    pub target: f64,
    pub is_per_vm: bool,
}

impl Curve {
    /// The last point against the first.
    pub fn ratio(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "at most ten thousand")]
        let value = |(vms, seconds): &(usize, f64)| if self.is_per_vm { seconds / *vms as f64 } else { *seconds };
        let (Some(first), Some(last)) = (self.points.first(), self.points.last()) else { return f64::NAN };
        value(last) / value(first)
    }

    pub fn verdict(&self) -> String {
        let (ratio, target) = (self.ratio(), self.target);
        let verdict = if ratio <= target { "met" } else { "missed" };
        let of =
            if self.is_per_vm { "a VM's share at the most against the fewest" } else { "the most against the fewest" };
        format!("{of}: {ratio:.2}, at most {target} wanted: {verdict}.")
    }
}

/// One event, and a full pass, among ever more VMs.
pub fn take(size: Size) -> Vec<Curve> {
    let mut fleet = Fleet::new();
    fleet.host.start_daemon();
    let grow_to = |fleet: &mut Fleet, vms: usize| {
        eprintln!("{vms} VMs ...");
        fleet.declare(vms);
        fleet.all_run();
    };
    let mut event = Vec::new();
    for vms in [size.vms / 10, size.vms, size.vms * 5] {
        grow_to(&mut fleet, vms);
        p3_pass::settle(&fleet);
        event.push((vms, one_event(&fleet, vms, size.runs)));
    }
    drop(fleet);
    let mut fleet = Fleet::new();
    fleet.host.start_daemon();
    let mut pass = Vec::new();
    for vms in [size.vms, size.vms * 3, (size.vms * 10).min(most_vms())] {
        // Not while it makes a pass each second.
        fleet.host.set_env("STEAD_RESYNC", "10m");
        fleet.host.kill_daemon();
        fleet.host.start_daemon();
        grow_to(&mut fleet, vms);
        p3_pass::make_passes(&mut fleet);
        let times = (0..10).map(|_| p3_pass::next_pass(&fleet).as_secs_f64());
        pass.push((vms, times.collect::<Samples>().median()));
    }
    vec![
        Curve {
            id: "growth-event",
            title: "One manifest changes among ever more VMs".to_owned(),
            what: "from its rename until the new VMM begins",
            points: event,
            target: 1.1,
            is_per_vm: false,
        },
        Curve {
            id: "growth-pass",
            title: "A full pass over ever more VMs".to_owned(),
            what: "a pass that finds nothing to do",
            points: pass,
            target: 1.1,
            is_per_vm: true,
        },
    ]
}

/// So many VMs at most may be watched with the open files of this process: each takes two. A few hundred are for all else.
fn most_vms() -> usize {
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    usize::try_from(limit.saturating_sub(400) / 2).unwrap_or(usize::MAX)
}

/// A new VM among `count`, again and again; the median.
fn one_event(fleet: &Fleet, count: usize, runs: usize) -> f64 {
    let host = &fleet.host;
    let mut samples = Samples::default();
    for run in 0..runs.min(100) {
        let name = format!("event-{count}-{run}");
        samples.push(p1_start::until_began(&host.manifests(), &host.vm_dir(&name), &name, &fleet.manifest(&name)));
    }
    samples.median()
}
