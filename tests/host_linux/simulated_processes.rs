//! The simulated host's processes against real ones: a real Firecracker beside a simulated one, started, asked, paused,
//! stopped, killed and robbed of its socket.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use stead::host::sim::Random;
use stead::host::{
    GuestState, HostOps, LockProbe, ProcessHandle, SocketPeer, SpawnError, SpawnRequest, VmmCommand, VmmError,
};
use stead::spec::VmmKind;

use crate::bed::{BOUND, Vm, bed, ended, wait};
use crate::differential::{self, Simulated, below, compare};
use crate::simulated::{Both, RUNS, runs};

const CALLS: usize = 40;
/// Long enough for a VMM on a busy machine, and not for one that is stopped.
const API: Duration = Duration::from_secs(5);
const STOPPED: Duration = Duration::from_millis(100);

/// One call, or something that happens to processes. A process is named by the number of the spawn that made it.
#[derive(Debug, Clone)]
enum Call {
    Spawn {
        vm: usize,
        life: u64,
        what: What,
        cgroup: Option<String>,
    },
    ProbeLock(usize),
    /// Somebody removes the lock's file.
    LoseLock(usize),
    Open(usize),
    Inspect(usize),
    Watch(usize),
    /// Which ends were told so far.
    Told,
    ExitStatus(usize),
    Kill(usize),
    Peer {
        vm: usize,
        life: u64,
    },
    Query {
        vm: usize,
        life: u64,
        of: usize,
    },
    Command {
        vm: usize,
        life: u64,
        of: usize,
        command: VmmCommand,
    },
    /// It is stopped, as by SIGSTOP, or goes on.
    Stop(usize, bool),
    /// Somebody else listens on the socket, or no longer.
    Stranger {
        vm: usize,
        life: u64,
    },
    StrangerLeaves,
    MakeCgroup(String),
    KillCgroup(String),
    RemoveCgroup(String),
    Cgroup(String),
}

/// What is spawned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Firecracker,
    /// Its configuration is not there.
    Unconfigured,
    Missing,
}

fn call(random: &mut Random) -> Call {
    let vm = below(random, 2);
    let life = 1 + random.below(2);
    let of = below(random, 4);
    let group = format!("stead-test-{}-processes/s/{}", std::process::id(), ["a", "b"][vm]);
    let commands = [VmmCommand::Pause, VmmCommand::Resume, VmmCommand::Shutdown];
    match below(random, 26) {
        0..4 => {
            let what = [What::Firecracker, What::Firecracker, What::Firecracker, What::Unconfigured, What::Missing];
            let cgroup = (below(random, 3) == 0).then_some(group);
            Call::Spawn { vm, life, what: what[below(random, 5)], cgroup }
        }
        4 | 5 => Call::ProbeLock(vm),
        6 => Call::LoseLock(vm),
        7 => Call::Open(of),
        8 => Call::Inspect(of),
        9 => Call::Watch(of),
        10 => Call::Told,
        11 => Call::ExitStatus(of),
        12 | 13 => Call::Kill(of),
        14 | 15 => Call::Peer { vm, life },
        16 | 17 => Call::Query { vm, life, of },
        18 | 19 => Call::Command { vm, life, of, command: commands[below(random, 3)] },
        20 => Call::Stop(of, below(random, 2) == 0),
        21 => Call::Stranger { vm, life },
        22 => Call::StrangerLeaves,
        23 => Call::MakeCgroup(group),
        24 => [Call::KillCgroup(group.clone()), Call::RemoveCgroup(group)][below(random, 2)].clone(),
        _ => Call::Cgroup(group),
    }
}

fn is_look(call: &Call) -> bool {
    matches!(
        call,
        Call::ProbeLock(_)
            | Call::Open(_)
            | Call::Inspect(_)
            | Call::Told
            | Call::ExitStatus(_)
            | Call::Peer { .. }
            | Call::Cgroup(_)
    )
}

/// One of the two hosts, and whom the spawns made there.
struct Side<'a> {
    host: &'a dyn HostOps,
    machine: Simulated<'a>,
    root: PathBuf,
    spawned: Vec<ProcessHandle>,
    stopped: BTreeSet<usize>,
    /// Whose guests were asked to shut down, by pid.
    asked: BTreeSet<i32>,
    told: Arc<Mutex<BTreeSet<usize>>>,
    stranger: Option<Stranger>,
    /// Firecracker 1.12.1 blocks for good now and then when its guest is gone before it has answered the request that
    /// made it go: its threads wait for each other. That is no difference between hosts, and the end of this run.
    is_blocked: bool,
}

