//! What can be done to a simulated host: each effect with the errors that the real one can give, with what it leaves when
//! stead dies in its middle, and with the same answers.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc::{EACCES, EAGAIN, EBUSY, EEXIST, EINTR, EIO, EMFILE, ENODEV, ENOMEM, ENOSPC, EPERM, ESRCH, ETIMEDOUT};

use super::files::{Content, Node};
use super::view::{answers, loop_of, number_of};
use super::world::{Dm, Lead, Loop, Tap, World};
use super::{Effect, SimHost};
use crate::host::devices::{
    CgroupLimits, Copied, DeviceOps, DmDevice, DmRequest, ImageIdentity, LoopDevice, LoopRequest, TapRemoval,
    TapsRemoved,
};
use crate::host::{
    HostOps, ProcessHandle, ProgramOutput, ProgramRequest, SpawnError, SpawnRequest, VmmCommand, VmmError,
};
use crate::spec::VmmKind;
use crate::state::ExitStatus;

const FILE: &[i32] = &[ENOSPC, EIO, EMFILE];
/// Only the sync at the end failed.
const SYNC: &[i32] = &[EIO];
const DEVICE: &[i32] = &[EBUSY, ENOMEM, EINTR];
const NETLINK: &[i32] = &[ENOMEM, EBUSY, EINTR];

fn effect(call: &'static str, on: impl Into<String>, errors: &'static [i32]) -> Effect {
    Effect { call, on: on.into(), errors, errors_done: &[], has_half: false }
}

fn on_file(call: &'static str, path: &Path) -> Effect {
    effect(call, path.display().to_string(), FILE)
}

impl Effect {
    fn or_done(self, errors_done: &'static [i32]) -> Self {
        Self { errors_done, ..self }
    }

    fn with_half(self) -> Self {
        Self { has_half: true, ..self }
    }
}

fn nothing(_: &mut World) {}

