//! The folders, the manifests and the command of one test.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "../prepared/mod.rs"]
mod prepared;
pub use prepared::*;

/// Which VMM a test runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vmm {
    Firecracker,
    Qemu,
}

/// A VM's manifest, to be varied with `replace`.
pub fn manifest(name: &str, vmm: Vmm) -> String {
    let (vmm, memory, boot) = match vmm {
        Vmm::Firecracker => (
            "firecracker",
            "4Mi",
            format!("{{kernel: {}, args: console=ttyS0}}", bed("guest/ctrlaltdel.elf").display()),
        ),
        Vmm::Qemu => (
            "qemu",
            "128Mi",
            format!(
                "{{kernel: {}, initrd: {}, args: \"console=ttyS0 quiet loglevel=3 stead.name={name}\"}}",
                bed("linux/vmlinuz").display(),
                bed("linux/initrd").display()
            ),
        ),
    };
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: {name}\n  labels: {{tier: one}}\nspec:\n  \
         vmm: {vmm}\n  memory: {memory}\n  boot: {boot}\n  terminationGracePeriodSeconds: 5\n"
    )
}

/// One state on the host, with the folders and the daemon that belong to it.
pub struct Host {
    pub root: tempfile::TempDir,
    daemon: Option<Child>,
    env: Vec<(String, String)>,
    /// The network namespace in which its `stead` runs, if not that of the tests.
    namespace: Option<String>,
}

