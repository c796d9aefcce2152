//! A plan: plain data that can be compared, shown and carried out.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use crate::desired::Origin;
use crate::names::{Backing, Incarnation, VmName};
use crate::reasons::Reason;
use crate::spec::{DeletionPolicy, Disk, Vm, VmmKind};
use crate::state::{ExitRecord, Ledger};
use crate::time::Deadline;

/// What would make observed equal desired, VM by VM, and what is held back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// One entry for each VM that is declared or observed, also for those with nothing to do.
    pub vms: BTreeMap<VmName, VmPlan>,
    /// The digest of the deletions that the prune cap holds back: what `stead approve` takes. `None` when it holds none.
    pub digest: Option<String>,
}

impl Plan {
    /// The VMs whose deletion the prune cap holds back.
    pub fn held(&self) -> impl Iterator<Item = &VmName> {
        let is_held = |vm: &VmPlan| vm.holds.iter().any(|hold| matches!(hold, Hold::PruneCap { .. }));
        self.vms.iter().filter(move |(_, vm)| is_held(vm)).map(|(name, _)| name)
    }

    /// Whether there is anything to do now.
    pub fn is_empty(&self) -> bool {
        self.vms.values().all(|vm| vm.actions.is_empty())
    }
}

/// What to do about one VM.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct VmPlan {
    /// In this order; one that cannot be finished now ends the pass for this VM.
    pub actions: Vec<Action>,
    /// Why something that is wanted is not done now.
    pub holds: Vec<Hold>,
    /// What a person should know though nothing is to be done: a broken manifest beside a last good spec, a spec that
    /// nobody knows, a change that waits for the next start.
    pub notes: Vec<String>,
    /// When to look again, at the latest.
    pub wake: Option<Deadline>,
}

impl VmPlan {
    /// A digest of exactly these actions on this VM, in this order: what was planned can be found again among what was done.
    pub fn digest(&self, name: &VmName) -> String {
        let text = self.actions.iter().fold(name.to_string(), |text, action| text + &format!("\n{action}"));
        Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()[..12].to_owned()
    }
}

/// One action. Carrying it out decides nothing more.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Write the ledger: a declaration taken up, an end counted, a request done. Touches no VM.
    Record {
        /// What the ledger becomes.
        ledger: Box<Ledger>,
        /// What changes, for people.
        why: String,
    },
    /// Record a live VM proven ours, without touching it.
    Persist {
        /// Why its record is not as it should be.
        reason: PersistReason,
    },
    /// Make one of its own disks ready for its next start.
    PrepareDisk {
        /// The disk as declared.
        disk: Disk,
        /// What is done to it.
        how: Preparation,
    },
    /// Make the kernel objects, spawn the VMM, record it.
    Start {
        /// What to start.
        vm: Arc<Vm>,
        /// Where it was declared.
        origin: Origin,
        /// Which life this will be.
        incarnation: Incarnation,
        /// What runs it.
        vmm: VmmKind,
    },
    /// Stop the VMM if it lives, free every kernel object, forget the handles.
    Teardown {
        /// Why.
        reason: TeardownReason,
        /// How long the guest may take to stop by itself; zero kills at once.
        grace_seconds: u32,
    },
    /// Forget a deleted VM for good, except what outlives it: its last incarnation, and its own disks.
    Forget {
        /// What becomes of its own disks, if it has any.
        disks: Option<DeletionPolicy>,
    },
    /// Halt the guest's CPUs.
    Pause,
    /// Let them run again.
    Resume,
    /// Put a tap back on its bridge, or off any.
    RepairTap {
        /// The tap.
        tap: String,
        /// The bridge it belongs on.
        bridge: Option<String>,
    },
}

