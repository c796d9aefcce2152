//! VMs whose manifests come from a git repository, with a daemon and with cron.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::bed::{Host, Vmm, manifest};

/// A host that follows a repository, and a folder beside it.
struct Followed {
    host: Host,
}

impl Followed {
    fn new() -> Self {
        Self::with("1h", "")
    }

    fn asked_each(interval: &str) -> Self {
        Self::with(interval, "")
    }

    /// Asked so often, and with more in its configuration.
    fn with(interval: &str, more: &str) -> Self {
        let mut host = Host::new();
        let root = host.root.path().to_owned();
        let config = root.join("config.yaml");
        let text = format!(
            "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nsources:\n\
             - name: fleet\n  git: {{url: 'file://{0}/fleet', interval: {interval}}}\n\
             - name: local\n  folder: {{path: {0}/m}}\n{more}",
            root.display()
        );
        fs::write(&config, text).unwrap();
        host.set_env("STEAD_CONFIG", &config.display().to_string());
        host.set_env("STEAD_MANIFESTS", "");
        let followed = Self { host };
        fs::create_dir(followed.repository()).unwrap();
        followed.git(&["init", "--quiet", "--initial-branch=main"]);
        // One that stays: a commit that declares nothing is taken for a mistake.
        followed.push(
            "stays.yaml",
            Some(&manifest("stays", Vmm::Firecracker).replace("spec:", "spec:\n  powerState: Stopped")),
        );
        followed
    }

    fn repository(&self) -> PathBuf {
        self.host.root.path().join("fleet")
    }

    fn git(&self, arguments: &[&str]) {
        self.output(arguments);
    }

