//! What a VM should be, in normal form: every default filled in, every quantity in its base unit.
//!
//! Built only by `desired::validate`; read by `plan`, `vmm` and `state`. Knows nothing of files, hosts or YAML.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::names::VmName;

/// One VM as its manifest declares it, in normal form.
///
/// Field names are those of the manifest, so that what `describe` and handles.json show can be compared with it. An option
/// that is not set is stored as null: a field that is missing from a stored spec was unknown to the stead that stored it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VmSpec {
    /// What the VM should be doing.
    pub power_state: PowerState,
    /// Whether a VM whose VMM ended is started again.
    pub restart_policy: RestartPolicy,
    /// Which VMM runs it.
    pub vmm: VmmChoice,
    /// Number of virtual CPUs, at least 1.
    pub cpus: u32,
    /// Guest memory in MiB, at least 1.
    pub memory_mib: u64,
    /// What the guest boots.
    pub boot: Boot,
    /// Block devices, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order in which the guest sees them.
    pub network_interfaces: Vec<NetworkInterface>,
    /// How long a guest that was asked to stop may take before its VMM is killed; 0 kills at once.
    pub termination_grace_period_seconds: u32,
    /// What a change does that a running VM cannot take up.
    pub update_policy: UpdatePolicy,
    /// What happens to the VM's own disks when it is pruned.
    pub deletion_policy: DeletionPolicy,
}

/// What a VM should be doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum PowerState {
    /// The guest runs.
    #[default]
    Running,
    /// The guest's CPUs are halted, its memory is kept.
    Paused,
    /// No VMM runs; the VM's own disks are kept.
    Stopped,
}

/// Whether a VM whose VMM ended by itself is started again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum RestartPolicy {
    /// However it ended.
    #[default]
    Always,
    /// Unless it ended with status 0. An unknown status counts as a failure.
    OnFailure,
    /// Not again.
    Never,
}

/// What a change does that a running VM cannot take up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum UpdatePolicy {
    /// The VM is stopped and started anew.
    #[default]
    Recreate,
    /// The change waits for the VM's next start.
    OnRestart,
}

/// What happens to a VM's own disks when it is pruned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum DeletionPolicy {
    /// They stay in the state folder.
    #[default]
    Retain,
    /// They go to the trash and are freed after seven days.
    Delete,
}

/// Which VMM a manifest asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// Firecracker where it runs, else QEMU; settled once, at the VM's first start.
    #[default]
    Auto,
    /// Firecracker.
    Firecracker,
    /// QEMU's `microvm` machine.
    Qemu,
}

/// A kind of VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// Firecracker.
    Firecracker,
    /// QEMU's `microvm` machine.
    Qemu,
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
        })
    }
}

/// What the guest boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// Absolute path of the kernel.
    pub kernel: PathBuf,
    /// Absolute path of the initial RAM disk.
    #[serde(default)]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub args: String,
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disk {
    /// Unique within the VM.
    pub name: VmName,
    /// Absolute path of the image.
    pub image: PathBuf,
    /// How the image becomes the VM's disk.
    pub mode: DiskMode,
    /// Whether the guest may not write.
    pub read_only: bool,
    /// Size in bytes that the guest sees, where it is to be larger than the image.
    #[serde(default)]
    pub size_bytes: Option<u64>,
}

impl Disk {
    /// Whether the VM writes to the image itself.
    pub fn writes_image(&self) -> bool {
        self.mode == DiskMode::Direct && !self.read_only
    }

    /// Whether it is a snapshot that the VM writes to, which takes device-mapper or an overlay. Of one that it only reads there is
    /// nothing to be made.
    pub fn is_written_snapshot(&self) -> bool {
        self.mode == DiskMode::Snapshot && self.has_own_file()
    }

    /// Whether the VM has a file of its own for this disk. One that only reads needs no copy-on-write file: it is given the
    /// image itself.
    pub fn has_own_file(&self) -> bool {
        match self.mode {
            DiskMode::Direct => false,
            DiskMode::Snapshot => !self.read_only,
            DiskMode::Copy => true,
        }
    }
}

/// How an image becomes a VM's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DiskMode {
    /// The image is the base of a copy-on-write disk of the VM's own.
    Snapshot,
    /// The VM gets a copy of its own.
    Copy,
    /// The VM uses the image itself.
    Direct,
}

/// A network interface, backed by a tap of stead's making.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterface {
    /// Unique within the VM.
    pub name: VmName,
    /// The bridge that the tap joins.
    #[serde(default)]
    pub bridge: Option<String>,
    /// The guest's hardware address.
    #[serde(default)]
    pub mac_address: Option<MacAddress>,
}

/// A unicast Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Why a text is not a hardware address that a guest can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hex digits.
    #[error("a MAC address is six pairs of hex digits with ':' between, such as 06:00:00:00:00:01")]
    Shape,
    /// The lowest bit of the first byte is set (IEEE 802).
    #[error("this is a multicast address; the second digit of a unicast one is even")]
    Multicast,
    /// All zero.
    #[error("the address of all zeros is no interface's")]
    Zero,
}

impl FromStr for MacAddress {
    type Err = MacError;
    fn from_str(text: &str) -> Result<Self, MacError> {
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = u8::from_str_radix(pair.ok_or(MacError::Shape)?, 16).map_err(|_| MacError::Shape)?;
        }
        if pairs.next().is_some() {
            return Err(MacError::Shape);
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & 1 == 1 {
            return Err(MacError::Multicast);
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacError;
    fn try_from(text: String) -> Result<Self, MacError> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.map(|byte| format!("{byte:02x}"));
        f.write_str(&pairs.join(":"))
    }
}

/// Protects a VM from deletion by absence when it is `disabled`.
pub const PRUNE_ANNOTATION: &str = "stead.dev/prune";
/// Leaves a VM alone when it is `true`.
pub const SUSPEND_ANNOTATION: &str = "stead.dev/suspend";
/// A change of its value restarts the VM once.
pub const RESTARTED_AT_ANNOTATION: &str = "stead.dev/restartedAt";

/// One VM as a manifest declares it: its spec and what its metadata says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vm {
    /// The VM's name, unique on the host.
    pub name: VmName,
    /// Labels: the user's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations: the user's, and those that stead understands.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The spec: one in memory, wherever the VM is spoken of.
    pub spec: Arc<VmSpec>,
}

impl Vm {
    /// Whether `stead.dev/prune: disabled` protects this VM from deletion by absence.
    pub fn prune_disabled(&self) -> bool {
        self.annotations.get(PRUNE_ANNOTATION).is_some_and(|value| value == "disabled")
    }

    /// Whether `stead.dev/suspend: "true"` asks to leave this VM alone.
    pub fn is_suspended(&self) -> bool {
        self.annotations.get(SUSPEND_ANNOTATION).is_some_and(|value| value == "true")
    }

    /// The value of `stead.dev/restartedAt`.
    pub fn restarted_at(&self) -> Option<&str> {
        self.annotations.get(RESTARTED_AT_ANNOTATION).map(String::as_str)
    }
}
