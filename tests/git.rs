//! Git sources against real repositories: what is followed, and everything that leaves the last good commit in force.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what users and servers do")]

mod prepared;

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prepared::home::git_source;
use stead::desired::hosts::{HostIdentity, Labels};
use stead::desired::{Desired, SourceName};
use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::sync::{GitSource, GitUrl, Reference, Signed, SyncError, Synced, Syncer, Verify};

const VM: &str = "apiVersion: stead.dev/v1alpha1
kind: VirtualMachine
metadata: {name: NAME}
spec: {memory: 128Mi, boot: {kernel: /k}, powerState: Stopped}
";

fn vm(name: &str) -> String {
    VM.replace("NAME", name)
}

/// A repository that its users push to, and a host that follows it.
struct Bed {
    folder: tempfile::TempDir,
    name: SourceName,
    host: LinuxHost,
    here: Arc<HostIdentity>,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = LinuxHostConfig { firecracker: None, qemu: None };
        let here = HostIdentity::new("a1".into(), Labels::new(), None, "x86_64".into());
        let (name, host) = (SourceName("fleet".into()), LinuxHost::new(config).unwrap());
        let bed = Self { folder, name, host, here: Arc::new(here) };
        std::fs::create_dir(bed.origin()).unwrap();
        bed.git(&["init", "--quiet", "--initial-branch=main"]);
        bed
    }

    fn origin(&self) -> PathBuf {
        self.folder.path().join("origin")
    }

    /// git as a user runs it.
    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.folder.path());
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ann").env(format!("GIT_{who}_EMAIL"), "ann@example.org");
        }
        command.current_dir(self.origin());
        command
    }

    fn git(&self, arguments: &[&str]) -> String {
        let done = self.command().args(arguments).output().unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.origin().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Commits all that is there; gives the commit.
    fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn url(&self) -> String {
        format!("file://{}", self.origin().display())
    }

    fn source(&self) -> GitSource {
        git_source(&self.origin())
    }

    fn kept(&self) -> PathBuf {
        self.folder.path().join("state/sources/fleet")
    }

    fn syncer<'a>(&'a self, source: &'a GitSource) -> Syncer<'a> {
        Syncer::new(&self.host, &self.name, source, &self.here, self.kept())
    }

    /// One commit with these VMs, followed.
    fn followed(&self, names: &[&str]) -> String {
        for name in names {
            self.write(&format!("{name}.yaml"), &vm(name));
        }
        let commit = self.commit("good");
        let source = self.source();
        let Synced::Applied(taken) = self.syncer(&source).sync().unwrap() else { panic!("nothing new") };
        assert_eq!(taken.commit.commit, commit);
        assert_eq!(taken.desired, self.syncer(&source).in_force());
        commit
    }

    /// A sync that fails for this reason and leaves in force what was, and says why for as long as it is so.
    #[track_caller]
    fn stays(&self, source: &GitSource, reason: &str) -> SyncError {
        let before = self.syncer(&self.source()).in_force();
        let applied = self.syncer(source).record().unwrap().applied;
        let error = self.syncer(source).sync().unwrap_err();
        assert_eq!(error.reason(), reason, "{}", error.one_line());
        let record = self.syncer(source).record().unwrap();
        assert_eq!(record.applied, applied);
        assert_eq!(record.failure.unwrap().message, error.one_line());
        assert_eq!(self.syncer(&self.source()).in_force(), before);
        error
    }

    /// And what is good again is followed.
    #[track_caller]
    fn recovers(&self, names: &[&str]) {
        let source = self.source();
        assert!(matches!(self.syncer(&source).sync().unwrap(), Synced::Applied(_)));
        let record = self.syncer(&source).record().unwrap();
        assert_eq!(record.failure, None);
        assert_eq!(declared(&self.syncer(&source).in_force()), names);
    }
}

fn declared(desired: &Desired) -> Vec<&str> {
    desired.vms.keys().map(stead::names::VmName::as_str).collect()
}

