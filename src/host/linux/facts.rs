//! What this host has, each fact with what to do where it is missing.

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cgroup::Cgroups;
use super::{LinuxHostConfig, device_mapper, files, programs};
use crate::host::{FileStamp, HostFacts, Program};
use crate::spec::VmmKind;
use crate::vmm::{firecracker, qemu};

/// How long facts are used, from when they began to be looked up: each of a burst of turns would ask the same. They go stale
/// by what people do to a host: install, replace or remove a program, load a module, change the rights of a device. Nobody
/// does that within a burst, and whoever acts on a fact that is no longer one is told so by the act.
const FRESH: Duration = Duration::from_millis(100);

/// How long a program may take to tell its version.
pub(super) const VERSION_BOUND: Duration = Duration::from_secs(5);

nix::ioctl_write_int_bad!(
    /// `KVM_GET_API_VERSION` (linux/kvm.h). Its argument must be 0: one that is left out is whatever stands in the register,
    /// and KVM answers EINVAL.
    kvm_get_api_version,
    0xAE00
);

/// The only version of KVM's API there ever was since it became stable (`Documentation/virt/kvm/api.rst`).
const KVM_API_VERSION: i32 = 12;

/// What was learnt of the host; of each program only once.
pub(super) struct Facts {
    config: LinuxHostConfig,
    last: Mutex<Option<(Instant, HostFacts)>>,
    /// By the program's file: another one, or the same with other content, is asked anew.
    versions: Mutex<HashMap<FileStamp, Option<String>>>,
}

impl Facts {
    pub(super) fn new(config: LinuxHostConfig) -> Self {
        Self { config, last: Mutex::default(), versions: Mutex::default() }
    }

    pub(super) fn get(&self, cgroups: &Cgroups) -> HostFacts {
        self.get_at(Instant::now(), cgroups)
    }

    fn get_at(&self, now: Instant, cgroups: &Cgroups) -> HostFacts {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((since, facts)) = &*last()
            && now.saturating_duration_since(*since) < FRESH
        {
            return facts.clone();
        }
        // Not locked meanwhile: a device that is slow to answer delays no other VM's turn.
        let facts = self.look(cgroups);
        *last() = Some((now, facts.clone()));
        facts
    }

    fn look(&self, cgroups: &Cgroups) -> HostFacts {
        let qemu_name = format!("qemu-system-{}", std::env::consts::ARCH);
        HostFacts {
            firecracker: program(
                self.config.firecracker.as_deref(),
                "firecracker",
                "install the release from https://github.com/firecracker-microvm/firecracker/releases, or say where it is \
                 (STEAD_FIRECRACKER)",
            ),
            qemu: program(
                self.config.qemu.as_deref(),
                &qemu_name,
                "install it (Debian, Ubuntu: apt-get install qemu-system-x86), or say where it is (STEAD_QEMU)",
            ),
            kvm: check_kvm(Path::new("/dev/kvm")),
            device_mapper: device_mapper::usable(),
            cgroups: cgroups.facts(),
        }
    }

    /// The version that a VMM's program tells of itself.
    pub(super) fn version(&self, vmm: VmmKind, program: &Path) -> Option<String> {
        let stamp = files::stamp_of(&fs::metadata(program).ok()?);
        let read = match vmm {
            VmmKind::Firecracker => firecracker::read_version,
            VmmKind::Qemu => qemu::read_version,
        };
        // Locked while it runs, so that of many who ask at once one runs it.
        let mut versions = self.versions.lock().unwrap_or_else(PoisonError::into_inner);
        let ask = || programs::printed(program, "--version", VERSION_BOUND).ok().as_deref().and_then(read);
        versions.entry(stamp).or_insert_with(ask).clone()
    }
}

