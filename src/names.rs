//! Every name stead gives to anything is built here: VM names, uids, files, sockets, taps, process id arguments.
//!
//! Names derive from the state's own id and the VM's name, never from chance, so that a lost record still leads to the
//! objects it named, and two steads with two state folders never take each other's objects for their own.

use std::borrow::Borrow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest DNS-1123 label (RFC 1123 section 2.1), and so the longest VM name.
pub const VM_NAME_MAX: usize = 63;
/// Longest network interface name: `IFNAMSIZ` is 16 with its terminating NUL (`linux/if.h`). Longer names truncate silently.
pub const INTERFACE_NAME_MAX: usize = 15;
/// Longest path of a unix socket: `sun_path` has 108 bytes with its terminating NUL (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;
/// Longest name of a device-mapper device: `DM_NAME_LEN` is 128 with its NUL (`linux/dm-ioctl.h`).
pub const DM_NAME_MAX: usize = 127;
/// Longest uuid of a device-mapper device: `DM_UUID_LEN` is 129 with its NUL (`linux/dm-ioctl.h`).
pub const DM_UUID_MAX: usize = 128;
/// Longest `lo_file_name` of a loop device: `LO_NAME_SIZE` is 64 with its NUL (`linux/loop.h`).
pub const LOOP_TAG_MAX: usize = 63;
/// Longest alias of a network interface: `IFALIASZ` is 256 with its NUL (`linux/if.h`); 254 was the longest that held.
pub const INTERFACE_ALIAS_MAX: usize = 254;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or only part of a name.
    #[error("a name may not be empty")]
    Empty,
    /// Longer than [`VM_NAME_MAX`].
    #[error("a name has at most {VM_NAME_MAX} characters, this one has {0}")]
    TooLong(usize),
    /// A character that DNS-1123 does not allow.
    #[error("a name consists of lower-case letters, digits and '-': {0:?} is none of them")]
    BadCharacter(char),
    /// `-` at the start or the end.
    #[error("a name starts and ends with a lower-case letter or a digit")]
    BadEdge,
}

/// A DNS-1123 label: the one check behind VM, disk and network interface names.
fn check_label(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    if let Some(bad) = text.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::BadCharacter(bad));
    }
    if text.len() > VM_NAME_MAX {
        return Err(NameError::TooLong(text.len()));
    }
    if text.starts_with('-') || text.ends_with('-') {
        return Err(NameError::BadEdge);
    }
    Ok(())
}

/// The name of a VM, or of a part of one: a DNS-1123 label. Holding one proves that it was checked, so that a path built
/// from it stays inside its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    /// Checks `text` against DNS-1123.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        check_label(&text)?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for VmName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl Borrow<str> for VmName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The id of one state folder; every VM's uid derives from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StateId(Uuid);

impl StateId {
    /// The id a state folder gets at first: it derives from the machine's id and the folder's canonical path, so that a
    /// STATE that was lost and made anew finds the VMs of the old one.
    pub fn derive(machine_id: &str, canonical_state_dir: &Path) -> Self {
        let seed = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("stead.dev/state/{}", machine_id.trim()).as_bytes());
        Self(Uuid::new_v5(&seed, canonical_state_dir.as_os_str().as_encoded_bytes()))
    }

    /// The uid of the VM of this name: UUIDv5 (RFC 9562 section 5.5) in the name space of this state.
    pub fn uid(&self, name: &VmName) -> VmUid {
        VmUid(Uuid::new_v5(&self.0, name.as_str().as_bytes()))
    }

    /// The tag of a loop device over a base image, which all VMs of this state share.
    pub fn base_loop_tag(&self) -> String {
        format!("stead:{}:base", self.0.simple())
    }

    /// Reads back whose object carries this tag: a tap's alias, a device-mapper uuid or a loop's tag, if it is of this
    /// state's making.
    pub fn owner_of(&self, tag: &str) -> Option<Owner> {
        let colons = tag.strip_prefix("stead:");
        let full = colons.and_then(|rest| rest.strip_prefix(&format!("{}:", self.0.hyphenated())));
        let simple = colons.and_then(|rest| rest.strip_prefix(&format!("{}:", self.0.simple())));
        let dashes = tag.strip_prefix("stead-").and_then(|rest| rest.strip_prefix(&format!("{}-", self.0.simple())));
        if simple == Some("base") {
            return Some(Owner::Shared);
        }
        let uid = match (full, simple, dashes) {
            (Some(alias), _, _) => alias.split_once(':')?.0.replace('-', ""),
            (_, Some(looped), _) => looped.split_once(':')?.0.to_owned(),
            (_, _, Some(dm)) => dm.split_once('-')?.0.to_owned(),
            (None, None, None) => return None,
        };
        let short = uid.get(..SHORT_UID)?;
        short
            .bytes()
            .all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'))
            .then(|| Owner::Vm(ShortUid(short.to_owned())))
    }

    /// The name of this state's folder under RUN: the first 8 hex digits, short since socket paths have 107 bytes.
    pub fn short(&self) -> String {
        self.0.simple().to_string()[..8].to_owned()
    }
}

