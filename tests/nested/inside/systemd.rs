//! stead as units of systemd, which is this host's PID 1.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::inside::bed::{self, Ended, ends, run, wait};

/// The units as they come with stead.
const UNITS: [(&str, &str); 3] = [
    ("stead.service", include_str!("../../../contrib/systemd/stead.service")),
    ("stead-reconcile.service", include_str!("../../../contrib/systemd/stead-reconcile.service")),
    ("stead-reconcile.timer", include_str!("../../../contrib/systemd/stead-reconcile.timer")),
];

const STEAD: &str = "/usr/local/bin/stead";
const MANIFESTS: &str = "/etc/stead/manifests";
const VMS: &str = "/var/lib/stead/vms";

/// Installs stead, its VMMs and its units by hand.
fn install() {
    for (from, to) in [("/payload/bin/stead", STEAD), ("/bed/bin/firecracker", "/usr/local/bin/firecracker")] {
        fs::copy(from, to).unwrap();
    }
    for (name, text) in UNITS {
        fs::write(Path::new("/etc/systemd/system").join(name), text).unwrap();
    }
    systemctl(&["daemon-reload"]);
    fs::create_dir_all(MANIFESTS).unwrap();
}

#[track_caller]
fn systemctl(args: &[&str]) -> String {
    let ended = ends(Command::new("systemctl").args(args));
    assert!(ended.status.success(), "systemctl {args:?}: {ended:?}\n{}", story());
    ended.stdout.trim_end().to_owned()
}

/// What the services and systemd said.
pub fn story() -> String {
    let Ended { stdout, .. } =
        ends(Command::new("journalctl").args(["--no-pager", "-o", "short-monotonic", "-n", "150"]));
    stdout
}

/// A property of a unit.
fn show(unit: &str, property: &str) -> String {
    systemctl(&["show", unit, "--value", "-p", property])
}

fn main_pid() -> i32 {
    show("stead.service", "MainPID").parse().unwrap()
}

fn apply(name: &str, text: &str) {
    let temporary = Path::new("/etc/stead/manifest.tmp");
    fs::write(temporary, text).unwrap();
    fs::rename(temporary, Path::new(MANIFESTS).join(format!("{name}.yaml"))).unwrap();
}

/// Declares that it is not to run. Deletions would, of so many, wait for an approval.
fn stop(name: &str) {
    let manifest = fs::read_to_string(Path::new(MANIFESTS).join(format!("{name}.yaml"))).unwrap();
    apply(name, &format!("{manifest}  powerState: Stopped\n"));
}

/// One VM of each kind: nothing but memory; a disk of device-mapper's and a tap; QEMU. No guest boots a Linux: under a QEMU in
/// a KVM that is itself emulated, one stopped the clock of the host for good.
fn apply_all() {
    fs::create_dir_all("/var/lib/stead/images").unwrap();
    fs::File::create("/var/lib/stead/images/base.img").unwrap().set_len(8 << 20).unwrap();
    apply("web", &bed::vm("web", ""));
    let disk = "  disks:\n    - {name: root, image: /var/lib/stead/images/base.img, mode: snapshot}\n";
    let network = "  networkInterfaces:\n    - {name: eth0}\n";
    apply("db", &bed::vm("db", &format!("{disk}{network}")));
    apply("emu", &bed::vm_of("qemu", "64Mi", "emu", ""));
}

const ALL: [&str; 3] = ["db", "emu", "web"];

fn handles(name: &str) -> Option<Value> {
    serde_json::from_slice(&fs::read(Path::new(VMS).join(name).join("handles.json")).ok()?).ok()
}

/// The VMM of a VM that is on record as running, and its life.
fn life(name: &str) -> Option<(i32, u64)> {
    let handles = handles(name)?;
    let pid = i32::try_from(handles["pid"].as_i64()?).ok()?;
    (handles["phase"] == "running").then_some((pid, handles["incarnation"].as_u64()?))
}

type Lives = BTreeMap<&'static str, (i32, u64)>;

fn all_run() -> Lives {
    ALL.into_iter().map(|name| (name, wait(&format!("{name} runs"), || life(name)))).collect()
}

fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Nobody has died, and nobody was born.
#[track_caller]
fn all_are(lives: &Lives, when: &str) {
    for (name, (pid, incarnation)) in lives {
        assert!(is_alive(*pid), "{when}: {name}, pid {pid}, is dead\n{}", story());
        assert_eq!(life(name), Some((*pid, *incarnation)), "{when}: {name}");
    }
}