fn error(kind: io::ErrorKind, text: impl Into<String>) -> io::Error {
    io::Error::new(kind, text.into())
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Where a file is written before it gets its name. Of this name there is one at a time, since one thread at a time writes
/// a file.
fn temporary(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.tmp.1-1-1"))
}

/// A folder is nothing that could be written or replaced.
fn no_folder(world: &World, path: &Path) -> io::Result<()> {
    if world.files.at(path) == Some(Node::Folder) { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(()) }
}

fn write(world: &mut World, path: &Path, bytes: &[u8], is_durable: bool) -> io::Result<()> {
    no_folder(world, path)?;
    world.need_room(path)?;
    let temporary = temporary(path);
    // What a life before left there has another name on the real host.
    world.files.rename(vec![(temporary.clone(), None)]);
    let now = world.now();
    let id = world.files.create(&temporary, now)?;
    let content = world.content(bytes);
    world.files.write(id, content);
    if is_durable {
        world.files.sync_file(id);
    }
    world.files.rename(vec![(temporary, None), (path.to_owned(), Some(Node::File(id)))]);
    if is_durable {
        world.files.sync_folder(folder_of(path));
    }
    Ok(())
}

/// A temporary file with some of the bytes.
fn half_write(world: &mut World, path: &Path, bytes: &[u8]) {
    let now = world.now();
    if let Ok(id) = world.files.create(&temporary(path), now) {
        let content = world.content(&bytes[..bytes.len() / 2]);
        world.files.write(id, content);
    }
}

/// Appends to a log; a line of which only a part was written is ended first.
fn append(world: &mut World, path: &Path, line: &[u8]) -> io::Result<()> {
    let before = world.files.read(path);
    let mut bytes = before.as_deref().unwrap_or_default().to_vec();
    if bytes.last().is_some_and(|last| *last != b'\n') {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(line);
    let id = match world.files.at(path) {
        Some(Node::File(id)) => id,
        _ => world.files.create(path, world.now())?,
    };
    let content = world.content(&bytes);
    world.files.write(id, content);
    Ok(())
}

fn make_folder(world: &mut World, path: &Path) -> io::Result<bool> {
    match world.files.at(path) {
        Some(Node::Folder) => return Ok(false),
        Some(_) => return Err(io::ErrorKind::NotADirectory.into()),
        None => {}
    }
    if folder_of(path) != Path::new("/") {
        make_folder(world, folder_of(path))?;
    }
    world.need_room(path)?;
    world.files.make_folder(path)?;
    world.files.sync_folder(folder_of(path));
    Ok(true)
}

fn remove(world: &mut World, path: &Path, is_durable: bool) -> bool {
    if world.files.at(path).is_none() {
        return false;
    }
    world.may_remove(path);
    world.files.rename(vec![(path.to_owned(), None)]);
    if is_durable {
        world.files.sync_folder(folder_of(path));
    }
    true
}

impl HostOps for SimHost {
    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        if self.look(|world| world.files.at(path) == Some(Node::Folder)) {
            return Ok(false);
        }
        let half = |world: &mut World| drop(make_folder(world, folder_of(path)));
        self.effect(on_file("make_folder", path).with_half(), half, |world| make_folder(world, path))
    }

    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let half = |world: &mut World| half_write(world, path, bytes);
        let what = on_file("write_durable", path).with_half().or_done(SYNC);
        self.effect(what, half, |world| write(world, path, bytes, true))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let half = |world: &mut World| half_write(world, path, bytes);
        self.effect(on_file("write_file", path).with_half(), half, |world| write(world, path, bytes, false))
    }

    fn remove_file(&self, path: &Path, durable: bool) -> io::Result<bool> {
        if self.look(|world| world.files.at(path).is_none()) {
            return Ok(false);
        }
        let what = effect("remove_file", path.display().to_string(), &[EIO, EACCES]).or_done(SYNC);
        self.effect(what, nothing, |world| {
            no_folder(world, path)?;
            Ok(remove(world, path, durable))
        })
    }

    fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        if self.look(|world| world.files.at(path).is_none()) {
            return Ok(None);
        }
        self.effect(on_file("set_aside", path).or_done(SYNC), nothing, |world| {
            let Some(node) = world.files.at(path) else { return Ok(None) };
            let aside = (1..).map(|count| PathBuf::from(format!("{}.corrupt-{count}", path.display())));
            let aside = aside.into_iter().find(|aside| world.files.at(aside).is_none()).unwrap_or_default();
            world.files.rename(vec![(path.to_owned(), None), (aside.clone(), Some(node))]);
            world.files.sync_folder(folder_of(path));
            Ok(Some(aside))
        })
    }

    fn sweep_temporaries(&self, folder: &Path) -> io::Result<usize> {
        let is_temporary = |name: &String| name.starts_with('.') && name.contains(".tmp.");
        let names = self.look(|world| world.files.list(folder));
        let mut swept = 0;
        for name in names.iter().filter(|name| is_temporary(name)) {
            swept += usize::from(self.remove_file(&folder.join(name), false)?);
        }
        Ok(swept)
    }

    fn trim_log(&self, _path: &Path, _limit: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn append_log(&self, path: &Path, before: &Path, line: &[u8], limit: u64) -> io::Result<()> {
        let half = |world: &mut World| drop(append(world, path, &line[..line.len() / 2]));
        self.effect(on_file("append_log", path).with_half(), half, |world| {
            no_folder(world, path)?;
            world.need_room(path)?;
            let length = world.files.read(path).map_or(0, |bytes| bytes.len());
            if length > 0 && (length + line.len()) as u64 > limit {
                let log = world.files.at(path);
                world.files.rename(vec![(path.to_owned(), None), (before.to_owned(), log)]);
            }
            append(world, path, line)
        })
    }

    fn run_program(&self, request: &ProgramRequest<'_>) -> io::Result<ProgramOutput> {
        let what = format!("a simulated host has no {}", request.program.display());
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }

    fn spawn_vmm(&self, request: &SpawnRequest) -> Result<ProcessHandle, SpawnError> {
        let lock = request.lock.clone();
        let cgroup = request.cgroup.as_ref();
        let is_held = |world: &mut World| {
            world.is_locked(&lock) && cgroup.is_none_or(|cgroup| world.cgroups.contains_key(cgroup))
        };
        if self.look(is_held) {
            return Err(SpawnError::LockHeld(lock));
        }
        let number = self.number;
        let what = effect("spawn_vmm", lock.display().to_string(), &[ENOMEM, EAGAIN, EMFILE]).or_done(&[ESRCH]);
        let spawned = self.effect(what, nothing, |world| {
            let id = request.args.iter().position(|arg| arg == "--id" || arg == "-name");
            let id = id.and_then(|at| request.args.get(at + 1)).map(|id| id.to_string_lossy().into_owned());
            let uid = id.as_deref().and_then(|id| id.rsplit_once('-')).map_or("", |(uid, _)| uid).to_owned();
            world.needs_record("process", &uid);
            let identity = world.spawn(request, Some(number))?;
            world.one_vmm(identity.pid);
            Ok(ProcessHandle { identity, pidfd: None, line: None })
        });
        spawned.map_err(|source| SpawnError::Failed { program: request.program.clone(), source })
    }

    fn kill(&self, process: &ProcessHandle) -> io::Result<bool> {
        let what = effect("kill", process.identity.pid.to_string(), &[EPERM]).or_done(&[EIO]);
        self.effect(what, nothing, |world| {
            if world.find(process).is_none() {
                return Ok(false);
            }
            world.may_kill(process.identity.pid);
            world.kill(process.identity.pid);
            Ok(true)
        })
    }

    fn command_vmm(
        &self,
        _vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        command: VmmCommand,
        bound: Duration,
    ) -> Result<(), VmmError> {
        let what = effect("command_vmm", format!("{command:?}"), &[ETIMEDOUT, EIO]).or_done(&[ETIMEDOUT]);
        let mut refused = None;
        let done = self.effect(what, nothing, |world| {
            if let Err(why) = answers(world, api_socket, peer, bound) {
                refused = Some(why);
                return Err(io::ErrorKind::Other.into());
            }
            match command {
                VmmCommand::Shutdown => world.shut_down(peer),
                VmmCommand::Pause | VmmCommand::Resume => world.pause(peer, command == VmmCommand::Pause),
            }
            Ok(())
        });
        self.have_events_come();
        done.map_err(|error| refused.unwrap_or_else(|| VmmError::Io(error.to_string())))
    }

    fn create_tap(&self, name: &str, alias: &str, bridge: Option<&str>) -> io::Result<()> {
        // A crash in its middle leaves no tap: it vanishes with the open file.
        self.effect(effect("create_tap", name, NETLINK), nothing, |world| {
            if world.taps.contains_key(name) || world.bridges.contains(name) {
                return Err(error(io::ErrorKind::AlreadyExists, format!("an interface named {name} exists")));
            }
            need_bridge(world, bridge)?;
            world.needs_record("tap", name);
            let tap = Tap { alias: Some(alias.to_owned()), bridge: bridge.map(str::to_owned), up: true };
            world.taps.insert(name.to_owned(), tap);
            Ok(())
        })
    }

    fn set_tap_bridge(&self, name: &str, bridge: Option<&str>) -> io::Result<()> {
        self.effect(effect("set_tap_bridge", name, NETLINK), nothing, |world| {
            need_bridge(world, bridge)?;
            let tap = world.taps.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
            tap.bridge = bridge.map(str::to_owned);
            tap.up = true;
            Ok(())
        })
    }

    fn tag_tap(&self, name: &str, alias: &str) -> io::Result<()> {
        self.effect(effect("tag_tap", name, NETLINK), nothing, |world| {
            let tap = world.taps.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
            match &tap.alias {
                Some(found) if found != alias => Err(foreign(name, tap.alias.as_deref())),
                _ => {
                    tap.alias = Some(alias.to_owned());
                    Ok(())
                }
            }
        })
    }

    fn delete_tap(&self, name: &str, alias: &str) -> io::Result<bool> {
        self.effect(effect("delete_tap", name, NETLINK), nothing, |world| remove_tap(world, name, alias))
    }
}

