//! Every kernel object that carries this state's tag, and what accounts for it.
//!
//! The other looks begin at a VM and go by its names. This one begins at the host and finds what no VM leads to any more.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::Record;
use super::snapshot::Looker;
use crate::desired::FileId;
use crate::host::devices::{DmDevice, LoopDevice};
use crate::host::{HostView, LockProbe, SocketPeer, Tap};
use crate::names::{Layout, Owner, ShortUid, StateId, VmName};
use crate::state::Handles;

/// A kind of kernel object, in the order in which they are freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A device-mapper device.
    Dm,
    /// A loop device.
    Loop,
    /// A tap.
    Tap,
    /// A cgroup.
    Cgroup,
    /// A socket of a VMM.
    Socket,
}

impl ObjectKind {
    /// What people call it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Dm => "dm",
            Self::Loop => "loop",
            Self::Tap => "tap",
            Self::Cgroup => "cgroup",
            Self::Socket => "socket",
        }
    }
}

/// A kernel object that carries this state's tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaggedObject {
    /// What it is.
    pub kind: ObjectKind,
    /// What the kernel calls it: a device, an interface, a path.
    pub name: String,
    /// Its owner tag; for a cgroup or a socket its path.
    pub tag: String,
    /// Whose it is by that tag; `None` for the cgroup of a name that is no VM's.
    pub owner: Option<Owner>,
    /// Who or what uses it now, as far as one look at all objects tells; `None` when nothing does.
    pub in_use: Option<String>,
}

impl TaggedObject {
    /// What stays the same for as long as it is this object: numbers are recycled, tags are not.
    pub fn key(&self) -> String {
        format!("{} {}", self.kind.word(), self.tag)
    }
}

/// What accounts for the objects of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// Its record names these tags, and it holds nothing else.
    Names(BTreeSet<String>),
    /// There is no record, and no VMM of it lives.
    Nothing,
    /// It cannot be told what it holds: why.
    Unknown(String),
}

/// What one look at the whole host found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// Every object that carries this state's tag.
    pub objects: Vec<TaggedObject>,
    /// What accounts for each VM of this state.
    pub accounts: BTreeMap<ShortUid, (VmName, Account)>,
    /// The VMMs that live, by the uid in their argument vector: theirs is whatever carries their tag.
    pub live: BTreeMap<ShortUid, i32>,
}

impl Survey {
    /// Whether a record names this object.
    pub fn is_named(&self, object: &TaggedObject) -> bool {
        let names = |account: &Account| matches!(account, Account::Names(tags) if tags.contains(&object.tag));
        match &object.owner {
            None => false,
            Some(Owner::Vm(uid)) => self.accounts.get(uid).is_some_and(|(_, account)| names(account)),
            Some(Owner::Shared) => self.accounts.values().any(|(_, account)| names(account)),
        }
    }
}

/// Every kernel object of the kinds that VMs hold, whoever made it, and every entry of the folder of sockets: one dump of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dumps {
    /// Device-mapper devices.
    pub dm_devices: Vec<DmDevice>,
    /// Loop devices.
    pub loops: Vec<LoopDevice>,
    /// Taps.
    pub taps: Vec<Tap>,
    /// The names of the cgroups of this state's VMs.
    pub cgroups: Vec<String>,
    /// What lies in RUN.
    pub run_entries: Vec<String>,
}

