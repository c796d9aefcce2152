//! The manifest as users write it. These types are the one source of both the JSON Schema that editors use and the checks
//! that the loader makes, so that the two cannot disagree.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::yaml::quoted;
use crate::spec::{DeletionPolicy, DiskMode, PowerState, RestartPolicy, UpdatePolicy, VmmChoice};

/// The `apiVersion` of every manifest.
pub const API_VERSION: &str = "stead.dev/v1alpha1";
/// The `kind` of a manifest that declares a VM.
pub const KIND: &str = "VirtualMachine";
/// The `kind` of a document that lists a host.
pub const HOST_KIND: &str = "Host";
/// The kernel command line of a VM that names none: the serial console, and a reboot that ends the VMM, so that
/// restartPolicy decides what follows.
pub const DEFAULT_BOOT_ARGS: &str = "console=ttyS0 reboot=k panic=1";
/// The wait between asking a guest to stop and killing its VMM, in seconds.
pub const DEFAULT_GRACE_SECONDS: u32 = 10;

/// A microVM that should exist on this host.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VirtualMachine {
    /// Always `stead.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// Always `VirtualMachine`.
    #[schemars(extend("const" = KIND))]
    pub kind: String,
    /// Its name, and what else is known of it.
    pub metadata: Metadata,
    /// What it should be.
    pub spec: Spec,
}

/// A host whose VMs the manifests beside it declare. A source that lists one lists all of its hosts.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    /// Always `stead.dev/v1alpha1`.
    #[schemars(extend("const" = API_VERSION))]
    pub api_version: String,
    /// Always `Host`.
    #[schemars(extend("const" = HOST_KIND))]
    pub kind: String,
    /// Its name, and its labels.
    pub metadata: HostMetadata,
}

/// A host's name, and its labels.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostMetadata {
    /// What the host calls itself: the name in its configuration, else its hostname.
    #[schemars(length(min = 1))]
    pub name: String,
    /// What `hostSelector` goes by. `stead.dev/machine-id` and `stead.dev/arch` may be among them, and then have to be true.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The VM's name, and what else is known of it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique on the host: lower-case letters, digits and `-`, at most 63 characters (a DNS-1123 label).
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// Labels of your own. A change never touches the VM.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Annotations. stead understands `stead.dev/prune: disabled`, which protects the VM from deletion when its manifest is
    /// gone, `stead.dev/suspend: "true"`, which leaves the VM alone, and `stead.dev/restartedAt`, whose change restarts the VM
    /// once.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// What the VM should be.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// What the VM should be doing.
    #[serde(default)]
    pub power_state: PowerState,
    /// Whether the VM is started again when its VMM ended by itself.
    #[serde(default)]
    pub restart_policy: RestartPolicy,
    /// Which VMM runs it. `auto` takes Firecracker where its program and a usable /dev/kvm are, else QEMU, and is settled at the
    /// VM's first start.
    #[serde(default)]
    pub vmm: VmmChoice,
    /// Virtual CPUs.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 32))]
    pub cpus: u32,
    /// Guest memory, a whole number of MiB.
    pub memory: Quantity,
    /// What the guest boots.
    pub boot: Boot,
    /// Block devices, in the order in which the guest sees them.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Network interfaces, in the order in which the guest sees them.
    #[serde(default)]
    pub network_interfaces: Vec<NetworkInterface>,
    /// Seconds between asking the guest to stop and killing its VMM; 0 kills at once.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 0, max = 86400))]
    pub termination_grace_period_seconds: u32,
    /// What a change does that a running VM cannot take up: `Recreate` restarts it, `OnRestart` waits for its next start.
    #[serde(default)]
    pub update_policy: UpdatePolicy,
    /// What happens to the VM's own disks when its manifest is gone.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Which host it is for, where hosts share their manifests. On every other it is as if it were not declared.
    #[serde(default)]
    pub host_selector: Option<HostSelector>,
}

/// Which host a VM is for: the one whose labels meet all of this. Beside those of its `Host` document or its configuration a
/// host has `stead.dev/hostname`, `stead.dev/machine-id` and `stead.dev/arch`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HostSelector {
    /// Labels that it has.
    #[serde(default)]
    pub match_labels: BTreeMap<String, String>,
    /// What else is asked of its labels.
    #[serde(default)]
    pub match_expressions: Vec<MatchExpression>,
    /// Whether more than one host may run the VM; it is refused otherwise where two could.
    #[serde(default)]
    pub allow_multiple: bool,
}

/// What is asked of one label.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MatchExpression {
    /// The label.
    pub key: String,
    /// How it is to be.
    pub operator: Operator,
    /// The values that `In` and `NotIn` go by.
    #[serde(default)]
    pub values: Vec<String>,
}

/// How a label is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// One of the values.
    In,
    /// None of the values, or not there.
    NotIn,
    /// There.
    Exists,
    /// Not there.
    DoesNotExist,
}

