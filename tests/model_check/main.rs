//! The model check: every world that stead's decisions can lead to, within bounds, and every order in which things happen.
//!
//! The decisions are stead's own: `plan`, the gates, back-off, the queue and the loop's agenda. What they are carried out on
//! is a model: two VMs, their files as they are on disk, the VMMs that live, a folder of manifests. Actions happen in the
//! steps of `src/act/`, and stead may die between any two of them; files are lost or go back in time, looks fail, events get
//! lost, VMMs die, users change their minds. `STEAD_MODEL=full` lets more of that happen.

mod liveness;
#[path = "../model/mod.rs"]
mod model;
mod real;
mod rules;
mod state;
mod step;

use std::time::Instant;

use liveness::Extent;
use rules::{Mutant, Rules};
use state::{Left, State};
use stateright::{Checker, HasDiscoveries, Model};

/// Every fault there is, of each kind so many, and `faults` of them in one history.
fn anything(edits: u8, faults: u8) -> Left {
    Left { edits, faults, crashes: 2, lost_events: 1, rots: 1, unknowns: 1, deaths: 2, folders: 1, late_ticks: 1 }
}

fn is_full() -> bool {
    std::env::var_os("STEAD_MODEL").is_some_and(|size| size == "full")
}

/// Explores the whole model: no rule may be broken. Gives the worlds that were reached.
fn explore(rules: Rules, reaches_all: bool, at_least: usize) -> Vec<State> {
    let begun = Instant::now();
    let threads = if is_full() { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
    let left = rules.left;
    let checker = Rules { collects: true, ..rules }.checker().threads(threads).spawn_bfs().join();
    let (unique, total, depth) = (checker.unique_state_count(), checker.state_count(), checker.max_depth());
    println!("{unique} states, {total} reached, depth {depth}, {:.1} s; {left:?}", begun.elapsed().as_secs_f64());
    if reaches_all {
        checker.assert_properties();
    }
    for (name, path) in checker.discoveries() {
        let is_failure = checker.model().property(name).expectation.discovery_is_failure();
        assert!(!is_failure, "it is not so that {name}:\n{path}{:?}", path.last_state());
    }
    assert!(unique >= at_least, "only {unique} states");
    checker.model().calm_worlds()
}

/// From each of these worlds on, it converges and stays.
fn settle(rules: &Rules, worlds: Vec<State>) {
    let begun = Instant::now();
    let count = worlds.len();
    let extent = liveness::check(rules, worlds).unwrap_or_else(|why| panic!("{why}"));
    let Extent { states, steps, ends } = extent;
    assert!(ends > 0);
    let seconds = begun.elapsed().as_secs_f64();
    println!("{count} worlds lead to {states}, by {steps} steps; {ends} ends, all as declared, {seconds:.1} s");
}

#[test]
fn no_order_of_events_breaks_a_rule_and_every_world_converges_and_stays() {
    let (faults, at_least) = if is_full() { (2, 5_000_000) } else { (1, 400_000) };
    let rules = || Rules { parallel: 2, left: anything(1, faults), ..Rules::default() };
    settle(&rules(), explore(rules(), true, at_least));
}

#[test]
fn whatever_goes_wrong_with_one_vm_it_converges_and_its_neighbour_is_left_alone() {
    let (faults, at_least) = if is_full() { (2, 3_000_000) } else { (1, 50_000) };
    let rules = || Rules { parallel: 1, left: anything(1, faults), spares_one: true, ..Rules::default() };
    settle(&rules(), explore(rules(), false, at_least));
}

/// Two crashes, a lost event, a stale file, an Unknown, all of them in one history, and a change of a manifest; two of them in
/// a short run.
#[test]
fn all_faults_in_one_history_break_no_rule_and_end_as_declared() {
    let left = Left { edits: 1, crashes: 1, lost_events: 1, rots: 1, unknowns: 1, faults: 2, ..Left::default() };
    let full = Left { crashes: 2, faults: 5, ..left };
    let (left, at_least) = if is_full() { (full, 3_000_000) } else { (left, 100_000) };
    let rules = || Rules { parallel: 1, left, spares_one: true, ..Rules::default() };
    settle(&rules(), explore(rules(), false, at_least));
}

#[test]
fn a_vm_that_is_stuck_for_good_delays_no_other() {
    let mut worlds = Vec::new();
    let lefts = if is_full() { vec![anything(1, 1)] } else { vec![anything(1, 0), anything(0, 1)] };
    for left in lefts {
        worlds.extend(explore(Rules { parallel: 2, left, ..Rules::default() }, false, 5_000));
    }
    let stuck = worlds.iter().flat_map(rules::stuck_worlds).collect();
    settle(&Rules { parallel: 2, ..Rules::default() }, stuck);
}

/// Whether a model with this defect is found to break this rule.
fn breaks(mutant: Mutant, left: Left, rule: &'static str) -> bool {
    let rules = Rules { parallel: 2, left, mutant: Some(mutant), ..Rules::default() };
    let stop = HasDiscoveries::AnyOf([rule].into());
    rules.checker().finish_when(stop).spawn_bfs().join().discovery(rule).is_some()
}

/// What is wrong with how a model with this defect ends, if anything.
fn ends_badly(mutant: Mutant, left: Left) -> Option<String> {
    let rules = || Rules { parallel: 2, left, mutant: Some(mutant), collects: true, ..Rules::default() };
    let checker = rules().checker().spawn_bfs().join();
    liveness::check(&Rules { collects: false, ..rules() }, checker.model().calm_worlds()).err()
}

#[test]
fn a_model_that_acts_before_its_intent_is_durable_is_caught() {
    assert!(breaks(Mutant::EffectFirst, Left::default(), "no effect without durable intent"));
}

#[test]
fn a_model_that_ignores_the_lock_is_caught() {
    let left = Left { crashes: 1, faults: 1, ..Left::default() };
    assert!(breaks(Mutant::LockIgnored, left, "never two live VMMs for one VM"));
}

#[test]
fn a_model_that_takes_unknown_for_absent_is_caught() {
    // One alone is not enough: an action a look, and the second look sees that it lives.
    let left = Left { unknowns: 2, faults: 2, ..Left::default() };
    assert!(breaks(Mutant::UnknownIsAbsent, left, "nothing is freed under a live VMM"));
}

#[test]
fn a_model_that_takes_an_unreadable_folder_for_an_empty_one_is_caught() {
    let left = Left { folders: 1, faults: 1, ..Left::default() };
    assert!(breaks(Mutant::GapsHidden, left, "no live VM is stopped without a reason"));
}

#[test]
fn a_model_that_never_looks_again_by_itself_is_caught() {
    let left = Left { edits: 1, lost_events: 1, faults: 1, ..Left::default() };
    let why = ends_badly(Mutant::NoFullPass, left).expect("a lost event stays lost");
    assert!(why.contains("it stays like this, and is not as declared"), "{why}");
}

#[test]
fn a_death_that_nobody_tells_of_is_made_good_by_the_next_full_pass() {
    let left = Left { deaths: 1, faults: 1, ..Left::default() };
    assert_eq!(ends_badly(Mutant::DeafToExits, left), None);
}