enum Stranger {
    Real(UnixListener),
    Simulated(i32),
}

impl<'a> Side<'a> {
    fn new(host: &'a dyn HostOps, machine: Simulated<'a>, root: &Path) -> Self {
        let (told, root) = (Arc::default(), root.to_owned());
        Self {
            host,
            machine,
            root,
            spawned: Vec::new(),
            stopped: BTreeSet::new(),
            asked: BTreeSet::new(),
            told,
            stranger: None,
            is_blocked: false,
        }
    }

    fn file(&self, vm: usize, name: &str) -> PathBuf {
        self.root.join("s").join(["a", "b"][vm]).join(name)
    }

    fn socket(&self, vm: usize, life: u64) -> PathBuf {
        self.root.join("r").join(format!("{}-{life}.sock", ["a", "b"][vm]))
    }

    /// Whose pid this is, by the last spawn that had it.
    fn whose(&self, pid: i32) -> String {
        let found = self.spawned.iter().rposition(|process| process.identity.pid == pid);
        found.map_or_else(|| "a stranger".to_owned(), |number| format!("process {number}"))
    }

    fn spawn(&mut self, vm: usize, life: u64, what: What, cgroup: Option<String>) -> String {
        // So few that the simulated host has no pid twice.
        if self.spawned.len() >= 20 {
            return "enough".to_owned();
        }
        let config = self.file(vm, if what == What::Unconfigured { "none.json" } else { "vmm.json" });
        let id = format!("6ba7b810-9dad-51d1-80b4-00c04fd430c{vm}-{life}");
        let args = ["--id", &id, "--api-sock", &self.socket(vm, life).display().to_string()]
            .map(str::to_owned)
            .into_iter()
            .chain(["--config-file".to_owned(), config.display().to_string()])
            // Else it tells of each request, in the midst of what its guest says.
            .chain(["--level".to_owned(), "Error".to_owned()]);
        let request = SpawnRequest {
            program: if what == What::Missing { "/nonexistent/vmm".into() } else { bed("bin/firecracker") },
            args: args.map(Into::into).collect(),
            lock: self.file(vm, "vmm.lock"),
            stdout: self.file(vm, "console.log"),
            stderr: self.file(vm, "vmm.log"),
            cgroup,
        };
        if self.machine.is_none() {
            // What the guest of a life before said is not of this one.
            let _ = std::fs::remove_file(&request.stdout);
        }
        match self.host.spawn_vmm(&request) {
            Ok(process) => {
                self.spawned.push(process.clone());
                self.settle(&self.socket(vm, life), &process);
                format!("process {}", self.spawned.len() - 1)
            }
            Err(SpawnError::LockHeld(_)) => "its lock is held".to_owned(),
            Err(SpawnError::Failed { source, .. }) => format!("{:?}", source.kind()),
        }
    }