#[test]
fn a_branch_is_followed_and_its_manifests_are_in_force_as_a_whole() {
    let bed = Bed::new();
    let source = bed.source();
    let never = bed.syncer(&source).in_force();
    assert!(!never.sources[&bed.name].is_complete(), "before the first sync nothing may be taken for absent");
    bed.followed(&["db", "web"]);
    let desired = bed.syncer(&source).in_force();
    assert_eq!(declared(&desired), ["db", "web"]);
    assert!(desired.sources[&bed.name].is_complete() && desired.problems.is_empty());
    // Other files are none of ours, wherever and whatever they are.
    bed.write("README.md", "# fleet");
    bed.write(".github/ci.yaml", "on: push");
    bed.write("deep/down/cache.yml", &vm("cache"));
    std::fs::remove_file(bed.origin().join("db.yaml")).unwrap();
    let commit = bed.commit("one goes, one comes");
    let Synced::Applied(taken) = bed.syncer(&source).sync().unwrap() else { panic!() };
    assert_eq!(taken.desired, bed.syncer(&source).in_force());
    let applied = taken.commit;
    assert_eq!((applied.commit.as_str(), applied.author.as_str()), (commit.as_str(), "Ann <ann@example.org>"));
    assert_eq!(applied.subject, "one goes, one comes");
    assert_eq!(declared(&bed.syncer(&source).in_force()), ["cache", "web"]);
    let below = GitSource { path: "deep".into(), ..bed.source() };
    // Another path in the configuration is taken up by a sync, like another commit, if what is below it is sound.
    for wrong in [".github", "no/such", "README.md"] {
        let elsewhere = GitSource { path: wrong.into(), ..bed.source() };
        assert_eq!(declared(&bed.syncer(&elsewhere).in_force()), ["cache", "web"], "{wrong}");
        bed.stays(&elsewhere, if wrong == ".github" { "ManifestsInvalid" } else { "TreeRefused" });
    }
    assert!(matches!(bed.syncer(&below).sync().unwrap(), Synced::Applied(_)));
    assert_eq!(declared(&bed.syncer(&below).in_force()), ["cache"]);
}

#[test]
fn a_sync_with_nothing_new_writes_nothing() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let source = bed.source();
    let stamp = || std::fs::metadata(bed.kept().join("sync.json")).unwrap().modified().unwrap();
    let before = stamp();
    assert_eq!(bed.syncer(&source).sync().unwrap(), Synced::UpToDate);
    assert_eq!(stamp(), before);
}

#[test]
fn tags_and_commits_are_followed_too() {
    let bed = Bed::new();
    let first = bed.followed(&["web"]);
    bed.git(&["tag", "-a", "-m", "one", "v1"]);
    bed.write("db.yaml", &vm("db"));
    bed.commit("later");
    bed.recovers(&["db", "web"]);
    let tag = GitSource { reference: Reference::Tag("v1".into()), ..bed.source() };
    assert!(matches!(bed.syncer(&tag).sync().unwrap(), Synced::Applied(taken) if taken.commit.commit == first));
    assert_eq!(declared(&bed.syncer(&tag).in_force()), ["web"]);
    let second = bed.git(&["rev-parse", "main"]);
    let commit = GitSource { reference: Reference::Commit(second.clone()), ..bed.source() };
    assert!(matches!(bed.syncer(&commit).sync().unwrap(), Synced::Applied(taken) if taken.commit.commit == second));
}

