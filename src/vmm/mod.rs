//! VMMs: from a spec to a command line and a configuration, from a reply to what it means. Builds and parses, does no IO.
//!
//! What both kinds must do alike is decided here once: the kernel's command line and a guest's hardware addresses.

pub mod advisories;
pub mod firecracker;
pub mod qcow2;
pub mod qemu;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::names::VmName;
use crate::spec::{MacAddress, NetworkInterface, VmSpec, VmmKind};
use crate::state::TapHandle;

/// Everything that decides how a VMM is started.
#[derive(Debug, Clone)]
pub struct LaunchInput<'a> {
    /// What it should run.
    pub spec: &'a VmSpec,
    /// Which kind of VMM.
    pub kind: VmmKind,
    /// The id argument by which the process is recognised: [`crate::names::VmUid::process_id`].
    pub id: String,
    /// Where its API listens.
    pub api_socket: &'a Path,
    /// A second socket that only tells who listens, for a VMM whose API serves one client.
    pub identity_socket: Option<&'a Path>,
    /// Where [`Launch::config`] will lie.
    pub config_file: &'a Path,
    /// Where the guest's console goes, appended.
    pub console_log: &'a Path,
    /// Where the VMM's own words go, appended.
    pub vmm_log: &'a Path,
    /// What the VMM opens for each disk, in the order of the spec's disks.
    pub disks: &'a [DiskSource],
    /// The taps, in the order of the spec's network interfaces.
    pub taps: &'a [TapHandle],
    /// How QEMU virtualises.
    pub accel: qemu::Accel,
    /// Whether `/dev/kvm` works here; settles [`qemu::Accel::Auto`].
    pub kvm_usable: bool,
}

/// What a VMM opens for a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// A file or block device whose bytes are the disk's.
    Raw(PathBuf),
    /// A qcow2 file over an image. Only QEMU reads it.
    Overlay {
        /// The qcow2 file.
        overlay: PathBuf,
        /// The image under it.
        image: PathBuf,
    },
}

impl DiskSource {
    /// What is opened first.
    pub fn path(&self) -> &Path {
        match self {
            Self::Raw(path) | Self::Overlay { overlay: path, .. } => path,
        }
    }
}

/// How a VMM is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Its arguments, without the program's name.
    pub args: Vec<OsString>,
    /// The content of its configuration file, if it has one.
    pub config: Option<Vec<u8>>,
    /// The file its standard output is appended to; its standard error goes to the VMM's log.
    pub stdout: PathBuf,
}

/// Builds the command line and configuration of a VMM.
pub fn launch(input: &LaunchInput<'_>) -> Launch {
    match input.kind {
        VmmKind::Firecracker => Launch {
            args: firecracker::arguments(&input.id, input.api_socket, input.config_file),
            config: Some(firecracker::config(input.spec, input.disks, input.taps)),
            // Firecracker's serial port is its standard output.
            stdout: input.console_log.to_owned(),
        },
        VmmKind::Qemu => Launch { args: qemu::arguments(input), config: None, stdout: input.vmm_log.to_owned() },
    }
}

/// The kernel's command line: `boot.args`, and where a disk is named `root` the words that mount it.
///
/// Firecracker would add them by itself for a drive marked as root device, but it would also make that drive the first
/// one. Said here, both VMMs do alike and the guest sees its disks in the order of the manifest. A manifest that says
/// `root=` itself is left alone.
fn kernel_command_line(spec: &VmSpec) -> String {
    let args = &spec.boot.args;
    if args.split_ascii_whitespace().any(|word| word.starts_with("root=")) {
        return args.clone();
    }
    let root = spec.disks.iter().enumerate().find(|(_, disk)| disk.name.as_str() == "root");
    let Some((index, disk)) = root else { return args.clone() };
    let access = if disk.read_only { "ro" } else { "rw" };
    format!("{args} root=/dev/{} {access}", virtio_disk_name(index)).trim_start().to_owned()
}

/// What Linux calls its virtio disk number `index`: `vda` … `vdz`, `vdaa` … (drivers/block/virtio_blk.c).
fn virtio_disk_name(index: usize) -> String {
    let mut letters = Vec::new();
    let mut rest = index + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b"abcdefghijklmnopqrstuvwxyz"[rest % 26]));
        rest /= 26;
    }
    letters.iter().rev().fold("vd".to_owned(), |name, letter| format!("{name}{letter}"))
}

/// The hardware address of a guest's network interface: the manifest's, else one that derives from the tap's name, which
/// is unique to this VM's interface. QEMU would give every guest the same, and a bridge with two of them loses frames.
fn mac_address(interface: &NetworkInterface, tap: &TapHandle) -> MacAddress {
    interface.mac_address.unwrap_or_else(|| {
        let hash = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("stead.dev/mac/{}", tap.tap).as_bytes());
        // 06: unicast and locally administered (IEEE 802).
        let text = hash.as_bytes()[..5].iter().fold("06".to_owned(), |text, byte| format!("{text}:{byte:02x}"));
        text.parse().expect("six pairs, and the first one is 06")
    })
}

