//! The real host: system calls, netlink messages and the VMMs' sockets. The only home of `unsafe`.
//!
//! Nothing here decides anything. Every call is bounded in time: files and processes are local, and what waits for a
//! VMM or for netlink has a deadline of its own.

#![allow(
    unsafe_code,
    reason = "ioctls, clone3 and registering a pidfd have no safe form; each block says why it is sound"
)]

mod append;
mod arenas;
mod birth;
mod cgroup;
pub mod checkup;
mod clock;
pub mod conversation;
mod device_mapper;
mod devices;
mod exits;
mod facts;
mod files;
mod holders;
mod http;
mod images;
mod io_thread;
mod job_control;
mod kernel_files;
mod link_dump;
mod lock;
mod logs;
mod loops;
mod netlink;
mod open_files;
mod peer;
pub mod proc;
mod process;
mod programs;
mod scope;
mod spawn;
mod tap;
mod tap_removal;
mod vmm_client;

pub use job_control::stop_until_continued;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{
    FileStamp, GuestState, HostFacts, HostOps, HostView, LockProbe, ProcessHandle, ProcessInfo, Program, ProgramOutput,
    ProgramRequest, SocketPeer, SpawnError, SpawnRequest, StateFileError, Tap, Usage, VmmCommand, VmmError,
};
use crate::desired::FileId;
use crate::spec::VmmKind;
use crate::state::ExitStatus;
use crate::time::Now;

/// What the real host must be told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinuxHostConfig {
    /// Firecracker's program: a path, or a name to be found in `PATH`; `None` is `firecracker`.
    pub firecracker: Option<PathBuf>,
    /// QEMU's program, in the same way; `None` is `qemu-system-` and this machine's architecture.
    pub qemu: Option<PathBuf>,
}

/// This machine.
///
/// Children are waited for by their pidfds here and nowhere else: a `waitpid(-1)` elsewhere in the process would take
/// their exit status away, and let a pid be recycled while it is still looked at.
pub struct LinuxHost {
    clock: clock::Clock,
    facts: facts::Facts,
    exits: exits::Exits,
    io: io_thread::IoThread,
    tap_removal: tap_removal::TapRemover,
    cgroups: cgroup::Cgroups,
    looks: AtomicU64,
}

impl LinuxHost {
    /// The machine this process runs on.
    ///
    /// # Errors
    /// When `/proc` does not tell which boot this is.
    pub fn new(config: LinuxHostConfig) -> io::Result<Self> {
        spawn::keep_exit_statuses();
        open_files::allow_most();
        arenas::share();
        birth::reserve()?;
        Ok(Self {
            clock: clock::Clock::new()?,
            facts: facts::Facts::new(config),
            exits: exits::Exits::default(),
            io: io_thread::IoThread::default(),
            tap_removal: tap_removal::TapRemover::default(),
            cgroups: cgroup::Cgroups::default(),
            looks: AtomicU64::default(),
        })
    }

    fn count_look(&self) {
        self.looks.fetch_add(1, Ordering::Relaxed);
    }
}