#[test]
fn a_server_that_is_gone_and_a_branch_that_is_gone_stop_no_vm() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let away = bed.folder.path().join("away");
    std::fs::rename(bed.origin(), &away).unwrap();
    bed.stays(&bed.source(), "FetchFailed");
    std::fs::rename(&away, bed.origin()).unwrap();
    bed.git(&["branch", "-m", "main", "other"]);
    let error = bed.stays(&bed.source(), "FetchFailed");
    assert!(error.to_string().contains("refs/heads/main"), "{error}");
    bed.git(&["branch", "-m", "other", "main"]);
    // A name that does not resolve: `.invalid` never does (RFC 6761).
    let nowhere = GitSource { url: GitUrl::new("https://fleet.invalid/x.git").unwrap(), ..bed.source() };
    bed.stays(&nowhere, "FetchFailed");
    let missing = GitSource { url: GitUrl::new("file:///no/such/repository").unwrap(), ..bed.source() };
    bed.stays(&missing, "FetchFailed");
}

#[test]
fn an_empty_repository_is_no_reason_to_stop_anything() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let empty = bed.folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let done = bed.command().args(["init", "--quiet", "--bare", "--initial-branch=main"]).arg(&empty).status().unwrap();
    assert!(done.success());
    let url = GitUrl::new(&format!("file://{}", empty.display())).unwrap();
    bed.stays(&GitSource { url, ..bed.source() }, "FetchFailed");
}

#[test]
fn a_server_that_speaks_no_tls_or_nothing_at_all_is_not_waited_for_long() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let garbage = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = |listener: &TcpListener| {
        GitUrl::new(&format!("https://127.0.0.1:{}/fleet.git", listener.local_addr().unwrap().port())).unwrap()
    };
    let (not_tls, says_nothing) = (url(&garbage), url(&silent));
    std::thread::spawn(move || {
        for mut peer in garbage.incoming().take(8).flatten() {
            let _ = peer.write_all(b"220 this is no web server\r\n");
        }
    });
    bed.stays(&GitSource { url: not_tls, ..bed.source() }, "FetchFailed");
    let hurried = GitSource { url: says_nothing, timeout: Duration::from_millis(500), ..bed.source() };
    bed.stays(&hurried, "TimedOut");
    drop(silent);
    bed.write("db.yaml", &vm("db"));
    bed.commit("more");
    bed.recovers(&["db", "web"]);
}

#[test]
fn a_rewritten_history_is_held_unless_it_is_to_be_followed() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    bed.write("db.yaml", &vm("db"));
    bed.commit("second");
    bed.recovers(&["db", "web"]);
    bed.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    let error = bed.stays(&bed.source(), "ForcePushed");
    assert!(error.to_string().contains("forcePush: Follow"), "{error}");
    let follows = GitSource { follow_force_push: true, ..bed.source() };
    assert!(matches!(bed.syncer(&follows).sync().unwrap(), Synced::Applied(_)));
    assert_eq!(declared(&bed.syncer(&follows).in_force()), ["web"]);
    // Also one that has nothing in common with what was in force.
    bed.git(&["checkout", "--quiet", "--orphan", "fresh"]);
    bed.commit("from nothing");
    bed.git(&["branch", "-M", "fresh", "main"]);
    bed.stays(&bed.source(), "ForcePushed");
}

#[test]
fn one_broken_manifest_among_fifty_holds_the_whole_commit() {
    let bed = Bed::new();
    let names: Vec<String> = (0..50).map(|number| format!("vm-{number:02}")).collect();
    bed.followed(&names.iter().map(String::as_str).collect::<Vec<_>>());
    bed.write("vm-07.yaml", &vm("vm-07").replace("128Mi", "128MiB"));
    bed.write("vm-99.yaml", &vm("vm-99"));
    bed.commit("half of it is wrong");
    let error = bed.stays(&bed.source(), "ManifestsInvalid");
    assert!(error.to_string().contains("vm-07.yaml:4"), "{error}");
    for (text, what) in [("a: [b\n", "no YAML"), ("\u{0}", "no text"), (vm("vm-08").as_str(), "another's name")] {
        bed.write("vm-07.yaml", text);
        bed.commit(what);
        assert!(bed.syncer(&bed.source()).sync().is_err(), "{what}");
        assert_eq!(bed.syncer(&bed.source()).in_force().vms.len(), 50, "{what}");
    }
    bed.write("vm-07.yaml", &vm("vm-07"));
    bed.commit("mended");
    let mut all: Vec<&str> = names.iter().map(String::as_str).collect();
    all.push("vm-99");
    bed.recovers(&all);
}

