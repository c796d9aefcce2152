//! A host on which stead dies at a chosen effect: from then on nothing can be done any more, so that what is on disk and in
//! the kernel is exactly what a SIGKILL at that point leaves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stead::config::{Access, Settings, open_state};
use stead::desired::FileId;
use stead::host::devices::{
    Cgroup, CgroupFacts, CgroupLimits, Copied, DeviceOps, DeviceView, DmDevice, DmRequest, Holder, ImageIdentity,
    LoopDevice, LoopRequest, TapRemoval, TapsRemoved,
};
use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::host::{
    FileStamp, GuestState, HostFacts, HostOps, HostView, LockProbe, ProcessHandle, ProcessInfo, Program, ProgramOutput,
    ProgramRequest, SocketPeer, SpawnError, SpawnRequest, StateFileError, Tap, Usage, VmmCommand, VmmError,
};
use stead::plan::{AllowPrune, Policy};
use stead::reconcile::{OnceOptions, Outcome, Stead, once};
use stead::spec::VmmKind;
use stead::state::ExitStatus;
use stead::time::Now;

/// The real host, until its hour comes.
pub struct Mortal {
    real: LinuxHost,
    effects: AtomicUsize,
    dies_at: usize,
    after: bool,
}

impl Mortal {
    /// The host on which stead dies at its effect number `dies_at`, before it or after it.
    pub fn new(firecracker: &Path, dies_at: usize, after: bool) -> Arc<Self> {
        let config = LinuxHostConfig { firecracker: Some(firecracker.to_owned()), qemu: None };
        Arc::new(Self { real: LinuxHost::new(config).unwrap(), effects: AtomicUsize::new(0), dies_at, after })
    }

    /// The host on which stead lives on.
    pub fn immortal(settings: &Settings) -> Arc<Self> {
        Self::new(&settings.firecracker, usize::MAX, false)
    }

    /// The effects so far.
    pub fn effects(&self) -> usize {
        self.effects.load(Ordering::SeqCst)
    }

    /// One effect. `None` when stead is dead, or dies with it.
    fn effect<T>(&self, act: impl FnOnce() -> T) -> Option<T> {
        let number = self.effects.fetch_add(1, Ordering::SeqCst) + 1;
        if number > self.dies_at || (number == self.dies_at && !self.after) {
            return None;
        }
        let result = act();
        (number != self.dies_at).then_some(result)
    }

    fn io_effect<T>(&self, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.effect(act).unwrap_or_else(|| Err(io::Error::other("stead is dead")))
    }
}

/// Settings of a stead that waits for nothing longer than it must. The folders are to be filled in.
pub fn settings() -> Settings {
    Settings {
        host: Arc::default(),
        sources: Vec::new(),
        push: None,
        metrics: None,
        state_dir: PathBuf::new(),
        run_dir: PathBuf::new(),
        firecracker: PathBuf::new(),
        qemu: "qemu-system-x86_64".into(),
        qemu_accel: stead::config::QemuAccel::Tcg,
        parallel: 4,
        starting: 16,
        api_timeout: Duration::from_secs(5),
        resync: Duration::from_secs(600),
        log_limit: 1 << 20,
        policy: Policy {
            prune_delay: Duration::from_millis(50),
            backoff_initial: Duration::from_millis(10),
            ..Policy::default()
        },
    }
}

/// One pass of a stead on this host.
pub fn pass(settings: &Settings, mortal: &Arc<Mortal>) -> Outcome {
    let layout = open_state(settings, Access::Actor).unwrap();
    let host: Arc<dyn HostOps> = Arc::clone(mortal) as Arc<dyn HostOps>;
    let stead = Stead { settings: settings.clone(), layout, host };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let options = OnceOptions { timeout: Duration::from_secs(30), allow_prune: AllowPrune(0), only: None, sync: false };
    let mut progress = |_| {};
    runtime.block_on(async {
        tokio::select! {
            outcome = once(&stead, &options, &mut progress) => outcome.unwrap(),
            // The dead wait for what never comes.
            () = death(mortal) => Outcome::default(),
        }
    })
}

