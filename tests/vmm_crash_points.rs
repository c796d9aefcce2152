//! stead dies before and after each single effect of a start, a replacement and a deletion, on real VMMs; the next stead
//! must bring the host to the same end, with never a second VMM.
//!
//! Death is a host on which, from the chosen effect on, nothing can be done any more: what is on disk and in the kernel is
//! exactly what a SIGKILL at that point leaves. The effects are counted, not listed: a new one is covered by itself.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "vmm/bed.rs"]
#[allow(dead_code, reason = "the other tests on real VMMs use the rest")]
mod bed;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use stead::config::{Access, Settings, open_state};
use stead::desired::FileId;
use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::host::{
    GuestState, HostOps, HostView, LockProbe, ProcessHandle, ProcessInfo, SocketPeer, SpawnError, SpawnRequest,
    StateFileError, Tap, VmmCommand, VmmError, VmmFacts,
};
use stead::plan::{AllowPrune, Policy};
use stead::reconcile::{OnceOptions, Outcome, Stead, once};
use stead::spec::VmmKind;
use stead::state::ExitStatus;
use stead::time::Now;

use bed::{Host, Vmm, bed, manifest};

/// The real host, until its hour comes.
struct Mortal {
    real: LinuxHost,
    effects: AtomicUsize,
    dies_at: usize,
    after: bool,
}

impl Mortal {
    fn new(dies_at: usize, after: bool) -> Arc<Self> {
        let config = LinuxHostConfig { firecracker: Some(bed("bin/firecracker")), qemu: None };
        Arc::new(Self { real: LinuxHost::new(config).unwrap(), effects: AtomicUsize::new(0), dies_at, after })
    }

    fn immortal() -> Arc<Self> {
        Self::new(usize::MAX, false)
    }

    fn effects(&self) -> usize {
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
    fn inspect(&self, process: &ProcessHandle) -> io::Result<Option<ProcessInfo>> {
        self.real.inspect(process)
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
    fn vmm_facts(&self) -> VmmFacts {
        self.real.vmm_facts()
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

fn settings(host: &Host) -> Settings {
    Settings {
        manifests: host.manifests(),
        state_dir: host.state(),
        run_dir: host.run_dir(),
        firecracker: bed("bin/firecracker"),
        qemu: "qemu-system-x86_64".into(),
        qemu_accel: stead::config::QemuAccel::Tcg,
        parallel: 4,
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
fn pass(host: &Host, mortal: &Arc<Mortal>) -> Outcome {
    let settings = settings(host);
    let layout = open_state(&settings, Access::Actor).unwrap();
    let real: Arc<dyn HostOps> = Arc::clone(mortal) as Arc<dyn HostOps>;
    let stead = Stead { settings, layout, host: real };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    // The dead wait for what never comes.
    let timeout = Duration::from_secs(if mortal.dies_at == usize::MAX { 30 } else { 1 });
    let options = OnceOptions { timeout, allow_prune: AllowPrune(0), only: None };
    runtime.block_on(once(&stead, &options, &mut |_| {})).unwrap()
}

/// Passes of living steads until one finds nothing to do.
#[track_caller]
fn converge(host: &Host) {
    for _ in 0..20 {
        let outcome = pass(host, &Mortal::immortal());
        if outcome.changes == 0 && outcome.plan.is_empty() && outcome.failures.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("it does not come to rest: {:?}", pass(host, &Mortal::immortal()));
}

/// Brings the host to where the scenario begins, dies at every point of it, and looks at the end each time. Gives how many
/// points there were.
fn dies_everywhere(scenario: &str, before: impl Fn(&Host), change: impl Fn(&Host), end: impl Fn(&Host, &str)) -> usize {
    for after in [false, true] {
        for point in 1.. {
            let host = Host::new();
            before(&host);
            converge(&host);
            change(&host);
            let mortal = Mortal::new(point, after);
            pass(&host, &mortal);
            let died = mortal.effects() >= point;
            converge(&host);
            let when = format!("{scenario}: died {} effect {point}", if after { "after" } else { "before" });
            end(&host, &when);
            if !died {
                if after {
                    return point - 1;
                }
                break;
            }
            assert!(point < 200, "{scenario} never comes to its end");
        }
    }
    unreachable!("both directions return or break")
}

fn exactly_one_runs(host: &Host, when: &str) {
    assert!(host.life("web").is_some(), "{when}: {:?}", host.handles("web"));
    assert_eq!(host.processes().len(), 1, "{when}: exactly one VMM");
    let sockets = host.sockets().len();
    assert!(sockets == 1 || sockets == 2, "{when}: sockets of its one life only");
}

fn start(vmm: Vmm) -> usize {
    let apply = move |host: &Host| host.apply("web.yaml", &manifest("web", vmm));
    dies_everywhere("start", |_| {}, apply, exactly_one_runs)
}

#[test]
fn death_at_any_point_of_a_start_leads_to_exactly_one_vmm() {
    let points = start(Vmm::Firecracker);
    println!("{points} effects of a start with Firecracker");
    assert!(points >= 6, "{points}");
}

#[test]
fn death_at_any_point_of_a_start_with_qemu_leads_to_exactly_one_vmm() {
    let points = start(Vmm::Qemu);
    println!("{points} effects of a start with QEMU");
    assert!(points >= 5, "{points}");
}

#[test]
fn death_at_any_point_of_a_replacement_leads_to_the_new_spec_and_exactly_one_vmm() {
    let text = manifest("web", Vmm::Firecracker);
    let bigger = text.replace("memory: 4Mi", "memory: 6Mi");
    let points = dies_everywhere(
        "replacement",
        |host| host.apply("web.yaml", &text),
        |host| host.apply("web.yaml", &bigger),
        |host, when| {
            exactly_one_runs(host, when);
            assert_eq!(host.handles("web").unwrap()["spec"]["memoryMib"], 6, "{when}");
        },
    );
    println!("{points} effects of a replacement");
    assert!(points >= 12, "{points}");
}

#[test]
fn death_at_any_point_of_a_deletion_leaves_nothing() {
    let text = manifest("web", Vmm::Firecracker);
    let points = dies_everywhere(
        "deletion",
        |host| host.apply("web.yaml", &text),
        |host| host.remove("web.yaml"),
        |host, when| {
            assert_eq!(host.processes(), Vec::<i32>::new(), "{when}");
            assert_eq!(host.sockets(), Vec::<PathBuf>::new(), "{when}");
            assert_eq!(host.leftovers("web"), Vec::<PathBuf>::new(), "{when}");
        },
    );
    println!("{points} effects of a deletion");
    assert!(points >= 8, "{points}");
}

#[test]
fn a_converged_pass_makes_no_effect() {
    let host = Host::new();
    for (name, vmm) in [("a", Vmm::Firecracker), ("b", Vmm::Firecracker), ("c", Vmm::Qemu)] {
        host.apply(&format!("{name}.yaml"), &manifest(name, vmm));
    }
    converge(&host);
    let mortal = Mortal::immortal();
    let outcome = pass(&host, &mortal);
    assert_eq!((mortal.effects(), outcome.changes), (0, 0));
}