/// What is done to a VM's own disk before the VM can start with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preparation {
    /// The VM was deleted and is declared again: its disks come back from the trash.
    Restore {
        /// When they were thrown away, in seconds since the epoch.
        deleted_at: u64,
    },
    /// What is there was made from something else: it is kept under a name that says so.
    SetAside {
        /// From what else.
        why: String,
    },
    /// The image it was made from has another name now.
    Relocate,
    /// It is made from its image.
    Create {
        /// What its file will be.
        backing: Backing,
    },
    /// It is made longer.
    Grow {
        /// Bytes that the guest will see.
        bytes: u64,
    },
}

/// Why a live VM is recorded again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PersistReason {
    /// Its start is complete: the guest was seen to run.
    Started,
    /// It has no record.
    RecordMissing,
    /// Its record cannot be trusted.
    RecordFlawed(String),
    /// Its record is of another life or process than the one alive.
    RecordStale,
    /// A hot field changed, such as a bridge, and the record follows.
    HandlesChanged,
}

/// Why a VM is torn down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TeardownReason {
    /// Its manifest is gone, and its source is complete.
    Absent,
    /// Its manifest is for another host now.
    Elsewhere,
    /// `stead delete NAME`.
    DeleteRequested,
    /// It is declared `Stopped`.
    Stopped,
    /// It changed in these fields, which a running VM cannot take up.
    SpecChanged(Vec<String>),
    /// `stead restart NAME` or the annotation.
    RestartRequested,
    /// Its VMM is dead and left something.
    Died,
    /// Its guest never ran within the start timeout.
    NeverStarted(String),
    /// Its guest shut down and its VMM stayed.
    GuestShutDown,
    /// A teardown begun earlier goes on.
    Resumed,
}

/// Why something that is wanted is not done now.
#[derive(Debug, Clone, PartialEq)]
pub enum Hold {
    /// What is on record of it could not be read just now.
    Unread(String),
    /// It cannot be told whether its VMM lives.
    IdentityUnknown(String),
    /// Its VMM lives, and its API does not answer.
    Unhealthy(String),
    /// Its VMM was spawned, and its guest is not yet seen to run.
    Starting,
    /// The wait after failures.
    BackingOff {
        /// Failures in a row.
        failures: u32,
        /// Until when.
        until: Deadline,
        /// How the last life ended.
        last: Option<ExitRecord>,
    },
    /// It ended, and its restartPolicy lets it rest.
    Finished(ExitRecord),
    /// Its manifest is broken and it was never applied.
    InvalidManifest(String),
    /// It is declared more than once, and none of the declarations is in force.
    Conflict(String),
    /// Its source is not complete, so its absence means nothing.
    SourceIncomplete(Vec<String>),
    /// It is absent, and `pruneDelay` has not passed.
    PruneDelay(Deadline),
    /// It is absent and protected by `stead.dev/prune: disabled`.
    Protected,
    /// It is for another host now, and one of stead's annotations on what was applied here keeps it.
    KeptHere,
    /// It is absent, and the folder is empty and not the one it was applied from.
    FolderReplaced,
    /// It is absent, and with it more VMs than the prune cap lets through.
    PruneCap {
        /// Deletions wanted now and done within the window.
        deletions: usize,
        /// VMs at the window's start.
        of: usize,
    },
    /// It lives in this state and no manifest ever declared it.
    Unclaimed,
    /// `stead.dev/suspend: "true"` asks to leave it alone.
    Suspended,
    /// A change that needs a restart waits for it (`updatePolicy: OnRestart`).
    OnRestart(Vec<String>),
    /// The image under a copy-on-write disk is not what it was: what was written over it means nothing any more.
    BaseChanged(String),
    /// Something that it holds failed under it, and nothing here can mend it while it lives.
    Broken(String),
    /// What it needs is not there: a program, `/dev/kvm`, an image in use by another VM.
    Unmet(String),
}

