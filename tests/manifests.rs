//! What is wrong with a manifest, and what its author is told.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead::desired::hosts::{HostIdentity, Labels};
use stead::desired::load::{Loader, load_text, validate_paths};
use stead::desired::{Desired, SourceName};

const GOOD: &str = "\
apiVersion: stead.dev/v1alpha1
kind: VirtualMachine
metadata:
  name: web
spec:
  cpus: 2
  memory: 128Mi
  boot: {kernel: /k}
";

fn judge(text: &str) -> Desired {
    load_text(SourceName("test".into()), Path::new("web.yaml"), text)
}

fn told(text: &str) -> Vec<String> {
    judge(text).problems.iter().map(stead::desired::Problem::one_line).collect()
}

#[test]
fn a_good_manifest_has_no_problem_and_every_default() {
    let desired = judge(GOOD);
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    assert!(desired.sources.values().all(stead::desired::SourceState::is_complete));
    let vm = desired.vms["web"][0].vm.as_ref().unwrap();
    assert_eq!((vm.spec.cpus, vm.spec.memory_mib, vm.spec.termination_grace_period_seconds), (2, 128, 10));
}

/// What is changed in the good manifest, and what its author is told.
#[test]
fn every_mistake_is_told_with_its_place_and_what_to_do() {
    let cases: &[(&str, &str, &str)] = &[
        ("memory: 128Mi", "memroy: 128Mi", "web.yaml:7:3: unknown field `memroy` (did you mean `memory`?)"),
        ("cpus: 2", "cpus: two", "web.yaml:6:9: cpus is the text \"two\", expected a whole number"),
        ("cpus: 2", "cpus: '2'", "web.yaml:6:9: cpus is the text \"2\", expected a whole number"),
        ("cpus: 2", "cpus: 0", "web.yaml:6:9: cpus is 0, expected a number from 1 to 32"),
        ("cpus: 2", "cpus: yes", "web.yaml:6:9: cpus is the text \"yes\", expected a whole number"),
        (
            "memory: 128Mi",
            "memory: 12Q",
            "web.yaml:7:11: memory: \"12Q\" is not a quantity: write a number with Ki, Mi, Gi, Ti or k, M, G, T (such as \
             128Mi or 1Gi)",
        ),
        (
            "memory: 128Mi",
            "memory: 1000000",
            "web.yaml:7:11: memory is 1000000 bytes; a guest needs at least 1Mi (such as 128Mi)",
        ),
        (
            "memory: 128Mi",
            "memory: 100M",
            "web.yaml:7:11: memory is 100000000 bytes, which is no whole number of MiB (the nearest is 95Mi)",
        ),
        (
            "memory: 128Mi",
            "memory: 18446744073709551615",
            "web.yaml:7:11: memory is 18446744073709551615 bytes, which is no whole number of MiB (the nearest is \
             17592186044416Mi)",
        ),
        ("name: web", "name: 12", "web.yaml:4:9: name is the number 12, expected a text (put it in quotes)"),
        (
            "name: web",
            "name: ../web",
            "web.yaml:4:9: \"../web\" is no VM's name: a name consists of lower-case letters, digits and '-': '.' is none \
             of them",
        ),
        (
            "kind: VirtualMachine",
            "kind: VirtualMachin",
            "web.yaml:2:7: kind is the text \"VirtualMachin\", expected VirtualMachine (did you mean `VirtualMachine`?)",
        ),
        ("kernel: /k", "kernel: k", "web.yaml:8:18: boot.kernel is \"k\", expected an absolute path"),
        (
            "kernel: /k",
            "kernel: /k/../../etc",
            "web.yaml:8:18: boot.kernel is \"/k/../../etc\": a path with `..` may lead elsewhere than it says",
        ),
        (
            "  cpus: 2",
            "  vmm: firecraker\n  cpus: 2",
            "web.yaml:6:8: vmm is the text \"firecraker\", expected one of auto, firecracker, qemu (did you mean \
             `firecracker`?)",
        ),
        (
            "  cpus: 2",
            "  disks: [{name: root, image: /i, mode: snap}]\n  cpus: 2",
            "web.yaml:6:41: mode is the text \"snap\", expected one of snapshot, copy, direct",
        ),
        (
            "  cpus: 2",
            "  disks: [{name: root, image: /i, mode: direct, size: 4Gi}]\n  cpus: 2",
            "web.yaml:6:55: a disk of mode direct is the image itself, which is never resized (leave it out; the guest sees \
             the image's own size)",
        ),
        (
            "  cpus: 2",
            "  disks: [{name: root, image: /i, mode: snapshot, readOnly: true, size: 4Gi}]\n  cpus: 2",
            "web.yaml:6:73: a disk that is only read is the image itself, which is never resized (leave it out; the guest \
             sees the image's own size)",
        ),
        (
            "  cpus: 2",
            "  disks: [{name: root, image: /i, mode: copy, size: 1000}]\n  cpus: 2",
            "web.yaml:6:53: size is 1000 bytes, which is no whole number of sectors of 512 bytes (such as 4Gi)",
        ),
        (
            "  cpus: 2",
            "  disks: [{name: root, image: /i, mode: snapshot}, {name: data, image: /i, mode: direct}]\n  cpus: 2",
            "web.yaml:6:72: disk root has this image too, and one of the two may write to it (make both readOnly or of mode \
             snapshot or copy, or give each an image of its own)",
        ),
        (
            "  cpus: 2",
            "  networkInterfaces: [{name: eth0, macAddress: '01:00:00:00:00:01'}]\n  cpus: 2",
            "web.yaml:6:48: macAddress: this is a multicast address; the second digit of a unicast one is even",
        ),
        (
            "  name: web",
            "  name: web\n  annotations: {stead.dev/prune: disable}",
            "web.yaml:5:34: stead.dev/prune is \"disable\", expected disabled (leave it out to let the VM be deleted with \
             its manifest)",
        ),
    ];
    for (good, bad, expected) in cases {
        assert!(GOOD.contains(good), "{good}");
        let text = GOOD.replacen(good, bad, 1);
        assert!(told(&text).contains(&(*expected).to_owned()), "{bad}:\n{expected}\n{:#?}", told(&text));
    }
}

