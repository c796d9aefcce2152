//! One repository for many hosts: each in a network namespace of its own, with a git server between them.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bed::{BOUND, Host, Vmm, manifest, wait};

/// How often each host asks the server.
const INTERVAL: Duration = Duration::from_secs(1);
/// The prune delay of the hosts of these tests.
const PRUNE_DELAY: Duration = Duration::from_millis(200);
/// How long a guest of these tests may take to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Hosts a1, a2 and a3, and a git server, each in its namespace.
struct Fleet {
    hosts: Vec<Host>,
    namespaces: Vec<String>,
    server: Option<Child>,
    folder: tempfile::TempDir,
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Fleet {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("fl").tempdir_in("/tmp").unwrap();
        let mut fleet = Self { hosts: Vec::new(), namespaces: Vec::new(), server: None, folder };
        let server = fleet.namespace("s");
        ip(&["-n", &server, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &server, "addr", "add", "10.77.0.100/24", "dev", "br0"]);
        ip(&["-n", &server, "link", "set", "br0", "up"]);
        fs::create_dir(fleet.repository()).unwrap();
        fleet.git(&["init", "--quiet", "--initial-branch=main"]);
        fleet.serve();
        for number in 1..=3 {
            fleet.add_host(number);
        }
        fleet
    }

    fn namespace(&mut self, what: &str) -> String {
        let name = format!("stead-{}-{what}", std::process::id());
        ip(&["netns", "add", &name]);
        self.namespaces.push(name.clone());
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        name
    }

