//! ledger.json: what stead remembers of a VM beyond its handles; it outlives teardown.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::StoredSpec;
use crate::desired::{FileId, Origin};
use crate::names::{Incarnation, VmName, VmUid};
use crate::spec::{Vm, VmmKind};
use crate::time::Deadline;

/// What stead remembers of a VM. Written after handles.json; where the two disagree, the higher incarnation wins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// The VM.
    pub name: VmName,
    /// Its uid in this state.
    pub uid: VmUid,
    /// The VM's last life; the next one is higher, also after deletion.
    #[serde(default)]
    pub incarnation: Incarnation,
    /// The last good declaration that was taken up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<Accepted>,
    /// What the last life booted with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Booted>,
    /// Which VMM `auto` was settled on, at the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmKind>,
    /// How often the VM was started again after its VMM had ended by itself.
    #[serde(default)]
    pub restarts: u32,
    /// How the last life that ended did so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitRecord>,
    /// The wait before the next start, and what led to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// The value of the annotation `stead.dev/restartedAt` that the VM last started under.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restarted_at: Option<String>,
    /// `stead restart NAME` was asked for and not yet done.
    #[serde(default)]
    pub restart_requested: bool,
    /// `stead delete NAME` was asked for and not yet done.
    #[serde(default)]
    pub delete_requested: bool,
    /// Fields of other versions, kept as they were. [`super::parse_ledger`] finds them: serde would copy every field to tell which.
    #[serde(flatten, skip_deserializing)]
    pub extra: Map<String, Value>,
}

impl Ledger {
    /// The ledger of a VM never seen before.
    pub fn new(name: VmName, uid: VmUid) -> Self {
        Self {
            version: super::FORMAT_VERSION,
            name,
            uid,
            incarnation: Incarnation::default(),
            accepted: None,
            booted: None,
            vmm: None,
            restarts: 0,
            last_exit: None,
            backoff: None,
            restarted_at: None,
            restart_requested: false,
            delete_requested: false,
            extra: Map::new(),
        }
    }
}

/// A declaration that was taken up: what the VM should be, also while its manifest is broken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The VM as declared.
    pub vm: Arc<Vm>,
    /// Where it was declared.
    pub origin: Origin,
    /// The root folder of its source when it was taken up: an empty folder that is not this one means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<FileId>,
    /// Counts the different specs taken up, from 1 (`metadata.generation` of Kubernetes).
    pub generation: u64,
}

/// What a life booted with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Booted {
    /// Which life.
    pub incarnation: Incarnation,
    /// Its spec.
    pub spec: StoredSpec,
    /// The generation of [`Accepted`] it was started from.
    pub generation: u64,
}

/// How one life ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// Which life: an end is counted once a life.
    pub incarnation: Incarnation,
    /// What is known of the VMM's exit.
    pub status: ExitStatus,
    /// Whether stead stopped it; if not, it counts for restartPolicy and back-off.
    pub requested: bool,
    /// What went wrong, for people; such as why a start failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// When it was noticed.
    pub at: jiff::Timestamp,
}

/// What is known of how a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExitStatus {
    /// It exited with this status.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It ended when nobody could see how; counts as a failure.
    Unknown,
    /// It never ran: a start that failed before its VMM lived.
    NeverRan,
    /// The host was rebooted under it.
    HostReboot,
}

impl ExitStatus {
    /// Whether `restartPolicy: OnFailure` lets it rest.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "killed by signal {signal}"),
            Self::Unknown => f.write_str("ended, exit status unknown"),
            Self::NeverRan => f.write_str("never ran"),
            Self::HostReboot => f.write_str("the host was rebooted"),
        }
    }
}

/// A wait before the next start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Failures in a row, without a stable time between.
    pub failures: u32,
    /// Not before this moment.
    pub until: Deadline,
}
