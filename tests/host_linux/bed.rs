//! What the tests share: the prepared guests, a folder of one VM's files, namespaces.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::host::{GuestState, HostOps, HostView, ProcessHandle, SpawnError, SpawnRequest, VmmError};
use stead::names::{Incarnation, Layout, StateId, VmName};
use stead::spec::{Boot, DeletionPolicy, PowerState, RestartPolicy, UpdatePolicy, VmSpec, VmmChoice, VmmKind};
use stead::state::{ExitStatus, TapHandle};
use stead::vmm::{self, DiskSource, LaunchInput, qemu::Accel};

#[path = "../prepared/mod.rs"]
mod prepared;
use prepared::bed_path;
pub use prepared::{BOUND, bed, wait};

/// The bound of one call of a VMM's API.
pub const API: Duration = Duration::from_secs(5);

pub fn host() -> Arc<LinuxHost> {
    let config = LinuxHostConfig { firecracker: Some(bed_path("bin/firecracker")), qemu: None };
    Arc::new(LinuxHost::new(config).unwrap())
}

/// One VM with its folders and every process that was started for it.
pub struct Vm {
    pub host: Arc<LinuxHost>,
    pub layout: Layout,
    pub name: VmName,
    pub kind: VmmKind,
    pub spec: VmSpec,
    pub taps: Vec<TapHandle>,
    pub root: tempfile::TempDir,
    started: std::sync::Mutex<Vec<ProcessHandle>>,
}

impl Vm {
    /// A VM on Firecracker that boots this guest of ours.
    pub fn firecracker(guest: &str) -> Self {
        Self::new(VmmKind::Firecracker, 4, bed(&format!("guest/{guest}.elf")), None, "console=ttyS0")
    }

    /// A VM on QEMU that boots Linux.
    pub fn qemu() -> Self {
        let args = "console=ttyS0 quiet loglevel=3 stead.name=web";
        Self::new(VmmKind::Qemu, 128, bed("linux/vmlinuz"), Some(bed("linux/initrd")), args)
    }

    fn new(kind: VmmKind, memory_mib: u64, kernel: PathBuf, initrd: Option<PathBuf>, args: &str) -> Self {
        // Short, since the paths of sockets are bounded.
        let root = tempfile::Builder::new().prefix("sth").tempdir_in("/tmp").unwrap();
        let state = StateId::derive("test", root.path());
        let layout = Layout::new(state, root.path().join("s"), &root.path().join("r")).unwrap();
        let name: VmName = "web".parse().unwrap();
        let host = host();
        host.make_folder(&layout.vm_dir(&name)).unwrap();
        host.make_folder(&layout.run_dir).unwrap();
        let spec = VmSpec {
            power_state: PowerState::Running,
            restart_policy: RestartPolicy::Always,
            vmm: VmmChoice::Auto,
            cpus: 1,
            memory_mib,
            boot: Boot { kernel, initrd, args: args.to_owned() },
            disks: Vec::new(),
            network_interfaces: Vec::new(),
            termination_grace_period_seconds: 5,
            update_policy: UpdatePolicy::Recreate,
            deletion_policy: DeletionPolicy::Retain,
        };
        Self { host, layout, name, kind, spec, taps: Vec::new(), root, started: std::sync::Mutex::default() }
    }

    pub fn lock(&self) -> PathBuf {
        self.layout.vmm_lock(&self.name)
    }

    pub fn socket(&self, incarnation: u64) -> PathBuf {
        self.layout.api_socket(&self.name, Incarnation(incarnation))
    }

    pub fn identity_socket(&self, incarnation: u64) -> PathBuf {
        self.layout.identity_socket(&self.name, Incarnation(incarnation))
    }