#[test]
fn a_commit_without_manifests_or_without_its_folder_is_taken_for_a_mistake() {
    let bed = Bed::new();
    bed.write("hosts/web.yaml", &vm("web"));
    bed.commit("good");
    let source = GitSource { path: "hosts".into(), ..bed.source() };
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Applied(_)));
    bed.git(&["mv", "hosts/web.yaml", "web.yaml"]);
    bed.commit("another place");
    assert_eq!(bed.syncer(&source).sync().unwrap_err().reason(), "TreeRefused");
    bed.write("hosts/README", "nothing here");
    bed.commit("an empty folder");
    assert_eq!(bed.syncer(&source).sync().unwrap_err().reason(), "Empty");
    assert_eq!(declared(&bed.syncer(&source).in_force()), ["web"]);
}

#[test]
fn links_submodules_and_names_that_differ_in_case_alone_are_refused() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    std::os::unix::fs::symlink("/etc/passwd", bed.origin().join("out.yaml")).unwrap();
    bed.commit("a link out of the tree");
    bed.stays(&bed.source(), "TreeRefused");
    std::fs::remove_file(bed.origin().join("out.yaml")).unwrap();
    let head = bed.git(&["rev-parse", "HEAD"]);
    bed.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{head},vendor")]);
    bed.git(&["rm", "--quiet", "--cached", "out.yaml"]);
    bed.git(&["commit", "--quiet", "-m", "a submodule"]);
    let error = bed.stays(&bed.source(), "TreeRefused");
    assert!(error.to_string().contains("submodule"), "{error}");
    bed.git(&["rm", "--quiet", "--cached", "vendor"]);
    let blob = bed.git(&["rev-parse", "HEAD:web.yaml"]);
    bed.git(&["update-index", "--add", "--cacheinfo", &format!("100644,{blob},WEB.yaml")]);
    bed.git(&["commit", "--quiet", "-m", "two names that some disks take for one"]);
    let error = bed.stays(&bed.source(), "TreeRefused");
    assert!(error.to_string().contains("case"), "{error}");
}

#[test]
fn a_hundred_thousand_files_are_refused_and_a_folder_of_them_is_not() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let mut import = bed.command().args(["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    {
        let mut to = std::io::BufWriter::new(import.stdin.take().unwrap());
        let text = vm("web");
        write!(to, "blob\nmark :1\ndata {}\n{text}\n", text.len()).unwrap();
        let head = "commit refs/heads/main\ncommitter Ann <ann@example.org> 1700000000 +0000\ndata 4\nmany\n";
        writeln!(to, "{head}from refs/heads/main^0").unwrap();
        for number in 0..100_000 {
            writeln!(to, "M 100644 :1 many/{}/{}.yaml", number / 1000, number % 1000).unwrap();
        }
        writeln!(to, "M 100644 :1 mine/web.yaml").unwrap();
    }
    assert!(import.wait().unwrap().success());
    let error = bed.stays(&bed.source(), "TreeRefused");
    assert!(error.to_string().contains("more than"), "{error}");
    let mine = GitSource { path: "mine".into(), ..bed.source() };
    assert!(matches!(bed.syncer(&mine).sync().unwrap(), Synced::Applied(_)));
}

#[test]
fn a_repository_that_is_too_large_is_not_fetched_and_leaves_nothing_behind() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let mut noise = vec![0; 12 << 20];
    getrandom(&mut noise);
    std::fs::write(bed.origin().join("disk.img"), &noise).unwrap();
    drop(noise);
    bed.git(&["-c", "core.compression=0", "add", "disk.img"]);
    bed.git(&["commit", "--quiet", "-m", "an image"]);
    for _ in 0..2 {
        bed.stays(&bed.source(), "FetchFailed");
    }
    bed.git(&["reset", "--quiet", "--hard", "HEAD~1"]);
    bed.write("db.yaml", &vm("db"));
    bed.commit("without it");
    bed.recovers(&["db", "web"]);
    let packs = std::fs::read_dir(bed.kept().join("repository.git/objects/pack")).unwrap();
    let left: Vec<_> = packs.flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("tmp_")), "{left:?}");
}