/// Some moments after stead died: what it began by then comes to its end, and nothing else does.
async fn death(mortal: &Mortal) {
    while mortal.effects() < mortal.dies_at {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Passes of living steads until one finds nothing to do.
#[track_caller]
pub fn converge(settings: &Settings) {
    for _ in 0..20 {
        let outcome = pass(settings, &Mortal::immortal(settings));
        if outcome.changes == 0 && outcome.plan.is_empty() && outcome.failures.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not come to rest: {:?}", pass(settings, &Mortal::immortal(settings)));
}

/// Brings a new world to where the scenario begins, dies at every point of it, and looks at the end each time. Gives how
/// many points there were. Death comes before each effect, and where `after` has `true`, after each.
pub fn dies_everywhere<W>(
    scenario: &str,
    after: &[bool],
    new: impl Fn() -> W,
    settings: impl Fn(&W) -> Settings,
    before: impl Fn(&W),
    change: impl Fn(&W),
    end: impl Fn(&W, &str),
) -> usize {
    let mut points = 0;
    for after in after.iter().copied() {
        for point in 1.. {
            let world = new();
            let settings = settings(&world);
            before(&world);
            converge(&settings);
            change(&world);
            let mortal = Mortal::new(&settings.firecracker, point, after);
            pass(&settings, &mortal);
            let died = mortal.effects() >= point;
            converge(&settings);
            let when = format!("{scenario}: died {} effect {point}", if after { "after" } else { "before" });
            end(&world, &when);
            if !died {
                points = point - 1;
                break;
            }
            assert!(point < 200, "{scenario} never comes to its end");
        }
    }
    points
}

impl HostView for Mortal {
    fn now(&self) -> Now {
        self.real.now()
    }
    fn read_state_file(&self, path: &Path) -> Result<Option<Vec<u8>>, StateFileError> {
        self.real.read_state_file(path)
    }
    fn list_folder(&self, path: &Path) -> io::Result<Vec<String>> {
        self.real.list_folder(path)
    }
    fn file_stamp(&self, path: &Path) -> io::Result<Option<FileStamp>> {
        self.real.file_stamp(path)
    }
    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.real.exists(path)
    }
    fn file_id(&self, path: &Path) -> io::Result<Option<FileId>> {
        self.real.file_id(path)
    }
    fn check_access(&self, path: &Path, write: bool) -> io::Result<()> {
        self.real.check_access(path, write)
    }
    fn socket_peer(&self, socket: &Path) -> SocketPeer {
        self.real.socket_peer(socket)
    }
    fn open_process(&self, pid: i32) -> io::Result<Option<ProcessHandle>> {
        self.real.open_process(pid)
    }
    fn is_alive(&self, process: &ProcessHandle) -> bool {
        self.real.is_alive(process)
    }
    fn inspect(&self, process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
        self.real.inspect(process)
    }
    fn usage(&self, process: &ProcessHandle) -> io::Result<Option<Usage>> {
        self.real.usage(process)
    }
    fn probe_lock(&self, lock: &Path) -> LockProbe {
        self.real.probe_lock(lock)
    }
    fn scan_processes(&self) -> io::Result<Vec<(i32, String)>> {
        self.real.scan_processes()
    }
    fn exit_status(&self, process: &ProcessHandle) -> ExitStatus {
        self.real.exit_status(process)
    }
    fn watch_exit(&self, process: &ProcessHandle, on_exit: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        self.real.watch_exit(process, on_exit)
    }
    fn query_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        bound: Duration,
    ) -> Result<GuestState, VmmError> {
        self.real.query_vmm(vmm, api_socket, peer, bound)
    }
    fn taps(&self) -> io::Result<Vec<Tap>> {
        self.real.taps()
    }
    fn tap(&self, name: &str) -> io::Result<Option<Tap>> {
        self.real.tap(name)
    }
    fn host_facts(&self) -> HostFacts {
        self.real.host_facts()
    }
    fn program_version(&self, vmm: VmmKind, program: &Program) -> Option<String> {
        self.real.program_version(vmm, program)
    }
}

impl HostOps for Mortal {
    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        // Making what is there already is no effect.
        if self.real.exists(path)? {
            return Ok(false);
        }
        self.io_effect(|| self.real.make_folder(path))
    }
    fn write_durable(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.io_effect(|| self.real.write_durable(path, bytes))
    }
    fn write_file(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.io_effect(|| self.real.write_file(path, bytes))
    }
    fn remove_file(&self, path: &Path, durable: bool) -> io::Result<bool> {
        if !self.real.exists(path)? {
            return Ok(false);
        }
        self.io_effect(|| self.real.remove_file(path, durable))
    }
    fn set_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        self.io_effect(|| self.real.set_aside(path))
    }
    fn sweep_temporaries(&self, folder: &Path) -> io::Result<usize> {
        self.real.sweep_temporaries(folder)
    }
    fn trim_log(&self, path: &Path, limit: u64) -> io::Result<bool> {
        self.real.trim_log(path, limit)
    }
    fn append_log(&self, path: &Path, before: &Path, line: &[u8], limit: u64) -> io::Result<()> {
        self.io_effect(|| self.real.append_log(path, before, line, limit))
    }
    fn run_program(&self, request: &ProgramRequest<'_>) -> io::Result<ProgramOutput> {
        self.real.run_program(request)
    }
    fn spawn_vmm(&self, request: &SpawnRequest) -> Result<ProcessHandle, SpawnError> {
        self.effect(|| self.real.spawn_vmm(request)).unwrap_or_else(|| {
            Err(SpawnError::Failed { program: request.program.clone(), source: io::Error::other("stead is dead") })
        })
    }
    fn kill(&self, process: &ProcessHandle) -> io::Result<bool> {
        self.io_effect(|| self.real.kill(process))
    }
    fn command_vmm(
        &self,
        vmm: VmmKind,
        api_socket: &Path,
        peer: &ProcessHandle,
        command: VmmCommand,
        bound: Duration,
    ) -> Result<(), VmmError> {
        self.effect(|| self.real.command_vmm(vmm, api_socket, peer, command, bound))
            .unwrap_or_else(|| Err(VmmError::Io("stead is dead".to_owned())))
    }
    fn create_tap(&self, name: &str, alias: &str, bridge: Option<&str>) -> io::Result<()> {
        self.io_effect(|| self.real.create_tap(name, alias, bridge))
    }
    fn set_tap_bridge(&self, name: &str, bridge: Option<&str>) -> io::Result<()> {
        self.io_effect(|| self.real.set_tap_bridge(name, bridge))
    }
    fn tag_tap(&self, name: &str, alias: &str) -> io::Result<()> {
        self.io_effect(|| self.real.tag_tap(name, alias))
    }
    fn delete_tap(&self, name: &str, alias: &str) -> io::Result<bool> {
        self.io_effect(|| self.real.delete_tap(name, alias))
    }
}

