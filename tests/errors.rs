//! The catalogue of reasons, docs/errors.md: it is what the code says, and each reason in it is one that occurs. Those of VMs in
//! the golden worlds of tests/plan/, those of sources with a real git, those of commands with the binary itself.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "model/golden.rs"]
mod golden;
mod model;
mod prepared;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use prepared::home::{Home, git_source};
use serde_json::Value;
use stead::cli::CliError;
use stead::control::{self, Request};
use stead::desired::SourceName;
use stead::desired::hosts::{HostIdentity, Labels};
use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::names::Layout;
use stead::observed::Record;
use stead::plan::{Hold, VmPlan};
use stead::reasons::{About, Reason};
use stead::state::Blocked;
use stead::status::{StatusInput, compute};
use stead::sync::{SyncError, Syncer};

/// What a bug would have to bring about.
const NEVER: [Reason; 1] = [Reason::Bug];

#[test]
fn the_catalogue_is_what_the_code_says() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let said = stead::cli::catalogue();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&file, &said).unwrap();
    }
    assert!(fs::read_to_string(&file).unwrap_or_default() == said, "UPDATE_GOLDEN=1 writes docs/errors.md anew");
}

#[test]
fn every_reason_is_explained_by_the_command() {
    let home = Home::new();
    for reason in Reason::ALL {
        let output = home.stead(&["explain", reason.word()]);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.starts_with(reason.word()) && text.contains("What to do: "), "{text}");
    }
    let output = home.stead(&["explain", "BaseChangd"]);
    assert!(String::from_utf8(output.stderr).unwrap().ends_with("hint: is it BaseChanged?\n"));
}

/// Those that were met.
#[derive(Default)]
struct Met(BTreeSet<Reason>);

impl Met {
    #[track_caller]
    fn word(&mut self, word: &str) {
        let reason = Reason::ALL.iter().find(|reason| reason.word() == word);
        self.0.insert(*reason.unwrap_or_else(|| panic!("the catalogue does not know {word}")));
    }

    #[track_caller]
    fn have_all(&self, about: &[About]) {
        let all =
            Reason::ALL.iter().filter(|reason| about.contains(&reason.explain().about) && !NEVER.contains(reason));
        let missing: Vec<&Reason> = all.filter(|reason| !self.0.contains(reason)).collect();
        assert!(missing.is_empty(), "in the catalogue, and they never occur: {missing:?}");
    }
}

#[test]
fn each_reason_of_a_vm_occurs() {
    let mut met = Met::default();
    let now = model::now_at(golden::NOW_MS);
    for case in golden::cases() {
        let golden::Case { world, plan } = golden::read(&case);
        let observed = world.observed();
        for (name, vm_plan) in &plan.vms {
            let Some(vm) = observed.vms.get(name) else { continue };
            vm_plan.actions.iter().for_each(|action| met.word(action.event_reason().word()));
            vm_plan.holds.iter().for_each(|hold| met.word(hold.reason()));
            let mut tell = |plan: &VmPlan, vm: &stead::observed::ObservedVm, error: Option<&str>, holes: &[String]| {
                let input = StatusInput {
                    observed: vm,
                    plan,
                    generation: None,
                    last_error: error,
                    under_way: None,
                    advisories: holes,
                };
                compute(None, &input, vec![], &now).conditions.iter().for_each(|condition| met.word(&condition.reason));
            };
            // Before what is to be done is done, and after.
            let idle = VmPlan { actions: vec![], ..vm_plan.clone() };
            tell(vm_plan, vm, None, &[]);
            tell(&idle, vm, None, &[]);
            tell(&idle, vm, Some("disk full"), &["CVE-1".to_owned()]);
            let mut blocked = vm.clone();
            if let Record::Valid(handles) = &mut blocked.record {
                handles.blocked.insert("loop".to_owned(), Blocked { why: "busy".to_owned(), failures: 1 });
                tell(&VmPlan::default(), &blocked, None, &[]);
            }
            tell(&VmPlan::default(), vm, None, &[]);
            // One that nobody declares any more, kept by what was applied last.
            let kept = VmPlan { holds: vec![Hold::Protected], ..VmPlan::default() };
            tell(&kept, vm, None, &[]);
        }
    }
    // What happens while a plan is carried out: a VM that is held, and a program that is none.
    let home = Home::new();
    home.write("not-a-program", "\u{7f}ELF");
    fs::set_permissions(home.path("not-a-program"), fs::Permissions::from_mode(0o755)).unwrap();
    home.write("kernel", "no kernel");
    home.declare("failing", &home.path("kernel"));
    home.declare("held", Path::new("/nonexistent/kernel"));
    let mut pass = home.command(&["reconcile", "--once", "--timeout", "20s"]);
    pass.env("STEAD_QEMU", home.path("not-a-program")).output().unwrap();
    for name in ["failing", "held"] {
        let text = fs::read_to_string(home.path("state/vms").join(name).join("status.json")).unwrap();
        let status: Value = serde_json::from_str(&text).unwrap();
        for event in status["events"].as_array().unwrap() {
            met.word(event["reason"].as_str().unwrap());
        }
    }
    met.have_all(&[About::Vm, About::Event]);
}

