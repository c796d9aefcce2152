//! What stead costs at rest and how soon it acts, each figure beside the least that any program could take.
//!
//!     cargo bench --bench figures -- [--quick] [--write=FOLDER] [FIGURE]...
//!
//! Each figure is taken in one run with its floor: a minimal program that makes only the system calls that cannot be avoided.
//! Both take turns, so that what else the machine does meets both alike.

#![allow(clippy::disallowed_methods, reason = "benches do by hand what stead does through its seam")]

#[allow(dead_code, reason = "the benches use a part of it")]
#[path = "../../tests/vmm/bed.rs"]
mod bed;
mod fleet;
mod floors;
mod growth;
mod measure;
mod p1_start;
mod p2_death;
mod p3_pass;
mod p4_once;
mod p6_rest;
mod p8_firecracker;
mod report;
mod scratch;

use std::path::Path;
use std::process::ExitCode;

use measure::Figure;
use rustix::process::{Resource, Rlimit, setrlimit};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// VMs on the host where a figure says a thousand.
    pub vms: usize,
    /// Runs of what is measured again and again.
    pub runs: usize,
    /// Seconds at rest.
    pub rest: u64,
}

const FULL: Size = Size { vms: 1000, runs: 200, rest: 60 };
const QUICK: Size = Size { vms: 30, runs: 10, rest: 3 };

type Take = fn(Size) -> Figure;
const FIGURES: &[(&str, Take)] = &[
    ("P1", p1_start::take),
    ("P2", p2_death::take),
    ("P3", p3_pass::take),
    ("P4", p4_once::once),
    ("P5", p4_once::adoption),
    ("P6", p6_rest::wakeups),
    ("P7", p6_rest::memory),
    ("P8", p8_firecracker::take),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let Some(floor) = args.first().and_then(|arg| arg.strip_prefix("floor:")) {
        floors::main(floor, &args[1..]);
        return ExitCode::SUCCESS;
    }
    let _cleanup = scratch::Cleanup;
    let size = if args.iter().any(|arg| arg == "--quick") { QUICK } else { FULL };
    let wanted: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--")).collect();
    // Taps and bridges of these benches are in a network namespace of their own.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("root, for a network namespace");
    // Ten thousand VMs take twenty thousand open files: what stead takes of its own is what its hard limit allows.
    let files = Rlimit { current: Some(1 << 16), maximum: Some(1 << 16) };
    if let Err(error) = setrlimit(Resource::Nofile, files) {
        eprintln!("open files stay limited, and so do the VMs of the growth curves: {error}");
    }
    let is_wanted = |id: &str| wanted.is_empty() || wanted.iter().any(|name| *name == id);
    let mut figures: Vec<Figure> = Vec::new();
    for (id, take) in FIGURES.iter().filter(|(id, _)| is_wanted(id)) {
        eprintln!("{id} ...");
        figures.push(take(size));
        println!("{}", figures[figures.len() - 1]);
    }
    let curves = if is_wanted("growth") { growth::take(size) } else { Vec::new() };
    for curve in &curves {
        println!("{curve}");
    }
    if let Some(folder) = args.iter().find_map(|arg| arg.strip_prefix("--write=")) {
        report::write(Path::new(folder), &figures, &curves);
    }
    ExitCode::SUCCESS
}
