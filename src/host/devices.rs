//! What a VM holds in the kernel beyond its process: device-mapper devices, loop devices, taps, cgroups, and the image
//! files under them.
//!
//! The kernel recycles every number it gives (minors, interface indices), so nothing here is known by a number alone: each
//! object carries a tag that says whose it is, and each call that removes one looks at the tag first.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::desired::FileId;

/// Bytes of a sector, in which device-mapper tables and loop devices count whatever the disk has
/// (`Documentation/admin-guide/device-mapper/linear.rst`).
pub const SECTOR: u64 = 512;

/// A device-mapper device as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmDevice {
    /// Its name.
    pub name: String,
    /// Its uuid: its owner tag. Empty when it was made without one.
    pub uuid: String,
    /// What the kernel calls it, such as `dm-3`; the device file is `/dev/dm-3`.
    pub device: String,
    /// How many have it open: processes, mounts, and devices on top of it.
    pub open_count: u32,
    /// Whether it has a live table; one without was left half made.
    pub has_table: bool,
    /// Whether its I/O is halted.
    pub suspended: bool,
    /// Whether somebody asked for it to be removed once nobody has it open: it is still there all the same.
    pub deferred_remove: bool,
    /// What its last target says of itself: for a snapshot `USED/TOTAL METADATA` in sectors, or `Invalid` when its
    /// copy-on-write file failed or overflowed.
    pub status: String,
}

impl DmDevice {
    /// Whether it lost what was written to it: its copy-on-write file failed or overflowed
    /// (`Documentation/admin-guide/device-mapper/snapshot.rst`).
    pub fn is_invalid(&self) -> bool {
        self.status == "Invalid"
    }
}

/// One target of a device-mapper table, in sectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmTarget {
    /// Where it begins in the device.
    pub start: u64,
    /// How long it is.
    pub length: u64,
    /// What it is: `snapshot`, `linear`, `zero`.
    pub kind: &'static str,
    /// Its parameters.
    pub parameters: String,
}

/// A device-mapper device to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DmRequest {
    /// Its name.
    pub name: String,
    /// Its owner tag.
    pub uuid: String,
    /// Its table.
    pub table: Vec<DmTarget>,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// A loop device that is bound to a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopDevice {
    /// What the kernel calls it, such as `loop3`; the device file is `/dev/loop3`.
    pub device: String,
    /// Its owner tag (`lo_file_name`, loop(4)): whatever its maker put there, often a path.
    pub tag: String,
    /// The file it is bound to, true also after that was renamed or unlinked.
    pub backing: FileId,
    /// Where that file was, as sysfs tells it; ends in ` (deleted)` once it was unlinked.
    pub backing_path: PathBuf,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether it lets go of its file by itself once nobody has it open.
    pub autoclear: bool,
    /// How many devices are made on top of it (`/sys/block/loopN/holders`).
    pub devices_on_top: usize,
}

/// A loop device to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopRequest {
    /// The file.
    pub file: PathBuf,
    /// Which file that must be: an error if the path leads to another one by now.
    pub backing: FileId,
    /// Its owner tag, at most 63 bytes.
    pub tag: String,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// A file that is a disk's image, as it was looked at: what tells whether it is still the same, unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The file; a block device by its own number, with inode 0.
    #[serde(flatten)]
    pub id: FileId,
    /// Its length; for a block device its size.
    pub bytes: u64,
    /// When its content last changed, in nanoseconds since the epoch.
    pub mtime_ns: i128,
}

impl ImageIdentity {
    /// Whether it is a block device, which has no inode of its own and no time of change.
    pub fn is_device(&self) -> bool {
        self.id.inode == 0
    }
}

/// How far a copy has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// It is complete and durable under its final name.
    Done {
        /// Whether the filesystem shares the blocks of the two (reflink) instead of having copied them.
        shared: bool,
    },
    /// It goes on from here in the next call.
    Part {
        /// Bytes looked at so far, holes included.
        bytes: u64,
        /// Bytes in all.
        of: u64,
    },
}

/// What a cgroup lets its processes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Microseconds of CPU time in each [`CgroupLimits::CPU_PERIOD_US`] (`cpu.max`).
    pub cpu_quota_us: u64,
    /// Bytes of memory (`memory.max`).
    pub memory_bytes: u64,
}

impl CgroupLimits {
    /// The period of `cpu.max`: the kernel's default.
    pub const CPU_PERIOD_US: u64 = 100_000;
}

/// A cgroup as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// The processes in it, without those in cgroups below it.
    pub processes: Vec<i32>,
    /// Whether any process lives in it or below it (`cgroup.events`).
    pub populated: bool,
    /// `cpu.max` as it is, where the controller is enabled.
    pub cpu_max: Option<String>,
    /// `memory.max` as it is, where the controller is enabled.
    pub memory_max: Option<String>,
}

/// What this host's cgroups can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Why limits cannot be set, where they cannot: a controller that is missing or cannot be enabled.
    pub no_limits: Option<String>,
}

/// A process that has something open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its pid.
    pub pid: i32,
    /// Its name (`/proc/PID/comm`).
    pub command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.command)
    }
}

/// A tap to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapRemoval {
    /// Its name.
    pub name: String,
    /// The tag it must carry.
    pub alias: String,
}

/// Called once with what became of each tap, in the order in which they were given: true when it was there.
pub type TapsRemoved = Box<dyn FnOnce(Vec<io::Result<bool>>) + Send>;

