//! docs/pains.md: each accident of others has tests, and each test that it names is there.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The reports, below https://github.com/, in the order of the page. Each must stay on it, once.
const REPORTS: &[&str] = &[
    "weaveworks/ignite/issues/668",
    "kubernetes/kubernetes/pull/43420",
    "kubernetes/kubernetes/issues/136962",
    "kontena/pharos-cluster/issues/252",
    "facebook/buck2/issues/1131",
    "openshift/release-controller/pull/802",
    "argoproj/argo-cd/issues/7412",
    "argoproj/argo-cd/issues/23645",
    "fluxcd/kustomize-controller/issues/1664",
    "microvm-nix/microvm.nix/issues/508",
    "hephaestus-build/Hephaestus/pull/1481",
    "canonical/multipass/issues/1658",
    "BitMiracle-AI/Dormice/issues/64",
    "aerol-ai/microvm/pull/360",
    "jdx/pitchfork/pull/665",
    "jdx/pitchfork/pull/878",
    "rh-ecosystem-edge/openshift-dpf/pull/127",
    "systeminit/si/pull/5722",
    "arcboxlabs/arcbox/pull/666",
    "canonical/lxd/pull/8969",
    "canonical/multipass/issues/2520",
    "liquidmetal-dev/flintlock/issues/161",
    "ClickHouse/ClickBench/pull/1207",
    "kernel/hypeman/pull/222",
    "jingkaihe/matchlock/issues/72",
    "weaveworks/ignite/issues/711",
    "home-operations/miroir/pull/250",
    "vm0-ai/vm0/pull/7225",
    "brimdata/super/issues/4080",
    "MCSManager/MCSManager/pull/2237",
    "sonic-net/sonic-buildimage/pull/1311",
    "aleph-im/aleph-vm/pull/1214",
    "microvm-nix/microvm.nix/pull/231",
    "A3S-Lab/Box/issues/373",
    "deeplethe/forkd/issues/298",
    "mitos-run/mitos/issues/870",
    "hashicorp/nomad/issues/2763",
    "firecracker-microvm/firecracker/pull/6143",
];
/// Accidents of the daemon that stead descends from, of which nobody made a report.
const UNREPORTED: usize = 3;
/// Rows of the page.
const ROWS: usize = 23;

/// One row of the page.
struct Row {
    accident: String,
    place: String,
    tests: Vec<String>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Row> {
    let page = fs::read_to_string(root().join("docs/pains.md")).unwrap();
    let lines = page.lines().filter(|line| line.starts_with("| ")).skip(1);
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            let [accident, place, tests] = cells[..] else { panic!("three columns: {line}") };
            // What is between back-ticks is every second part.
            let tests = tests.split('`').skip(1).step_by(2).map(str::to_owned).collect();
            Row { accident: accident.to_owned(), place: place.to_owned(), tests }
        })
        .collect()
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}

/// The names of all tests: functions of their kind, those that the nested host is told to run, and golden plans.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let sources = ["src", "tests"].into_iter().flat_map(|folder| files_below(&root().join(folder)));
    for file in sources.filter(|file| file.extension().is_some_and(|extension| extension == "rs")) {
        let text = fs::read_to_string(&file).unwrap();
        let is_nested = file.starts_with(root().join("tests/nested"));
        let mut is_test = false;
        for line in text.lines().map(str::trim_start) {
            let words = line.trim_start_matches("pub ").trim_start_matches("async ");
            if let Some(name) = words.strip_prefix("fn ").and_then(|rest| rest.split('(').next()) {
                if is_test || is_nested && line.starts_with("pub ") {
                    found.insert(name.to_owned());
                }
                is_test = false;
            } else if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                is_test = true;
            }
        }
        if is_nested {
            // A function that no list names is never run.
            found.retain(|name| !text.contains(&format!("pub fn {name}()")) || is_listed(name));
        }
    }
    let plans = fs::read_dir(root().join("tests/plan")).unwrap().flatten();
    let plans = plans.filter(|entry| entry.path().join("expected-plan.txt").exists());
    found.extend(plans.map(|entry| entry.file_name().into_string().unwrap()));
    found
}

/// Whether the nested host's tests have one of this name.
fn is_listed(name: &str) -> bool {
    ["inside", "outside"].iter().any(|place| {
        let text = fs::read_to_string(root().join("tests/nested").join(place).join("mod.rs")).unwrap();
        text.contains(&format!("::{name},"))
    })
}

#[test]
fn every_accident_of_others_has_a_test_here() {
    let tests = tests();
    assert!(tests.len() > 300, "the tests are where this one looks: {}", tests.len());
    let rows = rows();
    assert_eq!(rows.len(), ROWS);
    let mut missing = Vec::new();
    for row in &rows {
        assert!(!row.tests.is_empty(), "no test shows: {}", row.accident);
        missing.extend(row.tests.iter().filter(|test| !tests.contains(*test)));
    }
    assert!(missing.is_empty(), "docs/pains.md names tests that are not there: {missing:#?}");
}

#[test]
fn every_report_of_an_accident_is_on_the_page_once() {
    let rows = rows();
    let words = rows.iter().flat_map(|row| row.place.split_whitespace());
    let links: Vec<&str> = words.filter_map(|word| word.strip_prefix("https://github.com/")).collect();
    assert_eq!(links, REPORTS);
    assert_eq!(REPORTS.iter().collect::<BTreeSet<_>>().len(), REPORTS.len());
    assert_eq!(rows.iter().filter(|row| !row.place.contains("https://")).count(), UNREPORTED);
}