    /// Waits until its guest runs, or it has ended.
    fn settle(&self, socket: &Path, process: &ProcessHandle) {
        if let Some(machine) = self.machine {
            return machine.wait(Duration::from_secs(1));
        }
        let start = std::time::Instant::now();
        while self.host.inspect(process).unwrap().is_some() {
            let says = self.host.query_vmm(VmmKind::Firecracker, socket, process, API);
            // The guest listens to Ctrl-Alt-Del once it has said that it is ready.
            if says == Ok(GuestState::Running) && self.is_ready(process) {
                return;
            }
            assert!(start.elapsed() < BOUND, "a VMM neither runs nor ends: it says {says:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_ready(&self, process: &ProcessHandle) -> bool {
        let Some(info) = self.host.inspect(process).unwrap() else { return true };
        let argv: Vec<String> = info.argv.iter().map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let vm = usize::from(argv.iter().any(|word| word.contains("/s/b/")));
        let console = std::fs::read_to_string(self.file(vm, "console.log")).unwrap_or_default();
        console.contains("GUEST READY")
    }

    fn end(&self, process: &ProcessHandle) {
        if self.machine.is_none() {
            ended(self.host, process);
        }
    }

    fn told_vmm<T: std::fmt::Debug>(&self, answer: Result<T, VmmError>) -> String {
        match answer {
            Ok(value) => format!("{value:?}"),
            Err(VmmError::Stranger(pid)) => format!("listened on by {}", self.whose(pid)),
            Err(VmmError::TimedOut(_)) => "timed out".to_owned(),
            Err(error) => format!("{error:?}"),
        }
    }

    fn command(&mut self, socket: &Path, of: usize, command: VmmCommand) -> String {
        let process = self.spawned[of].clone();
        let bound = self.bound(of);
        let answer = self.host.command_vmm(VmmKind::Firecracker, socket, &process, command, bound);
        if answer.is_ok() && command != VmmCommand::Pause {
            self.settle_end(socket, &process, command);
        }
        self.is_blocked |=
            self.machine.is_none() && command == VmmCommand::Shutdown && matches!(answer, Err(VmmError::TimedOut(API)));
        self.told_vmm(answer)
    }

    /// A guest that was asked to shut down does so unless it is paused. One that was paused may have been asked before.
    fn settle_end(&mut self, socket: &Path, process: &ProcessHandle, command: VmmCommand) {
        if let Some(machine) = self.machine {
            return machine.wait(Duration::from_secs(1));
        }
        let is_asked = self.asked.contains(&process.identity.pid) || command == VmmCommand::Shutdown;
        if is_asked {
            self.asked.insert(process.identity.pid);
            let is_blocked = wait("the guest's end, or that it is paused", || {
                if self.host.inspect(process).unwrap().is_none() {
                    return Some(false);
                }
                match self.host.query_vmm(VmmKind::Firecracker, socket, process, API) {
                    Ok(GuestState::Paused) => Some(false),
                    Err(VmmError::TimedOut(_)) => Some(true),
                    _ => None,
                }
            });
            self.is_blocked |= is_blocked;
        }
    }

    fn bound(&self, of: usize) -> Duration {
        if self.stopped.contains(&of) { STOPPED } else { API }
    }

    fn stop(&mut self, of: usize, stops: bool) -> String {
        let process = &self.spawned[of];
        if self.host.inspect(process).unwrap().is_none() {
            return "it has ended".to_owned();
        }
        match (self.machine, &process.pidfd) {
            (Some(machine), _) => machine.hang(process.identity.pid, stops),
            (None, Some(pidfd)) => {
                let signal = if stops { Signal::STOP } else { Signal::CONT };
                pidfd_send_signal(pidfd.as_fd(), signal).unwrap();
            }
            (None, None) => unreachable!("a real process has a pidfd"),
        }
        if stops {
            self.stopped.insert(of)
        } else {
            self.stopped.remove(&of)
        };
        "done".to_owned()
    }

    fn stranger(&mut self, socket: &Path) -> String {
        self.stranger_leaves();
        self.stranger = Some(if let Some(machine) = self.machine {
            Stranger::Simulated(machine.listen_as_stranger(socket))
        } else {
            let _ = std::fs::remove_file(socket);
            Stranger::Real(UnixListener::bind(socket).unwrap())
        });
        "done".to_owned()
    }

    fn stranger_leaves(&mut self) {
        match (self.stranger.take(), self.machine) {
            (Some(Stranger::Simulated(pid)), Some(machine)) => machine.kill(pid),
            (Some(Stranger::Real(listener)), _) => drop(listener),
            _ => {}
        }
    }
}

impl differential::Side<Call> for Side<'_> {
    fn is_over(&self) -> bool {
        self.is_blocked
    }

    fn answer(&mut self, call: &Call) -> String {
        let host = self.host;
        let of = match call {
            Call::Open(of)
            | Call::Inspect(of)
            | Call::Watch(of)
            | Call::ExitStatus(of)
            | Call::Kill(of)
            | Call::Query { of, .. }
            | Call::Command { of, .. }
            | Call::Stop(of, _) => Some(*of),
            _ => None,
        };
        if of.is_some_and(|of| of >= self.spawned.len()) {
            return "nobody".to_owned();
        }
        match call {
            Call::Spawn { vm, life, what, cgroup } => self.spawn(*vm, *life, *what, cgroup.clone()),
            Call::ProbeLock(vm) => match host.probe_lock(&self.file(*vm, "vmm.lock")) {
                LockProbe::Held(Some(pid)) => format!("held by {}", self.whose(pid)),
                other => format!("{other:?}"),
            },
            Call::LoseLock(vm) => differential::told(host.remove_file(&self.file(*vm, "vmm.lock"), false)),
            Call::Open(of) => {
                let found = host.open_process(self.spawned[*of].identity.pid);
                differential::told(found.map(|found| found == Some(self.spawned[*of].clone())))
            }
            Call::Inspect(of) => differential::told(host.inspect(&self.spawned[*of])),
            Call::Watch(of) => {
                let (told, number) = (Arc::clone(&self.told), *of);
                let tell = move || {
                    told.lock().unwrap().insert(number);
                };
                differential::told(host.watch_exit(&self.spawned[*of], Box::new(tell)))
            }
            Call::Told => format!("{:?}", self.told.lock().unwrap()),
            Call::ExitStatus(of) => format!("{:?}", host.exit_status(&self.spawned[*of])),
            Call::Kill(of) => {
                let process = self.spawned[*of].clone();
                let killed = host.kill(&process);
                self.end(&process);
                differential::told(killed)
            }
            Call::Peer { vm, life } => match host.socket_peer(&self.socket(*vm, *life)) {
                SocketPeer::Listener(process) => format!("listened on by {}", self.whose(process.identity.pid)),
                other => format!("{other:?}"),
            },
            Call::Query { vm, life, of } => {
                let socket = self.socket(*vm, *life);
                self.told_vmm(host.query_vmm(VmmKind::Firecracker, &socket, &self.spawned[*of], self.bound(*of)))
            }
            Call::Command { vm, life, of, command } => self.command(&self.socket(*vm, *life), *of, *command),
            Call::Stop(of, stops) => self.stop(*of, *stops),
            Call::Stranger { vm, life } => self.stranger(&self.socket(*vm, *life)),
            Call::StrangerLeaves => {
                self.stranger_leaves();
                "done".to_owned()
            }
            Call::MakeCgroup(path) => {
                let limits = stead::host::devices::CgroupLimits { cpu_quota_us: 100_000, memory_bytes: 64 << 20 };
                differential::told(host.make_cgroup(path, &limits))
            }
            Call::KillCgroup(path) => {
                let killed = host.kill_cgroup(path);
                if self.machine.is_none() && killed.is_ok() {
                    // They are about to end, and so long there is somebody to kill.
                    wait("a cgroup without anybody", || {
                        host.cgroup(path).unwrap().is_none_or(|group| !group.populated).then_some(())
                    });
                }
                differential::told(killed)
            }
            Call::RemoveCgroup(path) => {
                if self.machine.is_none() {
                    // Whoever has ended leaves it a moment later.
                    wait("a cgroup without the dead", || {
                        let members = host.cgroup(path).unwrap().map_or_else(Vec::new, |group| group.processes);
                        let lives = |pid: &i32| host.open_process(*pid).unwrap().is_some();
                        let populated = host.cgroup(path).unwrap().is_some_and(|group| group.populated);
                        (populated == members.iter().any(lives)).then_some(())
                    });
                }
                differential::told(host.remove_cgroup(path))
            }
            Call::Cgroup(path) => differential::told(host.cgroup(path).map(|found| {
                found.map(|group| {
                    let members: BTreeSet<String> = group.processes.iter().map(|pid| self.whose(*pid)).collect();
                    (members, group.populated)
                })
            })),
        }
    }
}

impl Drop for Side<'_> {
    fn drop(&mut self) {
        for process in &self.spawned {
            let _ = self.host.kill(process);
            self.end(process);
        }
        for vm in ["a", "b"] {
            let path = format!("stead-test-{}-processes/s/{vm}", std::process::id());
            if self.machine.is_none() {
                wait("a free cgroup", || self.host.remove_cgroup(&path).ok());
            }
        }
    }
}

