//! The simulated host against the real one, for what only a nested host has: device-mapper, and cgroups with controllers.

use std::fs;
use std::path::Path;

use stead::host::linux::{LinuxHost, LinuxHostConfig};
use stead::host::sim::{Faults, Machine, Random};

use crate::differential::compare;
use crate::differential::objects::{self, Call};
use crate::inside::bed::fingerprint;

const RUNS: u64 = 30;
const CALLS: usize = 60;

fn same_answers(next: fn(&mut Random, &Path) -> Call) {
    let before = fingerprint();
    let mut calls = 0;
    let given = crate::inside::arguments().first().and_then(|runs| runs.parse().ok());
    for seed in 0..given.unwrap_or(RUNS) {
        let root = Path::new("/state/simulated");
        let (state, run) = (root.join("s"), root.join("r"));
        for folder in [&state, &run] {
            fs::create_dir_all(folder).unwrap();
        }
        let machine = Machine::new(&state, &run, seed);
        let (real, simulated) = (LinuxHost::new(LinuxHostConfig::default()).unwrap(), machine.life(Faults::default()));
        let mut random = Random::new(seed);
        {
            let mut theirs = objects::Side::new(&real, None);
            let mut ours = objects::Side::new(&*simulated, Some(&machine));
            let prepared = objects::prepare(root).into_iter();
            let all = prepared.chain(std::iter::repeat_with(|| next(&mut random, root)).take(CALLS));
            let compared = compare(&mut theirs, &mut ours, all, Call::is_look);
            calls += compared.unwrap_or_else(|differs| panic!("seed {seed}: {differs}"));
        }
        fs::remove_dir_all(root).unwrap();
    }
    println!("{calls} calls");
    before.comes_back();
}

pub fn simulated_devices_answer_as_real_ones_do() {
    same_answers(objects::device);
}
