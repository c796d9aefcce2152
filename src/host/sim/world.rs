//! The machine itself: its clock, its processes and its kernel objects, each with the manners of the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::files::{Content, Files, Node};
use super::random::Random;
use crate::desired::FileId;
use crate::host::devices::{CgroupLimits, DmTarget};
use crate::host::{ProcessHandle, ProcessIdentity, SpawnRequest};
use crate::state::ExitStatus;
use crate::time::BootId;

/// How long a VMM takes until its socket is there, until its guest runs, and until a guest that was asked has shut down,
/// in milliseconds.
const LISTENS_AFTER: u64 = 4;
const RUNS_AFTER: u64 = 20;
const SHUTS_DOWN_AFTER: u64 = 120;
/// So few pids that they are soon another's.
const PIDS: std::ops::Range<i32> = 100..164;

/// Called once when a process has ended.
type OnExit = Box<dyn FnOnce() + Send>;

/// A running process.
pub(super) struct Process {
    pub(super) identity: ProcessIdentity,
    pub(super) argv: Vec<String>,
    /// Which life of stead it is a child of; none for a stranger's.
    pub(super) parent: Option<u64>,
    pub(super) cgroup: Option<String>,
    /// The lock that it holds: the file, whatever becomes of its name.
    pub(super) lock: Option<FileId>,
    pub(super) vmm: Option<Vmm>,
    watchers: Vec<OnExit>,
}

/// What makes a process a VMM.
pub(super) struct Vmm {
    sockets: Vec<PathBuf>,
    listens_at: u64,
    pub(super) listens: bool,
    pub(super) runs_at: u64,
    pub(super) cpus: Cpus,
    /// It does not answer, and its guest hears nothing.
    pub(super) hung: bool,
    ends_at: Option<(u64, ExitStatus)>,
    /// It got SIGKILL, and is not gone yet.
    is_killed: bool,
    /// What its configuration has it open.
    pub(super) drives: Vec<Drive>,
    pub(super) taps: Vec<String>,
    /// Its configuration, read when it listens.
    config: Option<PathBuf>,
}

/// What a guest's CPUs do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cpus {
    Run,
    Halted,
    /// It was asked to shut down meanwhile, and hears of it when it runs again.
    HaltedAndAsked,
}

/// A disk that a VMM opens.
#[derive(Debug, Clone)]
pub(super) struct Drive {
    pub(super) path: PathBuf,
    pub(super) writes: bool,
}

/// A bound loop device.
#[derive(Debug, Clone)]
pub(super) struct Loop {
    pub(super) tag: String,
    pub(super) backing: FileId,
    pub(super) path: PathBuf,
    pub(super) read_only: bool,
    pub(super) autoclear: bool,
}

/// A device-mapper device.
#[derive(Debug, Clone)]
pub(super) struct Dm {
    pub(super) uuid: String,
    pub(super) minor: u32,
    /// No table was loaded: left half made.
    pub(super) table: Vec<DmTarget>,
}

impl Dm {
    /// The devices that its table names, as the kernel calls them.
    pub(super) fn below(&self) -> impl Iterator<Item = &str> {
        let words = self.table.iter().flat_map(|target| target.parameters.split(' '));
        words.filter_map(|word| word.strip_prefix("/dev/"))
    }
}

/// A tap.
#[derive(Debug, Clone)]
pub(super) struct Tap {
    pub(super) alias: Option<String>,
    pub(super) bridge: Option<String>,
    pub(super) up: bool,
}

/// What stead did that it must never do.
pub type Violation = String;

