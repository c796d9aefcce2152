//! Nothing is left behind, nothing in use is pulled away, nothing of another's is touched.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use stead::host::devices::{DeviceOps, LoopRequest};
use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::names::{DmLayer, StateId, VmName};

use crate::inside::bed::{Running, Stead, base_image, ends, fingerprint, run, vm, wait};

fn web() -> String {
    vm(
        "web",
        "  disks: [{name: root, image: /state/images/base.img, mode: snapshot}]\n  networkInterfaces: [{name: eth0}]\n",
    )
}

/// `sleep` with this file open.
fn holder(file: &str) -> Running {
    let file = File::open(file).unwrap();
    Running(Command::new("sleep").arg("1000").stdin(Stdio::from(file)).spawn().unwrap())
}

pub fn a_dm_device_held_by_another_process_blocks_what_is_under_it_and_nothing_else() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &web());
    stead.once(0);
    let handles = stead.handles("web").unwrap();
    let dm = handles["dm_devices"][0]["device"].as_str().unwrap().to_owned();
    let tap = handles["tap_devices"][0]["tap"].as_str().unwrap().to_owned();
    let holder = holder(&format!("/dev/{dm}"));
    let pid = holder.0.id();

    stead.remove("web.yaml");
    let told = stead.once(2);
    assert!(told.contains(&format!("pid {pid} (sleep)")), "the holder is named: {told}");
    let handles = stead.handles("web").expect("the record stays");
    let blocked = handles["blocked"].as_object().unwrap();
    assert_eq!(blocked.len(), 3, "the snapshot and the two loops under it: {blocked:?}");
    assert!(!Path::new("/sys/class/net").join(&tap).exists(), "the tap is freed all the same");
    let left = fingerprint().changes_since(&before);
    assert!(!left.contains("cgroup") && !left.contains("link"), "{left}");
    assert!(left.contains("+ dm stead-") && left.matches("+ loop ").count() == 2, "{left}");
    let described = stead.stead(&["describe", "web"]).stdout;
    assert!(described.contains("Not freed:") && described.contains(&format!("pid {pid} (sleep)")), "{described}");

    drop(holder);
    stead.once(0);
    before.comes_back();
}

/// A deletion that is asked for while a loop over the VM's own disk is in use elsewhere.
pub fn the_backing_file_of_a_busy_loop_is_never_deleted() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &format!("{}  deletionPolicy: Delete\n", web()));
    stead.once(0);
    let handles = stead.handles("web").unwrap();
    let own = handles["loops"].as_array().unwrap().iter().find(|handle| handle["read_only"] == false).unwrap();
    let (device, file) = (own["device"].as_str().unwrap().to_owned(), own["file"].as_str().unwrap().to_owned());
    let holder = holder(&format!("/dev/{device}"));

    stead.remove("web.yaml");
    for _ in 0..3 {
        let told = stead.once(2);
        assert!(told.contains("(sleep)"), "{told}");
        assert!(Path::new(&file).exists(), "{file} was deleted or moved under {device}");
    }
    drop(holder);
    stead.once(0);
    assert!(!Path::new(&file).exists());
    before.comes_back();
}