impl Home {
    fn declare(&self, name: &str, kernel: &Path) {
        self.write(&format!("manifests/{name}.yaml"), &manifest(name, kernel));
    }

    fn command(&self, args: &[&str]) -> Command {
        self.under(&[], args)
    }

    fn stead(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The command under this configuration.
    fn configured(&self, text: &str, args: &[&str]) -> Output {
        let file = self.write("config.yaml", &format!("apiVersion: stead.dev/v1alpha1\nkind: Configuration\n{text}"));
        self.command(args).env("STEAD_CONFIG", file).env_remove("STEAD_MANIFESTS").output().unwrap()
    }
}

fn manifest(name: &str, kernel: &Path) -> String {
    format!(
        "apiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec: {{vmm: qemu, memory: 64Mi, boot: \
         {{kernel: {}}}}}\n",
        kernel.display()
    )
}

/// A VM that takes nothing of the host.
fn at_rest(name: &str) -> String {
    manifest(name, Path::new("/k")).replace("spec: {", "spec: {powerState: Stopped, ")
}

/// A repository that stead follows.
struct Repository {
    home: Home,
    settings: String,
}

impl Repository {
    /// One with a commit of one VM, which is in force.
    fn followed() -> Self {
        let repository = Self { home: Home::new(), settings: String::new() };
        fs::create_dir(repository.home.path("origin")).unwrap();
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository.commit("web.yaml", &at_rest("web"));
        let synced = repository.stead(&["sync", "fleet"]);
        assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
        repository
    }

    fn git(&self, arguments: &[&str]) {
        let mut command = Command::new("git");
        for who in ["AUTHOR", "COMMITTER"] {
            command.env(format!("GIT_{who}_NAME"), "Ann").env(format!("GIT_{who}_EMAIL"), "ann@example.org");
        }
        let origin = self.home.path("origin");
        let done = command.args(arguments).env("HOME", &origin).current_dir(&origin).output().unwrap();
        assert!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    }

    fn commit(&self, file: &str, text: &str) {
        self.home.write(&format!("origin/{file}"), text);
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", "a change"]);
    }

    fn stead(&self, args: &[&str]) -> Output {
        let url = format!("file://{}", self.home.path("origin").display());
        let source = format!("sources: [{{name: fleet, git: {{url: '{url}'{}}}}}]\n", self.settings);
        self.home.configured(&source, args)
    }

    /// How it is, after a sync.
    fn status(&self) -> String {
        self.stead(&["sync", "fleet"]);
        self.status_as_it_is()
    }