/// All of it.
pub(super) struct World {
    pub(super) files: Files,
    pub(super) random: Random,
    /// STATE and RUN of the one stead whose rules are watched.
    pub(super) state_dir: PathBuf,
    pub(super) run_dir: PathBuf,
    pub(super) boot: u64,
    /// Milliseconds since boot when nobody's clock runs.
    pub(super) clock: u64,
    /// Since when the clock runs with tokio's.
    pub(super) running_since: Option<tokio::time::Instant>,
    /// The thread that tokio's clock runs on, which is that of stead's loop.
    pub(super) loop_thread: Option<std::thread::ThreadId>,
    pub(super) wall_ahead: i64,
    /// Nothing that takes space on STATE's filesystem succeeds. RUN is in memory.
    pub(super) is_disk_full: bool,
    /// How many milliseconds a VMM takes to be gone after SIGKILL.
    pub(super) dies_after: u64,
    pub(super) processes: BTreeMap<i32, Process>,
    pub(super) ended: Vec<(ProcessIdentity, Option<u64>, ExitStatus)>,
    next_pid: i32,
    last_start: u64,
    last_pidfd: u64,
    pub(super) loops: BTreeMap<u32, Loop>,
    pub(super) dm: BTreeMap<String, Dm>,
    pub(super) taps: BTreeMap<String, Tap>,
    pub(super) bridges: BTreeSet<String>,
    pub(super) cgroups: BTreeMap<String, Option<CgroupLimits>>,
    /// Processes of others that have a block device open, by what the kernel calls it.
    pub(super) strangers_open: BTreeSet<String>,
    /// Programs that are not installed.
    pub(super) missing_programs: BTreeSet<PathBuf>,
    pub(super) no_device_mapper: bool,
    pub(super) violations: Vec<Violation>,
    /// What is to be called once the world is let go of.
    due: Vec<OnExit>,
    /// How often anything changed.
    pub(super) changes: u64,
}

impl World {
    pub(super) fn new(state_dir: PathBuf, run_dir: PathBuf, seed: u64) -> Self {
        let mut files = Files::default();
        for folder in [&state_dir, &run_dir] {
            let mut above: Vec<&Path> = folder.ancestors().filter(|above| above.parent().is_some()).collect();
            above.reverse();
            for path in above {
                if files.at(path).is_none() {
                    // The parents are there by construction.
                    let _ = files.make_folder(path);
                }
                files.sync_folder(path.parent().unwrap_or(Path::new("/")));
            }
        }
        Self {
            files,
            random: Random::new(seed),
            state_dir,
            run_dir,
            boot: 1,
            clock: 10_000,
            running_since: None,
            loop_thread: None,
            wall_ahead: 0,
            is_disk_full: false,
            dies_after: 0,
            processes: BTreeMap::new(),
            ended: Vec::new(),
            next_pid: PIDS.start,
            last_start: 0,
            last_pidfd: 0,
            loops: BTreeMap::new(),
            dm: BTreeMap::new(),
            taps: BTreeMap::new(),
            bridges: BTreeSet::new(),
            cgroups: BTreeMap::from([(String::new(), None)]),
            strangers_open: BTreeSet::new(),
            missing_programs: BTreeSet::new(),
            no_device_mapper: false,
            violations: Vec::new(),
            due: Vec::new(),
            changes: 0,
        }
    }

    pub(super) fn now(&self) -> u64 {
        let runs = self.running_since.map(|since| tokio::time::Instant::now().saturating_duration_since(since));
        self.clock + u64::try_from(runs.unwrap_or_default().as_millis()).unwrap_or(0)
    }

