//! The fuzz targets without a fuzzer: every input of their corpora, and some thousand mutations of these that one seed
//! repeats. `make fuzz` runs them at length.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "../fuzz/src/lib.rs"]
mod bodies;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use bodies::{TARGETS, Target};
use stead::host::sim::Random;

/// Mutations of each target's corpus: STEAD_FUZZ_RUNS, or so many that all take a few seconds.
fn runs() -> u64 {
    std::env::var("STEAD_FUZZ_RUNS").map_or(16_000, |runs| runs.parse().expect("STEAD_FUZZ_RUNS is a number"))
}

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Throws one input at a target; a panic says which input it was.
fn throw(name: &str, target: Target, what: &str, input: &[u8]) {
    let held = catch_unwind(AssertUnwindSafe(|| target(input))).is_ok();
    assert!(held, "{name}, {what}: {:?}", String::from_utf8_lossy(input));
}

/// An input made from one or two others: cut, joined, and some of its bytes changed.
fn mutate(random: &mut Random, corpus: &[(PathBuf, Vec<u8>)]) -> Vec<u8> {
    const PIECES: &[&[u8]] = &[
        b"\0",
        b"\n",
        b"---\n",
        b": ",
        b"\"",
        b"{",
        b"}",
        b"[",
        b"]",
        b"null",
        b"-1",
        b"0",
        b"18446744073709551615",
        b"1e9",
        b"\xff",
        b"\xc2\x85",
        b"\xe2\x80\xa8",
        b"&a ",
        b"*a",
        b"..",
        b"/",
        b"-",
        b"stead:",
        b"\\u0000",
    ];
    let pick = |random: &mut Random| random.choose(corpus).map(|(_, input)| input.clone()).unwrap_or_default();
    let at = |random: &mut Random, input: &[u8]| usize::try_from(random.below(input.len() as u64 + 1)).unwrap();
    let mut input = pick(random);
    for _ in 0..=random.below(4) {
        let (one, other) = (at(random, &input), at(random, &input));
        let (from, to) = (one.min(other), one.max(other));
        match random.below(6) {
            0 => input.truncate(to),
            1 => drop(input.drain(from..to.min(from + 16))),
            2 => {
                let piece = random.choose(PIECES).copied().unwrap_or_default();
                drop(input.splice(from..from, piece.iter().copied()));
            }
            3 => {
                let with = pick(random);
                let start = at(random, &with);
                drop(input.splice(from.., with[start..].iter().copied()));
            }
            4 => {
                let piece = input[from..to.min(from + 64)].to_vec();
                drop(input.splice(to..to, piece));
            }
            _ => {
                if let Some(byte) = input.get_mut(from) {
                    *byte = u8::try_from(random.below(256)).unwrap();
                }
            }
        }
    }
    input
}

/// What holds of a target over its corpus and over what chance makes of it.
fn smoke(name: &str) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).unwrap();
    let corpus = corpus(name);
    assert!(corpus.len() >= 3, "the corpus of {name} has {} inputs", corpus.len());
    for (path, input) in &corpus {
        throw(name, *target, &path.display().to_string(), input);
    }
    let mut random = Random::new(7);
    for run in 0..runs() {
        throw(name, *target, &format!("mutation {run}"), &mutate(&mut random, &corpus));
    }
}

macro_rules! smoke {
    ($($test:ident: $target:literal;)*) => {
        $(
            #[test]
            fn $test() {
                smoke($target);
            }
        )*

        /// The targets that have a test above.
        const TESTED: &[&str] = &[$($target),*];
    };
}

smoke! {
    no_request_or_reply_of_the_control_socket_breaks_a_rule: "control";
    no_answer_of_firecracker_breaks_a_rule: "firecracker";
    no_handles_file_breaks_a_rule: "handles";
    no_ledger_breaks_a_rule: "ledger";
    no_manifest_breaks_a_rule: "manifest";
    no_name_or_tag_breaks_a_rule: "names";
    no_file_of_proc_breaks_a_rule: "proc";
    no_answer_of_qemu_breaks_a_rule: "qmp";
    no_record_of_a_disk_the_gates_or_orphans_breaks_a_rule: "records";
}

#[test]
fn every_target_has_a_test_a_corpus_and_a_fuzzer() {
    let targets: BTreeSet<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(targets, TESTED.iter().copied().collect());
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
    for name in &targets {
        let text = fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(text.contains(&format!("stead_fuzz::{name}(data)")), "{text}");
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
    for entry in fs::read_dir(fuzz.join("corpus")).unwrap().chain(fs::read_dir(fuzz.join("fuzz_targets")).unwrap()) {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(targets.contains(name), "{} is of no target", path.display());
    }
}
