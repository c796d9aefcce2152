//! stead is killed, doubled and restarted; the VMs are not.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use serde_json::Value;

use crate::bed::{Host, Life, Vmm, manifest, wait};

fn names(count: usize) -> Vec<String> {
    (1..=count).map(|number| format!("vm-{number}")).collect()
}

fn lives(host: &Host, names: &[String]) -> BTreeMap<String, Life> {
    names.iter().map(|name| (name.clone(), host.running(name))).collect()
}

#[test]
fn killing_stead_under_load_again_and_again_loses_doubles_and_restarts_no_vm() {
    let mut host = Host::new();
    let names = names(20);
    for name in &names {
        host.apply(&format!("{name}.yaml"), &manifest(name, Vmm::Firecracker));
    }
    // Killed at moments spread over the start of all of them.
    for millis in [5, 20, 40, 60, 90, 120, 160, 200] {
        host.start_daemon_unready();
        std::thread::sleep(Duration::from_millis(millis));
        host.kill_daemon();
    }
    host.start_daemon();
    let before = lives(&host, &names);
    for round in 0..10 {
        // Under load: labels change while it is killed.
        for name in &names {
            let text = manifest(name, Vmm::Firecracker).replace("tier: one", &format!("tier: round-{round}"));
            host.apply(&format!("{name}.yaml"), &text);
        }
        std::thread::sleep(Duration::from_millis(10 * round));
        host.kill_daemon();
        host.start_daemon();
    }
    assert_eq!(lives(&host, &names), before);
    assert_eq!(host.processes().len(), names.len(), "exactly one VMM a VM");
}

#[test]
fn a_qemu_vm_is_adopted_by_the_next_stead() {
    let mut host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Qemu));
    host.start_daemon();
    let life = host.running("web");
    host.kill_daemon();
    host.once(0);
    assert_eq!(host.running("web"), life);
}

/// What matters in a record: everything but what is only for people.
fn essence(mut handles: Value) -> Value {
    let fields = handles.as_object_mut().unwrap();
    fields.remove("began");
    handles
}

#[test]
fn a_record_that_was_lost_or_spoiled_while_the_vm_lives_is_persisted_again() {
    for vmm in [Vmm::Firecracker, Vmm::Qemu] {
        let host = Host::new();
        host.apply("web.yaml", &manifest("web", vmm));
        host.once(0);
        let life = host.running("web");
        let path = host.handles_path("web");
        let sound = fs::read(&path).unwrap();
        let record = essence(serde_json::from_slice(&sound).unwrap());
        let newer = String::from_utf8(sound.clone()).unwrap().replacen("\"version\": 1", "\"version\": 99", 1);
        let spoiled: [(&str, Option<Vec<u8>>); 5] = [
            ("missing", None),
            ("empty", Some(Vec::new())),
            ("cut", Some(sound[..sound.len() / 2].to_vec())),
            ("binary", Some(vec![0xff; 512])),
            ("newer", Some(newer.into_bytes())),
        ];
        for (how, bytes) in spoiled {
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            host.once(0);
            assert_eq!(host.running("web"), life, "{how}");
            assert_eq!(essence(host.handles("web").unwrap()), record, "{how}");
        }
        let aside = fs::read_dir(host.vm_dir("web")).unwrap().flatten();
        let aside = aside.filter(|entry| entry.file_name().to_string_lossy().contains("corrupt")).count();
        assert_eq!(aside, 4, "what could not be trusted is set aside, not deleted");
    }
}

#[test]
fn a_record_that_others_could_write_is_not_trusted_and_the_vm_lives_on() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    fs::set_permissions(host.handles_path("web"), fs::Permissions::from_mode(0o666)).unwrap();
    host.once(0);
    assert_eq!(host.running("web"), life);
    let mode = fs::metadata(host.handles_path("web")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_lost_state_folder_is_rebuilt_from_what_lives() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    fs::remove_dir_all(host.state()).unwrap();
    host.once(0);
    assert_eq!(host.running("web"), life, "same process, same incarnation");
}

#[test]
fn a_second_stead_says_so_and_exits_75() {
    let mut host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.start_daemon();
    let life = host.running("web");
    for args in [&["run"][..], &["reconcile", "--once"]] {
        let output = host.run(args);
        assert_eq!(output.status.code(), Some(75), "{args:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&host.daemon_pid().to_string()), "it names the holder: {text}");
    }
    assert_eq!(host.running("web"), life);
}

#[test]
fn stopping_stead_stops_no_vm() {
    let mut host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.start_daemon();
    let life = host.running("web");
    assert_eq!(host.stop_daemon(), Some(0));
    assert_eq!(host.running("web"), life);
    // And it is not a child that stead has to reap: the next one hears of its end all the same.
    host.start_daemon();
    crate::bed::signal(life.pid, rustix::process::Signal::KILL);
    let next = wait("it is started again", || host.life("web").filter(|next| next.incarnation == 2));
    assert_ne!(next.pid, life.pid);
}