/// What is in the trash for longer than seven days goes, unless a loop is still bound to it.
pub fn the_trash_is_emptied_of_what_nothing_uses() {
    let stead = Stead::at("/state/stead");
    stead.once(0);
    let trash = stead.state().join("trash");
    for entry in ["old.1000", "busy.1000", "young.99999999999", "not-ours"] {
        fs::create_dir_all(trash.join(entry)).unwrap();
        fs::write(trash.join(entry).join("root.cow"), vec![0; 4096]).unwrap();
    }
    let device = run("losetup", &["-f"]);
    run("losetup", &[&device, trash.join("busy.1000/root.cow").to_str().unwrap()]);
    // Found by its inode, whatever it is called by now.
    fs::rename(trash.join("busy.1000"), trash.join("busy.1001")).unwrap();
    stead.once(0);
    let left = || {
        let mut names: Vec<String> =
            fs::read_dir(&trash).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(left(), ["busy.1001", "not-ours", "young.99999999999"]);
    run("losetup", &["-d", &device]);
    stead.once(0);
    assert_eq!(left(), ["not-ours", "young.99999999999"]);
}

/// Objects of another stead, and of nobody's, whose names look like ours.
pub fn foreign_objects_are_never_touched() {
    base_image();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &web());
    stead.once(0);
    let ours = stead.handles("web").unwrap();
    let uid = ours["uid"].as_str().unwrap().replace('-', "");
    let dm_uuid = ours["dm_devices"][0]["uuid"].as_str().unwrap().to_owned();
    let alias = run("cat", &[format!("/sys/class/net/{}/ifalias", ours["tap_devices"][0]["tap"].as_str().unwrap())]);

    // Another state on this host, and its VM of the same name.
    let other = StateId::derive("this machine", Path::new("/srv/other"));
    let name: VmName = "web".parse().unwrap();
    let part: VmName = "root".parse().unwrap();
    let theirs = other.uid(&name);
    let host = LinuxHost::new(LinuxHostConfig::default()).unwrap();
    fs::write("/state/images/theirs.img", vec![0; 1 << 20]).unwrap();
    let id = stead::host::devices::DeviceView::image(&host, Path::new("/state/images/theirs.img")).unwrap().unwrap().id;
    let tags = [
        other.base_loop_tag(),
        theirs.loop_tag(&other, &part),
        // As ours, but for a letter.
        format!("{}x", &ours["loops"][0]["tag"].as_str().unwrap()),
        "stead:".to_owned(),
    ];
    for tag in tags {
        let request = LoopRequest { file: "/state/images/theirs.img".into(), backing: id, tag, read_only: true };
        host.attach_loop(&request).unwrap();
    }
    let zero = ["--table", "0 2048 zero"];
    let dm = |name: &str, uuid: &str| {
        run("dmsetup", &[&["create", name, "--uuid", uuid], zero.as_slice()].concat());
    };
    dm(&theirs.dm_name(&part, DmLayer::Snapshot), &theirs.dm_uuid(&other, &part, DmLayer::Snapshot));
    dm(&format!("stead-{}-data", &uid[..16]), &format!("LVM-{dm_uuid}"));
    run("dmsetup", &[["create", "stead-0123456789abcdef-root"].as_slice(), zero.as_slice()].concat());
    for (tap, tag) in [
        (theirs.tap(&part), theirs.tap_alias(&other, &part)),
        ("st0123456789abc".to_owned(), format!("x{alias}")),
        ("st0123456789abd".to_owned(), alias.replace("eth0", "")[..20].to_owned()),
    ] {
        run("ip", &["tuntap", "add", &tap, "mode", "tap"]);
        run("ip", &["link", "set", &tap, "alias", &tag]);
    }
    run("ip", &["tuntap", "add", "st0123456789abe", "mode", "tap"]);
    fs::create_dir_all(format!("/sys/fs/cgroup/stead/{other}/web")).unwrap();
    fs::create_dir_all("/sys/fs/cgroup/stead-web").unwrap();
    let before = fingerprint();

    let gc = |args: &[&str]| ends(stead.command(&[&["gc", "--orphan-age", "0s"], args].concat()).env("X", "y"));
    let ended = gc(&[]);
    assert_eq!((ended.status.code(), ended.stdout.trim()), (Some(0), "Nothing is left over."), "{ended:?}");
    stead.once(0);
    assert_eq!(fingerprint().changes_since(&before), "");
    stead.remove("web.yaml");
    stead.once(0);
    gc(&[]);
    let changes = fingerprint().changes_since(&before);
    assert!(changes.lines().all(|line| line.starts_with("- ")), "{changes}");
    assert_eq!(changes.matches("loop ").count(), 2, "only our own went: {changes}");
    assert_eq!(changes.matches("dm ").count(), 1, "{changes}");
    assert_eq!(changes.matches("link ").count(), 1, "{changes}");
}

