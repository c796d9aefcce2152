//! Every way in which people and programs save a file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bed::{Host, Life, Vmm, manifest, wait};

/// A host whose daemon runs one VM, and that VM's first life.
fn one_vm() -> (Host, Life) {
    let mut host = Host::new();
    host.start_daemon();
    host.apply("web.yaml", &manifest("web", Vmm::Firecracker));
    let life = host.running("web");
    (host, life)
}

/// The VM has exactly the life after `before`: it was replaced once, never removed.
#[track_caller]
fn replaced_once(host: &Host, before: &Life) {
    let after = wait("the new memory", || host.life("web").filter(|life| life.incarnation > before.incarnation));
    assert_eq!(after.incarnation, before.incarnation + 1);
    assert_eq!(host.handles("web").unwrap()["spec"]["memoryMib"], 6);
}

fn bigger() -> String {
    manifest("web", Vmm::Firecracker).replace("memory: 4Mi", "memory: 6Mi")
}

fn shell(host: &Host, script: &str, file: &Path) {
    let status = Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(host.manifests().join("web.yaml"))
        .arg(file)
        .env("HOME", host.root.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{script}");
}

fn saved_by(script: &str) {
    let (host, life) = one_vm();
    let new = host.root.path().join("new");
    fs::write(&new, bigger()).unwrap();
    shell(&host, script, &new);
    replaced_once(&host, &life);
}

#[test]
fn a_manifest_saved_with_cp_is_taken_up() {
    saved_by(r#"cp "$2" "$1""#);
}

#[test]
fn a_manifest_moved_into_place_is_taken_up() {
    saved_by(r#"mv "$2" "$1""#);
}

#[test]
fn a_manifest_edited_with_sed_in_place_is_taken_up() {
    saved_by(r#"sed -i 's/memory: 4Mi/memory: 6Mi/' "$1""#);
}

#[test]
fn a_manifest_saved_by_vim_is_taken_up_and_never_seen_as_deleted() {
    saved_by(
        r#"TERM=dumb vim -u NONE -N -es -c 'set backup writebackup backupcopy=no' -c '%s/memory: 4Mi/memory: 6Mi/' -c 'wq' "$1""#,
    );
}

#[test]
fn a_manifest_saved_by_emacs_is_taken_up_and_its_backups_are_ignored() {
    saved_by(
        r#"emacs -Q --batch "$1" --eval '(progn (goto-char (point-min)) (search-forward "memory: 4Mi") (replace-match "memory: 6Mi") (save-buffer))'"#,
    );
}

#[test]
fn a_data_symlink_swap_is_taken_up() {
    let mut host = Host::new();
    let root = host.manifests();
    let publish = |version: &str, text: &str| {
        fs::create_dir(root.join(version)).unwrap();
        fs::write(root.join(version).join("web.yaml"), text).unwrap();
        symlink(version, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    publish("..2026_1", &manifest("web", Vmm::Firecracker));
    symlink("..data/web.yaml", root.join("web.yaml")).unwrap();
    host.start_daemon();
    let life = host.running("web");
    publish("..2026_2", &bigger());
    replaced_once(&host, &life);
}

#[test]
fn a_half_written_manifest_changes_nothing_until_it_is_whole() {
    use std::io::Write;
    let (host, life) = one_vm();
    let text = bigger();
    let mut file = fs::File::create(host.manifests().join("web.yaml")).unwrap();
    // Cut inside the spec: what stands there so far is a broken or a smaller VM.
    for chunk in text.as_bytes().chunks(text.len() / 5) {
        file.write_all(chunk).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(150));
        assert_eq!(host.life("web"), Some(life.clone()));
    }
    drop(file);
    replaced_once(&host, &life);
}

#[test]
fn a_folder_that_goes_missing_or_empty_takes_no_vm_with_it() {
    let (host, life) = one_vm();
    let away = host.root.path().join("away");
    fs::rename(host.manifests(), &away).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(host.life("web"), Some(life.clone()), "the folder is missing");
    // As when something is mounted over it, or a new one is made by mistake.
    fs::create_dir(host.manifests()).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert_eq!(host.life("web"), Some(life.clone()), "another, empty folder is in its place");
    fs::remove_dir(host.manifests()).unwrap();
    fs::rename(&away, host.manifests()).unwrap();
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(host.life("web"), Some(life));
}
