//! One nested host: QEMU, its disks, and the line to the job inside.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::prepared::{bed, package};

/// How long a host may take to come up, and each other thing that takes seconds. Generous: emulation on a shared machine.
pub const BOUND: Duration = Duration::from_secs(300);

/// What a line says before a job's name when the job came through, or did not.
pub const OK: &str = "NESTED OK";
pub const FAILED: &str = "NESTED FAILED";

/// Makes the Debian packages of stead with these revisions, of the stead that is tested.
pub fn packages(revisions: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir_in(scratch("")).unwrap();
    for revision in revisions {
        package(folder.path(), revision);
    }
    folder
}

/// A folder of this test target's own, below cargo's.
fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nested").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Runs a program to its end, which must be a good one.
#[track_caller]
fn run(command: &mut Command) -> String {
    // mkfs.ext4 lives where an ordinary user's PATH does not look.
    command.env("PATH", std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin");
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A file's name, size and time of change: which of its versions it is.
fn version(file: &Path) -> String {
    let metadata = fs::metadata(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let changed = metadata.modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    format!("{} {} {}\n", file.display(), metadata.len(), changed.as_nanos())
}

/// An ext4 on a disk of its own: `/state` of the machines that it is given to, one after the other.
pub struct Disk(Image);

impl Disk {
    pub fn new() -> Self {
        let image = Image::new(1 << 30);
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(image.path()));
        Self(image)
    }

    /// One with the files of this folder on it.
    pub fn holding(folder: &Path) -> Self {
        let image = Image::new(1 << 30);
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(folder).arg(image.path()));
        Self(image)
    }
}

/// A file without a name: whatever becomes of this test, nothing stays of it.
struct Image(File);

impl Image {
    fn new(size: u64) -> Self {
        let file = tempfile::tempfile_in(scratch("")).unwrap();
        file.set_len(size).unwrap();
        Self(file)
    }

    /// A path that lets others open it as long as this process lives.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }
}

/// How a machine comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// From power-on.
    Booted,
    /// From power-on, in memory that another can start from.
    ToBeSaved,
    /// From where a booted one was saved.
    Restored,
}

/// A running nested host with one job in it. Dropping it ends it as `cut` does.
pub struct Machine {
    qemu: Child,
    qmp: Qmp,
    /// What goes to the job's line, which is the machine's second serial port.
    port: UnixStream,
    lines: Receiver<String>,
    log: PathBuf,
    kernel_log: PathBuf,
    job: String,
    started: Instant,
}

impl Machine {
    /// Powers a machine on and has it run a job: a name of `inside::JOBS` or `inside::TESTS`, with arguments.
    pub fn boot(disk: &Disk, job: &str) -> Self {
        Self::boot_with(None, disk, job)
    }

    /// The same on a host with systemd as its PID 1, and a root filesystem of its own, which is as new each time.
    pub fn boot_systemd(disk: &Disk, job: &str) -> Self {
        Self::boot_with(Some(&bed("nested/systemd.img")), disk, job)
    }

    fn boot_with(root: Option<&Path>, disk: &Disk, job: &str) -> Self {
        let mut machine = Self::start(Start::Booted, root, &disk.0.path(), &payload(), job);
        machine.wait_for("up", BOUND);
        machine.give(job);
        machine
    }

    /// The same in a machine that was booted earlier and saved: there in half a second. Its boot id, its random numbers and
    /// its clock are fresh. Its disks are what they are given to be.
    pub fn restore(disk: &Disk, job: &str) -> Self {
        let saved = Saved::get();
        let mut machine = Self::start(Start::Restored, None, &disk.0.path(), &payload(), job);
        let qmp = &mut machine.qmp;
        qmp.ignore_shared();
        qmp.ask("migrate-incoming", &json!({"uri": format!("exec:cat '{}'", saved.folder.join("devices").display())}));
        qmp.wait("query-status", |status| status["status"] == "running", &machine.log);
        machine.give(job);
        machine
    }

