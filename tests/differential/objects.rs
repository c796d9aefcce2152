//! Files, taps, loop devices, cgroups and device-mapper devices.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use stead::host::HostOps;
use stead::host::devices::{CgroupLimits, DmRequest, DmTarget, LoopRequest, SECTOR};
use stead::host::sim::Random;

use super::{Simulated, below, told};

/// Bytes of a base, of a copy-on-write file, and of a disk that is larger than its base.
const BASE: u64 = 1 << 20;
const COW: u64 = 4 << 20;
const GROWN: u64 = 2 << 20;

/// One call, with everything that it takes.
#[derive(Debug, Clone)]
pub enum Call {
    MakeFolder(PathBuf),
    Write {
        path: PathBuf,
        bytes: usize,
        durable: bool,
    },
    Read(PathBuf),
    List(PathBuf),
    Exists(PathBuf),
    Remove(PathBuf),
    RemoveFolder(PathBuf),
    Rename(PathBuf, PathBuf),
    Sparse(PathBuf, u64),
    Overwrite(PathBuf, u64),
    CreateTap {
        name: String,
        alias: String,
        bridge: Option<&'static str>,
    },
    SetBridge {
        name: String,
        bridge: Option<&'static str>,
    },
    Tag {
        name: String,
        alias: String,
    },
    DeleteTap {
        name: String,
        alias: String,
    },
    Tap(String),
    Attach {
        file: PathBuf,
        tag: String,
        read_only: bool,
    },
    Detach {
        of: String,
        tag: String,
    },
    Loop(String),
    MakeCgroup(String),
    RemoveCgroup(String),
    KillCgroup(String),
    Cgroup(String),
    ChildCgroups(String),
    CreateDm {
        name: String,
        uuid: String,
        table: Table,
    },
    /// Somebody else makes one and leaves it without a table.
    HalfDm {
        name: String,
        uuid: String,
    },
    RemoveDm {
        name: String,
        uuid: String,
    },
    Dm(String),
    DmDevices,
    /// Somebody else opens the device that carries this tag, or has this name, and closes it.
    Open(String),
    Close(String),
}

/// The table of a device-mapper device, by the tags of the loops under it and by the names of devices.
#[derive(Debug, Clone)]
pub enum Table {
    /// A base, and zeros up to a larger size.
    Grown { base: String },
    /// What was written over another device.
    Snapshot { origin: String, cow: String },
}

impl Call {
    /// Whether it changes nothing.
    pub fn is_look(&self) -> bool {
        matches!(
            self,
            Self::Read(_)
                | Self::List(_)
                | Self::Exists(_)
                | Self::Tap(_)
                | Self::Loop(_)
                | Self::Cgroup(_)
                | Self::ChildCgroups(_)
                | Self::Dm(_)
                | Self::DmDevices
        )
    }
}

/// A call about files, taps, loop devices or cgroups.
pub fn any(random: &mut Random, root: &Path) -> Call {
    let below = |random: &mut Random, bound| below(random, bound);
    let folder = [root.join("s"), root.join("s/d0"), root.join("s/d1/e")][below(random, 3)].clone();
    let file = folder.join(format!("f{}", below(random, 3)));
    let other = root.join("s/d0").join(format!("f{}", below(random, 3)));
    let tap = format!("sttest{}", below(random, 2));
    let alias = format!("stead:test:{}", below(random, 2));
    let bridge = [None, Some("br0"), Some("br9")][below(random, 3)];
    let tag = format!("steadtest:{}:{}", std::process::id(), below(random, 2));
    let top = format!("stead-test-{}-objects", std::process::id());
    let cgroup =
        [top.clone(), format!("{top}/s"), format!("{top}/s/a"), format!("{top}/s/b")][below(random, 4)].clone();
    match below(random, 27) {
        0 => Call::MakeFolder(folder),
        1 => Call::MakeFolder(file),
        2 | 3 => Call::Write { path: file, bytes: below(random, 40), durable: below(random, 2) == 0 },
        4 => Call::Read(file),
        5 => Call::List(if below(random, 4) == 0 { file } else { folder }),
        6 => Call::Exists(file),
        7 => Call::Remove(if below(random, 4) == 0 { folder } else { file }),
        8 => Call::RemoveFolder(if below(random, 4) == 0 { file } else { folder }),
        9 => {
            let from = if below(random, 4) == 0 { folder } else { file };
            // Nobody moves a folder into itself.
            if other.starts_with(&from) { Call::Exists(from) } else { Call::Rename(from, other) }
        }
        10 => Call::Sparse(file, 1 << 20),
        11 => Call::Overwrite(file, random.below(64)),
        12 => Call::CreateTap { name: tap, alias, bridge },
        13 => Call::SetBridge { name: tap, bridge },
        14 => Call::Tag { name: tap, alias },
        15 => Call::DeleteTap { name: tap, alias },
        16 => Call::Tap(tap),
        17 | 18 => Call::Attach { file, tag, read_only: below(random, 2) == 0 },
        19 => Call::Detach { of: tag.clone(), tag },
        20 => Call::Loop(tag),
        21 => Call::Open(tag),
        22 => Call::Close(tag),
        23 => Call::MakeCgroup(cgroup),
        24 => Call::RemoveCgroup(cgroup),
        25 => [Call::KillCgroup(cgroup.clone()), Call::ChildCgroups(cgroup)][below(random, 2)].clone(),
        _ => Call::Cgroup(cgroup),
    }
}

