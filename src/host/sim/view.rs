//! What a simulated host shows.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::SimHost;
use super::files::Node;
use super::world::{Cpus, Dm, Loop, World};
use crate::desired::FileId;
use crate::host::devices::{Cgroup, CgroupFacts, DeviceView, DmDevice, Holder, ImageIdentity, LoopDevice};
use crate::host::{
    FileStamp, GuestState, HostFacts, HostView, LockProbe, ProcessHandle, ProcessInfo, Program, SocketPeer,
    StateFileError, Tap, Usage, VmmError,
};
use crate::spec::VmmKind;
use crate::state::ExitStatus;
use crate::time::Now;

/// Why a VMM that is there gives no answer.
pub(super) fn answers(world: &mut World, socket: &Path, peer: &ProcessHandle, bound: Duration) -> Result<(), VmmError> {
    let listener = match world.files.at(socket) {
        Some(Node::Socket(_)) => world.listener(socket).map(|process| process.identity),
        _ => None,
    };
    match listener {
        None => Err(VmmError::NotListening),
        Some(identity) if identity != peer.identity => Err(VmmError::Stranger(identity.pid)),
        Some(_) if world.vmm_mut(peer).is_none_or(|vmm| vmm.hung) => {
            world.clock += u64::try_from(bound.as_millis()).unwrap_or(0);
            Err(VmmError::TimedOut(bound))
        }
        Some(_) => Ok(()),
    }
}

impl HostView for SimHost {
    fn may_block(&self) -> bool {
        self.has_threads
    }

    fn looks(&self) -> u64 {
        self.looks() as u64
    }

    fn now(&self) -> Now {
        self.look(|world| {
            let boot_ms = world.now();
            let seconds = 1_700_000_000 + i64::try_from(boot_ms / 1000).unwrap_or(0) + world.wall_ahead;
            let wall = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
            Now { boot_id: world.boot_id(), boot_ms, wall }
        })
    }

    fn read_state_file(&self, path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
        let seen = self.see(|world| match world.files.at(path) {
            None => Ok(None),
            Some(Node::File(_)) => Ok(world.files.read(path).map(|bytes| bytes.to_vec())),
            Some(_) => Err(StateFileError::Untrusted(format!("{} is not a regular file", path.display()))),
        });
        seen.unwrap_or_else(|source| Err(StateFileError::Io { path: path.to_owned(), source }))
    }

    fn list_folder(&self, path: &Path) -> io::Result<Vec<String>> {
        self.see(|world| match world.files.at(path) {
            None | Some(Node::Folder) => Ok(world.files.list(path)),
            Some(_) => Err(io::ErrorKind::NotADirectory.into()),
        })?
    }