    fn serve(&mut self) {
        let base = format!("--base-path={}", self.folder.path().display());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespaces[0], "git", "daemon", "--export-all", "--reuseaddr", &base]);
        command.args(["--listen=10.77.0.100"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
    }

    fn add_host(&mut self, number: u8) {
        let (server, here) = (self.namespaces[0].clone(), self.namespace(&number.to_string()));
        let port = format!("p{number}");
        ip(&["-n", &server, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &here]);
        ip(&["-n", &server, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &here, "addr", "add", &format!("10.77.0.{number}/24"), "dev", "eth0"]);
        ip(&["-n", &here, "link", "set", "eth0", "up"]);
        let mut host = Host::new();
        let config = host.root.path().join("config.yaml");
        let text = format!(
            "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nhost: {{name: a{number}}}\nsources:\n\
             - name: fleet\n  git: {{url: 'git://10.77.0.100/repository', interval: {INTERVAL:?}}}\n"
        );
        fs::write(&config, text).unwrap();
        host.set_env("STEAD_CONFIG", &config.display().to_string());
        host.set_env("STEAD_MANIFESTS", "");
        host.set_namespace(&here);
        self.hosts.push(host);
    }

    fn repository(&self) -> PathBuf {
        self.folder.path().join("repository")
    }

    fn git(&self, arguments: &[&str]) {
        let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"];
        let done = Command::new("git").args(who).args(arguments).current_dir(self.repository()).output().unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    /// A commit in which these files say that.
    fn push(&self, files: &[(&str, &str)]) {
        for (file, text) in files {
            fs::write(self.repository().join(file), text).unwrap();
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", files[0].0]);
    }

    /// What `stead sources` says of the repository on each host.
    fn statuses(&self) -> Vec<String> {
        let of = |host: &Host| {
            let shown = host.run(&["sources", "-o", "json"]).stdout;
            serde_json::from_slice::<serde_json::Value>(&shown).unwrap()[0]["status"].as_str().unwrap().to_owned()
        };
        self.hosts.iter().map(of).collect()
    }

    /// Waits until every host says so of the repository.
    #[track_caller]
    fn all_say(&self, status: &str) {
        wait(&format!("{status} on all hosts: {:?}", self.statuses()), || {
            self.statuses().iter().all(|said| said == status).then_some(())
        });
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
        // Their VMs end before the namespace does in which they live.
        self.hosts.clear();
        for name in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

fn hosts(list: &[(&str, &str)]) -> String {
    let host = |(name, zone): &(&str, &str)| {
        format!("apiVersion: stead.dev/v1alpha1\nkind: Host\nmetadata: {{name: {name}, labels: {{zone: {zone}}}}}\n")
    };
    list.iter().map(host).collect::<Vec<_>>().join("---\n")
}

fn placed(name: &str, selector: &str) -> String {
    manifest(name, Vmm::Firecracker) + &format!("  hostSelector: {selector}\n")
}

#[test]
fn a_repository_for_three_hosts_has_each_vm_on_one_of_them() {
    let mut fleet = Fleet::new();
    let listed = hosts(&[("a1", "north"), ("a2", "south"), ("a3", "west")]);
    fleet.push(&[
        ("hosts.yaml", &listed),
        ("web.yaml", &placed("web", "{matchLabels: {zone: north}}")),
        ("db.yaml", &placed("db", "{matchLabels: {stead.dev/hostname: a2}}")),
    ]);
    fleet.hosts.iter_mut().for_each(Host::start_daemon);
    let web = fleet.hosts[0].running("web");
    let db = fleet.hosts[1].running("db");
    fleet.all_say("Followed");
    let counts: Vec<usize> = fleet.hosts.iter().map(|host| host.processes().len()).collect();
    assert_eq!(counts, [1, 1, 0]);

    // What two could claim is refused by all, and what runs goes on.
    fleet.push(&[("web.yaml", &placed("web", "{matchExpressions: [{key: zone, operator: NotIn, values: [north]}]}"))]);
    fleet.all_say("ManifestsInvalid");
    assert_eq!(fleet.hosts[0].life("web"), Some(web.clone()));

    // From one host to another: never on both for longer than docs/fleet.md says.
    fleet.push(&[("web.yaml", &placed("web", "{matchLabels: {zone: west}}"))]);
    let begin = Instant::now();
    let (mut both_since, mut overlap) = (None::<Instant>, Duration::ZERO);
    loop {
        let lives = (fleet.hosts[0].life("web"), fleet.hosts[2].life("web"));
        if matches!(lives, (Some(_), Some(_))) {
            overlap = both_since.get_or_insert_with(Instant::now).elapsed();
        }
        if matches!(lives, (None, Some(_))) {
            break;
        }
        assert!(begin.elapsed() < BOUND, "web does not move: {lives:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    let bound = INTERVAL.mul_f64(1.1) + PRUNE_DELAY + GRACE + Duration::from_secs(5);
    println!("on both hosts for {overlap:?}, of {bound:?} at most");
    assert!(overlap < bound, "on both hosts for {overlap:?}");
    fleet.hosts[0].gone("web", &web);
    assert!(fleet.hosts[0].log().contains("for another host"), "{}", fleet.hosts[0].log());

    // A host that is taken off the list keeps what it has: it may be its name that is wrong.
    let two = hosts(&[("a1", "north"), ("a3", "west")]);
    fleet.push(&[("hosts.yaml", &two), ("db.yaml", &placed("db", "{matchLabels: {zone: north}}"))]);
    wait("a2 does not know whether it is meant", || (fleet.statuses()[1] == "HostUnclear").then_some(()));
    assert_eq!(fleet.hosts[1].life("db"), Some(db));
    fleet.hosts.iter_mut().for_each(|host| assert_eq!(host.stop_daemon(), Some(0)));
}

#[test]
fn a_host_whose_name_changed_by_itself_keeps_what_it_has() {
    let mut host = Host::new();
    let config = host.root.path().join("config.yaml");
    let configure = |more: &str| {
        let folder = config.with_file_name("m");
        let sources = format!("sources: [{{name: local, folder: {{path: {}}}}}]\n", folder.display());
        fs::write(&config, format!("apiVersion: stead.dev/v1alpha1\nkind: Configuration\n{sources}{more}")).unwrap();
    };
    configure("host: {name: a1}\n");
    host.set_env("STEAD_CONFIG", &config.display().to_string());
    host.set_env("STEAD_MANIFESTS", "");
    host.apply("web.yaml", &placed("web", "{matchLabels: {stead.dev/hostname: a1}}"));
    host.once(0);
    let life = host.running("web");

    configure("");
    let held = host.once(2);
    assert!(held.contains("this host was called a1"), "{held}");
    assert_eq!(host.life("web"), Some(life.clone()));
    configure("host: {name: b1}\n");
    let done = host.once(0);
    assert!(done.contains("web: deleted"), "{done}");
    host.gone("web", &life);
}
