//! Paths, timings and limits: what a user can set, and what holds otherwise.
//!
//! Flags and `STEAD_*` variables are read by `cli`; here is what they mean.

mod lock;
mod parse;
mod sources;
mod state_dir;

pub use lock::{LockError, StateLock};
pub use parse::{ParseError, parse_bytes, parse_duration};
pub use sources::{ConfigurationError, Configured, Source, SourceKind, configuration_schema, read_configuration};
pub use state_dir::{Access, StateError, open_state};

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::utsname::UtsName;

use crate::desired::hosts::HostIdentity;
use crate::http::Address;
use crate::plan::Policy;
use crate::push::Push;

/// Where manifests are read when nobody says otherwise, as root.
const ROOT_MANIFESTS: &str = "/etc/stead/manifests";
/// The configuration file when nobody says otherwise, as root.
const ROOT_CONFIGURATION: &str = "/etc/stead/config.yaml";
/// STATE when nobody says otherwise, as root.
const ROOT_STATE: &str = "/var/lib/stead";
/// What a host is called by whoever set it up (hostname(5)). The kernel's own may be another for a while, by DHCP.
const HOSTNAME: &str = "/etc/hostname";
/// Where this machine's id stands (machine-id(5)).
const MACHINE_ID: &str = "/etc/machine-id";
/// RUN when nobody says otherwise, as root.
const ROOT_RUN: &str = "/run/stead";

/// Everything a user can set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where manifests come from.
    pub sources: Vec<Source>,
    /// What this host is, to VMs that are for one of many.
    pub host: Arc<HostIdentity>,
    /// Where a git server can tell of a push, if anywhere.
    pub push: Option<Push>,
    /// Where metrics can be scraped, if anywhere.
    pub metrics: Option<Address>,
    /// STATE, as it was named.
    pub state_dir: PathBuf,
    /// RUN, to which the state's own folder is added.
    pub run_dir: PathBuf,
    /// Firecracker's program; a name without `/` is looked for in `PATH`.
    pub firecracker: PathBuf,
    /// QEMU's program; a name without `/` is looked for in `PATH`.
    pub qemu: PathBuf,
    /// How QEMU runs guest code.
    pub qemu_accel: QemuAccel,
    /// How many VMs are worked on at once.
    pub parallel: usize,
    /// How many VMs may be starting at once: from before the VMM is spawned until its guest is seen to run.
    pub starting: usize,
    /// How long a VMM's API may take to answer.
    pub api_timeout: Duration,
    /// How often everything is looked at again, as a net under all other wakeups.
    pub resync: Duration,
    /// How large a console or VMM log may grow before its older half is dropped, in bytes.
    pub log_limit: u64,
    /// The bounds and waits that decisions use.
    pub policy: Policy,
}

/// How QEMU runs guest code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum QemuAccel {
    /// KVM where `/dev/kvm` works, else TCG.
    #[default]
    Auto,
    /// KVM, or not at all.
    Kvm,
    /// TCG: works everywhere, some ten times slower.
    Tcg,
}

impl From<QemuAccel> for crate::vmm::qemu::Accel {
    fn from(accel: QemuAccel) -> Self {
        match accel {
            QemuAccel::Auto => Self::Auto,
            QemuAccel::Kvm => Self::Kvm,
            QemuAccel::Tcg => Self::Tcg,
        }
    }
}

/// Default number of VMs worked on at once: enough that a few slow ones delay nobody, few enough for a small host.
pub const DEFAULT_PARALLEL: u16 = 16;
/// Default of [`Settings::starting`] for each CPU: about the fewest with which a burst comes up at the best rate (P8 of
/// docs/performance.md). With more, the first guest runs later and the last one no sooner.
const STARTING_A_CPU: usize = 8;

/// Default of [`Settings::starting`] on this host.
pub fn default_starting() -> usize {
    STARTING_A_CPU * std::thread::available_parallelism().map_or(1, usize::from)
}

/// Default of [`Settings::resync`].
pub const DEFAULT_RESYNC: Duration = Duration::from_secs(600);
/// Default of [`Settings::log_limit`].
pub const DEFAULT_LOG_LIMIT: u64 = 4 << 20;

/// What default paths depend on: who runs stead, and the XDG base directories (XDG Base Directory Specification 0.8).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Effective user id.
    pub uid: u32,
    /// `HOME`.
    pub home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// `XDG_STATE_HOME`.
    pub state_home: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `/run/user/UID`, if it is there: what `XDG_RUNTIME_DIR` says in a login session, and cron does not.
    pub run_user: Option<PathBuf>,
    /// What this host is called.
    pub hostname: String,
    /// Its machine id, where it has one.
    pub machine_id: Option<String>,
    /// The architecture of its CPUs, as uname(2) calls it.
    pub arch: String,
}

