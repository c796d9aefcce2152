//! Who may call whom (ARCHITECTURE.md, "The rooms"): each room's imports are read from its files and held against a list.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may import from other rooms. `*` is everything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("names", &[]),
    ("time", &[]),
    ("reasons", &[]),
    ("spec", &["names"]),
    ("desired", &["names", "spec"]),
    ("state", &["names", "spec", "time", "desired", "host"]),
    ("host", &["names", "spec", "time", "desired", "state", "vmm"]),
    ("vmm", &["names", "spec", "state", "host"]),
    ("observed", &["names", "spec", "time", "state", "host", "desired"]),
    ("plan", &["names", "reasons", "spec", "time", "state", "host", "desired", "observed"]),
    ("act", &["names", "spec", "time", "state", "host", "desired", "observed", "plan", "vmm"]),
    ("wakeups", &["names"]),
    ("status", &["names", "reasons", "spec", "time", "state", "host", "desired", "observed", "plan"]),
    ("audit", &["names", "reasons", "host", "desired", "status"]),
    ("metrics", &["names", "desired", "plan", "status", "wakeups", "audit", "http"]),
    ("config", &["names", "plan", "vmm", "host", "state", "desired", "sync", "http", "push"]),
    ("sync", &["names", "reasons", "time", "state", "host", "desired"]),
    ("control", &["names"]),
    ("http", &["names"]),
    ("push", &["http", "desired"]),
    ("doctor", &["names", "spec", "host", "desired", "vmm"]),
    ("service_manager", &[]),
    ("reconcile", &["*"]),
    ("cli", &["*"]),
];

#[test]
fn every_room_imports_only_what_it_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for file in sources() {
        let room = room_of(&file);
        let Some(may) = allowed.get(room.as_str()) else {
            assert!(matches!(room.as_str(), "lib" | "main"), "{}: a room that this test does not know", file.display());
            continue;
        };
        for used in imports(&fs::read_to_string(&file).unwrap()) {
            if used != room
                && !may.contains(&used.as_str())
                && !may.contains(&"*")
                && allowed.contains_key(used.as_str())
            {
                wrong.push(format!("{}: {room} may not import {used}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn looking_is_given_no_way_to_change_anything() {
    for file in sources().into_iter().filter(|file| room_of(file) == "observed") {
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains("HostOps"), "{} names HostOps", file.display());
    }
}

#[test]
fn acting_does_not_decide() {
    for file in sources().into_iter().filter(|file| room_of(file) == "act") {
        let text = fs::read_to_string(&file).unwrap();
        for decides in ["plan::diff", "plan::gates", "plan::retry", "plan_vm"] {
            assert!(!text.contains(decides), "{} names {decides}", file.display());
        }
    }
}

#[test]
fn unsafe_code_lives_in_the_real_host_alone() {
    for file in sources().into_iter().filter(|file| !file.starts_with(source_root().join("host/linux"))) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        assert!(!code.into_iter().any(|line| line.contains("unsafe ")), "{} has unsafe code", file.display());
    }
}

#[test]
fn the_core_has_no_clock_no_io_and_no_async() {
    for file in sources().into_iter().filter(|file| room_of(file) == "plan") {
        let text = fs::read_to_string(&file).unwrap();
        for impure in ["std::fs", "std::net", "tokio", "Instant::now", "SystemTime", "async fn", "HostView", "HostOps"]
        {
            assert!(!text.contains(impure), "{} uses {impure}", file.display());
        }
    }
}

#[test]
fn main_stays_thin() {
    let main = fs::read_to_string(source_root().join("main.rs")).unwrap();
    assert!(main.lines().count() < 100);
}

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![source_root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 20, "the sources are where this test looks");
    found.sort();
    found
}

/// The top-level module a file belongs to.
fn room_of(file: &Path) -> String {
    let inside = file.strip_prefix(source_root()).unwrap();
    inside.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a text names by `crate::ROOM`, outside its tests and comments.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let names = code
        .split("crate::")
        .skip(1)
        .map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>());
    names.collect()
}