    /// What git prints.
    fn output(&self, arguments: &[&str]) -> String {
        let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"];
        let done = Command::new("git").args(who).args(arguments).current_dir(self.repository()).output().unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    /// A commit in which this file says that, or is gone.
    fn push(&self, file: &str, text: Option<&str>) {
        let path = self.repository().join(file);
        match text {
            Some(text) => fs::write(path, text).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", file]);
    }

    /// A commit that adds these VMs, and one that takes them out.
    fn push_all(&self, names: &[String], declared: bool) {
        for name in names {
            let path = self.repository().join(format!("{name}.yaml"));
            if declared {
                fs::write(path, manifest(name, Vmm::Firecracker)).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "-m", "many"]);
    }

    /// What `stead plan` says that would let the deletions through which it shows: this many.
    #[track_caller]
    fn approval_of(&self, deletions: usize) -> String {
        let plan = self.host.run(&["plan"]);
        assert_eq!(plan.status.code(), Some(4), "{}", text(&plan));
        let plan = text(&plan);
        assert!(plan.contains(&format!("{deletions} held")), "{plan}");
        let digest = plan.split("stead approve ").nth(1).expect("the command that lets them through");
        digest.split_whitespace().next().unwrap().to_owned()
    }

    fn sync(&self) -> Output {
        self.host.run(&["sync"])
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_push_becomes_a_vm_and_what_goes_wrong_with_the_repository_stops_none() {
    let mut followed = Followed::new();
    followed.host.start_daemon();
    // The sync that it begins with is through.
    assert!(followed.sync().status.success());
    let web = manifest("web", Vmm::Firecracker);
    followed.push("web.yaml", Some(&web));
    let synced = followed.sync();
    assert!(synced.status.success() && text(&synced).contains("fleet: applied"), "{}", text(&synced));
    let life = followed.host.running("web");
    // What is done says which commit asked for it.
    let commit = followed.output(&["rev-parse", "HEAD"]);
    let events = text(&followed.host.run(&["events", "-o", "json"]));
    for place in [
        format!("\"source\":{{\"name\":\"fleet\",\"commit\":\"{commit}\"}}"),
        format!("\"source\":{{\"name\":\"fleet\",\"path\":\"web.yaml\",\"line\":1,\"commit\":\"{commit}\"}}"),
    ] {
        assert!(events.contains(&place), "{place} is not in\n{events}");
    }
    assert!(text(&followed.sync()).contains("fleet: up to date"));

    followed.push("web.yaml", Some("kind: [VirtualMachine\n"));
    let refused = followed.sync();
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("web.yaml"), "{}", text(&refused));
    let sources = followed.host.run(&["sources", "fleet"]);
    assert_eq!(sources.status.code(), Some(2));
    for part in ["ManifestsInvalid", "web.yaml", "Ann <ann@example.org>", "stays.yaml"] {
        assert!(text(&sources).contains(part), "{part}: {}", text(&sources));
    }
    let away = followed.host.root.path().join("away");
    fs::rename(followed.repository(), &away).unwrap();
    assert!(!followed.sync().status.success());
    fs::rename(away, followed.repository()).unwrap();
    assert_eq!(followed.host.life("web"), Some(life.clone()));

    // From one source to the other: as long as one of them declares it, it is not touched.
    followed.host.apply("web.yaml", &web);
    followed.push("web.yaml", None);
    assert!(followed.sync().status.success());
    crate::bed::wait("it is the folder's", || {
        (followed.host.ledger("web")?["accepted"]["origin"]["source"] == "local").then_some(())
    });
    assert_eq!(followed.host.life("web"), Some(life.clone()));
    followed.host.remove("web.yaml");
    followed.host.gone("web", &life);

    // Back to the commit that had it, and on again.
    followed.push("db.yaml", Some(&manifest("db", Vmm::Qemu)));
    assert!(followed.sync().status.success());
    let db = followed.host.running("db");
    let back = followed.host.run(&["rollback", "fleet"]);
    assert!(back.status.success(), "{}", text(&back));
    followed.host.gone("db", &db);
    assert!(text(&followed.sync()).contains("rolled back"));
    assert!(followed.host.run(&["rollback", "fleet", "--release"]).status.success());
    assert!(followed.sync().status.success());
    followed.host.running("db");
    assert_eq!(followed.host.stop_daemon(), Some(0));
}

#[test]
fn cron_follows_a_repository_and_says_nothing_when_nothing_changed() {
    let followed = Followed::new();
    followed.push("web.yaml", Some(&manifest("web", Vmm::Firecracker)));
    let first = followed.host.once(0);
    assert!(first.contains("web: started"), "{first}");
    let life = followed.host.running("web");
    let again = followed.host.run(&["reconcile", "--once"]);
    assert!(again.status.success() && text(&again).is_empty(), "{}", text(&again));

    followed.push("web.yaml", Some("memory: 1\n"));
    let broken = followed.host.run(&["reconcile", "--once"]);
    assert_eq!(broken.status.code(), Some(2));
    assert_eq!(text(&broken).lines().count(), 1, "{}", text(&broken));
    assert!(text(&broken).starts_with("fleet: not followed, what was in force stays in force"), "{}", text(&broken));
    assert_eq!(followed.host.life("web"), Some(life.clone()));

    followed.push("web.yaml", None);
    followed.host.once(0);
    followed.host.gone("web", &life);
}

/// A repository as a git server has it, whose hook tells a running stead of each push.
struct Hooked {
    followed: Followed,
    header: PathBuf,
}

const TOKEN: &str = "a-token-that-nobody-guesses";

impl Hooked {
    /// With stead listening there; what stands in `{root}` is the host's folder.
    fn new(listen: &str) -> Self {
        let mut followed = Followed::new();
        let root = followed.host.root.path().display().to_string();
        let at = |file: &str| followed.host.root.path().join(file);
        let (token, header, config) = (at("token"), at("header"), at("config.yaml"));
        for (file, text) in [(&token, TOKEN.to_owned()), (&header, format!("Authorization: Bearer {TOKEN}\n"))] {
            fs::write(file, text).unwrap();
            fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
        }
        let text = format!(
            "{}push: {{listen: '{}', tokenFile: {root}/token}}\n",
            fs::read_to_string(&config)
                .unwrap()
                .replace(&format!("file://{root}/fleet"), &format!("file://{root}/bare")),
            listen.replace("{root}", &root)
        );
        fs::write(config, text).unwrap();
        followed.git(&["clone", "--quiet", "--bare", &format!("{root}/fleet"), &format!("{root}/bare")]);
        followed.git(&["remote", "add", "origin", &format!("{root}/bare")]);
        followed.host.start_daemon();
        // The sync that it begins with is through, and the next one is far off.
        assert!(followed.sync().status.success());
        Self { followed, header }
    }

    /// The hook that the documentation shows, of this host: the first of them, or the second.
    fn hook(&self, number: usize, replaced: &[(&str, &str)]) {
        let page = include_str!("../../docs/gitops.md");
        let sample = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).nth(number).unwrap();
        let mut hook = sample.replace("/etc/git/stead-push-header", &self.header.display().to_string());
        for (from, to) in replaced {
            assert!(hook.contains(from), "{hook}");
            hook = hook.replace(from, to);
        }
        let file = self.root().join("bare/hooks/post-receive");
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, hook).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn root(&self) -> &Path {
        self.followed.host.root.path()
    }

    /// What the hook does, by hand; gives the answer's status.
    fn post(&self, token: &str) -> String {
        let mut client = UnixStream::connect(self.root().join("push.sock")).unwrap();
        write!(client, "POST /sync/fleet HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer {token}\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    /// A commit that is pushed to the server; gives what the pusher is told.
    fn push(&self, file: &str, said: Option<&str>) -> String {
        self.followed.push(file, said);
        let mut command = Command::new("git");
        command.args(["push", "--quiet", "origin", "main"]).current_dir(self.followed.repository());
        let done = command.output().unwrap();
        let told = text(&done);
        assert!(done.status.success(), "{told}");
        told
    }
}

#[test]
fn a_push_wakes_a_stead_that_would_ask_in_an_hour_through_its_socket() {
    let mut hooked = Hooked::new("unix:{root}/push.sock");
    let socket = hooked.root().join("push.sock");
    hooked.hook(0, &[("/run/stead-push/push.sock", socket.to_str().unwrap())]);
    let told = hooked.push("web.yaml", Some(&manifest("web", Vmm::Firecracker)));
    assert!(told.contains("will be asked now: fleet"), "{told}");
    let life = hooked.followed.host.running("web");
    // A push without the right token changes nothing, and says so to who made it.
    fs::write(&hooked.header, "Authorization: Bearer one-of-somebody-else\n").unwrap();
    let told = hooked.push("web.yaml", None);
    assert!(told.contains("401"), "{told}");
    assert!(hooked.followed.host.log().contains("its token is wrong"));
    assert!((0..100).all(|_| hooked.post("one-of-somebody-else") == "401"));
    assert_eq!(hooked.followed.host.log().matches("was refused").count(), 1, "{}", hooked.followed.host.log());
    assert!(!hooked.followed.host.log().contains(TOKEN));
    assert_eq!(hooked.followed.host.life("web"), Some(life.clone()));
    fs::write(&hooked.header, format!("Authorization: Bearer {TOKEN}\n")).unwrap();
    hooked.push("db.yaml", Some(&manifest("db", Vmm::Firecracker)));
    hooked.followed.host.running("db");
    hooked.followed.host.gone("web", &life);
    // Killed, it leaves its socket; the next one has it.
    hooked.followed.host.kill_daemon();
    assert!(socket.exists());
    hooked.followed.host.start_daemon();
    hooked.push("web.yaml", Some(&manifest("web", Vmm::Firecracker)));
    hooked.followed.host.running("web");
    assert_eq!(hooked.followed.host.stop_daemon(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn a_push_wakes_a_stead_through_a_loopback_address() {
    // Nobody else is given this port right after it was somebody's.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut hooked = Hooked::new(&port.to_string());
    hooked.hook(1, &[("127.0.0.1:9440", &port.to_string())]);
    let told = hooked.push("web.yaml", Some(&manifest("web", Vmm::Firecracker)));
    assert!(told.contains("will be asked now: fleet"), "{told}");
    hooked.followed.host.running("web");
    assert_eq!(hooked.followed.host.stop_daemon(), Some(0));
}

#[test]
fn a_stead_that_cannot_listen_for_pushes_says_why_and_does_not_start() {
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = occupied.local_addr().unwrap();
    let followed = Followed::with("1h", &format!("push: {{listen: '{port}', tokenFile: /nowhere/token}}\n"));
    let config = followed.host.root.path().join("config.yaml");
    let refused = |status: i32, part: &str| {
        let run = followed.host.run(&["run"]);
        assert!(run.status.code() == Some(status) && text(&run).contains(part), "{}", text(&run));
    };
    refused(1, "the token file /nowhere/token");
    let token = followed.host.root.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let with_token = fs::read_to_string(&config).unwrap().replace("/nowhere/token", token.to_str().unwrap());
    fs::write(&config, &with_token).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o640)).unwrap();
    refused(1, "mode 0640");
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    refused(1, &format!("cannot listen for pushes on {port}: "));
    fs::write(&config, with_token.replace(&port.to_string(), "192.0.2.1:9440")).unwrap();
    refused(78, "put a proxy with TLS before it");
    // A pass of cron listens to nobody, so it is none the worse for it.
    fs::write(&config, with_token).unwrap();
    followed.host.once(0);
}

#[test]
fn a_commit_that_removes_most_vms_is_held_until_just_that_plan_is_approved() {
    let mut followed = Followed::new();
    followed.host.set_env("STEAD_TIMEOUT", "5m");
    let names: Vec<String> = (0..100).map(|number| format!("vm-{number:02}")).collect();
    followed.push_all(&names, true);
    followed.host.once(0);
    let lives: Vec<_> = names.iter().map(|name| followed.host.running(name)).collect();
    let all_live_on = || {
        for (name, life) in names.iter().zip(&lives) {
            assert_eq!(followed.host.life(name).as_ref(), Some(life), "{name}");
        }
    };

    followed.push_all(&names[..60], false);
    let held = followed.host.once(4);
    let first = followed.approval_of(60);
    assert!(held.contains(&format!("stead approve {first}")), "{held}");
    all_live_on();

    // What was approved, by a stead that was killed right then, is not what there is now.
    let file = followed.host.state().join("gates.json");
    let approve = |digest: &str, vms: &[String]| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec * 1000;
        let at = serde_json::json!({"boot_id": boot.trim(), "boot_ms": now});
        let approval = serde_json::json!({"digest": digest, "vms": vms, "at": at});
        let gates = serde_json::json!({"version": 1, "deletions": [], "approval": approval});
        fs::write(&file, gates.to_string()).unwrap();
        fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    };
    let gates = || fs::read_to_string(&file).unwrap();
    approve(&first, &names[..60]);
    followed.push_all(&names[60..61], false);
    followed.host.once(4);
    let second = followed.approval_of(61);
    assert_ne!(first, second);
    all_live_on();
    assert!(!gates().contains(&first), "the approval is not void: {}", gates());
    // Nor what was approved before the files came back.
    followed.push_all(&names[..61], true);
    approve(&second, &names[..61]);
    followed.host.once(0);
    assert!(!gates().contains(&second), "the approval is not void: {}", gates());
    followed.push_all(&names[..61], false);
    followed.host.once(4);
    assert_eq!(followed.approval_of(61), second);
    all_live_on();
    let refused = followed.host.run(&["approve", &first]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("the plan has changed"), "{}", text(&refused));

    let approved = followed.host.run(&["approve", &second]);
    assert_eq!(approved.status.code(), Some(0), "{}", text(&approved));
    for (name, life) in names.iter().zip(&lives).take(61) {
        followed.host.gone(name, life);
    }
    for (name, life) in names.iter().zip(&lives).skip(61) {
        assert_eq!(followed.host.life(name).as_ref(), Some(life), "{name}");
    }
    // It was for that plan alone.
    followed.push_all(&names[61..90], false);
    followed.host.once(4);
    followed.approval_of(29);
}

#[test]
fn a_daemon_whose_repository_cannot_be_asked_or_read_when_it_starts_keeps_all_vms_and_follows_it_again() {
    let mut followed = Followed::asked_each("1s");
    followed.push("web.yaml", Some(&manifest("web", Vmm::Firecracker)));
    followed.host.once(0);
    let life = followed.host.running("web");
    let away = followed.host.root.path().join("away");
    fs::rename(followed.repository(), &away).unwrap();
    let kept = followed.host.state().join("sources/fleet/repository.git");
    // First the server is gone; then what was fetched from it too.
    for is_lost in [false, true] {
        if is_lost {
            fs::remove_dir_all(&kept).unwrap();
        }
        followed.host.start_daemon();
        assert_eq!(followed.sync().status.code(), Some(1));
        let sources = followed.host.run(&["sources", "fleet"]);
        assert!(text(&sources).contains("FetchFailed"), "{}", text(&sources));
        // One that no manifest declares any more goes meanwhile.
        followed.host.apply("goes.yaml", &manifest("goes", Vmm::Firecracker));
        let goes = followed.host.running("goes");
        followed.host.remove("goes.yaml");
        followed.host.gone("goes", &goes);
        assert_eq!(followed.host.life("web"), Some(life.clone()), "lost: {is_lost}");
        if !is_lost {
            assert_eq!(followed.host.stop_daemon(), Some(0));
        }
    }
    fs::rename(away, followed.repository()).unwrap();
    followed.push("db.yaml", Some(&manifest("db", Vmm::Firecracker)));
    // Nobody tells it.
    followed.host.running("db");
    assert_eq!(followed.host.life("web"), Some(life.clone()));
    followed.push("web.yaml", None);
    followed.host.gone("web", &life);
    assert_eq!(followed.host.stop_daemon(), Some(0));
}

/// How long it takes from a hook's request until the commit that was pushed is in force, beside the least that any program could
/// do to have its files: `git fetch` and `git checkout`. In pairs, so that what else the machine does meets both alike.
///
/// `STEAD_PUSHES=n` makes so many, and holds the ratio of the medians against a bound; else it is seen that it can be taken.
#[test]
fn a_push_is_in_force_soon() {
    let pairs: usize = std::env::var("STEAD_PUSHES").ok().map_or(2, |pairs| pairs.parse().unwrap());
    let hooked = Hooked::new("unix:{root}/push.sock");
    let record = hooked.followed.host.state().join("sources/fleet/sync.json");
    let clone = hooked.root().join("clone");
    hooked.followed.git(&["clone", "--quiet", hooked.root().join("bare").to_str().unwrap(), clone.to_str().unwrap()]);
    let own = |arguments: &[&str]| {
        assert!(Command::new("git").args(arguments).current_dir(&clone).status().unwrap().success());
    };
    let (mut ours, mut least) = (Vec::new(), Vec::new());
    for number in 0..pairs {
        let text = manifest("stays", Vmm::Firecracker).replace("spec:", "spec:\n  powerState: Stopped");
        hooked.push("stays.yaml", Some(&format!("# {number}\n{text}")));
        let commit = hooked.followed.output(&["rev-parse", "HEAD"]);
        let mut fetched = || {
            let begin = Instant::now();
            own(&["fetch", "--quiet", "origin", "main"]);
            own(&["checkout", "--quiet", "--detach", "FETCH_HEAD"]);
            least.push(begin.elapsed());
        };
        let mut in_force = || {
            let begin = Instant::now();
            assert_eq!(hooked.post(TOKEN), "202");
            crate::bed::wait("it is in force", || fs::read_to_string(&record).ok()?.contains(&commit).then_some(()));
            ours.push(begin.elapsed());
            // What it does behind that is through, too.
            assert!(hooked.followed.sync().status.success());
        };
        if number % 2 == 0 {
            fetched();
            in_force();
        } else {
            in_force();
            fetched();
        }
    }
    let median = |mut all: Vec<Duration>| {
        all.sort_unstable();
        all[all.len() / 2].as_secs_f64() * 1000.0
    };
    let (ours, least) = (median(ours), median(least));
    println!("in force after {ours:.1} ms, git fetch and checkout {least:.1} ms: {:.2} times", ours / least);
    assert!(pairs < 15 || ours < 2.5 * least, "{ours:.1} ms and {least:.1} ms");
}
