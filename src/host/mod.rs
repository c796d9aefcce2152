//! The seam between decisions and the machine: what can be looked at ([`HostView`]) and what can be done ([`HostOps`]).
//!
//! `observed` is given only a [`HostView`], so that looking cannot change anything. Every call is synchronous and bounded
//! in time; the loop runs them on blocking threads. API calls and file writes are effects like any other.

pub mod checkup;
pub mod devices;
pub mod linux;
pub mod sim;

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::desired::FileId;
use crate::spec::VmmKind;
use crate::state::ExitStatus;
use crate::time::Now;

/// A process that was pinned by a pidfd: whatever becomes of its pid, this names it and no other.
#[derive(Clone)]
pub struct ProcessHandle {
    /// What can be written down of it.
    pub identity: ProcessIdentity,
    /// Its pidfd; `None` on a host that is simulated.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// The connection by which the kernel said that it listens: whoever asks it something next need not make another, which would cost
    /// the VMM a turn of its own.
    pub line: Option<Arc<Line>>,
}

impl ProcessHandle {
    /// The same process, for whoever keeps it: a VMM has room for a few connections only.
    #[must_use]
    pub fn without_line(self) -> Self {
        Self { line: None, ..self }
    }
}

/// A connection on which nothing was said yet, to a socket and the process that listens there. Ends with its last owner.
#[derive(Debug)]
pub struct Line {
    socket: PathBuf,
    stream: Mutex<Option<OwnedFd>>,
}

impl Line {
    /// A connection to this socket.
    pub fn new(socket: &Path, stream: OwnedFd) -> Self {
        Self { socket: socket.to_owned(), stream: Mutex::new(Some(stream)) }
    }

    /// The connection, for the first who wants one to this socket.
    pub fn take(&self, socket: &Path) -> Option<OwnedFd> {
        if self.socket != socket {
            return None;
        }
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for ProcessHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.identity.fmt(f)
    }
}

impl PartialEq for ProcessHandle {
    fn eq(&self, other: &Self) -> bool {
        self.identity == other.identity
    }
}

/// A process as it can be written down and recognised later within the same boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessIdentity {
    /// Its pid in stead's pid namespace.
    pub pid: i32,
    /// Clock ticks since boot at which it started: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
    /// Its pidfd's inode, where the kernel has pidfs (6.9 and later): unique within a boot.
    pub pidfd_inode: Option<u64>,
}

/// What `/proc` says of a live process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Its argument vector, byte for byte.
    pub argv: Vec<Vec<u8>>,
}

/// What a live process takes of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What it has taken of the CPUs since it started, all threads together, the guest's time among it. Counted in clock ticks,
    /// which are 10 ms on nearly every kernel.
    pub cpu: Duration,
    /// Bytes of its address space that are in memory. The kernel keeps count of them in pieces for each CPU, and may be off by
    /// some hundred KiB (proc_pid_statm(5)); the exact number would take a walk through all its pages.
    pub resident: u64,
}

/// Who answers on a unix socket.
#[derive(Debug, Clone, PartialEq)]
pub enum SocketPeer {
    /// This process listens on it.
    Listener(ProcessHandle),
    /// There is no such socket.
    NoSocket,
    /// A socket file that nobody listens on.
    NobodyListens,
    /// Somebody listens, but who cannot be told: its queue is full, or the kernel refused. Never read as absence.
    Unknown(String),
}

/// Whether a VM's `vmm.lock` is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LockProbe {
    /// It exists and nobody holds it: no VMM that was started with it lives.
    Free,
    /// Somebody holds it; the pid that the file names, if its open file is that lock.
    Held(Option<i32>),
    /// There is no such file, which proves nothing.
    NoFile,
    /// It could not be looked at.
    Unknown(String),
}

/// A tap as the kernel shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// Its owner tag.
    pub alias: Option<String>,
    /// The bridge it is a port of, by name.
    pub bridge: Option<String>,
    /// Whether it is administratively up.
    pub up: bool,
}

