//! What a person's check of a host looks at beyond what each pass asks: plain data, which `doctor` judges.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;

use super::HostFacts;
use crate::spec::VmmKind;

/// A host as it was looked at once.
#[derive(Debug, Clone)]
pub struct Checkup {
    /// What each pass asks too.
    pub facts: HostFacts,
    /// The version that each VMM's program tells of itself; one that tells none is left out.
    pub versions: BTreeMap<VmmKind, String>,
    /// The kernel's release, as uname(2) calls it.
    pub kernel: String,
    /// The effective user.
    pub user: User,
    /// Whether interfaces may be made and changed here: `CAP_NET_ADMIN` (capabilities(7)).
    pub net_admin: bool,
    /// `/dev/kvm`.
    pub kvm: Device,
    /// `/dev/net/tun`.
    pub tun: Device,
    /// `/dev/loop-control`.
    pub loop_control: Device,
    /// `/dev/mapper/control`.
    pub dm_control: Device,
    /// Loop devices.
    pub loops: Loops,
    /// Threads of this host.
    pub threads: Threads,
    /// How many files stead may have open, by its hard limit; `None` is no limit (`RLIMIT_NOFILE`, getrlimit(2)).
    pub open_files: Option<u64>,
    /// Watches of folders.
    pub inotify: Inotify,
    /// The clocks.
    pub clock: Clock,
    /// What the kernel's security modules confine this process to, if anything; in their own words.
    pub confined: Option<String>,
}

/// A user by number and, where there is one, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: Option<String>,
}

/// A device file, and what comes of opening it for reading and writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Where it is.
    pub path: PathBuf,
    /// Who may open it; `None` when there is no such file.
    pub owner: Option<Owner>,
    /// What became of it.
    pub opened: Opened,
}

/// What comes of opening a device file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It opens.
    Yes,
    /// There is none.
    Missing,
    /// No driver serves it at present. It was not opened, since that would have the kernel load one.
    NoDriver,
    /// It does not: what the kernel says.
    No(String),
}

/// Whose a file is, and who may do what with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Its owner.
    pub user: User,
    /// Its group.
    pub group: User,
    /// Its permissions.
    pub mode: u32,
}

/// Loop devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loops {
    /// Bound to a file now, by whomever.
    pub bound: u64,
    /// How many there can be.
    pub most: u64,
}

/// Threads of all processes. Each counts against both limits (proc_sys_kernel(5)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threads {
    /// There are now.
    pub used: u64,
    /// `kernel.pid_max`.
    pub pid_max: u64,
    /// `kernel.threads-max`.
    pub threads_max: u64,
}

/// What this user's processes have of inotify(7), and may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inotify {
    /// What the kernel says to one more instance.
    pub one_more: Result<(), String>,
    /// Instances that there are, as far as this process may look.
    pub instances: u64,
    /// `fs.inotify.max_user_instances`.
    pub instances_max: u64,
    /// Watches that there are, as far as this process may look.
    pub watches: u64,
    /// `fs.inotify.max_user_watches`.
    pub watches_max: u64,
}

/// The clocks at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clock {
    /// The time of day.
    pub wall: Timestamp,
    /// Milliseconds since boot, without those in which the host slept.
    pub monotonic_ms: u64,
    /// Milliseconds since boot, with them; looked at later than the others.
    pub boot_ms: u64,
    /// Whether something keeps the time of day right (`STA_UNSYNC`, adjtimex(2)).
    pub synchronised: Result<bool, String>,
}

/// A filesystem's room, to this user (statvfs(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes that are free.
    pub bytes_free: u64,
    /// Inodes in all; 0 where they are not counted.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

/// An interface that manifests name as a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Whether it is one.
    pub is_bridge: bool,
    /// Whether it is administratively up.
    pub is_up: bool,
    /// Its ports.
    pub ports: u64,
    /// The largest packet it carries, in bytes.
    pub mtu: u64,
}

/// A folder of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folder {
    /// Whose it is; `None` when it is not there.
    pub owner: Option<Owner>,
    /// Why it cannot be listed, where it cannot.
    pub unreadable: Option<String>,
    /// It and the folders in it: each takes a watch.
    pub folders: u64,
    /// Whose the files and folders in it are, as far as that differs: each with one of them, and how many there are.
    pub below: Vec<(Owner, PathBuf, u64)>,
}