impl Looker<'_> {
    /// Lists what there is.
    ///
    /// # Errors
    /// When some kind cannot be listed. Then nothing is known to be an orphan.
    pub fn dumps(&self) -> io::Result<Dumps> {
        Ok(Dumps {
            dm_devices: own(self.view.dm_devices())?,
            loops: own(self.view.loop_devices())?,
            taps: self.view.taps()?,
            cgroups: self.view.child_cgroups(&self.layout.cgroups())?,
            run_entries: self.view.list_folder(&self.layout.run_dir)?,
        })
    }

    /// Looks at every tagged object of the host: a few system calls an object. Where a record accounts for each of them, as
    /// it is nearly always, nobody asks who uses them, which takes a scan of `/proc`.
    ///
    /// # Errors
    /// When some kind cannot be listed. Then nothing is known to be an orphan.
    pub fn survey(&self) -> io::Result<Survey> {
        let mut objects: Vec<TaggedObject> = self.tagged(self.dumps()?, &|_| false).collect();
        objects.sort();
        let mut survey = Survey { objects, ..Survey::default() };
        if survey.objects.is_empty() {
            return Ok(survey);
        }
        // The records after the objects: what was made in between is on record since before it was made.
        for name in self.known_vms()? {
            let account = self.account(&name);
            survey.accounts.insert(self.layout.uid(&name).short(), (name, account));
        }
        if survey.objects.iter().all(|object| survey.is_named(object)) {
            return Ok(survey);
        }
        for (pid, argument) in self.view.scan_processes()? {
            // UUID-NUMBER: the uid's hex digits come first.
            survey.live.insert(ShortUid::of_process_id(&argument), pid);
        }
        // Asked only now: connecting to the API of a live VMM may take another client's turn, and who has a device open takes
        // a scan of `/proc`.
        let unnamed: Vec<bool> = survey.objects.iter().map(|object| !survey.is_named(object)).collect();
        let unnamed = survey.objects.iter_mut().zip(unnamed);
        for (object, _) in unnamed.filter(|(object, is_unnamed)| *is_unnamed && object.in_use.is_none()) {
            object.in_use = match object.kind {
                ObjectKind::Socket => listens(self.view.socket_peer(Path::new(&object.name))),
                ObjectKind::Loop => held(self.view, &object.name),
                ObjectKind::Cgroup => lived_in(self.view, &object.name),
                ObjectKind::Dm | ObjectKind::Tap => None,
            };
        }
        let holders = self.view.tap_holders()?;
        for tap in survey.objects.iter_mut().filter(|object| object.kind == ObjectKind::Tap) {
            let holder = holders.iter().find(|(name, _)| *name == tap.name);
            tap.in_use = holder.map(|(_, holder)| format!("{holder} is attached to it"));
        }
        Ok(survey)
    }

    fn account(&self, name: &VmName) -> Account {
        match self.read_record(name) {
            Err(why) => Account::Unknown(why),
            Ok(Record::Valid(handles)) => {
                Account::Names(tags_of(&self.layout.state_id, &handles).map(Cow::into_owned).collect())
            }
            Ok(Record::Flawed(why)) => Account::Unknown(format!("its record cannot be trusted: {why}")),
            Ok(Record::Missing) => match self.view.probe_lock(&self.layout.vmm_lock(name)) {
                LockProbe::Free | LockProbe::NoFile => Account::Nothing,
                LockProbe::Held(_) => Account::Unknown("a VMM of it lives and is not on record".to_owned()),
                LockProbe::Unknown(why) => Account::Unknown(why),
            },
        }
    }

    /// Those that carry this state's tag, but those whose tag is known: nobody asks whose they are, and they are nearly all.
    pub(super) fn tagged(&self, dumps: Dumps, is_known: &dyn Fn(&str) -> bool) -> impl Iterator<Item = TaggedObject> {
        let state = &self.layout.state_id;
        let is_new = |tag: &String| !is_known(tag);
        let dm = dumps.dm_devices.into_iter().filter_map(move |dm| {
            let tag = Some(dm.uuid).filter(is_new)?;
            let in_use = (dm.open_count > 0).then(|| "it is open".to_owned());
            let owner = Some(state.owner_of(&tag)?);
            Some(TaggedObject { kind: ObjectKind::Dm, name: dm.name, tag, owner, in_use })
        });
        let loops = dumps.loops.into_iter().filter_map(move |device| {
            let tag = Some(loop_key(&device.tag, device.backing)).filter(is_new)?;
            let in_use = (device.devices_on_top > 0).then(|| "a device is made on top of it".to_owned());
            let owner = Some(state.owner_of(&device.tag)?);
            Some(TaggedObject { kind: ObjectKind::Loop, name: device.device, tag, owner, in_use })
        });
        let taps = dumps.taps.into_iter().filter_map(move |tap| {
            let tag = tap.alias.filter(is_new)?;
            let owner = Some(state.owner_of(&tag)?);
            Some(TaggedObject { kind: ObjectKind::Tap, name: tap.name, tag, owner, in_use: None })
        });
        let parent = self.layout.cgroups();
        let cgroups = dumps.cgroups.into_iter().filter_map(move |child| {
            let path = Some(format!("{parent}/{child}")).filter(is_new)?;
            let owner = VmName::new(child).ok().map(|name| Owner::Vm(self.layout.uid(&name).short()));
            Some(TaggedObject { kind: ObjectKind::Cgroup, name: path.clone(), tag: path, owner, in_use: None })
        });
        let sockets = dumps.run_entries.into_iter().filter_map(move |entry| {
            let owner = Some(Owner::Vm(Layout::read_socket_owner(&entry)?));
            let path = Some(self.layout.run_dir.join(entry).to_str()?.to_owned()).filter(is_new)?;
            Some(TaggedObject { kind: ObjectKind::Socket, name: path.clone(), tag: path, owner, in_use: None })
        });
        dm.chain(loops).chain(taps).chain(cgroups).chain(sockets)
    }
}

