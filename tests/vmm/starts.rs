//! How many VMs start at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::bed::{Host, Vmm, manifest, wait};

#[test]
fn as_many_vms_as_may_start_at_once_and_the_next_when_one_runs() {
    const VMS: usize = 6;
    let mut host = Host::new().with_env("STEAD_PARALLEL_STARTS", "1").with_env("STEAD_PARALLEL", "16");
    for number in 0..VMS {
        host.apply(&format!("vm-{number}.yaml"), &manifest(&format!("vm-{number}"), Vmm::Firecracker));
    }
    host.start_daemon();
    for number in 0..VMS {
        host.running(&format!("vm-{number}"));
    }
    let log = host.log();
    let (mut starting, mut seen) = (None, 0);
    for line in log.lines() {
        let Some(vm) = line.split(" vm=").nth(1).and_then(|rest| rest.split(' ').next()) else { continue };
        if line.contains("action=\"start\"") {
            assert_eq!(starting.replace(vm), None, "{vm} is started while another one starts:\n{log}");
            seen += 1;
        } else if line.contains("action=\"persist\"") {
            assert_eq!(starting.take(), Some(vm), "{log}");
        }
    }
    assert_eq!(seen, VMS, "{log}");
    assert_eq!(host.stop_daemon(), Some(0));
}

#[test]
fn a_vm_that_hangs_while_it_starts_holds_up_the_next_for_some_seconds_and_says_so() {
    let mut host = Host::new().with_env("STEAD_PARALLEL_STARTS", "1");
    // It lives, and never opens its API.
    let program = host.root.path().join("hangs");
    fs::write(&program, "#!/bin/sh\n[ \"$1\" = --version ] && exit\nkill -STOP $$\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    host.set_env("STEAD_FIRECRACKER", &program.display().to_string());
    host.start_daemon();

    host.apply("hangs.yaml", &manifest("hangs", Vmm::Firecracker));
    let pid = wait("it was spawned", || host.handles("hangs")?["pid"].as_i64());
    host.apply("next.yaml", &manifest("next", Vmm::Qemu));
    wait("the next one waits", || {
        let status = fs::read_to_string(host.vm_dir("next").join("status.json")).ok()?;
        status.contains("waits for its turn to start").then_some(())
    });
    assert!(host.handles("next").is_none_or(|handles| handles["pid"].is_null()), "it was not started yet");
    let start = std::time::Instant::now();
    host.running("next");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(host.handles("hangs").unwrap()["pid"].as_i64(), Some(pid), "the other one is still given its time");
    assert_eq!(host.stop_daemon(), Some(0));
}
