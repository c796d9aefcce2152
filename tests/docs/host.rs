//! A host of its own for one page, and one shell in it: this machine with every change kept apart, or a clean one with systemd.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::page::Host as Which;
use super::prepared::{bed, package};

/// How long one command may take: the slowest starts ten emulated VMs on a machine that others share.
const BOUND: Duration = Duration::from_secs(120);

pub struct Host {
    /// None once it is ended.
    input: Option<ChildStdin>,
    child: Child,
    statuses: Receiver<i32>,
    steps: usize,
    folder: tempfile::TempDir,
}

impl Host {
    /// Boots it, so to speak. It needs root: a page's commands are for root, with the paths that it has.
    pub fn new(root: &Path, which: Which) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the pages' commands are run as root, in namespaces: run this test as root"
        );
        let folder = tempfile::Builder::new().prefix("stead-docs.").tempdir_in("/tmp").unwrap();
        let mut command = Command::new("unshare");
        command.arg("--mount");
        match which {
            Which::Here => here(&mut command, root, folder.path()),
            Which::Clean => clean(&mut command, root, folder.path()),
        }
        command.arg(folder.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, statuses) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let _ = sender.send(line.parse().unwrap_or(-1));
            }
        });
        Self { input: child.stdin.take(), child, statuses, steps: 0, folder }
    }

    /// Runs commands in its shell: their exit status, and what they printed.
    pub fn run(&mut self, commands: &str) -> (i32, String) {
        self.steps += 1;
        let name = format!("step-{}", self.steps);
        let file = self.folder.path().join(&name);
        fs::write(&file, format!("{commands}\n")).unwrap();
        writeln!(self.input.as_mut().unwrap(), "{name}")
            .expect("the shell of the page's host lives: it needs overlayfs, iproute2 and cgroup v2");
        let status = self.statuses.recv_timeout(BOUND);
        let printed = fs::read(file.with_extension("out")).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let status =
            status.unwrap_or_else(|error| panic!("no end of `{commands}` ({error}); so far it printed:\n{printed}"));
        (status, printed)
    }
}

/// This machine with every change kept apart.
fn here(command: &mut Command, root: &Path, folder: &Path) {
    fs::create_dir(folder.join("layers")).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_stead")).parent().unwrap();
    let firecracker = bed("bin/firecracker");
    let path = format!(
        "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.display(),
        firecracker.parent().unwrap().display()
    );
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STEAD_")) {
        command.env_remove(name);
    }
    command
        .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(root.join("tests/docs/enter"))
        .env("PATH", path)
        .envs([("HOME", "/root"), ("NO_COLOR", "1"), ("TERM", "dumb"), ("LC_ALL", "C.UTF-8"), ("COLUMNS", "100")])
        // What a guest does on this machine's KVM is not the pages' matter.
        .env("STEAD_QEMU_ACCEL", "tcg")
        .env("BED", bed("images/vmlinuz").parent().unwrap())
        .env("PROJECT", root);
}

/// A new host, whose user has brought the package along.
fn clean(command: &mut Command, root: &Path, folder: &Path) {
    fs::create_dir(folder.join("packages")).unwrap();
    package(&folder.join("packages"), "1");
    command
        .arg(root.join("tests/docs/boot"))
        .env("CLEAN", bed("clean/root.img").parent().unwrap())
        .env("BED", bed("images/vmlinuz").parent().unwrap());
}

/// Whether a clean host can be had; where not, it is told and the test left out.
pub fn clean_ones_are_possible() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let lack = if !rustix::process::geteuid().is_root() {
        "a clean host under systemd needs root"
    } else if !release.lines().any(|line| line == "ID=debian") {
        "the clean host is a Debian, and what is built here may not run there"
    } else {
        return true;
    };
    eprintln!("left out: {lack}");
    false
}

impl Drop for Host {
    fn drop(&mut self) {
        // The end of its input is the end of PID 1, and with that of every process in it.
        drop(self.input.take());
        if self.statuses.recv_timeout(Duration::from_secs(10)).is_ok() || self.child.try_wait().ok().flatten().is_none()
        {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}