impl DeviceView for Mortal {
    fn device_mapper(&self) -> Result<(), String> {
        self.real.device_mapper()
    }
    fn dm_device(&self, name: &str) -> io::Result<Option<DmDevice>> {
        self.real.dm_device(name)
    }
    fn dm_devices(&self) -> io::Result<Vec<DmDevice>> {
        self.real.dm_devices()
    }
    fn loop_device(&self, device: &str) -> io::Result<Option<LoopDevice>> {
        self.real.loop_device(device)
    }
    fn loop_devices(&self) -> io::Result<Vec<LoopDevice>> {
        self.real.loop_devices()
    }
    fn holders(&self, device: &str) -> io::Result<Vec<Holder>> {
        self.real.holders(device)
    }
    fn tap_holders(&self) -> io::Result<Vec<(String, Holder)>> {
        self.real.tap_holders()
    }
    fn image(&self, path: &Path) -> io::Result<Option<ImageIdentity>> {
        self.real.image(path)
    }
    fn cgroup_facts(&self) -> Result<CgroupFacts, String> {
        self.real.cgroup_facts()
    }
    fn cgroup(&self, path: &str) -> io::Result<Option<Cgroup>> {
        self.real.cgroup(path)
    }
    fn child_cgroups(&self, path: &str) -> io::Result<Vec<String>> {
        self.real.child_cgroups(path)
    }
}

impl DeviceOps for Mortal {
    fn attach_loop(&self, request: &LoopRequest) -> io::Result<LoopDevice> {
        self.io_effect(|| self.real.attach_loop(request))
    }
    fn detach_loop(&self, device: &str, tag: &str) -> io::Result<bool> {
        self.io_effect(|| self.real.detach_loop(device, tag))
    }
    fn create_dm(&self, request: &DmRequest) -> io::Result<DmDevice> {
        self.io_effect(|| self.real.create_dm(request))
    }
    fn remove_dm(&self, name: &str, uuid: &str) -> io::Result<bool> {
        if self.real.dm_device(name)?.is_none() {
            return Ok(false);
        }
        self.io_effect(|| self.real.remove_dm(name, uuid))
    }
    fn remove_taps(&self, taps: Vec<TapRemoval>, done: TapsRemoved) {
        let count = taps.len();
        // Taken out of whichever of the two is called: a death after the effect is not told of it.
        let done = Arc::new(Mutex::new(Some(done)));
        let told = Arc::clone(&done);
        let tell = move |results| {
            if let Some(done) = told.lock().unwrap().take() {
                done(results);
            }
        };
        let lives = self.effect(|| self.real.remove_taps(taps, Box::new(tell)));
        if lives.is_none()
            && let Some(done) = done.lock().unwrap().take()
        {
            done((0..count).map(|_| Err(io::Error::other("stead is dead"))).collect());
        }
    }
    fn make_cgroup(&self, path: &str, limits: &CgroupLimits) -> io::Result<bool> {
        self.io_effect(|| self.real.make_cgroup(path, limits))
    }
    fn kill_cgroup(&self, path: &str) -> io::Result<bool> {
        self.io_effect(|| self.real.kill_cgroup(path))
    }
    fn remove_cgroup(&self, path: &str) -> io::Result<bool> {
        if self.real.cgroup(path)?.is_none() {
            return Ok(false);
        }
        self.io_effect(|| self.real.remove_cgroup(path))
    }
    fn make_sparse_file(&self, path: &Path, bytes: u64) -> io::Result<bool> {
        self.io_effect(|| self.real.make_sparse_file(path, bytes))
    }
    fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.io_effect(|| self.real.overwrite(path, offset, bytes))
    }
    fn copy_image(
        &self,
        image: &Path,
        expected: &ImageIdentity,
        copy: &Path,
        bytes: u64,
        slice: Duration,
    ) -> io::Result<Copied> {
        self.io_effect(|| self.real.copy_image(image, expected, copy, bytes, slice))
    }
    fn rename_durable(&self, from: &Path, to: &Path) -> io::Result<bool> {
        self.io_effect(|| self.real.rename_durable(from, to))
    }
    fn remove_folder(&self, path: &Path) -> io::Result<bool> {
        if !self.real.exists(path)? {
            return Ok(false);
        }
        self.io_effect(|| self.real.remove_folder(path))
    }
}
