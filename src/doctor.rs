//! What is wrong with a host, and how to mend it. Pure: judges what was looked at, looks at nothing itself.

mod host;
mod limits;
mod own;
#[cfg(test)]
pub(crate) mod samples;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::Serialize;

use crate::desired::{Desired, SourceName};
use crate::host::checkup::{Bridge, Checkup, Folder, Room};
use crate::names::VmName;
use crate::spec::{DiskMode, VmmChoice};

/// Everything that is checked, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// The configuration file and flags.
    Configuration,
    /// STATE and RUN.
    State,
    /// What stead wrote down of VMs.
    Records,
    /// The folders that manifests are read from.
    Folders,
    /// The git sources.
    Sources,
    /// What is in them.
    Manifests,
    /// The stead that runs.
    Daemon,
    /// The kernel's version.
    Kernel,
    /// `/dev/kvm`.
    Kvm,
    /// Firecracker's program.
    Firecracker,
    /// QEMU's program.
    Qemu,
    /// Taps.
    Tun,
    /// Bridges that manifests name.
    Bridges,
    /// Loop devices.
    Loop,
    /// device-mapper.
    DeviceMapper,
    /// cgroup v2.
    Cgroups,
    /// git and what it runs.
    Git,
    /// Room in STATE.
    Space,
    /// The clocks.
    Clock,
    /// inotify.
    Inotify,
    /// Open files.
    OpenFiles,
    /// Threads and process ids.
    Threads,
    /// AppArmor and SELinux.
    Confinement,
}

impl Check {
    /// Each of them.
    pub const ALL: [Self; 23] = [
        Self::Configuration,
        Self::State,
        Self::Records,
        Self::Folders,
        Self::Sources,
        Self::Manifests,
        Self::Daemon,
        Self::Kernel,
        Self::Kvm,
        Self::Firecracker,
        Self::Qemu,
        Self::Tun,
        Self::Bridges,
        Self::Loop,
        Self::DeviceMapper,
        Self::Cgroups,
        Self::Git,
        Self::Space,
        Self::Clock,
        Self::Inotify,
        Self::OpenFiles,
        Self::Threads,
        Self::Confinement,
    ];

    /// Its name, which scripts may rely on.
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::State => "state",
            Self::Records => "records",
            Self::Folders => "folders",
            Self::Sources => "sources",
            Self::Manifests => "manifests",
            Self::Daemon => "daemon",
            Self::Kernel => "kernel",
            Self::Kvm => "kvm",
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::Tun => "tun",
            Self::Bridges => "bridges",
            Self::Loop => "loop",
            Self::DeviceMapper => "device-mapper",
            Self::Cgroups => "cgroups",
            Self::Git => "git",
            Self::Space => "space",
            Self::Clock => "clock",
            Self::Inotify => "inotify",
            Self::OpenFiles => "open-files",
            Self::Threads => "threads",
            Self::Confinement => "confinement",
        }
    }

    /// Why it matters.
    pub fn why(self) -> &'static str {
        match self {
            Self::Configuration => "no command works with a configuration that cannot be read",
            Self::State => "whoever can write there decides which processes stead ends, so it refuses to work",
            Self::Records => "they say what each VM holds on the host; without them it is found again by its tags",
            Self::Folders => {
                "whoever can write there decides what runs here; a folder that is missing declares nothing and deletes \
                              nothing"
            }
            Self::Sources => "what a repository says now is not in force here: its last good commit is",
            Self::Manifests => {
                "a VM whose manifest is broken keeps its last good one; one that never had any does not start"
            }
            Self::Daemon => "only a `stead run` acts at once; commands ask the one that runs",
            Self::Kernel => "stead proves by pidfds whose a process is, and the older ways have races",
            Self::Kvm => "Firecracker needs it; QEMU without it emulates each instruction, some ten times slower",
            Self::Firecracker => "it runs VMs of `vmm: firecracker`, and those of `vmm: auto` where it can",
            Self::Qemu => "it runs VMs of `vmm: qemu`, and those of `vmm: auto` where Firecracker cannot",
            Self::Tun => "each network interface of a VM is a tap, which is made there",
            Self::Bridges => "a VM starts only if the bridge that its interface joins is there and has a port left",
            Self::Loop => "each copy-on-write disk of mode `snapshot` is a loop device",
            Self::DeviceMapper => "Firecracker's disks of mode `snapshot` are device-mapper devices",
            Self::Cgroups => "a VM's limits are those of its cgroup, and what is left of it is found there",
            Self::Git => "git sources are fetched, and their signatures checked, by these programs",
            Self::Space => {
                "records, logs and copy-on-write disks are written there; a guest whose disk is full loses writes"
            }
            Self::Clock => {
                "ages, the trash and certificates go by the time of day; waits do not, they go by the time since boot"
            }
            Self::Inotify => "without it a folder of manifests is listed every second instead of being watched",
            Self::OpenFiles => "each VM that lives takes stead two open files",
            Self::Threads => "each VMM has a thread for each CPU of its guest, and a few more",
            Self::Confinement => "what is confined may be kept from devices, processes and files that it needs",
        }
    }
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// Nothing that was declared needs it, or it could not be looked at.
    Skipped,
    /// VMs run, and not as well as they could.
    Warning,
    /// Something that was declared cannot be.
    Failure,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
            Self::Failure => "failure",
        })
    }
}