    /// Why there is no going back to a commit.
    fn roll_back(&self, to: &str) -> SyncError {
        let host = LinuxHost::new(LinuxHostConfig::default()).unwrap();
        let here = Arc::new(HostIdentity::new("a1".into(), Labels::new(), None, "x86_64".into()));
        let source = git_source(&self.home.path("origin"));
        let kept = self.home.path("state/sources/fleet");
        Syncer::new(&host, &SourceName("fleet".into()), &source, &here, kept).roll_back(Some(to)).unwrap_err()
    }

    fn status_as_it_is(&self) -> String {
        let output = self.stead(&["sources", "-o", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        list[0]["status"].as_str().unwrap().to_owned()
    }
}

#[test]
fn each_reason_of_a_source_occurs() {
    let mut met = Met::default();
    let mut changed = |settings: &str, change: &dyn Fn(&Repository), expected: Reason| {
        let mut repository = Repository::followed();
        repository.settings = settings.to_owned();
        change(&repository);
        let status = repository.status();
        assert_eq!(status, expected.word());
        met.word(&status);
    };
    changed("", &|_| (), Reason::Followed);
    changed(", suspend: true", &|_| (), Reason::Suspended);
    changed(", timeout: 1ms", &|repository| repository.commit("a.yaml", ""), Reason::TimedOut);
    changed(
        "",
        &|repository| fs::rename(repository.home.path("origin"), repository.home.path("x")).unwrap(),
        Reason::FetchFailed,
    );
    changed(
        "",
        &|repository| repository.git(&["commit", "--quiet", "--amend", "-m", "rewritten"]),
        Reason::ForcePushed,
    );
    changed(
        ", verify: {mode: Head, allowedSigners: /dev/null}",
        &|repository| repository.commit("a.yaml", ""),
        Reason::SignatureInvalid,
    );
    changed(", path: nowhere", &|repository| repository.commit("a.yaml", ""), Reason::TreeRefused);
    changed("", &|repository| repository.commit("a.yaml", "a: [\n"), Reason::ManifestsInvalid);
    changed(
        "",
        &|repository| {
            repository.git(&["rm", "--quiet", "web.yaml"]);
            repository.commit("README", "nothing here");
        },
        Reason::Empty,
    );
    changed(
        "",
        &|repository| {
            repository.home.write("state/host.json", "{\"version\": 1, \"name\": \"another\"}");
            let selective = at_rest("db").replace("spec: {", "spec: {hostSelector: {matchLabels: {a: b}}, ");
            repository.commit("db.yaml", &selective);
        },
        Reason::HostUnclear,
    );
    changed("", &|repository| drop(repository.home.write("state/sources/fleet/sync.json", "{")), Reason::RecordInvalid);
    changed(
        "",
        &|repository| {
            let packs = repository.home.path("state/sources/fleet/repository.git/objects/pack");
            fs::remove_dir_all(&packs).unwrap();
            fs::write(packs, "").unwrap();
            repository.commit("db.yaml", &at_rest("db"));
        },
        Reason::StateUnwritable,
    );

    let repository = Repository::followed();
    repository.commit("db.yaml", &at_rest("db"));
    repository.stead(&["sync", "fleet"]);
    let unknown = repository.stead(&["rollback", "fleet", "ffffffff"]);
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("is no commit that was in force here"));
    met.word(repository.roll_back("ffffffff").reason());
    assert!(repository.stead(&["rollback", "fleet"]).status.success());
    met.word(&repository.status_as_it_is());

    let new = Repository { home: Home::new(), settings: String::new() };
    met.word(&new.status_as_it_is());
    let file = new.home.path("config.yaml");
    let mut without = new.home.command(&["sync", "fleet"]);
    without.env("STEAD_CONFIG", &file).env_remove("STEAD_MANIFESTS").env("PATH", "/nonexistent").output().unwrap();
    met.word(&new.status_as_it_is());
    assert!(met.0.contains(&Reason::GitMissing) && met.0.contains(&Reason::NeverSynced));
    met.have_all(&[About::Source]);
}

impl Met {
    /// A command that cannot run for this reason, and says what to do.
    #[track_caller]
    fn fails(&mut self, reason: Reason, output: &Output) {
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("error: ") && text.contains("\nhint: "), "{text}");
        assert!(text.ends_with(&format!("\nreason: {reason}\n")), "{reason}: {text}");
        let code = match reason {
            Reason::LockHeld => 75,
            // The same again would end the same way: no service manager is to try it.
            Reason::ConfigurationInvalid
            | Reason::RunDirTooLong
            | Reason::StateOfAnotherUser
            | Reason::StateOfAnotherRunDir
            | Reason::StateWritableByOthers
            | Reason::StateNoFolder
            | Reason::StateNewer
            | Reason::StateCorrupt => 78,
            _ => 1,
        };
        assert_eq!(output.status.code(), Some(code), "{reason}");
        self.0.insert(reason);
    }

