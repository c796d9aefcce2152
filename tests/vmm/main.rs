//! `stead` on real Firecracker and real QEMU, through its command line alone.
//!
//! Each test has folders of its own, waits on conditions with a bound, and leaves nothing behind, also when it fails.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod bed;
mod commands;
mod crash;
mod cron;
mod disks;
mod events;
mod faults;
mod fleet;
mod git;
mod hosts;
mod journal;
mod kills;
mod lifecycle;
mod metrics;
mod network;
mod saving;
mod soak;
mod starts;
mod strangers;
mod supervisor;
mod syscall_faults;
mod top;