/// A call about device-mapper devices and the loops under them. `prepare` makes their files.
pub fn device(random: &mut Random, root: &Path) -> Call {
    let name = |random: &mut Random| format!("steadtest-{}", ["a", "b", "c"][below(random, 3)]);
    let uuid = |random: &mut Random, name: &str| {
        // Now and then another's.
        let of = if below(random, 6) == 0 { "steadtest-a" } else { name };
        format!("STEADTEST-{of}")
    };
    let tag = |random: &mut Random| format!("steadtest:{}", ["base", "a", "b", "c"][below(random, 4)]);
    let made = name(random);
    match below(random, 16) {
        0..3 => {
            let of = tag(random);
            let read_only = of.ends_with("base");
            let file = root.join("s").join(of.rsplit_once(':').map_or("", |(_, file)| file));
            Call::Attach { file, tag: of, read_only }
        }
        3 => {
            let of = tag(random);
            let with = if below(random, 6) == 0 { tag(random) } else { of.clone() };
            Call::Detach { of, tag: with }
        }
        4 => Call::Loop(tag(random)),
        5..8 => {
            // A snapshot of its own file, so that no two write one.
            let cow = format!("steadtest:{}", made.trim_start_matches("steadtest-"));
            let origin = if below(random, 3) == 0 { name(random) } else { "steadtest:base".to_owned() };
            let table = if below(random, 3) == 0 || origin == made {
                Table::Grown { base: "steadtest:base".to_owned() }
            } else {
                Table::Snapshot { origin, cow }
            };
            Call::CreateDm { uuid: uuid(random, &made), name: made, table }
        }
        8 => Call::HalfDm { uuid: uuid(random, &made), name: made },
        9 | 10 => Call::RemoveDm { uuid: uuid(random, &made), name: made },
        11 => Call::Dm(made),
        12 => Call::DmDevices,
        13 => Call::Open(if below(random, 2) == 0 { tag(random) } else { made }),
        _ => Call::Close(if below(random, 2) == 0 { tag(random) } else { made }),
    }
}

/// The files that [`device`] speaks of.
pub fn prepare(root: &Path) -> Vec<Call> {
    let file = |name: &str, bytes| Call::Sparse(root.join("s").join(name), bytes);
    vec![file("base", BASE), file("a", COW), file("b", COW), file("c", COW)]
}

/// A host, and which devices stand for which names there.
pub struct Side<'a> {
    host: &'a dyn HostOps,
    machine: Simulated<'a>,
    /// The loop device that each tag was given last.
    loops: BTreeMap<String, String>,
    /// Each device that was made, by its tag: a tag may have been given twice.
    made: Vec<(String, String)>,
    /// The files of somebody else that has a device open, by the device, on the real host.
    open: BTreeMap<String, Option<File>>,
}

impl<'a> Side<'a> {
    pub fn new(host: &'a dyn HostOps, machine: Simulated<'a>) -> Self {
        Self { host, machine, loops: BTreeMap::new(), made: Vec::new(), open: BTreeMap::new() }
    }

