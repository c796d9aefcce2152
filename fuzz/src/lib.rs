//! What is thrown at each reader of bytes that somebody else wrote, and what must hold of it whatever they are.
//!
//! One function a target. libFuzzer calls them (`fuzz_targets/`), and so does an ordinary test (`tests/fuzz.rs`), which
//! includes this file by its path: so it needs neither another compiler nor stead built a second time.

mod manifest;
mod names;
mod proc;
mod replies;
mod state;

pub use manifest::manifest;
pub use names::names;
pub use proc::proc;
pub use replies::{control, firecracker, qmp};
pub use state::{handles, ledger, records};

/// A target: any bytes in, a panic where something does not hold.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also that of its file and of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("control", control),
    ("firecracker", firecracker),
    ("handles", handles),
    ("ledger", ledger),
    ("manifest", manifest),
    ("names", names),
    ("proc", proc),
    ("qmp", qmp),
    ("records", records),
];

/// The first byte, by which a target chooses among several readers, and the rest.
fn split_choice(data: &[u8]) -> Option<(u8, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((*first, rest))
}
