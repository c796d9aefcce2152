//! QEMU's `microvm` machine: its arguments, and what QMP's replies mean.
//!
//! Sources: qemu(1), `docs/system/i386/microvm.rst` and the QMP reference of QEMU; tried on 7.2.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use qapi::qmp::RunState;
use serde_json::{Value, json};

use super::{DiskSource, LaunchInput};
use crate::host::GuestState;
use crate::spec::Disk;

/// How QEMU virtualises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Accel {
    /// KVM where `/dev/kvm` can be used, else TCG.
    #[default]
    Auto,
    /// The kernel's; it fails where there is none.
    Kvm,
    /// QEMU's own emulation: slow, and works everywhere.
    Tcg,
}

impl Accel {
    /// Whether the kernel virtualises, on a host where KVM can or cannot be used.
    pub fn is_kvm(self, kvm_usable: bool) -> bool {
        match self {
            Self::Kvm => true,
            Self::Tcg => false,
            Self::Auto => kvm_usable,
        }
    }
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// Not one of `auto`, `kvm`, `tcg`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected auto, kvm or tcg")]
pub struct AccelError;

impl FromStr for Accel {
    type Err = AccelError;
    fn from_str(text: &str) -> Result<Self, AccelError> {
        match text {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            _ => Err(AccelError),
        }
    }
}

/// What the guest's kernel must be told when nothing but QEMU's emulation runs it. Under TCG the machine's timers are too
/// slow to calibrate the time-stamp counter against, and 4 of 10 boots of a stock kernel hung in that: the frequency is
/// given instead, and the check of the timer interrupt is left out.
const TCG_KERNEL_ARGS: [&str; 2] = ["tsc_early_khz=2300000", "no_timer_check"];

/// A kernel's command line with those of [`TCG_KERNEL_ARGS`] that it does not set itself. They stand before it, since what is
/// behind a `--` is init's (kernel-parameters, "Passing arguments to init").
fn with_tcg_arguments(command_line: &str) -> String {
    // A dash and an underscore are the same to the kernel.
    let name = |word: &str| word.split('=').next().unwrap_or_default().replace('-', "_");
    let set: Vec<String> = command_line.split_ascii_whitespace().take_while(|word| *word != "--").map(name).collect();
    let is_missing = |arg: &&str| !set.contains(&name(arg));
    let parts = TCG_KERNEL_ARGS.into_iter().filter(is_missing).chain([command_line]);
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// The arguments. Values that people choose are passed as JSON or doubled commas, so that none of them is read as options.
pub fn arguments(input: &LaunchInput<'_>) -> Vec<OsString> {
    let spec = input.spec;
    let kvm = input.accel.is_kvm(input.kvm_usable);
    let mut args = Arguments(Vec::new());
    // Exactly the id: by this argument the process is recognised.
    args.pair("-name", &input.id);
    args.flag("-nodefaults");
    args.flag("-no-user-config");
    args.pair("-display", "none");
    // A reboot of the guest ends the VMM: whether it starts again is said by restartPolicy.
    args.flag("-no-reboot");
    // No system call that a VMM without helpers has no need of.
    args.pair("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    // The power button is a part of ACPI.
    args.pair("-machine", "microvm,acpi=on");
    args.pair("-accel", if kvm { "kvm" } else { "tcg" });
    args.pair("-cpu", if kvm { "host" } else { TCG_CPU });
    args.pair("-smp", format!("cpus={}", spec.cpus));
    args.pair("-m", format!("{}M", spec.memory_mib));
    args.pair("-kernel", spec.boot.kernel.as_os_str());
    if let Some(initrd) = &spec.boot.initrd {
        args.pair("-initrd", initrd.as_os_str());
    }
    let command_line = super::kernel_command_line(spec);
    args.pair("-append", if kvm { command_line } else { with_tcg_arguments(&command_line) });

    let console = option("file,id=console,append=on,path=", input.console_log, "");
    args.pair("-chardev", console);
    args.pair("-serial", "chardev:console");
    args.qmp("api", input.api_socket);
    if let Some(socket) = input.identity_socket {
        args.qmp("identity", socket);
    }
    for (index, (disk, source)) in spec.disks.iter().zip(input.disks).enumerate() {
        args.pair("-blockdev", blockdev(index, disk, source).to_string());
        let serial = super::disk_serial(&disk.name);
        args.pair("-device", format!("virtio-blk-device,drive=disk{index},serial={serial}"));
    }
    for (index, (interface, tap)) in spec.network_interfaces.iter().zip(input.taps).enumerate() {
        args.pair("-netdev", format!("tap,id=net{index},ifname={},script=no,downscript=no", tap.tap));
        let mac = super::mac_address(interface, tap);
        args.pair("-device", format!("virtio-net-device,netdev=net{index},mac={mac}"));
    }
    args.0
}

/// The CPU that TCG emulates: everything it can, so that distributions built for newer CPUs run, but for five-level page
/// tables, which cost time and give nothing at these sizes.
const TCG_CPU: &str = "max,la57=off";

struct Arguments(Vec<OsString>);

impl Arguments {
    fn flag(&mut self, name: &str) {
        self.0.push(name.into());
    }

    fn pair(&mut self, name: &str, value: impl Into<OsString>) {
        self.flag(name);
        self.0.push(value.into());
    }

    fn qmp(&mut self, id: &str, socket: &Path) {
        self.pair("-chardev", option(&format!("socket,id={id},server=on,wait=off,path="), socket, ""));
        self.pair("-mon", format!("chardev={id},mode=control"));
    }
}

/// An option string around a path; a comma in the path is doubled, which is how QEMU tells it from its own.
fn option(before: &str, path: &Path, after: &str) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = before.as_bytes().to_vec();
    for byte in path.as_os_str().as_bytes() {
        bytes.push(*byte);
        if *byte == b',' {
            bytes.push(b',');
        }
    }
    bytes.extend_from_slice(after.as_bytes());
    OsString::from_vec(bytes)
}

/// A disk. Its format is always said: QEMU's guessing of formats lets a guest that writes a header read other files of the
/// host. What is written to is locked, so that two QEMUs never write it at once.
fn blockdev(index: usize, disk: &Disk, source: &DiskSource) -> Value {
    let file = |path: &Path| {
        let driver = if super::is_block_device(path) { "host_device" } else { "file" };
        json!({"driver": driver, "filename": path, "locking": "on", "aio": "threads"})
    };
    let mut node = json!({
        "driver": "raw",
        "node-name": format!("disk{index}"),
        "read-only": disk.read_only,
        "discard": "unmap",
        "file": file(source.path()),
    });
    if let DiskSource::Overlay { image, .. } = source {
        node["driver"] = json!("qcow2");
        node["backing"] = json!({"driver": "raw", "read-only": true, "file": file(image)});
        node["backing"]["file"]["read-only"] = json!(true);
    }
    node
}

/// What the guest is doing, by the reply to `query-status`.
pub fn read_state(status: RunState) -> GuestState {
    match status {
        RunState::prelaunch | RunState::inmigrate => GuestState::NotStarted,
        // A guest in these does nothing any more, and nothing wakes it.
        RunState::shutdown | RunState::guest_panicked | RunState::internal_error => GuestState::ShutDown,
        // After an error of a disk the guest may go on where it stopped.
        RunState::paused | RunState::io_error | RunState::watchdog | RunState::debug => GuestState::Paused,
        _ => GuestState::Running,
    }
}

/// The version in what `qemu-system-x86_64 --version` prints: `QEMU emulator version 7.2.22 (Debian 1:7.2…)`.
pub fn read_version(output: &str) -> Option<String> {
    let version = output.lines().next()?.strip_prefix("QEMU emulator version ")?.split_ascii_whitespace().next()?;
    Some(version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::VmmKind;
    use crate::vmm::tests::{disk, input, interface, sources, spec};

    fn texts(input: &LaunchInput<'_>) -> Vec<String> {
        arguments(input).into_iter().map(|arg| arg.into_string().unwrap()).collect()
    }

    fn value_of<'a>(args: &'a [String], name: &str) -> &'a str {
        let index = args.iter().position(|arg| arg == name).unwrap_or_else(|| panic!("{name} in {args:?}"));
        &args[index + 1]
    }

    #[test]
    fn the_id_is_an_argument_of_its_own() {
        let spec = spec();
        let args = texts(&input(&spec, VmmKind::Qemu, &[], &[]));
        assert_eq!(value_of(&args, "-name"), "6ba7b810-9dad-51d1-80b4-00c04fd430c8-3");
    }

    #[test]
    fn the_emulated_kernel_is_told_its_clock_and_the_virtualised_one_is_not() {
        let spec = spec();
        let mut input = input(&spec, VmmKind::Qemu, &[], &[]);
        let args = texts(&input);
        assert_eq!(value_of(&args, "-accel"), "tcg");
        assert_eq!(value_of(&args, "-append"), "tsc_early_khz=2300000 no_timer_check console=ttyS0");
        input.kvm_usable = true;
        let args = texts(&input);
        assert_eq!(value_of(&args, "-accel"), "kvm");
        assert_eq!(value_of(&args, "-cpu"), "host");
        assert_eq!(value_of(&args, "-append"), "console=ttyS0");
        input.accel = Accel::Tcg;
        assert_eq!(value_of(&texts(&input), "-accel"), "tcg");
    }

    #[test]
    fn what_a_manifest_says_of_the_clock_is_what_the_emulated_kernel_is_told() {
        let told = with_tcg_arguments("tsc_early_khz=3000000 quiet -- stay");
        assert_eq!(told, "no_timer_check tsc_early_khz=3000000 quiet -- stay");
        let told = with_tcg_arguments("no-timer-check -- tsc_early_khz=1");
        assert_eq!(told, "tsc_early_khz=2300000 no-timer-check -- tsc_early_khz=1");
        assert_eq!(with_tcg_arguments(""), "tsc_early_khz=2300000 no_timer_check");
    }

    #[test]
    fn a_comma_in_a_path_adds_no_option() {
        let mut spec = spec();
        spec.disks = vec![disk("d", "/a,read-only=on/b\".img", false), disk("lv", "/dev/vg/lv", true)];
        let disks = sources(&spec);
        let mut input = input(&spec, VmmKind::Qemu, &disks, &[]);
        input.api_socket = Path::new("/r,server=off/a.sock");
        let args = texts(&input);
        assert!(args.iter().any(|arg| arg == "socket,id=api,server=on,wait=off,path=/r,,server=off/a.sock"));
        let blocks: Vec<Value> = args.iter().filter_map(|arg| serde_json::from_str(arg).ok()).collect();
        assert_eq!(blocks[0]["file"]["filename"], "/a,read-only=on/b\".img");
        assert_eq!(blocks[0]["file"]["driver"], "file");
        assert_eq!(blocks[1]["file"]["driver"], "host_device");
        assert_eq!(blocks[1]["read-only"], true);
    }

    #[test]
    fn a_tap_is_attached_without_scripts() {
        let mut spec = spec();
        let (eth, tap) = interface("eth0", "st0123456789abc", Some("06:00:00:00:00:01"));
        spec.network_interfaces = vec![eth];
        let args = texts(&input(&spec, VmmKind::Qemu, &[], &[tap]));
        assert_eq!(value_of(&args, "-netdev"), "tap,id=net0,ifname=st0123456789abc,script=no,downscript=no");
        assert!(args.iter().any(|arg| arg == "virtio-net-device,netdev=net0,mac=06:00:00:00:00:01"));
    }

    #[test]
    fn versions_and_states_are_read() {
        assert_eq!(read_version("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright"), Some("7.2.22".to_owned()));
        assert_eq!(read_version(""), None);
        assert_eq!(read_state(RunState::running), GuestState::Running);
        assert_eq!(read_state(RunState::paused), GuestState::Paused);
        assert_eq!(read_state(RunState::prelaunch), GuestState::NotStarted);
        assert_eq!(read_state(RunState::shutdown), GuestState::ShutDown);
    }
}
