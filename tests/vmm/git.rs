//! VMs whose manifests come from a git repository, with a daemon and with cron.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use crate::bed::{Host, Vmm, manifest};

/// A host that follows a repository, and a folder beside it.
struct Followed {
    host: Host,
}

impl Followed {
    fn new() -> Self {
        let mut host = Host::new();
        let root = host.root.path().to_owned();
        let config = root.join("config.yaml");
        let text = format!(
            "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nsources:\n\
             - name: fleet\n  git: {{url: 'file://{0}/fleet', interval: 1h}}\n\
             - name: local\n  folder: {{path: {0}/m}}\n",
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
        let who = ["-c", "user.name=Ann", "-c", "user.email=ann@example.org"];
        let done = Command::new("git").args(who).args(arguments).current_dir(self.repository()).output().unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
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
