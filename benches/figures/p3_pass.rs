//! P3: a full pass that finds nothing to do, in the daemon.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Size;
use crate::fleet::Fleet;
use crate::floors;
use crate::measure::{Figure, Samples, Unit};

const RUNS: usize = 30;

pub fn take(size: Size) -> Figure {
    let mut fleet = Fleet::new().with_taps();
    fleet.declare(size.vms);
    fleet.host.start_daemon();
    fleet.all_run();
    make_passes(&mut fleet);
    let files: Vec<PathBuf> =
        fleet.first(size.vms).iter().map(|name| fleet.host.manifests().join(format!("{name}.yaml"))).collect();
    let (mut ours, mut least, mut peers) = (Samples::default(), Samples::default(), Samples::default());
    let (mut listing, mut glance) = (Samples::default(), Samples::default());
    for _ in 0..RUNS.min(size.runs) {
        let pass = next_pass(&fleet);
        ours.push(pass.whole);
        listing.push(pass.listing);
        glance.push(pass.glance);
        let start = Instant::now();
        assert!(floors::dumps(&files) > size.vms);
        least.push(start.elapsed());
        let start = Instant::now();
        let pgrep = Command::new("pgrep").args(["-f", "no such vm"]).stdout(Stdio::null()).status().expect("pgrep");
        peers.push(start.elapsed());
        assert_eq!(pgrep.code(), Some(1), "it finds nothing");
    }
    let mut figure = Figure::new("P3", format!("A full pass over {} VMs that finds nothing to do", size.vms));
    figure.ratio("median against the floor", ours.median() / least.median(), 1.5);
    figure.ratio("share of one `pgrep -f`", ours.median() / peers.median(), 1.0 / 40.0);
    figure.add("stead run, by its own clock", Unit::Seconds, ours);
    figure.add("of which it lists the manifests and the state", Unit::Seconds, listing);
    figure.add("of which, meanwhile, it glances at each VM", Unit::Seconds, glance);
    figure.add("floor: stat of each manifest, one dump of links, loops and dm devices", Unit::Seconds, least);
    figure.add("the peers' way: one `pgrep -f`", Unit::Seconds, peers);
    figure
}

/// Has the daemon begin anew, and make a full pass about once a second.
pub fn make_passes(fleet: &mut Fleet) {
    fleet.host.set_env("STEAD_RESYNC", "1s");
    fleet.host.kill_daemon();
    fleet.host.start_daemon();
}

/// What the daemon's log says that a pass took.
pub struct Pass {
    pub whole: Duration,
    listing: Duration,
    glance: Duration,
}

/// The next quick full pass that finds nothing to do.
pub fn next_pass(fleet: &Fleet) -> Pass {
    let seen = passes(fleet).len();
    let start = Instant::now();
    loop {
        if let Some(pass) = passes(fleet).into_iter().nth(seen) {
            return pass;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "no pass; log:\n{}", fleet.host.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn passes(fleet: &Fleet) -> Vec<Pass> {
    let log = fleet.host.log();
    let quick = log.lines().filter(|line| line.contains("full pass") && line.contains("depth=quick"));
    let pass = |line: &str| {
        let took = |name: &str| {
            let value = line.split_once(&format!(" {name}="))?.1.split_whitespace().next()?;
            Some(Duration::from_micros(value.parse().ok()?))
        };
        Some(Pass { whole: took("micros")?, listing: took("listing_micros")?, glance: took("glance_micros")? })
    };
    quick.filter(|line| line.contains("turns=0")).filter_map(pass).collect()
}

/// Waits until the daemon is at rest.
pub fn settle(fleet: &Fleet) {
    let mut last = None;
    for _ in 0..200 {
        let now = crate::p6_rest::switches(fleet.host.daemon_pid());
        if last == Some(now) {
            return;
        }
        last = Some(now);
        std::thread::sleep(Duration::from_millis(300));
    }
    panic!("stead does not come to rest; log:\n{}", fleet.host.log());
}