/// Where the cgroup of a process is.
fn cgroup_of(pid: i32) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.trim().trim_start_matches("0::/").to_owned()
}

fn folder_of(cgroup: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(cgroup)
}

/// The scope that holds these VMs, which must be as it is to be.
#[track_caller]
fn scope_of(lives: &Lives) -> String {
    let id: Value = serde_json::from_slice(&fs::read("/var/lib/stead/id").unwrap()).unwrap();
    let scope = format!("stead-{}.scope", id["id"].as_str().unwrap());
    for (name, (pid, _)) in lives {
        assert_eq!(cgroup_of(*pid), format!("stead.slice/{scope}/{name}"));
        let limit = fs::read_to_string(folder_of(&cgroup_of(*pid)).join("memory.max")).unwrap();
        assert!(limit.trim().parse::<u64>().is_ok(), "{name} has no limit: {limit}");
    }
    let shown = ["Delegate", "ActiveState", "Slice", "TasksMax"].map(|property| show(&scope, property));
    assert_eq!(shown, ["yes", "active", "stead.slice", "infinity"]);
    assert!(show(&scope, "Before").contains("stead.service"), "at shutdown stead ends first");
    scope
}

/// Waits until a unit and its cgroup are no more.
fn is_gone(scope: &str) {
    wait(&format!("{scope} ends"), || (show(scope, "ActiveState") == "inactive").then_some(()));
    wait(&format!("{scope} has no cgroup"), || (!folder_of("stead.slice").join(scope).exists()).then_some(()));
}

/// Waits until stead runs again, and has looked at everything.
#[track_caller]
fn comes_back(after: i32) -> i32 {
    wait("stead is back", || {
        let pid = main_pid();
        let is_back = pid != 0 && pid != after && show("stead.service", "ActiveState") == "active";
        is_back.then_some(pid)
    })
}