    fn file_stamp(&self, path: &Path) -> io::Result<Option<FileStamp>> {
        self.see(|world| {
            let id = world.files.file(path)?;
            let content = world.files.content(id)?;
            Some(FileStamp { id, bytes: content.length, mtime_ns: i128::from(content.modified) * 1_000_000 })
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.see(|world| world.files.at(path).is_some())
    }

    fn file_id(&self, path: &Path) -> io::Result<Option<FileId>> {
        self.see(|world| world.files.file(path))
    }

    fn check_access(&self, path: &Path, _write: bool) -> io::Result<()> {
        self.see(|world| world.files.file(path))?.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn socket_peer(&self, socket: &Path) -> SocketPeer {
        let seen = self.see(|world| match world.files.at(socket) {
            Some(Node::Socket(_)) => match world.listener(socket) {
                Some(process) => {
                    SocketPeer::Listener(ProcessHandle { identity: process.identity, pidfd: None, line: None })
                }
                None => SocketPeer::NobodyListens,
            },
            Some(_) => SocketPeer::NobodyListens,
            None => SocketPeer::NoSocket,
        });
        seen.unwrap_or_else(|error| SocketPeer::Unknown(error.to_string()))
    }

    fn open_process(&self, pid: i32) -> io::Result<Option<ProcessHandle>> {
        let found = self.look(|world| world.processes.get(&pid).map(|process| process.identity));
        Ok(found.map(|identity| ProcessHandle { identity, pidfd: None, line: None }))
    }

    fn is_alive(&self, process: &ProcessHandle) -> bool {
        self.look(|world| world.find(process).is_some())
    }

    fn inspect(&self, process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
        let bytes = |words: &Vec<String>| words.iter().map(|word| word.clone().into_bytes()).collect();
        self.see(|world| world.find(process).map(|found| ProcessInfo { argv: bytes(&found.argv) }))
    }

    /// Waiting is all that a simulated process does.
    fn usage(&self, process: &ProcessHandle) -> io::Result<Option<Usage>> {
        self.see(|world| world.find(process).map(|_| Usage::default()))
    }

    fn probe_lock(&self, lock: &Path) -> LockProbe {
        let seen = self.see(|world| match (world.holder(lock), world.files.at(lock)) {
            (Some(process), _) => LockProbe::Held(Some(process.identity.pid)),
            (None, Some(_)) => LockProbe::Free,
            (None, None) => LockProbe::NoFile,
        });
        seen.unwrap_or_else(|error| LockProbe::Unknown(error.to_string()))
    }

    fn scan_processes(&self) -> io::Result<Vec<(i32, String)>> {
        let is_id = |word: &&String| word.get(..36).is_some_and(|uuid| uuid.parse::<uuid::Uuid>().is_ok());
        self.see(|world| {
            let found = world.processes.iter().map(|(pid, process)| (*pid, process.argv.iter().find(is_id)));
            found.filter_map(|(pid, id)| Some((pid, id?.clone()))).collect()
        })
    }

    fn exit_status(&self, process: &ProcessHandle) -> ExitStatus {
        self.look(|world| {
            let ended = world.ended.iter().find(|(identity, _, _)| *identity == process.identity);
            match ended {
                // Only its parent is told how a process ended.
                Some((_, parent, status)) if *parent == Some(self.number) => *status,
                _ => ExitStatus::Unknown,
            }
        })
    }

    fn watch_exit(&self, process: &ProcessHandle, on_exit: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.look(|world| world.watch(process, on_exit));
        Ok(())
    }

    fn query_vmm(
        &self,
        _vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        bound: Duration,
    ) -> Result<GuestState, VmmError> {
        let seen = self.see(|world| {
            answers(world, api_socket, peer, bound)?;
            let now = world.now();
            let vmm = world.vmm_mut(peer).ok_or(VmmError::NotListening)?;
            Ok(match (vmm.cpus != Cpus::Run, now >= vmm.runs_at) {
                (true, _) => GuestState::Paused,
                (false, true) => GuestState::Running,
                (false, false) => GuestState::NotStarted,
            })
        });
        seen.unwrap_or_else(|error| Err(VmmError::Io(error.to_string())))
    }

    fn taps(&self) -> io::Result<Vec<Tap>> {
        self.see(|world| world.taps.iter().map(|(name, tap)| tap_of(name, tap)).collect())
    }

    fn tap(&self, name: &str) -> io::Result<Option<Tap>> {
        self.see(|world| world.taps.get(name).map(|tap| tap_of(name, tap)))
    }

    fn host_facts(&self) -> HostFacts {
        let program = |path: &str| Ok(Program { path: path.into() });
        HostFacts {
            firecracker: program("/usr/bin/firecracker"),
            qemu: program("/usr/bin/qemu-system-x86_64"),
            kvm: Ok(()),
            device_mapper: self.device_mapper(),
            cgroups: self.cgroup_facts(),
        }
    }

    fn program_version(&self, vmm: VmmKind, _program: &Program) -> Option<String> {
        Some(match vmm {
            VmmKind::Firecracker => "1.12.1".to_owned(),
            VmmKind::Qemu => "7.2.22".to_owned(),
        })
    }
}

impl DeviceView for SimHost {
    fn device_mapper(&self) -> Result<(), String> {
        let is_missing = self.look(|world| world.no_device_mapper);
        if is_missing { Err("this kernel has no device-mapper".to_owned()) } else { Ok(()) }
    }

    fn dm_device(&self, name: &str) -> io::Result<Option<DmDevice>> {
        self.see(|world| world.dm.get(name).map(|dm| dm_of(world, name, dm)))
    }

    fn dm_devices(&self) -> io::Result<Vec<DmDevice>> {
        self.see(|world| world.dm.iter().map(|(name, dm)| dm_of(world, name, dm)).collect())
    }

    fn loop_device(&self, device: &str) -> io::Result<Option<LoopDevice>> {
        let number = number_of(device);
        self.see(|world| Some(loop_of(world, number?, world.loops.get(&number?)?)))
    }

    fn loop_devices(&self) -> io::Result<Vec<LoopDevice>> {
        self.see(|world| world.loops.iter().map(|(number, found)| loop_of(world, *number, found)).collect())
    }

    fn holders(&self, device: &str) -> io::Result<Vec<Holder>> {
        let is_open = self.look(|world| world.strangers_open.contains(device));
        Ok(is_open.then(|| Holder { pid: 4711, command: "blkid".to_owned() }).into_iter().collect())
    }

    fn tap_holders(&self) -> io::Result<Vec<(String, Holder)>> {
        self.see(|world| {
            let vmms = world.processes.iter().filter_map(|(pid, process)| Some((*pid, process.vmm.as_ref()?)));
            let holder = |pid| Holder { pid, command: "vmm".to_owned() };
            vmms.flat_map(|(pid, vmm)| vmm.taps.iter().map(move |tap| (tap.clone(), holder(pid)))).collect()
        })
    }

    fn image(&self, path: &Path) -> io::Result<Option<ImageIdentity>> {
        self.see(|world| {
            let id = world.files.file(path)?;
            let content = world.files.content(id)?;
            Some(ImageIdentity { id, bytes: content.length, mtime_ns: i128::from(content.modified) * 1_000_000 })
        })
    }

    fn cgroup_facts(&self) -> Result<CgroupFacts, String> {
        Ok(CgroupFacts { no_limits: None })
    }

    fn cgroup(&self, path: &str) -> io::Result<Option<Cgroup>> {
        self.see(|world| {
            let limits = world.cgroups.get(path)?;
            let processes = world.members(path);
            let populated = !world.populace(path).is_empty();
            Some(Cgroup {
                processes,
                populated,
                cpu_max: limits.map(|limits| format!("{} 100000", limits.cpu_quota_us)),
                memory_max: limits.map(|limits| limits.memory_bytes.to_string()),
            })
        })
    }

    fn child_cgroups(&self, path: &str) -> io::Result<Vec<String>> {
        let below = format!("{path}/");
        self.see(|world| {
            let names = world.cgroups.keys().filter_map(|found| found.strip_prefix(&below));
            names.filter(|name| !name.contains('/')).map(str::to_owned).collect()
        })
    }
}

impl World {
    /// The processes right in a cgroup.
    pub(super) fn members(&self, path: &str) -> Vec<i32> {
        let inside = self.processes.iter().filter(|(_, process)| process.cgroup.as_deref() == Some(path));
        inside.map(|(pid, _)| *pid).collect()
    }

    /// The processes in a cgroup and below it.
    pub(super) fn populace(&self, path: &str) -> Vec<i32> {
        let below = format!("{path}/");
        let is_in = |of: &str| of == path || of.starts_with(&below);
        let inside = self.processes.iter().filter(|(_, process)| process.cgroup.as_deref().is_some_and(is_in));
        inside.map(|(pid, _)| *pid).collect()
    }

    /// Whether a cgroup can be removed.
    pub(super) fn is_cgroup_free(&self, path: &str) -> bool {
        let below = format!("{path}/");
        self.populace(path).is_empty() && !self.cgroups.keys().any(|found| found.starts_with(&below))
    }
}

pub(super) fn number_of(device: &str) -> Option<u32> {
    device.strip_prefix("loop")?.parse().ok()
}

pub(super) fn loop_of(world: &World, number: u32, found: &Loop) -> LoopDevice {
    let device = format!("loop{number}");
    let devices_on_top = world.dm.values().filter(|dm| dm.below().any(|below| below == device)).count();
    LoopDevice {
        device,
        tag: found.tag.clone(),
        backing: found.backing,
        backing_path: found.path.clone(),
        read_only: found.read_only,
        autoclear: found.autoclear,
        devices_on_top,
    }
}

pub(super) fn dm_of(world: &World, name: &str, dm: &Dm) -> DmDevice {
    DmDevice {
        name: name.to_owned(),
        uuid: dm.uuid.clone(),
        device: format!("dm-{}", dm.minor),
        open_count: world.dm_open_count(name),
        has_table: !dm.table.is_empty(),
        suspended: false,
        deferred_remove: false,
        status: dm.table.last().map_or_else(String::new, |_| "16/32768 16".to_owned()),
    }
}

fn tap_of(name: &str, tap: &super::world::Tap) -> Tap {
    Tap { name: name.to_owned(), alias: tap.alias.clone(), bridge: tap.bridge.clone(), up: tap.up }
}

/// A handle is shared freely.
const _: fn() = || {
    fn is_shared<T: Send + Sync>() {}
    is_shared::<Arc<SimHost>>();
};
