//! handles.json: what one incarnation of a VM is about to hold, or holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::StoredSpec;
use crate::desired::{FileId, Origin};
use crate::names::{DmLayer, Incarnation, VmName, VmUid};
use crate::spec::VmmKind;
use crate::time::{BootId, Deadline};

/// What one incarnation of a VM is about to hold, or holds. Durable before the first effect on its behalf, gone after
/// the last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handles {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// The VM.
    pub name: VmName,
    /// Its uid in this state.
    pub uid: VmUid,
    /// Which of its lives this is.
    pub incarnation: Incarnation,
    /// How far this life has come.
    pub phase: Phase,
    /// The host's boot in which this life began: pids and devices of another one mean nothing.
    pub boot_id: BootId,
    /// What runs it.
    pub vmm: VmmKind,
    /// The VMM's pid, once spawned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// The VMM's start time in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<u64>,
    /// The inode of the VMM's pidfd, where the kernel has pidfs (6.9 and later): unique within a boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pidfd_inode: Option<u64>,
    /// The VMM's API socket.
    pub api_socket: PathBuf,
    /// The socket that is connected to only to learn who listens, for VMMs whose API serves one client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_socket: Option<PathBuf>,
    /// The taps this life holds or is about to hold.
    #[serde(default)]
    pub tap_devices: Vec<TapHandle>,
    /// The loop devices this life holds or is about to hold, those over base images included.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loops: Vec<LoopHandle>,
    /// The device-mapper devices this life holds or is about to hold, in the order in which they are made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dm_devices: Vec<DmHandle>,
    /// The cgroup of its processes, below the root of the cgroup v2 hierarchy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// The spec as booted; `None` for a VM found alive whose spec nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<StoredSpec>,
    /// The declaration this life was started from: proof that it was applied by stead, before the ledger says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Whether this life was begun by another manager and taken over by `stead adopt`: its VMM carries no id of ours and
    /// holds no lock, so it is known only by its recorded process identity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// When this life was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Deadline>,
    /// In phase `stopping`: why, until when, and how far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopping: Option<Stopping>,
    /// What could not be freed, by step, and why. It is tried again.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub blocked: BTreeMap<String, Blocked>,
    /// Fields of other versions, kept as they were. [`super::parse_handles`] finds them: serde would copy every field to tell which.
    #[serde(flatten, skip_deserializing)]
    pub extra: Map<String, Value>,
}

impl Handles {
    /// The record of a life that is about to begin, and holds nothing yet.
    pub fn new(
        name: VmName,
        uid: VmUid,
        incarnation: Incarnation,
        vmm: VmmKind,
        api_socket: PathBuf,
        boot: BootId,
    ) -> Self {
        Self {
            version: super::FORMAT_VERSION,
            name,
            uid,
            incarnation,
            phase: Phase::Starting,
            boot_id: boot,
            vmm,
            pid: None,
            start_time: None,
            pidfd_inode: None,
            api_socket,
            identity_socket: None,
            tap_devices: Vec::new(),
            loops: Vec::new(),
            dm_devices: Vec::new(),
            cgroup: None,
            spec: None,
            origin: None,
            adopted: false,
            began: None,
            stopping: None,
            blocked: BTreeMap::new(),
            extra: Map::new(),
        }
    }

    /// Whether this record is of exactly this process of this boot.
    pub fn is_of(&self, process: &crate::host::ProcessIdentity, boot_id: &BootId) -> bool {
        self.boot_id == *boot_id
            && self.pid == Some(process.pid)
            && match (self.pidfd_inode, process.pidfd_inode) {
                (Some(recorded), Some(found)) => recorded == found,
                // Without pidfs on either side, pid and start time together name the process.
                _ => self.start_time == Some(process.start_time),
            }
    }
}

/// How far a life has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Intent is recorded; its objects and its VMM may or may not exist.
    Starting,
    /// Its guest was seen to run.
    Running,
    /// It is being torn down.
    Stopping,
}

/// A tap that a VM holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapHandle {
    /// The VM's network interface it serves.
    pub interface: VmName,
    /// The tap's name on the host.
    pub tap: String,
    /// The bridge it is to be a port of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
}

/// A loop device that a VM holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoopHandle {
    /// The VM's disk it serves.
    pub disk: VmName,
    /// Its owner tag. By it and the backing file it is found again; one with the tag of base images is shared.
    pub tag: String,
    /// The file it is bound to.
    pub file: PathBuf,
    /// That file by device and inode.
    pub backing: FileId,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// What the kernel called it, once made. For people: the number is another's as soon as it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A device-mapper device that a VM holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DmHandle {
    /// The VM's disk it serves.
    pub disk: VmName,
    /// What it is for.
    pub layer: DmLayer,
    /// Its name.
    pub name: String,
    /// Its owner tag.
    pub uuid: String,
    /// What the kernel called it, once made. For people: the number is another's as soon as it is free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
}

/// A teardown under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Why, for people.
    pub reason: String,
    /// When the VMM is killed if its guest has not stopped by itself.
    pub deadline: Deadline,
}

/// A step of a teardown that could not be done yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    /// What the host answered, or what it waits for.
    pub why: String,
    /// How often it failed.
    pub failures: u32,
}
