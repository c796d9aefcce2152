//! The host, the repository and the user of one test.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use crate::server::Server;

#[path = "../prepared/mod.rs"]
mod prepared;
pub use prepared::{BOUND, bed as prepared, wait};

/// The name of the servers, which the host knows.
pub const NAME: &str = "git.example";

/// Runs a program to its end, which must be a good one.
#[track_caller]
pub fn done(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap().trim().to_owned()
}

pub fn vm(name: &str) -> String {
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\n\
         spec: {{memory: 128Mi, boot: {{kernel: /k}}, powerState: Stopped}}\n"
    )
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    bytes
}

/// A host of its own, with a repository that its users push to.
pub struct Bed {
    folder: tempfile::TempDir,
}

/// Runs a test on a host of its own. Without root it is told and left out.
pub fn on_its_own_host(test: impl FnOnce(&Bed) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: namespaces need root");
        return;
    }
    // Whatever is started from this thread is in its namespaces.
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).unwrap();
        test(&Bed::new());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Bed {
    fn new() -> Self {
        // Short, since the paths of sockets are bounded.
        let folder = tempfile::Builder::new().prefix("st").tempdir_in("/tmp").unwrap();
        let bed = Self { folder };
        bed.make_host();
        for folder in [bed.home().join(".ssh"), bed.work()] {
            fs::create_dir_all(folder).unwrap();
        }
        // Whoever asks something finds somebody who never answers.
        let asks = bed.path("asks");
        fs::write(&asks, format!("#!/bin/sh\ntouch {}\nexec sleep 100\n", bed.path("asked").display())).unwrap();
        fs::set_permissions(&asks, fs::Permissions::from_mode(0o755)).unwrap();
        bed.set_up("core.askPass", &asks.display().to_string());
        for (setting, value) in [("user.name", "Ann"), ("user.email", "ann@example.org")] {
            bed.set_up(setting, value);
        }
        done(bed.command("git").args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(bed.origin()));
        bed.git(&["init", "--quiet", "--initial-branch=main"]);
        bed
    }

    /// A user whose home is here, a name for the servers, and nobody to ask for others.
    fn make_host(&self) {
        let nothing = None::<&str>;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
        done(Command::new("ip").args(["link", "set", "lo", "up"]));
        let users = format!(
            "root:x:0:0::{}:/bin/sh\nsshd:x:65533:65534::/run/sshd:/bin/false\nnobody:x:65534:65534::/:/bin/false\n",
            self.home().display()
        );
        for (file, text) in [
            ("passwd", users.as_str()),
            ("shadow", "root:*:20000::::::\n"),
            ("hosts", &format!("127.0.0.1 localhost {NAME}\n")),
            ("resolv.conf", ""),
        ] {
            let own = self.path(file);
            fs::write(&own, text).unwrap();
            // Some hosts have no such file, or a link to where there will be none.
            let theirs = Path::new("/etc").join(file);
            if theirs.exists() {
                mount(Some(&own), &theirs, nothing, MsFlags::MS_BIND, nothing).unwrap();
            }
        }
        mount(nothing, "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
        fs::create_dir("/run/sshd").unwrap();
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.path().join(file)
    }

    pub fn home(&self) -> PathBuf {
        self.path("home")
    }

    /// The repository that servers serve.
    pub fn origin(&self) -> PathBuf {
        self.path("fleet.git")
    }

    /// The repository in which a user works.
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub fn state(&self) -> PathBuf {
        self.path("s")
    }

    /// What stead keeps of the source.
    pub fn kept(&self) -> PathBuf {
        self.state().join("sources/fleet")
    }

    /// A program as the user runs it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap();
        // `ip` and servers live where an ordinary user's PATH does not look.
        command.env_clear().env("PATH", format!("{path}:/usr/sbin:/sbin")).env("HOME", self.home());
        command
    }

    /// A server's program, which keeps what it complains of to itself.
    pub fn server(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command(program);
        let log = fs::File::options().create(true).append(true).open(self.path("servers.log")).unwrap();
        command.stderr(log);
        command
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        done(self.command("git").args(arguments).current_dir(self.work()))
    }

    /// A setting of the user's own.
    pub fn set_up(&self, setting: &str, value: &str) {
        done(self.command("git").args(["config", "--global", setting, value]));
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.work().join(file), text).unwrap();
    }

    /// A VM more, committed and pushed; gives the commit.
    pub fn push(&self, name: &str) -> String {
        self.write(&format!("{name}.yaml"), &vm(name));
        self.push_all(name)
    }

    /// Commits and pushes all that is there; gives the commit.
    pub fn push_all(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", message]);
        self.git(&["push", "--quiet", "--force", &self.origin().display().to_string(), "main"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// The same with something larger in it: so many bytes that do not compress.
    pub fn push_noise(&self, length: usize, message: &str) -> String {
        fs::write(self.work().join("noise"), noise(length)).unwrap();
        self.push_all(message)
    }

    /// A server on `port` that hangs in the middle of a pack is not waited for longer than so, and leaves nothing behind. `follow`
    /// has stead follow the repository on a port, with settings more.
    #[track_caller]
    pub fn is_not_held_up_in_a_pack(&self, port: u16, through: u16, timeout: &str, follow: impl Fn(u16, &str)) {
        follow(port, "");
        self.follows(&self.push("web"));
        let commit = self.push_noise(1 << 20, "something larger");
        let stalls = Server::stalling(through, port, 300 << 10);
        follow(through, &format!(", timeout: {timeout}"));
        self.stays("TimedOut");
        assert!(stalls.hanging() > 0);
        follow(port, "");
        self.follows(&commit);
        assert_eq!(self.left_behind(), [""; 0]);
    }

    /// From now on this is what stead follows, with these settings more.
    pub fn follow(&self, url: &str, more: &str) {
        let text = format!(
            "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nsources:\n\
             - name: fleet\n  git: {{url: '{url}', interval: 1s{more}}}\n"
        );
        fs::write(self.path("config.yaml"), text).unwrap();
    }

    /// `stead` as the user runs it.
    pub fn stead(&self, arguments: &[&str]) -> Command {
        let mut command = self.for_stead(env!("CARGO_BIN_EXE_stead"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A program that runs stead.
    pub fn for_stead(&self, program: &str) -> Command {
        let mut command = self.command(program);
        command
            .env("STEAD_CONFIG", self.path("config.yaml"))
            .env("STEAD_STATE_DIR", self.state())
            .env("STEAD_RUN_DIR", self.path("r"))
            .env("NO_COLOR", "1")
            .env("DISPLAY", ":0")
            .env("SSH_ASKPASS", self.path("asks"));
        command
    }

    /// A command as the user types it, on a terminal on which nobody answers.
    pub fn on_a_terminal(&self, line: &str) -> Command {
        let mut command = self.for_stead("script");
        command.args(["-q", "-e", "-c", line, "/dev/null"]).stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// `stead sync`, with these variables more: its exit status, and what is seen on the terminal.
    #[track_caller]
    fn sync(&self, environment: &[(&str, &str)]) -> (Option<i32>, String) {
        let start = Instant::now();
        let mut command = self.on_a_terminal(concat!("'", env!("CARGO_BIN_EXE_stead"), "' sync"));
        let mut child = command.envs(environment.iter().copied()).spawn().unwrap();
        // Its input stays open meanwhile: who has hung up can be asked nothing.
        let typed = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        drop(typed);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(start.elapsed() < BOUND, "it took {:?}: {said}", start.elapsed());
        assert!(!self.path("asked").exists(), "it asked: {said}");
        for question in ["Username for", "Password for", "Are you sure", "Enter passphrase"] {
            assert!(!said.lines().any(|line| line.starts_with(question)), "it asked: {said}");
        }
        (output.status.code(), said)
    }

    /// Files in the repository here that a git at work makes, and no other.
    pub fn left_behind(&self) -> Vec<String> {
        let mut folders = vec![self.kept().join("repository.git")];
        let mut left = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let name = entry.file_name().into_string().unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if name.starts_with("tmp_") || name.strip_suffix(".lock").is_some() {
                    left.push(name);
                }
            }
        }
        left
    }

    pub fn record(&self) -> Value {
        fs::read(self.kept().join("sync.json"))
            .map_or(Value::Null, |text| serde_json::from_slice(&text).expect("a whole sync.json"))
    }

    /// A sync puts this commit in force.
    #[track_caller]
    pub fn follows(&self, commit: &str) {
        self.follows_with(&[], commit);
    }

    #[track_caller]
    pub fn follows_with(&self, environment: &[(&str, &str)], commit: &str) {
        let (code, said) = self.sync(environment);
        assert_eq!(code, Some(0), "{said}");
        let record = self.record();
        assert_eq!(record["applied"]["commit"], commit, "{record:#}");
        assert_eq!(record["failure"], Value::Null, "{record:#}");
    }

    /// A sync fails for this reason, and leaves in force what was; gives what is said of it.
    #[track_caller]
    pub fn stays(&self, reason: &str) -> String {
        let before = self.record();
        assert!(before["applied"]["commit"].is_string(), "{before:#}");
        let (code, said) = self.sync(&[]);
        assert_eq!(code, Some(1), "{said}");
        let record = self.record();
        assert_eq!(record["failure"]["reason"], reason, "{record:#}");
        assert_eq!(record["applied"], before["applied"], "{record:#}");
        // No VM is to be touched.
        let plan = self.stead(&["plan"]).output().unwrap();
        assert_eq!(plan.status.code(), Some(0), "{}", String::from_utf8_lossy(&plan.stdout));
        record["failure"]["message"].as_str().unwrap().to_owned()
    }

    /// The same, and this is said of it.
    #[track_caller]
    pub fn stays_since(&self, reason: &str, said: &str) {
        let message = self.stays(reason);
        assert!(message.contains(said), "{message}");
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // A test may have put a small disk there, in which the folder could not be removed.
        let _ = umount2(&self.state(), MntFlags::MNT_DETACH);
        if std::thread::panicking() {
            eprintln!("--- servers ---\n{}", fs::read_to_string(self.path("servers.log")).unwrap_or_default());
        }
    }
}
