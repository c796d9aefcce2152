//! One `stead run`, a change a second, and all kinds of trouble for hours: it becomes no larger, holds no more files, runs no
//! more threads and wakes no more often than it did when it was warm.
//!
//! A slope is found by comparing the middle third of the run with its last third, each by its median: what grows with time
//! grows between them, and what is only noise does not. `make soak HOURS=n` runs it for so long; without, the run is a
//! short one, with more changes a second.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use stead::host::sim::Random;

use crate::bed::{Host, Vmm, is_alive, manifest, signal};

const SHORT: Duration = Duration::from_secs(24);
const CHANGES_PER_SECOND_SHORT: u32 = 15;
/// VMs that take turns in being changed.
const VMS: usize = 8;
/// What a Rust allocator and the kernel's accounting of pages vary by, without any leak.
const RSS_NOISE: u64 = 3 << 20;

/// Two VMs more, of each of which its process is open three times at most. What leaks with each change is a hundred.
const FDS_NOISE: u64 = 6;

/// What one look at the daemon found.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    changes: u64,
    rss: u64,
    fds: u64,
    threads: u64,
    /// Voluntary context switches so far: each is the end of a wait.
    wakeups: u64,
}

impl Sample {
    fn take(pid: u32, start: Instant, changes: u64) -> Self {
        let status = |task: PathBuf| fs::read_to_string(task.join("status")).unwrap_or_default();
        let number = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        let process = PathBuf::from(format!("/proc/{pid}"));
        let all = status(process.clone());
        let tasks = fs::read_dir(process.join("task")).unwrap().flatten();
        let switches = tasks.map(|task| number(&status(task.path()), "voluntary_ctxt_switches:"));
        Self {
            at: start.elapsed(),
            changes,
            rss: number(&all, "VmRSS:") << 10,
            fds: fs::read_dir(process.join("fd")).unwrap().count() as u64,
            threads: number(&all, "Threads:"),
            wakeups: switches.sum(),
        }
    }
}

/// A host on which something happens all the time.
struct Weather {
    host: Host,
    random: Random,
    declared: BTreeMap<String, String>,
    /// VMMs that were stopped, to be let go on.
    stopped: Vec<i32>,
    away: bool,
    changes: u64,
}

impl Weather {
    fn new() -> Self {
        let mut host = Host::new().with_env("STEAD_API_TIMEOUT", "500ms").with_env("STEAD_BACKOFF_MAX", "2s");
        host.apply("stays.yaml", &manifest("stays", Vmm::Firecracker));
        host.start_daemon();
        host.running("stays");
        let random = Random::new(5);
        Self { host, random, declared: BTreeMap::new(), stopped: Vec::new(), away: false, changes: 0 }
    }

    fn vm(&mut self) -> String {
        format!("vm-{}", self.random.below(VMS as u64))
    }

    fn some_vmm(&mut self) -> Option<i32> {
        let vmms = self.host.processes();
        self.random.choose(&vmms).copied().filter(|pid| *pid != self.host.daemon_pid().cast_signed())
    }

    fn change(&mut self) {
        self.changes += 1;
        self.clear_up();
        let (name, kind) = (self.vm(), self.random.below(20));
        let file = format!("{name}.yaml");
        match kind {
            0..7 => {
                let text = manifest(&name, Vmm::Firecracker).replace("tier: one", &format!("tier: t{}", self.changes));
                let text = text.replace("4Mi", &format!("{}Mi", 4 + self.random.below(2)));
                self.host.apply(&file, &text);
                self.declared.insert(name, text);
            }
            7..11 => {
                if self.declared.remove(&name).is_some() {
                    self.host.remove(&file);
                }
            }
            11 | 12 => {
                if let Some(pid) = self.some_vmm() {
                    signal(pid, Signal::KILL);
                }
            }
            13 => {
                if let Some(pid) = self.some_vmm() {
                    signal(pid, Signal::STOP);
                    self.stopped.push(pid);
                }
            }
            14 => {
                // Half a manifest, which stays until the next change of this VM.
                if let Some(text) = self.declared.get(&name) {
                    self.host.apply(&file, &text[..text.len() / 2]);
                }
            }
            15 => {
                fs::rename(self.host.manifests(), self.host.root.path().join("away")).unwrap();
                self.away = true;
            }
            16 => {
                // Records rot.
                let file =
                    ["handles.json", "ledger.json", "status.json"][usize::try_from(self.random.below(3)).unwrap()];
                let path = self.host.vm_dir(&name).join(file);
                if path.exists() && self.declared.contains_key(&name) {
                    fs::write(path, "{").unwrap();
                }
            }
            17 => {
                let editors = self.host.manifests().join(".swap");
                for count in 0..300 {
                    fs::write(&editors, count.to_string()).unwrap();
                }
                fs::remove_file(editors).unwrap();
            }
            18 => {
                for args in [&["get"][..], &["describe", &name], &["gc"], &["restart", &name]] {
                    drop(self.host.run(args));
                }
            }
            // Cron comes by, and is told that the daemon is there.
            _ => drop(self.host.run(&["reconcile", "--once"])),
        }
    }