fn need_bridge(world: &World, bridge: Option<&str>) -> io::Result<()> {
    match bridge.filter(|bridge| !world.bridges.contains(*bridge)) {
        Some(bridge) => Err(error(io::ErrorKind::NotFound, format!("there is no bridge named {bridge}"))),
        None => Ok(()),
    }
}

fn remove_tap(world: &mut World, name: &str, alias: &str) -> io::Result<bool> {
    match world.taps.get(name) {
        None => Ok(false),
        Some(tap) if tap.alias.as_deref() != Some(alias) => Err(foreign(name, tap.alias.as_deref())),
        Some(_) => Ok(world.taps.remove(name).is_some()),
    }
}

fn foreign(name: &str, tag: Option<&str>) -> io::Error {
    error(io::ErrorKind::PermissionDenied, format!("{name} carries the tag {tag:?}: it is not this VM's"))
}

impl DeviceOps for SimHost {
    fn attach_loop(&self, request: &LoopRequest) -> io::Result<LoopDevice> {
        if let Some(found) = self.look(|world| attached(world, request)) {
            return Ok(found);
        }
        let what = effect("attach_loop", request.tag.clone(), &[EBUSY, ENOMEM, EMFILE]);
        self.effect(what, nothing, |world| {
            match world.files.file(&request.file) {
                None => return Err(io::ErrorKind::NotFound.into()),
                Some(found) if found != request.backing => return Err(io::ErrorKind::StaleNetworkFileHandle.into()),
                Some(_) => {}
            }
            let is_written = world.loops.values().any(|found| found.backing == request.backing && !found.read_only);
            if is_written && !request.read_only {
                return Err(error(io::ErrorKind::ResourceBusy, "it is bound to a loop device already"));
            }
            world.needs_record("loop", &request.tag);
            let number = (0..=u32::MAX).find(|number| !world.loops.contains_key(number)).unwrap_or(0);
            let made = Loop {
                tag: request.tag.clone(),
                backing: request.backing,
                path: request.file.clone(),
                read_only: request.read_only,
                autoclear: false,
            };
            world.loops.insert(number, made.clone());
            Ok(loop_of(world, number, &made))
        })
    }

