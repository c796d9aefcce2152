//! P2: a VMM is killed; how long until what follows begins.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::process::Signal;

use crate::Size;
use crate::bed::{signal, wait};
use crate::fleet::{Fleet, standin, vm};
use crate::floors::Floor;
use crate::measure::{Figure, Samples, Unit};
use crate::scratch;

pub fn take(size: Size) -> Figure {
    // One death at a time, and nothing else: none that is still torn down or comes back makes its successor wait.
    let mut fleet = Fleet::new().never_restarted();
    fleet.declare(size.vms);
    fleet.host.start_daemon();
    fleet.all_run();
    let root = scratch::folder();
    let (mut ours, mut least) = (Samples::default(), Samples::default());
    for run in 0..size.runs.min(size.vms) {
        let name = vm(run);
        let pid = fleet.host.running(&name).pid;
        ours.push(until_write(pid, &fleet.host.vm_dir(&name)));
        wait("it is torn down", || (!fleet.host.handles_path(&name).exists()).then_some(()));
        least.push(bare(root.path(), run));
    }
    let mut figure = Figure::new("P2", format!("A VMM of {} is killed; its teardown begins", size.vms));
    figure.ratio("median against the floor", ours.median() / least.median(), 2.0);
    figure.add("stead run: the first write of the teardown", Unit::Seconds, ours);
    figure.add("floor: a pidfd becomes readable, and a file is made", Unit::Seconds, least);
    figure
}

/// Kills a process, and waits until something is made in a folder.
fn until_write(pid: i32, folder: &Path) -> Duration {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(folder, AddWatchFlags::IN_CREATE).expect("a watch");
    let killed = Instant::now();
    signal(pid, Signal::KILL);
    inotify.read_events().expect("an event");
    killed.elapsed()
}

fn bare(root: &Path, run: usize) -> Duration {
    let folder = root.join(run.to_string());
    std::fs::create_dir(&folder).expect("a folder");
    let socket: PathBuf = root.join(format!("{run}.sock"));
    let null = File::open("/dev/null").expect("it is there");
    let mut child = Command::new(standin()).arg("--api-sock").arg(socket).stdout(null).spawn().expect("a stand-in");
    let floor = Floor::start("death", &[Path::new(&child.id().to_string()), &folder.join("first")]);
    let took = until_write(child.id().cast_signed(), &folder);
    drop(floor);
    child.wait().expect("it was killed");
    took
}