pub fn the_service_ends_in_every_way() {
    install();
    apply_all();
    systemctl(&["start", "stead.service"]);
    let lives = all_run();
    let scope = scope_of(&lives);
    println!("STARTED {lives:?} in {scope}");
    wait("the status line", || (show("stead.service", "StatusText") == "3 running").then_some(()));
    let own = cgroup_of(main_pid());
    assert_eq!(own, "system.slice/stead.service");
    let others = fs::read_to_string(folder_of(&own).join("cgroup.procs")).unwrap();
    assert_eq!(others.trim(), main_pid().to_string(), "only stead is in the cgroup of its service");

    systemctl(&["stop", "stead.service"]);
    assert_eq!(show("stead.service", "ActiveState"), "inactive");
    assert_eq!(show("stead.service", "Result"), "success");
    all_are(&lives, "stopped");
    systemctl(&["start", "stead.service"]);
    all_are(&lives, "started again");
    println!("STOPPED AND STARTED");

    let before = main_pid();
    systemctl(&["reload", "stead.service"]);
    wait("the reload is over", || (show("stead.service", "ActiveState") == "active").then_some(()));
    assert_eq!(main_pid(), before, "a reload is no restart");
    systemctl(&["restart", "stead.service"]);
    let before = comes_back(before);
    all_are(&lives, "restarted");

    // An upgrade: another file under the same name.
    fs::copy("/payload/bin/stead", "/usr/local/bin/stead.new").unwrap();
    fs::rename("/usr/local/bin/stead.new", STEAD).unwrap();
    systemctl(&["restart", "stead.service"]);
    let before = comes_back(before);
    all_are(&lives, "upgraded");
    println!("RESTARTED AND UPGRADED");

    run("kill", &["-KILL", &before.to_string()]);
    let before = comes_back(before);
    all_are(&lives, "killed");

    let kills = |property: &str| show("stead.service", property);
    let restarts: u32 = kills("NRestarts").parse().unwrap();
    systemctl(&["set-property", "--runtime", "stead.service", "MemoryMax=1M", "MemorySwapMax=0"]);
    wait("it is killed for want of memory", || {
        let count: u32 = kills("NRestarts").parse().unwrap();
        (count > restarts).then_some(())
    });
    assert!(story().contains("oom-kill"), "{}", story());
    systemctl(&["set-property", "--runtime", "stead.service", "MemoryMax=infinity"]);
    let before = comes_back(before);
    all_are(&lives, "killed for want of memory");
    println!("KILLED AND KILLED FOR WANT OF MEMORY");

    // One that hangs does not ping.
    fs::create_dir_all("/run/systemd/system/stead.service.d").unwrap();
    fs::write("/run/systemd/system/stead.service.d/soon.conf", "[Service]\nWatchdogSec=4\n").unwrap();
    systemctl(&["daemon-reload"]);
    systemctl(&["restart", "stead.service"]);
    let before = comes_back(before);
    let pinged = || show("stead.service", "WatchdogTimestampMonotonic").parse::<u64>().unwrap();
    for _ in 0..3 {
        let last = pinged();
        wait("the next ping", || (pinged() > last).then_some(()));
    }
    assert_eq!(main_pid(), before, "one that pings is left alone");
    run("kill", &["-STOP", &before.to_string()]);
    comes_back(before);
    assert!(story().contains("Watchdog timeout"), "{}", story());
    all_are(&lives, "hung");
    println!("HUNG");

    // Whoever holds the scope may be lost too: the next VM has another.
    let holder = folder_of("stead.slice").join(&scope).join("stead.holder/cgroup.procs");
    apply("more", &bed::vm("more", ""));
    wait("one more VM", || life("more"));
    let held_by = fs::read_to_string(&holder).unwrap();
    assert_eq!(held_by.lines().count(), 1, "one process holds the scope: {held_by}");
    run("kill", &["-KILL", held_by.trim()]);
    apply("most", &bed::vm("most", ""));
    wait("and one more", || life("most"));
    let held_by_now = fs::read_to_string(&holder).unwrap();
    assert!(held_by_now.lines().count() == 1 && held_by_now != held_by, "{held_by_now}");

    // One that lacks something, and the status says so. Then nobody runs, and nothing stays but for stead.
    apply(
        "lost",
        &bed::vm("lost", "  disks:\n    - {name: root, image: /var/lib/stead/images/none.img, mode: copy}\n"),
    );
    wait("the status of who lacks something", || {
        (show("stead.service", "StatusText") == "5 running, 1 degraded").then_some(())
    });
    fs::remove_file(Path::new(MANIFESTS).join("lost.yaml")).unwrap();
    systemctl(&["restart", "stead.service"]);
    for name in ["most", "more", "web", "emu", "db"] {
        stop(name);
        wait(&format!("{name} stops"), || handles(name).is_none().then_some(()));
    }
    wait("the status of those", || (show("stead.service", "StatusText") == "5 stopped").then_some(()));
    // Nobody holds it: this stead has started no VM.
    is_gone(&scope);
    apply("web", &bed::vm("web", ""));
    wait("a VM in a new scope", || life("web"));
    stop("web");
    wait("it stops", || handles("web").is_none().then_some(()));
    systemctl(&["stop", "stead.service"]);
    is_gone(&scope);
}

pub fn a_pass_is_a_unit() {
    install();
    apply_all();
    // Ends with the pass.
    systemctl(&["start", "stead-reconcile.service"]);
    assert_eq!(show("stead-reconcile.service", "ActiveState"), "inactive");
    let lives = all_run();
    let scope = scope_of(&lives);
    all_are(&lives, "after the unit's end");
    systemctl(&["start", "stead-reconcile.service"]);
    all_are(&lives, "after another pass");

    // What died is started by the timer's pass.
    let (pid, _) = lives["db"];
    run("kill", &["-KILL", &pid.to_string()]);
    systemctl(&["start", "stead-reconcile.timer"]);
    let (_, incarnation) = wait("db lives again", || life("db").filter(|(now, _)| *now != pid));
    assert_eq!(incarnation, 2);
    systemctl(&["stop", "stead-reconcile.timer"]);
    wait("the pass ends", || (show("stead-reconcile.service", "ActiveState") != "activating").then_some(()));

    // The daemon takes over what passes have started, and the other way round.
    let lives = all_run();
    systemctl(&["start", "stead.service"]);
    all_are(&lives, "with the daemon");
    let pass = ends(Command::new("systemctl").args(["start", "stead-reconcile.service"]));
    assert!(pass.status.success(), "a pass beside the daemon is none, and no failure: {pass:?}");
    systemctl(&["stop", "stead.service"]);
    all_are(&lives, "after the daemon");
    ALL.into_iter().for_each(stop);
    systemctl(&["start", "stead-reconcile.service"]);
    for name in ALL {
        assert!(handles(name).is_none(), "{name} runs");
    }
    is_gone(&scope);
    assert_eq!(run("dmsetup", &["ls"]), "No devices found");
    assert!(bed::loops().is_empty(), "{:?}", bed::loops());
}

