//! The real host, on real VMMs, real taps and real files.
//!
//! Tests that need it get a network or mount namespace of their own, on a thread of its own (unshare(2)). Each waits on
//! conditions with a bound, and leaves nothing behind, also when it fails.
#![allow(clippy::disallowed_methods, reason = "tests prepare files and programs of their own")]
#![allow(unsafe_code, reason = "a fork that becomes a zombie, a process that is stopped: nothing else makes them")]

mod bed;
mod cgroup;
#[path = "../differential/mod.rs"]
mod differential;
mod files;
mod images;
mod lock;
mod loops;
mod process;
mod simulated;
mod simulated_processes;
mod tap;
mod tap_removal;
mod vmm;
mod vmm_client;