/// What the guest can ask a disk for its name, which virtio-blk bounds at 20 bytes (VIRTIO 1.2, 5.2.6.1).
fn disk_serial(name: &VmName) -> &str {
    &name.as_str()[..name.as_str().len().min(20)]
}

/// Whether this is a block device rather than a file. Told by its path, since nothing is looked at here.
fn is_block_device(path: &Path) -> bool {
    path.starts_with("/dev")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::spec::{Boot, DeletionPolicy, Disk, DiskMode, PowerState, RestartPolicy, UpdatePolicy, VmmChoice};

    pub(crate) fn spec() -> VmSpec {
        VmSpec {
            power_state: PowerState::Running,
            restart_policy: RestartPolicy::Always,
            vmm: VmmChoice::Auto,
            cpus: 2,
            memory_mib: 128,
            boot: Boot { kernel: "/k/vmlinux".into(), initrd: None, args: "console=ttyS0".into() },
            disks: Vec::new(),
            network_interfaces: Vec::new(),
            termination_grace_period_seconds: 10,
            update_policy: UpdatePolicy::Recreate,
            deletion_policy: DeletionPolicy::Retain,
        }
    }

    pub(crate) fn disk(name: &str, image: &str, read_only: bool) -> Disk {
        Disk { name: name.parse().unwrap(), image: image.into(), mode: DiskMode::Direct, read_only, size_bytes: None }
    }

    /// What is opened for each disk of a spec whose disks are all direct.
    pub(crate) fn sources(spec: &VmSpec) -> Vec<DiskSource> {
        spec.disks.iter().map(|disk| DiskSource::Raw(disk.image.clone())).collect()
    }

    pub(crate) fn interface(name: &str, tap: &str, mac: Option<&str>) -> (NetworkInterface, TapHandle) {
        let name: VmName = name.parse().unwrap();
        let mac_address = mac.map(|mac| mac.parse().unwrap());
        let tap = TapHandle { interface: name.clone(), tap: tap.into(), bridge: None };
        (NetworkInterface { name, bridge: None, mac_address }, tap)
    }

    pub(crate) fn input<'a>(
        spec: &'a VmSpec,
        kind: VmmKind,
        disks: &'a [DiskSource],
        taps: &'a [TapHandle],
    ) -> LaunchInput<'a> {
        LaunchInput {
            spec,
            kind,
            id: "6ba7b810-9dad-51d1-80b4-00c04fd430c8-3".into(),
            api_socket: Path::new("/r/a.sock"),
            identity_socket: Some(Path::new("/r/a.id.sock")),
            config_file: Path::new("/s/vmm.json"),
            console_log: Path::new("/s/console.log"),
            vmm_log: Path::new("/s/vmm.log"),
            disks,
            taps,
            accel: qemu::Accel::Auto,
            kvm_usable: false,
        }
    }

    #[test]
    fn the_disk_named_root_is_mounted_unless_the_manifest_says_how() {
        let mut spec = spec();
        spec.disks = vec![disk("data", "/d", false), disk("root", "/r", true)];
        assert_eq!(kernel_command_line(&spec), "console=ttyS0 root=/dev/vdb ro");
        spec.boot.args = String::new();
        assert_eq!(kernel_command_line(&spec), "root=/dev/vdb ro");
        spec.boot.args = "root=LABEL=x".into();
        assert_eq!(kernel_command_line(&spec), "root=LABEL=x");
        spec.disks.truncate(1);
        spec.boot.args = "quiet".into();
        assert_eq!(kernel_command_line(&spec), "quiet");
    }

    #[test]
    fn disks_beyond_z_go_on_with_two_letters() {
        for (index, name) in [(0, "vda"), (25, "vdz"), (26, "vdaa"), (701, "vdzz"), (702, "vdaaa")] {
            assert_eq!(virtio_disk_name(index), name);
        }
    }

    #[test]
    fn a_guest_without_a_declared_mac_gets_one_of_its_own_that_stays() {
        let (first, tap) = interface("eth0", "st0000000000001", None);
        let (second, other) = interface("eth1", "st0000000000002", None);
        assert_eq!(mac_address(&first, &tap), mac_address(&first, &tap));
        assert_ne!(mac_address(&first, &tap), mac_address(&second, &other));
        assert!(mac_address(&first, &tap).to_string().starts_with("06:"));
        let (declared, tap) = interface("eth0", "st0000000000001", Some("06:00:00:00:00:01"));
        assert_eq!(mac_address(&declared, &tap).to_string(), "06:00:00:00:00:01");
    }
}