/// What the guest boots.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Boot {
    /// Absolute path of the kernel: an uncompressed ELF `vmlinux` for Firecracker, a `vmlinuz` or `vmlinux` for QEMU.
    #[schemars(regex(pattern = PATH_PATTERN))]
    pub kernel: String,
    /// Absolute path of the initial RAM disk.
    #[serde(default)]
    #[schemars(regex(pattern = PATH_PATTERN))]
    pub initrd: Option<String>,
    /// The kernel's command line.
    #[serde(default = "default_args")]
    #[schemars(regex(pattern = LINE_PATTERN))]
    pub args: String,
}

/// A block device.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Disk {
    /// Unique within the VM, of the form of a VM's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// Absolute path of the image.
    #[schemars(regex(pattern = PATH_PATTERN))]
    pub image: String,
    /// How the image becomes the VM's disk: `snapshot` keeps what the VM writes in a copy-on-write file of its own over the
    /// image, which many VMs share; `copy` gives the VM a copy of its own; `direct` lets it use the image itself. What a VM
    /// wrote to a disk of its own outlives its restarts.
    pub mode: DiskMode,
    /// Whether the guest may not write.
    #[serde(default)]
    pub read_only: bool,
    /// Size that the guest sees, where it is to be larger than the image, for disks of mode `snapshot` and `copy`. It may
    /// grow later on, at the VM's next start, and never shrinks. A filesystem in it is for the guest to grow.
    #[serde(default)]
    pub size: Option<Quantity>,
}

/// A network interface, backed by a tap of stead's making.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkInterface {
    /// Unique within the VM, of the form of a VM's name.
    #[schemars(length(min = 1, max = 63), regex(pattern = LABEL_PATTERN))]
    pub name: String,
    /// The bridge that the tap joins; it must exist.
    #[serde(default)]
    #[schemars(length(min = 1, max = 15), regex(pattern = BRIDGE_PATTERN))]
    pub bridge: Option<String>,
    /// The guest's hardware address, such as `06:00:00:00:00:01`.
    #[serde(default)]
    #[schemars(regex(pattern = MAC_PATTERN))]
    pub mac_address: Option<String>,
}

/// A number of bytes as Kubernetes writes it: a plain number, or one with `k`, `M`, `G`, `T` (powers of 1000) or `Ki`, `Mi`,
/// `Gi`, `Ti` (powers of 1024).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Quantity {
    /// Bytes.
    Number(u64),
    /// A number with or without a suffix.
    Text(String),
}

impl JsonSchema for Quantity {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A number of bytes as Kubernetes writes it, such as 128Mi or 4Gi.",
            "type": ["string", "integer"],
            "pattern": QUANTITY_PATTERN,
            "minimum": 0,
            "maximum": u64::MAX,
        })
    }
}

// What texts look like, for editors. The check is `validate`, which says more; tests/schema.rs holds the two together.

/// A DNS-1123 label.
const LABEL_PATTERN: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// An absolute path. That no part of it may be `..` is not said here.
const PATH_PATTERN: &str = r"^/[^\n\x00]*$";
/// One line.
const LINE_PATTERN: &str = r"^[^\n\x00]*$";
/// What the kernel allows an interface to be called, as far as it is ASCII.
const BRIDGE_PATTERN: &str = r"^[^/: \t-\r\x00]*$";
/// A unicast Ethernet address, or that of all zeros.
const MAC_PATTERN: &str = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$";
/// What a quantity looks like.
const QUANTITY_PATTERN: &str = "^[0-9]+(k|M|G|T|Ki|Mi|Gi|Ti)?$";

impl Quantity {
    /// The number of bytes.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn bytes(&self) -> Result<u64, String> {
        let text = match self {
            Self::Number(bytes) => return Ok(*bytes),
            Self::Text(text) => text,
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let unit: u64 = match suffix {
            "" => 1,
            "k" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            "T" => 1_000_000_000_000,
            "Ki" => 1 << 10,
            "Mi" => 1 << 20,
            "Gi" => 1 << 30,
            "Ti" => 1 << 40,
            _ => {
                return Err(format!(
                    "{} is not a quantity: write a number with Ki, Mi, Gi, Ti or k, M, G, T",
                    quoted(text)
                ));
            }
        };
        if number.is_empty() {
            return Err(format!("{} is not a quantity: it has no number", quoted(text)));
        }
        let bytes = number.parse().ok().and_then(|number: u64| number.checked_mul(unit));
        bytes.ok_or_else(|| format!("{} is more bytes than there are numbers for", quoted(text)))
    }
}

fn one() -> u32 {
    1
}

fn default_grace() -> u32 {
    DEFAULT_GRACE_SECONDS
}

fn default_args() -> String {
    DEFAULT_BOOT_ARGS.to_owned()
}

/// The JSON Schema of a document that lists a host.
pub fn host_schema() -> serde_json::Value {
    schema_of::<Host>("host")
}

/// The JSON Schema of a manifest (draft 2020-12), with descriptions and defaults, for editors.
pub fn json_schema() -> serde_json::Value {
    schema_of::<VirtualMachine>("virtualmachine")
}

fn schema_of<T: JsonSchema>(name: &str) -> serde_json::Value {
    let mut schema = schemars::schema_for!(T);
    schema.insert("$id".to_owned(), format!("https://{API_VERSION}/{name}.schema.json").into());
    schema.to_value()
}
