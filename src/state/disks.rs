//! disks/NAME.json: what a VM's own disk was made from. It lies beside the disk's file, so that the two outlive the VM, move
//! to the trash and come back together.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::host::devices::ImageIdentity;
use crate::names::{Backing, VmName, VmUid};

/// What a VM's own disk was made from, and how. Durable before the disk's file has its name: a file without a record was
/// not made by stead, or lost what it was made from, and is never attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// [`super::FORMAT_VERSION`] of the writer.
    #[serde(deserialize_with = "super::known_version")]
    pub version: u32,
    /// The VM.
    pub name: VmName,
    /// Its uid in this state.
    pub uid: VmUid,
    /// Which of its disks.
    pub disk: VmName,
    /// What the disk's file is.
    pub backing: Backing,
    /// The image it was made from.
    pub image: PathBuf,
    /// That image as it was then. What was written over an image means nothing over another one.
    pub base: ImageIdentity,
    /// Bytes of the disk that the guest sees.
    pub bytes: u64,
    /// Fields of other versions, kept as they were. [`super::parse_disk_record`] finds them: serde would copy every field to tell which.
    #[serde(flatten, skip_deserializing)]
    pub extra: Map<String, Value>,
}
