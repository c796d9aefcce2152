//! What `outside::power` has done inside.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::inside::arguments;
use crate::inside::bed::{Fingerprint, Stead, base_image, fingerprint, vm};
use crate::inside::churn::Chance;

const TEXT: &[u8] = b"of value";

/// Writes one file that is synced, and then another that is not.
pub fn write_with_and_without_sync() {
    let [synced, unsynced] = arguments().try_into().unwrap();
    let mut file = File::create(&synced).unwrap();
    file.write_all(TEXT).unwrap();
    file.sync_all().unwrap();
    File::open(Path::new(&synced).parent().unwrap()).unwrap().sync_all().unwrap();
    // Not before the other: ext4 commits its journal as a whole, and a sync that came later could take this one along.
    fs::write(&unsynced, TEXT).unwrap();
    assert_eq!(fs::read(&unsynced).unwrap(), TEXT);
    println!("WRITTEN");
    // The power goes while this waits, long before the kernel would write by itself (30 s).
    std::thread::sleep(crate::machine::BOUND);
}

pub fn only_what_was_synced_is_there() {
    let [synced, unsynced] = arguments().try_into().unwrap();
    assert_eq!(fs::read(synced).unwrap(), TEXT);
    // Its name may have come with the journal; its data cannot have.
    assert_eq!(fs::read(unsynced).unwrap_or_default(), b"");
}

const VMS: u64 = 6;

/// Comes up after a power cut, has stead bring the host back, checks every rule, and then has VMs come and go until the power
/// is cut again. Its words: a seed; a state file to be torn first, or `none`; and the lives that VMs are known to have begun.
pub fn vms_come_and_go_until_the_power_goes() {
    let [seed, tear, lives] = arguments().try_into().unwrap();
    let before = fingerprint();
    let stead = Stead::at("/state/stead");
    let image = Path::new("/state/images/base.img");
    let base = if image.exists() { fs::read(image).unwrap() } else { base_image() };
    assert!(base.starts_with(b"BASE") && base[4..].iter().all(|byte| *byte == 0), "the base was written to");
    if tear != "none" {
        torn(&stead, &tear);
    }
    let flawed = flawed(&stead);

    // As the pass that was cut short: a gate that asks for approval is none of these rules.
    let ended = stead.stead(&["reconcile", "--once", "--allow-prune", "6"]);
    assert_eq!(ended.status.code(), Some(0), "{}{}", ended.stdout, ended.stderr);
    check(&stead, &before, &lives);
    assert_eq!(stead.once(0), "", "a second pass did something");
    println!("CHECKED flawed={}", flawed.len());

    let mut chance = Chance(seed.parse().unwrap());
    loop {
        for index in 0..VMS {
            let file = format!("vm{index}.yaml");
            match chance.next() % 8 {
                0 => stead.apply(&file, &one(index, "Running", chance.next() % 3)),
                1 => stead.apply(&file, &one(index, "Stopped", 0)),
                2 if stead.manifests().join(&file).exists() => stead.remove(&file),
                _ => {}
            }
        }
        // The manifests are the user's, and so is their safety. What stead writes from here on is stead's.
        rustix::fs::sync();
        let ended = stead.stead(&["reconcile", "--once", "--allow-prune", "6"]);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
        for (name, life) in lives_of(&stead) {
            println!("LIFE {name}={life}");
        }
    }
}

fn one(index: u64, power: &str, variant: u64) -> String {
    let size = ["", ", size: 12Mi", ", size: 16Mi"][usize::try_from(index % 3).unwrap()];
    let spec = format!(
        "  powerState: {power}\n  disks: [{{name: root, image: /state/images/base.img, mode: snapshot{size}}}]\n  \
         networkInterfaces: [{{name: eth0}}]\n"
    );
    // Another amount of memory has it replaced.
    vm(&format!("vm{index}"), &spec).replace("memory: 4Mi", &format!("memory: {}Mi", 4 + variant))
}

/// What a disk that lies about its flushes may leave.
fn torn(stead: &Stead, how: &str) {
    let (file, damage) = how.split_once(':').unwrap();
    for index in 0..VMS {
        let path = stead.vm_dir(&format!("vm{index}")).join(file);
        let Ok(content) = fs::read(&path) else { continue };
        let damaged = match damage {
            "empty" => Vec::new(),
            "half" => content[..content.len() / 2].to_vec(),
            _ => content.iter().map(|byte| byte ^ 0xA5).collect(),
        };
        fs::write(&path, damaged).unwrap();
        println!("TORN {}", path.display());
        return;
    }
}

/// State files that are not what stead wrote.
fn flawed(stead: &Stead) -> Vec<PathBuf> {
    let names = ["handles.json", "ledger.json", "status.json"];
    let paths = (0..VMS).flat_map(|index| names.map(|name| stead.vm_dir(&format!("vm{index}")).join(name)));
    let is_flawed = |path: &PathBuf| {
        fs::read(path).is_ok_and(|content| serde_json::from_slice::<serde_json::Value>(&content).is_err())
    };
    paths.filter(is_flawed).collect()
}

fn lives_of(stead: &Stead) -> BTreeMap<String, u64> {
    let life = |name: String| {
        let ledger = fs::read(stead.vm_dir(&name).join("ledger.json")).ok()?;
        let ledger: serde_json::Value = serde_json::from_slice(&ledger).ok()?;
        Some((name, ledger["incarnation"].as_u64()?))
    };
    (0..VMS).filter_map(|index| life(format!("vm{index}"))).collect()
}

/// Every VM that should run has one VMM with all it needs, and nothing else is there.
fn check(stead: &Stead, before: &Fingerprint, known: &str) {
    let running = |index: &u64| {
        let manifest = fs::read_to_string(stead.manifests().join(format!("vm{index}.yaml"))).unwrap_or_default();
        manifest.contains("powerState: Running")
    };
    let wanted: Vec<u64> = (0..VMS).filter(running).collect();
    let changes = fingerprint().changes_since(before);
    let count = |what: &str| changes.matches(&format!("+ {what}")).count();
    let grown = wanted.iter().filter(|index| *index % 3 != 0).count();
    let expected = [
        ("process ", wanted.len()),
        ("link st", wanted.len()),
        ("dm stead-", wanted.len() + grown),
        ("loop loop", wanted.len() + usize::from(!wanted.is_empty())),
        ("cgroup ", if wanted.is_empty() { 0 } else { wanted.len() + 2 }),
    ];
    for (what, expected) in expected {
        assert_eq!(count(what), expected, "{what} for {wanted:?}\n{changes}");
    }
    for index in &wanted {
        assert!(stead.pid(&format!("vm{index}")).is_some(), "vm{index} is on record");
    }
    let lives = lives_of(stead);
    for (name, life) in known.split(',').filter_map(|one| one.split_once('=')) {
        let now = lives.get(name).copied().unwrap_or_default();
        assert!(now >= life.parse().unwrap(), "{name} had life {life}, and now has {now}");
    }
}