fn dpkg(args: &[&str]) -> String {
    let ended = ends(Command::new("dpkg").args(args).env("DEBIAN_FRONTEND", "noninteractive"));
    assert!(ended.status.success(), "dpkg {args:?}: {ended:?}\n{}", story());
    ended.stdout + &ended.stderr
}

/// Installs the package of this revision.
fn install_package(revision: &str) {
    dpkg(&["--install", &format!("/state/stead_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION"))]);
}

fn is_enabled(unit: &str) -> String {
    ends(Command::new("systemctl").args(["is-enabled", unit])).stdout.trim().to_owned()
}

pub fn the_package_comes_and_goes() {
    fs::copy("/bed/bin/firecracker", "/usr/local/bin/firecracker").unwrap();
    install_package("1");
    assert_eq!(show("stead.service", "ActiveState"), "active");
    assert_eq!(["stead.service", "stead-reconcile.timer"].map(is_enabled), ["enabled", "disabled"]);
    for page in ["stead", "stead-run", "stead-reconcile"] {
        run("gzip", &["-t", &format!("/usr/share/man/man1/{page}.1.gz")]);
    }
    run("bash", &["-n", "/usr/share/bash-completion/completions/stead"]);
    for kind in ["virtual-machine", "host", "configuration"] {
        let text = fs::read(format!("/usr/share/stead/schema/{kind}.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap();
    }
    assert!(run("stead", &["sources"]).contains(MANIFESTS), "the configuration file is understood");

    println!("INSTALLED");
    apply_all();
    let lives = all_run();
    let scope = scope_of(&lives);

    println!("STARTED {lives:?} in {scope}");
    // The other way to run it.
    systemctl(&["disable", "--now", "stead.service"]);
    systemctl(&["enable", "--now", "stead-reconcile.timer"]);
    let passed = || show("stead-reconcile.service", "ExecMainExitTimestampMonotonic").parse::<u64>().unwrap();
    wait("the timer's pass", || (passed() > 0).then_some(()));
    assert_eq!(show("stead-reconcile.service", "Result"), "success");
    all_are(&lives, "by the timer");
    systemctl(&["disable", "--now", "stead-reconcile.timer"]);
    wait("the pass ends", || (show("stead-reconcile.service", "ActiveState") != "activating").then_some(()));
    systemctl(&["enable", "--now", "stead.service"]);

    println!("RUN BY THE TIMER");
    let before = main_pid();
    install_package("2");
    comes_back(before);
    all_are(&lives, "upgraded");

    println!("UPGRADED");
    // What an administrator has stopped stays so.
    systemctl(&["disable", "--now", "stead.service"]);
    install_package("1");
    assert_eq!(show("stead.service", "ActiveState"), "inactive");
    assert_eq!(is_enabled("stead.service"), "disabled");
    systemctl(&["enable", "--now", "stead.service"]);

    println!("UPGRADED WHILE STOPPED");
    dpkg(&["--remove", "stead"]);
    assert_eq!(show("stead.service", "ActiveState"), "inactive");
    all_are(&lives, "removed");
    assert!(Path::new("/etc/stead/config.yaml").exists() && !Path::new("/usr/bin/stead").exists());
    install_package("2");
    assert_eq!([show("stead.service", "ActiveState"), is_enabled("stead.service")], ["active", "enabled"]);
    all_are(&lives, "installed again");

    println!("REMOVED AND INSTALLED AGAIN");
    let said = dpkg(&["--purge", "stead"]);
    assert!(said.contains("/var/lib/stead is left as it is"), "{said}");
    all_are(&lives, "purged");
    assert_eq!(show(&scope, "ActiveState"), "active");
    assert!(!Path::new("/etc/stead/config.yaml").exists() && Path::new(MANIFESTS).join("web.yaml").exists());

    println!("PURGED");
    // Nothing was lost by it.
    install_package("2");
    all_are(&lives, "installed after a purge");
    for name in ALL {
        stop(name);
        wait(&format!("{name} stops"), || handles(name).is_none().then_some(()));
        fs::remove_file(Path::new(MANIFESTS).join(format!("{name}.yaml"))).unwrap();
    }
    dpkg(&["--purge", "stead"]);
    is_gone(&scope);
    assert!(!Path::new("/etc/stead").exists(), "nobody's manifests were left in it");
}