/// What a test remembers of one life of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub pid: i32,
    pub incarnation: u64,
    pub start_time: u64,
    pub socket: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        // Short, since the paths of sockets are bounded.
        Self::below(Path::new("/tmp"))
    }

    pub fn below(parent: &Path) -> Self {
        let root = tempfile::Builder::new().prefix("st").tempdir_in(parent).unwrap();
        let host = Self { root, daemon: None, env: Vec::new(), namespace: None };
        fs::create_dir(host.manifests()).unwrap();
        host
    }

    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.set_env(name, value);
        self
    }

    /// An environment variable of each `stead` from now on; none, if its value is empty.
    pub fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Has each `stead` run in this network namespace from now on.
    pub fn set_namespace(&mut self, name: &str) {
        self.namespace = Some(name.to_owned());
    }

    pub fn manifests(&self) -> PathBuf {
        self.root.path().join("m")
    }

    pub fn state(&self) -> PathBuf {
        self.root.path().join("s")
    }

    pub fn run_dir(&self) -> PathBuf {
        self.root.path().join("r")
    }

    pub fn vm_dir(&self, name: &str) -> PathBuf {
        self.state().join("vms").join(name)
    }

    pub fn handles_path(&self, name: &str) -> PathBuf {
        self.vm_dir(name).join("handles.json")
    }

    /// `stead` with this host's folders.
    pub fn stead(&self, args: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_stead"));
        command.args(args);
        command
    }

    fn command(&self, program: &str) -> Command {
        // `ip netns exec` becomes the program that it runs.
        let mut command = Command::new(if self.namespace.is_some() { "ip" } else { program });
        if let Some(namespace) = &self.namespace {
            command.args(["netns", "exec", namespace, program]);
        }
        command
            .env("STEAD_MANIFESTS", self.manifests())
            .env("STEAD_STATE_DIR", self.state())
            .env("STEAD_RUN_DIR", self.run_dir())
            .env("STEAD_FIRECRACKER", bed("bin/firecracker"))
            .env("STEAD_QEMU_ACCEL", "tcg")
            .env("STEAD_PRUNE_DELAY", "200ms")
            .env("STEAD_BACKOFF_INITIAL", "100ms")
            .env("NO_COLOR", "1")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        for (name, _) in self.env.iter().filter(|(_, value)| value.is_empty()) {
            command.env_remove(name);
        }
        command
    }

    /// Runs `stead` to its end.
    pub fn run(&self, args: &[&str]) -> Output {
        self.stead(args).output().unwrap()
    }

    /// One pass, which must end with this exit status.
    #[track_caller]
    pub fn once(&self, expected: i32) -> String {
        let output = self.run(&["reconcile", "--once"]);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(expected), "{text}");
        text
    }

    /// Starts `stead run` in the background and waits until it serves; its log goes to a file.
    pub fn start_daemon(&mut self) {
        self.start_daemon_unready();
        wait("the control socket", || self.control_socket());
    }

    /// Starts `stead run` in the background.
    pub fn start_daemon_unready(&mut self) {
        let command = self.stead(&["run"]);
        self.start_as_daemon(command);
    }

    /// The same, from a shell that lets it have so many files open unless it asks for more.
    pub fn start_daemon_with_open_files(&mut self, limit: u64) {
        let mut command = self.command("sh");
        command.args(["-c", "ulimit -S -n $1; exec $0 run", env!("CARGO_BIN_EXE_stead"), &limit.to_string()]);
        self.start_as_daemon(command);
        wait("the control socket", || self.control_socket());
    }

    /// The same where this socket stands in the journal's place, in a mount namespace of its own, and with its log as the stream to
    /// the journal or not.
    pub fn start_daemon_with_journal(&mut self, journal: &Path, is_stream: bool) {
        let command = self.command_with_journal(journal, is_stream, &["run"]);
        self.start_as_daemon(command);
        wait("the control socket", || self.control_socket());
    }

    /// A pass with the journal, as a timer makes it.
    pub fn once_with_journal(&mut self, journal: &Path) {
        let mut command = self.command_with_journal(journal, true, &["reconcile", "--once"]);
        let log = fs::OpenOptions::new().append(true).open(self.log_path()).unwrap();
        assert!(command.stdout(log.try_clone().unwrap()).stderr(log).status().unwrap().success(), "{}", self.log());
    }

    fn command_with_journal(&self, journal: &Path, is_stream: bool, args: &[&str]) -> Command {
        let mut command = self.command("unshare");
        let script = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && touch /run/systemd/journal/socket && \
                      mount --bind $1 /run/systemd/journal/socket && shift && exec $0 $@";
        command.args(["--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_stead")]).arg(journal).args(args);
        fs::File::create(self.log_path()).unwrap();
        let log = fs::metadata(self.log_path()).unwrap();
        let inode = if is_stream { log.ino() } else { log.ino() + 1 };
        command.env("JOURNAL_STREAM", format!("{}:{inode}", log.dev()));
        command
    }

    fn start_as_daemon(&mut self, mut command: Command) {
        assert!(self.daemon.is_none());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_path()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        // A process group of its own: Ctrl-C in the terminal of the tests is not its.
        command.process_group(0);
        self.daemon = Some(command.spawn().unwrap());
    }

    fn control_socket(&self) -> Option<PathBuf> {
        let folders = fs::read_dir(self.run_dir()).ok()?;
        folders.flatten().map(|folder| folder.path().join("stead.sock")).find(|socket| socket.exists())
    }

    pub fn log_path(&self) -> PathBuf {
        self.root.path().join("log")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Ends the daemon with SIGKILL.
    pub fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        if let Some(socket) = self.control_socket() {
            fs::remove_file(socket).unwrap();
        }
    }

    /// Ends the daemon politely, and gives its exit status.
    pub fn stop_daemon(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().unwrap();
        signal(i32::try_from(daemon.id()).unwrap(), rustix::process::Signal::TERM);
        wait("the daemon's end", || daemon.try_wait().unwrap()).code()
    }

    /// Waits until the daemon ends by itself, and gives its exit status.
    pub fn daemon_exit(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().unwrap();
        wait("the daemon's end", || daemon.try_wait().unwrap()).code()
    }

    pub fn daemon_pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn daemon_signal(&self, signal_number: rustix::process::Signal) {
        signal(i32::try_from(self.daemon.as_ref().unwrap().id()).unwrap(), signal_number);
    }

    /// Writes a manifest at once: temporary file, rename.
    pub fn apply(&self, file: &str, text: &str) {
        let temporary = self.root.path().join("manifest.tmp");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifests().join(file)).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifests().join(file)).unwrap();
    }

    pub fn handles(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.handles_path(name)).ok()?).ok()
    }

    pub fn ledger(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.vm_dir(name).join("ledger.json")).ok()?).ok()
    }

    /// The VM's life, if it is recorded as running and its process lives.
    pub fn life(&self, name: &str) -> Option<Life> {
        let handles = self.handles(name)?;
        let life = Life {
            pid: i32::try_from(handles["pid"].as_i64()?).ok()?,
            incarnation: handles["incarnation"].as_u64()?,
            start_time: handles["start_time"].as_u64()?,
            socket: handles["api_socket"].as_str()?.into(),
        };
        (handles["phase"] == "running" && is_alive(life.pid)).then_some(life)
    }

    #[track_caller]
    pub fn running(&self, name: &str) -> Life {
        wait(&format!("{name} runs; log:\n{}", self.log()), || self.life(name))
    }

    /// Waits until nothing of the VM is left: no process, no record, no socket, no file but what outlives it.
    #[track_caller]
    pub fn gone(&self, name: &str, life: &Life) {
        wait(&format!("{name} is gone; log:\n{}", self.log()), || {
            let is_left = is_alive(life.pid) || life.socket.exists() || !self.leftovers(name).is_empty();
            (!is_left).then_some(())
        });
    }

    /// Files of the VM, other than its ledger and its lock, which outlive it.
    pub fn leftovers(&self, name: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.vm_dir(name)).into_iter().flatten().flatten().map(|entry| entry.path());
        let kept = |file: &PathBuf| file.ends_with("ledger.json") || file.ends_with("vmm.lock");
        files.filter(|file| !kept(file)).collect()
    }

    /// Every socket in RUN but stead's own.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let folders = fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        let entries = folders.flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        entries.map(|entry| entry.path()).filter(|path| !path.ends_with("stead.sock")).collect()
    }

    pub fn console(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.vm_dir(name).join("console.log")).unwrap_or_default()).into_owned()
    }

    #[track_caller]
    pub fn console_shows(&self, name: &str, text: &str) {
        wait(&format!("{name}'s console shows {text:?}"), || self.console(name).contains(text).then_some(()));
    }

    /// Every live VMM of this host: each has the host's folder among its arguments, and the daemon has not.
    pub fn processes(&self) -> Vec<i32> {
        processes_with(&self.root.path().display().to_string())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // The folder's name is unique to this test, so only what it started carries it.
        for pid in self.processes() {
            signal(pid, rustix::process::Signal::CONT);
            signal(pid, rustix::process::Signal::KILL);
        }
        self.free_what_is_left();
        if std::thread::panicking() {
            eprintln!("--- log of stead run ---\n{}", self.log());
        }
    }
}

impl Host {
    /// Has whatever a test left in the kernel freed by its tag: without the records, nothing accounts for it any more.
    fn free_what_is_left(&self) {
        let _ = fs::remove_dir_all(self.state().join("vms"));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(10) {
            match self.stead(&["gc", "--orphan-age", "0s"]).output() {
                // What was killed is in its cgroup until it is gone.
                Ok(output) if output.stdout.starts_with(b"Nothing") => return,
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        eprintln!("something was left over by {}", self.root.path().display());
    }
}

pub fn processes_with(text: &str) -> Vec<i32> {
    let mine = i32::try_from(std::process::id()).unwrap();
    let numbers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let carries = |pid: &i32| {
        let argv = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&argv).contains(text)
    };
    numbers.filter(|pid| *pid != mine && carries(pid) && is_alive(*pid)).collect()
}

/// Whether a process lives; a zombie does not.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !matches!(stat.rsplit(") ").next().and_then(|rest| rest.chars().next()), Some('Z' | 'X')))
}

/// Signals a process through a pidfd, so that a recycled pid is never hit after the test looked at it.
pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let _ = rustix::process::pidfd_send_signal(pidfd.as_fd(), signal);
    }
}