/// What can be looked at of devices. No call changes anything that anybody else could see.
pub trait DeviceView: Send + Sync {
    /// Why device-mapper cannot be used here, or that it can. The modules are loaded if need be and possible.
    fn device_mapper(&self) -> Result<(), String>;

    /// The device-mapper device of this name; `None` also where the kernel has no device-mapper.
    fn dm_device(&self, name: &str) -> io::Result<Option<DmDevice>>;

    /// Every device-mapper device; none where the kernel has no device-mapper.
    fn dm_devices(&self) -> io::Result<Vec<DmDevice>>;

    /// The loop device that the kernel calls `device`, if it is bound to a file.
    fn loop_device(&self, device: &str) -> io::Result<Option<LoopDevice>>;

    /// Every loop device that is bound to a file.
    fn loop_devices(&self) -> io::Result<Vec<LoopDevice>>;

    /// Who has a block device open: processes by their open files, their mounts, and other devices by name.
    /// Slow (a scan of `/proc`): asked only to explain a failure.
    fn holders(&self, device: &str) -> io::Result<Vec<Holder>>;

    /// The processes attached to each tap, by its name: one scan of `/proc`.
    fn tap_holders(&self) -> io::Result<Vec<(String, Holder)>>;

    /// An image, links followed; `None` when there is none.
    fn image(&self, path: &Path) -> io::Result<Option<ImageIdentity>>;

    /// What the host's cgroups can do, or why there are none for VMs.
    fn cgroup_facts(&self) -> Result<CgroupFacts, String>;

    /// A cgroup by its path below the root of the cgroup v2 hierarchy; `None` when there is none.
    fn cgroup(&self, path: &str) -> io::Result<Option<Cgroup>>;

    /// The names of the cgroups right below a cgroup, sorted; empty when there is no such cgroup.
    fn child_cgroups(&self, path: &str) -> io::Result<Vec<String>>;
}

/// What can be done to devices. Each call says whether it changed anything, and succeeds when there was nothing to do.
pub trait DeviceOps: DeviceView {
    /// Binds a file to a free loop device. The loop that carries this tag and is bound to this very file already is given
    /// as it is.
    ///
    /// # Errors
    /// `StaleNetworkFileHandle` when the path leads to another file than [`LoopRequest::backing`]. `ResourceBusy` when the
    /// loop would be writable and another writable one is bound to the file: the kernel would bind it twice.
    fn attach_loop(&self, request: &LoopRequest) -> io::Result<LoopDevice>;

    /// Frees a loop device if its tag is `tag`, and confirms in sysfs that it is free; true when it was bound.
    ///
    /// # Errors
    /// `ResourceBusy`, with who holds it, when the kernel let go of it only in name. `PermissionDenied` when it carries
    /// another tag.
    fn detach_loop(&self, device: &str, tag: &str) -> io::Result<bool>;

    /// Makes a device-mapper device and brings its table to life. A failure leaves nothing behind.
    ///
    /// # Errors
    /// `AlreadyExists` when there is one of this name or uuid.
    fn create_dm(&self, request: &DmRequest) -> io::Result<DmDevice>;

    /// Removes a device-mapper device if its uuid is `uuid`, now and not later, and confirms that it is gone; true when it
    /// was there.
    ///
    /// # Errors
    /// `ResourceBusy`, with who holds it, while it is open. `PermissionDenied` when it carries another uuid.
    fn remove_dm(&self, name: &str, uuid: &str) -> io::Result<bool>;

    /// Asks for taps to be removed, in one batch with all that others ask for meanwhile: the kernel takes 16 ms for one
    /// interface, and little more for many that share a link group. One that does not carry its tag is left alone.
    fn remove_taps(&self, taps: Vec<TapRemoval>, done: TapsRemoved);

    /// Makes a cgroup with its parents, and sets its limits as far as [`DeviceView::cgroup_facts`] allows; true when it was
    /// not there.
    fn make_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<bool>;

    /// Kills every process in a cgroup and below it (`cgroup.kill`); true when there was any.
    fn kill_cgroup(&self, path: &str) -> io::Result<bool>;

    /// Removes a cgroup; true when it was there. `ResourceBusy` while a process lives in it.
    fn remove_cgroup(&self, path: &str) -> io::Result<bool>;

    /// Makes a file of this length that takes no space yet, or grows one that is shorter; never shrinks it. Durable, and
    /// under its name only when complete. Mode 0600. True when that changed anything.
    fn make_sparse_file(&self, path: &Path, bytes: u64) -> io::Result<bool>;

    /// Writes `bytes` over those at `offset` of a file that is there, and makes that durable.
    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Copies an image for at most about `slice`, from where the last call left off. The blocks are shared where the
    /// filesystem can (`FICLONE`), else holes stay holes. The copy gets its final name only when it is complete and durable,
    /// at least `bytes` long. Mode 0600.
    ///
    /// # Errors
    /// `StaleNetworkFileHandle` when the image is not `expected` any more: what was copied is dropped.
    fn copy_image(
        &self,
        image: &Path,
        expected: &ImageIdentity,
        copy: &Path,
        bytes: u64,
        slice: Duration,
    ) -> io::Result<Copied>;

    /// Renames a file or folder within one filesystem, and makes that durable; false when there was none. Never replaces
    /// anything.
    fn rename_durable(&self, from: &Path, to: &Path) -> io::Result<bool>;

    /// Removes a folder with all in it, links not followed; true when it was there.
    fn remove_folder(&self, path: &Path) -> io::Result<bool>;
}