/// The files of both VMs, on both hosts.
fn prepare(both: &Both) {
    let mut vm = Vm::firecracker("ctrlaltdel");
    vm.spec.memory_mib = 4;
    let request = vm.request(1);
    let config = request.args.iter().position(|arg| arg == "--config-file").map(|at| &request.args[at + 1]).unwrap();
    let config = std::fs::read(config).unwrap();
    for host in [&*both.real as &dyn HostOps, &*both.simulated] {
        for name in ["a", "b"] {
            let folder = both.root().join("s").join(name);
            host.make_folder(&folder).unwrap();
            host.write_file(&folder.join("vmm.json"), &config).unwrap();
        }
    }
    both.machine.uninstall(Path::new("/nonexistent/vmm"));
}

#[test]
fn simulated_processes_answer_as_real_ones_do() {
    let mut calls = 0;
    for seed in 0..runs(RUNS) {
        let both = Both::new(seed);
        prepare(&both);
        let mut real = Side::new(&*both.real, None, both.root());
        let mut simulated = Side::new(&*both.simulated, Some(&both.machine), both.root());
        let mut random = Random::new(seed);
        let next = std::iter::repeat_with(|| call(&mut random)).take(CALLS);
        let compared = compare(&mut real, &mut simulated, next, is_look);
        calls += compared.unwrap_or_else(|differs| panic!("seed {seed}: {differs}"));
    }
    println!("{calls} calls");
}