/// How a check came out, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What was checked.
    pub check: Check,
    /// How it came out.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do; always there where something is not as it should be.
    pub mend: Option<String>,
}

impl Finding {
    fn ok(check: Check, found: impl Into<String>) -> Self {
        Self { check, state: State::Ok, found: found.into(), mend: None }
    }

    fn skipped(check: Check, found: impl Into<String>) -> Self {
        Self { check, state: State::Skipped, found: found.into(), mend: None }
    }

    fn bad(check: Check, state: State, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { check, state, found: found.into(), mend: Some(mend.into()) }
    }

    fn warning(check: Check, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(check, State::Warning, found, mend)
    }

    fn failure(check: Check, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::bad(check, State::Failure, found, mend)
    }

    /// One finding of several troubles, as bad as the worst of them; `else_ok` where there is none.
    fn of_troubles(check: Check, troubles: Vec<Trouble>, else_ok: impl Into<String>) -> Self {
        let Some(state) = troubles.iter().map(|trouble| trouble.state).max() else {
            return Self::ok(check, else_ok);
        };
        let mut mends: Vec<String> = Vec::new();
        for trouble in &troubles {
            if !mends.contains(&trouble.mend) {
                mends.push(trouble.mend.clone());
            }
        }
        let found: Vec<String> = troubles.into_iter().map(|trouble| trouble.found).collect();
        Self::bad(check, state, found.join("; "), mends.join("; "))
    }
}

/// One thing that is not as it should be, of several that one check may find.
struct Trouble {
    state: State,
    found: String,
    mend: String,
}

impl Trouble {
    fn warning(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Warning, found: found.into(), mend: mend.into() }
    }

    fn failure(found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { state: State::Failure, found: found.into(), mend: mend.into() }
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone)]
pub struct Subject {
    /// This stead's version.
    pub version: &'static str,
    /// What is wrong with the configuration, if anything; then the sources are not known.
    pub configuration: Result<(), Refused>,
    /// The host.
    pub host: Checkup,
    /// STATE, or why it cannot be used.
    pub state: Result<StateLook, Refused>,
    /// The stead that runs.
    pub daemon: Daemon,
    /// Folders that manifests are read from.
    pub folders: Vec<(PathBuf, Folder)>,
    /// git sources that cannot be followed, each with why.
    pub unsynced: Vec<(SourceName, String)>,
    /// What manifests declare; `None` where they could not be read.
    pub manifests: Option<Manifests>,
    /// Each interface that they name as a bridge.
    pub bridges: BTreeMap<String, Option<Bridge>>,
    /// git and its programs; `None` where no git source is configured.
    pub git: Option<GitLook>,
}

/// Why something cannot be used, and what to do where that is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// What was tried, and why it failed.
    pub why: String,
    /// What to do.
    pub mend: Option<String>,
}

/// STATE as it is.
#[derive(Debug, Clone, Default)]
pub struct StateLook {
    /// Where it is.
    pub folder: PathBuf,
    /// Whether it is there yet.
    pub exists: bool,
    /// VMs with a folder in it.
    pub vms: usize,
    /// Records that cannot be trusted, each with why.
    pub flaws: Vec<String>,
    /// Files that were set aside.
    pub aside: Vec<PathBuf>,
    /// The latest moment at which anything was written down.
    pub latest: Option<Timestamp>,
    /// The room on its filesystem, or why that is not known.
    pub room: Option<Result<Room, String>>,
}

