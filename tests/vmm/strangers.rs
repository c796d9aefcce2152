//! Processes that are not ours, in places where ours were.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use crate::bed::{Host, Vmm, is_alive, manifest, signal, wait};

/// A process of the test's own that must survive.
struct Stranger(Child);

impl Stranger {
    fn new() -> Self {
        Self(Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap())
    }

    /// Gets a process with exactly this pid: the kernel gives the number after the last one that is free
    /// (`/proc/sys/kernel/ns_last_pid`, proc_sys_kernel(5)).
    fn with_pid(wanted: i32) -> Self {
        for _ in 0..2_000 {
            fs::write("/proc/sys/kernel/ns_last_pid", (wanted - 1).to_string()).unwrap();
            let mut stranger = Self::new();
            if i32::try_from(stranger.0.id()).unwrap() == wanted {
                return stranger;
            }
            stranger.end();
        }
        panic!("somebody else took pid {wanted} every time");
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.end();
    }
}

fn kill_and_reap(pid: i32) {
    signal(pid, rustix::process::Signal::KILL);
    // The number is free only when its last owner was reaped, which the machine's PID 1 does in its own time.
    wait("the dead VMM is reaped", || (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
}

#[test]
fn a_stranger_with_the_pid_of_a_dead_vm_is_never_signalled() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    kill_and_reap(life.pid);
    let mut stranger = Stranger::with_pid(life.pid);
    let next = wait("it is started again, after its back-off", || {
        host.run(&["reconcile", "--once"]);
        host.life("web").filter(|next| next.incarnation == 2)
    });
    assert!(stranger.lives());
    host.remove("web.yaml");
    host.once(0);
    host.gone("web", &next);
    assert!(stranger.lives());
}

#[test]
fn a_record_that_names_pid_1_or_minus_1_signals_nobody() {
    for pid in [-1, 0, 1, i32::try_from(std::process::id()).unwrap()] {
        let host = Host::new();
        host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
        host.once(0);
        let life = host.running("web");
        kill_and_reap(life.pid);
        let text = fs::read_to_string(host.handles_path("web")).unwrap();
        fs::write(
            host.handles_path("web"),
            text.replace(&format!("\"pid\": {}", life.pid), &format!("\"pid\": {pid}")),
        )
        .unwrap();
        host.remove("web.yaml");
        host.once(0);
        assert!(!host.handles_path("web").exists(), "pid {pid}");
        assert!(is_alive(1));
    }
}

#[test]
fn a_record_of_an_earlier_boot_is_of_a_dead_vm() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    kill_and_reap(life.pid);
    let mut stranger = Stranger::with_pid(life.pid);
    let mut handles = host.handles("web").unwrap();
    handles["boot_id"] = "00000000-0000-4000-8000-000000000000".into();
    fs::write(host.handles_path("web"), handles.to_string()).unwrap();
    host.once(0);
    assert_eq!(host.running("web").incarnation, 2);
    assert!(stranger.lives());
}

#[test]
fn a_stranger_on_the_socket_of_a_live_vm_is_neither_asked_nor_signalled() {
    for vmm in [Vmm::Firecracker, Vmm::Qemu] {
        let host = Host::new();
        host.apply("web.yaml", &manifest("web", vmm));
        host.once(0);
        let life = host.running("web");
        let mut listeners = Vec::new();
        for socket in host.sockets() {
            fs::remove_file(&socket).unwrap();
            let listener = UnixListener::bind(&socket).unwrap();
            listener.set_nonblocking(true).unwrap();
            listeners.push(listener);
        }
        // Alive, and nobody can speak to it: held, never started beside.
        host.once(2);
        assert_eq!(host.running("web"), life);
        let output = host.run(&["get", "web", "-o", "json"]);
        assert!(String::from_utf8_lossy(&output.stdout).contains("Unhealthy"), "{output:?}");
        for listener in &listeners {
            while let Ok((mut peer, _)) = listener.accept() {
                let mut heard = Vec::new();
                peer.set_nonblocking(false).unwrap();
                std::io::Read::read_to_end(&mut peer, &mut heard).unwrap();
                assert_eq!(String::from_utf8_lossy(&heard), "", "a stranger was spoken to");
            }
        }
        // It can be removed all the same: it is proven ours, and killed at the end of its grace.
        host.remove("web.yaml");
        host.once(0);
        assert!(!is_alive(life.pid));
        assert!(!host.handles_path("web").exists());
    }
}