    fn asked(&mut self, reason: Reason, layout: &Layout) {
        let error = control::ask(layout, &Request::Ping, Duration::from_millis(300)).unwrap_err();
        assert_eq!(CliError::from(error).reason(), reason);
        self.0.insert(reason);
    }
}

#[test]
fn each_reason_of_a_command_occurs() {
    let mut met = Met::default();
    states(&mut met);
    running(&mut met);
    streams(&mut met);
    let output = Home::new().stead(&["logs", "nobody"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.starts_with("error: there is no VM") && text.contains("\nhint: ") && !text.contains("reason:"),
        "{text}"
    );
    met.0.insert(Reason::BadRequest);
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: another user and namespaces need root");
        met.0.extend([Reason::StateOfAnotherUser, Reason::DaemonStranger, Reason::WatchFailed]);
    }
    met.have_all(&[About::Command]);
}

fn states(met: &mut Met) {
    let with_state = || Home::new().with_state();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        let (home, layout) = with_state();
        std::os::unix::fs::chown(&layout.state_dir, Some(65_534), None).unwrap();
        met.fails(Reason::StateOfAnotherUser, &home.stead(&["get"]));
    }
    let (home, layout) = with_state();
    fs::set_permissions(&layout.state_dir, fs::Permissions::from_mode(0o777)).unwrap();
    met.fails(Reason::StateWritableByOthers, &home.stead(&["get"]));
    let home = Home::new();
    home.write("state", "");
    met.fails(Reason::StateNoFolder, &home.stead(&["get"]));
    let (home, _) = with_state();
    met.fails(
        Reason::StateOfAnotherRunDir,
        &home.command(&["get"]).env("STEAD_RUN_DIR", "/run/other").output().unwrap(),
    );
    home.write("state/id", "{\"version\": 99}");
    met.fails(Reason::StateNewer, &home.stead(&["get"]));
    home.write("state/id", "{");
    met.fails(Reason::StateCorrupt, &home.stead(&["get"]));
    let long = Home::new().path(&"r".repeat(100));
    met.fails(Reason::RunDirTooLong, &Home::new().command(&["get"]).env("STEAD_RUN_DIR", long).output().unwrap());
    let home = Home::new();
    home.write("file", "");
    let inside = home.path("file/state");
    met.fails(Reason::StateInaccessible, &home.command(&["get"]).env("STEAD_STATE_DIR", inside).output().unwrap());
    met.fails(Reason::ConfigurationInvalid, &home.configured("suorces: []\n", &["get"]));
    met.fails(
        Reason::ConfigurationInvalid,
        &home.command(&["get"]).env("STEAD_CONFIG", home.path("")).output().unwrap(),
    );
    // One that cannot be read now may be in a moment, and is tried again.
    std::os::unix::fs::symlink("loop.yaml", home.path("loop.yaml")).unwrap();
    let unread = home.command(&["get"]).env("STEAD_CONFIG", home.path("loop.yaml")).output().unwrap();
    met.fails(Reason::SystemRefused, &unread);
    let (home, layout) = with_state();
    let lock = File::create(layout.lock()).unwrap();
    lock.lock().unwrap();
    met.fails(Reason::LockHeld, &home.stead(&["reconcile", "--once"]));
    drop(lock);
    fs::remove_file(layout.lock()).unwrap();
    fs::create_dir(layout.lock()).unwrap();
    met.fails(Reason::LockFailed, &home.stead(&["reconcile", "--once"]));
    let (home, layout) = with_state();
    fs::remove_dir(layout.vms()).unwrap();
    File::create(layout.vms()).unwrap();
    met.fails(Reason::StateUnlistable, &home.stead(&["plan"]));
}

