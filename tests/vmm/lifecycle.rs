//! From a manifest to a guest and back.

use std::fs;
use std::time::{Duration, Instant};

use crate::bed::{Host, Vmm, bed, is_alive, manifest, wait};

fn a_vm_follows_its_manifest(vmm: Vmm) {
    let mut host = Host::new();
    host.start_daemon();

    host.apply("web.yaml", &manifest("web", vmm));
    let first = host.running("web");
    host.console_shows("web", "GUEST READY");

    // A label says nothing to the VMM.
    host.apply("web.yaml", &manifest("web", vmm).replace("tier: one", "tier: two"));
    wait("the label is on record", || (host.ledger("web")?["accepted"]["vm"]["labels"]["tier"] == "two").then_some(()));
    assert_eq!(host.running("web"), first);

    // Another file name is the same VM.
    fs::rename(host.manifests().join("web.yaml"), host.manifests().join("renamed.yaml")).unwrap();
    wait("the new file is on record", || {
        (host.ledger("web")?["accepted"]["origin"]["path"] == "renamed.yaml").then_some(())
    });
    assert_eq!(host.running("web"), first);

    // Memory is given to a VMM once.
    let (before, after) = match vmm {
        Vmm::Firecracker => ("memory: 4Mi", "memory: 5Mi"),
        Vmm::Qemu => ("memory: 128Mi", "memory: 160Mi"),
    };
    host.apply("renamed.yaml", &manifest("web", vmm).replace(before, after));
    let second = wait("a second life", || host.life("web").filter(|life| life.incarnation == 2));
    assert_ne!(second.pid, first.pid);
    host.console_shows("web", "GUEST STOP");

    host.remove("renamed.yaml");
    host.gone("web", &second);
    assert_eq!(host.processes(), Vec::<i32>::new());
    assert_eq!(host.stop_daemon(), Some(0));
}

#[test]
fn a_firecracker_vm_follows_its_manifest_from_the_first_drop_to_nothing_left() {
    a_vm_follows_its_manifest(Vmm::Firecracker);
}

#[test]
fn a_qemu_vm_follows_its_manifest_from_the_first_drop_to_nothing_left() {
    a_vm_follows_its_manifest(Vmm::Qemu);
}

#[test]
fn a_deleted_vm_that_comes_back_counts_its_lives_on() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let first = host.running("web");
    host.remove("web.yaml");
    host.once(0);
    host.gone("web", &first);
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    assert_eq!(host.running("web").incarnation, 2);
}

#[test]
fn paused_and_stopped_are_states_a_manifest_can_ask_for() {
    for vmm in [Vmm::Firecracker, Vmm::Qemu] {
        let host = Host::new();
        let text = manifest("web", vmm);
        host.apply("web.yaml", &text);
        host.once(0);
        let life = host.running("web");
        host.apply("web.yaml", &format!("{text}  powerState: Paused\n"));
        host.once(0);
        let output = host.run(&["get", "web", "-o", "json"]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("Paused"), "{output:?}");
        assert_eq!(host.running("web"), life);
        host.apply("web.yaml", &text);
        host.once(0);
        assert_eq!(host.running("web"), life);
        host.apply("web.yaml", &format!("{text}  powerState: Stopped\n"));
        host.once(0);
        wait("its VMM is gone", || (!crate::bed::is_alive(life.pid)).then_some(()));
        assert!(!host.handles_path("web").exists());
    }
}

#[test]
fn a_converged_pass_has_no_effect_at_all() {
    let mut host = Host::new();
    for name in ["a", "b", "c"] {
        host.apply(&format!("{name}.yaml"), &manifest(name, Vmm::Firecracker));
    }
    host.start_daemon();
    let lives: Vec<_> = ["a", "b", "c"].map(|name| host.running(name)).into();
    wait("the pass is over", || {
        let text = fs::read_to_string(host.vm_dir("c").join("status.json")).ok()?;
        text.contains("\"Running\"").then_some(())
    });
    let quiet = settle(&host);
    host.daemon_signal(rustix::process::Signal::HUP);
    // A reply to a request that comes after the signal shows that the signal's pass has begun; the files tell the rest.
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(fingerprint(&host), quiet, "a pass in a converged world wrote something");
    assert_eq!(host.stop_daemon(), Some(0));
    assert_eq!(host.once(0), "", "and said something");
    assert_eq!(lives, Vec::from(["a", "b", "c"].map(|name| host.running(name))));
}

/// Every file of the state with its inode, size and times, and the log.
fn fingerprint(host: &Host) -> Vec<String> {
    use std::os::unix::fs::MetadataExt;
    let mut lines = vec![host.log()];
    for name in ["a", "b", "c"] {
        for entry in fs::read_dir(host.vm_dir(name)).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            let path = entry.path();
            lines.push(format!(
                "{} {} {} {} {}",
                path.display(),
                meta.ino(),
                meta.size(),
                meta.mtime_nsec(),
                meta.ctime_nsec()
            ));
        }
    }
    lines.sort();
    lines
}

/// Waits until the fingerprint stays the same.
fn settle(host: &Host) -> Vec<String> {
    let mut last = fingerprint(host);
    wait("the world is quiet", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = fingerprint(host);
        let quiet = now == last;
        last = now;
        quiet.then(|| last.clone())
    })
}

#[test]
fn the_samples_run_as_they_are() {
    let host = Host::new();
    let images = bed("images");
    for sample in ["hello.yaml", "workers.yaml", "firecracker.yaml", "snapshot.yaml"] {
        let text = fs::read_to_string(format!("{}/manifests/{sample}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        host.apply(sample, &text.replace("/var/lib/stead/images", &images.display().to_string()));
    }
    host.once(0);
    for name in ["hello", "worker-1", "worker-2", "spark", "scratch"] {
        host.running(name);
    }
    host.console_shows("scratch", "GUEST DISK vda sectors=131072 ro=0");
}

#[test]
fn a_pass_goes_on_as_soon_as_a_vmm_that_it_stops_has_ended() {
    let host = Host::new();
    let text = manifest("web", Vmm::Firecracker);
    let stop = || {
        host.apply("web.yaml", &text);
        host.once(0);
        let life = host.running("web");
        host.apply("web.yaml", &format!("{text}  powerState: Stopped\n"));
        let start = Instant::now();
        host.once(0);
        let took = start.elapsed();
        assert!(!is_alive(life.pid));
        took
    };
    // The guest ends within milliseconds; whoever is not told of it asks again after a second. On a busy machine one may be slow.
    let took = [stop(), stop(), stop()];
    assert!(took.iter().any(|took| *took < Duration::from_secs(1)), "{took:?}");
}