/// A start that meets a stranger's object under the name it wants says so, and takes nothing away.
pub fn a_start_that_meets_a_strangers_object_fails_and_leaves_it_alone() {
    base_image();
    let clean = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &web());
    stead.once(0);
    let handles = stead.handles("web").unwrap();
    let dm = handles["dm_devices"][0]["name"].as_str().unwrap().to_owned();
    let tap = handles["tap_devices"][0]["tap"].as_str().unwrap().to_owned();
    stead.apply("web.yaml", &format!("{}  powerState: Stopped\n", web()));
    stead.once(0);
    clean.comes_back();

    run("ip", &["tuntap", "add", &tap, "mode", "tap"]);
    let before = fingerprint();
    stead.apply("web.yaml", &web());
    let told = stead.once(2);
    assert!(told.contains("exists and is not this VM's"), "{told}");
    assert_eq!(fingerprint().changes_since(&before), "");
    run("ip", &["link", "del", &tap]);

    run("dmsetup", &["create", &dm, "--table", "0 2048 zero"]);
    let before = fingerprint();
    let told = wait("it is tried again", || {
        let ended = stead.stead(&["reconcile", "--once"]);
        ended.stderr.contains(&dm).then_some(ended)
    });
    assert_eq!(told.status.code(), Some(2), "{told:?}");
    assert_eq!(fingerprint().changes_since(&before), "");
    run("dmsetup", &["remove", &dm]);
    wait("it runs", || (stead.stead(&["reconcile", "--once"]).status.code() == Some(0)).then_some(()));
    stead.remove("web.yaml");
    stead.once(0);
    clean.comes_back();
}

/// Everything that led to the VM is lost: its folder, its manifest, its process.
pub fn orphans_are_listed_aged_and_freed() {
    base_image();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    stead.apply("web.yaml", &web());
    stead.once(0);
    let pid = stead.pid("web").unwrap();
    stead.remove("web.yaml");
    fs::rename(stead.vm_dir("web"), "/state/lost").unwrap();

    // Its VMM lives: unclaimed, and nothing of it is taken away.
    let held = stead.stead(&["gc", "--orphan-age", "0s"]);
    assert_eq!(held.status.code(), Some(0), "{held:?}");
    assert_eq!(held.stdout.lines().filter(|line| line.contains("held: ")).count(), 6, "{held:?}");
    assert!(held.stdout.contains(&format!("pid {pid}")), "{held:?}");
    assert!(Path::new("/proc").join(pid.to_string()).exists());

    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    wait("its end", || (!Path::new("/proc").join(pid.to_string()).exists()).then_some(()));
    let listed = stead.stead(&["gc", "--dry-run", "--orphan-age", "1h"]);
    assert_eq!(listed.status.code(), Some(0), "{listed:?}");
    assert!(listed.stdout.contains("too young yet"), "{listed:?}");
    let listed = stead.stead(&["gc", "--dry-run", "--orphan-age", "0s"]);
    assert_eq!(listed.status.code(), Some(3), "{listed:?}");
    assert!(!fingerprint().changes_since(&before).is_empty(), "a dry run freed something");
    assert_eq!(stead.stead(&["gc", "--orphan-age", "1h"]).status.code(), Some(0));
    assert!(!fingerprint().changes_since(&before).is_empty(), "what was young was freed");

    // A full pass does the same.
    let passed = ends(stead.command(&["reconcile", "--once"]).env("STEAD_ORPHAN_AGE", "0s"));
    assert_eq!(passed.status.code(), Some(0), "{passed:?}");
    before.comes_back();
    assert_eq!(stead.stead(&["gc"]).stdout.trim(), "Nothing is left over.");
}