/// The stead that runs on this state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Daemon {
    /// None, as far as its socket says.
    None {
        /// Whether somebody holds the state all the same.
        locked: bool,
    },
    /// It answers.
    Answers {
        /// Its version.
        version: String,
        /// Its pid.
        pid: u32,
        /// How many files it may have open, where that can be read.
        open_files: Option<u64>,
    },
    /// It does not, or not sensibly.
    Fails(String),
    /// It could not be asked: the state cannot be used.
    NotAsked,
}

/// What manifests declare for this host, and what that needs of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifests {
    /// What is wrong with them.
    pub problems: Vec<String>,
    /// Sources that could not be read whole, each with why.
    pub incomplete: Vec<String>,
    /// VMs that can be read.
    pub vms: usize,
    /// Threads that their VMMs have.
    pub threads: u64,
    /// One that asks for Firecracker.
    pub firecracker: Option<VmName>,
    /// One that asks for QEMU.
    pub qemu: Option<VmName>,
    /// One that takes either.
    pub either: Option<VmName>,
    /// One with a snapshot disk that may run on Firecracker, which has no other way to make them.
    pub snapshot: Option<(VmName, VmmChoice)>,
    /// Loop devices that their disks need at most.
    pub loops: u64,
    /// One with a network interface.
    pub interface: Option<VmName>,
    /// How many interfaces join each bridge.
    pub bridges: BTreeMap<String, u64>,
}

/// Threads that a VMM has beside those of its guest's CPUs: Firecracker two, QEMU about four.
const THREADS_A_VMM: u64 = 4;

impl Manifests {
    /// What these declare.
    pub fn of(desired: &Desired) -> Self {
        let mut all = Self {
            problems: desired.problems.iter().map(crate::desired::Problem::one_line).collect(),
            ..Self::default()
        };
        for (source, state) in &desired.sources {
            all.incomplete.extend(state.incomplete.iter().map(|why| format!("{source}: {why}")));
        }
        for (name, declarations) in &desired.vms {
            let Some(vm) = declarations.iter().find_map(|declaration| declaration.vm.as_ref().ok()) else { continue };
            let spec = &vm.spec;
            all.vms += 1;
            all.threads += u64::from(spec.cpus) + THREADS_A_VMM;
            let asks = match spec.vmm {
                VmmChoice::Firecracker => &mut all.firecracker,
                VmmChoice::Qemu => &mut all.qemu,
                VmmChoice::Auto => &mut all.either,
            };
            asks.get_or_insert_with(|| name.clone());
            let snapshots = spec.disks.iter().filter(|disk| disk.mode == DiskMode::Snapshot && disk.has_own_file());
            // One over the image, which VMs share at best, and one over what is written.
            all.loops += 2 * snapshots.clone().count() as u64;
            if spec.vmm != VmmChoice::Qemu && snapshots.count() > 0 {
                let is_worse = matches!(all.snapshot, None | Some((_, VmmChoice::Auto)));
                if is_worse {
                    all.snapshot = Some((name.clone(), spec.vmm));
                }
            }
            for interface in &spec.network_interfaces {
                all.interface.get_or_insert_with(|| name.clone());
                if let Some(bridge) = &interface.bridge {
                    *all.bridges.entry(bridge.clone()).or_default() += 1;
                }
            }
        }
        all
    }
}

/// git and the programs that it runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GitLook {
    /// What `git --version` prints, or why it does not.
    pub version: Result<String, String>,
    /// Programs that git runs for these sources and that are not there, each with what it is for.
    pub missing: Vec<(&'static str, String)>,
    /// Whether a signature by SSH is asked for, which git checks since 2.34.
    pub ssh_signatures: bool,
}