    fn detach_loop(&self, device: &str, tag: &str) -> io::Result<bool> {
        let number = number_of(device).ok_or(io::ErrorKind::InvalidInput)?;
        if self.look(|world| !world.loops.contains_key(&number)) {
            return Ok(false);
        }
        self.effect(effect("detach_loop", device, DEVICE).or_done(&[EBUSY]), nothing, |world| {
            let is_open = world.is_loop_open(number);
            match world.loops.get_mut(&number) {
                None => Ok(false),
                Some(found) if found.tag != tag => Err(foreign(device, Some(&found.tag))),
                Some(found) if is_open => {
                    found.autoclear = true;
                    Err(error(io::ErrorKind::ResourceBusy, format!("loop device {device} is in use")))
                }
                Some(_) => Ok(world.loops.remove(&number).is_some()),
            }
        })
    }

    fn create_dm(&self, request: &DmRequest) -> io::Result<DmDevice> {
        let half = |world: &mut World| {
            let is_taken = world.dm.contains_key(&request.name);
            if !is_taken {
                let minor = world.new_minor();
                world.dm.insert(request.name.clone(), Dm { uuid: request.uuid.clone(), minor, table: Vec::new() });
            }
        };
        self.effect(effect("create_dm", request.name.clone(), DEVICE).with_half(), half, |world| {
            if world.dm.iter().any(|(name, dm)| *name == request.name || dm.uuid == request.uuid) {
                return Err(error(io::ErrorKind::AlreadyExists, format!("there is a device {}", request.name)));
            }
            world.needs_record("device-mapper device", &request.uuid);
            let minor = world.new_minor();
            let dm = Dm { uuid: request.uuid.clone(), minor, table: request.table.clone() };
            if let Some(missing) = dm.below().find(|below| world.leads_to(&Path::new("/dev").join(below)).is_none()) {
                return Err(error(io::ErrorKind::NotFound, format!("there is no device {missing}")));
            }
            let is_half = |below: &&str| match world.leads_to(&Path::new("/dev").join(below)) {
                Some(Lead::Dm(name)) => world.dm[&name].table.is_empty(),
                _ => false,
            };
            if dm.below().any(|below| is_half(&below)) {
                // Nobody can open it.
                return Err(io::Error::from_raw_os_error(ENODEV));
            }
            world.dm.insert(request.name.clone(), dm.clone());
            Ok(super::view::dm_of(world, &request.name, &dm))
        })
    }

    fn remove_dm(&self, name: &str, uuid: &str) -> io::Result<bool> {
        if self.look(|world| !world.dm.contains_key(name)) {
            return Ok(false);
        }
        self.effect(effect("remove_dm", name, DEVICE), nothing, |world| match world.dm.get(name) {
            None => Ok(false),
            Some(dm) if dm.uuid != uuid => Err(foreign(name, Some(&dm.uuid))),
            Some(_) if world.dm_open_count(name) > 0 => {
                Err(error(io::ErrorKind::ResourceBusy, format!("{name} is open by pid 4711 (blkid)")))
            }
            Some(_) => {
                world.dm.remove(name);
                world.let_go_of_loops();
                Ok(true)
            }
        })
    }