impl fmt::Display for StateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for StateId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::parse_str(text).map(Self)
    }
}

/// The identity of one VM in one state: UUIDv5 of state id and VM name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VmUid(Uuid);

impl VmUid {
    /// The id argument of the process that is this VM's `incarnation`: `UID-INCARNATION`. Firecracker allows letters,
    /// digits and `-`, at most 64 characters; this has at most 57.
    pub fn process_id(&self, incarnation: Incarnation) -> String {
        format!("{}-{}", self.0.hyphenated(), incarnation.0)
    }

    /// Reads back what [`VmUid::process_id`] built, if `argument` is exactly of that shape and of this uid.
    pub fn incarnation_in(&self, argument: &str) -> Option<Incarnation> {
        let digits = argument.strip_prefix(&self.0.hyphenated().to_string())?.strip_prefix('-')?;
        let number: u64 = digits.parse().ok()?;
        // `+7` and `007` parse too, but stead never writes them.
        (digits == number.to_string()).then_some(Incarnation(number))
    }

    /// The tap of this VM's network interface `interface`: `st` and 13 hex digits, which fills [`INTERFACE_NAME_MAX`].
    pub fn tap(&self, interface: &VmName) -> String {
        let hash = Uuid::new_v5(&self.0, format!("tap/{interface}").as_bytes()).simple().to_string();
        format!("st{}", &hash[..INTERFACE_NAME_MAX - 2])
    }

    /// The owner tag of a tap, kept as its alias: says whose it is, and which of that VM's interfaces it serves.
    pub fn tap_alias(&self, state: &StateId, interface: &VmName) -> String {
        format!("{}{interface}", self.tap_alias_prefix(state))
    }

    /// What the tags of all this VM's taps begin with.
    pub fn tap_alias_prefix(&self, state: &StateId) -> String {
        format!("stead:{state}:{}:", self.0)
    }
}

impl VmUid {
    /// The first hex digits of this uid: enough to tell one host's VMs apart, short enough for every kernel name.
    pub fn short(&self) -> ShortUid {
        ShortUid(self.0.simple().to_string()[..SHORT_UID].to_owned())
    }

    /// The name of a device-mapper device of this VM's disk.
    pub fn dm_name(&self, disk: &VmName, layer: DmLayer) -> String {
        format!("stead-{}-{disk}{}", self.short(), layer.suffix())
    }

    /// The owner tag of that device, kept as its uuid. Disk names of 63 characters would not fit, so they are hashed.
    pub fn dm_uuid(&self, state: &StateId, disk: &VmName, layer: DmLayer) -> String {
        format!("stead-{}-{}-{}{}", state.0.simple(), self.0.simple(), self.disk_hash(disk), layer.suffix())
    }

    /// The owner tag of the loop device over a copy-on-write file of this VM.
    pub fn loop_tag(&self, state: &StateId, disk: &VmName) -> String {
        format!("stead:{}:{}:{}", state.0.simple(), self.short(), &self.disk_hash(disk)[..7])
    }

    fn disk_hash(&self, disk: &VmName) -> String {
        Uuid::new_v5(&self.0, format!("disk/{disk}").as_bytes()).simple().to_string()[..16].to_owned()
    }
}

/// Hex digits of a [`ShortUid`].
const SHORT_UID: usize = 16;