    /// Before something is written: the error of a disk that is full.
    pub(super) fn need_room(&self, path: &Path) -> io::Result<()> {
        let is_full = self.is_disk_full && path.starts_with(&self.state_dir);
        if is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    pub(super) fn boot_id(&self) -> BootId {
        BootId(format!("00000000-0000-4000-8000-{:012}", self.boot))
    }

    /// What is to be called, outside the lock.
    pub(super) fn take_due(&mut self) -> Vec<OnExit> {
        std::mem::take(&mut self.due)
    }

    /// Lets everything happen whose time has come.
    pub(super) fn settle(&mut self) {
        let now = self.now();
        let pids: Vec<i32> = self.processes.keys().copied().collect();
        for pid in pids {
            let Some(vmm) = self.processes.get(&pid).and_then(|process| process.vmm.as_ref()) else { continue };
            if !vmm.listens && now >= vmm.listens_at {
                self.come_up(pid);
            }
            let Some(vmm) = self.processes.get(&pid).and_then(|process| process.vmm.as_ref()) else { continue };
            if let Some((at, status)) = vmm.ends_at
                && now >= at
            {
                self.end(pid, status);
            }
        }
    }

    /// The next moment at which something happens by itself.
    pub(super) fn next_event(&self) -> Option<u64> {
        let vmms = self.processes.values().filter_map(|process| process.vmm.as_ref());
        vmms.filter_map(|vmm| vmm.ends_at.map(|(at, _)| at)).min()
    }

    /// Starts a VMM as fork and exec do: it holds its lock, and has opened nothing yet.
    pub(super) fn spawn(&mut self, request: &SpawnRequest, parent: Option<u64>) -> io::Result<ProcessIdentity> {
        for path in [&request.lock, &request.stdout, &request.stderr] {
            if self.files.at(path).is_none() {
                self.need_room(path)?;
                let now = self.now();
                self.files.create(path, now)?;
            }
        }
        // In this order: the cgroup is opened before the fork, the lock taken after it, and then comes the exec.
        if request.cgroup.as_ref().is_some_and(|cgroup| !self.cgroups.contains_key(cgroup)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if self.is_locked(&request.lock) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if self.missing_programs.contains(&request.program) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let args: Vec<String> = request.args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
        let now = self.now();
        let vmm = Vmm {
            sockets: sockets_of(&args),
            listens_at: now + LISTENS_AFTER,
            listens: false,
            runs_at: now + RUNS_AFTER,
            cpus: Cpus::Run,
            hung: false,
            ends_at: None,
            is_killed: false,
            drives: Vec::new(),
            taps: Vec::new(),
            config: value_of(&args, "--config-file").map(PathBuf::from),
        };
        let program = request.program.display().to_string();
        let lock = self.files.file(&request.lock);
        let identity = self.fork(std::iter::once(program).chain(args).collect(), parent);
        if let Some(process) = self.processes.get_mut(&identity.pid) {
            process.lock = lock;
            process.cgroup.clone_from(&request.cgroup);
            process.vmm = Some(vmm);
        }
        Ok(identity)
    }

    /// A new process, with the next free pid.
    pub(super) fn fork(&mut self, argv: Vec<String>, parent: Option<u64>) -> ProcessIdentity {
        assert!(self.processes.len() < PIDS.len(), "the simulated host has no pid left");
        while self.processes.contains_key(&self.next_pid) {
            self.next_pid = if self.next_pid + 1 == PIDS.end { PIDS.start } else { self.next_pid + 1 };
        }
        let pid = self.next_pid;
        self.next_pid = if pid + 1 == PIDS.end { PIDS.start } else { pid + 1 };
        // In ticks of 10 ms, in which the kernel starts no two processes of one pid.
        self.last_start = (self.now() / 10).max(self.last_start + 1);
        self.last_pidfd += 1;
        let identity = ProcessIdentity { pid, start_time: self.last_start, pidfd_inode: Some(self.last_pidfd) };
        let process = Process { identity, argv, parent, cgroup: None, lock: None, vmm: None, watchers: Vec::new() };
        self.processes.insert(pid, process);
        self.changes += 1;
        identity
    }

    /// The VMM reads its configuration, opens what it names and listens; or it ends for want of something.
    fn come_up(&mut self, pid: i32) {
        let Some(vmm) = self.processes.get_mut(&pid).and_then(|process| process.vmm.as_mut()) else { return };
        vmm.listens = true;
        let (config, sockets) = (vmm.config.clone(), vmm.sockets.clone());
        let argv = self.processes[&pid].argv.clone();
        let (drives, taps) = match &config {
            Some(path) => match self.files.read(path).map(|bytes| read_config(&bytes)) {
                Some(Some(config)) => config,
                Some(None) => return self.end(pid, ExitStatus::Code(1)),
                // Firecracker panics for want of it, and aborts.
                None => return self.end(pid, ExitStatus::Signal(6)),
            },
            None => read_arguments(&argv),
        };
        let others =
            self.processes.iter().filter(|(other, _)| **other != pid).filter_map(|(_, other)| other.vmm.as_ref());
        let is_taken = others.flat_map(|vmm| &vmm.taps).any(|taken| taps.contains(taken));
        let all_there = drives.iter().all(|drive| self.leads_to(&drive.path).is_some())
            && taps.iter().all(|tap| self.taps.contains_key(tap));
        if is_taken || !all_there {
            return self.end(pid, ExitStatus::Code(1));
        }
        for drive in drives.iter().filter(|drive| drive.writes) {
            self.check_writer(pid, drive);
        }
        let owner = self.processes[&pid].identity.start_time;
        for socket in &sockets {
            if self.files.bind(socket, owner).is_err() {
                return self.end(pid, ExitStatus::Code(1));
            }
        }
        if let Some(vmm) = self.processes.get_mut(&pid).and_then(|process| process.vmm.as_mut()) {
            vmm.drives = drives;
            vmm.taps = taps;
        }
    }

    /// Two writers on one disk are what must never be.
    fn check_writer(&mut self, pid: i32, drive: &Drive) {
        let mine = self.written_by(&drive.path);
        let others: Vec<i32> = self.processes.keys().copied().filter(|other| *other != pid).collect();
        for other in others {
            let Some(vmm) = &self.processes[&other].vmm else { continue };
            let written = vmm.drives.iter().filter(|drive| drive.writes);
            if written.filter_map(|theirs| self.written_by(&theirs.path)).any(|theirs| Some(theirs) == mine) {
                self.violations.push(format!("1: pids {pid} and {other} both write {}", drive.path.display()));
            }
        }
    }

    /// The file that is written when a disk is: of a snapshot its copy-on-write file.
    fn written_by(&self, path: &Path) -> Option<FileId> {
        let device = self.leads_to(path)?;
        match device {
            Lead::File(id) => Some(id),
            Lead::Loop(number) => Some(self.loops.get(&number)?.backing),
            Lead::Dm(name) => {
                let cow = self.dm.get(&name)?.table.iter().find(|target| target.kind == "snapshot")?;
                let path = cow.parameters.split(' ').nth(1)?.to_owned();
                self.written_by(Path::new(&path))
            }
        }
    }

    /// What a disk's path leads to, if it is there.
    pub(super) fn leads_to(&self, path: &Path) -> Option<Lead> {
        if let Some(id) = self.files.file(path) {
            return Some(Lead::File(id));
        }
        let device = path.to_str()?.strip_prefix("/dev/")?;
        if let Some(number) = device.strip_prefix("loop").and_then(|number| number.parse().ok()) {
            return self.loops.contains_key(&number).then_some(Lead::Loop(number));
        }
        let minor: u32 = device.strip_prefix("dm-")?.parse().ok()?;
        let found = self.dm.iter().find(|(_, dm)| dm.minor == minor)?;
        Some(Lead::Dm(found.0.clone()))
    }

    /// Ends a process, however that came about.
    /// A process gets SIGKILL. A VMM may take its time to be gone, and does nothing else any more.
    pub(super) fn kill(&mut self, pid: i32) {
        let at = self.now() + self.dies_after;
        match self.processes.get_mut(&pid).and_then(|process| process.vmm.as_mut()).filter(|_| self.dies_after > 0) {
            Some(vmm) if !vmm.is_killed => {
                (vmm.is_killed, vmm.hung) = (true, true);
                vmm.ends_at = Some((at, ExitStatus::Signal(9)));
            }
            Some(_) => {}
            None => self.end(pid, ExitStatus::Signal(9)),
        }
    }

    pub(super) fn end(&mut self, pid: i32, status: ExitStatus) {
        let Some(process) = self.processes.remove(&pid) else { return };
        self.ended.push((process.identity, process.parent, status));
        self.due.extend(process.watchers);
        self.changes += 1;
        self.let_go_of_loops();
    }

    /// A loop that was told to let go does so when the last has closed it.
    pub(super) fn let_go_of_loops(&mut self) {
        let unused: Vec<u32> = self.loops.keys().copied().filter(|number| !self.is_loop_open(*number)).collect();
        for number in unused {
            if self.loops.get(&number).is_some_and(|found| found.autoclear) {
                self.loops.remove(&number);
            }
        }
    }

    pub(super) fn watch(&mut self, process: &ProcessHandle, on_exit: OnExit) {
        match self.processes.get_mut(&process.identity.pid).filter(|found| found.identity == process.identity) {
            Some(found) => found.watchers.push(on_exit),
            None => self.due.push(on_exit),
        }
    }

    /// The pids of those whose end somebody watches.
    pub(super) fn watched(&self) -> Vec<i32> {
        self.processes.iter().filter(|(_, process)| !process.watchers.is_empty()).map(|(pid, _)| *pid).collect()
    }

    /// Whoever watched forgets it: stead died.
    pub(super) fn drop_watchers(&mut self) {
        for process in self.processes.values_mut() {
            process.watchers.clear();
        }
        self.due.clear();
    }

    pub(super) fn find(&self, process: &ProcessHandle) -> Option<&Process> {
        self.processes.get(&process.identity.pid).filter(|found| found.identity == process.identity)
    }

    pub(super) fn vmm_mut(&mut self, process: &ProcessHandle) -> Option<&mut Vmm> {
        let found = self.processes.get_mut(&process.identity.pid);
        found.filter(|found| found.identity == process.identity)?.vmm.as_mut()
    }

    /// The guest hears that it is to shut down, once it runs.
    pub(super) fn shut_down(&mut self, process: &ProcessHandle) {
        let at = self.now() + SHUTS_DOWN_AFTER;
        let Some(vmm) = self.vmm_mut(process) else { return };
        match vmm.cpus {
            Cpus::Run => drop(vmm.ends_at.get_or_insert((at, ExitStatus::Code(0)))),
            Cpus::Halted | Cpus::HaltedAndAsked => vmm.cpus = Cpus::HaltedAndAsked,
        }
    }

    /// Halts the guest, or lets it run again.
    pub(super) fn pause(&mut self, process: &ProcessHandle, paused: bool) {
        let Some(vmm) = self.vmm_mut(process) else { return };
        let was = vmm.cpus;
        vmm.cpus = match (paused, was) {
            (true, Cpus::Run) => Cpus::Halted,
            (true, halted) => halted,
            (false, _) => Cpus::Run,
        };
        if !paused && was == Cpus::HaltedAndAsked {
            self.shut_down(process);
        }
    }

    pub(super) fn is_locked(&self, lock: &Path) -> bool {
        self.holder(lock).is_some()
    }

    /// Who holds the lock that is at this path.
    pub(super) fn holder(&self, lock: &Path) -> Option<&Process> {
        let id = self.files.file(lock)?;
        self.processes.values().find(|process| process.lock == Some(id))
    }

    /// Who listens on a socket now.
    pub(super) fn listener(&self, path: &Path) -> Option<&Process> {
        let Some(Node::Socket(owner)) = self.files.at(path) else { return None };
        self.processes.values().find(|process| process.identity.start_time == owner)
    }

    /// How many have a device-mapper device open.
    pub(super) fn dm_open_count(&self, name: &str) -> u32 {
        let Some(dm) = self.dm.get(name) else { return 0 };
        self.open_count(&format!("dm-{}", dm.minor))
    }

    pub(super) fn is_loop_open(&self, number: u32) -> bool {
        self.open_count(&format!("loop{number}")) > 0
    }

    fn open_count(&self, device: &str) -> u32 {
        let drives = self.processes.values().filter_map(|process| process.vmm.as_ref()).flat_map(|vmm| &vmm.drives);
        let by_vmms = drives.filter(|drive| drive.path.to_str() == Some(&format!("/dev/{device}"))).count();
        let on_top = self.dm.values().filter(|dm| dm.below().any(|below| below == device)).count();
        let strangers = usize::from(self.strangers_open.contains(device));
        u32::try_from(by_vmms + on_top + strangers).unwrap_or(u32::MAX)
    }

    pub(super) fn new_minor(&self) -> u32 {
        // The lowest that is free, as the kernel has it: numbers are soon another's.
        let taken: BTreeSet<u32> = self.dm.values().map(|dm| dm.minor).collect();
        (0..=u32::MAX).find(|minor| !taken.contains(minor)).unwrap_or(0)
    }

    /// The power goes, and the host boots anew.
    pub(super) fn reboot(&mut self, clean: bool) {
        if clean {
            for folder in self.files.below(Path::new("/")).map(|(path, _)| path.to_owned()).collect::<Vec<_>>() {
                self.files.sync_folder(&folder);
                if let Some(id) = self.files.file(&folder) {
                    self.files.sync_file(id);
                }
            }
            self.files.sync_folder(Path::new("/"));
        }
        let mut random = self.random.clone();
        self.files.cut_power(&self.run_dir.clone(), &mut random);
        self.random = random;
        self.drop_watchers();
        self.processes.clear();
        self.ended.clear();
        self.loops.clear();
        self.dm.clear();
        self.taps.clear();
        self.strangers_open.clear();
        self.cgroups = BTreeMap::from([(String::new(), None)]);
        self.boot += 1;
        self.clock = 3_000;
        self.last_start = 0;
        self.next_pid = PIDS.start;
        self.changes += 1;
    }

    /// A new content for a file.
    pub(super) fn content(&self, bytes: &[u8]) -> Content {
        Content::of(bytes, self.now())
    }
}

/// What a disk's path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lead {
    File(FileId),
    Loop(u32),
    Dm(String),
}

fn value_of<'a>(args: &'a [String], option: &str) -> Option<&'a str> {
    args.windows(2).find(|pair| pair[0] == option).map(|pair| pair[1].as_str())
}