fn running(met: &mut Met) {
    let (home, layout) = Home::new().with_state();
    fs::create_dir(layout.control_socket()).unwrap();
    met.fails(Reason::ControlSocketFailed, &home.stead(&["run"]));
    fs::remove_dir(layout.control_socket()).unwrap();

    let token = home.write("token", "short");
    let push = |listen: &str| {
        format!(
            "sources: [{{name: a, folder: {{path: /nonexistent}}}}]\npush: {{listen: '{listen}', tokenFile: {}}}\n",
            token.display()
        )
    };
    met.fails(Reason::TokenUnfit, &home.configured(&push("127.0.0.1:9440"), &["run"]));
    home.write("token", &"0123456789abcdef".repeat(2));
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = other.local_addr().unwrap().to_string();
    let metrics = format!("sources: [{{name: a, folder: {{path: /nonexistent}}}}]\nmetrics: {{listen: '{address}'}}\n");
    met.fails(Reason::MetricsAddressUnusable, &home.configured(&metrics, &["run"]));
    met.fails(Reason::PushAddressUnusable, &home.configured(&push(&address), &["run"]));

    let socket = layout.control_socket();
    let _ = fs::remove_file(&socket);
    let silent = UnixListener::bind(&socket).unwrap();
    met.asked(Reason::DaemonSilent, &layout);
    drop(silent);
    for (answer, reason) in [("pong\n", Reason::DaemonNonsense), ("", Reason::DaemonUnreachable)] {
        fs::remove_file(&socket).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(stream.try_clone().unwrap()), &mut request)
                .unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
        });
        met.asked(reason, &layout);
        asked.join().unwrap();
    }
    if rustix::process::geteuid().is_root() {
        fs::remove_file(&socket).unwrap();
        // Who called listen(2) is whom the kernel names: a thread of its own can be another user (credentials(7)).
        let path = socket.clone();
        let listener = std::thread::spawn(move || {
            let listener = UnixListener::bind(path).unwrap();
            let nobody = rustix::thread::Uid::from_raw(65_534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            rustix::net::listen(&listener, 1).unwrap();
            listener
        });
        let _listener = listener.join().unwrap();
        met.asked(Reason::DaemonStranger, &layout);
    }
}

fn streams(met: &mut Met) {
    let home = Home::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    met.fails(Reason::OutputFailed, &home.command(&["explain"]).stdout(full).stderr(Stdio::piped()).output().unwrap());
    let folder = File::open(home.path("manifests")).unwrap();
    met.fails(Reason::SystemRefused, &home.command(&["validate", "-"]).stdin(folder).output().unwrap());
    if rustix::process::geteuid().is_root() {
        let (home, _) = home.with_state();
        let script = r#"echo 0 >/proc/sys/user/max_inotify_instances; exec "$@""#;
        let wrapper = ["unshare", "--user", "--map-root-user", "sh", "-euc", script, "sh"];
        met.fails(Reason::WatchFailed, &home.under(&wrapper, &["get", "--watch"]).output().unwrap());
    }
}