/// What somebody wrote goes to a log and to a terminal.
#[test]
fn no_message_is_longer_than_a_few_lines_or_has_more_than_one() {
    let long = "x".repeat(100_000);
    for bad in [
        GOOD.replace("cpus: 2", &format!("cpus: {long}")),
        GOOD.replace("memory: 128Mi", &format!("memory: {long}")),
        GOOD.replace("kernel: /k", &format!("kernel: {long}")),
        GOOD.replace("name: web", &format!("name: {long}")),
        GOOD.replace("cpus: 2", &format!("'a\n\n  {long}': 2")),
        GOOD.replace("name: web", &format!("name: web\n  labels: {{'a\n\n    {long}': 2}}")),
        GOOD.replace("name: web", &format!("name: web\n  annotations: {{\"stead.dev/\\n{long}\": x}}")),
        format!("a: *{long}\n"),
        format!("{long}: 1\n{long}: 1\n"),
        format!("apiVersion: {long}\nkind: \"{long}\\n\"\n"),
    ] {
        let told = told(&bad);
        assert!(!told.is_empty(), "{bad:.200}");
        for line in told {
            assert!(line.len() < 1_000 && !line.contains('\n'), "{} bytes: {line:.300}", line.len());
        }
    }
}

#[test]
fn a_whole_number_may_be_written_with_a_point() {
    let desired = judge(&GOOD.replace("cpus: 2", "cpus: 2.0").replace("128Mi", "1.34217728e8"));
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    assert_eq!(desired.vms["web"][0].vm.as_ref().unwrap().spec.memory_mib, 128);
    assert_eq!(
        told(&GOOD.replace("cpus: 2", "cpus: 2.5")),
        ["web.yaml:6:9: cpus is the number 2.5, expected a whole number"]
    );
}

#[test]
fn a_bridge_has_a_name_that_the_kernel_allows() {
    for bad in ["..", ".", "a/b", "a:b", "a b", "a\\tb", "a\\0b", "a\\nb", "à", "0123456789abcdef", ""] {
        let text = GOOD.replace("  cpus", &format!("  networkInterfaces: [{{name: eth0, bridge: \"{bad}\"}}]\n  cpus"));
        assert!(
            told(&text).iter().any(|line| line.contains("is no network interface's name")),
            "{bad}: {:?}",
            told(&text)
        );
    }
}

