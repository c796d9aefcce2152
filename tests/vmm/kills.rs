//! `stead run` is killed again and again while VMs come, change, crash and go. What nobody changed is not touched, no VM
//! ever has two VMMs, and in the end the host is as declared.
//!
//! `STEAD_KILLS=n` kills it n times; `STEAD_SEED=n` chooses other moments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use stead::host::sim::Random;

use crate::bed::{Host, Life, Vmm, is_alive, manifest, signal};

/// Kills of a run when nothing says how many.
const KILLS: u64 = 40;
/// VMs that nobody changes.
const CALM: usize = 2;
/// VMs of which one changes between two kills.
const CHANGING: [&str; 4] = ["a", "b", "c", "d"];

/// Looks all the time whether two VMMs live for one VM.
struct Watcher {
    ends: Arc<AtomicBool>,
    looks: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<BTreeSet<String>>>,
}

impl Watcher {
    fn new(host: &Host) -> Self {
        let (ends, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let root = host.root.path().display().to_string();
        let (is_over, count) = (Arc::clone(&ends), Arc::clone(&looks));
        let watch = move || {
            let mut doubled = BTreeSet::new();
            while !is_over.load(Ordering::SeqCst) {
                doubled.extend(doubled_vmms(&root));
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(10));
            }
            doubled
        };
        Self { ends, looks, thread: Some(std::thread::spawn(watch)) }
    }

    /// The VMs that had two VMMs at once, and how often it looked.
    fn end(mut self) -> (BTreeSet<String>, usize) {
        self.ends.store(true, Ordering::SeqCst);
        let doubled = self.thread.take().expect("it ends once").join().unwrap();
        (doubled, self.looks.load(Ordering::SeqCst))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
    }
}

/// The uids for which two processes live. A VMM is told apart from the fork that is about to become it by its arguments.
fn doubled_vmms(root: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, i32> = BTreeMap::new();
    let mut doubled = BTreeSet::new();
    for pid in crate::bed::processes_with(root) {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words: Vec<_> = argv.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let id = words.iter().position(|word| word == "--id" || word == "-name").and_then(|at| words.get(at + 1));
        let Some((uid, _)) = id.and_then(|id| id.rsplit_once('-')) else { continue };
        if let Some(other) = seen.insert(uid.to_owned(), pid)
            && is_alive(other)
            && is_alive(pid)
        {
            doubled.insert(format!("{uid}: pids {other} and {pid}"));
        }
    }
    doubled
}

struct Storm {
    host: Host,
    random: Random,
    calm: BTreeMap<String, Life>,
    /// What is declared of those that change.
    declared: BTreeMap<&'static str, String>,
}

impl Storm {
    fn new(vmm: Vmm, seed: u64) -> Self {
        let host = Host::new();
        let names: Vec<String> = (0..CALM).map(|number| format!("calm-{number}")).collect();
        for name in &names {
            host.apply(&format!("{name}.yaml"), &manifest(name, vmm));
        }
        host.once(0);
        let calm = names.into_iter().map(|name| (name.clone(), host.running(&name))).collect();
        Self { host, random: Random::new(seed), calm, declared: BTreeMap::new() }
    }

    /// A VM comes, changes or goes, or its VMM dies.
    fn change(&mut self, vmm: Vmm) {
        let name = *self.random.choose(&CHANGING).expect("there are some");
        let file = format!("{name}.yaml");
        match self.random.below(4) {
            0 if self.declared.contains_key(name) => {
                self.declared.remove(name);
                self.host.remove(&file);
            }
            1 => {
                if let Some(life) = self.host.life(name) {
                    signal(life.pid, Signal::KILL);
                }
            }
            _ => {
                let text = manifest(name, vmm).replace("tier: one", &format!("tier: t{}", self.random.below(3)));
                let memory = if vmm == Vmm::Qemu { "128Mi" } else { "4Mi" };
                let text = text
                    .replace(memory, &format!("{}Mi", self.random.below(2) + if vmm == Vmm::Qemu { 128 } else { 4 }));
                self.host.apply(&file, &text);
                self.declared.insert(name, text);
            }
        }
    }

    #[track_caller]
    fn the_calm_are_as_they_were(&self, when: &str) {
        for (name, life) in &self.calm {
            let now = self.host.life(name);
            assert_eq!(now.as_ref(), Some(life), "{when}: {name} was touched");
        }
    }

    /// One daemon, which is killed `after` it began.
    fn killed_after(&mut self, after: Duration) {
        self.host.start_daemon_unready();
        std::thread::sleep(after);
        self.host.kill_daemon();
    }
}

fn storm(vmm: Vmm, kills: u64, longest: Duration) {
    let seed = std::env::var("STEAD_SEED").map_or(1, |text| text.parse().unwrap());
    let mut storm = Storm::new(vmm, seed);
    let watcher = Watcher::new(&storm.host);
    let longest = u64::try_from(longest.as_millis()).unwrap();
    for kill in 0..kills {
        storm.change(vmm);
        let after = Duration::from_millis(storm.random.below(longest));
        storm.killed_after(after);
        storm.the_calm_are_as_they_were(&format!("seed {seed}, kill {kill}"));
    }
    let (doubled, looks) = watcher.end();
    assert_eq!(doubled, BTreeSet::new(), "two VMMs at once");
    // Whoever died too often waits for its next start: the daemon has the time for that.
    storm.host.start_daemon();
    for name in storm.declared.keys() {
        storm.host.running(name);
    }
    storm.the_calm_are_as_they_were("the end");
    assert_eq!(storm.host.stop_daemon(), Some(0));
    storm.host.once(0);
    let vms = storm.calm.len() + storm.declared.len();
    let (lives, sockets) = (storm.host.processes().len(), storm.host.sockets().len());
    assert_eq!(lives, vms, "a VMM for each VM that is declared: {:?}", storm.declared.keys());
    let per_vm = if vmm == Vmm::Qemu { 2 } else { 1 };
    assert_eq!(sockets, vms * per_vm, "{:?}", storm.host.sockets());
    println!("{kills} kills, {looks} looks for doubled VMMs");
}

fn kills() -> u64 {
    std::env::var("STEAD_KILLS").map_or(KILLS, |text| text.parse().unwrap())
}

#[test]
fn kills_at_any_moment_lose_double_and_touch_nothing() {
    storm(Vmm::Firecracker, kills(), Duration::from_millis(150));
}

#[test]
fn kills_at_any_moment_lose_double_and_touch_nothing_with_qemu() {
    // Each start takes some of its own time.
    storm(Vmm::Qemu, kills() / 4, Duration::from_millis(600));
}