    fn clear_up(&mut self) {
        if std::mem::take(&mut self.away) {
            fs::rename(self.host.root.path().join("away"), self.host.manifests()).unwrap();
        }
        for pid in self.stopped.drain(..) {
            signal(pid, Signal::CONT);
        }
    }

    /// Everything is declared well again, and becomes so.
    fn ends(&mut self) {
        self.clear_up();
        for (name, text) in &self.declared {
            self.host.apply(&format!("{name}.yaml"), text);
        }
        for name in self.declared.keys() {
            self.host.running(name);
        }
    }
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values[values.len() / 2]
}

/// What grew between the middle and the last third.
fn slopes(samples: &[Sample]) -> Vec<String> {
    let third = samples.len() / 3;
    let (middle, last) = (&samples[third..2 * third], &samples[2 * third..]);
    let of = |part: &[Sample], value: fn(&Sample) -> u64| median(part.iter().map(value).collect());
    let pairs = |value: fn(&Sample) -> u64| (of(middle, value), of(last, value));
    // Wakeups are those of a change: a run is as long as it is.
    let rate = |part: &[Sample]| {
        let (first, last) = (part.first().unwrap(), part.last().unwrap());
        (last.wakeups - first.wakeups) / (last.changes - first.changes).max(1)
    };
    let checked = [
        ("RSS in bytes", pairs(|sample| sample.rss), RSS_NOISE),
        ("open files", pairs(|sample| sample.fds), FDS_NOISE),
        ("threads", pairs(|sample| sample.threads), 2),
        ("wakeups a change", (rate(middle), rate(last)), rate(middle) + 100),
    ];
    for (what, (before, after), _) in &checked {
        println!("{what}: {before}, then {after}");
    }
    let grown = checked.iter().filter(|(_, (before, after), noise)| *after > before + noise);
    grown.map(|(what, (before, after), _)| format!("{what}: {before}, then {after}")).collect()
}

#[test]
fn a_daemon_in_all_weathers_does_not_grow() {
    let hours: Option<f64> = std::env::var("STEAD_SOAK_HOURS").ok().map(|text| text.parse().unwrap());
    let length = hours.map_or(SHORT, |hours| Duration::from_secs_f64(hours * 3600.0));
    let pause =
        if hours.is_some() { Duration::from_secs(1) } else { Duration::from_secs(1) / CHANGES_PER_SECOND_SHORT };
    let mut weather = Weather::new();
    let pid = weather.host.daemon_pid();
    let stays = weather.host.running("stays");
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed() < length {
        let next = Instant::now() + pause;
        weather.change();
        assert!(is_alive(pid.cast_signed()), "stead ended");
        samples.push(Sample::take(pid, start, weather.changes));
        if samples.len().is_multiple_of(600) {
            println!("{:?}", samples.last().unwrap());
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let last = samples.last().unwrap();
    println!("{} changes in {:?}", last.changes, last.at);
    let grown = slopes(&samples);
    weather.ends();
    println!("stays: {:?} at first, {:?} now", stays, weather.host.life("stays"));
    assert_eq!(grown, Vec::<String>::new(), "it grows");
}

#[test]
fn a_slope_is_found_and_noise_is_not() {
    let sample = |at: u64, rss: u64, fds: u64| Sample {
        at: Duration::from_secs(at),
        changes: at,
        rss,
        fds,
        threads: 9,
        wakeups: at * 100,
    };
    let flat: Vec<Sample> = (0..90).map(|at| sample(at, (20 << 20) + (at % 7) * 4096, 20 + at % 3)).collect();
    assert_eq!(slopes(&flat), Vec::<String>::new());
    let leaking: Vec<Sample> = (0..90).map(|at| sample(at, (20 << 20) + at * (200 << 10), 20 + at / 4)).collect();
    assert_eq!(slopes(&leaking).len(), 2, "memory and files");
}