    fn remove_taps(&self, taps: Vec<TapRemoval>, done: TapsRemoved) {
        let names: Vec<&str> = taps.iter().map(|tap| tap.name.as_str()).collect();
        let what = effect("remove_taps", names.join(" "), NETLINK).or_done(&[ETIMEDOUT]).with_half();
        let half = |world: &mut World| {
            if let Some(first) = taps.first() {
                let _ = remove_tap(world, &first.name, &first.alias);
            }
        };
        let results = self.effect(what, half, |world| {
            Ok(taps.iter().map(|tap| remove_tap(world, &tap.name, &tap.alias)).collect::<Vec<_>>())
        });
        if self.is_dead() {
            return;
        }
        done(results.unwrap_or_else(|error| {
            taps.iter().map(|_| Err(io::Error::new(error.kind(), error.to_string()))).collect()
        }));
    }

    fn make_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<bool> {
        let limits = *limits;
        let parents =
            |path: &str| -> Vec<String> { path.match_indices('/').map(|(at, _)| path[..at].to_owned()).collect() };
        let half = |world: &mut World| {
            for parent in parents(path) {
                world.cgroups.entry(parent).or_insert(None);
            }
            world.cgroups.entry(path.to_owned()).or_insert(None);
        };
        self.effect(effect("make_cgroup", path, &[ENOMEM, EBUSY, EACCES]).with_half(), half, |world| {
            let is_new = !world.cgroups.contains_key(path);
            if is_new {
                world.needs_record("cgroup", path);
            }
            for parent in parents(path) {
                world.cgroups.entry(parent).or_insert(None);
            }
            world.cgroups.insert(path.to_owned(), Some(limits));
            Ok(is_new)
        })
    }

    fn kill_cgroup(&self, path: &str) -> io::Result<bool> {
        if self.look(|world| world.populace(path).is_empty()) {
            return Ok(false);
        }
        self.effect(effect("kill_cgroup", path, &[EACCES]), nothing, |world| {
            for pid in world.populace(path) {
                // What was put into a VM's cgroup goes with it, whoever put it there.
                world.end(pid, ExitStatus::Signal(9));
            }
            Ok(true)
        })
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<bool> {
        if self.look(|world| !world.cgroups.contains_key(path)) {
            return Ok(false);
        }
        self.effect(effect("remove_cgroup", path, &[EBUSY]), nothing, |world| {
            if !world.is_cgroup_free(path) {
                return Err(io::ErrorKind::ResourceBusy.into());
            }
            world.cgroups.remove(path);
            // Its parents go too, up to the first that others' VMs are in.
            for (at, _) in path.rmatch_indices('/') {
                if !world.is_cgroup_free(&path[..at]) {
                    break;
                }
                world.cgroups.remove(&path[..at]);
            }
            Ok(true)
        })
    }

    fn make_sparse_file(&self, path: &Path, bytes: u64) -> io::Result<bool> {
        let length = |world: &mut World| Some(world.files.content(world.files.file(path)?)?.length);
        if self.look(length).is_some_and(|length| length >= bytes) {
            return Ok(false);
        }
        let half = |world: &mut World| half_write(world, path, b"");
        self.effect(on_file("make_sparse_file", path).with_half(), half, |world| {
            no_folder(world, path)?;
            world.need_room(path)?;
            let modified = world.now();
            match world.files.file(path) {
                Some(id) => {
                    let content = world.files.content(id).cloned().unwrap_or_default();
                    world.files.write(id, Content { length: bytes, modified, ..content });
                    world.files.sync_file(id);
                }
                None => finish(world, path, Content { length: bytes, modified, ..Content::default() })?,
            }
            Ok(true)
        })
    }

    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.effect(on_file("overwrite", path).or_done(SYNC), nothing, |world| {
            no_folder(world, path)?;
            let id = world.files.file(path).ok_or(io::ErrorKind::NotFound)?;
            // What takes no space yet takes some now.
            world.need_room(path)?;
            let old = world.files.content(id).cloned().unwrap_or_default();
            let (start, end) =
                (usize::try_from(offset).unwrap_or(0), usize::try_from(offset).unwrap_or(0) + bytes.len());
            let mut all = old.bytes.to_vec();
            all.resize(all.len().max(end), 0);
            all[start..end].copy_from_slice(bytes);
            let length = old.length.max(all.len() as u64);
            let modified = world.now();
            world.files.write(id, Content { bytes: all.into(), length, modified });
            world.files.sync_file(id);
            Ok(())
        })
    }