/// The first 16 hex digits of a VM's uid, as object names and tags carry them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortUid(String);

impl ShortUid {
    /// That of the VM whose VMM has this id argument ([`VmUid::process_id`]).
    pub fn of_process_id(argument: &str) -> Self {
        Self(argument.chars().filter(|c| *c != '-').take(SHORT_UID).collect())
    }
}

impl fmt::Display for ShortUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Whose a tagged kernel object is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// One VM's.
    Vm(ShortUid),
    /// Every VM's that uses this base image.
    Shared,
}

/// What the file of a VM's own disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backing {
    /// What was written over a base image, in device-mapper's format (`mode: snapshot`).
    Cow,
    /// What was written over a base image, in QEMU's format (`mode: snapshot` where there is no device-mapper).
    Qcow2,
    /// A whole copy (`mode: copy`).
    Copy,
}

impl Backing {
    /// Every kind there is.
    pub const ALL: [Self; 3] = [Self::Cow, Self::Qcow2, Self::Copy];

    /// The extension of its file.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Cow => "cow",
            Self::Qcow2 => "qcow2",
            Self::Copy => "img",
        }
    }
}

/// What a device-mapper device is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DmLayer {
    /// The disk that the guest sees.
    Snapshot,
    /// The base image made longer by zeros, under the snapshot of a disk that is larger than its image.
    Origin,
}

impl DmLayer {
    fn suffix(self) -> &'static str {
        match self {
            Self::Snapshot => "",
            // A disk's name cannot contain a dot, so no disk is called like another one's origin.
            Self::Origin => ".origin",
        }
    }
}

