//! `stead doctor` on real hosts on which something is wrong: each finding is brought about, in namespaces of its own where that
//! takes them, and told with what to do.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod prepared;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::SystemTime;

use prepared::home::Home;
use serde_json::Value;
use stead::control::{self, Handler, Reply, Request};

impl Home {
    fn declare(&self, name: &str, spec: &str) {
        self.write(&format!("manifests/{name}.yaml"), &document(name, spec));
    }

    /// The command under a configuration of nothing.
    fn plainly(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let mut command = self.under(wrapper, args);
        command.env("STEAD_CONFIG", self.write("config.yaml", CONFIGURATION));
        command
    }

    fn report(&self, wrapper: &[&str]) -> Report {
        Report::of(&mut self.plainly(wrapper, &["doctor", "-o", "json"]))
    }

    /// The report under a configuration instead of the folder of manifests alone.
    fn configured(&self, text: &str) -> Command {
        let mut command = self.plainly(&[], &["doctor", "-o", "json"]);
        self.write("config.yaml", text);
        command.env_remove("STEAD_MANIFESTS");
        command
    }
}

const CONFIGURATION: &str = "{apiVersion: stead.dev/v1alpha1, kind: Configuration}\n";

fn document(name: &str, spec: &str) -> String {
    let head = "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine";
    format!("{head}\nmetadata: {{name: {name}}}\nspec: {{memory: 64Mi, boot: {{kernel: /k}}, {spec}}}\n")
}

/// What the command said.
struct Report {
    checks: Vec<Value>,
    status: i32,
}

impl Report {
    fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let report: Value = serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
        let checks = report["checks"].as_array().unwrap().clone();
        let status = output.status.code().unwrap();
        let has_failed = checks.iter().any(|check| check["state"] == "failure");
        assert_eq!(status, if has_failed { 2 } else { 0 }, "{report:#}");
        Self { checks, status }
    }

    fn check(&self, name: &str) -> &Value {
        self.checks.iter().find(|check| check["name"] == name).unwrap()
    }

    #[track_caller]
    fn says(&self, name: &str, state: &str, found: &str, mend: &str) {
        let check = self.check(name);
        let has = |key: &str, part: &str| check[key].as_str().unwrap_or_default().contains(part);
        assert!(check["state"] == state && has("found", found) && has("mend", mend), "{check:#}");
    }
}

/// Whether namespaces can be made; without root it is told and the test left out.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("left out: namespaces need root");
    }
    is_root
}

/// In a mount namespace of its own, after this script.
fn after(script: &str) -> [&str; 6] {
    ["unshare", "--mount", "sh", "-euc", script, "sh"]
}

/// Everything in a folder, with when it was changed.
fn tree(folder: &Path) -> Vec<(PathBuf, SystemTime)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        all.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
        if entry.file_type().unwrap().is_dir() {
            all.extend(tree(&entry.path()));
        }
    }
    all.sort();
    all
}

#[test]
fn where_nothing_is_wrong_nothing_fails_and_nothing_is_changed() {
    let home = Home::new();
    home.declare("web", "cpus: 2");
    let mut command = home.plainly(&[], &["doctor", "-o", "json"]);
    let before = tree(home.0.path());
    let report = Report::of(&mut command);
    assert_eq!(report.status, 0);
    report.says("state", "skipped", "the first pass makes it", "");
    report.says("manifests", "ok", "1 VMs declared", "");
    let everything = |check: &Value| ["name", "state", "found", "why"].iter().all(|key| check[key].is_string());
    assert!(report.checks.iter().all(everything));
    assert!(report.checks.iter().all(|check| check["mend"].is_string() == (check["state"] == "warning")));
    assert_eq!(tree(home.0.path()), before);

    let layout = home.layout();
    fs::create_dir(layout.vm_dir(&"web".parse().unwrap())).unwrap();
    let mut command = home.plainly(&[], &["doctor", "--all"]);
    let before = tree(home.0.path());
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("ok       records: those of 1 VMs can be read\n"), "{text}");
    assert!(text.lines().last().unwrap().starts_with("23 checks: 0 failures, "), "{text}");
    assert_eq!((output.status.code(), tree(home.0.path())), (Some(0), before));
}