#[test]
fn all_errors_of_a_document_are_told_at_once_and_other_documents_stand() {
    let bad = GOOD.replace("memory", "memroy").replace("cpus: 2", "cpus: two").replace("kernel: /k", "kernel: k");
    let desired = judge(&format!("{bad}---\n{}", GOOD.replace("name: web", "name: db")));
    let places: Vec<_> = desired.problems.iter().map(|problem| problem.place.unwrap().0).collect();
    assert_eq!(places, [6, 6, 7, 8], "{:#?}", desired.problems);
    assert!(desired.vms["web"][0].vm.is_err(), "it is declared, and invalid");
    assert!(desired.vms["db"][0].vm.is_ok());
    assert!(desired.sources.values().all(stead::desired::SourceState::is_complete), "its VMs are known");
}

#[test]
fn a_document_whose_vm_cannot_be_told_makes_its_source_incomplete() {
    for text in [
        "a: [",
        &GOOD.replace("  cpus", "\tcpus"),
        &GOOD.replace("cpus: 2", "cpus: 2\n  cpus: 3"),
        &GOOD.replace("name: web", "name: Web"),
        &GOOD[..60],
        "- just a list\n",
        &"[".repeat(200_000),
    ] {
        let start = Instant::now();
        let desired = judge(text);
        assert!(!desired.problems.is_empty(), "{text:.80}");
        assert!(!desired.sources.values().any(stead::desired::SourceState::is_complete), "{text:.80}");
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    let tab = told(&GOOD.replace("  cpus", "\tcpus"));
    assert!(tab[0].contains("there is a tab"), "{tab:?}");
    let duplicate = told(&GOOD.replace("cpus: 2", "cpus: 2\n  cpus: 3"));
    assert!(duplicate[0].starts_with("web.yaml:7:3: duplicate"), "{duplicate:?}");
}

struct Folder(tempfile::TempDir, Loader);

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let loader = Loader::new(SourceName("test".into()), folder.path().to_owned(), None);
        Self(folder, loader)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.0.path().join(name), text).unwrap();
    }

    fn load(&mut self) -> Desired {
        self.1.load(&BTreeSet::new())
    }
}

fn complete(desired: &Desired) -> bool {
    desired.sources.values().all(stead::desired::SourceState::is_complete)
}

#[test]
fn only_files_with_the_name_of_a_manifest_are_read() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    for name in [".web.yaml", "web.yaml~", "web.yaml.bak", ".web.yaml.swp", "4913", "#web.yaml#", "README"] {
        folder.write(name, GOOD.replace("web", "other"));
    }
    fs::create_dir(folder.0.path().join("sub")).unwrap();
    folder.write("sub/db.yml", GOOD.replace("web", "db"));
    folder.write("cache.json", r#"{"apiVersion":"stead.dev/v1alpha1","kind":"VirtualMachine","metadata":{"name":"cache"},"spec":{"memory":"1Mi","boot":{"kernel":"/k"}}}"#);
    let desired = folder.load();
    assert!(desired.problems.is_empty(), "{:?}", desired.problems);
    assert_eq!(desired.vms.keys().map(stead::names::VmName::as_str).collect::<Vec<_>>(), ["cache", "db", "web"]);
}

type Make = fn(&Path);

#[test]
fn a_file_that_cannot_be_read_hides_nothing_and_costs_little() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    assert!(complete(&folder.load()));
    let path = folder.0.path().join("odd.yaml");
    let odd: [(&str, Make, &str); 7] = [
        ("a FIFO", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap(), "this is no regular file"),
        ("a dangling link", |path| symlink("nowhere", path).unwrap(), "this link leads nowhere"),
        ("a link that leads out", |path| symlink("/etc/passwd", path).unwrap(), "this link leads out of the folder"),
        ("a link to a device", |path| symlink("/dev/zero", path).unwrap(), "this link leads out of the folder"),
        ("NUL bytes", |path| fs::write(path, b"a: 1\0").unwrap(), "there is a NUL byte at offset 4"),
        ("not UTF-8", |path| fs::write(path, b"a: \xff").unwrap(), "the file is not UTF-8, first at offset 3"),
        (
            "64 MiB",
            |path| fs::File::create(path).unwrap().set_len(64 << 20).unwrap(),
            "the file is larger than 1048576 bytes",
        ),
    ];
    for (what, make, expected) in odd {
        make(&path);
        let start = Instant::now();
        let desired = folder.load();
        assert!(start.elapsed() < Duration::from_secs(1), "{what}");
        assert!(desired.problems.iter().any(|problem| problem.message.starts_with(expected)), "{what}: {desired:?}");
        assert!(!complete(&desired), "{what}");
        assert!(desired.vms["web"][0].vm.is_ok(), "{what}");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_file_that_turns_unreadable_keeps_declaring_its_vms() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    assert!(folder.load().vms["web"][0].vm.is_ok());
    folder.write("web.yaml", b"\0");
    let desired = folder.load();
    assert!(desired.vms["web"][0].vm.is_err());
    assert!(!complete(&desired));
}