/// Bytes that do not compress.
fn getrandom(bytes: &mut [u8]) {
    use std::io::Read;
    std::fs::File::open("/dev/urandom").unwrap().read_exact(bytes).unwrap();
}

#[test]
fn only_commits_of_those_who_may_are_put_in_force() {
    let bed = Bed::new();
    let keys = bed.folder.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let key = |name: &str| {
        let file = keys.join(name);
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]).arg(&file).status();
        assert!(made.expect("ssh-keygen").success());
        file
    };
    let (ann, mallory) = (key("ann"), key("mallory"));
    let public = std::fs::read_to_string(ann.with_extension("pub")).unwrap();
    let signers = keys.join("signers");
    std::fs::write(&signers, format!("ann@example.org {public}")).unwrap();
    let signed = |key: &Path, arguments: &[&str]| {
        let mut all = vec!["-c".to_owned(), "gpg.format=ssh".into(), "-c".into()];
        all.push(format!("user.signingKey={}", key.display()));
        all.extend(arguments.iter().map(ToString::to_string));
        bed.git(&all.iter().map(String::as_str).collect::<Vec<_>>());
    };
    let verify = |of| Some(Verify { of, allowed_signers: Some(signers.clone()) });
    let source = GitSource { verify: verify(Signed::Head), ..bed.source() };

    bed.write("web.yaml", &vm("web"));
    bed.git(&["add", "--all"]);
    signed(&ann, &["commit", "--quiet", "-S", "-m", "by ann"]);
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Applied(_)));
    bed.write("db.yaml", &vm("db"));
    bed.commit("by nobody");
    let error = bed.stays(&source, "SignatureInvalid");
    assert!(error.to_string().contains("no signature"), "{error}");
    signed(&mallory, &["commit", "--quiet", "--amend", "-S", "-m", "by a stranger"]);
    bed.stays(&source, "SignatureInvalid");
    signed(&ann, &["commit", "--quiet", "--amend", "-S", "-m", "by ann again"]);
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Applied(_)));

    let tag = |name: &str| {
        let reference = Reference::Tag(name.into());
        GitSource { reference, verify: verify(Signed::Tag), ..bed.source() }
    };
    bed.write("cache.yaml", &vm("cache"));
    bed.commit("unsigned, under a signed tag");
    signed(&mallory, &["tag", "-s", "-m", "bad", "bad"]);
    bed.git(&["tag", "light"]);
    signed(&ann, &["tag", "-s", "-m", "good", "good"]);
    bed.stays(&tag("bad"), "SignatureInvalid");
    // A good tag of another name, as an old version under that of a new one.
    let old = bed.git(&["rev-parse", "good"]);
    bed.git(&["update-ref", "refs/tags/newer", &old]);
    let error = bed.stays(&tag("newer"), "SignatureInvalid");
    assert!(error.to_string().contains("signed as"), "{error}");
    bed.stays(&tag("light"), "SignatureInvalid");
    assert!(matches!(bed.syncer(&tag("good")).sync().unwrap(), Synced::Applied(_)));
}