impl fmt::Display for VmUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// One life of a VM's VMM; counts from 1 up, never down, also across deletion and re-creation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The life after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where one state keeps its files and sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// This state's id.
    pub state_id: StateId,
    /// STATE: durable files.
    pub state_dir: PathBuf,
    /// RUN/ID: sockets, gone after a reboot.
    pub run_dir: PathBuf,
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
        let layout = Self { state_id, state_dir, run_dir: run_dir.join(state_id.short()) };
        let longest = layout.identity_socket(&"x".parse().expect("a valid name"), Incarnation(u64::MAX));
        let needed = longest.as_os_str().len();
        if needed > SOCKET_PATH_MAX {
            return Err(RunDirTooLong { run_dir: run_dir.to_owned(), needed });
        }
        Ok(layout)
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

    /// STATE/trash: disks of pruned VMs.
    pub fn trash(&self) -> PathBuf {
        self.state_dir.join("trash")
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
        let stem = file_name.strip_prefix(&self.short_uid(name).0)?.strip_prefix('-')?.strip_suffix(".sock")?;
        let (digits, is_identity) = stem.strip_suffix(".id").map_or((stem, false), |digits| (digits, true));
        let number: u64 = digits.parse().ok()?;
        (digits == number.to_string()).then_some((Incarnation(number), is_identity))
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
        Some((VmName::new(name).ok()?, seconds.parse().ok()?))
    }

    /// STATE/orphans.json: when each object was first seen that nothing accounts for.
    pub fn orphans(&self) -> PathBuf {
        self.state_dir.join("orphans.json")
    }

    /// The cgroup under which all of this state's are, below the root of the cgroup v2 hierarchy.
    pub fn cgroups(&self) -> String {
        format!("stead/{}", self.state_id)
    }

    /// The cgroup of this VM's processes. A VM's name contains no dot, as every file of the kernel's in there does.
    pub fn cgroup(&self, name: &VmName) -> String {
        format!("{}/{name}", self.cgroups())
    }

    fn short_uid(&self, name: &VmName) -> ShortUid {
        self.uid(name).short()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_outside_dns_1123_are_refused_with_the_reason() {
        for (text, why) in [
            ("", NameError::Empty),
            ("..", NameError::BadCharacter('.')),
            ("a/b", NameError::BadCharacter('/')),
            ("Web", NameError::BadCharacter('W')),
            ("-a", NameError::BadEdge),
            ("a-", NameError::BadEdge),
            (&"a".repeat(64), NameError::TooLong(64)),
        ] {
            assert_eq!(VmName::new(text), Err(why), "{text:?}");
        }
        assert!(VmName::new("a".repeat(63)).is_ok());
    }

    #[test]
    fn a_lost_state_yields_the_same_names_again() {
        let dir = Path::new("/var/lib/stead");
        let name: VmName = "web".parse().unwrap();
        let before = StateId::derive("0123abcd\n", dir);
        let after = StateId::derive("0123abcd", dir);
        assert_eq!(before.uid(&name), after.uid(&name));
        assert_ne!(before.uid(&name), StateId::derive("0123abcd", Path::new("/other")).uid(&name));
    }

    #[test]
    fn a_process_id_is_read_back_only_in_the_exact_shape() {
        let name: VmName = "web".parse().unwrap();
        let uid = StateId::derive("m", Path::new("/s")).uid(&name);
        let id = uid.process_id(Incarnation(7));
        assert!(id.len() <= 64);
        assert_eq!(uid.incarnation_in(&id), Some(Incarnation(7)));
        for not_ours in [uid.to_string(), format!("{uid}-"), format!("{uid}-07"), format!("{uid}-+7"), format!("x{id}")]
        {
            assert_eq!(uid.incarnation_in(&not_ours), None, "{not_ours}");
        }
    }

    #[test]
    fn every_kernel_name_keeps_its_length_limit() {
        let long: VmName = "a".repeat(63).parse().unwrap();
        let state = StateId::derive("m", Path::new("/s"));
        let uid = state.uid(&long);
        assert_eq!(uid.tap(&long).len(), INTERFACE_NAME_MAX);
        assert!(uid.tap_alias(&state, &long).len() <= INTERFACE_ALIAS_MAX);
        assert!(uid.dm_name(&long, DmLayer::Origin).len() <= DM_NAME_MAX);
        assert!(uid.dm_uuid(&state, &long, DmLayer::Origin).len() <= DM_UUID_MAX);
        assert_eq!(uid.loop_tag(&state, &long).len(), LOOP_TAG_MAX);
        let layout = Layout::new(state, "/s".into(), Path::new("/run/stead")).unwrap();
        assert!(layout.identity_socket(&long, Incarnation(u64::MAX)).as_os_str().len() <= SOCKET_PATH_MAX);
        assert!(Layout::new(state, "/s".into(), Path::new(&format!("/{}", "r".repeat(90)))).is_err());
    }

    #[test]
    fn every_tag_leads_back_to_its_owner_and_to_no_other_state() {
        let (state, other) = (StateId::derive("m", Path::new("/s")), StateId::derive("m", Path::new("/t")));
        let (name, part): (VmName, VmName) = ("web".parse().unwrap(), "root".parse().unwrap());
        let uid = state.uid(&name);
        let tags = [
            uid.tap_alias(&state, &part),
            uid.dm_uuid(&state, &part, DmLayer::Snapshot),
            uid.dm_uuid(&state, &part, DmLayer::Origin),
            uid.loop_tag(&state, &part),
        ];
        for tag in &tags {
            assert_eq!(state.owner_of(tag), Some(Owner::Vm(uid.short())), "{tag}");
            assert_eq!(other.owner_of(tag), None, "{tag}");
            assert_eq!(state.owner_of(&format!("x{tag}")), None, "{tag}");
        }
        assert_eq!(state.owner_of(&state.base_loop_tag()), Some(Owner::Shared));
        assert_eq!(other.owner_of(&state.base_loop_tag()), None);
        for foreign in ["", "stead", "stead:", "stead:x:base", "/var/lib/images/stead.img", &format!("stead:{state}:")]
        {
            assert_eq!(state.owner_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn the_trash_tells_whose_disks_it_keeps_and_since_when() {
        let layout = Layout::new(StateId::derive("m", Path::new("/s")), "/s".into(), Path::new("/run")).unwrap();
        let name: VmName = "web-1".parse().unwrap();
        let entry = layout.trash_entry(&name, 1_700_000_000);
        let entry = entry.file_name().unwrap().to_str().unwrap();
        assert_eq!(Layout::read_trash_entry(entry), Some((name, 1_700_000_000)));
        for other in ["web", "web.", "web.x", "..1", ".1", "web.1.2"] {
            assert_eq!(Layout::read_trash_entry(other), None, "{other}");
        }
    }
}
