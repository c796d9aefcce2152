//! How costs grow with the number of VMs.

use std::fmt;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::Size;
use crate::fleet::Fleet;
use crate::measure::{Samples, Unit};
use crate::{p1_start, p3_pass};

/// Events that are not counted: what a stead does for the first time, it does slowly.
const WARM_UP: usize = 5;
const EVENTS: usize = 100;
const PASSES: usize = 20;

/// One cost at several numbers of VMs.
pub struct Curve {
    pub id: &'static str,
    pub title: String,
    pub what: &'static str,
    /// VMs, and what was measured among so many.
    pub points: Vec<(usize, Samples)>,
    /// The most that the last point may be of the first: of the whole, or of its share a VM.
    pub target: f64,
    pub is_per_vm: bool,
}

impl Curve {
    /// The last point against the first.
    pub fn ratio(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "at most ten thousand")]
        let value = |(vms, samples): &(usize, Samples)| {
            let median = samples.median();
            if self.is_per_vm { median / *vms as f64 } else { median }
        };
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
    let grow_to = |fleet: &mut Fleet, vms: usize| {
        eprintln!("{vms} VMs ...");
        fleet.declare(vms);
        fleet.all_run();
    };
    // All at once, and measured in turns: what else goes on in the machine is the same for each.
    let begin = |vms: usize| {
        let mut fleet = Fleet::new();
        fleet.host.start_daemon();
        grow_to(&mut fleet, vms);
        p3_pass::settle(&fleet);
        (fleet, vms, Samples::default())
    };
    let mut fleets = [size.vms / 10, size.vms, size.vms * 5].map(begin);
    for run in 0..WARM_UP + EVENTS.min(size.runs) {
        for (fleet, vms, samples) in &mut fleets {
            let took = one_event(fleet, *vms, run);
            if run >= WARM_UP {
                samples.push(took);
            }
        }
    }
    let event = fleets.map(|(_, vms, samples)| (vms, samples)).to_vec();
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
        pass.push((vms, (0..PASSES).map(|_| p3_pass::next_pass(&fleet).whole.as_secs_f64()).collect()));
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

/// How long a new VM among `count` takes to begin.
fn one_event(fleet: &Fleet, count: usize, run: usize) -> Duration {
    let host = &fleet.host;
    let name = format!("event-{count}-{run}");
    p1_start::until_began(&host.manifests(), &host.vm_dir(&name), &name, &fleet.manifest(&name))
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        for (vms, samples) in &self.points {
            writeln!(f, "  {vms} VMs: {}", samples.say(Unit::Seconds))?;
        }
        writeln!(f, "  {}", self.verdict())
    }
}