#[test]
fn nothing_that_comes_with_a_tree_or_a_users_settings_is_run() {
    let bed = Bed::new();
    let trap = bed.folder.path().join("sprung");
    let spring = format!("touch {}", trap.display());
    bed.write("web.yaml", &vm("web"));
    bed.write(".gitattributes", "*.yaml filter=trap diff=trap export-subst\n");
    bed.write(".gitmodules", "[submodule \"x\"]\n\tpath = x\n\turl = ext::sh -c 'touch %S'\n");
    bed.write(".lfsconfig", "[lfs]\n\turl = https://fleet.invalid\n");
    bed.write(".git-hooks/post-checkout", &format!("#!/bin/sh\n{spring}\n"));
    bed.commit("traps");
    let source = bed.source();
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Applied(_)));
    // Hooks in the repository here, as a template of the user's would put them.
    let hooks = bed.kept().join("repository.git/hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    for hook in ["reference-transaction", "post-checkout", "post-merge", "pre-auto-gc"] {
        let file = hooks.join(hook);
        std::fs::write(&file, format!("#!/bin/sh\n{spring}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(file, mode).unwrap();
    }
    bed.write("db.yaml", &vm("db"));
    bed.commit("more");
    bed.recovers(&["db", "web"]);
    assert!(!trap.exists());
}

#[test]
fn an_earlier_commit_is_put_in_force_and_stays_until_it_is_released() {
    let bed = Bed::new();
    let first = bed.followed(&["web"]);
    for name in ["db", "cache"] {
        bed.write(&format!("{name}.yaml"), &vm(name));
        bed.commit(name);
        bed.syncer(&bed.source()).sync().unwrap();
    }
    let source = bed.source();
    // Nor does a git that was killed at the worst moment shut the way back.
    std::fs::write(bed.kept().join("repository.git/refs/stead/applied.lock"), "").unwrap();
    let back = bed.syncer(&source).roll_back(Some(&first[..7])).unwrap();
    assert_eq!(back.commit.commit, first);
    assert_eq!(declared(&back.desired), ["web"]);
    assert_eq!(declared(&bed.syncer(&source).in_force()), ["web"]);
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Held(_)));
    // Once more would be forward.
    assert_eq!(bed.syncer(&source).roll_back(None).unwrap_err().reason(), "RolledBack");
    let third = bed.git(&["rev-parse", "main"]);
    bed.syncer(&source).roll_back(Some(&third)).unwrap();
    assert_eq!(declared(&bed.syncer(&source).in_force()), ["cache", "db", "web"]);
    for unknown in ["ffffffff", "", "--all"] {
        assert_eq!(bed.syncer(&source).roll_back(Some(unknown)).unwrap_err().reason(), "UnknownCommit");
    }
    bed.syncer(&source).roll_back(Some(&first)).unwrap();
    assert!(bed.syncer(&source).release().unwrap());
    assert!(!bed.syncer(&source).release().unwrap());
    bed.recovers(&["cache", "db", "web"]);
}

#[test]
fn a_sync_that_is_killed_anywhere_leaves_one_of_both_commits_in_force_and_the_next_one_goes_on() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let config = bed.folder.path().join("config.yaml");
    let text = format!(
        "apiVersion: stead.dev/v1alpha1\nkind: Configuration\nsources:\n- name: fleet\n  git: {{url: '{}'}}\n",
        bed.url()
    );
    std::fs::write(&config, text).unwrap();
    let sync = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
        command.args(["sync", "fleet", "--config"]).arg(&config);
        command.args(["--state-dir".as_ref(), bed.folder.path().join("state").as_os_str()]);
        command.args(["--run-dir".as_ref(), bed.folder.path().join("run").as_os_str()]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    // How long it takes here, so that the moments are spread over it.
    bed.write("db.yaml", &vm("db"));
    bed.commit("another");
    let begin = Instant::now();
    assert!(sync().wait().unwrap().success());
    let took = begin.elapsed();
    let mut killed = 0;
    for round in 0..30 {
        bed.write("db.yaml", &format!("# {round}\n{}", vm("db")));
        let commit = bed.commit("another");
        let before = bed.syncer(&bed.source()).record().unwrap().applied.unwrap().commit;
        let mut child = sync();
        std::thread::sleep(took * round / 30);
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        let source = bed.source();
        let now = bed.syncer(&source).record().unwrap().applied.unwrap().commit;
        assert!(now == before || now == commit, "round {round}: {now}");
        let desired = bed.syncer(&source).in_force();
        assert!(desired.sources[&bed.name].is_complete() && declared(&desired).contains(&"web"), "{desired:?}");
        // The git that it ran may still be at work: it is told that somebody else is, or not.
        let done = (0..50).find_map(|_| {
            bed.syncer(&source).sync().ok().or_else(|| {
                std::thread::sleep(Duration::from_millis(20));
                None
            })
        });
        assert!(done.is_some(), "round {round}");
        assert_eq!(bed.syncer(&source).record().unwrap().applied.unwrap().commit, commit);
    }
    assert!(killed > 10, "{killed} of 30 were killed at work");
}