impl Hold {
    /// Every reason that there is.
    pub const REASONS: [&'static str; 20] = [
        "StateUnread",
        "IdentityUnknown",
        "Unhealthy",
        "Starting",
        "BackingOff",
        "Finished",
        "InvalidManifest",
        "Conflict",
        "SourceIncomplete",
        "PruneDelay",
        "Protected",
        "KeptHere",
        "FolderReplaced",
        "PruneCap",
        "Unclaimed",
        "Suspended",
        "OnRestart",
        "BaseChanged",
        "Broken",
        "Unmet",
    ];

    /// Its reason in one word, as conditions carry them.
    pub fn reason(&self) -> &'static str {
        self.why().word()
    }

    /// Its reason.
    pub fn why(&self) -> Reason {
        match self {
            Self::Unread(_) => Reason::StateUnread,
            Self::IdentityUnknown(_) => Reason::IdentityUnknown,
            Self::Unhealthy(_) => Reason::Unhealthy,
            Self::Starting => Reason::Starting,
            Self::BackingOff { .. } => Reason::BackingOff,
            Self::Finished(_) => Reason::Finished,
            Self::InvalidManifest(_) => Reason::InvalidManifest,
            Self::Conflict(_) => Reason::Conflict,
            Self::SourceIncomplete(_) => Reason::SourceIncomplete,
            Self::PruneDelay(_) => Reason::PruneDelay,
            Self::Protected => Reason::Protected,
            Self::KeptHere => Reason::KeptHere,
            Self::FolderReplaced => Reason::FolderReplaced,
            Self::PruneCap { .. } => Reason::PruneCap,
            Self::Unclaimed => Reason::Unclaimed,
            Self::Suspended => Reason::Suspended,
            Self::OnRestart(_) => Reason::OnRestart,
            Self::BaseChanged(_) => Reason::BaseChanged,
            Self::Broken(_) => Reason::Broken,
            Self::Unmet(_) => Reason::Unmet,
        }
    }

    /// Whether a safety gate refused, which `stead approve` or a look at the source releases (exit status 4).
    pub fn is_gate(&self) -> bool {
        matches!(self, Self::FolderReplaced | Self::PruneCap { .. })
    }

    /// Whether it could not start now, whatever became of the life before.
    pub fn is_unmet(&self) -> bool {
        matches!(self, Self::Unmet(_) | Self::BaseChanged(_))
    }

    /// Whether this is as its user wants it, so that nothing needs anybody's attention.
    pub fn is_at_rest(&self) -> bool {
        matches!(self, Self::Finished(_) | Self::Protected | Self::Suspended | Self::OnRestart(_))
    }
}

/// How many deletions `reconcile --once --allow-prune N` lets through beyond the cap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AllowPrune(pub usize);

impl Action {
    /// Every kind that there is.
    pub const KINDS: [&'static str; 9] =
        ["record", "persist", "prepare-disk", "start", "teardown", "forget", "pause", "resume", "repair-tap"];

    /// Its name in one word, for logs and counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Record { .. } => "record",
            Self::Persist { .. } => "persist",
            Self::PrepareDisk { .. } => "prepare-disk",
            Self::Start { .. } => "start",
            Self::Teardown { .. } => "teardown",
            Self::Forget { .. } => "forget",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::RepairTap { .. } => "repair-tap",
        }
    }

    /// The reason of the event that tells of it, as Kubernetes writes them.
    pub fn event_reason(&self) -> Reason {
        match self {
            Self::Record { .. } => Reason::Recorded,
            Self::Persist { reason: PersistReason::Started } => Reason::Started,
            Self::Persist { .. } => Reason::Adopted,
            Self::PrepareDisk { .. } => Reason::DiskPrepared,
            Self::Start { .. } => Reason::Starting,
            Self::Teardown { .. } => Reason::TornDown,
            Self::Forget { .. } => Reason::Deleted,
            Self::Pause => Reason::Paused,
            Self::Resume => Reason::Resumed,
            Self::RepairTap { .. } => Reason::Repaired,
        }
    }
}
