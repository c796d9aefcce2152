//! What the tests inside work with: the bed's files, bounded commands, stead, and a look at all that the host holds.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long anything may take that a test waits for. Generous, since all here is emulated.
pub const BOUND: Duration = Duration::from_secs(180);

/// A file of the bed.
pub fn bed(file: &str) -> PathBuf {
    let path = Path::new("/bed").join(file);
    assert!(path.exists(), "{} is missing", path.display());
    path
}

pub fn firecracker() -> PathBuf {
    bed("bin/firecracker")
}

/// One of our own guests: `halt`, `ctrlaltdel`, `exit_after`, `triple` or `crash`.
pub fn guest(name: &str) -> PathBuf {
    bed(&format!("guest/{name}.elf"))
}

/// A Linux for Firecracker: `initrd()` goes with it.
pub fn vmlinux() -> PathBuf {
    bed("nested/vmlinux")
}

pub fn initrd() -> PathBuf {
    bed("linux/initrd")
}

pub fn stead_binary() -> PathBuf {
    "/payload/bin/stead".into()
}

/// Waits until `condition` gives something.
#[track_caller]
pub fn wait<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < BOUND, "gave up waiting after {BOUND:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a command to its end, which must come within the bound.
#[track_caller]
pub fn ends(command: &mut Command) -> Ended {
    // Files rather than pipes: what the command leaves running in the background may hold them open.
    let mut stdout = tempfile::tempfile().unwrap();
    let mut stderr = tempfile::tempfile().unwrap();
    command.stdin(Stdio::null()).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let mut child = Running(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
    let status = wait(&format!("the end of {command:?}"), || child.0.try_wait().unwrap());
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ended { status, stdout: text(&mut stdout), stderr: text(&mut stderr) }
}

/// Runs a program to its good end, and gives what it said.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: &str, args: &[S]) -> String {
    let ended = ends(Command::new(program).args(args));
    assert!(ended.status.success(), "{program}: {ended:?}");
    ended.stdout.trim_end().to_owned()
}

/// A child that ends with its test.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `stead` with folders of its own. Below `/state` its manifests and its state outlive a power cut; its RUN never does.
pub struct Stead {
    root: PathBuf,
}

impl Stead {
    pub fn at(root: &str) -> Self {
        let stead = Self { root: root.into() };
        fs::create_dir_all(stead.manifests()).unwrap();
        stead
    }

    pub fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub fn state(&self) -> PathBuf {
        self.root.join("state")
    }

    pub fn run_dir() -> PathBuf {
        "/run/stead".into()
    }

    pub fn vm_dir(&self, name: &str) -> PathBuf {
        self.state().join("vms").join(name)
    }

    /// The command, for who wants to give it more, or to have it run on.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(stead_binary());
        command
            .args(args)
            .env("STEAD_MANIFESTS", self.manifests())
            .env("STEAD_STATE_DIR", self.state())
            .env("STEAD_RUN_DIR", Self::run_dir())
            .env("STEAD_FIRECRACKER", firecracker())
            .env("STEAD_PRUNE_DELAY", "200ms")
            .env("STEAD_BACKOFF_INITIAL", "100ms")
            .env("NO_COLOR", "1");
        command
    }

    #[track_caller]
    pub fn stead(&self, args: &[&str]) -> Ended {
        ends(&mut self.command(args))
    }

    /// One pass, which must end with this exit status.
    #[track_caller]
    pub fn once(&self, expected: i32) -> String {
        let ended = self.stead(&["reconcile", "--once"]);
        assert_eq!(ended.status.code(), Some(expected), "{}{}", ended.stdout, ended.stderr);
        ended.stdout + &ended.stderr
    }

    /// Writes a manifest at once: temporary file, rename.
    pub fn apply(&self, file: &str, text: &str) {
        let temporary = self.root.join("manifest.tmp");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.manifests().join(file)).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.manifests().join(file)).unwrap();
    }

    /// What is on record of the VM's VMM.
    pub fn handles(&self, name: &str) -> Option<Value> {
        serde_json::from_slice(&fs::read(self.vm_dir(name).join("handles.json")).ok()?).ok()
    }

    /// The pid on record of the VM's VMM, if it is recorded as running.
    pub fn pid(&self, name: &str) -> Option<i32> {
        let handles = self.handles(name)?;
        let pid = i32::try_from(handles["pid"].as_i64()?).ok()?;
        (handles["phase"] == "running").then_some(pid)
    }
}

/// What a host holds that a VM may need, one line for each thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    lines: BTreeSet<String>,
    /// The processes whose open files are among the lines.
    pids: Vec<i32>,
}

impl Fingerprint {
    /// What is there now and was not there before, or the other way round: nothing, if they are equal.
    pub fn changes_since(&self, before: &Self) -> String {
        let gone = before.lines.difference(&self.lines).map(|line| format!("- {line}\n"));
        gone.chain(self.lines.difference(&before.lines).map(|line| format!("+ {line}\n"))).collect()
    }

