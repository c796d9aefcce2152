//! `vmm.lock`: held by the VMM from before exec until it ends, whoever started it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stead::host::{HostOps, HostView, LockProbe, SpawnError};

use crate::bed::{Vm, ended, wait};

#[test]
fn a_living_vmm_holds_its_lock_and_a_second_one_never_starts() {
    let vm = Vm::firecracker("halt");
    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::NoFile);
    let process = vm.start();
    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Held(Some(process.identity.pid)));
    match vm.try_spawn(&vm.request(2)) {
        Err(SpawnError::LockHeld(lock)) => assert_eq!(lock, vm.lock()),
        other => panic!("{other:?}"),
    }
    assert!(!vm.socket(2).exists());
    assert!(vm.host.kill(&process).unwrap());
    ended(&*vm.host, &process);
    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Free, "the moment its pidfd is readable");
    let second = vm.spawn(2);
    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Held(Some(second.identity.pid)));
}

#[test]
fn qemu_holds_its_lock_too() {
    let vm = Vm::qemu();
    let process = vm.start();
    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Held(Some(process.identity.pid)));
}

#[test]
fn the_holder_is_found_though_the_file_names_another() {
    let vm = Vm::firecracker("halt");
    let process = vm.start();
    for text in ["1\n", "", "4000000\n", "rubbish", "-1"] {
        // In place: a new file would be another lock.
        let file = fs::OpenOptions::new().write(true).truncate(true).open(vm.lock()).unwrap();
        std::io::Write::write_all(&mut &file, text.as_bytes()).unwrap();
        assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Held(Some(process.identity.pid)), "{text:?}");
    }
}

#[test]
fn looking_at_the_lock_never_keeps_a_vmm_from_starting() {
    let vm = Vm::firecracker("halt");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looker = scope.spawn(|| {
            let mut looks = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                vm.host.probe_lock(&vm.lock());
                looks += 1;
            }
            looks
        });
        let mut failures = Vec::new();
        for _ in 0..100 {
            match vm.try_spawn(&vm.program("/bin/sleep", &["600"])) {
                Ok(process) => {
                    vm.host.kill(&process).unwrap();
                    ended(&*vm.host, &process);
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        stop.store(true, Ordering::Relaxed);
        let looks = looker.join().unwrap();
        assert!(looks > 50, "{looks} looks are too few to meet every second start");
        assert_eq!(failures, Vec::<String>::new());
    });
}

#[test]
fn a_lock_that_is_a_link_is_not_followed() {
    let vm = Vm::firecracker("halt");
    let elsewhere = vm.root.path().join("elsewhere");
    fs::write(&elsewhere, "precious").unwrap();
    std::os::unix::fs::symlink(&elsewhere, vm.lock()).unwrap();
    assert!(matches!(vm.host.probe_lock(&vm.lock()), LockProbe::Unknown(_)));
    assert!(matches!(vm.try_spawn(&vm.request(1)), Err(SpawnError::Failed { .. })));
    assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
}

#[test]
fn many_starts_at_once_hold_no_lock_of_each_other() {
    let vms: Vec<Vm> = (0..8).map(|_| Vm::firecracker("halt")).collect();
    for _ in 0..5 {
        std::thread::scope(|scope| {
            for vm in &vms {
                scope.spawn(|| {
                    let process = vm.try_spawn(&vm.program("/bin/sleep", &["600"])).unwrap();
                    vm.host.kill(&process).unwrap();
                    ended(&*vm.host, &process);
                    assert_eq!(vm.host.probe_lock(&vm.lock()), LockProbe::Free);
                });
            }
        });
    }
}

/// The test below runs itself in a process of its own, which starts a VMM and is killed.
const SPAWNER: &str = "STEAD_TEST_SPAWNER";

#[test]
fn the_lock_and_the_vmm_survive_whoever_started_it() {
    if std::env::var_os(SPAWNER).is_some() {
        let vm = Vm::firecracker("halt");
        fs::write(std::env::var_os(SPAWNER).unwrap(), vm.lock().to_str().unwrap()).unwrap();
        vm.start();
        loop {
            std::thread::park();
        }
    }
    let vm = Vm::firecracker("halt");
    let told = vm.root.path().join("told");
    let mut spawner = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lock::the_lock_and_the_vmm_survive_whoever_started_it"])
        .env(SPAWNER, &told)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let lock = wait("the lock's path", || fs::read_to_string(&told).ok().filter(|text| !text.is_empty()));
    let lock = std::path::PathBuf::from(lock);
    let holder = wait("the lock is held", || match vm.host.probe_lock(&lock) {
        LockProbe::Held(holder) => holder,
        _ => None,
    });
    spawner.kill().unwrap();
    spawner.wait().unwrap();
    assert_eq!(vm.host.probe_lock(&lock), LockProbe::Held(Some(holder)));
    let process = vm.host.open_process(holder).unwrap().expect("it lives on");
    assert!(vm.host.kill(&process).unwrap());
    ended(&*vm.host, &process);
    assert_eq!(vm.host.probe_lock(&lock), LockProbe::Free);
    fs::remove_dir_all(lock.ancestors().nth(4).unwrap()).unwrap();
}

#[test]
fn a_held_lock_is_told_soon() {
    let vm = Vm::firecracker("halt");
    let _first = vm.try_spawn(&vm.program("/bin/sleep", &["600"])).unwrap();
    let start = Instant::now();
    assert!(matches!(vm.try_spawn(&vm.program("/bin/sleep", &["600"])), Err(SpawnError::LockHeld(_))));
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}