#[test]
fn without_permission_to_read_a_source_is_incomplete() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    fs::set_permissions(folder.0.path().join("web.yaml"), fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read anything: the file is judged by an unprivileged `stead validate`.
    let readable = fs::read(folder.0.path().join("web.yaml")).is_ok();
    if readable {
        fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.0.path().join("stead");
        fs::copy(env!("CARGO_BIN_EXE_stead"), &copy).unwrap();
        let mut command = std::process::Command::new(copy);
        std::os::unix::process::CommandExt::uid(&mut command, 65_534);
        // A home of its own: whose this is it could not look into either, and would say so before it reads a manifest.
        let output = command.arg("validate").arg(folder.0.path()).env("HOME", folder.0.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("Permission denied"), "{text}");
    } else {
        assert!(!complete(&folder.load()));
    }
}

#[test]
fn a_missing_folder_is_not_an_empty_one() {
    let mut loader = Loader::new(SourceName("test".into()), "/nonexistent/manifests".into(), None);
    let desired = loader.load(&BTreeSet::new());
    assert!(!complete(&desired));
    assert_eq!(desired.sources.values().next().unwrap().root, None);
    assert!(complete(&Folder::new().load()));
}

#[test]
fn a_data_link_swap_is_followed_inside_the_folder() {
    let mut folder = Folder::new();
    let root = folder.0.path().to_owned();
    for (version, cpus) in [("..1", "1"), ("..2", "2")] {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("web.yaml"), GOOD.replace("cpus: 2", &format!("cpus: {cpus}"))).unwrap();
    }
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    for (version, cpus) in [("..1", 1), ("..2", 2)] {
        symlink(version, root.join("..tmp")).unwrap();
        fs::rename(root.join("..tmp"), root.join("..data")).unwrap();
        let desired = folder.load();
        assert_eq!(desired.vms["web"][0].vm.as_ref().unwrap().spec.cpus, cpus);
        assert!(complete(&desired));
    }
}

#[test]
fn a_change_counts_though_neither_length_nor_time_tell_of_it() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    let path = folder.0.path().join("web.yaml");
    let first = path.metadata().unwrap();
    assert_eq!(folder.load().vms["web"][0].vm.as_ref().unwrap().spec.cpus, 2);
    // What a file system with a coarse clock says, and whoever restores a file with its times (cp -p, tar, rsync -t).
    folder.write("web.yaml", GOOD.replace("cpus: 2", "cpus: 3"));
    fs::File::options().write(true).open(&path).unwrap().set_modified(first.modified().unwrap()).unwrap();
    let second = path.metadata().unwrap();
    assert_eq!((first.len(), first.modified().unwrap()), (second.len(), second.modified().unwrap()));
    assert_eq!(folder.load().vms["web"][0].vm.as_ref().unwrap().spec.cpus, 3);
}

#[test]
fn two_files_with_one_name_are_two_declarations() {
    let mut folder = Folder::new();
    folder.write("a.yaml", GOOD);
    folder.write("b.yaml", GOOD);
    let desired = folder.load();
    let files: Vec<_> = desired.vms["web"].iter().map(|d| d.origin.path.to_str().unwrap().to_owned()).collect();
    assert_eq!(files, ["a.yaml", "b.yaml"]);
}

#[test]
fn a_file_that_is_being_written_keeps_what_it_said() {
    let mut folder = Folder::new();
    folder.write("web.yaml", GOOD);
    let before = folder.load();
    folder.write("web.yaml", &GOOD[..70]);
    let unsettled = BTreeSet::from(["web.yaml".into()]);
    assert_eq!(folder.1.load(&unsettled), before);
    folder.write("new.yaml", "");
    let unsettled = BTreeSet::from(["web.yaml".into(), "new.yaml".into()]);
    let desired = folder.1.load(&unsettled);
    assert_eq!(desired.vms, before.vms);
    assert!(!complete(&desired), "nobody knows yet what the new file will say");
}

