//! The simulated host against the real one: the same random calls get the same answers.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nix::sched::CloneFlags;
use stead::host::linux::LinuxHost;
use stead::host::sim::{Faults, Machine, Random, SimHost};

use crate::bed::{host, in_namespaces};
use crate::differential::{compare, objects};

/// Runs when `STEAD_RUNS` does not say, and calls of a run.
pub const RUNS: u64 = 20;
const CALLS: usize = 60;

/// How many runs are asked for.
pub fn runs(otherwise: u64) -> u64 {
    std::env::var("STEAD_RUNS").map_or(otherwise, |runs| runs.parse().unwrap())
}

/// Both hosts with a folder for STATE and one for RUN, below a root that is the same for both.
pub struct Both {
    pub root: tempfile::TempDir,
    pub machine: Machine,
    pub real: Arc<LinuxHost>,
    pub simulated: Arc<SimHost>,
}

impl Both {
    pub fn new(seed: u64) -> Self {
        let root = tempfile::Builder::new().prefix("sts").tempdir_in("/tmp").unwrap();
        let (state, run) = (root.path().join("s"), root.path().join("r"));
        for folder in [&state, &run] {
            std::fs::create_dir(folder).unwrap();
        }
        let machine = Machine::new(&state, &run, seed);
        let simulated = machine.life(Faults::default());
        Self { root, machine, real: host(), simulated }
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }
}

#[test]
fn the_simulated_host_answers_as_the_real_one_does() {
    in_namespaces(CloneFlags::CLONE_NEWNET, || {
        assert!(Command::new("ip").args(["link", "add", "br0", "type", "bridge"]).status().unwrap().success());
        let mut calls = 0;
        for seed in 0..runs(RUNS) {
            let both = Both::new(seed);
            both.machine.add_bridge("br0");
            let mut real = objects::Side::new(&*both.real, None);
            let mut simulated = objects::Side::new(&*both.simulated, Some(&both.machine));
            let mut random = Random::new(seed);
            let next = std::iter::repeat_with(|| objects::any(&mut random, both.root())).take(CALLS);
            let compared = compare(&mut real, &mut simulated, next, objects::Call::is_look);
            calls += compared.unwrap_or_else(|differs| panic!("seed {seed}: {differs}"));
        }
        println!("{calls} calls");
    });
}