/// What a VMM says its guest is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestState {
    /// Its CPUs run.
    Running,
    /// Its CPUs are halted by stead or another client of the API.
    Paused,
    /// It was never started.
    NotStarted,
    /// It shut down and its VMM stays.
    ShutDown,
}

/// Why a VMM's API did not give an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VmmError {
    /// Nobody listens yet, or any more.
    #[error("nobody listens on the API socket")]
    NotListening,
    /// No answer within the bound.
    #[error("the API did not answer within {0:?}")]
    TimedOut(Duration),
    /// Somebody else than the VMM listens on its socket: nothing was said to them.
    #[error("another process (pid {0}) listens on the API socket")]
    Stranger(i32),
    /// It serves somebody else and has no room.
    #[error("the API is busy with other clients")]
    Busy,
    /// It answered with an error of its own.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// It answered with what is no answer.
    #[error("the VMM's answer makes no sense: {0}")]
    Nonsense(String),
    /// The connection failed otherwise.
    #[error("the API could not be reached: {0}")]
    Io(String),
}

/// What can be asked of a live VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmmCommand {
    /// Ask the guest to shut down: Ctrl-Alt-Del for Firecracker, the power button for QEMU.
    Shutdown,
    /// Halt the guest's CPUs.
    Pause,
    /// Let them run again.
    Resume,
}

/// A VMM to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnRequest {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, without the program's name.
    pub args: Vec<std::ffi::OsString>,
    /// The VM's `vmm.lock`, which becomes the VMM's standard input.
    pub lock: PathBuf,
    /// Where its standard output goes, appended.
    pub stdout: PathBuf,
    /// Where its standard error goes, appended.
    pub stderr: PathBuf,
    /// The cgroup it begins its life in, by its path below the root of the cgroup v2 hierarchy.
    pub cgroup: Option<String>,
}

/// Why a VMM could not be started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Another VMM of this VM lives: it holds `vmm.lock`.
    #[error("a VMM of this VM is alive already: it holds {}", .0.display())]
    LockHeld(PathBuf),
    /// The program or one of its files could not be used.
    #[error("could not start {}: {source}", program.display())]
    Failed {
        /// The program.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A VMM's program on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it lies.
    pub path: PathBuf,
}

/// What this host has; each fact with what to do where it is missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Firecracker's program.
    pub firecracker: Result<Program, String>,
    /// QEMU's program.
    pub qemu: Result<Program, String>,
    /// Whether `/dev/kvm` can be opened and has the API version that VMMs need.
    pub kvm: Result<(), String>,
    /// Whether the kernel has device-mapper with its snapshot target.
    pub device_mapper: Result<(), String>,
    /// Whether each VM can have a cgroup of its own.
    pub cgroups: Result<devices::CgroupFacts, String>,
}

/// Why a state file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum StateFileError {
    /// The file is there, but it is not what stead wrote: wrong owner, mode or kind.
    #[error("{0}")]
    Untrusted(String),
    /// It could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// What tells a file from another, and from itself after a change, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// Which file it is.
    pub id: FileId,
    /// Its length.
    pub bytes: u64,
    /// When its content last changed, in nanoseconds since the epoch. A kernel may count in ticks of some milliseconds: what
    /// is written in place twice within one looks the same, what is renamed into place never does.
    pub mtime_ns: i128,
}

/// What can be looked at. No call changes anything that anybody else could see.
pub trait HostView: devices::DeviceView {
    /// Whether a call may wait for anything, as every call to a kernel may: then the loop makes it on another thread. A host
    /// in memory may say no, which spares two changes of thread a turn.
    fn may_block(&self) -> bool {
        true
    }

    /// How many questions it was asked so far, by whomever; each takes one to some twenty system calls.
    fn looks(&self) -> u64 {
        0
    }