    /// Waits until the host is as it was before: what a VM held goes a moment after its last user.
    #[track_caller]
    pub fn comes_back(&self) {
        let start = Instant::now();
        loop {
            let changes = fingerprint_of(&self.pids).changes_since(self);
            if changes.is_empty() {
                return;
            }
            assert!(start.elapsed() < BOUND, "the host is not as it was before:\n{changes}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

/// Loops, device-mapper devices, network interfaces, cgroups, mounts and processes.
pub fn fingerprint() -> Fingerprint {
    fingerprint_of(&[])
}

/// The same, with the files that these processes have open.
pub fn fingerprint_of(pids: &[i32]) -> Fingerprint {
    let mut found = BTreeSet::new();
    for pid in pids {
        found.extend(open_files(*pid).iter().map(|file| format!("file of {pid}: {file}")));
    }
    for block in names("/sys/block") {
        let read = |file: &str| fs::read_to_string(format!("/sys/block/{block}/{file}")).ok();
        if let Some(file) = read("loop/backing_file") {
            let is_read_only = read("ro").unwrap_or_default();
            let offset = read("loop/offset").unwrap_or_default();
            found.insert(format!("loop {block} {} ro={} offset={}", file.trim(), is_read_only.trim(), offset.trim()));
        }
    }
    // From the kernel through dmsetup, so that stead's own way to ask is not what judges it.
    for line in run("dmsetup", &["info", "-c", "--noheadings", "-o", "name,uuid"]).lines() {
        if line != "No devices found" {
            found.insert(format!("dm {line}"));
        }
    }
    for link in names("/sys/class/net") {
        let master = fs::read_link(format!("/sys/class/net/{link}/master")).ok();
        let master = master.as_deref().and_then(Path::file_name).and_then(OsStr::to_str).unwrap_or("none");
        found.insert(format!("link {link} master={master}"));
    }
    cgroups(Path::new("/sys/fs/cgroup"), &mut found);
    for line in fs::read_to_string("/proc/self/mounts").unwrap().lines() {
        let words: Vec<_> = line.split(' ').take(3).collect();
        found.insert(format!("mount {}", words.join(" ")));
    }
    for pid in names("/proc").iter().filter_map(|name| name.parse::<i32>().ok()) {
        // Kernel threads have no command line, and neither have the dead.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if !command.is_empty() {
            found.insert(format!("process {pid} {}", String::from_utf8_lossy(&command).replace('\0', " ").trim_end()));
        }
    }
    Fingerprint { lines: found, pids: pids.to_vec() }
}

/// The files that a process has open, as the kernel names them.
pub fn open_files(pid: i32) -> BTreeSet<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| fs::read_link(entry.path()).ok()).map(|file| file.display().to_string()).collect()
}

fn cgroups(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), found);
        }
    }
}

fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Has the kernel's random numbers start anew from what its init wrote to /dev/urandom. Hosts that are restored from one saved
/// host would otherwise all draw the same, and so have the same boot id, which is drawn when it is first read.
#[allow(unsafe_code, reason = "an ioctl that no crate wraps; it takes no argument")]
pub fn fresh_randomness() {
    // include/uapi/linux/random.h
    nix::ioctl_none!(reseed, b'R', 0x07);
    let random = File::options().write(true).open("/dev/urandom").unwrap();
    // SAFETY: RNDRESEEDCRNG reads and writes no memory of ours, and the file is open.
    unsafe { reseed(std::os::fd::AsRawFd::as_raw_fd(&random)) }.unwrap();
}

/// Has the kernel say of which signal a process died, and at which system call: a VMM's own filter kills without a word.
pub fn log_fatal_signals() {
    // Documentation/admin-guide/sysctl/kernel.rst
    fs::write("/proc/sys/kernel/print-fatal-signals", "1").unwrap();
}

/// Why VMs died that nobody had ended, as far as they and the kernel said: the first thing to know of a test that failed.
pub fn story() -> String {
    let last = |text: &str, count: usize| {
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    };
    let mut story = String::new();
    for stead in names("/state") {
        let vms = format!("/state/{stead}/state/vms");
        for vm in names(&vms) {
            let read = |file: &str| fs::read(format!("{vms}/{vm}/{file}")).unwrap_or_default();
            let ledger: Value = serde_json::from_slice(&read("ledger.json")).unwrap_or_default();
            if ledger["restarts"].as_u64().unwrap_or_default() == 0 && ledger["backoff"].is_null() {
                continue;
            }
            story += &format!("--- {stead}: {vm}: last exit {}, back-off {}\n", ledger["last_exit"], ledger["backoff"]);
            for file in ["vmm.log", "console.log"] {
                story += &format!("{file}:\n{}\n", last(&String::from_utf8_lossy(&read(file)), 10));
            }
        }
    }
    // One death with its registers takes some twenty lines.
    story + "--- the kernel\n" + &last(&ends(&mut Command::new("dmesg")).stdout, 60)
}

/// The loop devices in use, each with its file.
pub fn loops() -> Vec<(String, String)> {
    let file = |name: &String| fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok();
    names("/sys/block").into_iter().filter_map(|name| Some((name.clone(), file(&name)?.trim().to_owned()))).collect()
}

/// Makes `/state/images/base.img`, 8 MiB that begin with `BASE`, and gives its content.
pub fn base_image() -> Vec<u8> {
    let mut content = vec![0; 8 << 20];
    content[..4].copy_from_slice(b"BASE");
    fs::create_dir_all("/state/images").unwrap();
    fs::write("/state/images/base.img", &content).unwrap();
    rustix::fs::sync();
    content
}

/// A VM that only waits, in the few MiB that it needs, with these lines in its spec.
pub fn vm(name: &str, spec: &str) -> String {
    vm_of("firecracker", "4Mi", name, spec)
}

/// The same of this VMM, with so much memory.
pub fn vm_of(vmm: &str, memory: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata:\n  name: {name}\nspec:\n  vmm: {vmm}\n  \
         memory: {memory}\n  boot: {{kernel: {}, args: console=ttyS0}}\n  terminationGracePeriodSeconds: 0\n{spec}",
        guest("halt").display()
    )
}

/// A bridge that goes with its test.
pub struct Bridge(&'static str);

impl Bridge {
    pub fn new(name: &'static str) -> Self {
        run("ip", &["link", "add", name, "type", "bridge"]);
        run("ip", &["link", "set", name, "up"]);
        Self(name)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", self.0]).status();
    }
}
