//! Where one state keeps its files, sockets and cgroups.

use std::path::{Path, PathBuf};

use super::ids::read_number;
use super::{Backing, Incarnation, SOCKET_PATH_MAX, ShortUid, StateId, VmName, VmUid};

/// The slice of systemd's that the scopes of all states are in.
pub const SLICE: &str = "stead.slice";
/// How the name of a scope ends (systemd.scope(5)).
pub const SCOPE_SUFFIX: &str = ".scope";

/// Where one state keeps its files and sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// This state's id.
    pub state_id: StateId,
    /// STATE: durable files.
    pub state_dir: PathBuf,
    /// RUN/ID: sockets, gone after a reboot.
    pub run_dir: PathBuf,
    /// Whether the hierarchy of cgroups is systemd's: see [`Layout::cgroups`].
    under_systemd: bool,
}

/// A run folder that leaves no room for socket names.
#[derive(Debug, thiserror::Error)]
#[error(
    "the run folder {} is too long: the path of a unix socket has at most {SOCKET_PATH_MAX} bytes and this one would \
     need {needed}; choose a shorter one with --run-dir",
    run_dir.display()
)]
pub struct RunDirTooLong {
    run_dir: PathBuf,
    needed: usize,
}

impl Layout {
    /// A layout whose every socket fits [`SOCKET_PATH_MAX`]; `run_dir` is RUN, to which the state's folder is added.
    pub fn new(state_id: StateId, state_dir: PathBuf, run_dir: &Path) -> Result<Self, RunDirTooLong> {
        let layout = Self { state_id, state_dir, run_dir: run_dir.join(state_id.short()), under_systemd: false };
        let longest = layout.identity_socket(&"x".parse().expect("a valid name"), Incarnation(u64::MAX));
        let needed = longest.as_os_str().len();
        if needed > SOCKET_PATH_MAX {
            return Err(RunDirTooLong { run_dir: run_dir.to_owned(), needed });
        }
        Ok(layout)
    }

    /// The same on a host whose cgroups are systemd's to give, if they are.
    #[must_use]
    pub fn under_systemd(self, under_systemd: bool) -> Self {
        Self { under_systemd, ..self }
    }

    /// The uid of the VM of this name.
    pub fn uid(&self, name: &VmName) -> VmUid {
        self.state_id.uid(name)
    }

    /// STATE/lock: whoever holds its flock is the one actor on this state.
    pub fn lock(&self) -> PathBuf {
        self.state_dir.join("lock")
    }

    /// STATE/gates.json: recent deletions and approvals.
    pub fn gates(&self) -> PathBuf {
        self.state_dir.join("gates.json")
    }

    /// STATE/host.json: what this host is called.
    pub fn host(&self) -> PathBuf {
        self.state_dir.join("host.json")
    }

    /// STATE/audit.jsonl: what was done, a line each.
    pub fn audit_log(&self) -> PathBuf {
        self.state_dir.join("audit.jsonl")
    }

    /// STATE/audit.jsonl.1: what was done before [`Layout::audit_log`] begins.
    pub fn audit_log_before(&self) -> PathBuf {
        self.state_dir.join("audit.jsonl.1")
    }

    /// STATE/trash: disks of pruned VMs.
    pub fn trash(&self) -> PathBuf {
        self.state_dir.join("trash")
    }

    /// STATE/sources/NAME: the repository of a git source, and which commit of it is in force.
    pub fn source(&self, name: &str) -> PathBuf {
        self.state_dir.join("sources").join(name)
    }

    /// STATE/vms: one folder a VM.
    pub fn vms(&self) -> PathBuf {
        self.state_dir.join("vms")
    }

    /// STATE/vms/NAME.
    pub fn vm_dir(&self, name: &VmName) -> PathBuf {
        self.vms().join(name.as_str())
    }

    /// The lock that a live VMM of this VM holds.
    pub fn vmm_lock(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("vmm.lock")
    }

    /// What this VM holds on the host.
    pub fn handles(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("handles.json")
    }

    /// What stead remembers of this VM beyond its handles.
    pub fn ledger(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("ledger.json")
    }

    /// What `stead get` shows of this VM; nothing decides from it.
    pub fn status(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("status.json")
    }

    /// The guest's serial console, appended to by the VMM.
    pub fn console_log(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("console.log")
    }

    /// The VMM's own standard output and error.
    pub fn vmm_log(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("vmm.log")
    }

    /// The VMM's configuration file (Firecracker's `--config-file`).
    pub fn vmm_config(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("vmm.json")
    }