impl HostView for LinuxHost {
    fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn give_back_memory(&self) {
        arenas::give_back();
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    fn read_state_file(&self, path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
        self.count_look();
        files::read_state_file(path)
    }

    fn list_folder(&self, path: &Path) -> io::Result<Vec<String>> {
        self.count_look();
        files::list_folder(path)
    }

    fn file_stamp(&self, path: &Path) -> io::Result<Option<FileStamp>> {
        self.count_look();
        files::stamp(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.count_look();
        files::exists(path)
    }

    fn file_id(&self, path: &Path) -> io::Result<Option<FileId>> {
        self.count_look();
        files::file_id(path)
    }

    fn check_access(&self, path: &Path, write: bool) -> io::Result<()> {
        self.count_look();
        files::check_access(path, write)
    }

    fn socket_peer(&self, socket: &Path) -> SocketPeer {
        self.count_look();
        peer::socket_peer(socket)
    }

    fn open_process(&self, pid: i32) -> io::Result<Option<ProcessHandle>> {
        self.count_look();
        process::open(pid)
    }

    fn is_alive(&self, process: &ProcessHandle) -> bool {
        self.count_look();
        process::is_alive(process)
    }

    fn inspect(&self, process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
        self.count_look();
        process::inspect(process)
    }

    fn usage(&self, process: &ProcessHandle) -> io::Result<Option<Usage>> {
        self.count_look();
        process::usage(process)
    }

    fn probe_lock(&self, lock: &Path) -> LockProbe {
        self.count_look();
        lock::probe(lock)
    }

    fn scan_processes(&self) -> io::Result<Vec<(i32, String)>> {
        self.count_look();
        process::scan()
    }

    fn exit_status(&self, process: &ProcessHandle) -> ExitStatus {
        self.count_look();
        self.exits.status(process)
    }

    fn watch_exit(&self, process: &ProcessHandle, on_exit: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.count_look();
        self.exits.watch(&self.io, process, on_exit)
    }

    fn query_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        bound: Duration,
    ) -> Result<GuestState, VmmError> {
        self.count_look();
        vmm_client::query(vmm, api_socket, peer, bound)
    }

    fn taps(&self) -> io::Result<Vec<Tap>> {
        self.count_look();
        tap::all()
    }

    fn tap(&self, name: &str) -> io::Result<Option<Tap>> {
        self.count_look();
        tap::one(&self.io, name)
    }

    fn host_facts(&self) -> HostFacts {
        self.count_look();
        self.facts.get(&self.cgroups)
    }

    fn program_version(&self, vmm: VmmKind, program: &Program) -> Option<String> {
        self.count_look();
        self.facts.version(vmm, &program.path)
    }
}

impl HostOps for LinuxHost {
    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        files::make_folder(path)
    }

    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::write(path, bytes, files::Durability::PowerCut)
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::write(path, bytes, files::Durability::Process)
    }

    fn remove_file(&self, path: &Path, durable: bool) -> io::Result<bool> {
        files::remove(path, durable)
    }

    fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        files::set_aside(path, self.clock.now().wall)
    }

    fn sweep_temporaries(&self, folder: &Path) -> io::Result<usize> {
        files::sweep_temporaries(folder)
    }

    fn trim_log(&self, path: &Path, limit: u64) -> io::Result<bool> {
        logs::trim(path, limit)
    }

    fn append_log(&self, path: &Path, before: &Path, line: &[u8], limit: u64) -> io::Result<()> {
        append::append(path, before, line, limit)
    }

    fn run_program(&self, request: &ProgramRequest<'_>) -> io::Result<ProgramOutput> {
        programs::run(request)
    }

    fn spawn_vmm(&self, request: &SpawnRequest) -> Result<ProcessHandle, SpawnError> {
        let child = spawn::spawn(request, &self.cgroups)?;
        self.exits.register(&child);
        Ok(child)
    }

    fn kill(&self, process: &ProcessHandle) -> io::Result<bool> {
        process::kill(process)
    }

    fn command_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        command: VmmCommand,
        bound: Duration,
    ) -> Result<(), VmmError> {
        vmm_client::command(vmm, api_socket, peer, command, bound)
    }

    fn create_tap(&self, name: &str, alias: &str, bridge: Option<&str>) -> io::Result<()> {
        tap::create(&self.io, name, alias, bridge)
    }

    fn set_tap_bridge(&self, name: &str, bridge: Option<&str>) -> io::Result<()> {
        tap::set_bridge(&self.io, name, bridge)
    }

    fn tag_tap(&self, name: &str, alias: &str) -> io::Result<()> {
        tap::tag(&self.io, name, alias)
    }

    fn delete_tap(&self, name: &str, alias: &str) -> io::Result<bool> {
        tap::delete(&self.io, name, alias)
    }
}

/// An error of this kind that says `text`.
fn error(kind: io::ErrorKind, text: impl Into<String>) -> io::Error {
    io::Error::new(kind, text.into())
}
