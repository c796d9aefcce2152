//! P1: a manifest is renamed into place; how long until its VMM begins.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Size;
use crate::fleet::{Fleet, began, monotonic_ns, standin, vm};
use crate::floors::Floor;
use crate::measure::{Figure, Samples, Unit};
use crate::scratch;

/// VMs that run already.
const BESIDE: usize = 20;

pub fn take(size: Size) -> Figure {
    let mut fleet = Fleet::new();
    fleet.declare(BESIDE);
    fleet.host.start_daemon();
    fleet.all_run();

    let root = scratch::folder();
    let (manifests, state) = (root.path().join("m"), root.path().join("s"));
    for folder in [&manifests, &state] {
        fs::create_dir(folder).expect("a folder");
    }
    let floor = Floor::start("start", &[&manifests, &state, standin()]);
    let (mut ours, mut least) = (Samples::default(), Samples::default());
    for run in 0..size.runs {
        let name = vm(BESIDE + run);
        let text = fleet.manifest(&name);
        ours.push(until_began(&fleet.host.manifests(), &fleet.host.vm_dir(&name), &name, &text));
        fs::create_dir(state.join(&name)).expect("a folder");
        least.push(until_began(&manifests, &state.join(&name), &name, &text));
    }
    drop(floor);
    for pid in crate::bed::processes_with(&root.path().display().to_string()) {
        crate::bed::signal(pid, rustix::process::Signal::KILL);
    }

    let mut figure = Figure::new("P1", "A manifest is renamed into place; its VMM begins");
    figure.ratio("median against the floor", ours.median() / least.median(), 1.5);
    figure.ratio("p99 in ms", ours.p99() * 1e3, 5.0);
    figure.add("stead run", Unit::Seconds, ours);
    figure.add("floor: inotify, read, parse, one durable write, exec", Unit::Seconds, least);
    figure
}

/// Renames a manifest into place, and waits for the life that it leads to.
pub fn until_began(manifests: &Path, folder: &Path, name: &str, text: &str) -> Duration {
    let console = folder.join("console.log");
    let before = began(&console);
    let hidden: PathBuf = manifests.join(format!(".{name}"));
    fs::write(&hidden, text).expect("a manifest");
    let renamed = monotonic_ns();
    fs::rename(hidden, manifests.join(format!("{name}.yaml"))).expect("it is renamed");
    let start = Instant::now();
    loop {
        match began(&console) {
            Some(at) if before != Some(at) => {
                return Duration::from_nanos(u64::try_from(at - renamed).expect("it comes after"));
            }
            _ => assert!(start.elapsed() < Duration::from_secs(20), "{name} does not begin"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
