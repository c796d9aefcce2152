//! A host of its own for one page: this one, with every change kept apart, and one shell in it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use super::prepared::bed;

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
    pub fn new(root: &Path) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the pages' commands are run as root, in namespaces: run this test as root"
        );
        let folder = tempfile::Builder::new().prefix("stead-docs.").tempdir_in("/tmp").unwrap();
        fs::create_dir(folder.path().join("layers")).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_stead")).parent().unwrap();
        let firecracker = bed("bin/firecracker");
        let path = format!(
            "{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            programs.display(),
            firecracker.parent().unwrap().display()
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .arg(root.join("tests/docs/enter"))
            .arg(folder.path());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STEAD_")) {
            command.env_remove(name);
        }
        command
            .env("PATH", path)
            .envs([("HOME", "/root"), ("NO_COLOR", "1"), ("TERM", "dumb"), ("LC_ALL", "C.UTF-8"), ("COLUMNS", "100")])
            // What a guest does on this machine's KVM is not the pages' matter.
            .env("STEAD_QEMU_ACCEL", "tcg")
            .env("BED", bed("images/vmlinuz").parent().unwrap())
            .env("PROJECT", root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
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
            .expect("the shell of the page's host lives: it needs overlayfs and iproute2");
        let status = self.statuses.recv_timeout(BOUND);
        let printed = fs::read(file.with_extension("out")).unwrap_or_default();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        let status =
            status.unwrap_or_else(|error| panic!("no end of `{commands}` ({error}); so far it printed:\n{printed}"));
        (status, printed)
    }
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