/// The sockets that a VMM of these arguments listens on.
fn sockets_of(args: &[String]) -> Vec<PathBuf> {
    let firecracker = value_of(args, "--api-sock").map(PathBuf::from);
    let qemu = args.iter().filter(|arg| arg.starts_with("socket,")).filter_map(|arg| arg.split_once("path="));
    firecracker.into_iter().chain(qemu.map(|(_, path)| PathBuf::from(path))).collect()
}

/// What Firecracker's configuration has it open; none if it is no configuration.
fn read_config(bytes: &[u8]) -> Option<(Vec<Drive>, Vec<String>)> {
    let config: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let drives = config["drives"].as_array()?.iter().map(|drive| {
        let path = PathBuf::from(drive["path_on_host"].as_str().unwrap_or_default());
        Drive { path, writes: drive["is_read_only"] == false }
    });
    let taps = config["network-interfaces"].as_array()?.iter();
    let taps = taps.map(|interface| interface["host_dev_name"].as_str().unwrap_or_default().to_owned());
    Some((drives.collect(), taps.collect()))
}

/// What QEMU's arguments have it open.
fn read_arguments(argv: &[String]) -> (Vec<Drive>, Vec<String>) {
    let disks = argv.windows(2).filter(|pair| pair[0] == "-blockdev");
    let drives = disks.filter_map(|pair| serde_json::from_str::<serde_json::Value>(&pair[1]).ok()).map(|disk| {
        let path = PathBuf::from(disk["file"]["filename"].as_str().unwrap_or_default());
        Drive { path, writes: disk["read-only"] == false }
    });
    let taps = argv.iter().filter(|arg| arg.starts_with("tap,")).filter_map(|arg| arg.split("ifname=").nth(1));
    let taps = taps.filter_map(|rest| rest.split(',').next()).map(str::to_owned);
    (drives.collect(), taps.collect())
}