fn program(configured: Option<&Path>, default: &str, advice: &str) -> Result<Program, String> {
    let wanted = configured.unwrap_or(Path::new(default));
    let path = find(wanted).ok_or_else(|| match configured {
        Some(path) => format!("{} is no program that can be run: {advice}", path.display()),
        None => format!("{default} is not in PATH: {advice}"),
    })?;
    Ok(Program { path })
}

/// The absolute path of a program: as it is if it has a `/`, else found in `PATH`.
pub(super) fn find(wanted: &Path) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if wanted.components().count() > 1 || wanted.is_absolute() {
        // The VMM starts in another folder.
        return std::path::absolute(wanted).ok().filter(|path| is_program(path));
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    let mut folders = std::env::split_paths(&path).filter(|folder| folder.is_absolute());
    folders.find_map(|folder| Some(folder.join(wanted)).filter(|path| is_program(path)))
}

/// Whether KVM can be used, else what to do.
fn check_kvm(device: &Path) -> Result<(), String> {
    let shown = device.display();
    let file = OpenOptions::new().read(true).write(true).open(device).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{shown} is missing: enable virtualisation in the firmware, or nested virtualisation of the host if this is a \
             VM, and load the kernel module kvm_intel or kvm_amd"
        ),
        io::ErrorKind::PermissionDenied => format!(
            "{shown} may not be opened by this user: add the user to the group kvm (usermod -aG kvm USER) and log in again"
        ),
        _ => format!("{shown} cannot be opened ({error}): see what the kernel logs of kvm (dmesg)"),
    })?;
    // SAFETY: the request takes no argument and writes no memory of ours; on another device it fails.
    match unsafe { kvm_get_api_version(file.as_raw_fd(), 0) } {
        Ok(KVM_API_VERSION) => Ok(()),
        Ok(version) => {
            Err(format!("{shown} has API version {version}, and VMMs need {KVM_API_VERSION}: update the kernel"))
        }
        Err(errno) => Err(format!(
            "{shown} does not answer as KVM does ({}): it is something else; remove it, and load kvm_intel or kvm_amd anew",
            errno.desc()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_missing_or_not_kvm_is_told_with_what_to_do() {
        assert!(check_kvm(Path::new("/nonexistent/kvm")).unwrap_err().contains("kvm_intel"));
        assert!(check_kvm(Path::new("/dev/null")).unwrap_err().contains("does not answer as KVM"));
    }

    #[test]
    fn a_program_is_found_by_path_or_by_name() {
        assert!(find(Path::new("sh")).is_some_and(|path| path.is_absolute()));
        assert_eq!(find(Path::new("/bin/sh")), Some(PathBuf::from("/bin/sh")));
        assert_eq!(find(Path::new("no-such-program-anywhere")), None);
        assert_eq!(find(Path::new("/etc/passwd")), None, "it is not executable");
    }

    #[test]
    fn a_missing_program_is_told_with_what_to_do() {
        let config = LinuxHostConfig { firecracker: Some("/nonexistent/fc".into()), qemu: Some("no-such-qemu".into()) };
        let facts = Facts::new(config).get(&Cgroups::default());
        assert!(facts.firecracker.unwrap_err().starts_with("/nonexistent/fc is no program"));
        assert!(facts.qemu.unwrap_err().contains("STEAD_QEMU"));
    }

    #[test]
    fn a_program_that_comes_or_goes_is_seen_a_moment_later() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("fc");
        let facts = Facts::new(LinuxHostConfig { firecracker: Some(program.clone()), qemu: None });
        let start = Instant::now();
        let is_there = |ms| {
            let now = start + Duration::from_millis(ms);
            facts.get_at(now, &Cgroups::default()).firecracker.is_ok()
        };
        assert!(!is_there(0));
        std::os::unix::fs::symlink("/bin/true", &program).unwrap();
        assert!(!is_there(99));
        assert!(is_there(100));
        fs::remove_file(&program).unwrap();
        assert!(is_there(199));
        assert!(!is_there(200));
    }
}
