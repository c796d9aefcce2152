//! The commands that act: with a stead that runs, and without.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use crate::bed::{Host, Life, Vmm, bed, is_alive, manifest, wait};

fn text(output: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn restart_restarts_once_with_and_without_a_running_stead() {
    let mut host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let first = host.running("web");
    let output = host.run(&["restart", "web"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let second = host.running("web");
    assert_eq!(second.incarnation, first.incarnation + 1);
    host.start_daemon();
    let output = host.run(&["restart", "web"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    wait("a third life", || host.life("web").filter(|life| life.incarnation == 3));
    assert_eq!(host.stop_daemon(), Some(0));
    host.once(0);
    assert_eq!(host.running("web").incarnation, 3);
    let output = host.run(&["restart", "nobody"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
}

#[test]
fn delete_refuses_what_a_manifest_declares() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    let output = host.run(&["delete", "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("declared in web.yaml"), "{}", text(&output));
    assert_eq!(host.running("web"), life);
}

#[test]
fn many_deletions_at_once_wait_for_the_approval_of_exactly_that_plan() {
    let mut host = Host::new();
    let names = ["a", "b", "c", "d"];
    for name in names {
        host.apply(&format!("{name}.yaml"), &manifest(name, Vmm::Firecracker));
    }
    host.start_daemon();
    let lives = names.map(|name| host.running(name));
    for name in &names[..3] {
        host.remove(&format!("{name}.yaml"));
    }
    let plan = wait("the gate refuses", || {
        let output = host.run(&["plan"]);
        (output.status.code() == Some(4)).then(|| text(&output))
    });
    let digest = plan.split("stead approve ").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(host.run(&["approve", "000000000000"]).status.code(), Some(1));
    for (name, life) in names.iter().zip(&lives) {
        assert_eq!(host.life(name).as_ref(), Some(life), "{name} waits");
    }
    let output = wait("the running stead holds them too", || {
        let output = host.run(&["approve", &digest]);
        (output.status.code() == Some(0)).then_some(output)
    });
    assert!(text(&output).contains(&digest));
    for (name, life) in names.iter().zip(&lives).take(3) {
        host.gone(name, life);
    }
    assert_eq!(host.life("d").as_ref(), Some(&lives[3]));
}

#[test]
fn a_pass_that_a_gate_refuses_exits_4_and_allow_prune_lets_it_through() {
    let host = Host::new();
    for name in ["a", "b", "c"] {
        host.apply(&format!("{name}.yaml"), &manifest(name, Vmm::Firecracker));
    }
    host.once(0);
    for name in ["a", "b", "c"] {
        host.remove(&format!("{name}.yaml"));
    }
    let said = host.once(4);
    assert!(said.contains("stead approve"), "{said}");
    assert_eq!(host.processes().len(), 3);
    assert_eq!(host.run(&["reconcile", "--once", "--allow-prune", "3"]).status.code(), Some(0));
    assert_eq!(host.processes(), Vec::<i32>::new());
}

/// A Firecracker that another manager started, with the handles.json it left.
struct Foreign {
    process: std::process::Child,
    folder: std::path::PathBuf,
}

impl Foreign {
    fn new(host: &Host, pid: Option<u32>) -> Self {
        let folder = host.root.path().join("other/web");
        fs::create_dir_all(&folder).unwrap();
        let socket = host.root.path().join("foreign.sock");
        let config = host.root.path().join("foreign.json");
        let kernel = bed("guest/ctrlaltdel.elf");
        fs::write(
            &config,
            serde_json::json!({
                "boot-source": {"kernel_image_path": kernel, "boot_args": "console=ttyS0"}, "drives": [],
                "machine-config": {"vcpu_count": 1, "mem_size_mib": 4},
            })
            .to_string(),
        )
        .unwrap();
        let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
        let process = Command::new(bed("bin/firecracker"))
            .args(["--id", "theirs", "--api-sock"])
            .arg(&socket)
            .arg("--config-file")
            .arg(&config)
            .stdin(null)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        wait("its socket", || std::os::unix::net::UnixStream::connect(&socket).ok());
        let pid = pid.unwrap_or(process.id());
        let handles = serde_json::json!({"pid": pid, "api_socket": socket, "tap_devices": [], "dm_name": "theirs"});
        fs::write(folder.join("handles.json"), handles.to_string()).unwrap();
        Self { process, folder }
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn adopt_takes_over_what_another_manager_left_and_a_manifest_claims_it() {
    let host = Host::new();
    let foreign = Foreign::new(&host, None);
    let pid = i32::try_from(foreign.process.id()).unwrap();
    let output = host.run(&["adopt", foreign.folder.parent().unwrap().to_str().unwrap()]);
    assert!(text(&output).contains(&format!("web: adopted, pid {pid}")), "{}", text(&output));
    assert!(text(&output).contains("dm_name is kept on record"), "{}", text(&output));
    let life = host.running("web");
    assert_eq!(life.pid, pid);
    let shown = host.run(&["get", "web", "-o", "json"]);
    assert!(text(&shown).contains("Unclaimed"), "{}", text(&shown));
    // Held, never killed, until a manifest claims it; and that does not touch it, since nobody knows its spec.
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    assert_eq!(host.running("web"), life);
    host.remove("web.yaml");
    host.once(0);
    assert!(!host.handles_path("web").exists());
    drop(foreign);
    assert!(!is_alive(pid));
}

#[test]
fn adopt_refuses_a_pid_that_does_not_listen_on_the_socket() {
    let host = Host::new();
    let foreign = Foreign::new(&host, Some(std::process::id()));
    let output = host.run(&["adopt", foreign.folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not the recorded pid"), "{}", text(&output));
    assert_eq!(host.life("web"), None::<Life>);
    assert!(is_alive(i32::try_from(foreign.process.id()).unwrap()));
}

#[test]
fn describe_and_logs_show_what_there_is() {
    let host = Host::new();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    host.once(0);
    let life = host.running("web");
    host.console_shows("web", "GUEST READY");
    let shown = text(&host.run(&["describe", "web"]));
    for expected in
        [&format!("PID:          {}", life.pid), "API ", "Declared in:  web.yaml:1", "GuestRunning", "Started"]
    {
        assert!(shown.contains(expected), "{expected}:\n{shown}");
    }
    assert!(text(&host.run(&["logs", "web"])).contains("GUEST READY"));
    let unknown = host.run(&["describe", "wep"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown).contains("is it \"web\"?"), "{}", text(&unknown));
}

#[test]
fn the_story_of_the_demo_is_true() {
    let story = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/run"))
        .env("STEAD_DEMO_BINARY", env!("CARGO_BIN_EXE_stead"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = text(&story);
    assert_eq!(story.status.code(), Some(0), "{told}");
    for expected in ["3 to start.", "GUEST READY", "1 to replace, 2 unchanged.", "processes: none", "sockets:   none"] {
        assert!(told.contains(expected), "{expected}:\n{told}");
    }
}
