//! stead on a simulated host, on which anything may fail and time takes no time.

#![allow(clippy::disallowed_methods, reason = "tests do by hand what stead does through its seam")]

mod bed;
mod cancelled;
mod crash_points;
mod glance;
mod hangs;
mod histories;
mod pains;
mod parallel;
mod races;
mod records;
mod sources;
mod telling;
mod writing;