    fn attach(&mut self, file: &Path, tag: &str, read_only: bool) -> String {
        let Ok(Some(backing)) = self.host.file_id(file) else { return "no file".to_owned() };
        // A loop over a folder is no call that stead makes.
        if !matches!(self.host.image(file), Ok(Some(_))) {
            return "no file".to_owned();
        }
        let request = LoopRequest { file: file.to_owned(), backing, tag: tag.to_owned(), read_only };
        match self.host.attach_loop(&request) {
            Ok(made) => {
                self.made.push((tag.to_owned(), made.device.clone()));
                self.loops.insert(tag.to_owned(), made.device);
                format!("{} {} {}", made.tag, made.read_only, made.backing_path.display())
            }
            Err(error) => format!("{:?}", error.kind()),
        }
    }

    /// What the kernel calls the device of a tag or of a name.
    fn device(&self, of: &str) -> Option<String> {
        match self.loops.get(of) {
            Some(device) => self.host.loop_device(device).ok()??.tag.eq(of).then(|| device.clone()),
            None => self.host.dm_device(of).ok()?.map(|dm| dm.device),
        }
    }

    fn target(&self, table: &Table) -> Option<Vec<DmTarget>> {
        let sectors = |bytes: u64| bytes / SECTOR;
        let target = |start, bytes, kind, parameters| DmTarget { start, length: sectors(bytes), kind, parameters };
        Some(match table {
            Table::Grown { base } => {
                let linear = format!("/dev/{} 0", self.device(base)?);
                vec![target(0, BASE, "linear", linear), target(sectors(BASE), GROWN - BASE, "zero", String::new())]
            }
            Table::Snapshot { origin, cow } => {
                let parameters = format!("/dev/{} /dev/{} P 8", self.device(origin)?, self.device(cow)?);
                vec![target(0, BASE, "snapshot", parameters)]
            }
        })
    }

    fn dm(&self, name: &str) -> String {
        told(self.host.dm_device(name).map(|found| {
            found.map(|dm| (dm.name, dm.uuid, dm.open_count, dm.has_table, dm.suspended, dm.deferred_remove))
        }))
    }

    fn open(&mut self, device: &str) -> String {
        if self.open.contains_key(device) {
            return "open".to_owned();
        }
        let Some(known) = self.device(device) else { return "none".to_owned() };
        // A device that is half made cannot be opened.
        if self.host.dm_device(device).is_ok_and(|dm| dm.is_some_and(|dm| !dm.has_table)) {
            return "half made".to_owned();
        }
        let file = match self.machine {
            Some(machine) => {
                machine.open_device(&known, true);
                None
            }
            None => Some(File::open(Path::new("/dev").join(&known)).expect("a device that is there")),
        };
        self.open.insert(device.to_owned(), file);
        "opened".to_owned()
    }

    fn close(&mut self, device: &str) -> String {
        if self.open.remove(device).is_none() {
            return "not open".to_owned();
        }
        if let Some(machine) = self.machine {
            let known = self.loops.get(device).cloned();
            let known = known.or_else(|| self.host.dm_device(device).ok().flatten().map(|dm| dm.device));
            machine.open_device(&known.expect("what is open stays"), false);
        }
        "closed".to_owned()
    }

    fn cgroup(&self, path: &str) -> String {
        told(self.host.cgroup(path).map(|found| found.map(|found| (found.processes.len(), found.populated))))
    }
}

