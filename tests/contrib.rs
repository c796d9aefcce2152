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

const UNITS: [&str; 3] = ["stead.service", "stead-reconcile.service", "stead-reconcile.timer"];

fn unit(name: &str) -> String {
    read(&format!("contrib/systemd/{name}"))
}

#[test]
fn systemd_understands_every_unit() {
    let texts = UNITS.map(unit);
    let units: Vec<(&str, &str)> = UNITS.iter().copied().zip(texts.iter().map(String::as_str)).collect();
    // systemd names what it does not understand, and goes on.
    verify(&units);
}

/// VMs outlive what started them, and the next stead finds their sockets; both units have the same sandbox.
#[test]
fn the_daemon_and_the_pass_are_equally_sandboxed_and_leave_vms_alone() {
    let sandbox = |name: &str| {
        let text = unit(name);
        for line in ["KillMode=process", "RuntimeDirectoryPreserve=yes"] {
            assert!(text.lines().any(|found| found == line), "{name}: no {line}");
        }
        let from = text.find("StateDirectory=").unwrap();
        text[from..].split("\n[Install]").next().unwrap().trim().to_owned()
    };
    assert_eq!(sandbox("stead.service"), sandbox("stead-reconcile.service"));
}

/// A service that comes back every second for ever with a setting that cannot be used helps nobody.
#[test]
fn the_daemon_does_not_come_back_with_a_setting_that_cannot_be_used() {
    let line = format!("RestartPreventExitStatus={}", stead::cli::Exit::Misconfigured as u8);
    assert!(unit("stead.service").lines().any(|found| found == line), "no {line}");
    let mut stead = Command::new(env!("CARGO_BIN_EXE_stead"));
    let done = stead.args(["run", "--config", "/nonexistent/config.yaml"]).output().unwrap();
    assert_eq!(done.status.code(), Some(78), "{}", String::from_utf8_lossy(&done.stderr));
    let done = stead.env("STEAD_RESYNC", "soon").output().unwrap();
    assert_eq!(done.status.code(), Some(78), "{}", String::from_utf8_lossy(&done.stderr));
}

/// What docs/systemd.md says of how exposed the units are, is so.
#[test]
fn the_documented_exposure_is_what_systemd_says() {
    let version = Command::new("systemd-analyze").arg("--version").output();
    let version = version.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
    if !version.starts_with("systemd 252 ") {
        eprintln!("left out: another systemd counts in another way");
        return;
    }
    let docs = read("docs/systemd.md");
    let mut open = Vec::new();
    for name in &UNITS[..2] {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd").join(name);
        let mut systemd = Command::new("systemd-analyze");
        // A terminal gets marks in colour, and so does a locale that has them.
        let done = systemd.args(["security", "--offline=true", "--no-pager"]).arg(file).env("LC_ALL", "C.UTF-8");
        let said = String::from_utf8(done.output().unwrap().stdout).unwrap();
        let score = said.lines().last().unwrap().trim();
        assert!(docs.lines().any(|line| line == score), "docs/systemd.md does not say: {score}");
        open.extend(
            said.lines().filter_map(|line| Some(line.strip_prefix('✗')?.split_whitespace().next()?.to_owned())),
        );
    }
    for setting in open {
        let row = format!("| `{}` |", setting.replace('|', "\\|"));
        assert!(docs.contains(&row), "docs/systemd.md gives no reason for {setting}");
    }
}