    fn start(start: Start, root: Option<&Path>, state: &Path, payload: &Path, job: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = job.split_whitespace().next().unwrap();
        let name = format!("{name}.{}.{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let log = scratch("logs").join(format!("{name}.log"));
        let kernel_log = scratch("logs").join(format!("{name}.kernel.log"));

        let (qmp, qmp_end) = UnixStream::pair().unwrap();
        let (port, port_end) = UnixStream::pair().unwrap();
        let mut logged = File::create(&log).unwrap();
        let mut qemu = Command::new("setpriv");
        // QEMU goes when this test goes, however that comes about.
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"])
            .args(arguments(start, root, state, payload))
            .arg("-serial")
            .arg(format!("file:{}", kernel_log.display()))
            .args(["-chardev", "socket,id=job,fd=1", "-serial", "chardev:job"])
            .args(["-chardev", "socket,id=qmp,fd=0", "-mon", "chardev=qmp,mode=control"])
            .stdin(Stdio::from(OwnedFd::from(qmp_end)))
            .stdout(Stdio::from(OwnedFd::from(port_end)))
            .stderr(logged.try_clone().unwrap());
        let child = qemu.spawn().unwrap_or_else(|error| panic!("{qemu:?}: {error}"));
        // The command holds the machine's ends of both: without them gone, nobody would see that QEMU is.
        drop(qemu);

        let (sender, lines) = channel();
        let reader = BufReader::new(port.try_clone().unwrap());
        // Ends when QEMU does, which is when the machine is dropped at the latest.
        std::thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                let _ = writeln!(logged, "{line}");
                let _ = sender.send(line);
            }
        });
        Self {
            qemu: child,
            qmp: Qmp::new(qmp),
            port,
            lines,
            log,
            kernel_log,
            job: job.to_owned(),
            started: Instant::now(),
        }
    }

    /// Tells the waiting host the time, something random, and its job.
    fn give(&mut self, job: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut seed = [0; 32];
        File::open("/dev/urandom").unwrap().read_exact(&mut seed).unwrap();
        let seed: String = seed.iter().map(|byte| format!("{byte:02x}")).collect();
        self.port.write_all(format!("{now} {seed} {job}\n").as_bytes()).unwrap();
    }

    /// The next line from inside; none if the machine has ended, or says nothing for so long.
    pub fn line(&mut self, timeout: Duration) -> Option<String> {
        self.lines.recv_timeout(timeout).ok()
    }

    /// Waits for a line with this text in it, and returns the line. That the job fails, or the machine ends, ends the wait.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, timeout: Duration) -> String {
        let start = Instant::now();
        loop {
            let why = match self.lines.recv_timeout(timeout.saturating_sub(start.elapsed())) {
                Ok(line) if line.contains(text) => return line,
                Ok(line) if line.starts_with(FAILED) || line.starts_with("ended ") => line,
                Ok(_) => continue,
                Err(RecvTimeoutError::Timeout) => {
                    self.ask_kernel();
                    format!("not within {timeout:?}")
                }
                Err(RecvTimeoutError::Disconnected) => "the machine has ended".to_owned(),
            };
            let story = self.story();
            panic!("waited for {text:?} from {}: {why}\n{story}", self.job);
        }
    }

    /// Cuts the machine's power. What its kernel had not given to the disk is lost.
    pub fn cut(self) {
        drop(self);
    }

    /// Waits for the job to come through and the host to power itself off, the disk unmounted.
    #[track_caller]
    pub fn finish(mut self, timeout: Duration) {
        self.passes(timeout);
        self.wait_for("ended 0", BOUND);
        let start = Instant::now();
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < BOUND, "the machine does not power off\n{}", self.story());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the job to come through.
    #[track_caller]
    pub fn passes(&mut self, timeout: Duration) {
        let name = self.job.split_whitespace().next().unwrap().to_owned();
        let verdict = self.wait_for(&format!("{OK} {name}"), timeout);
        assert_eq!(verdict, format!("{OK} {name}"));
    }

    /// Has the kernel inside say which of its tasks are blocked and what its CPUs do, if it still can
    /// (`Documentation/admin-guide/sysrq.rst`).
    fn ask_kernel(&mut self) {
        for key in ["9", "w", "l", "m", "q"] {
            let line = format!("sendkey alt-sysrq-{key}");
            self.qmp.ask("human-monitor-command", &json!({"command-line": line}));
            std::thread::sleep(Duration::from_millis(300));
        }
        // Twice, to tell what stands still from what goes on.
        let mut said = String::new();
        for question in
            ["info status", "info registers -a", "info lapic", "info pic", "info registers -a", "info lapic"]
        {
            let answer = self.qmp.ask("human-monitor-command", &json!({"command-line": question}));
            said += &format!("--- {question}\n{}\n", answer.as_str().unwrap_or_default().replace("\r\n", "\n"));
            std::thread::sleep(Duration::from_millis(200));
        }
        let _ = fs::write(self.log.with_extension("registers"), said);
    }

    /// What came from inside last, and where all of it is.
    fn story(&mut self) -> String {
        // What comes right behind a bad line often explains it.
        while self.line(Duration::from_millis(100)).is_some() {}
        let last = |file: &Path, count: usize| {
            let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().collect();
            lines[lines.len().saturating_sub(count)..].join("\n")
        };
        format!(
            "--- {} after {:.1} s\n{}\n--- its kernel\n{}\n--- all of it: {}",
            self.job,
            self.started.elapsed().as_secs_f32(),
            last(&self.log, 80),
            last(&self.kernel_log, 120),
            self.log.display()
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // SIGKILL: QEMU has no moment left in which it could flush anything.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = self.port.shutdown(Shutdown::Both);
        if !std::thread::panicking() {
            let _ = fs::remove_file(&self.log);
            let _ = fs::remove_file(&self.kernel_log);
        }
    }
}