    /// Gives memory that is not used any more back to the kernel.
    fn give_back_memory(&self) {}

    /// The present moment.
    fn now(&self) -> Now;

    /// A state file's bytes, `None` when there is none. Opened without following a link; refused unless it is a regular
    /// file of stead's own user that nobody else can write.
    fn read_state_file(&self, path: &Path) -> Result<Option<Vec<u8>>, StateFileError>;

    /// The names of a folder's entries, sorted; empty when there is no such folder.
    fn list_folder(&self, path: &Path) -> io::Result<Vec<String>>;

    /// Which file is at this path, and since when it is as it is: one system call. Links are not followed; `None` when there
    /// is none.
    fn file_stamp(&self, path: &Path) -> io::Result<Option<FileStamp>>;

    /// Whether anything is at this path; links are not followed.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Device and inode of a file that links may lead to; `None` when there is none.
    fn file_id(&self, path: &Path) -> io::Result<Option<FileId>>;

    /// Whether stead may read a file, and write it too if `write`: an error that says why not (access(2)).
    fn check_access(&self, path: &Path, write: bool) -> io::Result<()>;

    /// Who listens on a unix socket, told by the kernel and race-free (`SO_PEERPIDFD`, unix(7)).
    fn socket_peer(&self, socket: &Path) -> SocketPeer;

    /// Pins the process that has this pid now; `None` when there is none. Proves nothing about whose it is.
    fn open_process(&self, pid: i32) -> io::Result<Option<ProcessHandle>>;

    /// Whether a pinned process lives: one system call. A zombie does not.
    fn is_alive(&self, process: &ProcessHandle) -> bool;

    /// What `/proc` says of a pinned process; `None` when it has ended (a zombie has).
    fn inspect(&self, process: &ProcessHandle) -> io::Result<Option<ProcessInfo>>;

    /// What a pinned process takes of the CPUs and of the memory; `None` when it has ended. One file to read.
    fn usage(&self, process: &ProcessHandle) -> io::Result<Option<Usage>>;

    /// Whether a VM's `vmm.lock` is held.
    fn probe_lock(&self, lock: &Path) -> LockProbe;

    /// Every process that has `UUID-NUMBER` among its arguments, with that argument: one scan of `/proc`.
    fn scan_processes(&self) -> io::Result<Vec<(i32, String)>>;

    /// How a process that has ended did so, as far as it can be known; reaps it if it was a child of stead.
    fn exit_status(&self, process: &ProcessHandle) -> ExitStatus;

    /// Calls `on_exit` once, when the process ends, or at once if it has. Nobody is told any more once the async runtime that
    /// this was called on has ended.
    fn watch_exit(&self, process: &ProcessHandle, on_exit: Box<dyn FnOnce() + Send>) -> io::Result<()>;

    /// Asks a VMM what its guest is doing. Whoever listens is asked only if it is `peer`: the path may lead to a stranger.
    fn query_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        bound: Duration,
    ) -> Result<GuestState, VmmError>;

    /// Every tap of this network namespace: one netlink dump.
    fn taps(&self) -> io::Result<Vec<Tap>>;

    /// The tap of this name; `None` when there is no interface of this name.
    fn tap(&self, name: &str) -> io::Result<Option<Tap>>;

    /// What this host has, or had a tenth of a second ago.
    fn host_facts(&self) -> HostFacts;

    /// The version that a VMM's program tells of itself, such as `1.12.1`; `None` when it does not. It is run for that, which
    /// takes QEMU a hundredth of a second of the CPU's time, and again only once its file has changed.
    fn program_version(&self, vmm: VmmKind, program: &Program) -> Option<String>;
}

