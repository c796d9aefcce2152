//! Ids, and the names and tags of kernel objects that derive from them.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{INTERFACE_NAME_MAX, VmName};

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
        Incarnation::read(digits)
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
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads back what [`ShortUid::as_str`] gave.
    pub fn parse(text: &str) -> Option<Self> {
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == SHORT_UID && text.bytes().all(is_digit)).then(|| Self(text.to_owned()))
    }

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
#[serde(try_from = "u64", into = "u64")]
pub struct Incarnation(pub u64);

/// Nobody has lived as often as a record or an argument says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("incarnation {0} is beyond {max}, the last one that is believed", max = Incarnation::MAX)]
pub struct TooManyLives(u64);

impl Incarnation {
    /// The last one that is read back: one a microsecond for 285 years. After a higher one, which nothing but a broken record
    /// or a liar has, the count would soon begin anew, and a VM be taken for its former self.
    pub const MAX: u64 = 1 << 53;

    /// The life after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Reads back a number as stead writes it.
    pub(super) fn read(digits: &str) -> Option<Self> {
        Self::try_from(read_number(digits)?).ok()
    }
}

impl TryFrom<u64> for Incarnation {
    type Error = TooManyLives;
    fn try_from(number: u64) -> Result<Self, TooManyLives> {
        if number > Self::MAX { Err(TooManyLives(number)) } else { Ok(Self(number)) }
    }
}

impl From<Incarnation> for u64 {
    fn from(incarnation: Incarnation) -> Self {
        incarnation.0
    }
}

/// A number as stead writes it: `+7` and `007` parse too, but stead never writes them.
pub(super) fn read_number(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|number: &u64| number.to_string() == digits)
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