    pub fn id(&self, incarnation: u64) -> String {
        self.layout.uid(&self.name).process_id(Incarnation(incarnation))
    }

    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.layout.console_log(&self.name)).unwrap_or_default()).into_owned()
    }

    pub fn vmm_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.layout.vmm_log(&self.name)).unwrap_or_default()).into_owned()
    }

    /// What spawns one life of it.
    pub fn request(&self, incarnation: u64) -> SpawnRequest {
        let socket = self.socket(incarnation);
        let identity = self.identity_socket(incarnation);
        let config_file = self.layout.vmm_config(&self.name);
        let disks: Vec<_> = self.spec.disks.iter().map(|disk| DiskSource::Raw(disk.image.clone())).collect();
        let launch = vmm::launch(&LaunchInput {
            spec: &self.spec,
            kind: self.kind,
            id: self.id(incarnation),
            api_socket: &socket,
            identity_socket: (self.kind == VmmKind::Qemu).then_some(identity.as_path()),
            config_file: &config_file,
            console_log: &self.layout.console_log(&self.name),
            vmm_log: &self.layout.vmm_log(&self.name),
            disks: &disks,
            taps: &self.taps,
            // A stock kernel hangs in a paravirtual /dev/kvm.
            accel: Accel::Tcg,
            kvm_usable: false,
        });
        if let Some(config) = launch.config {
            self.host.write_file(&config_file, &config).unwrap();
        }
        let facts = self.host.host_facts();
        let program = match self.kind {
            VmmKind::Firecracker => {
                facts.kvm.expect("Firecracker needs KVM");
                facts.firecracker.unwrap()
            }
            VmmKind::Qemu => facts.qemu.unwrap(),
        };
        SpawnRequest {
            program: program.path,
            args: launch.args,
            lock: self.lock(),
            stdout: launch.stdout,
            stderr: self.layout.vmm_log(&self.name),
            cgroup: None,
        }
    }

    /// Spawns something with this VM's lock, which the test need not end.
    pub fn try_spawn(&self, request: &SpawnRequest) -> Result<ProcessHandle, SpawnError> {
        let process = self.host.spawn_vmm(request)?;
        self.started.lock().unwrap().push(process.clone());
        Ok(process)
    }

    /// Spawns its VMM.
    #[track_caller]
    pub fn spawn(&self, incarnation: u64) -> ProcessHandle {
        self.try_spawn(&self.request(incarnation)).unwrap()
    }

    /// Spawns its VMM and waits until its guest runs.
    #[track_caller]
    pub fn start(&self) -> ProcessHandle {
        let process = self.spawn(1);
        self.state_is(&process, &GuestState::Running);
        process
    }

    pub fn query(&self, process: &ProcessHandle) -> Result<GuestState, VmmError> {
        self.host.query_vmm(self.kind, &self.socket(1), process, API)
    }

    #[track_caller]
    pub fn state_is(&self, process: &ProcessHandle, state: &GuestState) {
        wait(&format!("the guest is {state:?}"), || {
            let lives = self.host.inspect(process).unwrap().is_some();
            assert!(lives, "its VMM ended: {} {}", self.vmm_log(), self.console());
            (self.query(process) == Ok(state.clone())).then_some(())
        });
    }

    #[track_caller]
    pub fn console_shows(&self, text: &str) {
        wait(&format!("the console shows {text:?}"), || self.console().contains(text).then_some(()));
    }

    /// A program of the host in place of a VMM.
    pub fn program(&self, program: &str, args: &[&str]) -> SpawnRequest {
        SpawnRequest {
            program: program.into(),
            args: args.iter().map(Into::into).collect(),
            lock: self.lock(),
            stdout: self.layout.console_log(&self.name),
            stderr: self.layout.vmm_log(&self.name),
            cgroup: None,
        }
    }

    /// Waits until it has ended, and says how.
    #[track_caller]
    pub fn end_of(&self, process: &ProcessHandle) -> ExitStatus {
        ended(&*self.host, process);
        self.host.exit_status(process)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        for process in self.started.lock().unwrap().iter() {
            let _ = self.host.kill(process);
            ended(&*self.host, process);
        }
    }
}

/// Waits until the kernel says that it has ended.
#[track_caller]
pub fn ended(host: &dyn HostView, process: &ProcessHandle) {
    let (sender, receiver) = std::sync::mpsc::channel();
    host.watch_exit(
        process,
        Box::new(move || {
            let _ = sender.send(());
        }),
    )
    .unwrap();
    receiver.recv_timeout(BOUND).expect("told of its end in time");
}

/// Whether the tests run as root; what needs it says so where they do not.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Runs `test` on a thread in namespaces of its own. Without root it is told and left out.
pub fn in_namespaces(flags: nix::sched::CloneFlags, test: impl FnOnce() + Send + 'static) {
    if !is_root() {
        eprintln!("left out: namespaces need root");
        return;
    }
    let thread = std::thread::spawn(move || {
        // CLONE_FS: a thread that shares its working folder with others cannot get mounts of its own.
        nix::sched::unshare(flags | nix::sched::CloneFlags::CLONE_FS).unwrap();
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// The error's text, for asserting what people are told.
pub fn text(error: &io::Error) -> String {
    error.to_string()
}
