//! What `make prepare` made, and waiting with a bound.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub mod home;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take that a test waits for. Generous, since the machines that run this are shared.
pub const BOUND: Duration = Duration::from_secs(60);

/// Where a file of the bed is, if it was prepared.
pub fn bed_path(file: &str) -> PathBuf {
    let bed = std::env::var_os("STEAD_BED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bed"), PathBuf::from);
    bed.join(file)
}

/// A file prepared by `make prepare`.
pub fn bed(file: &str) -> PathBuf {
    let path = bed_path(file);
    assert!(path.exists(), "{} is missing: run `make prepare`", path.display());
    path
}

/// Waits until `condition` gives something.
#[track_caller]
pub fn wait<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(BOUND, what, condition)
}

/// The same, for what takes its time.
#[track_caller]
pub fn wait_within<T>(bound: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < bound, "gave up waiting after {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Makes the Debian package of the stead that is tested, of this revision: its file, which is in the folder.
#[track_caller]
pub fn package(folder: &Path, revision: &str) -> PathBuf {
    let mut build = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/debian/build"));
    build.arg(env!("CARGO_BIN_EXE_stead")).arg(folder).arg(revision);
    let output = build.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{build:?}: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}
