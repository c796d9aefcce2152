//! The units that come with stead, read by systemd itself. None is started.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what users do")]

use std::path::Path;
use std::process::{Command, Stdio};

/// What systemd says of units with these names and texts, with the stead that was built in place of the one they name.
fn verify(units: &[(&str, &str)]) {
    let Ok(_) = Command::new("systemd-analyze").arg("--version").stdout(Stdio::null()).status() else {
        eprintln!("left out: there is no systemd-analyze here");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut systemd = Command::new("systemd-analyze");
    systemd.args(["verify", "--man=no"]);
    for (name, text) in units {
        let file = folder.path().join(name);
        std::fs::write(&file, text.replace("/usr/local/bin/stead", env!("CARGO_BIN_EXE_stead"))).unwrap();
        systemd.arg(file);
    }
    let done = systemd.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    // Other units of the host, which are looked at too, are none of ours.
    let of_ours = said.lines().find(|line| units.iter().any(|(name, _)| line.contains(name)));
    assert!(done.status.success() && of_ours.is_none(), "{said}");
}

fn read(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

#[test]
fn systemd_understands_the_timer_and_its_pass() {
    let [service, timer] = ["service", "timer"].map(|kind| read(&format!("contrib/systemd/stead-reconcile.{kind}")));
    verify(&[("stead-reconcile.service", &service), ("stead-reconcile.timer", &timer)]);
    // Systemd names what it does not understand, and goes on.
    assert!(service.contains("\nKillMode=process\n"), "VMs outlive the pass that started them");
}

#[test]
fn systemd_understands_the_unit_of_the_daemon_in_the_readme() {
    let readme = read("README.md");
    let unit = readme.split("```ini\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert!(unit.contains("/usr/local/bin/stead run"));
    verify(&[("stead.service", unit)]);
}