/// QEMU's arguments for the machine itself.
fn arguments(start: Start, root: Option<&Path>, state: &Path, payload: &Path) -> Vec<String> {
    let memory = match start {
        Start::Booted => "memory-backend-ram,id=memory,size=1G".to_owned(),
        // Shared, the machine's memory becomes the file. Private, it begins as the file: nothing is read before it is used.
        Start::ToBeSaved => {
            format!("memory-backend-file,id=memory,size=1G,share=on,mem-path={}/memory", Saved::new_folder().display())
        }
        Start::Restored => {
            format!("memory-backend-file,id=memory,size=1G,share=off,mem-path={}/memory", Saved::folder().display())
        }
    };
    let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        .into_iter()
        // EPYC has SVM, which TCG emulates: KVM works inside. What TCG lacks of an EPYC is left out: else QEMU warns of it.
        // One CPU. Of two, one may go on running a translation that QEMU (up to 8.0) made of code just before the other
        // changed it. The kernel patches its code whenever the first VM of KVM begins or the last ends, and then a CPU traps
        // on a breakpoint that is there no more, for ever.
        .chain(["-M", "q35,memory-backend=memory", "-accel", "tcg", "-smp", "1", "-m", "1G"])
        .chain(["-cpu", "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,-nrip-save,-xsavec"])
        .chain(["-object", &memory])
        // Under TCG the kernel's calibration of the clock fails now and then, and it hangs: so it is told.
        .chain(["-append", "console=ttyS0 quiet panic=-1 tsc_early_khz=2300000 no_timer_check"])
        .map(str::to_owned)
        .collect();
    for (option, file) in [("-kernel", "nested/vmlinux"), ("-initrd", "nested/initramfs")] {
        arguments.extend([option.to_owned(), bed(file).display().to_string()]);
    }
    // With QEMU's cache in write-back mode, as on hardware, a flush by the kernel inside is what makes data safe.
    // What is written to the root filesystem goes to a file of QEMU's own, and away with it.
    let root = root.map(|root| ("root", root, "snapshot=on"));
    let bed = bed("nested/bed.img");
    let drives = [
        ("bed", bed.as_path(), "readonly=on"),
        ("payload", payload, "readonly=on"),
        ("state", state, "cache=writeback"),
    ];
    for (name, file, access) in drives.into_iter().chain(root) {
        let file = file.display().to_string().replace(',', ",,");
        arguments.extend([
            "-drive".to_owned(),
            format!("if=none,id={name},format=raw,file={file},{access}"),
            "-device".to_owned(),
            format!("virtio-blk-pci,drive={name},serial={name}"),
        ]);
    }
    if start == Start::Restored {
        arguments.extend(["-incoming".to_owned(), "defer".to_owned()]);
    }
    arguments
}

/// A host that was booted and saved, from which others start.
struct Saved {
    folder: PathBuf,
    /// Shared, so that nobody replaces the files while a machine opens them.
    _lock: File,
}

impl Saved {
    fn folder() -> PathBuf {
        scratch("saved")
    }

    fn new_folder() -> PathBuf {
        scratch("saved.new")
    }

    /// What the saved host was made from: its kernel, its initramfs, QEMU, and how QEMU was called.
    fn key() -> String {
        let nothing = Path::new("");
        let mut key = format!("{:?}\n", arguments(Start::ToBeSaved, None, nothing, nothing));
        for file in [bed("nested/vmlinux"), bed("nested/initramfs"), qemu_binary()] {
            key += &version(&file);
        }
        key
    }

    fn get() -> Self {
        let key = Self::key();
        let folder = Self::folder();
        loop {
            let lock = File::create(scratch("").join("saved.lock")).unwrap();
            lock.lock_shared().unwrap();
            if fs::read_to_string(folder.join("key")).is_ok_and(|saved| saved == key) {
                return Self { folder, _lock: lock };
            }
            lock.unlock().unwrap();
            lock.lock().unwrap();
            // Somebody else may have been first.
            if fs::read_to_string(folder.join("key")).is_ok_and(|saved| saved == key) {
                continue;
            }
            Self::make(&key);
        }
    }

