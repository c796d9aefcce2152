//! What was looked at, as plain data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use crate::desired::{Desired, SourceName};
use crate::host::checkup::{Bridge, Checkup, Folder, Room};
use crate::names::VmName;
use crate::spec::{Disk, VmSpec, VmmChoice};

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
    /// What VMs hold of what they need.
    pub held: Needs,
}

/// What VMs need of what a host has a limited number of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Threads of their VMMs.
    pub threads: u64,
    /// Loop devices that their disks need at most.
    pub loops: u64,
}

impl Needs {
    /// Adds those of one VM.
    pub fn add(&mut self, spec: &VmSpec) {
        self.threads += u64::from(spec.cpus) + THREADS_A_VMM;
        // One over the image, which VMs share at best, and one over what is written.
        let snapshots = spec.disks.iter().filter(|disk| disk.is_written_snapshot());
        self.loops += 2 * snapshots.count() as u64;
    }
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
    /// What they need in all.
    pub needs: Needs,
    /// One that asks for Firecracker.
    pub firecracker: Option<VmName>,
    /// One that asks for QEMU.
    pub qemu: Option<VmName>,
    /// One that takes either.
    pub either: Option<VmName>,
    /// One with a snapshot disk that may run on Firecracker, which has no other way to make them.
    pub snapshot: Option<(VmName, VmmChoice)>,
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
            all.needs.add(spec);
            let asks = match spec.vmm {
                VmmChoice::Firecracker => &mut all.firecracker,
                VmmChoice::Qemu => &mut all.qemu,
                VmmChoice::Auto => &mut all.either,
            };
            asks.get_or_insert_with(|| name.clone());
            if spec.vmm != VmmChoice::Qemu && spec.disks.iter().any(Disk::is_written_snapshot) {
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

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!((needs.vms, needs.needs.threads, needs.needs.loops, needs.problems.len()), (2, 2 + 4 + 1 + 4, 4, 1));
        assert_eq!((needs.either, needs.firecracker, needs.qemu), (name("a"), name("b"), None));
        assert_eq!(needs.snapshot, Some((name("b").unwrap(), VmmChoice::Firecracker)));
        assert_eq!((needs.interface, needs.bridges["br0"]), (name("a"), 2));
    }
}