#[test]
fn a_host_without_devices() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.declare(
        "spark",
        "vmm: firecracker, disks: [{name: root, image: /i, mode: snapshot}], networkInterfaces: [{name: eth0}]",
    );
    let report = home.report(&after(r#"mount -t tmpfs none /dev; mknod /dev/null c 1 3; exec "$@""#));
    report.says("kvm", "failure", "/dev/kvm is missing; VM spark needs it", "kvm_intel");
    report.says("tun", "failure", "/dev/net/tun is missing; VM spark has a network interface", "modprobe tun");
    report.says("loop", "failure", "/dev/loop-control is missing; VM spark has a snapshot disk", "modprobe loop");
    report.says("device-mapper", "failure", "VM spark has a snapshot disk on Firecracker", "modprobe dm-snapshot");
    assert_eq!(report.status, 2);

    let report = home.report(&after(r#"mount -t tmpfs none /dev; mknod /dev/null c 1 3; : >/dev/kvm; exec "$@""#));
    report.says("kvm", "failure", "does not answer as KVM does", "load kvm_intel");
    // What cannot be seen from here is not there: neither is any program.
    let report = Report::of(home.plainly(&[], &["doctor", "-o", "json"]).env("PATH", "/nonexistent"));
    report.says("firecracker", "failure", "VM spark needs it", "STEAD_FIRECRACKER");
}

#[test]
fn a_user_who_may_not_make_interfaces() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.declare("web", "networkInterfaces: [{name: eth0}]");
    let report = home.report(&["setpriv", "--bounding-set", "-net_admin"]);
    report.says("tun", "failure", "CAP_NET_ADMIN", "as root");
}

#[test]
fn bridges_that_are_missing_down_or_none_at_all() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.declare("web", "networkInterfaces: [{name: eth0, bridge: br0}]");
    for (script, state, found, mend) in [
        ("", "failure", "there is no bridge br0", "ip link add br0 type bridge"),
        ("ip tuntap add br0 mode tap;", "failure", "br0 is no bridge", "name a bridge"),
        ("ip link add br0 type bridge;", "warning", "br0 is down", "ip link set br0 up"),
        ("ip link add br0 type bridge; ip link set br0 up mtu 1400;", "warning", "MTU of 1400", "mtu 1500"),
        ("ip link add br0 type bridge; ip link set br0 up;", "ok", "up, with room: br0", ""),
    ] {
        // Interfaces are looked up in sysfs, which shows those of the namespace that it was mounted in.
        let script = format!(r#"mount -t sysfs none /sys; {script} exec "$@""#);
        let report = home.report(&["unshare", "--mount", "--net", "sh", "-euc", &script, "sh"]);
        report.says("bridges", state, found, mend);
    }
}

#[test]
fn more_interfaces_than_a_bridge_has_ports() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let one = |n| document(&format!("vm-{n}"), "networkInterfaces: [{name: eth0, bridge: br0}]") + "---\n";
    home.write("manifests/all.yaml", &(0..1025).map(one).collect::<String>());
    let script = r#"mount -t sysfs none /sys; ip link add br0 type bridge; ip link set br0 up; exec "$@""#;
    let report = home.report(&["unshare", "--mount", "--net", "sh", "-euc", script, "sh"]);
    report.says("bridges", "failure", "1025 interfaces are to join br0", "several bridges");
}

#[test]
fn a_disk_that_is_full_of_bytes_or_of_files() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    home.layout();
    let state = home.path("state").display().to_string();
    for (options, found, mend) in
        [("size=8m", "8 MiB are free", "du -xh"), ("nr_inodes=40", "of 40 inodes", "--inodes")]
    {
        let report = home.report(&after(&format!(r#"mount -t tmpfs -o mode=700,{options} none {state}; exec "$@""#)));
        report.says("space", "failure", found, mend);
    }
}

#[test]
fn a_host_without_cgroups() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let report = home.report(&after(r#"umount -R -l /sys/fs/cgroup; exec "$@""#));
    report.says("cgroups", "warning", "without a cgroup and without limits", "mount -t cgroup2");
}

#[test]
fn fewer_open_files_watches_and_threads_than_vms_take() {
    let home = Home::new();
    let all: String = (0..50).map(|n| document(&format!("vm-{n}"), "cpus: 1") + "---\n").collect();
    home.write("manifests/all.yaml", &all);
    let report = home.report(&["prlimit", "--nofile=150:150"]);
    report.says("open-files", "failure", "150 files open, and 50 VMs need some 164", "LimitNOFILE=");
    home.report(&["prlimit", "--nofile=200:200"]).says("open-files", "warning", "200 files", "LimitNOFILE=");

    if is_root() {
        let script = r#"echo 0 >/proc/sys/user/max_inotify_instances; exec "$@""#;
        let report = home.report(&["unshare", "--user", "--map-root-user", "sh", "-euc", script, "sh"]);
        report.says("inotify", "warning", "not one more instance can be had", "max_user_instances=");
        let script = r#"echo 0 >/proc/sys/user/max_inotify_watches; exec "$@""#;
        let report = home.report(&["unshare", "--user", "--map-root-user", "sh", "-euc", script, "sh"]);
        report.says("inotify", "warning", "1 folders of manifests are to be watched", "max_user_watches=");
    }

    let limit =
        |name: &str| -> u64 { fs::read_to_string(format!("/proc/sys/kernel/{name}")).unwrap().trim().parse().unwrap() };
    let limit = limit("pid_max").min(limit("threads-max"));
    for file in 0..=limit / 36 / 2000 {
        let all: String = (0..2000).map(|n| document(&format!("big-{file}-{n}"), "cpus: 32") + "---\n").collect();
        home.write(&format!("manifests/{file}.yaml"), &all);
    }
    home.report(&[]).says("threads", "failure", &format!("of at most {limit}"), "sysctl -w kernel.");
}

#[test]
fn clocks_that_were_moved() {
    let home = Home::new();
    let layout = home.layout();
    let orphans = home.write("state/orphans.json", "{\"version\": 1}");
    let ahead = SystemTime::now() + std::time::Duration::from_secs(3600);
    File::open(&orphans).unwrap().set_modified(ahead).unwrap();
    assert_eq!(orphans, layout.orphans());
    home.report(&[]).says("clock", "warning", "it was set back", "");
    if is_root() {
        let report = home.report(&["unshare", "--time", "--monotonic", "86400", "--fork"]);
        report.says("clock", "failure", "less than the time awake", "time_namespaces(7)");
    }
}

#[test]
fn a_kernel_that_is_too_old() {
    let home = Home::new();
    // The personality under which uname(2) tells of a version that old programs understand.
    let report = home.report(&["setarch", std::env::consts::ARCH, "--uname-2.6"]);
    report.says("kernel", "failure", "Linux 2.6.", "6.1 or later");
}

#[test]
fn a_process_that_is_confined() {
    if !is_root() {
        return;
    }
    let home = Home::new();
    let label = home.write("label", "docker-default (enforce)");
    let script = format!(r#"mount --bind {} /proc/$$/attr/current; exec "$@""#, label.display());
    home.report(&after(&script)).says("confinement", "warning", "docker-default (enforce)", "ausearch");
}

#[test]
fn git_that_is_missing_or_too_old_and_sources_that_are_not_followed() {
    let home = Home::new();
    home.layout();
    let configuration = "\
apiVersion: stead.dev/v1alpha1
kind: Configuration
sources:
  - name: fleet
    git: {url: 'file:///nonexistent/fleet.git', verify: {mode: Head, allowedSigners: /etc/stead/signers}}
  - {name: other, git: {url: 'ssh://git@nowhere.invalid/other.git'}}
";
    let report = Report::of(home.configured(configuration).env("PATH", "/nonexistent"));
    report.says("git", "failure", "git cannot be run", "apt-get install git");
    let programs = home.path("programs");
    fs::create_dir(&programs).unwrap();
    let git = home.write("programs/git", "#!/bin/sh\necho git version 2.30.2\n");
    fs::set_permissions(git, fs::Permissions::from_mode(0o755)).unwrap();
    let report = Report::of(home.configured(configuration).env("PATH", &programs));
    report.says("git", "failure", "ssh is not in PATH", "install ssh");
    report.says("git", "failure", "git version 2.30.2 cannot check signatures by SSH keys", "2.34");
    report.says("git", "failure", "ssh-keygen is not in PATH", "install ssh-keygen");

    let mut sync = home.plainly(&[], &["sync", "fleet"]);
    home.write("config.yaml", configuration);
    let synced = sync.env_remove("STEAD_MANIFESTS").output().unwrap();
    assert!(!synced.status.success());
    let report = Report::of(&mut home.configured(configuration));
    report.says("sources", "warning", "source fleet is not followed: FetchFailed", "stead sources fleet");
}

/// Says that it is another version.
struct Older;

impl Handler for Older {
    async fn handle(&self, _: Request) -> Reply {
        Reply::Pong { version: "0.0.1".to_owned(), pid: std::process::id() }
    }
}

#[test]
fn a_stead_that_is_another_one_or_does_not_answer() {
    let home = Home::new();
    let layout = home.layout();
    let lock = File::create(layout.lock()).unwrap();
    lock.lock().unwrap();
    home.report(&[]).says("daemon", "warning", "listens to nobody", "");
    drop(lock);

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let silent = runtime.block_on(async { control::bind(&layout) }).unwrap();
    home.report(&[]).says("daemon", "failure", "did not answer within", "journalctl");
    drop(silent);

    let listener = runtime.block_on(async { control::bind(&layout) }).unwrap();
    std::thread::spawn(move || runtime.block_on(control::serve(listener, Arc::new(Older))));
    let report = home.report(&[]);
    report.says("daemon", "warning", "is of version 0.0.1", "VMs live on");
    report.says("open-files", "ok", "the running stead may have", "");
}

#[test]
fn records_that_are_broken_and_those_that_were_set_aside() {
    let home = Home::new();
    let layout = home.layout();
    let web = "web".parse().unwrap();
    fs::create_dir(layout.vm_dir(&web)).unwrap();
    home.write("state/vms/web/handles.json", "{");
    home.write("state/vms/web/ledger.json.corrupt-20260101T000000Z-1", "");
    let exposed = home.write("state/gates.json", "{\"version\": 1}");
    fs::set_permissions(&exposed, fs::Permissions::from_mode(0o666)).unwrap();
    let report = home.report(&[]);
    report.says("records", "warning", "vms/web/handles.json: it is not what stead writes", "make a pass");
    report.says("records", "warning", "ledger.json.corrupt-20260101T000000Z-1", "remove them");
    report.says("records", "warning", "gates.json", "");
}

#[test]
fn a_configuration_that_is_wrong_hides_nothing_else() {
    let home = Home::new();
    let report = Report::of(&mut home.configured("apiVersion: stead.dev/v1alpha1\nkind: Configuration\nsuorces: []\n"));
    report.says("configuration", "failure", "config.yaml:3:1: unknown field `suorces`", "stead schema configuration");
    report.says("manifests", "skipped", "without a sound configuration", "");
    assert_ne!(report.check("kernel")["state"], "skipped");

    let token = home.write("token", "0123456789abcdef0123456789abcdef");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o644)).unwrap();
    let push = format!("{CONFIGURATION}push: {{listen: '127.0.0.1:9440', tokenFile: {}}}\n", token.display());
    let push = push.replace(CONFIGURATION, "apiVersion: stead.dev/v1alpha1\nkind: Configuration\n");
    let report = Report::of(&mut home.configured(&push));
    report.says("configuration", "failure", "the token file", "");
}

#[test]
fn folders_that_others_may_write_to_or_that_are_not_there() {
    let home = Home::new();
    let layout = home.layout();
    fs::set_permissions(&layout.state_dir, fs::Permissions::from_mode(0o770)).unwrap();
    let manifests = home.path("manifests");
    fs::set_permissions(&manifests, fs::Permissions::from_mode(0o777)).unwrap();
    let report = home.report(&[]);
    report.says("state", "failure", "can be written by others (mode 0770)", "chmod go-w");
    report.says("folders", "failure", "anybody may write to", "chmod o-w");
    report.says("daemon", "skipped", "the state cannot be used", "");
    fs::set_permissions(&manifests, fs::Permissions::from_mode(0o755)).unwrap();
    let inside = home.write("manifests/deep/web.yaml", "");
    fs::set_permissions(&inside, fs::Permissions::from_mode(0o666)).unwrap();
    home.report(&[]).says("folders", "failure", "manifests/deep/web.yaml (0666)", "chmod o-w");
    fs::remove_dir_all(&manifests).unwrap();
    home.report(&[]).says("folders", "failure", "there is no", "mkdir -p");
}

#[test]
fn manifests_that_are_wrong() {
    let home = Home::new();
    home.declare("web", "memroy: 1Gi");
    let report = home.report(&[]);
    report.says("manifests", "failure", "unknown field `memroy` (did you mean `memory`?)", "stead validate");
}