/// What may not even be looked at was not made by this stead: it runs without the right to.
fn own<T>(found: io::Result<Vec<T>>) -> io::Result<Vec<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Vec::new()),
        found => found,
    }
}

/// Who listens on a socket, as a reason to leave it.
pub fn listens(peer: SocketPeer) -> Option<String> {
    match peer {
        SocketPeer::NobodyListens | SocketPeer::NoSocket => None,
        SocketPeer::Listener(process) => Some(format!("pid {} listens on it", process.identity.pid)),
        SocketPeer::Unknown(why) => Some(why),
    }
}

/// Who has a block device open, as a reason to leave it.
pub fn held(view: &dyn HostView, device: &str) -> Option<String> {
    match view.holders(device) {
        Ok(holders) => holders.first().map(|holder| format!("{holder} has it open")),
        Err(error) => Some(format!("who has it open cannot be told: {error}")),
    }
}

/// Who lives in a cgroup, as a reason to leave it.
fn lived_in(view: &dyn HostView, cgroup: &str) -> Option<String> {
    match view.cgroup(cgroup) {
        // One that is gone by now is nobody's.
        Ok(found) => found.filter(|found| found.populated).map(|_| "a process lives in it".to_owned()),
        Err(error) => Some(format!("who lives in it cannot be told: {error}")),
    }
}

/// [`TaggedObject::tag`] of a loop device: its tag and its file, since the loops over all base images carry one tag.
pub fn loop_key(tag: &str, backing: FileId) -> String {
    format!("{tag} {}:{}", backing.device, backing.inode)
}

/// The tags of everything that a record names, as [`TaggedObject::tag`] has them.
pub(super) fn tags_of<'a>(state: &StateId, handles: &'a Handles) -> impl Iterator<Item = Cow<'a, str>> {
    let taps = handles.tap_devices.iter().map(move |tap| handles.uid.tap_alias(state, &tap.interface).into());
    let dm = handles.dm_devices.iter().map(|dm| dm.uuid.as_str().into());
    let loops = handles.loops.iter().map(|handle| loop_key(&handle.tag, handle.backing).into());
    let cgroup = handles.cgroup.as_deref().map(Cow::from);
    let sockets = std::iter::once(&handles.api_socket).chain(&handles.identity_socket);
    taps.chain(dm).chain(loops).chain(cgroup).chain(sockets.map(|socket| socket.to_string_lossy()))
}