#[test]
fn what_is_in_force_is_not_collected_however_the_branch_was_rewritten() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let source = bed.source();
    bed.git(&["checkout", "--quiet", "--orphan", "fresh"]);
    bed.commit("from nothing");
    bed.git(&["branch", "-M", "fresh", "main"]);
    bed.stays(&source, "ForcePushed");
    bed.syncer(&source).tidy();
    let collect = ["gc", "--quiet", "--prune=now"];
    let done = bed.command().arg("--git-dir").arg(bed.kept().join("repository.git")).args(collect).status().unwrap();
    assert!(done.success());
    let desired = bed.syncer(&source).in_force();
    assert!(desired.sources[&bed.name].is_complete() && declared(&desired) == ["web"], "{desired:?}");
}

#[test]
fn a_repository_here_is_fetched_anew_once_and_only_where_that_may_help() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let source = bed.source();
    let syncer = bed.syncer(&source);
    let content = || SyncError::TreeRefused { commit: String::new(), why: "broken".into() };
    let time = SyncError::TimedOut { what: "git".into(), bound: Duration::ZERO };
    assert_eq!(syncer.renew_once(time).unwrap_err().reason(), "TimedOut");
    assert!(bed.kept().join("repository.git").exists());
    syncer.renew_once(content()).unwrap();
    assert!(!bed.kept().join("repository.git").exists());
    syncer.sync().unwrap();
    assert_eq!(syncer.renew_once(content()).unwrap_err().reason(), "TreeRefused");
    assert_eq!(declared(&syncer.in_force()), ["web"]);
}

#[test]
fn a_repository_here_that_is_broken_is_made_anew() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let repository = bed.kept().join("repository.git");
    std::fs::write(repository.join("HEAD"), "").unwrap();
    let source = bed.source();
    bed.syncer(&source).sync().unwrap();
    assert_eq!(declared(&bed.syncer(&source).in_force()), ["web"]);
    let folders: Vec<_> = std::fs::read_dir(bed.kept()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(folders.len(), 3, "what was broken is set aside, not deleted: {folders:?}");
}

#[test]
fn a_record_of_a_later_stead_or_a_broken_one_holds_what_it_says_that_nobody_can_read() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let source = bed.source();
    let file = bed.kept().join("sync.json");
    for text in ["{\"version\":", "{\"version\": 99}", ""] {
        std::fs::write(&file, text).unwrap();
        assert!(!bed.syncer(&source).in_force().sources[&bed.name].is_complete());
        assert_eq!(bed.syncer(&source).sync().unwrap_err().reason(), "RecordInvalid");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text, "it is not written over");
    }
    std::fs::rename(&file, bed.kept().join("aside")).unwrap();
    assert!(matches!(bed.syncer(&source).sync().unwrap(), Synced::Applied(_)));
}

#[test]
fn settings_that_git_cannot_read_cost_no_repository() {
    let bed = Bed::new();
    bed.followed(&["web"]);
    let repository = bed.kept().join("repository.git");
    std::fs::write(repository.join("config"), "[core\n").unwrap();
    bed.syncer(&bed.source()).sync().unwrap_err();
    assert!(repository.join("objects").exists());
    assert_eq!(std::fs::read_dir(bed.kept()).unwrap().count(), 2, "nothing was set aside");
}
