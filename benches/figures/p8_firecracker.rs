//! P8: real Firecracker, against a bare loop that does the same; and the removal of many taps.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use stead::config::default_starting;
use stead::host::HostOps;
use stead::host::devices::{DeviceOps, TapRemoval};
use stead::host::linux::{LinuxHost, LinuxHostConfig};

use crate::Size;
use crate::bed::{Host, Vmm, bed, manifest, wait};
use crate::fleet::vm;
use crate::measure::{Figure, Samples, Unit};
use crate::scratch;

const BURSTS: usize = 5;
/// How long nothing is measured after a start, and after a burst and its end: stead has told of it by then, and the kernel has
/// let go of the VMs. Whoever came next would pay for that.
const AFTER_A_START: Duration = Duration::from_millis(20);
const AFTER_A_BURST: Duration = Duration::from_millis(500);

pub fn take(size: Size) -> Figure {
    let mut figure = Figure::new("P8", "Real Firecracker: one start, a burst, and the removal of taps");
    starts(size, &mut figure);
    burst(size, &mut figure);
    taps(size, &mut figure);
    figure
}

fn starts(size: Size, figure: &mut Figure) {
    let mut host = scratch::host();
    host.apply("first.yaml", &manifest("first", Vmm::Firecracker));
    host.start_daemon();
    host.running("first");
    let root = scratch::folder();
    let (mut ours, mut least) = (Samples::default(), Samples::default());
    for run in 0..size.runs.min(100) {
        ours.push(until_recorded(&host, &vm(run)));
        sleep(AFTER_A_START);
        let start = Instant::now();
        let mut child = bare_start(&root.path().join(run.to_string()));
        least.push(start.elapsed());
        child.kill().and_then(|()| child.wait()).expect("a child");
        sleep(AFTER_A_START);
    }
    figure.ratio("one start, median against the bare loop", ours.median() / least.median(), 1.05);
    figure.add("one start: from the manifest's rename until the guest runs and is on record", Unit::Seconds, ours);
    figure.add("bare loop: from spawn until GET / says Running", Unit::Seconds, least);
}

/// Declares a VM, and waits until its record says that its guest runs.
fn until_recorded(host: &Host, name: &str) -> Duration {
    let folder = host.vm_dir(name);
    fs::create_dir(&folder).expect("a folder");
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(&folder, AddWatchFlags::IN_MOVED_TO).expect("a watch");
    let text = manifest(name, Vmm::Firecracker);
    let start = Instant::now();
    host.apply(&format!("{name}.yaml"), &text);
    loop {
        inotify.read_events().expect("an event");
        let took = start.elapsed();
        if host.handles(name).is_some_and(|handles| handles["phase"] == "running") {
            return took;
        }
    }
}

/// Spawns Firecracker as stead does, and returns once its guest runs.
#[expect(clippy::zombie_processes, reason = "whoever asked for it kills it and waits for it")]
fn bare_start(folder: &Path) -> Child {
    fs::create_dir(folder).expect("a folder");
    let (socket, config) = (folder.join("sock"), folder.join("config.json"));
    let kernel = bed("guest/ctrlaltdel.elf");
    let text = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{}","boot_args":"console=ttyS0"}},"drives":[],"machine-config":{{"vcpu_count":1,"mem_size_mib":4}}}}"#,
        kernel.display()
    );
    fs::write(&config, text).expect("a file");
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
    inotify.add_watch(folder, AddWatchFlags::IN_CREATE).expect("a watch");
    let mut command = Command::new(bed("bin/firecracker"));
    command.args(["--id", "bare", "--level", "Error", "--api-sock"]).arg(&socket).arg("--config-file").arg(&config);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("firecracker");
    while !socket.exists() {
        inotify.read_events().expect("an event");
    }
    loop {
        if UnixStream::connect(&socket).is_ok_and(says_running) {
            return child;
        }
    }
}

fn says_running(mut stream: UnixStream) -> bool {
    let mut reply = [0; 1024];
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n");
    let count = asked.and_then(|()| stream.read(&mut reply)).unwrap_or(0);
    reply[..count].windows(7).any(|word| word == b"Running")
}

