//! Hosts that lack root, room on the disk, or peace.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use crate::bed::{Host, Vmm, bed, manifest, wait};

#[test]
fn a_qemu_vm_without_a_tap_needs_no_root_and_lives_in_the_xdg_folders() {
    const NOBODY: u32 = 65_534;
    let host = Host::new();
    let root = host.root.path();
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    // Copies that nobody may read, wherever the bed lies.
    let stead = root.join("stead");
    fs::copy(env!("CARGO_BIN_EXE_stead"), &stead).unwrap();
    let mut text = manifest("web", Vmm::Qemu);
    for file in ["vmlinuz", "initrd"] {
        let from = bed(&format!("linux/{file}"));
        fs::copy(&from, root.join(file)).unwrap();
        fs::set_permissions(root.join(file), fs::Permissions::from_mode(0o644)).unwrap();
        text = text.replace(&from.display().to_string(), &root.join(file).display().to_string());
    }
    let home = root.join("h");
    let manifests = home.join(".config/stead/manifests");
    fs::create_dir_all(&manifests).unwrap();
    fs::write(manifests.join("web.yaml"), text).unwrap();
    for folder in [&home, &home.join(".config"), &home.join(".config/stead"), &manifests] {
        chown(folder, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let run = |args: &[&str]| {
        let mut command = Command::new(&stead);
        command.args(args).env_clear().env("HOME", &home).env("PATH", "/usr/bin:/bin").env("STEAD_QEMU_ACCEL", "tcg");
        command.env("STEAD_PRUNE_DELAY", "100ms").uid(NOBODY).gid(NOBODY).stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&["reconcile", "--once"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(home.join(".local/state/stead/vms/web/handles.json").exists());
    let shown = String::from_utf8(run(&["get"]).stdout).unwrap();
    assert!(shown.contains("Running"), "{shown}");
    fs::remove_file(manifests.join("web.yaml")).unwrap();
    let output = run(&["reconcile", "--once"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(host.processes(), Vec::<i32>::new());
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_and_is_got_over() {
    let host = Host::new();
    fs::create_dir(host.state()).unwrap();
    fs::set_permissions(host.state(), fs::Permissions::from_mode(0o700)).unwrap();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    // A state folder of 128 KiB, in a mount namespace that goes with the script.
    let script = r#"
        mount -t tmpfs -o size=128k,mode=700 tmpfs "$1"
        "$2" get >/dev/null
        "$2" --state-dir "$1" reconcile --once --dry-run >/dev/null || true
        mkdir -p "$1/vms/web"; chmod 700 "$1/vms" "$1/vms/web"
        "$2" validate "$3" >/dev/null
        dd if=/dev/zero of="$1/fill" bs=1k 2>/dev/null || true
        echo "== full"
        "$2" reconcile --once; echo "exit $?"
        rm "$1/fill"
        echo "== room"
        "$2" reconcile --once; echo "exit $?"
        test -f "$1/vms/web/handles.json" && echo "on record"
        rm "$3"/web.yaml
        "$2" reconcile --once; echo "exit $?"
        find "$1" -name '.*.tmp.*'
    "#;
    let template = host.stead(&[]);
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(host.state())
        .arg(template.get_program())
        .arg(host.manifests())
        .envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let (full, room) = told.split_once("== room").expect(&told);
    assert!(told.contains("No space left on device") || told.contains("no storage space"), "{told}");
    assert!(!full.contains("exit 0"), "{told}");
    assert!(room.contains("exit 0") && room.contains("on record"), "{told}");
    assert!(!told.contains(".tmp."), "a temporary file was left: {told}");
    assert_eq!(host.processes(), Vec::<i32>::new(), "{told}");
}

#[test]
fn twenty_thousand_changes_at_once_lose_no_event_for_good() {
    let mut host = Host::new();
    host.apply("calm.yaml", &manifest("calm", Vmm::Firecracker));
    host.start_daemon();
    let calm = host.running("calm");
    // More than the 16,384 events that the kernel queues (inotify(7), max_queued_events).
    let text = manifest("storm", Vmm::Firecracker);
    for round in 0..20_000 {
        fs::write(host.manifests().join("noise.txt"), round.to_string()).unwrap();
        if round % 2_000 == 0 {
            fs::write(host.manifests().join("storm.yaml"), text.replace("tier: one", &format!("tier: t{round}")))
                .unwrap();
        }
    }
    fs::write(host.manifests().join("storm.yaml"), text.replace("tier: one", "tier: last")).unwrap();
    host.running("storm");
    wait("the last change is taken up", || {
        (host.ledger("storm")?["accepted"]["vm"]["labels"]["tier"] == "last").then_some(())
    });
    assert_eq!(host.life("calm"), Some(calm));
    assert_eq!(host.running("storm").incarnation, 1);
}

/// A shell, and systemd, let a program have 1,024 files open unless it asks for more; every VM takes some.
#[test]
fn more_vms_run_than_a_low_limit_of_open_files_has_room_for_and_get_that_limit_themselves() {
    const LIMIT: u64 = 64;
    const VMS: usize = 40;
    let limit_of = |pid: i32| {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap()
    };
    let mut host = Host::new();
    for number in 0..VMS {
        host.apply(&format!("vm-{number}.yaml"), &manifest(&format!("vm-{number}"), Vmm::Firecracker));
    }
    host.start_daemon_with_open_files(LIMIT);
    for number in 0..VMS {
        let life = host.running(&format!("vm-{number}"));
        assert_eq!(limit_of(life.pid), LIMIT, "a VMM has what stead was given");
    }
    let daemon = i32::try_from(host.daemon_pid()).unwrap();
    let open = fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    assert!(u64::try_from(open).unwrap() > LIMIT, "{open} files are no test of a limit of {LIMIT}");
    assert!(limit_of(daemon) > LIMIT);
}