/// Judges everything: a finding for each check, in their order.
pub fn examine(subject: &Subject) -> Vec<Finding> {
    let needs = subject.manifests.clone().unwrap_or_default();
    let host = &subject.host;
    Check::ALL
        .into_iter()
        .map(|check| match check {
            Check::Configuration => own::configuration(&subject.configuration),
            Check::State => own::state(&subject.state),
            Check::Records => own::records(&subject.state),
            Check::Folders => own::folders(&subject.folders, host.user.id),
            Check::Sources => own::sources(&subject.unsynced, subject.git.is_some()),
            Check::Manifests => own::manifests(subject.manifests.as_ref()),
            Check::Daemon => own::daemon(&subject.daemon, subject.version),
            Check::Kernel => host::kernel(&host.kernel),
            Check::Kvm => host::kvm(host, &needs),
            Check::Firecracker => host::firecracker(host, &needs),
            Check::Qemu => host::qemu(host, &needs),
            Check::Tun => host::tun(host, &needs),
            Check::Bridges => host::bridges(&subject.bridges, &needs),
            Check::Loop => host::loops(host, &needs),
            Check::DeviceMapper => host::device_mapper(host, &needs),
            Check::Cgroups => host::cgroups(host),
            Check::Git => host::git(subject.git.as_ref()),
            Check::Space => limits::space(&subject.state),
            Check::Clock => limits::clock(&host.clock, subject.state.as_ref().ok().and_then(|state| state.latest)),
            Check::Inotify => limits::inotify(&host.inotify, &subject.folders, &subject.daemon),
            Check::OpenFiles => limits::open_files(host, &subject.daemon, vms(subject)),
            Check::Threads => limits::threads(host.threads, &needs),
            Check::Confinement => host::confinement(host.confined.as_deref()),
        })
        .collect()
}

/// How many VMs there are or will be.
fn vms(subject: &Subject) -> u64 {
    let declared = subject.manifests.as_ref().map_or(0, |manifests| manifests.vms);
    let recorded = subject.state.as_ref().map_or(0, |state| state.vms);
    declared.max(recorded) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_check_is_made_once_and_named_apart() {
        let findings = examine(&samples::subject());
        assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), Check::ALL);
        let names: BTreeSet<&str> = Check::ALL.iter().map(|check| check.name()).collect();
        assert_eq!(names.len(), Check::ALL.len());
        assert!(findings.iter().all(|finding| finding.state == State::Ok), "{findings:#?}");
    }

    #[test]
    fn what_is_wrong_is_told_with_what_to_do_and_all_of_it() {
        let troubles = || vec![Trouble::warning("a", "x"), Trouble::failure("b", "y"), Trouble::warning("c", "x")];
        let finding = Finding::of_troubles(Check::Bridges, troubles(), "fine");
        assert_eq!((finding.state, finding.found.as_str()), (State::Failure, "a; b; c"));
        assert_eq!(finding.mend.as_deref(), Some("x; y"));
        assert_eq!(Finding::of_troubles(Check::Bridges, vec![], "fine").state, State::Ok);
    }

    #[test]
    fn what_manifests_need_is_counted() {
        let text = "\
apiVersion: stead.dev/v1alpha1
kind: VirtualMachine
metadata: {name: a}
spec:
  cpus: 2
  memory: 64Mi
  boot: {kernel: /k}
  disks: [{name: root, image: /i, mode: snapshot}, {name: ro, image: /j, mode: snapshot, readOnly: true}]
  networkInterfaces: [{name: eth0, bridge: br0}, {name: eth1, bridge: br0}, {name: eth2}]
---
apiVersion: stead.dev/v1alpha1
kind: VirtualMachine
metadata: {name: b}
spec: {vmm: firecracker, memory: 64Mi, boot: {kernel: /k}, disks: [{name: root, image: /i, mode: snapshot}]}
---
apiVersion: stead.dev/v1alpha1
kind: VirtualMachine
metadata: {name: c}
spec: {vmm: qemu, memory: 64Mi}
";
        let source = SourceName("manifests".to_owned());
        let read = crate::desired::load::validate_text(source, std::path::Path::new("x.yaml"), text);
        let needs = Manifests::of(&read.desired);
        let name = |text: &str| text.parse::<VmName>().ok();
        assert_eq!((needs.vms, needs.threads, needs.loops, needs.problems.len()), (2, 2 + 4 + 1 + 4, 4, 1));
        assert_eq!((needs.either, needs.firecracker, needs.qemu), (name("a"), name("b"), None));
        assert_eq!(needs.snapshot, Some((name("b").unwrap(), VmmChoice::Firecracker)));
        assert_eq!((needs.interface, needs.bridges["br0"]), (name("a"), 2));
    }
}
