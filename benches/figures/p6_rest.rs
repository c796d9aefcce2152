//! P6 and P7: what a stead at rest costs.

use std::fs;
use std::time::Duration;

use crate::Size;
use crate::fleet::Fleet;
use crate::floors::Floor;
use crate::measure::{Figure, Unit};
use crate::p3_pass::settle;

/// Threads that turns had end when they had no work for ten seconds (tokio's `thread_keep_alive`); what they counted goes
/// with them.
const POOL_KEEPS: Duration = Duration::from_secs(11);

fn at_rest(size: Size) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.declare(size.vms);
    fleet.host.start_daemon();
    fleet.all_run();
    settle(&fleet);
    fleet
}

pub fn wakeups(size: Size) -> Figure {
    let fleet = at_rest(size);
    std::thread::sleep(POOL_KEEPS);
    settle(&fleet);
    let before = switches(fleet.host.daemon_pid());
    std::thread::sleep(Duration::from_secs(size.rest));
    let count = switches(fleet.host.daemon_pid()) - before;
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let a_minute = count as f64 * 60.0 / size.rest as f64;
    let mut figure = Figure::new("P6", format!("Wakeups at rest, {} VMs, {} s", size.vms, size.rest));
    figure.ratio("wakeups a minute", a_minute, 1.0);
    figure.add("context switches of all threads", Unit::Count, std::iter::once(a_minute).collect());
    figure
}

pub fn memory(size: Size) -> Figure {
    // One that just began, as after an upgrade; who started all VMs itself holds what malloc kept.
    let mut fleet = at_rest(size);
    assert_eq!(fleet.host.stop_daemon(), Some(0));
    fleet.host.start_daemon();
    settle(&fleet);
    let floor = Floor::start("memory", &[&fleet.host.manifests()]);
    let (ours, least) = (resident(fleet.host.daemon_pid()), resident(floor.pid()));
    drop(floor);
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let per_vm = (ours - least) / size.vms as f64;
    let mut figure = Figure::new("P7", format!("Resident memory, {} VMs", size.vms));
    figure.ratio("MiB in all", ours / f64::from(1 << 20), 8.0);
    figure.ratio("KiB a VM more than the floor", per_vm / 1024.0, 3.0);
    figure.add("stead run", Unit::Bytes, std::iter::once(ours).collect());
    figure.add("floor: a program that parses and keeps the manifests", Unit::Bytes, std::iter::once(least).collect());
    figure
}

/// How often the threads of a process gave up the CPU or lost it, so far.
pub fn switches(pid: u32) -> u64 {
    let of = |status: String| -> u64 {
        let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| of(fs::read_to_string(task.path().join("status")).unwrap_or_default())).sum()
}

/// VmRSS in bytes (proc_pid_status(5)).
#[expect(clippy::cast_precision_loss, reason = "less than 2^52")]
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") as f64 * 1024.0
}