/// A program that is run to its end.
pub struct ProgramRequest<'a> {
    /// Which, by its path or by its name in our `PATH`.
    pub program: &'a Path,
    /// Its arguments, without its own name.
    pub arguments: Vec<OsString>,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The folder it is run in.
    pub folder: &'a Path,
    /// What it reads from its standard input.
    pub input: &'a [u8],
    /// How long it may take, with everything that it starts.
    pub bound: Duration,
    /// The most bytes that it may write to any one file, its output among them.
    pub file_max: u64,
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct ProgramOutput {
    /// Whether it ended by itself, and said that all went well.
    pub success: bool,
    /// Whether its time was over.
    pub timed_out: bool,
    /// Its exit status; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to its standard output.
    pub output: Vec<u8>,
    /// The beginning of what it wrote to its standard error.
    pub errors: String,
}

/// What can be done. Each call says whether it changed anything, and succeeds when there was nothing to do.
pub trait HostOps: HostView + devices::DeviceOps {
    /// Makes a folder of stead's own (0700) with its parents; true when it was not there.
    fn make_folder(&self, path: &Path) -> io::Result<bool>;

    /// Writes a file so that after a crash either the old or the new content is there, and the new one once this returns:
    /// temporary file in the same folder, fsync, rename, fsync of the folder (rename(2), fsync(2)). Mode 0600.
    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Writes a file that need not survive a power cut, all or nothing for its readers. Mode 0600.
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file or socket and makes that durable if `durable`; true when it was there.
    fn remove_file(&self, path: &Path, durable: bool) -> io::Result<bool>;

    /// Moves a file that cannot be trusted out of the way, under a name that says so; gives the new name, or `None` when
    /// there was none.
    fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>>;

    /// Removes what a crashed [`HostOps::write_durable`] left in this folder; gives how many.
    fn sweep_temporaries(&self, folder: &Path) -> io::Result<usize>;

    /// Cuts a log that has grown past `limit` bytes down to its newest half; true when it was cut.
    fn trim_log(&self, path: &Path, limit: u64) -> io::Result<bool>;

    /// Appends a line, which ends with a newline, to a log that several may append to at once (mode 0600). Before it grows past
    /// `limit` bytes it gets the name `before`, whatever had that name goes, and a new one begins. Need not survive a power
    /// cut. After a line of which only a part was written, the next begins on a line of its own.
    fn append_log(&self, path: &Path, before: &Path, line: &[u8], limit: u64) -> io::Result<()>;

    /// Runs a program to its end; it is killed, with all that it started, when its time is over.
    fn run_program(&self, request: &ProgramRequest<'_>) -> io::Result<ProgramOutput>;

    /// Starts a VMM in a session of its own that inherits nothing but its lock and its outputs. The lock is taken in the
    /// child before exec, so that no VMM of this VM ever lives without it.
    fn spawn_vmm(&self, request: &SpawnRequest) -> Result<ProcessHandle, SpawnError>;

    /// Kills a process through its pidfd; true when it still lived.
    fn kill(&self, process: &ProcessHandle) -> io::Result<bool>;

    /// Asks a VMM to do something, if it is `peer` that listens.
    fn command_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        command: VmmCommand,
        bound: Duration,
    ) -> Result<(), VmmError>;

    /// Makes a tap that stays, tagged with `alias`, up, and a port of `bridge` if named, with the bridge's MTU. `AlreadyExists` when an interface
    /// of this name exists, whoever made it. A crash before the last step leaves no tap.
    fn create_tap(&self, name: &str, alias: &str, bridge: Option<&str>) -> io::Result<()>;

    /// Puts a tap on a bridge, or off any.
    fn set_tap_bridge(&self, name: &str, bridge: Option<&str>) -> io::Result<()>;

    /// Tags a tap that carries no tag yet; an error when it carries another's.
    fn tag_tap(&self, name: &str, alias: &str) -> io::Result<()>;

    /// Removes a tap if its alias is `alias`, and confirms that it is gone; true when it was there.
    fn delete_tap(&self, name: &str, alias: &str) -> io::Result<bool>;
}