impl super::Side<Call> for Side<'_> {
    fn answer(&mut self, call: &Call) -> String {
        let host = self.host;
        let limits = CgroupLimits { cpu_quota_us: 100_000, memory_bytes: 64 << 20 };
        match call {
            Call::MakeFolder(path) => told(host.make_folder(path)),
            Call::Write { path, bytes, durable: true } => told(host.write_durable(path, &vec![7; *bytes])),
            Call::Write { path, bytes, durable: false } => told(host.write_file(path, &vec![7; *bytes])),
            Call::Read(path) => match host.read_state_file(path) {
                // A file that takes no space reads as zeros.
                Ok(bytes) => format!("{:?}", bytes.map(|bytes| without_zeros(&bytes))),
                Err(_) => "an error".to_owned(),
            },
            Call::List(path) => told(host.list_folder(path)),
            Call::Exists(path) => told(host.exists(path)),
            Call::Remove(path) => told(host.remove_file(path, true)),
            Call::RemoveFolder(path) => told(host.remove_folder(path)),
            Call::Rename(from, to) => told(host.rename_durable(from, to)),
            Call::Sparse(path, bytes) => told(host.make_sparse_file(path, *bytes)),
            Call::Overwrite(path, offset) => told(host.overwrite(path, *offset, b"over")),
            Call::CreateTap { name, alias, bridge } => told(host.create_tap(name, alias, *bridge)),
            Call::SetBridge { name, bridge } => told(host.set_tap_bridge(name, *bridge)),
            Call::Tag { name, alias } => told(host.tag_tap(name, alias)),
            Call::DeleteTap { name, alias } => told(host.delete_tap(name, alias)),
            Call::Tap(name) => told(host.tap(name)),
            Call::Attach { file, tag, read_only } => self.attach(file, tag, *read_only),
            Call::Detach { of, tag } => match self.loops.get(of) {
                Some(device) => told(host.detach_loop(device, tag)),
                None => "none".to_owned(),
            },
            Call::Loop(tag) => match self.loops.get(tag) {
                Some(device) => told(host.loop_device(device).map(|found| {
                    found.map(|found| (found.tag, found.read_only, found.autoclear, found.devices_on_top))
                })),
                None => "none".to_owned(),
            },
            Call::MakeCgroup(path) => told(host.make_cgroup(path, &limits)),
            Call::RemoveCgroup(path) => told(host.remove_cgroup(path)),
            Call::KillCgroup(path) => told(host.kill_cgroup(path)),
            Call::Cgroup(path) => self.cgroup(path),
            Call::ChildCgroups(path) => told(host.child_cgroups(path)),
            Call::CreateDm { name, uuid, table } => match self.target(table) {
                Some(table) => {
                    let request = DmRequest { name: name.clone(), uuid: uuid.clone(), table, read_only: false };
                    told(host.create_dm(&request).map(|made| (made.name, made.uuid, made.open_count, made.has_table)))
                }
                None => "none".to_owned(),
            },
            Call::HalfDm { name, uuid } => {
                let is_taken = |dm: &stead::host::devices::DmDevice| dm.name == *name || dm.uuid == *uuid;
                if host.dm_devices().expect("a list").iter().any(is_taken) {
                    return "taken".to_owned();
                }
                if let Some(machine) = self.machine {
                    machine.make_half_dm(name, uuid);
                } else {
                    let args = ["create", "--notable", "-u", uuid, name];
                    assert!(Command::new("dmsetup").args(args).status().expect("dmsetup").success());
                }
                "made".to_owned()
            }
            Call::RemoveDm { name, uuid } => told(host.remove_dm(name, uuid)),
            Call::Dm(name) => self.dm(name),
            Call::DmDevices => told(host.dm_devices().map(|all| {
                all.into_iter().map(|dm| (dm.name, dm.uuid, dm.open_count, dm.has_table)).collect::<Vec<_>>()
            })),
            Call::Open(device) => self.open(device),
            Call::Close(device) => self.close(device),
        }
    }
}

impl Drop for Side<'_> {
    /// Frees what the calls left on the host.
    fn drop(&mut self) {
        for device in self.open.keys().cloned().collect::<Vec<_>>() {
            self.close(&device);
        }
        // What is on top goes first.
        for _ in 0..4 {
            for dm in self.host.dm_devices().unwrap_or_default() {
                if dm.name.starts_with("steadtest-") {
                    let _ = self.host.remove_dm(&dm.name, &dm.uuid);
                }
            }
        }
        for (tag, device) in &self.made {
            let _ = self.host.detach_loop(device, tag);
        }
        for tap in self.host.taps().unwrap_or_default() {
            let _ = self.host.delete_tap(&tap.name, &tap.alias.unwrap_or_default());
        }
        let top = format!("stead-test-{}-objects", std::process::id());
        for path in [format!("{top}/s/a"), format!("{top}/s/b"), format!("{top}/s"), top] {
            let _ = self.host.remove_cgroup(&path);
        }
    }
}

/// The bytes up to the last one that is not zero.
fn without_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes[..bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)].to_vec()
}