    /// The API socket of one life of a VM: named by a hash of the VM, since names of 63 characters would not fit.
    pub fn api_socket(&self, name: &VmName, incarnation: Incarnation) -> PathBuf {
        self.run_dir.join(format!("{}-{incarnation}.sock", self.short_uid(name)))
    }

    /// A second socket of VMMs whose API serves one client (QEMU's QMP): connected to only to learn who listens.
    pub fn identity_socket(&self, name: &VmName, incarnation: Incarnation) -> PathBuf {
        self.run_dir.join(format!("{}-{incarnation}.id.sock", self.short_uid(name)))
    }

    /// Reads back a socket's file name: which life of this VM it is of, and whether it is its identity socket.
    pub fn read_socket_name(&self, name: &VmName, file_name: &str) -> Option<(Incarnation, bool)> {
        let stem = file_name.strip_prefix(self.short_uid(name).as_str())?.strip_prefix('-')?.strip_suffix(".sock")?;
        let (digits, is_identity) = stem.strip_suffix(".id").map_or((stem, false), |digits| (digits, true));
        Some((Incarnation::read(digits)?, is_identity))
    }

    /// Reads back whose socket a file name in the run folder is, whichever VM's it is.
    pub fn read_socket_owner(file_name: &str) -> Option<ShortUid> {
        let stem = file_name.strip_suffix(".sock")?;
        let (uid, number) = stem.strip_suffix(".id").unwrap_or(stem).split_once('-')?;
        read_number(number)?;
        ShortUid::parse(uid)
    }

    /// The socket of a running `stead run`.
    pub fn control_socket(&self) -> PathBuf {
        self.run_dir.join("stead.sock")
    }

    /// The folder of the VM's own disks, each with a record of what it was made from.
    pub fn disks(&self, name: &VmName) -> PathBuf {
        self.vm_dir(name).join("disks")
    }

    /// What the VM's own disk was made from, and how.
    pub fn disk_record(&self, name: &VmName, disk: &VmName) -> PathBuf {
        self.disks(name).join(format!("{disk}.json"))
    }

    /// The file of the VM's own disk.
    pub fn disk_file(&self, name: &VmName, disk: &VmName, backing: Backing) -> PathBuf {
        self.disks(name).join(format!("{disk}.{}", backing.extension()))
    }

    /// STATE/trash/NAME.SECONDS: the disks of a VM that was deleted so many seconds after the epoch.
    pub fn trash_entry(&self, name: &VmName, deleted_at: u64) -> PathBuf {
        self.trash().join(format!("{name}.{deleted_at}"))
    }

    /// Reads back what [`Layout::trash_entry`] built: whose disks, and when they were thrown away.
    pub fn read_trash_entry(entry: &str) -> Option<(VmName, u64)> {
        // A VM's name contains no dot.
        let (name, seconds) = entry.split_once('.')?;
        Some((VmName::new(name).ok()?, read_number(seconds)?))
    }

    /// STATE/orphans.json: when each object was first seen that nothing accounts for.
    pub fn orphans(&self) -> PathBuf {
        self.state_dir.join("orphans.json")
    }

    /// The cgroup under which all of this state's are, below the root of the cgroup v2 hierarchy. Under systemd it is that of a
    /// scope, which systemd hands over: in its hierarchy nobody else makes cgroups by themselves
    /// (<https://systemd.io/CGROUP_DELEGATION>).
    pub fn cgroups(&self) -> String {
        if self.under_systemd {
            format!("{SLICE}/stead-{}{SCOPE_SUFFIX}", self.state_id)
        } else {
            format!("stead/{}", self.state_id)
        }
    }

    /// The cgroup of this VM's processes. A VM's name contains no dot, as every file of the kernel's in there does.
    pub fn cgroup(&self, name: &VmName) -> String {
        format!("{}/{name}", self.cgroups())
    }

    /// The cgroup that a life of this VM was recorded with, where it is one that stead gives; else the one it would be given now. They
    /// differ for one that was begun before the hierarchy was systemd's, or where that cannot be seen.
    pub fn cgroup_of(&self, name: &VmName, recorded: Option<&str>) -> String {
        let other = Self { under_systemd: !self.under_systemd, ..self.clone() };
        let recorded = recorded.filter(|recorded| *recorded == other.cgroup(name));
        recorded.map_or_else(|| self.cgroup(name), str::to_owned)
    }

    fn short_uid(&self, name: &VmName) -> ShortUid {
        self.uid(name).short()
    }
}