impl Environment {
    /// What holds for this process.
    pub fn current() -> Self {
        // A relative path in an XDG variable is invalid and to be ignored, says the specification.
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let uid = nix::unistd::geteuid().as_raw();
        let run_user = PathBuf::from(format!("/run/user/{uid}"));
        Self {
            uid,
            home: absolute("HOME"),
            config_home: absolute("XDG_CONFIG_HOME"),
            state_home: absolute("XDG_STATE_HOME"),
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
            run_user: run_user.is_dir().then_some(run_user),
            hostname: hostname(),
            machine_id: first_line(MACHINE_ID),
            arch: uname(UtsName::machine),
        }
    }

    /// What this host is, by this configuration.
    pub fn host(&self, configured: &Configured) -> HostIdentity {
        let name = configured.host_name.clone().unwrap_or_else(|| self.hostname.clone());
        let labels = configured.host_labels.clone();
        let here = HostIdentity::new(name, labels, self.machine_id.clone(), self.arch.clone());
        HostIdentity { is_configured: configured.host_name.is_some(), ..here }
    }

    /// Where manifests are read when nobody says otherwise.
    pub fn default_manifests(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(ROOT_MANIFESTS.into());
        }
        Some(self.xdg(self.config_home.as_deref(), ".config")?.join("stead/manifests"))
    }

    /// The configuration file when nobody says otherwise.
    pub fn default_configuration(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(ROOT_CONFIGURATION.into());
        }
        Some(self.xdg(self.config_home.as_deref(), ".config")?.join("stead/config.yaml"))
    }

    /// STATE when nobody says otherwise.
    pub fn default_state_dir(&self) -> Option<PathBuf> {
        if self.uid == 0 {
            return Some(ROOT_STATE.into());
        }
        Some(self.xdg(self.state_home.as_deref(), ".local/state")?.join("stead"))
    }

    /// RUN when nobody says otherwise.
    pub fn default_run_dir(&self, state_dir: &Path) -> PathBuf {
        if self.uid == 0 {
            return ROOT_RUN.into();
        }
        match self.runtime_dir.as_ref().or(self.run_user.as_ref()) {
            Some(runtime) => runtime.join("stead"),
            None => state_dir.join("run"),
        }
    }

    fn xdg(&self, set: Option<&Path>, below_home: &str) -> Option<PathBuf> {
        set.map(Path::to_owned).or_else(|| Some(self.home.as_ref()?.join(below_home)))
    }
}

fn hostname() -> String {
    let kernels = || uname(UtsName::nodename);
    first_line(HOSTNAME).unwrap_or_else(kernels)
}

/// A part of what uname(2) says.
fn uname(part: fn(&UtsName) -> &OsStr) -> String {
    nix::sys::utsname::uname().map(|name| part(&name).to_string_lossy().into_owned()).unwrap_or_default()
}

/// The first line of a file that says something.
fn first_line(file: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let said = |line: &&str| !line.is_empty() && !line.starts_with('#');
    text.lines().map(str::trim).find(said).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user() -> Environment {
        Environment {
            uid: 1000,
            home: Some("/home/u".into()),
            config_home: None,
            state_home: None,
            runtime_dir: None,
            run_user: None,
            hostname: "a1".to_owned(),
            machine_id: None,
            arch: "x86_64".to_owned(),
        }
    }

    #[test]
    fn root_has_the_folders_of_the_system() {
        let root = Environment { uid: 0, runtime_dir: Some("/run/user/0".into()), ..user() };
        assert_eq!(root.default_manifests().unwrap(), Path::new("/etc/stead/manifests"));
        assert_eq!(root.default_state_dir().unwrap(), Path::new("/var/lib/stead"));
        assert_eq!(root.default_run_dir(Path::new("/s")), Path::new("/run/stead"));
    }

    #[test]
    fn a_user_has_the_xdg_folders_with_their_fallbacks() {
        assert_eq!(user().default_manifests().unwrap(), Path::new("/home/u/.config/stead/manifests"));
        assert_eq!(user().default_state_dir().unwrap(), Path::new("/home/u/.local/state/stead"));
        let set = Environment { state_home: Some("/data/state".into()), ..user() };
        assert_eq!(set.default_state_dir().unwrap(), Path::new("/data/state/stead"));
        assert_eq!(Environment { home: None, ..user() }.default_state_dir(), None);
    }

    #[test]
    fn under_cron_the_run_folder_is_that_of_the_login_session() {
        let session = Environment { runtime_dir: Some("/run/user/1000".into()), ..user() };
        let cron = Environment { run_user: Some("/run/user/1000".into()), ..user() };
        assert_eq!(session.default_run_dir(Path::new("/s")), cron.default_run_dir(Path::new("/s")));
        assert_eq!(user().default_run_dir(Path::new("/s")), Path::new("/s/run"));
    }
}
