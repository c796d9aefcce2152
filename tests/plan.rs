//! Golden plans: each folder of tests/plan/ is a world, and what is to be done about it.
//!
//! - `manifests/`: what should exist, read as stead reads it
//! - `before/`: the manifests that VMs were started from, where they differ
//! - `host.yaml`: what exists; see [`World`]
//! - `expected-plan.txt`: what `stead plan` says
//!
//! `UPDATE_GOLDEN=1` rewrites the expected texts.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

#[path = "model/golden.rs"]
mod golden;
mod model;

use std::fs;

use stead::plan::show;

#[test]
fn every_golden_world_has_its_plan() {
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for case in golden::cases() {
        let got = show::text(&golden::read(&case).plan, false);
        let file = case.join("expected-plan.txt");
        if update {
            fs::write(&file, &got).unwrap();
        }
        let expected = fs::read_to_string(&file).unwrap_or_default();
        if got != expected {
            wrong.push(format!("{}\nexpected:\n{expected}\ngot:\n{got}", case.file_name().unwrap().to_string_lossy()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