/// Against the bare loop, and how the rate depends on how many VMs may be starting at once.
fn burst(size: Size, figure: &mut Figure) {
    let count = size.vms.min(100);
    let (mut ours, mut bare) = (Samples::default(), Samples::default());
    let mut by_limit = [1, 2, 4, 8, 16, 64].map(|limit| (limit, Samples::default()));
    for _ in 0..BURSTS.min(size.runs) {
        ours.0.push(rate(count, our_burst(count, None)));
        bare.0.push([4, 8, 16].map(|threads| rate(count, bare_burst(count, threads))).into_iter().fold(0.0, f64::max));
        for (limit, samples) in &mut by_limit {
            samples.0.push(rate(count, our_burst(count, Some(*limit))));
        }
    }
    let of = format!("burst of {count}");
    figure.ratio(format!("{of}: the bare loop's best rate against stead's"), bare.median() / ours.median(), 1.0 / 0.95);
    let best = by_limit.iter().map(|(_, samples)| samples.median()).fold(0.0, f64::max);
    let default = default_starting();
    let what = format!("{of}: the best rate of any start limit against the default of {default}");
    figure.ratio(what, best / ours.median(), 1.05);
    figure.add(format!("{of}, from the daemon's exec"), Unit::PerSecond, ours);
    figure.add("bare loop, the best of 4, 8 and 16 threads", Unit::PerSecond, bare);
    for (limit, samples) in by_limit {
        figure.add(format!("{of}, at most {limit} starting at once"), Unit::PerSecond, samples);
    }
}

/// So many VMs, from the daemon's exec until all are on record as running.
fn our_burst(count: usize, limit: Option<usize>) -> Duration {
    let mut host = scratch::host();
    if let Some(limit) = limit {
        host.set_env("STEAD_PARALLEL_STARTS", &limit.to_string());
    }
    for number in 0..count {
        host.apply(&format!("{}.yaml", vm(number)), &manifest(&vm(number), Vmm::Firecracker));
    }
    sleep(AFTER_A_BURST);
    let start = Instant::now();
    host.start_daemon_unready();
    let mut missing: Vec<String> = (0..count).map(vm).collect();
    wait("all run", || {
        missing.retain(|name| host.handles(name).is_none_or(|handles| handles["phase"] != "running"));
        missing.is_empty().then_some(())
    });
    start.elapsed()
}

/// VMs a second.
#[expect(clippy::cast_precision_loss, reason = "a small number")]
fn rate(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

fn bare_burst(count: usize, threads: usize) -> Duration {
    let root = scratch::folder();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut children = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::SeqCst);
            if number >= count {
                return children;
            }
            children.push(bare_start(&root.path().join(number.to_string())));
        }
    };
    sleep(AFTER_A_BURST);
    let start = Instant::now();
    let children: Vec<Child> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    let took = start.elapsed();
    for mut child in children {
        child.kill().and_then(|()| child.wait()).expect("a child");
    }
    took
}

fn taps(size: Size, figure: &mut Figure) {
    let host = LinuxHost::new(LinuxHostConfig { firecracker: None, qemu: None }).expect("a host");
    let ip = |args: &str| {
        assert!(Command::new("ip").args(args.split(' ')).status().expect("ip").success(), "ip {args}");
    };
    let make = || {
        for number in 0..size.vms {
            host.create_tap(&format!("st{number}"), "tag", None).expect("a tap");
        }
    };
    let (mut ours, mut least) = (Samples::default(), Samples::default());
    for _ in 0..BURSTS.min(size.runs) {
        make();
        let (tell, told) = mpsc::channel();
        let start = Instant::now();
        for number in 0..size.vms {
            let tell = tell.clone();
            let removal = TapRemoval { name: format!("st{number}"), alias: "tag".to_owned() };
            host.remove_taps(vec![removal], Box::new(move |results| tell.send(results).expect("it is waited for")));
        }
        for _ in 0..size.vms {
            assert!(told.recv().expect("it ends").iter().all(Result::is_ok));
        }
        ours.push(start.elapsed());
        make();
        for number in 0..size.vms {
            ip(&format!("link set st{number} group 77"));
        }
        let start = Instant::now();
        ip("link del group 77");
        least.push(start.elapsed());
    }
    figure.ratio(format!("{} taps, median against one group deletion", size.vms), ours.median() / least.median(), 2.0);
    figure.add(format!("{} taps of as many VMs removed", size.vms), Unit::Seconds, ours);
    figure.add("one group deletion", Unit::Seconds, least);
}
