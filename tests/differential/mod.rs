//! The simulated host beside the real one: the same random calls are to get the same answers from both.
//!
//! A [`Side`] is one of the two, with what its numbers stand for there. An answer is what both must agree on: pids, device
//! numbers and times are told by what they belong to, errors by their kind.

#![allow(dead_code, reason = "each of those who share this uses what it needs")]

use std::fmt::Debug;
use std::io;
use std::time::{Duration, Instant};

use stead::host::sim::{Machine, Random};

pub mod objects;

/// How long the real host may take to come to what the simulated one says at once.
const BOUND: Duration = Duration::from_secs(20);

/// One of the two hosts.
pub trait Side<Call> {
    /// What it says to a call.
    fn answer(&mut self, call: &Call) -> String;

    /// Whether nothing more can be learned here, through no fault of either host.
    fn is_over(&self) -> bool {
        false
    }
}

/// The machine, if a host is the simulated one: for what happens on it that stead does not do.
pub type Simulated<'a> = Option<&'a Machine>;

/// Makes these calls on the real and on the simulated side, up to the first that they answer differently. A look may be
/// repeated until the real host has settled; a call that changes something is made once.
pub fn compare<Call: Debug>(
    real: &mut dyn Side<Call>,
    simulated: &mut dyn Side<Call>,
    calls: impl Iterator<Item = Call>,
    is_look: fn(&Call) -> bool,
) -> Result<usize, String> {
    let mut story = Vec::new();
    for call in calls {
        let (mut theirs, ours) = (real.answer(&call), simulated.answer(&call));
        if real.is_over() {
            break;
        }
        let start = Instant::now();
        while theirs != ours && is_look(&call) && start.elapsed() < BOUND {
            std::thread::sleep(Duration::from_millis(5));
            theirs = real.answer(&call);
        }
        story.push(format!("{call:?}: {theirs}"));
        if theirs != ours {
            let story = story.join("\n");
            return Err(format!("the real host says {theirs}, the simulated one {ours}\n{story}"));
        }
    }
    Ok(story.len())
}

/// An answer as far as the two must agree: the kind of an error, not its words.
pub fn told<T: Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => format!("{:?}", error.kind()),
    }
}

/// A number below `bound`, as an index.
pub fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).expect("an index")
}