    /// Boots a host to where it waits for its job, and saves it there.
    fn make(key: &str) {
        let folder = Self::new_folder();
        for file in ["memory", "devices", "key"] {
            let _ = fs::remove_file(folder.join(file));
        }
        // It never looks at its disks, so any will do.
        let disks = [1 << 20; 2].map(Image::new);
        let mut machine = Machine::start(Start::ToBeSaved, None, &disks[0].path(), &disks[1].path(), "saving");
        machine.wait_for("up", BOUND);
        let qmp = &mut machine.qmp;
        qmp.ignore_shared();
        qmp.ask("migrate", &json!({"uri": format!("exec:cat >'{}'", folder.join("devices").display())}));
        qmp.wait("query-migrate", |migration| migration["status"] == "completed", &machine.log);
        drop(machine);
        fs::write(folder.join("key"), key).unwrap();
        let old = Self::folder();
        fs::remove_dir_all(&old).unwrap();
        fs::rename(folder, old).unwrap();
    }
}

fn qemu_binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64")).find(|file| file.exists());
    found.expect("qemu-system-x86_64 is missing: run `make prepare`")
}

/// QEMU's own line: <https://www.qemu.org/docs/master/interop/qemu-qmp-ref.html>.
struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
    is_greeted: bool,
}

impl Qmp {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(BOUND)).unwrap();
        Self { reader: BufReader::new(stream.try_clone().unwrap()), writer: stream, is_greeted: false }
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        if !self.is_greeted {
            self.is_greeted = true;
            self.ask("qmp_capabilities", &json!({}));
        }
        writeln!(self.writer, "{}", json!({"execute": command, "arguments": arguments})).unwrap();
        loop {
            let mut line = String::new();
            let length = self.reader.read_line(&mut line).unwrap();
            assert!(length > 0, "QEMU ended at {command}");
            let answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer["error"].is_null(), "{command}: {answer}");
            if !answer["return"].is_null() {
                return answer["return"].clone();
            }
        }
    }

    #[track_caller]
    fn wait(&mut self, query: &str, is_so: impl Fn(&Value) -> bool, log: &Path) {
        let start = Instant::now();
        loop {
            let answer = self.ask(query, &json!({}));
            if is_so(&answer) {
                return;
            }
            let is_over = answer["status"] == "failed" || start.elapsed() > BOUND;
            assert!(!is_over, "{query}: {answer}; see {}", log.display());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Memory that is a shared file is not copied: it is there already.
    fn ignore_shared(&mut self) {
        let capability = json!({"capability": "x-ignore-shared", "state": true});
        self.ask("migrate-set-capabilities", &json!({"capabilities": [capability]}));
    }
}

/// The disk with what changes by each build: stead and this test binary. Made when one of them has changed.
fn payload() -> PathBuf {
    let stead = Path::new(env!("CARGO_BIN_EXE_stead"));
    let nested = std::env::current_exe().unwrap();
    let key = version(stead) + &version(&nested);
    let image = scratch("").join("payload.img");
    let key_file = scratch("").join("payload.key");
    let lock = File::create(scratch("").join("payload.lock")).unwrap();
    lock.lock().unwrap();
    if image.exists() && fs::read_to_string(&key_file).is_ok_and(|made| made == key) {
        return image;
    }
    let root = tempfile::tempdir_in(scratch("")).unwrap();
    for folder in ["bin", "lib"] {
        fs::create_dir(root.path().join(folder)).unwrap();
    }
    for (program, name) in [(stead, "stead"), (&nested, "nested")] {
        run(Command::new("strip").arg("-o").arg(root.path().join("bin").join(name)).arg(program));
        for library in libraries(program) {
            fs::copy(&library, root.path().join("lib").join(library.file_name().unwrap())).unwrap();
        }
    }
    // A new file, since machines may still have the old one as their disk.
    let made = tempfile::NamedTempFile::new_in(scratch("")).unwrap();
    made.as_file().set_len(128 << 20).unwrap();
    run(Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-d"])
        .arg(root.path())
        .arg(made.path()));
    made.persist(&image).unwrap();
    fs::write(key_file, key).unwrap();
    image
}

/// The libraries that a program is linked to, but those of every Rust program, which the nested host has.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let text = run(Command::new("ldd").arg(program));
    let words = text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let is_known = |file: &PathBuf| {
        ["ld-linux-x86-64.so.2", "libc.so.6", "libm.so.6", "libgcc_s.so.1"].iter().any(|known| file.ends_with(known))
    };
    words.filter(|file| !is_known(file)).collect()
}
