//! A host with many VMs, and a stead that keeps them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::bed::{Host, Vmm, manifest};
use crate::scratch;

/// The program that stands in for a VMM, compiled at its first use.
pub fn standin() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/figures/standin.rs");
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("standin");
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition=2024", "-O", "-Cpanic=abort", "-Ctarget-feature=+crt-static", "-o"]);
        let built = rustc.arg(&program).arg(source).status().expect("rustc runs");
        assert!(built.success(), "the stand-in does not compile");
        program
    })
}

/// VMs of one kind, numbered from 0, whose VMMs stand in for real ones.
pub struct Fleet {
    pub host: Host,
    declared: usize,
    taps: bool,
    never_restarted: bool,
}

impl Fleet {
    /// Nothing is declared yet.
    pub fn new() -> Self {
        // Of many VMs that change at once more would wait than a prune cap lets through; none of these figures is about it.
        let host = scratch::host()
            .with_env("STEAD_FIRECRACKER", &standin().display().to_string())
            .with_env("STEAD_LOG", "stead=debug");
        Self { host, declared: 0, taps: false, never_restarted: false }
    }

    /// Each VM gets a tap.
    pub fn with_taps(mut self) -> Self {
        self.taps = true;
        self
    }

    /// Whose VMM ends is not started again.
    pub fn never_restarted(mut self) -> Self {
        self.never_restarted = true;
        self
    }

    pub fn manifest(&self, name: &str) -> String {
        let mut text = manifest(name, Vmm::Firecracker);
        if self.taps {
            text.push_str("  networkInterfaces: [{name: eth0}]\n");
        }
        if self.never_restarted {
            text.push_str("  restartPolicy: Never\n");
        }
        text
    }

    /// Declares VMs until there are so many.
    pub fn declare(&mut self, count: usize) {
        for number in self.declared..count {
            let name = vm(number);
            fs::write(self.host.manifests().join(format!("{name}.yaml")), self.manifest(&name)).expect("a manifest");
        }
        self.declared = count.max(self.declared);
    }

    /// Waits until every declared VM runs and is on record.
    pub fn all_run(&self) {
        let start = Instant::now();
        let bound = Duration::from_secs(60 + self.declared as u64 / 10);
        let mut missing: Vec<usize> = (0..self.declared).collect();
        while !missing.is_empty() {
            assert!(start.elapsed() < bound, "{} VMs do not run; log:\n{}", missing.len(), self.log_end());
            missing.retain(|number| !self.is_on_record(&vm(*number)));
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_on_record(&self, name: &str) -> bool {
        fs::read_to_string(self.host.handles_path(name)).is_ok_and(|text| text.contains("\"phase\": \"running\""))
    }

    fn log_end(&self) -> String {
        let log = self.host.log();
        log[log.len().saturating_sub(4000)..].to_owned()
    }

    /// The manifests and the state of the first so many VMs.
    pub fn first(&self, count: usize) -> Vec<String> {
        (0..count.min(self.declared)).map(vm).collect()
    }

    /// A pass by the command, timed from its start to its end.
    pub fn once(&self) -> Duration {
        let start = Instant::now();
        let status = self.host.stead(&["reconcile", "--once"]).stdout(Stdio::null()).status().expect("stead runs");
        let took = start.elapsed();
        assert!(status.success(), "reconcile --once: {status}");
        took
    }
}

pub fn vm(number: usize) -> String {
    format!("vm-{number}")
}

/// When the stand-in of this VM began its latest life, in nanoseconds of CLOCK_MONOTONIC; `None` before its first.
pub fn began(console: &Path) -> Option<i64> {
    let text = fs::read_to_string(console).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("began ")?.parse().ok())
}

/// CLOCK_MONOTONIC in nanoseconds, which is one clock for all processes.
pub fn monotonic_ns() -> i64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
