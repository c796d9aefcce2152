//! What is checked, and why it matters.

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