#[test]
fn twenty_thousand_files_are_listed_in_little_time_and_not_read_twice() {
    let mut folder = Folder::new();
    for number in 0..20_000 {
        folder.write(&format!("{number}.yaml"), GOOD.replace("web", &format!("vm-{number}")));
    }
    assert_eq!(folder.load().vms.len(), 20_000);
    std::thread::sleep(Duration::from_millis(60));
    folder.load();
    let start = Instant::now();
    assert_eq!(folder.load().vms.len(), 20_000);
    let again = start.elapsed();
    assert!(again < Duration::from_secs(2), "{again:?}");
}

#[test]
fn validate_names_files_as_its_user_did() {
    let folder = Folder::new();
    folder.write("web.yaml", GOOD.replace("memory", "memroy"));
    let path = folder.0.path().join("web.yaml");
    for named in [folder.0.path().to_owned(), path.clone()] {
        let problems = validate_paths(&[named]).desired.problems;
        assert_eq!(problems[0].path, path);
    }
}

proptest::proptest! {
    #[test]
    fn no_text_breaks_the_reader(text in "[\\PC\\n\\t]{0,200}") {
        judge(&text);
    }

    #[test]
    fn no_piece_of_a_good_manifest_breaks_the_reader(cut in 0..GOOD.len(), from in 0..GOOD.len()) {
        judge(&GOOD[..cut]);
        judge(&GOOD[from..]);
    }
}

const FLEET: &str = "apiVersion: stead.dev/v1alpha1
kind: Host
metadata: {name: a1, labels: {zone: north}}
---
apiVersion: stead.dev/v1alpha1
kind: Host
metadata: {name: a2, labels: {zone: south}}
";

fn placed(name: &str, zone: &str, image: &str) -> String {
    format!(
        "---\napiVersion: stead.dev/v1alpha1\nkind: VirtualMachine\nmetadata: {{name: {name}}}\nspec:\n  memory: 1Mi\n  \
         boot: {{kernel: /k}}\n  disks: [{{name: root, image: {image}, mode: direct}}]\n  \
         hostSelector: {{matchExpressions: [{{key: zone, operator: In, values: [{zone}]}}]}}\n"
    )
}

#[test]
fn of_a_fleet_each_host_reads_its_own_and_all_read_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| std::fs::write(folder.path().join("fleet.yaml"), text).unwrap();
    let read = |host: &str| {
        let here = HostIdentity::new(host.into(), Labels::new(), None, "x86_64".into());
        Loader::new(SourceName("test".into()), folder.path().to_owned(), Some(Arc::new(here))).load(&BTreeSet::new())
    };
    let names = |desired: &Desired| desired.vms.keys().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    // One name on two hosts, and one image on each of them.
    write(
        &(FLEET.to_owned()
            + &placed("web", "north", "/i")
            + &placed("web", "south", "/i")
            + &placed("db", "south", "/d")),
    );
    let (north, south) = (read("a1"), read("a2"));
    assert_eq!((names(&north).as_str(), names(&south).as_str()), ("web", "db web"));
    assert!(north.is_complete() && north.problems.is_empty(), "{:?}", north.problems);
    let state = north.sources.values().next().unwrap();
    assert!(state.elsewhere.iter().map(ToString::to_string).eq(["db".to_owned()]) && !state.empty);
    let checked = validate_paths(&[folder.path().to_owned()]);
    assert!(checked.clashes.is_empty() && checked.desired.problems.is_empty());
    assert_eq!(checked.views.iter().map(names).collect::<Vec<_>>(), ["web", "db web"]);
    let stranger = read("a9");
    assert!(stranger.vms.is_empty() && !stranger.is_complete(), "what is not listed takes nothing for gone");

    write(&(FLEET.to_owned() + &placed("web", "\"north, south\"", "/i")));
    for host in ["a1", "a2"] {
        let problems = read(host).problems;
        assert!(problems[0].message.contains("no host has zone=north, south"), "{problems:?}");
        assert_eq!(problems[0].place.map(|(line, _)| line), Some(16), "{problems:?}");
    }
    write(&(FLEET.to_owned() + &placed("web", "north, south", "/i")));
    for host in ["a1", "a2"] {
        let desired = read(host);
        assert!(desired.problems[0].message.contains("hosts a1 and a2 both have"), "{:?}", desired.problems);
        assert!(desired.vms.values().flatten().all(|declaration| declaration.vm.is_err()));
    }
    write(&(FLEET.replace("name: a2", "name: a 2") + &placed("web", "north", "/i")));
    let desired = read("a1");
    assert!(!desired.is_complete() && desired.problems.len() == 2, "{:?}", desired.problems);
}