    fn copy_image(
        &self,
        image: &Path,
        expected: &ImageIdentity,
        copy: &Path,
        bytes: u64,
        _slice: Duration,
    ) -> io::Result<Copied> {
        if self.look(|world| world.files.at(copy).is_some()) {
            return Ok(Copied::Done { shared: false });
        }
        let half = |world: &mut World| half_write(world, copy, b"the first half of a copy");
        self.effect(on_file("copy_image", copy).with_half(), half, |world| {
            let id = world.files.file(image).ok_or(io::ErrorKind::NotFound)?;
            let content = world.files.content(id).cloned().unwrap_or_default();
            let mtime_ns = i128::from(content.modified) * 1_000_000;
            if (ImageIdentity { id, bytes: content.length, mtime_ns }) != *expected {
                return Err(error(io::ErrorKind::StaleNetworkFileHandle, "the image changed"));
            }
            world.need_room(copy)?;
            let modified = world.now();
            finish(world, copy, Content { length: content.length.max(bytes), modified, ..content })?;
            Ok(Copied::Done { shared: false })
        })
    }

    fn rename_durable(&self, from: &Path, to: &Path) -> io::Result<bool> {
        if self.look(|world| world.files.at(from).is_none()) {
            return Ok(false);
        }
        let what = effect("rename_durable", from.display().to_string(), &[EIO, ENOSPC, EEXIST]).or_done(SYNC);
        self.effect(what, nothing, |world| {
            let Some(node) = world.files.at(from) else { return Ok(false) };
            if world.files.at(to).is_some() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if to.starts_with(from) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            if world.files.at(folder_of(to)) != Some(Node::Folder) {
                return Err(io::ErrorKind::NotFound.into());
            }
            world.files.move_to(from, to, node);
            world.files.sync_folder(folder_of(to));
            world.files.sync_folder(folder_of(from));
            Ok(true)
        })
    }

    fn remove_folder(&self, path: &Path) -> io::Result<bool> {
        if self.look(|world| world.files.at(path).is_none()) {
            return Ok(false);
        }
        let half = |world: &mut World| {
            let first = world.files.below(path).map(|(path, _)| path.to_owned()).last();
            if let Some(first) = first {
                remove(world, &first, false);
            }
        };
        let what = effect("remove_folder", path.display().to_string(), &[EIO, EACCES]).or_done(SYNC).with_half();
        self.effect(what, half, |world| {
            if world.files.at(path) != Some(Node::Folder) {
                return Err(io::ErrorKind::NotADirectory.into());
            }
            let mut inside: Vec<PathBuf> = world.files.below(path).map(|(path, _)| path.to_owned()).collect();
            inside.reverse();
            for inner in inside.iter().chain([&path.to_owned()]) {
                remove(world, inner, false);
            }
            world.files.sync_folder(folder_of(path));
            Ok(true)
        })
    }
}

impl SimHost {
    /// Has what happens by itself happen at its time, as long as this life lasts: a guest that shuts down.
    fn have_events_come(&self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let Some(at) = self.look(|world| Some(world.next_event()?.saturating_sub(world.now()))) else { return };
        let machine = self.machine.clone();
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_millis(at + 1)).await;
            machine.change(|_| ());
        });
    }
}

/// A complete and durable file gets its name.
fn finish(world: &mut World, path: &Path, content: Content) -> io::Result<()> {
    let temporary = temporary(path);
    world.files.rename(vec![(temporary.clone(), None)]);
    let now = world.now();
    let id = world.files.create(&temporary, now)?;
    world.files.write(id, content);
    world.files.sync_file(id);
    world.files.rename(vec![(temporary, None), (path.to_owned(), Some(Node::File(id)))]);
    world.files.sync_folder(folder_of(path));
    Ok(())
}

fn attached(world: &World, request: &LoopRequest) -> Option<LoopDevice> {
    let same = |found: &&Loop| {
        found.tag == request.tag
            && found.backing == request.backing
            && found.read_only == request.read_only
            && !found.autoclear
    };
    world.loops.iter().find(|(_, found)| same(found)).map(|(number, found)| loop_of(world, *number, found))
}
